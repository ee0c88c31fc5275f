"""The handlers: one per method, from a validated request to the daemon and back to the wire.

Each is a few lines over `views` and the loop. Whatever changes something is handed to the loop first and waited
for afterwards, so a client that goes away cancels nothing.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

from gpumodd.api.connection import Handler, Reply, Session
from gpumodd.api.inspection import inspect
from gpumodd.api.lookup import Lookup, not_found
from gpumodd.api.operation_views import reason
from gpumodd.api.simulation import Simulator
from gpumodd.api.views import Views, alternative
from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.operations import Operation
from gpumodd.core.operations import State as OperationState
from gpumodd.core.specs import OnFailure
from gpumodd.ports import PortError, Units
from gpumodd.runtime.bus import Bus, Happening, Subscription
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.memory import Memory
from gpumodd.wire import methods as m
from gpumodd.wire import types as t
from gpumodd.wire.errors import RpcError


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """What the handlers work with. The callables are the composition root's: they touch configuration and life."""

    loop: Loop
    views: Views
    bus: Bus
    units: Units
    simulator: Simulator
    memory: Memory
    reload: Callable[[bool], Awaitable[t.Reload]]
    check: Callable[[], Awaitable[t.ConfigCheck]]
    write_mode: Callable[[m.ModeCreateParams], Awaitable[None]]
    remove_mode: Callable[[str], Awaitable[None]]
    shutdown: Callable[[], None]


def handlers(daemon: Daemon) -> Mapping[str, Handler]:
    """Every method this daemon serves."""
    desk = _Desk(daemon)
    views = daemon.views
    lookup = Lookup(views)
    return {
        "daemon.reload": desk.reload,
        "daemon.shutdown": desk.shutdown,
        "status.get": lambda _session, _params: views.status_encoded(),
        "device.list": lambda _session, _params: views.devices(),
        "service.list": lambda _session, _params: views.services(),
        "service.get": lambda _session, params: views.service(lookup.service(params.id)),
        "service.start": desk.service_action("start"),
        "service.stop": desk.service_action("stop"),
        "service.restart": desk.service_action("restart"),
        "service.logs": desk.logs,
        "service.explain": lambda _session, params: views.explanation(lookup.service(params.id)),
        "mode.list": lambda _session, _params: views.modes(),
        "mode.get": lambda _session, params: views.mode(lookup.mode(params.id)),
        "mode.create": desk.create_mode,
        "mode.delete": desk.delete_mode,
        "mode.simulate": desk.simulate,
        "mode.switch": desk.switch,
        "operation.list": desk.operations,
        "operation.get": desk.operation,
        "operation.wait": desk.wait_operation,
        "operation.cancel": desk.cancel,
        "events.subscribe": desk.subscribe,
        "model.inspect": inspect,
        "config.check": desk.check,
    }


