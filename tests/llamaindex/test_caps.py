"""The output cap of a single call, by class of LLM: kept under its own name, reserved, or impossible and said so."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import MockLLM
from llama_index.llms.openai import OpenAI, OpenAIResponses

from brix_core import BrixBudgetError, BrixConfigurationError, MemoryStore
from brix_core.demo import DemoServer, Reply
from brix_llamaindex import guard
from brix_llamaindex.caps import output_cap_of
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import HOOKS, ask, attempts


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


EXTRA_BODIES = ({"max_tokens": 9_000}, {"max_completion_tokens": 9_000}, {"max_tokens": 9_000, "top_k": 5})


@pytest.mark.parametrize("extra", EXTRA_BODIES)
@pytest.mark.parametrize("where", ["call", "additional_kwargs"])
@pytest.mark.parametrize("hook", HOOKS)
async def test_a_cap_in_extra_body_is_lowered_too(
    openai_like: Make, server: DemoServer, hook: str, where: str, extra: dict[str, Any]
) -> None:
    server.default = Reply("word " * 9_000, chunk_size=5_000)
    given: dict[str, Any] = {"extra_body": dict(extra)}
    bare = openai_like(**({} if where == "call" else {"additional_kwargs": given}))
    llm = guard(bare, max_cost_usd=0.0005, prices={MODEL: (1e-6, 2e-6)}, store=MemoryStore())
    assert await ask(llm, hook, **(given if where == "call" else {}))
    assert llm.brix.context.session_cost_usd <= 0.0005
    body = server.requests[0].body
    caps = {name: value for name, value in body.items() if name.startswith("max_")}
    assert list(caps) == ["max_completion_tokens" if "max_completion_tokens" in extra else "max_tokens"]
    assert 0 < min(caps.values()) < 300
    assert body.get("top_k") == extra.get("top_k")  # the rest of it is sent as it is
    assert given["extra_body"] == extra  # and what was given is left alone
    assert attempts(llm) == server.stats.requests == 1


def test_a_cap_in_extra_body_is_what_is_reserved(openai_like: Make, server: DemoServer) -> None:
    options: Any = {"max_cost_usd": 0.01, "prices": {MODEL: (0.0, 1e-5)}, "budget_clamp_output": False}
    llm = guard(openai_like(max_tokens=500), **options)
    with pytest.raises(BrixBudgetError):
        llm.complete("Hello", extra_body={"max_tokens": 5_000})
    assert server.stats.requests == 0
    llm.complete("Hello", extra_body={"max_tokens": 400})
    assert server.requests[0].body["max_tokens"] == 400
    with pytest.raises(BrixBudgetError):
        llm.complete("Hello", extra_body={"n": 3})  # three answers of 500 tokens


def test_an_extra_body_cannot_hide_the_model_or_the_prompt(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), max_cost_usd=1.0, prices={MODEL: (0.0, 0.0), "dear": (1.0, 1.0)})
    with pytest.raises(BrixBudgetError):
        llm.complete("Hello", extra_body={"model": "dear"})
    for name, value in (("messages", []), ("stream", True), ("prompt", "Hello")):
        with pytest.raises(BrixConfigurationError, match=f"extra_body={{'{name}'"):
            llm.complete("Hello", extra_body={name: value})
    assert server.stats.requests == 0


@pytest.mark.parametrize("where", ["call", "additional_kwargs"])
def test_the_responses_api_is_capped_in_extra_body_too(where: str) -> None:
    given: dict[str, Any] = {"extra_body": {"max_output_tokens": 9_000}}
    fields: dict[str, Any] = {} if where == "call" else {"additional_kwargs": given}
    llm = OpenAIResponses(model="gpt-4o-mini", api_key="none", **fields)
    params = given if where == "call" else {}
    cap = output_cap_of(llm)
    assert cap.asked(llm, params, llm.metadata) == 9_000
    _, sent = cap.apply(llm, dict(params), 70)
    assert (sent["max_output_tokens"], sent["extra_body"]) == (70, {"max_output_tokens": 70})
