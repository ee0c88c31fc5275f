"""Simulation: what a wish would lead to, and what would make it fit. The same planner, nothing dispatched.

Owns the way from an intent to a verdict; an admission judges by the same functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpumodd.core import requests
from gpumodd.core.alternatives import Alternative, alternatives
from gpumodd.core.changes import Question, redefined
from gpumodd.core.desired import Claim, Desired, closure
from gpumodd.core.events import Inspected
from gpumodd.core.intents import Intent
from gpumodd.core.planner import plan
from gpumodd.core.plans import Plan, PlanInput
from gpumodd.core.problems import Reason
from gpumodd.core.specs import ServiceSpec
from gpumodd.core.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What would be done, what is in the way, what would fit instead. `asked` is the simulated set, with what it needs;
    `specs` is what each service is taken to be."""

    plan: Plan
    reasons: tuple[Reason, ...]
    alternatives: tuple[Alternative, ...]
    asked: frozenset[str]
    specs: Mapping[str, ServiceSpec]


def simulate(
    state: State, intent: Intent, facts: Inspected, redefinitions: Mapping[str, ServiceSpec] | None = None
) -> Simulated:
    """The verdict on an intent, with some services defined otherwise. The facts are in the state already."""
    wish, given = requests.given_of(state, intent)
    given = redefined(given, redefinitions or {})
    proposed = plan(given)
    question = question_of(state, intent, wish, given)
    return Simulated(
        plan=proposed,
        reasons=tuple(requests.reasons_against(state, intent, proposed, facts.services)),
        alternatives=alternatives(question),
        asked=closure(question.asked, question.specs) & given.wanted,
        specs=question.specs,
    )


def would_fit(state: State, intent: Intent) -> tuple[Alternative, ...]:
    """What would make an intent fit that is refused."""
    return alternatives(question_of(state, intent, *requests.given_of(state, intent)))


def question_of(state: State, intent: Intent, wish: Desired, given: PlanInput) -> Question:
    """Who wants what of a plan's input, and what is known of those whose memory is in the way."""
    named = intent.mode.services if intent.mode is not None else (intent.target,)
    others: dict[str, str] = {}
    own = ("manual" if intent.mode is None else "mode", intent.target)
    for claim in wish.claims:
        if (claim.kind, claim.owner) != own:
            others.update((s, _on_behalf_of(claim, state)) for s in claim.services)
    held = wish.services(state.catalog.services)
    others.update((s, "runs, though nothing asks for it") for s in given.wanted - held if s in given.services)
    devices = state.devices.devices if state.devices is not None else ()
    return Question(
        given=replace(given, lenient=frozenset()),  # what fits needs no leniency
        asked=frozenset(named) & given.wanted,
        others={s: whose for s, whose in sorted(others.items()) if s in given.wanted},
        strangers={d.uuid: tuple(p for p in d.processes if p.service is None) for d in devices},
    )


def _on_behalf_of(claim: Claim, state: State) -> str:
    match claim.kind:
        case "mode":
            return f"part of mode {claim.owner}"
        case "manual":
            pinned = any(state.catalog.services[s].pinned for s in claim.services if s in state.catalog.services)
            return "pinned" if pinned else "started by hand"
        case _:
            return f"{claim.kind} of {claim.owner}"
