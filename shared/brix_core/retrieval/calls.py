"""Calling a `RetrievalProvider`, from blocking code and from an event loop, whichever of the two it was written for.

Example:
    >>> import asyncio
    >>> class Async:
    ...     async def retrieve(self, query, *, max_results=3):
    ...         return RetrievalResult(query, score=1.0)
    >>> class Blocking:
    ...     def retrieve(self, query, *, max_results=3):
    ...         return RetrievalResult(query, score=1.0)
    >>> [retrieve(provider, "q").content for provider in (Async(), Blocking())]
    ['q', 'q']
    >>> [asyncio.run(aretrieve(provider, "q")).content for provider in (Async(), Blocking())]
    ['q', 'q']
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import Any

from brix_core.endpoints.portal import portal
from brix_core.errors import BrixConfigurationError
from brix_core.retrieval.results import RetrievalProvider, RetrievalResult


def retrieve(provider: RetrievalProvider, query: str, *, max_results: int | None = None) -> RetrievalResult:
    """Retrieve, and wait for it in this thread.

    An asynchronous provider without a ``retrieve_sync`` runs on an event loop in the background, always the same one,
    so that what it connects to stays usable.

    Args:
        provider: Whom to ask.
        query: The user's words.
        max_results: Documents to find, at most; the provider's own default when left out.

    Raises:
        BrixConfigurationError: The provider returned something else.
    """
    function = getattr(provider, "retrieve_sync", provider.retrieve)
    if inspect.iscoroutinefunction(function):
        result = portal().run(partial(function, query, **_limit(max_results)))
    else:
        result = function(query, **_limit(max_results))
        if inspect.isawaitable(result):
            result = portal().run(lambda: result)
    return _checked(provider, result)


async def aretrieve(provider: RetrievalProvider, query: str, *, max_results: int | None = None) -> RetrievalResult:
    """Retrieve on the event loop; a blocking provider runs in a worker thread. Otherwise as `retrieve`."""
    if inspect.iscoroutinefunction(provider.retrieve):
        result = await provider.retrieve(query, **_limit(max_results))
    else:
        result = await asyncio.to_thread(provider.retrieve, query, **_limit(max_results))
        if inspect.isawaitable(result):
            result = await result
    return _checked(provider, result)


def _limit(max_results: int | None) -> dict[str, int]:
    return {} if max_results is None else {"max_results": max_results}


def _checked(provider: RetrievalProvider, result: Any) -> RetrievalResult:
    if not isinstance(result, RetrievalResult):
        raise BrixConfigurationError(
            f"{type(provider).__name__}.retrieve() must return a RetrievalResult, got {result!r:.200}"
        )
    return result


__all__ = ["aretrieve", "retrieve"]
