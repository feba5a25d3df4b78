"""LangChain's cache and partial answers: what a time limit cut short is no answer to hand out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.outputs import Generation

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


__all__ = ["CompleteAnswers", "without_partial_answers"]
