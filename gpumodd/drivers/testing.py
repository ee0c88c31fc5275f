"""The contract of a driver, as a function that checks it: for authors of drivers, in any test framework.

`check_driver(MyDriver())` returns what is broken, as sentences; an empty list means that the daemon can work with
it. `spec` should be a service the driver can run, `options` its options if the defaults do not do.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from gpumodd.core.specs import ServiceSpec
from gpumodd.drivers.api import Driver, DriverContext, DriverError, Estimating, ProbeSpec, UnitFile

_UUIDS = ("GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-000000000000")
_NASTY = ("--flag", "a b", "%h", "$HOME", 'quote"', "line\nbreak", "", "ü")


def check_driver(driver: Any, spec: ServiceSpec | None = None, options: object = None) -> list[str]:
    """What is broken about this driver; empty when nothing is."""
    if not isinstance(driver, Driver):
        return ["it lacks a method of gpumodd.drivers.api.Driver"]
    found: list[str] = []
    try:
        for broken in _checks(driver, spec or _spec(driver), options):
            found.append(broken)
    except Exception as error:
        found.append(f"it raised {type(error).__name__}: {error}")
    return found


def _checks(driver: Any, spec: ServiceSpec, options: object) -> Iterator[str]:
    yield from _check_options(driver)
    options = driver.options() if options is None else options
    context = DriverContext(command=("/opt/runtime", "serve"))
    if problems := driver.check(spec, options):
        yield f"check() refuses the service: {problems[0]}"
        return
    unit = driver.unit_file(spec, options, context, args=_NASTY, env={"TOKEN": "s%e$c\nret"})
    yield from _check_unit(unit, spec)
    if unit != driver.unit_file(spec, options, context, args=_NASTY, env={"TOKEN": "s%e$c\nret"}):
        yield "unit_file() gives different answers to one question"
    yield from _check_probe(driver, spec, options)
    yield from _check_file(driver, spec, options)
    yield from _check_model_files(driver, spec, options)
    yield from _check_device_env(driver)
    yield from _check_refusals(driver, spec, options)


def _check_options(driver: Any) -> Iterator[str]:
    kind: Any = driver.options
    if not dataclasses.is_dataclass(kind) or not vars(kind)["__dataclass_params__"].frozen:
        yield "options is not a frozen dataclass"
        return
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if required:
        yield f"options without a default: {', '.join(required)}"


def _check_unit(unit: Any, spec: ServiceSpec) -> Iterator[str]:
    if not isinstance(unit, UnitFile):
        yield "unit_file() does not return a UnitFile"
        return
    if unit.service != spec.id:
        yield "the unit is not this service's"
    if not unit.argv or not unit.argv[0]:
        yield "the unit has no program"
    elif "/" in unit.argv[0] and not unit.argv[0].startswith("/"):
        yield f"the program {unit.argv[0]!r} is neither a name nor an absolute path"
    words: Any = unit.argv
    if not isinstance(words, tuple) or not all(isinstance(word, str) for word in words):
        yield "argv is not a tuple of text"
    elif unit.argv[-len(_NASTY) :] != _NASTY:
        yield "the user's args are not the last words, unchanged"
    if ("TOKEN", "s%e$c\nret") not in unit.env:
        yield "the user's env is not in the unit, unchanged"
    if unit.stop_timeout_s != spec.stop_timeout_s:
        yield "the service's stop timeout is not in the unit"


def _check_probe(driver: Any, spec: ServiceSpec, options: object) -> Iterator[str]:
    probe = driver.probe(spec, options)
    if probe is not None and not isinstance(probe, ProbeSpec):
        yield "probe() returns neither a ProbeSpec nor None"
    if probe is not None and probe.port != spec.port:
        yield "the probe asks another port than the service's"
    if driver.probe(dataclasses.replace(spec, port=None), options) is not None:
        yield "there is a probe although the service has no port"


def _check_file(driver: Any, spec: ServiceSpec, options: object) -> Iterator[str]:
    file = driver.requires_file(spec, options)
    if file is not None and not (isinstance(file, str) and file.startswith("/")):
        yield "requires_file() returns neither an absolute path nor None"


def _check_model_files(driver: Any, spec: ServiceSpec, options: object) -> Iterator[str]:
    """Of drivers that estimate memory."""
    if isinstance(driver, Estimating):
        files: Any = driver.model_files(spec, options, args=_NASTY, env={})
        if not isinstance(files, tuple) or not all(isinstance(file, str) and file.startswith("/") for file in files):
            yield "model_files() does not return absolute paths"


def _check_device_env(driver: Any) -> Iterator[str]:
    env = driver.device_env(_UUIDS)
    if not all(isinstance(text, str) for pair in env.items() for text in pair):
        yield "device_env() is not a mapping of text to text"
    if not any(all(uuid in value for uuid in _UUIDS) for value in env.values()):
        yield "device_env() does not name the devices"
    if driver.device_env(_UUIDS[:1]) == env:
        yield "device_env() is the same for one device and for two"


def _check_refusals(driver: Any, spec: ServiceSpec, options: object) -> Iterator[str]:
    """A service it cannot run ends in DriverError, whether check() was asked before or not."""
    for wrong in (dataclasses.replace(spec, model=None), dataclasses.replace(spec, model="--version")):
        problems = driver.check(wrong, options)
        if not all(isinstance(problem, DriverError) and str(problem) for problem in problems):
            yield "check() returns something else than DriverErrors with a message"
        if problems and not _refuses(driver, wrong, options):
            yield "unit_file() accepts what check() refuses"


def _refuses(driver: Any, spec: ServiceSpec, options: object) -> bool:
    try:
        driver.unit_file(spec, options, DriverContext(command=("/opt/runtime",)), args=(), env={})
    except DriverError:
        return True
    return False


def _spec(driver: Any) -> ServiceSpec:
    return ServiceSpec(id="contract", name="Contract", driver=driver.name, model="a-model", port=8000)
