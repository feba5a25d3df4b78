"""Calls a client, synchronous or asynchronous, from threads and from event loops alike."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from functools import partial
from typing import Any

from brix_core.endpoints.portal import is_portal_loop, portal
from brix_core.endpoints.sources import aclose, aiter_of, close, in_worker, iterate_in_worker

Send = Callable[[Any], Any]
"""Makes the request on the client it is given; returns the result, or an awaitable of it."""


class Transport:
    """One client, four ways to call it.

    A synchronous client is called in the caller's thread, or in a worker when the caller is a coroutine. An
    asynchronous one is awaited, or run on the portal's loop when the caller blocks. Pooled connections belong
    to the event loop that made them, so each further loop (the portal's always) works with a copy of the
    client.

    Args:
        client: The client.
        is_async: Whether its results must be awaited.
        copy: Makes a copy with connections of its own, told whether it is for the portal; None when the
            client needs none.
    """

    def __init__(self, client: Any, *, is_async: bool, copy: Callable[[bool], Any] | None = None) -> None:
        self.client = client
        self.is_async = is_async
        self._copy = copy
        self._lock = threading.Lock()
        self._home: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._copies: dict[asyncio.AbstractEventLoop, Any] = {}

    def call(self, send: Send, patience: float | None = None) -> Any:
        """Call and wait.

        Args:
            send: Makes the request.
            patience: Seconds after which nobody waits for the result any more. (A thread cannot be stopped:
                a synchronous client must be given a timeout of its own.)
        """
        if not self.is_async:
            return send(self.client)
        client = self._client_on(portal().loop)
        return portal().run(lambda: send(client), patience)

    async def acall(self, send: Send) -> Any:
        """Call on the event loop."""
        if self.is_async:
            return await send(self._client_on(asyncio.get_running_loop()))
        return await in_worker(partial(send, self.client))

    def stream(self, send: Send, patience: float | None = None) -> Generator[Any, None, None]:
        """Read a stream, blocking.

        Args:
            send: Makes the request.
            patience: Seconds after which nobody waits for the next item any more.
        """
        if self.is_async:
            client = self._client_on(portal().loop)
            yield from portal().iterate(lambda: send(client), patience)
            return
        source = send(self.client)
        try:
            yield from source
        finally:
            close(source)

    async def astream(self, send: Send) -> AsyncIterator[Any]:
        """Read a stream on the event loop."""
        if self.is_async:
            source: Any = await send(self._client_on(asyncio.get_running_loop()))
            items = aiter_of(source)
        else:
            source = items = iterate_in_worker(partial(send, self.client))
        try:
            async for item in items:
                yield item
        finally:
            await aclose(source)

    def _client_on(self, loop: asyncio.AbstractEventLoop) -> Any:
        if self._copy is None:
            return self.client
        for_portal = is_portal_loop(loop)
        with self._lock:
            if self._home is None and not for_portal:
                self._home = weakref.ref(loop)
            if self._home is not None and self._home() is loop:
                return self.client
            if loop not in self._copies:
                for ended in [other for other in self._copies if other.is_closed()]:
                    del self._copies[ended]
                self._copies[loop] = copy = self._copy(for_portal)
                if for_portal:
                    weakref.finalize(self, _close_on, loop, copy).atexit = False
            return self._copies[loop]


def _close_on(loop: asyncio.AbstractEventLoop, client: Any) -> None:
    """Close a copy's connections once nobody can use it any more."""
    if not loop.is_closed():
        asyncio.run_coroutine_threadsafe(client.close(), loop)


__all__ = ["Send", "Transport"]
