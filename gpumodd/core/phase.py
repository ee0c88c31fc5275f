"""A service's phase, derived from facts: never stored as truth, never set by hand."""

from enum import StrEnum

from gpumodd.core.facts import Active, Ended, UnitFact
from gpumodd.core.ops import Command


class Phase(StrEnum):
    """Where a service is."""

    STOPPED = "stopped"
    STARTING = "starting"  # its unit is on the way up
    LOADING = "loading"  # the unit is active, health does not answer yet
    READY = "ready"
    DEGRADED = "degraded"  # was ready, answers badly
    SLEEPING = "sleeping"
    WAKING = "waking"
    STOPPING = "stopping"
    RELEASING = "releasing"  # the unit is gone, its memory is not back
    BACKOFF = "backoff"  # crashed; will be started again
    FAILED = "failed"
    UNKNOWN = "unknown"


AT_REST = frozenset({Phase.STOPPED, Phase.FAILED, Phase.BACKOFF})  # nothing of it runs, nothing holds memory


class Health(StrEnum):
    """What the probes of this run have shown so far."""

    LOADING = "loading"
    READY = "ready"
    DEGRADED = "degraded"


def derive(
    *,
    unit: UnitFact | None,
    command: Command,
    health: Health,
    has_probe: bool,
    settled: bool,
    releasing: bool,
    backoff: bool,
    failed: bool,
    reachable: bool,
) -> Phase:
    """The phase these facts amount to.

    `failed`: the last run or start went wrong and nobody has asked for anything since. `backoff`: it will be
    started again by itself. `settled`: what has no health to ask has been active long enough.
    """
    if not reachable and unit is not None and not unit.gone:
        return Phase.UNKNOWN
    if command.leaving or command is Command.STARTING_UNWANTED:
        return Phase.STOPPING
    if unit is None or unit.gone:
        return _gone(unit, command, releasing=releasing, backoff=backoff, failed=failed)
    match unit.active:
        case Active.UNKNOWN:
            return Phase.UNKNOWN
        case Active.DEACTIVATING | Active.INACTIVE | Active.FAILED:  # over, but for processes that outlive their unit
            return Phase.STOPPING
        case Active.ACTIVATING:
            return Phase.STARTING
    if command.coming:
        return Phase.STARTING
    if not has_probe:
        return Phase.READY if settled else Phase.LOADING
    return Phase(health.value)


def _gone(unit: UnitFact | None, command: Command, *, releasing: bool, backoff: bool, failed: bool) -> Phase:
    if command.coming:
        return Phase.STARTING
    if releasing:
        return Phase.RELEASING
    if backoff:
        return Phase.BACKOFF
    if failed:
        return Phase.FAILED
    if unit is not None and unit.active is Active.FAILED and unit.ended is not Ended.JOB:
        return Phase.FAILED
    return Phase.STOPPED
