"""The bare model that everything is measured around: it does nothing, in every way a model can be called."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

CHUNKS = 2_000
USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
WORDS = [f"word{number * 7919 % 1_000} " for number in range(CHUNKS)]
"""What is streamed; not the same over and over, which would be a loop."""

_numbers = itertools.count()


class BareModel(BaseChatModel):
    """Answers at once, with usage, never the same; streams `WORDS`."""

    model_name: str = "gpt-4o-mini"

    @property
    def _llm_type(self) -> str:
        return "bare"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        message = AIMessage(f"Paris {next(_numbers)}", usage_metadata=USAGE)  # type: ignore[arg-type]
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(messages)

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for word in WORDS:
            yield ChatGenerationChunk(message=AIMessageChunk(word))

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for word in WORDS:
            yield ChatGenerationChunk(message=AIMessageChunk(word))


def history(turns: int) -> list[BaseMessage]:
    """A conversation of so many messages, users and assistants in turn, ending with the user's."""
    kinds = (HumanMessage, AIMessage)
    return [kinds[(turns - 1 - index) % 2](f"message number {index} of a conversation") for index in range(turns)]


def as_dicts(messages: list[BaseMessage]) -> list[dict[str, str]]:
    """The same conversation in OpenAI's format."""
    roles = {"human": "user", "ai": "assistant"}
    return [{"role": roles[message.type], "content": str(message.content)} for message in messages]
