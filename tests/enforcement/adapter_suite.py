"""What the suites over all adapters share: how each is made on the local server, and the ways to ask it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from brix_core.demo import (
    DemoServer,
)
from brix_core.enforcement.adapters import (
    AnthropicAdapter,
    BaseLLMAdapter,
    GeminiAdapter,
    OllamaAdapter,
    OpenAIAdapter,
)

KEY = "sk-very-secret-key"

Make = Callable[..., Any]


class Person(BaseModel):
    name: str
    age: int


ANYTHING = {"type": "object"}
"""What no provider can be held to."""


def openai_adapter(server: DemoServer | str, **options: Any) -> OpenAIAdapter:
    url = server if isinstance(server, str) else server.base_url
    return OpenAIAdapter(**{"api_key": KEY, "base_url": url, **options})


def anthropic_adapter(server: DemoServer | str, **options: Any) -> AnthropicAdapter:
    url = server if isinstance(server, str) else server.anthropic_base_url
    return AnthropicAdapter(**{"api_key": KEY, "base_url": url, **options})


def gemini_adapter(server: DemoServer | str, **options: Any) -> GeminiAdapter:
    url = server if isinstance(server, str) else server.gemini_base_url
    return GeminiAdapter(**{"api_key": KEY, "base_url": url, **options})


def ollama_adapter(server: DemoServer | str, **options: Any) -> OllamaAdapter:
    url = server if isinstance(server, str) else server.ollama_base_url
    return OllamaAdapter(**{"api_key": KEY, "base_url": url, **options})


ADAPTERS = [openai_adapter, anthropic_adapter, gemini_adapter, ollama_adapter]
NAMES = {openai_adapter: "openai", anthropic_adapter: "anthropic", gemini_adapter: "gemini", ollama_adapter: "ollama"}
every_adapter = pytest.mark.parametrize("make", ADAPTERS, ids=lambda make: NAMES[make])
KINDS = ("generate", "generate_sync", "stream", "stream_sync")
every_kind = pytest.mark.parametrize("kind", KINDS)


in_loop = pytest.mark.asyncio(loop_scope="module")
"""One event loop for the module: clients are made once, which takes longer than a call."""


@contextlib.contextmanager
def all_adapters(server: DemoServer) -> Iterator[dict[Make, BaseLLMAdapter]]:
    """One of each kind."""
    with contextlib.ExitStack() as stack:
        yield {make: stack.enter_context(make(server)) for make in ADAPTERS}


each = pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda make: NAMES[make], indirect=True)


async def text_from(adapter: BaseLLMAdapter, kind: str, prompt: Any = "Hi", schema: Any = None, **kwargs: Any) -> str:
    """Ask in one of the four ways."""
    if kind == "generate":
        return (await adapter.generate(prompt, schema, **kwargs)).output
    if kind == "generate_sync":
        return (await asyncio.to_thread(adapter.generate_sync, prompt, schema, **kwargs)).output
    if kind == "stream":
        return "".join([piece async for piece in adapter.stream(prompt, schema, **kwargs)])
    return await asyncio.to_thread(lambda: "".join(adapter.stream_sync(prompt, schema, **kwargs)))


def body_of(server: DemoServer) -> dict[str, Any]:
    return dict(server.requests[-1].body)


__all__ = [
    "ADAPTERS",
    "ANYTHING",
    "KEY",
    "KINDS",
    "Make",
    "NAMES",
    "Person",
    "all_adapters",
    "anthropic_adapter",
    "body_of",
    "each",
    "every_adapter",
    "every_kind",
    "gemini_adapter",
    "in_loop",
    "ollama_adapter",
    "openai_adapter",
    "text_from",
]
