"""Subscribers get what they ask for, in order; the slow are dropped and can come back."""

from gpumodd.runtime.bus import BACKLOG, QUEUE, Bus


async def test_topics_and_order():
    bus = Bus()
    everything, steps = bus.subscribe(), bus.subscribe(["operation"])
    bus.publish(1.0, "service", {"n": 1})
    bus.publish(2.0, "operation", {"n": 2})
    first, second = await everything.get(), await everything.get()
    only = await steps.get()
    assert first and second and only
    assert [first.cursor, second.cursor, only.cursor] == [1, 2, 2]


async def test_resuming_behind_a_cursor():
    bus = Bus()
    for n in range(5):
        bus.publish(0.0, "service", {"n": n})
    back = bus.subscribe(after=3)
    found = [await back.get(), await back.get()]
    assert [h.data["n"] for h in found if h] == [3, 4]


async def test_a_slow_subscriber_is_dropped_and_the_others_are_not():
    bus = Bus()
    slow, quick = bus.subscribe(), bus.subscribe()
    for n in range(QUEUE + 1):
        bus.publish(0.0, "service", {"n": n})
        assert (await quick.get()) is not None
    got = 0
    while await slow.get() is not None:
        got += 1
    assert got == QUEUE
    bus.publish(0.0, "service", {})
    assert (await quick.get()) is not None
    slow.close()
    quick.close()


async def test_the_backlog_is_bounded():
    bus = Bus()
    for n in range(BACKLOG + 10):
        bus.publish(0.0, "service", {"n": n})
    late = bus.subscribe(after=0)
    oldest = await late.get()
    assert oldest is not None and oldest.cursor > 10


async def test_who_comes_back_gets_all_of_the_backlog():
    bus = Bus()
    for n in range(BACKLOG):
        bus.publish(0.0, "service", {"n": n})
    back = bus.subscribe(after=0)
    bus.publish(0.0, "service", {"n": BACKLOG})
    found = [await back.get() for _ in range(BACKLOG + 1)]
    assert [h.data["n"] for h in found if h] == list(range(BACKLOG + 1))
