"""LangGraph graphs and agents behind their guards: still graphs, with a checkpointer and without."""

from __future__ import annotations

import asyncio
import copy
import operator
import pickle
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, interrupt

from brix_core import BrixBudgetError, BrixConfigurationError, BrixLoopError, BrixTimeoutError
from brix_core.demo import DemoServer, Reply, ServerError, ToolCalls
from brix_core.store import MemoryStore
from brix_langchain import guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:langchain_core._api.deprecation.LangChainDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unexpected type for token usage:UserWarning"),
]

PRICED: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES}}
ALL: dict[str, Any] = {
    **PRICED,
    "requests_per_minute": 1_000_000,
    "per_call_timeout": 20.0,
    "idle_timeout": 10.0,
    "max_retries": 2,
    "backoff_base": 1.0,
    "max_backoff": 0.0,
    "circuit_breaker": True,
    "tool_loop_detection": True,
}
ASKED: dict[str, Any] = {"messages": [HumanMessage("Hello")]}


@pytest.fixture
def chat(chat: Make) -> Make:
    """Models that send one request a call: where guards are callbacks, others are refused under a budget."""
    return partial(chat, max_retries=0)


def talking(model: Any, checkpointer: Any = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """One node that asks the model."""

    def talk(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"], config)]}

    async def atalk(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"], config)]}

    builder = StateGraph(MessagesState)
    builder.add_node("talk", RunnableLambda(talk, atalk))
    builder.add_edge(START, "talk")
    builder.add_edge("talk", END)
    return builder.compile(checkpointer=checkpointer)


def guarded(graph: Any, **options: Any) -> Any:
    return guard(graph, **{"store": MemoryStore(), **options})


def thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}}


async def drain(source: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in source]


def assert_all_seen(graph: Any, server: DemoServer, runs: int, requests: int | None = None) -> None:
    assert server.wait_until_idle()
    assert len(graph.get_traces()) == runs
    stats = server.stats
    assert sum(len(trace["attempts"]) for trace in graph.inside.get_traces()) == stats.requests > 0
    assert stats.requests == (runs if requests is None else requests)
    owed = stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1]
    assert sum(trace["cost_usd"] for trace in graph.inside.get_traces()) == pytest.approx(owed, rel=1e-6)


async def _av3(graph: Any) -> Any:
    stream = await graph.astream_events(ASKED, version="v3")
    return await stream.output()


SYNC: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "invoke": (1, lambda g: g.invoke(ASKED)),
    "invoke v2": (1, lambda g: g.invoke(ASKED, version="v2")),
    "stream": (1, lambda g: list(g.stream(ASKED))),
    "stream values": (1, lambda g: list(g.stream(ASKED, stream_mode="values"))),
    "stream messages": (1, lambda g: list(g.stream(ASKED, stream_mode="messages"))),
    "stream many": (1, lambda g: list(g.stream(ASKED, stream_mode=["updates", "messages"], subgraphs=True))),
    "stream_events v3": (1, lambda g: g.stream_events(ASKED, version="v3").output),
    "transform": (1, lambda g: list(g.transform(iter([ASKED])))),
    "batch": (3, lambda g: g.batch([ASKED] * 3)),
    "with_config": (1, lambda g: g.with_config(tags=["t"], recursion_limit=5).invoke(ASKED)),
    "with_retry": (1, lambda g: g.with_retry(stop_after_attempt=2).invoke(ASKED)),
    "with_fallbacks": (1, lambda g: g.with_fallbacks([g]).invoke(ASKED)),
    "pipe": (1, lambda g: (g | (lambda state: state["messages"][-1])).invoke(ASKED)),
    "copies": (1, lambda g: copy.deepcopy(g.copy()).invoke(ASKED)),
}
ASYNC: dict[str, tuple[int, Callable[[Any], Awaitable[Any]]]] = {
    "ainvoke": (1, lambda g: g.ainvoke(ASKED)),
    "astream": (1, lambda g: drain(g.astream(ASKED))),
    "astream messages": (1, lambda g: drain(g.astream(ASKED, stream_mode="messages"))),
    "abatch": (3, lambda g: g.abatch([ASKED] * 3)),
    "astream_events v1": (1, lambda g: drain(g.astream_events(ASKED, version="v1"))),
    "astream_events v2": (1, lambda g: drain(g.astream_events(ASKED, version="v2"))),
    "astream_events v3": (1, _av3),
    "astream_log": (1, lambda g: drain(g.astream_log(ASKED))),
}


