"""The output guard in LangChain: no part of what is blocked reaches a consumer, an event or a callback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool

from brix_core import BrixRegulatedError
from brix_core.demo import DemoServer, Reply, ToolCalls
from brix_langchain import BrixMiddleware, guard
from tests.langchain.conftest import Make
from tests.langchain.support import OPTIONS, assert_all_seen, attempts, needs_v3

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:langchain_core._api.deprecation.LangChainDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

RULE = {"name": "dose", "description": "Names a dose.", "patterns": ["lethal dose"], "weight": 1.0}
GUARDS: Any = {
    **OPTIONS,
    "regulated_spec": {"name": "clinic", "output_signals": [{**RULE, "signal_type": "block"}]},
    "enable_output_guard": True,
}
PROMPT = "Tell me something"
BAD = "Well, the letha\u013a d\u043ese is three grams."
GOOD = "Letting hal dose off is lethargic, and that is all."
SIZES = (1, 2, 3, 5, 50)
SAID = ("\u013a", "\u043e", "grams")
"""What stands in what is blocked, and nowhere else."""


class Listener(BaseCallbackHandler):
    """Remembers all that LangChain tells of a model's answers."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        self.told += [str(token), repr(chunk)]

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.told.append(repr(response))

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.told += [str(error), repr(kwargs.get("response"))]

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.told.append(repr(outputs))


def assert_counted(model: Any, server: DemoServer, requests: int) -> None:
    """The guards' account of requests is the server's."""
    assert server.wait_until_idle()
    assert attempts(model) == len(server.requests) == requests


def _text(piece: Any) -> str:
    return str(piece.text if isinstance(piece, BaseMessage) else piece)


def by_stream(model: Any, config: Any) -> Iterator[str]:
    for chunk in model.stream(PROMPT, config):
        yield _text(chunk)


async def by_astream(model: Any, config: Any) -> AsyncIterator[str]:
    async for chunk in model.astream(PROMPT, config):
        yield _text(chunk)


def by_events(version: Any) -> Callable[[Any, Any], AsyncIterator[str]]:
    async def events(model: Any, config: Any) -> AsyncIterator[str]:
        async for event in model.astream_events(PROMPT, config, version=version):
            if event["event"] == "on_chat_model_stream":
                yield _text(event["data"]["chunk"])
            else:
                assert not any(part in repr(event) for part in SAID)

    return events


async def by_v3(model: Any, config: Any) -> AsyncIterator[str]:
    stream = await model.astream_events(PROMPT, config, version="v3")
    async for piece in stream.text:
        yield piece


def by_v3_blocking(model: Any, config: Any) -> Iterator[str]:
    yield from model.stream_events(PROMPT, config, version="v3").text


def by_invoke(model: Any, config: Any) -> Iterator[str]:
    yield _text(model.invoke(PROMPT, config))


async def by_ainvoke(model: Any, config: Any) -> AsyncIterator[str]:
    yield _text(await model.ainvoke(PROMPT, config))


def by_batch(model: Any, config: Any) -> Iterator[str]:
    yield _text(model.batch([PROMPT], config)[0])


STREAMED = {
    "stream": by_stream,
    "astream": by_astream,
    "astream_events v1": by_events("v1"),
    "astream_events v2": by_events("v2"),
}
V3 = [pytest.param(by_v3, id="astream_events v3", marks=needs_v3),
      pytest.param(by_v3_blocking, id="stream_events v3", marks=needs_v3)]  # fmt: skip
WHOLE = {"invoke": by_invoke, "ainvoke": by_ainvoke, "batch": by_batch}
every_stream = pytest.mark.parametrize("way", [*(pytest.param(way, id=name) for name, way in STREAMED.items()), *V3])
every_way = pytest.mark.parametrize(
    "way", [*(pytest.param(way, id=name) for name, way in (STREAMED | WHOLE).items()), *V3]
)


