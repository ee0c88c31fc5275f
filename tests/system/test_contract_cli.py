"""The contract's section gpumodctl, sentence by sentence, against a real daemon."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, until

LONG = "a-service-id-as-long-as-it-may-be-0123456789-0123456789-01234567"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The machine of the shipped example's modes, a broken service, a slow one, and one with the longest id."""
    d = Daemon(tmp_path_factory.mktemp("cli"))
    d.policy["vram_reserve_mib"] = 0
    d.service("vllm-embedding-code", 2500, name="Qwen3-Embedding-0.6B")
    d.service("vllm-embedding", 5000, name="Qwen3-VL-Embedding-2B", aliases=["embedding"])
    d.service("gemma4-26b-a4b-q4-multi", 20000, name="Gemma 4 26B-A4B multi")
    d.service("broken", 100, "--fail-at-s", "0.1", "--load-s", "9", "--last-words", "cannot open libcuda.so.1")
    d.service("slow", 100, "--load-s", "60")
    d.service(LONG, 100, name="a name of more than eighty columns " * 3)
    for id, name, words, members in (
        ("rag", "RAG Mode", "RAG mode with dual embedding models", ["vllm-embedding-code", "vllm-embedding"]),
        ("hermes-agent", "Hermes Agent Mode", "Gemma 4 26B-A4B multi agent " * 4, ["gemma4-26b-a4b-q4-multi"]),
        ("huge", "Huge", "", ["gemma4-26b-a4b-q4-multi", "vllm-embedding"]),
        ("broken", "Broken", "", ["vllm-embedding", "broken"]),
        ("slow", "Slow", "", ["slow"]),
        ("long", "Long", "", [LONG]),
    ):
        d.write(f"modes/{id}.yaml", {"id": id, "name": name, "description": words, "services": members})
    with d:
        d.switch("rag")
        yield d


@pytest.fixture
def rag(daemon: Daemon) -> Daemon:
    """The daemon in the mode rag, with nothing under way."""
    if daemon.status()["mode"] != "rag" or daemon.status()["state"] != "converged":
        daemon.switch("rag")
    return daemon


def settled(value: Any) -> Any:
    """A result without what the clock changes."""
    if isinstance(value, dict):
        return {k: settled(v) for k, v in value.items() if not k.endswith("_at") and k not in ("since", "story")}
    return [settled(item) for item in value] if isinstance(value, list) else value


# -- --json and --socket --------------------------------------------------------------------------------------

QUERIES: list[tuple[str, str, dict[str, Any]]] = [
    ("status", "status.get", {}),
    ("mode list", "mode.list", {}),
    ("mode show hermes-agent", "mode.get", {"id": "hermes-agent"}),
    ("mode status", "mode.get", {"id": "rag"}),
    ("simulate rag", "mode.simulate", {"id": "rag"}),
    ("mode simulate hermes-agent", "mode.simulate", {"id": "hermes-agent"}),
    ("service list", "service.list", {}),
    ("service show embedding", "service.get", {"id": "vllm-embedding"}),
    ("service status vllm-embedding", "service.get", {"id": "vllm-embedding"}),
    ("service logs vllm-embedding", "service.logs", {"id": "vllm-embedding", "lines": 50}),
    ("service explain vllm-embedding", "service.explain", {"id": "vllm-embedding"}),
    ("device list", "device.list", {}),
    ("operation list", "operation.list", {"limit": 20}),
    ("operation show 1", "operation.get", {"id": "1"}),
    ("operation wait 1", "operation.wait", {"id": "1"}),
    ("check", "config.check", {}),
]


@pytest.mark.parametrize(("line", "method", "params"), QUERIES, ids=[line for line, _, _ in QUERIES])
def test_json_is_the_methods_result(rag: Daemon, line: str, method: str, params: dict[str, Any]):
    shown = rag.ctl(*line.split(), "--json")
    assert settled(json.loads(shown.stdout)) == settled(rag.rpc(method, **params))
    assert shown.stderr == ""


