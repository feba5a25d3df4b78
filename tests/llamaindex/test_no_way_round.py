"""There is no way round the guards: whatever public method reaches a provider, they count what the server counts."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.agent.react import ReActChatFormatter, ReActOutputParser
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.schema import BaseComponent
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]

from brix_core import BrixBudgetError
from brix_core.demo import DemoServer, Reply, ServerError, ToolCalls
from brix_llamaindex import BrixEventHandler, GuardedLLM, guard
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import HOOKS, attempts, outcomes
from tests.support.schemas import VALID, City

# LlamaIndex's own: deprecated methods of Pydantic's, and agents that look at every attribute of their models.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PRICES = {MODEL: (1e-6, 2e-6)}


def lookup(key: str) -> str:
    """Looks a key up."""
    return f"nothing about {key}"


LOOKUP = FunctionTool.from_defaults(lookup)


def ask(llm: LLM, name: str) -> Any:
    """Call a method of this name."""
    prompt = PromptTemplate("Hello")  # a new one: LlamaIndex's programs add a parser to theirs
    arguments: tuple[Any, ...]
    extra: dict[str, Any] = {}
    if "structured_predict" in name:
        arguments = (City, prompt)
    elif "tools" in name or "predict_and_call" in name:
        arguments = ([LOOKUP], "Hello")
        if not llm.metadata.is_function_calling_model:  # a step of ReAct, whose parts LlamaIndex does not make itself
            extra = {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser()}
    elif "chat" in name:
        arguments = ([ChatMessage("Hello")],)
    else:
        arguments = ("Hello",) if "complete" in name else (prompt,)
    return getattr(llm, name)(*arguments, **extra)


PREDICTS = ("predict", "apredict", "stream", "astream", "predict_and_call", "apredict_and_call")
PROGRAMS = tuple(f"{kind}structured_predict" for kind in ("", "a", "stream_", "astream_"))
TOOLS = tuple(f"{kind}chat_with_tools" for kind in ("", "a", "stream_", "astream_"))
WAYS = (*HOOKS, *PREDICTS, *PROGRAMS, *TOOLS)
"""Every public method that reaches a provider."""

REACHES_NOTHING = {
    "as_structured_llm",
    "check_callback_manager",
    "check_prompts",
    "convert_chat_messages",
    "get_tool_calls_from_response",
    "process_response_event",
    "set_completion_to_prompt",
    "set_messages_to_prompt",
    "to_payload",
}
"""Every public method that does not."""

KINDS: dict[str, dict[str, Any]] = {
    "format": {"should_use_structured_outputs": True},
    "function": {},
    "text": {"is_function_calling_model": False},
    "completion": {"is_function_calling_model": False, "is_chat_model": False, "max_tokens": 1_000},
}

CALLING = ("format", "function")
"""Kinds that call functions."""

every_kind = pytest.mark.parametrize("kind", KINDS)
every_way = pytest.mark.parametrize("way", WAYS)
every_way_of_every_kind = pytest.mark.parametrize(
    ("way", "kind"), [(way, kind) for way in WAYS for kind in KINDS if "tools" not in way or kind in CALLING]
)


async def go(way: str, llm: LLM) -> None:
    """Take that way to its end."""
    given = ask(llm, way)
    if inspect.isawaitable(given):
        given = await given
    if isinstance(given, AsyncIterator):
        async for _ in given:
            pass
    elif isinstance(given, Iterator):
        for _ in given:
            pass


def ready(server: DemoServer, way: str, kind: str) -> None:
    """Have the server answer as that way demands."""
    by_function = kind == "function"
    if "structured_predict" in way:
        server.default = ToolCalls([("City", json.loads(VALID))]) if by_function else Reply(VALID)
    elif "tools" in way or "predict_and_call" in way:
        answer = Reply("Thought: I can answer without using any more tools.\nAnswer: Nothing.")
        server.default = ToolCalls([("lookup", {"key": "Oslo"})]) if kind in CALLING else answer
    else:
        server.default = Reply("Hello there")


@pytest.mark.parametrize(
    "cls",
    [LLM, FunctionCallingLLM, StructuredLLM, OpenAI, OpenAIResponses, OpenAILike, MockLLM, MockFunctionCallingLLM],
)
def test_no_public_method_is_forgotten(cls: type[LLM]) -> None:
    found = {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))}
    assert found.issuperset(HOOKS)
    assert found - set(dir(BaseComponent)) - {*WAYS, *REACHES_NOTHING} == set()


@pytest.mark.parametrize("cls", [OpenAI, OpenAIResponses, OpenAILike, MockLLM, MockFunctionCallingLLM])
def test_the_hooks_of_a_guarded_llm_are_the_guards_own(cls: Any) -> None:
    guarded = type(guard(cls() if "Mock" in cls.__name__ else cls(model="gpt-4o-mini", api_key="none")))
    assert issubclass(guarded, cls)
    for name in (*HOOKS, *PROGRAMS):
        assert getattr(guarded, name) is getattr(GuardedLLM, name)


@every_way_of_every_kind
async def test_every_request_is_counted_a_failed_one_included(
    openai_like: Make, server: DemoServer, way: str, kind: str
) -> None:
    ready(server, way, kind)
    server.script(ServerError(500))
    llm = guard(openai_like(**KINDS[kind]), max_retries=1, max_backoff=0.0, max_cost_usd=1.0, prices=PRICES)
    await go(way, llm)
    assert attempts(llm) == server.stats.requests >= 2
    assert set(outcomes(llm)) == {"ok"}
    assert llm.brix.context.call_count == len(llm.get_traces()) == server.stats.requests - 1
    spent = sum(record.prompt_tokens * 1e-6 + record.completion_tokens * 2e-6 for record in server.requests[1:])
    assert llm.brix.context.session_cost_usd >= spent * (1 - 1e-9)


@every_way_of_every_kind
async def test_when_the_money_is_gone_nothing_is_sent(
    openai_like: Make, server: DemoServer, way: str, kind: str
) -> None:
    llm = guard(openai_like(**KINDS[kind]), max_cost_usd=1e-6, prices={MODEL: (1e-3, 1e-3)})
    with pytest.raises(BrixBudgetError):
        await go(way, llm)
    assert server.stats.requests == 0
    assert outcomes(llm) == ["refused"]


@every_kind
@pytest.mark.parametrize("way", [*HOOKS, "predict", "apredict", "stream", "astream"])
async def test_a_structured_llm_is_no_way_round(openai_like: Make, server: DemoServer, way: str, kind: str) -> None:
    ready(server, "structured_predict", kind)
    llm = guard(openai_like(**KINDS[kind]))
    completes = ("stream_complete", "astream_complete", *(("stream", "astream") if kind == "completion" else ()))
    with pytest.raises(NotImplementedError) if way in completes else nullcontext():  # LlamaIndex has none
        await go(way, llm.as_structured_llm(City))
    assert attempts(llm) == server.stats.requests
    assert (server.stats.requests > 0) is (way not in completes)


@every_way
async def test_an_unguarded_llm_leaves_one_trace_for_each_request(
    openai_like: Make, server: DemoServer, way: str
) -> None:
    ready(server, way, "function")
    dispatcher, watching = get_dispatcher(), BrixEventHandler()
    before = dispatcher.event_handlers
    dispatcher.event_handlers = [*before, watching]
    try:
        await go(way, openai_like())
        assert len(watching.get_traces()) == server.stats.requests == 1
        await go(way, guard(openai_like()))
        assert len(watching.get_traces()) == server.stats.requests - 1 == 1
    finally:
        dispatcher.event_handlers = before


@pytest.mark.parametrize("way", [*(hook for hook in HOOKS if "chat" in hook), *TOOLS])
async def test_a_mock_that_calls_functions_is_counted_as_it_counts(way: str) -> None:
    made: list[Any] = []

    def respond(messages: Any, **kwargs: Any) -> ChatMessage:
        made.append(messages)
        return ChatMessage(blocks=[ToolCallBlock(tool_name="lookup", tool_kwargs={"key": "Oslo"})], role="assistant")

    llm = guard(MockFunctionCallingLLM(response_generator=respond))
    await go(way, llm)
    assert attempts(llm) == len(made) == 1
