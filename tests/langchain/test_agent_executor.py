"""`guard_agent_executor`: loops of classic agents, over real HTTP."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx
import pytest
from langchain_classic.agents import (
    AgentExecutor,
    AgentType,
    create_react_agent,
    create_tool_calling_agent,
    initialize_agent,
)
from langchain_classic.agents.format_scratchpad import format_to_tool_messages
from langchain_classic.agents.output_parsers.tools import ToolsAgentOutputParser
from langchain_core.agents import AgentAction, AgentStep
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from langchain_openai import OpenAI

import brix_core
from brix_core import BrixBudgetError, BrixTimeoutError
from brix_core.demo import DemoServer, Reply, SlowFirstToken, StalledStream, ToolCalls
from brix_core.errors import BrixConfigurationError, BrixLoopError
from brix_core.store import MemoryStore
from brix_langchain import guard, guard_agent_executor
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES
from tests.support.words import vector

QUESTION = {"input": "Who wrote it?"}
WAYS = ("invoke", "ainvoke", "stream", "astream", "astream_events", "batch")
SEARCH = ToolCalls([("search", {"query": "author"})])
PROMPT = ChatPromptTemplate.from_messages([("human", "{input}"), ("placeholder", "{agent_scratchpad}")])
REACT = PromptTemplate.from_template("{tools} {tool_names}\nQuestion: {input}\nThought:{agent_scratchpad}")
ZERO_SHOT = AgentType.ZERO_SHOT_REACT_DESCRIPTION
BUDGET: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES}}

ticks: list[int] = []


@tool
def search(query: str) -> str:
    """Search the library."""
    return f"No result for {query}."


@tool
def poll() -> str:
    """See how far it is."""
    ticks.append(1)
    return f"{len(ticks)} percent done"


def executor(model: Any, **fields: Any) -> AgentExecutor:
    tools = [search, poll]
    return AgentExecutor(agent=create_tool_calling_agent(model, tools, PROMPT), tools=tools, **fields)


async def run(agent: Any, way: str = "invoke", config: Any = None) -> str:
    """The output of a run."""
    if way == "invoke":
        return str(agent.invoke(QUESTION, config)["output"])
    if way == "ainvoke":
        return str((await agent.ainvoke(QUESTION, config))["output"])
    if way == "batch":
        return str(agent.batch([QUESTION], config)[0]["output"])
    if way == "stream":
        return str(list(agent.stream(QUESTION, config))[-1]["output"])
    if way == "astream":
        return str([part async for part in agent.astream(QUESTION, config)][-1]["output"])
    events = [event async for event in agent.astream_events(QUESTION, config, version="v2")]
    ends = [event for event in events if (event["event"], event["name"]) == ("on_chain_end", "AgentExecutor")]
    return str(ends[-1]["data"]["output"]["output"])


def _scratchpad(inputs: Any) -> Any:
    return format_to_tool_messages(inputs["intermediate_steps"])


async def _run_otherwise(agent: Any, way: str) -> None:
    if way == "call":
        agent(QUESTION)
    elif way == "acall":
        await agent.acall(QUESTION)
    elif way == "abatch":
        await agent.abatch([QUESTION])
    elif way == "iter":
        list(agent.iter(QUESTION, async_=False))
    else:
        assert [step async for step in agent.iter(QUESTION)]


@pytest.mark.parametrize("way", WAYS)
class TestLoops:
    async def test_an_agent_that_repeats_one_call_is_stopped_after_the_third(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        server.default = SEARCH
        await run(executor(chat()), way)
        unguarded = server.stats.requests  # LangChain's limit of iterations
        server.reset()
        server.default = SEARCH
        with pytest.raises(BrixLoopError) as caught:
            await run(guard_agent_executor(executor(chat()), on_loop="raise"), way)
        assert caught.value.what == 'search({"query":"author"})'
        assert server.stats.requests == 3
        assert unguarded - server.stats.requests == 12

    async def test_a_nudge_is_in_the_last_observation(self, way: str, chat: Make, server: DemoServer) -> None:
        server.script(SEARCH, SEARCH, SEARCH, Reply("Nobody knows."))
        assert await run(guard_agent_executor(executor(chat())), way) == "Nobody knows."
        told = [message["content"] for message in server.requests[-1].body["messages"] if message["role"] == "tool"]
        assert told[0] == told[1] == "No result for author."
        assert told[2].startswith("No result for author.\n\nYou are going round in circles")

    async def test_an_agent_that_does_not_listen_is_stopped(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = SEARCH
        with pytest.raises(BrixLoopError, match=r"2 times \(diversity_attempts\) was in vain"):
            await run(guard_agent_executor(executor(chat()), on_loop="nudge"), way)
        assert server.stats.requests == 5

    async def test_parallel_calls_are_one_step(self, way: str, chat: Make, server: DemoServer) -> None:
        both = ToolCalls([("search", {"query": "a"}), ("search", {"query": "b"})])
        agent = guard_agent_executor(executor(chat()), on_loop="raise")
        server.script(both, both, Reply("Done."))  # four calls, a-b-a-b, but two steps
        assert await run(agent, way) == "Done."
        server.script(both, both, both)
        with pytest.raises(BrixLoopError, match=r"search.* \+ search"):
            await run(agent, way)
        assert server.stats.requests == 6

    async def test_changing_results_are_progress(self, way: str, chat: Make, server: DemoServer) -> None:
        agent = guard_agent_executor(executor(chat()), on_loop="raise")
        server.script(*[ToolCalls([("poll", {})])] * 5, Reply("Done."))
        assert await run(agent, way) == "Done."

    async def test_runs_do_not_know_of_each_other(self, way: str, chat: Make, server: DemoServer) -> None:
        agent = guard_agent_executor(executor(chat()), on_loop="raise")
        for _ in range(3):
            server.script(SEARCH, SEARCH, Reply("Nobody."))
            assert await run(agent, way) == "Nobody."

    async def test_steps_that_mean_the_same(self, way: str, chat: Make, server: DemoServer) -> None:
        options: dict[str, Any] = {
            "semantic_loop_detection": True,
            "embedder": lambda texts: [vector(t) for t in texts],
        }
        agent = guard_agent_executor(executor(chat()), on_loop="raise", **options)
        queries = ("author of this book", "this book author of", "of this book author")
        server.script(*(ToolCalls([("search", {"query": query})]) for query in queries))
        server.default = Reply("Nobody.")
        with pytest.raises(BrixLoopError) as caught:
            await run(agent, way)
        assert caught.value.kind == "semantic"


@pytest.mark.parametrize("way", WAYS)
class TestTheAgentsModel:
    async def test_it_is_guarded_where_an_option_is_about_it(self, way: str, chat: Make, server: DemoServer) -> None:
        agent = guard_agent_executor(executor(chat()), **BUDGET, store=MemoryStore())
        server.script(SEARCH, Reply("Nobody."))
        assert await run(agent, way) == "Nobody."
        assert sum(len(trace["attempts"]) for trace in agent.get_traces()) == server.stats.requests == 2
        assert all(trace["cost_usd"] > 0 for trace in agent.get_traces())

    async def test_in_the_session_of_the_run(self, way: str, chat: Make, server: DemoServer) -> None:
        agent = guard_agent_executor(executor(chat()), **BUDGET, store=MemoryStore())
        await run(agent, way, {"configurable": {"session_id": "ann"}})
        with brix_core.session("ben"):
            await run(agent, way)
        assert [len(agent.get_traces(name)) for name in ("ann", "ben", None)] == [1, 1, 2]

    async def test_no_money_no_request(self, way: str, chat: Make, server: DemoServer) -> None:
        agent = guard_agent_executor(executor(chat()), max_cost_usd=1e-9, prices={MODEL: RATES}, store=MemoryStore())
        with pytest.raises(BrixBudgetError):
            await run(agent, way)
        assert server.stats.requests == 0

    async def test_a_time_limit_is_no_early_answer(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = SlowFirstToken(5.0)
        agent = guard_agent_executor(executor(chat()), per_call_timeout=0.1)
        with pytest.raises(BrixTimeoutError):
            await run(agent, way)

    async def test_where_it_cannot_be_reached_callbacks_guard_it(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        model = chat(max_retries=0).bind_tools([search])

        def plan(inputs: Any) -> Any:
            return AgentAction("search", {"query": model.invoke(inputs["input"]).tool_calls[0]["args"]["query"]}, "")

        server.default = SEARCH
        hidden = AgentExecutor(agent=RunnableLambda(plan), tools=[search])
        agent = guard_agent_executor(hidden, **BUDGET, store=MemoryStore(), on_loop="raise")
        with pytest.raises(BrixLoopError):
            await run(agent, way)
        assert len(agent.get_traces()) == server.stats.requests == 3


@pytest.mark.parametrize("way", WAYS)
async def test_an_agent_that_writes_its_calls_as_text(way: str, chat: Make, server: DemoServer) -> None:
    agent = create_react_agent(chat(), [search], REACT)
    server.default = Reply("I search.\nAction: search\nAction Input: author")
    classic = guard_agent_executor(AgentExecutor(agent=agent, tools=[search]), on_loop="raise", **BUDGET)
    with pytest.raises(BrixLoopError, match=r"search\(author\)"):
        await run(classic, way)
    assert len(classic.get_traces()) == server.stats.requests == 3


async def test_answers_that_cannot_be_parsed_are_steps_too(chat: Make, server: DemoServer) -> None:
    agent = create_react_agent(chat(), [search], REACT)
    server.default = Reply("I do not know how to say it.")
    classic = AgentExecutor(agent=agent, tools=[search], handle_parsing_errors=True)
    with pytest.raises(BrixLoopError):
        await run(guard_agent_executor(classic, on_loop="raise"))
    assert server.stats.requests == 3


class TestOtherWays:
    """Ways into an executor beside those of every runnable, and what LangChain puts around it."""

    @pytest.mark.parametrize("way", ["call", "acall", "iter", "aiter", "abatch"])
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    async def test_no_way_passes_by_the_guards(self, way: str, chat: Make, server: DemoServer) -> None:
        agent: Any = guard_agent_executor(executor(chat()), on_loop="raise", store=MemoryStore(), **BUDGET)
        server.default = SEARCH
        with pytest.raises(BrixLoopError):
            await _run_otherwise(agent, way)
        assert len(agent.get_traces()) == server.stats.requests == 3

    async def test_time_limits_come_out_of_an_iteration_as_they_are(self, chat: Make, server: DemoServer) -> None:
        server.default = SlowFirstToken(5.0)
        agent = guard_agent_executor(executor(chat()), per_call_timeout=0.1)
        with pytest.raises(BrixTimeoutError):
            assert [step async for step in agent.iter(QUESTION)]
        with pytest.raises(BrixTimeoutError):
            list(agent.iter(QUESTION))

    @pytest.mark.parametrize("way", ["invoke", "ainvoke"])
    async def test_a_refusal_is_neither_retried_nor_answered_over(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        server.default = SEARCH
        agent = guard_agent_executor(executor(chat()), on_loop="raise")
        over: Any = RunnableLambda(lambda inputs: {"output": "All is well."})
        for around in (agent.with_retry(stop_after_attempt=3), agent.with_fallbacks([over])):
            with pytest.raises(BrixLoopError):
                await run(around, way)
        assert server.stats.requests == 6

    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
    async def test_intermediate_steps_are_returned_as_before(self, way: str, chat: Make, server: DemoServer) -> None:
        agent: Any = guard_agent_executor(executor(chat(), return_intermediate_steps=True))
        server.script(SEARCH, SEARCH, SEARCH, Reply("Nobody knows."))
        if way == "invoke":
            steps = agent.invoke(QUESTION)["intermediate_steps"]
        elif way == "ainvoke":
            steps = (await agent.ainvoke(QUESTION))["intermediate_steps"]
        else:
            parts = (
                list(agent.stream(QUESTION)) if way == "stream" else [part async for part in agent.astream(QUESTION)]
            )
            steps = parts[-1]["intermediate_steps"]
        assert [action.tool for action, _ in steps] == ["search"] * 3
        assert ["circles" in observation for _, observation in steps] == [False, False, True]

    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
    async def test_an_executor_stops_early_as_before(self, way: str, chat: Make, server: DemoServer) -> None:
        agent = guard_agent_executor(executor(chat(), max_iterations=2), store=MemoryStore(), **BUDGET)
        server.default = SEARCH
        assert await run(agent, way) == "Agent stopped due to max iterations."
        assert len(agent.get_traces()) == server.stats.requests == 2

    async def test_a_cancelled_stream_is_charged_and_nothing_more_is_asked(
        self, chat: Make, server: DemoServer
    ) -> None:
        agent = guard_agent_executor(executor(chat(stream_chunk_timeout=None)), store=MemoryStore(), **BUDGET)
        server.script(SEARCH, StalledStream())

        async def read() -> None:
            async for _ in agent.astream(QUESTION):
                pass

        task = asyncio.create_task(read())
        while server.stats.requests < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.wait_until_idle()
        latest, first = agent.get_traces()
        assert (latest["outcome"], first["outcome"]) == ("cancelled", "ok")
        assert latest["cost_usd"] > 0
        assert server.stats.requests == 2

    async def test_a_hundred_runs_at_once_stay_apart_and_within_the_cap(self, chat: Make, server: DemoServer) -> None:
        cap = 100 * 1.2e-5
        agent = guard_agent_executor(
            executor(chat(max_tokens=20)), on_loop="raise", **{**BUDGET, "max_cost_usd": cap}, store=MemoryStore()
        )
        server.default = Reply("Nobody knows.")
        outputs = await asyncio.gather(*(agent.ainvoke(QUESTION) for _ in range(100)), return_exceptions=True)
        answered = [output for output in outputs if isinstance(output, dict)]
        refused = [output for output in outputs if isinstance(output, BrixBudgetError)]
        assert len(answered) + len(refused) == 100
        assert answered
        assert refused
        assert len(answered) == server.stats.requests
        stats = server.stats
        assert stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1] <= cap


class TestOtherModelsInTheChain:
    """What cannot be put behind the guards itself is guarded by callbacks: nothing passes by."""

    @pytest.mark.parametrize("hidden", ["in fallbacks", "in a function", "in a branch"])
    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
    async def test_they_are_guarded_as_well(self, way: str, hidden: str, chat: Make, server: DemoServer) -> None:
        other = chat(max_retries=0)
        if hidden == "in fallbacks":
            step: Any = other.with_fallbacks([chat(max_retries=0)])
        elif hidden == "in a function":
            step = RunnableLambda(lambda prompt: other.invoke(prompt))
        else:
            step = RunnableBranch((lambda prompt: True, other), other)
        translated = step | (lambda message: [("human", message.text or "?")])
        model = chat(max_retries=0).bind_tools([search])
        chain = RunnablePassthrough.assign(agent_scratchpad=_scratchpad) | PROMPT | translated | model
        plain = AgentExecutor(agent=chain | ToolsAgentOutputParser(), tools=[search])
        agent = guard_agent_executor(plain, store=MemoryStore(), **BUDGET)
        server.script(Reply("Who?"), SEARCH, Reply("Who?"), Reply("Nobody."))
        assert await run(agent, way) == "Nobody."
        assert len(agent.get_traces()) == server.stats.requests == 4
        with pytest.raises(BrixConfigurationError, match="max_retries cannot be kept by callbacks"):
            guard_agent_executor(plain, max_retries=2)


@pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning")
class TestOlderAgents:
    """The classes before LCEL. Stopped early, they ask their model once more, and tell no callbacks."""

    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
    async def test_the_last_question_of_an_agent_that_is_stopped_early_is_guarded(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        options: dict[str, Any] = {"max_iterations": 2, "early_stopping_method": "generate", "agent": ZERO_SHOT}
        server.default = Reply("I search.\nAction: search\nAction Input: author")
        plain = initialize_agent([search], chat(), **options)
        agent = guard_agent_executor(plain, store=MemoryStore(), max_retries=1, **BUDGET)
        await run(agent, way)
        assert len(agent.get_traces()) == server.stats.requests == 3
        assert plain.agent is not agent.agent

    def test_an_agent_of_a_string_model(self, server: DemoServer) -> None:
        server.default = Reply("I search.\nAction: search\nAction Input: author")
        with httpx.Client(verify=False) as client:
            model = OpenAI(model="gpt-3.5-turbo-instruct", base_url=server.base_url, api_key="sk", http_client=client)  # type: ignore[arg-type]
            plain = initialize_agent([search], model, agent=ZERO_SHOT)
            agent = guard_agent_executor(plain, store=MemoryStore(), max_retries=1, on_loop="raise")
            with pytest.raises(BrixLoopError):
                agent.invoke(QUESTION)
        assert len(agent.get_traces()) == server.stats.requests == 3

    def test_where_that_question_cannot_be_guarded_it_is_refused(self, chat: Make) -> None:
        model = chat().with_fallbacks([chat()])
        options: dict[str, Any] = {"early_stopping_method": "generate", "agent": ZERO_SHOT}
        plain = initialize_agent([search], cast(Any, model), **options)
        with pytest.raises(BrixConfigurationError, match="early_stopping_method='force'"):
            guard_agent_executor(plain, **BUDGET)
        guard_agent_executor(plain)  # loops are found without the model


class TestConfiguration:
    def test_the_executor_keeps_its_class_and_settings_and_is_left_as_it_is(self, chat: Make) -> None:
        class Mine(AgentExecutor):
            note: str = ""

        tools = [search, poll]
        mine = Mine(agent=create_tool_calling_agent(chat(), tools, PROMPT), tools=tools, note="mine", max_iterations=3)
        agent = guard_agent_executor(mine, **BUDGET)
        assert isinstance(agent, Mine)
        assert (agent.note, agent.max_iterations, agent.input_keys) == ("mine", 3, mine.input_keys)
        assert mine.callbacks is None
        assert agent.agent is not mine.agent
        assert "GuardedChatModel" not in repr(mine.agent)

    def test_steps_can_be_iterated(self, chat: Make, server: DemoServer) -> None:
        server.default = SEARCH
        steps = guard_agent_executor(executor(chat())).iter(QUESTION)
        with pytest.raises(BrixLoopError):
            assert all(isinstance(step, dict | AgentStep) for step in steps)

    def test_loop_detection_can_be_off(self, chat: Make, server: DemoServer) -> None:
        server.default = SEARCH
        agent = guard_agent_executor(executor(chat(), max_iterations=6), tool_loop_detection=False)
        agent.invoke(QUESTION)
        assert server.stats.requests == 6

    def test_nothing_is_guarded_twice(self, chat: Make) -> None:
        agent = guard_agent_executor(executor(chat()))
        with pytest.raises(BrixConfigurationError, match="guarded already"):
            guard_agent_executor(agent)
        with pytest.raises(BrixConfigurationError, match="guarded already"):
            guard_agent_executor(executor(guard(chat(), max_retries=1)), max_retries=1)
        guard_agent_executor(executor(guard(chat(), max_retries=1)))

    def test_bad_options_are_told_at_once(self, chat: Make) -> None:
        with pytest.raises(BrixConfigurationError, match="on_loop"):
            guard_agent_executor(executor(chat()), on_loop="end")  # type: ignore[arg-type]
        with pytest.raises(BrixConfigurationError, match="did you mean"):
            guard_agent_executor(executor(chat()), max_retry=1)
        with pytest.raises(BrixConfigurationError, match="takes an AgentExecutor"):
            guard_agent_executor(chat())
        with pytest.raises(BrixConfigurationError, match="has no effect"):
            guard_agent_executor(executor(chat()), on_loop="raise", tool_loop_detection=False)
        with pytest.raises(BrixConfigurationError, match="BrixOutputParser"):
            guard_agent_executor(executor(chat()), response_schema={"type": "object"})
        with pytest.raises(BrixConfigurationError, match="exact_loop_detection is about single answers"):
            guard_agent_executor(executor(chat()), exact_loop_detection=True)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
class TestWhatItTells:
    async def test_of_its_session_and_guards(self, way: str, chat: Make, server: DemoServer) -> None:
        agent = guard_agent_executor(executor(chat()), store=MemoryStore(), max_retries=1, **BUDGET)
        assert {"loop", "budget", "retry"} <= set(agent.guards)
        with brix_core.session("s"):
            await run(agent, way)
            assert agent.context.session_id == "s"
            assert agent.context.session_cost_usd == agent.get_traces("s")[0]["cost_usd"] > 0

    async def test_where_no_option_is_about_its_model(self, way: str, chat: Make, server: DemoServer) -> None:
        agent = guard_agent_executor(executor(chat()))
        assert agent.guards == ("loop",)
        assert guard_agent_executor(executor(chat()), tool_loop_detection=False).guards == ()
        with brix_core.session("s"):
            await run(agent, way)
            assert agent.context.session_id == "s"
        assert agent.get_traces() == []
