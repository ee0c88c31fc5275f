"""Stories: what is done to a service is told with what it is done for. Owns the words of causes, and nothing else."""

from collections.abc import Iterable

from gpumodd.core.operations import Kind, Operation
from gpumodd.core.problems import Reason
from gpumodd.core.state import State, Track

OWN_ACCORD = {Kind.HEAL: "it was wanted and did not run", Kind.RESTORE: "it was wanted when gpumodd started"}


def asked(op: Operation) -> str:
    """Who asked for an operation, or what it is for."""
    return f"asked by {op.actor}" if op.actor else OWN_ACCORD.get(op.kind, "")


def cause(op: Operation) -> str:
    """What an operation does now, and what for."""
    what = f"operation {op.id}: {op.kind} {op.target}"
    if op.turned_at is not None and op.failure is not None:
        return f"{what}, on its way back: {op.failure.reason.message}"
    why = asked(op)
    return f"{what}, {why}" if why else what


def start_asked(state: State, service: str, owners: Iterable[Operation]) -> None:
    """Its start command was given."""
    track, spec = state.track(service), state.catalog.services[service]
    where = devices(state, track.devices)
    size = f", {spec.vram_mib} MiB" if spec.vram_mib and where else ""
    track.tell(state.at, f"asked to start{f' on {where}' if where else ''}{size}", cause=_causes(owners))


def stop_asked(state: State, service: str, owners: Iterable[Operation]) -> None:
    """Its stop command was given."""
    state.track(service).tell(state.at, "asked to stop", cause=_causes(owners))


def refused(state: State, services: Iterable[str], reasons: Iterable[Reason], what: str, actor: str) -> None:
    """Starting these was asked for and refused; each is told what speaks against itself, or else against all."""
    reasons = list(reasons)
    for service in services:
        mine = [r for r in reasons if r.service == service] or reasons[:1]
        told = "; ".join(r.message for r in mine)
        state.track(service).tell(state.at, f"refused: {told}", cause=f"{what}, asked by {actor}" if actor else what)


def devices(state: State, uuids: Iterable[str]) -> str:
    """Devices as people call them."""
    known = {d.uuid: d.index for d in state.devices.devices} if state.devices is not None else {}
    return ", ".join(f"device {known[uuid]}" if uuid in known else uuid for uuid in uuids)


def ended(track: Track, at: float) -> None:
    """Its last process is gone, as it was asked."""
    took = f" after {at - track.stop_asked_at:.1f} s" if track.stop_asked_at is not None else ""
    track.tell(at, f"ended as asked{took}")


def _causes(owners: Iterable[Operation]) -> str:
    return "; ".join(cause(op) for op in owners)
