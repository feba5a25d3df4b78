"""What the Ollama endpoint sends, and how it reads what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from brix_core import BrixConfigurationError, BrixUnknownPriceError, Usage
from brix_core.call import CallResponse, ToolCall
from brix_core.demo import BadRequest, CutStream, DemoServer, RateLimited, Reply, ServerError, ToolCalls
from brix_core.endpoints import OllamaEndpoint, ProviderError, StreamCutError, UnreadableAnswerError
from brix_core.failures import classify
from brix_core.structured.response_schema import ResponseSchema
from tests.support.raw_http import KINDS, USER, ask, begun, drive, guards, http, raw_server

MODEL = "llama3.2"
KEY = "ollama-very-secret"
PNG = "data:image/png;base64,iVBORw0KGgo="
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}}

every_kind = pytest.mark.parametrize("kind", KINDS)


class City(BaseModel):
    name: str = Field(pattern="^[A-Z]")
    people: int


@pytest.fixture
def ollama(server: DemoServer) -> Iterator[OllamaEndpoint]:
    endpoint = OllamaEndpoint(MODEL, base_url=server.ollama_base_url)
    yield endpoint
    endpoint.http.close()


def at(url: str, model: str = MODEL, **options: Any) -> OllamaEndpoint:
    return OllamaEndpoint(model, base_url=url, **options)


def sent(server: DemoServer, endpoint: OllamaEndpoint, messages: Any = USER, **params: Any) -> dict[str, Any]:
    pipe = guards()
    pipe.call(begun(pipe, endpoint, "call", messages, **params))
    return dict(server.requests[-1].body)


def lines(*events: Any) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def said(text: str = "", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "message": {"role": "assistant", "content": text, **more}, "done": False}


DONE = {**said(), "done": True, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3}


class TestRequests:
    @pytest.mark.parametrize(
        ("params", "beside"),
        [
            ({}, {}),
            ({"temperature": 0.2, "top_p": 0.9, "seed": 7}, {"options": {"temperature": 0.2, "top_p": 0.9, "seed": 7}}),
            ({"max_tokens": 50, "stop": "END"}, {"options": {"stop": ["END"], "num_predict": 50}}),
            ({"num_ctx": 8_192, "options": {"mirostat": 1}}, {"options": {"num_ctx": 8_192, "mirostat": 1}}),
            ({"max_tokens": 9, "extra_body": {"options": {"num_predict": 8}}}, {"options": {"num_predict": 8}}),
            ({"think": "low", "keep_alive": "10m"}, {"think": "low", "keep_alive": "10m"}),
            ({"think": False, "temperature": None}, {"think": False}),
            ({"format": "json"}, {"format": "json"}),
            ({"response_format": {"type": "json_object"}}, {"format": "json"}),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": PARAMETERS}}},
                {"format": PARAMETERS},
            ),
            ({"extra_body": {"format": PARAMETERS, "raw": True}}, {"format": PARAMETERS, "raw": True}),
            ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
            ({"tools": [TOOL], "tool_choice": "none"}, {}),
        ],
    )
    def test_parameters_stand_where_the_api_has_them(
        self, server: DemoServer, ollama: OllamaEndpoint, params: dict[str, Any], beside: dict[str, Any]
    ) -> None:
        assert sent(server, ollama, **params) == {"model": MODEL, "messages": USER, "stream": False, **beside}
        assert ollama.requested_cap(params) == beside.get("options", {}).get("num_predict")

    def test_no_cap_is_a_cap(self) -> None:
        assert at("http://127.0.0.1:9").requested_cap({"max_tokens": -1}) is None

    def test_a_conversation_with_images_and_tools_is_converted(
        self, server: DemoServer, ollama: OllamaEndpoint
    ) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
        talk = [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": PNG}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ]
        assert sent(server, ollama, talk)["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Look:", "images": ["iVBORw0KGgo="]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}],
            },
            {"role": "tool", "content": "rain", "tool_name": "get_weather"},
        ]

    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"n": 2}, "no parameter 'n'"),
            ({"num_predit": 2}, "did you mean num_predict"),
            ({"tools": [TOOL], "tool_choice": "required"}, "cannot be made to call"),
            ({"extra_body": {"stream": True}}, "method that gives one"),
            ({"extra_body": {"messages": []}}, "first argument"),
            ({"seed": {1}}, "JSON"),
        ],
    )
    def test_bad_parameters_are_told_before_anything_is_sent(
        self, server: DemoServer, ollama: OllamaEndpoint, params: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(BrixConfigurationError, match=says):
            sent(server, ollama, **params)
        assert server.stats.requests == 0

    @every_kind
    async def test_a_key_travels_as_a_bearer_token(self, kind: str) -> None:
        answer = lines(said("Hi"), DONE) if "stream" in kind else json.dumps({**DONE, **said("Hi")})
        with raw_server(http(answer)) as raw:
            assert await ask(at(raw.url, api_key=KEY), kind) == "Hi"
        head, _, body = raw.seen[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /api/chat HTTP/1.1")
        assert f"authorization: Bearer {KEY}".encode() in head.split(b"\r\n")
        assert KEY.encode() not in body


class TestSchemas:
    @every_kind
    async def test_a_schema_is_sent_as_the_format(self, server: DemoServer, ollama: OllamaEndpoint, kind: str) -> None:
        server.default = Reply('{"name": "Oslo", "people": 1}')
        answer = await ask(ollama, kind, options={"response_schema": City})
        assert City.model_validate_json(answer).name == "Oslo"
        body = server.requests[-1].body
        assert body["format"]["properties"]["name"] == {
            "title": "Name",
            "type": "string",
        }  # its pattern is ours to check
        assert body["format"]["required"] == ["name", "people"]
        assert body["messages"] == USER

    def test_a_property_may_have_a_keyword_s_name(self, server: DemoServer, ollama: OllamaEndpoint) -> None:
        schema = {"type": "object", "properties": {"pattern": {"enum": ["a"]}, "multipleOf": {"type": "integer"}}}
        pipe = guards(response_schema=schema)
        pipe.call(begun(pipe, ollama))
        assert server.requests[-1].body["format"]["properties"] == schema["properties"]

    @pytest.mark.parametrize(
        ("url", "model", "params", "native"),
        [
            ("http://127.0.0.1:9", MODEL, {}, True),
            ("http://127.0.0.1:9", "gpt-oss:20b-cloud", {}, False),
            ("http://127.0.0.1:9", "kimi:cloud", {}, False),
            ("https://ollama.com", MODEL, {}, False),
            ("http://127.0.0.1:9", MODEL, {"format": "json"}, False),
            ("http://127.0.0.1:9", MODEL, {"tools": [TOOL]}, False),
        ],
    )
    def test_only_where_the_server_takes_one(self, url: str, model: str, params: dict[str, Any], native: bool) -> None:
        assert at(url, model).structured(ResponseSchema.of(City), params) is native
        assert not at(url, model).structured(ResponseSchema.of({"type": "object"}), params)


class TestAnswers:
    @every_kind
    async def test_usage_is_read(self, server: DemoServer, ollama: OllamaEndpoint, kind: str) -> None:
        server.default = Reply("Oslo,\u2028the\u0085capital", usage={"prompt_tokens": 100, "completion_tokens": 5})
        pipe = guards(max_cost_usd=1.0, prices={MODEL: (1e-6, 2e-6)})
        request = begun(pipe, ollama, kind)
        assert await drive(pipe, request, kind) == "Oslo,\u2028the\u0085capital"
        (attempt,) = request.call.attempts
        assert attempt.usage == Usage(input_tokens=100, output_tokens=5)
        assert attempt.cost_nano == 110_000
        assert server.requests[0].body["stream"] is ("stream" in kind)

    @every_kind
    async def test_what_nobody_prices_is_the_policy_s_business(
        self, server: DemoServer, ollama: OllamaEndpoint, kind: str
    ) -> None:
        with pytest.raises(BrixUnknownPriceError):
            await ask(ollama, kind, options={"max_cost_usd": 1.0})
        assert server.stats.requests == 0
        free = {"max_cost_usd": 1.0, "prices": {MODEL: (0, 0)}}
        assert await ask(ollama, kind, options=free) == 'I heard: "Hi"'

    @every_kind
    async def test_a_prompt_from_memory_has_no_count(self, kind: str) -> None:
        done = {name: value for name, value in DONE.items() if name != "prompt_eval_count"}
        answer = lines(said("Hi"), done) if "stream" in kind else json.dumps({**done, **said("Hi"), "done": True})
        with raw_server(http(answer)) as raw:
            pipe = guards()
            request = begun(pipe, at(raw.url), kind)
            assert await drive(pipe, request, kind) == "Hi"
        assert request.call.attempts[0].usage is None

    @every_kind
    async def test_tool_calls_are_read(self, server: DemoServer, ollama: OllamaEndpoint, kind: str) -> None:
        server.default = ToolCalls([("get_weather", {"city": "Ålesund"}), ("now", {})], text="Let me see.")
        pipe = guards()
        request = begun(pipe, ollama, kind, tools=[TOOL])
        streamed = "stream" in kind
        response = ollama.assemble(list(pipe.stream(request)), "", request) if streamed else pipe.call(request)
        assert response.text == "Let me see."
        assert response.tool_calls == (
            ToolCall(id="call_0", name="get_weather", arguments='{"city": "Ålesund"}'),
            ToolCall(id="call_1", name="now", arguments="{}"),
        )

    def test_thinking_is_billed_and_not_shown(self) -> None:
        endpoint = at("http://127.0.0.1:9")
        request = begun(guards(), endpoint)
        events = [said(thinking="Hm"), said(thinking="m."), said("Os"), said("lo"), DONE]
        pieces = [endpoint.piece(event) for event in events]
        assert "".join(map(endpoint.read_chunk, pieces)) == "Hmm.Oslo"
        assert "".join(piece.text for piece in pieces) == "Oslo"
        response = endpoint.assemble(pieces, "", request)
        assert (response.text, response.finish_reason) == ("Oslo", "stop")
        assert response.usage == Usage(input_tokens=7, output_tokens=3)
        assert response.raw["message"] == {"role": "assistant", "content": "Oslo", "thinking": "Hmm."}
        part = endpoint.finish(pieces[:3], "", request)
        assert (part.text, part.usage, part.raw) == ("Os", None, None)

    def test_a_response_can_be_told_as_lines(self) -> None:
        endpoint = at("http://127.0.0.1:9")
        request = begun(guards(), endpoint)
        response = CallResponse(
            text="Hello",
            usage=Usage(input_tokens=9, output_tokens=5),
            model="m",
            tool_calls=(ToolCall(id="1", name="f", arguments="{}"),),
            finish_reason="stop",
        )
        assert endpoint.finish(endpoint.as_chunks(response), "", request) == response
        assert endpoint.finish([], "", request) == CallResponse(text="", model=MODEL)


class TestFailures:
    @every_kind
    @pytest.mark.parametrize(
        ("fault", "status", "retryable"),
        [
            (RateLimited(), 429, True),
            (ServerError(502), 502, True),
            (BadRequest("no such model", status=404), 404, False),
        ],
    )
    async def test_a_refusal_is_an_error_with_its_status(
        self, server: DemoServer, ollama: OllamaEndpoint, kind: str, fault: Any, status: int, retryable: bool
    ) -> None:
        server.default = fault
        with pytest.raises(ProviderError, match=f"answered {status}: ") as caught:
            await ask(ollama, kind)
        failure = classify(caught.value)
        assert (failure.status, failure.retryable, failure.billable) == (status, retryable, False)
        assert server.stats.requests == 1

    @every_kind
    async def test_retries_are_the_guard_s_and_honour_retry_after(
        self, server: DemoServer, ollama: OllamaEndpoint, kind: str
    ) -> None:
        server.script(RateLimited(retry_after="0.05"), CutStream(after=0))
        pipe = guards(max_retries=3, backoff_initial=0.001, max_backoff=1.0)
        request = begun(pipe, ollama, kind)
        assert await drive(pipe, request, kind) == 'I heard: "Hi"'
        assert len(request.call.attempts) == server.stats.requests == 3
        first, second = request.call.attempts[:2]
        assert second.started - first.started >= 0.05

    @every_kind
    async def test_a_cut_connection_is_a_failed_connection(
        self, server: DemoServer, ollama: OllamaEndpoint, kind: str
    ) -> None:
        server.default = CutStream(after=2)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - httpx's own, whichever
            await ask(ollama, kind)
        assert classify(caught.value).kind == "connection"

    @pytest.mark.parametrize("kind", ["stream", "astream"])
    async def test_a_stream_without_its_last_line_is_no_answer(self, kind: str) -> None:
        with raw_server(http(lines(said("Os")))) as raw, pytest.raises(StreamCutError):
            await ask(at(raw.url), kind)

    @pytest.mark.parametrize("kind", ["stream", "astream"])
    async def test_an_error_inside_a_stream_is_the_model_s_failure(self, kind: str) -> None:
        answer = lines(said("Os"), {"error": "an error was encountered while running the model"})
        with raw_server(http(answer)) as raw, pytest.raises(ProviderError, match="while running") as caught:
            await ask(at(raw.url), kind)
        assert classify(caught.value).status == 500
        assert classify(caught.value).provider_down

    @every_kind
    @pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "[1]", '{"message": '])
    async def test_garbage_is_told_and_worth_another_attempt(self, kind: str, body: str) -> None:
        with raw_server(http(body)) as raw, pytest.raises(UnreadableAnswerError) as caught:
            await ask(at(raw.url), kind)
        assert classify(caught.value).retryable
