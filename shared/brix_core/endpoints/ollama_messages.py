"""What Ollama is sent, and what it answers: whole responses, and the lines of a stream, which look alike.

Sources: docs.ollama.com/api/chat, docs.ollama.com/capabilities/{structured-outputs,thinking,tool-calling} and
ollama/ollama, ``docs/api.md`` ("Generate a chat completion") and ``docs/modelfile.md`` ("Valid parameters and values").

Example:
    >>> messages([{"role": "developer", "content": "Be brief."}])
    [{'role': 'system', 'content': 'Be brief.'}]
    >>> read({"message": {"content": "Oslo"}, "done": True, "done_reason": "stop"}, "llama3.2").text
    'Oslo'
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from brix_core.call import CallResponse, ToolCall
from brix_core.endpoints.chat_format import Image, calls_of, names_of_calls, parts_of, tool_name
from brix_core.endpoints.http_client import JsonObject
from brix_core.endpoints.sdk import is_given
from brix_core.errors import BrixConfigurationError
from brix_core.usage import Usage

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

API: Final = "Ollama"

OPTIONS: Final = {
    **{
        name: name
        for name in (
            *("temperature", "top_p", "top_k", "min_p", "stop", "seed", "num_predict", "num_ctx", "repeat_penalty"),
            *("repeat_last_n", "presence_penalty", "frequency_penalty"),
        )
    },
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
}
"""Parameters, and what they are called in ``options``."""

BESIDE: Final = ("think", "keep_alive", "logprobs", "top_logprobs")
"""Parameters that stand beside them."""

KNOWN: Final = frozenset(
    {*OPTIONS, *BESIDE, "model", "options", "format", "response_format", "tools", "tool_choice", "extra_body"}
)

_UNSURE: Final = frozenset({"pattern", "multipleOf"})
"""Keywords that the grammars llama.cpp makes of schemas take in part, or refuse; they are checked afterwards."""


def messages(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation in Ollama's format.

    Raises:
        BrixConfigurationError: A message holds what cannot be sent.
    """
    names = names_of_calls(given)
    return [_message(message, number, names) for number, message in enumerate(given)]


