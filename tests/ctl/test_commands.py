"""What each command prints, for people and for programs."""

import json
import subprocess
import sys

import anyio
import msgspec
import pytest

from gpumodctl.text import width
from gpumodd.api.connection import Reply
from gpumodd.wire import types as t
from tests.ctl.conftest import environment, run
from tests.support import machine as m
from tests.support.rpc import served

QUERIES = {
    "status": m.STATUS,
    "mode list": m.MODES,
    "mode show rag": m.MODES[1],
    "mode status": m.MODES[1],
    "service list": m.SERVICES,
    "service show embed": m.SERVICES[0],
    "service status whisper": m.SERVICES[2],
    "device list": [m.DEVICE],
    "operation show 7": m.switched(),
    "operation list": [m.switched(), m.switched("rolled_back")],
    "operation cancel 7": m.switched(),
    "operation wait 7": m.switched(),
    "simulate rag": m.SIMULATION,
    "mode simulate rag": m.SIMULATION,
    "switch rag": m.switched(),
    "mode switch rag": m.switched(),
    "switch rag --no-wait": m.switched("running"),
}
OTHERS = [
    "simulate big",
    "mode show blank",
    "mode create new vllm-embedding whisper --name New",
    "mode delete rag",
    "service logs whisper",
    "service explain whisper",
    "service start whisper",
    "service stop whisper",
    "events -n 3",
    "reload",
    "check",
    "version",
    "operation show 8",
    "operation wait 8",
    "switch big",
    "switch fragile",
]


@pytest.mark.parametrize("line", QUERIES)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_json_is_the_result_of_the_method(ctl, line, place):
    result = ctl("--json", *line.split()) if place == "before" else ctl(*line.split(), "--json")
    assert result.returncode == 0
    assert result.stderr == ""
    assert json.loads(result.stdout) == msgspec.to_builtins(QUERIES[line])


@pytest.mark.parametrize("line", [*QUERIES, *OTHERS])
@pytest.mark.parametrize("columns", [None, "40"])
def test_no_line_is_wider_than_the_terminal(ctl, line, columns):
    result = ctl(*line.split(), **({"COLUMNS": columns} if columns else {}))
    limit = int(columns or 80)
    # Logs, places, versions and verdicts are never cut.
    prose = ("services/", "2026-", "gpumodd ", "line ", "redover", "Fits:", "Does not fit:", "Reloaded:")
    prose += ("Nothing is started on GPU",)
    for shown in result.stdout.splitlines():
        assert width(shown) <= limit or shown.startswith(prose), shown
    assert "\x1b" not in result.stdout + result.stderr
    assert "\u202e" not in result.stdout + result.stderr


def test_status(ctl):
    out = ctl("status").stdout
    assert out.startswith("Mode:   rag\nState:  degraded\n")
    assert "GPU 0  NVIDIA GeForce RTX 4090  ███░░░░░░░░░░░░░  5230 / 24564 MiB\n" in out
    assert "       vllm-embedding 4900 MiB, vllm-embedding-code 200 of 2500 MiB\n" in out
    assert "       being released: whisper 100 MiB\n" in out
    foreign = (
        "foreign 330 MiB: Xorg (pid 1) 200 MiB, silent (pid 12) an unknown part, 130 MiB that no listed process holds"
    )
    assert foreign in " ".join(out.split())
    assert "       left for services: 12500 MiB (reserve 512, limit 20000)\n" in out
    assert "port_conflict (vllm-embedding-code): cannot tell\n    hint: stop nginx" in out
    assert out.endswith("Next: `gpumodctl service explain vllm-embedding-code`\n")


