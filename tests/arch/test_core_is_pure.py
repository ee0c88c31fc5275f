"""core imports itself and a few stdlib modules that shape data: no clock, no chance, no I/O, no threads."""

import pytest

from tests.arch.source import imports, modules, name

ALLOWED = {
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "functools",
    "graphlib",
    "heapq",
    "itertools",
    "math",
    "operator",
    "re",
    "types",
    "typing",
}
FILES = modules("gpumodd/core")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_core_imports_only_what_is_allowed(path):
    foreign = [
        f"{name(path)}:{line}: {module}"
        for line, module in imports(path)
        if module not in ALLOWED and module != "gpumodd.core" and not module.startswith("gpumodd.core.")
    ]
    assert not foreign


def test_there_is_a_core():
    assert len(FILES) > 3


@pytest.mark.parametrize("path", FILES, ids=name)
def test_core_is_synchronous(path):
    text = path.read_text()
    assert "async def" not in text
    assert "await " not in text
