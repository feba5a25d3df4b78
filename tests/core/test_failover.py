"""Failover: when one model fails, the next one answers."""

from __future__ import annotations

from typing import Any

import pytest

from brix_core import (
    BrixBudgetError,
    BrixCircuitOpenError,
    BrixFailoverError,
    BrixRetryError,
    BrixTimeoutError,
    BrixUnknownPriceError,
)
from brix_core.usage import Usage
from tests.support.errors import connection_lost, never_reached, status_error
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.modes import Mode, both_drivers, both_streams, every_mode
from tests.support.virtual import VirtualClock


def chain(
    *errors: Exception | None, clock: VirtualClock | None = None, **options: Any
) -> tuple[Driver, list[FakeEndpoint]]:
    """Endpoints that fail so (None: answers with its name), one behind the other."""
    clock = clock or VirtualClock()
    endpoints = [
        FakeEndpoint(clock, name=f"model-{n}", chunks=[f"from {n}"], behave=lambda number, error=error: error)
        for n, error in enumerate(errors)
    ]
    return Driver(pipeline(clock, endpoints[1:], **options), endpoints[0]), endpoints


def sent(endpoints: list[FakeEndpoint]) -> list[int]:
    return [len(endpoint.sent) for endpoint in endpoints]


@every_mode
@pytest.mark.parametrize(
    "error",
    [
        status_error(500),
        status_error(529),
        status_error(429),
        status_error(429, body={"code": "insufficient_quota"}),
        status_error(401),
        status_error(402),
        status_error(403),
        status_error(404),
        connection_lost(),
        never_reached(),
        TimeoutError(),
    ],
    ids=repr,
)
def test_when_the_provider_fails_the_next_model_answers(mode: Mode, error: Exception) -> None:
    driver, endpoints = chain(error, error, None, None)
    assert mode.one(driver) == "from 2"
    assert sent(endpoints) == [1, 1, 1, 0]


@every_mode
@pytest.mark.parametrize(
    "error", [status_error(400), status_error(422), ValueError("503"), RuntimeError("timed out")], ids=repr
)
def test_a_bad_request_or_an_unknown_failure_stays_where_it_is(mode: Mode, error: Exception) -> None:
    driver, endpoints = chain(error, None, max_retries=2)
    with pytest.raises(type(error)) as caught:
        mode.one(driver)
    assert caught.value is error
    assert sent(endpoints) == [1, 0]


@every_mode
def test_when_all_fail_the_error_tells_of_each(mode: Mode) -> None:
    errors = [status_error(500, "first"), status_error(401, "second"), connection_lost()]
    driver, endpoints = chain(*errors)
    with pytest.raises(BrixFailoverError, match=r"fake:model-0.*first.*fake:model-1.*second") as caught:
        mode.one(driver)
    assert [name for name, _ in caught.value.errors] == ["fake:model-0", "fake:model-1", "fake:model-2"]
    assert [error for _, error in caught.value.errors] == errors
    assert caught.value.__cause__ is errors[-1]
    assert sent(endpoints) == [1, 1, 1]


@every_mode
def test_each_model_has_retries_of_its_own(mode: Mode) -> None:
    driver, endpoints = chain(status_error(500), status_error(500), None, max_retries=2)
    assert mode.one(driver) == "from 2"
    assert sent(endpoints) == [3, 3, 1]
    history = driver.pipe.session().metadata["retry_history"]
    assert [item["endpoint"] for item in history] == ["fake:model-0"] * 3 + ["fake:model-1"] * 3


@every_mode
def test_an_open_circuit_fails_over_at_once(mode: Mode) -> None:
    driver, endpoints = chain(status_error(500), None, circuit_breaker=True, circuit_failure_threshold=2)
    assert mode.each(driver, [{}] * 6) == ["from 1"] * 6
    assert sent(endpoints) == [2, 6]


def test_a_model_that_does_not_answer_in_time_is_failed_over() -> None:
    for streamed in (False, True):
        driver, endpoints = chain(None, None, per_call_timeout=1.0)
        endpoints[0].latency = 60.0
        assert Mode("async", streamed).one(driver) == "from 1"
        assert driver.pipe.clock.now() == pytest.approx(1_001.0)