def options(params: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` as they are sent; what is in ``extra_body`` wins.

    Example:
        >>> options({"max_tokens": 9, "stop": "END", "options": {"num_ctx": 8192}})
        {'stop': ['END'], 'num_predict': 9, 'num_ctx': 8192}
    """
    found: dict[str, Any] = {}
    for name, own in OPTIONS.items():
        if is_given(params.get(name)):
            found[own] = params[name]
    extra = params.get("extra_body") or {}
    for more in (params.get("options"), extra.get("options")):
        if isinstance(more, Mapping):
            found |= more
    if isinstance(found.get("stop"), str):
        found["stop"] = [found["stop"]]
    return found


def own_format(params: Mapping[str, Any]) -> Any:
    """The ``format`` that the caller asks for, in either way; None when there is none.

    Example:
        >>> own_format({"response_format": {"type": "json_object"}})
        'json'
    """
    extra = params.get("extra_body") or {}
    given = extra.get("format", params.get("format"))
    if is_given(given) and given:
        return given
    wanted = params.get("response_format")
    if not isinstance(wanted, Mapping):
        return None
    if wanted.get("type") == "json_object":
        return "json"
    return (wanted.get("json_schema") or {}).get("schema")


def tools(params: Mapping[str, Any]) -> list[Any]:
    """The tools to send; Ollama knows no ``tool_choice``, and none is the same as no tools.

    Raises:
        BrixConfigurationError: A tool is demanded.
    """
    choice = params.get("tool_choice")
    if is_given(choice) and choice not in ("auto", "none"):
        raise BrixConfigurationError(
            f"Ollama cannot be made to call a tool; tool_choice must be 'auto' or 'none', got {choice!r:.80}"
        )
    given = params.get("tools")
    return list(given) if is_given(given) and given and choice != "none" else []


@lru_cache(maxsize=256)
def schema_format(schema: ResponseSchema) -> dict[str, Any] | None:
    """The ``format`` for a schema; None where it leaves values open, which a grammar cannot hold to anything."""
    strict = schema.strict_json_schema()
    return None if strict is None else _without(strict)


def read(data: JsonObject, model: str) -> CallResponse:
    """The response in a whole answer."""
    message = _message_in(data)
    content = message.get("content")
    return CallResponse(
        text=content if isinstance(content, str) else "",
        usage=read_usage(data),
        model=str(data.get("model") or model),
        tool_calls=tuple(_tool_calls(message)),
        finish_reason=data.get("done_reason") or None,
        raw=data,
    )


def read_usage(data: Mapping[str, Any]) -> Usage | None:
    """Tokens as reported; None when one of the counts is missing: a prompt that is still in memory has none."""
    prompt, output = data.get("prompt_eval_count"), data.get("eval_count")
    if not isinstance(prompt, int) or not isinstance(output, int) or not (prompt or output):
        return None
    return Usage(input_tokens=prompt, output_tokens=output)


def read_event(event: JsonObject) -> tuple[str, str]:
    """The billed text of a line, and its visible text."""
    message = _message_in(event)
    visible = str(message.get("content") or "")
    calls = "".join(f"{call.name}{call.arguments}" for call in _tool_calls(message))
    return f"{message.get('thinking') or ''}{visible}{calls}", visible


def finishes(event: JsonObject) -> bool:
    """Whether it is the last line."""
    return event.get("done") is True


def merged(events: Sequence[JsonObject]) -> JsonObject:
    """The answer that the lines of a stream make."""
    whole: JsonObject = {}
    texts: dict[str, list[str]] = {"content": [], "thinking": []}
    calls: list[Any] = []
    for event in events:
        message = _message_in(event)
        for name, pieces in texts.items():
            pieces.append(str(message.get(name) or ""))
        if isinstance(message.get("tool_calls"), list):
            calls += message["tool_calls"]
        whole |= event
    message = {"role": "assistant", "content": "".join(texts["content"])}
    if thinking := "".join(texts["thinking"]):
        message["thinking"] = thinking
    return {**whole, "message": {**message, **({"tool_calls": calls} if calls else {})}}


def told(response: CallResponse) -> JsonObject:
    """A response in Ollama's words."""
    message: dict[str, Any] = {"role": "assistant", "content": response.text}
    if response.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": _parsed(call.arguments)}}
            for call in response.tool_calls
        ]
    event = {"model": response.model, "message": message, "done": True, "done_reason": response.finish_reason}
    if response.usage is not None:
        event |= {"prompt_eval_count": response.usage.input_tokens, "eval_count": response.usage.output_tokens}
    return event


def _message(message: Mapping[str, Any], number: int, names: Mapping[str, str]) -> dict[str, Any]:
    role = "system" if message.get("role") == "developer" else message.get("role")
    parts = parts_of(message, number, API)
    made: dict[str, Any] = {"role": role, "content": "".join(part for part in parts if isinstance(part, str))}
    images = [part.data for part in parts if isinstance(part, Image)]
    if images:
        made["images"] = images
    if role == "assistant" and message.get("tool_calls"):
        made["tool_calls"] = [
            {"function": {"name": call.name, "arguments": call.arguments}} for call in calls_of(message, number)
        ]
    if role == "tool":
        made["tool_name"] = tool_name(message, number, names)
    return made


def _without(schema: Any) -> Any:
    """A schema without what is not sure to be understood; names of properties are not keywords."""
    if isinstance(schema, list):
        return [_without(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions"):
            kept[key] = {name: _without(part) for name, part in value.items()}
        elif key not in _UNSURE:
            kept[key] = value if key in ("enum", "const") else _without(value)
    return kept


def _message_in(data: Mapping[str, Any]) -> Mapping[str, Any]:
    message = data.get("message")
    return message if isinstance(message, Mapping) else {}


def _tool_calls(message: Mapping[str, Any]) -> list[ToolCall]:
    found: list[ToolCall] = []
    listed = message.get("tool_calls")
    for call in listed if isinstance(listed, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            arguments = function.get("arguments")
            found.append(
                ToolCall(
                    id=str(call.get("id") or f"call_{len(found)}"),
                    name=str(function.get("name") or ""),
                    arguments=json.dumps(arguments if arguments is not None else {}, ensure_ascii=False),
                )
            )
    return found


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:  # cut short
        return {}


__all__ = [
    "API",
    "BESIDE",
    "KNOWN",
    "OPTIONS",
    "finishes",
    "merged",
    "messages",
    "options",
    "own_format",
    "read",
    "read_event",
    "read_usage",
    "schema_format",
    "told",
    "tools",
]
