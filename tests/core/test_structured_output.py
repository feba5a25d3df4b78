"""Structured output over the real SDKs and real HTTP: instances from BRIX.wrap, schemas in the providers' own ways."""

from __future__ import annotations

import asyncio
import itertools
import json
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from brix_core import BrixConfigurationError, BrixError, BrixLoopError, BrixSchemaError, BrixTimeoutError, MemoryStore
from brix_core.client import BRIX, BrixClient
from brix_core.completion import Completion
from brix_core.demo import DemoServer, EndlessRepetition, JsonReply, Reply, ServerError, StalledStream, ToolCalls
from brix_core.endpoints.openai import OpenAIEndpoint
from brix_core.endpoints.sources import aclose
from brix_core.endpoints.structured import output_format, response_format
from brix_core.structured.object_stream import ObjectStream
from brix_core.structured.response_schema import INSTRUCTIONS_HEADING, ResponseSchema
from tests.support.schemas import KINDS, OSLO, VALID, City

CLIENTS = ("openai.OpenAI", "openai.AsyncOpenAI", "anthropic.Anthropic", "anthropic.AsyncAnthropic")
NATIVE = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
OTHER = {"openai": "gpt-4-turbo", "anthropic": "my-claude"}
SCHEMA = ResponseSchema.of(City)
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}

