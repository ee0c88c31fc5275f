"""The example configuration and the systemd units that come with the package, and `gpumodd init`.

Owns where they are and how they are copied. Copying never overwrites unless told to, and a directory that was
not there appears whole or not at all.
"""

import errno
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path


def shipped(name: str) -> Path:
    """The directory `config` or `contrib` as it was shipped: in the installed package, else in the checkout."""
    package = Path(str(files("gpumodd")))
    for place in (package / "shipped" / name, package.parent / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(errno.ENOENT, "this installation is incomplete: install it again", name)


def write_example(target: Path, force: bool = False) -> list[Path]:
    """Copies the example configuration; returns the files written, as they lie below `target`.

    Refuses (FileExistsError, which names the files) when one is already there, before anything is written; with
    `force` such files are replaced. Files that the example does not have are left alone in any case. Other OSErrors
    mean that the directory cannot be written.
    """
    source = shipped("config")
    names = sorted(
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and path.suffix in (".yaml", ".json", ".j2")
    )
    there = [str(name) for name in names if os.path.lexists(target / name)]
    if there and not force:
        more = f" and {len(there) - 10} more" if len(there) > 10 else ""
        raise FileExistsError(f"cannot write the example to {target}: it has {', '.join(there[:10])}{more}")
    if os.path.lexists(target) and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # mkdir says so of a parent that is a file
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
    # Beside the target, so that moving is renaming; mkdtemp makes it 0700, the files below are 0600.
    with tempfile.TemporaryDirectory(prefix=".gpumodd-init-", dir=target.parent) as folder:
        fresh = Path(folder) / "config"
        _copy(source, fresh, names)
        _put(fresh, target, names)
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
