"""What the OpenAI endpoint sends, and how it reads what comes back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionChunk

from brix_core import BrixConfigurationError, MemoryStore, Usage
from brix_core.call import CallResponse, ToolCall
from brix_core.client import BRIX
from brix_core.demo import DemoServer, Reply
from brix_core.endpoints import OpenAIEndpoint, endpoint_for
from brix_core.options import parse
from brix_core.pipeline import Pipeline

USER = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def raw(demo_server: DemoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="test", base_url=demo_server.base_url) as client:
        yield client


@cache
def endpoint(model: str = "gpt-4o-mini", base_url: str = "http://127.0.0.1:9/v1") -> OpenAIEndpoint:
    made = endpoint_for(openai.OpenAI(api_key="test", base_url=base_url), model)
    assert isinstance(made, OpenAIEndpoint)
    return made


def request_to(target: OpenAIEndpoint, **params: Any) -> Any:
    return Pipeline(parse({})).request(target, USER, params)


def sent(server: DemoServer, raw: openai.OpenAI, *, stream: bool = False, **kwargs: Any) -> dict[str, Any]:
    client = BRIX.wrap(raw, model="gpt-4o-mini")
    if stream:
        list(client.stream(USER, **kwargs))
    else:
        client.complete_sync(USER, **kwargs)
    return dict(server.requests[-1].body)


def test_all_parameters_reach_the_server_unchanged(server: DemoServer, raw: openai.OpenAI) -> None:
    given: dict[str, Any] = {
        "tools": [TOOL],
        "tool_choice": "none",
        "response_format": {"type": "json_object"},
        "stop": ["END", "\n\n"],
        "n": 2,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 7,
        "max_completion_tokens": 77,
        "metadata": {"a": "b"},
        "user": "u",
    }
    extra: dict[str, Any] = {"extra_headers": {"X-Trace": "1"}, "extra_body": {"own": [1]}}
    body = sent(server, raw, **given, **extra)
    assert body == {"model": "gpt-4o-mini", "messages": USER, **given, "own": [1]}
    assert server.requests[-1].headers["x-trace"] == "1"


def test_nothing_is_invented(server: DemoServer, raw: openai.OpenAI) -> None:
    assert sent(server, raw) == {"model": "gpt-4o-mini", "messages": USER}
    streamed = sent(server, raw, stream=True)
    assert streamed == {
        "model": "gpt-4o-mini",
        "messages": USER,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"include_usage": False}, {"include_usage": False}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
        (None, None),
    ],
)
def test_stream_options_of_the_caller_are_kept(
    server: DemoServer, raw: openai.OpenAI, given: Any, expected: Any
) -> None:
    assert sent(server, raw, stream=True, stream_options=given).get("stream_options") == expected


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({}, "max_tokens"),
        ({"max_tokens": 4_000}, "max_tokens"),
        ({"max_completion_tokens": 4_000}, "max_completion_tokens"),
        ({"extra_body": {"max_tokens": 4_000}}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
    ],
)
def test_a_clamp_changes_exactly_one_key(
    server: DemoServer, raw: openai.OpenAI, given: dict[str, Any], key: str
) -> None:
    rest = {"tools": [TOOL], "tool_choice": "none", "stop": ["END"], **given}
    before = sent(server, raw, **rest)
    client = BRIX.wrap(raw, model="gpt-4o-mini", max_cost_usd=0.0005, store=MemoryStore())
    client.complete_sync(USER, **rest)
    after = dict(server.requests[-1].body)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {key}
    assert 16 <= after[key] < 4_000
    assert client.get_traces()[0]["decisions"][0]["output_cap"] == after[key]


@pytest.mark.parametrize(
    ("base_url", "model", "key"),
    [
        ("https://api.openai.com/v1", "gpt-4o", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "gpt-4o", "max_completion_tokens"),
        ("http://127.0.0.1:9/v1", "o3-mini", "max_completion_tokens"),
        ("http://127.0.0.1:9/v1", "llama-3", "max_tokens"),
        ("https://not-openai.com/v1", "gpt-4o", "max_tokens"),
    ],
)
def test_the_cap_goes_under_the_name_the_server_knows(base_url: str, model: str, key: str) -> None:
    target = endpoint(model, base_url)
    arguments = target._arguments(request_to(target).evolve(output_cap=50), False)
    assert arguments == {"model": model, "messages": USER, key: 50}


def test_the_reservation_knows_what_is_sent() -> None:
    target = endpoint()
    assert target.requested_cap({}) is None
    assert target.requested_cap({"max_tokens": 5}) == 5
    assert target.requested_cap({"max_tokens": 5, "extra_body": {"max_tokens": 50}}) == 50
    assert target.requested_cap({"max_tokens": openai.NOT_GIVEN}) is None
    assert target.longest_output({}) == 16_384
    assert (target.choices({}), target.choices({"n": 3}), target.choices({"extra_body": {"n": 9}})) == (
        1,
        3,
        9,
    )
    prediction = {"type": "content", "content": "x"}
    schemas = target.schemas(
        {"tools": [TOOL, TOOL], "response_format": {"type": "json_object"}, "prediction": prediction}
    )
    assert schemas == [TOOL, TOOL, {"type": "json_object"}, prediction]
    assert target.schemas({"tools": openai.NOT_GIVEN, "response_format": None}) == []


@pytest.mark.parametrize(
    ("base_url", "model", "provider", "identity"),
    [
        ("https://api.openai.com/v1", "my-ft", "openai", "openai:api.openai.com/my-ft"),
        ("http://127.0.0.1:9/v1", "gpt-4o-mini", "openai", "openai:127.0.0.1:9/gpt-4o-mini"),
        ("http://127.0.0.1:9/v1", "ft:gpt-4o-mini:a::b", "openai", "openai:127.0.0.1:9/ft:gpt-4o-mini:a::b"),
        ("http://127.0.0.1:9/v1", "o4-mini", "openai", "openai:127.0.0.1:9/o4-mini"),
        ("http://127.0.0.1:9/v1", "gpt-oss-20b", None, "custom:127.0.0.1:9/gpt-oss-20b"),
        ("http://u:secret@host/llm/v1", "qwen", None, "custom:host/llm/v1/qwen"),
        ("https://api.groq.com/openai/v1", "llama-3", "groq", "groq:api.groq.com/openai/v1/llama-3"),
        ("https://x.openai.azure.com/openai/v1", "d", "azure", "azure:x.openai.azure.com/openai/v1/d"),
    ],
)
def test_a_target_is_named_and_priced_by_host_and_model(
    base_url: str, model: str, provider: str | None, identity: str
) -> None:
    target = endpoint(model, base_url)
    assert (target.provider, target.identity) == (provider, identity)
    other = target.with_model("gpt-4.1")
    assert (other.model({}), other.identity != identity, target.model({})) == ("gpt-4.1", True, model)


def test_azure_clients_are_recognised() -> None:
    azure = openai.AsyncAzureOpenAI(api_key="k", azure_endpoint="https://a.openai.azure.com", api_version="v")
    target = endpoint_for(azure, "gpt-4o")
    assert isinstance(target, OpenAIEndpoint)
    assert (target.provider, target.identity) == ("azure", "azure:a.openai.azure.com/openai/gpt-4o")


def test_the_users_client_is_left_as_it_is(caplog: pytest.LogCaptureFixture, server: DemoServer) -> None:
    with caplog.at_level(logging.WARNING, "brix_core"):
        quiet = openai.OpenAI(api_key="k", base_url=server.base_url)
        endpoint_for(quiet)
        assert caplog.messages == []
        loud = openai.OpenAI(api_key="k", base_url=server.base_url, max_retries=5)
        endpoint_for(loud)
    assert (quiet.max_retries, loud.max_retries) == (2, 5)
    assert "pass max_retries=5" in caplog.text
    quiet.close()
    loud.close()


def test_a_class_that_cannot_be_copied_is_refused() -> None:
    class Odd(openai.OpenAI):
        def __init__(self) -> None:
            super().__init__(api_key="k")

    with pytest.raises(BrixConfigurationError, match="Odd cannot be copied with its retries switched off"):
        BRIX.wrap(Odd())


@pytest.mark.parametrize("stream", [False, True])
def test_cached_and_reasoning_tokens_are_read(server: DemoServer, raw: openai.OpenAI, stream: bool) -> None:
    server.default = Reply("Hi", usage={"prompt_tokens": 100, "cached_tokens": 80, "reasoning_tokens": 64})
    client = BRIX.wrap(raw, model="gpt-4o-mini", max_cost_usd=1.0, store=MemoryStore())
    if stream:
        pieces = client.stream(USER)
        list(pieces)
        answer = pieces.result
    else:
        answer = client.complete_sync(USER)
    assert answer.usage == Usage(input_tokens=100, output_tokens=65, cache_read_tokens=80, reasoning_tokens=64)
    assert answer.cost_usd == pytest.approx(20 * 0.15e-6 + 80 * 0.075e-6 + 65 * 0.6e-6, abs=1e-9)


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": 0, "completion_tokens": 0}])
def test_usage_that_says_nothing_is_unknown_and_not_zero(
    server: DemoServer, raw: openai.OpenAI, usage: dict[str, int]
) -> None:
    server.default = Reply("Hi", usage=usage)
    client = BRIX.wrap(raw, model="gpt-4o-mini", max_cost_usd=1.0, store=MemoryStore())
    answer = client.complete_sync(USER)
    assert answer.usage is None
    assert answer.cost_usd is not None
    assert answer.cost_usd > 0


class Answer(pydantic.BaseModel):
    city: str
    population: int


@pytest.mark.parametrize("stream", [False, True])
def test_a_pydantic_class_is_sent_as_its_strict_schema(server: DemoServer, raw: openai.OpenAI, stream: bool) -> None:
    body = sent(server, raw, stream=stream, response_format=Answer)
    wanted = body["response_format"]["json_schema"]
    assert (wanted["name"], wanted["strict"]) == ("Answer", True)
    assert wanted["schema"]["required"] == ["city", "population"]
    assert wanted["schema"]["additionalProperties"] is False
    target = endpoint()
    assert target.schemas({"response_format": Answer}) == [body["response_format"]]


def test_a_caller_may_set_the_timeout(server: DemoServer, raw: openai.OpenAI) -> None:
    client = BRIX.wrap(raw, model="gpt-4o-mini", per_call_timeout=5.0)
    client.complete_sync(USER, timeout=30.0)
    client.complete_sync(USER)
    theirs, ours = (record.headers["x-stainless-read-timeout"] for record in server.requests)
    assert (float(theirs), float(ours)) == (30.0, 5.5)


def test_a_shorter_timeout_of_the_client_stays(server: DemoServer) -> None:
    with openai.OpenAI(api_key="k", base_url=server.base_url, timeout=2.0) as raw:
        BRIX.wrap(raw, model="gpt-4o-mini", per_call_timeout=5.0).complete_sync(USER)
    assert float(server.requests[0].headers["x-stainless-read-timeout"]) == 2.0


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_are_all_there(server: DemoServer, raw: openai.OpenAI, stream: bool) -> None:
    server.default = Reply("Paris")
    client = BRIX.wrap(raw, model="gpt-4o-mini", max_cost_usd=1.0, store=MemoryStore())
    if stream:
        pieces = client.stream(USER, n=3)
        assert "".join(pieces) == "Paris"
        answer = pieces.result
    else:
        answer = client.complete_sync(USER, n=3)
    assert answer == "Paris"
    assert [choice.message.content for choice in answer.raw.choices] == ["Paris"] * 3
    assert answer.usage is not None
    assert answer.usage.output_tokens == server.stats.completion_tokens


def chunk(delta: dict[str, Any] | None = None, *, index: int = 0, **fields: Any) -> ChatCompletionChunk:
    finish = fields.pop("finish_reason", None)
    choice = {
        "index": index,
        "delta": delta,
        "finish_reason": finish,
        "logprobs": fields.pop("logprobs", None),
    }
    data = {"id": "c", "created": 1, "model": "m", "object": "chat.completion.chunk", "usage": None}
    return ChatCompletionChunk.construct(**{**data, "choices": [choice], **fields})


def call_parts(index: int, **fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **fields}]}


def test_a_chunk_gives_all_its_billed_text() -> None:
    read = endpoint().piece
    cases: list[tuple[Any, str, str]] = [
        (chunk({"content": "a"}), "a", "a"),
        (chunk({"content": "b"}, index=1), "b", ""),
        (chunk({"refusal": "no"}), "no", ""),
        (chunk({"reasoning_content": "hm"}), "hm", ""),
        (chunk({"reasoning": "hm", "content": "x"}), "xhm", "x"),
        (chunk(call_parts(0, id="1", function={"name": "f", "arguments": "{"})), "f{", ""),
        (chunk({"function_call": {"name": "g", "arguments": "{}"}}), "g{}", ""),
        (chunk({"role": "assistant", "content": ""}), "", ""),
        (chunk(None), "", ""),
        (chunk(choices=[]), "", ""),
        (chunk(choices=None), "", ""),
    ]
    for given, billed, text in cases:
        piece = read(given)
        assert (endpoint().read_chunk(piece), piece.text) == (billed, text)


def test_chunks_make_the_response_of_a_plain_call() -> None:
    target = endpoint()
    chunks = [
        chunk(choices=[], model="m-2"),
        chunk({"role": "assistant", "reasoning_content": "Hm"}),
        chunk({"content": "Pa"}, logprobs={"content": [{"token": "Pa", "logprob": -1.0, "top_logprobs": []}]}),
        chunk({"content": "ris"}),
        chunk({"content": "Rome"}, index=1, finish_reason="length"),
        chunk(call_parts(1, id="2", type="function", function={"name": "g", "arguments": ""})),
        chunk(call_parts(0, id="1", type="function", function={"name": "f", "arguments": '{"a"'})),
        chunk(call_parts(0, function={"arguments": ":1}"})),
        chunk({}, finish_reason="tool_calls"),
        chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}),
    ]
    pieces = [target.piece(given) for given in chunks]
    response = target.assemble(pieces, "", request_to(target))
    assert response.text == "ParisRome"
    assert response.usage == Usage(input_tokens=3, output_tokens=4)
    assert (response.finish_reason, response.model) == ("tool_calls", "m")
    assert response.tool_calls == (
        ToolCall(id="1", name="f", arguments='{"a":1}'),
        ToolCall(id="2", name="g", arguments=""),
    )
    first, second = response.raw.choices
    assert (first.message.content, second.message.content) == ("Paris", "Rome")
    assert first.message.reasoning_content == "Hm"
    assert first.logprobs.content[0].token == "Pa"
    assert [call.function.name for call in first.message.tool_calls] == ["f", "g"]
    finished = target.finish(pieces, "", request_to(target))
    assert finished == response._replace(raw=None)


def test_no_chunk_makes_an_empty_response() -> None:
    target = endpoint()
    response = target.assemble([], "", request_to(target))
    assert (response.text, response.usage, response.model, response.finish_reason) == (
        "",
        None,
        "gpt-4o-mini",
        None,
    )
    assert response.raw.choices[0].message.content == ""


def test_a_response_can_be_told_as_chunks() -> None:
    target = endpoint()
    response = CallResponse(
        text="Hello",
        usage=Usage(input_tokens=9, output_tokens=5, cache_read_tokens=4, reasoning_tokens=1),
        model="m",
        tool_calls=(ToolCall(id="1", name="f", arguments="{}"),),
        finish_reason="tool_calls",
    )
    chunks = target.as_chunks(response)
    assert target.finish(chunks, "", request_to(target)) == response