def test_what_is_not_in_the_mode_is_marked_however_long_its_id_is(tmp_path):
    long = "a-service-with-an-id-that-is-longer-than-any-column-has-room-for-64"
    services = [
        t.Service(id=long, name="", driver="exec", model=None, phase="ready", port=65535, mode_member=mode_member)
        for mode_member in (False, True)
    ]
    status = t.Status(mode="rag", desired_mode="rag", state="converged", services=services)
    with served(tmp_path / "s", m.HANDLERS | {"status.get": lambda _s, _p: status}):
        out = run("status", socket=tmp_path / "s", COLUMNS="60").stdout
    marked, plain = [line for line in out.splitlines() if "a-service" in line]
    assert marked.startswith("*  a-service")
    assert plain.startswith("   a-service")


def test_a_status_after_a_failure_says_so_and_what_to_type(tmp_path):
    handlers = m.HANDLERS | {"operation.list": lambda _s, _p: [m.ROLLED_BACK]}
    with served(tmp_path / "s", handlers):
        out = " ".join(run("status", socket=tmp_path / "s").stdout.split())
    assert "Last: switch rag rolled back" in out
    assert "ago: cannot start vllm-embedding: it was not healthy within 300 s" in out
    assert out.endswith("`gpumodctl operation show 7`")


def test_status_on_an_ascii_terminal(ctl):
    out = ctl("status", PYTHONIOENCODING="ascii", PYTHONUTF8="0").stdout
    assert out.isascii()
    assert "###............." in out


def test_device_list_says_what_no_table_has_room_for(ctl):
    out = ctl("device", "list").stdout
    assert "\nGPU 0  GPU-0000, limit 20000 MiB, 95 °C\n" in out
    assert "\nNothing is started on GPU 0: it is close to switching off at 95 °C" in out


def test_mode_list(ctl):
    head, blank, rag = ctl("mode", "list").stdout.splitlines()
    assert head.split("  ")[0] == "ID"
    assert [word.strip() for word in head.split("  ") if word.strip()] == [
        "ID",
        "Name",
        "Description",
        "Total VRAM (MiB)",
    ]
    assert blank.split()[0] == "blank"
    assert blank.split()[-1] == "0"
    assert rag.split()[0] == "rag"
    assert rag.split()[-1] == "7500"
    assert "…" in rag


def test_mode_status(ctl):
    out = ctl("mode", "status").stdout
    for label in ("Active Mode: rag", "Name:        RAG", "Description: dual", "Services:    vllm-embedding, vllm-"):
        assert label in out
    assert "Total VRAM:  7500 MiB" in out


def test_simulate_opens_with_the_verdict(ctl):
    lines = ctl("simulate", "rag").stdout.splitlines()
    assert lines[0] == "Fits: 7500 / 24564 MiB (headroom: 17064 MiB)"
    assert lines[2].split("  ")[0] == "ID"
    assert lines[2].split() == ["ID", "Name", "Driver", "VRAM", "(MiB)"]
    assert lines[3].split() == ["vllm-embedding", "Embedding", "vllm", "5000"]


def test_simulate_of_what_does_not_fit(ctl):
    result = ctl("simulate", "big")
    lines = result.stdout.splitlines()
    assert lines[0] == "GPU 0 RTX 4090:"
    assert lines[1] == "Does not fit: 30000 / 24564 MiB (headroom: -6278 MiB)"
    assert lines[2].strip() == "less reserve 512 MiB, foreign 330 MiB"
    assert lines[3:5] == ["GPU 1 RTX A400:", "Fits: 0 / 4094 MiB (headroom: 4094 MiB)"]
    assert "vram_insufficient: giant needs 30000 MiB" in result.stdout
    assert result.stdout.split("To make it fit, one of:\n")[1].splitlines()[:3] == [
        "  run giant with a context of 4096",
        "  stop whisper (pinned) (about 1 min 15 s to load again)",
        "  leave out giant",
    ]
    assert result.stdout.endswith("\nNote: giant: its memory is declared\n")
    assert result.returncode == 4


