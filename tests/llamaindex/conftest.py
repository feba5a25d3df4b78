from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from brix_core.demo import DemoServer

with warnings.catch_warnings():
    # What LlamaIndex's own imports warn about is not ours to fail on.
    warnings.simplefilter("ignore")
    from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]

Make = Callable[..., OpenAILike]

MODEL = "demo-model"


@pytest.fixture
async def openai_like(server: DemoServer) -> AsyncIterator[Make]:
    """Makes an OpenAILike on the demo server, on connections that are closed after the test."""
    blocking, asynchronous = httpx.Client(verify=False), httpx.AsyncClient(verify=False)

    def make(**fields: Any) -> OpenAILike:
        return OpenAILike(
            **{
                "model": MODEL,
                "api_base": server.base_url,
                "api_key": "none",
                "is_chat_model": True,
                "is_function_calling_model": True,
                "context_window": 100_000,
                "http_client": blocking,
                "async_http_client": asynchronous,
                **fields,
            }
        )

    yield make
    blocking.close()
    await asynchronous.aclose()