@pytest.mark.parametrize("line", [line for line, _, _ in QUERIES])
def test_what_people_see_fits_eighty_columns(rag: Daemon, line: str):
    shown = rag.ctl(*line.split(), env={"COLUMNS": "80"})
    assert shown.stdout.strip()
    assert shown.stderr == ""
    assert [row for row in shown.stdout.splitlines() if len(row) > 80] == []
    assert "\x1b" not in shown.stdout


ERRORS: list[tuple[str, int, str]] = [
    ("switch nope", 2, "not_found"),
    ("simulate nope", 2, "not_found"),
    ("mode show nope", 2, "not_found"),
    ("mode delete nope", 2, "not_found"),
    ("service show nope", 2, "not_found"),
    ("service start nope", 2, "not_found"),
    ("service logs nope", 2, "not_found"),
    ("operation show 9999", 2, "not_found"),
    ("operation wait 9999", 2, "not_found"),
    ("operation cancel 1", 1, "conflict"),
    ("switch huge", 4, "refused"),
    ("service start gemma4-26b-a4b-q4-multi", 4, "refused"),
    ("switch broken", 5, "failed"),
    ("switch broken --on-failure keep", 1, "failed"),
    ("switch broken --on-failure stop", 1, "failed"),
    ("mode create rag", 1, "conflict"),
    ("mode delete blank", 1, "conflict"),
]


@pytest.mark.parametrize(("line", "code", "name"), ERRORS, ids=[line for line, _, _ in ERRORS])
def test_an_error_has_its_exit_code_and_json_is_the_error_object(rag: Daemon, line: str, code: int, name: str):
    shown = rag.ctl(*line.split(), "--json", check=False)
    assert shown.returncode == code
    error = json.loads(shown.stdout)
    assert (set(error), error["data"]["code"]) == ({"code", "message", "data"}, name)
    assert f"gpumodctl: {error['message']}" in shown.stderr


def test_people_read_errors_on_stderr_with_the_ids_that_exist(rag: Daemon):
    shown = rag.ctl("switch", "nope", check=False)
    assert shown.stdout == ""
    assert "nope" in shown.stderr
    assert all(id in shown.stderr for id in ("blank", "rag", "hermes-agent"))


def test_a_refusal_says_the_numbers_and_touches_nothing(rag: Daemon):
    before = [op["id"] for op in rag.rpc("operation.list")]
    shown = rag.ctl("switch", "huge", check=False)
    assert "20000 MiB" in shown.stderr or "5000 MiB" in shown.stderr
    assert "24564 MiB" in shown.stderr
    assert "vram_insufficient" in shown.stderr
    assert [op["id"] for op in rag.rpc("operation.list")] == before
    assert rag.ready() == {"vllm-embedding", "vllm-embedding-code"}


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_failed_start_shows_the_last_lines_on_stderr(rag: Daemon, more: tuple[str, ...]):
    shown = rag.ctl("switch", "broken", *more, check=False)
    assert shown.returncode == 5
    assert "cannot open libcuda.so.1" in shown.stderr
    assert bool(shown.stdout) == bool(more)
    assert rag.ready() == {"vllm-embedding", "vllm-embedding-code"}


@pytest.mark.parametrize("line", ["switch", "switch a b", "swich rag", "service", "service start", "status --nope", ""])
def test_usage_is_exit_code_two(rag: Daemon, line: str):
    shown = rag.ctl(*line.split(), check=False)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "Usage: gpumodctl" in shown.stderr
    assert json.loads(rag.ctl(*line.split(), "--json", check=False).stdout)["code"] == -32602


@pytest.mark.parametrize("words", [("--socket", "{}", "mode", "list"), ("mode", "--socket", "{}", "list"),
                                   ("mode", "list", "--socket", "{}")])  # fmt: skip
