"""The core's pacing where LangChain takes a rate limiter: G3, for threads and tasks together."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda

from brix_core import BrixConfigurationError, session
from brix_core.clock import Wakeup
from brix_core.demo import DemoServer
from brix_core.store import MemoryStore
from brix_core.store.base import Demand
from brix_langchain import BrixCache, BrixRateLimiter, guard
from tests.langchain.conftest import Make
from tests.support.virtual import VirtualClock, run_virtual


class SharedTime(VirtualClock):
    """Time of threads, some of which run event loops: a task sleeps as its thread would."""

    async def asleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        await asyncio.to_thread(self.sleep, seconds, wakeup)


def limiter(clock: VirtualClock, per_minute: float = 60, **more: Any) -> BrixRateLimiter:
    return BrixRateLimiter(per_minute, **{"clock": clock, "store": MemoryStore(), **more})


def within(at: Sequence[float], per_second: float, burst: float) -> bool:
    """Whether every window between two starts keeps to the rate."""
    return all(
        last - first + 1 <= per_second * (at[last] - at[first]) + burst + 1e-6
        for first in range(len(at))
        for last in range(first, len(at))
    )


@settings(deadline=None, max_examples=30)
@given(
    per_minute=st.sampled_from([7.5, 60, 600]),
    burst=st.one_of(st.none(), st.integers(1, 4)),
    callers=st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.01, 0.3, 2.0])), min_size=1, max_size=16),
)
def test_threads_and_tasks_together_keep_to_the_rate_in_the_order_they_came(
    per_minute: float, burst: int | None, callers: list[tuple[bool, float]]
) -> None:
    clock = SharedTime()
    limit = limiter(clock, per_minute, burst_capacity=burst)
    served: list[tuple[int, float]] = []
    ordered = sorted(callers, key=lambda caller: caller[1])

    def work(number: int) -> bool:
        on_loop, arrival = ordered[number]
        clock.sleep(arrival + number * 0.0001)
        acquired = asyncio.run(limit.aacquire()) if on_loop else limit.acquire()
        served.append((number, clock.now()))
        return acquired

    assert clock.run_threads([partial(work, n) for n in range(len(ordered))]) == [True] * len(ordered)
    assert [number for number, _ in served] == list(range(len(ordered)))
    assert within([at for _, at in served], per_minute / 60, burst or max(1, int(per_minute / 60)))


def test_tasks_of_one_loop_keep_to_the_rate_in_the_order_they_came() -> None:
    clock = VirtualClock()
    limit = limiter(clock, 600)
    served: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        assert await limit.aacquire()
        served.append((number, round(clock.now() - 1_000.0, 6)))

    async def main() -> None:
        await asyncio.gather(*map(one, range(30)))

    run_virtual(main, clock)
    assert [number for number, _ in served] == list(range(30))
    assert [at for _, at in served] == [0.0] * 10 + [round(n / 10, 6) for n in range(1, 21)]


@pytest.mark.parametrize("leaver", [1, 2, 4])
def test_a_cancelled_task_leaves_the_line(leaver: int) -> None:
    clock = VirtualClock()
    limit = limiter(clock)
    served: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        await limit.aacquire()
        served.append((number, clock.now() - 1_000.0))

    async def main() -> None:
        tasks = [asyncio.create_task(one(number)) for number in range(5)]
        asyncio.get_running_loop().call_later(0.5, tasks[leaver].cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[leaver], asyncio.CancelledError)

    run_virtual(main, clock)
    assert served == [(n, float(at)) for at, n in enumerate(n for n in range(5) if n != leaver)]
    assert limit._lines._lines == {}


async def test_who_will_not_wait_is_told_at_once_and_takes_no_place() -> None:
    clock = VirtualClock()
    limit = limiter(clock, burst_capacity=2)
    assert limit.acquire(blocking=False)
    assert await limit.aacquire(blocking=False)
    assert not limit.acquire(blocking=False)
    assert not await limit.aacquire(blocking=False)
    assert limit._lines._lines == {}
    clock.advance(1.0)
    assert limit.acquire(blocking=False)
    assert clock.now() == 1_001.0


def test_who_will_not_wait_overtakes_nobody() -> None:
    clock = VirtualClock()
    limit = limiter(clock)

    async def main() -> list[bool]:
        await limit.aacquire()
        waiting = asyncio.create_task(limit.aacquire())
        await asyncio.sleep(0.5)
        clock.jump_to(clock.now() + 0.75)  # there is a token now, and somebody waits for it
        tried = limit.acquire(blocking=False), await limit.aacquire(blocking=False)
        return [*tried, await waiting]

    assert run_virtual(main, clock) == [False, False, True]


class SlowStore(MemoryStore):
    """Does I/O, as a durable store will: it must be kept off the event loop."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def take(self, now: float, demands: Sequence[Demand]) -> float:
        self.threads.add(threading.get_ident())
        return super().take(now, demands)


async def test_a_store_that_blocks_is_asked_off_the_event_loop() -> None:
    store = SlowStore()
    limit = BrixRateLimiter(60, burst_capacity=2, store=store)
    assert await limit.aacquire()
    assert await limit.aacquire(blocking=False)
    assert threading.get_ident() not in store.threads


def left(limit: BrixRateLimiter) -> int:
    """Calls that could start now."""
    return sum(iter(lambda: limit.acquire(blocking=False), False))


