"""The output guard in LlamaIndex: no part of what is blocked reaches a consumer, in no field of any chunk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import AgentStream, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.tools import FunctionTool

from brix_core import BrixRegulatedError
from brix_core.demo import DemoServer, Reply, ToolCalls
from brix_llamaindex import guard
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import HOOKS, STREAMED, attempts, decided
from tests.support.words import FITTING, MUSEUM
from tests.support.words_llamaindex import WordEmbedding

RULE = {"name": "dose", "description": "Names a dose.", "patterns": ["lethal dose"], "weight": 1.0}
GUARDS: Any = {
    "regulated_spec": {"name": "clinic", "output_signals": [{**RULE, "signal_type": "block"}]},
    "enable_output_guard": True,
    "max_retries": 2,
    "max_cost_usd": 1.0,
    "prices": {MODEL: (1e-6, 1e-6)},
}
BAD = "Well, the letha\u013a d\u043ese is three grams."
GOOD = "Letting hal dose off is lethargic, and that is all."
SIZES = (1, 2, 3, 5, 50)
SAID = ("\u013a", "\u043e", "grams")
"""What stands in what is blocked, and nowhere else."""


def assert_counted(model: Any, server: DemoServer, requests: int) -> None:
    """The guards' account of requests is the server's."""
    assert server.wait_until_idle()
    assert attempts(model) == len(server.requests) == requests


every_hook = pytest.mark.parametrize("hook", HOOKS)
every_stream = pytest.mark.parametrize("hook", STREAMED)


class Reader:
    """Reads answers, and keeps every chunk."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.chunks: list[Any] = []

    async def read(self, hook: str, **kwargs: Any) -> str:
        """The last chunk's text."""
        self.chunks = []
        async for chunk in self._answers(hook, kwargs):
            self.chunks.append(chunk)
        last = self.chunks[-1]
        return str(last.text if "complete" in hook else last.message.content)

    async def _answers(self, hook: str, kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        asked: Any = [ChatMessage("Hello")] if "chat" in hook else "Hello"
        result = getattr(self.llm, hook)(asked, **kwargs)
        result = await result if hook.startswith("a") else result
        if "stream" not in hook:
            yield result
        elif hook.startswith("a"):
            async for chunk in result:
                yield chunk
        else:
            for chunk in result:
                yield chunk

    @property
    def delivered(self) -> str:
        return "".join(chunk.delta or "" for chunk in self.chunks)

    async def check_stopped(self, hook: str, before: str = "Well, the ", **kwargs: Any) -> None:
        with pytest.raises(BrixRegulatedError, match="output signal 'dose'"):
            await self.read(hook, **kwargs)
        assert before.startswith(self.delivered)
        for chunk in self.chunks:
            # Of OpenAI's chunks LlamaIndex shares parts: what comes later must not show in them either.
            assert not any(part in repr(chunk) for part in SAID)


@every_hook
async def test_an_answer_that_is_blocked_reaches_nobody(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(), **GUARDS)
    reader = Reader(llm)
    for size in SIZES:
        server.script(Reply(BAD, chunk_size=size))
        await reader.check_stopped(hook)
        assert decided(llm, "regulated") == ["output_blocked"]
        assert not any(part in json.dumps(llm.get_traces()[0], ensure_ascii=False) for part in SAID)
    assert_counted(llm, server, len(SIZES))


@every_hook
async def test_a_harmless_answer_arrives_whole(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(), **GUARDS)
    reader = Reader(llm)
    for size in SIZES:
        server.script(Reply(GOOD, chunk_size=size))
        assert await reader.read(hook) == GOOD
        assert "stream" not in hook or reader.delivered == GOOD
    assert_counted(llm, server, len(SIZES))


@pytest.mark.parametrize("hook", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_arguments_of_tool_calls_are_held_back_too(openai_like: Make, server: DemoServer, hook: str) -> None:
    def search(query: str) -> str:
        """Search."""
        return "found"

    tools = [FunctionTool.from_defaults(search).metadata.to_openai_tool()]
    llm = guard(openai_like(), **GUARDS)
    reader = Reader(llm)
    for query in ("what letha\u013a d\u043ese, in grams", "so, lethal\ndose of grams"):
        server.script(ToolCalls([("search", {"query": query})], text="Let me see."))
        await reader.check_stopped(hook, "Let me see.", tools=tools)
    server.script(ToolCalls([("search", {"query": "a whale that is lethal"})], text="Let me see."))
    assert await reader.read(hook, tools=tools) == "Let me see."
    calls = llm.get_tool_calls_from_response(reader.chunks[-1])
    assert calls[0].tool_kwargs == {"query": "a whale that is lethal"}
    assert_counted(llm, server, 3)


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_streamed_query_is_stopped(openai_like: Make, server: DemoServer, how: str) -> None:
    documents = [Document(text=text, metadata={"file_name": name}) for name, text in MUSEUM.items()]
    index = VectorStoreIndex.from_documents(documents, embed_model=WordEmbedding())
    llm = guard(openai_like(), **GUARDS)
    engine = index.as_query_engine(llm=llm, streaming=True, similarity_top_k=1)
    server.default = Reply(BAD, chunk_size=2)
    seen: list[str] = []

    async def ask() -> None:
        response: Any = engine.query(FITTING) if how == "query" else await engine.aquery(FITTING)
        if how == "query":
            for piece in response.response_gen:
                seen.append(piece)
        else:
            async for piece in response.async_response_gen():
                seen.append(piece)

    with pytest.raises(BrixRegulatedError):
        await ask()
    assert "Well, the ".startswith("".join(seen))
    assert_counted(llm, server, 1)


async def test_a_chat_engine_is_stopped(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), **GUARDS)
    engine = SimpleChatEngine.from_defaults(llm=llm)
    server.script(Reply(GOOD, chunk_size=3), Reply(BAD, chunk_size=3))
    response = await engine.astream_chat("Hello")
    assert "".join([piece async for piece in response.async_response_gen()]) == GOOD
    with pytest.raises(BrixRegulatedError):
        engine.chat("Hello again")
    assert_counted(llm, server, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of LlamaIndex
async def test_an_agent_is_stopped(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), **GUARDS)
    server.default = Reply(BAD, chunk_size=2)
    handler = FunctionAgent(tools=[], llm=llm).run("Hello")
    seen: list[str] = []

    async def follow() -> None:
        async for event in handler.stream_events():
            if isinstance(event, AgentStream):
                seen.append(event.delta)
                assert not any(part in repr(event) for part in SAID)
        await handler

    with pytest.raises(BrixRegulatedError):
        await follow()
    assert "Well, the ".startswith("".join(seen))
    assert_counted(llm, server, 1)


async def test_many_streams_at_once_are_told_apart(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), **GUARDS)
    server.default = Reply(BAD, chunk_size=3)
    await asyncio.gather(*(Reader(llm).check_stopped("astream_chat") for _ in range(10)))
    assert_counted(llm, server, 10)
