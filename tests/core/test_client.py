"""BRIX.wrap over the real SDKs and real HTTP: every entry point, on both kinds of client."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from brix_core import (
    BrixBudgetError,
    BrixConfigurationError,
    BrixError,
    BrixFailoverError,
    BrixRetryError,
    BrixTimeoutError,
    MemoryStore,
    session,
)
from brix_core.call import ToolCall
from brix_core.client import BRIX, BrixClient
from brix_core.completion import Completion
from brix_core.demo import (
    BadRequest,
    CutStream,
    DemoServer,
    EndlessRepetition,
    RateLimited,
    Reply,
    ServerError,
    SlowFirstToken,
    StalledStream,
    ToolCalls,
)
from brix_core.endpoints import LLMClient
from brix_core.endpoints.sources import aclose

CLIENTS = ("openai.OpenAI", "openai.AsyncOpenAI", "anthropic.Anthropic", "anthropic.AsyncAnthropic")
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
USER = [{"role": "user", "content": "Capital of France?"}]


def fresh_store(**options: Any) -> dict[str, Any]:
    return {"store": MemoryStore(), "session_id": "s", **options}


Wrap = Callable[..., BrixClient]


# One loop and one client of each kind for the whole module: making a client costs more than most tests.
in_loop = pytest.mark.asyncio(loop_scope="module")


def new_client(server: DemoServer, name: str, **options: Any) -> Any:
    package, _, kind = name.partition(".")
    module = openai if package == "openai" else anthropic
    url = server.base_url if package == "openai" else server.anthropic_base_url
    return getattr(module, kind)(api_key="test", base_url=url, **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(demo_server: DemoServer) -> AsyncIterator[dict[str, Any]]:
    made = {name: new_client(demo_server, name) for name in CLIENTS}
    yield made
    for client in made.values():
        await aclose(client)


@pytest.fixture
def wrap(server: DemoServer, clients: dict[str, Any]) -> Wrap:
    """Puts guards around the client of that class."""
    return lambda name, **options: BRIX.wrap(clients[name], model=MODELS[name.partition(".")[0]], **options)


async def by_complete(client: BrixClient, messages: Any = "Hi", **kwargs: Any) -> Completion:
    return await client.complete(messages, **kwargs)


async def by_acomplete(client: BrixClient, messages: Any = "Hi", **kwargs: Any) -> Completion:
    return await client.acomplete(messages, **kwargs)


async def by_complete_sync(client: BrixClient, messages: Any = "Hi", **kwargs: Any) -> Completion:
    return client.complete_sync(messages, **kwargs)


async def by_stream(client: BrixClient, messages: Any = "Hi", **kwargs: Any) -> Completion:
    with client.stream(messages, **kwargs) as stream:
        text = "".join(stream)
    assert stream.result == text
    return stream.result


async def by_astream(client: BrixClient, messages: Any = "Hi", **kwargs: Any) -> Completion:
    async with client.stream(messages, **kwargs) as stream:
        text = "".join([piece async for piece in stream])
    assert stream.result == text
    return stream.result


Ask = Callable[..., Awaitable[Completion]]
ENTRIES = [by_complete, by_complete_sync, by_stream, by_astream]  # acomplete is complete by another name
every_client = pytest.mark.parametrize("name", CLIENTS)
every_entry = pytest.mark.parametrize("ask", ENTRIES, ids=lambda entry: entry.__name__)


def attempts(client: BrixClient) -> int:
    return sum(len(trace["attempts"]) for trace in client.get_traces())


async def all_arrived(server: DemoServer, client: BrixClient) -> None:
    """Wait for requests of calls that timed out so early that they had not left: no other test shall see them."""
    for _ in range(100):
        if server.stats.requests >= attempts(client):
            return
        await asyncio.sleep(0.01)


def reserved(client: BrixClient) -> int:
    balance: int = client._pipeline.store.balance("budget:s").reserved
    return balance


@every_client
@pytest.mark.parametrize("ask", [*ENTRIES, by_acomplete], ids=lambda entry: entry.__name__)
@in_loop
async def test_every_entry_point_answers_and_is_seen_by_the_guards(
    server: DemoServer, wrap: Wrap, name: str, ask: Ask
) -> None:
    client = wrap(name, max_cost_usd=1.0, **fresh_store())
    server.script(Reply("Paris, of course."))
    answer = await ask(client, USER)
    assert answer == "Paris, of course."
    assert answer.model == MODELS[name.partition(".")[0]]
    assert answer.finish_reason in ("stop", "end_turn")
    assert (answer.partial, answer.tool_calls) == (False, ())
    assert answer.usage is not None
    assert answer.usage.input_tokens == server.stats.prompt_tokens
    assert answer.usage.output_tokens == server.stats.completion_tokens
    [trace] = client.get_traces()
    assert (trace["outcome"], trace["run_id"], trace["cost_usd"]) == ("ok", answer.run_id, answer.cost_usd)
    assert answer.cost_usd is not None
    assert 0 < answer.cost_usd == client.context.session_cost_usd
    assert attempts(client) == server.stats.requests == 1


@every_client
@every_entry
@pytest.mark.parametrize("fault", [ServerError(500), RateLimited(retry_after="0")], ids=["500", "429"])
@in_loop
async def test_requests_are_exactly_those_the_guards_made(
    server: DemoServer, wrap: Wrap, name: str, ask: Ask, fault: Any
) -> None:
    server.default = fault
    bare = wrap(name)
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)):
        await ask(bare)
    assert attempts(bare) == server.stats.requests == 1

    server.reset()
    server.default = fault
    retrying = wrap(name, max_retries=2, max_backoff=0.001)
    with pytest.raises(BrixRetryError):
        await ask(retrying)
    assert attempts(retrying) == server.stats.requests == 3


@every_client
@every_entry
@in_loop
async def test_a_retry_answers_after_a_failure(server: DemoServer, wrap: Wrap, name: str, ask: Ask) -> None:
    client = wrap(name, max_retries=1, max_backoff=0.001)
    server.script(ServerError(503), Reply("At last."))
    assert await ask(client) == "At last."
    assert client.context.metadata["retry_history"][0]["status"] == 503
    assert attempts(client) == server.stats.requests == 2


@every_client
@every_entry
@in_loop
async def test_a_refused_call_sends_nothing(server: DemoServer, wrap: Wrap, name: str, ask: Ask) -> None:
    client = wrap(name, max_cost_usd=1e-9, **fresh_store())
    with pytest.raises(BrixBudgetError):
        await ask(client)
    assert server.stats.requests == attempts(client) == 0
    assert client.get_traces()[0]["outcome"] == "refused"


@every_client
@every_entry
@in_loop
async def test_tool_calls_come_whole(server: DemoServer, wrap: Wrap, name: str, ask: Ask) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("get_weather", {"city": "Zürich"}),
        ("get_time", {"zone": "CET", "hours": [1, 2]}),
    ]
    server.script(ToolCalls(calls, text="Let me look."))
    answer = await ask(wrap(name))
    assert answer == "Let me look."
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == calls
    assert all(call.id for call in answer.tool_calls)


@every_client
@in_loop
async def test_a_stream_gives_the_same_response_as_a_plain_call(server: DemoServer, wrap: Wrap, name: str) -> None:
    client = wrap(name)
    behaviour = ToolCalls([("get_weather", {"city": "Oslo"})], text="One moment.")
    server.script(behaviour, behaviour)
    plain, streamed = client.complete_sync(USER), await by_stream(client, USER)
    passing = {"id", "created"}

    def comparable(answer: Completion) -> Any:
        data = {key: value for key, value in answer.raw.to_dict().items() if key not in passing}
        # Numbered by request, as is the id.
        return json.loads(json.dumps(data).replace("00000001", "00000000").replace("_1_", "_0_"))

    assert type(streamed.raw) is type(plain.raw)
    assert comparable(streamed) == comparable(plain)
    assert streamed.usage == plain.usage


# -- leaving early -------------------------------------------------------------------------------------------


@every_client
@in_loop
async def test_closing_a_stream_frees_what_it_held(server: DemoServer, wrap: Wrap, name: str) -> None:
    client = wrap(name, max_cost_usd=1.0, **fresh_store())
    server.default = EndlessRepetition()
    with client.stream("Hi", max_tokens=4_000) as stream:
        assert [next(stream), next(stream)] == ["again and again "] * 2
        assert reserved(client) > 0
    assert reserved(client) == 0
    assert client.get_traces()[0]["outcome"] == "abandoned"
    assert client.get_traces()[0]["partial_text"].startswith("again and again again")
    assert server.wait_until_idle(2.0)
    assert (server.stats.aborted, server.stats.requests, attempts(client)) == (1, 1, 1)
    with pytest.raises(BrixError, match="closed"):
        _ = stream.result


@every_client
@in_loop
async def test_closing_an_async_stream_frees_what_it_held(server: DemoServer, wrap: Wrap, name: str) -> None:
    client = wrap(name, max_cost_usd=1.0, **fresh_store())
    server.default = EndlessRepetition()
    async with client.stream("Hi", max_tokens=4_000) as stream:
        assert [await anext(stream), await anext(stream)] == ["again and again "] * 2
        assert reserved(client) > 0
    assert reserved(client) == 0
    assert client.get_traces()[0]["outcome"] == "abandoned"
    assert await asyncio.to_thread(server.wait_until_idle, 2.0)
    assert (server.stats.aborted, server.stats.requests) == (1, 1)


@every_client
@in_loop
async def test_a_dropped_sync_stream_is_abandoned(server: DemoServer, wrap: Wrap, name: str) -> None:
    client = wrap(name, max_cost_usd=1.0, **fresh_store())
    server.default = EndlessRepetition()
    for _ in client.stream("Hi", max_tokens=4_000):
        break
    assert reserved(client) == 0
    assert client.get_traces()[0]["outcome"] == "abandoned"
    assert server.wait_until_idle(2.0)


@every_client
@pytest.mark.parametrize("ask", [by_complete, by_astream], ids=["complete", "stream"])
@in_loop
async def test_cancelling_frees_what_the_call_held(server: DemoServer, wrap: Wrap, name: str, ask: Ask) -> None:
    client = wrap(name, max_cost_usd=1.0, **fresh_store())
    server.default = SlowFirstToken(0.4)
    task = asyncio.ensure_future(ask(client))
    while not server.stats.in_flight:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reserved(client) == 0
    assert client.get_traces()[0]["outcome"] == "cancelled"
    assert client.context.session_cost_usd > 0  # the provider may have done the work


@in_loop
async def test_a_slow_consumer_loses_nothing(server: DemoServer, wrap: Wrap) -> None:
    text = " ".join(map(str, range(300)))
    server.default = Reply(text, chunk_size=2)
    for name in CLIENTS:
        client = wrap(name)
        pieces = []
        for number, piece in enumerate(client.stream("Hi")):
            if number % 300 == 0:
                time.sleep(0.01)
            pieces.append(piece)
        assert "".join(pieces) == text
        assert await by_astream(client) == text


# -- time limits ---------------------------------------------------------------------------------------------


@every_client
@every_entry
@in_loop
async def test_no_caller_waits_longer_than_per_call_timeout(
    server: DemoServer, wrap: Wrap, name: str, ask: Ask
) -> None:
    client = wrap(name, per_call_timeout=0.1)
    with suppress(BrixTimeoutError):
        await ask(client)  # connections and imports are not what is measured
    server.default = SlowFirstToken(0.6)
    before = time.monotonic()
    with pytest.raises(BrixTimeoutError, match="per_call_timeout"):
        await ask(client)
    assert 0.09 < time.monotonic() - before < 0.4
    assert client.get_traces()[0]["outcome"] == "timed_out"
    await all_arrived(server, client)


@every_client
@every_entry
@in_loop
async def test_return_partial_gives_what_has_arrived(server: DemoServer, wrap: Wrap, name: str, ask: Ask) -> None:
    client = wrap(name, per_call_timeout=0.15, on_timeout="return_partial", max_cost_usd=1.0, **fresh_store())
    await ask(client)  # connections and imports take time as well
    server.default = StalledStream(after=5, text="This much has arrived and no more than that.")
    answer = await ask(client)
    assert answer == "This much has arrive"
    assert answer.partial
    assert (answer.finish_reason, answer.usage) == ("timeout", None)
    assert client.get_traces()[0]["outcome"] == "timed_out"
    assert client.get_traces()[0]["partial_text"] == answer
    assert reserved(client) == 0
    assert client.context.session_cost_usd > 0
    assert type(answer.raw).__name__ in ("ChatCompletion", "Message")
    await all_arrived(server, client)


@every_client
@every_entry
@in_loop
async def test_return_partial_of_nothing_is_an_empty_answer(
    server: DemoServer, wrap: Wrap, name: str, ask: Ask
) -> None:
    client = wrap(name, per_call_timeout=0.08, on_timeout="return_partial")
    server.default = SlowFirstToken(0.5)
    answer = await ask(client)
    assert (str(answer), answer.partial, answer.finish_reason) == ("", True, "timeout")
    await all_arrived(server, client)


@every_client
@pytest.mark.parametrize("ask", [by_stream, by_astream], ids=["sync", "async"])
@in_loop
async def test_an_idle_stream_times_out(server: DemoServer, wrap: Wrap, name: str, ask: Ask) -> None:
    client = wrap(name, idle_timeout=0.15, first_token_timeout=5.0)
    server.default = StalledStream(after=2, text="12345678")
    with pytest.raises(BrixTimeoutError, match="idle_timeout") as caught:
        await ask(client)
    assert caught.value.partial == "12345678"
    await all_arrived(server, client)


@every_client
@pytest.mark.parametrize("ask", [by_complete, by_complete_sync, by_stream, by_astream])
@in_loop
async def test_a_limit_of_ages_is_no_limit(server: DemoServer, wrap: Wrap, name: str, ask: Ask) -> None:
    await ask(wrap(name, per_call_timeout=1e12, total_timeout=1e12, idle_timeout=1e12, first_token_timeout=1e12))
    assert server.stats.answered == 1


@pytest.mark.parametrize("name", ["openai.OpenAI", "openai.AsyncOpenAI"])
@in_loop
async def test_a_call_left_behind_ends_soon(server: DemoServer, wrap: Wrap, name: str) -> None:
    client = wrap(name, per_call_timeout=0.1)
    server.default = StalledStream()
    with pytest.raises(BrixTimeoutError):
        client.complete_sync("Hi")
    await all_arrived(server, client)
    assert server.wait_until_idle(2.5)


@every_client
@pytest.mark.parametrize("ask", [by_stream, by_astream], ids=["sync", "async"])
@in_loop
async def test_a_stream_that_breaks_fails_and_is_not_tried_again(
    server: DemoServer, wrap: Wrap, name: str, ask: Ask
) -> None:
    client = wrap(name, max_retries=2, max_backoff=0.001)
    server.default = CutStream(after=3)
    with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|connection"):
        await ask(client)
    assert client.get_traces()[0]["outcome"] == "failed"
    assert attempts(client) == server.stats.requests == 1


# -- many at once --------------------------------------------------------------------------------------------


@every_client
@in_loop
async def test_fifty_at_once(server: DemoServer, wrap: Wrap, name: str) -> None:
    client = wrap(name, max_cost_usd=10.0, **fresh_store())
    server.default = Reply("Yes", latency=0.02)
    answers = await asyncio.gather(*(client.complete(f"Question {number}") for number in range(50)))
    assert answers == ["Yes"] * 50
    assert attempts(client) == server.stats.requests == 50
    assert reserved(client) == 0
    assert client.context.session_cost_usd == pytest.approx(sum(answer.cost_usd or 0.0 for answer in answers))


@pytest.mark.parametrize("name", ["openai.OpenAI", "openai.AsyncOpenAI"])
@in_loop
async def test_twenty_threads_at_once(server: DemoServer, wrap: Wrap, name: str) -> None:
    client = wrap(name)
    server.default = Reply("Yes", latency=0.02)
    answers: list[str] = []

    def ask(number: int) -> None:
        answers.append(client.complete_sync("Hi") if number % 2 else "".join(client.stream("Hi")))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert answers == ["Yes"] * 20
    assert attempts(client) == server.stats.requests == 20


# asyncio.run closes its loop under connections that are still open: the bare SDK warns in the same way.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("package", ["openai", "anthropic"])
def test_one_client_serves_one_event_loop_after_the_other(server: DemoServer, package: str) -> None:
    assert three_loops(server, package) == server.stats.requests == 9
    gc.collect()  # here, where the warnings are expected


def three_loops(server: DemoServer, package: str) -> int:
    name = "AsyncOpenAI" if package == "openai" else "AsyncAnthropic"
    client = BRIX.wrap(new_client(server, f"{package}.{name}"), model=MODELS[package])
    for _ in range(3):
        assert asyncio.run(by_complete(client, "Hi")) == asyncio.run(by_astream(client, "Hi"))
        assert client.complete_sync("Hi")
    return attempts(client)


# -- what is given, and what is wrong with it ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "problem"),
    [
        (None, "None cannot be wrapped; accepted are openai.OpenAI"),
        ("gpt-4o", "'gpt-4o' cannot be wrapped"),
        (openai, "module 'openai'"),
        (openai.OpenAI, "OpenAI is a class; give an instance"),
        (object(), "object object .* cannot be wrapped"),
    ],
)
def test_a_client_of_no_known_kind_is_refused(client: Any, problem: str) -> None:
    with pytest.raises(BrixConfigurationError, match=problem):
        BRIX.wrap(client)


def test_a_guarded_client_is_not_guarded_twice() -> None:
    with pytest.raises(BrixConfigurationError, match="guarded already"):
        BRIX.wrap(BRIX.wrap(Parrot()))


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages is empty"),
        ({"role": "user", "content": "Hi"}, "put a single message in a list"),
        (7, "got int"),
        ([{"role": "user", "content": "a"}, "b"], r"messages\[1\] must be a dict with a role, got str"),
        ([{"content": "a"}], r"messages\[0\] has no role; it has only \['content'\]"),
        ([{"role": "", "content": "a"}], r"messages\[0\] has no role"),
        (
            [openai.types.chat.ChatCompletionMessage(role="assistant", content="a")],
            r"messages\[0\] .*model_dump\(exclude_none=True\)",
        ),
    ],
)
@every_entry
@in_loop
async def test_bad_messages_are_refused_before_anything_begins(
    server: DemoServer, wrap: Wrap, messages: Any, problem: str, ask: Ask
) -> None:
    client = wrap("openai.AsyncOpenAI", max_cost_usd=1.0)
    with pytest.raises(BrixConfigurationError, match=problem):
        await ask(client, messages)
    assert (client.get_traces(), client.context.call_count, server.stats.requests) == ([], 0, 0)


@every_client
@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({"max_token": 5}, "no parameter 'max_token'; did you mean max_tokens"),
        ({"wholly_unheard_of": 5}, "extra_body"),
        ({"stream": True}, r"client\.stream"),
        ({"extra_body": {"model": "gpt-4"}}, "model="),
        ({"tools": iter([])}, "tools must be a list"),
        ({"model": ""}, "model must be a non-empty str"),
    ],
)
@in_loop
async def test_bad_parameters_are_refused_before_anything_begins(
    server: DemoServer, wrap: Wrap, name: str, kwargs: dict[str, Any], problem: str
) -> None:
    client = wrap(name)
    with pytest.raises(BrixConfigurationError, match=problem):
        await client.complete("Hi", **kwargs)
    assert (client.get_traces(), server.stats.requests) == ([], 0)


def test_no_model_anywhere_is_refused(server: DemoServer) -> None:
    with openai.OpenAI(api_key="test", base_url=server.base_url) as raw:
        client = BRIX.wrap(raw)
        with pytest.raises(BrixConfigurationError, match=r"complete\(messages, model=\.\.\.\)"):
            client.complete_sync("Hi")
        assert client.complete_sync("Hi", model="gpt-4o") == client.complete_sync("Hi", "gpt-4o")
    assert {record.model for record in server.requests} == {"gpt-4o"}


@in_loop
async def test_a_system_prompt_is_taken_for_every_client(server: DemoServer, wrap: Wrap) -> None:
    for name in CLIENTS:
        await wrap(name).complete("Hi", system="Be brief.")
    first, _, third, _ = (record.body for record in server.requests)
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (third["system"], third["messages"]) == ("Be brief.", [{"role": "user", "content": "Hi"}])


@every_client
@in_loop
async def test_a_custom_http_client_stays_on_its_own_loop(server: DemoServer, name: str) -> None:
    module = openai if name.startswith("openai") else anthropic
    is_async = "Async" in name
    http: Any = module.DefaultAsyncHttpxClient() if is_async else module.DefaultHttpxClient()
    raw = new_client(server, name, http_client=http)
    client = BRIX.wrap(raw, model="gpt-4o-mini")
    assert await client.complete("Hi")
    if is_async:
        with pytest.raises(BrixConfigurationError, match=r"wrap the synchronous"):
            client.complete_sync("Hi")
    else:
        assert client.complete_sync("Hi")
    assert server.stats.requests == (1 if is_async else 2)
    await aclose(raw)


# -- failover ------------------------------------------------------------------------------------------------


@in_loop
async def test_fallbacks_are_models_pairs_or_clients(server: DemoServer, wrap: Wrap) -> None:
    other = anthropic.AsyncAnthropic(api_key="test", base_url=server.anthropic_base_url)
    twin = openai.AsyncOpenAI(api_key="test", base_url=server.base_url)
    client = wrap("openai.AsyncOpenAI", fallbacks=["gpt-4o", twin, (other, "claude-haiku-4-5")])
    server.script(*[ServerError()] * 3, Reply("Here.", chunk_size=1))
    answer = await client.complete("Hi", "gpt-4.1")
    asked = ["gpt-4.1", "gpt-4o", "gpt-4.1", "claude-haiku-4-5"]
    assert [record.model for record in server.requests] == asked
    assert (answer, answer.model, type(answer.raw).__name__) == ("Here.", "claude-haiku-4-5", "Message")
    assert attempts(client) == 4

    server.script(*[ServerError()] * 3, Reply("Here too.", chunk_size=1))
    streamed = await by_astream(client)
    assert (streamed, streamed.model, streamed.finish_reason) == ("Here too.", "claude-haiku-4-5", "end_turn")
    assert (streamed.usage is not None, type(streamed.raw).__name__) == (True, "Message")

    server.default = ServerError()
    with pytest.raises(BrixFailoverError) as caught:
        await client.complete("Hi")
    assert len(caught.value.errors) == 4
    await other.close()
    await twin.close()


@in_loop
async def test_a_bad_request_does_not_fail_over(server: DemoServer, wrap: Wrap) -> None:
    client = wrap("openai.AsyncOpenAI", fallbacks=["gpt-4o"], max_retries=2)
    server.default = BadRequest()
    with pytest.raises(openai.BadRequestError):
        await client.complete("Hi")
    assert attempts(client) == server.stats.requests == 1


@pytest.mark.parametrize("bad", [7, object(), "", ("gpt-4o",), (Exception(), "gpt-4o")])
def test_a_bad_fallback_is_refused(bad: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"fallbacks\[1\]"):
        BRIX.wrap(Parrot(), fallbacks=["x", bad])


# -- what comes back -----------------------------------------------------------------------------------------


def test_a_completion_is_a_str_that_survives_pickle_and_copy() -> None:
    call = ToolCall(id="1", name="f", arguments="{}")
    answer = Completion("Paris", tool_calls=(call,), model="m", run_id="r", partial=True, cost_usd=0.5)
    for twin in (pickle.loads(pickle.dumps(answer)), copy.copy(answer), copy.deepcopy(answer)):
        assert type(twin) is Completion
        assert twin == "Paris"
        assert vars(twin) == vars(answer)
    assert (hash(answer), f"{answer}!", answer[:2]) == (hash("Paris"), "Paris!", "Pa")


@in_loop
async def test_a_completion_with_its_raw_response_pickles(wrap: Wrap) -> None:
    for name in CLIENTS:
        for ask in (by_complete, by_stream):
            answer = await ask(wrap(name))
            assert pickle.loads(pickle.dumps(answer)).raw == answer.raw


@in_loop
async def test_a_stream_is_read_in_one_way_and_has_its_result_at_the_end(wrap: Wrap) -> None:
    client = wrap("openai.OpenAI")
    stream = client.stream("Hi")
    with pytest.raises(BrixError, match="not begun"):
        _ = stream.result
    next(stream)
    with pytest.raises(BrixError, match="under way"):
        _ = stream.result
    with pytest.raises(BrixConfigurationError, match="not with both"):
        await anext(stream)
    rest = list(stream)
    assert str(stream.result).endswith("".join(rest))
    assert list(stream) == [piece async for piece in stream] == []
    unread = client.stream("Hi")
    unread.close()
    assert (list(unread), len(client.get_traces())) == ([], 1)


@in_loop
async def test_a_stream_belongs_to_the_session_it_was_asked_for_in(wrap: Wrap) -> None:
    client = wrap("openai.AsyncOpenAI", session_id="mine")
    assert client.context.session_id == "mine"
    with session("user-42"):
        stream = client.stream("Hi")
        assert client.context.session_id == "user-42"
    assert [piece async for piece in stream]
    await client.complete("Hi")
    assert [trace["session_id"] for trace in client.get_traces()] == ["mine", "user-42"]
    assert len(client.get_traces("user-42")) == 1
    assert client.context.call_count == 1


def test_the_chain_shows_the_guards_in_order() -> None:
    client = BRIX.wrap(Parrot(), max_cost_usd=1.0, max_retries=1, total_timeout=5.0, fallbacks=["x"])
    assert client.chain.names == ("observability", "failover", "retry", "budget", "timeout")
    assert list(client.chain) == list(client.chain.names)
    assert {guard.name for guard in client.chain.guards} >= set(client.chain.names)
    assert repr(client.chain).endswith("budget > timeout > model>")


# -- a client of one's own -----------------------------------------------------------------------------------


class Parrot:
    async def complete(self, prompt: str, **options: Any) -> str:
        return f"{prompt}|{json.dumps(options)}"


class SyncParrot:
    model = "parrot-1"

    def complete(self, prompt: str, **options: Any) -> str:
        return f"{prompt}|{json.dumps(options)}"

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        yield from (prompt, "|", json.dumps(options))


class StreamingParrot(Parrot):
    async def stream(self, prompt: str, **options: Any) -> AsyncIterator[str]:
        for part in (prompt, "|", "", json.dumps(options)):
            await asyncio.sleep(0)
            yield part


@pytest.mark.parametrize("kind", [Parrot, SyncParrot, StreamingParrot])
@every_entry
@in_loop
async def test_a_client_of_ones_own_is_guarded(kind: type[Any], ask: Ask) -> None:
    client = BRIX.wrap(kind(), per_call_timeout=5.0, max_retries=1)
    assert await ask(client, "Hi") == "Hi|{}"
    assert await ask(client, "Hi", temperature=0.5, max_tokens=9) == 'Hi|{"temperature": 0.5, "max_tokens": 9}'
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bye"},
    ]
    assert await ask(client, talk) == 'User: Hello\n\nAssistant: Yes?\n\nUser: Bye|{"system": "Be brief."}'
    assert client.get_traces()[0]["model"] == ("parrot-1" if kind is SyncParrot else kind.__name__)
    assert isinstance(kind(), LLMClient)


@in_loop
async def test_a_budget_caps_a_client_of_ones_own() -> None:
    client = BRIX.wrap(Parrot(), model="gpt-4o-mini", max_cost_usd=0.0001, **fresh_store())
    assert '{"max_tokens": ' in await client.complete("Hi")
    assert client.context.session_cost_usd > 0


class Wrong:
    def complete(self, prompt: str, **options: Any) -> Any:
        return {"text": prompt}


def test_a_client_of_ones_own_must_give_text() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.complete must give str, got dict"):
        BRIX.wrap(Wrong()).complete_sync("Hi")
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]
    with pytest.raises(BrixConfigurationError, match=r"messages\[0\] holds more than text"):
        BRIX.wrap(Wrong()).complete_sync(picture)


class Nested:
    """Blocks on the very loop that serves it."""

    async def complete(self, prompt: str, **options: Any) -> str:
        return BRIX.wrap(Parrot()).complete_sync(prompt)


def test_a_blocking_call_on_the_loop_that_serves_blocking_calls_is_refused() -> None:
    with pytest.raises(BrixConfigurationError, match="would wait for itself"):
        BRIX.wrap(Nested()).complete_sync("Hi")


# -- the whole -----------------------------------------------------------------------------------------------


@in_loop
async def test_the_quick_start_runs(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    raw = openai.AsyncOpenAI()
    client = BRIX.wrap(
        raw,
        max_cost_usd=1.0,
        requests_per_minute=60,
        per_call_timeout=10.0,
        max_retries=3,
        rate_limit_scope="session",
        store=MemoryStore(),
    )
    result = await client.complete(
        [{"role": "user", "content": "What is the capital of France?"}],
        model="gpt-4o-mini",
    )
    assert "capital of France" in result
    traces = client.get_traces()
    assert traces[0]["latency_ms"] > 0
    assert len(traces[0]["chain_hash"]) == 64
    assert traces[0]["guards_active"] == ["observability", "retry", "budget", "rate_limit", "timeout"]
    await raw.close()


def test_importing_and_wrapping_loads_no_sdk() -> None:
    code = (
        "import sys; from brix_core.client import BRIX; import brix_core.endpoints\n"
        "class Parrot:\n"
        "    def complete(self, prompt, **options): return prompt\n"
        "assert BRIX.wrap(Parrot(), max_retries=1).complete_sync('Hi') == 'Hi'\n"
        "print([name for name in ('openai', 'anthropic', 'httpx', 'httpx2') if name in sys.modules])"
    )
    environment = functools.partial(subprocess.run, capture_output=True, text=True, check=True, timeout=60)
    assert environment([sys.executable, "-c", code]).stdout.strip() == "[]"
