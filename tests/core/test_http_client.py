"""Connections of the endpoints over plain HTTP: time limits, cancellation, loops, threads, and the key."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import socket
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from brix_core import BrixConfigurationError, BrixTimeoutError
from brix_core.demo import DemoServer, Reply, StalledStream
from brix_core.endpoints import GeminiEndpoint, OllamaEndpoint, ProviderError
from brix_core.endpoints.http_client import checked_key
from brix_core.endpoints.http_streams import JsonLines, ServerSentEvents
from brix_core.failures import classify
from tests.support.raw_http import KINDS, USER, ask, begun, drive, guards, http, raw_server

KEY = "very-secret-key"

Make = Callable[..., Any]


def gemini(server: DemoServer | str, **options: Any) -> GeminiEndpoint:
    url = server if isinstance(server, str) else server.gemini_base_url
    return GeminiEndpoint("gemini-2.5-flash", api_key=KEY, base_url=url, **options)


def ollama(server: DemoServer | str, **options: Any) -> OllamaEndpoint:
    url = server if isinstance(server, str) else server.ollama_base_url
    return OllamaEndpoint("llama3.2", api_key=KEY, base_url=url, **options)


both = pytest.mark.parametrize("make", [gemini, ollama])
every_kind = pytest.mark.parametrize("kind", KINDS)


@both
@every_kind
async def test_nobody_waits_longer_than_the_limit(server: DemoServer, make: Make, kind: str) -> None:
    server.default = StalledStream(after=1)
    endpoint = make(server)
    with pytest.raises(BrixTimeoutError):
        await ask(endpoint, kind, options={"per_call_timeout": 0.2})
    await endpoint.http.aclose()
    assert server.wait_until_idle()  # the connection was closed
    assert [record.outcome for record in server.requests] == ["aborted"]


@both
@every_kind
async def test_its_own_timeout_is_one_of_the_connection(server: DemoServer, make: Make, kind: str) -> None:
    server.default = StalledStream(after=0)
    endpoint = make(server, timeout=0.1)
    with pytest.raises(httpx.TimeoutException) as caught:
        await ask(endpoint, kind)
    assert classify(caught.value).kind == "timeout"
    endpoint.http.close()


@both
@pytest.mark.parametrize("kind", ["acall", "astream"])
async def test_a_cancelled_call_closes_its_connection(server: DemoServer, make: Make, kind: str) -> None:
    server.default = StalledStream(after=2)
    endpoint = make(server)
    task = asyncio.create_task(ask(endpoint, kind))
    while not server.stats.in_flight:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.wait_until_idle)
    assert [record.outcome for record in server.requests] == ["aborted"]
    server.default = Reply("still here")
    assert await ask(endpoint, kind) == "still here"


@both
async def test_a_stream_that_is_left_closes_its_connection(server: DemoServer, make: Make) -> None:
    server.default = StalledStream(after=2)
    endpoint, pipe = make(server), guards()
    stream: Any = pipe.astream(begun(pipe, endpoint, "astream"))
    await anext(stream)
    await stream.aclose()
    assert await asyncio.to_thread(server.wait_until_idle)
    blocking: Any = pipe.stream(begun(pipe, endpoint, "stream"))
    next(blocking)
    blocking.close()
    assert await asyncio.to_thread(server.wait_until_idle)
    assert server.stats.aborted == 2
    assert [trace["outcome"] for trace in pipe.traces.get_traces()] == ["abandoned", "abandoned"]
    endpoint.http.close()


@both
@pytest.mark.parametrize("kind", ["acall", "astream"])
def test_one_event_loop_after_the_other(server: DemoServer, make: Make, kind: str) -> None:
    endpoint = make(server)
    for _ in range(3):
        assert asyncio.run(ask(endpoint, kind)) == 'I heard: "Hi"'
        gc.collect()  # an unclosed connection would warn, and warnings are errors here
    assert server.stats.answered == 3


@both
def test_event_loops_and_threads_at_the_same_time(server: DemoServer, make: Make) -> None:
    endpoint, pipe = make(server), guards()

    def work(number: int) -> str:
        kind = KINDS[number % 4]
        return asyncio.run(drive(pipe, begun(pipe, endpoint, kind), kind))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(24))) == ['I heard: "Hi"'] * 24
    endpoint.http.close()
    attempts = sum(len(trace["attempts"]) for trace in pipe.traces.get_traces())
    assert attempts == server.stats.requests == 24


@both
async def test_many_at_once_share_one_client(server: DemoServer, make: Make) -> None:
    server.default = Reply("Hi", latency=0.05)
    endpoint = make(server)
    assert await asyncio.gather(*(ask(endpoint, "acall") for _ in range(30))) == ["Hi"] * 30
    assert server.stats.max_concurrent > 1
    await endpoint.http.aclose()


@both
async def test_connections_are_kept_between_calls(server: DemoServer, make: Make) -> None:
    endpoint = make(server)
    ports = []
    for _ in range(3):
        await ask(endpoint, "acall")
        client = endpoint.http._async._client_on(asyncio.get_running_loop())
        (connection,) = client._transport._pool.connections
        ports.append(id(connection))
    assert len(set(ports)) == 1
    await endpoint.http.aclose()
    assert client.is_closed


@both
@every_kind
async def test_a_given_client_is_used_and_left_open(server: DemoServer, make: Make, kind: str) -> None:
    for client in (httpx.Client(headers={"x-mine": "1"}), httpx.AsyncClient(headers={"x-mine": "1"})):
        endpoint = make(server, client=client)
        if isinstance(client, httpx.AsyncClient) and not kind.startswith("a"):
            with pytest.raises(BrixConfigurationError, match=r"give an httpx\.Client"):
                await ask(endpoint, kind)
        else:
            assert await ask(endpoint, kind) == 'I heard: "Hi"'
            assert server.requests[-1].headers["x-mine"] == "1"
        endpoint.http.close()
        await endpoint.http.aclose()
        assert not client.is_closed
        if isinstance(client, httpx.AsyncClient):
            await client.aclose()
        else:
            client.close()


@both
@every_kind
async def test_the_time_limits_of_a_given_client_hold(server: DemoServer, make: Make, kind: str) -> None:
    server.default = StalledStream(after=0)
    with httpx.Client(timeout=0.05) as client:
        endpoint = make(server, client=client)
        with pytest.raises(httpx.TimeoutException):
            await ask(endpoint, kind)


@both
async def test_options_reach_the_own_clients(server: DemoServer, make: Make) -> None:
    endpoint = make(server, options={"headers": {"x-mine": "1"}})
    for kind in KINDS:
        await ask(endpoint, kind)
    assert [record.headers["x-mine"] for record in server.requests] == ["1"] * 4
    await endpoint.http.aclose()


@both
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"options": {"proxxy": "x"}}, "proxxy"),
        ({"client": object()}, r"httpx\.Client"),
        ({"client": httpx.Client(), "options": {"headers": {}}}, "headers: give them to the client"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
    ],
)
def test_what_cannot_be_used_is_told_at_once(server: DemoServer, make: Make, options: Any, says: str) -> None:
    with pytest.raises(BrixConfigurationError, match=says):
        make(server, **options)


@both
@pytest.mark.parametrize(
    "url", ["", "localhost:1", "ftp://x", "http://user:hunter2@x", "http://x?key=hunter2", "http://x:port", "http://"]
)
def test_a_base_url_is_a_url_without_secrets(make: Make, url: str) -> None:
    with pytest.raises(BrixConfigurationError, match="base_url") as caught:
        make(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "abc def", "hunter2\n", "h\u00fcnter2", "hunter2\x7f", 3, None])
def test_a_key_that_no_header_takes_is_refused_without_being_shown(key: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="api_key") as caught:
        checked_key("api_key", key)
    assert "hunter2" not in str(caught.value)


def _everything(error: BaseException) -> str:
    """All that a log or a report could show of an error."""
    shown = ["".join(traceback.format_exception(error))]
    link: BaseException | None = error
    while link is not None:
        shown += [repr(link), str(link), repr(vars(link)), repr(link.args)]
        request = getattr(link, "_request", None)
        if request is not None:
            shown += [repr(request), str(request.url), repr(request.headers.raw)]
        link = link.__cause__ or link.__context__
    return "\n".join(shown)


@both
@every_kind
async def test_no_failure_shows_the_key(make: Make, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f'{{"error": {{"code": 400, "message": "bad key {KEY}"}}}}'
    answers = [
        http(echo, "400 Bad Request"),
        http(f"<html>{KEY}</html>", "502 Bad Gateway"),
        http(f"<html>{KEY}</html>"),
        http(f"data: {echo}\n\n" if make is gemini else echo),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
        b"",
        http("", "307 Temporary Redirect", "text/plain", "location: http://127.0.0.1:9/elsewhere"),
    ]
    with raw_server(*answers) as raw:
        endpoint = make(raw.url)
        pipe = guards()
        for _ in answers:
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
                await drive(pipe, begun(pipe, endpoint, kind), kind)
            assert KEY not in _everything(caught.value)
        assert all(KEY.encode() in seen for seen in raw.seen)
        assert len(raw.seen) == len(answers)
    with pytest.raises(httpx.ConnectError) as refused:
        await drive(pipe, begun(pipe, endpoint, kind), kind)
    assert KEY not in _everything(refused.value)
    assert not classify(refused.value).billable
    assert KEY not in repr(endpoint) + repr(endpoint.http) + caplog.text + repr(pipe.traces.get_traces())
    await endpoint.http.aclose()


@both
def test_redirects_are_not_followed(make: Make) -> None:
    elsewhere = http("", "307 Temporary Redirect", "text/plain", "location: http://127.0.0.1:9/elsewhere")
    for client in (None, httpx.Client(follow_redirects=True)):
        with raw_server(elsewhere) as raw, pytest.raises(ProviderError, match="307") as caught:
            make(raw.url, client=client).call(begun(guards(), make(raw.url)))
        assert not classify(caught.value).retryable


@both
async def test_a_twin_shares_the_connections(server: DemoServer, make: Make) -> None:
    endpoint = make(server)
    twin = endpoint.with_model("another")
    assert (twin.model({}), twin.default_model, twin.http) == ("another", "another", endpoint.http)
    assert endpoint.identity.endswith(f"/{endpoint.default_model}")
    assert twin.identity == endpoint.identity.replace(str(endpoint.default_model), "another")


def test_errors_survive_pickle_and_copy() -> None:
    error = ProviderError("no", 429, {"retry-after": "2"}, {"error": {}})
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(twin), twin.status_code, twin.headers, twin.body) == ("no", 429, error.headers, error.body)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_bodies_are_cut_the_same_however_they_arrive(size: int) -> None:
    stream = (
        ': ping\r\n\r\ndata: {"a":\ndata: 1}\n\nevent: x\nid: 3\ndata:{"b": "\u2028"}\r\n\r\ndata\n\ndata: last'
    ).encode()
    parts = [stream[start : start + size] for start in range(0, len(stream), size)]
    events, lines = ServerSentEvents(), JsonLines()
    found = [payload for part in parts for payload in events.feed(part)]
    assert [*found, *events.end()] == [b'{"a":\n1}', '{"b": "\u2028"}'.encode(), b"last"]
    split = [line for part in parts for line in lines.feed(part)]
    assert [*split, *lines.end()] == [line for line in stream.replace(b"\r", b"").split(b"\n") if line]


@both
def test_a_server_that_accepts_and_says_nothing_is_given_up(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = make(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)
        before = threading.active_count()
        with pytest.raises(httpx.ReadTimeout):
            endpoint.call(begun(guards(), endpoint, "call", USER))
        assert threading.active_count() == before
        endpoint.http.close()
