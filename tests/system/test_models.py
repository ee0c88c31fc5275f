"""Model files as a user meets them: an estimate where nothing is declared, and what `model inspect` says."""

import json
from pathlib import Path

import pytest

from tests.support import tiny_gguf
from tests.support.daemon import Daemon, free_port
from tests.support.llama import llama_server
from tests.support.memory_oracle import measure


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", width=256, feed_forward=2048, layers=4)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, tiny: Path):
    d = Daemon(tmp_path_factory.mktemp("d"))
    service = {"id": "chat", "driver": "llamacpp", "model": str(tiny), "port": free_port(), "context": 4096}
    d.write("services/chat.yaml", service)
    d.write("services/gone.yaml", {**service, "id": "gone", "model": "/nowhere/gone.gguf", "port": free_port()})
    d.mode("chat", "chat")
    with d:
        yield d


def test_a_service_that_declares_nothing_is_estimated(daemon: Daemon, tiny: Path):
    service = daemon.rpc("service.get", id="chat")
    inspected = daemon.rpc("model.inspect", path=str(tiny), context=4096)
    assert (service["vram_source"], service["vram_mib"]) == ("estimated", inspected["vram_mib"])
    assert f"{service['vram_mib']} MiB (estimated)" in daemon.ctl("service", "show", "chat").stdout


def test_a_simulation_counts_the_context_it_is_asked_for(daemon: Daemon):
    def needed(*more: str) -> int:
        shown = daemon.ctl("simulate", "chat", *more, "--json", check=False)
        return sum(device["needed_mib"] for device in json.loads(shown.stdout)["devices"])

    assert needed("--context", "chat=1048576") > needed() + 1000


def test_a_service_without_an_estimate_is_refused_and_the_check_says_why(daemon: Daemon):
    (problem,) = [p for p in daemon.rpc("config.check")["problems"] if p["code"] == "vram_unknown"]
    assert (problem["file"], problem["path"]) == ("services/gone.yaml", "model")
    assert "cannot read /nowhere/gone.gguf: no such file" in problem["message"]


@pytest.mark.real
@pytest.mark.parametrize(
    "args", [(), ("--parallel", "2"), ("--cache-type-k", "q8_0", "--cache-type-v", "q8_0")], ids=str
)
def test_inspect_says_what_the_server_plans(daemon: Daemon, tiny: Path, args: tuple[str, ...]):
    shown = json.loads(daemon.ctl("model", "inspect", str(tiny), "--context", "8192", *args, "--json").stdout)
    loaded, planned = measure(llama_server(), tiny, "--ctx-size", "8192", *args)
    assert shown["weights_mib"] == pytest.approx(loaded, abs=1)
    assert shown["kv_mib"] == pytest.approx(planned.context, rel=0.005, abs=0.02)
    assert shown["compute_mib"] == pytest.approx(planned.compute, rel=0.1)
    parts = ("weights_mib", "kv_mib", "compute_mib", "overhead_mib")
    assert shown["total_mib"] == pytest.approx(sum(shown[part] for part in parts), abs=0.05)
    assert (shown["architecture"], shown["quantization"], len(shown["layers"])) == ("llama", "F16", 4)


@pytest.mark.parametrize(
    ("path", "args", "said"),
    [
        ("/nowhere/at-all.gguf", (), "no such file"),
        ("/dev/zero", (), "no file"),
        ("/etc/passwd", (), "not a GGUF file"),
        ("/", (), "cannot read"),
        ("{tiny}", ("--cache-type-k", "q7_9"), "q7_9"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_a_line(daemon: Daemon, tiny: Path, path: str, args, said: str):
    refused = daemon.ctl("model", "inspect", path.format(tiny=tiny), *args, check=False)
    assert refused.returncode in (1, 2)
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
