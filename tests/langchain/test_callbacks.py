"""BrixCallbackHandler: the guards by callbacks alone, against the local server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import operator
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ClearToolUsesEdit, ContextEditingMiddleware
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake import FakeListLLM, FakeStreamingListLLM
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from brix_core import session
from brix_core.demo import CutStream, DemoServer, EndlessRepetition, JsonReply, Reply, ServerError, ToolCalls
from brix_core.errors import (
    BrixBudgetError,
    BrixCircuitOpenError,
    BrixConfigurationError,
    BrixLoopError,
    BrixRunLimitError,
    BrixTimeoutError,
    BrixUnknownPriceError,
)
from brix_langchain import BrixCallbackHandler, guard
from brix_langchain.open_calls import MAX_OPEN
from brix_langchain.outermost import MAX_RUNS, MAX_TOOLS
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES, assert_all_seen, needs_v3
from tests.langchain.test_bypass import ASYNC, SYNC, City
from tests.support.ledger import AuditedStore
from tests.support.virtual import VirtualClock

pytestmark = [
    # As in test_bypass.py, whose ways to call a model are gone through here.
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:langchain_core._api.deprecation.LangChainDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unexpected type for token usage:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

PRICES = {MODEL: RATES, "gpt-4o": RATES}
PROMPT = "Say something about guards"
QUESTION: Any = {"messages": [{"role": "user", "content": "How is the weather in Oslo?"}]}
OSLO = ToolCalls([("weather", {"city": "Oslo"})])


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


@pytest.fixture
def chat(chat: Make) -> Make:
    """Models that send one request a call: where guards are callbacks, others are refused under a budget."""
    return partial(chat, max_retries=0)


@pytest.fixture
def store() -> AuditedStore:
    return AuditedStore()


@pytest.fixture
def make(store: AuditedStore) -> Make:
    def build(**options: Any) -> Any:
        if "max_cost_usd" in options:
            options.setdefault("prices", PRICES)
        return BrixCallbackHandler(**{"store": store, "session_id": "default", **options})

    return build


@pytest.fixture
def handler(make: Make) -> Any:
    return make(max_cost_usd=1.0, tool_loop_detection=True)


@pytest.fixture
def unawaited() -> Iterator[None]:
    """Where a start is refused, LangChain leaves what it would have told other handlers, or of the rest, unawaited."""
    yield
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine 'ahandle_event' was never awaited", RuntimeWarning)
        gc.collect()


@pytest.fixture
def broke(make: Make) -> Any:
    """One whose money suffices for nothing."""
    return make(max_cost_usd=1e-9)


def on(*handlers: BaseCallbackHandler, **configurable: Any) -> Any:
    return {"callbacks": list(handlers), "configurable": configurable}


def outcomes(handler: BrixCallbackHandler) -> list[str]:
    return [trace["outcome"] for trace in handler.get_traces()]


def assert_settled(handler: BrixCallbackHandler, store: AuditedStore) -> None:
    """Nothing is held any more, nothing is remembered of runs that are over."""
    store.assert_sound()
    assert len(handler._open) == 0
    assert len(handler._runs) == 0


def chain(model: Any) -> Any:
    return ChatPromptTemplate.from_template("{question}") | model | StrOutputParser()


async def all_told(handler: BrixCallbackHandler, server: DemoServer) -> None:
    """Wait until LangChain has closed the streams it left, and told of their end."""
    while len(handler._open):
        await asyncio.sleep(0.01)
    assert await asyncio.to_thread(server.wait_until_idle)


async def drain(source: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in source]


class State(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]


def graph(model: Any, **compiled: Any) -> Any:
    def blocking(state: State) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    async def waiting(state: State) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder: Any = StateGraph(State)
    builder.add_node("chat", RunnableLambda(blocking, waiting))
    builder.add_edge(START, "chat")
    builder.add_edge("chat", END)
    return builder.compile(**compiled)


# Whatever is called is seen


@pytest.mark.parametrize("way", [way for way in SYNC if way != "copies"])  # a bare ChatOpenAI cannot be copied
def test_no_blocking_entry_point_bypasses_the_handler(
    way: str, handler: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    requests, call = SYNC[way]
    call(chat(callbacks=[handler], max_retries=0))
    assert_all_seen(handler, server, requests)  # type: ignore[arg-type]
    assert_settled(handler, store)


@pytest.mark.parametrize("way", ASYNC)
async def test_no_async_entry_point_bypasses_the_handler(
    way: str, handler: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    requests, call = ASYNC[way]
    await call(chat(callbacks=[handler], max_retries=0))
    await all_told(handler, server)
    assert_all_seen(handler, server, requests)  # type: ignore[arg-type]
    assert_settled(handler, store)


async def test_chains_agents_and_graphs_are_seen_through_their_configuration(
    handler: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    model, config = chat(), on(handler)
    question = {"question": PROMPT}
    text = chain(model).invoke(question, config)
    assert await chain(model).ainvoke(question, config) == text
    assert "".join(chain(model).stream(question, config)) == text
    assert "".join(await drain(chain(model).astream(question, config))) == text
    assert chain(model).batch([question] * 2, config) == [text] * 2
    assert await chain(model).abatch([question] * 2, config) == [text] * 2
    await drain(chain(model).astream_events(question, config, version="v2"))
    assert_all_seen(handler, server, 9)  # type: ignore[arg-type]

    agent = create_agent(model, [weather])
    for number in range(4):
        server.script(OSLO, Reply("It is sunny in Oslo."))
        if number == 0:
            agent.invoke(QUESTION, config)
        elif number == 1:
            await agent.ainvoke(QUESTION, config)
        elif number == 2:
            list(agent.stream(QUESTION, config, stream_mode="messages"))
        else:
            await drain(agent.astream(QUESTION, config, stream_mode="updates"))
    assert_all_seen(handler, server, 17)  # type: ignore[arg-type]

    app = graph(model)
    app.invoke({"messages": [HumanMessage(PROMPT)]}, config)
    await app.ainvoke({"messages": [HumanMessage(PROMPT)]}, config)
    await drain(app.astream({"messages": [HumanMessage(PROMPT)]}, config, stream_mode="messages"))
    assert_all_seen(handler, server, 20)  # type: ignore[arg-type]
    assert set(outcomes(handler)) == {"ok"}
    assert_settled(handler, store)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_is_charged_as_the_server_counts_it(
    method: str, handler: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    if method != "function_calling":
        server.default = JsonReply({"name": "Oslo", "people": 700_000})
    structured = chat(callbacks=[handler]).with_structured_output(City, method=method)
    assert isinstance(structured.invoke("A city of 700000 in JSON"), City)
    assert isinstance(list(structured.stream("A city of 700000 in JSON"))[-1], City)
    assert_all_seen(handler, server, 2)  # type: ignore[arg-type]
    assert_settled(handler, store)


async def test_usage_that_comes_in_parts_is_added_up(
    make: Make, claude: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0, prices={"claude-haiku-4-5": RATES})
    model = claude(callbacks=[handler], max_retries=0)
    model.invoke(PROMPT)
    list(model.stream(PROMPT))
    await drain(model.astream(PROMPT))
    assert_all_seen(handler, server, 3)
    assert_settled(handler, store)


def test_a_handler_that_is_attached_twice_counts_once(
    handler: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    model = chat(callbacks=[handler])
    chain(model.with_config(callbacks=[handler])).invoke({"question": PROMPT}, on(handler))
    list(chain(model).stream({"question": PROMPT}, on(handler)))
    assert_all_seen(handler, server, 2)  # type: ignore[arg-type]
    assert_settled(handler, store)


async def test_a_classic_agent_executor_is_guarded(
    handler: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    template = ChatPromptTemplate.from_messages([("human", "{input}"), ("placeholder", "{agent_scratchpad}")])
    executor = AgentExecutor(agent=create_tool_calling_agent(chat(), [weather], template), tools=[weather])
    server.script(OSLO, Reply("It is sunny."))
    assert executor.invoke({"input": "Oslo?"}, on(handler))["output"] == "It is sunny."
    assert_all_seen(handler, server, 2)  # type: ignore[arg-type]
    server.default = OSLO
    with pytest.raises(BrixLoopError):
        executor.invoke({"input": "Oslo?"}, on(handler))
    with pytest.raises(BrixLoopError):
        await executor.ainvoke({"input": "Oslo?"}, on(handler))
    await all_told(handler, server)
    assert server.stats.requests == 2 + 3 + 3
    assert_settled(handler, store)


def test_a_trace_has_what_traces_of_guarded_models_have(
    handler: BrixCallbackHandler, chat: Make, server: DemoServer
) -> None:
    run_id = uuid4()
    chat(max_tokens=50).invoke(PROMPT, {"callbacks": [handler], "run_id": run_id})
    guarded = guard(chat(max_tokens=50), max_cost_usd=1.0, prices=PRICES)
    guarded.invoke(PROMPT)
    trace, usual = handler.get_traces()[0], guarded.get_traces()[0]
    assert trace.keys() == usual.keys()
    same = ["model", "provider", "outcome", "prompt_tokens", "completion_tokens", "cost_usd", "prompt_hash"]
    same += ["response_hash", "finish_reason", "usage_estimated", "partial_text"]
    assert {key: trace[key] for key in same} == {key: usual[key] for key in same}
    assert trace["run_id"] == handler.context.run_id == str(run_id)
    assert trace["attempts"][0]["endpoint"] == usual["attempts"][0]["endpoint"]
    assert handler.guards == tuple(trace["guards_active"]) == ("observability", "loop", "budget")


# Refusing


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda model, config: chain(model).invoke({"question": PROMPT}, config),
    "stream": lambda model, config: list(chain(model).stream({"question": PROMPT}, config)),
    "batch": lambda model, config: chain(model).batch([{"question": PROMPT}] * 2, config),
    "bare": lambda model, config: model.invoke(PROMPT, config),
    "bare stream": lambda model, config: list(model.stream(PROMPT, config)),
    "agent": lambda model, config: create_agent(model, [weather]).invoke(QUESTION, config),
    "graph": lambda model, config: graph(model).invoke({"messages": [HumanMessage(PROMPT)]}, config),
    "graph stream": lambda model, config: list(
        graph(model).stream({"messages": [HumanMessage(PROMPT)]}, config, stream_mode="messages")
    ),
}

ASYNC_WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "ainvoke": lambda model, config: chain(model).ainvoke({"question": PROMPT}, config),
    "astream": lambda model, config: drain(chain(model).astream({"question": PROMPT}, config)),
    "abatch": lambda model, config: chain(model).abatch([{"question": PROMPT}] * 2, config),
    "bare": lambda model, config: model.ainvoke(PROMPT, config),
    "bare stream": lambda model, config: drain(model.astream(PROMPT, config)),
    "events": lambda model, config: drain(chain(model).astream_events({"question": PROMPT}, config, version="v2")),
    "agent": lambda model, config: create_agent(model, [weather]).ainvoke(QUESTION, config),
    "graph": lambda model, config: graph(model).ainvoke({"messages": [HumanMessage(PROMPT)]}, config),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_call_never_reaches_the_server(
    way: str, broke: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    with pytest.raises(BrixBudgetError, match="max_cost_usd"):
        WAYS[way](chat(), on(broke))
    assert server.stats.requests == 0
    assert set(outcomes(broke)) == {"refused"}
    assert_settled(broke, store)


@pytest.mark.usefixtures("unawaited")
@pytest.mark.parametrize("way", ASYNC_WAYS)
async def test_a_refused_async_call_never_reaches_the_server(
    way: str, broke: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    with pytest.raises(BrixBudgetError, match="max_cost_usd"):
        await ASYNC_WAYS[way](chat(), on(broke))
    assert server.stats.requests == 0
    assert set(outcomes(broke)) == {"refused"}
    assert_settled(broke, store)


def test_neither_fallbacks_nor_retries_answer_over_a_refusal(
    broke: BrixCallbackHandler, chat: Make, server: DemoServer
) -> None:
    model = (
        chat().with_fallbacks([chat(model="gpt-4o")]).with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    )
    with pytest.raises(BrixBudgetError):
        chain(model).invoke({"question": PROMPT}, on(broke))
    assert server.stats.requests == 0
    assert len(outcomes(broke)) == 4


def test_a_fallback_is_metered_by_the_same_budget(
    handler: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    server.script(ServerError(), Reply("At last"))
    model = chat(max_retries=0).with_fallbacks([chat(model="gpt-4o", max_retries=0)])
    assert chain(model).invoke({"question": PROMPT}, on(handler)) == "At last"
    assert_all_seen(handler, server, 2)  # type: ignore[arg-type]
    assert outcomes(handler) == ["ok", "failed"]
    assert_settled(handler, store)


def test_the_worst_case_is_reserved_with_all_that_is_sent(make: Make, chat: Make, server: DemoServer) -> None:
    def needed(model: Any, **config: Any) -> float:
        with pytest.raises(BrixBudgetError) as caught:
            model.invoke("Hi", on(make(max_cost_usd=1e-9)))
        return caught.value.needed_usd

    plain = needed(chat(max_tokens=100))
    assert plain == pytest.approx(8 * RATES[0] + 100 * RATES[1], rel=0.05)
    assert needed(chat(max_tokens=100, n=3)) - plain == pytest.approx(200 * RATES[1])
    assert needed(chat(max_tokens=100).bind(max_tokens=150)) - plain == pytest.approx(50 * RATES[1])
    assert needed(chat(max_tokens=100).bind_tools([weather])) > plain + 20 * RATES[0]
    assert needed(chat()) == pytest.approx(8 * RATES[0] + 16_384 * RATES[1], rel=0.05)
    assert server.stats.requests == 0


def test_a_model_whose_output_nothing_bounds_is_refused(make: Make, chat: Make, server: DemoServer) -> None:
    prices = {"prices": {"my-model": RATES}}
    with pytest.raises(BrixConfigurationError, match="max_tokens"):
        chat(model="my-model").invoke(PROMPT, on(make(max_cost_usd=1.0, **prices)))
    with pytest.raises(BrixUnknownPriceError):
        chat(model="my-model").invoke(PROMPT, on(make(max_cost_usd=1.0)))
    assert server.stats.requests == 0
    chat(model="my-model", max_tokens=100).invoke(PROMPT, on(make(max_cost_usd=1.0, **prices)))
    chat(model="my-model").invoke(PROMPT, on(make(max_cost_usd=1.0, budget_strategy="warn", **prices)))
    metering = make(max_cost_usd=float("inf"), **prices)
    server.script(EndlessRepetition(limit=9_000, chunk_delay=0.0))
    list(chat(model="my-model").stream(PROMPT, on(metering)))
    assert metering.get_traces()[0]["cost_usd"] > 4_096 * RATES[1]


# Streams


def test_a_stream_is_stopped_at_the_cap(make: Make, chat: Make, server: DemoServer, store: AuditedStore) -> None:
    handler = make(max_cost_usd=1.0)
    server.default = EndlessRepetition()
    pieces: list[str] = []
    with pytest.raises(BrixBudgetError, match="output cap of 50 tokens") as caught:
        pieces.extend(chain(chat(max_tokens=50)).stream({"question": PROMPT}, on(handler)))
    assert caught.value.partial.startswith("again and again")
    assert server.wait_until_idle()
    trace = handler.get_traces()[0]
    assert trace["outcome"] == "failed"
    assert trace["error"] == "BrixBudgetError"
    assert 50 * RATES[1] <= trace["cost_usd"] <= 80 * RATES[1]
    assert_settled(handler, store)


@pytest.mark.parametrize("version", ["v1", "v3"])
async def test_an_async_stream_is_stopped_at_the_cap(
    version: str, make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0)
    server.default = EndlessRepetition()
    model = chat(max_tokens=50)

    async def read() -> None:
        if version == "v1":
            await drain(model.astream(PROMPT, on(handler)))
        else:
            stream = await model.astream_events(PROMPT, on(handler), version="v3")
            await stream.output

    with pytest.raises(BrixBudgetError, match="output cap of 50 tokens"):
        await read()
    await all_told(handler, server)
    assert handler.get_traces()[0]["error"] == "BrixBudgetError"
    assert_settled(handler, store)


@needs_v3
def test_a_stream_of_events_without_chunks_is_stopped_at_the_cap(make: Make, store: AuditedStore) -> None:
    handler = make(max_cost_usd=1.0, prices={"FakeListChatModel": RATES})
    model = FakeListChatModel(responses=["word " * 50]).bind(max_tokens=20)
    with pytest.raises(BrixBudgetError, match="output cap of 20 tokens"):
        _ = model.stream_events(PROMPT, on(handler), version="v3").output
    assert_settled(handler, store)


def test_usage_that_is_repeated_is_charged_once_and_a_mark_of_the_cache_does_not_free_a_stream(
    make: Make, store: AuditedStore
) -> None:
    handler, run_id = make(max_cost_usd=1.0), uuid4()
    usage: Any = {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30}
    chunk = ChatGenerationChunk(message=AIMessageChunk(content="Paris", usage_metadata=usage))
    doubled: Any = {"input_tokens": 20, "output_tokens": 40, "total_tokens": 60, "total_cost": 0}
    whole = ChatGeneration(message=AIMessage("Paris", usage_metadata=doubled))
    handler.on_chat_model_start({}, [[HumanMessage(PROMPT)]], run_id=run_id, invocation_params={"model": MODEL})
    for _ in range(2):
        handler.on_llm_new_token("Paris", chunk=chunk, run_id=run_id)
    handler.on_llm_end(LLMResult(generations=[[whole]]), run_id=run_id)
    assert handler.get_traces()[0]["cost_usd"] == pytest.approx(10 * RATES[0] + 20 * RATES[1])
    assert_settled(handler, store)


def test_a_degenerating_stream_is_stopped(make: Make, chat: Make, server: DemoServer, store: AuditedStore) -> None:
    handler = make(exact_loop_detection=True)
    server.default = EndlessRepetition()
    with pytest.raises(BrixLoopError):
        list(chat().stream(PROMPT, on(handler)))
    assert server.wait_until_idle()
    assert_settled(handler, store)


def assert_partly_charged(handler: BrixCallbackHandler, outcome: str, worst: float) -> None:
    trace = handler.get_traces()[0]
    assert trace["outcome"] == outcome
    assert trace["partial_text"].startswith("word")
    assert 0 < trace["cost_usd"] < worst / 2


def test_a_stream_closed_early_is_settled(make: Make, chat: Make, server: DemoServer, store: AuditedStore) -> None:
    handler = make(max_cost_usd=1.0)
    server.default = Reply("word " * 400, chunk_delay=0.001)
    stream = chat(max_tokens=400).stream(PROMPT, on(handler))
    for _ in zip(range(5), stream, strict=False):
        assert store.held > 0
    stream.close()
    assert_partly_charged(handler, "abandoned", 400 * RATES[1])
    assert_settled(handler, store)
    stream = chat(max_tokens=400).stream(PROMPT, on(handler))
    next(stream), next(stream)
    del stream
    gc.collect()
    assert_settled(handler, store)


async def test_an_async_stream_closed_early_is_settled(
    make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0)
    server.default = Reply("word " * 400, chunk_delay=0.001)
    stream: Any = chain(chat(max_tokens=400)).astream({"question": PROMPT}, on(handler))
    async with contextlib.aclosing(stream):
        async for piece in stream:
            if piece:
                break
    await all_told(handler, server)
    assert_partly_charged(handler, "abandoned", 400 * RATES[1])
    assert_settled(handler, store)


async def test_a_stream_may_be_read_by_one_task_after_another(
    make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0)
    stream = chat(max_tokens=400).astream(PROMPT, on(handler))
    while await asyncio.create_task(anext(stream, None)):
        pass
    assert outcomes(handler) == ["ok"]
    assert_all_seen(handler, server, 1)
    assert_settled(handler, store)


# Failures, and calls whose end nobody tells


def test_failures_are_settled(
    handler: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    server.script(ServerError(), CutStream())
    with pytest.raises(Exception, match="500"):
        chat(max_retries=0).invoke(PROMPT, on(handler))
    with pytest.raises(Exception, match=r"."):
        list(chat(max_retries=0).stream(PROMPT, on(handler)))
    cut, refused = handler.get_traces()
    assert (refused["outcome"], refused["attempts"][0]["status"], refused["cost_usd"]) == ("failed", 500, 0.0)
    assert cut["outcome"] == "failed"
    assert cut["partial_text"]
    assert cut["cost_usd"] > 0.0
    assert_settled(handler, store)


def test_a_fake_model_that_runs_out_of_answers_is_no_end_of_a_flow(make: Make, store: AuditedStore) -> None:
    handler = make(max_cost_usd=1.0, prices={"FakeListChatModel": RATES}, budget_strategy="warn")
    model = FakeListChatModel(responses=["a"], error_on_chunk_number=0)
    with pytest.raises(Exception, match=r".*"):
        list(model.stream(PROMPT, on(handler)))
    assert_settled(handler, store)


ASKED: dict[str, Any] = {"bare": PROMPT, "chain": {"question": PROMPT}}


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("inside", ASKED)
async def test_a_cancelled_call_is_charged_and_let_go(
    inside: str, swallowed: bool, make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0)
    server.default = Reply("Too late", latency=5.0)
    model = chat(max_tokens=100)

    async def call() -> None:
        await (chain(model) if inside == "chain" else model).ainvoke(ASKED[inside], on(handler))

    async def impatient() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await call()

    task = asyncio.create_task(impatient() if swallowed else call())
    while not store.held:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    (trace,) = handler.get_traces()
    assert trace["outcome"] in ("cancelled", "abandoned")
    assert trace["cost_usd"] == pytest.approx(100 * RATES[1], rel=0.2)
    assert_settled(handler, store)


async def test_what_was_given_up_is_settled_when_its_run_ends_though_the_task_goes_on(
    make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0)
    server.default = Reply("Too late", latency=5.0)
    here: Any = asyncio.current_task()

    async def cancel() -> None:
        while not store.held:
            await asyncio.sleep(0.01)
        here.cancel()

    cancelling = asyncio.create_task(cancel())
    with pytest.raises(asyncio.CancelledError):
        await chain(chat(max_tokens=100)).ainvoke({"question": PROMPT}, on(handler))
    here.uncancel()
    await cancelling
    assert_settled(handler, store)
    assert handler.get_traces()[0]["cost_usd"] == pytest.approx(100 * RATES[1], rel=0.2)


async def test_a_branch_that_goes_on_after_its_sibling_failed_is_settled_when_it_ends(
    make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0)
    server.default = Reply("Late, but here", latency=0.2)

    async def fail(_: Any) -> None:
        await asyncio.sleep(0.05)
        raise ValueError("sibling")

    both = RunnableParallel(slow=chat(max_tokens=1_000), failing=RunnableLambda(lambda _: None, fail))
    with pytest.raises(ValueError, match="sibling"):
        await both.ainvoke(PROMPT, on(handler))
    await all_told(handler, server)
    assert outcomes(handler) == ["ok"]
    assert_all_seen(handler, server, 1)
    assert_settled(handler, store)


def test_a_blocking_batch_that_is_given_up_holds_nothing(
    make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0)
    server.script(Reply("Fine"), ServerError())
    with pytest.raises(Exception, match="500"):
        chat(max_retries=0, max_tokens=100).generate([[HumanMessage(PROMPT)]] * 3, callbacks=[handler])
    assert sorted(outcomes(handler)) == ["abandoned", "abandoned", "failed"]
    assert_settled(handler, store)


@pytest.mark.usefixtures("unawaited")
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_of_a_batch_that_is_refused_nothing_is_sent_and_nothing_held(
    asynchronous: bool, make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=150 * RATES[1])
    model, prompts = chat(max_tokens=100), [[HumanMessage("Hi")]] * 2

    async def generate() -> None:
        if asynchronous:
            await model.agenerate(prompts, callbacks=[handler])
        else:
            model.generate(prompts, callbacks=[handler])

    with pytest.raises(BrixBudgetError):
        await generate()
    assert server.stats.requests == 0
    assert [trace["cost_usd"] or 0.0 for trace in handler.get_traces()] == [0.0, 0.0]
    assert_settled(handler, store)


def test_what_another_handler_refuses_is_charged_by_none(
    make: Make, broke: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    patient = make(max_cost_usd=1.0, session_id="patient")
    with pytest.raises(BrixBudgetError):
        chat().invoke(PROMPT, on(patient, broke))
    with pytest.raises(BrixBudgetError):
        chain(chat()).invoke({"question": PROMPT}, on(patient, broke))
    assert server.stats.requests == 0
    assert patient.context.session_cost_usd == 0.0
    assert_settled(patient, store)
    assert_settled(broke, store)


def test_runs_that_never_end_are_forgotten_in_the_end(make: Make, store: AuditedStore) -> None:
    handler = make(max_cost_usd=1.0, max_tool_calls_per_run=3, trace_buffer_size=10)
    first = uuid4()
    for run_id in (first, *(uuid4() for _ in range(MAX_OPEN + 5))):
        handler.on_chat_model_start(
            {}, [[HumanMessage("Hi")]], run_id=run_id, invocation_params={"model": MODEL, "max_tokens": 1}
        )
        handler.on_tool_start({"name": "t"}, "x", run_id=uuid4())
    assert len(handler._open) == MAX_OPEN
    assert len(handler._runs) <= MAX_TOOLS + MAX_RUNS
    assert handler._open.get(first) is None
    handler.on_llm_new_token("late", run_id=first)
    handler.on_llm_error(ValueError(), run_id=first)


# Limits of a run


def test_a_run_makes_so_many_model_calls(make: Make, chat: Make, server: DemoServer, store: AuditedStore) -> None:
    handler = make(max_cost_usd=1.0, max_calls_per_run=3)
    server.default = OSLO
    agent = create_agent(chat(), [weather])
    for run in (1, 2):
        with pytest.raises(BrixRunLimitError, match="max_calls_per_run=3") as caught:
            agent.invoke(QUESTION, on(handler))
        assert caught.value.limit == 3
        assert server.stats.requests == 3 * run
    assert outcomes(handler)[:4] == ["refused", "ok", "ok", "ok"]
    assert handler.get_traces()[0]["attempts"] == []
    assert_settled(handler, store)


async def test_a_run_makes_so_many_tool_calls(make: Make, chat: Make, server: DemoServer, store: AuditedStore) -> None:
    handler = make(max_tool_calls_per_run=2)
    server.default = OSLO
    agent = create_agent(chat(), [weather])
    with pytest.raises(BrixRunLimitError, match="max_tool_calls_per_run=2"):
        agent.invoke(QUESTION, on(handler))
    with pytest.raises(BrixRunLimitError, match="max_tool_calls_per_run=2"):
        await agent.ainvoke(QUESTION, on(handler))
    assert server.stats.requests == 6
    assert_settled(handler, store)


async def test_an_agent_that_repeats_a_tool_call_is_stopped_after_the_third(
    handler: BrixCallbackHandler, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    server.default = OSLO
    agent = create_agent(chat(), [weather])
    with pytest.raises(BrixLoopError, match="came up 3 times") as caught:
        agent.invoke(QUESTION, on(handler))
    assert caught.value.kind == "tool"
    assert server.stats.requests == 3
    with pytest.raises(BrixLoopError):
        await agent.ainvoke(QUESTION, on(handler))
    assert server.stats.requests == 6
    assert_settled(handler, store)


@pytest.mark.parametrize("how", ["handler", "guarded agent"])
async def test_results_that_were_cleared_out_of_prompts_are_told_apart(
    how: str, make: Make, chat: Make, server: DemoServer
) -> None:
    ticks: list[int] = []

    @tool
    def poll(step: int) -> str:
        """See how far it is."""
        ticks.append(step or len(ticks))
        return f"{ticks[-1]} percent done"

    agent: Any = create_agent(
        chat(), [poll], middleware=[ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1, keep=0)])]
    )
    if how == "handler":
        agent = agent.with_config(on(make(tool_loop_detection=True)))
    else:
        agent = guard(agent, tool_loop_detection=True)
    poll_again = ToolCalls([("poll", {"step": 0})])
    server.script(*[poll_again] * 5, Reply("Done."))
    assert agent.invoke(QUESTION)["messages"][-1].text == "Done."
    server.script(*[poll_again] * 5, Reply("Done."))
    assert (await agent.ainvoke(QUESTION))["messages"][-1].text == "Done."
    server.default = ToolCalls([("poll", {"step": 50})])  # from now on nothing changes
    with pytest.raises(BrixLoopError, match="3 times"):
        agent.invoke(QUESTION)
    assert server.stats.requests == 16
    assert {call["content"] for call in server.requests[-1].body["messages"] if call["role"] == "tool"} == {"[cleared]"}


async def test_a_tool_called_without_a_model_is_stopped_too(make: Make, store: AuditedStore) -> None:
    handler = make(tool_loop_detection=True, exact_loop_threshold=3)
    called: list[str] = []

    @tool
    def search(query: str) -> str:
        """Search."""
        called.append(query)
        return "nothing" if query == "x" else str(len(called))

    def program(queries: list[str]) -> None:
        for query in queries:
            search.invoke({"query": query})

    async def aprogram(queries: list[str]) -> None:
        for query in queries:
            await search.ainvoke({"query": query})

    run = RunnableLambda(program, aprogram)
    with pytest.raises(BrixLoopError, match="was not run again") as caught:
        run.invoke(["x"] * 5, on(handler))
    assert (caught.value.what, caught.value.repeats) == ('search({"query":"x"})', 3)
    assert called == ["x"] * 3
    with pytest.raises(BrixLoopError):
        await run.ainvoke(["x"] * 5, on(handler))
    assert called == ["x"] * 6
    run.invoke(["x", "x", "new", "x", "x"], on(handler))  # something new came up in between
    run.invoke(["poll"] * 5, on(handler))  # the result changes
    for _ in range(4):
        run.invoke(["x"], on(handler))  # each time another run
    assert_settled(handler, store)


def test_a_tool_that_keeps_failing_is_stopped(make: Make, store: AuditedStore) -> None:
    handler = make(tool_loop_detection=True)
    calls: list[int] = []

    @tool
    def broken() -> str:
        """Fails."""
        calls.append(1)
        raise ValueError("no")

    def program(_: Any) -> None:
        while True:
            with contextlib.suppress(ValueError):
                broken.invoke({})

    with pytest.raises(BrixLoopError):
        RunnableLambda(program).invoke(None, on(handler))
    assert len(calls) == 3
    assert_settled(handler, store)


def test_time_limits_are_checked_when_a_call_starts(make: Make, chat: Make, server: DemoServer) -> None:
    clock = VirtualClock()
    handler = make(per_step_timeout=5.0, total_timeout=20.0, clock=clock)
    model = chat()
    for _ in range(3):
        model.invoke(PROMPT, on(handler))
        clock.advance(4.0)
    clock.advance(2.0)
    with pytest.raises(BrixTimeoutError, match="per_step_timeout"):
        model.invoke(PROMPT, on(handler))
    clock.advance(3.0)
    model.invoke(PROMPT, on(handler))
    clock.advance(4.0)
    with pytest.raises(BrixTimeoutError, match="total_timeout"):
        chain(model).invoke({"question": PROMPT}, on(handler))
    assert server.stats.requests == 4


def test_an_answer_that_goes_round_in_circles_is_refused(
    make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0, exact_loop_detection=True)
    for _ in range(2):
        chat().invoke(PROMPT, on(handler))
    with pytest.raises(BrixLoopError):
        chain(chat()).invoke({"question": PROMPT}, on(handler))
    assert_all_seen(handler, server, 3)
    assert_settled(handler, store)


def test_an_open_circuit_refuses(make: Make, chat: Make, server: DemoServer) -> None:
    handler = make(circuit_breaker=True, circuit_failure_threshold=2)
    server.default = ServerError()
    for _ in range(2):
        with pytest.raises(Exception, match="500"):
            chat(max_retries=0).invoke(PROMPT, on(handler))
    with pytest.raises(BrixCircuitOpenError):
        chat(max_retries=0).invoke(PROMPT, on(handler))
    assert server.stats.requests == 2


# Whose call it is


async def test_the_run_around_the_model_names_the_session(
    handler: BrixCallbackHandler, chat: Make, server: DemoServer
) -> None:
    model = chat()
    question = {"question": PROMPT}
    chain(model).invoke(question, on(handler, session_id="s", thread_id="t"))
    await chain(model).ainvoke(question, on(handler, thread_id="t"))
    await drain(chain(model).astream(question, on(handler, session_id="streamed")))
    with session("block"):
        chain(model).invoke(question, on(handler, thread_id="t"))
        model.invoke(PROMPT, on(handler))
        assert handler.context.session_id == "block"
    model.invoke(PROMPT, on(handler))
    model.invoke(PROMPT, {**on(handler), "metadata": {"session_id": "told"}})
    names = ["s", "t", "streamed", "block", "block", "default", "told"]
    assert [trace["session_id"] for trace in reversed(handler.get_traces())] == names
    assert len(handler.get_traces("block")) == 2


@pytest.mark.parametrize("build", [graph, lambda model, **more: create_agent(model, [], **more)])
async def test_two_threads_in_parallel_keep_two_budgets(
    build: Any, make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=7e-4)
    server.default = Reply("word " * 600, latency=0.01)
    app = build(chat(max_tokens=500), checkpointer=InMemorySaver())

    async def talk(thread: str) -> int:
        turns = 0
        with contextlib.suppress(BrixBudgetError):
            while True:
                await app.ainvoke({"messages": [HumanMessage("Go on")]}, on(handler, thread_id=thread))
                turns += 1
        return turns

    turns = await asyncio.gather(talk("one"), talk("two"))
    assert turns[0] == turns[1] > 0
    assert server.stats.requests == sum(turns)
    for name in ("one", "two"):
        assert 0 < sum(trace["cost_usd"] or 0.0 for trace in handler.get_traces(name)) <= 7e-4
    assert_settled(handler, store)


# Many at a time


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("threads", [False, True])
async def test_fifty_runs_at_a_time_never_exceed_the_cap(
    threads: bool, streamed: bool, make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    cap = 10 * (20 * RATES[0] + 100 * RATES[1])
    handler = make(max_cost_usd=cap)
    server.default = Reply("word " * 300, latency=0.01)
    app, question = chain(chat(max_tokens=100, max_retries=0)), {"question": PROMPT}

    async def one() -> bool:
        try:
            if streamed:
                await drain(app.astream(question, on(handler)))
            else:
                await app.ainvoke(question, on(handler))
        except BrixBudgetError:
            return False
        return True

    def blocking(_: int) -> bool:
        try:
            if streamed:
                list(app.stream(question, on(handler)))
            else:
                app.invoke(question, on(handler))
        except BrixBudgetError:
            return False
        return True

    if threads:
        with ThreadPoolExecutor(50) as pool:
            done = list(await asyncio.to_thread(lambda: list(pool.map(blocking, range(50)))))
    else:
        done = await asyncio.gather(*(one() for _ in range(50)))
    assert server.wait_until_idle()
    stats = server.stats
    assert sum(done) == stats.requests > 0
    assert stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1] <= cap
    assert outcomes(handler).count("refused") == 50 - stats.requests > 0
    assert_settled(handler, store)


# Answers of another kind


async def test_an_answer_from_the_cache_costs_nothing(
    make: Make, chat: Make, server: DemoServer, store: AuditedStore
) -> None:
    handler = make(max_cost_usd=1.0, exact_loop_detection=True, circuit_breaker=True)
    model = chat(cache=InMemoryCache())
    model.invoke(PROMPT, on(handler))
    spent = handler.context.session_cost_usd
    for _ in range(4):
        model.invoke(PROMPT, on(handler))
    await model.ainvoke(PROMPT, on(handler))
    assert server.stats.requests == 1
    assert handler.context.session_cost_usd == spent > 0
    *cached, asked = handler.get_traces()
    assert asked["decisions"] == []
    assert len(cached) == 5
    for trace in cached:
        assert (trace["outcome"], trace["attempts"], trace["cost_usd"]) == ("ok", [], None)
        assert trace["decisions"] == [{"guard": "observability", "decision": "from_cache"}]
    assert_settled(handler, store)


async def test_string_models_are_guarded(make: Make, store: AuditedStore) -> None:
    prices = {"FakeListLLM": RATES, "FakeStreamingListLLM": RATES}
    handler = make(max_cost_usd=1.0, prices=prices, budget_strategy="warn", max_calls_per_run=1)
    FakeListLLM(responses=["Paris"]).invoke(PROMPT, on(handler))
    list(FakeStreamingListLLM(responses=["Paris"]).stream(PROMPT, on(handler)))
    await FakeListLLM(responses=["Paris"]).ainvoke(PROMPT, on(handler))
    FakeListLLM(responses=["Paris"]).batch([PROMPT, "Other"], on(handler))
    traces = handler.get_traces()
    assert len(traces) == 5
    assert {trace["outcome"] for trace in traces} == {"ok"}
    assert all(trace["usage_estimated"] and trace["cost_usd"] > 0 for trace in traces)
    assert_settled(handler, store)
    broke = make(max_cost_usd=1e-9, prices=prices)
    with pytest.raises(BrixConfigurationError, match="max_tokens"):
        FakeListLLM(responses=["Paris"]).invoke(PROMPT, on(broke))


def test_a_guarded_model_may_be_called_under_a_handler(chat: Make, server: DemoServer) -> None:
    handler = BrixCallbackHandler(max_cost_usd=1.0, prices=PRICES)
    model = guard(chat(), max_cost_usd=1.0, prices=PRICES)
    with session(f"shared-{uuid4()}"):
        chain(model).invoke({"question": PROMPT}, on(handler))
        assert_all_seen(handler, server, 1)  # type: ignore[arg-type]
        assert_all_seen(model, server, 1)
        refusing = guard(chat(), max_cost_usd=1e-9, prices=PRICES)
        with pytest.raises(BrixBudgetError):
            refusing.invoke(PROMPT, on(handler))
        assert_all_seen(model, server, 1)
        assert handler.get_traces()[0]["cost_usd"] == 0.0


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": 2},
        {"requests_per_minute": 60},
        {"rate_limit_rpm": 60},
        {"tokens_per_minute": 1_000},
        {"per_call_timeout": 10},
        {"first_token_timeout": 10},
        {"idle_timeout": 10},
        {"total_timeout": 10, "on_timeout": "return_partial"},
        {"fallbacks": [FakeListChatModel(responses=["x"])]},
        {"response_schema": {"type": "object"}},
        {"max_context_tokens": 1_000},
        {"max_cost_usd": 1.0, "budget_clamp_output": True},
        {"tool_loop_detection": True, "on_loop": "inject_diversity"},
        {"tool_loop_detection": True, "diversity_attempts": 3},
    ],
    ids=lambda options: list(options)[-1],
)
def test_options_that_callbacks_cannot_keep_are_refused(options: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"guard\(model, .*BrixMiddleware") as caught:
        BrixCallbackHandler(**options)
    assert str(caught.value).startswith(list(options)[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cost": 1.0}, "did you mean max_cost_usd"),
        ({"max_cost_usd": -1.0}, "max_cost_usd must be"),
        ({"max_calls_per_run": 0}, "max_calls_per_run must be an int >= 1"),
        ({"max_tool_calls_per_run": 1.5}, "max_tool_calls_per_run must be an int >= 1"),
        ({"budget_strategy": "warn"}, "has no effect"),
    ],
)
def test_bad_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(BrixConfigurationError, match=message):
        BrixCallbackHandler(**options)


def test_what_is_off_anyway_may_be_said() -> None:
    options: Any = {"budget_clamp_output": False, "on_loop": "raise", "exact_loop_detection": True}
    assert {"budget", "loop"} < set(BrixCallbackHandler(max_cost_usd=1.0, **options).guards)
