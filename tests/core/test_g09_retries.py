"""G9: fatal errors are never retried, `Retry-After` is honoured, and every limit is kept."""

from __future__ import annotations

import itertools
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.errors import GraphInterrupt

from brix_core import BrixCircuitOpenError, BrixRetryError
from tests.support.errors import connection_lost, never_reached, status_error
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.modes import Mode, both_streams, every_mode
from tests.support.virtual import VirtualClock


class Detour(Exception):
    """An application's own control flow."""


FATAL = [
    status_error(400),
    status_error(401),
    status_error(403),
    status_error(404),
    status_error(422),
    status_error(501),
    status_error(429, body={"code": "insufficient_quota"}),
    status_error(503, headers={"x-should-retry": "false"}),
    ValueError("HTTP 503: used 1500 of 500 tokens, rate limit 429"),
    RuntimeError("timed out"),
    Detour(),
    GraphInterrupt(),
]
TRANSIENT = [
    status_error(408),
    status_error(409),
    status_error(429),
    status_error(500),
    status_error(502),
    status_error(529),
    status_error(400, headers={"x-should-retry": "true"}),
    connection_lost(),
    never_reached(),
    TimeoutError(),
    ConnectionResetError(),
]


def name(error: Exception) -> str:
    return f"{type(error).__name__}-{getattr(error, 'status_code', '')}"


def gaps(endpoint: FakeEndpoint) -> list[float]:
    at = [sent.at for sent in endpoint.sent]
    return [later - sooner for sooner, later in itertools.pairwise(at)]


@every_mode
@pytest.mark.parametrize("error", FATAL, ids=name)
def test_a_fatal_failure_is_tried_once_and_comes_out_as_the_very_same_object(mode: Mode, error: Exception) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: error)
    driver = Driver(pipeline(clock, max_retries=5), endpoint)
    with pytest.raises(type(error)) as caught:
        mode.one(driver)
    assert caught.value is error
    assert len(endpoint.sent) == 1
    assert clock.now() == 1_000.0


@every_mode
@pytest.mark.parametrize("error", TRANSIENT, ids=name)
def test_a_transient_failure_is_tried_again(mode: Mode, error: Exception) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: error if number < 2 else None)
    driver = Driver(pipeline(clock, max_retries=2), endpoint)
    assert mode.one(driver) == "one two three"
    assert len(endpoint.sent) == 3


@every_mode
def test_a_fatal_failure_after_a_transient_one_ends_the_attempts(mode: Mode) -> None:
    clock = VirtualClock()
    fatal = status_error(400)
    endpoint = FakeEndpoint(clock, behave=lambda number: fatal if number else status_error(500))
    driver = Driver(pipeline(clock, max_retries=5), endpoint)
    with pytest.raises(type(fatal)) as caught:
        mode.one(driver)
    assert caught.value is fatal
    assert len(endpoint.sent) == 2


@every_mode
@pytest.mark.parametrize("retries", [1, 4])
def test_when_all_attempts_fail_the_last_failure_is_handed_on(mode: Mode, retries: int) -> None:
    clock = VirtualClock()
    errors = [status_error(500, f"failure {number}") for number in range(10)]
    endpoint = FakeEndpoint(clock, behave=errors.__getitem__)
    driver = Driver(pipeline(clock, max_retries=retries), endpoint)
    with pytest.raises(BrixRetryError, match=f"max_retries={retries}") as caught:
        mode.one(driver)
    assert caught.value.last_error is caught.value.__cause__ is errors[retries]
    assert (caught.value.attempts, caught.value.reason) == (retries + 1, "attempts")
    assert len(endpoint.sent) == retries + 1


@every_mode
def test_no_retries_means_no_retries_and_no_wrapping(mode: Mode) -> None:
    clock = VirtualClock()
    error = status_error(500)
    endpoint = FakeEndpoint(clock, behave=lambda number: error)
    driver = Driver(pipeline(clock, max_retries=0), endpoint)
    with pytest.raises(type(error)) as caught:
        mode.one(driver)
    assert caught.value is error
    assert len(endpoint.sent) == 1


@every_mode
def test_further_statuses_can_be_made_retryable(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error((404, 418)[number]) if number < 2 else None)
    driver = Driver(pipeline(clock, max_retries=3, retry_on=[404, 418]), endpoint)
    assert mode.one(driver) == "one two three"


