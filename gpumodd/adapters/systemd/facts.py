"""From systemd's properties to UnitFact, and the one judgement in it: did a job end the run, or did it end itself?

Owns no connection and no clock; all of it is a function of what the manager said, in the order it said it.

systemd reports a change as two signals, first the service's properties, then the unit's (bus_unit_send_pending_
change_signal in its src/core/dbus-unit.c), and sends what is pending before it says that a job is removed. So a
unit's signal closes a snapshot, its `Job` is the job in whose course the change happened, and no change is hidden
by the next one although a unit that has ended may be unloaded at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gpumodd.core.facts import Active, Ended, UnitFact

CLD_EXITED = 1  # the codes of waitid(2), as ExecMainCode has them
MICROSECOND = 1e-6
EARLY_US = 1_000_000
SET_BACK_US = 1_000_000  # a clock that is only slewed does not drift as far within a run's first minutes
GONE = (Active.INACTIVE, Active.FAILED)
RUNS = (Active.ACTIVE, Active.ACTIVATING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The clocks at one moment, in seconds: systemd reports monotonic time, a fact has CLOCK_BOOTTIME."""

    boottime: float
    monotonic: float

    def since(self, monotonic_us: int) -> float | None:
        """Boot time of a moment that lies as far back as the unit has lived since. Deadlines count from it, so a
        suspend in between, during which the monotonic clock stands still, is left out; and the wall clock may jump."""
        return self.boottime - (self.monotonic - monotonic_us * MICROSECOND) if monotonic_us else None


@dataclass(slots=True)
class UnitState:
    """What is known of one unit."""

    service: str
    fact: UnitFact | None = None
    asked_us: int = 0  # wall time of our newest StartUnit
    started_us: int = 0  # wall time from when on output is the newest run's; what the journal understands
    began_us: int = 0  # the same start by the monotonic clock
    ended_us: int = 0  # wall time when the newest run ended
    pending: dict[str, Any] = field(default_factory=dict)  # the service's properties, until the unit's come
    start_job: int = 0  # the job that began the run; any other job that is there when it ends has ended it

    def fold(
        self, properties: Mapping[str, Any], times: Times, *, continuous: bool = True, survivors: tuple[int, ...] = ()
    ) -> UnitFact:
        """Take over a complete set of properties. Without `continuous` nobody has watched for a while: something may
        have happened in between, and how a run ended is then unknown. `survivors` are left of a unit that the manager
        has given up on."""
        active = active_state(str(properties.get("ActiveState", "")))
        invocation = bytes(properties.get("InvocationID", b"")).hex()
        job = int((properties.get("Job") or (0, "/"))[0])
        main_pid = int(properties.get("MainPID", 0)) or None
        before = self.fact
        if job or active not in GONE:
            survivors = ()  # while a job is under way, these may be the next run's
        if active in GONE and main_pid and not survivors:  # a start in the making: the next change tells of the new run
            if before is not None:
                return before
            invocation, main_pid = "", None
        new_run = bool(invocation) and (before is None or before.invocation != invocation)
        if new_run:
            self.start_job = job if continuous or active is Active.ACTIVATING else 0
        ended = None if new_run or before is None or active in RUNS else before.ended
        left = active not in RUNS and (new_run or (before is not None and before.active in RUNS))
        if left and (continuous or active not in GONE):
            ended = Ended.JOB if job and job != self.start_job else Ended.EXIT
        self._take_times(properties, new_run=new_run)
        result = str(properties.get("Result", ""))
        self.fact = UnitFact(
            service=self.service,
            active=active,
            at=times.boottime,
            sub=str(properties.get("SubState", "")),
            main_pid=main_pid,
            # systemd forgets a run when it unloads its unit; we do not.
            invocation=invocation or (before.invocation if before else ""),
            result=result,
            exit_code=exit_code(result, properties) if active not in RUNS else None,
            ended=ended,
            since=times.since(int(properties.get("StateChangeTimestampMonotonic", 0))),
            pids=survivors,
        )
        return self.fact

    def _take_times(self, properties: Mapping[str, Any], *, new_run: bool) -> None:
        """systemd takes the time of a start after the fork, when the first lines may be written already. Nothing of
        them is older than what asked for the start, if that was us, nor than the end of the run before."""
        left, entered = (int(properties.get(f"Inactive{way}Timestamp", 0)) for way in ("Exit", "Enter"))
        if new_run and left:
            bounds = (left - EARLY_US, self.asked_us, self.ended_us, entered)
            self.started_us = max(bound for bound in bounds if bound <= left)
            self.began_us = int(properties.get("InactiveExitTimestampMonotonic", 0))
        self.ended_us = max(self.ended_us, entered)

    def output_since_us(self, wall_us: int, monotonic_us: int) -> int:
        """Wall time from when on output is the newest run's, as the wall clock goes now: when it was set back since
        the start, what was written after that bears earlier times."""
        by_age_us = wall_us - (monotonic_us - self.began_us)
        set_back = bool(self.began_us) and by_age_us < self.started_us - SET_BACK_US
        return max(1, by_age_us - EARLY_US) if set_back else self.started_us

    def unloaded(self, at: float, *, survivors: tuple[int, ...] = ()) -> UnitFact:
        """The manager does not know this unit: it does not run, and how it ended is known if it was seen."""
        before = self.fact
        if before is not None and before.active in GONE:
            self.fact = replace(before, active=Active.INACTIVE, sub="dead", at=at, pids=survivors)
        else:
            invocation = before.invocation if before else ""
            self.fact = UnitFact(
                service=self.service, active=Active.INACTIVE, at=at, sub="dead", invocation=invocation, pids=survivors
            )
        return self.fact


def active_state(text: str) -> Active:
    """systemd's newer words are kinds of older ones."""
    if text in ("reloading", "refreshing"):
        return Active.ACTIVE
    if text == "maintenance":
        return Active.INACTIVE
    try:
        return Active(text)
    except ValueError:
        return Active.UNKNOWN


def exit_code(result: str, properties: Mapping[str, Any]) -> int | None:
    """The exit status, or the signal's number where a signal is what went wrong; a clean end by SIGTERM has none."""
    code, status = int(properties.get("ExecMainCode", 0)), int(properties.get("ExecMainStatus", 0))
    if not code:
        return None
    return status if code == CLD_EXITED or result != "success" else None


def plain(properties: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Properties without their variant signatures."""
    return {name: value for name, (_, value) in properties.items()}
