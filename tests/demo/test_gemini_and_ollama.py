"""The demo server's Gemini and Ollama, as a client without any SDK sees them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from brix_core.demo import (
    BadRequest,
    Behaviour,
    CutStream,
    DemoServer,
    Echo,
    EndlessRepetition,
    JsonReply,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    Reply,
    ServerError,
    SlowFirstToken,
    StalledStream,
    ToolCalls,
)
from brix_core.tokens import tokenizer_for

GEMINI = "/v1beta/models/gemini-2.5-flash"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "people": {"type": "integer"}}}
PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}

BODY: Any = {
    "model": "x",
    "contents": [{"parts": [{"text": "Hi"}]}],
    "messages": [{"role": "user", "content": "Hi"}],
}
"""A request to either."""

Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def client(demo_server: DemoServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo_server.ollama_base_url, verify=False, timeout=10) as client:
        yield client


@pytest.fixture
def gemini(server: DemoServer, client: httpx.Client) -> Ask:
    def ask(text: str = "Hi", *, stream: bool = False, **body: Any) -> httpx.Response:
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        contents = [{"role": "user", "parts": [{"text": text}]}]
        return client.post(f"{GEMINI}:{method}", json={"contents": contents, **body})

    return ask


@pytest.fixture
def ollama(server: DemoServer, client: httpx.Client) -> Ask:
    def ask(text: str = "Hi", *, stream: bool = False, **body: Any) -> httpx.Response:
        talk = [{"role": "user", "content": text}]
        return client.post("/api/chat", json={"model": "llama3.2", "messages": talk, "stream": stream, **body})

    return ask


def events(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in response.text.split("\r\n\r\n") if line]


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.split("\n") if line]


def tokens(text: str) -> int:
    return tokenizer_for("gpt-4o").count(text)


class TestGemini:
    def test_an_answer_and_its_counts(self, server: DemoServer, gemini: Ask) -> None:
        server.script(Reply("Oslo.", usage={"reasoning_tokens": 64, "cached_tokens": 2}))
        answer = gemini("Capital of Norway?").json()
        assert answer["candidates"] == [
            {"content": {"parts": [{"text": "Oslo."}], "role": "model"}, "finishReason": "STOP", "index": 0}
        ]
        usage = answer["usageMetadata"]
        assert usage["candidatesTokenCount"] == tokens("Oslo.")
        assert usage["thoughtsTokenCount"] == 64
        assert usage["cachedContentTokenCount"] == 2
        assert usage["totalTokenCount"] == usage["promptTokenCount"] + tokens("Oslo.") + 64
        (record,) = server.requests
        assert (record.model, record.stream, record.completion_tokens) == (
            "gemini-2.5-flash",
            False,
            tokens("Oslo.") + 64,
        )
        assert record.prompt_tokens == usage["promptTokenCount"]

    def test_a_stream_is_the_same_in_pieces(self, server: DemoServer, gemini: Ask) -> None:
        server.script(Reply("Oslo, of course", chunk_size=5))
        response = gemini(stream=True)
        found = events(response)
        assert response.headers["content-type"] == "text/event-stream"
        texts = [event["candidates"][0]["content"]["parts"][0]["text"] for event in found]
        assert texts == ["Oslo,", " of c", "ourse", ""]
        assert ["finishReason" in event["candidates"][0] for event in found] == [False, False, False, True]
        assert found[-1]["usageMetadata"]["candidatesTokenCount"] == tokens("Oslo, of course")
        assert server.requests[0].stream

    def test_limits_and_several_candidates_are_honoured(self, server: DemoServer, gemini: Ask) -> None:
        server.default = Reply("one two three four")
        config = {"maxOutputTokens": 2, "candidateCount": 2}
        for answers in (
            gemini(generationConfig=config).json()["candidates"],
            events(gemini(stream=True, generationConfig=config))[-1]["candidates"],
        ):
            assert [(answer["index"], answer["finishReason"]) for answer in answers] == [
                (0, "MAX_TOKENS"),
                (1, "MAX_TOKENS"),
            ]
        assert server.stats.completion_tokens == 8
        stopped = gemini(generationConfig={"stopSequences": [" three"]}).json()["candidates"][0]
        assert (stopped["content"]["parts"][0]["text"], stopped["finishReason"]) == ("one two", "STOP")

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_schema_is_honoured(self, gemini: Ask, stream: bool) -> None:
        config = {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}
        response = gemini("'Oslo' has 700000", stream=stream, generationConfig=config)
        found = events(response) if stream else [response.json()]
        text = "".join(event["candidates"][0]["content"]["parts"][0]["text"] for event in found)
        assert json.loads(text) == {"city": "Oslo", "people": 700_000}
        refused = gemini(generationConfig={"responseJsonSchema": SCHEMA})
        assert (refused.status_code, refused.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")

    @pytest.mark.parametrize("stream", [False, True])
    def test_tools_are_called_and_their_results_heard(self, server: DemoServer, gemini: Ask, stream: bool) -> None:
        tools = [{"functionDeclarations": [{"name": "get_weather", "parametersJsonSchema": PARAMETERS}]}]
        calling = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["get_weather"]}}
        response = gemini("In 'Oslo'?", stream=stream, tools=tools, toolConfig=calling)
        last = events(response)[-1] if stream else response.json()
        assert last["candidates"][0]["content"]["parts"] == [
            {"functionCall": {"name": "get_weather", "args": {"place": "Oslo"}}}
        ]
        talk = [
            {"role": "user", "parts": [{"text": "In 'Oslo'?"}]},
            last["candidates"][0]["content"],
            {
                "role": "user",
                "parts": [{"functionResponse": {"name": "get_weather", "response": {"output": "Rain"}}}],
            },
        ]
        answer = gemini(contents=talk, tools=tools).json()
        assert answer["candidates"][0]["content"]["parts"] == [{"text": 'The tool answered: "Rain"'}]
        server.script(ToolCalls([("now", {}), ("now", {})], text="Let me see."))
        assert len(gemini().json()["candidates"][0]["content"]["parts"]) == 3

    @pytest.mark.parametrize(
        ("fault", "status", "word"),
        [
            (RateLimited(retry_after="2"), 429, "RESOURCE_EXHAUSTED"),
            (QuotaExceeded(), 429, "RESOURCE_EXHAUSTED"),
            (ServerError(503), 503, "UNAVAILABLE"),
            (Overloaded(), 529, "UNKNOWN"),
            (BadRequest("no"), 400, "INVALID_ARGUMENT"),
        ],
    )
    def test_refusals_are_in_google_s_words(
        self, server: DemoServer, gemini: Ask, fault: Behaviour, status: int, word: str
    ) -> None:
        server.default = fault
        for stream in (False, True):
            response = gemini(stream=stream)
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["status"]) == (status, status, word)
            waits = fault == RateLimited(retry_after="2")
            assert response.headers.get("retry-after") == ("2" if waits else None)
            assert [detail["retryDelay"] for detail in error.get("details", [])] == (["2s"] if waits else [])
        assert (server.stats.failed, server.stats.prompt_tokens) == (2, 0)

    @pytest.mark.parametrize(
        "body", [{}, {"contents": []}, {"contents": "Hi"}, {"contents": [{"parts": 3}]}, {"contents": ["Hi"]}, [1]]
    )
    def test_what_cannot_be_read_is_refused(self, server: DemoServer, client: httpx.Client, body: Any) -> None:
        response = client.post(f"{GEMINI}:generateContent", json=body)
        assert (response.status_code, response.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
        assert server.stats.failed == 1

    @pytest.mark.parametrize(
        "path", [f"{GEMINI}:countTokens", f"{GEMINI}:streamGenerateContent", GEMINI, "/v1beta/models/:generateContent"]
    )
    def test_what_is_not_served_is_told(self, server: DemoServer, client: httpx.Client, path: str) -> None:
        assert client.post(path, json={"contents": []}).status_code == 404
        assert server.stats.requests == 0

    def test_models_are_listed_and_not_counted(self, server: DemoServer, client: httpx.Client) -> None:
        listed = client.get("/v1beta/models").json()["models"]
        assert "models/gemini-2.5-flash" in [model["name"] for model in listed]
        assert server.stats.requests == 0

    def test_the_key_is_not_kept(self, server: DemoServer, client: httpx.Client) -> None:
        body = {"contents": [{"parts": [{"text": "Hi"}]}]}
        client.post(f"{GEMINI}:generateContent", json=body, headers={"x-goog-api-key": "secret", "x-other": "1"})
        headers = server.requests[0].headers
        assert "x-goog-api-key" not in headers
        assert headers["x-other"] == "1"


class TestOllama:
    def test_an_answer_and_its_counts(self, server: DemoServer, ollama: Ask) -> None:
        server.script(Reply("Oslo."))
        answer = ollama("Capital of Norway?").json()
        assert answer["message"] == {"role": "assistant", "content": "Oslo."}
        assert (answer["done"], answer["done_reason"], answer["eval_count"]) == (True, "stop", tokens("Oslo."))
        (record,) = server.requests
        assert (record.path, record.prompt_tokens) == ("/api/chat", answer["prompt_eval_count"])
        server.script(Reply("Oslo.", usage={}))
        assert "eval_count" not in ollama().json()

    def test_it_streams_unless_told_otherwise(self, server: DemoServer, client: httpx.Client) -> None:
        server.script(Reply("Oslo, of course", chunk_size=5))
        response = client.post("/api/chat", json={"model": "x", "messages": [{"role": "user", "content": "Hi"}]})
        found = lines(response)
        assert response.headers["content-type"] == "application/x-ndjson"
        assert [line["message"]["content"] for line in found] == ["Oslo,", " of c", "ourse", ""]
        assert [line["done"] for line in found] == [False, False, False, True]
        assert found[-1]["eval_count"] == tokens("Oslo, of course")

    def test_limits_are_honoured(self, server: DemoServer, ollama: Ask) -> None:
        server.default = Reply("one two three four")
        answer = ollama(options={"num_predict": 2}).json()
        assert (answer["message"]["content"], answer["done_reason"]) == ("one two", "length")
        assert ollama(options={"num_predict": -1}).json()["message"]["content"] == "one two three four"
        assert ollama(options={"stop": [" three"]}).json()["message"]["content"] == "one two"

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_format_is_honoured(self, ollama: Ask, stream: bool) -> None:
        response = ollama("'Oslo' has 700000", stream=stream, format=SCHEMA)
        found = lines(response) if stream else [response.json()]
        assert json.loads("".join(line["message"]["content"] for line in found)) == {"city": "Oslo", "people": 700_000}
        assert json.loads(ollama("a 'name'", format="json").json()["message"]["content"]) == {"name": "sample name"}

    @pytest.mark.parametrize("stream", [False, True])
    def test_tools_are_called(self, ollama: Ask, stream: bool) -> None:
        tool = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
        response = ollama("The weather in 'Oslo'?", stream=stream, tools=[tool])
        found = lines(response) if stream else [response.json()]
        calls = [call for line in found for call in line["message"].get("tool_calls", [])]
        assert calls == [{"function": {"name": "get_weather", "arguments": {"place": "Oslo"}}}]

    @pytest.mark.parametrize("fault", [RateLimited(retry_after="2"), ServerError(502), BadRequest("no", status=404)])
    def test_refusals_are_in_ollama_s_words(self, server: DemoServer, ollama: Ask, fault: Any) -> None:
        server.default = fault
        for stream in (False, True):
            response = ollama(stream=stream)
            assert response.status_code == fault.status
            assert isinstance(response.json()["error"], str)
            assert response.headers.get("retry-after") == getattr(fault, "retry_after", None)

    @pytest.mark.parametrize(
        "body",
        [{}, {"model": "x"}, {"model": "x", "messages": []}, {"messages": [{}]}, {"model": "x", "messages": "Hi"}],
    )
    def test_what_cannot_be_read_is_refused(self, server: DemoServer, client: httpx.Client, body: Any) -> None:
        response = client.post("/api/chat", json=body)
        assert response.status_code == 400
        assert response.json()["error"]

    def test_models_are_listed_and_not_counted(self, server: DemoServer, client: httpx.Client) -> None:
        assert "llama3.2:latest" in [model["name"] for model in client.get("/api/tags").json()["models"]]
        assert server.stats.requests == 0


@pytest.mark.parametrize("path", [f"{GEMINI}:streamGenerateContent?alt=sse", "/api/chat"])
class TestBoth:
    def test_a_cut_stream_is_cut(self, server: DemoServer, client: httpx.Client, path: str) -> None:
        server.script(CutStream(after=2))
        with client.stream("POST", path, json=BODY) as response, pytest.raises(httpx.RemoteProtocolError):
            response.read()
        assert server.wait_until_idle()
        assert [record.outcome for record in server.requests] == ["cut"]
        assert 0 < server.requests[0].completion_tokens < 8

    @pytest.mark.parametrize("endless", [StalledStream(after=2), EndlessRepetition(limit=100_000)])
    def test_who_leaves_is_noticed(
        self, server: DemoServer, client: httpx.Client, path: str, endless: Behaviour
    ) -> None:
        server.script(endless)
        with client.stream("POST", path, json=BODY) as response:
            next(response.iter_bytes())
        assert server.wait_until_idle()
        assert [record.outcome for record in server.requests] == ["aborted"]

    def test_what_is_slow_is_slow(self, server: DemoServer, client: httpx.Client, path: str) -> None:
        server.script(SlowFirstToken(0.05, then=JsonReply([1])), Echo())
        assert "[1]" in client.post(path, json=BODY).text
        (record,) = server.requests
        assert record.finished_at - record.started_at >= 0.05
