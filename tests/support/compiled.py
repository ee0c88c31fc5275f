"""Small libraries that tests put between a process and the system: compiled once, kept in the cache."""

import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.cache import cache
from tests.support.fixtures import require_real


@functools.cache
def library(source: Path, name: str, *flags: str) -> Path:
    """The shared library of this name, compiled from this file; skips the test where there is no compiler."""
    require_real("" if shutil.which("gcc") else f"{source.name} needs gcc")
    digest = hashlib.sha256(source.read_bytes() + " ".join(flags).encode()).hexdigest()[:16]
    folder = cache() / source.stem.replace("_", "-") / digest
    library = folder / name
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as new:
            command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *flags]
            command += [f"-Wl,-soname,{name}", "-o", f"{new.name}.so", str(source)]
            subprocess.run(command, check=True)
            Path(f"{new.name}.so").replace(library)  # two test runs may build at once
    return library
