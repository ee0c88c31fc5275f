"""What may stand in the YAML files: one pydantic model per file kind, whose fields are the reference.

Owns shapes, bounds and defaults; `docs/configuration.md` and the JSON Schemas are made from here. Values are
taken as YAML gives them: "8000" is no number and 1 is not true. What spans files is `crosscheck`'s business.
"""

import re
from ipaddress import IPv6Address
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from gpumodd.config.errors import shown

ID = r"^[a-z0-9][a-z0-9_-]{0,63}$"
MAX_MIB = 16 * 1024 * 1024  # 16 TiB: more is a mistyped unit
MAX_DEVICES = 64
MAX_ARGUMENT = 128 * 1024 - 1  # bytes; the kernel's MAX_ARG_STRLEN less its end


_UUID = "[A-Za-z][A-Za-z0-9._/-]{0,127}"
_DEVICE = re.compile(f"0|[1-9][0-9]{{0,2}}|{_UUID}", re.ASCII)


def _devices(value: Any) -> tuple[str, ...] | None:
    """`auto`, or a list of indexes and UUIDs; indexes become text."""
    if value == "auto":
        return None
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("devices", "auto is needed, or a list such as [0] or [GPU-4f…]")
    chosen = []
    for item in value:
        index = isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1024
        uuid = isinstance(item, str) and re.fullmatch(_UUID, item)
        if not index and not uuid:
            raise PydanticCustomError("devices", "a device is an index such as 0, or a UUID such as GPU-4f…")
        chosen.append(str(item))
    if len(set(chosen)) != len(chosen):
        raise PydanticCustomError("devices", "a device is named twice")
    return tuple(chosen)


def _vram_limit(value: Any) -> int | str | dict[str, int | str] | None:
    """MiB, a share, or either of them per device; indexes become text."""
    if value is None or _is_limit(value):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, dict):
        needed = 'null, a number of MiB, a share such as "80%", or one of them for each device is needed'
        raise PydanticCustomError("vram_limit", needed)
    if not 0 < len(value) <= MAX_DEVICES:
        raise PydanticCustomError("vram_limit", "at least one device is needed, or null")
    for name, limit in value.items():
        if not _DEVICE.fullmatch(name):
            needed = "{name} is no device: an index such as 0 is needed, or a UUID such as GPU-4f…"
            raise PydanticCustomError("vram_limit", needed, {"name": shown(name)})
        if not _is_limit(limit):
            needed = 'a number of MiB, or a share such as "80%", is needed for {name}'
            raise PydanticCustomError("vram_limit", needed, {"name": name})
    return value


def _is_limit(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and 0 < value <= MAX_MIB
    share = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%", value) if isinstance(value, str) else None
    return share is not None and 0 < float(share[1]) <= 100


def _one_word(value: Any) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "text is needed")
    if not value or value.startswith("-") or not value.isprintable() or " " in value or len(value) > 253:
        raise PydanticCustomError("one_word", "one printable word is needed")
    return value


def _host(value: Any) -> str:
    host = _one_word(value)
    if re.fullmatch(r"[A-Za-z0-9._-]+", host):
        return host
    try:
        return str(IPv6Address(host))
    except ValueError:
        needed = "an address or a name is needed, such as 127.0.0.1, ::1 or localhost"
        raise PydanticCustomError("host", needed) from None


def _argument(value: Any) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "text is needed")
    if len(value.encode()) > MAX_ARGUMENT:
        raise PydanticCustomError("argument_too_long", "Linux passes at most 128 KiB in one argument or variable")
    return value


