"""Faults that a review found: each was real once."""

from __future__ import annotations

import gc
import weakref

from brix_core.errors import BrixTimeoutError
from brix_core.store import MemoryStore
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.virtual import VirtualClock, run_virtual

PRICES = {"prices": {"fake": (0.0, 0.0001)}, "budget_warning_threshold": 1.0}


def test_streams_that_the_garbage_collector_closes_block_nobody() -> None:
    clock = VirtualClock()
    driver = Driver(
        pipeline(clock, max_cost_usd=1e6, requests_per_minute=1e9, circuit_breaker=True, **PRICES), FakeEndpoint(clock)
    )

    def abandon() -> None:
        kept = None
        try:
            stream = driver.pipe.stream(driver.request(stream=True, max_tokens=10))
            next(iter(stream))
            raise KeyError
        except KeyError as error:
            kept = error  # a cycle of frame and traceback keeps the stream for the collector
        assert kept

    before = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for _ in range(3_000):
            abandon()
            driver.call(max_tokens=10)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    account = f"budget:{driver.pipe.sessions.default_id}"
    assert driver.pipe.store.balance(account).reserved == 0
    assert len(driver.pipe.traces.get_traces()) == 1_000


def test_a_call_that_the_sessions_total_time_ended_is_charged() -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=10.0)
    driver = Driver(pipeline(clock, max_cost_usd=1, total_timeout=2, **PRICES), endpoint)

    async def main() -> str:
        try:
            return await driver.acall(max_tokens=10)
        except BrixTimeoutError as error:
            return error.kind

    assert run_virtual(main, clock) == "total"
    assert len(endpoint.sent) == 1
    assert driver.pipe.session().session_cost_usd == 0.001


def test_a_faster_model_of_the_same_session_does_not_fill_a_slower_ones_bucket() -> None:
    clock = VirtualClock()
    store = MemoryStore()
    slow_endpoint, fast_endpoint = FakeEndpoint(clock, name="slow"), FakeEndpoint(clock, name="fast")
    slow = Driver(pipeline(clock, requests_per_minute=60, burst_capacity=1, store=store), slow_endpoint)
    fast = Driver(pipeline(clock, requests_per_minute=60_000, burst_capacity=1, store=store), fast_endpoint)
    begun = clock.now()
    for _ in range(5):
        slow.call(session="one")
        fast.call(session="one")
    assert len(slow_endpoint.sent) == 5
    assert clock.now() - begun >= 4.0


def test_a_finished_call_keeps_its_prompt_no_longer() -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock), FakeEndpoint(clock))

    class Prompt(str):
        """A str that can be watched."""

    watched = []
    for number in range(10):
        prompt = Prompt(f"question {number}")
        watched.append(weakref.ref(prompt))
        driver.call(prompt)
        del prompt
    gc.collect()
    assert sum(watch() is not None for watch in watched) <= 1  # the session knows its latest prompt
