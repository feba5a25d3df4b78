"""LlamaIndex's responses as JSON, for recordings.

A chunk of a stream holds all the text so far. Written is only what it adds, so that a recording grows with the answer
and not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os.path import commonprefix
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse

from brix_llamaindex.chunks import Chunk, Response


def packed(response: Response) -> Any:
    """A response, and which of the two kinds it is.

    Example:
        >>> kind, fields = packed(CompletionResponse(text="Hello"))
        >>> kind, fields["text"], unpacked((kind, fields)).text
        ('complete', 'Hello', 'Hello')
    """
    data = response.model_dump(mode="json", fallback=str, serialize_as_any=True)
    return ["complete" if isinstance(response, CompletionResponse) else "chat", data]


def unpacked(data: Any) -> Response:
    """The response that was packed; what it holds of the provider's (``raw``) comes back as dicts."""
    kind, fields = data
    return CompletionResponse(**fields) if kind == "complete" else ChatResponse(**fields)


def packed_chunks(chunks: Sequence[Chunk]) -> list[Any]:
    """Chunks, each with the length of the text that it has in common with the one before it."""
    made, before = [], ""
    for chunk in chunks:
        kind, fields = packed(chunk.response)
        place, name = _text_of(fields)
        text = place.get(name) or "" if place is not None else ""
        common = len(commonprefix([before, text]))  # noqa: RUF071 - of texts, which are no paths
        if place is not None and common:
            place[name] = text[common:]
        made.append([kind, fields, common, chunk.text])
        before = text
    return made


def unpacked_chunks(data: Sequence[Any]) -> Iterator[Chunk]:
    """The chunks that were packed."""
    before = ""
    for kind, fields, common, added in data:
        place, name = _text_of(fields)
        if place is not None:
            before = place[name] = before[:common] + (place.get(name) or "")
        else:
            before = ""
        yield Chunk(unpacked((kind, fields)), added)


def _text_of(fields: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Where the text so far is: in a completion, or in the first block of a message that is one of text."""
    if "message" not in fields:
        return fields, "text"
    blocks = fields["message"].get("blocks") or [{}]
    return (blocks[0], "text") if blocks[0].get("block_type") == "text" else (None, "")


__all__ = ["packed", "packed_chunks", "unpacked", "unpacked_chunks"]
