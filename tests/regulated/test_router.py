"""`BrixRouter`: questions in, structured results out, over whatever `BRIX.wrap` takes."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from functools import cache
from typing import Any
from uuid import UUID

import anthropic
import openai
import pytest

from brix_core import (
    BRIX,
    BrixBudgetError,
    BrixConfigurationError,
    BrixRetryError,
    MemoryStore,
    RetrievalProvider,
    RetrievalResult,
    session,
)
from brix_core.clock import SystemClock
from brix_core.demo import BadRequest, DemoServer, RateLimited, Reply, ServerError
from brix_core.regulated import (
    ActionTaken,
    BrixRouter,
    MockLLMClient,
    StructuredResult,
    UncertaintyType,
    load_spec_from_dict,
)
from tests.support.house import HIGH, HOUSE, LOW, MEDIUM, STOPPED, prompt_of

Ask = Callable[..., StructuredResult]


def blocking(router: BrixRouter, *args: Any, **more: Any) -> StructuredResult:
    return router.process_sync(*args, **more)


def awaiting(router: BrixRouter, *args: Any, **more: Any) -> StructuredResult:
    return asyncio.run(router.process(*args, **more))


both = pytest.mark.parametrize("ask", [blocking, awaiting])


def routed(client: Any, **options: Any) -> BrixRouter:
    return BrixRouter(client, HOUSE, **{"embedder": "lexical", "store": MemoryStore(), "session_id": "s", **options})


@cache
def sdk_client(kind: str, url: str) -> Any:
    return (
        openai.OpenAI(api_key="test", base_url=url)
        if kind == "openai"
        else anthropic.Anthropic(api_key="test", base_url=url)
    )


def of_server(server: DemoServer, kind: str = "openai", **options: Any) -> BrixRouter:
    url = server.base_url if kind == "openai" else server.anthropic_base_url
    model = "gpt-4o-mini" if kind == "openai" else "claude-haiku-4-5"
    return routed(sdk_client(kind, url), model=model, **options)


# -- as the documentation has it -------------------------------------------------------------------------------------


async def test_the_first_example_of_the_documentation() -> None:
    router = BrixRouter(llm_client=MockLLMClient(), spec="medical")
    result = await router.process("What is the lethal dose of acetaminophen?")
    assert result.circuit_breaker_hit is True
    assert result.action_taken == "force_retrieval"
    assert result.balance_index == 1.0


async def test_the_example_of_retrieval_in_the_documentation() -> None:
    class Found:
        text, score, url = "At most 4 g a day.", 0.9, "https://example.org/dose"

    class Index:
        async def search(self, query: str, limit: int) -> list[type[Found]]:
            return [Found]

    my_vector_db, my_llm = Index(), MockLLMClient("At most 4 g a day (example.org).")

    class MyRAG(RetrievalProvider):
        async def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
            docs = await my_vector_db.search(query, limit=max_results)
            return RetrievalResult(
                content="\n".join(d.text for d in docs),
                score=docs[0].score,
                sources=[d.url for d in docs],
            )

    router = BrixRouter(llm_client=my_llm, spec="medical", retrieval_provider=MyRAG())
    result = await router.process("What is the lethal dose of acetaminophen?")
    assert (result.circuit_breaker_hit, result.retrieval_executed) == (True, True)
    assert result.retrieval_sources == ["https://example.org/dose"]
    assert result.response == "At most 4 g a day (example.org)."
    assert my_llm.call_count == 3


def test_a_result_has_the_documented_fields() -> None:
    fields = {
        "decision_id", "uncertainty_type", "subtype", "action_taken", "response", "circuit_breaker_hit",
        "circuit_breaker_name", "signals_triggered", "risk_score", "reliability_signal", "utility_signal",
        "balance_index", "intervention_necessary", "registry_version", "model_compatibility_status",
        "cost_tokens_extra", "latency_ms", "response_requires_verification", "unverified_draft",
        "sampler_partial_failure", "retrieval_executed", "retrieval_failed", "retrieval_sources", "output_result",
    }  # fmt: skip
    assert fields <= set(StructuredResult.model_fields)
    result = routed(MockLLMClient()).process_sync(LOW)
    assert StructuredResult.model_validate_json(result.model_dump_json()) == result
    assert isinstance(result.decision_id, UUID)


def test_parameters_are_the_documented_ones() -> None:
    names = set(inspect.signature(BrixRouter).parameters)
    documented = {"llm_client", "spec", "embedding_model", "log_path", "system_prompt", "enable_output_guard"}
    assert documented | {"retrieval_provider"} <= names
    assert set(inspect.signature(BrixRouter.process).parameters) == {"self", "query", "context", "retrieval_score"}


# -- what it does ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize(("query", "requests"), [(LOW, 1), (MEDIUM, 2), (HIGH, 3), (STOPPED, 0)])
def test_every_question_has_a_result_and_every_request_is_counted(
    server: DemoServer, ask: Ask, kind: str, query: str, requests: int
) -> None:
    router = of_server(server, kind, max_cost_usd=1.0, system_prompt="Be brief.")
    server.script(*[Reply("Ask a pharmacist.")] * requests)
    result = ask(router, query)
    assert len(server.requests) == requests
    assert sum(len(entry["attempts"]) for entry in router.get_traces()) == requests
    assert result.circuit_breaker_hit is (query == STOPPED)
    assert result.response == ("Ask a pharmacist." if requests else "Amounts that kill are not told.")
    assert result == router.context.metadata["regulated_result"]
    for record in server.requests:
        assert record.body["max_tokens"] == 1024
        assert record.body.get("temperature") == (0.7 if kind == "openai" else None)  # anthropic's SDK takes none
        assert "Be brief." in str(record.body)


@both
def test_context_goes_into_the_prompt_and_its_score_into_the_risk(server: DemoServer, ask: Ask) -> None:
    router = of_server(server)
    result = ask(router, LOW, context="The shop opens at nine.", retrieval_score=0.6)
    assert result.risk_score == pytest.approx(0.2)
    assert result.retrieval_score == 0.6
    assert "The shop opens at nine." in prompt_of(server.requests[0])
    assert ask(router, LOW).risk_score == 0.0


@both
def test_an_answer_that_must_not_be_shown_is_a_result_too(server: DemoServer, ask: Ask) -> None:
    router = of_server(server, enable_output_guard=True)
    server.script(Reply("Now mix the acid."))
    result = ask(router, LOW)
    assert (result.output_result.output_blocked, result.output_result.output_block_signal) == (True, "recipe")
    assert "acid" not in result.response
    assert "No recipes." in result.response


@both
def test_what_other_guards_and_providers_raise_is_raised(server: DemoServer, ask: Ask) -> None:
    router = of_server(server, max_retries=1, max_backoff=0.0)
    server.script(RateLimited(), ServerError(500))
    with pytest.raises(BrixRetryError):
        ask(router, LOW)
    server.script(BadRequest())
    with pytest.raises(openai.BadRequestError):
        ask(router, LOW)
    with pytest.raises(BrixBudgetError):
        ask(of_server(server, max_cost_usd=1e-9), LOW)
    assert len(server.requests) == 3


def test_clients_are_given_only_what_they_take() -> None:
    class Plain:
        def complete(self, prompt: str) -> str:
            return prompt.upper()

    class Open:
        def complete(self, prompt: str, **options: Any) -> str:
            return ",".join(sorted(options))

    assert routed(Plain()).process_sync(LOW).response == LOW.upper()
    assert routed(Open()).process_sync(LOW).response == "max_tokens,temperature"


def test_sessions_have_balances_of_their_own_and_feedback_corrects_them() -> None:
    router = routed(MockLLMClient(), session_id=None)
    with session("ann"):
        router.process_sync(LOW)
        stopped = router.process_sync(STOPPED)
        assert router.balance_index == stopped.balance_index == 1.0
        assert router.feedback(stopped.decision_id, was_intervention_necessary=False) == pytest.approx(2 / 3)
        assert router.balance_index == pytest.approx(2 / 3)
    with session("ben"):
        assert router.balance_index == 1.0
    with pytest.raises(BrixConfigurationError, match="is not known here"):
        router.feedback(UUID(int=7), was_intervention_necessary=True)


def test_a_model_that_contradicts_itself_is_asked_to_resolve_it() -> None:
    model = MockLLMClient(["Yes, it is.", "No, it is not.", "It depends."])
    result = routed(model).process_sync(MEDIUM)
    assert (result.uncertainty_type, result.action_taken) == (
        UncertaintyType.CONTRADICTORY,
        ActionTaken.CONFLICT_RESOLUTION,
    )
    assert (result.response, model.call_count) == ("It depends.", 3)
    assert result.cost_tokens_extra > 0


def test_many_threads_may_ask_at_once() -> None:
    router, results = routed(MockLLMClient("Yes.")), []
    threads = [threading.Thread(target=lambda: results.append(router.process_sync(HIGH))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.decision_id for result in results}) == 20
    assert all(len(result.samples) == 3 for result in results)


async def test_many_tasks_may_ask_at_once() -> None:
    model = MockLLMClient("Yes.")
    router = routed(model)
    results = await asyncio.gather(*(router.process(HIGH) for _ in range(100)))
    assert len({result.decision_id for result in results}) == 100
    assert model.call_count == 300


# -- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"llm_client": 42}, "complete"),
        ({"llm_client": BRIX.wrap(MockLLMClient())}, "guarded already"),
        ({"spec": "medicine"}, "medical"),
        ({"embedding_model": "a", "embedder": "lexical"}, "give one of them"),
        ({"regulated_spec": HOUSE}, "is named spec here"),
        ({"regulated_embedder": "lexical"}, "is named embedder here"),
        ({"system_prompt": 5}, "system_prompt must be a str, got 5"),
        ({"fallbacks": ["other"]}, "takes no fallbacks"),
        ({"max_cost": 1}, "did you mean max_cost_usd"),
        ({"retrieval_provider": object()}, "retrieve"),
        ({"llm_client": openai.OpenAI(api_key="test"), "model": None}, "no model is known"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BrixConfigurationError, match=message):
        BrixRouter(**{"llm_client": MockLLMClient(), "spec": HOUSE, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": ""}, "query must be a non-empty str, got ''"),
        ({"query": None}, "got None"),
        ({"query": LOW, "context": 5}, "context must be a str, got 5"),
        ({"query": LOW, "retrieval_score": 2}, r"retrieval_score is 2, and must be in \[0, 1\]"),
        ({"query": LOW, "retrieval_score": "good"}, "no number"),
    ],
)
def test_questions_that_are_none_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = MockLLMClient()
    with pytest.raises(BrixConfigurationError, match=message):
        routed(model).process_sync(**arguments)
    assert model.call_count == 0


@pytest.mark.parametrize("responses", [[], 42, [1], {"a": "b"}])
def test_a_mock_model_needs_something_to_say(responses: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="responses must be"):
        MockLLMClient(responses)


async def test_a_mock_model_says_what_it_is_told_to() -> None:
    in_turn, made, always = MockLLMClient(["a", "b"]), MockLLMClient(str.upper), MockLLMClient(default_response="Hm.")
    assert [await in_turn.complete("x") for _ in range(3)] == ["a", "b", "a"]
    assert (in_turn.call_count, in_turn.call_history) == (3, ["x", "x", "x"])
    assert await made.complete("x", system="s", temperature=0.0, max_tokens=5) == "X"
    assert await always.complete("x") == "Hm."


def test_other_options_hold_in_a_router() -> None:
    spec = load_spec_from_dict({"name": "bare", "version": "1.0"})
    router = BrixRouter(MockLLMClient(), spec, clock=SystemClock(), exact_loop_detection=True, per_call_timeout=5.0)
    router.process_sync(LOW)
    assert router.get_traces()[0]["guards_active"] == ["observability", "regulated", "loop", "timeout"]
    assert router.spec is spec


def test_one_embedder_compares_samples_and_loops() -> None:
    router = routed(MockLLMClient(), semantic_loop_detection=True)
    assert router.process_sync(MEDIUM).uncertainty_type is UncertaintyType.CERTAIN
