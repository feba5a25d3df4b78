"""The output guard inside the guards of a wrapped client: over the real SDKs and real HTTP, every entry point."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from brix_core import (
    BRIX,
    BrixClient,
    BrixConfigurationError,
    BrixRegulatedError,
    BrixSchemaError,
    BrixTimeoutError,
    MemoryStore,
)
from brix_core.demo import CutStream, DemoServer, Reply, ServerError, StalledStream, ToolCalls
from brix_core.endpoints.sources import aclose

DOSE = {"name": "dose", "description": "Names a dose.", "patterns": ["lethal dose"], "weight": 1.0}
SPEC = {
    "name": "clinic",
    "version": "2.0",
    "output_signals": [
        {**DOSE, "signal_type": "block"},
        {"name": "cure", "description": "Promises a cure.", "patterns": ["guaranteed cure"], "weight": 0.6},
    ],
}
BAD = "Well, the letha\u013a d\u043ese is three grams."
GOOD = "Letting hal dose off is lethargic, and that is all."
MODELS = {"OpenAI": "gpt-4o-mini", "AsyncOpenAI": "gpt-4o-mini", "Anthropic": "claude-haiku-4-5"}
PRICES = dict.fromkeys(MODELS.values(), (1e-6, 1e-6))

in_loop = pytest.mark.asyncio(loop_scope="module")
every_client = pytest.mark.parametrize("name", MODELS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(demo_server: DemoServer) -> AsyncIterator[dict[str, Any]]:
    made: dict[str, Any] = {
        "OpenAI": openai.OpenAI(api_key="test", base_url=demo_server.base_url),
        "AsyncOpenAI": openai.AsyncOpenAI(api_key="test", base_url=demo_server.base_url),
        "Anthropic": anthropic.Anthropic(api_key="test", base_url=demo_server.anthropic_base_url),
    }
    yield made
    for client in made.values():
        await aclose(client)


class Bench:
    """Wrapped clients, and what their consumer saw."""

    def __init__(self, server: DemoServer, clients: dict[str, Any]) -> None:
        self.server = server
        self.clients = clients
        self.client: BrixClient
        self.seen = ""

    def wrap(self, name: str = "OpenAI", **options: Any) -> BrixClient:
        defaults = {"regulated_spec": SPEC, "enable_output_guard": True, "store": MemoryStore()}
        self.client = BRIX.wrap(self.clients[name], model=MODELS[name], **{**defaults, **options})
        return self.client

    async def ask(self, way: str, **params: Any) -> str:
        self.seen = ""
        if way == "complete":
            self.seen = str(await self.client.complete("Hi", **params))
        elif way == "complete_sync":
            self.seen = str(self.client.complete_sync("Hi", **params))
        elif way == "stream":
            with self.client.stream("Hi", **params) as stream:
                for piece in stream:
                    self.seen += str(piece)
        else:
            async with self.client.stream("Hi", **params) as stream:
                async for piece in stream:
                    self.seen += str(piece)
        return self.seen

    @property
    def trace(self) -> dict[str, Any]:
        return self.client.get_traces()[0]

    def check_counts(self) -> None:
        assert self.server.wait_until_idle()
        attempts = sum(len(trace["attempts"]) for trace in self.client.get_traces())
        assert attempts == len(self.server.requests) > 0


@pytest.fixture
def bench(server: DemoServer, clients: dict[str, Any]) -> Bench:
    return Bench(server, clients)


every_way = pytest.mark.parametrize("way", ["complete", "complete_sync", "stream", "astream"])
both_streams = pytest.mark.parametrize("way", ["stream", "astream"])


@every_client
@every_way
@in_loop
async def test_an_answer_that_is_blocked_reaches_nobody(bench: Bench, name: str, way: str) -> None:
    bench.wrap(name, max_retries=2, max_cost_usd=1.0, prices=PRICES)
    sizes = (1, 2, 3, 5, 8, 50) if "stream" in way else (4,)
    for size in sizes:
        bench.server.script(Reply(BAD, chunk_size=size))
        with pytest.raises(BrixRegulatedError, match=r"output signal 'dose' of the spec clinic 2\.0") as caught:
            await bench.ask(way)
        assert "Well, the ".startswith(bench.seen)
        assert caught.value.partial == bench.seen == bench.trace["partial_text"]
        assert (caught.value.rule, caught.value.guard) == ("dose", "regulated")
        (decision,) = (one for one in bench.trace["decisions"] if one["guard"] == "regulated")
        assert (decision["decision"], decision["rule"]) == ("output_blocked", "dose")
        assert decision["decision_id"] == caught.value.decision_id
        assert "grams" not in json.dumps(bench.trace)
        assert bench.trace["cost_usd"] > 0
        assert bench.client.context.metadata["regulated_result"].response.startswith("the answer was stopped")
    bench.check_counts()
    assert len(bench.server.requests) == len(sizes)


@every_client
@every_way
@in_loop
async def test_a_harmless_answer_arrives_whole(bench: Bench, name: str, way: str) -> None:
    bench.wrap(name)
    for size in (1, 3, 50):
        bench.server.script(Reply(GOOD, chunk_size=size))
        assert await bench.ask(way) == GOOD
        result = bench.client.context.metadata["regulated_result"]
        assert not result.output_result.output_blocked
    bench.server.script(Reply("A guaranteed cure."))
    assert await bench.ask(way) == "A guaranteed cure."
    assert bench.client.context.metadata["regulated_result"].output_result.output_risk_score == 0.6
    bench.check_counts()


@every_client
@both_streams
@in_loop
async def test_arguments_of_tool_calls_are_answers_too(bench: Bench, name: str, way: str) -> None:
    bench.wrap(name)
    for arguments in ({"query": "the lethal dose"}, {"query": "lethal\ndose"}, {"q": ["lethal", "d\u00f6se"]}):
        bench.server.script(ToolCalls([("search", arguments)], text="Let me see."))
        with pytest.raises(BrixRegulatedError):
            await bench.ask(way)
        assert "Let me see.".startswith(bench.seen)
    bench.server.script(ToolCalls([("search", {"query": "less"})], text="Let me see."))
    assert await bench.ask(way) == "Let me see."
    bench.check_counts()


@both_streams
@in_loop
async def test_what_is_blocked_is_neither_retried_nor_asked_of_another_model(bench: Bench, way: str) -> None:
    bench.wrap(max_retries=3, fallbacks=["gpt-4o"], circuit_breaker=True)
    bench.server.script(Reply("Lethal dose"))
    with pytest.raises(BrixRegulatedError):
        await bench.ask(way)
    assert bench.seen == ""
    bench.check_counts()
    assert len(bench.server.requests) == 1


@both_streams
@in_loop
async def test_a_stream_that_fails_while_all_is_held_back_is_tried_again(bench: Bench, way: str) -> None:
    bench.wrap(max_retries=2, max_backoff=0.001)
    bench.server.script(ServerError(), CutStream(after=1, text="lethal weapons"), Reply(GOOD))
    assert await bench.ask(way) == GOOD
    bench.check_counts()
    assert len(bench.server.requests) == 3


@every_way
@in_loop
async def test_a_time_limit_shows_no_more_than_may_be_shown(bench: Bench, way: str) -> None:
    limits = {"idle_timeout": 0.1, "first_token_timeout": 0.4} if "stream" in way else {"per_call_timeout": 0.2}
    bench.wrap("AsyncOpenAI" if way == "astream" else "OpenAI", **limits, on_timeout="return_partial")
    bench.server.script(
        StalledStream(after=5, text="It is the lethal whale."),
        StalledStream(after=5, text="It's the lethal dose of it."),
    )
    assert await bench.ask(way) == "It is the lethal wha"
    with pytest.raises(BrixRegulatedError):
        await bench.ask(way)
    assert "It's the ".startswith(bench.seen)
    bench.check_counts()


@both_streams
@in_loop
async def test_the_error_of_a_time_limit_tells_what_was_delivered(bench: Bench, way: str) -> None:
    bench.wrap(idle_timeout=0.1, first_token_timeout=0.4)
    bench.server.script(StalledStream(after=4, text="It is so: lethal dose"))
    with pytest.raises(BrixTimeoutError) as caught:
        await bench.ask(way)
    assert caught.value.partial == bench.seen == bench.trace["partial_text"] == "It is so"


class Advice(BaseModel):
    text: str
    grams: int


@every_way
@in_loop
async def test_answers_that_do_not_fit_a_schema_are_not_shown_in_its_error(bench: Bench, way: str) -> None:
    bench.wrap(response_schema=Advice, max_schema_retries=1, stream_mode="validated")
    said = json.dumps({"text": "the lethal dose"})
    bench.server.default = Reply(said)
    with pytest.raises(BrixRegulatedError) as caught:
        await bench.ask(way)
    assert caught.value.__cause__ is None
    assert bench.seen == ""
    # What is read as a stream under the hood is stopped before it is asked for again.
    assert len(bench.server.requests) == (1 if "stream" in way else 2)
    bench.server.script(Reply('{"text": "drink"}'), Reply('{"text": "water"}'))
    with pytest.raises(BrixSchemaError):
        await bench.ask(way)
    bench.check_counts()


@both_streams
@in_loop
async def test_several_answers_are_not_streamed_at_a_time(bench: Bench, way: str) -> None:
    bench.wrap()
    with pytest.raises(BrixConfigurationError, match="n=2; leave n out, or do not stream"):
        await bench.ask(way, n=2)
    assert not bench.server.requests
    bench.server.script(Reply("The lethal dose"))
    with pytest.raises(BrixRegulatedError):
        await bench.ask("complete", n=2)
    bench.check_counts()


@both_streams
@in_loop
async def test_rules_by_meaning_hold_a_stream_back_to_its_end(bench: Bench, way: str) -> None:
    rule = {
        "name": "door",
        "description": "Tells the door code.",
        "examples": {"positive": ["The code of the door is 1234."], "threshold": 0.2},
        "weight": 1.0,
        "signal_type": "block",
    }
    bench.wrap(regulated_spec={"name": "house", "output_signals": [rule]}, regulated_embedder="lexical")
    bench.server.script(Reply("The code of the door is 9876."), Reply("Rain, said the radio."))
    with pytest.raises(BrixRegulatedError):
        await bench.ask(way)
    assert bench.seen == ""
    assert await bench.ask(way) == "Rain, said the radio."
    bench.check_counts()


@every_way
@in_loop
async def test_samples_that_are_blocked_are_not_in_the_result(bench: Bench, way: str) -> None:
    risk = {"name": "pills", "description": "About pills.", "patterns": ["hi"], "weight": 0.5}
    bench.wrap(regulated_spec={**SPEC, "risk_signals": [risk]}, regulated_embedder="lexical")
    bench.server.script(Reply(BAD), Reply(GOOD), Reply("Either."))
    with suppress(BrixRegulatedError):
        await bench.ask(way)
    assert "grams" not in repr(bench.client.context.metadata)
    assert "grams" not in json.dumps(bench.client.get_traces())
    assert bench.client.context.metadata["regulated_result"].samples == (GOOD,)
    bench.check_counts()


@in_loop
async def test_many_streams_at_once_are_told_apart(bench: Bench) -> None:
    client = bench.wrap("AsyncOpenAI")
    bench.server.default = Reply(BAD, chunk_size=2)

    async def read(number: int) -> str:
        seen = ""
        try:
            async with client.stream(f"Hi {number}") as stream:
                async for piece in stream:
                    seen += str(piece)
        except BrixRegulatedError:
            return seen
        raise AssertionError(f"not stopped: {seen}")

    for seen in await asyncio.gather(*map(read, range(20))):
        assert "Well, the ".startswith(seen)
    bench.check_counts()


@both_streams
@in_loop
async def test_who_leaves_early_frees_what_the_call_held(bench: Bench, way: str) -> None:
    client = bench.wrap(max_cost_usd=1.0, prices=PRICES, session_id="s")
    bench.server.script(Reply("One two three. The lethal dose", chunk_size=4))
    if way == "stream":
        with client.stream("Hi") as stream:
            bench.seen = str(next(iter(stream)))
    else:
        async with client.stream("Hi") as stream:
            bench.seen = str(await anext(aiter(stream)))
    assert bench.trace["outcome"] == "abandoned"
    assert bench.trace["partial_text"] == bench.seen
    assert client._pipeline.store.balance("budget:s").reserved == 0
    bench.check_counts()
