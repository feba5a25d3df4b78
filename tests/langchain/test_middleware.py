"""`BrixMiddleware` in LangChain's agents, over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain.agents.middleware.tool_call_limit import ToolCallLimitExceededError
from langchain.agents.structured_output import ProviderStrategy, StructuredOutputValidationError, ToolStrategy
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.types import Command, interrupt
from pydantic import BaseModel

import brix_core
from brix_core import BrixBudgetError, BrixRunLimitError
from brix_core.demo import DemoServer, JsonReply, Reply, ServerError, StalledStream, ToolCalls
from brix_core.errors import BrixConfigurationError, BrixLoopError, BrixSchemaError
from brix_core.store import MemoryStore
from brix_langchain import BrixMiddleware, guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES, needs_middlewares_that_stop

QUESTION: Any = {"messages": [("user", "Who wrote it?")]}
WAYS = ("invoke", "ainvoke", "stream", "astream")
SEARCH = ToolCalls([("search", {"query": "author"})])


class Answer(BaseModel):
    author: str


@tool
def search(query: str) -> str:
    """Search the library."""
    return f"No result for {query}."


@tool
def lend(title: str) -> str:
    """Lend a book."""
    return f"{title} is yours."


def guards(**options: Any) -> BrixMiddleware:
    return BrixMiddleware(**{"store": MemoryStore(), "prices": {MODEL: RATES}, "max_cost_usd": 1.0, **options})


async def run(agent: Any, way: str = "invoke", value: Any = QUESTION, thread: str | None = None) -> list[Any]:
    """The messages of a run."""
    config: Any = {"configurable": {"thread_id": thread}} if thread else None
    if way == "invoke":
        return list(agent.invoke(value, config)["messages"])
    if way == "ainvoke":
        return list((await agent.ainvoke(value, config))["messages"])
    if way == "stream":
        states = list(agent.stream(value, config, stream_mode=["messages", "values"]))
    else:
        states = [state async for state in agent.astream(value, config, stream_mode=["messages", "values"])]
    return list([state for mode, state in states if mode == "values"][-1]["messages"])


def assert_all_counted(middleware: BrixMiddleware, server: DemoServer, requests: int) -> None:
    assert server.wait_until_idle()
    assert sum(len(trace["attempts"]) for trace in middleware.get_traces()) == server.stats.requests == requests
    for record in server.requests:
        assert_answered(record.body["messages"])


def assert_answered(messages: Sequence[Mapping[str, Any]]) -> None:
    """A provider takes only prompts in which the results of tool calls follow them at once."""
    pending: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in pending
            pending.discard(message["tool_call_id"])
        else:
            assert not pending
            pending = {call["id"] for call in message.get("tool_calls") or ()}
    assert not pending


@pytest.mark.parametrize("way", WAYS)
class TestLoops:
    async def test_an_agent_that_repeats_one_call_is_stopped_after_the_third(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        server.default = SEARCH
        with pytest.raises(GraphRecursionError):
            await run(create_agent(chat(), [search]).with_config(recursion_limit=41), way)
        unguarded = server.stats.requests
        server.reset()
        server.default = SEARCH
        middleware = guards(on_loop="end")
        messages = await run(create_agent(chat(), [search], middleware=[middleware]), way)
        assert "search" in messages[-1].text
        assert "3 times" in messages[-1].text
        assert messages[-1].response_metadata["stopped_by"] == "loop"
        assert_all_counted(middleware, server, 3)
        assert unguarded - server.stats.requests >= 17  # requests saved

    async def test_or_an_error_is_raised(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = SEARCH
        middleware = guards(on_loop="raise")
        with pytest.raises(BrixLoopError) as caught:
            await run(create_agent(chat(), [search], middleware=[middleware]), way)
        assert caught.value.repeats == 3
        assert_all_counted(middleware, server, 3)

    async def test_a_nudge_is_sent_but_kept_out_of_the_thread(self, way: str, chat: Make, server: DemoServer) -> None:
        server.script(SEARCH, SEARCH, SEARCH, Reply("Nobody knows."))
        middleware = guards()
        messages = await run(create_agent(chat(), [search], middleware=[middleware]), way)
        assert messages[-1].text == "Nobody knows."
        assert "going round in circles" in server.requests[-1].body["messages"][-1]["content"]
        assert not any("circles" in message.text for message in messages)
        assert_all_counted(middleware, server, 4)

    async def test_an_agent_that_does_not_listen_is_stopped(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = SEARCH
        middleware = guards(diversity_attempts=1)
        with pytest.raises(BrixLoopError):
            await run(create_agent(chat(), [search], middleware=[middleware]), way)
        assert_all_counted(middleware, server, 4)

    async def test_parallel_calls_are_one_step(self, way: str, chat: Make, server: DemoServer) -> None:
        both = ToolCalls([("search", {"query": "a"}), ("search", {"query": "b"})])
        server.script(both, both, Reply("Done."))  # four calls, a-b-a-b, but two steps
        middleware = guards(on_loop="raise")
        await run(create_agent(chat(), [search], middleware=[middleware]), way)
        server.default = both
        with pytest.raises(BrixLoopError, match=r"search.* \+ search"):
            await run(create_agent(chat(), [search], middleware=[middleware]), way)
        assert_all_counted(middleware, server, 6)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("first", [True, False])
class TestShortenedPrompts:
    """What is taken out of a prompt was done all the same."""

    async def test_a_loop_is_seen_through_summaries(
        self, way: str, first: bool, chat: Make, server: DemoServer
    ) -> None:
        writer = guard(chat(model="gpt-4o"), store=MemoryStore())
        middleware = guards(on_loop="end", exact_loop_threshold=5)
        summary = SummarizationMiddleware(writer, trigger=("messages", 5), keep=("messages", 2))
        order = [middleware, summary] if first else [summary, middleware]
        agent = create_agent(chat(), [search], middleware=order, checkpointer=InMemorySaver())
        server.default = SEARCH
        for run_number in (1, 2):
            messages = await run(agent.with_config(recursion_limit=60), way, thread="t")
            assert "5 times" in messages[-1].text
            assert sum(record.model == MODEL for record in server.requests) == 5 * run_number
        assert writer.get_traces()

    async def test_nudges_are_counted_through_summaries(
        self, way: str, first: bool, chat: Make, server: DemoServer
    ) -> None:
        writer = guard(chat(model="gpt-4o"), store=MemoryStore())
        middleware = guards()
        summary = SummarizationMiddleware(writer, trigger=("messages", 3), keep=("messages", 2))
        order = [middleware, summary] if first else [summary, middleware]
        agent = create_agent(chat(), [search], middleware=order).with_config(recursion_limit=60)
        server.default = SEARCH
        with pytest.raises(BrixLoopError, match=r"2 times \(diversity_attempts\)"):
            await run(agent, way)
        assert sum(record.model == MODEL for record in server.requests) == 5

    async def test_heals_are_counted_through_summaries(
        self, way: str, first: bool, chat: Make, server: DemoServer
    ) -> None:
        writer = guard(chat(model="gpt-4o"), store=MemoryStore())
        middleware = guards(max_schema_retries=3, tool_loop_detection=False)
        summary = SummarizationMiddleware(writer, trigger=("messages", 3), keep=("messages", 2))
        order = [middleware, summary] if first else [summary, middleware]
        agent = create_agent(chat(), [], response_format=ToolStrategy(Answer), middleware=order)
        server.default = ToolCalls([("Answer", {"author": 1})])
        with pytest.raises(BrixSchemaError) as caught:
            await run(agent.with_config(recursion_limit=60), way)
        assert len(caught.value.attempts) == 4
        assert sum(record.model == MODEL for record in server.requests) == 4

    async def test_cleared_results_are_not_taken_for_equal_ones(
        self, way: str, first: bool, chat: Make, server: DemoServer
    ) -> None:
        ticks = []

        @tool
        def poll() -> str:
            """See how far it is."""
            ticks.append(1)
            return f"{len(ticks)} percent done"

        middleware = guards(on_loop="raise")
        editing = ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1, keep=0)])
        order = [middleware, editing] if first else [editing, middleware]
        server.script(*[ToolCalls([("poll", {})])] * 5, Reply("Done."))
        assert (await run(create_agent(chat(), [poll], middleware=order), way))[-1].text == "Done."
        shown = [message["content"] for message in server.requests[-1].body["messages"] if message["role"] == "tool"]
        assert shown == ["[cleared]"] * 5
        assert_all_counted(middleware, server, 6)


async def test_steps_that_a_caller_brings_along_count(chat: Make, server: DemoServer) -> None:
    middleware = guards(on_loop="raise")
    agent = create_agent(chat(), [search], middleware=[middleware])
    server.script(SEARCH, SEARCH, Reply("Nobody."))
    talk = (await run(agent))[:-1]
    server.default = SEARCH
    with pytest.raises(BrixLoopError):
        await run(agent, value={"messages": talk})
    assert_all_counted(middleware, server, 4)


async def test_long_results_are_told_apart(chat: Make, server: DemoServer) -> None:
    pages = []

    @tool
    def read() -> str:
        """Read on."""
        pages.append(1)
        return "x" * 20_000 + str(len(pages))

    middleware = guards(on_loop="raise")
    agent = create_agent(chat(), [read], middleware=[middleware], checkpointer=InMemorySaver())
    server.script(*[ToolCalls([("read", {})])] * 4, Reply("Done."))
    await run(agent, thread="t")
    kept = agent.get_state({"configurable": {"thread_id": "t"}}).values["brix_run"]
    assert len(kept["steps"]) == 4
    assert len(repr(kept)) < 50_000
    assert_all_counted(middleware, server, 5)


async def test_three_questions_are_no_loop(chat: Make, server: DemoServer) -> None:
    middleware = guards(on_loop="raise")
    agent = create_agent(chat(), [search], middleware=[middleware], checkpointer=InMemorySaver())
    for _ in range(4):
        server.script(SEARCH, SEARCH, Reply("Nobody."))
        await run(agent, thread="t")
    assert_all_counted(middleware, server, 12)


@pytest.mark.parametrize("way", WAYS)
class TestLimits:
    async def test_a_tool_is_blocked_beyond_its_limit(self, way: str, chat: Make, server: DemoServer) -> None:
        twice = ToolCalls([("search", {"query": "a"}), ("lend", {"title": "b"})])
        server.script(twice, twice, Reply("Done."))
        middleware = guards(max_tool_calls={"lend": 1})
        messages = await run(create_agent(chat(), [search, lend], middleware=[middleware]), way)
        lent = [message for message in messages if message.type == "tool" and message.name == "lend"]
        assert [message.status for message in lent] == ["success", "error"]
        assert "max_tool_calls['lend']=1" in lent[1].text
        assert [m.status for m in messages if m.type == "tool" and m.name == "search"] == ["success", "success"]
        assert_all_counted(middleware, server, 3)

    async def test_the_run_can_end_there(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = ToolCalls([("search", {"query": "a"}), ("lend", {"title": "b"})])
        middleware = guards(max_tool_calls=3, on_limit="end")
        messages = await run(create_agent(chat(), [search, lend], middleware=[middleware]), way)
        assert messages[-1].response_metadata["stopped_by"] == "run_limit"
        assert [message.status for message in messages[-3:-1]] == ["error", "error"]  # neither was run
        assert_all_counted(middleware, server, 2)

    async def test_or_raise(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = SEARCH
        middleware = guards(max_tool_calls=1, on_limit="raise")
        agent = create_agent(chat(), [search], middleware=[middleware], checkpointer=InMemorySaver())
        with pytest.raises(BrixRunLimitError, match="max_tool_calls=1") as caught:
            await run(agent, way, thread="t")
        assert caught.value.limit == 1
        server.default = Reply("Hello.")
        await run(agent, way, thread="t")  # a valid prompt: nothing is pending
        assert_all_counted(middleware, server, 3)

    async def test_a_run_makes_so_many_model_calls(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = SEARCH
        middleware = guards(max_model_calls=2)
        agent = create_agent(chat(), [search], middleware=[middleware], checkpointer=InMemorySaver())
        for run_number in (1, 2):  # the next run counts anew
            messages = await run(agent, way, thread="t")
            assert "max_model_calls=2" in messages[-1].text
            assert_all_counted(middleware, server, 2 * run_number)

    async def test_structured_output_ends_there_too(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = Reply("I do not call tools.")
        middleware = guards(max_model_calls=1)
        agent = create_agent(chat(), [], response_format=ToolStrategy(Answer), middleware=[middleware])
        await run(agent, way)
        server.default = ToolCalls([("Answer", {})])
        messages = await run(agent, way)
        assert messages[-1].response_metadata["stopped_by"] == "run_limit"
        assert server.stats.requests == 2


class TestAllWays:
    """Every way to run an agent, and every way out of one, under the same count."""

    @pytest.mark.parametrize("way", ["batch", "abatch", "astream_events"])
    async def test_no_way_passes_by_the_guards(self, way: str, chat: Make, server: DemoServer) -> None:
        server.script(SEARCH, Reply("Nobody."), SEARCH, Reply("Nobody."))
        middleware = guards()
        agent: Any = create_agent(chat(), [search], middleware=[middleware])
        if way == "batch":
            agent.batch([QUESTION, QUESTION], {"max_concurrency": 1})
        elif way == "abatch":
            await agent.abatch([QUESTION, QUESTION], {"max_concurrency": 1})
        else:
            for _ in range(2):
                assert [event async for event in agent.astream_events(QUESTION, version="v2")]
        assert_all_counted(middleware, server, 4)

    async def test_a_cancelled_stream_is_charged_and_nothing_more_is_asked(
        self, chat: Make, server: DemoServer
    ) -> None:
        server.script(SEARCH, StalledStream())
        middleware = guards()
        agent = create_agent(chat(stream_chunk_timeout=None), [search], middleware=[middleware])
        task = asyncio.create_task(run(agent, "astream"))
        while server.stats.requests < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        latest, first = middleware.get_traces()
        assert (latest["outcome"], first["outcome"]) == ("cancelled", "ok")
        assert latest["cost_usd"] > 0
        assert_all_counted(middleware, server, 2)

    async def test_a_stream_that_nobody_reads_on_is_settled(self, chat: Make, server: DemoServer) -> None:
        server.default = Reply("word " * 50, chunk_size=5)
        middleware = guards()
        agent = create_agent(chat(), [], middleware=[middleware])
        async with aclosing(cast(Any, agent.astream(QUESTION, stream_mode="messages"))) as parts:
            async for _ in parts:
                break
        assert server.wait_until_idle()
        (trace,) = middleware.get_traces()
        assert trace["outcome"] in ("cancelled", "abandoned", "ok")  # LangGraph may have read on by then
        assert trace["cost_usd"] > 0
        money = middleware._pipeline.store.balance(f"budget:{trace['session_id']}")
        assert money.reserved == 0

    async def test_a_hundred_runs_at_once_never_exceed_the_cap(self, chat: Make, server: DemoServer) -> None:
        cap = 100 * 1.2e-5
        middleware = guards(max_cost_usd=cap)
        agent = create_agent(chat(max_tokens=20), [search], middleware=[middleware])
        outputs = await asyncio.gather(*(agent.ainvoke(QUESTION) for _ in range(100)), return_exceptions=True)
        kinds = {type(output).__name__ for output in outputs}
        assert kinds == {"dict", "BrixBudgetError"}
        stats = server.stats
        assert stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1] <= cap
        assert_all_counted(middleware, server, sum(isinstance(output, dict) for output in outputs))

    async def test_threads_at_the_same_time_keep_counts_of_their_own(self, chat: Make, server: DemoServer) -> None:
        server.default = SEARCH
        middleware = guards(max_model_calls=2)
        agent = create_agent(chat(), [search], middleware=[middleware], checkpointer=InMemorySaver())
        outputs = await asyncio.gather(*(run(agent, "ainvoke", thread=f"t{n}") for n in range(25)))
        assert all("max_model_calls=2" in messages[-1].text for messages in outputs)
        assert len({trace["session_id"] for trace in middleware.get_traces()}) == 25
        assert_all_counted(middleware, server, 50)


class TestSessions:
    async def test_each_thread_has_its_own_budget_and_keeps_it(self, chat: Make, server: DemoServer) -> None:
        middleware = guards(max_cost_usd=1e-4, budget_clamp_output=False)
        agent = create_agent(chat(max_tokens=100), [], middleware=[middleware], checkpointer=InMemorySaver())
        server.default = Reply("word " * 90)
        await run(agent, thread="one")
        with pytest.raises(BrixBudgetError):
            await run(agent, "ainvoke", thread="one")
        await run(agent, "ainvoke", thread="two")
        assert {trace["session_id"] for trace in middleware.get_traces()} == {"one", "two"}
        with brix_core.session("three"):
            await run(agent, thread="one")
        assert len(middleware.get_traces("three")) == 1

    async def test_counts_are_private(self, chat: Make, server: DemoServer) -> None:
        middleware = guards(max_tool_calls=2)
        server.script(SEARCH, Reply("Nobody."))
        agent = create_agent(chat(), [search], middleware=[middleware], checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "t"}}
        assert agent.get_input_jsonschema()["properties"].keys() == {"messages"}
        assert "brix" not in str(agent.get_output_jsonschema())
        forged: Any = {**QUESTION, "brix_model_calls": 99, "brix_tool_calls": {"search": 99}, "brix_run": {"id": 7}}
        assert agent.invoke(forged, config).keys() == {"messages"}
        kept = agent.get_state(config).values
        assert (kept["brix_model_calls"], kept["brix_tool_calls"]) == (2, {"search": 1})


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
class TestInterrupts:
    @pytest.mark.parametrize("first", [True, False])
    async def test_counts_outlast_a_human_in_the_loop(
        self, way: str, first: bool, chat: Make, server: DemoServer
    ) -> None:
        middleware, human = guards(max_tool_calls={"lend": 1}), HumanInTheLoopMiddleware({"lend": True})
        order = [middleware, human] if first else [human, middleware]
        agent = create_agent(chat(), [lend], middleware=order, checkpointer=InMemorySaver())
        server.default = ToolCalls([("lend", {"title": "Emma"})])
        await run(agent, way, thread="t")
        assert server.stats.requests == 1
        server.script(ToolCalls([("lend", {"title": "Emma"})]), Reply("Only one."))
        resume: Any = Command(resume={"decisions": [{"type": "approve"}]})
        messages = await run(agent, way, resume, thread="t")
        if first:  # the human is asked before the middleware is
            messages = await run(agent, way, resume, thread="t")
        assert [message.status for message in messages if message.type == "tool"] == ["success", "error"]
        assert messages[-1].text == "Only one."
        assert_all_counted(middleware, server, 3)

    @pytest.mark.parametrize("decision", ["approve", "reject"])
    async def test_a_call_that_is_too_much_is_answered_once(
        self, way: str, decision: str, chat: Make, server: DemoServer
    ) -> None:
        middleware, human = guards(max_tool_calls={"lend": 1}), HumanInTheLoopMiddleware({"lend": True})
        agent = create_agent(chat(), [lend], middleware=[human, middleware], checkpointer=InMemorySaver())
        server.script(ToolCalls([("lend", {"title": "Emma"}), ("lend", {"title": "Persuasion"})]), Reply("Fine."))
        await run(agent, way, thread="t")
        resume: Any = Command(resume={"decisions": [{"type": "approve"}, {"type": decision}]})
        messages = await run(agent, way, resume, thread="t")
        assert sorted(message.status for message in messages if message.type == "tool") == ["error", "success"]
        assert_all_counted(middleware, server, 2)

    async def test_a_new_message_instead_of_a_decision_finds_the_calls_answered(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        middleware, human = guards(), HumanInTheLoopMiddleware({"lend": True})
        agent = create_agent(chat(), [lend], middleware=[human, middleware], checkpointer=InMemorySaver())
        server.script(ToolCalls([("lend", {"title": "Emma"}), ("lend", {"title": "Persuasion"})]), Reply("Fine."))
        await run(agent, way, thread="t")
        messages = await run(agent, way, thread="t")
        assert [message.type for message in messages] == ["human", "ai", "tool", "tool", "human", "ai"]
        assert_all_counted(middleware, server, 2)

    async def test_counts_outlast_an_interrupt_inside_a_tool(self, way: str, chat: Make, server: DemoServer) -> None:
        @tool
        def ask(question: str) -> str:
            """Ask a human."""
            return str(interrupt(question))

        middleware = guards(max_tool_calls={"ask": 1})
        agent = create_agent(chat(), [ask, search], middleware=[middleware], checkpointer=InMemorySaver())
        both = ToolCalls([("ask", {"question": "Who?"}), ("search", {"query": "author"})])
        server.script(both, ToolCalls([("ask", {"question": "Really?"})]), Reply("Austen."))
        await run(agent, way, thread="t")
        assert server.stats.requests == 1
        messages = await run(agent, way, Command(resume="Jane Austen"), thread="t")
        answers = [(message.status, message.text) for message in messages if message.type == "tool"]
        assert answers[:2] == [("success", "Jane Austen"), ("success", "No result for author.")]
        assert [status for status, _ in answers[2:]] == ["error"]
        assert_all_counted(middleware, server, 3)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
class TestStructuredOutput:
    @pytest.mark.parametrize("wanted", [Answer, ProviderStrategy(Answer), ToolStrategy(Answer)])
    async def test_what_is_asked_is_what_the_bare_agent_asks(
        self, way: str, wanted: Any, chat: Make, server: DemoServer
    ) -> None:
        by_tool = isinstance(wanted, ToolStrategy)
        answer = ToolCalls([("Answer", {"author": "Austen"})]) if by_tool else JsonReply({"author": "Austen"})
        server.script(answer, answer)
        middleware = guards()
        for others in ([], [middleware]):
            agent: Any = create_agent(chat(), [search], response_format=wanted, middleware=others)
            state = agent.invoke(QUESTION) if way == "invoke" else await agent.ainvoke(QUESTION)
            assert state["structured_response"] == Answer(author="Austen")
        bare, guarded = server.requests
        assert guarded.body == bare.body
        assert len(middleware.get_traces()) == 1

    async def test_a_tool_strategy_heals_so_often(self, way: str, chat: Make, server: DemoServer) -> None:
        middleware = guards(max_schema_retries=1)
        agent = create_agent(chat(), [search], response_format=ToolStrategy(Answer), middleware=[middleware])
        wrong = [ToolCalls([("Answer", {"author": number})]) for number in range(3)]
        server.script(SEARCH, wrong[0], ToolCalls([("Answer", {"author": "Austen"})]))
        answer = agent.invoke(QUESTION) if way == "invoke" else await agent.ainvoke(QUESTION)
        assert answer["structured_response"] == Answer(author="Austen")
        assert_all_counted(middleware, server, 3)
        server.script(SEARCH, *wrong)
        with pytest.raises(BrixSchemaError, match="max_schema_retries=1") as caught:
            await run(agent, way)
        assert [attempt.text for attempt in caught.value.attempts] == ['{"author": 0}', '{"author": 1}']
        assert "valid string" in caught.value.attempts[1].problems[0][1]
        assert_all_counted(middleware, server, 6)

    async def test_a_provider_strategy_asks_once(self, way: str, chat: Make, server: DemoServer) -> None:
        middleware = guards()
        agent = create_agent(chat(), [], response_format=ProviderStrategy(Answer), middleware=[middleware])
        server.script(JsonReply({"author": "Austen"}), JsonReply({"author": 1}))
        answer = agent.invoke(QUESTION) if way == "invoke" else await agent.ainvoke(QUESTION)
        assert answer["structured_response"] == Answer(author="Austen")
        assert server.requests[0].body["response_format"]["type"] == "json_schema"
        with pytest.raises(StructuredOutputValidationError):
            await run(agent, way)
        assert_all_counted(middleware, server, 2)


RECOVERIES: dict[str, Callable[[Any], Any]] = {
    "retry": lambda model: ModelRetryMiddleware(max_retries=3, initial_delay=0),
    "continue": lambda model: ModelRetryMiddleware(max_retries=1, initial_delay=0, on_failure="continue"),
    "fallback": lambda model: ModelFallbackMiddleware(model),
}


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
class TestBesideOthers:
    @needs_middlewares_that_stop
    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize("kind", RECOVERIES)
    async def test_a_refusal_is_not_retried_and_not_answered_over(
        self, way: str, kind: str, first: bool, chat: Make, server: DemoServer
    ) -> None:
        middleware, other = guards(max_cost_usd=1e-9), RECOVERIES[kind](chat())
        order = [middleware, other] if first else [other, middleware]
        with pytest.raises(BrixBudgetError) as caught:
            await run(create_agent(chat(), [], middleware=order), way)
        assert len(middleware.get_traces()) == 1
        assert server.stats.requests == 0
        assert pickle.loads(pickle.dumps(caught.value)).needed_usd == caught.value.needed_usd
        assert type(copy.copy(caught.value)) is BrixBudgetError

    @pytest.mark.parametrize("kind", RECOVERIES)
    async def test_whatever_others_make_of_a_refusal_nothing_is_sent(
        self, way: str, kind: str, chat: Make, server: DemoServer
    ) -> None:
        middleware = guards(max_cost_usd=1e-9)
        with contextlib.suppress(BrixBudgetError):  # older versions of LangChain may answer over it
            await run(create_agent(chat(), [], middleware=[RECOVERIES[kind](chat()), middleware]), way)
        assert {trace["outcome"] for trace in middleware.get_traces()} == {"refused"}
        assert server.stats.requests == 0

    async def test_what_retries_and_fallbacks_send_is_guarded(self, way: str, chat: Make, server: DemoServer) -> None:
        middleware = guards(prices={MODEL: RATES, "gpt-4o": RATES})
        fallback = ModelFallbackMiddleware(chat(model="gpt-4o"))
        retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, on_failure="error")
        agent = create_agent(chat(), [], middleware=[fallback, retry, middleware])
        server.script(ServerError(), ServerError(), Reply("Here."))
        assert (await run(agent, way))[-1].text == "Here."
        assert [record.model for record in server.requests] == [MODEL, MODEL, "gpt-4o"]
        assert_all_counted(middleware, server, 3)

    async def test_the_guards_own_fallbacks_and_retries(self, way: str, chat: Make, server: DemoServer) -> None:
        options = {"prices": {MODEL: RATES, "gpt-4o": RATES}, "max_retries": 1, "max_backoff": 0.0, "backoff_base": 1.0}
        middleware = guards(fallbacks=[chat(model="gpt-4o")], **options)
        server.script(ServerError(), ServerError(), SEARCH, Reply("Nobody."))
        assert (await run(create_agent(chat(), [search], middleware=[middleware]), way))[-1].text == "Nobody."
        assert [record.model for record in server.requests] == [MODEL, MODEL, "gpt-4o", MODEL]
        assert server.requests[2].body["tools"]
        assert_all_counted(middleware, server, 4)

    @needs_middlewares_that_stop
    async def test_a_refusal_inside_a_tool_is_no_failure_of_the_tool(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        inner = guard(chat(), max_cost_usd=1e-9, prices={MODEL: RATES}, store=MemoryStore())
        asked = []

        @tool
        def ask(question: str) -> str:
            """Ask somebody else."""
            asked.append(question)
            return str(inner.invoke(question).text)

        middleware, retry = guards(), ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)
        agent = create_agent(chat(), [ask], middleware=[retry, middleware], checkpointer=InMemorySaver())
        server.default = ToolCalls([("ask", {"question": "Who?"})])
        with pytest.raises(BrixBudgetError):
            await run(agent, way, thread="t")
        assert asked == ["Who?"]
        server.default = Reply("Sorry.")
        await run(agent, way, thread="t")
        assert_all_counted(middleware, server, 2)

    async def test_a_refusal_in_one_of_several_tools_leaves_no_call_pending(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        inner = guard(chat(), max_cost_usd=1e-9, prices={MODEL: RATES}, store=MemoryStore())

        @tool
        def ask(question: str) -> str:
            """Ask somebody else."""
            return str(inner.invoke(question).text)

        middleware = guards()
        agent = create_agent(chat(), [ask, search], middleware=[middleware], checkpointer=InMemorySaver())
        server.script(ToolCalls([("search", {"query": "x"}), ("ask", {"question": "Who?"})]), Reply("Sorry."))
        with pytest.raises(BrixBudgetError):
            await run(agent, way, thread="t")
        assert (await run(agent, way, thread="t"))[-1].text == "Sorry."
        assert_all_counted(middleware, server, 2)

    async def test_a_failing_tool_is_retried_as_before(self, way: str, chat: Make, server: DemoServer) -> None:
        calls = []

        @tool
        def flaky(query: str) -> str:
            """Search."""
            calls.append(query)
            if len(calls) < 3:
                raise ConnectionError("down")
            return "Austen"

        middleware, retry = guards(), ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)
        server.script(ToolCalls([("flaky", {"query": "x"})]), Reply("Austen."))
        await run(create_agent(chat(), [flaky], middleware=[retry, middleware]), way)
        assert len(calls) == 3
        assert_all_counted(middleware, server, 2)

    async def test_a_summary_by_a_guarded_model(self, way: str, chat: Make, server: DemoServer) -> None:
        writer = guard(chat(), store=MemoryStore())
        middleware = guards(on_loop="raise", exact_loop_threshold=4)
        summary = SummarizationMiddleware(writer, trigger=("messages", 5), keep=("messages", 4))
        agent = create_agent(chat(), [search], middleware=[summary, middleware], checkpointer=InMemorySaver())
        server.default = Reply("They talked.")
        for _ in range(4):
            await run(agent, way, thread="t")
        seen = sum(len(trace["attempts"]) for trace in [*writer.get_traces(), *middleware.get_traces()])
        assert len(writer.get_traces()) >= 1
        assert seen == server.stats.requests


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("first", [True, False])
class TestLimitsOfOthers:
    """LangChain's own limits, before and after ours: the tighter one holds, and the prompt stays valid."""

    @pytest.mark.parametrize("ours", [1, 3])
    async def test_of_model_calls(self, way: str, first: bool, ours: int, chat: Make, server: DemoServer) -> None:
        server.default = SEARCH
        middleware, other = guards(max_model_calls=ours), ModelCallLimitMiddleware(run_limit=2)
        order: list[Any] = [middleware, other] if first else [other, middleware]
        agent = create_agent(chat(), [search], middleware=order, checkpointer=InMemorySaver())
        for run_number in (1, 2):
            await run(agent, way, thread="t")
            assert_all_counted(middleware, server, min(ours, 2) * run_number)

    @pytest.mark.parametrize("exit_behavior", ["continue", "end", "error"])
    async def test_of_tool_calls(
        self, way: str, first: bool, exit_behavior: Any, chat: Make, server: DemoServer
    ) -> None:
        tool_limit = ToolCallLimitMiddleware(run_limit=1, exit_behavior=exit_behavior)
        middleware: Any = guards(max_tool_calls={"search": 2}, on_loop="end")
        order: list[Any] = [middleware, tool_limit] if first else [tool_limit, middleware]
        agent = create_agent(chat(), [search], middleware=order, checkpointer=InMemorySaver())
        server.script(SEARCH, SEARCH)
        server.default = Reply("Nobody.")
        if exit_behavior == "error":
            with pytest.raises(ToolCallLimitExceededError):
                await run(agent, way, thread="t")
        else:
            await run(agent, way, thread="t")
        messages = await run(agent, way, thread="t")  # goes on with a valid prompt
        done = [message for message in messages if message.type == "tool" and message.status == "success"]
        assert len(done) == 1
        assert_all_counted(middleware, server, server.stats.requests)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_the_budget_of_a_guarded_agent_holds_for_the_model_inside(
    way: str, chat: Make, server: DemoServer
) -> None:
    store = MemoryStore()
    middleware = guards(store=store, max_cost_usd=1.0)
    agent = create_agent(chat(max_tokens=100), [search], middleware=[middleware], checkpointer=InMemorySaver())
    whole = guard(agent, max_cost_usd=4e-5, prices={MODEL: RATES}, store=store)
    server.default = SEARCH
    with pytest.raises(BrixBudgetError):
        await run(whole, way, thread="t")
    assert_all_counted(middleware, server, server.stats.requests)
    stats = server.stats
    assert stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1] <= 4e-5


