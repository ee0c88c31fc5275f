"""`gpumodctl mode …`: the named sets of services."""

import click

from gpumodctl import completion, text
from gpumodctl.client import decode
from gpumodctl.commands.simulate import simulate
from gpumodctl.commands.switch import switch
from gpumodctl.invocation import Invocation
from gpumodctl.options import group
from gpumodctl.results import show_modes
from gpumodd.wire.types import Mode, Service, Status

mode = group("mode", help="List, show, switch, create and delete modes.")
mode.add_command(switch)
mode.add_command(simulate)


@mode.command("list", help="List all modes.")
@click.pass_obj
def list_(invocation: Invocation) -> None:
    raw = invocation.ask("mode.list")
    if invocation.json:
        invocation.document(raw)
    else:
        show_modes(invocation, decode(raw, list[Mode]))


@mode.command("show", help="Show one mode and its services.")
@click.argument("id", shell_complete=completion.modes)
@click.pass_obj
def show(invocation: Invocation, id: str) -> None:
    with invocation.connect() as client:
        raw = client.call("mode.get", {"id": id})
        if invocation.json:
            invocation.document(raw)
            return
        shown = decode(raw, Mode)
        services = {service.id: service for service in decode(client.call("service.list"), list[Service])}
    invocation.panel(
        [
            ("ID", shown.id),
            ("Name", shown.name),
            ("Description", shown.description or None),
            ("Active", "yes" if shown.active else "no"),
            ("Total VRAM", "unknown" if shown.vram_mib is None else f"{shown.vram_mib} MiB"),
        ]
    )
    members = [services.get(member) or member for member in shown.services]
    if members:
        invocation.say("")
        invocation.table(
            ("ID", "Name", "Driver", "VRAM (MiB)"),
            [
                (member, None, None, None)
                if isinstance(member, str)
                else (member.id, member.name, member.driver, member.vram_mib)
                for member in members
            ],
            numbers=(3,),
        )


@mode.command("status", help="Show the active mode.")
@click.pass_obj
def status(invocation: Invocation) -> None:
    with invocation.connect() as client:
        now = decode(client.call("status.get"), Status)
        raw = client.call("mode.get", {"id": now.mode}) if now.mode else None
    if invocation.json:
        invocation.document(raw)
        return
    active = decode(raw, Mode) if raw else None
    total = active.vram_mib if active else None
    invocation.panel(
        [
            ("Active Mode", now.mode or "none"),
            ("Name", active.name if active else None),
            ("Description", active.description or None if active else None),
            ("Services", active.services or "none" if active else None),
            ("Total VRAM", None if total is None else f"{total} MiB"),
            ("State", now.state),
            ("Wanted", now.desired_mode if now.desired_mode != now.mode else None),
        ]
    )


@mode.command("create", help="Write the YAML file of a new mode.")
@click.argument("id")
@click.argument("services", nargs=-1, shell_complete=completion.services)
@click.option("--name", default="", help="What people call it.")
@click.option("--description", default="", help="What it is for.")
@click.pass_obj
def create(invocation: Invocation, id: str, services: tuple[str, ...], name: str, description: str) -> None:
    params = {"id": id, "name": name, "description": description, "services": services}
    raw = invocation.ask("mode.create", params)
    if invocation.json:
        invocation.document(raw)
    else:
        invocation.say(text.clean(f"Mode {decode(raw, Mode).id} was created."))


@mode.command("delete", help="Remove the YAML file of a mode.")
@click.argument("id", shell_complete=completion.modes)
@click.pass_obj
def delete(invocation: Invocation, id: str) -> None:
    raw = invocation.ask("mode.delete", {"id": id})
    if invocation.json:
        invocation.document(raw)
    else:
        invocation.say(text.clean(f"Mode {id} was deleted."))
