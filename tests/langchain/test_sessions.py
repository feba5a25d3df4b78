"""Whose call it is: LangChain's configuration, ``with session(...)``, LangGraph's threads."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from brix_core import BrixBudgetError, BrixConfigurationError, session
from brix_core.demo import DemoServer, Reply
from brix_core.session import current_session_id
from brix_core.store import MemoryStore
from brix_langchain import GuardedChatModel, guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore::brix_core.guards.budget.BrixBudgetWarning"),
]


@pytest.fixture
def model(chat: Make, server: DemoServer) -> GuardedChatModel:
    server.default = Reply("Yes.")
    return guard(
        chat(),
        max_cost_usd=1.0,
        prices={MODEL: RATES},
        session_id="default",
        per_call_timeout=10.0,
        store=MemoryStore(),
    )


def named(**configurable: Any) -> Any:
    return {"configurable": configurable}


async def drain(source: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in source]


async def _av3(model: Any, config: Any) -> Any:
    return await (await model.astream_events("Hi", config, version="v3")).output


SYNC: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda m, c: m.invoke("Hi", c),
    "stream": lambda m, c: list(m.stream("Hi", c)),
    "batch": lambda m, c: m.batch(["Hi"], c),
    "bind": lambda m, c: m.bind(stop=["z"]).invoke("Hi", c),
    "bind, streamed": lambda m, c: list(m.bind(stop=["z"]).stream("Hi", c)),
    "with_config": lambda m, c: m.with_config(c).invoke("Hi"),
    "with_config, streamed": lambda m, c: list(m.with_config(c).stream("Hi")),
    "stream_events v3": lambda m, c: m.stream_events("Hi", c, version="v3").output,
    "bound stream_events v3": lambda m, c: m.bind(stop=["z"]).stream_events("Hi", c, version="v3").output,
    "chain": lambda m, c: (ChatPromptTemplate.from_template("Hi") | m | StrOutputParser()).invoke({}, c),
    "chain, streamed": lambda m, c: list((ChatPromptTemplate.from_template("Hi") | m).stream({}, c)),
    "in a function": lambda m, c: RunnableLambda(lambda _: m.invoke("Hi")).invoke("x", c),
    "in a function, streamed": lambda m, c: RunnableLambda(lambda _: list(m.stream("Hi"))).invoke("x", c),
    "generate in a function": lambda m, c: RunnableLambda(lambda _: m.generate([[HumanMessage("Hi")]])).invoke("x", c),
}

ASYNC: dict[str, Callable[[Any, Any], Any]] = {
    "ainvoke": lambda m, c: m.ainvoke("Hi", c),
    "astream": lambda m, c: drain(m.astream("Hi", c)),
    "abatch": lambda m, c: m.abatch(["Hi"], c),
    "astream_events v2": lambda m, c: drain(m.astream_events("Hi", c, version="v2")),
    "astream_events v3": _av3,
    "chain": lambda m, c: (ChatPromptTemplate.from_template("Hi") | m | StrOutputParser()).ainvoke({}, c),
    "chain, streamed": lambda m, c: drain((ChatPromptTemplate.from_template("Hi") | m).astream({}, c)),
    "in a function": lambda m, c: RunnableLambda(lambda _: m.invoke("Hi")).ainvoke("x", c),
}


def sessions(model: GuardedChatModel) -> list[str]:
    """Sessions of the calls, oldest first."""
    return [trace["session_id"] for trace in reversed(model.get_traces())]


@pytest.mark.parametrize("way", SYNC)
def test_the_configuration_names_the_session(way: str, model: GuardedChatModel) -> None:
    SYNC[way](model, named(session_id="s"))
    SYNC[way](model, named(thread_id="t"))
    SYNC[way](model, named(thread_id="t", session_id="s"))
    with session("block"):
        SYNC[way](model, {})
        SYNC[way](model, named(thread_id="t"))
        SYNC[way](model, named(session_id="s"))
    SYNC[way](model, {})
    assert sessions(model) == ["s", "t", "s", "block", "block", "s", "default"]
    assert current_session_id() is None


@pytest.mark.parametrize("way", ASYNC)
async def test_the_configuration_names_the_session_of_async_calls(way: str, model: GuardedChatModel) -> None:
    await ASYNC[way](model, named(session_id="s"))
    await ASYNC[way](model, named(thread_id="t"))
    with session("block"):
        await ASYNC[way](model, {})
        await ASYNC[way](model, named(thread_id="t"))
        await ASYNC[way](model, named(session_id="s"))
    await ASYNC[way](model, {})
    assert sessions(model) == ["s", "t", "block", "block", "s", "default"]
    assert current_session_id() is None


async def test_the_calls_own_configuration_wins_over_the_surrounding_run(model: GuardedChatModel) -> None:
    outer = named(session_id="outer", thread_id="outer-thread")
    step = RunnableLambda(lambda _: model.invoke("Hi", named(session_id="inner")))
    step.invoke("x", outer)

    async def streamed(_: Any) -> Any:
        return await drain(model.astream("Hi", named(session_id="inner")))

    await RunnableLambda(streamed).ainvoke("x", outer)
    RunnableLambda(lambda _: model.invoke("Hi", named(thread_id="inner-thread"))).invoke(
        "x", named(thread_id="outer-thread")
    )
    assert sessions(model) == ["inner", "inner", "inner-thread"]


@pytest.mark.parametrize("value", ["", 42, b"bytes"])
def test_a_session_id_that_is_none_is_refused(value: Any, model: GuardedChatModel, server: DemoServer) -> None:
    with pytest.raises(BrixConfigurationError, match="session id"):
        model.invoke("Hi", named(session_id=value))
    assert server.stats.requests == 0


def test_a_thread_id_may_be_a_number(model: GuardedChatModel) -> None:
    model.invoke("Hi", named(thread_id=7))
    model.invoke("Hi", named(thread_id=None, session_id=None))
    assert sessions(model) == ["7", "default"]


def test_a_batch_may_have_a_session_for_each(model: GuardedChatModel) -> None:
    names = [f"user-{number}" for number in range(5)]
    model.batch(["Hi"] * 5, [named(session_id=name) for name in names])
    assert sorted(sessions(model)) == names


async def test_an_async_batch_may_have_a_session_for_each(model: GuardedChatModel) -> None:
    names = [f"user-{number}" for number in range(5)]
    await model.abatch(["Hi"] * 5, [named(session_id=name) for name in names])
    assert sorted(sessions(model)) == names


async def test_streams_side_by_side_keep_their_sessions(model: GuardedChatModel, server: DemoServer) -> None:
    server.default = Reply("word " * 50, chunk_delay=0.001)
    first, second = model.stream("Hi", named(session_id="a")), model.stream("Hi", named(session_id="b"))
    for _ in zip(first, second, strict=False):
        assert current_session_id() is None

    async def read(name: str) -> None:
        async for _ in model.astream("Hi", named(session_id=name)):
            assert current_session_id() is None

    await asyncio.gather(read("c"), read("d"))
    list(first), list(second)
    assert sorted(sessions(model)) == ["a", "b", "c", "d"]


def test_a_session_is_no_argument_of_the_provider_and_shows_in_no_trace_of_langchain(
    model: GuardedChatModel, server: DemoServer
) -> None:
    class Recorder(BaseCallbackHandler):
        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            self.seen = repr(kwargs)

    recorder = Recorder()
    config = {**named(session_id="the-name"), "callbacks": [recorder]}
    for call in (
        model.invoke,
        lambda *a: list(model.stream(*a)),
        lambda *a: model.stream_events(*a, version="v3").output,
    ):
        call("Hi", config)
        assert "brix" not in recorder.seen
    assert server.wait_until_idle()
    assert all("brix" not in repr(request.body) for request in server.requests)


def test_sessions_share_the_cache(chat: Make, server: DemoServer) -> None:
    model = guard(chat(cache=InMemoryCache()), store=MemoryStore())
    model.invoke("Hi", named(session_id="a"))
    model.invoke("Hi", named(session_id="b"))
    model.invoke("Hi")
    assert server.stats.requests == 1


def test_sessions_have_budgets_of_their_own(chat: Make, server: DemoServer) -> None:
    model = guard(
        chat(max_tokens=500), max_cost_usd=3.5e-4, budget_clamp_output=False, prices={MODEL: RATES}, store=MemoryStore()
    )
    server.default = Reply("word " * 600)
    for name in ("a", "b"):
        model.invoke("Hi", named(session_id=name))
        with pytest.raises(BrixBudgetError):
            model.invoke("Hi", named(session_id=name))
    assert server.stats.requests == 2


class State(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]


def graph(model: GuardedChatModel) -> Any:
    async def node(state: State) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder: Any = StateGraph(State)
    builder.add_node("chat", node)
    builder.add_edge(START, "chat")
    builder.add_edge("chat", END)
    return builder.compile(checkpointer=InMemorySaver())


@pytest.mark.parametrize("make", [graph, lambda model: create_agent(model, [], checkpointer=InMemorySaver())])
async def test_two_threads_in_parallel_keep_two_budgets(make: Any, chat: Make, server: DemoServer) -> None:
    model = guard(
        chat(max_tokens=500), max_cost_usd=7e-4, budget_clamp_output=False, prices={MODEL: RATES}, store=MemoryStore()
    )
    server.default = Reply("word " * 600, latency=0.01)
    app = make(model)

    async def talk(thread: str) -> int:
        turns = 0
        try:
            while True:
                await app.ainvoke({"messages": [HumanMessage("Go on")]}, named(thread_id=thread))
                turns += 1
        except BrixBudgetError:
            return turns

    turns = await asyncio.gather(talk("one"), talk("two"))
    assert turns[0] == turns[1] > 0
    assert server.stats.requests == sum(turns)
    for name in ("one", "two"):
        spent = sum(trace["cost_usd"] or 0.0 for trace in model.get_traces(name))
        assert 0 < spent <= 7e-4
