"""Problems and reasons: coded conditions a person should know about, with what would fix them.

CODES is the registry: every code that a refusal, a failed operation, a status or a check of the configuration can
carry, with what it means and what to do. docs/problems.md is written from it. A message's own hint names the case
at hand; the registry's `fix` knows all cases, so every command and key that a hint names stands in it, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """What a code means, what follows from it, and what to do about it."""

    meaning: str
    fix: str
    follows: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Codes of one kind: where they are met, and what they have in common."""

    title: str
    about: str
    codes: Mapping[str, Code]


REFUSALS = Section(
    title="Refusals",
    about=(
        "Something was asked for and turned down before anything was touched; `gpumodctl` exits with 4. The same codes"
        " show in `gpumodctl status` when they keep a desired service from being started, and `gpumodctl simulate`"
        " tells them beforehand."
    ),
    codes={
        "vram_insufficient": Code(
            meaning="The services asked for do not fit into a device beside what else holds its memory.",
            follows="The numbers say how much is needed and how much can be had once all that leaves has left.",
            fix=(
                "`gpumodctl simulate` shows what would fit, `gpumodctl status` names who holds the memory. End foreign"
                " processes, leave a service out, or lower a service's `context:`. `--force` starts it anyway, and is"
                " recorded."
            ),
        ),
        "vram_unknown": Code(
            meaning=(
                "Nobody knows how much device memory the service takes, so it is not started: `vram_mib` is not set,"
                " and its model's file allows no estimate."
            ),
            fix=(
                "`gpumodctl check` says why a model could not be read. Or set `vram_mib:` in services/ID.yaml; 0 stands"
                " for a service that uses no device. `--force` starts it once; what it was seen to hold then tells the"
                " figure."
            ),
        ),
        "ram_insufficient": Code(
            meaning="The host has too little available memory for the services asked for.",
            follows="Starting them could drive the whole machine into swapping or the kernel's out-of-memory killer.",
            fix=(
                "End something that holds host memory, correct the service's `ram_mib:`, lower"
                " `policy.ram_reserve_mib`, or pass `--force`."
            ),
        ),
        "quiesce_active": Code(
            meaning="A release was verified moments ago and the configured pause is not over.",
            fix="Try again when the seconds it names are over, pass `--no-quiesce`, or lower `policy.quiesce_s`.",
        ),
        "port_conflict": Code(
            meaning="Somebody else listens on the service's port, or another wanted service has the same one.",
            follows=(
                "Before a start it is a refusal. When a stranger answers in place of a service that was started, the"
                " service stays `loading` and fails once its startup timeout is over."
            ),
            fix="End the program it names, or change `port:` in services/ID.yaml.",
        ),
        "host_unknown": Code(
            meaning="The service's host name stands for no address, so nobody could ask its health.",
            fix="Correct `host:` in services/ID.yaml, or add the name to /etc/hosts.",
        ),
        "file_missing": Code(
            meaning="A file the service needs, its program included, is absent or cannot be read.",
            fix="Install the program or put the file there, or change services/ID.yaml.",
        ),
        "device_unavailable": Code(
            meaning="A device the service is pinned to does not exist, or there are fewer devices than it asks for.",
            fix="`gpumodctl device list` shows the devices; `devices:` and `device_count:` choose among them.",
        ),
        "device_unhealthy": Code(
            meaning="A device is lost, reports nonsense or damaged memory, or is too hot: nothing is started on it.",
            follows=(
                "What runs there goes on. A service that may run anywhere goes to a device that is well. Uncorrected"
                " memory errors count since the driver was loaded; too hot is less than 5 °C from where the device"
                " switches itself off, or a slowdown by the hardware for its heat."
            ),
            fix=(
                "A hot device is used again once it has cooled. For damaged memory, stop what runs there, then"
                " `nvidia-smi --gpu-reset` or a reboot; a row that could not be replaced is a case for the vendor. For"
                " a lost device see `device_lost`."
            ),
        ),
        "telemetry_stale": Code(
            meaning="The newest device sample is too old to start anything on it, or there is none yet.",
            follows="Nobody knows how much memory is free, so nothing is started. What runs goes on.",
            fix="`gpumodctl status` names the device's problem: see `devices_unreadable`.",
        ),
        "dependency_cycle": Code(
            meaning="Services depend on each other in a circle, so none of them can be the first.",
            fix="Break the circle of `depends_on:` in services/ID.yaml.",
        ),
        "units_unreachable": Code(
            meaning="The service manager does not answer.",
            follows=(
                "Nothing is started or stopped; what runs goes on. An operation under way waits for"
                " `policy.release_timeout_s`, then fails."
            ),
            fix=(
                "`systemctl --user status` shows whether the user manager runs, `gpumodctl status` when it answers"
                " again: gpumodd connects anew by itself."
            ),
        ),
        "driver_error": Code(
            meaning="The service manager refused a command, or the service's unit could not be looked at.",
            fix=(
                "The message has its words. `gpumodctl service logs ID` shows the service's last ones, `gpumodctl"
                " status` whether the service manager answers."
            ),
        ),
        "state_unwritable": Code(
            meaning="The state file cannot be written, so nothing new is begun.",
            follows="A wish that is not on disk would be lost by a crash. Running services are not affected.",
            fix="Make room, or mend the permissions of the state directory; gpumodd tries again by itself.",
        ),
    },
)

