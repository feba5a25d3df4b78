"""Whole agents and query engines again from a recording, with the server stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from brix_core import BrixReplayError
from brix_core.audit.recordings import read
from brix_core.demo import DemoServer, JsonReply, Reply, ToolCalls
from brix_llamaindex import guard


class City(BaseModel):
    name: str
    population: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def llm(url: str, **options: Any) -> Any:
    like = OpenAILike(
        model="gpt-4o-mini", api_key="test", api_base=url, is_chat_model=True, is_function_calling_model=True
    )
    return guard(like, **options)


async def run_agent(kind: Any, url: str, prompt: str = "Weather in Oslo?", **options: Any) -> list[Any]:
    handler = kind(tools=[get_weather], llm=llm(url, **options)).run(prompt)
    deltas = [event.delta async for event in handler.stream_events() if getattr(event, "delta", None)]
    return [str(await handler), deltas]


ACTION = Reply('Thought: I need a tool.\nAction: get_weather\nAction Input: {"city": "Oslo"}\n')
ANSWER = Reply("Thought: I can answer.\nAnswer: It is sunny.")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "replies"),
    [
        (FunctionAgent, (ToolCalls([("get_weather", {"city": "Oslo"})]), Reply("It is sunny."))),
        (ReActAgent, (ACTION, ANSWER)),
    ],
)
def test_an_agent_runs_again_without_a_server_and_one_changed_word_is_named(
    tmp_path: Path, kind: Any, replies: Any
) -> None:
    file = tmp_path / "agent.jsonl"
    with DemoServer() as server:
        server.script(*replies)
        url = server.base_url
        recorded = asyncio.run(run_agent(kind, url, record=file, max_cost_usd=1.0))
        assert len(server.requests) == 2
    assert asyncio.run(run_agent(kind, url, replay=file, max_cost_usd=1.0)) == recorded
    assert recorded[0] == "It is sunny."
    with pytest.raises(BrixReplayError, match=r"content differs from character 11 on.*'Weather in Rome\?'"):
        asyncio.run(run_agent(kind, url, "Weather in Rome?", replay=file))


@pytest.mark.parametrize("way", ["chat", "complete"])
def test_streams_come_again_chunk_by_chunk(tmp_path: Path, way: str) -> None:
    file = tmp_path / "stream.jsonl"

    def deltas(url: str, **options: Any) -> list[Any]:
        guarded = llm(url, **options)
        chunks = guarded.stream_complete("Count") if way == "complete" else guarded.stream_chat(_hello())
        return [(chunk.delta, str(chunk)) for chunk in chunks]

    with DemoServer() as server:
        server.script(Reply("one two three four five six"))
        url = server.base_url
        recorded = deltas(url, record=file)
    assert deltas(url, replay=file) == recorded
    assert len(recorded) > 3


def _hello() -> Any:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage("Hello")]


def test_long_streams_are_not_recorded_once_for_each_chunk(tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    with DemoServer() as server:
        server.script(Reply("word " * 2_000))
        chunks = list(llm(server.base_url, record=file).stream_complete("Go on"))
        url = server.base_url
    text = str(chunks[-1])
    written = sum(len(chunk[1][1]["text"]) for chunk in read(file)[0].chunks or [])
    assert written == len(text)
    assert str(list(llm(url, replay=file).stream_complete("Go on"))[-1]) == text


def test_a_query_engine_runs_again(tmp_path: Path) -> None:
    file = tmp_path / "rag.jsonl"

    def ask(url: str, **options: Any) -> str:
        documents = [Document(text="Oslo has 700,000 inhabitants.")]
        index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(8))
        return str(index.as_query_engine(llm=llm(url, **options)).query("How many people live in Oslo?"))

    with DemoServer() as server:
        server.script(Reply("700,000"))
        url = server.base_url
        recorded = ask(url, record=file)
    assert ask(url, replay=file) == recorded == "700,000"


def test_structured_output_comes_again(tmp_path: Path) -> None:
    file = tmp_path / "city.jsonl"
    oslo = City(name="Oslo", population=7)
    with DemoServer() as server:
        server.script(JsonReply(oslo.model_dump()))
        url = server.base_url
        one = llm(url, record=file, response_schema=City).complete("Oslo?")
    again = llm(url, replay=file, response_schema=City).complete("Oslo?")
    assert again.text == one.text
    assert City.model_validate_json(again.text) == oslo
