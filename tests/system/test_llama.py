"""Two modes with a real llama-server and a model each, switched back and forth under real units."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_gguf
from tests.support.daemon import Daemon, free_port
from tests.support.llama import llama_server
from tests.support.sandbox import Sandbox

pytestmark = pytest.mark.real

ROUNDS = 10


def chat(port: int) -> dict[str, Any]:
    """Ask for a completion and return the reply."""
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.load(reply)


def test_ten_switches_between_two_models_and_each_answers(sandbox: Sandbox, tmp_path: Path):
    server = llama_server()
    ports: dict[str, int] = {}
    d = Daemon(tmp_path / "d", box=sandbox, nvml=True)
    d.settings["drivers"] = {"llamacpp": {"command": [str(server)]}}
    for seed, name in enumerate(("alpha", "beta")):
        model = tmp_path / f"{name}.gguf"
        tiny_gguf.write(model, name=name, seed=seed)
        ports[name] = free_port()
        service = {
            "id": name,
            "driver": "llamacpp",
            "model": str(model),
            "port": ports[name],
            "vram_mib": 14000,  # only one of them at a time
            "context": 256,
            "args": ["--alias", name, "--threads", "1", "--offline", "--no-webui"],
        }
        d.write(f"services/{name}.yaml", service)
        d.mode(name, name)
    with d:
        for _ in range(ROUNDS):
            for name, other in (("alpha", "beta"), ("beta", "alpha")):
                operation = d.switch(name)
                assert operation["started"] == [name]
                assert d.ready() == {name}
                reply = chat(ports[name])
                assert reply["model"] == name
                assert reply["choices"][0]["message"]["content"]
                with pytest.raises(OSError, match="refused"):
                    chat(ports[other])
        assert d.status()["state"] == "converged"


def test_a_missing_model_file_is_refused(sandbox: Sandbox, tmp_path: Path):
    d = Daemon(tmp_path / "d", box=sandbox)
    d.settings["drivers"] = {"llamacpp": {"command": [str(llama_server())]}}
    d.write(
        "services/gone.yaml",
        {"id": "gone", "driver": "llamacpp", "model": str(tmp_path / "gone.gguf"), "port": free_port(), "vram_mib": 1},
    )
    d.mode("gone", "gone")
    with d:
        refused = d.ctl("switch", "gone", "--json", check=False)
        assert refused.returncode == 4
        reason = json.loads(refused.stdout)["data"]["details"]["reasons"][0]
        assert (reason["code"], "gone.gguf" in reason["message"]) == ("file_missing", True)


def test_a_file_that_is_no_model_fails_with_llama_servers_own_words(sandbox: Sandbox, tmp_path: Path):
    d = Daemon(tmp_path / "d", box=sandbox)
    d.settings["drivers"] = {"llamacpp": {"command": [str(llama_server())]}}
    model = tmp_path / "not-a-model.gguf"
    model.write_text("this is no model")
    d.write(
        "services/odd.yaml",
        {"id": "odd", "driver": "llamacpp", "model": str(model), "port": free_port(), "vram_mib": 1},
    )
    d.mode("odd", "odd")
    with d:
        failed = d.ctl("switch", "odd", check=False)
        assert failed.returncode == 5
        assert "not-a-model.gguf" in failed.stderr
