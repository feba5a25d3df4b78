"""Reading LangChain's messages: what is counted, hashed, and how a known prefix is recognised."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from brix_core.conversation import MessageEdits, joined, mapped
from brix_core.turns import Role, ToolResult, Turn

_ROLES: Final = {
    "human": "user",
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "HumanMessageChunk": "user",
}

_MESSAGES: Final[dict[Role, type[BaseMessage]]] = {
    "system": SystemMessage,
    "user": HumanMessage,
    "assistant": AIMessage,
}

_content = attrgetter("content")
_name = attrgetter("name")


class _Column(NamedTuple):
    """One attribute of the messages of one kind: where they stand, and what it was."""

    kind: type[BaseMessage]
    read: Callable[[Any], Any]
    positions: list[int]
    values: list[Any]
    select: Callable[[Sequence[Any]], Sequence[Any]] | None = None

    def grown(self, start: int, fresh: Sequence[BaseMessage]) -> _Column:
        """The column over `fresh` too, which stand from `start` on."""
        found = [index for index, message in enumerate(fresh, start) if isinstance(message, self.kind)]
        if not found:
            return self
        positions = self.positions + found
        # A slice keeps `itemgetter` returning a tuple for one position as well.
        select = itemgetter(*positions) if len(positions) > 1 else itemgetter(slice(found[0], found[0] + 1))
        values = self.values + [_frozen(self.read(fresh[index - start])) for index in found]
        return self._replace(positions=positions, values=values, select=select)

    def holds(self, head: Sequence[Any]) -> bool:
        """Whether the messages still say so."""
        return self.select is None or list(map(self.read, self.select(head))) == self.values


_NO_ANSWERS: Final = _Column(AIMessage, attrgetter("tool_calls"), [], [])
_NO_RESULTS: Final = _Column(ToolMessage, attrgetter("tool_call_id"), [], [])
_NO_ROLES: Final = _Column(ChatMessage, attrgetter("role"), [], [])


@dataclass(frozen=True, slots=True)
class _Seen:
    """A by-value picture of messages, in columns, so that it is compared at C speed.

    `messages` are the objects themselves. Where the same objects come again (the common case), what applications
    edit in place is looked at: contents and tool calls. Their kind, name, role and tool call id are not: a look at
    each would cost as much again.
    """

    messages: list[Any]
    types: list[type]
    names: list[str | None]
    contents: list[Any]
    answers: _Column
    results: _Column
    roles: _Column

    def __len__(self) -> int:
        return len(self.messages)


_NOTHING: Final = _Seen([], [], [], [], _NO_ANSWERS, _NO_RESULTS, _NO_ROLES)

_READ: Final = ("tool_calls", "function_call")
"""Entries of ``additional_kwargs`` that `LangChainCodec.to_dict` reads, itself or as ``message.tool_calls``."""


class LangChainCodec(MessageEdits):
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

    def beside(self, message: BaseMessage) -> dict[str, Any]:
        """What may reach the model beside `to_dict`: part of the key under which an answer is cached."""
        found = {name: value for name, value in message.additional_kwargs.items() if name not in _READ}
        if isinstance(message, AIMessage) and message.invalid_tool_calls:
            found["invalid_tool_calls"] = message.invalid_tool_calls
        if isinstance(message, ToolMessage):
            found["status"] = message.status
        return found

    def turn(self, message: BaseMessage) -> Turn:
        """What the message says. A tool's result that context editing took out is like no other."""
        if isinstance(message, ToolMessage) and is_cleared(message):
            return Turn("tool", "", results=(ToolResult(message.tool_call_id, f"cleared: {message.tool_call_id}"),))
        return super().turn(message)

    def snapshot(self, messages: Sequence[BaseMessage], known: _Seen | None = None) -> _Seen:
        """See `brix_core.conversation.Codec`."""
        known = known or _NOTHING
        start = len(known)
        fresh = messages[start:]
        return _Seen(
            messages=known.messages + list(fresh),
            types=known.types + list(map(type, fresh)),
            names=known.names + list(map(_name, fresh)),
            contents=known.contents + [_frozen(message.content) for message in fresh],
            answers=known.answers.grown(start, fresh),
            results=known.results.grown(start, fresh),
            roles=known.roles.grown(start, fresh),
        )

    def extends(self, snapshot: _Seen, messages: Sequence[BaseMessage]) -> bool:
        """See `brix_core.conversation.Codec`."""
        length = len(snapshot)
        head = messages if len(messages) == length else messages[:length]
        seen = snapshot.messages
        if length and head[0] is seen[0] and head[-1] is seen[-1]:
            same = head == seen  # by identity; only for one that was replaced is pydantic asked
        else:
            same = (
                list(map(type, head)) == snapshot.types
                and list(map(_name, head)) == snapshot.names
                and snapshot.results.holds(head)
                and snapshot.roles.holds(head)
            )
        return same and list(map(_content, head)) == snapshot.contents and snapshot.answers.holds(head)

    def message(self, role: Role, text: str) -> BaseMessage:
        """A new message."""
        if role == "tool":
            raise ValueError("a tool's result belongs to a call; it is not made from a text alone")
        return _MESSAGES[role](text)

    def with_text(self, message: BaseMessage, text: str) -> BaseMessage:
        """A copy that says `text` at its end, too."""
        return message.model_copy(update={"content": joined(message.content, text)})

    def map_text(self, message: BaseMessage, change: Callable[[str], str]) -> BaseMessage:
        """A copy whose every text has gone through `change`."""
        return message.model_copy(update={"content": mapped(message.content, change)})


def is_cleared(message: ToolMessage) -> bool:
    """Whether LangChain's context editing took the result out: all that is left is one word."""
    return bool(message.response_metadata.get("context_editing", {}).get("cleared"))


def _frozen(value: Any) -> Any:
    """A copy of nested lists and dicts that edits in place do not reach."""
    if isinstance(value, list):
        return [_frozen(item) for item in value]
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


CODEC: Final = LangChainCodec()

__all__ = ["CODEC", "LangChainCodec", "is_cleared"]
