from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import httpx
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.globals import set_llm_cache
from langchain_openai import ChatOpenAI

from brix_core.demo import DemoServer
from tests.langchain.support import MODEL, STANDARD_SKIPS

Make = Callable[..., Any]


@pytest.fixture
async def chat(server: DemoServer) -> AsyncIterator[Make]:
    """Makes a ChatOpenAI on the demo server, on connections that are closed after the test."""
    with httpx.Client(verify=False) as blocking:
        async with httpx.AsyncClient(verify=False) as asynchronous:

            def make(**fields: Any) -> ChatOpenAI:
                if "stream_chunk_timeout" not in ChatOpenAI.model_fields:
                    fields.pop("stream_chunk_timeout", None)  # langchain-openai 1.0 has no such limit to lift
                return ChatOpenAI(
                    **{
                        "model": MODEL,
                        "base_url": server.base_url,
                        "api_key": "sk-secret",
                        "stream_usage": True,
                        "http_client": blocking,
                        "http_async_client": asynchronous,
                        **fields,
                    }
                )

            yield make


@pytest.fixture
def claude(server: DemoServer) -> Iterator[Make]:
    """Makes a ChatAnthropic on the demo server. It takes no HTTP client that a test could close."""

    def make(**fields: Any) -> ChatAnthropic:
        return ChatAnthropic(
            **{
                "model": "claude-haiku-4-5",
                "base_url": server.anthropic_base_url,
                "api_key": "sk-ant-secret",
                "max_tokens": 1_000,
                **fields,
            }
        )

    yield make
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def _no_global_cache() -> Iterator[None]:
    yield
    set_llm_cache(None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In the standard suites, a test that is skipped must be known to be, and one that is known to be must be."""
    report = yield
    expected = STANDARD_SKIPS.get(getattr(getattr(item, "cls", None), "__name__", ""))
    if expected is not None and call.when == "call" and report.outcome != "failed":
        name = getattr(item, "originalname", item.name)
        if report.skipped != (name in expected):
            report.longrepr = f"{name} was {report.outcome}, which is not as with a bare ChatOpenAI"
            report.outcome = "failed"
    return report