class _Desk:
    """The handlers that are more than a view."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._loop = daemon.loop
        self._views = daemon.views
        self._lookup = Lookup(daemon.views)

    # -- the daemon -------------------------------------------------------------------------------------------

    async def reload(self, _session: Session, params: m.ReloadParams) -> t.Reload:
        return await self._daemon.reload(params.restart_changed)

    def shutdown(self, _session: Session, _params: m.NoParams) -> t.Shutdown:
        self._daemon.shutdown()
        return t.Shutdown(services_end=self._daemon.units.backend == "process")

    async def check(self, _session: Session, _params: m.NoParams) -> t.ConfigCheck:
        return await self._daemon.check()

    # -- services ---------------------------------------------------------------------------------------------

    def service_action(self, kind: str) -> Handler:
        """The handler that starts, stops or restarts a service."""

        async def act(session: Session, params: m.ServiceActionParams) -> t.Operation | Reply:
            service = self._lookup.service(params.id)

            def make(number: int) -> ev.Request:
                return ev.ServiceRequested(
                    at=self._loop.now(),
                    request=number,
                    actor=session.actor,
                    kind=kind,
                    service=service,
                    force=params.force,
                )

            return await self._operate(session, make, wait=params.wait, progress=params.progress)

        return act

    async def logs(self, _session: Session, params: m.LogsParams) -> t.Logs:
        service = self._lookup.service(params.id)
        try:
            return t.Logs(lines=await self._daemon.units.logs(service, lines=params.lines))
        except PortError as error:
            raise RpcError("internal_error", error.message, hint=error.hint) from None

    # -- modes ------------------------------------------------------------------------------------------------

    async def create_mode(self, _session: Session, params: m.ModeCreateParams) -> t.Mode:
        services = [self._lookup.by_alias(wanted) or wanted for wanted in params.services]
        await self._daemon.write_mode(msgspec.structs.replace(params, services=services))
        return self._views.mode(self._lookup.mode(params.id))

    async def delete_mode(self, _session: Session, params: m.IdParams) -> t.Mode:
        shown = self._views.mode(self._lookup.mode(params.id))
        await self._daemon.remove_mode(params.id)
        return shown

    async def simulate(self, _session: Session, params: m.SimulateParams) -> t.Simulation:
        return await self._daemon.simulator.simulate(params)

    async def switch(self, session: Session, params: m.SwitchParams) -> t.Operation | Reply:
        self._lookup.mode(params.id)

        def make(number: int) -> ev.Request:
            return ev.SwitchRequested(
                at=self._loop.now(),
                request=number,
                actor=session.actor,
                mode=params.id,
                force=params.force,
                quiesce=params.quiesce,
                on_failure=OnFailure(params.on_failure) if params.on_failure else None,
            )

        return await self._operate(session, make, wait=params.wait, progress=params.progress)

    async def _operate(
        self, session: Session, make: Callable[[int], ev.Request], *, wait: bool, progress: bool
    ) -> t.Operation | Reply:
        """Ask the engine; answer at once or at the end, and tell each step on the way if that is wanted."""
        # Subscribed before it is asked: no step may be missed.
        subscription = self._daemon.bus.subscribe(["operation"]) if progress else None
        try:
            op = _accepted(await self._loop.request(make))
            if wait and subscription is not None:
                await _progress(session, op, subscription)
            if wait:
                return await self._finished(op)
            if subscription is None:
                return self._shown(op)
            followed, subscription = subscription, None
            return Reply(self._shown(op), then=lambda: self._tell_progress(session, op, followed))
        finally:
            if subscription is not None:
                subscription.close()

    async def _tell_progress(self, session: Session, operation: str, subscription: Subscription) -> None:
        try:
            await _progress(session, operation, subscription)
        finally:
            subscription.close()

    # -- operations -------------------------------------------------------------------------------------------

    async def operations(self, _session: Session, params: m.OperationListParams) -> list[t.Operation]:
        recent = list(reversed(self._views.state.operations.values()))
        if len(recent) < params.limit:
            known = {op.id for op in recent}
            try:
                older = await self._daemon.memory.operations(params.limit)
            except PortError:
                older = []
            recent += [op for op in older if op.id not in known]
        return [self._views.operation(op) for op in recent[: params.limit]]

    async def operation(self, _session: Session, params: m.IdParams) -> t.Operation:
        return self._views.operation(await self._find(params.id))

    async def wait_operation(self, _session: Session, params: m.IdParams) -> t.Operation:
        op = await self._find(params.id)
        return self._views.operation(await self._loop.ended(op.id) or op)

    async def cancel(self, session: Session, params: m.IdParams) -> t.Operation:
        def make(number: int) -> ev.Request:
            return ev.CancelRequested(at=self._loop.now(), request=number, actor=session.actor, operation=params.id)

        return self._shown(_accepted(await self._loop.request(make)))

    async def _find(self, wanted: str) -> Operation:
        operations = self._views.state.operations
        if wanted in operations:
            return operations[wanted]
        for op in await self._daemon.memory.operations(1000):
            if op.id == wanted:
                return op
        raise not_found("operation", wanted, list(operations)[-10:])

    def _shown(self, operation: str) -> t.Operation:
        return self._views.operation(self._views.state.operations[operation])

    async def _finished(self, operation: str) -> t.Operation:
        """The operation once it has ended well; else the error that says how it ended."""
        op = await self._loop.ended(operation)
        if op is None:
            raise not_found("operation", operation, [])
        shown = self._views.operation(op)
        if op.state is OperationState.SUCCEEDED:
            return shown
        error = shown.error or t.OperationError(code="failed", message=f"operation {op.id} {op.state}")
        code = "conflict" if op.state is OperationState.CANCELLED else "failed"
        end = {"rolled_back": " (rolled back)", "cancelled": " (cancelled)"}.get(op.state.value, "")
        raise RpcError(
            code,
            f"{op.kind} {op.target} did not succeed{end}: {error.message}",
            hint=error.hint,
            details={"operation": msgspec.to_builtins(shown), "code": error.code},
        )

    # -- events -----------------------------------------------------------------------------------------------

    def subscribe(self, session: Session, params: m.SubscribeParams) -> Reply:
        subscription = self._daemon.bus.subscribe(params.topics, after=params.after)
        result = t.Subscription(cursor=self._daemon.bus.cursor, status=self._views.status())

        async def pump() -> None:
            last = result.cursor if params.after is None else params.after
            try:
                while (happening := await subscription.get()) is not None:
                    await session.drained()
                    last = happening.cursor
                    session.notify("event", self._event(happening))
                final = t.Event(cursor=last, at=self._views.time(self._loop.now()), topic="daemon", data=_DROPPED)
                session.notify("event", final)
            finally:
                subscription.close()

        return Reply(result, then=pump)

    def _event(self, happening: Happening) -> t.Event:
        return t.Event(
            cursor=happening.cursor,
            at=self._views.time(happening.at),
            topic=happening.topic,  # type: ignore[arg-type]
            data=happening.data,
        )


_DROPPED = {"dropped": True, "hint": "this subscriber was too slow; subscribe again with `after` set to this cursor"}


async def _progress(session: Session, operation: str, subscription: Subscription) -> None:
    """Send each step change of this operation until it has ended."""
    while (happening := await subscription.get()) is not None:
        data = happening.data
        if data.get("operation") != operation:
            continue
        if "step" in data:
            await session.drained()
            session.notify("progress", {key: data[key] for key in ("operation", "state", "step")})
        elif data["state"] in t.ENDED:
            return


def _accepted(reply: fx.Reply) -> str:
    """The operation's id, or the refusal as an error."""
    refusal = reply.refusal
    if refusal is None:
        assert reply.operation is not None
        return reply.operation
    details: dict[str, object] = {}
    if refusal.reasons:
        details["reasons"] = [msgspec.to_builtins(reason(r)) for r in refusal.reasons]
    if refusal.alternatives:
        details["alternatives"] = [msgspec.to_builtins(alternative(a)) for a in refusal.alternatives]
    raise RpcError(
        refusal.code, refusal.message, hint=refusal.hint, details=details, retry_after_s=refusal.retry_after_s
    )
