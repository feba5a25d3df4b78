"""Answers that a time limit cut short: they say so, and are no answers to hand out again from a cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult, Generation

from brix_core.call import CallRequest, CallResponse

if TYPE_CHECKING:
    from brix_langchain.chat_model import GuardedChatModel


def without_partial_answers(model: GuardedChatModel) -> GuardedChatModel:
    """The model as it is where nothing is cached, else a twin whose cache takes only complete answers."""
    if model.cache is False:
        return model
    cache = model.cache if isinstance(model.cache, BaseCache) else get_llm_cache()
    return model if cache is None else model.model_copy(update={"cache": CompleteAnswers(cache)})


class CompleteAnswers(BaseCache):
    """A cache that keeps nothing that ended with ``finish_reason="timeout"``.

    Args:
        cache: Where the answers are.
    """

    def __init__(self, cache: BaseCache) -> None:
        self._cache = cache

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """See `BaseCache`."""
        return self._cache.lookup(prompt, llm_string)

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """See `BaseCache`."""
        return await self._cache.alookup(prompt, llm_string)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """See `BaseCache`."""
        if not _is_partial(return_val):
            self._cache.update(prompt, llm_string, return_val)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """See `BaseCache`."""
        if not _is_partial(return_val):
            await self._cache.aupdate(prompt, llm_string, return_val)

    def clear(self, **kwargs: Any) -> None:
        """See `BaseCache`."""
        self._cache.clear(**kwargs)

    async def aclear(self, **kwargs: Any) -> None:
        """See `BaseCache`."""
        await self._cache.aclear(**kwargs)


def _is_partial(generations: Sequence[Generation]) -> bool:
    messages = (getattr(generation, "message", None) for generation in generations)
    return any(
        message is not None and message.response_metadata.get("finish_reason") == "timeout" for message in messages
    )


def marked_result(response: CallResponse) -> ChatResult:
    """LangChain's own result, saying so when a time limit cut it short."""
    result = cast(ChatResult, response.raw)
    if response.partial:
        for generation in result.generations:
            generation.message.response_metadata["finish_reason"] = "timeout"
    return result


def with_ending(chunks: Iterator[ChatGenerationChunk], request: CallRequest) -> Iterator[ChatGenerationChunk]:
    """The chunks, and one that says so when a time limit ended them."""
    yield from chunks
    if _timed_out(request):
        yield _timeout_chunk()


async def awith_ending(
    chunks: AsyncIterator[ChatGenerationChunk], request: CallRequest
) -> AsyncIterator[ChatGenerationChunk]:
    """The same on an event loop."""
    async with aclosing(cast(Any, chunks)):
        async for chunk in chunks:
            yield chunk
    if _timed_out(request):
        yield _timeout_chunk()


def _timed_out(request: CallRequest) -> bool:
    attempts = request.call.attempts
    return bool(attempts) and attempts[-1].outcome == "timed_out"


def _timeout_chunk() -> ChatGenerationChunk:
    return ChatGenerationChunk(
        message=AIMessageChunk(content="", chunk_position="last"),
        generation_info={"finish_reason": "timeout"},
    )


__all__ = ["CompleteAnswers", "awith_ending", "marked_result", "with_ending", "without_partial_answers"]