_TEXT = WithJsonSchema({"type": "string"})
Id = Annotated[str, StringConstraints(pattern=ID)]
Word = Annotated[str, PlainValidator(_one_word), _TEXT]
Host = Annotated[str, PlainValidator(_host), _TEXT]
Argument = Annotated[str, PlainValidator(_argument), WithJsonSchema({"type": ["string", "number", "boolean"]})]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")]
UrlPath = Annotated[str, StringConstraints(pattern=r"^/[!-~]{0,1023}$")]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
Mib = Annotated[int, Field(ge=0, le=MAX_MIB)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Pause = Annotated[float, Field(ge=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1000)]
Program = Annotated[tuple[Argument, ...], Field(min_length=1, max_length=64)]
_LIMIT: list[dict[str, Any]] = [{"type": "integer", "minimum": 1}, {"type": "string"}]
VramLimit = Annotated[
    int | str | dict[str, int | str] | None,
    PlainValidator(_vram_limit),
    WithJsonSchema(
        {"anyOf": [*_LIMIT, {"type": "object", "additionalProperties": {"anyOf": _LIMIT}}, {"type": "null"}]}
    ),
]
DeviceChoice = Annotated[
    tuple[str, ...] | None,
    PlainValidator(_devices),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "array", "items": {"type": ["integer", "string"]}}]}),
]


class Section(BaseModel):
    """A mapping with known keys only."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# ---- gpumodd.yaml


class DevicesSection(Section):
    """Where device memory is read."""

    backend: Literal["auto", "nvml", "amdgpu", "simulated", "none"] = Field(
        default="auto", description="what reads the devices; `auto` without a driver is `none`, with a problem"
    )
    table: FilePath | None = Field(
        default=None, description="the device table of `simulated`; one in the state directory when absent"
    )


class UnitsSection(Section):
    """What runs the services."""

    backend: Literal["auto", "systemd", "process"] = Field(
        default="auto", description="decided at the first start, kept in the state file, and never changed by itself"
    )


class VllmSection(Section):
    """How vLLM is started."""

    command: Program = Field(default=("vllm", "serve"), description="program and first arguments, found on PATH")


class LlamaCppSection(Section):
    """How llama.cpp is started."""

    command: Program = Field(default=("llama-server",), description="program and first arguments, found on PATH")


class FastApiSection(Section):
    """How an ASGI application is served."""

    command: Program = Field(default=("uvicorn",), description="program and first arguments, found on PATH")


class DockerSection(Section):
    """Where the container daemon listens."""

    socket: FilePath = Field(default="auto", description="path of the daemon's socket")


class PluginSection(BaseModel):
    """A driver from another package: `command` as above, the rest is its own."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    command: Annotated[tuple[Argument, ...], Field(max_length=64)] = ()


class DriversSection(Section):
    """Where the runtimes' programs are."""

    vllm: VllmSection = VllmSection()
    llamacpp: LlamaCppSection = LlamaCppSection()
    fastapi: FastApiSection = FastApiSection()
    docker: DockerSection = DockerSection()


class PolicySection(Section):
    """What the daemon may do, and how careful it is."""

    vram_reserve_mib: Mib = Field(default=512, description="per device, never given to services")
    vram_limit: VramLimit = Field(
        default=None,
        description=(
            'MiB or `"80%"` of the device: what services may hold together on each; or per device, by index or UUID:'
            ' `{0: "80%", GPU-4f…: 12000}`, where those not named have no limit'
        ),
    )
    ram_reserve_mib: Mib = Field(default=2048, description="host memory (MemAvailable) that must remain")
    overcommit: Literal["refuse", "warn"] = Field(
        default="refuse", description="what to do with a start that does not fit"
    )
    on_failure: Literal["rollback", "keep", "stop"] = Field(
        default="rollback", description="what a switch does when an incoming service fails"
    )
    drift: Literal["heal", "report"] = Field(
        default="heal", description="after a crash; a manual stop is always reported and never fought"
    )
    quiesce_s: Pause = Field(default=0.0, description="extra pause after a verified release")
    release_timeout_s: Seconds = Field(default=60.0, description="how long memory may take to come back after a stop")
    restore_mode_at_start: bool = Field(default=True, description="go on with the last mode when the daemon starts")
    placement: Literal["manual", "vram_based", "latency_optimized", "isolation_first", "balanced"] = Field(
        default="vram_based", description="how services with `devices: auto` are given devices"
    )


class ConfigSection(Section):
    """How the daemon treats this directory."""

    watch: bool = Field(
        default=False, description="take changes over as they are saved; else `gpumodctl reload` or SIGHUP does it"
    )