def test_the_socket_may_be_named_anywhere(rag: Daemon, tmp_path: Path, words: tuple[str, ...]):
    other = {"GPUMODD_SOCKET": str(tmp_path / "none")}
    assert "hermes-agent" in rag.ctl(*(word.format(rag.socket) for word in words), env=other).stdout
    assert rag.ctl("mode", "list", check=False, env=other).returncode == 3


def test_nobody_there_is_exit_code_three(rag: Daemon, tmp_path: Path):
    for words in (("status",), ("switch", "rag"), ("mode", "list"), ("events",), ("reload",)):
        shown = rag.ctl(*words, "--socket", str(tmp_path / "none"), check=False)
        assert (shown.returncode, shown.stdout) == (3, "")
        assert len(shown.stderr.splitlines()) <= 2
        assert str(tmp_path / "none") in shown.stderr


# -- the tables -----------------------------------------------------------------------------------------------


def test_the_modes_with_their_sums(rag: Daemon):
    head, *rows = rag.ctl("mode", "list", env={"COLUMNS": "80"}).stdout.splitlines()
    assert head.split("  ")[0] == "ID"
    assert [word.strip() for word in head.split("  ") if word] == ["ID", "Name", "Description", "Total VRAM (MiB)"]
    cells = {row.split()[0]: row.split()[-1] for row in rows}
    assert cells == {
        "blank": "0",
        "broken": "5100",
        "hermes-agent": "20000",
        "huge": "25000",
        "long": "100",
        "rag": "7500",
        "slow": "100",
    }


def test_a_simulation_opens_with_the_verdict(rag: Daemon):
    verdict, empty, head, *rows = rag.ctl("simulate", "rag").stdout.splitlines()
    assert verdict == "Fits: 7500 / 24564 MiB (headroom: 17064 MiB)"
    assert empty == ""
    assert [word.strip() for word in head.split("  ") if word] == ["ID", "Name", "Driver", "VRAM (MiB)"]
    assert rows[0].split() == ["vllm-embedding-code", "Qwen3-Embedding-0.6B", "exec", "2500"]
    assert rows[1].split() == ["vllm-embedding", "Qwen3-VL-Embedding-2B", "exec", "5000"]
    refused = rag.ctl("simulate", "huge", check=False)
    assert refused.stdout.splitlines()[0] == "Does not fit: 25000 / 24564 MiB (headroom: -436 MiB)"
    assert refused.returncode == 4


def test_the_panel_of_the_active_mode(rag: Daemon):
    rows = dict(row.split(":", 1) for row in rag.ctl("mode", "status").stdout.splitlines() if ":" in row)
    assert {key: value.strip() for key, value in rows.items()} == {
        "Active Mode": "rag",
        "Name": "RAG Mode",
        "Description": "RAG mode with dual embedding models",
        "Services": "vllm-embedding-code, vllm-embedding",
        "Total VRAM": "7500 MiB",
        "State": "converged",
    }


def test_a_switch_lists_what_it_started_and_a_second_one_what_it_kept(rag: Daemon):
    rag.switch("blank")
    first = rag.ctl("switch", "rag")
    assert first.stdout.splitlines()[1:] == ["Started:", "  vllm-embedding", "  vllm-embedding-code"]
    again = rag.ctl("mode", "switch", "rag")
    assert again.stdout.splitlines()[1:] == ["Kept:", "  vllm-embedding", "  vllm-embedding-code"]


def test_plain_progress_has_a_line_for_what_begins_and_what_ends(rag: Daemon):
    rag.switch("blank")
    lines = rag.ctl("switch", "rag").stderr.splitlines()
    begun = [line for line in lines if line.endswith(": running")]
    assert "pending" not in "".join(lines)
    assert len(lines) == len(set(lines))
    assert {"start vllm-embedding: running", "wait ready vllm-embedding: running"} <= set(begun)
    assert lines.index("start vllm-embedding: running") < lines.index("wait ready vllm-embedding: running")
    assert lines[-1].startswith("wait ready ")
    assert ": done (" in lines[-1]


