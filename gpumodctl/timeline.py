"""How one operation is told: what it did and why, step by step, with times, and the way back apart."""

from collections.abc import Mapping, Sequence

from gpumodctl import text
from gpumodctl.invocation import Invocation, ago, duration, seconds_of
from gpumodd.wire.types import Operation, Step, WayBack

BLOCKS = ("started", "woken", "stopped", "slept", "kept")
STYLES = {
    "done": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "bold",
    "pending": "dim",
    "skipped": "dim",
}
MARKS = {"done": "✓", "failed": "✗", "cancelled": "-", "skipped": "-", "pending": "·", "running": "…"}
ASCII_MARKS = {"done": "+", "failed": "!", "cancelled": "-", "skipped": "-", "pending": ".", "running": ">"}
_INDENT = " " * 20


def title(step: Step) -> str:
    """A step in words."""
    return text.clean(f"{step.verb.replace('_', ' ')} {step.service or step.device or ''}".strip())


def show_operation(invocation: Invocation, operation: Operation) -> None:
    """All there is to know about one operation."""
    error = operation.error
    invocation.panel(
        [
            ("Operation", operation.id),
            ("What", f"{operation.kind} {operation.target}"),
            ("State", operation.state.replace("_", " ")),
            ("Why", operation.why or None),
            ("Forced", "yes" if operation.forced else None),
            *(("Passed", f"{reason.code}: {reason.message}") for reason in operation.passed),
            ("Begun", f"{operation.created_at}, {ago(operation.created_at)} ago" if operation.created_at else None),
            ("Took", None if operation.seconds is None else duration(operation.seconds)),
            *((block.capitalize(), getattr(operation, block) or None) for block in BLOCKS),
            ("Way back", told_back(operation.back) if operation.back is not None else None),
            ("Error", None if error is None else f"{error.code}: {error.message}"),
            ("Hint", error.hint or None if error else None),
        ]
    )
    if operation.steps:
        invocation.say("")
        _show_steps(invocation, operation)
    if error is not None and error.log:
        invocation.say("", "Last lines:", *(f"  | {text.clean(line)}" for line in error.log))


def told_back(back: WayBack) -> str:
    """What the way back did, in one line."""
    parts = [f"{block} {', '.join(ids)}" for block in BLOCKS[:4] if (ids := getattr(back, block))]
    if back.unrestored:
        parts.append(f"could not bring back {', '.join(back.unrestored)}")
    return text.clean("; ".join(parts) or "nothing had to be done")


def _show_steps(invocation: Invocation, operation: Operation) -> None:
    """The timeline; what decided how long it took is marked."""
    invocation.say(invocation.out.paint("        At     Took  Step", "bold"))
    steps = {step.id: step for step in operation.steps}
    begun = seconds_of(operation.created_at)
    there = [step for step in operation.steps if not step.back]
    back = [step for step in operation.steps if step.back]
    _show_part(invocation, there, steps, begun)
    if back:
        why = operation.error.message if operation.error is not None else "the operation was turned back"
        invocation.say("", *text.wrap(f"The way back: {why}", invocation.out.columns))
        _show_part(invocation, back, steps, begun)
    if any(step.critical for step in operation.steps):
        told = "* on the critical path: nothing else would have ended it sooner"
        invocation.say("", *text.wrap(told, invocation.out.columns))


def _show_part(invocation: Invocation, part: Sequence[Step], steps: Mapping[str, Step], begun: float | None) -> None:
    out = invocation.out
    marks = MARKS if out.unicode else ASCII_MARKS
    for step in part:
        at = seconds_of(step.started_at)
        offset = f"+{duration(max(at - begun, 0.0))}" if at is not None and begun is not None else ""
        took = duration(step.seconds) if step.seconds is not None else ""
        state = "" if step.state in ("done", "running") else f" ({step.state})"
        mark = marks.get(step.state, "?")
        line = f"{'*' if step.critical else ' '} {offset:>8} {took:>8}  {mark} {title(step)}{state}"
        invocation.say(out.paint(text.cut(line, out.columns), STYLES.get(step.state, "")))
        words = f"{step.error.code}: {step.error.message}" if step.error is not None else _why(step, steps)
        invocation.say(*text.wrap(words, out.columns, _INDENT))


def _why(step: Step, steps: Mapping[str, Step]) -> str:
    """Why it is there, and what it waited for or still waits for."""
    gate = steps.get(step.gate or "")
    waited = ""
    if gate is not None and step.started_at is not None:
        waited = f"waited until {_over(gate, 'was')}"
    elif step.state == "pending" and step.after:
        waited = f"waits until {', '.join(_over(steps[id], 'is') for id in step.after if id in steps)}"
    return "; ".join(words for words in (step.why, waited) if words)


def _over(step: Step, be: str) -> str:
    """What holds once this step is done."""
    service = text.clean(step.service or "")
    match step.verb:
        case "stop":
            return f"{service} {be} gone"
        case "wait_release":
            return f"the memory of {service} {be} back"
        case "start":
            return f"{service} {be} started"
        case "wait_ready":
            return f"{service} {be} ready"
        case _:
            return f"{title(step)} {be} done"
