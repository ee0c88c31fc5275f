"""`gpumodctl device …`: the GPUs."""

import click

from gpumodctl import text
from gpumodctl.client import decode
from gpumodctl.invocation import Invocation
from gpumodctl.options import group
from gpumodd.wire.types import Device

device = group("device", help="List devices.")


@device.command("list", help="List the devices, what they hold and who holds it.")
@click.pass_obj
def list_(invocation: Invocation) -> None:
    raw = invocation.ask("device.list")
    if invocation.json:
        invocation.document(raw)
        return
    devices = decode(raw, list[Device])
    if not devices:
        invocation.say("There are no devices.")
        return
    invocation.table(
        ("GPU", "Name", "Total (MiB)", "Used", "Free", "Committed", "Foreign"),
        [(d.index, d.name, d.total_mib, d.used_mib, d.free_mib, d.committed_mib, d.foreign_mib) for d in devices],
        numbers=(0, 2, 3, 4, 5, 6),
    )
    invocation.say("")
    invocation.say(*(text.cut(text.clean(_line(d)), invocation.out.columns) for d in devices))
    invocation.say(
        *(text.clean(f"Nothing is started on GPU {d.index}: {d.unhealthy}.") for d in devices if d.unhealthy)
    )
    processes = [
        (d.index, process.pid, process.service or "(foreign)", process.name, process.used_mib)
        for d in devices
        for process in d.processes
    ]
    if processes:
        invocation.say("")
        invocation.table(("GPU", "PID", "Service", "Program", "Used (MiB)"), processes, numbers=(0, 1, 4))


def _line(d: Device) -> str:
    """A device's name for programs, and what of it is not in the table."""
    limit = [] if d.limit_mib is None else [f"limit {d.limit_mib} MiB"]
    heat = [] if d.temperature_c is None else [f"{d.temperature_c} °C"]
    return f"GPU {d.index}  {d.uuid}" + "".join(f", {more}" for more in (*limit, *heat))
