"""The ledger: whose memory it is, what is on its way back, and what is left."""

import pytest

from gpumodd.core.facts import DeviceFact, ProcessFact
from gpumodd.core.ledger import TOLERANCE_MIB, Budget, Leaving, ReleaseWindow, attribute, limit_of, share
from gpumodd.core.specs import DeviceLimit, Policy


def seen(used_mib, *processes, estimates=None):
    device = DeviceFact(uuid="G", index=0, name="Sim", total_mib=24000, used_mib=used_mib, at=1.0, processes=processes)
    return attribute(device, lambda service: (estimates or {}).get(service, 0))


def process(used_mib, service=None, pid=1):
    return ProcessFact(pid=pid, used_mib=used_mib, service=service)


def window(**leaving):
    entries = {s: Leaving(held_mib=held, ended_at=ended) for s, (held, ended) in leaving.items()}
    return ReleaseWindow(baseline_mib=100, leaving=entries)


# -- attribution ----------------------------------------------------------------------------------------------


def test_memory_is_a_service_s_a_stranger_s_or_nobody_s():
    found = seen(9000, process(5000, "a"), process(1000, "a", 2), process(2000, None, 3))
    assert (found.services, found.strangers_mib, found.unlisted_mib) == ({"a": 6000}, 2000, 1000)


def test_where_the_driver_is_silent_the_estimate_stands_in_and_says_so():
    found = seen(9000, process(None, "a"), process(2000, "b", 2), estimates={"a": 4000})
    assert (found.services, found.unlisted_mib) == ({"a": 4000, "b": 2000}, 3000)
    assert found.guessed == {"a"}


def test_a_guess_is_never_more_than_there_is():
    found = seen(3000, process(None, "a"), process(None, "b", 2), estimates={"a": 2000, "b": 2000})
    assert (found.services, found.unlisted_mib) == ({"a": 2000, "b": 1000}, 0)


def test_a_silent_process_that_nothing_estimates_is_listed_with_nothing():
    found = seen(3000, process(None, "a"))
    assert (found.services, found.pids_of, found.unlisted_mib) == ({"a": 0}, {"a"}, 3000)


def test_figures_that_do_not_add_up_never_make_less_than_nothing():
    assert seen(1000, process(5000, "a")).unlisted_mib == 0


# -- releases -------------------------------------------------------------------------------------------------


def test_what_lingers_is_what_is_above_the_level_before():
    assert window(a=(5000, 10.0)).lingering(3100) == {"a": 3000}
    assert window(a=(5000, 10.0)).lingering(50) == {"a": 0}


def test_the_newest_end_lingers_first_and_the_sum_is_exact():
    shares = window(old=(4000, 10.0), new=(2000, 11.0)).lingering(3600)
    assert shares == {"new": 2000, "old": 1500}


def test_who_has_not_ended_lingers_with_nothing():
    assert window(a=(5000, None)).lingering(5100) == {}


@pytest.mark.parametrize(("above_mib", "over"), [(TOLERANCE_MIB, ("a",)), (TOLERANCE_MIB + 1, ())])
def test_crumbs_count_as_released(above_mib, over):
    assert window(a=(5000, 10.0)).settle(100 + above_mib, (), 11.0) == over


def test_a_release_is_verified_by_a_sample_from_after_the_end_that_lists_no_process():
    assert window(a=(5000, 10.0)).settle(100, (), 9.9) == ()
    assert window(a=(5000, 10.0)).settle(100, ("a",), 11.0) == ()
    assert window(a=(5000, None)).settle(100, (), 11.0) == ()
    assert window(a=(5000, 10.0)).settle(100, (), 10.0) == ("a",)


def test_what_is_given_up_is_foreign_from_then_on():
    releases = window(a=(5000, 10.0), b=(1000, 50.0))
    assert releases.give_up(5100, 20.0) == ("a",)
    assert releases.baseline_mib == 100 + 4000
    assert releases.lingering(5100) == {"b": 1000}


# -- budgets --------------------------------------------------------------------------------------------------


def budget(**how):
    given = {"total_mib": 24000, "reserve_mib": 500, "foreign_mib": 1000, "limit_mib": None, "held": {"a": 7000}}
    return Budget(uuid="G", index=0, name="Sim", **{**given, **how})


def test_what_is_available_is_what_is_left_of_the_device():
    assert (budget().capacity_mib, budget().committed_mib, budget().available_mib) == (22500, 7000, 15500)


def test_a_limit_caps_what_services_hold_together():
    assert budget(limit_mib=10000).available_mib == 3000
    assert budget(limit_mib=30000).available_mib == 15500


def test_who_grew_beside_us_can_make_it_less_than_nothing():
    assert budget(foreign_mib=20000).available_mib == -3500


def test_limits_are_in_mib_or_a_share_of_the_device():
    assert limit_of(24000, Policy()) is None
    assert limit_of(24000, Policy(vram_limit_mib=9000)) == 9000
    assert limit_of(24000, Policy(vram_limit_percent=80.0)) == 19200


def test_limits_may_differ_from_device_to_device():
    policy = Policy(vram_limits=(DeviceLimit(device="0", percent=50.0), DeviceLimit(device="GPU-b", mib=7000)))
    assert limit_of(24000, policy, "GPU-a", "0") == 12000
    assert limit_of(24000, policy, "GPU-b", "1") == 7000
    assert limit_of(24000, policy, "GPU-b", "0") == 7000  # named twice
    assert limit_of(10000, policy, "GPU-b", "0") == 5000
    assert limit_of(24000, policy, "GPU-c", "2") is None


def test_a_share_is_rounded_up():
    assert [share(9001, 2), share(9000, 1), share(9000, 0)] == [4501, 9000, 0]
