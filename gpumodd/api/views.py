"""Views: the core's state as the wire shows it. The only translator between the two; it decides nothing."""

import datetime
from collections.abc import Iterable, Mapping

import msgspec

from gpumodd.api.operation_views import OperationViews, reason
from gpumodd.core import conditions, world
from gpumodd.core import effects as fx
from gpumodd.core.alternatives import Alternative
from gpumodd.core.changes import Kind
from gpumodd.core.engine import Engine
from gpumodd.core.explain import explain
from gpumodd.core.facts import DeviceFact
from gpumodd.core.ledger import Budget
from gpumodd.core.operations import Operation, PlannedStep, StepState
from gpumodd.core.phase import Phase
from gpumodd.core.plans import DeviceForecast
from gpumodd.core.problems import Problem
from gpumodd.core.simulation import Simulated
from gpumodd.core.specs import ModeSpec, ServiceSpec
from gpumodd.core.state import State, Track
from gpumodd.ports import Clock
from gpumodd.wire import types as t

AROUND = frozenset({Phase.STARTING, Phase.LOADING, Phase.READY, Phase.DEGRADED, Phase.SLEEPING, Phase.WAKING})


class Views:
    """Reads the engine's state. The whole status is kept encoded until something in it changes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._operations = OperationViews(self.time, clock.boottime)
        self._status_key: object = None
        self._status = msgspec.Raw()

    @property
    def state(self) -> State:
        """The engine's state, for reading."""
        return self._engine.state

    # -- time -------------------------------------------------------------------------------------------------

    def time(self, at: float) -> str:
        """A boot-clock time as RFC 3339 in UTC, to the millisecond."""
        moment = datetime.datetime.fromtimestamp(at + self._clock.wall() - self._clock.boottime(), datetime.UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    # -- the whole --------------------------------------------------------------------------------------------

    def status_encoded(self) -> msgspec.Raw:
        """status.get's result; the same bytes until the state changes."""
        fact = self.state.devices
        key = (self._engine.generation, fact.at if fact is not None else None)
        if key != self._status_key:
            self._status = msgspec.Raw(msgspec.json.encode(self.status()))
            self._status_key = key
        return self._status

    def status(self) -> t.Status:
        """Everything at once."""
        state = self.state
        running = state.active_operations()
        found = conditions.problems(state)
        return t.Status(
            mode=state.reached_mode,
            desired_mode=state.desired.mode,
            state=conditions.standing(state),  # type: ignore[arg-type]
            devices=self.devices(),
            services=self._services(found),
            operation=self.operation(running[-1]) if running else None,
            problems=[self.problem(p) for p in found],
            host=self._host(),
        )

    def _host(self) -> t.Host | None:
        fact, budget = self.state.host, world.host_budget(self.state)
        if fact is None or budget is None:
            return None
        return t.Host(
            total_mib=budget.total_mib,
            available_mib=fact.mem_available_mib,
            committed_mib=budget.committed_mib,
            reserve_mib=budget.reserve_mib,
        )

    def problem(self, problem: Problem) -> t.Problem:
        """One condition."""
        return t.Problem(
            code=problem.code,
            message=problem.message,
            hint=problem.hint,
            service=problem.service,
            device=problem.device,
            since=self.time(problem.since),
            details=dict(problem.details),
        )

    # -- devices ----------------------------------------------------------------------------------------------

    def devices(self) -> list[t.Device]:
        """All devices, by index."""
        budgets = world.budgets(self.state)
        fact = self.state.devices
        shown = [self._device(d, budgets) for d in (fact.devices if fact is not None else ())]
        return sorted(shown, key=lambda d: d.index)

    def _device(self, device: DeviceFact, budgets: Mapping[str, Budget]) -> t.Device:
        budget = budgets.get(device.uuid)
        return t.Device(
            uuid=device.uuid,
            index=device.index,
            name=device.name,
            total_mib=device.total_mib,
            used_mib=device.used_mib,
            foreign_mib=budget.foreign_mib if budget else 0,
            committed_mib=budget.committed_mib if budget else 0,
            free_mib=max(0, device.total_mib - device.used_mib),
            sampled_at=self.time(device.at),
            reserve_mib=self.state.catalog.policy.vram_reserve_mib,
            limit_mib=budget.limit_mib if budget else None,
            stale=bool(device.lost or (budget and budget.trouble == "telemetry_stale")),
            temperature_c=device.health.temperature_c,
            unhealthy="; ".join(ailment.text for ailment in budget.ailments) or None if budget else None,
            available_mib=max(0, budget.available_mib) if budget else 0,
            unlisted_mib=self._unlisted(device, budget),
            holdings=self._holdings(device, budget),
            processes=[
                t.DeviceProcess(pid=p.pid, used_mib=p.used_mib, service=p.service, name=p.name)
                for p in sorted(device.processes, key=lambda p: p.pid)
            ],
        )

    def _unlisted(self, device: DeviceFact, budget: Budget | None) -> int:
        seen = self.state.attribution.get(device.uuid)
        return max(0, budget.foreign_mib - seen.strangers_mib) if budget is not None and seen is not None else 0

    def _holdings(self, device: DeviceFact, budget: Budget | None) -> list[t.Holding]:
        """What services hold or are counted for, the largest first."""
        seen, window = self.state.attribution.get(device.uuid), self.state.windows.get(device.uuid)
        if budget is None or seen is None:
            return []
        late = window.lingering(seen.unlisted_mib) if window is not None else {}
        found = [
            t.Holding(
                service=service or None,
                used_mib=seen.services.get(service, 0),
                committed_mib=budget.held.get(service, 0),
                releasing_mib=late.get(service, 0),
            )
            for service in {*budget.held, *seen.services, *late}
        ]
        return sorted(found, key=lambda h: (-h.committed_mib, h.service or ""))

    # -- services ---------------------------------------------------------------------------------------------

    def services(self) -> list[t.Service]:
        """All configured services, and units that run without being configured."""
        return self._services(conditions.problems(self.state))

    def _services(self, found: list[Problem]) -> list[t.Service]:
        first: dict[str, Problem] = {}
        for problem in found:
            if problem.service is not None:
                first.setdefault(problem.service, problem)
        return [self._service(s, first.get(s)) for s in self.service_ids()]

    def service_ids(self) -> list[str]:
        """The ids of everything that is shown as a service, sorted."""
        state = self.state
        orphans = {
            s for s, track in state.tracks.items() if not track.gone or world.phase_of(state, s) is Phase.RELEASING
        }
        return sorted({*state.catalog.services, *orphans})

    def service(self, service: str) -> t.Service:
        """One service."""
        track = self.state.tracks.get(service) or Track()
        desired = service in self.state.desired.services(self.state.catalog.services)
        found = conditions.of_service(self.state, service, track, desired=desired)
        return self._service(service, found[0] if found else None)

    def _service(self, service: str, problem: Problem | None) -> t.Service:
        state = self.state
        spec = state.catalog.services.get(service) or ServiceSpec(id=service, name=service, driver="")
        track = state.tracks.get(service) or Track(since=state.started_at)
        phase = world.phase_of(state, service)
        mode = next((c.services for c in state.desired.claims if c.kind == "mode"), ())
        costs = state.costs_of(service)
        observed = [seen.services[service] for seen in state.attribution.values() if service in seen.services]
        return t.Service(
            id=service,
            name=spec.name or service,
            driver=spec.driver,
            model=spec.model,
            phase=phase.value,
            aliases=list(spec.aliases),
            depends_on=list(spec.depends_on),
            mode_member=service in mode,
            unit=f"gpumod-{service}.service",
            pid=track.unit.main_pid if track.unit is not None and not track.unit.gone else None,
            port=spec.port,
            devices=list(track.devices) if phase in AROUND or not track.gone else [],
            vram_mib=spec.vram_mib,
            vram_source=spec.vram_source.value if spec.vram_mib is not None else None,
            vram_observed_mib=sum(observed) if observed else None,
            load_s=costs.load_s,
            stop_s=costs.stop_s,
            release_s=costs.release_s,
            sleep_level=None,
            since=self.time(track.since),
            problem=self.problem(problem) if problem is not None else None,
            stale=world.stale(state, service),
        )

    def explanation(self, service: str) -> t.Explanation:
        """Why a service is as it is, with its recent story, oldest first."""
        told = explain(self.state, service, self._clock.boottime())
        return t.Explanation(
            id=service,
            phase=world.phase_of(self.state, service).value,
            why=told.why,
            because=list(told.because),
            would_change=list(told.would_change),
            story=[t.StoryEntry(at=self.time(m.at), text=m.text, cause=m.cause) for m in told.story],
        )

    # -- modes ------------------------------------------------------------------------------------------------

    def modes(self) -> list[t.Mode]:
        """All modes, by id."""
        return [self.mode(mode) for _, mode in sorted(self.state.catalog.modes.items())]

    def mode(self, mode: ModeSpec) -> t.Mode:
        """One mode; `vram_mib` is the sum of its members' figures, null when one of them is not known."""
        specs = self.state.catalog.services
        sizes = [specs[s].vram_mib for s in mode.services if s in specs]
        known = [mib for mib in sizes if mib is not None]
        return t.Mode(
            id=mode.id,
            name=mode.name or mode.id,
            description=mode.description,
            services=list(mode.services),
            vram_mib=sum(known) if len(known) == len(sizes) else None,
            active=self.state.reached_mode == mode.id,
        )

    # -- operations -------------------------------------------------------------------------------------------

    def operation(self, op: Operation) -> t.Operation:
        """One operation with its steps."""
        return self._operations.operation(op)

    # -- events -----------------------------------------------------------------------------------------------

    def event(self, announced: fx.Announce) -> tuple[str, dict[str, object]]:
        """An announcement as a topic and JSON-ready data."""
        match announced.change:
            case fx.PhaseChanged() as change:
                return "service", {"service": change.service, "from": change.before, "to": change.now}
            case fx.StepChanged() as change:
                data = _of_operation(change.operation)
                return "operation", {
                    **data,
                    "step": msgspec.to_builtins(self._operations.step(change.step, change.operation)),
                }
            case fx.OperationChanged() as change:
                data = _of_operation(change.operation)
                if change.operation.state.open and change.operation.turned_at is not None:
                    data["turned_back"] = True
                error = self._operations.error(change.operation)
                return "operation", {**data, "error": msgspec.to_builtins(error)} if error else data
            case fx.ModeChanged() as change:
                was = {"mode": change.was_reached, "desired_mode": change.was_wanted}
                return "mode", {"mode": change.reached, "desired_mode": change.wanted, "was": was}

    # -- simulation -------------------------------------------------------------------------------------------

    def simulation(self, mode: str | None, services: Iterable[str], made: Simulated, notes: list[str]) -> t.Simulation:
        """What a plan leads to, per device and step by step."""
        forecast, budgets = made.plan.forecast, world.budgets(self.state)
        return t.Simulation(
            fits=not made.reasons and all(f.headroom_mib >= 0 for f in forecast),
            devices=[_forecast(f, budgets[f.uuid], made) for f in forecast],
            services=[self._simulated(s, made) for s in services],
            steps=planned_steps(made.plan.steps),
            blocked=[reason(r) for r in made.reasons],
            alternatives=[alternative(a) for a in made.alternatives],
            notes=notes,
            mode=mode,
        )

    def _simulated(self, service: str, made: Simulated) -> t.SimulationService:
        spec = made.specs[service]
        track = self.state.tracks.get(service) or Track()
        return t.SimulationService(
            id=service,
            name=spec.name or service,
            driver=spec.driver,
            vram_mib=spec.vram_mib,
            vram_source=spec.vram_source.value if spec.vram_mib is not None else None,
            context=spec.context,
            devices=list(made.plan.placements.get(service, track.devices)),
            phase=world.phase_of(self.state, service).value,
        )


def _forecast(forecast: DeviceForecast, budget: Budget, made: Simulated) -> t.SimulationDevice:
    return t.SimulationDevice(
        uuid=forecast.uuid,
        total_mib=forecast.total_mib,
        needed_mib=forecast.needed_mib,
        headroom_mib=forecast.headroom_mib,
        index=budget.index,
        name=budget.name,
        reserve_mib=budget.reserve_mib,
        foreign_mib=budget.foreign_mib,
        limit_mib=budget.limit_mib,
        used_by_others_mib=sum(mib for s, mib in forecast.services.items() if s not in made.asked),
    )


def _of_operation(op: Operation) -> dict[str, object]:
    return {"operation": op.id, "kind": op.kind.value, "target": op.target, "state": op.state.value}


def alternative(instead: Alternative) -> t.Alternative:
    """What would fit."""
    changes = instead.changes
    return t.Alternative(
        message=instead.message,
        remove=[c.service for c in changes if c.kind is Kind.REMOVE],
        stop=[c.service for c in changes if c.kind is Kind.STOP],
        devices={c.service: list(c.devices) for c in changes if c.kind is Kind.MOVE},
        context={c.service: c.context for c in changes if c.kind is Kind.CONTEXT},
        end=[c.pid for c in changes if c.kind is Kind.END],
        cost_s=instead.cost_s,
    )


def planned_steps(steps: Iterable[PlannedStep]) -> list[t.Step]:
    """A plan's steps, numbered as an operation would number them."""
    planned = list(steps)
    ids = {step.key: str(number) for number, step in enumerate(planned, 1)}
    return [
        t.Step(
            id=ids[step.key],
            verb=step.verb.value,
            service=step.service,
            after=[ids[key] for key in step.after if key in ids],
            state=StepState.RUNNING.value if step.in_flight else StepState.PENDING.value,
            why=step.why,
        )
        for step in planned
    ]
