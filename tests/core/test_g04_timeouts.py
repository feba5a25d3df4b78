"""G4: no caller waits longer for a call than it agreed to; what was given up is charged all the same.

On an event loop all this happens in virtual time. A blocking call waits in a real thread, so there the limits
are real, and short.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core import BrixRetryError, BrixTimeoutError
from brix_core.call import CallRequest, CallResponse
from brix_core.clock import SystemClock
from brix_core.tokens import tokenizer_for
from brix_core.usage import Usage
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.ledger import AuditedStore
from tests.support.modes import Mode, both_drivers, both_streams, every_mode
from tests.support.virtual import VirtualClock, run_virtual


@pytest.fixture(autouse=True, scope="module")
def _ranks_are_loaded() -> None:
    # Before real seconds are counted.
    tokenizer_for(CALL["model"]).count("one")


PRICE = {"max_cost_usd": 100.0, "prices": {"gpt-4o-mini": (1e-6, 1e-5)}}
CALL: dict[str, Any] = {"model": "gpt-4o-mini", "max_tokens": 100}
LIMIT = 0.05
"""Of the blocking calls, in real seconds. They would take 20 times as long."""


@dataclass
class Stalling(FakeEndpoint):
    """Blocks in earnest: before its first chunk, or after `stall_after` of them, until it is let go."""

    stall_after: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def call(self, request: CallRequest) -> CallResponse:
        self._arrive(request)
        self.gate.wait(1.0)
        self._leave()
        return self.finish([], "late", request)

    def stream(self, request: CallRequest) -> Iterator[str]:
        self._arrive(request)
        try:
            for number in range(10):
                if number == self.stall_after:
                    self.gate.wait(1.0)
                yield " one"
        finally:
            self._leave()

    async def acall(self, request: CallRequest) -> CallResponse:
        self._arrive(request)
        try:
            await self.clock.asleep(20 * LIMIT)
        finally:
            self._leave()
        return self.finish([], "late", request)

    async def astream(self, request: CallRequest) -> AsyncIterator[str]:
        self._arrive(request)
        try:
            for number in range(10):
                if number == self.stall_after:
                    await self.clock.asleep(20 * LIMIT)
                yield " one"
        finally:
            self._leave()


@dataclass
class Bench:
    """A stalling endpoint behind a timeout guard, in the kind of time its driver can bear."""

    mode: Mode
    options: dict[str, Any]
    stall_after: int = 0

    def __post_init__(self) -> None:
        self.clock = SystemClock() if self.mode.driver == "sync" else VirtualClock()
        self.store = AuditedStore()
        self.endpoint = Stalling(self.clock, stall_after=self.stall_after)
        pipe = pipeline(self.clock, store=self.store, session_id="s", **PRICE, **self.options)
        self.driver = Driver(pipe, self.endpoint)

    def run(self) -> str:
        began = self.clock.now()
        try:
            return self.mode.one(self.driver, **CALL)
        finally:
            self.waited = self.clock.now() - began
            self.endpoint.gate.set()

    @property
    def prompt_cost(self) -> int:
        return self.driver.request(**CALL).prompt_tokens() * 1_000

    @property
    def charged(self) -> int:
        return self.store.balance("budget:s").spent

    @property
    def entry(self) -> dict[str, Any]:
        (entry,) = self.driver.pipe.traces.get_traces()
        return entry

    def assert_kept(self, limit: float = LIMIT) -> None:
        slack = 0.2 if self.mode.driver == "sync" else 1e-9
        assert limit - 0.01 <= self.waited <= limit + slack
        self.store.assert_sound()


@every_mode
def test_nobody_waits_longer_than_the_limit_and_the_call_is_charged_its_worst_case(mode: Mode) -> None:
    bench = Bench(mode, {"per_call_timeout": LIMIT})
    with pytest.raises(BrixTimeoutError, match=r"per_call_timeout=0\.05") as caught:
        bench.run()
    bench.assert_kept()
    assert (caught.value.kind, caught.value.limit, caught.value.partial) == ("call", LIMIT, "")
    assert bench.charged == bench.prompt_cost + 100 * 10_000
    assert bench.entry["outcome"] == "timed_out"
    assert [attempt["outcome"] for attempt in bench.entry["attempts"]] == ["timed_out"]


@both_streams
@pytest.mark.parametrize(
    ("option", "kind", "stall_after"),
    [
        ("per_call_timeout", "call", 3),
        ("idle_timeout", "idle", 3),
        ("first_token_timeout", "first_token", 0),
        ("total_timeout", "total", 3),
    ],
)
def test_a_stalled_stream_ends_at_its_limit_with_what_had_arrived(
    mode: Mode, option: str, kind: str, stall_after: int
) -> None:
    bench = Bench(mode, {option: LIMIT}, stall_after)
    with pytest.raises(BrixTimeoutError, match=option) as caught:
        bench.run()
    bench.assert_kept()
    assert caught.value.kind == kind
    assert caught.value.partial == " one" * stall_after
    assert bench.entry["partial_text"] == " one" * stall_after
    assert bench.entry["outcome"] == "timed_out"
    # Nothing arrived: anything may have been billed. Something did: that much has been.
    assert bench.charged == bench.prompt_cost + (stall_after or 100) * 10_000


@every_mode
@pytest.mark.parametrize("option", ["per_call_timeout", "idle_timeout", "total_timeout"])
def test_return_partial_returns_what_had_arrived_sync_calls_too(mode: Mode, option: str) -> None:
    bench = Bench(mode, {option: LIMIT, "on_timeout": "return_partial"}, stall_after=3)
    assert bench.run() == " one one one"
    bench.assert_kept()
    assert bench.entry["outcome"] == "timed_out"
    assert bench.entry["finish_reason"] == "timeout"
    assert bench.entry["partial_text"] == " one one one"
    assert bench.charged == bench.prompt_cost + 3 * 10_000


@every_mode
def test_return_partial_with_nothing_arrived_is_an_empty_answer_charged_its_worst_case(mode: Mode) -> None:
    bench = Bench(mode, {"per_call_timeout": LIMIT, "on_timeout": "return_partial"})
    assert bench.run() == ""
    bench.assert_kept()
    assert bench.charged == bench.prompt_cost + 100 * 10_000


@every_mode
def test_each_attempt_has_the_limit_to_itself(mode: Mode) -> None:
    bench = Bench(mode, {"per_call_timeout": LIMIT, "max_retries": 1, "max_backoff": 0.0})
    with pytest.raises(BrixRetryError) as caught:
        bench.run()
    bench.assert_kept(2 * LIMIT)
    assert isinstance(caught.value.last_error, BrixTimeoutError)
    assert len(bench.endpoint.sent) == 2


@every_mode
def test_an_answer_in_time_is_untouched(mode: Mode) -> None:
    bench = Bench(mode, {"per_call_timeout": 30.0, "idle_timeout": 30.0, "first_token_timeout": 30.0}, 11)
    bench.endpoint.gate.set()
    assert bench.run() == (" one" * 10 if mode.streamed else "late")
    assert bench.entry["outcome"] == "ok"


@both_streams
def test_a_slow_consumer_uses_up_nobodys_patience(mode: Mode) -> None:
    bench = Bench(mode, {"per_call_timeout": LIMIT, "idle_timeout": LIMIT}, stall_after=11)
    request = bench.driver.request(stream=True, **CALL)
    chunks = []

    async def main() -> None:
        async for chunk in bench.driver.pipe.astream(request):
            chunks.append(chunk)
            await asyncio.sleep(LIMIT)

    if mode.driver == "async":
        assert isinstance(bench.clock, VirtualClock)
        run_virtual(main, bench.clock)
    else:
        for chunk in bench.driver.pipe.stream(request):
            chunks.append(chunk)
            time.sleep(LIMIT / 4)
    assert len(chunks) == 10


# Every latency and every limit, on the event loop

limits = st.one_of(st.none(), st.sampled_from([0.55, 1.05, 2.15, 3.75]))


@settings(deadline=None, max_examples=150)
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@given(
    latency=st.sampled_from([0.0, 0.4, 1.2, 5.0]),
    chunk_delay=st.sampled_from([0.0, 0.4, 1.2, 5.0]),
    call=limits,
    first=limits,
    idle=limits,
    partial=st.booleans(),
)
def test_no_combination_of_limits_lets_anybody_wait_longer(
    streamed: bool,
    latency: float,
    chunk_delay: float,
    call: float | None,
    first: float | None,
    idle: float | None,
    partial: bool,
) -> None:
    clock, store = VirtualClock(), AuditedStore()
    pieces = [" one"] * 5
    endpoint = FakeEndpoint(clock, latency=latency, chunk_delay=chunk_delay, chunks=pieces)
    options = {"per_call_timeout": call, "first_token_timeout": first, "idle_timeout": idle}
    if any(options.values()) and partial:
        options["on_timeout"] = "return_partial"  # type: ignore[assignment]
    driver = Driver(pipeline(clock, store=store, session_id="s", **PRICE, **options), endpoint)
    text, error = "", None
    try:
        text = Mode("async", streamed).one(driver, **CALL)
    except BrixTimeoutError as raised:
        text, error = raised.partial, raised
    waited = clock.now() - 1_000.0

    as_chunks = streamed or "on_timeout" in options
    arrivals = [latency + number * chunk_delay for number in range(5)] if as_chunks else [latency]
    ends = [(call, "call")] if call is not None else []
    if as_chunks and first is not None:
        ends.append((first if arrivals[0] > first else float("inf"), "first_token"))
    if as_chunks and idle is not None:
        ends.append((arrivals[0] + idle if chunk_delay > idle else float("inf"), "idle"))
    end = min((moment for moment, _ in ends), default=float("inf"))
    arrived = [moment for moment in arrivals if moment < end]
    complete = len(arrived) == len(arrivals)
    assert waited == pytest.approx(min(end, arrivals[-1]))
    if error is not None:
        assert (error.kind, True) in [(kind, moment == end) for moment, kind in ends]
    assert (error is None) == (complete or "on_timeout" in options)
    assert text == (" one" * len(arrived) if as_chunks else "" if not complete else " one" * 5)
    assert endpoint.in_flight == 0
    assert driver.pipe.traces.get_traces()[0]["outcome"] == ("ok" if complete else "timed_out")
    store.assert_sound()


# Cancellations that are not ours


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("leaves_at", [0.5, 1.0, 1.5])
def test_a_callers_own_cancellation_is_never_taken_for_a_timeout(streamed: bool, leaves_at: float) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, per_call_timeout=1.0, max_retries=3), FakeEndpoint(clock, latency=1.0))

    async def main() -> str:
        task = asyncio.create_task(driver.astream() if streamed else driver.acall())
        asyncio.get_running_loop().call_later(leaves_at, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return f"cancelled {task.cancelled()}"
        return "done"

    # At the very moment of the limit either may win, but no cancellation is lost, and none made up.
    assert run_virtual(main, clock) in {0.5: ["cancelled True"], 1.5: ["done", "cancelled True"]}.get(
        leaves_at, ["cancelled True", "done"]
    )


def test_a_timeout_inside_the_callers_own_timeout_keeps_both_apart() -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, per_call_timeout=2.0), FakeEndpoint(clock, latency=10.0))

    async def main() -> None:
        with pytest.raises(TimeoutError) as outer:
            async with asyncio.timeout(1.0):
                await driver.acall()
        assert not isinstance(outer.value, BrixTimeoutError)
        async with asyncio.timeout(3.0):
            with pytest.raises(BrixTimeoutError):
                await driver.acall()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run_virtual(main, clock)


@dataclass
class Stubborn(FakeEndpoint):
    """Swallows its cancellation, and answers late."""

    async def acall(self, request: CallRequest) -> CallResponse:
        self._arrive(request)
        try:
            await asyncio.sleep(10.0)
        except asyncio.CancelledError:
            await asyncio.sleep(0.25)
        return self.finish([], "late", request)


def test_a_provider_that_swallows_the_cancellation_still_times_out() -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, per_call_timeout=1.0), Stubborn(clock))
    with pytest.raises(BrixTimeoutError):
        Mode("async").one(driver)
    assert clock.now() - 1_000.0 == pytest.approx(1.25)


def test_a_cancellation_swallowed_by_the_provider_still_cancels() -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, per_call_timeout=100.0), Stubborn(clock))

    async def main() -> bool:
        task = asyncio.create_task(driver.acall())
        asyncio.get_running_loop().call_later(1.0, task.cancel)
        await asyncio.wait([task])
        return task.cancelled()

    assert run_virtual(main, clock)
    assert driver.pipe.traces.get_traces()[0]["outcome"] == "cancelled"


# The session's own limits: virtual under both drivers


@both_drivers
def test_a_session_that_pauses_too_long_between_two_calls_is_over(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, per_step_timeout=10.0), endpoint)
    mode.one(driver)
    clock.advance(9.9)
    mode.one(driver)
    clock.advance(10.1)
    mode.one(driver, session="another")
    with pytest.raises(BrixTimeoutError, match="per_step_timeout=10") as caught:
        mode.one(driver)
    assert (caught.value.kind, caught.value.limit) == ("step", 10.0)
    assert caught.value.elapsed == pytest.approx(10.1)


@both_drivers
def test_no_call_begins_after_the_total_time_and_none_outlasts_it(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=0.0)
    driver = Driver(pipeline(clock, total_timeout=10.0), endpoint)
    mode.one(driver)
    clock.advance(10.5)
    with pytest.raises(BrixTimeoutError, match="total_timeout=10") as caught:
        mode.one(driver)
    assert caught.value.kind == "total"
    assert mode.one(driver, session="another") == "one two three"
    assert len(endpoint.sent) == 2


def test_what_is_left_of_the_total_time_bounds_the_last_call() -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, total_timeout=10.0, per_call_timeout=8.0), FakeEndpoint(clock, latency=7.0))
    results = Mode("async").each(driver, [{}, {}])
    assert results[0] == "one two three"
    assert isinstance(results[1], BrixTimeoutError)
    assert (results[1].kind, results[1].limit) == ("total", 10.0)  # the option, of which 3 s were left
    assert clock.now() == pytest.approx(1_010.0)


@both_drivers
def test_waiting_for_a_retry_does_not_outlast_the_total_time(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: ConnectionResetError())
    driver = Driver(pipeline(clock, total_timeout=30.0, max_retries=50, max_backoff=20.0), endpoint)
    with pytest.raises(BrixRetryError) as caught:
        mode.one(driver)
    assert caught.value.reason == "deadline"
    assert clock.now() <= 1_030.0


@both_drivers
def test_usage_of_an_answer_in_time_is_settled_as_usual(mode: Mode) -> None:
    bench = Bench(mode, {"per_call_timeout": 30.0})
    bench.endpoint.gate.set()
    bench.endpoint.usage = Usage(input_tokens=10, output_tokens=1)
    bench.run()
    assert bench.charged == 20_000
