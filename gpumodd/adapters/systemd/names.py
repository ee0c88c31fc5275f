"""Unit names: `gpumod-<service>.service`, and back. Nothing else with such a name is a service."""

import re

from gpumodd.ports import PortError

_SERVICE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_UNIT = re.compile(rf"gpumod-({_SERVICE.pattern})\.service")
SLICE = "gpumod.slice"
PATTERN = "gpumod-*.service"  # for the manager; `service_of` decides


def unit_name(service: str) -> str:
    if not _SERVICE.fullmatch(service):
        message = f"cannot find a unit for {service!r}: not a service's id"
        raise PortError("unit_missing", message, hint="lower-case letters, digits, - and _")
    return f"gpumod-{service}.service"


def service_of(unit: str) -> str | None:
    match = _UNIT.fullmatch(unit)
    return match[1] if match else None
