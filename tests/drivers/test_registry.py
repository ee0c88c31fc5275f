"""Built-in drivers are always there; what other packages bring is judged and never trusted."""

import sys
from importlib.metadata import EntryPoint

import pytest

from gpumodd.drivers import registry
from gpumodd.drivers.vllm import VllmDriver

BUILT_IN = ["exec", "fastapi", "llamacpp", "vllm"]
MODULE = """
import dataclasses
from gpumodd.drivers.vllm import VllmDriver
class Mine(VllmDriver):
    name = "mine"
DRIVER = Mine()
class Shadow(VllmDriver):
    name = "vllm"
SHADOW = Shadow()
class BadName(VllmDriver):
    name = "Bad Name"
BAD_NAME = BadName()
class BadOptions(VllmDriver):
    name = "bad-options"
    options = dict
BAD_OPTIONS = BadOptions()
class Docker(VllmDriver):
    name = "docker"
DOCKER = Docker()
NOT_A_DRIVER = 7
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package of somebody else's, importable during one test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "gpumod_plugin_under_test.py").write_text(MODULE)
    (tmp_path / "gpumod_plugin_that_exits.py").write_text("raise SystemExit('bye\\nbye')")
    (tmp_path / "gpumod_plugin_with_a_typo.py").write_text("def (")
    yield lambda value: EntryPoint(name="theirs", value=value, group=registry.GROUP)
    for name in [name for name in sys.modules if name.startswith("gpumod_plugin_")]:
        del sys.modules[name]


def test_the_built_in_drivers_need_no_metadata():
    found = registry.load([])
    assert list(found.drivers) == BUILT_IN
    assert found.problems == ()


def test_what_is_installed_loads():
    found = registry.load()
    assert set(BUILT_IN) <= set(found.drivers)
    assert found.problems == ()


def test_our_own_entry_points_are_not_taken_for_strangers():
    point = EntryPoint(name="vllm", value="gpumodd.drivers.vllm:DRIVER", group=registry.GROUP)
    assert registry.load([point]).problems == ()


def test_a_plugin_is_found(plugin):
    found = registry.load([plugin("gpumod_plugin_under_test:DRIVER")])
    assert list(found.drivers) == sorted([*BUILT_IN, "mine"])
    assert isinstance(found.drivers["mine"], VllmDriver)


@pytest.mark.parametrize(
    "value, reason",
    [
        ("gpumod_plugin_under_test:SHADOW", "'vllm' is taken"),
        ("gpumod_plugin_under_test:DOCKER", "'docker' is taken"),
        ("gpumod_plugin_under_test:BAD_NAME", "its name 'Bad Name'"),
        ("gpumod_plugin_under_test:BAD_OPTIONS", "not a dataclass"),
        ("gpumod_plugin_under_test:NOT_A_DRIVER", "not a driver object"),
        ("gpumod_plugin_under_test:VllmDriver", "not a driver object"),
        ("gpumod_plugin_under_test:ABSENT", "AttributeError"),
        ("gpumod_plugin_that_is_not_there:DRIVER", "ModuleNotFoundError"),
        ("gpumod_plugin_that_exits:DRIVER", "SystemExit: bye bye"),
        ("gpumod_plugin_with_a_typo:DRIVER", "SyntaxError"),
    ],
)
def test_a_broken_plugin_is_a_problem_and_no_more(plugin, value, reason):
    found = registry.load([plugin(value), plugin("gpumod_plugin_under_test:DRIVER")])
    assert list(found.drivers) == sorted([*BUILT_IN, "mine"])
    assert len(found.problems) == 1
    assert reason in found.problems[0]
    assert "\n" not in found.problems[0]
