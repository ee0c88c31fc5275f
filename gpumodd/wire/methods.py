"""The methods, declared once: name, parameters, result, who may call them, one line of summary.

The server validates with this table, `docs/rpc.md` is generated from it and clients read it. A method that is
not here answers -32601 and is absent from `capabilities`.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from gpumodd.wire import types as t
from gpumodd.wire.errors import RpcError

PROTOCOL = 1

# Looked-up ids stay unjudged: an unknown one is `not_found`, with the existing ids. New ones become file
# names; `\Z` and not `$`, which would let a trailing newline through.
Ref = Annotated[str, Meta(min_length=1, max_length=256)]
NewId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}\Z")]
Text = Annotated[str, Meta(max_length=1000)]


class Access(IntEnum):
    """What a connection may do; a higher one includes the lower."""

    READ = 1
    OPERATE = 2
    ADMIN = 3


Role = Literal["read", "operate", "admin"]


class _Params(Struct, kw_only=True, forbid_unknown_fields=True):
    """By name or, in the order of the fields, by position."""


class NoParams(_Params, kw_only=True):
    pass


class HelloParams(_Params, kw_only=True):
    client: Text = ""
    protocol: int | None = None
    role: Role | None = None
    actor: Text = ""


class ReloadParams(_Params, kw_only=True):
    restart_changed: bool = False


class IdParams(_Params, kw_only=True):
    id: Ref


class ServiceActionParams(_Params, kw_only=True):
    id: Ref
    wait: bool = False
    progress: bool = False
    force: bool = False


class LogsParams(_Params, kw_only=True):
    id: Ref
    lines: Annotated[int, Meta(ge=1, le=5000)] = 50


class ModeCreateParams(_Params, kw_only=True):
    id: NewId
    name: Text = ""
    description: Text = ""
    services: Annotated[list[Ref], Meta(max_length=1000)]


class SimulateParams(_Params, kw_only=True):
    """Either a mode's `id` or a list of `services`; `add` and `remove` change that set, `context` its services."""

    id: Ref | None = None
    services: Annotated[list[Ref], Meta(max_length=1000)] | None = None
    add: Annotated[list[Ref], Meta(max_length=1000)] = []
    remove: Annotated[list[Ref], Meta(max_length=1000)] = []
    context: Annotated[dict[Ref, Annotated[int, Meta(ge=1, le=1 << 31)]], Meta(max_length=1000)] = {}

    def __post_init__(self) -> None:
        if (self.id is None) == (self.services is None):
            raise ValueError("give either `id` or `services`")


class SwitchParams(_Params, kw_only=True):
    id: Ref
    wait: bool = False
    progress: bool = False
    force: bool = False
    quiesce: bool = True
    on_failure: Literal["rollback", "keep", "stop"] | None = None


