"""Definitions: the configuration in force, as the shell needs it beside the core's catalog."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gpumodd.core.specs import Catalog
from gpumodd.drivers.api import ProbeSpec, UnitFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Definitions:
    """One valid configuration. `device_env` gives, per service, the environment that pins it to devices; `vram_at`
    the memory it would take with another context length, or None when that does not follow (its figure is declared).
    """

    catalog: Catalog = field(default_factory=Catalog)
    unit_files: Mapping[str, UnitFile] = field(default_factory=dict)
    probes: Mapping[str, ProbeSpec | None] = field(default_factory=dict)
    device_env: Mapping[str, Callable[[tuple[str, ...]], Mapping[str, str]]] = field(default_factory=dict)

    vram_at: Callable[[str, int], int | None] = lambda _service, _context: None

    def environment(self, service: str, devices: tuple[str, ...]) -> Mapping[str, str]:
        """The environment that pins a service to these devices; empty when it uses none."""
        pin = self.device_env.get(service)
        return pin(devices) if pin is not None and devices else {}
