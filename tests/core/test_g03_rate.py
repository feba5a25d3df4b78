"""G3: in any window, calls started <= rate x window + burst; first come, first served."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core import BrixRateLimitError, BrixRetryError, BrixTimeoutError
from brix_core.clock import Wakeup
from brix_core.usage import Usage
from tests.support.errors import connection_lost, status_error
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.modes import Mode, both_drivers, every_mode
from tests.support.virtual import VirtualClock, run_virtual

ROUNDING = 1e-6


def within(at: Sequence[float], amounts: Sequence[float], per_second: float, burst: float) -> bool:
    """Whether every window between two starts keeps to the rate (and so does every other window)."""
    return all(
        sum(amounts[first : last + 1]) <= per_second * (at[last] - at[first]) + burst + ROUNDING
        for first in range(len(at))
        for last in range(first, len(at))
    )


def times(endpoint: FakeEndpoint) -> list[float]:
    return [round(sent.at - 1_000.0, 6) for sent in endpoint.sent]


def texts(endpoint: FakeEndpoint) -> list[str]:
    return [sent.text for sent in endpoint.sent]


@every_mode
@pytest.mark.parametrize("burst", [None, 1, 25])
def test_sixty_calls_at_once_are_spread_over_the_minute(mode: Mode, burst: int | None) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=0.5)
    driver = Driver(pipeline(clock, requests_per_minute=600, burst_capacity=burst), endpoint)
    calls = [{"prompt": str(number)} for number in range(60)]
    results = mode.all(driver, calls, stagger=0.0001)  # so that threads, too, arrive in this order
    at, capacity = times(endpoint), burst or 10
    assert results == ["one two three"] * 60
    assert within(at, [1] * 60, 10.0, capacity)
    assert all(sum(start <= moment < start + 1 for moment in at) <= 10 + capacity for start in at)
    assert at[-1] - at[0] >= (60 - capacity) / 10 - 0.1
    assert texts(endpoint) == [call["prompt"] for call in calls]
    if burst is None:
        assert at[-1] - at[0] >= 4.9


@settings(deadline=None, max_examples=40)
@every_mode
@given(
    rpm=st.sampled_from([1, 7.5, 60, 600, 6_000]),
    burst=st.one_of(st.none(), st.integers(1, 5)),
    arrivals=st.lists(st.sampled_from([0.0, 0.01, 0.3, 2.0, 90.0]), min_size=1, max_size=20),
    latency=st.sampled_from([0.0, 0.25]),
    failing=st.booleans(),
)
def test_no_window_admits_more_than_the_rate_and_the_burst(
    mode: Mode, rpm: float, burst: int | None, arrivals: list[float], latency: float, failing: bool
) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=latency, behave=lambda n: connection_lost() if failing and n % 2 else None)
    driver = Driver(pipeline(clock, requests_per_minute=rpm, burst_capacity=burst, max_retries=2), endpoint)
    ordered = sorted(arrivals)

    def blocking(number: int) -> None:
        clock.sleep(ordered[number] + number * 0.0001)
        with contextlib.suppress(BrixRetryError):
            (driver.stream if mode.streamed else driver.call)(str(number))

    async def on_loop(number: int) -> None:
        await asyncio.sleep(ordered[number] + number * 0.0001)
        with contextlib.suppress(BrixRetryError):
            await (driver.astream if mode.streamed else driver.acall)(str(number))

    async def main() -> None:
        await asyncio.gather(*map(on_loop, range(len(ordered))))

    if mode.driver == "async":
        run_virtual(main, clock)
    else:
        assert set(clock.run_threads([lambda n=n: blocking(n) for n in range(len(ordered))])) == {None}
    at = [sent.at for sent in endpoint.sent]
    assert within(at, [1] * len(at), rpm / 60, burst or max(1, int(rpm / 60)))
    first_attempts = list(dict.fromkeys(texts(endpoint)))
    assert first_attempts == list(map(str, range(len(ordered))))


@settings(deadline=None, max_examples=40)
@every_mode
@given(
    tpm=st.sampled_from([200, 600, 6_000]),
    calls=st.lists(st.tuples(st.integers(1, 150), st.floats(0, 1)), min_size=1, max_size=15),
)
def test_no_window_uses_more_tokens_than_the_token_rate(mode: Mode, tpm: int, calls: list[tuple[int, float]]) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=0.5)
    used = {str(number): 8 + int(cap * share) for number, (cap, share) in enumerate(calls)}
    endpoint.report = lambda request: Usage(
        input_tokens=8, output_tokens=used[request.conversation.messages[-1]["content"]] - 8
    )
    driver = Driver(pipeline(clock, tokens_per_minute=tpm), endpoint)
    results = mode.all(
        driver, [{"prompt": str(number), "max_tokens": cap} for number, (cap, _) in enumerate(calls)], stagger=0.0001
    )
    assert all(isinstance(result, str) for result in results)
    at = [sent.at for sent in endpoint.sent]
    assert within(at, [used[text] for text in texts(endpoint)], tpm / 60, tpm)
    assert texts(endpoint) == list(map(str, range(len(calls))))


@every_mode
def test_tokens_that_were_not_used_are_given_back(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, usage=Usage(input_tokens=10, output_tokens=10))
    driver = Driver(pipeline(clock, tokens_per_minute=600), endpoint)
    mode.each(driver, [{"max_tokens": 500}] * 5)
    assert times(endpoint)[-1] == pytest.approx(0.0, abs=0.5)


@every_mode
def test_an_underestimated_call_is_a_debt_that_the_next_one_waits_for(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, usage=Usage(input_tokens=600, output_tokens=600))
    driver = Driver(pipeline(clock, tokens_per_minute=600), endpoint)
    mode.each(driver, [{}, {"max_tokens": 300 - driver.request().prompt_tokens()}])
    assert times(endpoint) == [0.0, 90.0]  # 600 owed, 300 wanted, 10 a second


@every_mode
def test_a_call_that_can_never_have_enough_tokens_is_refused_at_once(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, tokens_per_minute=100), endpoint)
    with pytest.raises(BrixRateLimitError) as caught:
        mode.one(driver, max_tokens=100, n=2)
    assert caught.value.limit == 100
    assert caught.value.needed == driver.request().prompt_tokens() + 200
    assert endpoint.sent == []


@every_mode
def test_retries_wait_for_the_rate_as_well(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(500) if number < 3 else None)
    driver = Driver(pipeline(clock, requests_per_minute=6, burst_capacity=1, max_retries=3, max_backoff=0.0), endpoint)
    assert mode.one(driver) == "one two three"
    assert times(endpoint) == [0.0, 10.0, 20.0, 30.0]


# Places in line


@pytest.mark.parametrize("leaver", range(5))
@pytest.mark.parametrize("leaves_at", [0.5, 1.5])
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_a_cancelled_task_gives_its_place_back(leaver: int, leaves_at: float, streamed: bool) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, requests_per_minute=60, burst_capacity=1), endpoint)
    call = driver.astream if streamed else driver.acall

    async def main() -> None:
        tasks = [asyncio.create_task(call(str(number))) for number in range(6)]
        asyncio.get_running_loop().call_later(leaves_at, tasks[leaver].cancel)
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtual(main, clock)
    served = leaver <= leaves_at  # it had been served before it left
    assert texts(endpoint) == [str(number) for number in range(6) if served or number != leaver]
    assert times(endpoint) == [float(second) for second in range(6 if served else 5)]
    assert no_line(driver)


class Interrupting(VirtualClock):
    """Threads of these names are interrupted while they sleep, as Ctrl-C interrupts `time.sleep`."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupt_after: dict[str, float] = {}

    def sleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        patience = self.interrupt_after.pop(threading.current_thread().name, None)
        if patience is None or patience >= seconds:
            super().sleep(seconds, wakeup)
        else:
            super().sleep(patience)
            raise KeyboardInterrupt


