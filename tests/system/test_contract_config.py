"""The contract's sections on configuration, sentence by sentence, from outside: `gpumodd check`, and what runs.

What stands in YAML here is the contract's own. Nothing of the package is imported to judge it.
"""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.daemon import GPU, Daemon, RpcFailure, free_port
from tests.support.sandbox import Sandbox

ROOT = Path(__file__).parents[2]

SETTINGS = """\
devices:  {backend: auto}            # auto | nvml | amdgpu | simulated | none    (auto without a driver = none)
units:    {backend: auto}            # auto | systemd | process
drivers:                             # where the runtimes' programs are; found on PATH
  vllm:     {command: [vllm, serve]}
  llamacpp: {command: [llama-server]}
  fastapi:  {command: [uvicorn]}
  docker:   {socket: auto}
policy:
  vram_reserve_mib: 512              # per device, never given to services
  vram_limit: null                   # MiB or "80%" of the device: what services may hold together
  ram_reserve_mib: 2048              # host MemAvailable that must remain
  overcommit: refuse                 # refuse | warn
  on_failure: rollback               # rollback | keep | stop
  drift: heal                        # heal | report
  quiesce_s: 0                       # extra pause after a verified release
  release_timeout_s: 60
  restore_mode_at_start: true
  placement: vram_based              # manual | vram_based | latency_optimized | isolation_first | balanced
"""
SERVICE = """\
id: vllm-chat                        # ^[a-z0-9][a-z0-9_-]{0,63}$ and the file's stem
name: Chat
driver: vllm                         # vllm | llamacpp | fastapi | docker | exec | any plugin's name
model: meta-llama/Llama-3.1-8B-Instruct   # id or path; what it means is the driver's business
port: 8000                           # without a port, ready = the process is active
host: 127.0.0.1
vram_mib: 7000
ram_mib: 4000
context: 8192
depends_on: []
devices: auto                        # auto | [0] | [GPU-uuid, …]
device_count: 1
sleep: l1                            # none | l1 | l2 | router | stop | custom
on_leave: sleep                      # stop | sleep: what a switch does with it when it leaves
health: {path: /health, interval_s: 15, timeout_s: 5, failures: 3, recoveries: 2}
startup_timeout_s: 300
stop_timeout_s: 30
idle: {after_s: 300, action: sleep}
priority: 50
pinned: false
aliases: [chat]
env: {}
args: []                             # appended to the command line
options: {}                          # the driver's own keys, validated by the driver
"""
MODE = "id: rag\nname: RAG\ndescription: dual embeddings\nservices: [vllm-embedding-code, vllm-embedding]\n"
TRUE = "driver: exec\noptions: {command: [/bin/true]}\n"