@pytest.mark.parametrize("options", [PRICED, ALL], ids=["budget", "all"])
class TestEntryPoints:
    @pytest.mark.parametrize("way", SYNC)
    def test_every_blocking_one_is_guarded(self, way: str, options: Any, chat: Make, server: DemoServer) -> None:
        runs, call = SYNC[way]
        graph = guarded(talking(chat()), **options)
        call(graph)
        assert_all_seen(graph, server, runs)

    @pytest.mark.parametrize("way", ASYNC)
    async def test_every_async_one_is_guarded(self, way: str, options: Any, chat: Make, server: DemoServer) -> None:
        runs, call = ASYNC[way]
        graph = guarded(talking(chat()), **options)
        await call(graph)
        await asyncio.to_thread(assert_all_seen, graph, server, runs)


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


class TestAgents:
    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
    async def test_each_model_call_of_an_agent_is_charged(self, way: str, chat: Make, server: DemoServer) -> None:
        server.script(ToolCalls([("weather", {"city": "Oslo"})]), Reply("It is sunny in Oslo."))
        agent = guarded(create_agent(chat(), [weather]), **ALL)
        if way == "invoke":
            agent.invoke(ASKED)
        elif way == "ainvoke":
            await agent.ainvoke(ASKED)
        elif way == "stream":
            list(agent.stream(ASKED, stream_mode="messages"))
        else:
            await drain(agent.astream(ASKED, stream_mode="updates"))
        await asyncio.to_thread(assert_all_seen, agent, server, 1, 2)

    def test_an_agent_that_repeats_itself_is_stopped(self, chat: Make, server: DemoServer) -> None:
        server.default = ToolCalls([("weather", {"city": "Oslo"})])
        agent = guarded(create_agent(chat(), [weather]), tool_loop_detection=True)
        with pytest.raises(BrixLoopError):
            agent.invoke(ASKED)
        assert server.stats.requests == 3

    def test_a_call_that_does_not_fit_never_leaves(self, chat: Make, server: DemoServer) -> None:
        agent = guarded(create_agent(chat(max_tokens=1_000), [weather]), **{**PRICED, "max_cost_usd": 1e-5})
        with pytest.raises(BrixBudgetError):
            agent.invoke(ASKED)
        assert server.stats.requests == 0


class TestThreads:
    def test_two_threads_in_parallel_keep_two_budgets(self, chat: Make, server: DemoServer) -> None:
        graph = guarded(talking(chat(), InMemorySaver()), **PRICED)

        def talk(name: str) -> None:
            for _ in range(3):
                graph.invoke(ASKED, thread(name))

        workers = [threading.Thread(target=talk, args=(name,)) for name in ("ann", "ben")]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert_all_seen(graph, server, 6)
        for name in ("ann", "ben"):
            costs = [trace["cost_usd"] for trace in graph.inside.get_traces(name)]
            assert len(costs) == 3
            assert graph.inside._pipeline.session(name).session_cost_usd == pytest.approx(sum(costs))

    async def test_so_do_two_tasks(self, chat: Make) -> None:
        graph = guarded(talking(chat(max_tokens=100), InMemorySaver()), **{**PRICED, "max_cost_usd": 1e-4})
        spent = await asyncio.gather(
            *(graph.ainvoke(ASKED, thread(name)) for name in ("ann", "ben")), return_exceptions=True
        )
        assert not [error for error in spent if isinstance(error, Exception)]
        assert {trace["session_id"] for trace in graph.inside.get_traces()} == {"ann", "ben"}

    @pytest.mark.parametrize("inside", ["bare", "guarded"])
    async def test_fifty_users_at_once_keep_fifty_budgets(self, inside: str, chat: Make, server: DemoServer) -> None:
        server.default = Reply("word " * 90)
        store, cap = MemoryStore(), 1e-4
        model = guard(chat(max_tokens=100), **PRICED, store=store) if inside == "guarded" else chat(max_tokens=100)
        graph = guard(talking(model, InMemorySaver()), **{**ALL, "max_cost_usd": cap, "store": store})
        users = [f"user-{number}" for number in range(50)]
        await asyncio.gather(*(graph.ainvoke(ASKED, thread(user)) for user in users))
        again = [graph.ainvoke(ASKED, thread(user)) for user in users]
        answers = await asyncio.gather(*again, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BrixBudgetError)]
        # What is left is too little for a bare model; a guarded one is asked for less.
        assert len(refused) == (50 if inside == "bare" else 0)
        assert await asyncio.to_thread(server.wait_until_idle)
        assert server.stats.requests == 100 - len(refused)
        balances = [store.balance(f"budget:{user}") for user in users]
        assert all(balance.reserved == 0 < balance.spent <= cap * 1e9 for balance in balances)
        assert sum(balance.spent for balance in balances) == pytest.approx(
            (server.stats.prompt_tokens * RATES[0] + server.stats.completion_tokens * RATES[1]) * 1e9
        )

    def test_resume_keeps_the_spend(self, chat: Make, server: DemoServer) -> None:
        server.default = Reply("word " * 90)
        saver, store = InMemorySaver(), MemoryStore()
        options = {**PRICED, "max_cost_usd": 1e-4, "store": store}
        guard(talking(chat(max_tokens=100), saver), **options).invoke(ASKED, thread("ann"))
        resumed = guard(talking(chat(max_tokens=100), saver), **options)
        with pytest.raises(BrixBudgetError):
            resumed.invoke(ASKED, thread("ann"))
        resumed.invoke(ASKED, thread("ben"))
        assert server.stats.requests == 2

    def test_the_thread_of_the_graphs_own_configuration_counts(self, chat: Make) -> None:
        graph = guarded(talking(chat(), InMemorySaver()), **PRICED).with_config(configurable={"thread_id": "ann"})
        graph.invoke(ASKED)
        list(graph.stream(ASKED))
        assert len(graph.inside.get_traces("ann")) == len(graph.get_traces("ann")) == 2
        assert graph.context.session_id == "ann"


