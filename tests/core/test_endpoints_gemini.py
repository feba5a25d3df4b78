"""What the Gemini endpoint sends, and how it reads what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from brix_core import BrixConfigurationError, Usage
from brix_core.call import CallResponse, ToolCall
from brix_core.demo import BadRequest, CutStream, DemoServer, Overloaded, RateLimited, Reply, ServerError, ToolCalls
from brix_core.endpoints import GeminiEndpoint, ProviderError, StreamCutError, UnreadableAnswerError
from brix_core.endpoints.gemini_request import response_json_schema
from brix_core.failures import classify
from brix_core.structured.response_schema import ResponseSchema
from tests.support.raw_http import KINDS, USER, ask, begun, drive, guards, http, raw_server

MODEL = "gemini-2.5-flash"
KEY = "AIza-very-secret"
PNG = "data:image/png;base64,iVBORw0KGgo="
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
DECLARED = {"name": "get_weather", "description": "Weather.", "parametersJsonSchema": PARAMETERS}

every_kind = pytest.mark.parametrize("kind", KINDS)


class City(BaseModel):
    name: str
    people: int


@pytest.fixture
def gemini(server: DemoServer) -> Iterator[GeminiEndpoint]:
    endpoint = GeminiEndpoint(MODEL, api_key=KEY, base_url=server.gemini_base_url)
    yield endpoint
    endpoint.http.close()


def at(url: str, model: str = MODEL) -> GeminiEndpoint:
    return GeminiEndpoint(model, api_key=KEY, base_url=url)


def sent(server: DemoServer, endpoint: GeminiEndpoint, messages: Any = USER, **params: Any) -> dict[str, Any]:
    pipe = guards()
    pipe.call(begun(pipe, endpoint, "call", messages, **params))
    return dict(server.requests[-1].body)


def said(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts), "role": "model"}, "index": 0, **more}]}


class TestRequests:
    @pytest.mark.parametrize(
        ("params", "config"),
        [
            ({}, None),
            ({"temperature": 0.2, "top_p": 0.9, "top_k": 5}, {"temperature": 0.2, "topP": 0.9, "topK": 5}),
            ({"max_tokens": 50}, {"maxOutputTokens": 50}),
            ({"max_output_tokens": 50, "seed": 7}, {"maxOutputTokens": 50, "seed": 7}),
            ({"stop": "END", "temperature": None}, {"stopSequences": ["END"]}),
            ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}},
                {"responseMimeType": "application/json", "responseJsonSchema": PARAMETERS},
            ),
            ({"thinking_config": {"thinkingBudget": 0}}, {"thinkingConfig": {"thinkingBudget": 0}}),
            (
                {"max_tokens": 9, "extra_body": {"generationConfig": {"maxOutputTokens": 8, "topK": 1}}},
                {"maxOutputTokens": 8, "topK": 1},
            ),
        ],
    )
    def test_parameters_stand_where_the_api_has_them(
        self, server: DemoServer, gemini: GeminiEndpoint, params: dict[str, Any], config: Any
    ) -> None:
        body = sent(server, gemini, **params)
        assert body.pop("generationConfig", None) == config
        assert body == {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}
        assert gemini.requested_cap(params) == (config or {}).get("maxOutputTokens")

    def test_what_is_known_of_the_api_alone_is_sent_beside(self, server: DemoServer, gemini: GeminiEndpoint) -> None:
        body = sent(server, gemini, safety_settings=[{"category": "X"}], extra_body={"labels": {"a": "b"}})
        assert (body["safetySettings"], body["labels"]) == ([{"category": "X"}], {"a": "b"})

    @pytest.mark.parametrize(
        ("choice", "calling"),
        [
            (None, None),
            ("auto", {"mode": "AUTO"}),
            ("required", {"mode": "ANY"}),
            ("none", {"mode": "NONE"}),
            (
                {"type": "function", "function": {"name": "get_weather"}},
                {"mode": "ANY", "allowedFunctionNames": ["get_weather"]},
            ),
        ],
    )
    def test_tools_are_declared(self, server: DemoServer, gemini: GeminiEndpoint, choice: Any, calling: Any) -> None:
        body = sent(server, gemini, tools=[TOOL, {"googleSearch": {}}], tool_choice=choice)
        assert body["tools"] == [{"functionDeclarations": [DECLARED]}, {"googleSearch": {}}]
        assert body.get("toolConfig", {}).get("functionCallingConfig") == calling
        assert gemini.schemas({"tools": [TOOL]}) == [TOOL]

    def test_a_conversation_with_images_and_tools_is_converted(
        self, server: DemoServer, gemini: GeminiEndpoint
    ) -> None:
        signed = {**CALL, "id": "c2", "extra_content": {"google": {"thought_signature": "sig"}}}
        talk = [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": PNG}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL, signed]},
            {"role": "tool", "tool_call_id": "c1", "content": '{"degrees": 3}'},
            {"role": "tool", "tool_call_id": "c2", "content": "rain"},
            {"role": "assistant", "content": "It rains."},
            {"role": "user", "content": "Thanks"},
        ]
        body = sent(server, gemini, talk, tools=[TOOL])
        assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}
        called = {"name": "get_weather", "args": {"city": "Oslo"}}
        assert body["contents"] == [
            {
                "role": "user",
                "parts": [{"text": "Look:"}, {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}],
            },
            {
                "role": "model",
                "parts": [
                    {"functionCall": {"id": "c1", **called}},
                    {"functionCall": {"id": "c2", **called}, "thoughtSignature": "sig"},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"id": "c1", "name": "get_weather", "response": {"degrees": 3}}},
                    {"functionResponse": {"id": "c2", "name": "get_weather", "response": {"output": "rain"}}},
                ],
            },
            {"role": "model", "parts": [{"text": "It rains."}]},
            {"role": "user", "parts": [{"text": "Thanks"}]},
        ]

    def test_ids_that_gemini_did_not_give_are_not_sent_back(self, server: DemoServer, gemini: GeminiEndpoint) -> None:
        server.script(ToolCalls([("get_weather", {"city": "Oslo"})]))
        pipe = guards()
        call = pipe.call(begun(pipe, gemini, tools=[TOOL])).tool_calls[0]
        named = {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
        talk = [
            *USER,
            {"role": "assistant", "tool_calls": [named]},
            {"role": "tool", "tool_call_id": call.id, "content": "3"},
        ]
        body = sent(server, gemini, talk, tools=[TOOL])
        assert body["contents"][1]["parts"] == [{"functionCall": {"name": "get_weather", "args": {"city": "Oslo"}}}]
        assert body["contents"][2]["parts"] == [
            {"functionResponse": {"name": "get_weather", "response": {"output": "3"}}}
        ]

    @pytest.mark.parametrize(
        ("messages", "says"),
        [
            ([{"role": "system", "content": "A"}], "at least one message"),
            ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio'"),
            ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}], "its data"),
            ([{"role": "user", "content": 3}], r"messages\[0\].content"),
            ([{"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}, *USER], "an image"),
            ([*USER, {"role": "tool", "tool_call_id": "c9", "content": "3"}], "'c9'"),
            ([{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "["}}]}], "of f"),
            ([{"role": "assistant", "tool_calls": [{"id": "c"}]}], "without a function's name"),
        ],
    )
    async def test_what_cannot_be_said_is_refused_and_nothing_is_sent(
        self, server: DemoServer, gemini: GeminiEndpoint, messages: Any, says: str
    ) -> None:
        with pytest.raises(BrixConfigurationError, match=says):
            await ask(gemini, "acall", messages)
        assert server.stats.requests == 0

    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"temprature": 1}, "did you mean temperature"),
            ({"frobnicate": 1}, "extra_body"),
            ({"extra_body": [1]}, "must be a dict"),
            ({"extra_body": {"contents": []}}, "first argument"),
            ({"extra_body": {"systemInstruction": {}}}, "system message"),
            ({"extra_body": {"model": "x"}}, "priced as another"),
            ({"tools": iter([TOOL])}, "must be a list"),
            ({"tools": ["get_weather"]}, "list of dicts"),
            ({"tools": [TOOL], "tool_choice": "maybe"}, "'maybe'"),
            ({"temperature": float("nan")}, "JSON"),
        ],
    )
    def test_bad_parameters_are_told_before_anything_is_sent(
        self, server: DemoServer, gemini: GeminiEndpoint, params: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(BrixConfigurationError, match=says):
            sent(server, gemini, **params)
        assert server.stats.requests == 0

    def test_the_model_stands_in_the_path(self, server: DemoServer, gemini: GeminiEndpoint) -> None:
        sent(server, gemini, model="models/gemini-3-flash")
        assert server.requests[-1].path == "/v1beta/models/gemini-3-flash:generateContent"
        with pytest.raises(BrixConfigurationError, match="name one: model="):
            sent(server, gemini.with_model(None))
        for model, path in (("tunedModels/a b", b"tunedModels/a%20b"), ("../../x?y", b"models/..%2F..%2Fx%3Fy")):
            with raw_server(http(json.dumps(said({"text": "Hi"}, finishReason="STOP")))) as raw:
                sent(server, at(raw.url, model))
                assert raw.seen[0].startswith(b"POST /v1beta/" + path + b":generateContent HTTP/1.1")

    @pytest.mark.parametrize("path", ["", "/", "/v1beta", "/proxy/v1"])
    async def test_the_key_travels_in_a_header_and_nowhere_else(self, path: str) -> None:
        with raw_server(http(json.dumps(said({"text": "Hi"}, finishReason="STOP")))) as raw:
            endpoint = at(raw.url + path)
            assert await ask(endpoint, "acall") == "Hi"
            await endpoint.http.aclose()
        head, _, body = raw.seen[0].partition(b"\r\n\r\n")
        line, *headers = head.split(b"\r\n")
        assert line == f"POST {path.rstrip('/') or '/v1beta'}/models/{MODEL}:generateContent HTTP/1.1".encode()
        assert f"x-goog-api-key: {KEY}".encode() in headers
        assert KEY.encode() not in line + body


class TestSchemas:
    @every_kind
    async def test_a_schema_is_sent_natively(self, server: DemoServer, gemini: GeminiEndpoint, kind: str) -> None:
        answer = await ask(gemini, kind, options={"response_schema": City})
        config = server.requests[-1].body["generationConfig"]
        assert isinstance(City.model_validate_json(answer), City)
        assert config["responseMimeType"] == "application/json"
        assert config["responseJsonSchema"]["required"] == ["name", "people"]
        assert "systemInstruction" not in server.requests[-1].body

    @pytest.mark.parametrize(
        ("model", "params", "native"),
        [
            ("gemini-2.0-flash", {}, True),
            ("models/gemini-3-pro", {}, True),
            ("gemini-1.5-pro", {}, False),
            ("gemini-2.5-flash-image", {}, False),
            ("gemma-3-27b-it", {}, False),
            (MODEL, {"tools": [TOOL]}, False),
            ("gemini-3-flash", {"tools": [TOOL]}, True),
            (MODEL, {"response_format": {"type": "json_object"}}, False),
            (MODEL, {"generation_config": {"responseSchema": {}}}, False),
        ],
    )
    def test_only_where_the_model_takes_one(self, model: str, params: dict[str, Any], native: bool) -> None:
        assert at("http://127.0.0.1:9", model).structured(ResponseSchema.of(City), params) is native

    @pytest.mark.parametrize(
        ("schema", "reduced"),
        [
            ({"type": "string", "pattern": "a+", "maxLength": 3}, {"type": "string"}),
            ({"type": "string", "format": "email"}, {"type": "string"}),
            ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
            ({"type": "integer", "minimum": 1, "multipleOf": 2}, {"type": "integer", "minimum": 1}),
            ({"const": "a"}, {"enum": ["a"]}),
            ({"type": "boolean", "const": True}, {"type": "boolean"}),
            ({"type": ["string", "null"], "enum": ["a", None]}, {"type": ["string", "null"]}),
            ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
            ({"type": "array", "items": {"const": 1}}, {"type": "array", "items": {"enum": [1]}}),
            ({"$ref": "#/definitions/pattern"}, {"$ref": "#/$defs/pattern"}),
        ],
    )
    def test_a_schema_is_reduced_to_what_gemini_knows(self, schema: Any, reduced: Any) -> None:
        definitions = {"pattern": {"type": "string"}}
        found = response_json_schema(
            ResponseSchema.of({"type": "object", "properties": {"pattern": schema}, "definitions": definitions})
        )
        assert found == {
            "type": "object",
            "properties": {"pattern": reduced},
            "additionalProperties": False,
            "required": ["pattern"],
            "$defs": definitions,
        }

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "object"},
            {"type": "object", "properties": {"a": {"enum": [None]}}},
            {"type": "object", "properties": {"a": {"$ref": "#"}}},
            {"type": "array", "items": {"type": "string"}},
        ],
    )
    async def test_what_cannot_be_said_goes_into_the_prompt(
        self, server: DemoServer, gemini: GeminiEndpoint, schema: Any
    ) -> None:
        compiled = ResponseSchema.of(schema)
        assert response_json_schema(compiled) is None
        server.default = Reply("nothing")
        pipe = guards(response_schema=schema, max_schema_retries=0)
        with pytest.raises(Exception, match="no valid"):
            await drive(pipe, begun(pipe, gemini), "call")
        assert "generationConfig" not in server.requests[-1].body
        assert compiled.instructions in server.requests[-1].body["systemInstruction"]["parts"][0]["text"]

    async def test_an_answer_that_is_cut_off_is_asked_for_again(
        self, server: DemoServer, gemini: GeminiEndpoint
    ) -> None:
        server.script(Reply('{"name": "Oslo", "people": 1}', finish_reason="length"))
        pipe = guards(response_schema=City)
        request = begun(pipe, gemini)
        await drive(pipe, request, "acall")
        assert len(request.call.attempts) == server.stats.requests == 2


class TestAnswers:
    @every_kind
    async def test_usage_with_cached_tokens_and_thoughts_is_read_and_priced(
        self, server: DemoServer, gemini: GeminiEndpoint, kind: str
    ) -> None:
        server.default = Reply("Hi", usage={"prompt_tokens": 1_000, "cached_tokens": 800, "reasoning_tokens": 64})
        pipe = guards(max_cost_usd=1.0)
        request = begun(pipe, gemini, kind)
        assert await drive(pipe, request, kind) == "Hi"
        (attempt,) = request.call.attempts
        assert attempt.usage == Usage(input_tokens=1_000, output_tokens=65, cache_read_tokens=800, reasoning_tokens=64)
        assert server.requests[0].completion_tokens == 65
        # 2.5 Flash: $0.30 a million in, $0.03 from the cache, $2.50 out.
        assert attempt.cost_nano == 200 * 300 + 800 * 30 + 65 * 2_500

    @every_kind
    async def test_a_stream_says_what_the_plain_answer_says(
        self, server: DemoServer, gemini: GeminiEndpoint, kind: str
    ) -> None:
        server.default = Reply("Oslo,\u2028the capital\u0085of Norway 🇳🇴.", chunk_size=3)
        assert await ask(gemini, kind) == "Oslo,\u2028the capital\u0085of Norway 🇳🇴."

    @every_kind
    async def test_tool_calls_are_read(self, server: DemoServer, gemini: GeminiEndpoint, kind: str) -> None:
        server.default = ToolCalls([("get_weather", {"city": "Ålesund"}), ("now", {})], text="Let me see.")
        pipe = guards()
        request = begun(pipe, gemini, kind, tools=[TOOL])
        if "stream" in kind:
            chunks = list(pipe.stream(request))
            response = gemini.assemble(chunks, "", request)
        else:
            response = pipe.call(request)
        assert response.text == "Let me see."
        assert [(call.name, json.loads(call.arguments)) for call in response.tool_calls] == [
            ("get_weather", {"city": "Ålesund"}),
            ("now", {}),
        ]
        assert len({call.id for call in response.tool_calls}) == 2

    async def test_several_candidates_are_asked_for_and_counted(
        self, server: DemoServer, gemini: GeminiEndpoint
    ) -> None:
        server.default = Reply("Oslo. ")
        assert await ask(gemini, "call", n=2) == "Oslo. Oslo. "
        assert gemini.choices({"n": 2}) == server.requests[0].body["generationConfig"]["candidateCount"] == 2
        assert await ask(gemini, "stream", n=2) == "Oslo. "

    def test_thoughts_are_billed_and_not_shown(self) -> None:
        endpoint = at("http://127.0.0.1:9")
        events = [
            said({"text": "Hm", "thought": True}),
            said({"text": "m.", "thought": True, "thoughtSignature": "s"}),
            said({"text": "Os"}),
            said({"text": "lo"}, {"functionCall": {"id": "x", "name": "f", "args": {"a": "ü"}}}),
            {**said(finishReason="STOP"), "modelVersion": "gemini-x", "usageMetadata": {"promptTokenCount": 3}},
        ]
        pieces = [endpoint.piece(event) for event in events]
        assert "".join(map(endpoint.read_chunk, pieces)) == 'Hmm.Oslof{"a": "ü"}'
        assert "".join(piece.text for piece in pieces) == "Oslo"
        response = endpoint.assemble(pieces, "", begun(guards(), endpoint))
        assert (response.text, response.model, response.finish_reason) == ("Oslo", "gemini-x", "STOP")
        assert response.tool_calls == (ToolCall(id="x", name="f", arguments='{"a": "ü"}'),)
        assert response.usage == Usage(input_tokens=3, output_tokens=0)
        assert response.raw["candidates"][0]["content"]["parts"] == [
            {"text": "Hmm.", "thought": True, "thoughtSignature": "s"},
            {"text": "Oslo"},
            {"functionCall": {"id": "x", "name": "f", "args": {"a": "ü"}}},
        ]
        for length in range(len(pieces)):
            part = endpoint.finish(pieces[:length], "", begun(guards(), endpoint))
            assert part.usage is None
            assert "Oslo".startswith(part.text)

    def test_a_response_can_be_told_as_events(self) -> None:
        endpoint = at("http://127.0.0.1:9")
        request = begun(guards(), endpoint)
        response = CallResponse(
            text="Hello",
            usage=Usage(input_tokens=9, output_tokens=5, cache_read_tokens=4, reasoning_tokens=1),
            model="m",
            tool_calls=(ToolCall(id="1", name="f", arguments="{}"),),
            finish_reason="STOP",
        )
        assert endpoint.finish(endpoint.as_chunks(response), "", request) == response
        bare = CallResponse(text="", model="m", finish_reason="timeout")
        assert endpoint.finish(endpoint.as_chunks(bare), "", request) == bare
        assert endpoint.finish([], "", request) == CallResponse(text="", model=MODEL)

    @every_kind
    async def test_a_blocked_prompt_is_an_answer_without_text(self, kind: str) -> None:
        blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}
        answer = f"data: {json.dumps(blocked)}\r\n\r\n" if "stream" in kind else json.dumps(blocked)
        with raw_server(http(answer)) as raw:
            pipe = guards()
            request = begun(pipe, at(raw.url), kind)
            assert await drive(pipe, request, kind) == ""
        assert request.call.attempts[0].usage == Usage(input_tokens=4, output_tokens=0)
        (trace,) = pipe.traces.get_traces()
        assert (trace["outcome"], trace["finish_reason"]) == ("ok", "SAFETY")


class TestMoney:
    def test_a_clamp_changes_exactly_one_key(self, server: DemoServer, gemini: GeminiEndpoint) -> None:
        given: Any = {"temperature": 0.1, "max_tokens": 60_000, "tools": [TOOL]}
        before = sent(server, gemini, **given)
        pipe = guards(max_cost_usd=0.01)
        pipe.call(begun(pipe, gemini, **given))
        after = dict(server.requests[-1].body)
        cap = after["generationConfig"].pop("maxOutputTokens")
        assert before["generationConfig"].pop("maxOutputTokens") == 60_000
        assert 16 <= cap <= 4_000
        assert after == before

    def test_a_model_that_nobody_knows_is_capped_on_the_wire(self, server: DemoServer, gemini: GeminiEndpoint) -> None:
        pipe = guards(max_cost_usd=10.0, prices={"my-gemini": (1e-6, 1e-6)})
        pipe.call(begun(pipe, gemini, model="my-gemini"))
        assert server.requests[-1].body["generationConfig"] == {"maxOutputTokens": 4_096}

    @every_kind
    async def test_a_cut_stream_and_a_refused_one_are_charged_as_they_are(
        self, server: DemoServer, gemini: GeminiEndpoint, kind: str
    ) -> None:
        server.script(RateLimited(), CutStream(after=2))
        pipe = guards(max_cost_usd=5.0)
        for expected in (ProviderError, Exception):
            request = begun(pipe, gemini, kind, max_tokens=100)
            with pytest.raises(expected):
                await drive(pipe, request, kind)
            (attempt,) = request.call.attempts
            assert (attempt.cost_nano == 0) is (expected is ProviderError)


class TestFailures:
    @every_kind
    @pytest.mark.parametrize(
        ("fault", "status", "retryable"),
        [
            (RateLimited(), 429, True),
            (ServerError(503), 503, True),
            (Overloaded(), 529, True),
            (BadRequest("no such field"), 400, False),
        ],
    )
    async def test_a_refusal_is_an_error_with_its_status(
        self, server: DemoServer, gemini: GeminiEndpoint, kind: str, fault: Any, status: int, retryable: bool
    ) -> None:
        server.default = fault
        with pytest.raises(ProviderError, match=f"answered {status}: [A-Z_]+ ") as caught:
            await ask(gemini, kind)
        failure = classify(caught.value)
        assert (failure.status, failure.retryable, failure.billable) == (status, retryable, False)
        assert caught.value.body["error"]["code"] == status
        assert server.stats.requests == 1

    @every_kind
    async def test_retry_after_is_honoured_in_either_way(
        self, server: DemoServer, gemini: GeminiEndpoint, kind: str
    ) -> None:
        server.script(RateLimited(retry_after="0.05"), ServerError(500))
        pipe = guards(max_retries=3, backoff_initial=0.001, max_backoff=1.0)
        request = begun(pipe, gemini, kind)
        assert await drive(pipe, request, kind) == 'I heard: "Hi"'
        assert len(request.call.attempts) == server.stats.requests == 3
        first, second = request.call.attempts[:2]
        assert second.started - first.started >= 0.05

    async def test_how_long_to_wait_is_read_from_the_body(self) -> None:
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "46.5s"}
        body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota.", "details": [{}, info]}}
        for answer in (json.dumps(body), json.dumps([body])):
            with raw_server(http(answer, "429 Too Many Requests")) as raw, pytest.raises(ProviderError) as caught:
                await ask(at(raw.url), "call")
            assert classify(caught.value).retry_after == 46.5
            assert "RESOURCE_EXHAUSTED Quota." in str(caught.value)

    @every_kind
    async def test_a_cut_connection_is_a_failed_connection(
        self, server: DemoServer, gemini: GeminiEndpoint, kind: str
    ) -> None:
        server.default = CutStream(after=2)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - httpx's own, whichever
            await ask(gemini, kind)
        failure = classify(caught.value)
        assert (failure.kind, failure.retryable, failure.billable) == ("connection", True, True)

    @pytest.mark.parametrize("kind", ["stream", "astream"])
    async def test_a_stream_without_an_end_is_no_answer(self, kind: str) -> None:
        with raw_server(http(f"data: {json.dumps(said({'text': 'Os'}))}\n\n", kind="text/event-stream")) as raw:
            with pytest.raises(StreamCutError, match="before the model had finished") as caught:
                await ask(at(raw.url), kind)
            assert classify(caught.value).kind == "connection"

    @pytest.mark.parametrize("kind", ["stream", "astream"])
    async def test_an_error_inside_a_stream_is_raised_with_its_status(self, kind: str) -> None:
        events = [said({"text": "Os"}), {"error": {"code": 503, "status": "UNAVAILABLE", "message": "Overloaded."}}]
        answer = "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in events)
        with raw_server(http(answer)) as raw, pytest.raises(ProviderError, match="UNAVAILABLE Overloaded") as caught:
            await ask(at(raw.url), kind)
        assert classify(caught.value).status == 503

    @every_kind
    @pytest.mark.parametrize("body", ["<html>Bad gateway</html>", '["no object"]', "", '{"candidates": ', '{"ok": 1}'])
    async def test_garbage_is_told_and_worth_another_attempt(self, kind: str, body: str) -> None:
        framed = f"data: {body}\n\n" if "stream" in kind else body
        error: Any = StreamCutError if "stream" in kind and body in ("", '{"ok": 1}') else UnreadableAnswerError
        with raw_server(http(framed), http(framed)) as raw:
            with pytest.raises(error) as caught:
                await ask(at(raw.url), kind)
            assert classify(caught.value).retryable
            assert classify(caught.value).billable
