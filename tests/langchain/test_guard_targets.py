"""What `guard` takes and what comes back: each kind of thing stays one of its kind, and all else is refused."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, interrupt

from brix_core import BrixBudgetError, BrixConfigurationError
from brix_core.demo import DemoServer, Reply, ServerError
from brix_core.store import MemoryStore
from brix_langchain import guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES
from tests.support.words import MUSEUM
from tests.support.words_langchain import WordEmbeddings

PRICED: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES}}
PROMPT = ChatPromptTemplate.from_messages([("human", "{input}"), ("placeholder", "{agent_scratchpad}")])
THREAD: Any = {"configurable": {"thread_id": "ann"}}


def guarded(target: Any, **options: Any) -> Any:
    return guard(target, **{"store": MemoryStore(), **options})


def charged(target: Any) -> Any:
    """What the guards say the calls inside have cost."""
    return sum(trace["cost_usd"] for trace in target.inside.get_traces())


def assert_charged(target: Any, server: DemoServer, requests: int) -> None:
    assert server.wait_until_idle()
    stats = server.stats
    assert sum(len(trace["attempts"]) for trace in target.inside.get_traces()) == stats.requests == requests
    assert charged(target) == pytest.approx(stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1])


@tool
def clock() -> str:
    """The time."""
    return "noon"


def executor(model: BaseChatModel) -> AgentExecutor:
    return AgentExecutor(agent=create_tool_calling_agent(model, [clock], PROMPT), tools=[clock])


def functional(model: BaseChatModel, **options: Any) -> Any:
    """A workflow of LangGraph's functional API: two tasks that ask, with a human in between."""

    @task
    def ask(question: str) -> str:
        return model.invoke(question).text

    @entrypoint(**options)
    def workflow(question: str, *, previous: Any = None) -> str:
        first = ask(question).result()
        second = ask(f"{interrupt('May I?')} {question}").result()
        return f"{first} {second}"

    return workflow


