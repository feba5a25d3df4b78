"""What was refused, and by which numbers, as events: budgets, retrievals, tools that go round in circles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.schema import NodeWithScore, TextNode

import brix_core
from brix_core import BrixBudgetError, BrixLoopError, BrixRetrievalError, BrixRunLimitError, BrixTimeoutError
from brix_core.demo import DemoServer, StalledStream, ToolCalls
from brix_llamaindex import BrixGuardEvent, RegulatedPostprocessor, guard, guard_tool
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.test_events import Collected, listening


@pytest.fixture
def collected() -> Iterator[Collected]:
    with listening(Collected()) as handler:
        yield handler


def events(collected: Collected) -> list[BrixGuardEvent]:
    return [event for event in collected.seen if isinstance(event, BrixGuardEvent)]


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}"


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_refusal_by_the_budget_tells_its_numbers(
    openai_like: Make, server: DemoServer, collected: Collected, asynchronous: bool
) -> None:
    llm = guard(openai_like(max_tokens=100), max_cost_usd=0.01, prices={MODEL: (1e-3, 1e-3)}, budget_clamp_output=False)
    with pytest.raises(BrixBudgetError) as caught:
        await llm.acomplete("Hello") if asynchronous else llm.complete("Hello")
    ended = events(collected)[-1]
    assert (ended.guard, ended.decision) == ("observability", "refused")
    assert ended.details["limit_usd"] == 0.01
    assert ended.details["needed_usd"] == caught.value.needed_usd > 0.1
    assert ended.details["spent_usd"] == 0.0
    assert (ended.details["attempts"], ended.details["error"]) == (0, "BrixBudgetError")
    assert server.stats.requests == 0


async def test_a_time_limit_tells_which_and_how_long(
    openai_like: Make, server: DemoServer, collected: Collected
) -> None:
    server.default = StalledStream(after=0)
    with pytest.raises(BrixTimeoutError):
        await guard(openai_like(), per_call_timeout=0.05).acomplete("Hello")
    details = events(collected)[-1].details
    assert (details["kind"], details["limit"], details["attempts"]) == ("call", 0.05, 1)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_retrievals_tell_how_they_ended(collected: Collected, asynchronous: bool) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text), score=score) for text, score in [("a", 0.9), ("b", 0.1)]]
    postprocessor = RegulatedPostprocessor(score="similarity", min_score=0.5)

    async def look(given: list[NodeWithScore]) -> Any:
        if asynchronous:
            return await postprocessor.apostprocess_nodes(given, query_str="What is a?")
        return postprocessor.postprocess_nodes(given, query_str="What is a?")

    with brix_core.session("ann"):
        await look(nodes)
        with pytest.raises(BrixRetrievalError):
            await look(nodes[1:])
    kept, refused = events(collected)
    traces = postprocessor.get_traces("ann")
    assert [kept.run_id, refused.run_id] == [trace["run_id"] for trace in reversed(traces)]
    assert {kept.session_id, refused.session_id} == {"ann"}
    assert [(event.guard, event.decision) for event in (kept, refused)] == [
        ("retrieval", "ok"),
        ("retrieval", "refused"),
    ]
    assert (kept.details["found"], kept.details["kept"]) == (2, 1)
    expected = {"score": 0.1, "min_score": 0.5, "found": 1, "kept": 0, "error": "BrixRetrievalError"}
    assert refused.details == expected


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_tool_in_circles_is_told_of(collected: Collected, asynchronous: bool) -> None:
    tool: Any = guard_tool(get_weather)

    async def call() -> Any:
        return await tool.acall(city="Oslo") if asynchronous else tool.call(city="Oslo")

    with brix_core.session("ann"):
        for _ in range(3):
            await call()
        with pytest.raises(BrixLoopError):
            await call()
    told, raised = events(collected)
    assert [(event.guard, event.decision) for event in (told, raised)] == [("loop", "told"), ("loop", "raised")]
    assert {told.session_id, raised.session_id} == {"ann"}
    assert told.details == {"tool": "get_weather", "limit": 3}
    assert (raised.details["tool"], raised.details["repeats"]) == ("get_weather", 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_too_many_calls_of_a_tool_are_told_of_with_the_agents_run(
    openai_like: Make, server: DemoServer, collected: Collected
) -> None:
    server.default = ToolCalls([("get_weather", {"city": "Oslo"})])
    agent = FunctionAgent(tools=[guard_tool(get_weather, max_calls=1)], llm=openai_like())
    with pytest.raises(BrixRunLimitError):
        await agent.run("Hello")
    told, raised = events(collected)
    assert [told.guard, told.decision, raised.guard, raised.decision] == ["run_limit", "told", "run_limit", "raised"]
    assert told.run_id == raised.run_id != ""
    assert told.details["limit"] == raised.details["limit"] == 1
