"""Every built-in driver keeps the contract that drivers from other packages are held to."""

import dataclasses

import pytest

from gpumodd.core.specs import ServiceSpec
from gpumodd.drivers import exec, fastapi, llamacpp, vllm
from gpumodd.drivers.api import DriverError, UnitFile
from gpumodd.drivers.registry import BUILT_IN
from gpumodd.drivers.testing import check_driver

SERVICES = {
    "vllm": (ServiceSpec(id="chat", driver="vllm", model="org/name", port=8000), None),
    "llamacpp": (ServiceSpec(id="code", driver="llamacpp", model="~/m.gguf", port=8000), None),
    "fastapi": (ServiceSpec(id="asr", driver="fastapi", model="speech.asr:app", port=8000), None),
    "exec": (ServiceSpec(id="tts", driver="exec", port=8000), exec.ExecOptions(command=("tts", "serve"))),
}


def test_every_built_in_driver_is_covered():
    assert {driver.name for driver in BUILT_IN} == set(SERVICES)


@pytest.mark.parametrize("driver", BUILT_IN, ids=lambda driver: driver.name)
def test_contract(driver):
    spec, options = SERVICES[driver.name]
    assert check_driver(driver, spec, options) == []


@pytest.mark.parametrize("driver", BUILT_IN, ids=lambda driver: driver.name)
def test_options_are_documented_in_the_same_words_for_all(driver):
    assert "cwd" in {field.name for field in dataclasses.fields(driver.options)}


class Broken(vllm.VllmDriver):
    """A driver with one fault per subclass; the suite has to find each."""


class DropsArgs(Broken):
    def unit_file(self, spec, options, context, *, args, env):
        return super().unit_file(spec, options, context, args=(), env=env)


class DropsEnv(Broken):
    def unit_file(self, spec, options, context, *, args, env):
        return super().unit_file(spec, options, context, args=args, env={})


class RelativeProgram(Broken):
    def unit_file(self, spec, options, context, *, args, env):
        unit = super().unit_file(spec, options, context, args=args, env=env)
        return dataclasses.replace(unit, argv=("./run", *unit.argv))


class SomeoneElses(Broken):
    def unit_file(self, spec, options, context, *, args, env):
        unit = super().unit_file(spec, options, context, args=args, env=env)
        return dataclasses.replace(unit, service="other")


class NoUnit(Broken):
    def unit_file(self, spec, options, context, *, args, env):
        return {}


class AlwaysProbes(Broken):
    def probe(self, spec, options):
        return super().probe(dataclasses.replace(spec, port=8000), options)


class RelativeFile(Broken):
    def requires_file(self, spec, options):
        return "model.gguf"


class RelativeModel(Broken):
    def model_files(self, spec, options, *, args, env):
        return ("model.gguf",)


class OneDeviceOnly(Broken):
    def device_env(self, uuids):
        return {"CUDA_VISIBLE_DEVICES": uuids[0]}


class AcceptsAnything(Broken):
    def unit_file(self, spec, options, context, *, args, env):
        return UnitFile(
            service=spec.id,
            description="",
            argv=("x", *args),
            env=tuple(env.items()),
            stop_timeout_s=spec.stop_timeout_s,
        )


class Raises(Broken):
    def check(self, spec, options):
        raise RuntimeError("boom")


class OptionsNeeded(Broken):
    options = dataclasses.make_dataclass("Options", ["needed"], frozen=True)


class OptionsMutable(Broken):
    options = dataclasses.make_dataclass("Options", [("cwd", str | None, None)])


@pytest.mark.parametrize(
    "driver, complaint",
    [
        (DropsArgs(), "the user's args are not the last words"),
        (DropsEnv(), "the user's env is not in the unit"),
        (RelativeProgram(), "neither a name nor an absolute path"),
        (SomeoneElses(), "not this service's"),
        (NoUnit(), "does not return a UnitFile"),
        (AlwaysProbes(), "there is a probe although the service has no port"),
        (RelativeFile(), "neither an absolute path nor None"),
        (RelativeModel(), "model_files() does not return absolute paths"),
        (OneDeviceOnly(), "device_env() does not name the devices"),
        (AcceptsAnything(), "accepts what check() refuses"),
        (Raises(), "RuntimeError: boom"),
        (OptionsNeeded(), "options without a default: needed"),
        (OptionsMutable(), "not a frozen dataclass"),
        (object(), "it lacks a method"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_the_suite_finds_a_fault(driver, complaint):
    assert any(complaint in found for found in check_driver(driver)), check_driver(driver)


def test_refusals_name_the_key():
    problems = fastapi.DRIVER.check(ServiceSpec(id="a", driver="fastapi", model="nothing"), fastapi.FastApiOptions())
    assert [type(p) for p in problems] == [DriverError]
    assert problems[0].field == "model"
    assert "speech.server:app" in problems[0].hint
    assert llamacpp.DRIVER.check(ServiceSpec(id="a", driver="llamacpp"), llamacpp.LlamaCppOptions())[0].field == "model"
