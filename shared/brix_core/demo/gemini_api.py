"""Gemini's wire format: contents, whole answers, server-sent events, errors, the list of models.

Source: ai.google.dev/api/generate-content, /api/models and /gemini-api/docs/troubleshooting.

Example:
    >>> body = {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}
    >>> GenerateContent("gemini-2.5-flash", stream=False).read(body).turns
    (Turn(role='user', text='Hi'),)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from brix_core.demo.counting import message_tokens, schema_tokens, tool_tokens
from brix_core.demo.plan import Answer, InvalidRequest, Piece, Prompt, Refusal, Tool, ToolChoice, Turn, Usage

MODELS = ("gemini-2.5-flash", "gemini-2.5-pro")
"""What the list of models shows; requests may name any model."""

_METHODS = {"generateContent": False, "streamGenerateContent": True}
_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
_MODES: dict[str, ToolChoice] = {"ANY": "required", "NONE": "none"}
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class GenerateContent:
    """``POST /v1beta/models/{model}:generateContent`` and ``:streamGenerateContent?alt=sse``.

    Args:
        model: The model in the path.
        stream: Whether the path asks for a stream.
    """

    request_id_header = "x-request-id"
    content_type = "text/event-stream"

    def __init__(self, model: str, *, stream: bool) -> None:
        self._model = model
        self._stream = stream

    @classmethod
    def at(cls, call: str, query: Mapping[str, str]) -> GenerateContent | None:
        """The format for the last part of a path; None when that names no method that is served.

        Example:
            >>> GenerateContent.at("gemini-2.5-flash:countTokens", {}) is None
            True
        """
        model, _, method = call.rpartition(":")
        if not model or method not in _METHODS:
            return None
        stream = _METHODS[method]
        # Without it, the API streams one JSON array, which nobody here wants to read.
        return None if stream and query.get("alt") != "sse" else cls(model, stream=stream)

    def read(self, body: Mapping[str, Any]) -> Prompt:
        """The prompt in a request's body.

        Raises:
            InvalidRequest: A field is missing or of the wrong kind.
        """
        contents = body.get("contents")
        if not isinstance(contents, list) or not contents or not all(isinstance(item, dict) for item in contents):
            raise InvalidRequest("GenerateContentRequest.contents: contents is not specified")
        system = body.get("systemInstruction")
        turns = [*([Turn("system", _text(system))] if system else []), *map(_turn, contents)]
        tools = tuple(
            Tool(item.get("name", ""), item.get("description") or "", item.get("parametersJsonSchema") or {})
            for tool in body.get("tools") or []
            for item in tool.get("functionDeclarations") or []
        )
        calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
        config = body.get("generationConfig") or {}
        schema = config.get("responseJsonSchema")
        if schema is not None and config.get("responseMimeType") != "application/json":
            raise InvalidRequest("responseJsonSchema needs responseMimeType: application/json")
        return Prompt(
            model=self._model,
            turns=tuple(turns),
            prompt_tokens=message_tokens({"role": turn.role, "content": turn.text} for turn in turns)
            + tool_tokens((tool.name, tool.description, tool.schema) for tool in tools)
            + schema_tokens(schema),
            tools=tools,
            tool_choice=_MODES.get(calling.get("mode", ""), "auto"),
            named_tool=next(iter(calling.get("allowedFunctionNames") or ()), None),
            response_schema=schema,
            json_mode=config.get("responseMimeType") == "application/json" and schema is None,
            max_tokens=config.get("maxOutputTokens"),
            stop=tuple(config.get("stopSequences") or ()),
            choices=config.get("candidateCount") or 1,
            stream=self._stream,
        )

    def answer(self, prompt: Prompt, answers: Sequence[Answer], usage: Usage | None, index: int) -> dict[str, Any]:
        """The body of a complete answer."""
        candidates = [
            {
                "content": {
                    "parts": [*([{"text": answer.text}] if answer.text else []), *_calls(answer)],
                    "role": "model",
                },
                "finishReason": _FINISH.get(answer.finish, "OTHER"),
                "index": number,
            }
            for number, answer in enumerate(answers)
        ]
        return {"candidates": candidates} | _frame(prompt, usage, index)

    def stream(self, prompt: Prompt, index: int) -> ContentStream:
        """The frames of a streamed answer."""
        return ContentStream(prompt, index)

    def refusal(self, refusal: Refusal, index: int) -> dict[str, Any]:
        """The body of an error response."""
        return gemini_error(refusal)


class ContentStream:
    """Server-sent events: each is an answer that holds a piece; the last has the finish reasons and the usage."""

    def __init__(self, prompt: Prompt, index: int) -> None:
        self._prompt = prompt
        self._index = index
        self._last: list[dict[str, Any]] = []

    def begin(self, usage: Usage) -> bytes:
        """Nothing: every event has the prompt's tokens."""
        return b""

    def open(self, choice: int) -> bytes:
        """Nothing: a candidate begins with its first piece."""
        return b""

    def delta(self, choice: int, piece: Piece) -> bytes:
        """One piece of text; tool calls come whole, at the end."""
        if piece.call is not None:
            return b""
        content = {"parts": [{"text": piece.text}], "role": "model"}
        return _event({"candidates": [{"content": content, "index": choice}]} | _frame(self._prompt, None, self._index))

    def finish(self, choice: int, answer: Answer) -> bytes:
        """The tool calls of a choice."""
        content = {"parts": _calls(answer) or [{"text": ""}], "role": "model"}
        reason = _FINISH.get(answer.finish, "OTHER")
        self._last.append({"content": content, "finishReason": reason, "index": choice})
        return b""

    def end(self, usage: Usage | None) -> bytes:
        """The finish reasons, and the usage."""
        return _event({"candidates": self._last} | _frame(self._prompt, usage, self._index))


