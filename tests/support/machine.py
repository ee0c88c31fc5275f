"""A machine that exists on paper: canned answers for every method gpumodctl calls."""

import asyncio
from typing import Any

from gpumodd.api.connection import Reply, Session
from gpumodd.wire import types as t
from gpumodd.wire.errors import RpcError

SERVICES = [
    t.Service(
        id="vllm-embedding",
        name="Embedding",
        driver="vllm",
        model="intfloat/e5",
        phase="ready",
        aliases=["embed"],
        mode_member=True,
        unit="gpumod-vllm-embedding.service",
        pid=4712,
        port=8001,
        devices=["GPU-0000"],
        vram_mib=5000,
        vram_source="declared",
        vram_observed_mib=4900,
        load_s=12.25,
        stop_s=0.5,
        release_s=1.125,
        since="2026-01-02T03:04:05Z",
    ),
    t.Service(
        id="vllm-embedding-code",
        name="Code embedding",
        driver="vllm",
        model="intfloat/code",
        phase="loading",
        mode_member=True,
        unit="gpumod-vllm-embedding-code.service",
        port=8002,
        devices=["GPU-0000"],
        vram_mib=2500,
        vram_source="declared",
        problem=t.Problem(code="port_conflict", message="cannot tell who answers on port 8002", hint="stop nginx"),
    ),
    t.Service(id="whisper", name="Ohr 耳", driver="fastapi", model="asr:app", phase="stopped", vram_mib=1500),
]
DEVICE = t.Device(
    uuid="GPU-0000",
    index=0,
    name="NVIDIA GeForce RTX 4090",
    total_mib=24564,
    used_mib=5230,
    foreign_mib=330,
    committed_mib=7500,
    free_mib=19334,
    sampled_at="2026-01-02T03:04:05Z",
    reserve_mib=512,
    limit_mib=20000,
    available_mib=12500,
    unlisted_mib=130,
    holdings=[
        t.Holding(service="vllm-embedding", used_mib=4900, committed_mib=4900),
        t.Holding(service="vllm-embedding-code", used_mib=200, committed_mib=2500),
        t.Holding(service="whisper", used_mib=0, committed_mib=100, releasing_mib=100),
    ],
    temperature_c=95,
    unhealthy="it is close to switching off at 95 °C\x1b[2J",
    processes=[
        t.DeviceProcess(pid=4712, used_mib=4900, service="vllm-embedding", name="vllm"),
        t.DeviceProcess(pid=1, used_mib=200, name="X\x1b[31morg"),
        t.DeviceProcess(pid=12, name="silent"),
    ],
)
MODES = [
    t.Mode(id="blank", name="Blank", description="everything stopped", services=[], vram_mib=0, active=False),
    t.Mode(
        id="rag",
        name="RAG",
        description="dual embeddings for retrieval over a very long description that no table has room for at all",
        services=["vllm-embedding", "vllm-embedding-code"],
        vram_mib=7500,
        active=True,
    ),
]
STEPS = [
    t.Step(id="1", verb="stop", service="whisper", state="done", why="it is not in rag"),
    t.Step(id="2", verb="start", service="vllm-embedding", after=["1"], state="done", why="rag wants it"),
    t.Step(id="3", verb="wait_ready", service="vllm-embedding", after=["2"], state="done"),
]
STATUS = t.Status(
    mode="rag",
    desired_mode="rag",
    state="degraded",
    devices=[DEVICE],
    services=SERVICES,
    problems=[t.Problem(code="port_conflict", service="vllm-embedding-code", message="cannot tell", hint="stop nginx")],
)


def switched(state: t.OperationState = "succeeded", **more: Any) -> t.Operation:
    return t.Operation(
        id="7",
        kind="switch",
        target="rag",
        state=state,
        started=["vllm-embedding"],
        stopped=["whisper"],
        kept=["vllm-embedding-code"],
        steps=STEPS,
        created_at="2026-01-02T03:04:05Z",
        finished_at="2026-01-02T03:04:08Z",
        seconds=3.2,
        **more,
    )


