"""No way of calling a guarded model gets past its guards: what they counted and charged is what the server saw."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableParallel
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel, Field

from brix_core.demo import DemoServer, JsonReply, Reply, ServerError, ToolCalls
from brix_core.store import MemoryStore
from brix_langchain import GuardedChatModel, guard
from tests.langchain.conftest import Make
from tests.langchain.support import OPTIONS, assert_all_seen

pytestmark = [
    # LangChain about its own new and old interfaces, and ChatOpenAI about adding up its own usage.
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:langchain_core._api.deprecation.LangChainDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unexpected type for token usage:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

PROMPT = "Say something about guards"


class City(BaseModel):
    """A city."""

    name: str = Field(description="its name")
    people: int = Field(description="how many live there")


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


@pytest.fixture
def model(chat: Make) -> GuardedChatModel:
    return guard(chat(), **OPTIONS, store=MemoryStore())


def _v3(model: GuardedChatModel) -> Any:
    stream = model.stream_events(PROMPT, version="v3")
    return stream.output


async def _av3(model: GuardedChatModel) -> Any:
    stream = await model.astream_events(PROMPT, version="v3")
    return await stream.output


async def _events(model: GuardedChatModel, version: Any) -> None:
    kinds = [event["event"] async for event in model.astream_events(PROMPT, version=version)]
    assert "on_chat_model_stream" in kinds


async def _drain(source: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in source]


SYNC: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "invoke": (1, lambda m: m.invoke(PROMPT)),
    "stream": (1, lambda m: list(m.stream(PROMPT))),
    "batch": (3, lambda m: m.batch([PROMPT] * 3)),
    "batch, two at a time": (3, lambda m: m.batch([PROMPT] * 3, config={"max_concurrency": 2})),
    "batch_as_completed": (3, lambda m: list(m.batch_as_completed([PROMPT] * 3))),
    "generate": (2, lambda m: m.generate([[HumanMessage(PROMPT)], [HumanMessage("Other")]])),
    "generate_prompt": (1, lambda m: m.generate_prompt([ChatPromptTemplate.from_template("Hi").invoke({})])),
    "transform": (1, lambda m: list(m.transform(iter([PROMPT])))),
    "stream_events v3": (1, _v3),
    "with_config": (1, lambda m: m.with_config(tags=["t"]).invoke(PROMPT)),
    "bind": (1, lambda m: m.bind(stop=["zzz"], max_tokens=50).invoke(PROMPT)),
    "bind, another model": (1, lambda m: m.bind(model="gpt-4o").invoke(PROMPT)),
    "bind, streamed": (1, lambda m: list(m.bind(stop=["zzz"]).stream(PROMPT))),
    "with_retry": (1, lambda m: m.with_retry(stop_after_attempt=2).invoke(PROMPT)),
    "with_fallbacks": (1, lambda m: m.with_fallbacks([m]).invoke(PROMPT)),
    "with_types, with_listeners": (1, lambda m: m.with_listeners(on_end=lambda run: None).invoke(PROMPT)),
    "bind_tools": (1, lambda m: m.bind_tools([weather]).invoke("What is the weather in 'Oslo'?")),
    "bind_tools, streamed": (1, lambda m: list(m.bind_tools([weather]).stream("The weather in 'Oslo'?"))),
    "bind_tools, forced": (1, lambda m: m.bind_tools([weather], tool_choice="weather").invoke("Hi")),
    "bind_tools, batch": (2, lambda m: m.bind_tools([weather]).batch(["weather?", "Hi"])),
    "bind_tools, bound again": (1, lambda m: m.bind_tools([weather]).bind(stop=["zzz"]).invoke("Hi")),
    "bind_tools, v3": (1, lambda m: m.bind_tools([weather]).stream_events("Hi", version="v3").output),
    "pipe": (1, lambda m: (m | StrOutputParser()).invoke(PROMPT)),
    "map": (2, lambda m: m.map().invoke([PROMPT, "Other"])),
    "parallel": (2, lambda m: RunnableParallel(a=m, b=m).invoke(PROMPT)),
    "copies": (1, lambda m: m.model_copy(deep=True).invoke(PROMPT)),
}

ASYNC: dict[str, tuple[int, Callable[[Any], Awaitable[Any]]]] = {
    "ainvoke": (1, lambda m: m.ainvoke(PROMPT)),
    "astream": (1, lambda m: _drain(m.astream(PROMPT))),
    "abatch": (3, lambda m: m.abatch([PROMPT] * 3)),
    "abatch_as_completed": (3, lambda m: _drain(m.abatch_as_completed([PROMPT] * 3))),
    "agenerate": (2, lambda m: m.agenerate([[HumanMessage(PROMPT)], [HumanMessage("Other")]])),
    "astream_events v1": (1, lambda m: _events(m, "v1")),
    "astream_events v2": (1, lambda m: _events(m, "v2")),
    "astream_events v3": (1, _av3),
    "astream_log": (1, lambda m: _drain(m.astream_log(PROMPT))),
    "with_retry": (1, lambda m: m.with_retry(stop_after_attempt=2).ainvoke(PROMPT)),
    "with_fallbacks": (1, lambda m: _drain(m.with_fallbacks([m]).astream(PROMPT))),
    "bind_tools": (1, lambda m: m.bind_tools([weather]).ainvoke("The weather in 'Oslo'?")),
    "bind_tools, streamed": (1, lambda m: _drain(m.bind_tools([weather]).astream("The weather in 'Oslo'?"))),
    "bind, batch": (2, lambda m: m.bind(stop=["zzz"]).abatch([PROMPT, "Other"])),
}


@pytest.mark.parametrize("way", SYNC)
def test_no_blocking_entry_point_bypasses_the_guards(way: str, model: GuardedChatModel, server: DemoServer) -> None:
    requests, call = SYNC[way]
    call(model)
    assert_all_seen(model, server, requests)


@pytest.mark.parametrize("way", ASYNC)
async def test_no_async_entry_point_bypasses_the_guards(way: str, model: GuardedChatModel, server: DemoServer) -> None:
    requests, call = ASYNC[way]
    await call(model)
    assert_all_seen(model, server, requests)


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
class TestStructuredOutput:
    """Every method, with and without the raw message, in every way of calling."""

    @pytest.fixture
    def structured(self, model: GuardedChatModel, server: DemoServer, method: str, include_raw: bool) -> Any:
        if method != "function_calling":
            server.default = JsonReply({"name": "Oslo", "people": 700_000})
        return model.with_structured_output(City, method=method, include_raw=include_raw)

    def check(self, answer: Any, include_raw: bool) -> None:
        if include_raw:
            assert isinstance(answer["raw"], AIMessage)
            assert answer["parsing_error"] is None
            answer = answer["parsed"]
        assert isinstance(answer, City)

    def test_invoke(
        self, structured: Any, model: GuardedChatModel, server: DemoServer, include_raw: bool, method: str
    ) -> None:
        self.check(structured.invoke("A city of 700000 in JSON"), include_raw)
        assert_all_seen(model, server, 1)

    async def test_ainvoke(
        self, structured: Any, model: GuardedChatModel, server: DemoServer, include_raw: bool, method: str
    ) -> None:
        self.check(await structured.ainvoke("A city of 700000 in JSON"), include_raw)
        assert_all_seen(model, server, 1)

    def test_stream(
        self, structured: Any, model: GuardedChatModel, server: DemoServer, include_raw: bool, method: str
    ) -> None:
        parts = list(structured.stream("A city of 700000 in JSON"))
        if not include_raw:
            self.check(parts[-1], include_raw)
        assert_all_seen(model, server, 1)

    async def test_astream(
        self, structured: Any, model: GuardedChatModel, server: DemoServer, include_raw: bool, method: str
    ) -> None:
        parts = await _drain(structured.astream("A city of 700000 in JSON"))
        if not include_raw:
            self.check(parts[-1], include_raw)
        assert_all_seen(model, server, 1)


def test_langchains_own_retries_are_seen_each_by_itself(chat: Make, server: DemoServer) -> None:
    model = guard(chat(), max_cost_usd=1.0, store=MemoryStore())
    server.script(ServerError(), ServerError(), Reply("At last"))
    retrying = model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    assert retrying.invoke(PROMPT).content == "At last"
    assert len(model.get_traces()) == 3
    assert_all_seen(model, server, 3)


def test_alternatives_are_guarded_each_by_itself(chat: Make, server: DemoServer) -> None:
    store = MemoryStore()
    first = guard(chat(), **OPTIONS, store=store)
    second = guard(chat(model="gpt-4o"), **OPTIONS, store=store)
    chosen = first.configurable_alternatives(ConfigurableField(id="llm"), default_key="mini", large=second)
    chosen.invoke(PROMPT)
    assert_all_seen(first, server, 1)
    server.reset()
    chosen.with_config(configurable={"llm": "large"}).invoke(PROMPT)
    assert_all_seen(second, server, 1)


@pytest.fixture
def agent_script(server: DemoServer) -> None:
    server.script(ToolCalls([("weather", {"city": "Oslo"})]), Reply("It is sunny in Oslo."))


@pytest.mark.usefixtures("agent_script")
class TestAgent:
    """LangChain's create_agent: one call for the tool, one for the answer."""

    QUESTION: Any = {"messages": [{"role": "user", "content": "How is the weather in Oslo?"}]}  # noqa: RUF012

    def test_invoke(self, model: GuardedChatModel, server: DemoServer) -> None:
        answer = create_agent(model, [weather]).invoke(self.QUESTION)
        assert [message.type for message in answer["messages"]] == ["human", "ai", "tool", "ai"]
        assert answer["messages"][-1].content == "It is sunny in Oslo."
        assert_all_seen(model, server, 2)

    async def test_ainvoke(self, model: GuardedChatModel, server: DemoServer) -> None:
        answer = await create_agent(model, [weather]).ainvoke(self.QUESTION)
        assert answer["messages"][-1].content == "It is sunny in Oslo."
        assert_all_seen(model, server, 2)

    def test_streamed_messages(self, model: GuardedChatModel, server: DemoServer) -> None:
        parts = list(create_agent(model, [weather]).stream(self.QUESTION, stream_mode="messages"))
        text = "".join(part.text for part, _ in parts if part.type == "AIMessageChunk")
        assert text == "It is sunny in Oslo."
        assert_all_seen(model, server, 2)
        assert all(trace["stream"] for trace in model.get_traces())

    async def test_streamed_updates(self, model: GuardedChatModel, server: DemoServer) -> None:
        parts = await _drain(create_agent(model, [weather]).astream(self.QUESTION, stream_mode="updates"))
        assert [next(iter(part)) for part in parts] == ["model", "tools", "model"]
        assert_all_seen(model, server, 2)


