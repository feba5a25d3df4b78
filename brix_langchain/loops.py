"""A model on several event loops, one after the other (repeated ``asyncio.run``) or side by side (threads).

Pooled connections belong to the loop that made them. The SDKs' own retries paper over a pool whose loop has ended;
behind a guard, where they are off, the call would fail. So each further loop gets a copy of the model whose
asynchronous SDK client has a pool of its own, as the endpoints of `brix_core` do for bare SDK clients.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from langchain_core.language_models import BaseChatModel

_Home: TypeAlias = Callable[[], asyncio.AbstractEventLoop | None]
"""Gives a loop, while there is one: a weak reference."""

_homes: weakref.WeakKeyDictionary[Any, _Home] = weakref.WeakKeyDictionary()
"""The loop on which each HTTP client was first used here. LangChain's models share theirs with one another."""


class ModelOnLoops:
    """Gives the model to call on the running loop.

    Args:
        model: The model; used as it is on the first loop.
    """

    def __init__(self, model: BaseChatModel) -> None:
        self._model = model
        self._home: _Home | None = None
        self._copies: dict[asyncio.AbstractEventLoop, BaseChatModel] = {}
        self._lock = threading.Lock()

    def here(self) -> BaseChatModel:
        """The model for the running loop."""
        loop = asyncio.get_running_loop()
        if self._home is not None and self._home() is loop:
            return self._model
        with self._lock:
            if self._home is None:
                self._home = _home_of(self._model, loop)
                if self._home() is loop:
                    return self._model
            if loop not in self._copies:
                for ended in [other for other in self._copies if other.is_closed()]:
                    del self._copies[ended]
                self._copies[loop] = _with_own_pool(self._model)
            return self._copies[loop]


def _home_of(model: BaseChatModel, loop: asyncio.AbstractEventLoop) -> _Home:
    """The loop that the model's HTTP client belongs to; `loop` if it has none yet."""
    getattr(model, "_async_client", None)  # ChatAnthropic makes it on first use
    here = weakref.ref(loop)
    for member in model.__dict__.values():
        client: Any = member if _is_async_client(member) else getattr(member, "_client", None)
        if _is_async_client(client):
            if client._client not in _homes and _has_connections(client._client):
                return _nowhere  # another model's, who knows where: LangChain shares clients
            return _homes.setdefault(client._client, here)
    return here


def _nowhere() -> None:
    return None


def _has_connections(http_client: Any) -> bool:
    pool = getattr(getattr(http_client, "_transport", None), "_pool", None)
    return bool(getattr(pool, "connections", ()))


def _with_own_pool(model: BaseChatModel) -> BaseChatModel:
    """A copy with fresh asynchronous connections; the model itself where its HTTP client is the user's own."""
    if getattr(model, "http_async_client", None) is not None:
        return model
    copy = model.model_copy()
    for name, member in list(copy.__dict__.items()):
        client: Any = member if _is_async_client(member) else getattr(member, "_client", None)
        if _is_async_client(client):
            fresh = client.copy(http_client=sys.modules[_sdk(client)].DefaultAsyncHttpxClient())
            copy.__dict__[name] = fresh if client is member else type(member)(fresh)
    return copy


def _is_async_client(value: Any) -> bool:
    return (
        hasattr(value, "with_options")
        and type(value).__name__.startswith("Async")
        and hasattr(sys.modules.get(_sdk(value)), "DefaultAsyncHttpxClient")
    )


def _sdk(client: Any) -> str:
    return type(client).__module__.partition(".")[0]


__all__ = ["ModelOnLoops"]
