"""A real llama-server for tests, from Debian's own packages and beside the system.

They come from a newer Debian than this one, with a newer libc, so nothing is installed: the packages are fetched
under an apt state of their own, from the mirror that apt already uses, unpacked into the cache folder, and the
programs are told to take loader and libraries from there. The version is whatever that Debian has today.
"""

import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.support.cache import cache
from tests.support.fixtures import require_real

SUITE = "forky"
# llama-server; and llama-fit-params, which says how much memory a model takes
PACKAGES = ("llama.cpp-tools", "llama.cpp-tools-extra")
TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "patchelf")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def llama_server() -> Path:
    """The program, fetched at the first call; skips the test where that cannot be done."""
    path, reason = _prepared()
    require_real(reason)
    return path


def version(program: Path) -> str:
    """What it says of itself, on one line; an empty string if it does not run."""
    try:
        command = [program, "--version"]
        answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = [line for line in (answer.stderr + answer.stdout).splitlines() if "version" in line]
    return lines[0].strip() if lines and answer.returncode == 0 else ""


@functools.cache
def _prepared() -> tuple[Path, str]:
    folder = cache() / f"llama-{SUITE}"
    program = folder / "usr/bin/llama-server"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test run may be at it
        # The paths inside are absolute: in a tree that was moved it does not run, and is fetched again.
        if not version(program):
            if absent := [tool for tool in TOOLS if not shutil.which(tool)]:
                return program, f"llama-server needs {', '.join(absent)} to be fetched"
            try:
                _fetch(folder)
            except subprocess.CalledProcessError as error:
                last = (error.stderr or "").strip().splitlines()[-1:]
                return program, f"cannot fetch llama-server: {error.cmd[0]} failed: {' '.join(last)}"
            except (OSError, LookupError, subprocess.TimeoutExpired) as error:
                return program, f"cannot fetch llama-server: {error}"
        said = version(program)
    print(f"{program}: {said}")
    return program, "" if said else f"{program} does not run"


def _fetch(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as state:
        environment = _apt_state(Path(state), _mirror())
        _run("apt-get", "update", "-qq", env=environment)
        packages = _closure(PACKAGES, environment)
        _run("apt-get", "download", "-qq", *packages, env=environment, cwd=state)
        for package in Path(state).glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), str(folder))
    _point_inside(folder)


def _mirror() -> str:
    """The Debian mirror of this machine's apt: the one that says so, or else the one that is called like it."""
    form = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    targets = {tuple(line.split("|")) for line in _run("apt-get", "indextargets", "--format", form).split()}
    named = sorted(uri for origin, label, uri in targets if (origin, label) == ("Debian", "Debian"))
    alike = sorted(uri for *_, uri in targets if uri.rstrip("/").endswith("/debian"))
    if not named + alike:
        raise LookupError("apt knows no Debian mirror")
    return (named + alike)[0]


def _apt_state(state: Path, mirror: str) -> dict[str, str]:
    """An apt that knows this one suite and nothing of what is installed."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": 2,
        "Acquire::http::Timeout": 20,
    }
    (state / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    return {**os.environ, "APT_CONFIG": str(state / "apt.conf"), "LC_ALL": "C"}


def _closure(packages: Iterable[str], environment: dict[str, str]) -> list[str]:
    """These packages and the libraries they need, and theirs; not the programs their installation needs."""
    found: set[str] = set()
    fresh = set(packages)
    leave_out = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    while fresh:
        found |= fresh
        listing = _run("apt-cache", "depends", *leave_out, *sorted(fresh), env=environment)
        fresh = set(re.findall(r"Depends: (z?lib[a-z0-9.+-]+)$", listing, re.MULTILINE)) - found
    return sorted(found)


def _point_inside(folder: Path) -> None:
    (loader,) = {path.resolve() for path in folder.glob("usr/lib/*-linux-gnu/ld-linux-*.so.*")}
    libraries = loader.parent
    search = ["--force-rpath", "--set-rpath", f"{libraries}:{libraries / 'llama'}"]
    programs = [path for path in folder.glob("usr/bin/llama-*") if not path.is_symlink()]
    for program in programs:
        _run("patchelf", "--set-interpreter", str(loader), *search, str(program))
    for library in libraries.rglob("*.so*"):
        if re.match(r"lib(llama|ggml|mtmd)", library.name) and not library.is_symlink():
            _run("patchelf", *search, str(library))
    # Its built-in path to the CPU backends is absolute; beside the program it finds them, too.
    for backend in libraries.glob("ggml/*/libggml-cpu-*.so"):
        (folder / "usr/bin" / backend.name).symlink_to(backend)


def _run(*command: str, **more: object) -> str:
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, **more)
    return answer.stdout