@pytest.mark.parametrize("leaver", range(1, 5))
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_an_interrupted_thread_gives_its_place_back(leaver: int, streamed: bool) -> None:
    clock = Interrupting()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, requests_per_minute=60, burst_capacity=1), endpoint)

    def work(number: int) -> str:
        clock.sleep(number * 0.0001)
        if number == leaver:
            threading.current_thread().name = "leaver"
            clock.interrupt_after["leaver"] = 0.5
        return (driver.stream if streamed else driver.call)(str(number))

    results = clock.run_threads([lambda n=n: work(n) for n in range(6)])
    assert isinstance(results[leaver], KeyboardInterrupt)
    assert texts(endpoint) == [str(number) for number in range(6) if number != leaver]
    assert times(endpoint) == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0], abs=0.001)
    assert no_line(driver)


@both_drivers
def test_whoever_cannot_be_served_before_the_sessions_end_leaves_the_line(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    options = {"requests_per_minute": 60, "burst_capacity": 1, "rate_limit_scope": "provider"}
    driver = Driver(pipeline(clock, total_timeout=2.5, **options), endpoint)
    results = mode.all(driver, [{"prompt": str(number), "session": str(number)} for number in range(6)], stagger=0.0001)
    assert texts(endpoint) == ["0", "1", "2"]
    assert [type(result) for result in results] == [str] * 3 + [BrixTimeoutError] * 3
    assert {error.kind for error in results[3:]} == {"total"}
    assert clock.now() - 1_000.0 <= 2.6  # nobody waited for what could not come
    assert no_line(driver)


def no_line(driver: Driver) -> bool:
    guard: Any = next(guard for guard in driver.pipe.guards if guard.name == "rate_limit")
    return guard._lines._lines == {}


# Whose rate it is


@both_drivers
def test_each_session_has_its_own_rate(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, requests_per_minute=60, burst_capacity=1), endpoint)
    mode.all(driver, [{"session": session} for session in "aabbcc"])
    assert sorted(times(endpoint)) == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


