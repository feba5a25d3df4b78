"""What callbacks tell of a model call: the model, its parameters, the text of a stream, the answer.

Nothing can be sent from here. What is known of the model is what LangChain hands to `on_chat_model_start`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, GenerationChunk, LLMResult

from brix_core.call import CallResponse
from brix_core.errors import BrixConfigurationError, BrixInternalError
from brix_core.model_limits import max_output_tokens
from brix_core.turns import text_of
from brix_core.usage import Usage
from brix_langchain.messages import CODEC, LangChainCodec, is_cleared
from brix_langchain.own_retries import described_retries
from brix_langchain.reading import (
    billed_beside,
    billed_text,
    described,
    finish_reason_of,
    reported_usage,
    tool_call,
    tool_calls_of,
    usage_of,
)

_NAMES: Final = ("model", "model_name", "model_id", "deployment_name", "azure_deployment")
_CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict", "max_new_tokens")
_ADDRESSES: Final = ("openai_api_base", "anthropic_api_url", "azure_endpoint", "base_url", "endpoint_url")
_SCHEMAS: Final = ("tools", "functions", "response_format", "tool_choice", "output_config")


class CalledModel:
    """A model that somebody else calls, as an endpoint the guards can ask about it.

    Args:
        serialized: The model, as LangChain describes it to callbacks.
        params: Of the call: what LangChain names ``invocation_params``.
        metadata: Of the run.
        strict: Refuse a model whose output nothing bounds, since its worst case cannot be reserved, and one that
            retries by itself, since nobody is told of those requests.
    """

    codec: LangChainCodec = CODEC
    streams = True

    def __init__(
        self,
        serialized: Mapping[str, Any],
        params: Mapping[str, Any],
        metadata: Mapping[str, Any],
        *,
        strict: bool,
    ) -> None:
        self._settings: Mapping[str, Any] = serialized.get("kwargs") or {}
        names = [params.get(name) for name in _NAMES]
        names += [metadata.get("ls_model_name"), *(self._settings.get(name) for name in _NAMES)]
        class_name = serialized.get("name") or (serialized.get("id") or ["model"])[-1]
        self._model: str = next((name for name in names if isinstance(name, str) and name), class_name)
        self._metadata = metadata
        self._strict = strict
        self._own_retries = described_retries(serialized)
        self.provider: str | None = metadata.get("ls_provider") or None

    @property
    def identity(self) -> str:
        """Provider, model and address."""
        address = next((value for name in _ADDRESSES if isinstance(value := self._settings.get(name), str)), "")
        host = address.partition("?")[0].rpartition("@")[2]  # no password, no query: it is shown in traces
        return f"{self.provider}:{self._model}" + (f"@{host}" if host else "")

    def model(self, params: Mapping[str, Any]) -> str:
        """The model of the call."""
        return self._model

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        """The highest cap named anywhere: which of several the model will send cannot be told from here."""
        caps = [*(params.get(name) for name in _CAPS), self._metadata.get("ls_max_tokens")]
        return max((cap for cap in caps if type(cap) is int and cap > 0), default=None)

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        """The model's own limit, when known.

        Raises:
            BrixConfigurationError: A budget relies on it, and nothing bounds the output.
        """
        longest = max_output_tokens(self._model)
        if longest is None and self._strict:
            raise BrixConfigurationError(
                f"max_cost_usd cannot be kept with {self.identity}: nothing bounds its output, and a callback cannot "
                "cap it. Make the model with max_tokens, guard the model instead (guard(model, max_cost_usd=...)), "
                "or give budget_strategy='warn'"
            )
        return longest

    def refuse_own_retries(self) -> None:
        """Every request must be seen.

        Raises:
            BrixConfigurationError: A budget relies on it, and the model retries by itself.
        """
        if self._strict and self._own_retries:
            raise BrixConfigurationError(
                f"max_cost_usd cannot be kept with {self.identity}: it retries by itself "
                f"(max_retries={self._own_retries}), and callbacks are not told of those requests. Make the model with "
                "max_retries=0, guard the model itself (guard(model, max_cost_usd=...), or BrixMiddleware in an "
                "agent), or give budget_strategy='warn'"
            )

    def choices(self, params: Mapping[str, Any]) -> int:
        """``n``, or ``best_of``, which is billed alike."""
        return max((value for name in ("n", "best_of") if type(value := params.get(name)) is int), default=1)

    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        """Tools and response formats, as they are bound."""
        return [described(params[name]) for name in _SCHEMAS if params.get(name)]

    def structured(self, schema: object, params: Mapping[str, Any]) -> bool:
        """Nothing can be added to the call."""
        return False

    def _not_here(self, *arguments: Any, **named: Any) -> Any:
        raise BrixInternalError("a model that is called elsewhere cannot be called from here")

    call = acall = stream = astream = read_chunk = finish = assemble = as_chunks = _not_here


def answer_of(result: LLMResult, model: str, usage: Usage | None = None) -> CallResponse:
    """The answer of a call, in the core's words.

    Args:
        result: What LangChain tells of it.
        model: The model asked.
        usage: What the chunks of a stream have reported.
    """
    generations = result.generations[0] if result.generations else []
    if not generations:
        return CallResponse(text="", usage=usage, model=model)
    first = generations[0]
    messages = [generation.message for generation in generations if isinstance(generation, ChatGeneration)]
    reported = getattr(messages[0], "usage_metadata", None) if messages else None
    if usage is None:
        usage = usage_of(reported) if reported else reported_usage(result.llm_output)
    texts = [text_of(message.content) for message in messages] or [generation.text for generation in generations]
    return CallResponse(
        text="".join(texts),
        usage=usage,
        model=model,
        tool_calls=tuple(tool_call(call) for message in messages for call in tool_calls_of(message)),
        finish_reason=finish_reason_of(first, result.llm_output)
        if isinstance(first, ChatGeneration)
        else (first.generation_info or {}).get("finish_reason"),
    )


def has_cleared_results(messages: Iterable[BaseMessage]) -> bool:
    """Whether LangChain's context editing took results of tools out of this prompt: all that is left is one word."""
    return any(isinstance(message, ToolMessage) and is_cleared(message) for message in messages)


def is_from_cache(result: LLMResult) -> bool:
    """Whether the answer comes from LangChain's cache.

    LangChain marks it with a cost of zero, and tells nothing else of the call. The mark alone could have been put on
    the very objects of the first answer by another call's look into the cache.
    """
    message = (
        getattr(result.generations[0][0], "message", None) if result.generations and result.generations[0] else None
    )
    usage: Any = message.usage_metadata if isinstance(message, AIMessage) else None
    return not result.llm_output and usage is not None and usage.get("total_cost") == 0


def billed(token: Any, chunk: GenerationChunk | ChatGenerationChunk | None) -> str:
    """The billed text of a chunk: content, reasoning, tool names and arguments."""
    message = getattr(chunk, "message", None)
    text = billed_text(token)
    if isinstance(message, AIMessageChunk):
        for call in message.tool_call_chunks:
            text += (call.get("name") or "") + (call.get("args") or "")
        text += billed_beside(message.additional_kwargs)
    return text


def billed_in(event: Mapping[str, Any]) -> str:
    """The billed text of an event of ``stream_events(version="v3")``."""
    if event.get("event") == "content-block-start":
        return str((event.get("content") or {}).get("name") or "")  # of a tool
    delta = event.get("delta") or {}
    return "".join(str(delta.get(part) or "") for part in ("text", "reasoning", "args"))


__all__ = ["CalledModel", "answer_of", "billed", "billed_in", "has_cleared_results", "is_from_cache"]
