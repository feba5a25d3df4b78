"""The chunks of a stream with the text each of them adds.

LlamaIndex streams *cumulative* messages; what is new is in ``delta``, except for tool calls, whose arguments
only ever appear as a whole. So the new part is worked out where the stream is read, once, and travels beside
the chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole

from brix_core.call import ToolCall
from brix_llamaindex.messages import tool_calls_of

Response = ChatResponse | CompletionResponse
"""What LlamaIndex's hooks give, whole or as a chunk."""


class Chunk(NamedTuple):
    """A chunk on its way to the consumer.

    Attributes:
        response: LlamaIndex's own.
        text: What it adds: content, visible reasoning, names and arguments of tool calls.
    """

    response: Response
    text: str


class DeltaReader:
    """Finds out what each chunk of one stream adds.

    Example:
        >>> reader = DeltaReader()
        >>> [reader.read(CompletionResponse(text=text)) for text in ("Hel", "Hello", "Hello")]
        ['Hel', 'lo', '']
    """

    __slots__ = ("_calls", "_content")

    def __init__(self) -> None:
        self._content = 0
        self._calls: list[int] = []

    def read(self, response: Response) -> str:
        """The new text of the next chunk."""
        added = response.delta
        if added is None:
            content = text_of(response)
            added, self._content = content[self._content :], max(self._content, len(content))
        if isinstance(response, CompletionResponse):
            return added
        thinking = response.additional_kwargs.get("thinking_delta")
        if isinstance(thinking, str):
            added += thinking
        message = response.message
        if len(message.blocks) > 1 or message.additional_kwargs or not added:
            added += self._new_in_calls(tool_calls_of(message), added)
        return added

    def _new_in_calls(self, calls: Sequence[ToolCall], delta: str) -> str:
        new = ""
        for number, call in enumerate(calls):
            if number == len(self._calls):
                self._calls.append(0)
            whole = call.name + call.arguments
            new += whole[self._calls[number] :]
            self._calls[number] = max(self._calls[number], len(whole))
        return "" if new == delta else new  # some integrations give the arguments as delta too


def text_of(response: Response) -> str:
    """The text of a response, so far."""
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""


def empty_response(*, completion: bool) -> Response:
    """A response without any content."""
    if completion:
        return CompletionResponse(text="")
    return ChatResponse(message=ChatMessage("", role=MessageRole.ASSISTANT))


def as_chunk(response: Any) -> Chunk:
    """A whole response as the only chunk of a stream."""
    text = text_of(response)
    calls = () if isinstance(response, CompletionResponse) else tool_calls_of(response.message)
    whole = text + "".join(call.name + call.arguments for call in calls)
    return Chunk(response.model_copy(update={"delta": text}), whole)


def settled(response: Response) -> Response:
    """A chunk that later ones do not change: some LLMs put the same growing list of tool calls into all of them."""
    if isinstance(response, CompletionResponse) or not response.message.additional_kwargs:
        return response
    return response.model_copy(deep=True)


__all__ = ["Chunk", "DeltaReader", "Response", "as_chunk", "empty_response", "settled", "text_of"]