class Reader:
    """Reads answers, and what was told of them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.listener = Listener()
        self.seen = ""

    async def read(self, way: Any) -> str:
        self.seen = ""
        pieces = way(self.model, {"callbacks": [self.listener]})
        if hasattr(pieces, "__aiter__"):
            async for piece in pieces:
                self.seen += piece
        else:
            for piece in pieces:
                self.seen += piece
        return self.seen

    async def check_stopped(self, way: Any, before: str = "Well, the ") -> None:
        with pytest.raises(BrixRegulatedError, match="output signal 'dose'"):
            await self.read(way)
        assert before.startswith(self.seen)
        for told in self.listener.told:
            assert not any(part in told for part in SAID), told


@every_way
async def test_an_answer_that_is_blocked_reaches_nobody(chat: Make, server: DemoServer, way: Any) -> None:
    model = guard(chat(), **GUARDS)
    reader = Reader(model)
    for size in SIZES:
        server.script(Reply(BAD, chunk_size=size))
        await reader.check_stopped(way)
        trace = model.get_traces()[0]
        assert trace["decisions"][-1]["decision"] == "output_blocked"
        assert not any(part in json.dumps(trace, ensure_ascii=False) for part in SAID)
    assert_counted(model, server, len(SIZES))


@every_way
async def test_a_harmless_answer_arrives_whole(chat: Make, server: DemoServer, way: Any) -> None:
    model = guard(chat(), **GUARDS)
    reader = Reader(model)
    for size in SIZES:
        server.script(Reply(GOOD, chunk_size=size))
        assert await reader.read(way) == GOOD
    assert_all_seen(model, server, len(SIZES))


@every_way
async def test_a_model_that_streams_by_itself_tells_nobody_of_what_is_held_back(
    chat: Make, server: DemoServer, way: Any
) -> None:
    model = guard(chat(streaming=True), **GUARDS)
    reader = Reader(model)
    for size in (2, 50):
        server.script(Reply(BAD, chunk_size=size))
        await reader.check_stopped(way)
    server.script(Reply(GOOD, chunk_size=3))
    assert await reader.read(way) == GOOD
    assert_counted(model, server, 3)


class Chatty(BaseChatModel):
    """Tells its callbacks each word before it is given to anybody."""

    @property
    def _llm_type(self) -> str:
        return "chatty"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        for word in BAD.split():
            if run_manager is not None:
                run_manager.on_llm_new_token(word)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(BAD))])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        for word in BAD.split():
            if run_manager is not None:
                run_manager.on_llm_new_token(word)
            yield ChatGenerationChunk(message=AIMessageChunk(content=word + " "))


@pytest.mark.parametrize("way", [by_invoke, by_stream, by_ainvoke, by_astream])
async def test_callbacks_are_not_told_by_the_model_itself(way: Any) -> None:
    await Reader(guard(Chatty(), regulated_spec=GUARDS["regulated_spec"], enable_output_guard=True)).check_stopped(way)


@every_stream
async def test_arguments_of_tool_calls_are_held_back_too(chat: Make, server: DemoServer, way: Any) -> None:
    @tool
    def search(query: str) -> str:
        """Search."""
        return "found"

    model = guard(chat(), **GUARDS)
    reader = Reader(model.bind_tools([search]))
    for arguments in ({"query": "the letha\u013a d\u043ese of grams"}, {"query": "lethal\ndose"}):
        server.script(ToolCalls([("search", arguments)], text="Let me see."))
        await reader.check_stopped(way, "Let me see.")
    assert_counted(model, server, 2)


async def by_chain(model: Any, config: Any) -> AsyncIterator[str]:
    chain = ChatPromptTemplate.from_template("{question}") | model | StrOutputParser()
    async for piece in chain.astream({"question": PROMPT}, config):
        yield piece


async def by_agent(model: Any, config: Any) -> AsyncIterator[str]:
    asked: Any = {"messages": [("user", PROMPT)]}
    async for message, _ in create_agent(model, []).astream(asked, config, stream_mode="messages"):
        yield _text(message)


@pytest.mark.parametrize("way", [by_chain, by_agent])
async def test_chains_and_agents_are_stopped_as_well(chat: Make, server: DemoServer, way: Any) -> None:
    model = guard(chat(), **GUARDS)
    reader = Reader(model)
    server.script(Reply(BAD, chunk_size=2), Reply(GOOD, chunk_size=2))
    await reader.check_stopped(way)
    assert await reader.read(way) == GOOD
    assert_counted(model, server, 2)


async def test_the_middleware_holds_back_what_the_agent_gives(chat: Make, server: DemoServer) -> None:
    options = {name: GUARDS[name] for name in ("regulated_spec", "enable_output_guard")}
    reader = Reader(create_agent(chat(), [], middleware=[BrixMiddleware(**options)]))

    async def by_run(run: Any, config: Any) -> AsyncIterator[str]:
        asked = {"messages": [("user", PROMPT)]}
        async for message, _ in run.astream(asked, stream_mode="messages"):
            yield _text(message)

    server.script(Reply(BAD, chunk_size=2), Reply(GOOD, chunk_size=2))
    await reader.check_stopped(by_run)
    assert await reader.read(by_run) == GOOD
    assert server.wait_until_idle()
    assert len(server.requests) == 2


async def test_many_streams_at_once_are_told_apart(chat: Make, server: DemoServer) -> None:
    server.default = Reply(BAD, chunk_size=3)
    reader = Reader(guard(chat(), **GUARDS))
    others = [Reader(reader.model) for _ in range(10)]
    await asyncio.gather(*(other.check_stopped(by_astream) for other in others))
    assert_counted(reader.model, server, 10)
