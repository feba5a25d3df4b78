"""Inputs and outputs of runnables that are no models: as text, for hashes, loops, traces and time limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import Generation
from langchain_core.prompt_values import PromptValue
from pydantic import BaseModel

from brix_core.conversation import Edit
from brix_core.turns import Role, Turn
from brix_langchain.messages import CODEC
from brix_langchain.reading import billed_text


class TextCodec:
    r"""Reads a prompt that is one text. Use the one instance, `TEXTS`.

    Example:
        >>> TEXTS.to_dict("Hello")
        {'role': 'user', 'content': 'Hello'}
        >>> TEXTS.edit(["Hello"], "Be brief.", [("user", "Go on.")]).head
        ['Be brief.\n\nHello\n\nGo on.']
    """

    def to_dict(self, message: str) -> dict[str, Any]:
        """See `brix_core.conversation.Codec`."""
        return {"role": "user", "content": message}

    def snapshot(self, messages: Sequence[str], known: list[str] | None = None) -> list[str]:
        """See `brix_core.conversation.Codec`."""
        return list(messages)

    def extends(self, snapshot: list[str], messages: Sequence[str]) -> bool:
        """See `brix_core.conversation.Codec`."""
        return list(messages[: len(snapshot)]) == snapshot

    def turn(self, message: str) -> Turn:
        """What the text says."""
        return Turn("user", message)

    def message(self, role: Role, text: str) -> str:
        """See `brix_core.conversation.Codec`."""
        return text

    def map_text(self, message: str, change: Callable[[str], str]) -> str:
        """See `brix_core.conversation.Codec`."""
        return change(message)

    def edit(self, messages: Sequence[str], system: str, turns: Sequence[tuple[Role, str]]) -> Edit:
        """See `brix_core.conversation.Codec`. The prompt stays one text."""
        parts = [system, *messages, *(text for _, text in turns)]
        return Edit(["\n\n".join(part for part in parts if part)], len(messages), ())


TEXTS: Final = TextCodec()


def written(value: Any) -> str:
    """A value as text: a text as it is, all else as JSON with sorted keys. Messages go by what they say, not their ids.

    Example:
        >>> written("Paris"), written({"b": [1, None], "a": "x"})
        ('Paris', '{"a": "x", "b": [1, null]}')
    """
    return value if isinstance(value, str) else json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """As JSON has it; what has no such form by its `repr`."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, BaseMessage):
        return _plain(CODEC.to_dict(value))
    if isinstance(value, PromptValue):
        return [_plain(message) for message in value.to_messages()]
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields if name != "id"}
    return repr(value)


def chunk_text(chunk: Any) -> str:
    """The text of a chunk of any runnable: of strings and messages their own, of dicts that of their values.

    Example:
        >>> chunk_text({"answer": "Pa"}), chunk_text(AIMessageChunk("ris")), chunk_text(None)
        ('Pa', 'ris', '')
    """
    if isinstance(chunk, str):
        return chunk
    if chunk is None:
        return ""
    if isinstance(chunk, BaseMessage):
        calls = chunk.tool_call_chunks if isinstance(chunk, AIMessageChunk) else ()
        return billed_text(chunk.content) + "".join((c.get("name") or "") + (c.get("args") or "") for c in calls)
    if isinstance(chunk, Generation):
        return chunk.text
    if isinstance(chunk, Mapping):
        return "".join(map(chunk_text, chunk.values()))
    return written(chunk)


__all__ = ["TEXTS", "TextCodec", "chunk_text", "written"]
