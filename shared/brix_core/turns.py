"""What a message says, whichever framework or provider wrote it: the guards' view of a conversation.

A codec gives every message in OpenAI's chat format; `read_turn` reads that into a `Turn`. Anthropic's content blocks
(``tool_use``, ``tool_result``) read as calls and results too.

Example:
    >>> read_turn({"role": "assistant", "content": None, "tool_calls": [
    ...     {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": 1}'}}]}).calls
    (ToolCall(id='c1', name='add', arguments='{"b": 2, "a": 1}'),)
    >>> read_turn({"role": "tool", "tool_call_id": "c1", "content": "3"}).results
    (ToolResult(id='c1', text='3'),)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from brix_core.call import ToolCall

Role = Literal["system", "user", "assistant", "tool"]

_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Whatever is not here speaks for the user."""


class ToolResult(NamedTuple):
    """What a tool gave back. `id` is that of the call, or empty."""

    id: str
    text: str


class Turn(NamedTuple):
    """One message.

    Attributes:
        role: Who speaks.
        text: Its text; the text of tool results is in `results` instead.
        calls: Tool calls that the assistant asked for.
        results: Results of tool calls. A message that holds any has the role ``"tool"``.
    """

    role: Role
    text: str
    calls: tuple[ToolCall, ...] = ()
    results: tuple[ToolResult, ...] = ()


def read_turn(message: Mapping[str, Any]) -> Turn:
    """Read a message in OpenAI's chat format, or with Anthropic's content blocks."""
    role = _ROLES.get(str(message.get("role")), "user")
    content = message.get("content")
    if role == "tool":
        name = message.get("tool_call_id") or message.get("name") or ""
        return Turn("tool", "", results=(ToolResult(str(name), written(content)),))
    if type(content) is str and role != "assistant":
        return Turn(role, content)
    blocks = content if isinstance(content, list | tuple) else ()
    results = tuple(_result(block) for block in blocks if _is(block, "tool_result"))
    if results:
        return Turn("tool", text_of(content), results=results)
    calls = (*_calls(message), *(_block_call(block) for block in blocks if _is(block, "tool_use")))
    return Turn(role, text_of(content), calls=calls)


def written(content: Any) -> str:
    """Content as text; what is no text (images, structures) by its JSON, so that a change in it is seen."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, Sequence) and all(isinstance(part, str) or _is(part, "text") for part in content):
        return text_of(content)
    return json.dumps(content, sort_keys=True, default=str)


def text_of(content: Any) -> str:
    """The text in a message's content, whichever shape it has.

    Example:
        >>> text_of([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}, "b"])
        'ab'
    """
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        text = content.get("text")
        return text if isinstance(text, str) else ""
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        return "".join(map(text_of, content))
    return ""


def _calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    found = []
    listed = message.get("tool_calls")
    for call in listed if isinstance(listed, list | tuple) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            found.append(_call(call.get("id"), function.get("name"), function.get("arguments")))
    older = message.get("function_call")
    if isinstance(older, Mapping):
        found.append(_call(older.get("name"), older.get("name"), older.get("arguments")))
    return tuple(found)


def _call(name: Any, function: Any, arguments: Any) -> ToolCall:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
    return ToolCall(id=str(name or ""), name=str(function or ""), arguments=text)


def _block_call(block: Mapping[str, Any]) -> ToolCall:
    return _call(block.get("id"), block.get("name"), block.get("input"))


def _result(block: Mapping[str, Any]) -> ToolResult:
    return ToolResult(str(block.get("tool_use_id") or ""), written(block.get("content")))


def _is(block: Any, kind: str) -> bool:
    return isinstance(block, Mapping) and block.get("type") == kind


__all__ = ["Role", "ToolResult", "Turn", "read_turn", "text_of", "written"]
