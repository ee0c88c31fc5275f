"""What a unit wrote, read from the journal.

Owns the journalctl command line: there is no well-kept reader in pure Python. The lines are found by their
SyslogIdentifier and this user's id: journald attributes the last words of a unit that dies at once to no unit, and
anybody may log under any identifier.
"""

import os
from collections.abc import Sequence

import anyio

from gpumodd.ports import PortError

LATE_S = 0.2  # how long journald takes, at most, to store what a unit has written
LONGEST = 16 * 1024  # characters of one line; the rest is cut off
AT_MOST = 8 << 20  # bytes that are read; the oldest lines go first


class Journal:
    """Runs journalctl, the given command."""

    def __init__(self, command: Sequence[str] = ("journalctl",)) -> None:
        self._command = tuple(command)

    async def tail(self, identifier: str, *, lines: int, since_us: int = 0) -> list[str]:
        """The last lines under this identifier, oldest first; `since_us` is wall time in microseconds."""
        if lines <= 0:
            return []
        options = [
            *("--identifier", identifier, f"_UID={os.getuid()}"),
            # Backwards, because with --since the lines are counted from there, and the first ones would come.
            *("--lines", str(lines), "--reverse"),
            # `cat` writes the message and nothing else, `all` also what is long or not text.
            *("--output", "cat", "--all", "--quiet", "--no-pager"),
        ]
        if since_us:
            options += ["--since", f"@{since_us // 1_000_000}.{since_us % 1_000_000:06}"]
        return newest_first(await self._run(options))[:lines][::-1]

    async def _run(self, options: Sequence[str]) -> bytes:
        """What it writes, up to the limit."""
        output = b""
        try:
            async with await anyio.open_process([*self._command, *options], stdin=None) as process:
                assert process.stdout is not None and process.stderr is not None
                async for chunk in process.stdout:
                    output += chunk
                    if len(output) > AT_MOST:
                        process.kill()
                        return output[:AT_MOST]
                complaint = b"".join([chunk async for chunk in process.stderr])[-500:]
        except OSError as error:
            raise _unreadable(str(error)) from error
        if process.returncode:
            raise _unreadable(complaint.decode(errors="replace").strip() or f"exit status {process.returncode}")
        return output


def newest_first(output: bytes) -> list[str]:
    return (
        [line.decode(errors="replace")[:LONGEST] for line in output.removesuffix(b"\n").split(b"\n")] if output else []
    )


def _unreadable(why: str) -> PortError:
    hint = "is journalctl installed and journald running?"
    if "permission" in why:
        hint = "a journal that is not kept on disk is for the group systemd-journal only"
    return PortError("journal_unreadable", f"cannot read the journal: {why}", hint=hint)
