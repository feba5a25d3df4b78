"""Every adapter, from making it to closing it: threads, event loops, health, and the key."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from brix_core import BrixConfigurationError
from brix_core.demo import (
    BadRequest,
    Behaviour,
    CutStream,
    DemoServer,
    RateLimited,
    Reply,
    ServerError,
    StalledStream,
)
from brix_core.enforcement.adapters import (
    AnthropicAdapter,
    BaseLLMAdapter,
    GeminiAdapter,
    OllamaAdapter,
    OpenAIAdapter,
)
from tests.enforcement.adapter_suite import (
    ADAPTERS,
    KEY,
    KINDS,
    NAMES,
    Make,
    all_adapters,
    each,
    every_adapter,
    every_kind,
    gemini_adapter,
    in_loop,
    ollama_adapter,
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


class TestConcurrency:
    @each
    @pytest.mark.parametrize("kind", ["generate", "stream"])
    @in_loop
    async def test_cancelling_closes_the_connection(
        self, server: DemoServer, adapter: BaseLLMAdapter, kind: str
    ) -> None:
        server.default = StalledStream(after=2)
        task = asyncio.create_task(text_from(adapter, kind))
        while not server.stats.in_flight:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.wait_until_idle)
        assert server.stats.aborted == 1
        server.default = Reply("still here")
        assert await text_from(adapter, kind) == "still here"

    @each
    @in_loop
    async def test_many_at_once(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        server.default = Reply("Hi", latency=0.05)
        answers = await asyncio.gather(*(adapter.generate(f"Hi {number}") for number in range(20)))
        assert [answer.output for answer in answers] == ["Hi"] * 20
        assert (server.stats.answered, server.stats.requests) == (20, 20)
        assert server.stats.max_concurrent > 1

    @every_adapter
    def test_one_event_loop_after_the_other(self, server: DemoServer, make: Make) -> None:
        adapter = make(server)
        for kind in ("generate", "stream", "generate"):
            assert asyncio.run(text_from(adapter, kind)) == 'I heard: "Hi"'
        del adapter
        gc.collect()  # a connection that has outlived its loop would warn, and warnings are errors here
        assert server.stats.answered == 3

    @each
    def test_from_threads_and_event_loops_at_the_same_time(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        def work(number: int) -> str:
            return asyncio.run(text_from(adapter, KINDS[number % 4], f"Hi {number}"))

        with ThreadPoolExecutor(6) as threads:
            assert list(threads.map(work, range(16))) == [f'I heard: "Hi {number}"' for number in range(16)]
        assert server.stats.answered == server.stats.requests == 16

    @every_adapter
    @in_loop
    async def test_closed_is_closed(self, server: DemoServer, make: Make) -> None:
        async with make(server) as adapter:
            await adapter.generate("Hi")
        for kind in KINDS:
            with pytest.raises(BrixConfigurationError, match="closed"):
                await text_from(adapter, kind)
        assert await adapter.health_check() is False
        assert server.stats.requests == 1


class TestHealth:
    @each
    @in_loop
    async def test_a_provider_that_answers_is_well(self, server: DemoServer, adapter: BaseLLMAdapter) -> None:
        assert await adapter.health_check() is True
        assert await asyncio.to_thread(adapter.health_check_sync) is True
        assert server.stats.requests == 0  # no model was asked

    @every_adapter
    @in_loop
    async def test_one_that_is_not_there_is_not(self, make: Make) -> None:
        async with make("http://127.0.0.1:9") as adapter:
            assert await adapter.health_check() is False
            assert adapter.health_check_sync() is False

    @every_adapter
    @in_loop
    async def test_nor_is_one_that_refuses(self, make: Make) -> None:
        statuses = ("401 Unauthorized", "500 Internal Server Error", "429 Too Many Requests")
        refusals = [http('{"error": {"message": "no"}}', status) for status in statuses for _ in range(2)]
        with raw_server(*refusals) as raw:
            async with make(raw.url) as adapter:
                for _ in statuses:
                    assert await adapter.health_check() is False
                    assert await asyncio.to_thread(adapter.health_check_sync) is False
            assert len(raw.seen) == len(refusals)
            assert all(seen.startswith(b"GET /") and KEY.encode() not in seen.split(b"\r\n")[0] for seen in raw.seen)

    @every_adapter
    @in_loop
    async def test_nor_one_that_is_silent_for_too_long(self, make: Make) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with make(f"http://127.0.0.1:{silent.getsockname()[1]}") as adapter:
                begun = time.monotonic()
                assert await adapter.health_check(timeout=0.1) is False
                assert adapter.health_check_sync(timeout=0.1) is False
                assert time.monotonic() - begun < 2

    @every_adapter
    @in_loop
    async def test_a_cancellation_is_raised(self, make: Make) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with make(f"http://127.0.0.1:{silent.getsockname()[1]}") as adapter:
                task = asyncio.create_task(adapter.health_check())
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    @each
    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), "soon"])
    @in_loop
    async def test_its_time_limit_must_be_one(self, adapter: BaseLLMAdapter, timeout: Any) -> None:
        with pytest.raises(BrixConfigurationError, match="timeout"):
            await adapter.health_check(timeout)
        with pytest.raises(BrixConfigurationError, match="timeout"):
            adapter.health_check_sync(timeout)


class TestMaking:
    @every_adapter
    def test_the_endpoint_is_made_once(self, server: DemoServer, make: Make) -> None:
        with make(server) as adapter:
            assert adapter.endpoint is adapter.endpoint
            assert adapter.provider == NAMES[make]
            assert adapter.endpoint.model({}) == adapter.model
            assert repr(adapter) == f"{type(adapter).__name__}({adapter.endpoint.identity!r})"

    @every_adapter
    @pytest.mark.parametrize("model", ["", "  ", None, 3])
    def test_a_model_has_a_name(self, server: DemoServer, make: Make, model: Any) -> None:
        with pytest.raises(BrixConfigurationError, match="model"):
            make(server, model=model)

    @pytest.mark.parametrize("make", ADAPTERS[:3], ids=lambda make: NAMES[make])
    def test_a_key_comes_from_the_environment(
        self, server: DemoServer, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(BrixConfigurationError, match=r"no key; give api_key=\.\.\., or set [A-Z_]+_API_KEY"):
            make(server, api_key=None)
        for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
            monkeypatch.setenv(name, KEY)
        with make(server, api_key=None) as adapter:
            assert adapter.generate_sync("Hi").output == 'I heard: "Hi"'

    @every_adapter
    def test_a_key_with_a_line_feed_is_refused_without_being_shown(self, server: DemoServer, make: Make) -> None:
        with pytest.raises(BrixConfigurationError, match="stripped") as caught:
            make(server, api_key=f"{KEY}\n")
        assert KEY not in "".join(traceback.format_exception(caught.value))

    @every_adapter
    @pytest.mark.parametrize("options", [{"nonsense": 1}, {"timeout": 0}, {"client": object()}])
    def test_what_cannot_be_used_is_told(self, server: DemoServer, make: Make, options: Any) -> None:
        with pytest.raises(BrixConfigurationError):
            make(server, **options)

    def test_ollama_s_address_comes_from_the_environment(
        self, server: DemoServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OLLAMA_HOST", server.ollama_base_url.removeprefix("http://"))
        with OllamaAdapter() as adapter:
            assert adapter.generate_sync("Hi").output == 'I heard: "Hi"'
        monkeypatch.delenv("OLLAMA_HOST")
        assert OllamaAdapter().endpoint.identity == "ollama:127.0.0.1:11434/llama3.2"

    @every_kind
    @in_loop
    async def test_a_client_of_one_s_own_is_used_and_left_open(self, server: DemoServer, kind: str) -> None:
        clients: list[tuple[Any, Any]] = [
            (OpenAIAdapter, openai.OpenAI(base_url=server.base_url, api_key=KEY)),
            (OpenAIAdapter, openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY)),
            (AnthropicAdapter, anthropic.Anthropic(base_url=server.anthropic_base_url, api_key=KEY)),
            (AnthropicAdapter, anthropic.AsyncAnthropic(base_url=server.anthropic_base_url, api_key=KEY)),
        ]
        for kind_of_adapter, client in clients:
            async with kind_of_adapter(client=client) as adapter:
                assert await text_from(adapter, kind) == 'I heard: "Hi"'
                assert await adapter.health_check()
            assert not client.is_closed()
            await client.close() if isinstance(
                client, openai.AsyncOpenAI | anthropic.AsyncAnthropic
            ) else client.close()
        assert server.stats.requests == 4

    def test_a_client_and_its_settings_are_one_too_many(self) -> None:
        client = openai.OpenAI(api_key=KEY)
        with pytest.raises(BrixConfigurationError, match="base_url were given"):
            OpenAIAdapter(client=client, base_url="http://127.0.0.1:9")
        with pytest.raises(BrixConfigurationError, match=r"anthropic SDK, got openai\.OpenAI"):
            AnthropicAdapter(client=client)
        client.close()

    @pytest.mark.parametrize(
        ("name", "package", "extra"),
        [
            ("OpenAIAdapter", "openai", "openai"),
            ("AnthropicAdapter", "anthropic", "anthropic"),
            ("GeminiAdapter", "httpx", "http"),
            ("OllamaAdapter", "httpx", "http"),
        ],
    )
    def test_an_absent_package_is_named_with_its_extra(
        self, name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        made: Any = {
            "OpenAIAdapter": OpenAIAdapter,
            "AnthropicAdapter": AnthropicAdapter,
            "GeminiAdapter": GeminiAdapter,
            "OllamaAdapter": OllamaAdapter,
        }[name]
        with pytest.raises(BrixConfigurationError) as caught:
            made(api_key=KEY)
        assert f'pip install "brix-guards[{extra}]"' in str(caught.value)

    def test_importing_them_loads_no_sdk(self, tmp_path: Path) -> None:
        code = textwrap.dedent("""
            import sys
            from brix_core.enforcement.adapters import GeminiAdapter
            print(sorted({"openai", "anthropic", "httpx"} & sys.modules.keys()))
        """)
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


@every_adapter
@in_loop
async def test_no_failure_shows_the_key(server: DemoServer, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="brix_core")
    caplog.set_level(logging.DEBUG, logger="httpx")
    faults: list[Behaviour] = [RateLimited(), ServerError(), BadRequest(), CutStream(after=1)]
    server.script(*faults * len(KINDS))
    async with make(server) as adapter:
        for number in range(len(faults) * len(KINDS)):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever
                await text_from(adapter, KINDS[number // len(faults)])
            assert KEY not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert KEY not in repr(adapter) + repr(adapter.endpoint) + str(adapter) + caplog.text
        assert not [thread for thread in threading.enumerate() if KEY in thread.name]
    assert all(KEY not in json.dumps(record.body) + record.path for record in server.requests)
    assert server.stats.requests == len(faults) * len(KINDS)


def test_gemini_and_ollama_use_a_client_of_one_s_own(server: DemoServer) -> None:
    with httpx.Client(headers={"x-mine": "1"}) as client:
        for make in (gemini_adapter, ollama_adapter):
            with make(server, client=client) as adapter:
                assert adapter.health_check_sync()
                assert adapter.generate_sync("Hi").output == 'I heard: "Hi"'
        assert [record.headers["x-mine"] for record in server.requests] == ["1", "1"]
        assert not client.is_closed