def test_an_agents_structured_answer_is_guarded(model: GuardedChatModel, server: DemoServer) -> None:
    server.script(ToolCalls([("City", {"name": "Oslo", "people": 700_000})]))
    agent = create_agent(model, [], response_format=ToolStrategy(City))
    answer = agent.invoke({"messages": [{"role": "user", "content": "Tell me of Oslo"}]})
    assert answer["structured_response"] == City(name="Oslo", people=700_000)
    assert_all_seen(model, server, 1)


class State(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]


async def test_a_langgraph_node_is_guarded(model: GuardedChatModel, server: DemoServer) -> None:
    def blocking(state: State) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    async def waiting(state: State) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph: Any = StateGraph(State)
    graph.add_node("blocking", blocking)
    graph.add_node("waiting", waiting)
    graph.add_edge(START, "blocking")
    graph.add_edge("blocking", "waiting")
    graph.add_edge("waiting", END)
    compiled = graph.compile()
    answer = await compiled.ainvoke({"messages": [HumanMessage(PROMPT)]})
    assert len(answer["messages"]) == 3
    assert_all_seen(model, server, 2)
    await _drain(compiled.astream({"messages": [HumanMessage(PROMPT)]}, stream_mode="messages"))
    assert_all_seen(model, server, 4)


