"""A guarded chain among LangChain's other runnables: composed, nested, traced, drawn, cancelled, by the hundred."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
)
from langgraph.graph import START, MessagesState, StateGraph

import brix_core
from brix_core import BrixBudgetError, BrixTimeoutError
from brix_core.demo import DemoServer, Reply
from brix_core.store import MemoryStore
from brix_langchain import BrixCallbackHandler, guard
from brix_langchain.runnable import GuardedRunnable
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")

PROMPT = ChatPromptTemplate.from_template("Tell me about {topic}")
INPUT = {"topic": "guards"}
PRICED: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES}}
ALL: dict[str, Any] = {
    **PRICED,
    "requests_per_minute": 1_000_000,
    "per_call_timeout": 20.0,
    "idle_timeout": 10.0,
    "max_retries": 2,
    "circuit_breaker": True,
}
ANN: Any = {"configurable": {"session_id": "ann"}}


def pipe(model: Any) -> Any:
    return PROMPT | model | StrOutputParser()


def guarded(runnable: Any, **options: Any) -> Any:
    return guard(runnable, **{"store": MemoryStore(), **options})


def attempts(target: Any) -> int:
    return sum(len(trace["attempts"]) for trace in target.inside.get_traces())


def owed(server: DemoServer) -> float:
    """What the server counted, in nano-dollars."""
    return (server.stats.prompt_tokens * RATES[0] + server.stats.completion_tokens * RATES[1]) * 1e9


async def drain(source: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in source]


COMPOSED: dict[str, tuple[int, Callable[[Any], Runnable[Any, Any]]]] = {
    "left of a pipe": (1, lambda c: c | str.upper),
    "right of a pipe": (1, lambda c: (lambda value: value) | c),
    "right of a dict": (1, lambda c: {"topic": lambda value: value["topic"]} | c),
    "in the middle": (1, lambda c: RunnablePassthrough() | c | StrOutputParser() | {"text": RunnablePassthrough()}),
    "pipe()": (1, lambda c: c.pipe(str.upper, str.lower)),
    "bind": (1, lambda c: c.bind()),
    "with_config": (1, lambda c: c.with_config(run_name="named", tags=["t"], max_concurrency=1)),
    "with_types": (1, lambda c: c.with_types(input_type=dict, output_type=str)),
    "with_retry": (1, lambda c: c.with_retry(stop_after_attempt=2)),
    "with_fallbacks": (1, lambda c: c.with_fallbacks([RunnableLambda(lambda _: "Spare.")])),
    "with_listeners": (1, lambda c: c.with_listeners(on_start=lambda run: None)),
    "branch": (1, lambda c: RunnableBranch((lambda value: True, c), lambda _: "no")),
    "each": (1, lambda c: (lambda value: [value]) | c.map()),
    "called by a function": (1, lambda c: RunnableLambda(lambda value: c.invoke(value))),
    "returned by a function": (1, lambda c: RunnableLambda(lambda value: c)),
    "tool": (1, lambda c: RunnablePassthrough() | c.as_tool(name="ask", description="Ask.", arg_types={"topic": str})),
}


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("how", COMPOSED)
async def test_composed_with_others_it_is_still_guarded(how: str, way: str, chat: Make, server: DemoServer) -> None:
    requests, compose = COMPOSED[how]
    chain = guarded(pipe(chat()), **ALL)
    composed = compose(chain)
    if way == "invoke":
        assert composed.invoke(INPUT)
    elif way == "ainvoke":
        assert await composed.ainvoke(INPUT)
    elif way == "stream":
        assert list(composed.stream(INPUT))
    else:
        assert await drain(composed.astream(INPUT))
    assert await asyncio.to_thread(server.wait_until_idle)
    assert attempts(chain) == len(chain.get_traces()) == server.stats.requests == requests
    assert chain.context.session_cost_usd * 1e9 == pytest.approx(owed(server), rel=1e-6)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_what_gives_a_dict_can_be_added_to_and_picked_from(way: str, chat: Make, server: DemoServer) -> None:
    chain = guarded(RunnableParallel(text=pipe(chat()), topic=lambda value: value["topic"]), **ALL)

    def ask(composed: Any) -> Any:
        if way == "invoke":
            return composed.invoke(INPUT)
        chunks = list(composed.stream(INPUT))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        return whole

    assert set(ask(chain.assign(more=lambda found: len(found["text"])))) == {"text", "topic", "more"}
    assert ask(chain.pick("topic")) == "guards"
    assert set(ask(chain.pick(["text", "topic"]))) == {"text", "topic"}
    assert attempts(chain) == server.stats.requests == 3


class Tree(BaseCallbackHandler):
    """Runs as LangChain tells of them: name, and the names of those around it."""

    def __init__(self) -> None:
        self.parents: dict[UUID, UUID | None] = {}
        self.names: dict[UUID, str] = {}
        self.tags: dict[UUID, list[str]] = {}
        self.open: set[UUID] = set()

    def _begin(self, *args: Any, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        self.parents[run_id] = parent_run_id
        self.names[run_id] = kwargs.get("name") or args[0]["name"]
        self.tags[run_id] = kwargs.get("tags") or []
        self.open.add(run_id)

    on_chain_start = on_chat_model_start = on_llm_start = on_retriever_start = on_tool_start = _begin

    def _end(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        self.open.remove(run_id)

    on_chain_end = on_chain_error = on_llm_end = on_llm_error = on_tool_end = on_tool_error = _end

    def paths(self) -> set[tuple[str, ...]]:
        found = set()
        for run_id in self.parents:
            path: list[str] = []
            at: UUID | None = run_id
            while at is not None:
                path.append(self.names[at])
                at = self.parents[at]  # a parent nobody has heard of is a KeyError
            found.add(tuple(reversed(path)))
        return found


@pytest.mark.parametrize("options", [{}, PRICED, ALL], ids=["none", "budget", "all"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
async def test_runs_nest_as_those_of_a_bare_chain_below_one_span(way: str, options: Any, chat: Make) -> None:
    async def tree(chain: Any) -> Tree:
        seen = Tree()
        config: Any = {"callbacks": [seen], "tags": ["mine"], "run_name": "whole"}
        composed: Any = RunnableSequence(RunnablePassthrough(), chain)
        ways: dict[str, Callable[[], Any]] = {
            "invoke": lambda: composed.invoke(INPUT, config),
            "stream": lambda: list(composed.stream(INPUT, config)),
            "batch": lambda: composed.batch([INPUT, INPUT], config),
            "ainvoke": lambda: composed.ainvoke(INPUT, config),
            "astream": lambda: drain(composed.astream(INPUT, config)),
            "abatch": lambda: composed.abatch([INPUT, INPUT], config),
        }
        done = ways[way]()
        if isinstance(done, Awaitable):
            await done
        assert not seen.open
        assert all(tags for run_id, tags in seen.tags.items() if seen.parents[run_id] is None)
        return seen

    bare = (await tree(pipe(chat()).with_config(run_name="chain"))).paths()
    inside = guarded(pipe(chat()).with_config(run_name="chain"), **options)
    span = inside.get_name()
    ours = {tuple(name for name in path if name != span) for path in (await tree(inside)).paths()}
    assert ("whole", "chain", "ChatOpenAI") in bare
    assert ours == bare


async def test_events_have_the_ids_of_the_runs_around_them(chat: Make) -> None:
    chain = RunnablePassthrough() | guarded(pipe(chat()), **ALL)
    events = await drain(chain.astream_events(INPUT, version="v2"))
    begun = [event["run_id"] for event in events if event["event"].endswith("_start")]
    assert all(parent in begun for event in events for parent in event["parent_ids"])
    tokens = [event for event in events if event["event"] == "on_chat_model_stream"]
    assert len(tokens) > 3
    assert {len(event["parent_ids"]) for event in tokens} == {3}  # outer chain, guards, inner chain


def test_its_graph_can_be_drawn_and_its_settings_are_those_inside(chat: Make) -> None:
    bare = pipe(chat())
    chain = guarded(bare, **ALL)
    drawn = (RunnablePassthrough() | chain | str.upper).get_graph().draw_mermaid()
    assert chain.get_graph().draw_mermaid() == bare.get_graph().draw_mermaid()
    assert "ChatPromptTemplate" in drawn
    assert "ChatOpenAI" in drawn
    assert chain.get_graph().to_json() == bare.get_graph().to_json()
    assert (chain.InputType, chain.OutputType) == (bare.InputType, bare.OutputType)
    assert chain.config_specs == bare.config_specs
    assert chain.get_prompts() == bare.get_prompts()


class TestManyAtOnce:
    async def test_a_hundred_runs(self, chat: Make, server: DemoServer) -> None:
        chain = guarded(pipe(chat()), **ALL)
        topics = [f"number {number}" for number in range(100)]
        answers = await asyncio.gather(*(chain.ainvoke({"topic": topic}) for topic in topics))
        assert all(topic in answer for topic, answer in zip(topics, answers, strict=True))
        assert attempts(chain) == len(chain.get_traces()) == server.stats.requests == 100
        assert chain.context.session_cost_usd * 1e9 == pytest.approx(owed(server), rel=1e-6)

    @pytest.mark.parametrize("shared", [True, False])
    async def test_guards_in_guards_in_guards(self, shared: bool, chat: Make, server: DemoServer) -> None:
        """Limits of one call at a time on every level: each level counts once, and none waits for another."""
        store = MemoryStore()
        options = {**ALL, "store": store, "requests_per_minute": 60_000, "burst_capacity": 1}
        model = guard(chat(), **options)
        inner = guard(pipe(model), **options)
        outer: Any = guard(RunnablePassthrough() | inner, **options)
        configs: Any = [ANN if shared else {"configurable": {"session_id": f"user {n}"}} for n in range(20)]
        answers = await asyncio.wait_for(asyncio.gather(*(outer.ainvoke(INPUT, config) for config in configs)), 20)
        assert len(answers) == server.stats.requests == 20
        assert [len(level.get_traces()) for level in (model, inner, outer)] == [20, 20, 20]
        accounts = {config["configurable"]["session_id"] for config in configs}
        assert sum(store.balance(f"budget:{name}").spent for name in accounts) == pytest.approx(owed(server))
        assert not any(store.balance(f"budget:{name}").reserved for name in accounts)

    async def test_so_do_blocking_ones_in_threads(self, chat: Make, server: DemoServer) -> None:
        options = {**ALL, "store": MemoryStore()}
        outer: Any = guard(RunnablePassthrough() | guard(pipe(guard(chat(), **options)), **options), **options)
        answers = await asyncio.wait_for(asyncio.to_thread(outer.batch, [INPUT] * 20, {"max_concurrency": 10}), 20)
        assert len(answers) == server.stats.requests == len(outer.get_traces()) == 20

    def test_each_keeps_its_own_account_where_the_stores_differ(self, chat: Make, server: DemoServer) -> None:
        model = guarded(chat(), **PRICED)
        chain = guarded(pipe(model), **PRICED)
        chain.invoke(INPUT, ANN)
        spent = [target._pipeline.store.balance("budget:ann").spent for target in (model, chain.inside)]
        assert spent == pytest.approx([owed(server)] * 2)


class TestLeftInTheMiddle:
    async def test_a_cancelled_run_is_charged_and_holds_nothing(self, chat: Make, server: DemoServer) -> None:
        server.default = Reply("word " * 500, chunk_delay=0.005, latency=0.05)
        for ask in (lambda c: c.ainvoke(INPUT, ANN), lambda c: drain(c.astream(INPUT, ANN))):
            store = MemoryStore()
            chain = guard(pipe(chat(stream_chunk_timeout=None)), **{**ALL, "store": store})
            run = asyncio.create_task(ask(chain))
            while not server.stats.requests:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert chain.get_traces()[0]["outcome"] == "cancelled"
            await _settled(store)
            assert store.balance("budget:ann").spent > 0
            server.reset()
            server.default = Reply("word " * 500, chunk_delay=0.005, latency=0.05)

    @pytest.mark.parametrize("limits", [{}, {"idle_timeout": 10.0}], ids=["unlimited", "limited"])
    @pytest.mark.parametrize("inside", ["bare", "guarded", "graph"])
    @pytest.mark.parametrize("way", ["stream", "astream"])
    async def test_a_stream_that_is_closed_early_stops_the_provider(
        self, way: str, inside: str, limits: Any, chat: Make, server: DemoServer
    ) -> None:
        """LangChain by itself has its parsers read the rest: 500 words, and a second and a half."""
        server.default = Reply("word " * 500, chunk_delay=0.003)
        store, options = MemoryStore(), {**PRICED, **limits}
        model = guard(chat(), **options, store=store) if inside == "guarded" else chat(max_retries=0)
        target: Any = guard(talking(model) if inside == "graph" else pipe(model), **options, store=store)
        asked: Any = {"messages": [HumanMessage("Hi")]} if inside == "graph" else INPUT
        modes = {"stream_mode": "messages"} if inside == "graph" else {}
        if way == "stream":
            chunks = target.stream(asked, ANN, **modes)
            for _ in range(3):
                next(chunks)
            await asyncio.to_thread(chunks.close)
        else:
            chunks = target.astream(asked, ANN, **modes)
            for _ in range(3):
                await anext(chunks)
            await chunks.aclose()
        assert target.get_traces()[0]["outcome"] == "abandoned"
        await _settled(store)
        assert 0 < store.balance("budget:ann").spent < 100 * RATES[1] * 1e9
        assert await asyncio.to_thread(server.wait_until_idle)
        assert server.stats.aborted == server.stats.requests == 1


async def _settled(store: MemoryStore) -> None:
    for _ in range(200):
        if store.balance("budget:ann").reserved == 0:
            return
        await asyncio.sleep(0.005)
    pytest.fail("something is still held")


class TestRefusedFromOutside:
    """What a guard refuses is charged by nobody, other handlers of the same call included."""

    def test_in_a_run_that_was_given_up(self, chat: Make, server: DemoServer) -> None:
        given_up = threading.Event()

        def slow(value: Any) -> Any:
            given_up.wait(5)
            return value

        store = MemoryStore()
        others = BrixCallbackHandler(**PRICED)
        chain = guard(RunnableLambda(slow) | pipe(chat()), **PRICED, per_call_timeout=0.05, store=store)
        with pytest.raises(BrixTimeoutError):
            chain.invoke(INPUT, dict(ANN, callbacks=[others]))
        given_up.set()
        began = time.monotonic()
        while len(others.get_traces()) == 0:
            assert time.monotonic() - began < 5, "the run never came to ask its model"
            time.sleep(0.01)
        assert [(trace["outcome"], trace["cost_usd"]) for trace in others.get_traces()] == [("refused", None)]
        balance = store.balance("budget:ann")
        assert (balance.spent, balance.reserved, server.stats.requests) == (0, 0, 0)

    def test_in_a_run_whose_money_is_spent(self, chat: Make, server: DemoServer) -> None:
        store = MemoryStore()
        model = guard(chat(max_tokens=20), **PRICED, store=store)
        chain = guard(pipe(model), **{**PRICED, "max_cost_usd": 1e-4}, store=store)
        others = BrixCallbackHandler(**PRICED)
        with brix_core.session("ann"):
            model.invoke("x" * 5_000)
            with pytest.raises(BrixBudgetError, match="of the run"):
                chain.invoke(INPUT, {"callbacks": [others]})
        assert [trace["outcome"] for trace in others.get_traces()] == ["refused"]
        assert others.context.session_cost_usd == 0
        assert server.stats.requests == 1


def talking(model: BaseChatModel) -> Any:
    def talk(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    async def atalk(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("talk", RunnableLambda(talk, atalk))
    builder.add_edge(START, "talk")
    return builder.compile()


@pytest.mark.parametrize("way", ["stream", "astream"])
@pytest.mark.parametrize("kind", ["chain", "graph"])
async def test_in_an_outer_graph_its_tokens_are_streamed(kind: str, way: str, chat: Make, server: DemoServer) -> None:
    """LangGraph streams what models inside say, through the time limits and threads of the guards."""
    model = chat(max_retries=0)
    inner = guarded(talking(model) if kind == "graph" else model | (lambda said: {"messages": [said]}), **ALL)
    builder = StateGraph(MessagesState)
    builder.add_node("inner", inner if kind == "graph" else RunnableLambda(lambda state: state["messages"]) | inner)
    builder.add_edge(START, "inner")
    outer: Any = builder.compile()
    asked = {"messages": [HumanMessage("Hi")]}
    modes: Any = {"stream_mode": ["messages", "values"], "subgraphs": True}
    chunks = list(outer.stream(asked, **modes)) if way == "stream" else await drain(outer.astream(asked, **modes))
    assert len([chunk for _, mode, chunk in chunks if mode == "messages"]) > 3
    assert len(chunks[-1][2]["messages"]) == 2
    if kind == "graph":
        assert {len(namespace) for namespace, *_ in chunks} == {0, 1}
        assert [name for name, _ in outer.get_subgraphs()] == ["inner"]
    assert attempts(inner) == server.stats.requests == 1


def test_a_guarded_runnable_is_one_by_name_too(chat: Make) -> None:
    chain = guarded(pipe(chat()))
    assert chain.with_config(run_name="x").bound is chain
    assert isinstance(chain, GuardedRunnable)