class Steps(TypedDict):
    done: Annotated[list[str], operator.add]


def asking(checkpointer: Any, model: Any) -> Any:
    """Asks the model, asks a human, asks the model again."""

    def before(state: Steps) -> Steps:
        return {"done": [model.invoke("before").text]}

    def ask(state: Steps) -> Steps:
        return {"done": [interrupt("May I?")]}

    def after(state: Steps) -> Steps:
        return {"done": [model.invoke("after").text]}

    builder = StateGraph(Steps)
    builder.add_sequence([("before", before), ("ask", ask), ("after", after)])
    builder.add_edge(START, "before")
    return builder.compile(checkpointer=checkpointer)


class TestInterrupts:
    @pytest.mark.parametrize("options", [PRICED, ALL], ids=["budget", "all"])
    @pytest.mark.parametrize("way", ["invoke", "stream"])
    def test_an_interrupted_run_goes_on_in_the_same_session(
        self, way: str, options: Any, chat: Make, server: DemoServer
    ) -> None:
        graph = guarded(asking(InMemorySaver(), chat()), **options)

        def go(input: Any) -> Any:
            return graph.invoke(input, thread("ann")) if way == "invoke" else list(graph.stream(input, thread("ann")))

        first = go({"done": ["begun"]})
        assert "__interrupt__" in (first if way == "invoke" else first[-1])
        assert graph.get_state(thread("ann")).next == ("ask",)
        assert server.stats.requests == 1
        go(Command(resume="yes"))
        assert graph.get_state(thread("ann")).values["done"][2] == "yes"
        assert_all_seen(graph, server, 2)
        assert [trace["outcome"] for trace in graph.get_traces("ann")] == ["ok", "ok"]

    async def test_so_does_an_async_one(self, chat: Make) -> None:
        graph = guarded(asking(InMemorySaver(), chat()), **ALL)
        assert "__interrupt__" in await graph.ainvoke({"done": ["begun"]}, thread("ann"))
        await graph.ainvoke(Command(resume="yes"), thread("ann"))
        assert [trace["session_id"] for trace in graph.inside.get_traces()] == ["ann", "ann"]

    @pytest.mark.parametrize("kind", ["graph", "chain"])
    @pytest.mark.parametrize("way", ["invoke", "ainvoke"])
    async def test_an_interrupt_inside_reaches_the_outer_graph_and_is_no_failure(
        self, way: str, kind: str, chat: Make, server: DemoServer
    ) -> None:
        options = {**ALL, "circuit_failure_threshold": 1, "fallbacks": [RunnableLambda(lambda _: {"done": ["spare"]})]}
        ask: Any = RunnableLambda(lambda state: {"done": [f"{interrupt('May I?')} {chat().invoke('Hi').text}"]})
        inner = guarded(asking(None, chat()) if kind == "graph" else ask, **options)
        builder = StateGraph(Steps)
        builder.add_node("inner", inner)
        builder.add_edge(START, "inner")
        outer: Any = builder.compile(checkpointer=InMemorySaver())

        async def go(input: Any) -> Any:
            return outer.invoke(input, thread("ann")) if way == "invoke" else await outer.ainvoke(input, thread("ann"))

        assert "__interrupt__" in await go({"done": []})
        done = (await go(Command(resume="yes")))["done"]
        assert any("yes" in step for step in done)
        assert "spare" not in done
        assert [trace["outcome"] for trace in inner.get_traces("ann")] == ["ok", "cancelled"]
        assert [len(trace["attempts"]) for trace in inner.get_traces()] == [1, 1]
        assert {trace["session_id"] for trace in inner.inside.get_traces()} == {"ann"}
        await asyncio.to_thread(server.wait_until_idle)
        assert len(inner.inside.get_traces()) == server.stats.requests


