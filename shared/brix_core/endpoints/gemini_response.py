"""What Gemini answers: whole responses, and the events of a stream, which look alike.

Sources: ai.google.dev/api/generate-content ("GenerateContentResponse", "Candidate", "FinishReason", "UsageMetadata":
the prompt's tokens include the cached ones, thoughts are counted beside the candidates', the counts in a stream are
those so far) and the same in googleapis/python-genai, ``google/genai/types.py`` (August 2026).

Example:
    >>> answer = {"candidates": [{"content": {"parts": [{"text": "Oslo"}]}, "finishReason": "STOP"}]}
    >>> read(answer, "gemini-2.5-flash").text
    'Oslo'
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brix_core.call import CallResponse, ToolCall
from brix_core.endpoints.gemini_request import UNNAMED_CALL
from brix_core.endpoints.http_client import JsonObject
from brix_core.usage import Usage


def read(data: JsonObject, model: str) -> CallResponse:
    """The response in a whole answer. A prompt that was blocked has no text, and the reason as its finish reason."""
    candidates = _candidates(data)
    parts = [part for candidate in candidates for part in _parts(candidate)]
    feedback = data.get("promptFeedback")
    blocked = feedback.get("blockReason") if isinstance(feedback, Mapping) else None
    return CallResponse(
        text="".join(map(_visible, parts)),
        usage=read_usage(data.get("usageMetadata")),
        model=str(data.get("modelVersion") or model),
        tool_calls=tuple(_tool_calls(parts)),
        finish_reason=(candidates[0].get("finishReason") if candidates else blocked) or None,
        raw=data,
    )


def read_usage(usage: Any) -> Usage | None:
    """Tokens as reported; None when nothing was."""
    counts = usage if isinstance(usage, Mapping) else {}
    prompt = _count(counts, "promptTokenCount") + _count(counts, "toolUsePromptTokenCount")
    thoughts = _count(counts, "thoughtsTokenCount")
    output = _count(counts, "candidatesTokenCount") + thoughts
    if not (prompt or output):
        return None
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        cache_read_tokens=min(prompt, _count(counts, "cachedContentTokenCount")),
        reasoning_tokens=thoughts,
    )


def read_event(event: JsonObject) -> tuple[str, str]:
    """The billed text of an event, and the visible text of its first candidate."""
    billed, visible = "", ""
    for candidate in _candidates(event):
        for part in _parts(candidate):
            billed += _billed(part)
            if not candidate.get("index"):
                visible += _visible(part)
    return billed, visible


def finishes(event: JsonObject) -> bool:
    """Whether a finish reason has come with it, or that the prompt was blocked."""
    feedback = event.get("promptFeedback")
    if isinstance(feedback, Mapping) and feedback.get("blockReason"):
        return True
    return any(candidate.get("finishReason") for candidate in _candidates(event))


def merged(events: Sequence[JsonObject]) -> JsonObject:
    """The answer that the events of a stream make; texts that follow each other are joined."""
    whole: JsonObject = {}
    by_index: dict[int, dict[str, Any]] = {}
    for event in events:
        whole |= {name: value for name, value in event.items() if name != "candidates"}
        for candidate in _candidates(event):
            index = candidate.get("index") or 0
            so_far = by_index.setdefault(index, {"index": index, "content": {"role": "model", "parts": []}})
            so_far |= {name: value for name, value in candidate.items() if name not in ("content", "index")}
            for part in _parts(candidate):
                _append(so_far["content"]["parts"], part)
    for candidate in by_index.values():
        for part in candidate["content"]["parts"]:
            if isinstance(part.get("text"), list):
                part["text"] = "".join(part["text"])
    if by_index:
        whole["candidates"] = [candidate for _, candidate in sorted(by_index.items())]
    return whole


def told(response: CallResponse) -> JsonObject:
    """A response in Gemini's words."""
    parts: list[dict[str, Any]] = [{"text": response.text}] if response.text else []
    for call in response.tool_calls:
        named = {} if call.id.startswith(UNNAMED_CALL) else {"id": call.id}
        parts.append({"functionCall": {**named, "name": call.name, "args": _parsed(call.arguments)}})
    candidate = {"index": 0, "content": {"role": "model", "parts": parts}, "finishReason": response.finish_reason}
    event: JsonObject = {"candidates": [candidate], "modelVersion": response.model}
    usage = response.usage
    if usage is not None:
        event["usageMetadata"] = {
            "promptTokenCount": usage.input_tokens,
            "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
            "thoughtsTokenCount": usage.reasoning_tokens,
            "cachedContentTokenCount": usage.cache_read_tokens,
            "totalTokenCount": usage.total_tokens,
        }
    return event


def _candidates(data: JsonObject) -> list[dict[str, Any]]:
    listed = data.get("candidates")
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


def _parts(candidate: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = candidate.get("content")
    listed = content.get("parts") if isinstance(content, Mapping) else None
    return [part for part in listed if isinstance(part, dict)] if isinstance(listed, list) else []


def _visible(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    return text if isinstance(text, str) and not part.get("thought") else ""


def _billed(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if isinstance(text, str):
        return text
    call = part.get("functionCall")
    if isinstance(call, Mapping):
        return f"{call.get('name') or ''}{_written(call.get('args'))}"
    code = part.get("executableCode")
    return str(code.get("code") or "") if isinstance(code, Mapping) else ""


def _append(parts: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """Add a part; pieces of text are gathered in a list, because joining them one by one takes quadratic time."""
    if not isinstance(part.get("text"), str):
        parts.append(part)
        return
    last = parts[-1] if parts else None
    beside = {name: value for name, value in part.items() if name != "text"}
    if last is None or not isinstance(last.get("text"), list) or last.get("thought") != part.get("thought"):
        parts.append({**beside, "text": [part["text"]]})
        return
    last["text"].append(part["text"])
    last |= beside


def _tool_calls(parts: Sequence[Mapping[str, Any]]) -> Iterator[ToolCall]:
    number = 0
    for part in parts:
        call = part.get("functionCall")
        if isinstance(call, Mapping):
            name = str(call.get("name") or "")
            yield ToolCall(
                id=str(call.get("id") or f"{UNNAMED_CALL}{number}"), name=name, arguments=_written(call.get("args"))
            )
            number += 1


def _written(arguments: Any) -> str:
    return json.dumps(arguments if arguments is not None else {}, ensure_ascii=False)


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:  # cut short
        return {}


def _count(counts: Mapping[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) and value > 0 else 0


__all__ = ["finishes", "merged", "read", "read_event", "read_usage", "told"]
