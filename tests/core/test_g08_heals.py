"""G8, the way there: every heal is a call like any other, and there is only so much time for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langgraph.errors import GraphInterrupt

from brix_core import BrixBudgetError, BrixContextError, BrixRetryError, BrixSchemaError, BrixTimeoutError
from brix_core.call import CallRequest
from brix_core.clock import SystemClock
from brix_core.guards.schema import MIN_ECHO
from brix_core.usage import Usage
from tests.support.errors import status_error
from tests.support.fake import pipeline
from tests.support.modes import Mode, every_mode
from tests.support.schemas import INVALID, OSLO, VALID, City, Model, aask, ask, decisions, new_request, setup, trace_of
from tests.support.virtual import run_virtual

BAD = INVALID[0]
PRICES = {"prices": {"fake": (1e-6, 1e-6)}}


# -- every heal is a call like any other ---------------------------------------------------------------------


@every_mode
def test_heals_are_paid_for_and_one_that_cannot_be_paid_is_not_sent(mode: Mode) -> None:
    pipe, model = setup(BAD, VALID, max_cost_usd=0.001, **PRICES)
    model.usage = Usage(input_tokens=200, output_tokens=750)
    with pytest.raises(BrixBudgetError) as caught:
        ask(mode, pipe, model, max_tokens=750)
    assert [attempt.text for attempt in caught.value.schema_attempts] == [BAD]
    assert len(model.asked) == 1
    [healing] = decisions(pipe, "healing")
    assert healing["problems"] == ["$.people: Field required"]
    balance = pipe.store.balance("budget:s")
    assert (balance.reserved, balance.spent) == (0, 950_000)


@every_mode
def test_heals_wait_for_the_rate_limit(mode: Mode) -> None:
    pipe, model = setup(BAD, BAD, VALID, requests_per_minute=60, burst_capacity=1)
    assert ask(mode, pipe, model).instance == OSLO
    assert [sent.at - 1_000.0 for sent in model.sent] == pytest.approx([0.0, 1.0, 2.0])


@every_mode
def test_heals_are_retried_and_their_failures_come_out_as_they_are(mode: Mode) -> None:
    pipe, model = setup(BAD, status_error(500), VALID, max_retries=1)
    assert ask(mode, pipe, model).instance == OSLO
    assert len(trace_of(pipe)["attempts"]) == 3
    pipe, model = setup(BAD, status_error(500), max_retries=1)
    with pytest.raises(BrixRetryError) as given_up:
        ask(mode, pipe, model)
    assert [attempt.problems for attempt in given_up.value.schema_attempts] == [(("$.people", "Field required"),)]
    fatal = status_error(400)
    pipe, model = setup(BAD, fatal)
    with pytest.raises(type(fatal)) as caught:
        ask(mode, pipe, model)
    assert caught.value is fatal


@every_mode
@pytest.mark.parametrize("signal", [GraphInterrupt(), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
def test_control_flow_passes_through_a_heal_and_frees_what_it_held(mode: Mode, signal: BaseException) -> None:
    if mode.driver == "async" and isinstance(signal, KeyboardInterrupt):
        pytest.skip("ends the event loop itself")
    pipe, model = setup(BAD, signal, max_cost_usd=1.0, **PRICES)
    with pytest.raises(type(signal)):
        ask(mode, pipe, model)
    assert len(model.asked) == 2
    assert pipe.store.balance("budget:s").reserved == 0


@pytest.mark.parametrize("streamed", [False, True])
def test_cancelling_in_mid_heal_frees_what_it_held(streamed: bool) -> None:
    pipe, model = setup(BAD, max_cost_usd=1.0, max_schema_retries=9, **PRICES)
    model.latency = 10.0
    request = new_request(Mode("async", streamed), pipe, model)

    async def main() -> None:
        task = asyncio.ensure_future(aask(pipe, request))
        await asyncio.sleep(25.0)
        assert pipe.store.balance("budget:s").reserved > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main, pipe.clock)
    assert (len(model.asked), model.in_flight) == (3, 0)
    assert pipe.store.balance("budget:s").reserved == 0
    assert trace_of(pipe)["outcome"] == "cancelled"
    assert [attempt["outcome"] for attempt in trace_of(pipe)["attempts"]] == ["ok", "ok", "cancelled"]


# -- max_healing_seconds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("more", [{}, {"per_call_timeout": 60.0, "on_timeout": "return_partial"}], ids=["", "partial"])
def test_the_time_for_healing_bounds_the_calls_as_well(streamed: bool, more: dict[str, Any]) -> None:
    pipe, model = setup(BAD, max_healing_seconds=15.0, max_schema_retries=9, **more)
    model.latency = 10.0
    with pytest.raises(BrixSchemaError, match=r"max_healing_seconds=15\.0 is over") as caught:
        ask(Mode("async", streamed), pipe, model)
    assert pipe.clock.now() == pytest.approx(1_025.0)
    assert [attempt.text for attempt in caught.value.attempts][:2] == [BAD, BAD]
    assert len(model.asked) == 3
    assert ("timeout" in trace_of(pipe)["guards_active"]) is bool(more)


def test_the_time_for_healing_bounds_blocking_calls() -> None:
    clock = SystemClock()
    pipe = pipeline(clock, response_schema=City, max_healing_seconds=0.05, max_schema_retries=9)
    model = Model(clock, replies=[BAD], latency=0.03)
    before = clock.now()
    with pytest.raises(BrixSchemaError, match="max_healing_seconds"):
        ask(Mode("sync"), pipe, model)
    assert clock.now() - before < 0.5
    assert len(model.asked) <= 4


@every_mode
def test_a_retry_or_a_wait_that_would_come_too_late_ends_the_healing(mode: Mode) -> None:
    late = status_error(503, headers={"retry-after": "30"})
    pipe, model = setup(BAD, late, max_healing_seconds=10.0, max_retries=2)
    with pytest.raises(BrixSchemaError, match="max_healing_seconds") as caught:
        ask(mode, pipe, model)
    assert isinstance(caught.value.__cause__, BrixRetryError)
    pipe, model = setup(BAD, VALID, max_healing_seconds=10.0, requests_per_minute=1, burst_capacity=1)
    with pytest.raises(BrixSchemaError, match="max_healing_seconds") as caught:
        ask(mode, pipe, model)
    assert isinstance(caught.value.__cause__, BrixTimeoutError)
    assert pipe.clock.now() == 1_000.0


class Slowing(Model):
    """Takes four seconds longer with each call."""

    def _arrive(self, request: CallRequest) -> int:
        self.latency += 4.0
        return super()._arrive(request)


def test_other_time_limits_of_a_heal_come_out_as_they_are() -> None:
    pipe, _ = setup(max_healing_seconds=50.0, per_call_timeout=5.0)
    model = Slowing(pipe.clock, replies=[BAD])
    with pytest.raises(BrixTimeoutError, match="per_call_timeout"):
        ask(Mode("async"), pipe, model)
    assert len(model.asked) == 2


@every_mode
def test_a_heal_that_would_not_fit_shows_less_of_the_wrong_answer(mode: Mode) -> None:
    pipe, model = setup("lorem ipsum dolor sit amet " * 400, VALID, max_context_tokens=1_000)
    assert ask(mode, pipe, model).instance == OSLO
    assert len(model.asked) == 2
    shown = model.prompts()[1][-2][1]
    assert len(shown) <= MIN_ECHO + 10
    assert shown.startswith("lorem ipsum")


@every_mode
def test_a_heal_that_never_fits_is_refused_with_what_there_was(mode: Mode) -> None:
    pipe, model = setup("lorem ipsum dolor sit amet " * 400, VALID, max_context_tokens=670)
    with pytest.raises(BrixContextError) as caught:
        ask(mode, pipe, model)
    assert len(model.asked) == len(caught.value.schema_attempts) == 1