KINDS: dict[str, tuple[type[Any], Callable[[BaseChatModel], Any]]] = {
    "chat model": (BaseChatModel, lambda model: model),
    "string LLM": (BaseLLM, lambda model: FakeListLLM(responses=["Paris"])),
    "chain": (Runnable, lambda model: PROMPT | model | StrOutputParser()),
    "graph": (CompiledStateGraph, lambda model: create_agent(model, [clock], checkpointer=InMemorySaver())),
    "functional graph": (Pregel, lambda model: functional(model, checkpointer=InMemorySaver())),
    "agent executor": (AgentExecutor, executor),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_stays_one_of_its_kind(kind: str, chat: Make) -> None:
    kept, make = KINDS[kind]
    bare = make(chat())
    target = guarded(bare, per_call_timeout=5.0)
    assert isinstance(target, kept)
    assert type(target) is not type(bare)
    assert not hasattr(bare, "get_traces")
    assert target.get_traces() == []
    assert target.get_input_jsonschema() | {"title": ""} == bare.get_input_jsonschema() | {"title": ""}
    assert target.get_output_jsonschema() | {"title": ""} == bare.get_output_jsonschema() | {"title": ""}
    assert target.get_graph().draw_mermaid()
    for name in ("get_state", "aget_state", "stream_mode", "checkpointer", "tools", "agent"):
        assert hasattr(target, name) == hasattr(bare, name)


class TestFunctionalGraphs:
    @pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
    async def test_each_call_is_charged_and_a_resumed_run_keeps_its_spend(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        flow = guarded(
            functional(chat(max_retries=0), checkpointer=InMemorySaver()),
            **PRICED,
            max_retries=1,
            per_call_timeout=20.0,
        )
        values: list[Any] = ["Who?", Command(resume="Yes.")]
        for value in values:
            if way == "invoke":
                flow.invoke(value, THREAD)
            elif way == "stream":
                list(flow.stream(value, THREAD))
            elif way == "ainvoke":
                await flow.ainvoke(value, THREAD)
            else:
                assert [chunk async for chunk in flow.astream(value, THREAD)]
        await asyncio.to_thread(assert_charged, flow, server, 2)
        assert len(flow.get_traces("ann")) == 2
        assert {trace["session_id"] for trace in flow.inside.get_traces()} == {"ann"}

    def test_a_call_that_does_not_fit_never_leaves(self, chat: Make, server: DemoServer) -> None:
        flow = guarded(
            functional(chat(max_retries=0), checkpointer=InMemorySaver()), **{**PRICED, "max_cost_usd": 1e-9}
        )
        with pytest.raises(BrixBudgetError):
            flow.invoke("Who?", THREAD)
        assert server.stats.requests == 0

    def test_another_attempt_does_not_repeat_what_is_done(self, chat: Make, server: DemoServer) -> None:
        flow = guarded(
            functional(chat(max_retries=0), checkpointer=InMemorySaver()),
            **PRICED, max_retries=2, backoff_base=1.0, max_backoff=0.0,
        )  # fmt: skip
        flow.invoke("Who?", THREAD)
        server.script(ServerError(), Reply("At last."))
        assert flow.invoke(Command(resume="Yes."), THREAD).endswith("At last.")
        assert server.stats.requests == 3


class TestOtherRunnables:
    async def test_a_retriever_pipeline(self, chat: Make, server: DemoServer) -> None:
        index = InMemoryVectorStore(WordEmbeddings())
        index.add_documents([Document(text, metadata={"source": source}) for source, text in MUSEUM.items()])
        prompt = ChatPromptTemplate.from_template("Answer {question} from {context}")
        sources = {"context": index.as_retriever(), "question": RunnablePassthrough()}
        rag = guarded(sources | prompt | chat() | StrOutputParser(), **PRICED)
        assert rag.invoke("When is the museum open?")
        assert [chunk async for chunk in rag.astream("When is the museum open?")]
        await asyncio.to_thread(assert_charged, rag, server, 2)

    def test_a_retriever_itself(self) -> None:
        index = InMemoryVectorStore(WordEmbeddings())
        index.add_texts(list(MUSEUM.values()))
        retriever = guarded(index.as_retriever(search_kwargs={"k": 2}), per_call_timeout=5.0)
        assert len(retriever.invoke("When is the museum open?")) == 2
        assert retriever.get_traces()[0]["outcome"] == "ok"

    @pytest.mark.parametrize("how", ["init_chat_model", "configurable_fields"])
    def test_a_model_that_is_chosen_by_the_configuration(self, how: str, chat: Make, server: DemoServer) -> None:
        made = chat(max_retries=0, temperature=0.1)
        if how == "configurable_fields":
            model: Any = made.configurable_fields(temperature=ConfigurableField(id="temperature"))
        else:
            given = {"base_url": server.base_url, "api_key": "sk", "max_retries": 0, "http_client": made.http_client}
            model = init_chat_model(MODEL, model_provider="openai", configurable_fields=["temperature"], **given)
        target = guarded(model, **PRICED)
        config: Any = {"configurable": {"temperature": 0.7}}
        assert target.invoke("Hi", config).text
        assert "".join(chunk.text for chunk in target.stream("Hi", config))
        assert [request.body["temperature"] for request in server.requests] == [0.7, 0.7]
        assert len(target.inside.get_traces()) == server.stats.requests == 2

    def test_fallbacks_of_langchain_are_each_charged(self, chat: Make, server: DemoServer) -> None:
        server.script(ServerError(), Reply("Second."))
        target = guarded(chat(max_retries=0).with_fallbacks([chat(max_retries=0)]), **PRICED)
        assert target.invoke("Hi").text == "Second."
        assert [trace["outcome"] for trace in target.inside.get_traces()] == ["ok", "failed"]


class TestMoneyNobodyTellsOf:
    """A budget around a run counts what LangChain's callbacks tell of, and says so where they tell nothing."""

    @pytest.mark.parametrize("way", ["invoke", "stream", "graph"])
    def test_it_is_said_once(self, way: str, server: DemoServer, caplog: pytest.LogCaptureFixture) -> None:
        def ask(question: Any) -> Any:
            with openai.OpenAI(base_url=server.base_url, api_key="sk") as client:
                client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
            return question if isinstance(question, str) else {"messages": []}

        builder: Any = StateGraph(MessagesState)
        builder.add_node("ask", ask)
        builder.add_edge(START, "ask")
        target = guarded(builder.compile() if way == "graph" else RunnableLambda(ask), **PRICED)
        for _ in range(2):
            if way == "stream":
                list(target.stream("Hi"))
            else:
                target.invoke({"messages": []} if way == "graph" else "Hi")
        (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("brix")]
        assert "not metered" in said
        assert "BRIX.wrap()" in said
        assert server.stats.requests == 2

    def test_nothing_is_said_where_models_are_told_of(
        self, chat: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = MemoryStore()
        options = {**PRICED, "store": store}
        for target in (
            guard(RunnableLambda(str) | chat(), **options),
            guard(RunnableLambda(str) | guard(chat(), **options), **options),
            guard(RunnableLambda(str) | guard(RunnableLambda(str) | chat(), **options), **options),
            guarded(RunnableLambda(str), per_call_timeout=5.0),
        ):
            target.invoke("Hi")
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert server.stats.requests == 3


async def _agen() -> AsyncIterator[int]:
    yield 1


WRONG: dict[str, tuple[Any, str]] = {
    "number": (42, "got int: 42"),
    "nothing": (None, "got NoneType: None"),
    "text": ("gpt-4o-mini", "got str: 'gpt-4o-mini'"),
    "function": (lambda: 1, r"RunnableLambda\(function\)"),
    "generator function": (_agen, r"RunnableLambda\(function\)"),
    "class": (ChatOpenAI, r"a class: make one, guard\(ChatOpenAI\(\.\.\.\)"),
    "exception": (ValueError("x"), "got ValueError"),
    "list": ([FakeListLLM(responses=[])], "got list"),
    "uncompiled graph": (StateGraph(MessagesState), r"compile the graph first"),
    "SDK client": (openai.OpenAI(api_key="sk"), r"BRIX\.wrap"),
    "message": (HumanMessage("Hi"), "got HumanMessage"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_runnable_is_refused_with_what_to_do(kind: str) -> None:
    wrong, message = WRONG[kind]
    with pytest.raises(BrixConfigurationError, match=message) as caught:
        guard(wrong, max_cost_usd=1.0)
    assert "guard() takes a LangChain chat model" in str(caught.value)
    assert len(str(caught.value)) < 600


ABSURD: list[dict[str, Any]] = [
    {"max_cost_usd": 0},
    {"max_cost_usd": -1.0},
    {"max_cost_usd": math.nan},
    {"max_cost_usd": "1.0"},
    {"max_cost_usd": True},
    {"max_cost_usd": 1e300},
    {"per_call_timeout": 0},
    {"per_call_timeout": math.nan},
    {"per_call_timeout": -5},
    {"idle_timeout": "soon"},
    {"max_retries": -1},
    {"max_retries": 1.5},
    {"requests_per_minute": 0},
    {"requests_per_minute": math.nan},
    {"circuit_breaker": True, "circuit_failure_threshold": 0},
    {"exact_loop_detection": True, "exact_loop_threshold": 0},
    {"trace_buffer_size": 0},
    {"session_id": "", "per_call_timeout": 1.0},
    {"store": "here", "max_cost_usd": 1.0},
    {"fallbacks": "gpt-4o"},
    {"fallbacks": [None]},
]


@pytest.mark.parametrize("kind", ["chat model", "string LLM", "chain", "graph"])
@pytest.mark.parametrize("options", ABSURD, ids=str)
def test_limits_that_cannot_be_meant_are_refused_when_it_is_made(
    options: dict[str, Any], kind: str, chat: Make
) -> None:
    with pytest.raises(BrixConfigurationError) as caught:
        guard(KINDS[kind][1](chat()), **options)
    assert any(name in str(caught.value) for name in options) or "session id" in str(caught.value)


@pytest.mark.parametrize("kind", ["chain", "graph"])
def test_very_large_limits_hold(kind: str, chat: Make, server: DemoServer) -> None:
    options = {
        "max_cost_usd": 1e9,
        "prices": {MODEL: RATES},
        "per_call_timeout": 1e9,
        "max_retries": 10**6,
        "requests_per_minute": 1e12,
        "trace_buffer_size": 10**6,
    }
    target = guarded(KINDS[kind][1](chat(max_retries=0)), **options)
    target.invoke({"input": "Hi"} if kind == "chain" else {"messages": [HumanMessage("Hi")]}, THREAD)
    assert_charged(target, server, 1)
