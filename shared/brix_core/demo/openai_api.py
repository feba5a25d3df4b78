"""OpenAI's wire formats: chat completions, legacy completions, the list of models, errors.

Source: platform.openai.com, API reference, "Chat", "Completions (legacy)" and "Streaming".

Example:
    >>> prompt = CHAT_COMPLETIONS.read({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]})
    >>> prompt.turns, prompt.prompt_tokens
    ((Turn(role='user', text='Hi'),), 8)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from brix_core.demo.counting import message_tokens, schema_tokens, text_tokens, tool_tokens
from brix_core.demo.plan import Answer, InvalidRequest, Piece, Prompt, Refusal, Tool, ToolChoice, Turn, Usage

MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini")
"""What the list of models shows; requests may name any model."""

_DEFAULT_COMPLETION_TOKENS = 16
"""What the legacy endpoint generates unless told otherwise."""


class ChatCompletions:
    """``POST /v1/chat/completions``."""

    request_id_header = "x-request-id"
    content_type = "text/event-stream; charset=utf-8"

    def read(self, body: Mapping[str, Any]) -> Prompt:
        """The prompt in a request's body.

        Raises:
            InvalidRequest: A field is missing or of the wrong kind.
        """
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
            raise InvalidRequest("Missing required parameter: 'messages', a list with at least one message.")
        functions = [tool.get("function", {}) for tool in body.get("tools") or []]
        tools = tuple(
            Tool(item.get("name", ""), item.get("description") or "", item.get("parameters") or {})
            for item in functions
        )
        wanted: Any = body.get("tool_choice") or "auto"
        named = wanted.get("function", {}).get("name") if isinstance(wanted, dict) else None
        tool_choice: ToolChoice = "required" if isinstance(wanted, dict) else wanted
        response_format = body.get("response_format") or {}
        schema = response_format.get("json_schema", {}).get("schema")
        return Prompt(
            **_common(body),
            turns=tuple(Turn(item.get("role", "user"), _text(item.get("content"))) for item in messages),
            prompt_tokens=message_tokens(messages)
            + tool_tokens((tool.name, tool.description, tool.schema) for tool in tools)
            + schema_tokens(schema),
            tools=tools,
            tool_choice=tool_choice,
            named_tool=named,
            response_schema=schema,
            json_mode=response_format.get("type") == "json_object",
            max_tokens=_whole(body, "max_completion_tokens") or _whole(body, "max_tokens"),
        )

    def answer(self, prompt: Prompt, answers: Sequence[Answer], usage: Usage | None, index: int) -> dict[str, Any]:
        """The body of a complete answer."""
        choices = [
            {
                "index": number,
                "message": {
                    "role": "assistant",
                    "content": None if answer.calls and not answer.text else answer.text,
                    "refusal": None,
                    **_tool_calls(answer, index, number),
                },
                "logprobs": None,
                "finish_reason": answer.finish,
            }
            for number, answer in enumerate(answers)
        ]
        return _frame("chatcmpl", "chat.completion", prompt, index) | {"choices": choices} | _usage(usage)

    def stream(self, prompt: Prompt, index: int) -> ChatStream:
        """The frames of a streamed answer."""
        return ChatStream(prompt, index)

    def refusal(self, refusal: Refusal, index: int) -> dict[str, Any]:
        """The body of an error response."""
        return error_body(refusal)


class TextCompletions:
    """``POST /v1/completions``."""

    request_id_header = "x-request-id"
    content_type = "text/event-stream; charset=utf-8"

    def read(self, body: Mapping[str, Any]) -> Prompt:
        """The prompt in a request's body; several prompts become a batch.

        Raises:
            InvalidRequest: A field is missing or of the wrong kind.
        """
        prompt = body.get("prompt")
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest("Missing required parameter: 'prompt', a text or a list of texts.")
        return Prompt(
            **_common(body),
            turns=(Turn("user", texts[-1]),),
            prompt_tokens=sum(map(text_tokens, texts)),
            batch=tuple(texts),
            max_tokens=_whole(body, "max_tokens") or _DEFAULT_COMPLETION_TOKENS,
        )

    def answer(self, prompt: Prompt, answers: Sequence[Answer], usage: Usage | None, index: int) -> dict[str, Any]:
        """The body of a complete answer."""
        choices = [_text_choice(number, answer.text, answer.finish) for number, answer in enumerate(answers)]
        return _frame("cmpl", "text_completion", prompt, index) | {"choices": choices} | _usage(usage)

    def stream(self, prompt: Prompt, index: int) -> TextStream:
        """The frames of a streamed answer."""
        return TextStream(prompt, index)

    def refusal(self, refusal: Refusal, index: int) -> dict[str, Any]:
        """The body of an error response."""
        return error_body(refusal)


class ChatStream:
    """Server-sent events of a chat completion: role, content or tool calls, finish reason, usage, [DONE]."""

    def __init__(self, prompt: Prompt, index: int) -> None:
        self._prompt = prompt
        self._index = index
        self._frame = _frame("chatcmpl", "chat.completion.chunk", prompt, index)
        if prompt.include_usage:
            self._frame["usage"] = None

    def begin(self, usage: Usage) -> bytes:
        """Nothing: the first frame of each choice names the role."""
        return b""

    def open(self, choice: int) -> bytes:
        """The role of a choice."""
        return self._chunk(choice, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, choice: int, piece: Piece) -> bytes:
        """One piece of a choice."""
        if piece.call is None:
            return self._chunk(choice, {"content": piece.text})
        call: dict[str, Any] = {"index": piece.call, "function": {"arguments": piece.text}}
        if piece.name:
            call |= {"id": _call_id(self._index, choice, piece.call), "type": "function"}
            call["function"] = {"name": piece.name, "arguments": ""}
        return self._chunk(choice, {"tool_calls": [call]})

    def finish(self, choice: int, answer: Answer) -> bytes:
        """The end of a choice."""
        return self._chunk(choice, {}, answer.finish)

    def end(self, usage: Usage | None) -> bytes:
        """The usage, if it was asked for, and the end of the stream."""
        return _ending(self._frame, self._prompt, usage)

    def _chunk(self, choice: int, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        row = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event(self._frame | {"choices": [row]})


class TextStream:
    """Server-sent events of a legacy completion."""

    def __init__(self, prompt: Prompt, index: int) -> None:
        self._prompt = prompt
        self._frame = _frame("cmpl", "text_completion", prompt, index)
        if prompt.include_usage:
            self._frame["usage"] = None

    def begin(self, usage: Usage) -> bytes:
        """Nothing: text is all there is."""
        return b""

    def open(self, choice: int) -> bytes:
        """Nothing: text is all there is."""
        return b""

    def delta(self, choice: int, piece: Piece) -> bytes:
        """One piece of a choice."""
        text = piece.text if piece.call is None else ""
        return _event(self._frame | {"choices": [_text_choice(choice, text, None)]})

    def finish(self, choice: int, answer: Answer) -> bytes:
        """The end of a choice."""
        return _event(self._frame | {"choices": [_text_choice(choice, "", answer.finish)]})

    def end(self, usage: Usage | None) -> bytes:
        """The usage, if it was asked for, and the end of the stream."""
        return _ending(self._frame, self._prompt, usage)


def error_body(refusal: Refusal) -> dict[str, Any]:
    """The body of an error response.

    Example:
        >>> error_body(Refusal(status=500, kind="server_error", message="Oh."))["error"]["type"]
        'server_error'
    """
    error = {"message": refusal.message, "type": refusal.kind, "param": None, "code": refusal.code}
    return {"error": error}


def model_list() -> dict[str, Any]:
    """The body of ``GET /v1/models``.

    Example:
        >>> model_list()["data"][0]["id"]
        'gpt-4o'
    """
    rows = [{"id": name, "object": "model", "created": 1_715_367_049, "owned_by": "demo"} for name in MODELS]
    return {"object": "list", "data": rows}


def _common(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields both endpoints share."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("you must provide a model parameter")
    stop = body.get("stop") or ()
    return {
        "model": model,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "choices": _whole(body, "n") or 1,
        "stream": bool(body.get("stream")),
        "include_usage": bool((body.get("stream_options") or {}).get("include_usage")),
    }


def _whole(body: Mapping[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise InvalidRequest(f"Invalid '{key}': expected an integer of at least 1, got {value!r}.")
    return value


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _frame(prefix: str, kind: str, prompt: Prompt, index: int) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{index:08d}",
        "object": kind,
        "created": int(time.time()),
        "model": prompt.model,
        "service_tier": "default",
        "system_fingerprint": "fp_demo",
    }


def _call_id(index: int, choice: int, number: int) -> str:
    return f"call_{index:08d}_{choice}_{number}"


def _tool_calls(answer: Answer, index: int, choice: int) -> dict[str, Any]:
    if not answer.calls:
        return {}
    calls = [
        {
            "id": _call_id(index, choice, number),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(answer.calls)
    ]
    return {"tool_calls": calls}


def _text_choice(number: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": None, "finish_reason": finish}


def _usage(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": usage.reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }
    }


def _ending(frame: Mapping[str, Any], prompt: Prompt, usage: Usage | None) -> bytes:
    last = b"data: [DONE]\n\n"
    if prompt.include_usage and usage is not None:
        return _event({**frame, "choices": []} | _usage(usage)) + last
    return last


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n\n"


CHAT_COMPLETIONS = ChatCompletions()
TEXT_COMPLETIONS = TextCompletions()

__all__ = [
    "CHAT_COMPLETIONS",
    "MODELS",
    "TEXT_COMPLETIONS",
    "ChatCompletions",
    "ChatStream",
    "TextCompletions",
    "TextStream",
    "error_body",
    "model_list",
]