# -- a person at the keyboard ---------------------------------------------------------------------------------


class Waiting:
    """`gpumodctl switch slow`, waiting."""

    def __init__(self, daemon: Daemon, *words: str) -> None:
        self.daemon = daemon
        argv = [daemon.python, "-m", "gpumodctl", "switch", "slow", *words]
        self.process = daemon.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: daemon.phases()["slow"] == "loading", why="the slow service loads")

    def ends(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_ctrl_c_detaches_and_says_how_to_cancel(rag: Daemon, words: tuple[str, ...]):
    waiting = Waiting(rag, *words)
    operation = rag.status()["operation"]["id"]
    waiting.process.send_signal(signal.SIGINT)
    code, out, err = waiting.ends()
    assert (code, out) == (130, "")
    assert f"gpumodctl operation cancel {operation}" in err
    assert "Traceback" not in err
    assert rag.status()["operation"]["id"] == operation
    cancelled = rag.ctl("operation", "cancel", operation)
    assert operation in cancelled.stdout
    assert rag.ctl("operation", "wait", operation, check=False).returncode == 1
    assert rag.rpc("operation.wait", id=operation)["state"] == "cancelled"


def test_who_is_superseded_ends_with_one(rag: Daemon):
    waiting = Waiting(rag)
    rag.switch("rag")
    code, out, err = waiting.ends()
    assert (code, out) == (1, "")
    assert "replaced by switch rag" in err


def test_without_waiting(rag: Daemon):
    shown = rag.ctl("switch", "slow", "--no-wait", "--json")
    operation = json.loads(shown.stdout)
    assert (operation["kind"], operation["target"], operation["state"]) == ("switch", "slow", "running")
    rag.switch("rag")
    assert rag.rpc("operation.get", id=operation["id"])["state"] == "cancelled"


def test_events_are_one_document_a_line_and_a_reader_may_leave(rag: Daemon):
    argv = [rag.python, "-m", "gpumodctl", "events", "--json", "--topics", "operation"]
    with rag.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first: list[str] = []
        reader = threading.Thread(target=lambda: first.append(process.stdout.readline()))
        reader.start()
        until(lambda: rag.switch("rag") and first, why="an event")
        reader.join()
        assert json.loads(first[0])["topic"] == "operation"
        process.stdout.close()
        until(lambda: rag.switch("rag") and process.poll() is not None, why="the end of a client nobody reads")
        assert process.returncode == 0
        assert process.stderr.read() == ""


def test_help_fits_one_screen(rag: Daemon):
    groups = ("mode", "service", "device", "model", "operation")
    for words in ((), *((group,) for group in groups), ("switch",), ("service", "start"), ("mode", "create")):
        lines = rag.ctl(*words, "--help").stdout.splitlines()
        assert len(lines) <= 30
        assert max(map(len, lines)) <= 80
        assert not any(line.endswith("...") and not line.startswith("Usage:") for line in lines)


def test_what_is_not_built_is_not_in_the_help(rag: Daemon):
    capabilities = set(rag.rpc("daemon.hello")["capabilities"])
    for group in ("mode", "service", "device", "model", "operation"):
        shown = rag.ctl(group, "--help").stdout.partition("Commands:")[2]
        listed = {line.split()[0] for line in shown.splitlines() if line.strip()}
        for verb in {"sleep", "wake", "start", "stop", "restart", "logs", "explain", "list", "create", "delete"} & (
            listed | {method.split(".")[1] for method in capabilities if method.startswith(f"{group}.")}
        ):
            assert (verb in listed) == (f"{group}.{verb}" in capabilities), f"{group} {verb}"
    assert "mcp" not in rag.ctl("--help").stdout.partition("Commands:")[2].split()
