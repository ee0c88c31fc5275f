"""Wishes: what is desired once somebody has asked."""

import pytest

from gpumodd.core.desired import (
    Claim,
    Desired,
    after_start,
    after_stop,
    after_switch,
    closure,
    dependents,
    undone,
)
from gpumodd.core.specs import BLANK, ModeSpec, ServiceSpec

SPECS = {
    "db": ServiceSpec(id="db"),
    "api": ServiceSpec(id="api", depends_on=("db",)),
    "web": ServiceSpec(id="web", depends_on=("api",)),
    "tts": ServiceSpec(id="tts", pinned=True),
}
LEASE = Claim(kind="lease", owner="editor", services=("db",))
WEB, API = ModeSpec(id="web", services=("web",)), ModeSpec(id="api", services=("api",))


def mode(wanted, before=None):
    return after_switch(before or Desired(), wanted, SPECS)


def test_what_is_claimed_brings_what_it_depends_on():
    assert mode(WEB).services(SPECS) == {"web", "api", "db"}
    assert closure(["web", "gone"], SPECS) == {"web", "api", "db"}
    assert dependents(["db"], SPECS) == {"api", "web"}


def test_a_switch_replaces_manual_starts_and_clears_manual_stops():
    before = after_stop(after_start(mode(API), "web", SPECS), ["db"], SPECS)
    assert mode(API, before).services(SPECS) == {"api", "db"}
    assert mode(API, before).stopped == ()


def test_pinned_services_and_leases_stay_in_a_switch():
    before = after_start(Desired(claims=(LEASE,)), "tts", SPECS)
    assert mode(ModeSpec(id="none"), before).services(SPECS) == {"tts", "db"}


def test_blank_ends_everything():
    before = after_start(Desired(claims=(LEASE,)), "tts", SPECS)
    assert mode(BLANK, before).services(SPECS) == frozenset()


def test_a_start_claims_once_and_lifts_the_stops_in_its_way():
    stopped = after_stop(mode(WEB), ["db"], SPECS)
    started = after_start(stopped, "web", SPECS)
    assert started.services(SPECS) == {"web", "api", "db"}
    assert after_start(started, "web", SPECS) == started


def test_a_stop_outweighs_a_claim_and_stops_what_needs_it():
    assert after_stop(mode(WEB), ["api"], SPECS).services(SPECS) == {"db"}
    assert after_stop(mode(WEB), ["db"], SPECS).services(SPECS) == frozenset()


def test_a_stop_of_a_manual_start_leaves_what_only_that_needed():
    left = after_stop(after_start(Desired(), "api", SPECS), ["api"], SPECS)
    assert left.services(SPECS) == {"db"}


@pytest.mark.parametrize("later", [False, True])
def test_what_is_undone_is_no_more_than_was_asked(later):
    before = mode(API)
    after = mode(WEB, before)
    now = after_start(after, "tts", SPECS) if later else after
    back = undone(now, before=before, after=after)
    assert back.mode == "api"
    assert back.services(SPECS) == {"api", "db"} | ({"tts"} if later else set())
    assert undone(back, before=before, after=after) == back


def test_a_stop_is_undone_too():
    before = mode(API)
    after = after_stop(before, ["api"], SPECS)
    assert undone(after, before=before, after=after).services(SPECS) == before.services(SPECS)
