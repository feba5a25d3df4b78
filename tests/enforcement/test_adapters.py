"""Every adapter, in one suite: what it asks, what it gives, and how it fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from brix_core import BrixConfigurationError, MemoryStore
from brix_core.demo import (
    BadRequest,
    CutStream,
    DemoServer,
    JsonReply,
    MalformedJson,
    RateLimited,
    Reply,
    ServerError,
    StalledStream,
    ToolCalls,
)
from brix_core.enforcement import EnforcementEngine, FailoverChain, PydanticValidator, RetryPolicy
from brix_core.enforcement.adapters import (
    BaseLLMAdapter,
)
from brix_core.failures import classify
from tests.enforcement.adapter_suite import (
    ADAPTERS,
    ANYTHING,
    KEY,
    KINDS,
    Make,
    Person,
    all_adapters,
    anthropic_adapter,
    body_of,
    each,
    every_adapter,
    every_kind,
    gemini_adapter,
    in_loop,
    ollama_adapter,
    openai_adapter,
    text_from,
)
from tests.support.raw_http import http, raw_server


@pytest.fixture(scope="module")
def made(demo_server: DemoServer) -> Iterator[dict[Make, BaseLLMAdapter]]:
    with all_adapters(demo_server) as adapters:
        yield adapters


@pytest.fixture
def adapter(request: pytest.FixtureRequest, server: DemoServer, made: dict[Make, BaseLLMAdapter]) -> BaseLLMAdapter:
    return made[request.param]


class TestGenerate:
    @each
    @pytest.mark.parametrize("kind", ["generate", "generate_sync"])
    @in_loop
    async def test_an_answer_has_all_that_is_known_about_it(
        self, server: DemoServer, adapter: BaseLLMAdapter, kind: str
    ) -> None:
        server.default = Reply("Oslo.", usage={"prompt_tokens": 100, "completion_tokens": 7}, latency=0.02)
        begun = datetime.now(UTC)
        answer = await adapter.generate("Capital?") if kind == "generate" else adapter.generate_sync("Capital?")
        assert (answer.output, answer.provider, answer.model) == ("Oslo.", adapter.provider, adapter.model)
        assert (answer.tokens_used, answer.input_tokens, answer.output_tokens) == (107, 100, 7)
        assert not answer.tokens_estimated
        assert 20 <= answer.latency_ms <= (datetime.now(UTC) - begun) / timedelta(milliseconds=1)
        assert begun <= answer.timestamp <= datetime.now(UTC)
        assert answer.finish_reason
        assert answer.raw is not None
        assert KEY not in answer.model_dump_json()
        assert server.stats.requests == 1

    @every_adapter
    @in_loop
    async def test_what_is_not_reported_is_counted_and_never_zero(self, server: DemoServer, make: Make) -> None:
        server.default = Reply("one two three", usage={})
        async with make(server) as adapter:
            answer = await adapter.generate("Count to three.")
        assert answer.tokens_estimated
        assert answer.input_tokens >= 8
        assert 3 <= answer.output_tokens < 10
        assert answer.tokens_used == answer.input_tokens + answer.output_tokens

    @each
    @every_kind
    @in_loop
    async def test_parameters_have_one_name_everywhere(
        self, server: DemoServer, adapter: BaseLLMAdapter, kind: str
    ) -> None:
        server.default = Reply("one two three four five")
        text = await text_from(adapter, kind, "Count", max_tokens=3, temperature=0.25, top_p=0.75)
        assert text == "one two three"
        body = json.dumps(body_of(server))
        assert ("0.25" in body, "0.75" in body) == ((adapter.provider != "anthropic"),) * 2

    @each
    @in_loop
    async def test_messages_are_taken_as_they_are(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        talk = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": "Two?"},
        ]
        assert (await adapter.generate(talk)).output == 'I heard: "Two?"'
        assert "Be brief." in json.dumps(body_of(server))
        assert talk[0] == {"role": "system", "content": "Be brief."}

    @each
    @every_kind
    @in_loop
    async def test_an_unknown_parameter_is_told_and_nothing_is_sent(
        self, server: DemoServer, adapter: BaseLLMAdapter, kind: str
    ) -> None:
        with pytest.raises(BrixConfigurationError, match="temperatur"):
            await text_from(adapter, kind, temperatur=1)
        assert server.stats.requests == 0

    @each
    @pytest.mark.parametrize("prompt", [None, 3, [], {"role": "user"}, b"Hi", ["Hi"], [{"content": "Hi"}]])
    @in_loop
    async def test_what_is_no_prompt_is_told(self, server: DemoServer, adapter: BaseLLMAdapter, prompt: Any) -> None:
        with pytest.raises(BrixConfigurationError, match="prompt"):
            await adapter.generate(prompt)
        assert server.stats.requests == 0

    def test_newer_models_of_openai_get_the_only_name_they_know(self, server: DemoServer) -> None:
        with openai_adapter(server, model="gpt-5-mini") as adapter:
            adapter.generate_sync("Hi", max_tokens=50)
            assert body_of(server)["max_completion_tokens"] == 50
            assert "max_tokens" not in body_of(server)
        with openai_adapter(server) as adapter:
            adapter.generate_sync("Hi", max_tokens=50)
            assert body_of(server)["max_tokens"] == 50

    def test_what_claude_has_no_more_is_left_out_with_one_warning(
        self, server: DemoServer, made: dict[Make, BaseLLMAdapter], caplog: pytest.LogCaptureFixture
    ) -> None:
        adapter = made[anthropic_adapter]
        for _ in range(2):
            adapter.generate_sync("Hi", model="claude-opus-5", temperature=0.2, top_k=3)
            assert body_of(server).keys() == {"model", "messages", "max_tokens"}
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
            "temperature is not sent to claude-opus-5: the API has no such parameter any more",
            "top_k is not sent to claude-opus-5: the API has no such parameter any more",
        ]
        adapter.generate_sync("Hi", extra_body={"temperature": 0.2})
        assert body_of(server)["temperature"] == 0.2

    def test_anthropic_is_sent_the_cap_it_wants(self, server: DemoServer) -> None:
        with anthropic_adapter(server) as adapter:
            adapter.generate_sync("Hi")
        assert body_of(server)["max_tokens"] == 8_192


class TestSchemas:
    @each
    @every_kind
    @in_loop
    async def test_a_schema_is_sent_in_the_provider_s_own_way(
        self, server: DemoServer, adapter: BaseLLMAdapter, kind: str
    ) -> None:
        answer = Person.model_validate_json(await text_from(adapter, kind, "It is 'Bob', 30", Person))
        assert (answer.name, answer.age) == ("Bob", 30)
        body = json.dumps(body_of(server))
        assert '"age"' in body
        assert "Format of the answer" not in body
        assert server.stats.requests == 1

    @each
    @in_loop
    async def test_what_cannot_be_sent_so_is_written_into_the_prompt(
        self, server: DemoServer, adapter: BaseLLMAdapter
    ) -> None:
        await adapter.generate("Hi", ANYTHING)
        assert "Format of the answer" in json.dumps(body_of(server))

    @each
    @in_loop
    async def test_the_answer_is_given_as_it_is(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        server.default = MalformedJson()
        assert (await adapter.generate("Hi", Person)).output == '{"answer": "unfinished'
        assert server.stats.requests == 1

    @each
    @in_loop
    async def test_what_is_no_schema_is_told(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        with pytest.raises(BrixConfigurationError, match="response_schema"):
            await adapter.generate("Hi", int)
        assert server.stats.requests == 0


class TestStream:
    @each
    @in_loop
    async def test_the_text_comes_piece_by_piece(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        server.default = Reply("Oslo,\u2028the capital", chunk_size=5)
        pieces = [piece async for piece in adapter.stream("Capital?")]
        assert "".join(pieces) == "Oslo,\u2028the capital"
        assert len(pieces) == 4
        assert list(adapter.stream_sync("Capital?")) == pieces
        assert [record.stream for record in server.requests] == [True, True]

    @each
    @in_loop
    async def test_nothing_is_sent_before_it_is_asked_for(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        stream, blocking = adapter.stream("Hi"), adapter.stream_sync("Hi")
        assert server.stats.requests == 0
        await anext(aiter(stream))
        next(iter(blocking))
        assert server.stats.requests == 2
        await stream.aclose()  # type: ignore[attr-defined]
        blocking.close()  # type: ignore[attr-defined]

    @each
    @in_loop
    async def test_calls_of_tools_are_not_text(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        server.default = ToolCalls([("now", {"zone": "UTC"})], text="Let me see.")
        assert await text_from(adapter, "stream") == "Let me see."

    @each
    @in_loop
    async def test_leaving_early_closes_the_connection(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        server.default = StalledStream(after=2)
        async with contextlib.aclosing(adapter.stream("Hi")) as stream:  # type: ignore[type-var]
            async for _ in stream:
                break
        assert await asyncio.to_thread(server.wait_until_idle)
        blocking: Any = adapter.stream_sync("Hi")
        next(blocking)
        blocking.close()
        assert await asyncio.to_thread(server.wait_until_idle)
        assert [record.outcome for record in server.requests] == ["aborted", "aborted"]


class TestFailures:
    @each
    @every_kind
    @pytest.mark.parametrize(
        ("fault", "status", "retryable"),
        [(RateLimited(retry_after="7"), 429, True), (ServerError(500), 500, True), (BadRequest(), 400, False)],
    )
    @in_loop
    async def test_a_refusal_is_raised_once_with_all_it_says(
        self, server: DemoServer, adapter: BaseLLMAdapter, kind: str, fault: Any, status: int, retryable: bool
    ) -> None:
        server.default = fault
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the provider's own, whichever
            await text_from(adapter, kind)
        failure = classify(caught.value)
        assert (failure.status, failure.retryable, failure.billable) == (status, retryable, False)
        assert failure.retry_after == (7.0 if status == 429 else None)
        assert server.stats.requests == 1

    @each
    @every_kind
    @in_loop
    async def test_a_cut_connection_is_raised_once(
        self, server: DemoServer, adapter: BaseLLMAdapter, kind: str
    ) -> None:
        server.default = CutStream(after=2)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the provider's own, whichever
            await text_from(adapter, kind)
        assert classify(caught.value).kind == "connection"
        assert server.stats.requests == 1

    @every_adapter
    @in_loop
    async def test_silence_is_a_timeout(self, server: DemoServer, make: Make) -> None:
        server.default = StalledStream(after=0)
        async with make(server, timeout=0.1) as adapter:
            for kind in KINDS:
                with pytest.raises(Exception) as caught:  # noqa: PT011 - the provider's own, whichever
                    await text_from(adapter, kind)
                assert classify(caught.value).kind == "timeout"
        assert 1 <= server.stats.requests <= len(KINDS)  # on a busy machine it is the connection that takes too long

    @every_adapter
    @in_loop
    async def test_nobody_there_is_a_connection_never_made(self, make: Make) -> None:
        async with make("http://127.0.0.1:9") as adapter:
            for kind in KINDS:
                with pytest.raises(Exception) as caught:  # noqa: PT011 - the provider's own, whichever
                    await text_from(adapter, kind)
                failure = classify(caught.value)
                assert (failure.kind, failure.billable) == ("connection", False)

    @every_adapter
    @in_loop
    async def test_a_gateway_s_page_is_no_answer(self, make: Make) -> None:
        # What the SDKs make of a stream without events is theirs.
        kinds = KINDS if make in (gemini_adapter, ollama_adapter) else KINDS[:2]
        page = http("<html>Hello from the proxy</html>", kind="text/html")
        with raw_server(*[page] * len(kinds)) as raw:
            async with make(raw.url) as adapter:
                for kind in kinds:
                    with pytest.raises(Exception):  # noqa: B017, PT011 - whichever
                        await text_from(adapter, kind)
            assert len(raw.seen) == len(kinds)


class TestEngine:
    """What the guards count is what the server sees, whichever adapter they are around."""

    @each
    @in_loop
    async def test_retries_and_heals_are_the_guards(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        policy = RetryPolicy(max_attempts=4, base_delay=0.001, max_delay=0.01)
        engine = EnforcementEngine(adapter, PydanticValidator(), retry_policy=policy, store=MemoryStore())
        server.script(RateLimited(retry_after="0.001"), ServerError(), CutStream(after=1), MalformedJson())
        server.default = JsonReply({"name": "Bob", "age": 30})
        result = await engine.enforce("Who?", Person)
        assert (result.data, result.retry_count) == (Person(name="Bob", age=30), 1)
        assert result.attempts == server.stats.requests == 5
        assert len(engine.get_traces()[0]["attempts"]) == 5

    @each
    @in_loop
    async def test_partial_objects_come_as_they_grow(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        engine = EnforcementEngine(adapter, PydanticValidator(), store=MemoryStore())
        server.default = Reply('{"name": "Bob Barker", "age": 30}', chunk_size=5)
        items = [item async for item in engine.enforce_stream("Who?", Person)]
        assert {"name": "Bob"} in items[:-1] or {"name": "Bob B"} in items[:-1]
        assert items[-1].data == Person(name="Bob Barker", age=30)
        assert list(engine.enforce_stream("Who?", Person))[-1].success
        assert server.stats.requests == sum(len(trace["attempts"]) for trace in engine.get_traces()) == 2

    @in_loop
    async def test_a_chain_asks_all_its_providers_alike(
        self, server: DemoServer, made: dict[Make, BaseLLMAdapter]
    ) -> None:
        policy = RetryPolicy(max_attempts=1)
        chain = FailoverChain([made[make] for make in ADAPTERS])
        engine = EnforcementEngine(chain, PydanticValidator(), retry_policy=policy, store=MemoryStore())
        server.script(ServerError(), ServerError(), ServerError())
        result = await engine.enforce("It is 'Bob', 30", Person, temperature=0.25, max_tokens=100, top_p=0.75)
        assert (result.data, result.generation.provider) == (Person(name="Bob", age=30), "ollama")
        assert [record.path for record in server.requests] == [
            "/v1/chat/completions",
            "/v1/messages",
            "/v1beta/models/gemini-2.5-flash:generateContent",
            "/api/chat",
        ]
        assert server.requests[-1].body["options"] == {"temperature": 0.25, "top_p": 0.75, "num_predict": 100}
        assert result.attempts == 4