FAILURE = t.OperationError(
    code="health_timeout",
    message="cannot start vllm-embedding: it was not healthy within 300 s",
    hint="see its log",
    log=["loading weights", "\x1b[31mCUDA out of memory\x1b[0m\x07"],
)
BACK = t.WayBack(began_at="2026-01-02T03:04:07Z", started=["whisper"], stopped=["vllm-embedding"])
ROLLED_BACK = switched("rolled_back", error=FAILURE, back=BACK, why="asked by alice", forced=True)
ROLLED_BACK.passed = [t.Reason(code="vram_unknown", message="cannot start vllm-embedding: nobody knows")]
ROLLED_BACK.steps = [
    t.Step(
        id="8.1",
        verb="stop",
        service="whisper",
        state="done",
        why="not part of what is wanted",
        started_at="2026-01-02T03:04:05Z",
        finished_at="2026-01-02T03:04:05.5Z",
        seconds=0.5,
        critical=True,
    ),
    t.Step(
        id="8.2",
        verb="start",
        service="vllm-embedding",
        after=["8.1"],
        gate="8.1",
        state="failed",
        started_at="2026-01-02T03:04:05.5Z",
        finished_at="2026-01-02T03:04:07Z",
        seconds=1.5,
        error=FAILURE,
        critical=True,
    ),
    t.Step(id="8.3", verb="wait_ready", service="vllm-embedding", after=["8.2"], state="pending", why="health"),
    t.Step(
        id="8.4",
        verb="start",
        service="whisper",
        state="done",
        back=True,
        started_at="2026-01-02T03:04:07Z",
        finished_at="2026-01-02T03:04:08.2Z",
        seconds=1.2,
        why="wanted, 1500 MiB on device 0",
    ),
]
SIMULATION = t.Simulation(
    fits=True,
    mode="rag",
    devices=[t.SimulationDevice(uuid="GPU-0000", total_mib=24564, needed_mib=7500, headroom_mib=17064)],
    services=[
        t.SimulationService(id="vllm-embedding", name="Embedding", driver="vllm", vram_mib=5000),
        t.SimulationService(id="vllm-embedding-code", name="Code embedding", driver="vllm", vram_mib=2500),
    ],
    steps=STEPS,
)


def not_found(kind: str, id: str) -> RpcError:
    return RpcError("not_found", f"cannot find the {kind} {id!r}", hint="there are: blank, rag")


def refused(_session: Session, _params: Any) -> Any:
    raise RpcError(
        "refused",
        "cannot switch to big: 30000 MiB are needed, 24052 MiB are there",
        hint="sleep something",
        details={
            "reasons": [
                {"code": "vram_insufficient", "message": "needs 30000 MiB of 24052 MiB", "hint": "smaller context"},
                {"code": "port_conflict", "message": "port 8001 is taken by pid 9 (nginx)"},
            ],
            "alternatives": [as_dict(alternative) for alternative in ALTERNATIVES],
        },
    )


def failed(operation: t.Operation) -> RpcError:
    assert operation.error is not None
    return RpcError(
        "failed", operation.error.message, hint=operation.error.hint, details={"operation": as_dict(operation)}
    )


def as_dict(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


async def switch(session: Session, params: Any) -> Any:
    """What becomes of a switch depends on the mode's name."""
    await asyncio.sleep(0)
    match params.id:
        case "rag":
            if params.progress:
                for step in STEPS:
                    session.notify("progress", t.Progress(operation="7", state="running", step=step))
            if not params.wait:
                return switched("running")
            return switched()
        case "big":
            return refused(session, params)
        case "broken":
            raise failed(switched("failed", error=FAILURE))
        case "fragile":
            steps = [t.Step(id="1", verb="start", service="vllm-embedding", state="failed", error=FAILURE)]
            operation = switched("rolled_back", error=FAILURE, back=BACK)
            operation.steps = steps
            raise failed(operation)
        case "superseded":
            raise RpcError("conflict", "cannot go on: superseded by a switch to blank")
        case "slow":
            if params.progress:
                running = t.Step(id="1", verb="start", service="vllm-embedding", state="running")
                session.notify("progress", t.Progress(operation="7", state="running", step=running))
            await asyncio.Event().wait()
    raise not_found("mode", params.id)


async def forever(_session: Session, _params: Any) -> Any:
    await asyncio.Event().wait()


def get_mode(_session: Session, params: Any) -> Any:
    for mode in MODES:
        if mode.id == params.id:
            return mode
    raise not_found("mode", params.id)


def get_service(_session: Session, params: Any) -> Any:
    for service in SERVICES:
        if params.id in (service.id, *service.aliases):
            return service
    raise not_found("service", params.id)


ALTERNATIVES = [
    t.Alternative(message="run giant with a context of 4096", context={"giant": 4096}, cost_s=0.0),
    t.Alternative(message="stop whisper (pinned)", stop=["whisper"], cost_s=75.0),
    t.Alternative(message="leave out giant\x1b[2J", remove=["giant"]),
]


def simulate(_session: Session, params: Any) -> Any:
    if params.services is not None:
        services = [t.SimulationService(id=id, context=params.context.get(id)) for id in params.services]
        return t.Simulation(fits=True, services=services, notes=[f"context: {params.context}"])
    if params.id == "big":
        return t.Simulation(
            fits=False,
            devices=[
                t.SimulationDevice(
                    uuid="GPU-0000",
                    index=0,
                    name="RTX 4090",
                    total_mib=24564,
                    needed_mib=30000,
                    headroom_mib=-6278,
                    reserve_mib=512,
                    foreign_mib=330,
                ),
                t.SimulationDevice(
                    uuid="GPU-1111", index=1, name="RTX A400", total_mib=4094, needed_mib=0, headroom_mib=4094
                ),
            ],
            services=[t.SimulationService(id="giant", name="Giant", driver="vllm", vram_mib=30000)],
            blocked=[t.Reason(code="vram_insufficient", message="giant needs 30000 MiB", hint="quantise it")],
            alternatives=ALTERNATIVES,
            notes=["giant: its memory is declared"],
        )
    get_mode(_session, params)
    return SIMULATION


OPERATION = {"operation": "7", "kind": "switch", "target": "rag"}
DEVICE_LOST = {"device": "GPU-0000", "index": 0, "name": "RTX", "code": "device_lost", "message": "it cannot be used"}
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("service", {"service": "whisper", "phase": "ready\x1b[2J", "cursor": 1}),  # of a later version
    ("service", {"service": "whisper", "from": "loading", "to": "ready\x1b[2J"}),
    ("operation", OPERATION | {"state": "running"}),
    ("operation", OPERATION | {"state": "running", "step": as_dict(ROLLED_BACK.steps[0])}),
    ("operation", OPERATION | {"state": "running", "step": as_dict(ROLLED_BACK.steps[1])}),
    ("operation", OPERATION | {"state": "running", "turned_back": True, "error": {"message": "it broke"}}),
    ("operation", OPERATION | {"state": "rolled_back", "error": {"code": "x", "message": "it broke"}}),
    ("mode", {"mode": "rag", "desired_mode": "rag", "was": {"mode": "blank", "desired_mode": "rag"}}),
    ("mode", {"mode": "rag", "desired_mode": "chat", "was": {}}),
    ("device", DEVICE_LOST | {"state": "lost"}),
    ("device", DEVICE_LOST | {"device": None, "index": None, "state": "problem"}),
    ("problem", {"raised": True, "problem": {"code": "gave_up", "message": "a is left alone"}}),
    ("problem", {"raised": False, "problem": {"code": "gave_up", "message": "a is left alone"}}),
    ("config", {"added": ["a"], "changed": [], "removed": [], "unchanged": [], "errors": [{}]}),
    ("daemon", {"dropped": True, "hint": "too slow"}),
]