def _chain(model: BaseChatModel) -> Any:
    return (
        ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")]) | model | StrOutputParser()
    )


async def test_an_lcel_chain_is_guarded(model: GuardedChatModel, server: DemoServer) -> None:
    chain, question = _chain(model), {"question": PROMPT}
    text = chain.invoke(question)
    assert text
    assert await chain.ainvoke(question) == text
    assert "".join(chain.stream(question)) == text
    assert "".join(await _drain(chain.astream(question))) == text
    assert chain.batch([question, question]) == [text, text]
    assert await chain.abatch([question, question]) == [text, text]
    assert len(await _drain(chain.astream_events(question, version="v2"))) > 3
    assert_all_seen(model, server, 9)


def test_the_inner_model_is_out_of_reach_of_what_it_binds(model: GuardedChatModel) -> None:
    """No runnable that the guard hands out holds the model behind it."""
    runnables = [model.bind_tools([weather]), model.with_config(tags=["t"])]
    for method in ("json_schema", "function_calling", "json_mode"):
        for include_raw in (False, True):
            runnables.append(model.with_structured_output(City, method=method, include_raw=include_raw))
    for runnable in runnables:
        held = list(_models(runnable))
        assert held
        assert all(isinstance(one, GuardedChatModel) for one in held)


def _models(runnable: Any) -> Iterator[BaseChatModel]:
    """Every chat model in a composed runnable, not looking inside a guarded one."""
    if isinstance(runnable, BaseChatModel):
        yield runnable
    elif isinstance(runnable, BaseModel):
        for value in vars(runnable).values():
            yield from _models(value)
    elif isinstance(runnable, dict | list | tuple):
        for value in runnable.values() if isinstance(runnable, dict) else runnable:
            yield from _models(value)