def gemini_error(refusal: Refusal) -> dict[str, Any]:
    """The body of an error response; how long to wait stands in it, too.

    Example:
        >>> gemini_error(Refusal(status=503, kind="server_error", message="Oh."))["error"]["status"]
        'UNAVAILABLE'
    """
    error: dict[str, Any] = {
        "code": refusal.status,
        "message": refusal.message,
        "status": _STATUS.get(refusal.status, "UNKNOWN"),
    }
    if refusal.retry_after is not None and refusal.retry_after.replace(".", "", 1).isdigit():
        kind = "type.googleapis.com/google.rpc.RetryInfo"
        error["details"] = [{"@type": kind, "retryDelay": f"{refusal.retry_after}s"}]
    return {"error": error}


def gemini_models() -> dict[str, Any]:
    """The body of ``GET /v1beta/models``.

    Example:
        >>> gemini_models()["models"][0]["name"]
        'models/gemini-2.5-flash'
    """
    methods = ["generateContent", "countTokens"]
    return {"models": [{"name": f"models/{name}", "supportedGenerationMethods": methods} for name in MODELS]}


def _turn(content: Mapping[str, Any]) -> Turn:
    parts = content.get("parts") or []
    results = [part["functionResponse"] for part in parts if "functionResponse" in part]
    if results:
        return Turn("tool", "\n".join(_result(result.get("response") or {}) for result in results))
    return Turn("assistant" if content.get("role") == "model" else "user", _text(content))


def _result(response: Mapping[str, Any]) -> str:
    return str(response["output"]) if set(response) == {"output"} else json.dumps(response)


def _text(content: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in content.get("parts") or [] if isinstance(part.get("text"), str))


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [{"functionCall": {"name": call.name, "args": _parsed(call.arguments)}} for call in answer.calls]


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:  # cut short
        return {}


def _frame(prompt: Prompt, usage: Usage | None, index: int) -> dict[str, Any]:
    frame: dict[str, Any] = {"modelVersion": prompt.model, "responseId": f"resp{index:08d}"}
    if usage is None:
        return frame
    return frame | {
        "usageMetadata": {
            "promptTokenCount": usage.prompt_tokens,
            "candidatesTokenCount": usage.completion_tokens - usage.reasoning_tokens,
            "thoughtsTokenCount": usage.reasoning_tokens,
            "cachedContentTokenCount": usage.cached_tokens,
            "totalTokenCount": usage.prompt_tokens + usage.completion_tokens,
        }
    }


def _event(payload: Mapping[str, Any]) -> bytes:
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode(errors="replace") + b"\r\n\r\n"


__all__ = ["MODELS", "ContentStream", "GenerateContent", "gemini_error", "gemini_models"]
