"""``response_metadata["brix"]``: what the guards tell of a call, in its message (`brix_core.response_metadata`).

LangChain hands it on to callbacks and tracers, and keeps it with the message; it sends it to no provider. In a stream
it stands in the last chunk, so that adding chunks up gives it once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, cast

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from brix_core.call import CallRequest, CallResponse
from brix_core.response_metadata import BRIX, metadata_of
from brix_langchain.partial_answers import marked_result, timed_out, timeout_chunk


def told_result(response: CallResponse, request: CallRequest) -> ChatResult:
    """LangChain's own result, telling of its call."""
    result = marked_result(response)
    for generation in result.generations:
        _tell(generation.message, request)
    return result


def told_chunks(
    chunks: Iterator[ChatGenerationChunk], request: CallRequest, *, keeps_partial: bool
) -> Iterator[ChatGenerationChunk]:
    """The chunks, of which the last tells of the call.

    Args:
        chunks: As they come.
        request: The call.
        keeps_partial: Whether a time limit leaves what has arrived; then a last chunk says so.
    """
    ending = _Ending(request, keeps_partial)
    with closing(cast(Any, chunks)):
        for chunk in chunks:
            if ending.is_none(chunk):
                yield chunk
    yield from ending.chunks()


async def atold_chunks(
    chunks: AsyncIterator[ChatGenerationChunk], request: CallRequest, *, keeps_partial: bool
) -> AsyncIterator[ChatGenerationChunk]:
    """The same on an event loop."""
    ending = _Ending(request, keeps_partial)
    async with aclosing(cast(Any, chunks)):
        async for chunk in chunks:
            if ending.is_none(chunk):
                yield chunk
    for chunk in ending.chunks():
        yield chunk


class _Ending:
    """The end of a stream. The chunk that says it is the last is kept until the call is over, and then tells of it."""

    __slots__ = ("_began", "_keeps_partial", "_last", "_request")

    def __init__(self, request: CallRequest, keeps_partial: bool) -> None:
        self._request = request
        self._keeps_partial = keeps_partial
        self._began = False
        self._last: list[ChatGenerationChunk] = []

    def is_none(self, chunk: ChatGenerationChunk) -> bool:
        """Whether a chunk is one to be given now."""
        self._began = True
        if self._last or getattr(chunk.message, "chunk_position", None) == "last":
            self._last.append(chunk)
            return False
        return True

    def chunks(self) -> Sequence[ChatGenerationChunk]:
        """The last chunks; none for a stream that gave nothing."""
        if self._keeps_partial and timed_out(self._request):
            self._last.append(timeout_chunk())
        elif self._began and not self._last:  # LangChain would add one that is empty
            self._last.append(ChatGenerationChunk(message=AIMessageChunk(content="", chunk_position="last")))
        if self._last:
            _tell(self._last[-1].message, self._request)
        return self._last


def without_metadata(message: BaseMessage) -> BaseMessage:
    """The message as it would be without guards; itself, where it tells of none.

    Example:
        >>> from langchain_core.messages import AIMessage
        >>> message = AIMessage("Paris", response_metadata={"id": "7", "brix": {"run_id": "r-1"}})
        >>> without_metadata(message).response_metadata, BRIX in message.response_metadata
        ({'id': '7'}, True)
    """
    if BRIX not in message.response_metadata:
        return message
    kept = {name: value for name, value in message.response_metadata.items() if name != BRIX}
    return message.model_copy(update={"response_metadata": kept})


def _tell(message: BaseMessage, request: CallRequest) -> None:
    # A new dict: a fake model, say, may have put the old one into several messages.
    message.response_metadata = {**message.response_metadata, BRIX: metadata_of(request.call)}


__all__ = ["atold_chunks", "told_chunks", "told_result", "without_metadata"]
