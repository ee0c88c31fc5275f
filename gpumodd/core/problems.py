"""Problems and reasons: coded conditions a person should know about, with what would fix them.

CODES is the registry: every code that a refusal, a failed operation or a status can carry, with one line of
meaning. The reference in docs is generated from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

CODES: Mapping[str, str] = MappingProxyType(
    {
        # refusals
        "vram_insufficient": "The services asked for do not fit into a device beside what else holds its memory.",
        "vram_unknown": "Nobody knows how much device memory the service takes, so it is not started.",
        "ram_insufficient": "The host has too little available memory for the services asked for.",
        "quiesce_active": "A release was verified moments ago and the configured pause is not over.",
        "port_conflict": "Somebody else listens on the service's port.",
        "file_missing": "A file the service needs, its program included, is absent or cannot be read.",
        "device_unavailable": "A device the service is pinned to does not exist, or no device is visible.",
        "device_unhealthy": "A device is lost or reports nonsense.",
        "telemetry_stale": "The newest device sample is too old to start anything on it.",
        "dependency_cycle": "Services depend on each other in a circle.",
        "units_unreachable": "The service manager does not answer.",
        # failures
        "vram_not_released": "A service ended, but its device memory did not come back in time.",
        "health_timeout": "A service did not become ready within its startup timeout.",
        "unit_failed": "A service's process ended or could not be started.",
        "stop_failed": "A service's processes survive SIGKILL.",
        "driver_error": "The backend refused a command.",
        "state_unwritable": "The state file cannot be written, so nothing new is begun.",
        # conditions
        "unit_crashed": "A service ended although nobody stopped it.",
        "gave_up": "A service failed several times in a row and is not started again by itself.",
        "stopped_outside": "A person stopped a desired service without gpumodd; it is left alone.",
        "not_running": "A desired service is down, and nothing is under way to start it.",
        "orphan_running": "A managed unit runs that nothing asked for.",
        "unhealthy": "A running service answers its health probe badly.",
        "definition_changed": "The configuration of a running service changed; it still runs the old one.",
        "no_devices": "No GPU driver was found, so device memory is not watched.",
        "devices_unreadable": "Device memory cannot be read at the moment.",
        "device_lost": "A device stopped answering.",
        "process_memory_unknown": "The driver does not say how much memory a process holds.",
        "vram_above_declared": "A service holds clearly more memory than its configuration declares.",
        "overcommitted": "Services hold more device memory than the policy allows.",
        "conflict": "Another request replaced this one.",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something is refused, blocked or failed; numbers are in `details` (`_mib`, `_s`)."""

    code: str
    message: str
    hint: str = ""
    service: str | None = None
    device: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A condition that holds now, since `since`."""

    code: str
    message: str
    since: float
    hint: str = ""
    service: str | None = None
    device: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
