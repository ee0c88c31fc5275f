"""`gpumodctl switch`: move the machine to a mode and wait until it is there."""

import click

from gpumodctl import completion, exits, text
from gpumodctl.client import decode
from gpumodctl.invocation import Invocation
from gpumodctl.options import command
from gpumodctl.results import show_operation_result
from gpumodctl.waiting import run_operation
from gpumodd.wire.types import Operation


@command("switch", help="Switch to MODE and wait until all of it is ready.")
@click.argument("mode", shell_complete=completion.modes)
@click.option("--no-wait", is_flag=True, help="Begin it and return.")
@click.option("--force", is_flag=True, help="Pass refusals for lack of memory and the pause after a stop.")
@click.option("--no-quiesce", is_flag=True, help="Do not wait for the pause after a heavy stop.")
@click.option(
    "--on-failure",
    type=click.Choice(["rollback", "keep", "stop"]),
    help="What to do when a service does not come up (default: the policy of gpumodd.yaml).",
)
@click.pass_obj
def switch(
    invocation: Invocation, mode: str, no_wait: bool, force: bool, no_quiesce: bool, on_failure: str | None
) -> int:
    params: dict[str, object] = {"id": mode}
    if force:
        params["force"] = True
    if no_quiesce:
        params["quiesce"] = False
    if on_failure:
        params["on_failure"] = on_failure
    return begin(invocation, "mode.switch", params, no_wait=no_wait, headline=f"Mode {mode} is active")


def begin(invocation: Invocation, method: str, params: dict[str, object], *, no_wait: bool, headline: str) -> int:
    """Call a method that begins an operation, wait for it unless told otherwise, show what it did."""
    raw = invocation.order(method, params | {"wait": False}) if no_wait else run_operation(invocation, method, params)
    if invocation.json:
        invocation.document(raw)
        return exits.OK
    operation = decode(raw, Operation)
    if no_wait:
        invocation.say(text.clean(f"Operation {operation.id} has begun."))
        invocation.note(f"Wait for it with `gpumodctl operation wait {text.clean(operation.id)}`.")
        return exits.OK
    show_operation_result(invocation, operation, headline)
    return exits.OK
