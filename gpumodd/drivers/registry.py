"""Which drivers there are: built-in ones, and those of installed packages (entry points `gpumodd.drivers`).

A package that cannot be loaded is a problem to report, never a reason not to start. The built-in drivers are
imported directly, so a checkout without installed metadata works too.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from gpumodd.drivers import exec, fastapi, llamacpp, vllm
from gpumodd.drivers.api import Driver

GROUP = "gpumodd.drivers"
BUILT_IN: tuple[Driver, ...] = (exec.DRIVER, fastapi.DRIVER, llamacpp.DRIVER, vllm.DRIVER)
NOT_BUILT = frozenset({"docker"})  # known names that this version cannot run

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The drivers by name, and why others are missing."""

    drivers: Mapping[str, Driver]
    problems: tuple[str, ...] = ()


def load(points: Iterable[EntryPoint] | None = None) -> Registry:
    """Every usable driver; `points` stands in for what is installed."""
    drivers = {driver.name: driver for driver in BUILT_IN}
    problems = []
    points = entry_points(group=GROUP) if points is None else points
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        if point.module.startswith("gpumodd.drivers."):
            continue  # this package's own entry points: already imported above
        try:
            driver = _load(point)
        except (Exception, SystemExit) as error:  # a stranger's module may do anything when imported
            problems.append(f"cannot load driver {point.name!r} from {point.value}: {_reason(error)}")
            continue
        if driver.name in drivers or driver.name in NOT_BUILT:
            problems.append(f"cannot load driver {point.name!r} from {point.value}: the name {driver.name!r} is taken")
            continue
        drivers[driver.name] = driver
    return Registry(drivers=MappingProxyType(dict(sorted(drivers.items()))), problems=tuple(problems))


def _load(point: EntryPoint) -> Driver:
    driver: Any = point.load()
    if isinstance(driver, type) or not isinstance(driver, Driver):
        raise TypeError("it is not a driver object (see gpumodd.drivers.api.Driver)")
    name: Any = driver.name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TypeError(f"its name {name!r} is not of the form {_NAME.pattern}")
    options: Any = driver.options
    if not isinstance(options, type) or not dataclasses.is_dataclass(options):
        raise TypeError("its options are not a dataclass")
    return driver


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
