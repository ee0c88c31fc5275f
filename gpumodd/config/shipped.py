"""The example configuration and the systemd units that come with the package, and `gpumodd init`.

Owns where they are and how they are copied. Copying never overwrites unless told to, and a directory that was
not there appears whole or not at all.
"""

import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

from gpumodd.config.errors import reason
from gpumodd.ports import PortError


def shipped(name: str) -> Path:
    """The directory `config` or `contrib` as it was shipped: in the installed package, else in the checkout."""
    package = Path(str(files("gpumodd")))
    for place in (package / "shipped" / name, package.parent / name):
        if place.is_dir():
            return place
    raise PortError("file_missing", f"cannot find {name}: this installation is incomplete", hint="install it again")


def write_example(target: Path, force: bool = False) -> list[Path]:
    """Copies the example configuration; returns the files written, as they lie below `target`.

    Refuses (PortError `already_exists`) when a file is already there, before anything is written; with `force`
    such files are replaced. Files that the example does not have are left alone in any case.
    """
    source = shipped("config")
    names = sorted(
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and path.suffix in (".yaml", ".json", ".j2")
    )
    try:
        there = [str(name) for name in names if os.path.lexists(target / name)]
        if there and not force:
            message = f"cannot write the example to {target}: {', '.join(there[:5])}"
            more = f" and {len(there) - 5} more" if len(there) > 5 else ""
            raise PortError("already_exists", f"{message}{more} would be overwritten", hint="nothing was changed")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that moving is renaming; mkdtemp makes it 0700, the files below are 0600.
        with tempfile.TemporaryDirectory(prefix=".gpumodd-init-", dir=target.parent) as folder:
            fresh = Path(folder) / "config"
            _copy(source, fresh, names)
            _put(fresh, target, names)
    except OSError as error:
        message = f"cannot write the example to {target}: {reason(error)}"
        raise PortError("not_writable", message, hint="nothing that was there is lost") from None
    return [target / name for name in names]


def _copy(source: Path, fresh: Path, names: list[Path]) -> None:
    fresh.mkdir(mode=0o700)
    for name in names:
        (fresh / name).parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(source / name, fresh / name)
        (fresh / name).chmod(0o600)


def _put(fresh: Path, target: Path, names: list[Path]) -> None:
    """A directory that is not there (or is empty) is renamed into place; else each file is, one by one."""
    try:
        fresh.rename(target)
        return
    except OSError:
        if not target.is_dir():
            raise
    for name in names:
        (target / name).parent.mkdir(mode=0o700, exist_ok=True)
        (fresh / name).replace(target / name)
