"""Ways to break what gpumodd promises: each takes one safeguard out of the code.

A safeguard that can be taken out without a test noticing is not held up by anything. Whoever rewrites one of these
lines rewrites the mutant; one that no longer applies fails its test by name.
"""

from dataclasses import dataclass

PLANNER = "tests/core/test_properties_planner.py"
ENGINE = "tests/core/test_properties_engine.py"
LEDGER = "tests/core/test_ledger.py"
SWITCHES = "tests/core/test_engine.py"
RACES = "tests/core/test_races.py"
DISPATCH = "tests/runtime/test_dispatch.py"
ALTERNATIVES = "tests/core/test_alternatives.py"
RECORD = "tests/runtime/test_record.py"


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """`before` stands exactly once in `file`; with `after` in its place, one of `suites` has to fail."""

    name: str
    file: str
    before: str
    after: str
    suites: tuple[str, ...]


MUTANTS = (
    # -- the ledger
    Mutant(
        name="a service counts only with what it was seen to hold",
        file="gpumodd/core/world.py",
        before="found[uuid][service] = max(mib, found[uuid].get(service, 0))",
        after="found[uuid][service] = max(0, found[uuid].get(service, 0))",
        suites=(RACES, ENGINE),
    ),
    Mutant(
        name="foreign memory is not subtracted",
        file="gpumodd/core/ledger.py",
        before="physical = self.total_mib - self.reserve_mib - self.foreign_mib",
        after="physical = self.total_mib - self.reserve_mib",
        suites=(LEDGER, SWITCHES, PLANNER),
    ),
    Mutant(
        name="the host's memory is not handed out by the books",
        file="gpumodd/core/credits.py",
        before="needs[HOST] = view.spec.ram_mib",
        after="needs[HOST] = 0",
        suites=("tests/core/test_host_memory.py", PLANNER),
    ),
    # -- the release wait
    Mutant(
        name="a start does not wait for the releases it draws on",
        file="gpumodd/core/book.py",
        before="steps.add(credit.step)",
        after="steps.discard(credit.step)",
        suites=(PLANNER,),
    ),
    Mutant(
        name="a release counts as verified as soon as its process is gone",
        file="gpumodd/core/ledger.py",
        before="and shares[s] <= TOLERANCE_MIB",
        after="and shares[s] >= 0",
        suites=(LEDGER, SWITCHES, ENGINE),
    ),
    Mutant(
        name="memory that has not come back is in nobody's books",
        file="gpumodd/core/world.py",
        before="found[service] = found.get(service, 0) + mib",
        after="found[service] = found.get(service, 0)",
        suites=(ENGINE,),
    ),
    # -- the journal write
    Mutant(
        name="commands are given before they are saved",
        file="gpumodd/core/journal.py",
        before="self._outbox.emit_first(fx.Save(",
        after="self._outbox.emit(fx.Save(",
        suites=(ENGINE,),
    ),
    Mutant(
        name="what follows a save that failed is carried out",
        file="gpumodd/runtime/dispatch.py",
        before="await self._give_up(batch[i + 1 :])\n                        return",
        after="continue",
        suites=(DISPATCH,),
    ),
    # -- the order
    Mutant(
        name="a start does not wait for what it depends on",
        file="gpumodd/core/planner.py",
        before="after |= {(Verb.WAIT_READY, d) for d in spec.depends_on if d in waiting and d in placed}",
        after="",
        suites=(PLANNER,),
    ),
    Mutant(
        name="dependents are not stopped first",
        file="gpumodd/core/planner.py",
        before="after=() if view.stopping else tuple((Verb.STOP, o) for o in dependents),",
        after="after=(),",
        suites=(PLANNER,),
    ),
    # -- what is known
    Mutant(
        name="stale figures start things",
        file="gpumodd/core/world.py",
        before='return "telemetry_stale" if unread or old else ""',
        after='return ""',
        suites=(ENGINE,),
    ),
    Mutant(
        name="a late answer of another run counts for this one",
        file="gpumodd/core/fold.py",
        before="or fact.invocation != track.invocation:",
        after="or False:",
        suites=("tests/core/test_fold.py", ENGINE),
    ),
    # -- the recording
    Mutant(
        name="a replayed state is not compared",
        file="gpumodd/runtime/replay.py",
        before="if recorded != now:",
        after="if recorded is None:",
        suites=(RECORD,),
    ),
    Mutant(
        name="a decision depends on what is not in the state",
        file="gpumodd/core/setbacks.py",
        before="return 0.8 + 0.4 * (seed % 101) / 100",
        after="return 0.8 + 0.4 * (id(object()) % 101) / 100",
        suites=(ENGINE,),
    ),
    # -- what would fit instead
    Mutant(
        name="what is offered was not planned to its end",
        file="gpumodd/core/alternatives.py",
        before="made if not lacks_memory(made) and not new and",
        after="made if not new and",
        suites=(ALTERNATIVES,),
    ),
    Mutant(
        name="a simulation leaves out what is in the way",
        file="gpumodd/core/simulation.py",
        before="reasons=tuple(requests.reasons_against(state, intent, proposed, facts.services)),",
        after="reasons=(),",
        suites=(ENGINE,),
    ),
)
