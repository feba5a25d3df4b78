"""The output cap of a single call, by class of LLM: kept under its own name, reserved, or impossible and said so."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import MockLLM
from llama_index.llms.openai import OpenAI

from brix_core import BrixBudgetError, BrixConfigurationError
from brix_core.demo import DemoServer
from brix_llamaindex import guard
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import attempts


def test_a_call_is_refused_when_its_output_can_be_neither_capped_nor_afforded() -> None:
    llm = guard(MockLLM(max_tokens=100), max_cost_usd=0.0001, prices={"MockLLM": (0.0, 1e-5)})
    with pytest.raises(BrixBudgetError):
        llm.complete("Hello")
    assert attempts(llm) == 0


def test_an_output_that_nothing_bounds_is_refused_under_a_budget() -> None:
    llm = guard(MockLLM(), max_cost_usd=1.0, prices={"MockLLM": (0.0, 1e-5)})
    with pytest.raises(BrixConfigurationError, match="max_tokens"):
        llm.complete("Hello")
    assert attempts(llm) == 0
    free = guard(MockLLM(), max_cost_usd=1.0, prices={"MockLLM": (0.0, 0.0)})
    assert free.complete("Hello").text == "Hello"
    warned = guard(MockLLM(), max_cost_usd=1.0, prices={"MockLLM": (0.0, 1e-5)}, budget_strategy="warn")
    assert warned.complete("Hello").text == "Hello"


def test_asking_for_a_clamp_that_cannot_be_is_refused() -> None:
    with pytest.raises(BrixConfigurationError, match="budget_clamp_output"):
        guard(MockLLM(max_tokens=5), max_cost_usd=1.0, budget_clamp_output=True)


def test_the_openai_class_keeps_its_cap_under_its_own_name(openai_like: Make, server: DemoServer) -> None:
    shared = openai_like()
    made: dict[str, Any] = {
        "api_base": server.base_url,
        "api_key": "none",
        "http_client": shared._http_client,
    }
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"model": "gpt-4o-mini"}, {}, "max_tokens"),
        ({"model": "gpt-4o-mini", "max_tokens": 9_000}, {"max_tokens": 8_000}, "max_tokens"),
        ({"model": "gpt-4o-mini"}, {"max_completion_tokens": 9_000}, "max_completion_tokens"),
        ({"model": "gpt-4o-mini", "additional_kwargs": {"max_tokens": 9_000}}, {}, "max_tokens"),
        ({"model": "o3-mini"}, {}, "max_completion_tokens"),
        ({"model": "gpt-5.4-mini", "max_tokens": 9_000}, {}, "max_completion_tokens"),
    ]
    for fields, params, name in cases:
        server.reset()
        llm = guard(OpenAI(**fields, **made), max_cost_usd=0.001)
        llm.chat([ChatMessage("Hello")], **params)
        caps = {key: value for key, value in server.requests[0].body.items() if key.startswith("max_")}
        assert list(caps) == [name], fields
        assert 100 < caps[name] < 8_000
        assert llm.brix.endpoint.provider == "openai"


def test_the_callers_own_cap_is_what_is_reserved(openai_like: Make, server: DemoServer) -> None:
    prices = {MODEL: (0.0, 1e-5)}
    llm = guard(openai_like(), max_cost_usd=0.01, prices=prices, budget_clamp_output=False)
    llm.chat([ChatMessage("Hello")], max_tokens=500)
    assert server.requests[0].body["max_tokens"] == 500
    llm.max_tokens = 5_000  # which LlamaIndex lets win over the call's own
    with pytest.raises(BrixBudgetError):
        llm.chat([ChatMessage("Hello")], max_tokens=500)
    assert server.stats.requests == 1
