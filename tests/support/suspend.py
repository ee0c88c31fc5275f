"""A suspend for a real daemon: its boot clock jumps and everything else goes on, as after a night with the lid shut."""

from pathlib import Path

from tests.support.compiled import library

SOURCE = Path(__file__).with_suffix(".c")


class Lid:
    """The machine's lid: `shut(seconds)` is a sleep that is over at once."""

    def __init__(self, folder: Path, *, slept_before_s: int = 0) -> None:
        self._file = folder / "suspended"
        self._slept_s = 0
        self.shut(slept_before_s)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to notice."""
        return {"LD_PRELOAD": str(library(SOURCE, "libsuspend.so")), "SUSPEND_FILE": str(self._file)}

    def shut(self, seconds: int) -> None:
        self._slept_s += seconds
        new = self._file.with_suffix(".new")
        new.write_text(str(self._slept_s))
        new.replace(self._file)