FAILURES = Section(
    title="Failures",
    about=(
        "An operation began and did not get where it was to go. `on_failure` says what becomes of it: `rollback`"
        " returns to what ran before (`gpumodctl` exits with 5), `keep` and `stop` do not (1). `gpumodctl operation"
        " show ID` tells the whole story."
    ),
    codes={
        "vram_not_released": Code(
            meaning="A service ended, but its device memory did not come back in time.",
            follows="The bytes stay in the books, as foreign memory in the end. Nothing is started into them.",
            fix=(
                "Another process may hold it: `gpumodctl status` lists foreign memory. A reset of the driver frees the"
                " rest. Raise `policy.release_timeout_s` where the driver is merely slow."
            ),
        ),
        "health_timeout": Code(
            meaning="A service did not become ready within its startup timeout.",
            follows="Its last answer says how far it got: `refused` is nobody listening yet, `loading` a 503.",
            fix=(
                "`gpumodctl service logs ID` shows what it was doing. Raise `startup_timeout_s:` when it was still"
                " loading, correct `health.path:` when it answered something else."
            ),
        ),
        "unit_failed": Code(
            meaning="A service's process ended by itself, or could not be started.",
            follows="What is desired is started again, later each time, until `gave_up`.",
            fix="`gpumodctl service logs ID` shows its last words.",
        ),
        "stop_failed": Code(
            meaning="A service's processes survive SIGKILL.",
            follows="The service stays `stopping` and its memory stays in the books; all else goes on around it.",
            fix=(
                "A process in uninterruptible sleep waits for a driver or a disk: a reset of the device or a reboot may"
                " be the only way."
            ),
        ),
        "conflict": Code(
            meaning="Another request replaced this one, or somebody cancelled it.",
            fix="Nothing: the newest wish wins. The message names what took its place.",
        ),
    },
)

