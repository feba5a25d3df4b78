"""What the Anthropic endpoint sends, and how it reads what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import anthropic
import pytest
from anthropic import types

from brix_core import BrixConfigurationError, MemoryStore, Usage
from brix_core.call import CallResponse, ToolCall
from brix_core.client import BRIX
from brix_core.demo import DemoServer, Reply
from brix_core.endpoints import AnthropicEndpoint, endpoint_for
from brix_core.endpoints.anthropic_events import read_usage
from brix_core.options import parse
from brix_core.pipeline import Pipeline

MODEL = "claude-haiku-4-5"
USER = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CACHED = [{"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}]


@pytest.fixture(scope="module")
def raw(demo_server: DemoServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="test", base_url=demo_server.anthropic_base_url) as client:
        yield client


@cache
def endpoint(model: str = MODEL, base_url: str = "http://127.0.0.1:9") -> AnthropicEndpoint:
    made = endpoint_for(anthropic.Anthropic(api_key="test", base_url=base_url), model)
    assert isinstance(made, AnthropicEndpoint)
    return made


def request_to(target: AnthropicEndpoint, messages: Any = USER, **params: Any) -> Any:
    return Pipeline(parse({})).request(target, messages, params)


def sent(server: DemoServer, raw: anthropic.Anthropic, messages: Any = USER, **kwargs: Any) -> dict[str, Any]:
    BRIX.wrap(raw, model=MODEL).complete_sync(messages, **kwargs)
    return dict(server.requests[-1].body)


def test_all_parameters_reach_the_server_unchanged(server: DemoServer, raw: anthropic.Anthropic) -> None:
    given = {
        "max_tokens": 77,
        "tools": [TOOL],
        "tool_choice": {"type": "none"},
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u"},
    }
    extra = {"extra_headers": {"X-Trace": "1"}, "extra_body": {"own": [1]}}
    assert sent(server, raw, **given, **extra) == {"model": MODEL, "messages": USER, **given, "own": [1]}
    assert server.requests[-1].headers["x-trace"] == "1"


@pytest.mark.parametrize(
    ("model", "given", "cap"),
    [
        (MODEL, {}, 8_192),
        ("claude-3-haiku-20240307", {}, 4_096),
        ("my-claude", {}, 4_096),
        (MODEL, {"max_tokens": 9}, 9),
        (MODEL, {"extra_body": {"max_tokens": 99}}, 99),
        (MODEL, {"thinking": {"type": "enabled", "budget_tokens": 10_000}}, 18_192),
        (MODEL, {"thinking": {"type": "enabled", "budget_tokens": 60_000}}, 64_000),
    ],
)
def test_the_cap_that_is_sent_is_the_cap_that_is_reserved(model: str, given: dict[str, Any], cap: int) -> None:
    target = endpoint(model)
    request = request_to(target, **given)
    arguments = target._arguments(request, False)
    assert request.requested_cap == cap
    assert {**arguments, **arguments.get("extra_body", {})}["max_tokens"] == cap


def test_nothing_but_the_required_cap_is_invented(server: DemoServer, raw: anthropic.Anthropic) -> None:
    assert sent(server, raw) == {"model": MODEL, "messages": USER, "max_tokens": 8_192}
    list(BRIX.wrap(raw, model=MODEL).stream(USER))
    assert server.requests[-1].body == {"model": MODEL, "messages": USER, "max_tokens": 8_192, "stream": True}


@pytest.mark.parametrize("given", [{}, {"max_tokens": 4_000}, {"extra_body": {"max_tokens": 4_000}}])
def test_a_clamp_changes_exactly_one_key(server: DemoServer, raw: anthropic.Anthropic, given: dict[str, Any]) -> None:
    rest = {"tools": [TOOL], "stop_sequences": ["END"], **given}
    before = sent(server, raw, **rest)
    client = BRIX.wrap(raw, model=MODEL, max_cost_usd=0.005, store=MemoryStore())
    client.complete_sync(USER, **rest)
    after = dict(server.requests[-1].body)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {"max_tokens"}
    assert 16 <= after["max_tokens"] < 4_000


@pytest.mark.parametrize(
    ("messages", "given", "system"),
    [
        (USER, None, None),
        ([{"role": "system", "content": "A"}, *USER], None, "A"),
        ([{"role": "system", "content": "A"}, *USER, {"role": "developer", "content": "B"}], None, "A\n\nB"),
        ([{"role": "system", "content": "B"}, *USER], "A", "A\n\nB"),
        (USER, "A", "A"),
        (USER, CACHED, CACHED),
        ([{"role": "system", "content": CACHED}, *USER], None, CACHED),
        (
            [{"role": "system", "content": "A"}, {"role": "system", "content": CACHED}, *USER],
            None,
            [{"type": "text", "text": "A"}, *CACHED],
        ),
    ],
)
def test_system_messages_become_the_system_prompt(
    server: DemoServer, raw: anthropic.Anthropic, messages: Any, given: Any, system: Any
) -> None:
    kwargs = {} if given is None else {"system": given}
    body = sent(server, raw, messages, **kwargs)
    assert body["messages"] == USER
    assert body.get("system") == system


def test_other_messages_are_passed_on_as_they_are(server: DemoServer, raw: anthropic.Anthropic) -> None:
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "get_weather", "input": {}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "Rain"}]},
    ]
    assert sent(server, raw, talk, tools=[TOOL])["messages"] == talk


def test_a_system_prompt_counts_as_prompt(server: DemoServer, raw: anthropic.Anthropic) -> None:
    target = endpoint()
    long = "Mind your manners. " * 200
    bare = request_to(target).prompt_tokens()
    assert request_to(target, system=long).prompt_tokens() > bare + 500
    assert request_to(target, extra_body={"system": long}).prompt_tokens() > bare + 500
    choice = {"type": "any"}
    assert target.schemas({"tools": [TOOL], "tool_choice": choice, "system": "A"}) == [TOOL, choice, "A"]
    assert target.schemas({"system": anthropic.NOT_GIVEN}) == []


@pytest.mark.parametrize("stream", [False, True])
def test_input_tokens_are_the_sum_with_the_cached_ones(
    server: DemoServer, raw: anthropic.Anthropic, stream: bool
) -> None:
    server.default = Reply("Hi", usage={"prompt_tokens": 100, "cached_tokens": 80, "completion_tokens": 5})
    client = BRIX.wrap(raw, model=MODEL, max_cost_usd=1.0, store=MemoryStore())
    if stream:
        pieces = client.stream(USER)
        list(pieces)
        answer = pieces.result
    else:
        answer = client.complete_sync(USER)
    assert answer.raw.usage.input_tokens == 20
    assert answer.usage == Usage(input_tokens=100, output_tokens=5, cache_read_tokens=80)
    assert answer.cost_usd == pytest.approx(20 * 1e-6 + 80 * 0.1e-6 + 5 * 5e-6, abs=1e-9)


def test_written_cache_and_thinking_tokens_are_read() -> None:
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 30,
        "output_tokens": 40,
        "output_tokens_details": {"thinking_tokens": 25},
    }
    assert read_usage(usage) == Usage(
        input_tokens=60, output_tokens=40, cache_read_tokens=30, cache_write_tokens=20, reasoning_tokens=25
    )
    assert read_usage({}) is None
    assert read_usage({"input_tokens": 0, "output_tokens": 0}) is None


@pytest.mark.parametrize(
    ("base_url", "model", "provider", "identity"),
    [
        ("https://api.anthropic.com", "my-model", "anthropic", "anthropic:api.anthropic.com/my-model"),
        ("http://127.0.0.1:9", MODEL, "anthropic", f"anthropic:127.0.0.1:9/{MODEL}"),
        ("http://127.0.0.1:9", "kimi", None, "custom:127.0.0.1:9/kimi"),
    ],
)
def test_a_target_is_named_and_priced_by_host_and_model(
    base_url: str, model: str, provider: str | None, identity: str
) -> None:
    target = endpoint(model, base_url)
    assert (target.provider, target.identity) == (provider, identity)


async def test_a_request_the_sdk_does_not_send_is_not_charged(server: DemoServer, raw: anthropic.Anthropic) -> None:
    client = BRIX.wrap(raw, model=MODEL, max_cost_usd=10.0, store=MemoryStore())
    with pytest.raises(BrixConfigurationError, match=r"client\.stream"):
        client.complete_sync(USER, max_tokens=64_000)
    with pytest.raises(BrixConfigurationError, match=r"client\.stream"):
        await client.complete(USER, max_tokens=64_000)
    assert (client.context.session_cost_usd, server.stats.requests) == (0.0, 0)
    assert "".join(client.stream(USER, max_tokens=64_000))


_EVENTS: dict[str, Any] = {
    "message_start": types.RawMessageStartEvent,
    "content_block_start": types.RawContentBlockStartEvent,
    "content_block_delta": types.RawContentBlockDeltaEvent,
    "content_block_stop": types.RawContentBlockStopEvent,
    "message_delta": types.RawMessageDeltaEvent,
    "message_stop": types.RawMessageStopEvent,
}


def event(type: str, **fields: Any) -> Any:
    return _EVENTS[type].construct(type=type, **fields)


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[Any]:
    return [
        event("content_block_start", index=index, content_block=start),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


START = event(
    "message_start",
    message={
        "id": "msg",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "cache_read_input_tokens": 3, "output_tokens": 1},
    },
)
BODY = [
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "signature_delta", "signature": "sig"},
    ),
    *block(
        1,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "Pa"},
        {"type": "text_delta", "text": "ris"},
    ),
    *block(
        2,
        {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"a"'},
        {"type": "input_json_delta", "partial_json": ": 1}"},
    ),
]
END = [
    event(
        "message_delta",
        delta={"stop_reason": "tool_use", "stop_sequence": None},
        usage={"output_tokens": 9, "input_tokens": None},
    ),
    event("message_stop"),
]


def test_an_event_gives_all_its_billed_text() -> None:
    pieces = [endpoint().piece(given) for given in [START, *BODY, *END]]
    assert "".join(map(endpoint().read_chunk, pieces)) == 'HmParisf{"a": 1}'
    assert "".join(piece.text for piece in pieces) == "Paris"


def test_events_make_the_response_of_a_plain_call() -> None:
    target = endpoint()
    pieces = [target.piece(given) for given in [START, *BODY, *END]]
    response = target.assemble(pieces, "", request_to(target))
    assert (response.text, response.model, response.finish_reason) == ("Paris", "claude-x", "tool_use")
    assert response.usage == Usage(input_tokens=10, output_tokens=9, cache_read_tokens=3)
    assert response.tool_calls == (ToolCall(id="t", name="f", arguments='{"a": 1}'),)
    thinking, text, tool = response.raw.content
    assert (thinking.thinking, thinking.signature, text.text, tool.input) == ("Hm", "sig", "Paris", {"a": 1})
    assert isinstance(response.raw, types.Message)
    assert response.raw.usage.output_tokens == 9
    assert target.finish(pieces, "", request_to(target)) == response._replace(raw=None)


def test_a_part_of_the_events_makes_a_partial_response() -> None:
    target = endpoint()
    for length in range(len(BODY) + 1):
        pieces = [target.piece(given) for given in [START, *BODY][: length + 1]]
        response = target.assemble(pieces, "", request_to(target))
        assert response.usage is None  # the count of message_start is a beginning, not a total
        assert "Paris".startswith(response.text)
        assert isinstance(response.raw, types.Message)
    empty = target.assemble([], "", request_to(target))
    assert (empty.text, empty.usage, empty.model, empty.raw.content) == ("", None, MODEL, [])


def test_a_response_can_be_told_as_events() -> None:
    target = endpoint()
    response = CallResponse(
        text="Hello",
        usage=Usage(input_tokens=9, output_tokens=5, cache_read_tokens=4, cache_write_tokens=2, reasoning_tokens=1),
        model="m",
        tool_calls=(ToolCall(id="1", name="f", arguments="{}"),),
        finish_reason="tool_use",
    )
    assert target.finish(target.as_chunks(response), "", request_to(target)) == response
    bare = CallResponse(text="", model="m", finish_reason="timeout")
    assert target.finish(target.as_chunks(bare), "", request_to(target)) == bare
