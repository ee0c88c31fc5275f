"""The real llama-server of the tests loads the tiny models of the tests and answers as itself."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from tests.support.llama import llama_server, version
from tests.support.tiny_gguf import write


class Running:
    """One llama-server that is asked over HTTP."""

    def __init__(self, process: subprocess.Popen, port: int) -> None:
        self.process = process
        self.port = port

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())

    def wait_ready(self) -> list[int]:
        """The distinct health answers on the way to 200."""
        answers: list[int] = []
        deadline = time.monotonic() + 30
        while 200 not in answers:
            assert self.process.poll() is None, "it ended"
            assert time.monotonic() < deadline
            with contextlib.suppress(ConnectionRefusedError):
                status, _ = self.ask("GET", "/health")
                answers += [status] if status not in answers else []
            time.sleep(0.005)
        return answers

    def chat(self, said: str, tokens: int = 8) -> dict:
        message = {"role": "user", "content": said}
        body = {"messages": [message], "max_tokens": tokens, "temperature": 0, "seed": 1}
        status, reply = self.ask("POST", "/v1/chat/completions", body)
        assert status == 200, reply
        return reply


@contextlib.contextmanager
def running(model: Path, alias: str) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [llama_server(), "--model", model, "--alias", alias, "--port", str(port), "--offline", "-t", "1"]
    log = model.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield Running(process, port)
    except BaseException:
        print(log.read_text(errors="replace")[-3000:])
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.real
def test_it_loads_a_tiny_model_and_chats(tmp_path):
    program = llama_server()
    print(version(program))
    with running(write(tmp_path / "tiny.gguf"), "first") as server:
        assert set(server.wait_ready()) <= {503, 200}
        assert server.ask("GET", "/v1/models")[1]["data"][0]["id"] == "first"
        for said in ("hello", "", "Grüße, 世界 🦙 \x07 \u202e", "<s></s><unk> {{ 1 / 0 }}"):
            reply = server.chat(said)
            assert reply["model"] == "first"
            # It never says the end, so a reply is as long as was asked for; and it is readable.
            assert reply["usage"]["completion_tokens"] == 8
            assert reply["choices"][0]["finish_reason"] == "length"
            assert reply["choices"][0]["message"]["content"].strip().isascii()
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0


@pytest.mark.real
def test_models_can_be_told_apart(tmp_path):
    said = {}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        with running(write(tmp_path / f"{name}.gguf", name=name, seed=seed), name) as server:
            server.wait_ready()
            said[name] = server.chat("who are you?", tokens=16)["choices"][0]["message"]["content"]
    assert said["one"] == said["same"] != said["other"]


def test_equal_arguments_make_equal_files(tmp_path):
    first = write(tmp_path / "first.gguf", name="a", seed=3).read_bytes()
    assert write(tmp_path / "second.gguf", name="a", seed=3).read_bytes() == first
    assert write(tmp_path / "third.gguf", name="b", seed=3).read_bytes() != first
    assert write(tmp_path / "fourth.gguf", name="a", seed=4).read_bytes() != first


def test_the_file_says_what_it_holds(tmp_path):
    path = write(tmp_path / "model.gguf", name="tiny-x", layers=3, width=32, heads=2, context=512)
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if "tokenizer" not in key}
    assert fields["general.name"] == "tiny-x"
    assert fields["general.architecture"] == "llama"
    assert (fields["llama.block_count"], fields["llama.context_length"]) == (3, 512)
    assert fields["llama.embedding_length"] == 32
    assert len(reader.tensors) == 3 + 3 * 9
    larger = write(tmp_path / "larger.gguf", layers=3, width=32, heads=2, context=512, feed_forward=1280)
    assert larger.stat().st_size - path.stat().st_size >= 1024 * 6 * 32 * 3
