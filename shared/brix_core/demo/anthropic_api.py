"""Anthropic's wire format: messages, their event stream, errors.

Source: platform.claude.com, API reference, "Messages", "Streaming messages" and "Errors".

Example:
    >>> body = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    >>> MESSAGES.read(body).max_tokens
    9
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from brix_core.demo.counting import message_tokens, schema_tokens, tool_tokens
from brix_core.demo.plan import Answer, InvalidRequest, Piece, Prompt, Refusal, Tool, ToolChoice, Turn, Usage

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_TOOL_CHOICES: dict[str, ToolChoice] = {"any": "required", "tool": "required", "none": "none"}


class Messages:
    """``POST /v1/messages``."""

    request_id_header = "request-id"
    content_type = "text/event-stream; charset=utf-8"

    def read(self, body: Mapping[str, Any]) -> Prompt:
        """The prompt in a request's body.

        Raises:
            InvalidRequest: A field is missing or of the wrong kind.
        """
        model, messages, limit = body.get("model"), body.get("messages"), body.get("max_tokens")
        if not isinstance(model, str) or not model:
            raise InvalidRequest("model: Field required")
        if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
            raise InvalidRequest("messages: Field required, a list with at least one message")
        if not isinstance(limit, int) or limit < 1:
            raise InvalidRequest("max_tokens: Field required, an integer of at least 1")
        system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        tools = tuple(
            Tool(item.get("name", ""), item.get("description") or "", item.get("input_schema") or {})
            for item in body.get("tools") or []
        )
        choice = body.get("tool_choice") or {}
        output = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
        return Prompt(
            model=model,
            turns=tuple(_turn(item) for item in [*system, *messages]),
            prompt_tokens=message_tokens([*system, *messages])
            + tool_tokens((tool.name, tool.description, tool.schema) for tool in tools)
            + schema_tokens(output.get("schema")),
            tools=tools,
            tool_choice=_TOOL_CHOICES.get(choice.get("type", ""), "auto"),
            named_tool=choice.get("name"),
            response_schema=output.get("schema"),
            max_tokens=limit,
            stop=tuple(body.get("stop_sequences") or ()),
            stream=bool(body.get("stream")),
        )

    def answer(self, prompt: Prompt, answers: Sequence[Answer], usage: Usage | None, index: int) -> dict[str, Any]:
        """The body of a complete answer."""
        answer = answers[0]
        content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
        for number, call in enumerate(answer.calls):
            content.append(_tool_use(index, number, call.name, _parsed(call.arguments)))
        return _message(prompt, index) | {
            "content": content,
            "stop_reason": _stop_reason(answer),
            "stop_sequence": answer.stopped_by,
            "usage": _usage(usage),
        }

    def stream(self, prompt: Prompt, index: int) -> MessageStream:
        """The frames of a streamed answer."""
        return MessageStream(prompt, index)

    def refusal(self, refusal: Refusal, index: int) -> dict[str, Any]:
        """The body of an error response."""
        kind = _ERROR_TYPES.get(refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error")
        error = {"type": kind, "message": refusal.message}
        return {"type": "error", "error": error, "request_id": f"req_{index:08d}"}


class MessageStream:
    """Server-sent events of a message: message_start, content blocks, message_delta, message_stop."""

    def __init__(self, prompt: Prompt, index: int) -> None:
        self._prompt = prompt
        self._index = index
        self._blocks = 0
        self._open: int | None = None
        self._call: int | None = None
        self._stop: dict[str, Any] = {"stop_reason": "end_turn", "stop_sequence": None}

    def begin(self, usage: Usage) -> bytes:
        """The envelope, with the tokens of the prompt."""
        message = _message(self._prompt, self._index) | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }
        return _event("message_start", message=message) + _event("ping")

    def open(self, choice: int) -> bytes:
        """Nothing: a block starts with its first piece."""
        return b""

    def delta(self, choice: int, piece: Piece) -> bytes:
        """One piece, after the start of its block when it is the first."""
        frames = b""
        if self._open is None or piece.call != self._call:
            frames = self._close_block() + self._open_block(piece)
        if piece.call is None:
            change = {"type": "text_delta", "text": piece.text}
        else:
            change = {"type": "input_json_delta", "partial_json": piece.text}
        return frames + _event("content_block_delta", index=self._open, delta=change)

    def finish(self, choice: int, answer: Answer) -> bytes:
        """The end of the last block."""
        self._stop = {"stop_reason": _stop_reason(answer), "stop_sequence": answer.stopped_by}
        return self._close_block()

    def end(self, usage: Usage | None) -> bytes:
        """The stop reason with the final usage, and the end of the stream."""
        return _event("message_delta", delta=self._stop, usage=_usage(usage)) + _event("message_stop")

    def _open_block(self, piece: Piece) -> bytes:
        self._open, self._call = self._blocks, piece.call
        self._blocks += 1
        block: dict[str, Any] = {"type": "text", "text": ""}
        if piece.call is not None:
            block = _tool_use(self._index, piece.call, piece.name, {})
        return _event("content_block_start", index=self._open, content_block=block)

    def _close_block(self) -> bytes:
        if self._open is None:
            return b""
        frame = _event("content_block_stop", index=self._open)
        self._open = None
        return frame


def _turn(message: Mapping[str, Any]) -> Turn:
    content = message.get("content")
    role = message.get("role", "user")
    if isinstance(content, list) and any(block.get("type") == "tool_result" for block in content):
        role = "tool"
    return Turn(role, _text(content))


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(filter(None, map(_text, content)))
    if isinstance(content, dict):
        return content.get("text") or _text(content.get("content"))
    return content if isinstance(content, str) else ""


def _message(prompt: Prompt, index: int) -> dict[str, Any]:
    return {"id": f"msg_{index:08d}", "type": "message", "role": "assistant", "model": prompt.model}


def _tool_use(index: int, number: int, name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{index:08d}_{number}", "name": name, "input": arguments}


def _parsed(arguments: str) -> Any:
    """Arguments cut short by ``max_tokens`` are no JSON; Anthropic answers with what it could read."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _stop_reason(answer: Answer) -> str:
    if answer.stopped_by is not None:
        return "stop_sequence"
    return _STOP_REASONS.get(answer.finish, answer.finish)


def _usage(usage: Usage | None) -> dict[str, Any]:
    # The field is not optional here, so "report none" (`Reply.usage = {}`) becomes zeros.
    usage = usage or Usage(prompt_tokens=0, completion_tokens=0)
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _event(kind: str, **fields: Any) -> bytes:
    payload = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {payload}\n\n".encode(errors="replace")


MESSAGES = Messages()

__all__ = ["MESSAGES", "MessageStream", "Messages"]
