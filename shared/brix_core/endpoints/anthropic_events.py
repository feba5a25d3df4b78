"""Anthropic's messages and stream events: what is in one, and the message that many events make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from brix_core.call import CallResponse, ToolCall
from brix_core.usage import Usage

_TOOL_USES: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})


def read_event(event: Any) -> tuple[str, str]:
    """The billed text of an event, and its visible text."""
    if event.type == "content_block_delta":
        delta = event.delta
        if delta.type == "text_delta":
            return delta.text, delta.text
        if delta.type == "input_json_delta":
            return delta.partial_json, ""
        if delta.type == "thinking_delta":
            return delta.thinking, ""
    elif event.type == "content_block_start":
        block = event.content_block
        if block.type in _TOOL_USES:
            return block.name, ""
        if block.type == "text" and block.text:
            return block.text, block.text
        if block.type == "thinking" and block.thinking:
            return block.thinking, ""
    return "", ""


def read_usage(usage: Mapping[str, Any]) -> Usage | None:
    """Tokens as reported. Anthropic's ``input_tokens`` leave out what was read from or written to cache."""
    output = usage.get("output_tokens")
    if output is None or usage.get("input_tokens") is None:
        return None
    read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    details = usage.get("output_tokens_details") or {}
    total = usage["input_tokens"] + read + written
    if not (total or output):
        return None
    return Usage(
        input_tokens=total,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=details.get("thinking_tokens") or 0,
    )


def read_message(message: Any, model: str) -> CallResponse:
    """The response in a ``Message``."""
    blocks = message.content or ()
    return CallResponse(
        text="".join(block.text for block in blocks if block.type == "text"),
        usage=read_usage(message.usage.to_dict() if message.usage is not None else {}),
        model=message.model or model,
        tool_calls=tuple(
            ToolCall(id=block.id, name=block.name, arguments=json.dumps(block.input, ensure_ascii=False))
            for block in blocks
            if block.type == "tool_use"
        ),
        finish_reason=message.stop_reason,
        raw=message,
    )


class _Block:
    """One content block, as its deltas come in."""

    __slots__ = ("citations", "data", "json_parts", "signature", "texts", "thoughts")

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.texts: list[str] = [data.get("text") or ""]
        self.thoughts: list[str] = [data.get("thinking") or ""]
        self.json_parts: list[str] = []
        self.citations: list[Any] = []
        self.signature = data.get("signature") or ""

    def add(self, delta: Any) -> None:
        if delta.type == "text_delta":
            self.texts.append(delta.text)
        elif delta.type == "input_json_delta":
            self.json_parts.append(delta.partial_json)
        elif delta.type == "thinking_delta":
            self.thoughts.append(delta.thinking)
        elif delta.type == "signature_delta":
            self.signature = delta.signature
        elif delta.type == "citations_delta":
            self.citations.append(delta.citation.to_dict())

    @property
    def kind(self) -> str:
        return str(self.data.get("type", ""))

    @property
    def arguments(self) -> str:
        """The input as JSON text, as it came."""
        return "".join(self.json_parts) or json.dumps(self.data.get("input") or {}, ensure_ascii=False)

    def as_dict(self) -> dict[str, Any]:
        data = dict(self.data)
        if self.kind == "text":
            data["text"] = "".join(self.texts)
            if self.citations:
                data["citations"] = [*(data.get("citations") or ()), *self.citations]
        elif self.kind == "thinking":
            data["thinking"], data["signature"] = "".join(self.thoughts), self.signature
        elif self.json_parts:
            data["input"] = _parsed("".join(self.json_parts))
        return data


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # cut short
        return {}


def merge(events: Sequence[Any], model: str) -> tuple[CallResponse, dict[str, Any]]:
    """The response that events make, and the message's data; whatever has not come is left out.

    Args:
        events: Raw message stream events, perhaps not all of a stream.
        model: The model asked for, where no event names one.
    """
    message: dict[str, Any] = {"id": "", "model": model, "role": "assistant", "type": "message"}
    usage: dict[str, Any] = {}
    closing: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}
    blocks: dict[int, _Block] = {}
    complete = False
    for event in events:
        if event.type == "message_start":
            message.update(event.message.to_dict())
            usage.update(message.get("usage") or {})
        elif event.type == "content_block_start":
            blocks[event.index] = _Block(event.content_block.to_dict())
        elif event.type == "content_block_delta":
            if event.index in blocks:
                blocks[event.index].add(event.delta)
        elif event.type == "message_delta":
            complete = True  # its output tokens are the total; those of message_start are a beginning
            closing.update(event.delta.to_dict())
            if event.usage is not None:
                counts = event.usage.to_dict()
                usage.update((key, count) for key, count in counts.items() if count is not None)
    in_order = [block for _, block in sorted(blocks.items())]
    data = {**message, **closing, "content": [block.as_dict() for block in in_order], "usage": usage}
    response = CallResponse(
        text="".join("".join(block.texts) for block in in_order if block.kind == "text"),
        usage=read_usage(usage) if complete else None,
        model=message["model"] or model,
        tool_calls=tuple(
            ToolCall(id=block.data.get("id", ""), name=block.data.get("name", ""), arguments=block.arguments)
            for block in in_order
            if block.kind == "tool_use"
        ),
        finish_reason=closing["stop_reason"],
    )
    return response, data


def events_of(response: CallResponse) -> list[dict[str, Any]]:
    """The data of the events that tell a whole response."""
    usage = response.usage
    counts: dict[str, Any] = {"output_tokens": 0 if usage is None else usage.output_tokens}
    if usage is not None:
        counts |= {
            "input_tokens": usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens,
            "cache_read_input_tokens": usage.cache_read_tokens,
            "cache_creation_input_tokens": usage.cache_write_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        }
    head: dict[str, Any] = {
        "id": getattr(response.raw, "id", None) or "",
        "model": response.model,
        "role": "assistant",
        "type": "message",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**counts, "output_tokens": 0},
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": head}]
    if response.text:
        whole = {"type": "text_delta", "text": response.text}
        events += _block_events(0, {"type": "text", "text": ""}, whole)
    for index, call in enumerate(response.tool_calls, 1):
        start = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        events += _block_events(index, start, {"type": "input_json_delta", "partial_json": call.arguments})
    delta = {"stop_reason": response.finish_reason, "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": delta, "usage": counts}, {"type": "message_stop"}]


def _block_events(index: int, start: dict[str, Any], delta: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        {"type": "content_block_delta", "index": index, "delta": delta},
        {"type": "content_block_stop", "index": index},
    ]


__all__ = ["events_of", "merge", "read_event", "read_message", "read_usage"]
