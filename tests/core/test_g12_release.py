"""G12: cancelling a call or dropping a stream frees what it held; what may have been billed is charged."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections import Counter
from typing import Any

import pytest

from brix_core.usage import Usage
from tests.support.errors import connection_lost, status_error
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.ledger import AuditedStore
from tests.support.modes import Mode, both_streams, every_mode
from tests.support.virtual import VirtualClock, run_virtual

MONEY = {"max_cost_usd": 1e6, "prices": {"gpt-4o-mini": (0.0, 1e-5)}}
CALL: dict[str, Any] = {"model": "gpt-4o-mini", "max_tokens": 100}
WORST = 100 * 10_000
BREAKER = "breaker:fake:fake"


def everything(clock: VirtualClock, store: AuditedStore, **options: Any) -> Any:
    """All guards of the call ring."""
    return pipeline(
        clock,
        store=store,
        session_id="s",
        **{
            **MONEY,
            "requests_per_minute": 60_000,
            "tokens_per_minute": 1e9,
            "max_retries": 3,
            "per_call_timeout": 30.0,
            "idle_timeout": 20.0,
            "circuit_breaker": True,
            "circuit_failure_threshold": 4,
            "circuit_open_seconds": 1.0,
            "circuit_half_open_probes": 2,
            "trace_buffer_size": 20_000,
            **options,
        },
    )


def assert_free(driver: Driver, store: AuditedStore, endpoint: FakeEndpoint) -> None:
    """Nothing is held anywhere: no money, no place in line, no probe, no connection."""
    store.assert_sound()
    limiter: Any = next((guard for guard in driver.pipe.guards if guard.name == "rate_limit"), None)
    assert limiter is None or limiter._lines._lines == {}
    breaker: Any = next((store._records[key] for key in store._records if key.startswith(BREAKER)), None)
    assert breaker is None or breaker.probes == ()
    assert endpoint.in_flight == 0
    assert endpoint.closed == len(endpoint.sent)


def test_of_ten_thousand_calls_cancelled_at_random_points_nothing_is_left() -> None:
    clock, store, dice = VirtualClock(), AuditedStore(), random.Random(12)

    def behave(number: int) -> Exception | None:
        if number % 2_000 < 60:  # opens the circuit now and then
            return status_error(503)
        return (status_error(503), connection_lost(), status_error(400), None)[min(3, int(dice.random() * 12))]

    usage = Usage(input_tokens=8, output_tokens=5)
    endpoint = FakeEndpoint(clock, latency=0.3, chunk_delay=0.1, usage=usage, behave=behave)
    options = {"requests_per_minute": 10_000, "burst_capacity": 20, "circuit_open_seconds": 0.05}
    driver = Driver(everything(clock, store, circuit_failure_threshold=6, **options), endpoint)
    unbegun = 0

    async def late(number: int) -> None:
        await (driver.astream if number % 2 else driver.acall)(**CALL)

    async def main() -> None:
        nonlocal unbegun
        loop = asyncio.get_running_loop()
        for _ in range(20):
            tasks = []
            for number in range(500):
                task = asyncio.create_task(late(number))
                tasks.append(task)
                if number % 25 == 0:
                    task.cancel()  # before it has begun
                    unbegun += 1
                else:
                    loop.call_later(dice.random() * 3.0, task.cancel)
                if number % 10 == 0:
                    await asyncio.sleep(dice.random() * 0.08)
            await asyncio.gather(*tasks, return_exceptions=True)
            assert store.balance("budget:s").reserved == 0

    run_virtual(main, clock)
    assert_free(driver, store, endpoint)
    entries = driver.pipe.traces.get_traces()
    assert driver.pipe.session().call_count == len(entries) == 10_000 - unbegun
    assert len({entry["run_id"] for entry in entries}) == len(entries)
    assert sum(len(entry["attempts"]) for entry in entries) == len(endpoint.sent)
    assert None not in {attempt["outcome"] for entry in entries for attempt in entry["attempts"]}

    charges = [attempt["cost_usd"] or 0.0 for entry in entries for attempt in entry["attempts"]]
    assert round(sum(charges) * 1e9) == store.balance("budget:s").spent
    # They were cancelled at every point, and answered, failed, refused.
    points = Counter(map(point, entries))
    everywhere = ("in line", "between attempts", "in mid-stream", "in flight", "ok", "failed", "refused")
    assert min(points[place] for place in everywhere) > 100


def point(entry: dict[str, Any]) -> str:
    """Where a call was when it was cancelled, what it was charged for being there; or how it ended."""
    if entry["outcome"] != "cancelled":
        return str(entry["outcome"])
    if not entry["attempts"]:
        return "in line"
    last = entry["attempts"][-1]
    if last["outcome"] != "cancelled":
        return "between attempts"
    if entry["partial_text"]:
        assert 0 < last["cost_usd"] < WORST / 1e9
        return "in mid-stream"
    assert last["cost_usd"] == WORST / 1e9
    return "in flight"


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_a_cancellation_between_any_two_steps_of_the_event_loop_frees_everything(streamed: bool) -> None:
    outcomes = set()
    for steps in range(40):
        clock, store = VirtualClock(), AuditedStore()
        endpoint = FakeEndpoint(clock, behave=lambda number: None if number else status_error(503))
        driver = Driver(everything(clock, store, max_backoff=0.0), endpoint)

        async def main(driver: Driver = driver, steps: int = steps) -> bool:
            task = asyncio.create_task((driver.astream if streamed else driver.acall)(**CALL))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            return task.cancelled()

        cancelled = run_virtual(main, clock)
        assert_free(driver, store, endpoint)
        entries = driver.pipe.traces.get_traces()
        assert len(entries) == driver.pipe.session().call_count <= 1
        if entries:
            assert entries[0]["outcome"] == ("cancelled" if cancelled else "ok")
        outcomes.add((cancelled, len(endpoint.sent)))
    assert outcomes == {(True, 0), (True, 1), (True, 2), (False, 2)}


@every_mode
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_flight_frees_everything_and_is_charged(mode: Mode, error: type[BaseException]) -> None:
    clock, store = VirtualClock(), AuditedStore()

    class Interrupted(FakeEndpoint):
        def _raise(self, number: int) -> str | None:
            raise error

    endpoint = Interrupted(clock)
    driver = Driver(everything(clock, store, per_call_timeout=None, idle_timeout=None, total_timeout=1e6), endpoint)
    with pytest.raises(error):
        mode.one(driver, **CALL)
    assert_free(driver, store, endpoint)
    assert store.balance("budget:s").spent == WORST
    assert driver.pipe.traces.get_traces()[0]["outcome"] == "cancelled"


# Streams that nobody reads to their end


def dropped(driver: Driver, store: AuditedStore, endpoint: FakeEndpoint, read: str) -> None:
    assert_free(driver, store, endpoint)
    (entry,) = driver.pipe.traces.get_traces()
    assert (entry["outcome"], entry["partial_text"]) == ("abandoned", read)
    assert store.balance("budget:s").spent == len(read.split()) * 10_000


def bench(**options: Any) -> tuple[VirtualClock, AuditedStore, FakeEndpoint, Driver]:
    clock, store = VirtualClock(), AuditedStore()
    endpoint = FakeEndpoint(clock, chunks=[" one"] * 50)
    options = {"per_call_timeout": None, "idle_timeout": None, **options}
    return clock, store, endpoint, Driver(everything(clock, store, **options), endpoint)


@pytest.mark.parametrize("read", [1, 2, 49])
@pytest.mark.parametrize("how", ["close", "garbage"])
def test_a_generator_that_is_closed_or_collected_frees_everything(how: str, read: int) -> None:
    _, store, endpoint, driver = bench()
    chunks: Any = driver.pipe.stream(driver.request(stream=True, **CALL))
    for _ in range(read):
        next(chunks)
    assert store.held == WORST
    if how == "close":
        chunks.close()
    else:
        del chunks
        gc.collect()
    dropped(driver, store, endpoint, " one" * read)


@pytest.mark.parametrize("read", [1, 2, 49])
@pytest.mark.parametrize("how", ["aclose", "garbage", "loop ends"])
def test_an_async_generator_that_is_closed_or_collected_frees_everything(how: str, read: int) -> None:
    clock, store, endpoint, driver = bench()
    kept: list[Any] = []

    async def main() -> None:
        chunks: Any = driver.pipe.astream(driver.request(stream=True, **CALL))
        for _ in range(read):
            await anext(chunks)
        assert store.held == WORST
        if how == "aclose":
            await chunks.aclose()
        elif how == "garbage":
            del chunks
            gc.collect()
            await asyncio.sleep(0.01)
        else:
            kept.append(chunks)

    run_virtual(main, clock)
    dropped(driver, store, endpoint, " one" * read)


@both_streams
def test_a_consumer_that_fails_frees_everything(mode: Mode) -> None:
    clock, store, endpoint, driver = bench()
    request = driver.request(stream=True, **CALL)

    def reads() -> None:
        for _ in driver.pipe.stream(request):
            raise LookupError("the consumer's own")

    async def areads() -> None:
        async with contextlib.aclosing(driver.pipe.astream(request)) as chunks:  # type: ignore[type-var]
            async for _ in chunks:
                raise LookupError("the consumer's own")

    with pytest.raises(LookupError):
        reads() if mode.driver == "sync" else run_virtual(areads, clock)
    gc.collect()
    dropped(driver, store, endpoint, " one")


@both_streams
def test_a_stream_that_was_never_read_held_nothing(mode: Mode) -> None:
    clock, store, endpoint, driver = bench()

    async def main() -> None:
        await driver.pipe.astream(driver.request(stream=True, **CALL)).aclose()  # type: ignore[attr-defined]

    if mode.driver == "sync":
        driver.pipe.stream(driver.request(stream=True, **CALL)).close()  # type: ignore[attr-defined]
    else:
        run_virtual(main, clock)
    assert_free(driver, store, endpoint)
    assert endpoint.sent == []


def test_a_stream_dropped_while_a_worker_reads_it_is_closed_there() -> None:
    _, store, endpoint, driver = bench(per_call_timeout=60.0)
    chunks: Any = driver.pipe.stream(driver.request(stream=True, **CALL))
    next(chunks)
    chunks.close()
    store.assert_sound()
    for _ in range(2_000):
        if endpoint.in_flight == 0:
            break
        time.sleep(0.0001)
    dropped(driver, store, endpoint, " one")


def test_fifty_streams_dropped_at_once_free_everything() -> None:
    clock, store = VirtualClock(), AuditedStore()
    endpoint = FakeEndpoint(clock, latency=0.1, chunk_delay=0.1, chunks=[" one"] * 20)
    driver = Driver(everything(clock, store), endpoint)

    async def leave(number: int) -> None:
        chunks: Any = driver.pipe.astream(driver.request(stream=True, **CALL))
        for _ in range(number % 10):
            await anext(chunks)
        await chunks.aclose()

    async def main() -> None:
        await asyncio.gather(*map(leave, range(50)))

    run_virtual(main, clock)
    assert_free(driver, store, endpoint)
    assert len(driver.pipe.traces.get_traces()) == 45  # five were never read


def test_a_cancelled_probe_gives_its_place_to_the_next() -> None:
    clock, store = VirtualClock(), AuditedStore()
    endpoint = FakeEndpoint(clock, latency=1.0, behave=lambda number: status_error(503) if number == 0 else None)
    options = {"circuit_breaker": True, "circuit_failure_threshold": 1, "circuit_open_seconds": 60.0}
    driver = Driver(pipeline(clock, store=store, session_id="s", **options), endpoint)

    async def main() -> str:
        await asyncio.gather(driver.acall(), return_exceptions=True)
        await asyncio.sleep(61.0)
        for _ in range(3):
            probe = asyncio.create_task(driver.acall())
            await asyncio.sleep(0.5)
            probe.cancel()
            await asyncio.wait([probe])
        return await driver.acall()

    assert run_virtual(main, clock) == "one two three"
