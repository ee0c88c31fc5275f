"""From validated models to what the rest of the daemon works with: core specs, unit files, probes.

Owns the calls into drivers. A driver may come from anywhere, so whatever it raises or returns ends here as a
DriverError of the one service it is about.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from gpumodd.config import schema
from gpumodd.config.estimates import Memory
from gpumodd.core.specs import DeviceLimit, HealthSpec, ModeSpec, OnFailure, OnLeave, Policy, ServiceSpec
from gpumodd.drivers.api import Driver, DriverContext, DriverError, ProbeSpec, UnitFile

T = TypeVar("T")

_BUG = "this is a bug in the driver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """One service with everything its driver says about it."""

    spec: ServiceSpec
    driver: Driver
    unit: UnitFile
    probe: ProbeSpec | None
    memory: Memory | None = None  # how its memory follows from its model; None when it was declared


def service(model: schema.Service) -> ServiceSpec:
    """The spec, as far as the file alone says."""
    count = model.device_count
    if model.devices is not None and "device_count" not in model.model_fields_set:
        count = len(model.devices)  # who lists two devices wants two
    return ServiceSpec(
        id=model.id,
        name=model.name or model.id,
        driver=model.driver,
        model=model.model,
        host=model.host,
        port=model.port,
        vram_mib=model.vram_mib,
        ram_mib=model.ram_mib or 0,
        context=model.context,
        depends_on=model.depends_on,
        devices=model.devices,
        device_count=count,
        sleep=model.sleep,
        on_leave=OnLeave(model.on_leave),
        health=HealthSpec(**model.health.model_dump()),
        startup_timeout_s=model.startup_timeout_s,
        stop_timeout_s=model.stop_timeout_s,
        priority=model.priority,
        pinned=model.pinned,
        aliases=model.aliases,
    )


def mode(model: schema.Mode) -> ModeSpec:
    return ModeSpec(id=model.id, name=model.name or model.id, description=model.description, services=model.services)


def policy(model: schema.PolicySection) -> Policy:
    given = model.model_dump(exclude={"vram_limit", "on_failure"})
    limit = model.vram_limit
    per_device = limit if isinstance(limit, dict) else {}
    everywhere = None if isinstance(limit, dict) else limit
    return Policy(
        **given,
        on_failure=OnFailure(model.on_failure),
        vram_limit_mib=_mib(everywhere),
        vram_limit_percent=_percent(everywhere),
        vram_limits=tuple(
            DeviceLimit(device=device, mib=_mib(value), percent=_percent(value))
            for device, value in sorted(per_device.items())
        ),
    )


def _mib(limit: int | str | None) -> int | None:
    return limit if isinstance(limit, int) else None


def _percent(limit: int | str | None) -> float | None:
    return float(limit.rstrip(" %")) if isinstance(limit, str) else None


def runnable(
    model: schema.Service, driver: Driver, options: object, given: DriverContext
) -> tuple[Runnable | None, list[DriverError]]:
    """What the driver makes of the service, or what it has against it."""
    spec = service(model)
    try:
        problems: list[Any] = _asked(driver, "check", lambda: list(driver.check(spec, options)))
        if not all(isinstance(problem, DriverError) for problem in problems):
            raise DriverError(f"driver {driver.name} failed: check gave no problems", field="driver", hint=_BUG)
        if problems:
            return None, problems
        unit = _asked(
            driver,
            "unit_file",
            lambda: driver.unit_file(spec, options, given, args=model.args, env=dict(model.env)),
        )
        probe = _asked(driver, "probe", lambda: driver.probe(spec, options))
        file = _asked(driver, "requires_file", lambda: driver.requires_file(spec, options))
        _judge(driver, spec, unit, probe, file)
    except DriverError as error:
        return None, [error]
    return Runnable(spec=replace(spec, requires_file=file), driver=driver, unit=unit, probe=probe), []


def device_env(driver: Driver, uuids: tuple[str, ...]) -> Mapping[str, str]:
    """The driver's device selection; raises DriverError, whatever the driver does."""
    env: Any = _asked(driver, "device_env", lambda: driver.device_env(uuids))
    if isinstance(env, Mapping) and all(isinstance(x, str) for pair in env.items() for x in pair):
        return env
    raise DriverError(f"driver {driver.name} failed: device_env gave no environment")


def fingerprint(found: Runnable, template: str) -> str:
    """Changes exactly when something changes that a restart would bring into effect."""
    said = asdict(found.unit)
    del said["description"]  # for people; no process ever sees it
    for key in ("host", "port", "devices", "device_count"):
        said[key] = getattr(found.spec, key)
    said["template"] = template
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _asked(driver: Driver, question: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except DriverError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        message = f"driver {driver.name} failed in {question}: {type(error).__name__}: {reason}"
        raise DriverError(message, field="driver", hint=_BUG) from None


def _judge(driver: Driver, spec: ServiceSpec, unit: Any, probe: Any, file: Any) -> None:
    """A driver's answers have the promised types; raises DriverError."""
    wrong = ""
    words: tuple[Any, ...] = getattr(unit, "argv", ())
    if not isinstance(unit, UnitFile) or unit.service != spec.id:
        wrong = "unit_file gave no unit of this service"
    elif not words or not all(isinstance(word, str) and "\0" not in word for word in words):
        wrong = "unit_file gave no command line"
    elif not all(isinstance(x, str) for pair in unit.env for x in pair):
        wrong = "unit_file gave no environment"
    elif probe is not None and not isinstance(probe, ProbeSpec):
        wrong = "probe gave no probe"
    elif file is not None and not str(file).startswith("/"):
        wrong = "requires_file gave no absolute path"
    if wrong:
        raise DriverError(f"driver {driver.name} failed: {wrong}", field="driver", hint=_BUG)
