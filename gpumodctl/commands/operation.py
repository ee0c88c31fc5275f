"""`gpumodctl operation …`: what the daemon does and has done."""

import click
import msgspec

from gpumodctl import completion, exits, failures, text
from gpumodctl.client import decode
from gpumodctl.invocation import Invocation
from gpumodctl.options import group
from gpumodctl.results import show_operation_result, show_operations
from gpumodctl.timeline import show_operation
from gpumodctl.waiting import wait_for
from gpumodd.wire.types import Operation

operation = group("operation", help="List, show, await and cancel operations.")


@operation.command("list", help="List the newest operations.")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, help="How many (default: 20).")
@click.pass_obj
def list_(invocation: Invocation, limit: int) -> None:
    raw = invocation.ask("operation.list", {"limit": limit})
    if invocation.json:
        invocation.document(raw)
    else:
        show_operations(invocation, decode(raw, list[Operation]))


@operation.command("show", help="Show what one operation did, when, and why.")
@click.argument("id", shell_complete=completion.operations)
@click.pass_obj
def show(invocation: Invocation, id: str) -> None:
    raw = invocation.ask("operation.get", {"id": id})
    if invocation.json:
        invocation.document(raw)
        return
    show_operation(invocation, decode(raw, Operation))


@operation.command("wait", help="Wait until an operation has ended; the exit code tells how.")
@click.argument("id", shell_complete=completion.operations)
@click.pass_obj
def wait(invocation: Invocation, id: str) -> int:
    raw = wait_for(invocation, id)
    ended = decode(raw, Operation)
    if invocation.json:
        invocation.document(raw)
    else:
        show_operation_result(invocation, ended, f"Operation {ended.id}: {ended.state.replace('_', ' ')}")
    if ended.state != "succeeded":
        if ended.error is not None:
            failures.note(invocation, ended.error.message, ended.error.hint)
        failures.tell_operation(invocation, msgspec.to_builtins(ended))
    return exits.of_state(ended.state)


@operation.command("cancel", help="Cancel a running operation.")
@click.argument("id", shell_complete=completion.operations)
@click.pass_obj
def cancel(invocation: Invocation, id: str) -> None:
    raw = invocation.order("operation.cancel", {"id": id})
    if invocation.json:
        invocation.document(raw)
    else:
        invocation.say(text.clean(f"Operation {id} is {decode(raw, Operation).state}."))
