"""What the tests of the LangChain surface share."""

from __future__ import annotations

from typing import Any, Final

import pytest
from langchain.agents.middleware import model_fallback
from langchain_core.runnables import Runnable

from brix_core.demo import DemoServer
from brix_langchain import GuardedChatModel

MODEL: Final = "gpt-4o-mini"
RATES: Final = (1.5e-7, 6e-7)
"""USD per token of `MODEL`, input and output."""

OPTIONS: Final[dict[str, Any]] = {
    "max_cost_usd": 1.0,
    "prices": {MODEL: RATES, "gpt-4o": RATES},
    "requests_per_minute": 1_000_000,
    "tokens_per_minute": 1e12,
    "per_call_timeout": 20.0,
    "first_token_timeout": 15.0,
    "idle_timeout": 10.0,
    "max_retries": 2,
    "circuit_breaker": True,
    "trace_buffer_size": 10_000,
}
"""All guards on, with limits that get in nobody's way."""

needs_v3 = pytest.mark.skipif(
    not hasattr(Runnable, "stream_events"), reason="`stream_events` comes with langchain-core 1.4"
)
needs_middlewares_that_stop = pytest.mark.skipif(
    not hasattr(model_fallback, "GraphBubbleUp"),
    reason="LangChain's retries and fallbacks let control flow through from langchain 1.3.15 on",
)

_INPUTS_NOT_SUPPORTED: Final = frozenset(
    {
        "test_anthropic_inputs",
        "test_audio_inputs",
        "test_image_inputs",
        "test_image_tool_message",
        "test_pdf_inputs",
        "test_pdf_tool_message",
        "test_stream_time",
    }
)
STANDARD_SKIPS: Final = {
    "TestBareIntegration": _INPUTS_NOT_SUPPORTED,
    "TestGuardedIntegration": _INPUTS_NOT_SUPPORTED,
    "TestBareUnit": frozenset[str](),
    # LangChain's loader makes classes of its own list only: no third-party model can pass this one. What ours
    # does instead is tested in test_chat_model.py.
    "TestGuardedUnit": frozenset({"test_serdes"}),
    "TestBareRetriever": frozenset[str](),
    "TestGuardedRetriever": frozenset[str](),
    "TestBareFaissRetriever": frozenset[str](),
    "TestGuardedFaissRetriever": frozenset[str](),
}
"""The skips of the standard suites, by class; the hook in conftest.py holds every test to them."""


def attempts(*models: GuardedChatModel) -> int:
    """Requests that the guards say they sent."""
    return sum(len(trace["attempts"]) for model in models for trace in model.get_traces())


def assert_all_seen(model: GuardedChatModel, server: DemoServer, requests: int | None = None) -> None:
    """The guard saw every request that reached the server, and charged what the server counted."""
    assert server.wait_until_idle()
    stats = server.stats
    assert attempts(model) == stats.requests > 0
    if requests is not None:
        assert stats.requests == requests
    owed = stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1]
    assert model.context.session_cost_usd == pytest.approx(owed, rel=1e-6)


__all__ = [
    "MODEL",
    "OPTIONS",
    "RATES",
    "STANDARD_SKIPS",
    "assert_all_seen",
    "attempts",
    "needs_middlewares_that_stop",
    "needs_v3",
]
