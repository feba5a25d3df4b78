"""LlamaIndex messages in OpenAI's chat format: what is counted and hashed.

A completion has a text for a prompt and no messages. It travels as a single `Prompt`, so that everything
between the surface and the endpoint sees a conversation in both cases.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from operator import eq
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock

from brix_core.call import ToolCall
from brix_core.conversation import Edit, MessageEdits
from brix_core.response_metadata import BRIX
from brix_core.turns import Role


class Prompt(str):
    """The text of a completion call.

    Example:
        >>> prompt_of([Prompt("Once upon a time")]), prompt_of([ChatMessage("Hi")]) is None
        ('Once upon a time', True)
    """

    __slots__ = ()


def prompt_of(messages: Sequence[Any]) -> str | None:
    """The prompt, when these are no chat messages but the text of a completion."""
    if messages and isinstance(messages[0], Prompt):
        return str(messages[0])
    return None


class MessageCodec(MessageEdits):
    """Reads `ChatMessage` with all its blocks, and `Prompt`. Use the one instance, `CODEC`.

    Example:
        >>> CODEC.to_dict(ChatMessage("Hello"))
        {'role': 'user', 'content': 'Hello'}
        >>> talk = [ChatMessage("Hello")]
        >>> seen = CODEC.snapshot(talk)
        >>> CODEC.extends(seen, [*talk, ChatMessage("again")])
        True
        >>> talk[0].blocks[0].text = "edited in place"
        >>> CODEC.extends(seen, talk)
        False
    """

    def to_dict(self, message: Any) -> dict[str, Any]:
        """The message in OpenAI's chat format; what is no message at all becomes its text."""
        if not isinstance(message, ChatMessage):
            return {"role": "user", "content": str(message)}
        found: dict[str, Any] = {"role": _role(message), "content": _content(message)}
        calls = tool_calls_of(message)
        if calls:
            found["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        for name, value in message.additional_kwargs.items():
            # A completion model gets all of them, written out in its prompt.
            if name not in found and name not in ("tool_calls", BRIX):
                found[name] = _plain(value)
        return found

    def snapshot(self, messages: Sequence[Any], known: Any = None) -> list[Any]:
        """A by-value picture of the messages."""
        start = len(known) if known else 0
        return [*(known or ()), *(_frozen(_picture(message)) for message in messages[start:])]

    def extends(self, snapshot: Any, messages: Sequence[Any]) -> bool:
        """Compare by value; stops at the first difference."""
        return len(messages) >= len(snapshot) and all(map(eq, snapshot, map(_picture, messages)))

    def message(self, role: Role, text: str) -> ChatMessage:
        """A new message."""
        return ChatMessage(text, role=role)

    def with_text(self, message: ChatMessage, text: str) -> ChatMessage:
        """A copy that says `text` at its end, too."""
        return message.model_copy(update={"blocks": [*message.blocks, TextBlock(text=f"\n\n{text}")]})

    def map_text(self, message: Any, change: Callable[[str], str]) -> Any:
        """A copy whose every text has gone through `change`; a `Prompt` is text as a whole."""
        if isinstance(message, Prompt):
            return Prompt(change(message))
        return message.model_copy(update={"blocks": [_mapped(block, change) for block in message.blocks]})

    def edit(self, messages: Sequence[Any], system: str, turns: Sequence[tuple[Role, str]]) -> Edit:
        """See `brix_core.conversation.Codec`. A completion's prompt stays one text."""
        prompt = prompt_of(messages)
        if prompt is None:
            return super().edit(messages, system, turns)
        parts = [system, prompt, *(text for _, text in turns)]
        return Edit([Prompt("\n\n".join(part for part in parts if part))], 1, ())


CODEC = MessageCodec()


def tool_calls_of(message: ChatMessage) -> tuple[ToolCall, ...]:
    """The tool calls of a message: its blocks, or where older integrations put them.

    Example:
        >>> tool_calls_of(ChatMessage(blocks=[ToolCallBlock(tool_name="now", tool_kwargs={"zone": "UTC"})]))
        (ToolCall(id='', name='now', arguments='{"zone": "UTC"}'),)
    """
    calls = [
        ToolCall(id=block.tool_call_id or "", name=block.tool_name, arguments=_arguments(block.tool_kwargs))
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    if not calls and message.additional_kwargs:
        older = message.additional_kwargs.get("tool_calls")
        calls = [_older_call(call) for call in older] if isinstance(older, list | tuple) else []
    return tuple(calls)


def _mapped(block: Any, change: Callable[[str], str]) -> Any:
    return block.model_copy(update={"text": change(block.text)}) if isinstance(block, TextBlock) else block


def field(source: Any, name: str) -> Any:
    """An entry of a mapping, or an attribute of an object; None when there is none."""
    if type(source) is dict or isinstance(source, Mapping):
        return source.get(name)
    return getattr(source, name, None)


def tool_name(tool: Any) -> Any:
    """The name of a tool in OpenAI's format or Anthropic's; None for anything else.

    Example:
        >>> tool_name({"type": "function", "function": {"name": "now"}}), tool_name({"name": "now"})
        ('now', 'now')
    """
    return field(field(tool, "function") or tool, "name")


def _older_call(call: Any) -> ToolCall:
    """OpenAI's shape (``function.name``), Anthropic's (``name``, ``input``) or `ToolSelection`'s."""
    function = field(call, "function") or call
    name = field(function, "name") or field(call, "tool_name") or ""
    arguments = next(
        (found for key in ("arguments", "input", "tool_kwargs") if (found := field(function, key)) is not None),
        "",
    )
    return ToolCall(
        id=str(field(call, "id") or field(call, "tool_id") or ""),
        name=str(name),
        arguments=_arguments(arguments),
    )


def _arguments(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str) if value else ""


def _role(message: ChatMessage) -> str:
    role = message.role
    return str(getattr(role, "value", role))


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    blocks = message.blocks
    if len(blocks) == 1 and type(blocks[0]) is TextBlock:
        return blocks[0].text
    if all(isinstance(block, TextBlock | ToolCallBlock) for block in blocks):
        return "".join(block.text for block in blocks if isinstance(block, TextBlock))
    return [_part(block) for block in blocks if not isinstance(block, ToolCallBlock)]


def _part(block: Any) -> dict[str, Any]:
    match block.block_type:
        case "text":
            return {"type": "text", "text": block.text}
        case "thinking":
            return {"type": "thinking", "thinking": block.content or ""}
        case "image":
            image = {"url": _data(block.image, block.image_mimetype) or _reference(block)}
            return {
                "type": "image_url",
                "image_url": image | ({"detail": block.detail} if block.detail else {}),
            }
        case "document":
            data = _data(block.data, block.document_mimetype)
            return {"type": "file", "file": {"file_data": data} if data else {"file_id": _reference(block)}}
        case "audio":
            return {
                "type": "input_audio",
                "input_audio": {"data": _text(block.audio), "format": block.format},
            }
        case "video":
            return {"type": "video_url", "video_url": {"url": _data(block.video, block.video_mimetype)}}
    return {"type": block.block_type, "content": _plain(block)}


def _data(value: Any, mimetype: str | None) -> str:
    """A data URL of what LlamaIndex keeps in base64; empty for a reference or an open file, not read here."""
    text = _text(value)
    return f"data:{mimetype or ''};base64,{text}" if text else ""


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else ""


def _reference(block: Any) -> str:
    return str(block.url or block.path or "")


def _plain(value: Any) -> Any:
    """JSON of whatever integrations put into a message; objects that have none become their text."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    dump = getattr(value, "model_dump", None)
    if dump is None or isinstance(value, type):
        return str(value)
    try:
        return _plain(dump())
    except Exception:  # a serializer of theirs failed; the text still counts
        return str(value)


def _picture(message: Any) -> Any:
    """The parts of a message that can change, as they are now, in a form that compares at C speed."""
    if not isinstance(message, ChatMessage):
        return message
    return message.role, message.additional_kwargs, [block.__dict__ for block in message.blocks]


def _frozen(picture: Any) -> Any:
    """A copy that later edits in place do not reach."""
    if not isinstance(picture, tuple):
        return picture
    role, extra, blocks = picture
    return role, _deep(extra) if extra else {}, [_deep_fields(block) for block in blocks]


def _deep_fields(fields: dict[str, Any]) -> Any:
    if all(type(value) is str for value in fields.values()):
        return dict(fields)
    return _deep(fields)


def _deep(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # an open file, a client: never equal to anything, so it is measured anew each time
        return object()


__all__ = ["CODEC", "MessageCodec", "Prompt", "field", "prompt_of", "tool_calls_of", "tool_name"]
