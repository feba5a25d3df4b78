"""Whole agents and chains again from a recording, with the server stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

from brix_core import BrixConfigurationError, BrixReplayError
from brix_core.demo import DemoServer, JsonReply, Reply, ToolCalls
from brix_langchain import guard


class City(BaseModel):
    name: str
    population: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def model(url: str, **options: Any) -> Any:
    return guard(ChatOpenAI(model="gpt-4o-mini", api_key="test", base_url=url, max_retries=0), **options)  # type: ignore[arg-type]


def told(messages: list[BaseMessage]) -> list[Any]:
    return [
        (message.type, message.content, message.tool_calls, message.usage_metadata, _providers(message))
        if isinstance(message, AIMessage)
        else (message.type, message.content)
        for message in messages
    ]


def _providers(message: AIMessage) -> dict[str, Any]:
    """Its metadata without those of this very call."""
    return {name: value for name, value in message.response_metadata.items() if name != "brix"}


def run_agent(url: str, prompt: str = "Weather in Oslo?", **options: Any) -> list[Any]:
    agent = create_agent(model(url, **options), tools=[get_weather], system_prompt="Be brief.")
    return told(agent.invoke({"messages": [("user", prompt)]})["messages"])


def test_an_agent_runs_again_without_a_server_and_one_changed_word_is_named(tmp_path: Path) -> None:
    file = tmp_path / "agent.jsonl"
    with DemoServer() as server:
        server.script(ToolCalls([("get_weather", {"city": "Oslo"})]), Reply("It is sunny."))
        url = server.base_url
        recorded = run_agent(url, record=file, max_retries=2, max_cost_usd=1.0)
        assert len(server.requests) == 2
    # The server has stopped: a request would fail.
    assert run_agent(url, replay=file, max_retries=2, max_cost_usd=1.0) == recorded
    assert recorded[-1][1] == "It is sunny."
    difference = r"messages\[1\].content differs from character 11 on.*'Weather in Rome\?'"
    with pytest.raises(BrixReplayError, match=difference):
        run_agent(url, "Weather in Rome?", replay=file)


@pytest.mark.parametrize("way", ["stream", "astream", "events"])
def test_streamed_tokens_come_again_one_by_one(tmp_path: Path, way: str) -> None:
    file = tmp_path / "chain.jsonl"

    async def tokens(url: str, **options: Any) -> list[Any]:
        chat = model(url, **options)
        if way == "stream":
            return [chunk.content for chunk in chat.stream("Count")]
        if way == "astream":
            return [chunk.content async for chunk in chat.astream("Count")]
        events = chat.astream_events("Count", version="v2")
        return [event["data"]["chunk"].content async for event in events if event["event"] == "on_chat_model_stream"]

    with DemoServer() as server:
        server.script(Reply("one two three four five six"))
        url = server.base_url
        recorded = asyncio.run(tokens(url, record=file))
    assert asyncio.run(tokens(url, replay=file)) == recorded
    assert len(recorded) > 3


def _texts(documents: list[Document]) -> str:
    return " ".join(document.page_content for document in documents)


def rag_chain(url: str, **options: Any) -> Any:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=16))
    store.add_documents([Document("Oslo has 700,000 inhabitants."), Document("Bergen is rainy.")])
    prompt = ChatPromptTemplate.from_template("Answer from: {context}\nQuestion: {question}")
    inputs = {"context": store.as_retriever() | _texts, "question": RunnablePassthrough()}
    return inputs | prompt | model(url, **options) | StrOutputParser()


def test_a_rag_chain_runs_again(tmp_path: Path) -> None:
    file = tmp_path / "rag.jsonl"
    questions = [f"How many people live in city {number}?" for number in range(8)]
    with DemoServer() as server:
        url = server.base_url
        recorded = rag_chain(url, record=file).batch(questions)
        assert len(server.requests) == 8
    assert rag_chain(url, replay=file).batch(list(reversed(questions))) == list(reversed(recorded))


def test_structured_output_tools_and_string_models(tmp_path: Path) -> None:
    file, other, third = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    with DemoServer() as server:
        url = server.base_url
        server.script(JsonReply({"name": "Oslo", "population": 7}), JsonReply({"name": "Oslo", "population": 8}))
        one = model(url, record=file, response_schema=City).invoke("Oslo?")
        two = model(url, record=other).with_structured_output(City).invoke("Oslo?")
        text = guard(OpenAI(model="gpt-3.5-turbo-instruct", api_key="test", base_url=url), record=third).invoke("Hi")
    assert model(url, replay=file, response_schema=City).invoke("Oslo?") == one == City(name="Oslo", population=7)
    assert model(url, replay=other).with_structured_output(City).invoke("Oslo?") == two
    again = guard(OpenAI(model="gpt-3.5-turbo-instruct", api_key="test", base_url=url), replay=third)
    assert again.invoke("Hi") == text != ""


def test_whole_runs_are_neither_recorded_nor_replayed(tmp_path: Path, server: DemoServer) -> None:
    chain = ChatPromptTemplate.from_template("{x}") | ChatOpenAI(
        model="gpt-4o-mini", api_key="test", base_url=server.base_url, max_retries=0
    )
    for options in ({"record": tmp_path / "x.jsonl"}, {"replay": tmp_path}):
        with pytest.raises(BrixConfigurationError, match="guard the model inside"):
            guard(chain, **options)
    logged = guard(chain, log_path=tmp_path / "log")
    logged.invoke({"x": "Hello"})
    assert logged.get_traces()[0]["outcome"] == "ok"
