"""The output of one service, as the shim has written it.

Owns the reading, and the mark that begins a run. Two files of a bounded size: the older one is `.1`.
"""

from dataclasses import dataclass
from pathlib import Path

MARK = b"\0run "  # no line of a text begins like that
LONGEST = 16 * 1024  # characters of one line; the rest is cut off


@dataclass(frozen=True, slots=True)
class LogFile:
    path: Path
    size: int

    def tail(self, lines: int, *, this_run: bool) -> list[str]:
        """The last lines, oldest first. Blocking."""
        data = b"".join(self._read(path) for path in (self.path.with_name(self.path.name + ".1"), self.path))
        found: list[str] = []
        for line in data.removesuffix(b"\n").split(b"\n") if data else ():
            if not line.startswith(MARK):
                found.append(line.decode(errors="replace")[:LONGEST])
            elif this_run:
                found.clear()
        return found[-lines:] if lines > 0 else []

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError:
            return b""