def subscribe(session: Session, _params: Any) -> Any:
    async def pump() -> None:
        for cursor, (topic, data) in enumerate(EVENTS, 1):
            await session.drained()
            session.notify("event", {"cursor": cursor, "at": "2026-01-02T03:04:05Z", "topic": topic, "data": data})
        await session.closed.wait()

    return Reply(t.Subscription(cursor=0, status=STATUS), then=pump)


def logs(session: Session, params: Any) -> Any:
    get_service(session, params)
    lines = [f"line {n}" for n in range(100)] + ["\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m\rover \u202eevil"]
    return t.Logs(lines=lines[-params.lines :])


def operation(_session: Session, params: Any) -> Any:
    match params.id:
        case "7":
            return switched()
        case "8":
            return ROLLED_BACK
        case "9":
            return switched("failed", error=FAILURE)
    raise not_found("operation", params.id)


HANDLERS: dict[str, Any] = {
    "status.get": lambda _s, _p: STATUS,
    "device.list": lambda _s, _p: [DEVICE],
    "service.list": lambda _s, _p: SERVICES,
    "service.get": get_service,
    "service.start": lambda _s, p: t.Operation(
        id="8", kind="start", target=p.id, state="succeeded", started=[p.id], seconds=61.0
    ),
    "service.stop": lambda _s, p: t.Operation(id="9", kind="stop", target=p.id, state="succeeded", stopped=[p.id]),
    "service.restart": refused,
    "service.logs": logs,
    "service.explain": lambda _s, p: t.Explanation(
        id=p.id,
        phase="loading",
        why="its unit is active and its port does not answer yet",
        would_change=["an answer from port 8002"],
        story=[t.StoryEntry(at="2026-01-02T03:04:05Z", text="started", cause="switch to rag")],
    ),
    "mode.list": lambda _s, _p: MODES,
    "mode.get": get_mode,
    "mode.create": lambda _s, p: t.Mode(
        id=p.id, name=p.name, description=p.description, services=p.services, vram_mib=None, active=False
    ),
    "mode.delete": get_mode,
    "mode.simulate": simulate,
    "mode.switch": switch,
    "operation.list": lambda _s, _p: [switched(), switched("rolled_back")],
    "operation.get": operation,
    "operation.wait": operation,
    "operation.cancel": operation,
    "events.subscribe": subscribe,
    "daemon.reload": lambda _s, p: t.Reload(
        added=["a"],
        changed=["b"],
        unchanged=["c", "d"],
        restarted=["b"] if p.restart_changed else [],
        errors=[t.ConfigProblem(file="services/x.yaml", line=3, column=1, path="port", message="cannot read 'x'")],
    ),
    "model.inspect": lambda _s, p: t.ModelInspection(
        path=p.path,
        architecture="llama",
        quantization="Q4_K",
        context=p.context or 131072,
        trained_context=131072,
        weights_mib=4932.77,
        kv_mib=1024.0,
        compute_mib=132.02,
        overhead_mib=400.0,
        total_mib=6488.79,
        vram_mib=6208,
        layers=[t.LayerMemory(layer=0, weights_mib=131.5, kv_mib=32.0)],
    ),
    "config.check": lambda _s, _p: t.ConfigCheck(
        problems=[t.ConfigProblem(file="services/x.yaml", line=3, column=1, path="port", message="cannot read 'x'")]
    ),
}