def test_when_the_sessions_time_is_over_nobody_else_is_asked() -> None:
    driver, endpoints = chain(None, None, total_timeout=5.0)
    endpoints[0].latency = 60.0
    with pytest.raises(BrixTimeoutError) as caught:
        Mode("async").one(driver)
    assert caught.value.kind == "total"
    assert sent(endpoints) == [1, 0]


@both_drivers
def test_a_deadline_that_ends_the_retries_ends_the_chain(mode: Mode) -> None:
    error = status_error(503, headers={"retry-after": "50"})
    driver, endpoints = chain(error, None, total_timeout=5.0, max_retries=3)
    with pytest.raises(BrixRetryError) as caught:
        mode.one(driver)
    assert caught.value.reason == "deadline"
    assert sent(endpoints) == [1, 0]


@every_mode
def test_a_refused_call_is_not_answered_by_a_fallback(mode: Mode) -> None:
    prices = {"model-0": (0, 0.1), "model-1": (0, 1e-9)}
    driver, endpoints = chain(None, None, max_cost_usd=0.001, prices=prices)
    with pytest.raises(BrixBudgetError):
        mode.one(driver)
    assert sent(endpoints) == [0, 0]


@every_mode
def test_a_fallback_without_a_price_is_refused_as_well(mode: Mode) -> None:
    driver, endpoints = chain(status_error(500), None, max_cost_usd=1.0, prices={"model-0": (0, 1e-9)})
    with pytest.raises(BrixUnknownPriceError):
        mode.one(driver)
    assert sent(endpoints) == [1, 0]


@every_mode
def test_each_model_is_charged_at_its_own_price(mode: Mode) -> None:
    prices = {"model-0": (0, 1.0), "model-1": (0, 0.001)}
    driver, endpoints = chain(status_error(500), None, max_cost_usd=1e6, prices=prices)
    endpoints[1].usage = Usage(input_tokens=1, output_tokens=2)
    mode.one(driver)
    assert driver.pipe.session().session_cost_usd == 0.002
    (entry,) = driver.pipe.traces.get_traces()
    assert [attempt["cost_usd"] for attempt in entry["attempts"]] == [0.0, 0.002]


@both_streams
def test_nobody_takes_over_a_stream_that_has_begun(mode: Mode) -> None:
    clock = VirtualClock()
    first, second = FakeEndpoint(clock, cut_after=1), FakeEndpoint(clock, name="second")
    driver = Driver(pipeline(clock, [second]), first)
    with pytest.raises(ConnectionResetError):
        mode.one(driver)
    assert second.sent == []


@both_streams
def test_a_stream_that_breaks_before_its_first_content_is_taken_over(mode: Mode) -> None:
    clock = VirtualClock()
    first = FakeEndpoint(clock, chunks=["", "", "never"], cut_after=2)
    second = FakeEndpoint(clock, name="second", chunks=["", "from 2"])
    driver = Driver(pipeline(clock, [second]), first)
    assert mode.one(driver) == "from 2"
    assert driver.pipe.traces.get_traces()[0]["model"] == "second"


@both_drivers
def test_an_open_circuit_everywhere_says_so(mode: Mode) -> None:
    options = {"circuit_breaker": True, "circuit_failure_threshold": 1}
    driver, endpoints = chain(status_error(500), status_error(500), **options)
    results = mode.each(driver, [{}] * 2)
    assert all(isinstance(error, BrixCircuitOpenError) for _, error in results[1].errors)
    assert sent(endpoints) == [1, 1]


def test_a_bound_pipeline_shares_all_state_but_the_chain() -> None:
    clock = VirtualClock()
    first, second, third = (FakeEndpoint(clock, name=name, chunks=[name]) for name in ("one", "two", "three"))
    first.behave = lambda number: status_error(500)
    pipe = pipeline(clock, [second])
    twin = pipe.with_fallbacks([third])
    assert Driver(twin, first).call() == "three"
    assert Driver(pipe, first).call() == "two"
    assert len(pipe.traces.get_traces()) == len(twin.traces.get_traces()) == 2