class Directory:
    """A configuration directory and `gpumodd check` on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def write(self, name: str, content: str | bytes) -> "Directory":
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self

    def service(self, id: str, more: str = "", rest: str = TRUE) -> "Directory":
        return self.write(f"services/{id}.yaml", f"id: {id}\n{rest}{more}")

    def check(self, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return gpumodd("check", str(self.path), *words, **env)

    def problems(self, **env: str) -> list[str]:
        """The lines of the form `file:line:column: path: message`, the directory left out."""
        done = self.check(**env)
        assert done.stderr == ""
        lines = [line.removeprefix(f"{self.path}/") for line in done.stdout.splitlines()]
        found = [line for line in lines if re.match(r"\S.*?:\d+:\d+: \S+: ", line)]
        errors = [line for line in found if ": warning: " not in line]
        assert done.returncode == (1 if errors else 0)
        assert f" {len(errors)} error" in lines[-1]
        return found


def gpumodd(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GPUMODD_", "XDG_"))}
    argv = [sys.executable, "-m", "gpumodd", *words]
    return subprocess.run(argv, cwd=ROOT, env=clean | env, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "config")


# -- gpumodd.yaml ---------------------------------------------------------------------------------------------


def test_every_key_is_optional_and_its_default_is_the_one_shown(directory: Directory):
    silent = directory.check("--verbose")
    spoken = directory.write("gpumodd.yaml", SETTINGS).check("--verbose")
    assert (silent.returncode, spoken.returncode) == (0, 0)

    def values(done: "subprocess.CompletedProcess[str]") -> dict[str, list[str]]:
        rows = [line.split() for line in done.stdout.splitlines() if re.match(r"[a-z]+\.[a-z_.]+ ", line)]
        return {key: rest[:-1] for key, *rest in rows if key != "devices.table"}

    assert values(silent) == values(spoken)
    shown, section = {}, ""
    for line in SETTINGS.splitlines():
        words = line.partition("#")[0].replace("{", " ").replace("}", " ").split()
        section = words.pop(0) if not line.startswith(" ") else section
        if section != "drivers:" and words:
            shown[f"{section}{words[0]}".replace(":", ".", 1).rstrip(":")] = words[1]
    told = {key: " ".join(words) for key, words in values(spoken).items()}
    assert {key: value for key, value in told.items() if key in shown} == shown
    assert len(shown) == 12
    assert values(silent)["drivers.vllm.command"] == ["[vllm,", "serve]"]


@pytest.mark.parametrize(
    "text",
    [
        "devices: {backend: amdgpu}\nunits: {backend: systemd}",
        "policy: {vram_limit: 80%, overcommit: warn, on_failure: keep, drift: report, placement: manual}",
        'policy: {vram_limit: "12.5%", on_failure: stop, placement: latency_optimized, quiesce_s: 0.5}',
        "policy: {vram_limit: 20000, placement: isolation_first, restore_mode_at_start: false}",
        "drivers: {docker: {socket: /run/docker.sock}, vllm: {command: [~/venv/bin/vllm, serve]}}",
    ],
)
def test_what_the_comments_allow(directory: Directory, text: str):
    assert directory.write("gpumodd.yaml", text).problems() == []


def test_what_they_do_not(directory: Directory):
    directory.write(
        "gpumodd.yaml",
        "devices: {backend: cuda}\nunits: {backend: docker}\npolicy:\n  vram_reserve_mib: 0.5\n  vram_limit: 120%\n"
        "  ram_reserve_mib: -1\n  overcommit: allow\n  on_failure: retry\n  drift: yes\n  quiesce_s: .inf\n"
        "  release_timeout_s: 0\n  restore_mode_at_start: 1\n  placement: random\n  quiece_s: 1\n"
        "drivers:\n  vlm: {command: [x]}\n  llamacpp: {command: []}\npolcy: {}\n",
    )
    assert [line.split(": ")[:2] for line in directory.problems()] == [
        [f"gpumodd.yaml:{line}:{column}", path]
        for line, column, path in [
            (1, 20, "devices.backend"),
            (2, 18, "units.backend"),
            (4, 21, "policy.vram_reserve_mib"),
            (5, 15, "policy.vram_limit"),
            (6, 20, "policy.ram_reserve_mib"),
            (7, 15, "policy.overcommit"),
            (8, 15, "policy.on_failure"),
            (9, 10, "policy.drift"),
            (10, 14, "policy.quiesce_s"),
            (11, 22, "policy.release_timeout_s"),
            (12, 26, "policy.restore_mode_at_start"),
            (13, 14, "policy.placement"),
            (14, 3, "policy.quiece_s"),
            (16, 3, "drivers.vlm"),
            (17, 23, "drivers.llamacpp.command"),
            (18, 1, "polcy"),
        ]
    ]
    said = directory.check().stdout
    assert "did you mean quiesce_s?" in said
    assert "did you mean vllm?" in said
    assert "did you mean policy?" in said


# -- the environment ------------------------------------------------------------------------------------------


def test_a_variable_wins_and_check_names_where_a_value_came_from(directory: Directory):
    directory.write("gpumodd.yaml", "policy:\n  drift: report\n  quiesce_s: 2\n")
    done = directory.check(GPUMODD_POLICY__DRIFT="heal", GPUMODD_DRIVERS__VLLM__COMMAND="[/opt/vllm, serve]")
    told = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert "policy.drift heal (environment GPUMODD_POLICY__DRIFT)" in told
    assert "policy.quiesce_s 2 (gpumodd.yaml:3:14)" in told
    assert "drivers.vllm.command [/opt/vllm, serve] (environment GPUMODD_DRIVERS__VLLM__COMMAND)" in told
    assert not any("policy.placement" in line for line in told)
    whole = [" ".join(line.split()) for line in directory.check("--verbose").stdout.splitlines()]
    assert "policy.placement vram_based (default)" in whole


def test_a_variable_that_is_wrong_is_named(directory: Directory):
    wrong = {"GPUMODD_POLICY__DRFIT": "heal", "GPUMODD_POLICY__QUIESCE_S": "soon", "GPUMODD_UNITS__BACKEND": "["}
    misspelt, mistyped, broken = directory.problems(**wrong, GPUMODD_SOCKET="/x", GPUMODD_ELSE="[")
    assert misspelt == '$GPUMODD_POLICY__DRFIT:1:1: policy.drfit: unknown key "drfit" (did you mean drift?)'
    assert mistyped == '$GPUMODD_POLICY__QUIESCE_S:1:1: policy.quiesce_s: cannot use "soon": a number is needed'
    assert broken.startswith("$GPUMODD_UNITS__BACKEND:1:2: units.backend: cannot parse: ")


# -- services and modes ---------------------------------------------------------------------------------------


def test_the_examples_are_accepted(directory: Directory):
    directory.write("gpumodd.yaml", SETTINGS).write("services/vllm-chat.yaml", SERVICE).write("modes/rag.yaml", MODE)
    for number, id in enumerate(("vllm-embedding-code", "vllm-embedding")):
        directory.service(id, f"port: {8001 + number}\nvram_mb: 2500\n", "driver: vllm\nmodel: x/y\n")
    assert [line for line in directory.problems() if ": warning: " not in line] == []


def test_every_problem_of_a_service_at_once(directory: Directory):
    directory.write(
        "services/bad.yaml",
        "id: Bad\ndriver: vlm\nmodel: 5\nprot: 1\nport: 70000\nvram_mib: 1.5\nvram_mb: 3\nhost: ''\ncontext: -1\n"
        "depends_on: nobody\ndevices: [x y]\ndevice_count: 0\nsleep: L1\non_leave: pause\n"
        "health: {pth: /x, interval_s: 0}\nstartup_timeout_s: -3\nidle: 5\npriority: high\npinned: yes\n"
        "aliases: chat\nenv: [A]\nargs: --x\noptions: 3\n",
    )
    places = [line.split(": ")[1] for line in directory.problems()]
    assert places == [
        *("id", "driver", "model", "prot", "port", "vram_mib", "vram_mb", "host", "context", "depends_on", "devices"),
        *("device_count", "sleep", "on_leave", "health.pth", "health.interval_s", "startup_timeout_s", "idle"),
        *("priority", "pinned", "aliases", "env", "args", "options"),
    ]
    said = directory.check().stdout
    assert f'{directory.path}/services/bad.yaml:4:1: prot: unknown key "prot" (did you mean port?)\n' in said
    assert "services/bad.yaml:5:7: port: cannot use 70000: it must be at most 65535\n" in said
    assert 'cannot find the driver "vlm" (did you mean vllm?)' in said
    assert "health.pth: unknown key" in said


def test_what_spans_files(directory: Directory):
    directory.service("a", "depends_on: [b]\n").service("b", "depends_on: [c]\n").service("c", "depends_on: [a]\n")
    directory.service("p", "port: 9\naliases: [a, q]\n").service("q", "port: 9\n").service("r", "port: 9\n")
    directory.write("services/stem.yaml", f"id: other\n{TRUE}")
    directory.write("modes/m.yaml", "id: m\nservices: [p, q, chta]\n").service("chat", "options: {comand: x}\n")
    directory.write("services/chat.yaml", "id: chat\ndriver: exec\noptions: {command: [x], comand: y}\n")
    directory.write("modes/n.yaml", "id: n\nsevices: []\n").write("modes/blank.yaml", "id: blank\nservices: [r]\n")
    assert [re.sub(r" \(.*", "", line) for line in directory.problems()] == [
        "modes/blank.yaml:2:11: services: the mode blank cannot have services: it is the one that stops everything",
        'modes/m.yaml:2:18: services[2]: cannot find the service "chta"',
        'modes/n.yaml:2:1: sevices: unknown key "sevices"',
        "services/a.yaml:4:14: depends_on[0]: cannot start any of these first: a -> b -> c -> a",
        'services/chat.yaml:3:25: options.comand: unknown key "comand"',
        'services/p.yaml:5:11: aliases[0]: cannot use the alias "a": it is the name of the service a',
        'services/p.yaml:5:14: aliases[1]: cannot use the alias "q": it is the name of the service q',
        "services/q.yaml:4:7: port: cannot use port 9: p has it and can run at the same time",
        'services/stem.yaml:1:5: id: cannot use the id "other": the file is called "stem"',
    ]
    assert "(did you mean chat?)" in directory.check().stdout


def test_hostile_files_are_told_quickly_and_nothing_else_suffers(directory: Directory):
    directory.service("good")
    files = {
        "bytes": b"\xff\xfe\x00",
        "nul": b"id: nul\0\n",
        "big": b"a" * 300_000,
        "bomb": b"a: &a [x]\n" + b"".join(b"%c: &%c [%s]\n" % (c, c, b"*%c, " % (c - 1) * 9) for c in b"bcdefghij"),
        "deep": b"[" * 100_000,
        "braces": b"{" * 100_000,
        "object": b'!!python/object/apply:os.system ["touch pwned"]\n',
        "tab": b"id: tab\n\tname: x\n",
        "twice": b"id: twice\nid: twice\ndriver: exec\n",
        "documents": b"id: documents\n---\nid: x\n",
        "list": b"- 1\n",
        "escape": b'id: escape\ndriver: "\\e[2J\\nservices/good.yaml:1:1: id: forged"\n',
    }  # fmt: skip
    for name, content in files.items():
        directory.write(f"services/{name}.yaml", content)
    os.mkfifo(directory.path / "services/pipe.yaml")
    (directory.path / "services/folder.yaml").mkdir()
    (directory.path / "services/zero.yaml").symlink_to("/dev/zero")
    (directory.path / "services/loop.yaml").symlink_to("loop.yaml")
    began = time.monotonic()
    problems = directory.problems()
    assert time.monotonic() - began < 10
    told = {Path(line.split(":")[0]).stem for line in problems}
    assert told == {*files, "pipe", "folder", "zero", "loop"}
    assert directory.check().stdout.splitlines()[-1].startswith(f"{directory.path}: 1 service, 1 mode, ")
    assert not (ROOT / "pwned").exists()


@pytest.mark.parametrize("command", ["check", "run"])
def test_without_a_directory_it_names_what_makes_one(tmp_path: Path, command: str):
    places = {"GPUMODD_CONFIG_DIR": str(tmp_path / "none"), "GPUMODD_STATE_DIR": str(tmp_path / "state")}
    done = gpumodd(command, **places, GPUMODD_SOCKET=str(tmp_path / "s"))
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "there is no configuration directory" in said
    assert "gpumodd init" in said
    assert len(said.splitlines()) == 2
    assert not (tmp_path / "none").exists()


def test_the_shipped_example(tmp_path: Path):
    assert gpumodd("init", str(tmp_path / "c")).returncode == 0
    assert [line for line in Directory(tmp_path / "c").problems() if "cannot find the program" not in line] == []
    texts = [path.read_text() for path in (tmp_path / "c/services").glob("*.yaml")]
    ports = [port for text in texts for port in re.findall(r"^port: (\d+)", text, re.MULTILINE)]
    assert len(ports) == len(set(ports)) == len(texts)


# -- drivers: what really runs --------------------------------------------------------------------------------

# Stands in for a runtime: writes down how it was called, then answers every health check.
RUNTIME = """
import http.server, json, os, sys
argv = sys.argv[2:]
with open(sys.argv[1] + ".new", "w") as record:
    json.dump({"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}, record)
os.rename(sys.argv[1] + ".new", sys.argv[1])
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(argv[argv.index("--port") + 1])), Healthy).serve_forever()
"""


def _runtimes(d: Daemon) -> Path:
    """Make every driver's program the stand-in; returns the file it writes."""
    script, record = d.root / "runtime.py", d.root / "record.json"
    script.write_text(RUNTIME)
    command = [sys.executable, str(script), str(record)]
    d.settings["drivers"] = {name: {"command": command} for name in ("vllm", "llamacpp", "fastapi")}
    return record


