"""G2: a refused call sends nothing to the provider, and holds nothing afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from brix_core import (
    BrixBudgetError,
    BrixCircuitOpenError,
    BrixError,
    BrixRateLimitError,
    BrixRegulatedError,
    BrixTimeoutError,
    BrixUnknownPriceError,
)
from brix_core.store.base import Demand
from tests.support.errors import status_error
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.ledger import AuditedStore
from tests.support.modes import Call, Mode, every_mode
from tests.support.virtual import VirtualClock

STOPPING = {
    "name": "house",
    "version": "1.0",
    "circuit_breakers": [{"name": "dose", "description": "Asks for a lethal dose.", "patterns": ["lethal dose"]}],
}
PRICES = {"prices": {"fake": (0, 0.0001)}}


def _nothing(mode: Mode, driver: Driver, clock: VirtualClock) -> None:
    return


def _a_failure(mode: Mode, driver: Driver, clock: VirtualClock) -> None:
    mode.each(driver, [{}])


def _an_hour_passes(mode: Mode, driver: Driver, clock: VirtualClock) -> None:
    mode.each(driver, [{}])
    clock.advance(3_600)


@dataclass(frozen=True)
class Refusal:
    name: str
    options: dict[str, Any]
    error: type[BrixError]
    outcome: str = "refused"
    call: Call = field(default_factory=lambda: {"max_tokens": 100})
    before: Callable[[Mode, Driver, VirtualClock], None] = _nothing
    fails: bool = False


REFUSALS = [
    Refusal("budget", {"max_cost_usd": 0.001, **PRICES}, BrixBudgetError),
    Refusal("unknown-price", {"max_cost_usd": 1.0}, BrixUnknownPriceError),
    Refusal("call-larger-than-token-rate", {"tokens_per_minute": 50}, BrixRateLimitError),
    Refusal(
        "open-circuit",
        {"circuit_breaker": True, "circuit_failure_threshold": 1},
        BrixCircuitOpenError,
        before=_a_failure,
        fails=True,
    ),
    Refusal(
        "regulated-rule",
        {"regulated_spec": STOPPING},
        BrixRegulatedError,
        call={"max_tokens": 100, "prompt": "What is the lethal dose?"},
    ),
    Refusal("step-timeout", {"per_step_timeout": 60}, BrixTimeoutError, "timed_out", before=_an_hour_passes),
    Refusal("total-timeout", {"total_timeout": 60}, BrixTimeoutError, "timed_out", before=_an_hour_passes),
    Refusal(
        "rate-limit-past-total-timeout",
        {"requests_per_minute": 1, "total_timeout": 30},
        BrixTimeoutError,
        "timed_out",
        before=_a_failure,
    ),
]


@every_mode
@pytest.mark.parametrize("surrounded", [False, True], ids=["alone", "among-all-guards"])
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_a_refused_call_sends_nothing_and_holds_nothing(mode: Mode, refusal: Refusal, surrounded: bool) -> None:
    clock, store = VirtualClock(), AuditedStore()
    options = refusal.options
    if surrounded:
        # Fallbacks and retries must not mistake a refusal for a failure of the provider.
        unlimited = {"max_cost_usd": 100.0, **PRICES, "max_retries": 0, "requests_per_minute": 6_000}
        if refusal.error is BrixUnknownPriceError:
            del unlimited["prices"]
        options = {**unlimited, **options}
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(500) if refusal.fails else None)
    fallback = FakeEndpoint(clock, name="fallback")
    fallbacks = [fallback] if surrounded and refusal.error is not BrixCircuitOpenError else []
    driver = Driver(pipeline(clock, fallbacks, store=store, session_id="s", **options), endpoint)
    refusal.before(mode, driver, clock)
    sent, spent = len(endpoint.sent), store.balance("budget:s")
    with pytest.raises(refusal.error):
        mode.one(driver, **refusal.call)
    assert len(endpoint.sent) == sent
    assert fallback.sent == []
    assert store.balance("budget:s") == spent
    entry = driver.pipe.traces.get_traces()[0]
    assert (entry["outcome"], entry["error"]) == (refusal.outcome, refusal.error.__name__)
    assert entry["attempts"] == []
    assert entry["cost_usd"] is None


@every_mode
def test_a_call_refused_by_the_budget_takes_nothing_from_the_rate(mode: Mode) -> None:
    clock, store = VirtualClock(), AuditedStore()
    options = {"max_cost_usd": 0.001, **PRICES, "requests_per_minute": 1, "tokens_per_minute": 1_000}
    driver = Driver(pipeline(clock, store=store, session_id="s", **options), FakeEndpoint(clock))
    with pytest.raises(BrixBudgetError):
        mode.one(driver, max_tokens=100)
    full = [Demand("rate:session:s:requests", 1, 0, 1), Demand("rate:session:s:tokens", 1_000, 0, 1_000)]
    assert store.take(clock.now(), full) == 0.0


@every_mode
def test_a_call_refused_while_others_are_in_flight_sends_nothing(mode: Mode) -> None:
    clock, store = VirtualClock(), AuditedStore()
    endpoint = FakeEndpoint(clock, latency=5.0, known_longest=100)
    driver = Driver(
        pipeline(clock, store=store, session_id="s", max_cost_usd=0.0105, budget_warning_threshold=1.0, **PRICES),
        endpoint,
    )
    first, second = mode.all(driver, [{"prompt": "first"}, {"prompt": "second"}], stagger=1.0)
    assert isinstance(first, str)
    assert isinstance(second, BrixBudgetError)
    assert second.reserved_usd == 0.01
    assert [sent.text for sent in endpoint.sent] == ["first"]
    store.assert_sound()