def test_simulate_takes_a_list_of_services_and_contexts(ctl):
    out = ctl("simulate", "--services", "a,b", "--context", "a=4096", "--context", "x=y=8").stdout
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["a", "b"]
    assert "Note: context: {'a': 4096, 'x=y': 8}" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give either a MODE or --services A,B,…"),
        (("rag", "--services", "a"), "give either a MODE or --services A,B,…"),
        (("rag", "--context", "a"), "cannot use --context 'a': it is not SERVICE=N"),
        (("rag", "--context", "=8"), "cannot use --context '=8'"),
        (("rag", "--context", "a=0"), "cannot use --context 'a=0'"),
        (("rag", "--context", "a=-1"), "cannot use --context 'a=-1'"),
        (("rag", "--context", "a=٣"), "cannot use --context"),
        (("rag", "--context", "a=" + "9" * 5000), "cannot use --context"),
    ],
)
def test_simulate_without_sense_is_a_usage_error(ctl, words, said):
    result = ctl("simulate", *words)
    assert result.returncode == 2
    assert said in result.stderr


def test_a_refusal_says_what_else_would_make_it_fit(ctl):
    assert ctl("switch", "big").stderr.splitlines()[1:5] == [
        "hint: sleep something",
        "      or stop whisper (pinned) (about 1 min 15 s to load again)",
        "      or leave out giant",
        "  vram_insufficient: needs 30000 MiB of 24052 MiB",
    ]


def test_switch_shows_only_the_blocks_that_have_something(ctl):
    result = ctl("switch", "rag")
    assert result.stdout == (
        "Mode rag is active (3.2 s).\nStarted:\n  vllm-embedding\nStopped:\n  whisper\nKept:\n  vllm-embedding-code\n"
    )
    assert result.stderr == "stop whisper: done\nstart vllm-embedding: done\nwait ready vllm-embedding: done\n"


def test_switch_without_waiting(ctl):
    result = ctl("switch", "rag", "--no-wait")
    assert result.stdout == "Operation 7 has begun.\n"
    assert "gpumodctl operation wait 7" in result.stderr


def test_an_operation_tells_its_story_and_the_way_back_apart(ctl):
    out = ctl("operation", "show", "8", COLUMNS="100").stdout
    there, back = out.split("The way back: cannot start vllm-embedding")
    assert "State:     rolled back\nWhy:       asked by alice\nForced:    yes\nPassed:    vram_unknown: cannot" in there
    assert "Way back:  started whisper; stopped vllm-embedding\n" in there
    assert "*   +0.0 s    0.5 s  ✓ stop whisper\n                    not part of what is wanted\n" in there
    assert "*   +0.5 s    1.5 s  ✗ start vllm-embedding (failed)\n                    health_timeout: cannot" in there
    assert (
        "· wait ready vllm-embedding (pending)\n                    health; waits until vllm-embedding is sta" in there
    )
    assert "    +2.0 s    1.2 s  ✓ start whisper\n                    wanted, 1500 MiB on device 0\n" in back
    assert "* on the critical path" in back


def test_what_was_forced_says_so_wherever_it_is_listed(tmp_path):
    handlers = m.HANDLERS | {"operation.list": lambda _s, _p: [m.ROLLED_BACK]}
    with served(tmp_path / "s", handlers):
        assert "rolled back (forced)" in run("operation", "list", socket=tmp_path / "s").stdout
        waited = run("operation", "wait", "8", socket=tmp_path / "s").stdout
    assert "Let through: vram_unknown: cannot start vllm-embedding" in waited


def test_an_operation_on_an_ascii_terminal(ctl):
    out = ctl("operation", "show", "8", PYTHONIOENCODING="ascii", PYTHONUTF8="0").stdout
    assert out.isascii()
    assert "! start vllm-embedding (failed)" in out


def test_logs_cannot_touch_the_terminal(ctl):
    assert ctl("service", "logs", "whisper", "-n", "2").stdout == "line 99\nredover evil\n"


