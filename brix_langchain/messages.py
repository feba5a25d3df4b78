"""Reading LangChain's messages: what is counted, hashed, and how a known prefix is recognised."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

_ROLES: Final = {
    "human": "user",
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "HumanMessageChunk": "user",
}

_content = attrgetter("content")
_name = attrgetter("name")
_tool_calls = attrgetter("tool_calls")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A by-value picture of messages, in columns, so that it is compared at C speed.

    `messages` are the objects themselves: where the same objects come again (the common case), their kind and
    their names need no second look.
    """

    messages: list[Any]
    types: list[type]
    names: list[str | None]
    contents: list[Any]
    answers: Callable[[Sequence[Any]], Sequence[Any]] | None
    tool_calls: list[Any]

    def __len__(self) -> int:
        return len(self.messages)


class LangChainCodec:
    """Reads LangChain messages.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> LangChainCodec().to_dict(HumanMessage("hi"))
        {'role': 'user', 'content': 'hi'}
    """

    def to_dict(self, message: BaseMessage) -> dict[str, Any]:
        """The message in OpenAI's chat format."""
        role = _ROLES.get(message.type, message.type)
        if role == "chat":
            role = getattr(message, "role", role)
        result: dict[str, Any] = {"role": role, "content": message.content}
        if message.name:
            result["name"] = message.name
        if isinstance(message, AIMessage) and message.tool_calls:
            result["tool_calls"] = [
                {
                    "id": call.get("id"),
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["args"], default=str)},
                }
                for call in message.tool_calls
            ]
        elif isinstance(message, AIMessage) and "function_call" in message.additional_kwargs:
            result["function_call"] = message.additional_kwargs["function_call"]
        if isinstance(message, ToolMessage):
            result["tool_call_id"] = message.tool_call_id
        return result

    def snapshot(self, messages: Sequence[BaseMessage], known: _Seen | None = None) -> _Seen:
        """See `brix_core.conversation.Codec`."""
        start = len(known) if known else 0
        fresh = messages[start:]
        positions = [index for index, message in enumerate(messages) if isinstance(message, AIMessage)]
        answers: Callable[[Sequence[Any]], Sequence[Any]] | None = None
        if positions:
            # A slice keeps `itemgetter` returning a tuple for one position as well.
            answers = (
                itemgetter(*positions)
                if len(positions) > 1
                else itemgetter(slice(positions[0], positions[0] + 1))
            )
        return _Seen(
            messages=(known.messages if known else []) + list(fresh),
            types=(known.types if known else []) + list(map(type, fresh)),
            contents=(known.contents if known else []) + [_frozen(message.content) for message in fresh],
            names=(known.names if known else []) + list(map(_name, fresh)),
            answers=answers,
            tool_calls=(known.tool_calls if known else [])
            + [_frozen(message.tool_calls) for message in fresh if isinstance(message, AIMessage)],
        )

    def extends(self, snapshot: _Seen, messages: Sequence[BaseMessage]) -> bool:
        """See `brix_core.conversation.Codec`."""
        length = len(snapshot)
        head = messages if len(messages) == length else messages[:length]
        seen = snapshot.messages
        if length and head[0] is seen[0] and head[-1] is seen[-1]:
            same = head == seen  # by identity; only for one that was replaced is pydantic asked
        else:
            same = list(map(type, head)) == snapshot.types and list(map(_name, head)) == snapshot.names
        return (
            same
            and list(map(_content, head)) == snapshot.contents
            and (
                snapshot.answers is None
                or list(map(_tool_calls, snapshot.answers(head))) == snapshot.tool_calls
            )
        )


def _frozen(value: Any) -> Any:
    """A copy of nested lists and dicts that edits in place do not reach."""
    if isinstance(value, list):
        return [_frozen(item) for item in value]
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


CODEC: Final = LangChainCodec()

__all__ = ["CODEC", "LangChainCodec"]
