"""The driver for callers who are only told that a call begins and ends: the same guards, step by step."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from brix_core.call import CallResponse
from brix_core.drivers.stepwise import Stepwise
from brix_core.errors import (
    BrixBudgetError,
    BrixCircuitOpenError,
    BrixError,
    BrixInternalError,
    BrixLoopError,
    BrixTimeoutError,
)
from brix_core.flow import compose
from brix_core.pipeline import Pipeline
from brix_core.usage import Usage
from tests.support.fake import FakeEndpoint, pipeline
from tests.support.ledger import AuditedStore
from tests.support.virtual import VirtualClock

PRICES = {"fake": (1e-6, 1e-6)}
ANSWER = CallResponse(text="Paris", usage=Usage(input_tokens=1, output_tokens=9), model="fake")


class Steps:
    """Begins calls of one pipeline."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.store = AuditedStore()
        self.pipe: Pipeline = pipeline(self.clock, store=self.store, **options)
        self.endpoint = FakeEndpoint(self.clock)
        self._proceed = compose(self.pipe.guards)

    def made(self, prompt: str = "hello", **params: Any) -> Stepwise:
        messages = [{"role": "user", "content": prompt}]
        request = self.pipe.request(self.endpoint, messages, {"max_tokens": 50, **params}, stream=True)
        return Stepwise(self._proceed(request), self.clock)

    def begun(self, prompt: str = "hello", **params: Any) -> Stepwise:
        step = self.made(prompt, **params)
        step.begin()
        return step

    @property
    def trace(self) -> dict[str, Any]:
        return self.pipe.traces.get_traces()[0]

    @property
    def spent(self) -> int:
        return self.store.balance(f"budget:{self.pipe.sessions.default_id}").spent

    def check(self) -> None:
        assert self.endpoint.sent == []
        self.store.assert_sound()


@pytest.fixture
def steps() -> Steps:
    return Steps(max_cost_usd=1e-3, prices=PRICES, budget_clamp_output=False)


def test_what_an_answer_cost_is_settled_and_traced(steps: Steps) -> None:
    step = steps.made()
    assert step.begin().call.attempts[0].outcome is None
    assert steps.store.held > 0
    steps.clock.advance(2.0)
    assert step.finish(ANSWER) == ANSWER
    assert steps.spent == 10_000
    assert (steps.trace["outcome"], steps.trace["cost_usd"], steps.trace["latency_ms"]) == ("ok", 1e-5, 2_000.0)
    steps.check()


def test_a_call_is_refused_before_it_begins(steps: Steps) -> None:
    with pytest.raises(BrixBudgetError):
        steps.made(max_tokens=1_000).begin()
    assert (steps.trace["outcome"], steps.trace["attempts"]) == ("refused", [])
    steps.check()


def test_calls_under_way_hold_their_worst_case(steps: Steps) -> None:
    under_way = [steps.begun(max_tokens=400), steps.begun(max_tokens=400)]
    with pytest.raises(BrixBudgetError):
        steps.begun(max_tokens=400)
    for step in under_way:
        step.finish(ANSWER)
    steps.begun(max_tokens=400).finish(ANSWER)
    steps.check()


def test_a_failure_comes_out_as_it_went_in(steps: Steps) -> None:
    refused, lost = ConnectionRefusedError("no"), ValueError("who knows")
    with pytest.raises(ConnectionRefusedError) as caught:
        steps.begun().fail(refused)
    assert caught.value is refused
    assert steps.spent == 0
    with pytest.raises(ValueError, match="who knows"):
        steps.begun().fail(lost)
    assert steps.spent > 50_000
    assert (steps.trace["outcome"], steps.trace["error"]) == ("failed", "ValueError")
    steps.check()


def test_the_end_of_a_fake_models_answers_is_no_end_of_the_flow(steps: Steps) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        steps.begun().fail(StopIteration())
    steps.check()


