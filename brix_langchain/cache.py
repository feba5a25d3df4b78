"""BrixCache: the core's cache, where LangChain takes a cache."""

from __future__ import annotations

import copy
import hashlib
import logging
from typing import Any, Final
from uuid import uuid4

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.outputs import ChatGeneration, Generation
from typing_extensions import override

from brix_core.cache import MISSING, Cache, InMemoryCache
from brix_core.errors import BrixConfigurationError
from brix_langchain.live_state import SharedByCopies
from brix_langchain.partial_answers import is_partial

log = logging.getLogger(__name__)

_OF_A_RUN: Final = "lc_run-"
"""How the message ids begin that LangChain makes from the id of the run."""

_CALLED: Final = ("get", "set", "clear", "get_stats")
"""What is asked of a cache of the core."""


class BrixCache(SharedByCopies, BaseCache):
    """LangChain's cache of answers: bounded in number and time, and it counts hits and misses.

    ``set_llm_cache(BrixCache())`` for all models, ``ChatOpenAI(..., cache=BrixCache())`` for one. An answer is found
    again for the same prompt to a model of the same settings, tools included, whatever the session. Answers are copied
    in and out, so nobody can edit what is kept. LangChain marks their usage on the way out with ``total_cost: 0``; a
    hit passes no guard, sends nothing and costs nothing. Answers that a time limit cut short are not kept.

    What LangChain's interface does not allow: looking up and keeping are two separate calls, so identical requests
    that are under way at the same time are all sent. And ``stream()`` asks no cache.

    Args:
        cache: Where the answers are: up to 1000, for an hour, in memory, by default. It should have no other use,
            since `clear` empties it.

    Raises:
        BrixConfigurationError: `cache` is none. Later: it is pickled. (A copy of it, deep or not, shares the answers.)

    Example:
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> cache = BrixCache(InMemoryCache(max_size=100, default_ttl=60))
        >>> model = FakeListChatModel(responses=["Paris", "Lyon"], cache=cache)
        >>> [model.invoke("Capital of France?").content for _ in range(2)]
        ['Paris', 'Paris']
        >>> cache.get_stats()
        {'hits': 1, 'misses': 1, 'hit_rate': '50.00%'}
    """

    _INSTEAD_OF_PICKLING = "Make one on the other side, or one of a cache of the core that both sides reach"

    def __init__(self, cache: Cache | None = None) -> None:
        fits = not isinstance(cache, type) and all(callable(getattr(cache, name, None)) for name in _CALLED)
        if cache is not None and not fits:
            raise BrixConfigurationError(
                f"cache must be a cache of the core, such as brix_core.InMemoryCache(max_size=1000), got {cache!r:.200}"
            )
        self._cache: Cache = InMemoryCache() if cache is None else cache

    def get_stats(self) -> dict[str, Any]:
        """Hits, misses and hit rate; see `brix_core.InMemoryCache`."""
        return self._cache.get_stats()

    @override
    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        kept = self._cache.get(_key(prompt, llm_string), MISSING)
        return None if kept is MISSING else [_under_new_id(generation) for generation in copy.deepcopy(kept)]

    @override
    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if is_partial(return_val):
            return
        try:
            kept = copy.deepcopy(list(return_val))
        except Exception:  # something odd in its metadata; the answer itself is paid for, and must not be lost
            log.warning("an answer was not cached, since it cannot be copied", exc_info=True)
            return
        self._cache.set(_key(prompt, llm_string), kept)

    @override
    def clear(self, **kwargs: Any) -> None:
        self._cache.clear()

    @override
    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        if self._cache.blocking:
            return await super().alookup(prompt, llm_string)
        return self.lookup(prompt, llm_string)

    @override
    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if self._cache.blocking:
            await super().aupdate(prompt, llm_string, return_val)
        else:
            self.update(prompt, llm_string, return_val)

    @override
    async def aclear(self, **kwargs: Any) -> None:
        if self._cache.blocking:
            await super().aclear(**kwargs)
        else:
            self.clear(**kwargs)


def _key(prompt: str, llm_string: str) -> str:
    """A short key for what may be a whole conversation. The length keeps the two texts apart."""
    text = f"{len(llm_string)}:{llm_string}{prompt}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _under_new_id(generation: Generation) -> Generation:
    """The generation as another message than the first time: LangGraph would take it for that one, and drop it."""
    if isinstance(generation, ChatGeneration) and (generation.message.id or "").startswith(_OF_A_RUN):
        generation.message.id = str(uuid4())
    return generation


__all__ = ["BrixCache"]
