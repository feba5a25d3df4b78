"""What is kept of an answer, and how an answer is made of it again.

Kept are whole answers of models: not one that a time limit or the output cap cut short, that was filtered or refused,
that is empty, that has no valid instance where there is a schema, or that a guard gave in a model's place. Calls of
tools are whole answers too.

In memory the framework's or SDK's own result is kept as a copy, and copied again for each caller: nobody can change
what another gets. A cache that writes its values down keeps text, tool calls and figures, from which the endpoint makes
the result again; where it could not make the same of them, the answer is not kept.

An instance is never kept: it is read from the answer again for each caller, by the schema of that caller. So a hit is
as valid as an answer (G8), and an object of its own.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from brix_core.call import CACHED, PARSED, CallRequest, CallResponse, ToolCall
from brix_core.usage import Usage

CUT_OFF: Final = frozenset({"length", "max_tokens", "model_context_window_exceeded", "max_output_tokens"})
REFUSED: Final = frozenset({"refusal", "content_filter", "safety", "recitation", "blocklist", "prohibited_content"})

_USAGE: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")


def why_not_kept(response: CallResponse, request: CallRequest) -> str:
    """Why an answer is not kept; empty when it may be."""
    reason = (response.finish_reason or "").lower()
    if response.partial:
        return "a time limit cut it short"
    if reason in CUT_OFF:
        return "the output limit cut it short"
    if reason in REFUSED:
        return f"it was not given ({reason})"
    if not response.text.strip() and not response.tool_calls:
        return "it is empty"
    if not request.call.attempts:
        return "a guard gave it, who is to be asked again"
    if request.schema is not None and PARSED not in request.call.metadata:
        return "it holds no valid instance"
    return ""


def kept(response: CallResponse, request: CallRequest) -> dict[str, Any]:
    """What to keep of an answer, in memory.

    Raises:
        Exception: Its result cannot be copied.
    """
    usage, attempts = response.usage, request.call.attempts
    return {
        "endpoint": attempts[-1].endpoint if attempts else request.endpoint.identity,
        "text": response.text,
        "model": response.model,
        "finish_reason": response.finish_reason,
        "tool_calls": [[call.id, call.name, call.arguments] for call in response.tool_calls],
        "usage": None if usage is None else {name: getattr(usage, name) for name in (*_USAGE, "estimated")},
        "raw": copy.deepcopy(response.raw),
    }


def as_written(value: dict[str, Any], request: CallRequest) -> dict[str, Any]:
    """What to keep of it where values are written down: JSON.

    Raises:
        ValueError: Its result could not be made again.
    """
    written = {name: part for name, part in value.items() if name != "raw"}
    again = _made_again(_plain(written), request)
    if (again.text, len(again.tool_calls)) != (value["text"], len(value["tool_calls"])):
        raise ValueError("its result cannot be made of its text and tool calls alone")
    return written


def restored(value: Any, request: CallRequest) -> CallResponse | None:
    """The answer made of what was kept; None when it is none, or not (any more) valid for the request's schema."""
    try:
        endpoint = str(value["endpoint"])
        response = _plain(value)
        if "raw" in value:
            response = response._replace(raw=copy.deepcopy(value["raw"]))
        else:
            response = response._replace(raw=_made_again(response, request).raw)
        instance = None if request.schema is None else _instance(response, request)
    except (KeyError, TypeError, ValueError, IndexError):  # `SchemaMismatch` is a ValueError
        return None
    request.call.metadata[CACHED] = endpoint
    if request.schema is None:
        return response
    request.call.metadata[PARSED] = instance
    return response._replace(parsed=instance)


def _plain(value: Any) -> CallResponse:
    usage = value["usage"]
    return CallResponse(
        text=value["text"],
        usage=None if usage is None else Usage(**usage),
        model=value["model"],
        tool_calls=tuple(ToolCall(id=id, name=name, arguments=text) for id, name, text in value["tool_calls"]),
        finish_reason=value["finish_reason"],
    )


def _made_again(response: CallResponse, request: CallRequest) -> CallResponse:
    endpoint = request.endpoint
    return endpoint.assemble(endpoint.as_chunks(response), response.text, request)


def _instance(response: CallResponse, request: CallRequest) -> Any:
    schema = request.schema
    assert schema is not None
    texts = (call.arguments for call in response.tool_calls if call.name == schema.name)
    return schema.read(next(texts, response.text))


__all__ = ["CUT_OFF", "REFUSED", "as_written", "kept", "restored", "why_not_kept"]