@pytest.mark.parametrize(
    ("error", "outcome"), [(asyncio.CancelledError(), "cancelled"), (GeneratorExit(), "abandoned")]
)
def test_leaving_is_no_failure(error: BaseException, outcome: str, steps: Steps) -> None:
    step = steps.begun()
    step.chunk("Par")
    with pytest.raises(type(error)):
        step.fail(error)
    assert (steps.trace["outcome"], steps.trace["partial_text"]) == (outcome, "Par")
    assert 0 < steps.spent < 50_000
    steps.check()


def test_a_call_nobody_hears_of_again_is_charged_at_its_worst_case(steps: Steps) -> None:
    step = steps.begun()
    step.close()
    step.close()
    assert steps.trace["outcome"] == "abandoned"
    assert steps.spent > 50_000
    steps.check()


def test_a_call_that_was_not_sent_costs_nothing(steps: Steps) -> None:
    with pytest.raises(BrixError, match="not sent"):
        steps.begun().withdraw(BrixError("not sent"))
    assert (steps.spent, steps.trace["outcome"], steps.trace["attempts"]) == (0, "refused", [])
    steps.check()


def test_a_stream_is_stopped_at_the_cap(steps: Steps) -> None:
    step = steps.begun()
    step.chunk("word " * 40)
    with pytest.raises(BrixBudgetError) as caught:
        step.chunk("word " * 20)
    with pytest.raises(BrixBudgetError):
        step.fail(caught.value)
    assert steps.trace["decisions"][-1]["decision"] == "cut"
    assert steps.trace["partial_text"] == "word " * 40
    steps.check()


def test_a_stream_is_stopped_when_the_sessions_time_is_over() -> None:
    steps = Steps(total_timeout=10.0)
    step = steps.begun()
    step.chunk("one")
    steps.clock.advance(10.5)
    with pytest.raises(BrixTimeoutError) as caught:
        step.chunk("two")
    assert (caught.value.kind, caught.value.partial, caught.value.elapsed) == ("total", "one", 10.5)
    with pytest.raises(BrixTimeoutError):
        step.fail(caught.value)
    with pytest.raises(BrixTimeoutError):
        steps.begun()
    assert [trace["outcome"] for trace in steps.pipe.traces.get_traces()] == ["timed_out", "timed_out"]


def test_a_breaker_counts_what_it_is_told() -> None:
    steps = Steps(circuit_breaker=True, circuit_failure_threshold=2)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            steps.begun().fail(ConnectionResetError())
    with pytest.raises(BrixCircuitOpenError):
        steps.begun()


def test_a_looping_answer_is_refused() -> None:
    steps = Steps(exact_loop_detection=True, on_loop="raise")
    for _ in range(2):
        steps.begun().finish(ANSWER)
    with pytest.raises(BrixLoopError):
        steps.begun().finish(ANSWER)


def test_heavy_computation_is_done_in_place() -> None:
    def embed(texts: list[str]) -> list[list[float]]:
        return [[1.0, 0.0] for _ in texts]

    steps = Steps(semantic_loop_detection=True, embedder=embed, on_loop="raise")
    for text in ("it is Paris", "Paris it is"):
        steps.begun().finish(ANSWER._replace(text=text))
    with pytest.raises(BrixLoopError):
        steps.begun().finish(ANSWER._replace(text="Paris is it"))


def test_guards_that_call_again_or_wait_cannot_be_driven() -> None:
    retrying = Steps(max_retries=1)
    with pytest.raises(BrixInternalError, match="Sleep"):
        retrying.begun().fail(ConnectionResetError())
    assert retrying.trace["outcome"] == "failed"
    pacing = Steps(requests_per_minute=1)
    pacing.begun().finish(ANSWER)
    with pytest.raises(BrixInternalError, match="Sleep"):
        pacing.begun()


def test_a_call_ends_once(steps: Steps) -> None:
    step = steps.made()
    with pytest.raises(BrixInternalError, match="not under way"):
        step.chunk("early")
    step.begin()
    step.finish(ANSWER)
    error = ValueError("late")
    for late in (partial(step.finish, ANSWER), partial(step.fail, error), partial(step.withdraw, error)):
        with pytest.raises(BrixInternalError, match="not under way"):
            late()
    steps.check()
