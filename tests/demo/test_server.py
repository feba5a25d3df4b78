"""The demo server as its clients see it: answers, streams, faults, and what it counted."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]  # ships no types

from brix_core.demo import (
    BadRequest,
    Behaviour,
    CutStream,
    DemoServer,
    Echo,
    EndlessRepetition,
    JsonReply,
    MalformedJson,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    Reply,
    ServerError,
    SlowFirstToken,
    StalledStream,
    ToolCalls,
)
from brix_core.errors import BrixConfigurationError
from brix_core.tokens import count_messages, tokenizer_for

MODEL = "gpt-4o-mini"
CLAUDE = "claude-opus-4-8"
ASK: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
            "required": ["place", "days"],
        },
    },
}


@pytest.fixture
def client(server: DemoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0, timeout=10) as client:
        yield client


@pytest.fixture
def claude(server: DemoServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.anthropic_base_url, api_key="test", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(server: DemoServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="test", max_retries=0) as client:
        yield client


def _tokens(text: str) -> int:
    return tokenizer_for("gpt-4o").count(text)


def _chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": ASK, **options})


def _stream(client: openai.OpenAI, **options: Any) -> list[Any]:
    with _chat(client, stream=True, **options) as stream:
        return list(stream)


def _text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


class TestAnswers:
    def test_the_default_is_about_the_last_message(self, client: openai.OpenAI) -> None:
        assert _chat(client).choices[0].message.content == 'I heard: "What is the capital of France?"'

    def test_behaviours_are_used_up_in_order_and_the_default_follows(
        self, server: DemoServer, client: openai.OpenAI
    ) -> None:
        server.default = Reply("default")
        server.script(Reply("one"), Reply("two"))

        assert [_chat(client).choices[0].message.content for _ in range(3)] == ["one", "two", "default"]

    def test_an_answer_has_the_prompt_s_exact_count_and_its_own(
        self, server: DemoServer, client: openai.OpenAI
    ) -> None:
        server.script(Reply("Paris is the capital of France."))
        usage = _chat(client).usage

        assert usage.prompt_tokens == count_messages(ASK, tokenizer_for("gpt-4o"))
        assert usage.completion_tokens == _tokens("Paris is the capital of France.")
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert (server.stats.prompt_tokens, server.stats.completion_tokens) == (
            usage.prompt_tokens,
            usage.completion_tokens,
        )
        assert usage.prompt_tokens_details.cached_tokens == 0
        assert usage.completion_tokens_details.reasoning_tokens == 0

    def test_usage_can_be_dictated(self, server: DemoServer, client: openai.OpenAI) -> None:
        server.script(Reply("Hi", usage={"cached_tokens": 5, "reasoning_tokens": 64}), Reply("Hi", usage={}))
        usage = _chat(client).usage

        assert usage.prompt_tokens_details.cached_tokens == 5
        assert usage.completion_tokens_details.reasoning_tokens == 64
        assert usage.completion_tokens == server.requests[0].completion_tokens == _tokens("Hi") + 64
        assert _chat(client).usage is None

    @pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
    def test_max_tokens_cuts_the_answer(self, server: DemoServer, client: openai.OpenAI, limit: str) -> None:
        server.script(Reply("one two three four five"))
        answer = _chat(client, **{limit: 3})

        assert answer.choices[0].message.content == "one two three"
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3

    def test_stop_sequences_end_the_answer(self, server: DemoServer, client: openai.OpenAI) -> None:
        server.script(Reply("one two three four"))
        choice = _chat(client, stop=["four", " three"]).choices[0]

        assert (choice.message.content, choice.finish_reason) == ("one two", "stop")

    @pytest.mark.parametrize("stream", [False, True])
    def test_several_choices_are_all_paid_for(self, server: DemoServer, client: openai.OpenAI, stream: bool) -> None:
        server.default = Reply("Paris, of course")
        if stream:
            chunks = _stream(client, n=3, stream_options={"include_usage": True})
            usage, choices = chunks[-1].usage, {chunk.choices[0].index for chunk in chunks[:-1]}
        else:
            answer = _chat(client, n=3)
            usage, choices = answer.usage, {choice.index for choice in answer.choices}

        assert choices == {0, 1, 2}
        assert usage.completion_tokens == 3 * _tokens("Paris, of course") == server.stats.completion_tokens

    def test_a_tool_is_called_with_arguments_from_its_schema(self, client: openai.OpenAI) -> None:
        question: Any = [{"role": "user", "content": "How is the weather in 'Oslo' for 3 days?"}]
        choice = _chat(client, messages=question, tools=[WEATHER]).choices[0]
        call = choice.message.tool_calls[0]

        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "get_weather",
            {"place": "Oslo", "days": 3},
        )

        result = {"role": "tool", "tool_call_id": call.id, "content": "Rain"}
        history = [*question, choice.message.model_dump(exclude_none=True), result]
        assert _chat(client, messages=history, tools=[WEATHER]).choices[0].message.content == (
            'The tool answered: "Rain"'
        )

    @pytest.mark.parametrize(
        ("choice", "calls"),
        [
            ("none", 0),
            ("auto", 0),
            ("required", 1),
            ({"type": "function", "function": {"name": "get_weather"}}, 1),
        ],
    )
    def test_tool_choice_decides(self, client: openai.OpenAI, choice: Any, calls: int) -> None:
        message = _chat(client, tools=[WEATHER], tool_choice=choice).choices[0].message

        assert len(message.tool_calls or []) == calls

    def test_streamed_tool_calls_add_up_and_are_counted(self, server: DemoServer, client: openai.OpenAI) -> None:
        server.script(ToolCalls([("get_weather", {"place": "Oslo"}), ("now", {})], text="Let me see."))
        with client.chat.completions.stream(
            model=MODEL, messages=ASK, stream_options={"include_usage": True}
        ) as stream:
            answer: Any = stream.get_final_completion()
        calls = [(call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls]

        assert calls == [("get_weather", '{"place":"Oslo"}'), ("now", "{}")]
        sent = ["Let me see.", *(part for call in calls for part in call)]
        assert answer.usage.completion_tokens == sum(map(_tokens, sent)) == server.stats.completion_tokens

    def test_json_is_answered_by_schema_or_by_keys(self, server: DemoServer, client: openai.OpenAI) -> None:
        schema = {
            "type": "object",
            "properties": {
                "kind": {"enum": ["a", "b"]},
                "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 2},
            },
            "required": ["kind", "next", "tags"],
        }
        strict = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        value = json.loads(_chat(client, response_format=strict).choices[0].message.content)
        keys: Any = [{"role": "user", "content": "Answer in JSON with 'setup' and 'punchline' keys."}]
        loose = _chat(client, messages=keys, response_format={"type": "json_object"}).choices[0].message.content

        assert value["kind"] == "a"
        assert value["tags"] == ["sam", "sam"]
        assert set(value["next"]) == set(value)
        assert set(json.loads(loose)) == {"setup", "punchline"}

        server.script(JsonReply({"a": "ü"}), MalformedJson())
        assert _chat(client).choices[0].message.content == '{"a":"ü"}'
        with pytest.raises(json.JSONDecodeError):
            json.loads(_chat(client).choices[0].message.content)


class TestStreams:
    @pytest.mark.parametrize("wanted", [True, False])
    def test_usage_comes_in_a_last_chunk_only_when_asked_for(
        self, server: DemoServer, client: openai.OpenAI, wanted: bool
    ) -> None:
        server.script(Reply("Paris, of course"))
        chunks = _stream(client, **({"stream_options": {"include_usage": True}} if wanted else {}))
        first, last = chunks[0], chunks[-1]

        assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
        assert _text(chunks) == "Paris, of course"
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert bool(last.choices) is not wanted
        assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
        if wanted:
            assert last.usage.completion_tokens == _tokens("Paris, of course")
        record = server.requests[0]
        assert (record.stream, record.outcome, record.completion_tokens) == (
            True,
            "answered",
            _tokens("Paris, of course"),
        )

    def test_the_wire_is_server_sent_events_ended_by_done(self, server: DemoServer) -> None:
        server.script(Reply("Hi"))
        body = {"model": MODEL, "messages": ASK, "stream": True, "stream_options": {"include_usage": True}}
        response = httpx.post(f"{server.base_url}/chat/completions", json=body)
        events = response.text.removesuffix("\n\n").split("\n\n")

        assert response.headers["content-type"].startswith("text/event-stream")
        assert events[-1] == "data: [DONE]"
        assert all('"usage":null' in event for event in events[:-2])

    async def test_async_streams_and_answers(self, server: DemoServer, async_client: openai.AsyncOpenAI) -> None:
        server.default = Reply("Hello there", chunk_delay=0.001)
        answer = await async_client.chat.completions.create(model=MODEL, messages=ASK)
        stream = await async_client.chat.completions.create(model=MODEL, messages=ASK, stream=True)

        assert answer.choices[0].message.content == "Hello there"
        assert _text([chunk async for chunk in stream]) == "Hello there"

    def test_a_slow_first_token_comes_after_the_headers(self, server: DemoServer, client: openai.OpenAI) -> None:
        server.script(SlowFirstToken(0.2, then=Reply("late")), Reply("late", latency=0.2))
        took = []
        for _ in range(2):
            started = time.monotonic()
            with _chat(client, stream=True) as stream:
                opened = time.monotonic() - started
                assert _text(list(stream)) == "late"
            took.append((opened < 0.15, time.monotonic() - started >= 0.2))

        assert took == [(True, True), (False, True)]

    def test_a_cut_stream_breaks_and_counts_what_was_sent(self, server: DemoServer, client: openai.OpenAI) -> None:
        server.script(CutStream(after=3, text="Paris is the capital"))
        chunks: list[Any] = []
        with _chat(client, stream=True) as stream, pytest.raises((httpx.HTTPError, openai.APIError)):
            chunks.extend(stream)

        assert _text(chunks) == "Paris is the"
        record = server.requests[0]
        assert (record.outcome, record.status, record.completion_tokens) == (
            "cut",
            200,
            _tokens("Paris is the"),
        )
        assert (server.stats.failed, server.stats.in_flight) == (1, 0)

    def test_an_endless_stream_ignores_max_tokens_until_the_client_leaves(
        self, server: DemoServer, client: openai.OpenAI
    ) -> None:
        server.script(EndlessRepetition())
        with _chat(client, stream=True, max_tokens=5) as stream:
            seen = [chunk for chunk, _ in zip(stream, range(50), strict=False)]

        assert server.wait_until_idle()
        record = server.requests[0]
        assert record.outcome == "aborted"
        assert 100_000 > record.completion_tokens >= _tokens(_text(seen)) > 100

    def test_endless_repetition_has_an_end_without_a_stream_and_at_its_limit(
        self, server: DemoServer, client: openai.OpenAI
    ) -> None:
        server.default = EndlessRepetition("on ", limit=5)

        assert _chat(client).choices[0].message.content == "on " * 5
        assert _text(_stream(client)) == "on " * 5


class TestDepartures:
    def test_a_client_that_gives_up_is_recorded_without_a_stream(
        self, server: DemoServer, client: openai.OpenAI
    ) -> None:
        server.script(Reply("too late", latency=30))
        with pytest.raises(openai.APITimeoutError):
            _chat(client.with_options(timeout=0.1))

        assert server.wait_until_idle()
        record = server.requests[0]
        assert (record.outcome, record.status, record.completion_tokens) == ("aborted", None, 0)
        assert record.prompt_tokens == count_messages(ASK, tokenizer_for("gpt-4o"))
        assert server.stats.aborted == 1

    @pytest.mark.parametrize("after", [0, 3])
    def test_a_client_that_leaves_a_stalled_stream_is_recorded(
        self, server: DemoServer, client: openai.OpenAI, after: int
    ) -> None:
        server.script(StalledStream(after=after, text="Paris is the capital"))
        got: list[Any] = []
        with (
            _chat(client.with_options(timeout=0.15), stream=True) as stream,
            pytest.raises((httpx.ReadTimeout, openai.APITimeoutError)),
        ):
            got.extend(stream)

        assert server.wait_until_idle()
        assert server.requests[0].outcome == "aborted"
        assert server.requests[0].completion_tokens == _tokens(_text(got))

    async def test_cancelled_tasks_are_recorded(self, server: DemoServer, async_client: openai.AsyncOpenAI) -> None:
        server.default = StalledStream()
        calls = [
            asyncio.ensure_future(async_client.chat.completions.create(model=MODEL, messages=ASK)) for _ in range(3)
        ]
        while server.stats.in_flight < 3:
            await asyncio.sleep(0.005)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

        assert await asyncio.to_thread(server.wait_until_idle)
        assert (server.stats.aborted, server.stats.max_concurrent) == (3, 3)


FAULTS: list[tuple[Behaviour, type[openai.APIStatusError], int, str | None]] = [
    (RateLimited(retry_after="2"), openai.RateLimitError, 429, "rate_limit_exceeded"),
    (RateLimited(status=503), openai.InternalServerError, 503, "rate_limit_exceeded"),
    (QuotaExceeded(), openai.RateLimitError, 429, "insufficient_quota"),
    (ServerError(), openai.InternalServerError, 500, None),
    (ServerError(503, retry_after="1"), openai.InternalServerError, 503, None),
    (Overloaded(), openai.InternalServerError, 529, None),
    (BadRequest(code="context_length_exceeded"), openai.BadRequestError, 400, "context_length_exceeded"),
    (BadRequest(status=401), openai.AuthenticationError, 401, None),
    (SlowFirstToken(0.01, then=ServerError()), openai.InternalServerError, 500, None),
]


class TestRefusals:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(("fault", "kind", "status", "code"), FAULTS)
    def test_faults_are_openai_errors(
        self,
        server: DemoServer,
        client: openai.OpenAI,
        fault: Behaviour,
        kind: type[openai.APIStatusError],
        status: int,
        code: str | None,
        stream: bool,
    ) -> None:
        server.script(fault)
        with pytest.raises(kind) as caught:
            _chat(client, stream=stream)

        assert (caught.value.status_code, caught.value.code) == (status, code)
        assert caught.value.response.headers.get("retry-after") == getattr(fault, "retry_after", None)
        record = server.requests[0]
        assert (record.outcome, record.status, record.prompt_tokens) == ("failed", status, 0)
        assert server.stats.failed == 1

    @pytest.mark.parametrize(
        ("fault", "status", "kind"),
        [
            (RateLimited(retry_after="2"), 429, "rate_limit_error"),
            (ServerError(), 500, "api_error"),
            (Overloaded(), 529, "overloaded_error"),
            (BadRequest(), 400, "invalid_request_error"),
            (BadRequest(status=401), 401, "authentication_error"),
        ],
    )
    def test_faults_are_anthropic_errors(
        self, server: DemoServer, claude: anthropic.Anthropic, fault: Behaviour, status: int, kind: str
    ) -> None:
        server.script(fault)
        with pytest.raises(anthropic.APIStatusError) as caught:
            claude.messages.create(model=CLAUDE, max_tokens=9, messages=ASK)

        body: Any = caught.value.body
        assert (caught.value.status_code, body["error"]["type"]) == (status, kind)

    def test_a_cut_connection_without_a_stream_is_a_connection_error(
        self, server: DemoServer, client: openai.OpenAI
    ) -> None:
        server.script(CutStream())
        with pytest.raises(openai.APIConnectionError):
            _chat(client)

        assert (server.requests[0].outcome, server.requests[0].status) == ("cut", None)

    @pytest.mark.parametrize(
        "body", [b"{", b"[]", b'{"model": "x"}', b'{"model": "x", "messages": [{}], "tools": ["?"]}']
    )
    def test_unreadable_requests_are_refused_and_leave_the_script_alone(
        self, server: DemoServer, client: openai.OpenAI, body: bytes
    ) -> None:
        server.script(Reply("still here"))

        response = httpx.post(f"{server.base_url}/chat/completions", content=body)
        assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
        assert server.stats.failed == 1
        assert _chat(client).choices[0].message.content == "still here"

    @pytest.mark.parametrize("stream", ["false", "true"])
    def test_text_that_is_no_unicode_is_answered_all_the_same(self, server: DemoServer, stream: str) -> None:
        message = r'{"role": "user", "content": "half a \ud83d pair"}'
        body = f'{{"model": "x", "stream": {stream}, "messages": [{message}]}}'

        assert httpx.post(f"{server.base_url}/chat/completions", content=body).status_code == 200
        assert server.stats.answered == 1

    def test_other_paths_are_not_found_and_not_counted(self, server: DemoServer) -> None:
        assert httpx.post(f"{server.base_url}/embeddings", json={}).json()["error"]["message"]
        assert server.stats.requests == 0

    @pytest.mark.parametrize("wrong", [Echo, "Hi", None])
    def test_what_is_no_behaviour_is_refused_at_once(self, server: DemoServer, wrong: Any) -> None:
        with pytest.raises(BrixConfigurationError, match="expected a behaviour"):
            server.script(wrong)
        with pytest.raises(BrixConfigurationError, match="expected a behaviour"):
            server.default = wrong


class TestAnthropic:
    def test_answers_with_usage(self, server: DemoServer, claude: anthropic.Anthropic) -> None:
        server.script(Reply("Paris, of course", usage={"cached_tokens": 4}), Reply("Paris, of course"))
        answers = [
            claude.messages.create(model=CLAUDE, max_tokens=limit, system="Be brief.", messages=ASK)
            for limit in (100, 2)
        ]

        assert [answer.stop_reason for answer in answers] == ["end_turn", "max_tokens"]
        usage = answers[0].usage
        assert usage.cache_read_input_tokens == 4
        assert usage.input_tokens + 4 == answers[1].usage.input_tokens == server.requests[0].prompt_tokens
        assert sum(answer.usage.output_tokens for answer in answers) == server.stats.completion_tokens

    def test_tools_and_stop_sequences(self, server: DemoServer, claude: anthropic.Anthropic) -> None:
        function = WEATHER["function"]
        tool: Any = {"name": "get_weather", "input_schema": function["parameters"]}
        answer = claude.messages.create(
            model=CLAUDE, max_tokens=99, messages=ASK, tools=[tool], tool_choice={"type": "any"}
        )
        block = answer.content[0]
        server.script(Reply("one two three"))
        stopped = claude.messages.create(model=CLAUDE, max_tokens=99, messages=ASK, stop_sequences=[" two"])

        assert answer.stop_reason == "tool_use"
        assert block.type == "tool_use"
        assert block.input == {"place": "sample place", "days": 2}
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " two")

    def test_streams_add_up(self, server: DemoServer, claude: anthropic.Anthropic) -> None:
        server.script(ToolCalls([("now", {"zone": "Oslo"}), ("later", {})], text="Let me see."))
        with claude.messages.stream(model=CLAUDE, max_tokens=99, messages=ASK) as stream:
            message = stream.get_final_message()

        assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
        call: Any = message.content[1]
        assert (call.name, call.input, message.stop_reason) == ("now", {"zone": "Oslo"}, "tool_use")
        assert message.usage.input_tokens == server.requests[0].prompt_tokens
        assert message.usage.output_tokens == server.requests[0].completion_tokens

    async def test_async_answers_and_streams(self, server: DemoServer) -> None:
        server.default = Reply("Hello there")
        async with anthropic.AsyncAnthropic(
            base_url=server.anthropic_base_url, api_key="test", max_retries=0
        ) as claude:
            answer = await claude.messages.create(model=CLAUDE, max_tokens=9, messages=ASK)
            async with claude.messages.stream(model=CLAUDE, max_tokens=9, messages=ASK) as stream:
                text = "".join([part async for part in stream.text_stream])

        first: Any = answer.content[0]
        assert first.text == text == "Hello there"

    def test_cut_and_abandoned_streams_are_recorded(self, server: DemoServer, claude: anthropic.Anthropic) -> None:
        server.script(CutStream(after=2), EndlessRepetition())
        options: Any = {"model": CLAUDE, "max_tokens": 9, "messages": ASK}
        with (
            claude.messages.stream(**options) as stream,
            pytest.raises(Exception, match=r"incomplete|closed"),
        ):
            stream.get_final_text()
        with claude.messages.stream(**options) as stream:
            next(iter(stream.text_stream))

        assert server.wait_until_idle()
        assert [record.outcome for record in server.requests] == ["cut", "aborted"]


class TestLegacyCompletions:
    def test_a_batch_is_answered_prompt_by_prompt(self, server: DemoServer, client: openai.OpenAI) -> None:
        answer = client.completions.create(model=MODEL, prompt=["first", "second"], n=2, max_tokens=50)

        texts = [choice.text for choice in answer.choices]
        assert texts == ['I heard: "first"'] * 2 + ['I heard: "second"'] * 2
        assert answer.usage is not None
        assert answer.usage.completion_tokens == sum(map(_tokens, texts)) == server.stats.completion_tokens

    def test_streams(self, server: DemoServer, client: openai.OpenAI) -> None:
        server.script(Reply("Hello there"))
        with client.completions.create(
            model=MODEL, prompt="Hi", stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks: list[Any] = list(stream)

        assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "Hello there"
        assert chunks[-1].usage.prompt_tokens == _tokens("Hi") == server.requests[0].prompt_tokens


class TestFrameworks:
    def test_llama_index_chats_streams_and_completes(self, server: DemoServer) -> None:
        server.default = Reply("Hello there")
        question = [ChatMessage(role="user", content="Hi")]
        options: Any = {"model": MODEL, "api_base": server.base_url, "api_key": "test", "max_retries": 0}
        with httpx.Client() as http:
            chatting = OpenAILike(is_chat_model=True, http_client=http, **options)
            completing = OpenAILike(is_chat_model=False, http_client=http, **options)
            texts = [
                chatting.chat(question).message.content,
                list(chatting.stream_chat(question))[-1].message.content,
                chatting.complete("Hi").text,
                completing.complete("Hi").text,
                list(completing.stream_complete("Hi"))[-1].text,
            ]

        assert texts == ["Hello there"] * 5
        assert [record.path.removeprefix("/v1/") for record in server.requests] == (
            ["chat/completions"] * 3 + ["completions"] * 2
        )


class TestBook:
    def test_records_tell_the_request_without_credentials(
        self, server: DemoServer, client: openai.OpenAI, claude: anthropic.Anthropic
    ) -> None:
        _chat(client, temperature=0.5, extra_headers={"X-Trace": "7"})
        claude.messages.create(model=CLAUDE, max_tokens=9, messages=ASK)
        first, second = server.requests

        assert (first.index, first.path, first.model, first.stream, first.status) == (
            0,
            "/v1/chat/completions",
            MODEL,
            False,
            200,
        )
        assert first.body["temperature"] == 0.5
        assert first.headers["x-trace"] == "7"
        assert first.started_at <= first.finished_at
        assert second.path == "/v1/messages"
        assert {"authorization", "x-api-key"}.isdisjoint({*first.headers, *second.headers})

    def test_a_reset_forgets_everything_even_what_is_in_flight(self, server: DemoServer, client: openai.OpenAI) -> None:
        server.script(StalledStream(), Reply("never"))
        with _chat(client, stream=True):
            server.default = Reply("never")
            server.reset()
        assert _chat(client).choices[0].message.content.startswith("I heard")
        assert (server.stats.requests, server.stats.aborted, server.requests[0].index) == (1, 0, 0)

    def test_a_hundred_threads_are_all_counted(self, server: DemoServer) -> None:
        server.default = Reply("Hello there", latency=0.1)
        with (
            openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0) as client,
            ThreadPoolExecutor(100) as pool,
        ):
            answers = list(pool.map(lambda number: _chat(client, stream=number % 2 == 0), range(100)))
            usage = [answer.usage for answer in answers[1::2]]
            texts = [_text(list(stream)) for stream in answers[::2]]

        assert texts == ["Hello there"] * 50
        stats = server.stats
        assert (stats.requests, stats.answered, stats.in_flight) == (100, 100, 0)
        assert stats.completion_tokens == 2 * sum(entry.completion_tokens for entry in usage)
        assert stats.prompt_tokens == 2 * sum(entry.prompt_tokens for entry in usage)
        assert 10 < stats.max_concurrent <= 100
        assert sorted(record.index for record in server.requests) == list(range(100))

    def test_old_records_are_dropped_and_sums_stay(self) -> None:
        with DemoServer(history=2) as server:
            for number in range(3):
                body = {"model": MODEL, "messages": [{"role": "user", "content": str(number)}]}
                httpx.post(f"{server.base_url}/chat/completions", json=body)

            assert [record.index for record in server.requests] == [1, 2]
            assert server.stats.requests == 3


class TestLifecycle:
    def test_stopping_breaks_off_what_is_in_flight_and_leaves_nothing_behind(self) -> None:
        before = threading.active_count()
        server = DemoServer()
        server.start()
        port = int(server.anthropic_base_url.rpartition(":")[2])
        server.default = StalledStream()
        with (
            openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0) as client,
            _chat(client, stream=True) as stream,
        ):
            next(iter(stream))
            server.stop()
            with pytest.raises((httpx.HTTPError, openai.APIError)):
                list(stream)

        assert threading.active_count() == before
        assert (server.requests[0].outcome, server.stats.in_flight) == ("cut", 0)
        with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(("127.0.0.1", port))
        with pytest.raises(RuntimeError, match="not running"):
            _ = server.base_url

    async def test_it_is_an_async_context_manager_and_starts_again(self) -> None:
        server = DemoServer()
        for _ in range(2):
            async with server, httpx.AsyncClient() as client:
                response = await client.get(f"{server.base_url}/models")
                assert "gpt-4o" in [row["id"] for row in response.json()["data"]]
                with pytest.raises(RuntimeError, match="running already"):
                    server.start()

    def test_it_says_nothing(self, capfd: pytest.CaptureFixture[str]) -> None:
        with DemoServer() as server:
            server.script(CutStream(), ServerError(), CutStream())
            for stream in (False, False, True):
                body = {"model": MODEL, "messages": ASK, "stream": stream}
                with pytest.raises(httpx.HTTPError):
                    httpx.post(f"{server.base_url}/chat/completions", json=body).raise_for_status()

        assert capfd.readouterr() == ("", "")
