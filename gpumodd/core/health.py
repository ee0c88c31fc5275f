"""Device health: what the driver's figures say against starting anything on a device, in words and numbers.

Pure queries. A figure the driver does not give says nothing. Nothing here is ever a reason to stop what runs: a hot
device cools, and a service that survived an error of its device is its owner's to judge.
"""

from dataclasses import dataclass, field

from gpumodd.core.facts import DeviceFact

NEAR_SHUTDOWN_C = 5  # this close to where the device switches itself off, nothing is added to its load


@dataclass(frozen=True, slots=True, kw_only=True)
class Ailment:
    """One thing that is wrong with a device."""

    kind: str  # lost | hot | reset_needed | row_remap_failed | ecc
    text: str
    hint: str
    details: dict[str, object] = field(default_factory=dict)


def ailments(device: DeviceFact) -> tuple[Ailment, ...]:
    """Everything that speaks against a start on this device, the gravest first."""
    if device.lost:
        return (
            Ailment(
                kind="lost",
                text=device.lost,
                hint="`nvidia-smi` and the kernel's log say more; a driver reset or a reboot brings it back",
            ),
        )
    return (*_memory(device), *_heat(device))


def kinds(device: DeviceFact) -> tuple[str, ...]:
    """What ails it, without the figures, which are new with every look."""
    return tuple(ailment.kind for ailment in ailments(device))


def _memory(device: DeviceFact) -> list[Ailment]:
    """Errors of its memory that were not corrected. Those of earlier drivers' lives are history: what they damaged was
    retired or remapped when the device was reset."""
    health = device.health
    found: list[Ailment] = []
    counts = {"ecc_uncorrected": health.ecc_volatile, "ecc_uncorrected_ever": health.ecc_aggregate}
    counts = {name: count for name, count in counts.items() if count is not None}
    if health.remap_failed:
        found.append(
            Ailment(
                kind="row_remap_failed",
                text="a damaged row of its memory could not be replaced",
                hint="its memory is damaged for good: the vendor replaces such a card",
                details=dict(counts),
            )
        )
    if health.reset_needed:
        found.append(
            Ailment(
                kind="reset_needed",
                text="damaged memory waits for a reset to be taken out of use",
                hint="stop what runs there, then `nvidia-smi --gpu-reset` or a reboot",
                details=dict(counts),
            )
        )
    if health.ecc_volatile:
        found.append(
            Ailment(
                kind="ecc",
                text=f"{health.ecc_volatile} uncorrected memory errors since the driver was loaded",
                hint="stop what runs there, then `nvidia-smi --gpu-reset` or a reboot; replace it if they return",
                details=dict(counts),
            )
        )
    return found


def _heat(device: DeviceFact) -> list[Ailment]:
    health = device.health
    figures = {
        "temperature_c": health.temperature_c,
        "slowdown_c": health.slowdown_c,
        "shutdown_c": health.shutdown_c,
    }
    known = {name: value for name, value in figures.items() if value is not None}
    near = (
        health.temperature_c is not None
        and health.shutdown_c is not None
        and health.temperature_c >= health.shutdown_c - NEAR_SHUTDOWN_C
    )
    if not near and not health.thermal_slowdown:
        return []
    at = "" if health.temperature_c is None else f" at {health.temperature_c} °C"
    limit = "" if health.shutdown_c is None else f", it switches off at {health.shutdown_c} °C"
    what = "the hardware slows it down for its heat" if health.thermal_slowdown else "it is close to switching off"
    return [
        Ailment(
            kind="hot",
            text=f"{what}{at}{limit}",
            hint="it is used again once it has cooled down; fans, dust and airflow are the usual causes",
            details=dict(known),
        )
    ]