class Settings(Section):
    """The daemon's own settings; every key is optional."""

    devices: DevicesSection = DevicesSection()
    units: UnitsSection = UnitsSection()
    drivers: DriversSection = DriversSection()
    policy: PolicySection = PolicySection()
    config: ConfigSection = ConfigSection()


# ---- services/*.yaml


class Health(Section):
    """How a ready service is watched."""

    path: UrlPath = Field(default="/health", description="asked with GET on the service's port; 2xx is healthy")
    interval_s: Seconds = Field(default=15.0, description="seconds between two probes of a ready service")
    timeout_s: Seconds = Field(default=5.0, description="how long one answer may take")
    failures: Count = Field(default=3, description="bad answers in a row until it counts as degraded")
    recoveries: Count = Field(default=2, description="good answers in a row until it is ready again")


class Idle(Section):
    """What happens to a service nobody uses."""

    after_s: Seconds = Field(description="seconds without use")
    action: Literal["sleep", "stop"] = Field(default="sleep", description="what is done then")


class Service(Section):
    """One managed model server."""

    id: Id = Field(description="the file's name without `.yaml`")
    name: Annotated[str, Field(max_length=200)] = Field(default="", description="for people; the id when absent")
    driver: Word = Field(description="`vllm`, `llamacpp`, `fastapi`, `exec`, or the name of an installed plugin")
    model: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="id or path; what it means is the driver's business"
    )
    port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        default=None, description="without a port, ready means that the process is active"
    )
    host: Host = Field(default="127.0.0.1", description="address the server listens on")
    vram_mib: Mib | None = Field(
        default=None,
        description="device memory it needs; `vram_mb` is an alias. Omitted: estimated from the model's file, and "
        "where that cannot be done a start is refused",
    )
    ram_mib: Mib | None = Field(default=None, description="host memory it needs")
    context: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(
        default=None, description="context length in tokens, passed on in the driver's own flag"
    )
    depends_on: tuple[Id, ...] = Field(default=(), description="services that must be ready first")
    devices: DeviceChoice = Field(default=None, description="`auto`, `[0]` or `[GPU-uuid, …]`")
    device_count: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="how many devices; as many as `devices` lists when that is a list"
    )
    sleep: Literal["none", "l1", "l2", "router", "stop", "custom"] = Field(
        default="none", description="how it can sleep"
    )
    on_leave: Literal["stop", "sleep"] = Field(default="stop", description="what a switch does with it when it leaves")
    health: Health = Field(default=Health(), description="how it is watched")
    startup_timeout_s: Seconds = Field(default=300.0, description="how long it may take to get ready")
    stop_timeout_s: Seconds = Field(default=30.0, description="how long it may take to end before it is killed")
    idle: Idle | None = Field(default=None, description="what happens when nobody uses it")
    priority: Annotated[int, Field(ge=0, le=1000)] = Field(default=50, description="the higher, the later it gives way")
    pinned: bool = Field(default=False, description="stays through every switch but `blank`")
    aliases: tuple[Word, ...] = Field(default=(), description="other names it is known by")
    env: dict[EnvName, Argument] = Field(default={}, description="environment; wins over everything else")
    args: tuple[Argument, ...] = Field(default=(), description="appended to the command line")
    options: dict[str, Any] = Field(default={}, description="the driver's own keys")


# ---- modes/*.yaml


class Mode(Section):
    """A named set of services."""

    id: Id = Field(description="the file's name without `.yaml`")
    name: Annotated[str, Field(max_length=200)] = Field(default="", description="for people; the id when absent")
    description: Annotated[str, Field(max_length=2000)] = Field(default="", description="what it is for")
    services: tuple[Id, ...] = Field(default=(), description="ids of its services")


FILES: dict[str, type[Section]] = {"gpumodd": Settings, "service": Service, "mode": Mode}


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of one file kind: `gpumodd`, `service` or `mode`."""
    schema = FILES[kind].model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    if kind == "service":
        schema["properties"]["vram_mb"] = {**schema["properties"]["vram_mib"], "title": "Vram Mb"}
    if kind == "gpumodd":
        schema["$defs"]["DriversSection"]["additionalProperties"] = PluginSection.model_json_schema()
    return schema
