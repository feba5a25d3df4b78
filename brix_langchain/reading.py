"""Reading what LangChain's models give: usage, tool calls, why an answer ended, what of a chunk is billed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import lru_cache
from typing import Any, Final, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import PydanticUserError, TypeAdapter

from brix_core.call import ToolCall
from brix_core.usage import Usage


def tool_calls_of(message: BaseMessage) -> Sequence[Any]:
    """The tool calls in a message, those that could not be parsed included: they are billed too."""
    if not isinstance(message, AIMessage):
        return ()
    return [*message.tool_calls, *message.invalid_tool_calls]


def tool_call(call: Mapping[str, Any]) -> ToolCall:
    """A tool call in the core's words; LangChain has parsed the arguments, so they are written out again."""
    arguments = call.get("args")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
    return ToolCall(id=call.get("id") or "", name=call.get("name") or "", arguments=text)


def finish_reason_of(generation: ChatGeneration, llm_output: Mapping[str, Any] | None = None) -> str | None:
    """Why it ended: OpenAI's word for it is ``finish_reason``, Anthropic's ``stop_reason``."""
    for info in (generation.message.response_metadata, generation.generation_info or {}, llm_output or {}):
        reason = info.get("finish_reason") or info.get("stop_reason")
        if reason:
            return str(reason)
    return None


def described(value: Any) -> Any:
    """A tool or response format as it is sent: a class (Pydantic, TypedDict, dataclass) is sent as its JSON schema."""
    return _format_of(value) if isinstance(value, type) else value


@lru_cache(maxsize=512)
def _format_of(kind: type) -> dict[str, Any]:
    try:
        schema: Any = TypeAdapter(kind).json_schema()
    except PydanticUserError:  # no type pydantic knows: whatever will be sent, the model binds it by itself
        schema = {}
    return {"type": "json_schema", "json_schema": {"name": kind.__name__, "schema": schema}}


_CUT_OFF: Final = {"LengthFinishReasonError": "length", "ContentFilterFinishReasonError": "content_filter"}
"""What OpenAI's SDK raises about an answer in a format that is not whole; the SDK may not be there."""


def cut_off(error: Exception, model: BaseChatModel) -> ChatResult:
    """The answer that OpenAI's SDK raises about where a format was asked for: cut off at the output cap, or filtered.

    Raises:
        Exception: It is about something else.
    """
    reason = _CUT_OFF.get(type(error).__name__)
    if reason is None:
        raise error
    if reason == "length" and hasattr(model, "_create_chat_result"):
        return cast(ChatResult, model._create_chat_result(getattr(error, "completion", None)))
    return ChatResult(generations=[ChatGeneration(message=AIMessage("", response_metadata={"finish_reason": reason}))])


def until_cut_off(chunks: Iterator[ChatGenerationChunk]) -> Iterator[ChatGenerationChunk]:
    """The chunks of an answer in a format; one that is not whole ends with its reason, not with the SDK's error."""
    reason: str | None = None
    with closing(cast(Any, chunks)):
        try:
            for chunk in chunks:
                reason = finish_reason_of(chunk) or reason
                yield chunk
        except Exception as error:
            yield from _last_word(error, reason)


async def auntil_cut_off(chunks: AsyncIterator[ChatGenerationChunk]) -> AsyncIterator[ChatGenerationChunk]:
    """The same on an event loop."""
    reason: str | None = None
    async with aclosing(cast(Any, chunks)):
        try:
            async for chunk in chunks:
                reason = finish_reason_of(chunk) or reason
                yield chunk
        except Exception as error:
            for chunk in _last_word(error, reason):
                yield chunk


def _last_word(error: Exception, reason: str | None) -> Sequence[ChatGenerationChunk]:
    """What is left to say of an answer that is not whole: why, unless its chunks have said so.

    Raises:
        Exception: Something else went wrong.
    """
    why = _CUT_OFF.get(type(error).__name__)
    if why is None:
        raise error
    info = {"finish_reason": why}
    return () if reason else [ChatGenerationChunk(message=AIMessageChunk(content=""), generation_info=info)]


_BILLED_BLOCKS: Final = ("text", "thinking", "reasoning")


def billed_beside(more: Mapping[str, Any]) -> str:
    """Output that older integrations put beside the content: reasoning, refusals, legacy function calls."""
    text = ""
    for name in ("reasoning_content", "refusal"):
        if isinstance(more.get(name), str):
            text += more[name]
    call = more.get("function_call")
    if isinstance(call, Mapping):
        text += str(call.get("name") or "") + str(call.get("arguments") or "")
    return text


def billed_text(content: Any) -> str:
    """Text and reasoning in content blocks."""
    parts = content if isinstance(content, list) else [content]
    return "".join(
        part if isinstance(part, str) else "".join(str(part.get(key) or "") for key in _BILLED_BLOCKS)
        for part in parts
        if isinstance(part, str | dict)
    )


def usage_of(reported: Mapping[str, Any]) -> Usage:
    """LangChain's ``UsageMetadata``; its input includes cached tokens."""
    read = reported.get("input_token_details") or {}
    written = reported.get("output_token_details") or {}
    # Anthropic's writes, where they are told apart by how long they last, are no more in the sum.
    lasting = ((read.get(f"ephemeral_{span}_input_tokens") or 0) for span in ("5m", "1h")) if read else ()
    return Usage(
        input_tokens=reported.get("input_tokens") or 0,
        output_tokens=reported.get("output_tokens") or 0,
        cache_read_tokens=read.get("cache_read") or 0,
        cache_write_tokens=read.get("cache_creation") or sum(lasting),
        reasoning_tokens=written.get("reasoning") or 0,
    )


def reported_usage(llm_output: Mapping[str, Any] | None) -> Usage | None:
    """Usage in the older place, ``llm_output["token_usage"]``."""
    usage = (llm_output or {}).get("token_usage")
    if not isinstance(usage, Mapping) or not usage.get("total_tokens"):
        return None
    return Usage(input_tokens=usage.get("prompt_tokens") or 0, output_tokens=usage.get("completion_tokens") or 0)


def added(first: Usage | None, second: Usage) -> Usage:
    """Usage of chunks adds up, as in LangChain's own merging (Anthropic reports input and output apart).

    The same figures again are a repetition: ChatOpenAI sends them twice with a streamed schema.
    """
    if first is None or first == second:
        return second
    return Usage(
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cache_read_tokens=first.cache_read_tokens + second.cache_read_tokens,
        cache_write_tokens=first.cache_write_tokens + second.cache_write_tokens,
        reasoning_tokens=first.reasoning_tokens + second.reasoning_tokens,
    )


__all__ = [
    "added",
    "auntil_cut_off",
    "billed_beside",
    "billed_text",
    "cut_off",
    "described",
    "finish_reason_of",
    "reported_usage",
    "tool_call",
    "tool_calls_of",
    "until_cut_off",
    "usage_of",
]