def test_events_are_lines(ctl):
    lines = ctl("events", "-n", "15", COLUMNS="200").stdout.splitlines()
    assert [line.split("  ", 3)[0] for line in lines] == ["2026-01-02T03:04:05Z"] * 15
    assert [line[41:] for line in lines] == [
        "service=whisper phase=ready cursor=1",
        "whisper: loading → ready",
        "7 switch rag running",
        "7 switch rag: stop whisper done in 0.5 s",
        "7 switch rag: start vllm-embedding failed: cannot start vllm-embedding: it was not healthy within 300 s",
        "7 switch rag turns back: it broke",
        "7 switch rag rolled back: it broke",
        "rag",
        "rag, wanted: chat",
        "GPU 0 RTX: lost: it cannot be used",
        "devices: problem: it cannot be used",
        "gave_up: a is left alone",
        "gave_up is over: a is left alone",
        "reloaded: 1 added, 0 changed, 0 removed, 1 errors",
        "dropped=true hint=too slow",
    ]
    documents = [json.loads(line) for line in ctl("events", "-n", "3", "--json").stdout.splitlines()]
    assert [event["cursor"] for event in documents] == [1, 2, 3]


def test_reload_tells_what_changed_and_what_is_wrong(ctl):
    result = ctl("reload", "--restart-changed")
    assert result.stdout.startswith("Reloaded: 1 added, 1 changed, 0 removed, 2 unchanged.\n")
    assert "Restarted:\n  b" in result.stdout
    assert result.stderr == "services/x.yaml:3:1: port: cannot read 'x'\n"
    assert result.returncode == 1


def test_check_lists_problems(ctl):
    result = ctl("check")
    assert result.stdout == "services/x.yaml:3:1: port: cannot read 'x'\n"
    assert result.returncode == 1


def test_version_of_both(ctl, tmp_path):
    from gpumodd import __version__

    assert ctl("version").stdout.splitlines()[0] == f"gpumodctl {__version__}"
    assert "gpumodd 1.2.3 (pid 4711" in ctl("version").stdout
    assert ctl("--version").stdout == f"gpumodctl {__version__}\n"
    away = ctl("version", "--socket", str(tmp_path / "none"))
    assert (away.returncode, away.stdout) == (0, f"gpumodctl {__version__}\ngpumodd not reachable\n")
    assert json.loads(ctl("version", "--json", "--socket", str(tmp_path / "none")).stdout)["gpumodd"] is None


def test_options_reach_the_method(ctl):
    refusal = ctl("service", "restart", "whisper", "--force", "--json")
    assert refusal.returncode == 4
    created = ctl("mode", "create", "new", "a", "b", "--name", "N", "--description", "D", "--json").stdout
    assert json.loads(created) == {
        "id": "new",
        "name": "N",
        "description": "D",
        "services": ["a", "b"],
        "vram_mib": None,
        "active": False,
    }


def test_help_names_what_there_is_and_nothing_else(ctl):
    result = ctl("--help")
    assert result.returncode == 0
    commands = {line.split()[0] for line in result.stdout.split("Commands:\n")[1].split("\n\n")[0].splitlines()}
    assert commands == {
        "status",
        "switch",
        "simulate",
        "mode",
        "service",
        "device",
        "model",
        "operation",
        "events",
        "reload",
        "check",
        "version",
        "completion",
    }
    words = ctl("service", "--help").stdout.split("Commands:\n")[1].split()
    assert "sleep" not in words
    assert "wake" not in words


def test_watch_shows_the_status_again_when_something_happens(tmp_path):
    async def tick(session):
        while session.notify("event", {"cursor": 1, "at": "", "topic": "mode"}):
            await anyio.sleep(0.02)

    handlers = m.HANDLERS | {"events.subscribe": lambda session, _p: Reply({}, then=lambda: tick(session))}
    with (
        served(tmp_path / "s", handlers),
        subprocess.Popen(
            [sys.executable, "-m", "gpumodctl", "status", "--watch", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(GPUMODD_SOCKET=str(tmp_path / "s")),
        ) as watching,
    ):
        for _ in range(2):
            assert json.loads(watching.stdout.readline())["mode"] == "rag"
        watching.stdout.close()  # like `| head -2`: it ends by itself, quietly
        assert watching.wait(timeout=20) == 0
        assert watching.stderr.read() == ""
