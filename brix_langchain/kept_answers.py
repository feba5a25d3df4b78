"""What LangChain's own caches see of guarded models: complete answers, and neither in key nor answer whose call it was.

An answer out of such a cache has passed no guard at this call, so it has no ``response_metadata["brix"]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, Generation

from brix_langchain.partial_answers import is_partial
from brix_langchain.response_metadata import without_metadata

if TYPE_CHECKING:
    from brix_langchain.chat_model import GuardedChatModel


def keeping_answers(model: GuardedChatModel, messages: list[BaseMessage]) -> tuple[GuardedChatModel, list[BaseMessage]]:
    """The model and its prompt as they are where nothing is cached; else as LangChain's cache is to see them."""
    if model.cache is False:
        return model, messages
    cache = model.cache if isinstance(model.cache, BaseCache) else get_llm_cache()
    if cache is None:
        return model, messages
    return model.model_copy(update={"cache": KeptAnswers(cache)}), [without_metadata(message) for message in messages]


class KeptAnswers(BaseCache):
    """A cache that keeps nothing that ended with ``finish_reason="timeout"``, and not whose call an answer was.

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
        if not is_partial(return_val):
            self._cache.update(prompt, llm_string, _plain(return_val))

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """See `BaseCache`."""
        if not is_partial(return_val):
            await self._cache.aupdate(prompt, llm_string, _plain(return_val))

    def clear(self, **kwargs: object) -> None:
        """See `BaseCache`."""
        self._cache.clear(**kwargs)

    async def aclear(self, **kwargs: object) -> None:
        """See `BaseCache`."""
        await self._cache.aclear(**kwargs)


def _plain(generations: Sequence[Generation]) -> list[Generation]:
    return [
        generation.model_copy(update={"message": without_metadata(generation.message)})
        if isinstance(generation, ChatGeneration)
        else generation
        for generation in generations
    ]


__all__ = ["KeptAnswers", "keeping_answers"]
