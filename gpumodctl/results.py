"""How the results that several commands share are shown: operations, simulations, devices, modes."""

from collections.abc import Iterable, Sequence

from gpumodctl import text
from gpumodctl.invocation import Invocation, ago, duration
from gpumodctl.timeline import BLOCKS, told_back
from gpumodd.wire.types import Alternative, Device, Holding, Mode, Operation, Simulation, SimulationDevice, Step


def show_operation_result(invocation: Invocation, operation: Operation, headline: str) -> None:
    """What an operation did, as blocks of service ids."""
    lasted = "" if operation.seconds is None else f" ({duration(operation.seconds)})"
    invocation.say(invocation.out.paint(f"{text.clean(headline)}{lasted}.", "bold"))
    for block in BLOCKS:
        ids: list[str] = getattr(operation, block)
        if ids:
            invocation.say(f"{block.capitalize()}:", *(f"  {text.clean(id)}" for id in ids))
    for reason in operation.passed:
        invocation.say(*text.wrap(f"Let through: {reason.code}: {reason.message}", invocation.out.columns))
    if operation.back is not None:
        invocation.say(*text.wrap(f"The way back: {told_back(operation.back)}", invocation.out.columns))


def show_forecast(invocation: Invocation, steps: Sequence[Step]) -> None:
    """Steps that nobody has begun."""
    invocation.table(
        ("Step", "Verb", "Service", "After", "Why"),
        [(step.id, step.verb, step.service or step.device, " ".join(step.after) or None, step.why) for step in steps],
    )


def show_operations(invocation: Invocation, operations: Sequence[Operation]) -> None:
    """Operations as a table."""
    invocation.table(
        ("ID", "Kind", "Target", "State", "Took", "Begun"),
        [
            (
                operation.id,
                operation.kind,
                operation.target,
                operation.state.replace("_", " ") + (" (forced)" if operation.forced else ""),
                None if operation.seconds is None else duration(operation.seconds),
                f"{ago(operation.created_at)} ago" if operation.created_at else None,
            )
            for operation in operations
        ],
    )


def show_modes(invocation: Invocation, modes: Sequence[Mode]) -> None:
    """Modes as a table."""
    invocation.table(
        ("ID", "Name", "Description", "Total VRAM (MiB)"),
        [(mode.id, mode.name, mode.description, mode.vram_mib) for mode in modes],
        numbers=(3,),
    )


def show_simulation(invocation: Invocation, simulation: Simulation) -> None:
    """Whether it fits first, then what it is about, what would happen, what stands in the way, what would fit."""
    out = invocation.out
    several = len(simulation.devices) > 1
    for device in simulation.devices:
        if several:
            invocation.say(out.paint(text.clean(f"GPU {device.index} {device.name or device.uuid}:"), "bold"))
        _show_fit(invocation, device)
    if not simulation.devices:
        invocation.say("Fits: no device is involved" if simulation.fits else "There is no device.")
    if not simulation.fits and all(device.headroom_mib >= 0 for device in simulation.devices):
        invocation.say(out.paint("Would be refused for another reason than memory.", "red"))
    invocation.say("")
    invocation.table(
        ("ID", "Name", "Driver", "VRAM (MiB)"),
        [(service.id, service.name, service.driver, service.vram_mib) for service in simulation.services],
        numbers=(3,),
    )
    if simulation.steps:
        invocation.say("", "Steps:")
        show_forecast(invocation, simulation.steps)
    if simulation.blocked:
        invocation.say("", "Blocked by:")
        for reason in simulation.blocked:
            invocation.say(*text.wrap(f"{reason.code}: {reason.message}", out.columns, "  "))
            invocation.say(*text.wrap(f"hint: {reason.hint}" if reason.hint else "", out.columns, "    "))
    if simulation.alternatives:
        invocation.say("", "To make it fit, one of:")
        for alternative in simulation.alternatives:
            invocation.say(*text.wrap(instead(alternative), out.columns, "  "))
    if simulation.notes:
        invocation.say("", *(line for note in simulation.notes for line in text.wrap(f"Note: {note}", out.columns)))


