"""G13: memory is bounded, however long a session runs."""

from __future__ import annotations

import gc
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from brix_core.drivers import workers
from brix_core.drivers.workers import MAX_IDLE, READ_AHEAD, Pump, submit
from brix_core.session import MAX_PREFIXES, MAX_SESSIONS, Sessions
from brix_core.store import MemoryStore
from brix_core.store import memory as memory_store
from brix_core.store.base import Demand
from brix_core.usage import Usage
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.virtual import VirtualClock, run_virtual

ALL_GUARDS: dict[str, Any] = {
    "max_cost_usd": 1e9,
    "prices": {"fake": (1e-6, 1e-6)},
    "requests_per_minute": 1e9,
    "tokens_per_minute": 1e12,
    "max_retries": 2,
    "circuit_breaker": True,
    "trace_buffer_size": 100,
}


class Forgetful(FakeEndpoint):
    """Keeps no list of what it was sent."""

    def _arrive(self, request: Any) -> int:
        return 0

    def _leave(self) -> None:
        return


def traced(driver: Driver) -> int:
    driver.pipe.traces.get_traces()  # entries are written up to 64 at a time
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_a_hundred_thousand_calls_of_a_session_need_no_more_memory_than_five_thousand() -> None:
    clock = VirtualClock()
    endpoint = Forgetful(clock, usage=Usage(input_tokens=8, output_tokens=3), known_longest=100)
    driver = Driver(pipeline(clock, session_id="s", **ALL_GUARDS), endpoint)
    # Counts of texts are cached for the whole process, in bounds of their own: here, always the same texts.
    prompts = [f"question {number}" for number in range(1_000)]

    async def awaited() -> None:
        for number, prompt in enumerate(prompts):
            await (driver.acall(prompt) if number % 4 else driver.astream(prompt))

    def run(thousands: int) -> None:
        for thousand in range(thousands):
            if thousand % 2:
                run_virtual(awaited, clock)
            else:
                for number, prompt in enumerate(prompts):
                    driver.call(prompt) if number % 4 else driver.stream(prompt)

    run(5)
    gc.collect()
    after_5_000 = sys.getallocatedblocks()
    run(84)
    # Tracing triples the time of a call, so it begins late. What its first calls allocate takes the place of what
    # was there before, untraced; the interpreter's free lists go on doing so for a while (some 40 KB).
    tracemalloc.start(1)
    try:
        run(1)
        after_90_000 = traced(driver)
        run(10)
        after_100_000 = traced(driver)
    finally:
        tracemalloc.stop()
    gc.collect()
    assert driver.pipe.session().call_count == 100_000
    assert sys.getallocatedblocks() - after_5_000 < 1_000  # objects; a leak of one a call would be 95,000
    assert after_100_000 - after_90_000 < 60_000  # bytes; the smallest object a call would be 160,000


def test_a_long_stream_keeps_a_bounded_text_for_its_trace() -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, chunks=["x" * 1_000] * 200, cut_after=199)
    driver = Driver(pipeline(clock), endpoint)
    with pytest.raises(ConnectionResetError):
        driver.stream()
    assert len(driver.pipe.traces.get_traces()[0]["partial_text"]) == 65_536


def test_a_trace_keeps_no_endless_error_message() -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock), FakeEndpoint(clock, behave=lambda number: ValueError("x" * 100_000)))
    with pytest.raises(ValueError, match="xxx"):
        driver.call()
    assert len(driver.pipe.traces.get_traces()[0]["error_message"]) == 1_000


def test_the_longest_unused_sessions_are_forgotten_but_never_the_clients_own() -> None:
    sessions = Sessions(VirtualClock(), "own")
    own = sessions.resolve()
    for number in range(MAX_SESSIONS):
        sessions.resolve(f"user-{number}")
    sessions.resolve("user-5")
    used = sessions.resolve("user-5")
    for number in range(MAX_SESSIONS, MAX_SESSIONS + 100):
        sessions.resolve(f"user-{number}")
    assert len(sessions._sessions) == MAX_SESSIONS
    assert sessions.resolve() is own
    assert sessions.resolve("user-5") is used
    assert "user-50" not in sessions._sessions


def test_only_recent_sessions_keep_the_conversation_they_measured() -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock), FakeEndpoint(clock))
    for number in range(MAX_PREFIXES + 50):
        driver.call(session=f"user-{number}")
    kept = [state for state in driver.pipe.sessions._sessions.values() if state.prefix.last is not None]
    assert len(kept) == MAX_PREFIXES


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    monkeypatch.setattr(memory_store, "MAX_RECORDS", 10)
    return MemoryStore()


def test_a_store_keeps_a_bounded_number_of_records(small: MemoryStore) -> None:
    for number in range(100):
        small.settle(small.reserve(f"account {number}", 1, 1, None), 1)
        small.take(0.0, [Demand(f"bucket {number}", 1, 1, 1)])
        small.update(f"record {number}", lambda record: (1, None))
    assert (len(small._accounts), len(small._buckets), len(small._records)) == (10, 10, 10)


def test_a_store_never_forgets_an_account_with_money_held(small: MemoryStore) -> None:
    held = small.reserve("held", 5, 5, 10)
    for number in range(100):
        small.settle(small.reserve(f"account {number}", 1, 1, None), 1)
    assert small.balance("held").reserved == 5
    assert small.settle(held, 5) == (5, 0)


def test_pipelines_keep_bounded_notes_of_the_sessions_they_served() -> None:
    clock = VirtualClock()
    options = {**ALL_GUARDS, "max_cost_usd": 1e-3, "budget_warning_threshold": 0.5}
    driver = Driver(pipeline(clock, **options), Forgetful(clock, usage=Usage(input_tokens=400, output_tokens=200)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(10_500):
            driver.call(session=str(number), max_tokens=500)
    budget: Any = next(guard for guard in driver.pipe.guards if guard.name == "budget")
    limiter: Any = next(guard for guard in driver.pipe.guards if guard.name == "rate_limit")
    assert len(budget._warned) == 10_000
    assert len(limiter._paces) == 10_000
    assert len(driver.pipe.traces._chains) == 10_000
    assert len(driver.pipe.sessions._sessions) == MAX_SESSIONS


def test_idle_workers_are_bounded_and_used_again() -> None:
    gates = [threading.Event() for _ in range(MAX_IDLE + 20)]
    jobs = [submit(gate.wait) for gate in gates]
    for gate in gates:
        gate.set()
    assert all(job.wait(5.0) for job in jobs)
    deadline = time.monotonic() + 5.0
    while len(workers._idle) < MAX_IDLE and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(workers._idle) == MAX_IDLE
    before = threading.active_count()
    for _ in range(50):
        submit(lambda: None).wait(5.0)
    assert threading.active_count() <= before


def test_a_worker_reads_only_so_far_ahead_of_a_slow_consumer() -> None:
    read = 0

    def source() -> Iterator[int]:
        nonlocal read
        while True:
            yield read
            read += 1

    pump = Pump(source)
    assert pump.get(5.0) == 0
    time.sleep(0.05)
    assert read <= READ_AHEAD + 1
    assert [pump.get(5.0) for _ in range(2_000)] == list(range(1, 2_001))
    pump.stop()
