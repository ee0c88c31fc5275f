"""The source tree as the architecture tests see it: files, modules, syntax trees, imports."""

import ast
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def modules(*packages: str) -> list[Path]:
    """Every Python file of these packages (`gpumodd`, `gpumodd/core`), sorted."""
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    """The path as a person writes it, relative to the tree."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=name(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute module of every import, those inside functions included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every call whose target is a plain name: `print`, `asyncio.create_task`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def tracked() -> list[Path]:
    """The files git knows or would take in; without git, the files of an unpacked archive."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = subprocess.run(
            [
                "git",
                "-c",
                f"safe.directory={ROOT}",
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return sorted(path for path in (ROOT / entry for entry in listing.split("\0") if entry) if path.is_file())
    kept = ("gpumodd", "gpumodctl", "config", "contrib", "docs", "tests", "benchmarks")
    top = (path for path in ROOT.iterdir() if path.is_file())
    return sorted([*top, *(path for folder in kept for path in (ROOT / folder).rglob("*") if path.is_file())])
