"""What systemd's properties mean, one run at a time, as its manager signals them."""

from typing import Any

import pytest

from gpumodd.adapters.systemd.facts import Times, UnitState
from gpumodd.adapters.systemd.jobs import Jobs
from gpumodd.adapters.systemd.units import service_of_path
from gpumodd.core.facts import Active, Ended, UnitFact
from gpumodd.ports import JobResult

NOW = Times(boottime=5000.0, monotonic=4000.0)
FIRST, SECOND = b"\x01" * 16, b"\x02" * 16
START, STOP = 12, 13


class Story:
    """Signals of one unit, in order."""

    def __init__(self) -> None:
        self.state = UnitState("a")

    def says(self, active: str, *, job: int = 0, run: bytes = FIRST, result: str = "success", pid: int = 0,
             code: int = 0, status: int = 0, continuous: bool = True,
             survivors: tuple[int, ...] = ()) -> UnitFact:  # fmt: skip
        properties: dict[str, Any] = {
            "ActiveState": active, "SubState": "sub", "InvocationID": run, "Job": (job, "/job"), "Result": result,
            "MainPID": pid, "ExecMainCode": code, "ExecMainStatus": status,
        }  # fmt: skip
        return self.state.fold(properties, NOW, continuous=continuous, survivors=survivors)

    def started(self, run: bytes = FIRST, job: int = START) -> None:
        self.says("activating", job=job, run=run, pid=7)
        self.says("active", job=job, run=run, pid=7)
        self.says("active", run=run, pid=7)


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_stop_job(story: Story) -> None:
    story.started()
    story.says("active", job=STOP, pid=7)
    assert story.says("deactivating", job=STOP, pid=7).ended is Ended.JOB
    assert story.says("inactive", job=STOP).ended is Ended.JOB
    assert story.says("inactive").ended is Ended.JOB


def test_who_is_in_the_cgroup_while_a_job_is_under_way_may_be_the_next_run(story: Story) -> None:
    story.started()
    story.says("deactivating", job=STOP, pid=7)
    assert story.says("inactive", job=STOP, survivors=(8,)).gone


@pytest.mark.parametrize("main_pid", [7, 0])
def test_who_survives_sigkill_is_not_gone_although_systemd_gives_up(story: Story, main_pid: int) -> None:
    story.started()
    story.says("deactivating", job=STOP, pid=7)
    story.says("failed", job=STOP, pid=main_pid, result="timeout", survivors=(7,))
    assert not story.says("failed", pid=main_pid, result="timeout", survivors=(7,)).gone
    fact = story.says("failed", result="timeout", code=2, status=9)
    assert (fact.gone, fact.ended) == (True, Ended.JOB)


def test_who_survived_the_last_daemon_is_not_gone(story: Story) -> None:
    assert story.says("failed", pid=7, result="timeout", continuous=False, survivors=(7,)).gone is False
    assert story.state.unloaded(6000.0, survivors=(7,)).gone is False
    assert story.state.unloaded(6001.0).gone is True


@pytest.mark.parametrize(
    ("result", "code", "status"),
    [
        ("exit-code", 1, 3),
        ("success", 1, 0),
        ("signal", 2, 11),
        ("core-dump", 3, 6),
        ("oom-kill", 2, 9),
        ("watchdog", 2, 6),
    ],
)
def test_an_end_without_a_job(story: Story, result: str, code: int, status: int) -> None:
    story.started()
    fact = story.says("inactive" if result == "success" else "failed", result=result, code=code, status=status)
    assert (fact.ended, fact.result, fact.exit_code) == (Ended.EXIT, result, status)


def test_a_clean_end_by_a_signal_has_no_exit_status(story: Story) -> None:
    story.started()
    assert story.says("inactive", job=STOP, result="success", code=2, status=15).exit_code is None


def test_a_stop_after_a_crash_does_not_change_the_story(story: Story) -> None:
    story.started()
    assert story.says("deactivating", result="exit-code").ended is Ended.EXIT
    assert story.says("deactivating", job=STOP, result="exit-code").ended is Ended.EXIT
    assert story.says("failed", job=STOP, result="exit-code").ended is Ended.EXIT


def test_a_start_that_fails_is_not_ended_by_its_own_job(story: Story) -> None:
    story.says("activating", job=START, pid=7)
    assert story.says("failed", job=START, result="exit-code", code=1, status=203).ended is Ended.EXIT


def test_a_stop_while_it_starts(story: Story) -> None:
    story.says("activating", job=START, pid=7)
    story.says("activating", job=STOP, pid=7)
    assert story.says("deactivating", job=STOP, pid=7).ended is Ended.JOB


def test_a_run_that_is_over_before_it_is_seen(story: Story) -> None:
    assert story.says("failed", job=START, result="resources").ended is Ended.EXIT


def test_a_restart_is_two_runs(story: Story) -> None:
    story.started()
    assert story.says("deactivating", job=20, pid=7).ended is Ended.JOB
    assert story.says("inactive", job=20).ended is Ended.JOB
    assert story.says("inactive", job=20, run=SECOND, pid=8).invocation == FIRST.hex(), "not yet a run that ended"
    fact = story.says("activating", job=20, run=SECOND, pid=8)
    assert (fact.ended, fact.invocation) == (None, SECOND.hex())
    story.says("active", run=SECOND, pid=8)
    assert story.says("failed", run=SECOND, result="signal", code=2, status=9).ended is Ended.EXIT


def test_a_start_after_a_failure_does_not_look_like_a_failure(story: Story) -> None:
    story.started()
    failed = story.says("failed", result="exit-code", code=1, status=3)
    assert story.says("failed", job=30, run=SECOND, pid=8) is failed
    assert story.says("activating", job=30, run=SECOND, pid=8).ended is None


