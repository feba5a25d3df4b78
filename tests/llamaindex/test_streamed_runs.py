"""Streams that LlamaIndex begins when they are read: the session and the run in which they were asked for count."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.schema import QueryBundle
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

import brix_core
from brix_core import BrixTimeoutError
from brix_core.demo import DemoServer, Reply, StalledStream, ToolCalls
from brix_llamaindex import GuardedQueryEngine, guard
from brix_llamaindex.limits import run_limit
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import attempts
from tests.support.schemas import OSLO, City
from tests.support.virtual import VirtualClock
from tests.support.words import FITTING, MUSEUM
from tests.support.words_llamaindex import WordEmbedding

PRICES = {MODEL: (1e-6, 1e-6)}


@pytest.fixture
def index() -> VectorStoreIndex:
    documents = [Document(text=text, metadata={"file_name": name}) for name, text in MUSEUM.items()]
    return VectorStoreIndex.from_documents(documents, embed_model=WordEmbedding())


async def read(response: Any) -> str:
    """The text of a streamed response, blocking or asynchronous."""
    if hasattr(response, "async_response_gen"):
        return "".join([part async for part in response.async_response_gen()])
    return "".join(response.response_gen)


async def ask(engine: Any, how: str) -> Any:
    """A response that has not been read yet."""
    if how in ("query", "aquery"):
        made = getattr(engine, how)(FITTING)
    else:
        bundle = QueryBundle(FITTING)
        made = getattr(engine, how)(bundle, engine.retrieve(bundle))
    return await made if how.startswith("a") else made


WAYS = ("query", "aquery", "synthesize", "asynthesize")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", ["guard", "GuardedQueryEngine", "refine"])
async def test_a_streamed_query_is_charged_to_the_session_that_asked(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, kind: str, how: str
) -> None:
    options: Any = {"max_cost_usd": 1.0, "prices": PRICES}
    engine: Any
    if kind == "GuardedQueryEngine":
        given = {"streaming": True}
        engine = GuardedQueryEngine(
            index, llm=openai_like(), score="similarity", min_score=0.5, engine_options=given, **options
        )
    else:
        mode = "refine" if kind == "refine" else "compact"
        bare = index.as_query_engine(llm=openai_like(), streaming=True, response_mode=mode, similarity_top_k=2)
        engine = guard(bare, **options)
    with brix_core.session("ann"):
        response = await ask(engine, how)
    with brix_core.session("bob"):
        assert await read(response)
    calls = 2 if kind == "refine" else 1
    assert {trace["session_id"] for trace in engine.get_traces()} == {"ann"}
    charged = [trace for trace in engine.get_traces("ann") if trace.get("guard") != "retrieval"]
    assert sum(len(trace["attempts"]) for trace in charged) == server.stats.requests == calls
    assert engine.brix.context.session_cost_usd == 0.0
    with brix_core.session("ann"):
        assert engine.brix.context.session_cost_usd > 0.0


async def test_what_was_asked_in_no_session_stays_in_none(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    engine = guard(index.as_query_engine(llm=openai_like(), streaming=True))
    response: Any = engine.query(FITTING)
    with brix_core.session("bob"):
        assert "".join(response.response_gen)
    (trace,) = engine.get_traces()
    assert trace["session_id"] == engine.brix.context.session_id != "bob"
    assert server.stats.requests == 1


async def test_streams_that_are_read_side_by_side_keep_their_sessions(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    engine = guard(index.as_query_engine(llm=openai_like(), streaming=True))
    responses = []
    for user in ("ann", "bob", "cleo"):
        with brix_core.session(user):
            responses.append(await engine.aquery(FITTING))
    await asyncio.gather(*map(read, reversed(responses)))
    assert sorted(trace["session_id"] for trace in engine.get_traces()) == ["ann", "bob", "cleo"]
    assert attempts(engine) == server.stats.requests == 3


async def test_a_stream_that_is_dropped_is_closed_and_its_session_left(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    server.default = Reply("word " * 200, chunk_delay=0.01)
    engine = guard(index.as_query_engine(llm=openai_like(), streaming=True))
    with brix_core.session("ann"):
        response: Any = engine.query(FITTING)
        aresponse: Any = await engine.aquery(FITTING)
    next(response.response_gen)
    await anext(aresponse.response_gen)
    assert engine.brix.context.session_id != "ann"  # between two chunks the reader is where it was
    response.response_gen.close()
    await aresponse.response_gen.aclose()
    del aresponse
    for _ in range(100):  # the event loop closes what LlamaIndex's generators leave open
        if len(engine.get_traces("ann")) == 2:
            break
        await asyncio.sleep(0.01)
    assert [trace["outcome"] for trace in engine.get_traces("ann")] == ["abandoned", "abandoned"]
    assert attempts(engine) == server.stats.requests == 2


async def test_a_streamed_answer_of_a_sub_engine_belongs_to_the_run(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    server.script(Reply('[{"choice": 1, "reason": "fits"}]'), Reply("On Mondays."))
    tool = QueryEngineTool.from_defaults(
        index.as_query_engine(llm=openai_like(), streaming=True), description="The museum."
    )
    bare = RouterQueryEngine(
        selector=LLMSingleSelector.from_defaults(llm=openai_like()), query_engine_tools=[tool], llm=openai_like()
    )
    engine = guard(bare)
    with brix_core.session("ann"):
        response = engine.query(FITTING)
    assert await read(response) == "On Mondays."
    assert len(engine.get_traces("ann")) == attempts(engine) == server.stats.requests == 2


@pytest.mark.parametrize("how", ["stream_chat", "astream_chat"])
async def test_a_chat_engine_around_a_streaming_query_engine_belongs_to_the_session(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, how: str
) -> None:
    bare = CondenseQuestionChatEngine.from_defaults(
        query_engine=index.as_query_engine(llm=openai_like(), streaming=True),
        llm=openai_like(),
        memory=ChatMemoryBuffer.from_defaults(token_limit=3_000),
    )
    chat = guard(bare)
    with brix_core.session("ann"):
        response = chat.stream_chat(FITTING) if how == "stream_chat" else await chat.astream_chat(FITTING)
    text = (
        "".join(response.response_gen)
        if how == "stream_chat"
        else "".join([part async for part in response.async_response_gen()])
    )
    assert text
    assert {trace["session_id"] for trace in chat.get_traces()} == {"ann"}
    assert attempts(chat) == server.stats.requests > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex's
@pytest.mark.parametrize("how", ["stream_chat", "astream_chat"])
async def test_a_structured_llm_streams_for_the_session_that_asked(
    openai_like: Make, server: DemoServer, how: str
) -> None:
    server.default = ToolCalls([("City", OSLO.model_dump())])
    llm = guard(openai_like(), max_cost_usd=1.0, prices=PRICES)
    structured = llm.as_structured_llm(City)
    assert isinstance(structured, StructuredLLM)
    asked = [ChatMessage("Describe Oslo")]
    with brix_core.session("ann"):
        stream: Any = structured.stream_chat(asked) if how == "stream_chat" else await structured.astream_chat(asked)
    asked.clear()  # what was asked is what counts
    with brix_core.session("bob"):
        found = list(stream) if how == "stream_chat" else [chunk async for chunk in stream]
    assert found[-1].raw == OSLO
    assert {trace["session_id"] for trace in llm.get_traces()} == {"ann"}
    assert attempts(llm) == server.stats.requests == 1
    assert "Describe Oslo" in str(server.requests[0].body)


# --- the time of a run -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
async def test_no_call_of_a_streamed_query_begins_after_its_time(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, how: str
) -> None:
    clock = VirtualClock()
    bare = index.as_query_engine(llm=openai_like(), streaming=True)
    engine = guard(bare, total_timeout=10, clock=clock)
    response = await ask(engine, how)
    clock.advance(9)
    assert await read(response)
    response = await ask(engine, how)
    clock.advance(11)
    with pytest.raises(BrixTimeoutError, match=r"total_timeout=10 s") as caught:
        await read(response)
    assert (caught.value.kind, caught.value.limit) == ("total", 10.0)
    assert attempts(engine) == server.stats.requests == 1


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_stream_under_way_is_cut_when_the_run_is_over(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, how: str
) -> None:
    server.default = StalledStream(after=2)
    engine = guard(index.as_query_engine(llm=openai_like(), streaming=True), total_timeout=0.4)
    before = time.monotonic()
    response = await ask(engine, how)
    with pytest.raises(BrixTimeoutError, match=r"total_timeout=0\.4 s") as caught:
        await read(response)
    assert time.monotonic() - before < 2.0
    assert (caught.value.kind, caught.value.limit) == ("total", 0.4)
    assert "per_call_timeout" not in str(caught.value)
    assert attempts(engine) == server.stats.requests == 1


async def test_a_plain_query_names_the_time_that_was_set(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    server.default = StalledStream(after=0)
    engine = guard(index.as_query_engine(llm=openai_like()), total_timeout=0.3)
    with pytest.raises(BrixTimeoutError, match=r"total_timeout=0\.3 s") as caught:
        engine.query(FITTING)
    assert (caught.value.kind, caught.value.limit) == ("total", 0.3)


async def test_an_outer_run_holds_for_a_stream_that_is_read_in_it(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    clock = VirtualClock()
    inner = guard(index.as_query_engine(llm=openai_like(), streaming=True), total_timeout=100, clock=clock)
    response: Any = inner.query(FITTING)
    with run_limit(5, clock):
        clock.advance(6)
        with pytest.raises(BrixTimeoutError, match="total_timeout=5 s"):
            await read(response)
    assert server.stats.requests == 0
