"""What providers report in the ``raw`` of a LlamaIndex response: tokens, finish reason, model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from brix_core.usage import Usage
from brix_llamaindex.messages import field

_ENDS: Final = 8
"""Chunks at the beginning and at the end of a stream in which its usage is looked for."""


def usage_of(response: Any) -> Usage | None:
    """Tokens reported with a chat or completion response; None when the provider said nothing.

    Reads the shapes of OpenAI (both APIs), Anthropic, Google, Bedrock and Ollama, as objects or dicts, and
    the counts that integrations put into ``additional_kwargs``.

    Example:
        >>> from llama_index.core.base.llms.types import CompletionResponse
        >>> raw = {"usage": {"prompt_tokens": 9, "completion_tokens": 2}}
        >>> usage_of(CompletionResponse(text="", raw=raw)).total_tokens
        11
        >>> usage_of(CompletionResponse(text="")) is None
        True
    """
    for report in _reports(response):
        found = _read(report)
        if found is not None:
            return found
    return None


def usage_of_stream(responses: Sequence[Any]) -> Usage | None:
    """Tokens reported in the course of a stream: the last figures, or Anthropic's two halves put together."""
    later: Usage | None = None
    if len(responses) > 2 * _ENDS:
        responses = [*responses[:_ENDS], *responses[-_ENDS:]]
    for response in reversed(responses):
        found = usage_of(response)
        if found is None:
            continue
        later = found if later is None else _merge(later, found)
        if later.input_tokens and later.output_tokens:
            break
    return later


def finish_reason_of(responses: Iterable[Any]) -> str | None:
    """The provider's word for why it stopped, from the first response that has one."""
    for response in responses:
        raw = response.raw
        choices = field(raw, "choices")
        sources = (choices[0],) if isinstance(choices, list) and choices else (raw, field(raw, "delta"))
        for source in sources:
            for name in ("finish_reason", "stop_reason", "done_reason"):
                word = field(source, name)
                if isinstance(word, str):
                    return word
    return None


def _reports(response: Any) -> Iterator[Any]:
    raw = response.raw
    if raw is not None:
        yield field(raw, "usage")
        yield field(raw, "usage_metadata")
        yield field(field(raw, "message"), "usage")  # Anthropic's message_start
        yield raw  # Ollama
    yield response.additional_kwargs


def _read(report: Any) -> Usage | None:
    if not report:
        return None

    def count(name: str, source: Any = report) -> int:
        value = field(source, name)
        return value if isinstance(value, int) and value > 0 else 0

    cached = written = 0
    if prompt := count("prompt_tokens"):
        details = field(report, "prompt_tokens_details")
        cached, written = count("cached_tokens", details), count("cache_write_tokens", details)
    elif prompt := count("input_tokens"):
        cached = count("cached_tokens", field(report, "input_tokens_details"))
    elif prompt := count("prompt_token_count"):
        cached = count("cached_content_token_count")
    else:
        prompt = count("prompt_eval_count") or count("inputTokens")
    beside, beside_written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
    thought = (
        count("reasoning_tokens", field(report, "completion_tokens_details"))
        or count("reasoning_tokens", field(report, "output_tokens_details"))
        or count("thoughts_token_count")
    )
    output = (
        count("completion_tokens") or count("output_tokens") or count("eval_count") or count("outputTokens")
        or count("candidates_token_count") + count("thoughts_token_count")
    )  # fmt: skip
    prompt += beside + beside_written  # Anthropic counts them beside its input tokens
    if not prompt and not output:
        return None
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        cache_read_tokens=cached + beside,
        cache_write_tokens=written + beside_written,
        reasoning_tokens=thought,
    )


def _merge(one: Usage, other: Usage) -> Usage:
    return Usage(
        input_tokens=max(one.input_tokens, other.input_tokens),
        output_tokens=max(one.output_tokens, other.output_tokens),
        cache_read_tokens=max(one.cache_read_tokens, other.cache_read_tokens),
        cache_write_tokens=max(one.cache_write_tokens, other.cache_write_tokens),
        reasoning_tokens=max(one.reasoning_tokens, other.reasoning_tokens),
    )


__all__ = ["finish_reason_of", "usage_of", "usage_of_stream"]