@every_mode
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "7.5"}, 7.5),
        ({"Retry-After-Ms": "7250", "Retry-After": "30"}, 7.25),
        ("date", 20.0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(mode: Mode, headers: Any, seconds: float, status: int) -> None:
    clock = VirtualClock()
    if headers == "date":
        headers = {"retry-after": formatdate(clock.time() + seconds, usegmt=True)}
    endpoint = FakeEndpoint(clock, behave=lambda n: status_error(status, headers=headers) if n == 0 else None)
    driver = Driver(pipeline(clock, max_retries=1, backoff_base=1.0), endpoint)
    mode.one(driver)
    # Backoff alone would have been 1 second at most; the wait is no shorter than asked, and not padded either.
    assert gaps(endpoint) == [pytest.approx(seconds)]


@every_mode
def test_a_retry_after_beyond_the_longest_backoff_ends_the_attempts_at_once(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(429, headers={"retry-after": "61"}))
    driver = Driver(pipeline(clock, max_retries=5, max_backoff=60.0), endpoint)
    with pytest.raises(BrixRetryError, match=r"61 s.*max_backoff=60") as caught:
        mode.one(driver)
    assert caught.value.reason == "retry_after"
    assert len(endpoint.sent) == 1
    assert clock.now() == 1_000.0


@settings(deadline=None, max_examples=60)
@every_mode
@given(
    retries=st.integers(0, 6),
    base=st.sampled_from([1.0, 2.0, 10.0, 1e200]),
    longest=st.sampled_from([0.0, 0.5, 4.0, 60.0]),
    budget=st.sampled_from([0.0, 1.0, 10.0, 120.0]),
    asked=st.lists(st.sampled_from([None, 0.0, 0.3, 2.0, 50.0]), min_size=1, max_size=8),
    fails=st.integers(0, 8),
    rpm=st.sampled_from([None, 60]),
)
def test_attempts_delays_and_budget_stay_inside_their_limits(
    mode: Mode,
    retries: int,
    base: float,
    longest: float,
    budget: float,
    asked: list[float | None],
    fails: int,
    rpm: int | None,
) -> None:
    clock = VirtualClock()

    def behave(number: int) -> Exception | None:
        if number >= fails:
            return None
        after = asked[number % len(asked)]
        return status_error(503, headers={} if after is None else {"retry-after": str(after)})

    endpoint = FakeEndpoint(clock, behave=behave)
    options = {"max_retries": retries, "backoff_base": base, "max_backoff": longest, "retry_budget_seconds": budget}
    driver = Driver(pipeline(clock, **options, requests_per_minute=rpm, burst_capacity=rpm and 100), endpoint)
    (result,) = mode.each(driver, [{}])
    assert len(endpoint.sent) <= retries + 1
    assert sum(gaps(endpoint)) <= budget + 1e-6
    for number, gap in enumerate(gaps(endpoint)):
        wanted = asked[number % len(asked)] or 0.0
        assert wanted - 1e-6 <= gap <= max(min(longest, base**number if number < 2 else longest), wanted) + 1e-6
        assert gap <= longest + 1e-6
    if isinstance(result, BrixRetryError):
        assert result.attempts == len(endpoint.sent)
        assert {
            "attempts": len(endpoint.sent) == retries + 1,
            "retry_after": any((seconds or 0.0) > longest for seconds in asked),
            "budget": True,
        }[result.reason]
    else:
        assert result == "one two three" if len(endpoint.sent) > fails else retries == 0
    history = driver.pipe.traces.get_traces()[0]
    assert len(history["attempts"]) == len(endpoint.sent)


@every_mode
def test_the_delays_of_one_call_share_one_budget(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(503, headers={"retry-after": "3"}))
    driver = Driver(pipeline(clock, max_retries=10, backoff_base=1.0, retry_budget_seconds=10.0), endpoint)
    with pytest.raises(BrixRetryError, match="retry_budget_seconds=10") as caught:
        mode.one(driver)
    assert (caught.value.reason, caught.value.attempts) == ("budget", 4)
    assert gaps(endpoint) == [pytest.approx(3.0)] * 3


# Streams


@both_streams
@pytest.mark.parametrize("error_after", [1, 2])
def test_nothing_is_retried_once_a_chunk_has_reached_the_consumer(mode: Mode, error_after: int) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, cut_after=error_after)
    fallback = FakeEndpoint(clock, name="fallback")
    driver = Driver(pipeline(clock, [fallback], max_retries=5), endpoint)
    with pytest.raises(ConnectionResetError):
        mode.one(driver)
    assert len(endpoint.sent) == 1
    assert fallback.sent == []


@both_streams
@pytest.mark.parametrize("opening", [(), ("",), ("", "", "")], ids=len)
def test_a_stream_that_fails_before_its_first_content_is_retried_and_delivered_once(
    mode: Mode, opening: tuple[str, ...]
) -> None:
    clock = VirtualClock()

    class Flaky(FakeEndpoint):
        def _chunks(self, request: Any) -> list[str]:
            self.cut_after = len(opening) if len(self.sent) == 1 else None
            return [*opening, "one ", "", "two"]

    endpoint = Flaky(clock)
    driver = Driver(pipeline(clock, max_retries=1), endpoint)
    assert mode.one(driver) == "one two"
    assert len(endpoint.sent) == 2
    assert endpoint.in_flight == 0


# Together with others


@every_mode
def test_an_open_circuit_is_not_knocked_at_again(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(500))
    driver = Driver(pipeline(clock, max_retries=9, circuit_breaker=True, circuit_failure_threshold=3), endpoint)
    with pytest.raises(BrixCircuitOpenError):
        mode.one(driver)
    assert len(endpoint.sent) == 3


def test_delays_are_drawn_from_the_whole_interval() -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(500) if number % 2 == 0 else None)
    driver = Driver(pipeline(clock, max_retries=1, backoff_base=2.0), endpoint)
    Mode("async").each(driver, [{}] * 300)
    delays = gaps(endpoint)[::2]
    assert 0.0 <= min(delays) < 0.1
    assert 0.9 < max(delays) <= 1.0
    assert 0.4 < sum(delays) / len(delays) < 0.6