def test_a_start_during_a_stop(story: Story) -> None:
    story.started()
    story.says("deactivating", job=STOP, pid=7)
    assert story.says("deactivating", job=30, pid=7).ended is Ended.JOB
    assert story.says("inactive", job=30).ended is Ended.JOB
    assert story.says("activating", job=30, run=SECOND, pid=8).ended is None


def test_found_running_then_stopped(story: Story) -> None:
    assert story.says("active", pid=7, continuous=False).ended is None
    assert story.says("deactivating", job=STOP).ended is Ended.JOB


def test_found_while_it_starts(story: Story) -> None:
    story.says("activating", job=START, pid=7, continuous=False)
    assert story.says("failed", job=START, result="exit-code").ended is Ended.EXIT


def test_found_ended_nobody_knows_how(story: Story) -> None:
    assert story.says("failed", result="exit-code", code=1, status=3, continuous=False).ended is None
    other = Story()
    other.started()
    assert other.says("failed", result="exit-code", continuous=False).ended is None, "it ended while the bus was away"


def test_an_unloaded_unit_keeps_its_last_words(story: Story) -> None:
    story.started()
    story.says("inactive", code=1, status=0)
    fact = story.state.unloaded(6000.0)
    assert (fact.active, fact.ended, fact.invocation, fact.at) == (Active.INACTIVE, Ended.EXIT, FIRST.hex(), 6000.0)


def test_a_run_that_vanished_while_nobody_looked(story: Story) -> None:
    story.started()
    fact = story.state.unloaded(6000.0)
    assert (fact.active, fact.ended) == (Active.INACTIVE, None)


@pytest.mark.parametrize(
    ("text", "active"),
    [
        ("reloading", Active.ACTIVE),
        ("maintenance", Active.INACTIVE),
        ("refreshing", Active.ACTIVE),
        ("", Active.UNKNOWN),
    ],
)
def test_other_words_of_systemd(story: Story, text: str, active: Active) -> None:
    assert story.says(text).active is active


def test_properties_that_are_missing_are_no_traceback() -> None:
    assert UnitState("a").fold({}, NOW).active is Active.UNKNOWN


def test_since_without_a_suspend_is_the_monotonic_time() -> None:
    assert Times(boottime=4000.0, monotonic=4000.0).since(3_990_000_000) == 3990.0


def test_since_leaves_a_suspend_of_1000_s_out() -> None:
    """Whether it lies before or after: the unit has lived ten seconds."""
    assert NOW.since(3_990_000_000) == pytest.approx(4990.0)
    assert NOW.since(0) is None


async def test_a_job_that_ends_before_its_name_is_known() -> None:
    jobs = Jobs()
    with jobs.expecting():
        jobs.removed("/job/1", "done")
        jobs.removed("/job/2", "failed")
        assert await jobs.wait_for("/job/1") is JobResult.DONE


async def test_jobs_of_others_are_not_kept() -> None:
    jobs = Jobs()
    jobs.removed("/job/1", "done")
    with jobs.expecting():
        assert not jobs.wait_for("/job/1").done()


async def test_every_wait_ends_when_the_bus_is_lost() -> None:
    jobs = Jobs()
    with jobs.expecting():
        waits = [jobs.wait_for("/job/1"), jobs.wait_for("/job/1"), jobs.wait_for("/job/2")]
    waits[0].cancel()
    jobs.lost()
    assert [await wait for wait in waits[1:]] == [JobResult.LOST] * 2


@pytest.mark.parametrize("word", ["invalid", "collected", "frozen", "once", "assert", "unsupported", "a new one"])
async def test_words_for_a_job_that_was_not_carried_out(word: str) -> None:
    jobs = Jobs()
    with jobs.expecting():
        jobs.removed("/job/1", word)
        assert await jobs.wait_for("/job/1") is JobResult.FAILED


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/org/freedesktop/systemd1/unit/gpumod_2da_2eservice", "a"),
        ("/org/freedesktop/systemd1/unit/gpumod_2dvllm_2dchat_2eservice", "vllm-chat"),
        ("/org/freedesktop/systemd1/unit/gpumod_2da_5fb_2eservice", "a_b"),
        ("/org/freedesktop/systemd1/unit/gpumod_2da_2etimer", None),
        ("/org/freedesktop/systemd1/unit/gpumod_2dUPPER_2eservice", None),
        ("/org/freedesktop/systemd1/unit/gpumod_2d_2eservice", None),
        ("/org/freedesktop/systemd1/unit/gpumod_2eslice", None),
        ("/org/freedesktop/systemd1/unit/gpumodd_2eservice", None),
        ("/org/freedesktop/systemd1/job/12", None),
    ],
)
def test_only_our_units_are_looked_at(path: str, service: str | None) -> None:
    assert service_of_path(path) == service


def test_output_of_a_run_is_found_although_the_wall_clock_was_set_meanwhile() -> None:
    state = UnitState("a")
    wall, hour = 1_700_000_000_000_000, 3_600_000_000
    run = {"ActiveState": "active", "InvocationID": FIRST, "InactiveExitTimestamp": wall}
    state.fold({**run, "InactiveExitTimestampMonotonic": 3_990_000_000}, NOW)
    started = state.started_us
    assert started <= wall
    later, now = wall + 10_000_000, 4_000_000_000
    assert state.output_since_us(later, now) == started
    assert state.output_since_us(later + hour, now) == started  # what was written before the jump is older
    assert state.output_since_us(later - 500_000, now) == started  # slewed
    assert state.output_since_us(later - hour, now) <= wall - hour
    assert UnitState("b").output_since_us(later, now) == 0  # nobody knows when it began
