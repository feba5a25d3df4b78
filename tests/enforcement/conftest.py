from __future__ import annotations

from collections.abc import Iterator

import pytest

from brix_core.demo import DemoServer
from brix_core.enforcement import AnthropicAdapter, OpenAIAdapter


@pytest.fixture(scope="session")
def shared_adapters(demo_server: DemoServer) -> Iterator[tuple[OpenAIAdapter, AnthropicAdapter]]:
    """Made once: making a client takes longer than a call."""
    with (
        OpenAIAdapter(api_key="test", model="gpt-4o-mini", base_url=demo_server.base_url) as first,
        AnthropicAdapter(api_key="test", model="claude-haiku-4-5", base_url=demo_server.anthropic_base_url) as second,
    ):
        yield first, second


@pytest.fixture
def adapter(server: DemoServer, shared_adapters: tuple[OpenAIAdapter, AnthropicAdapter]) -> OpenAIAdapter:
    return shared_adapters[0]


@pytest.fixture
def other(server: DemoServer, shared_adapters: tuple[OpenAIAdapter, AnthropicAdapter]) -> AnthropicAdapter:
    return shared_adapters[1]