def test_limiters_of_one_name_and_store_share_the_rate() -> None:
    one_of = partial(limiter, VirtualClock(), burst_capacity=3, store=MemoryStore())
    first, second = one_of(name="openai"), one_of(name="openai")
    first.acquire()
    assert left(second) == 2
    assert left(first) == 0
    assert left(one_of(name="anthropic")) == 3
    assert left(one_of(name="openai", store=MemoryStore())) == 3
    assert left(one_of()) == left(one_of()) == 3


def test_each_session_may_have_its_own_rate() -> None:
    clock = VirtualClock()
    limit = limiter(clock, burst_capacity=2, scope="session")
    model = FakeListChatModel(responses=["Paris"], rate_limiter=limit)
    chain = RunnableLambda(lambda text: text) | model
    with session("ann"):
        model.invoke("Hi")
        assert left(limit) == 1
    chain.invoke("Hi", {"configurable": {"session_id": "ben"}})
    with session("ben"):
        assert left(limit) == 1
    assert left(limit) == 2
    with session("None"):
        assert left(limit) == 2


def test_all_sessions_share_the_rate_otherwise() -> None:
    limit = limiter(VirtualClock(), burst_capacity=2)
    with session("ann"):
        assert left(limit) == 2
    with session("ben"):
        assert left(limit) == 0


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "guarded"])
async def test_every_request_of_a_model_takes_its_turn(way: str, chat: Make, server: DemoServer) -> None:
    clock = VirtualClock()
    limit = limiter(clock, burst_capacity=3)
    model: Any = chat(rate_limiter=limit)
    if way == "guarded":
        model = guard(model, store=MemoryStore())
    for _ in range(2):
        if way == "astream":
            assert [chunk async for chunk in model.astream("Hi")]
        elif way == "ainvoke":
            await model.ainvoke("Hi")
        elif way == "stream":
            assert list(model.stream("Hi"))
        elif way == "batch":
            model.batch(["Hi"])
        else:
            model.invoke("Hi")
    assert server.stats.requests == 2
    assert left(limit) == 1


def test_requests_over_the_rate_wait(chat: Make, server: DemoServer) -> None:
    clock = VirtualClock()
    model = chat(rate_limiter=limiter(clock))
    for _ in range(4):
        model.invoke("Hi")
    assert server.stats.requests == 4
    assert clock.now() == pytest.approx(1_003.0)


def test_a_cached_answer_takes_no_turn(chat: Make, server: DemoServer) -> None:
    limit = limiter(VirtualClock(), burst_capacity=2)
    model = chat(rate_limiter=limit, cache=BrixCache())
    model.invoke("Hi")
    model.invoke("Hi")
    assert server.stats.requests == 1
    assert left(limit) == 1


def test_a_limit_on_tokens_is_refused_with_a_hint() -> None:
    with pytest.raises(BrixConfigurationError, match=r"guard\(model, tokens_per_minute=\.\.\.\)"):
        BrixRateLimiter(60, tokens_per_minute=90_000)


@pytest.mark.parametrize(
    ("named", "values"),
    [
        ("requests_per_minute", [0, -1, "60", None, True, math.nan, math.inf, 10**400]),
        ("burst_capacity", [0, 1.5, "3", 10**400]),
        ("scope", ["user", None]),
        ("name", [3]),
        ("store", ["redis://localhost"]),
        ("clock", [time.monotonic]),
    ],
)
def test_what_it_cannot_keep_to_is_refused(named: str, values: list[Any]) -> None:
    for value in values:
        given: dict[str, Any] = {"requests_per_minute": 60, named: value}
        with pytest.raises(BrixConfigurationError, match=f"^{named} must (be|have)"):
            BrixRateLimiter(**given)


async def test_a_hundred_real_requests_at_once_start_no_faster_than_the_rate(chat: Make, server: DemoServer) -> None:
    model = chat(rate_limiter=BrixRateLimiter(12_000, burst_capacity=20, store=MemoryStore()))
    begun = time.monotonic()
    await asyncio.gather(*(model.ainvoke("Hi") for _ in range(100)))
    arrivals = sorted(record.started_at - begun for record in server.requests)
    assert len(arrivals) == 100
    assert all(at >= (number - 20) / 200 for number, at in enumerate(arrivals, 1))


async def test_a_request_that_is_cancelled_in_line_is_never_sent(chat: Make, server: DemoServer) -> None:
    limit = BrixRateLimiter(1, store=MemoryStore())
    model = chat(rate_limiter=limit)
    await model.ainvoke("Hi")
    waiting = [asyncio.create_task(model.ainvoke("Hi")) for _ in range(3)]
    while not limit._lines._lines:
        await asyncio.sleep(0.01)
    for task in waiting:
        task.cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 3
    assert limit._lines._lines == {}
    assert server.stats.requests == 1


def test_copies_share_the_rate_and_none_is_pickled() -> None:
    limiter = BrixRateLimiter(60, burst_capacity=2)
    taken = [each.acquire(blocking=False) for each in (limiter, copy.copy(limiter), copy.deepcopy(limiter))]
    assert taken == [True, True, False]
    with pytest.raises(BrixConfigurationError, match=r"BrixRateLimiter cannot be pickled.*the same name and a store"):
        pickle.dumps(limiter)