@both_drivers
def test_all_sessions_share_the_rate_of_a_provider(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, requests_per_minute=60, burst_capacity=1, rate_limit_scope="provider"), endpoint)
    mode.all(driver, [{"session": session} for session in "aabbcc"])
    assert sorted(times(endpoint)) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@both_drivers
def test_a_rate_kept_in_one_store_holds_across_pipelines(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    first = pipeline(clock, requests_per_minute=60, burst_capacity=2, session_id="s")
    second = pipeline(clock, requests_per_minute=60, burst_capacity=2, session_id="s", store=first.store)
    mode.all(Driver(first, endpoint), [{}] * 3)
    mode.all(Driver(second, endpoint), [{}] * 3)
    assert within(times(endpoint), [1] * 6, 1.0, 2)


# What a 429 does to it

TOO_FAST = {"requests_per_minute": 60, "burst_capacity": 1, "recovery_window_seconds": 1_000}


@every_mode
def test_a_429_halves_the_rate_down_to_the_floor(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(429) if number < 4 else None)
    driver = Driver(pipeline(clock, min_rate_floor=0.2, **TOO_FAST), endpoint)
    mode.each(driver, [{}] * 7)
    gaps = [round(later - sooner, 6) for sooner, later in zip(times(endpoint), times(endpoint)[1:], strict=False)]
    assert gaps == [2.0, 4.0, 5.0, 5.0, 5.0, 5.0]
    slowed = driver.pipe.traces.get_traces()[-1]["decisions"]
    assert {"guard": "rate_limit", "decision": "slowed", "factor": 0.5} in slowed


@every_mode
def test_the_rate_recovers_in_quiet_windows_and_never_beyond_its_limit(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(429) if number == 0 else None)
    options = {**TOO_FAST, "recovery_window_seconds": 10, "rate_recovery_factor": 1.5}
    driver = Driver(pipeline(clock, **options), endpoint)
    mode.each(driver, [{}] * 2)
    for rest, gap in ((9.0, 1 / 0.75), (20.0, 1.0), (1e5, 1.0)):
        clock.advance(rest)
        before = len(endpoint.sent)
        mode.each(driver, [{}] * 2)
        at = times(endpoint)
        assert at[before + 1] - at[before] == pytest.approx(gap, abs=1e-5)


@every_mode
@pytest.mark.parametrize("recovery", [1.0, 1.05, 1.5, 1e100])
def test_the_rate_recovers_after_a_very_long_rest(mode: Mode, recovery: float) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(429) if number == 0 else None)
    options = {**TOO_FAST, "recovery_window_seconds": 1, "rate_recovery_factor": recovery}
    driver = Driver(pipeline(clock, **options), endpoint)
    mode.each(driver, [{}])
    clock.advance(1e5)
    assert all(isinstance(result, str) for result in mode.each(driver, [{}] * 2))
    assert times(endpoint)[2] - times(endpoint)[1] == pytest.approx(2.0 if recovery == 1.0 else 1.0)


@every_mode
@pytest.mark.parametrize("status", [400, 500, 503])
def test_other_failures_leave_the_rate_alone(mode: Mode, status: int) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(status))
    driver = Driver(pipeline(clock, **TOO_FAST), endpoint)
    mode.each(driver, [{}] * 3)
    assert times(endpoint) == [0.0, 1.0, 2.0]


@every_mode
def test_a_429_leaves_the_rate_alone_when_it_is_not_adaptive(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(429))
    driver = Driver(pipeline(clock, adaptive_rate_limiting=False, **TOO_FAST), endpoint)
    mode.each(driver, [{}] * 3)
    assert times(endpoint) == [0.0, 1.0, 2.0]


@every_mode
def test_a_wait_is_noted_in_the_trace(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, requests_per_minute=60, burst_capacity=1), FakeEndpoint(clock))
    mode.each(driver, [{}] * 2)
    newest, oldest = driver.pipe.traces.get_traces()
    assert newest["decisions"] == [{"guard": "rate_limit", "decision": "waited", "seconds": 1.0}]
    assert oldest["decisions"] == []
