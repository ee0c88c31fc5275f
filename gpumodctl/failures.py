"""How a run that went wrong is told: the message, what would help, what the service said last."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import click

from gpumodctl import exits, text
from gpumodctl.client import Refused, Unreachable
from gpumodctl.invocation import Invocation
from gpumodd.wire.errors import NUMBERS

_LOG_LINES = 20


def tell_refused(invocation: Invocation, refused: Refused, *, program: str = "gpumodctl") -> int:
    """Tell an error the daemon answered with; its exit code."""
    error = refused.error
    if invocation.json:
        invocation.document(refused.raw)
    note(invocation, error.message, error.data.hint, program=program)
    _tell_alternatives(invocation, error.data.details.get("alternatives"))
    for reason in _dicts(error.data.details.get("reasons")):
        _tell_reason(invocation, reason, told=(error.message, error.data.hint))
    operation = error.data.details.get("operation")
    shown = tell_operation(invocation, operation) if isinstance(operation, dict) else set()
    tell_log(invocation, "", error.data.details.get("log"), shown)
    return exits.of_error(error)


def tell_unreachable(invocation: Invocation, unreachable: Unreachable) -> int:
    """Tell that there is no daemon; the exit code."""
    if invocation.json:
        data = {"code": "unreachable", "hint": unreachable.hint, "details": {}}
        invocation.document({"code": -32000, "message": unreachable.message, "data": data})
    invocation.note(f"gpumodctl: {text.clean(unreachable.message)}; {text.clean(unreachable.hint)}")
    return exits.UNREACHABLE


def tell_usage(invocation: Invocation, error: click.ClickException, words: Iterable[str]) -> int:
    """Tell that the command line makes no sense; the exit code."""
    # Whoever asked for JSON may have made the mistake before the option was understood.
    if invocation.json or "--json" in words:
        data = {"code": "invalid_params", "hint": "see --help", "details": {}}
        invocation.document({"code": NUMBERS["invalid_params"], "message": error.format_message(), "data": data})
    error.show(sys.stderr)
    return error.exit_code


def note(invocation: Invocation, message: str, hint: str, *, program: str = "gpumodctl") -> None:
    """A message and its hint."""
    invocation.note(invocation.err.paint(f"{program}: {text.clean(message)}", "red"))
    if hint:
        invocation.note(f"hint: {text.clean(hint)}")


def tell_operation(invocation: Invocation, operation: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Tell which steps of an operation failed and how it ended; the logs that were shown."""
    shown: set[tuple[str, ...]] = set()
    for step in _dicts(operation.get("steps")):
        error = step.get("error")
        if step.get("state") == "failed" and isinstance(error, dict):
            name = text.clean(f"{step.get('verb')} {step.get('service') or step.get('device') or ''}".strip())
            invocation.note(f"  {name}: {text.clean(str(error.get('message', '')))}")
            tell_log(invocation, str(step.get("service") or ""), error.get("log"), shown)
    error = operation.get("error")
    if isinstance(error, dict):
        tell_log(invocation, "", error.get("log"), shown)
    back = operation.get("back")
    if isinstance(back, dict):
        headline = "Rolled back" if operation.get("state") == "rolled_back" else "The way back"
        invocation.note(*text.wrap(f"{headline}: {_told_back(back)}", invocation.err.columns))
    if operation.get("id"):
        invocation.note(f"`gpumodctl operation show {text.clean(str(operation['id']))}` tells the whole story.")
    return shown


def _told_back(back: Mapping[str, Any]) -> str:
    # Only what has failed needs these; a client that starts fast does not load them for nothing.
    import msgspec

    from gpumodctl.timeline import told_back
    from gpumodd.wire.types import WayBack

    try:
        return told_back(msgspec.convert(dict(back), WayBack))
    except msgspec.ValidationError:
        return "see `gpumodctl operation show`"


def tell_log(invocation: Invocation, service: str, log: Any, shown: set[tuple[str, ...]]) -> None:
    """The last lines of a service, unless they were shown before."""
    if not isinstance(log, list) or not log:
        return
    lines = tuple(text.clean(str(line)) for line in log[-_LOG_LINES:])
    if lines in shown:
        return
    shown.add(lines)
    invocation.note(f"Last lines of {text.clean(service)}:" if service else "Last lines:")
    invocation.note(*(f"  | {line}" for line in lines))


def _tell_reason(invocation: Invocation, reason: Mapping[str, Any], *, told: tuple[str, str]) -> None:
    """One reason, without what the error itself has said already."""
    code, message, hint = (str(reason.get(key) or "") for key in ("code", "message", "hint"))
    invocation.note(text.clean(f"  {code}" if message in told[0] else f"  {code}: {message}"))
    if hint and hint != told[1]:
        invocation.note(text.clean(f"    hint: {hint}"))


def _tell_alternatives(invocation: Invocation, alternatives: Any) -> None:
    """What else would make it fit: the best one is the hint."""
    import msgspec  # not at the start of every run

    from gpumodctl.results import instead
    from gpumodd.wire.types import Alternative

    try:
        others = msgspec.convert(alternatives or [], list[Alternative])[1:]
    except msgspec.ValidationError:
        return  # decoration only
    invocation.note(*(f"      or {text.clean(instead(other))}" for other in others))


def _dicts(value: Any) -> Iterable[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
