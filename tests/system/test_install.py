"""The package as others get it: built from the tree, installed into an environment of its own, and used from there.

The fresh environment holds the wheel and the packages it declares, and nothing else: a development tool that the
program needs would be missed here. No network is used.
"""

import configparser
import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpumodd import __version__
from tests.support.cache import ROOT

pytest.importorskip("hatchling", reason="the build back end is not installed")


def _run(*argv: object, cwd: Path = Path("/")) -> "subprocess.CompletedProcess[str]":
    """A program with nothing of ours in its environment, and not in the tree; anything but exit 0 fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GPUMODD_", "PYTHON", "XDG_", "PIP_"))}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _build(tree: Path, to: Path, *targets: str) -> None:
    _run(sys.executable, "-m", "hatchling", "build", "-d", to, *(f"-t{target}" for target in targets), cwd=tree)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the wheel and the sdist of this tree."""
    to = tmp_path_factory.mktemp("dist")
    _build(ROOT, to, "wheel", "sdist")
    return to


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"gpumodd-{__version__}-py3-none-any.whl"


def _needed(requirements: list[str]) -> Iterator[str]:
    """The names of these distributions and of all they need in turn."""
    left, seen = [Requirement(text) for text in requirements], set()
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        yield name
        left += map(Requirement, distribution(name).requires or ())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' directory of an environment with the wheel and what it declares to need."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin/python"
    packages = venv / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    for name in _needed(_metadata(wheel).get_all("Requires-Dist", [])):
        files = distribution(name).files or ()
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    pip = [sys.executable, "-m", "pip", "--python", python]
    _run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    _run(*pip, "check")
    where = _run(python, "-c", "import gpumodd, gpumodctl; print(gpumodd.__file__, gpumodctl.__file__)").stdout.split()
    assert where == [str(packages / name / "__init__.py") for name in ("gpumodd", "gpumodctl")]
    return venv / "bin"


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()


def _metadata(wheel: Path) -> "email.message.Message[str, str]":
    return email.message_from_string(_read(wheel, f"gpumodd-{__version__}.dist-info/METADATA"))


def _tracked(*folders: str) -> set[str]:
    """The files of these folders as the tree has them, without what Python leaves beside them."""
    files = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}


def test_the_wheel_holds_the_packages_the_example_and_nothing_else(wheel: Path):
    info = f"gpumodd-{__version__}.dist-info"
    own = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    shipped = {f"gpumodd/shipped/{name}" for name in _tracked("config", "contrib")}
    assert _names(wheel) == own | shipped | _tracked("gpumodd", "gpumodctl")
    assert {"gpumodd/py.typed", "gpumodctl/py.typed"} <= _names(wheel)


def test_what_the_wheel_says_of_itself(wheel: Path):
    said = _metadata(wheel)
    assert (said["Name"], said["Version"], said["Requires-Python"]) == ("gpumodd", __version__, ">=3.11")
    assert said["License-Expression"] == "Apache-2.0"
    assert _read(wheel, f"gpumodd-{__version__}.dist-info/licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    points = configparser.ConfigParser(delimiters=("=",))
    points.read_string(_read(wheel, f"gpumodd-{__version__}.dist-info/entry_points.txt"))
    assert dict(points["console_scripts"]) == {
        "gpumodd": "gpumodd.__main__:main",
        "gpumodctl": "gpumodctl.__main__:main",
    }
    assert set(points["gpumodd.drivers"]) == {"vllm", "llamacpp", "fastapi", "exec"}
    assert not any("pytest" in need or "extra ==" in need for need in said.get_all("Requires-Dist", []))


def test_the_sdist_builds_the_same_wheel(built: Path, wheel: Path, tmp_path: Path):
    with tarfile.open(built / f"gpumodd-{__version__}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    tree = tmp_path / f"gpumodd-{__version__}"
    expected = {"LICENSE", "Makefile", "README.md", "CHANGELOG.md", "pyproject.toml", "requirements.lock"}
    assert expected <= {path.name for path in tree.iterdir()}
    assert (tree / "tests/system/test_install.py").exists()
    assert (tree / "docs/configuration.md").exists()
    _build(tree, tmp_path / "again", "wheel")
    again = tmp_path / "again" / wheel.name
    assert _names(again) == _names(wheel)
    assert _read(again, "gpumodd/cli.py") == _read(wheel, "gpumodd/cli.py")


def test_the_programs_say_their_version(installed: Path):
    assert _run(installed / "gpumodd", "version").stdout == f"gpumodd {__version__}\n"
    assert _run(installed / "gpumodctl", "--version").stdout == f"gpumodctl {__version__}\n"
    assert _run(installed / "python", "-m", "gpumodd", "--version").stdout == f"gpumodd {__version__}\n"
    assert "gpumodctl" in _run(installed / "gpumodctl", "--help").stdout


def test_the_example_and_the_units_come_out_of_the_package(installed: Path, tmp_path: Path):
    target = tmp_path / "config"
    _run(installed / "gpumodd", "init", target)
    written = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert written == {name.removeprefix("config/") for name in _tracked("config")}
    assert (target / "gpumodd.yaml").read_text() == (ROOT / "config/gpumodd.yaml").read_text()
    checked = _run(installed / "gpumodd", "check", target).stdout
    assert ", 0 errors, " in checked.splitlines()[-1]
    code = "from gpumodd.config.shipped import shipped; print(shipped('contrib'))"
    contrib = Path(_run(installed / "python", "-c", code).stdout.strip())
    assert contrib.is_relative_to(installed.parent)
    assert {path.name for path in (contrib / "systemd").iterdir()} == {"gpumodd.service", "gpumodd.socket"}


@pytest.mark.parametrize("kind", ["gpumodd", "service", "mode"])
def test_the_schema_is_the_one_beside_the_example(installed: Path, kind: str):
    printed = json.loads(_run(installed / "gpumodd", "schema", kind).stdout)
    assert printed == json.loads((ROOT / f"config/schema/{kind}.json").read_text())


def test_the_demo_runs_from_the_package(installed: Path, tmp_path: Path):
    shown = _run(installed / "gpumodd", "demo", "--fast", cwd=tmp_path).stdout
    assert "ok  mode reached                    rag" in shown
    assert "BAD" not in shown
    assert list(tmp_path.iterdir()) == []


def test_types_reach_whoever_uses_the_package(installed: Path, tmp_path: Path):
    """py.typed does what it is there for: another project's checker sees our annotations."""
    if shutil.which("mypy", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("mypy is not installed")
    user = tmp_path / "user.py"
    user.write_text(
        "import gpumodctl.exits\nfrom gpumodd.wire.types import Mode\n\n"
        "def first(mode: Mode) -> tuple[str, int]:\n    return mode.services[0], gpumodctl.exits.OK\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--python-executable", installed / "python", "--cache-dir", os.devnull]
    _run(*mypy, "--strict", "--follow-imports=silent", user, cwd=tmp_path)