def instead(alternative: Alternative) -> str:
    """An alternative and what it costs."""
    again = f" (about {duration(alternative.cost_s)} to load again)" if alternative.cost_s else ""
    return f"{alternative.message}{again}"


def _show_fit(invocation: Invocation, device: SimulationDevice) -> None:
    fits = device.headroom_mib >= 0
    invocation.say(
        invocation.out.paint("Fits:" if fits else "Does not fit:", "green" if fits else "red")
        + f" {device.needed_mib} / {device.total_mib} MiB (headroom: {device.headroom_mib} MiB)"
    )
    apart = [
        f"{words} {amount} MiB"
        for words, amount in (
            ("reserve", device.reserve_mib),
            ("foreign", device.foreign_mib),
        )
        if amount
    ]
    if apart:
        invocation.say(f"  less {', '.join(apart)}")
    if device.limit_mib is not None:
        invocation.say(f"  services may hold {device.limit_mib} MiB together")
    if device.used_by_others_mib:
        invocation.say(f"  {device.used_by_others_mib} MiB of it for services that stay")


def show_devices(invocation: Invocation, devices: Iterable[Device]) -> None:
    """Devices with a bar of their memory, everyone who holds some, and what is left."""
    out = invocation.out
    full, empty = ("█", "░") if out.unicode else ("#", ".")
    for device in devices:
        name = text.cut(text.clean(device.name), max(out.columns - 50, 8))
        gauge = text.bar(device.used_mib, device.total_mib, 16, full=full, empty=empty)
        stale = ", stale" if device.stale else ""
        used = f"{device.used_mib} / {device.total_mib} MiB{stale}"
        invocation.say(text.cut(f"GPU {device.index}  {name}  {gauge}  {used}", out.columns))
        for words in (_services(device), _releasing(device), _foreign(device), _left(device)):
            invocation.say(*text.wrap(words, out.columns, "       "))


def _services(device: Device) -> str:
    """What running services hold; of one that still loads, what it is expected to take."""
    running = [holding for holding in device.holdings if holding.committed_mib > holding.releasing_mib]
    return ", ".join(_holding(holding) for holding in running)


def _holding(holding: Holding) -> str:
    expected = holding.committed_mib - holding.releasing_mib
    used = f"{holding.used_mib} of {expected}" if holding.used_mib < expected else str(holding.used_mib)
    return f"{holding.service or 'unknown'} {used} MiB"


def _releasing(device: Device) -> str:
    late = [holding for holding in device.holdings if holding.releasing_mib]
    parts = [f"{holding.service or 'from before the start'} {holding.releasing_mib} MiB" for holding in late]
    return "being released: " + ", ".join(parts) if parts else ""


def _foreign(device: Device) -> str:
    """Memory that is nobody's of ours: whose it is, as far as the driver says."""
    strangers = sorted((p for p in device.processes if not p.service), key=lambda p: (-(p.used_mib or 0), p.pid))
    parts = [
        f"{p.name or 'a process'} (pid {p.pid}) {'an unknown part' if p.used_mib is None else f'{p.used_mib} MiB'}"
        for p in strangers
    ]
    if device.unlisted_mib:
        parts.append(f"{device.unlisted_mib} MiB that no listed process holds")
    return f"foreign {device.foreign_mib} MiB: {', '.join(parts)}" if parts and device.foreign_mib else ""


def _left(device: Device) -> str:
    apart = [f"reserve {device.reserve_mib}"] if device.reserve_mib else []
    apart += [f"limit {device.limit_mib}"] if device.limit_mib is not None else []
    return f"left for services: {device.available_mib} MiB" + (f" ({', '.join(apart)})" if apart else "")