async def test_provider_errors_come_out_as_they_are(chat: Make, server: DemoServer) -> None:
    server.default = ServerError()
    with pytest.raises(openai.InternalServerError):
        await run(create_agent(chat(), [], middleware=[guards()]))


class TestConfiguration:
    async def test_a_guarded_model_is_not_guarded_twice(self, chat: Make, server: DemoServer) -> None:
        model = guard(chat(), store=MemoryStore())
        with pytest.raises(BrixConfigurationError, match="guarded already"):
            await run(create_agent(model, [], middleware=[guards()]))
        limits = BrixMiddleware(max_model_calls=1, tool_loop_detection=False)
        server.default = SEARCH
        messages = await run(create_agent(model, [search], middleware=[limits]))
        assert "max_model_calls=1" in messages[-1].text
        assert len(model.get_traces()) == server.stats.requests == 1

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"on_loop": "stop"}, "on_loop"),
            ({"on_limit": "stop"}, "on_limit"),
            ({"max_model_calls": 0}, "max_model_calls"),
            ({"max_tool_calls": {"search": -1}}, "search"),
            ({"max_model_calls": "10"}, "max_model_calls"),
            ({"max_tool_calls": "3"}, "max_tool_calls must be an int >= 0 or a dict"),
            ({"max_tool_calls": True}, "max_tool_calls"),
            ({"max_tool_calls": [3]}, "max_tool_calls"),
            ({"max_tool_calls": {1: 1}}, r"use tool\.name"),
            ({"max_schema_retries": -1}, "max_schema_retries"),
            ({"response_schema": Answer}, "response_format"),
            ({"response_format": Answer}, r"create_agent\(response_format=\.\.\.\)"),
            ({"stream_mode": "validated"}, "stream_mode cannot be used in an agent"),
            ({"on_loop": "end", "tool_loop_detection": False}, "has no effect"),
            ({"max_retry": 1}, "did you mean"),
            (
                {"max_context_tokens": 10_000, "context_strategy": "summarize", "context_summary_model": "gpt-4o"},
                "chat model",
            ),
        ],
    )
    def test_bad_options_are_told_at_once(self, options: dict[str, Any], why: str) -> None:
        with pytest.raises(BrixConfigurationError, match=why):
            BrixMiddleware(**options)