class TestState:
    def test_it_is_still_a_graph(self, chat: Make) -> None:
        saver = InMemorySaver()
        plain = talking(chat(), saver)
        graph = guarded(plain, **PRICED)
        assert isinstance(graph, CompiledStateGraph)
        assert isinstance(graph, type(plain))
        assert (graph.checkpointer, graph.nodes, graph.name) == (saver, plain.nodes, plain.name)
        assert graph.get_graph().draw_mermaid() == plain.get_graph().draw_mermaid()
        graph.invoke(ASKED, thread("ann"))
        assert len(plain.get_state(thread("ann")).values["messages"]) == 2
        graph.update_state(thread("ann"), {"messages": [AIMessage("edited")]})
        assert graph.get_state(thread("ann")).values["messages"][-1].content == "edited"
        assert len(list(graph.get_state_history(thread("ann")))) >= 3
        assert not hasattr(plain, "get_traces")

    def test_a_setting_changed_later_is_seen_by_its_runs(self, chat: Make) -> None:
        graph = guarded(talking(chat()), **PRICED)
        graph.checkpointer = InMemorySaver()
        graph.invoke(ASKED, thread("ann"))
        assert graph.get_state(thread("ann")).values["messages"]

    def test_chunks_are_handed_on_as_they_come(self) -> None:
        def first(state: Steps) -> Steps:
            return {"done": ["first"]}

        def second(state: Steps) -> Steps:
            raise RuntimeError("not yet")

        builder = StateGraph(Steps)
        builder.add_sequence([("first", first), ("second", second)])
        builder.add_edge(START, "first")
        chunks = guarded(builder.compile()).stream({"done": []})
        assert next(chunks) == {"first": {"done": ["first"]}}
        with pytest.raises(RuntimeError):
            next(chunks)


class TestRetries:
    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
    async def test_another_attempt_goes_on_from_the_checkpoint(self, way: str, chat: Make, server: DemoServer) -> None:
        server.script(ServerError(), Reply("At last."))
        graph = guarded(talking(chat(max_retries=0), InMemorySaver()), **ALL)
        if way == "invoke":
            graph.invoke(ASKED, thread("ann"))
        elif way == "ainvoke":
            await graph.ainvoke(ASKED, thread("ann"))
        elif way == "stream":
            list(graph.stream(ASKED, thread("ann")))
        else:
            await drain(graph.astream(ASKED, thread("ann")))
        said = [message.content for message in graph.get_state(thread("ann")).values["messages"]]
        assert said == ["Hello", "At last."]
        assert len(graph.get_traces()[0]["attempts"]) == 2

    def test_without_a_checkpointer_it_begins_anew(self, chat: Make, server: DemoServer) -> None:
        server.script(ServerError(), Reply("At last."))
        graph = guarded(talking(chat(max_retries=0)), **ALL)
        assert [message.content for message in graph.invoke(ASKED)["messages"]] == ["Hello", "At last."]

    def test_a_run_that_was_given_up_asks_no_model_any_more(self, chat: Make, server: DemoServer) -> None:
        model = chat()

        def slow(state: Steps) -> Steps:
            time.sleep(0.3)
            return {"done": ["slow"]}

        def ask(state: Steps) -> Steps:
            return {"done": [model.invoke("Hi").text]}

        builder = StateGraph(Steps)
        builder.add_sequence([("slow", slow), ("ask", ask)])
        builder.add_edge(START, "slow")
        with pytest.raises(BrixTimeoutError):
            guarded(builder.compile(), per_call_timeout=0.05).invoke({"done": []})
        time.sleep(0.5)
        assert server.stats.requests == 0


class TestWrongUse:
    def test_it_is_refused(self, chat: Make) -> None:
        graph = guarded(talking(chat(), InMemorySaver()), **PRICED)
        with pytest.raises(BrixConfigurationError, match="guarded already"):
            guard(graph)
        with pytest.raises(BrixConfigurationError, match="checkpointer"):
            guard(talking(chat(), InMemorySaver()), fallbacks=[graph])
        with pytest.raises(BrixConfigurationError, match="guard the model"):
            guard(talking(chat()), tokens_per_minute=10)
        with pytest.raises(BrixConfigurationError, match="pickled"):
            pickle.dumps(graph)
