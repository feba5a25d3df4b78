"""Ollama's wire format: chats, newline-delimited JSON, errors, the list of models.

Source: docs.ollama.com/api/chat, /api/tags, /api/errors and /api/streaming.

Example:
    >>> CHAT.read({"model": "llama3.2", "messages": [{"role": "user", "content": "Hi"}]}).stream
    True
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from brix_core.demo.counting import message_tokens, schema_tokens, tool_tokens
from brix_core.demo.plan import Answer, InvalidRequest, Piece, Prompt, Refusal, Tool, Turn, Usage

MODELS = ("llama3.2:latest", "qwen3:8b")
"""What the list of models shows; requests may name any model."""

_CREATED = "2026-01-01T00:00:00Z"


class Chat:
    """``POST /api/chat``."""

    request_id_header = "x-request-id"
    content_type = "application/x-ndjson"

    def read(self, body: Mapping[str, Any]) -> Prompt:
        """The prompt in a request's body; it is streamed unless it says otherwise.

        Raises:
            InvalidRequest: A field is missing or of the wrong kind.
        """
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str) or not model:
            raise InvalidRequest("model is required")
        if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
            raise InvalidRequest("messages must be a list with at least one message")
        functions = [tool.get("function", {}) for tool in body.get("tools") or []]
        tools = tuple(
            Tool(item.get("name", ""), item.get("description") or "", item.get("parameters") or {})
            for item in functions
        )
        wanted, options = body.get("format"), body.get("options") or {}
        schema = wanted if isinstance(wanted, dict) else None
        limit, stop = options.get("num_predict"), options.get("stop") or ()
        return Prompt(
            model=model,
            turns=tuple(Turn(item.get("role", "user"), item.get("content") or "") for item in messages),
            prompt_tokens=message_tokens(
                {"role": item.get("role", "user"), "content": item.get("content") or ""} for item in messages
            )
            + tool_tokens((tool.name, tool.description, tool.schema) for tool in tools)
            + schema_tokens(schema),
            tools=tools,
            response_schema=schema,
            json_mode=wanted == "json",
            max_tokens=limit if isinstance(limit, int) and limit > 0 else None,
            stop=tuple([stop] if isinstance(stop, str) else stop),
            stream=body.get("stream", True) is not False,
        )

    def answer(self, prompt: Prompt, answers: Sequence[Answer], usage: Usage | None, index: int) -> dict[str, Any]:
        """The body of a complete answer."""
        return _frame(prompt, {"content": answers[0].text, **_calls(answers[0])}) | _ending(answers[0], usage)

    def stream(self, prompt: Prompt, index: int) -> ChatLines:
        """The lines of a streamed answer."""
        return ChatLines(prompt)

    def refusal(self, refusal: Refusal, index: int) -> dict[str, Any]:
        """The body of an error response."""
        return {"error": refusal.message}


class ChatLines:
    """One line a piece; the last has the reason for the end and the counts."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._answer = Answer()

    def begin(self, usage: Usage) -> bytes:
        """Nothing: the counts come last."""
        return b""

    def open(self, choice: int) -> bytes:
        """Nothing: there is but one answer."""
        return b""

    def delta(self, choice: int, piece: Piece) -> bytes:
        """One piece of text; tool calls come whole."""
        return _line(_frame(self._prompt, {"content": piece.text}) | {"done": False}) if piece.call is None else b""

    def finish(self, choice: int, answer: Answer) -> bytes:
        """The tool calls."""
        self._answer = answer
        if not answer.calls:
            return b""
        return _line(_frame(self._prompt, {"content": "", **_calls(answer)}) | {"done": False})

    def end(self, usage: Usage | None) -> bytes:
        """The last line."""
        return _line(_frame(self._prompt, {"content": ""}) | _ending(self._answer, usage))


def ollama_models() -> dict[str, Any]:
    """The body of ``GET /api/tags``.

    Example:
        >>> ollama_models()["models"][0]["name"]
        'llama3.2:latest'
    """
    return {"models": [{"name": name, "model": name, "modified_at": _CREATED, "size": 0} for name in MODELS]}


def _frame(prompt: Prompt, message: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": prompt.model, "created_at": _CREATED, "message": {"role": "assistant", **message}}


def _ending(answer: Answer, usage: Usage | None) -> dict[str, Any]:
    ending: dict[str, Any] = {"done": True, "done_reason": "length" if answer.finish == "length" else "stop"}
    if usage is not None:
        ending |= {"prompt_eval_count": usage.prompt_tokens, "eval_count": usage.completion_tokens}
    return ending


def _calls(answer: Answer) -> dict[str, Any]:
    if not answer.calls:
        return {}
    return {
        "tool_calls": [{"function": {"name": call.name, "arguments": _parsed(call.arguments)}} for call in answer.calls]
    }


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:  # cut short
        return {}


def _line(payload: Mapping[str, Any]) -> bytes:
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace") + b"\n"


CHAT = Chat()

__all__ = ["CHAT", "MODELS", "Chat", "ChatLines", "ollama_models"]