CONDITIONS = Section(
    title="Conditions",
    about="How things are now. `gpumodctl status` shows them as long as they last.",
    codes={
        "gave_up": Code(
            meaning="A service failed several times in a row and is not started again by itself.",
            fix=(
                "`gpumodctl service logs ID` and `gpumodctl service explain ID` show why; a switch or `gpumodctl"
                " service start ID` tries again."
            ),
        ),
        "stopped_outside": Code(
            meaning="A person stopped a desired service without gpumodd; it is left alone.",
            fix="`gpumodctl service start ID` or a switch starts it again.",
        ),
        "not_running": Code(
            meaning="A desired service is down, and nothing is under way to start it.",
            fix="`gpumodctl service start ID` or a switch to the same mode starts it.",
        ),
        "orphan_running": Code(
            meaning="A managed unit runs that nothing asked for.",
            follows="It counts in the books as any other, and the next switch ends it.",
            fix="`gpumodctl service stop ID` or a switch ends it.",
        ),
        "unhealthy": Code(
            meaning="A running service answers its health probe badly.",
            follows="It is `degraded`: it goes on running, and nothing restarts it by itself.",
            fix="`gpumodctl service logs ID` shows its last words; a switch to the same mode restarts it.",
        ),
        "definition_changed": Code(
            meaning="The configuration of a running service changed; it still runs the old one.",
            follows="It is `stale` and goes on as it is. What never reaches its process, a name say, counts at once.",
            fix="A switch to its mode, `gpumodctl service restart ID` or `gpumodctl reload --restart-changed`.",
        ),
        "device_unknown": Code(
            meaning="`policy.vram_limit` names a device that is not there.",
            follows="That limit caps nothing.",
            fix="`gpumodctl device list` shows the devices; name one of them by index or UUID.",
        ),
        "no_devices": Code(
            meaning="No GPU driver was found, so device memory is not watched.",
            follows="Services start without regard to device memory.",
            fix="Install the driver and start gpumodd again, or set `devices.backend: none` if there is no GPU.",
        ),
        "devices_unreadable": Code(
            meaning="Device memory cannot be read at the moment.",
            follows="The last figures are shown, and no service is started until there are new ones.",
            fix="`nvidia-smi` tells whether the driver answers at all; gpumodd goes on asking by itself.",
        ),
        "device_lost": Code(
            meaning="A device stopped answering, or is gone.",
            follows="Nothing is started on it, and the memory of services that ended there is not waited for.",
            fix="`nvidia-smi` and the kernel's log say more; a driver reset or a reboot brings it back.",
        ),
        "process_memory_unknown": Code(
            meaning="The driver does not say how much memory a process holds.",
            follows="The figures of these services are taken from the device's sum, and are less exact.",
            fix="Nothing: this is usual in WSL and in some containers.",
        ),
        "vram_above_declared": Code(
            meaning="A service holds clearly more memory than its configuration declares.",
            follows="It is counted with what it holds, so nothing is over-committed; the next start may not fit.",
            fix="Set `vram_mib:` in services/ID.yaml to the figure it names.",
        ),
        "overcommitted": Code(
            meaning="Services hold more device memory than the policy allows.",
            follows="That is what foreign memory that grew, `--force` and `overcommit: warn` lead to.",
            fix="Stop one of the services, or end what else holds memory there; `gpumodctl status` names both.",
        ),
    },
)

CONFIGURATION = Section(
    title="Configuration",
    about="What `gpumodd check`, `gpumodctl check` and `gpumodctl reload` find, each with its file, line and column.",
    codes={
        "invalid_config": Code(
            meaning="Something in the file is wrong; the message says what.",
            follows=(
                "The last good configuration stays in force as a whole. After a reload, or with `config.watch`, the"
                " status says so until the mistake is mended."
            ),
            fix="Correct the line it names and run `gpumodctl reload`, which `config.watch` does by itself.",
        ),
        "no_configuration": Code(
            meaning="There is no configuration.",
            fix="`gpumodd init` makes one.",
        ),
        "driver_unknown": Code(
            meaning="No installed driver has the name that `driver:` gives.",
            fix="Correct the name, or install the package that brings the driver into gpumodd's environment.",
        ),
        "driver_unavailable": Code(
            meaning="A driver is installed and cannot be loaded.",
            fix="The message has its error; mend or remove the package that brings it.",
        ),
        "program_missing": Code(
            meaning="A service's program is not found on this machine.",
            follows="Only a warning: it may be installed later. A start before that is refused, `file_missing`.",
            fix="Install it, or give its path in `drivers:` of gpumodd.yaml or in the service's `options:`.",
        ),
        "not_built": Code(
            meaning="The key is valid, and this version of gpumodd does not act on it yet.",
            fix="Nothing, or leave the key out.",
        ),
    },
)

SECTIONS = (REFUSALS, FAILURES, CONDITIONS, CONFIGURATION)
CODES: Mapping[str, Code] = MappingProxyType({code: c for part in SECTIONS for code, c in part.codes.items()})


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


def survivor(service: str) -> Reason:
    """Not even SIGKILL ended it."""
    return Reason(
        code="stop_failed",
        message=f"cannot stop {service}: its processes survive SIGKILL",
        hint="a process in uninterruptible sleep waits for a driver or a disk; a reboot may be the only way",
        service=service,
    )
