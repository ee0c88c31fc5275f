"""Drift: the world differs from what is desired although nobody asked. Decides what is put on trial to mend it."""

from gpumodd.core import releases, world
from gpumodd.core.admission import Admission
from gpumodd.core.desired import closure
from gpumodd.core.operations import Kind
from gpumodd.core.planner import plan
from gpumodd.core.state import State


def after_start(state: State, admission: Admission) -> None:
    """The world has been seen in full for the first time: restore what is desired and down, if policy says so."""
    missing = tuple(s for s in sorted(_wanted(state)) if state.track(s).gone)
    if state.active_operations() or not missing:
        return
    if state.catalog.policy.restore_mode_at_start:
        admission.repair(Kind.RESTORE, state.desired.mode or ",".join(missing), missing)
    else:
        for service in missing:  # still wanted, which must show, but left alone until somebody asks
            state.track(service).stopped_outside = True


def heal(state: State, admission: Admission) -> None:
    """Put starting a desired service that is down on trial, one at a time, unless it is somebody's business."""
    able = not state.units_lost and not state.unsaved and world.quiesce_left(state) == 0
    if state.catalog.policy.drift != "heal" or not able:
        return
    doers: list[world.Doer] = [*state.active_operations(), *state.intents]
    idle = (s for s in sorted(_wanted(state)) if not any(doer.covers(s) for doer in doers))
    down = [s for s in idle if _down(state, s)]
    if not down:
        return
    # A sample that is too old is no reason to wait: the trial takes a fresh one.
    blocked = plan(world.plan_input(state, state.desired, reach=frozenset())).blocked
    stuck = {r.service for r in blocked if r.code != "telemetry_stale"}
    for service in down:
        if stuck.isdisjoint(closure([service], state.catalog.services)):
            admission.repair(Kind.HEAL, service, (service,))
            return


def _wanted(state: State) -> frozenset[str]:
    return state.desired.services(state.catalog.services) - world.held_back(state, state.desired)


def _down(state: State, service: str) -> bool:
    track = state.track(service)
    settled = track.gone and not track.command.coming and track.unseen_since is None
    return settled and not releases.releasing(state, service)
