"""G13: memory is bounded, however long a session runs."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest

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
    "total_timeout": 1e12,
    "trace_buffer_size": 100,
}


class Forgetful(FakeEndpoint):
    """Keeps no list of what it was sent."""

    def _arrive(self, request: Any) -> int:
        return 0

    def _leave(self) -> None:
        return


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("driver", ["sync", "async"])
def test_a_hundred_thousand_calls_of_a_session_need_no_more_memory_than_five_thousand(driver: str) -> None:
    clock = VirtualClock()
    endpoint = Forgetful(clock, usage=Usage(input_tokens=8, output_tokens=3), known_longest=100)
    calls = Driver(pipeline(clock, session_id="s", **ALL_GUARDS), endpoint)
    number = 0

    def some(count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            calls.call(f"question {number}")

    async def asome(count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            await calls.acall(f"question {number}")

    def run(count: int) -> None:
        some(count) if driver == "sync" else run_virtual(lambda: asome(count), clock)

    # What is allocated from here on is counted; it replaces, or adds to, what the first calls have left. The
    # first traced calls fill the buffers anew.
    run(4_000)
    tracemalloc.start(1)
    try:
        run(1_000)
        after_5_000 = traced()
        tracemalloc.stop()
        run(94_000)
        tracemalloc.start(1)
        run(1_000)
        after_100_000 = traced()
    finally:
        tracemalloc.stop()
    assert number == 100_000
    assert calls.pipe.session().call_count == 100_000
    assert after_100_000 - after_5_000 < 200_000
