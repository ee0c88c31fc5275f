"""A model server without a model: `python -m gpumodd.demo.model_server [MODEL] --port P …`.

It behaves like an inference server from the outside: takes its time to load, holds memory (in the device
table instead of on a GPU), answers health checks and chats, sleeps and wakes, and goes wrong on request. The
memory goes back when the process does, by the table's rules; nothing here frees it on the way out, so kill -9
and a polite end look the same, as with a driver.

Arguments it does not know are reported and ignored, so it can stand in for any driver's program.
Standard output gets one line per event with its CLOCK_BOOTTIME second.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

from gpumodd.demo.httpd import Reply, Request, json_reply, listen, serve
from gpumodd.demo.table import Device, DeviceTable, OutOfMemory, TableError

HEALTH = ("ok", "loading", "error", "hang", "redirect", "endless")
ORPHAN_LIFE_S = 60.0  # an engine that outlives its server must not outlive the test or demo, too


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


BORN = boottime()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpumodd.demo.model_server", allow_abbrev=False)
    add = parser.add_argument
    add("--model", help="what it is called; a first argument without dashes says the same")
    add("--alias", "--served-model-name", help="what it is called in replies")
    add("--host", default="127.0.0.1")
    add("--port", type=int, help="without one it listens nowhere")
    load = parser.add_argument_group("loading and memory")
    add = load.add_argument
    add("--table", help="the device table; without it no memory is held")
    add("--vram-mib", type=int, default=0, help="in all, split over the devices of CUDA_VISIBLE_DEVICES")
    add("--load-s", type=float, default=0.0, help="how long memory grows before the first good answer")
    add("--late-listen", action="store_true", help="open the port only when loaded")
    add("--linger-ms", type=int, default=0, help="how much later than the process the memory goes")
    add("--residue-mib", type=int, default=0, help="what it still holds asleep")
    add("--sleep-s", type=float, default=0.0, help="how long falling asleep takes")
    add("--wake-s", type=float, default=0.0, help="how long waking takes")
    add("--token-s", type=float, default=0.0, help="how long each word of a reply takes")
    faults = parser.add_argument_group("going wrong")
    add = faults.add_argument
    add("--fail-at-s", type=float, help="exit that long after the start")
    add("--exit-code", type=int, default=1, help="with which status")
    add("--last-words", default="RuntimeError: told to fail", help="what goes to stderr before")
    add("--oom", action="store_true", help="ask for more memory than the device has")
    for mode in HEALTH[1:]:
        add(f"--{mode}-health", dest="health", action="store_const", const=mode, default="ok")
    add("--flap-s", type=float, help="once loaded, healthy and not for that long in turn")
    add("--ignore-sigterm", action="store_true")
    add("--term-s", type=float, default=0.0, help="how long the end takes after SIGTERM")
    add("--lie-asleep", action="store_true", help="say it sleeps and keep the memory")
    add("--engine-child", action="store_true", help="a child holds the memory and survives a killed server")
    add("--fork-away", action="store_true", help="likewise, and the child leaves the process group")
    options, rest = parser.parse_known_args(argv)
    if rest and not rest[0].startswith("-"):
        options.model = rest.pop(0)
    if rest:
        print("ignored:", *rest, file=sys.stderr)
    if options.vram_mib and not options.table:
        parser.error("--vram-mib needs --table")
    options.name = options.alias or options.model or "demo"
    return options


def say(event: str, **more: object) -> None:
    line = " ".join([f"{boottime():.3f} {event}", *(f"{key}={value}" for key, value in more.items())])
    write(1, line)


def write(fd: int, line: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it is gone; that must not end a model server
        os.write(fd, f"{line}\n".encode())


def die(code: int, last_words: str = "") -> NoReturn:
    if last_words:
        write(2, last_words)
    say("exit", code=code)
    os._exit(code)  # also from a thread, and without waiting for any


class Memory:
    """What the process holds on its devices; grows, shrinks, and dies of it as CUDA programs do."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.table = DeviceTable(options.table) if options.table else None

    def load(self) -> None:
        """Take the memory step by step over `--load-s`."""
        steps = max(1, min(20, int(self.options.load_s / 0.05)))
        for step in range(1, steps + 1):
            self.hold(self.options.vram_mib * step // steps)
            time.sleep(self.options.load_s / steps)
        if self.options.oom:
            self.hold(1 << 40)

    def hold(self, mib: int) -> None:
        if self.table is None:
            return
        try:
            devices = self._devices(self.table)
            for number, device in enumerate(devices):
                share = mib // len(devices) + (number < mib % len(devices))
                self.table.hold(device.uuid, share, linger_ms=self.options.linger_ms)
        except OutOfMemory as refusal:
            die(
                self.options.exit_code,
                f"CUDA out of memory. Tried to allocate {refusal.asked_mib} MiB. GPU {refusal.device.index} "
                f"has {refusal.device.total_mib} MiB, of which {refusal.free_mib} MiB is free.",
            )
        except TableError as error:
            die(self.options.exit_code, f"RuntimeError: CUDA error: {error}")

    def _devices(self, table: DeviceTable) -> list[Device]:
        devices = table.read().visible(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if not devices:
            die(self.options.exit_code, "RuntimeError: No CUDA GPUs are available")
        return devices


class Engine:
    """Loads in a child process, which goes on holding the memory if its server is killed."""

    def __init__(self, memory: Memory, *, away: bool) -> None:
        loaded, tell = os.pipe()
        server = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            os.close(loaded)
            if away:
                os.setsid()
            memory.load()
            os.write(tell, b"x")
            self._outlive(server)
        os.close(tell)
        self._loaded = loaded

    def wait(self) -> None:
        if not os.read(self._loaded, 1):
            die(1, "RuntimeError: Engine core initialization failed")

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    @staticmethod
    def _outlive(server: int) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while os.getppid() == server:
            time.sleep(0.05)
        time.sleep(ORPHAN_LIFE_S)
        os._exit(0)


class ModelServer:
    """The state behind the HTTP surface: loaded or not, awake or not, well or not."""

    def __init__(self, options: argparse.Namespace, memory: Memory, engine: Engine | None) -> None:
        self.options = options
        self.memory = memory
        self.engine = engine
        self.health = options.health
        self.asleep = False
        self.loaded = threading.Event()
        self.timeline: dict[str, float] = {"started": BORN}

    def mark(self, event: str, **more: object) -> None:
        self.timeline.setdefault(event, boottime())
        say(event, **more)

    def load(self) -> None:
        if self.engine:
            self.engine.wait()
        else:
            self.memory.load()
        self.loaded.set()
        self.mark("ready")

    def terminate(self, *_: object) -> None:
        self.mark("sigterm")
        if not self.options.ignore_sigterm:
            threading.Timer(self.options.term_s, self.end).start()

    def end(self) -> None:
        if self.engine:
            self.engine.end()
        die(0)

    def handle(self, request: Request) -> Reply:
        match request.method, request.path:
            case "GET", "/health":
                return self._health()
            case "GET", "/v1/models":
                model = {"id": self.options.name, "object": "model", "owned_by": "gpumodd-demo"}
                return json_reply(200, {"object": "list", "data": [model]})
            case "POST", "/v1/chat/completions":
                return self._chat(request)
            case "GET", "/is_sleeping":
                return json_reply(200, {"is_sleeping": self.asleep})
            case "POST", "/sleep":
                return self._sleep()
            case "POST", "/wake_up":
                return self._wake()
            case "GET", "/demo/timeline":
                return json_reply(200, {"pid": os.getpid(), "now": boottime(), **self.timeline})
            case "POST", "/demo/health" if request.query in HEALTH:
                self.health = request.query
                return json_reply(200, {"health": self.health})
            case "POST", "/demo/exit" if request.query.isdigit():
                die(int(request.query), self.options.last_words)
        return json_reply(404, {"error": f"no such thing: {request.method} {request.path}"})

    def _health(self) -> Reply:
        mode = self.health
        if mode == "ok" and self.options.flap_s and self.loaded.is_set():
            since = boottime() - self.timeline["ready"]
            mode = "error" if int(since / self.options.flap_s) % 2 else "ok"
        if mode == "hang":
            threading.Event().wait()
        if mode == "redirect":
            return Reply(302, headers=(("Location", "/v1/models"),))
        if mode == "endless":
            return Reply(200, endless())
        if mode == "error":
            return json_reply(500, {"status": "error"})
        if mode == "loading" or not self.loaded.is_set():
            return json_reply(503, {"status": "loading model"})
        return json_reply(200, {"status": "ok"})

    def _chat(self, request: Request) -> Reply:
        try:
            asked = json.loads(request.body)
            said = str(asked["messages"][-1]["content"])
        except (ValueError, LookupError, TypeError):
            return json_reply(400, {"error": {"message": "cannot read messages from the body", "code": 400}})
        if not self.loaded.is_set() or self.asleep:
            return json_reply(503, {"error": {"message": "asleep" if self.asleep else "loading model", "code": 503}})
        words = f"{self.options.name} heard: {said}".split(" ")
        if asked.get("stream"):
            return Reply(200, self._stream(words), "text/event-stream")
        time.sleep(self.options.token_s * len(words))
        message = {"role": "assistant", "content": " ".join(words)}
        usage = {"prompt_tokens": len(said.split()), "completion_tokens": len(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json_reply(200, self._completion("chat.completion", choice) | {"usage": usage})

    def _stream(self, words: list[str]) -> Iterator[bytes]:
        for number, word in enumerate(words):
            time.sleep(self.options.token_s)
            delta = {"content": word if number == 0 else f" {word}"}
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            yield b"data: " + json.dumps(self._completion("chat.completion.chunk", choice)).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _completion(self, kind: str, choice: dict[str, object]) -> dict[str, object]:
        return {"id": "demo", "object": kind, "model": self.options.name, "choices": [choice]}

    def _sleep(self) -> Reply:
        if not self.loaded.is_set():
            return json_reply(503, {"status": "loading model"})
        time.sleep(self.options.sleep_s)
        if not self.options.lie_asleep:
            self.memory.hold(self.options.residue_mib)
        self.asleep = True
        self.mark("asleep")
        return Reply(200)

    def _wake(self) -> Reply:
        self.memory.hold(self.options.vram_mib)
        time.sleep(self.options.wake_s)
        self.asleep = False
        self.mark("awake")
        return Reply(200)


def endless() -> Iterator[bytes]:
    piece = b"." * 65536
    while True:
        yield piece


def main(argv: Sequence[str]) -> NoReturn:
    options = parse(argv)
    say("started", model=options.name, pid=os.getpid())
    memory = Memory(options)
    # Before any thread: a fork copies only the thread that calls it.
    engine = Engine(memory, away=options.fork_away) if options.engine_child or options.fork_away else None
    server = ModelServer(options, memory, engine)
    signal.signal(signal.SIGTERM, server.terminate)
    signal.signal(signal.SIGINT, server.terminate)
    if options.fail_at_s is not None:
        timer = threading.Timer(options.fail_at_s, die, (options.exit_code, options.last_words))
        timer.daemon = True
        timer.start()
    threading.Thread(target=server.load, daemon=True).start()
    if options.late_listen:
        server.loaded.wait()
    if options.port is not None:
        try:
            listener = listen(options.host, options.port)
        except OSError as error:
            die(1, f"cannot listen on {options.host}:{options.port}: {error.strerror}")
        server.mark("listening", port=listener.getsockname()[1])
        serve(listener, server.handle)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
