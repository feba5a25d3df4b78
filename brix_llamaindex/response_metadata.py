"""``additional_kwargs["brix"]``: what the guards tell of a call, in its response (`brix_core.response_metadata`).

In a response's, and not in a message's: LlamaIndex sends those of messages to providers. In a stream it stands in the
last chunk. Chunks that add no text are given one later, since the last of them may be the stream's last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from brix_core.call import CallRequest
from brix_core.response_metadata import BRIX, metadata_of
from brix_llamaindex.answers import is_parsed, last_chunk
from brix_llamaindex.chunks import Chunk, Response


def told(response: Response, request: CallRequest) -> Response:
    """A copy of a response that tells of its call."""
    beside = {**response.additional_kwargs, BRIX: metadata_of(request.call)}
    return response.model_copy(update={"additional_kwargs": beside})


class ToldStream:
    """The chunks of one stream as a consumer gets them, the last of which tells of the call.

    Args:
        request: The call.
    """

    __slots__ = ("_kept", "_last", "_request")

    def __init__(self, request: CallRequest) -> None:
        self._request = request
        self._last: Chunk | None = None
        self._kept = False

    def given(self, chunk: Chunk) -> Sequence[Response]:
        """What may be given when a chunk has come."""
        before = [self._last.response] if self._last is not None and self._kept else []
        self._last, self._kept = chunk, not chunk.text
        return before if self._kept else [*before, chunk.response]

    def rest(self) -> Sequence[Response]:
        """What is given when the call is over."""
        if self._last is None:
            return ()
        last, request = self._last.response, self._request
        if is_parsed(request):
            return [*([last] if self._kept else ()), told(last_chunk(last, request), request)]
        ending = last if self._kept else last.model_copy(update={"delta": ""})
        return [told(ending, request)]


def without_metadata(message: Any) -> Any:
    """A message as a provider may see it. LlamaIndex makes messages of completions with all their additional kwargs.

    Example:
        >>> without_metadata(ChatMessage("Hi", additional_kwargs={"brix": {"run_id": "r-1"}})).additional_kwargs
        {}
    """
    if not isinstance(message, ChatMessage) or BRIX not in message.additional_kwargs:
        return message
    kept = {name: value for name, value in message.additional_kwargs.items() if name != BRIX}
    return message.model_copy(update={"additional_kwargs": kept})


__all__ = ["ToldStream", "told", "without_metadata"]
