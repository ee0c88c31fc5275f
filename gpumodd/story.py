"""The story of a recording: one line per change, and how things stood at its end. `gpumodd replay` prints it.

Owns the words. What happened is what the replayed engine says; nothing is read from the recording but its events.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from gpumodd.api.views import Views
from gpumodd.core import conditions
from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.problems import Problem
from gpumodd.runtime.recording import Head
from gpumodd.runtime.replay import Replay, Replayed
from gpumodd.wire import types as t


class Line(msgspec.Struct, frozen=True):
    """One change."""

    at: str
    n: int  # the batch it happened in
    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class RecordedClock:
    """The time that the replay has come to; the port `Clock`."""

    head: Head
    engine: Engine

    def boottime(self) -> float:
        return self.engine.state.at

    def suspended(self) -> float:
        return 0.0  # what was slept through is in the recording

    def wall(self) -> float:
        return self.head.epoch + self.engine.state.at

    def boot_id(self) -> str:
        return self.head.boot_id


class Story:
    """Goes through a replay and tells it."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._views = Views(replay.engine, RecordedClock(replay.head, replay.engine))
        self._generation = -1
        self._problems: dict[tuple[str, str | None, str | None], Problem] = {}

    def tell(self, *, until_n: int | None = None, until_at: float | None = None) -> Iterator[Line]:
        """Every change, in order; raises Unreadable."""
        state = self._replay.engine.state
        self._problems = self._standing()
        for replayed in self._replay.batches(until_n=until_n, until_at=until_at):
            for topic, text in (*self._happened(replayed), *self._problems_changed()):
                yield Line(self._views.time(state.at), replayed.n, topic, text)

    def status(self) -> t.Status:
        """How things stand where the replay has come to."""
        return self._views.status()

    def time(self) -> str:
        """When that is."""
        return self._views.time(self._replay.engine.state.at)

    def _happened(self, replayed: Replayed) -> Iterator[tuple[str, str]]:
        for event in replayed.events:
            yield from _told_by_event(event)
        for effect in replayed.effects:
            yield from _told_by_effect(effect)

    def _problems_changed(self) -> Iterator[tuple[str, str]]:
        if self._generation == self._replay.engine.generation or self._replay.engine.state.observing:
            return
        self._generation = self._replay.engine.generation
        before, self._problems = self._problems, self._standing()
        for key, problem in self._problems.items():
            if key not in before:
                yield "problem", f"{problem.code}: {problem.message}"
        for key, problem in before.items():
            if key not in self._problems:
                yield "problem", f"{problem.code}: over ({problem.service or problem.device or 'machine'})"

    def _standing(self) -> dict[tuple[str, str | None, str | None], Problem]:
        return {(p.code, p.service, p.device): p for p in conditions.problems(self._replay.engine.state)}


def _told_by_event(event: ev.Event) -> Iterator[tuple[str, str]]:
    match event:
        case ev.Recovered():
            memory = "nothing is remembered" if event.snapshot is None else f"mode {event.snapshot.desired.mode}"
            yield "daemon", f"started: {memory}, {sum(op.state.open for op in event.operations)} open operations"
        case ev.ObservationCompleted():
            yield "daemon", "units and devices have been seen"
        case ev.CatalogLoaded(catalog=catalog):
            yield "config", f"{len(catalog.services)} services, {len(catalog.modes)} modes"
        case ev.Resumed():
            yield "machine", f"slept for {event.slept_s:.0f} s"
        case ev.UnitsLost():
            yield "units", f"lost: {event.reason}"
        case ev.SaveFailed():
            yield "state", f"cannot be saved: {event.message}"
        case ev.SaveWorked():
            yield "state", "is saved again"
        case ev.SwitchRequested():
            yield "asked", f"switch {event.mode}{' by force' if event.force else ''} ({event.actor or 'somebody'})"
        case ev.ServiceRequested():
            yield "asked", f"{event.kind} {event.service} ({event.actor or 'somebody'})"
        case ev.CancelRequested():
            yield "asked", f"cancel operation {event.operation} ({event.actor or 'somebody'})"


def _told_by_effect(effect: fx.Effect) -> Iterator[tuple[str, str]]:
    match effect:
        case fx.StartUnit():
            yield "command", f"start {effect.service}" + (f" on {', '.join(effect.devices)}" if effect.devices else "")
        case fx.StopUnit():
            yield "command", f"stop {effect.service}"
        case fx.KillUnit():
            yield "command", f"kill {effect.service}"
        case fx.Reply(refusal=fx.Refusal() as refusal):
            yield "refused", refusal.message
        case fx.Announce(change=fx.PhaseChanged() as change):
            yield "phase", f"{change.service}: {change.before} → {change.now}"
        case fx.Announce(change=fx.ModeChanged() as change):
            yield "mode", f"{change.reached or 'none'}, wanted: {change.wanted or 'none'}"
        case fx.Announce(change=fx.OperationChanged(operation=op)):
            why = f": {op.failure.reason.message}" if op.failure is not None else ""
            back = f", on its way to {op.returning}" if op.state.open and op.returning is not None else ""
            yield "operation", f"{op.id} {op.kind} {op.target} {op.state}{back}{why}"


# -- text -----------------------------------------------------------------------------------------------------


def line_text(line: Line) -> str:
    """A change as one line for a terminal."""
    return visible(f"{line.at}  {line.n:>6}  {line.topic:<9}  {line.text}")


def status_text(status: t.Status) -> Iterator[str]:
    """The status as `gpumodctl status` has it, in few words."""
    wanted = f" (wanted: {status.desired_mode})" if status.desired_mode not in (None, status.mode) else ""
    yield visible(f"Mode:   {status.mode or 'none'}{wanted}")
    yield f"State:  {status.state}"
    if status.operation is not None:
        yield visible(f"Doing:  {status.operation.id}: {status.operation.kind} {status.operation.target}")
    for device in status.devices:
        figures = f"{device.used_mib} of {device.total_mib} MiB used, {device.committed_mib} committed"
        yield visible(f"Device {device.index}  {device.name}: {figures}, {device.foreign_mib} foreign")
    rows = [("Service", "Phase", "VRAM (MiB)"), *((s.id, s.phase, str(_mib(s))) for s in status.services)]
    yield from _table(rows if status.services else [])
    for problem in status.problems:
        yield visible(f"Problem  {problem.code}: {problem.message}")


def _mib(service: t.Service) -> object:
    known = service.vram_mib if service.vram_observed_mib is None else service.vram_observed_mib
    return "-" if known is None else known


def _table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def visible(text: str) -> str:
    """Without anything that a terminal would act on: a recording may come from anywhere."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
