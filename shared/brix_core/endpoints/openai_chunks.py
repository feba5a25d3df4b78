"""Chat-completion chunks: what is in one, and the completion that many of them make.

Attributes are read and not models dumped: `merge` runs at the end of every stream. Servers that speak
OpenAI's format take liberties (no choices, no delta, ``reasoning_content``), which none of this minds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from brix_core.call import CallResponse, ToolCall
from brix_core.usage import Usage

_REASONING: Final = ("reasoning_content", "reasoning")
"""Where servers other than OpenAI's put what a model thinks aloud."""


def read_delta(chunk: Any) -> tuple[str, str]:
    """The billed text of a chunk, and the visible text of its first choice."""
    billed = visible = ""
    for choice in chunk.choices or ():
        delta = choice.delta
        if delta is None:
            continue
        content = delta.content
        if content:
            billed += content
            if not choice.index:
                visible += content
        if delta.tool_calls or delta.refusal or delta.function_call or delta.model_extra:
            billed += _beside_content(delta)
    return billed, visible


def _beside_content(delta: Any) -> str:
    parts = [delta.refusal or "", _reasoning(delta)[1]]
    for call in delta.tool_calls or ():
        parts += _function_of(call)
    if delta.function_call is not None:
        parts += [delta.function_call.name or "", delta.function_call.arguments or ""]
    return "".join(parts)


def _reasoning(holder: Any) -> tuple[str, str]:
    """The key and the text of reasoning in a delta."""
    extra = holder.model_extra or {}
    for key in _REASONING:
        if isinstance(extra.get(key), str) and extra[key]:
            return key, extra[key]
    return "", ""


def _function_of(call: Any) -> tuple[str, str]:
    """Name and arguments, or a part of them, of a tool call; a custom tool's input counts as arguments."""
    function = getattr(call, "function", None)
    if function is not None:
        return function.name or "", function.arguments or ""
    custom = getattr(call, "custom", None)
    if isinstance(custom, dict):
        return custom.get("name") or "", custom.get("input") or ""
    return getattr(custom, "name", None) or "", getattr(custom, "input", None) or ""


def tool_call(call: Any) -> ToolCall:
    """A whole tool call of a message."""
    name, arguments = _function_of(call)
    return ToolCall(id=call.id or "", name=name, arguments=arguments)


def read_usage(usage: Any) -> Usage | None:
    """Tokens as reported; None when nothing was, or only zeros, which some servers put for unknown."""
    if usage is None or not (usage.prompt_tokens or usage.completion_tokens):
        return None
    prompt = getattr(usage, "prompt_tokens_details", None)
    completion = getattr(usage, "completion_tokens_details", None)
    return Usage(
        input_tokens=usage.prompt_tokens or 0,
        output_tokens=usage.completion_tokens or 0,
        cache_read_tokens=getattr(prompt, "cached_tokens", None) or 0,
        cache_write_tokens=getattr(prompt, "cache_write_tokens", None) or 0,
        reasoning_tokens=getattr(completion, "reasoning_tokens", None) or 0,
    )


class _ToolParts:
    __slots__ = ("arguments", "id", "kind", "name")

    def __init__(self) -> None:
        self.id, self.kind, self.name = "", "function", ""
        self.arguments: list[str] = []

    def add(self, call: Any) -> None:
        name, arguments = _function_of(call)
        self.id = self.id or call.id or ""
        self.kind = getattr(call, "type", None) or self.kind
        self.name += name
        if arguments:
            self.arguments.append(arguments)

    def as_dict(self) -> dict[str, Any]:
        arguments = "".join(self.arguments)
        if self.kind == "custom":
            return {"id": self.id, "type": "custom", "custom": {"name": self.name, "input": arguments}}
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