def _start(d: Daemon, record: Path, id: str) -> dict[str, object]:
    record.unlink(missing_ok=True)
    d.rpc("service.start", id=id, wait=True)
    called: dict[str, object] = json.loads(record.read_text())
    d.rpc("service.stop", id=id, wait=True)
    return called


def test_command_lines(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    record = _runtimes(d)
    gguf = tmp_path / "no gguf at all.txt"
    gguf.write_text("neither its name nor this is judged before a start")
    ports = {name: free_port() for name in ("vllm", "llamacpp", "fastapi", "exec")}
    common = {"vram_mib": 100, "host": "127.0.0.1", "context": 4096, "args": ["--mine", 0.5, "a b"]}
    models = {"vllm": "no-such-org/no-such-model", "llamacpp": str(gguf), "fastapi": "pkg.mod:app"}
    for driver, model in models.items():
        spec = common | {"id": driver, "driver": driver, "model": model, "port": ports[driver]}
        d.write(f"services/{driver}.yaml", spec)
    command = [*d.settings["drivers"]["vllm"]["command"], "--port", ports["exec"]]
    d.command("exec", *map(str, command), port=ports["exec"], vram_mib=1, args=["--mine"])
    address = {name: ["--host", "127.0.0.1", "--port", str(port)] for name, port in ports.items()}
    mine = ["--mine", "0.5", "a b"]
    with d:
        assert _start(d, record, "vllm")["argv"] == [
            *(models["vllm"], *address["vllm"], "--max-model-len", "4096", *mine)
        ]
        assert _start(d, record, "llamacpp")["argv"] == [
            *("--model", str(gguf), *address["llamacpp"], "--ctx-size", "4096", *mine)
        ]
        assert _start(d, record, "fastapi")["argv"] == ["pkg.mod:app", *address["fastapi"], *mine]
        assert _start(d, record, "exec")["argv"] == ["--port", str(ports["exec"]), "--mine"]


@pytest.mark.parametrize(
    ("driver", "model", "runs"),
    [
        ("vllm", "{root}/absent", False),
        ("vllm", "~/absent-model-of-a-test", False),
        ("vllm", "{root}/there", True),
        ("vllm", "{root}/empty", False),
        ("vllm", "absent/./relative", True),
        ("llamacpp", "{root}/absent.gguf", False),
        ("llamacpp", "absent.gguf", False),
        ("llamacpp", "{root}", False),
    ],
)
def test_what_a_model_must_be_before_a_start(tmp_path: Path, driver: str, model: str, runs: bool):
    d = Daemon(tmp_path / "d")
    record = _runtimes(d)
    for name in ("there", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "there/config.json").write_text("{}")
    model = model.format(root=tmp_path)
    d.write("services/s.yaml", {"id": "s", "driver": driver, "model": model, "port": free_port(), "vram_mib": 1})
    with d:
        if runs:
            assert model in _start(d, record, "s")["argv"]
            return
        with pytest.raises(RpcFailure) as refused:
            d.rpc("service.start", id="s", wait=True)
        assert refused.value.code == "refused"
        assert [reason["code"] for reason in refused.value.data["details"]["reasons"]] == ["file_missing"]
        assert not record.exists()


def test_the_environment_of_a_supervised_process(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    record = _runtimes(d)
    d.extra_env = {"MINE": "daemon", "CUDA_VISIBLE_DEVICES": "daemon", "WATCHDOG_USEC": "0", "LISTEN_FDNAMES": "x"}
    d.extra_env |= {"GPUMODD_POLICY__DRIFT": "report"}
    for id, env in (("plain", {}), ("own", {"MINE": "own", "CUDA_VISIBLE_DEVICES": "own", "NUMBER": 1})):
        spec = {"id": id, "driver": "fastapi", "model": "a:b", "port": free_port(), "vram_mib": 1, "env": env}
        d.write(f"services/{id}.yaml", spec)
    with d:
        env = _start(d, record, "plain")["env"]
        assert isinstance(env, dict)
        assert (env["MINE"], env["CUDA_VISIBLE_DEVICES"]) == ("daemon", GPU)
        assert [k for k in env if k.startswith(("GPUMODD_", "LISTEN_", "WATCHDOG_", "NOTIFY_"))] == []
        env = _start(d, record, "own")["env"]
        assert isinstance(env, dict)
        assert (env["MINE"], env["CUDA_VISIBLE_DEVICES"], env["NUMBER"]) == ("own", "own", "1")


# -- units ----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_generated_units(sandbox: Sandbox, tmp_path: Path):
    d = Daemon(tmp_path / "d", box=sandbox, nvml=True)
    record = _runtimes(d)
    port = free_port()
    spec = {"driver": "vllm", "model": "x/y", "vram_mib": 1, "context": 512, "stop_timeout_s": 7.5}
    env = {"TOKEN": "the-secret", "CUDA_VISIBLE_DEVICES": "own", "TWO": "a\nb % \"'$HOME"}
    d.write("services/kept.yaml", spec | {"id": "kept", "port": port})
    d.write("services/told.yaml", spec | {"id": "told", "port": free_port(), "env": env})
    sandbox.systemctl("set-environment", "MANAGER=manager", "CUDA_VISIBLE_DEVICES=manager")
    try:
        with d:
            _units_are_as_promised(d, sandbox, port)
            got = _start(d, record, "kept")["env"]
            assert isinstance(got, dict)
            assert (got["MANAGER"], got["CUDA_VISIBLE_DEVICES"]) == ("manager", GPU)
            got = _start(d, record, "told")["env"]
            assert isinstance(got, dict)
            assert {key: got[key] for key in env} == env
            assert "the-secret" not in sandbox.systemctl("show", "gpumod-told.service")
            assert "the-secret" not in sandbox.systemctl("cat", "gpumod-told.service")
    finally:
        sandbox.systemctl("unset-environment", "MANAGER", "CUDA_VISIBLE_DEVICES")


def _units_are_as_promised(d: Daemon, sandbox: Sandbox, port: int) -> None:
    folder = sandbox.home / ".config/systemd/user"
    assert {path.name for path in folder.glob("gpumod-*")} == {"gpumod-kept.service", "gpumod-told.service"}
    lines = (folder / "gpumod-kept.service").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    program = d.settings["drivers"]["vllm"]["command"]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    assert shlex.split(said["ExecStart"]) == [*program, "x/y", *address, "--max-model-len", "512"]
    fixed = {"Type": "exec", "Restart": "no", "KillMode": "control-group", "SendSIGKILL": "yes", "OOMPolicy": "stop"}
    assert {key: said.get(key) for key in fixed} == fixed
    assert (said["Slice"], said["StartLimitIntervalSec"]) == ("gpumod.slice", "0")
    timeout = sandbox.systemctl("show", "--value", "-p", "TimeoutStopUSec", "gpumod-kept.service")
    assert float(timeout.removesuffix("s")) == 7.5
    assert said["SyslogIdentifier"] == "gpumod-kept"
    assert not {"Requires", "Wants", "PartOf", "After", "WantedBy", "Environment"} & set(said)
    environment_file = Path(said["EnvironmentFile"])
    assert stat.S_IMODE(environment_file.stat().st_mode) == 0o600
    assert sandbox.systemctl("is-enabled", "gpumod-kept.service", check=False) == "static"