class OperationListParams(_Params, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class SubscribeParams(_Params, kw_only=True):
    """`after` resumes behind a cursor of an earlier subscription."""

    topics: Annotated[list[t.Topic], Meta(max_length=16)] | None = None
    after: Annotated[int, Meta(ge=0)] | None = None


class ModelInspectParams(_Params, kw_only=True):
    """As llama-server has it: without `context` what the model was trained with, without `parallel` four slots that
    share one cache."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    context: Annotated[int, Meta(ge=1, le=1 << 30)] | None = None
    parallel: Annotated[int, Meta(ge=1, le=256)] | None = None
    cache_type_k: Text = "f16"
    cache_type_v: Text = "f16"


class Method(Struct, kw_only=True, frozen=True, eq=False):
    """One method of the API."""

    name: str
    params: type[_Params] = NoParams
    result: Any
    access: Access
    summary: str
    waits: bool = False  # its reply may come late

    def decode_params(self, raw: Raw) -> Any:
        """The params object of a request, or RpcError(`invalid_params`). An empty `raw` means: not given."""
        data = bytes(raw) or b"{}"
        try:
            if data[0] == ord("["):
                data = self._by_name(data)
            return _decoder(self.params).decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RpcError(
                "invalid_params",
                f"cannot call {self.name}: {_readable(error)}",
                hint=self.usage(),
            ) from None

    def usage(self) -> str:
        """The accepted parameters in one line."""
        fields = msgspec.structs.fields(self.params)
        if not fields:
            return f"{self.name} takes no parameters"
        names = (f.name if f.required else f"{f.name}?" for f in fields)
        return f"{self.name} takes: {', '.join(names)}"

    def _by_name(self, data: bytes) -> bytes:
        values = msgspec.json.decode(data, type=list[Raw])
        names = self.params.__struct_fields__
        if len(values) > len(names):
            raise msgspec.ValidationError(f"{len(values)} values for {len(names)} parameters")
        return msgspec.json.encode(dict(zip(names, values, strict=False)))


_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


def _decoder(params: type) -> msgspec.json.Decoder[Any]:
    # Built on first use: a client that calls one method does not pay for all of them.
    decoder = _decoders.get(params)
    if decoder is None:
        decoder = _decoders[params] = msgspec.json.Decoder(params)
    return decoder


def _readable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the parameters are nested too deeply"
    text = str(error)
    return text[:1].lower() + text[1:]


def _table(*methods: Method) -> Mapping[str, Method]:
    return MappingProxyType({method.name: method for method in methods})


READ, OPERATE, ADMIN = Access.READ, Access.OPERATE, Access.ADMIN

METHODS: Mapping[str, Method] = _table(
    Method(
        name="daemon.hello",
        params=HelloParams,
        result=t.Hello,
        access=READ,
        summary="Introduces the client; a `role` can only lower the connection's rights.",
    ),
    Method(
        name="daemon.reload",
        params=ReloadParams,
        result=t.Reload,
        access=ADMIN,
        summary="Reads the configuration again; a bad file leaves its last good state.",
    ),
    Method(
        name="daemon.shutdown",
        result=t.Shutdown,
        access=ADMIN,
        summary="Ends the daemon; services keep running (process backend: they end).",
    ),
    Method(name="status.get", result=t.Status, access=READ, summary="The whole state in one answer."),
    Method(name="device.list", result=list[t.Device], access=READ, summary="The devices and who uses them."),
    Method(name="service.list", result=list[t.Service], access=READ, summary="All services."),
    Method(
        name="service.get",
        params=IdParams,
        result=t.Service,
        access=READ,
        summary="One service, by id or alias.",
    ),
    Method(
        name="service.start",
        params=ServiceActionParams,
        result=t.Operation,
        access=OPERATE,
        summary="Starts a service beside the mode.",
        waits=True,
    ),
    Method(
        name="service.stop",
        params=ServiceActionParams,
        result=t.Operation,
        access=OPERATE,
        summary="Stops a service and keeps it stopped until the next switch.",
        waits=True,
    ),
    Method(
        name="service.restart",
        params=ServiceActionParams,
        result=t.Operation,
        access=OPERATE,
        summary="Stops a service, waits for its memory and starts it again.",
        waits=True,
    ),
    Method(
        name="service.logs",
        params=LogsParams,
        result=t.Logs,
        access=READ,
        summary="The last lines a service wrote.",
        waits=True,
    ),
    Method(
        name="service.explain",
        params=IdParams,
        result=t.Explanation,
        access=READ,
        summary="Why a service is as it is, and what would change that.",
    ),
    Method(name="mode.list", result=list[t.Mode], access=READ, summary="All modes, `blank` included."),
    Method(name="mode.get", params=IdParams, result=t.Mode, access=READ, summary="One mode."),
    Method(
        name="mode.create",
        params=ModeCreateParams,
        result=t.Mode,
        access=ADMIN,
        summary="Writes a mode's YAML file.",
    ),
    Method(
        name="mode.delete",
        params=IdParams,
        result=t.Mode,
        access=ADMIN,
        summary="Removes a mode's YAML file.",
    ),
    Method(
        name="mode.simulate",
        params=SimulateParams,
        result=t.Simulation,
        access=READ,
        summary="What a switch would do and whether it fits; touches nothing.",
        waits=True,
    ),
    Method(
        name="mode.switch",
        params=SwitchParams,
        result=t.Operation,
        access=OPERATE,
        summary="Moves the machine to a mode.",
        waits=True,
    ),
    Method(
        name="operation.list",
        params=OperationListParams,
        result=list[t.Operation],
        access=READ,
        summary="The newest operations, newest first.",
    ),
    Method(name="operation.get", params=IdParams, result=t.Operation, access=READ, summary="One operation."),
    Method(
        name="operation.wait",
        params=IdParams,
        result=t.Operation,
        access=READ,
        summary="Answers when the operation has ended, however it ended.",
        waits=True,
    ),
    Method(
        name="operation.cancel",
        params=IdParams,
        result=t.Operation,
        access=OPERATE,
        summary="Cancels a running operation.",
        waits=True,
    ),
    Method(
        name="events.subscribe",
        params=SubscribeParams,
        result=t.Subscription,
        access=READ,
        summary="Sends the notification `event` from now on, or from behind a cursor.",
    ),
    Method(
        name="model.inspect",
        params=ModelInspectParams,
        result=t.ModelInspection,
        access=READ,
        summary="What a GGUF file holds, and the memory it would take to run it.",
        waits=True,
    ),
    Method(
        name="config.check",
        result=t.ConfigCheck,
        access=READ,
        summary="Every mistake in the configuration on disk.",
        waits=True,
    ),
)

NOTIFICATIONS: Mapping[str, type[Struct]] = MappingProxyType({"event": t.Event, "progress": t.Progress})