in_loop = pytest.mark.asyncio(loop_scope="module")
every_client = pytest.mark.parametrize("name", CLIENTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(demo_server: DemoServer) -> AsyncIterator[dict[str, Any]]:
    made = {}
    for name in CLIENTS:
        package, _, kind = name.partition(".")
        module = openai if package == "openai" else anthropic
        url = demo_server.base_url if package == "openai" else demo_server.anthropic_base_url
        made[name] = getattr(module, kind)(api_key="test", base_url=url)
    yield made
    for client in made.values():
        await aclose(client)


Wrap = Callable[..., BrixClient[Any]]


@pytest.fixture
def wrap(server: DemoServer, clients: dict[str, Any]) -> Wrap:
    """Puts guards around the client of that class; answers are cities."""

    def wrapped(name: str, **options: Any) -> BrixClient[Any]:
        options = {"model": NATIVE[name.partition(".")[0]], "response_schema": City, **options}
        return BRIX.wrap(clients[name], store=MemoryStore(), session_id="s", **options)

    return wrapped


async def by_complete(client: BrixClient[Any], **kwargs: Any) -> Any:
    return await client.complete("Where?", **kwargs)


async def by_complete_sync(client: BrixClient[Any], **kwargs: Any) -> Any:
    return client.complete_sync("Where?", **kwargs)


async def by_stream(client: BrixClient[Any], **kwargs: Any) -> Any:
    with client.stream("Where?", **kwargs) as stream:
        return list(stream)[-1]


async def by_astream(client: BrixClient[Any], **kwargs: Any) -> Any:
    async with client.stream("Where?", **kwargs) as stream:
        return [value async for value in stream][-1]


every_entry = pytest.mark.parametrize(
    "ask", [by_complete, by_complete_sync, by_stream, by_astream], ids=lambda entry: entry.__name__
)


def format_sent(body: Any) -> Any:
    return body.get("response_format") or body.get("output_config")


def system_sent(body: Any) -> str:
    first = body["messages"][0]
    return str(body.get("system") or (first["content"] if first["role"] == "system" else ""))


# -- instances -----------------------------------------------------------------------------------------------


@every_client
@every_entry
@in_loop
async def test_every_entry_point_gives_an_instance(server: DemoServer, wrap: Wrap, name: str, ask: Any) -> None:
    client = wrap(name, max_cost_usd=1.0)
    server.script(Reply(VALID))
    assert await ask(client) == OSLO
    [record] = server.requests
    sent = format_sent(record.body)
    if name.startswith("openai"):
        assert sent == response_format(SCHEMA)
        assert sent["json_schema"]["strict"] is True
    else:
        assert sent == {"format": output_format(SCHEMA)}
    assert system_sent(record.body) == ""
    assert client.context.session_cost_usd > 0


@every_client
@pytest.mark.parametrize("model", ["native", "other"])
@every_entry
@in_loop
async def test_heals_are_requests_the_server_counts(
    server: DemoServer, wrap: Wrap, name: str, ask: Any, model: str
) -> None:
    model = (NATIVE if model == "native" else OTHER)[name.partition(".")[0]]
    client = wrap(name, model=model, max_cost_usd=1.0, unknown_price="free", stream_mode="validated")
    server.script(Reply('{"name": "Oslo"}'), Reply("Sorry!"), Reply(VALID))
    assert await ask(client) == OSLO
    [trace] = client.get_traces()
    healings = [made for made in trace["decisions"] if made["decision"] == "healing"]
    assert len(trace["attempts"]) == server.stats.requests == 1 + len(healings) == 3
    native = model in NATIVE.values()
    for record in server.requests:
        assert bool(format_sent(record.body)) is native
        assert (INSTRUCTIONS_HEADING in system_sent(record.body)) is not native
    last = server.requests[-1].body["messages"]
    assert [message["role"] for message in last][-3:] == ["user", "assistant", "user"]
    assert last[-2]["content"] == "Sorry!"
    assert "no JSON" in last[-1]["content"]
    assert client._pipeline.store.balance("budget:s").reserved == 0


@every_client
@every_entry
@in_loop
async def test_an_answer_that_never_fits_fails_with_its_history(
    server: DemoServer, wrap: Wrap, name: str, ask: Any
) -> None:
    client = wrap(name, max_schema_retries=1, stream_mode="validated")
    server.default = Reply("Never.")
    with pytest.raises(BrixSchemaError) as caught:
        await ask(client)
    assert [attempt.text for attempt in caught.value.attempts] == ["Never."] * 2
    assert server.stats.requests == 2


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_a_model_held_to_any_kind_of_schema_answers_in_one_go(server: DemoServer, wrap: Wrap, kind: str) -> None:
    for name in ("openai.AsyncOpenAI", "anthropic.AsyncAnthropic"):  # the server answers by the schema it is sent
        schema, example = KINDS[kind]
        assert type(await wrap(name, response_schema=schema).complete("Where?")) is type(example)
    assert server.stats.requests == 2


@in_loop
async def test_failover_carries_the_schema_to_a_model_that_takes_it_otherwise(
    server: DemoServer, wrap: Wrap, clients: dict[str, Any]
) -> None:
    other = (clients["anthropic.AsyncAnthropic"], OTHER["anthropic"])
    client = wrap("openai.AsyncOpenAI", fallbacks=[other])
    server.script(ServerError(), Reply("Hm."), Reply(VALID))
    assert await client.complete("Where?") == OSLO
    first, second, third = (record.body for record in server.requests)
    assert [bool(format_sent(body)) for body in (first, second, third)] == [True, False, True]
    assert all(INSTRUCTIONS_HEADING in system_sent(body) for body in (first, second, third))
    assert server.requests[1].path == "/v1/messages"
    server.script(ServerError(), Reply(VALID))
    both = wrap("openai.AsyncOpenAI", fallbacks=[(clients["anthropic.AsyncAnthropic"], NATIVE["anthropic"])])
    assert await both.complete("Where?") == OSLO
    server.script(ServerError(), Reply(VALID))
    follows = wrap("openai.AsyncOpenAI", model=OTHER["openai"], fallbacks=[clients["openai.OpenAI"]])
    assert await follows.complete("Where?", model=NATIVE["openai"]) == OSLO
    assert all(format_sent(record.body) and not system_sent(record.body) for record in server.requests[3:])
    assert server.stats.requests == 7


@every_entry
@in_loop
async def test_other_tools_come_first(server: DemoServer, wrap: Wrap, ask: Any) -> None:
    client = wrap("openai.AsyncOpenAI")
    server.script(ToolCalls([("get_weather", {})]), Reply(VALID))
    if ask in (by_complete, by_complete_sync):
        answer = await ask(client, tools=[WEATHER])
        assert type(answer) is Completion
        assert (answer.tool_calls[0].name, answer.parsed) == ("get_weather", None)
    else:
        with client.stream("Where?", tools=[WEATHER]) as stream:
            assert list(stream) == []
        assert stream.result.tool_calls[0].name == "get_weather"
    assert await ask(client, tools=[WEATHER]) == OSLO
    assert "tools" in server.requests[-1].body
    assert format_sent(server.requests[-1].body)


@in_loop
async def test_a_refusal_is_shown_as_the_answer_it_is(server: DemoServer, wrap: Wrap) -> None:
    endpoint = wrap("openai.OpenAI", max_schema_retries=0)._endpoint
    assert isinstance(endpoint, OpenAIEndpoint)
    request = wrap("openai.OpenAI")._pipeline.request(endpoint, [{"role": "user", "content": "?"}], {})
    raw = openai.types.chat.ChatCompletion.construct(
        choices=[{"message": {"content": None, "refusal": "I will not."}, "finish_reason": "stop"}]
    )
    response = endpoint._response(raw, request)
    assert (response.text, response.finish_reason) == ("I will not.", "refusal")
    assert endpoint._response(raw, request.evolve(schema=None)).text == ""
    chunk = openai.types.chat.ChatCompletionChunk.construct(
        choices=[{"index": 0, "delta": {"refusal": "I will not."}, "finish_reason": "stop"}]
    )
    assert endpoint.finish([endpoint.piece(chunk)], "", request).finish_reason == "refusal"
    assert endpoint.assemble([endpoint.piece(chunk)], "", request).text == "I will not."


# -- streams of objects --------------------------------------------------------------------------------------


@every_client
@in_loop
async def test_a_stream_gives_the_growing_value_and_last_the_instance(
    server: DemoServer, wrap: Wrap, name: str
) -> None:
    client = wrap(name)
    server.default = Reply(VALID, chunk_size=3)
    stream = client.stream("Where?")
    assert isinstance(stream, ObjectStream)
    *growing, last = list(stream)
    assert last == OSLO
    assert growing[0] == {}
    assert growing[-1].keys() <= {"name", "people"}
    assert all(one != other for one, other in itertools.pairwise(growing))
    assert [len(json.dumps(value)) for value in growing] == sorted(len(json.dumps(value)) for value in growing)
    assert (stream.result, stream.result.parsed) == (VALID, OSLO)
    async with client.stream("Where?") as again:
        assert [value async for value in again] == [*growing, last]
        assert [value async for value in again] == []
    assert again.result.parsed == OSLO
    assert list(stream) == []


@in_loop
async def test_an_object_stream_that_does_not_fit_fails_at_its_end(server: DemoServer, wrap: Wrap) -> None:
    client = wrap("openai.AsyncOpenAI")
    server.default = Reply('{"name": "Oslo", "people": "many"}')
    seen = []
    stream = client.stream("Where?")

    async def read() -> None:
        async for value in stream:
            seen.append(value)

    with pytest.raises(BrixSchemaError, match=r"\$\.people"):
        await read()
    assert seen[-1]["name"] == "Oslo"
    with pytest.raises(BrixError, match="failed"):
        _ = stream.result
    assert [value async for value in stream] == []
    assert server.stats.requests == 1


@every_client
@in_loop
async def test_closing_an_object_stream_frees_what_it_held(server: DemoServer, wrap: Wrap, name: str) -> None:
    client = wrap(name, max_cost_usd=1.0)
    server.default = StalledStream(after=4, text=VALID)
    async with client.stream("Where?", max_tokens=100) as stream:
        assert await anext(stream) == {}
        assert client._pipeline.store.balance("budget:s").reserved > 0
    assert client._pipeline.store.balance("budget:s").reserved == 0
    assert client.get_traces()[0]["outcome"] == "abandoned"
    assert [value async for value in stream] == []
    server.wait_until_idle(2.0)


@in_loop
async def test_a_schema_joins_what_the_caller_gave_beside_it(server: DemoServer, wrap: Wrap) -> None:
    client = wrap("anthropic.AsyncAnthropic")
    server.default = JsonReply({"name": "Oslo", "people": 700_000})
    given = {"effort": "low"}
    assert await client.complete("Where?", output_config=given) == OSLO
    assert await client.complete("Where?", extra_body={"output_config": given}) == OSLO
    for record in server.requests:
        assert record.body["output_config"] == {"effort": "low", "format": output_format(SCHEMA)}
    assert given == {"effort": "low"}


# -- what is wrong -------------------------------------------------------------------------------------------


@every_client
@in_loop
async def test_a_schema_is_given_to_wrap_and_not_to_a_call(server: DemoServer, wrap: Wrap, name: str) -> None:
    with pytest.raises(BrixConfigurationError, match="no parameter 'response_schema'"):
        await wrap(name).complete("Where?", response_schema=City)
    with pytest.raises(BrixConfigurationError, match="response_schema must be"):
        wrap(name, response_schema=int)
    assert server.stats.requests == 0


def test_a_completion_keeps_its_instance_through_pickle() -> None:
    answer = Completion(VALID, parsed=OSLO)
    assert pickle.loads(pickle.dumps(answer)).parsed == OSLO


# -- what is held back is watched as it comes --------------------------------------------------------------------


@in_loop
@pytest.mark.parametrize("ask", [by_stream, by_astream])
@pytest.mark.parametrize("name", ["openai.AsyncOpenAI", "anthropic.AsyncAnthropic"])
async def test_a_held_back_stream_that_degenerates_is_cut_off(
    server: DemoServer, wrap: Wrap, name: str, ask: Any
) -> None:
    server.default = EndlessRepetition(text="going on and on ", limit=3_000)
    client = wrap(name, stream_mode="validated", tool_loop_detection=True, max_cost_usd=0.05)
    with pytest.raises(BrixLoopError) as caught:
        await ask(client)
    assert caught.value.kind == "stream"
    await asyncio.to_thread(server.wait_until_idle)
    [record] = server.requests
    assert record.stream
    assert record.completion_tokens < 1_000
    assert len(client.get_traces()[0]["attempts"]) == server.stats.requests


@in_loop
@pytest.mark.parametrize("ask", [by_stream, by_astream])
@pytest.mark.parametrize("name", CLIENTS)
async def test_a_held_back_stream_that_stalls_is_given_up(server: DemoServer, wrap: Wrap, name: str, ask: Any) -> None:
    if ask is by_astream and "Async" not in name:
        pytest.skip("a blocking client has no asynchronous stream")
    server.default = StalledStream(after=2, text=VALID)
    client = wrap(name, stream_mode="validated", idle_timeout=0.2, first_token_timeout=5.0)
    with pytest.raises(BrixTimeoutError, match=r"idle_timeout=0\.2") as caught:
        await ask(client)
    assert caught.value.partial
    assert VALID.startswith(caught.value.partial)


@in_loop
@every_client
async def test_an_answer_that_begins_like_the_one_before_is_no_repetition(
    server: DemoServer, wrap: Wrap, name: str
) -> None:
    long = '{"name": "' + "Oslo, the capital, " * 12 + '"}'
    server.script(*[Reply(long)] * 2, JsonReply({"name": "Oslo", "people": 700_000}))
    client = wrap(name, stream_mode="validated", tool_loop_detection=True, max_schema_retries=2)
    with client.stream("Where?") as stream:
        assert list(stream)[-1] == OSLO
    assert server.stats.requests == len(client.get_traces()[0]["attempts"]) == 3


@in_loop
@every_client
@pytest.mark.parametrize("ask", [by_complete, by_complete_sync])
async def test_limits_between_chunks_do_not_bound_a_whole_answer(
    server: DemoServer, wrap: Wrap, name: str, ask: Any
) -> None:
    server.default = Reply(VALID, latency=0.8)
    client = wrap(name, idle_timeout=0.05, first_token_timeout=0.05)
    assert await ask(client) == OSLO