class _ChoiceParts:
    """One choice, as its deltas come in."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.refusal: list[str] = []
        self.reasoning: list[str] = []
        self.reasoning_key = ""
        self.tools: dict[int, _ToolParts] = {}
        self.function: _ToolParts | None = None
        self.logprobs: dict[str, list[Any]] = {}
        self.finish_reason: str | None = None

    def add(self, choice: Any) -> None:
        self.finish_reason = choice.finish_reason or self.finish_reason
        delta = choice.delta
        if delta is not None:
            if delta.content:
                self.content.append(delta.content)
            if delta.tool_calls or delta.refusal or delta.function_call or delta.model_extra:
                self._add_beside_content(delta)
        if choice.logprobs is not None:
            for key in ("content", "refusal"):
                if tokens := getattr(choice.logprobs, key, None):
                    self.logprobs.setdefault(key, []).extend(tokens)

    def _add_beside_content(self, delta: Any) -> None:
        if delta.refusal:
            self.refusal.append(delta.refusal)
        key, text = _reasoning(delta)
        if text:
            self.reasoning_key = self.reasoning_key or key
            self.reasoning.append(text)
        for place, call in enumerate(delta.tool_calls or ()):
            index = call.index if call.index is not None else place
            self.tools.setdefault(index, _ToolParts()).add(call)
        if delta.function_call is not None:
            self.function = self.function or _ToolParts()
            self.function.name += delta.function_call.name or ""
            self.function.arguments.append(delta.function_call.arguments or "")

    def as_dict(self, index: int) -> dict[str, Any]:
        content: str | None = "".join(self.content)
        if not content and (self.tools or self.function or self.refusal):
            content = None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.refusal:
            message["refusal"] = "".join(self.refusal)
        if self.reasoning:
            message[self.reasoning_key] = "".join(self.reasoning)
        if self.tools:
            message["tool_calls"] = [parts.as_dict() for _, parts in sorted(self.tools.items())]
        if self.function is not None:
            arguments = "".join(self.function.arguments)
            message["function_call"] = {"name": self.function.name, "arguments": arguments}
        logprobs = {key: [token.to_dict() for token in tokens] for key, tokens in self.logprobs.items()}
        return {
            "index": index,
            "finish_reason": self.finish_reason,
            "message": message,
            "logprobs": logprobs or None,
        }


def merge(chunks: Sequence[Any], model: str) -> tuple[CallResponse, dict[str, Any]]:
    """The response that chunks make, and the completion's data; whatever has not come is left out.

    Args:
        chunks: ``ChatCompletionChunk`` objects, perhaps not all of a stream.
        model: The model asked for, where no chunk names one.
    """
    choices: dict[int, _ChoiceParts] = {}
    head: dict[str, Any] = {"id": "", "created": 0, "model": model}
    usage: Any = None
    for chunk in chunks:
        for key in head:
            if value := getattr(chunk, key, None):
                head[key] = value
        for key in ("service_tier", "system_fingerprint"):
            if (value := getattr(chunk, key, None)) is not None:
                head[key] = value
        if chunk.usage is not None:
            usage = chunk.usage
        for choice in chunk.choices or ():
            choices.setdefault(choice.index or 0, _ChoiceParts()).add(choice)
    in_order = sorted(choices.items()) or [(0, _ChoiceParts())]
    data = {
        **head,
        "object": "chat.completion",
        "choices": [parts.as_dict(index) for index, parts in in_order],
        "usage": None if usage is None else usage.to_dict(),
    }
    response = CallResponse(
        text="".join("".join(parts.content) for _, parts in in_order),
        usage=read_usage(usage),
        model=head["model"],
        tool_calls=tuple(
            ToolCall(id=tool.id, name=tool.name, arguments="".join(tool.arguments))
            for _, parts in in_order
            for _, tool in sorted(parts.tools.items())
        ),
        finish_reason=in_order[0][1].finish_reason,
    )
    return response, data


def chunk_of(response: CallResponse) -> dict[str, Any]:
    """The data of one chunk that holds a whole response."""
    delta: dict[str, Any] = {"role": "assistant", "content": response.text}
    if response.tool_calls:
        delta["tool_calls"] = [
            {
                "index": index,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(response.tool_calls)
        ]
    usage = response.usage
    return {
        "id": getattr(response.raw, "id", None) or "",
        "created": getattr(response.raw, "created", None) or 0,
        "model": response.model,
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": response.finish_reason, "logprobs": None}],
        "usage": None
        if usage is None
        else {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {
                "cached_tokens": usage.cache_read_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
            },
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        },
    }


__all__ = ["chunk_of", "merge", "read_delta", "read_usage", "tool_call"]
