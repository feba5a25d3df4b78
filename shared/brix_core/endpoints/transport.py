"""Calls a client, synchronous or asynchronous, from threads and from event loops alike."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

from brix_core.endpoints.portal import is_portal_loop, portal
from brix_core.endpoints.sources import aclose, aiter_of, close, in_worker, iterate_in_worker
from brix_core.errors import BrixConfigurationError

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
        owned: Whether the client is the transport's own. Then its connections, too, are closed with the event loop
            that made them, as those of the copies are, and `close` closes it.
    """

    def __init__(
        self, client: Any, *, is_async: bool, copy: Callable[[bool], Any] | None = None, owned: bool = False
    ) -> None:
        self.client = client
        self.is_async = is_async
        self._copy = copy
        self._owned = owned
        self._closed = False
        self._lock = threading.Lock()
        self._home: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._copies: dict[asyncio.AbstractEventLoop, Any] = {}
        self._keepers: dict[asyncio.AbstractEventLoop, AsyncGenerator[None]] = {}

    def call(self, send: Send, patience: float | None = None) -> Any:
        """Call and wait.

        Args:
            send: Makes the request.
            patience: Seconds after which nobody waits for the result any more. (A thread cannot be stopped:
                a synchronous client must be given a timeout of its own.)
        """
        self._require_open()
        if not self.is_async:
            return send(self.client)
        client = self._client_on(portal().loop)
        return portal().run(lambda: send(client), patience)

    async def acall(self, send: Send) -> Any:
        """Call on the event loop."""
        self._require_open()
        if self.is_async:
            return await send(self._client_on(asyncio.get_running_loop()))
        return await in_worker(partial(send, self.client))

    def stream(self, send: Send, patience: float | None = None) -> Generator[Any, None, None]:
        """Read a stream, blocking.

        Args:
            send: Makes the request.
            patience: Seconds after which nobody waits for the next item any more.
        """
        self._require_open()
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
        self._require_open()
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

    def close(self) -> None:
        """Close the client, where it is the transport's own, and all copies: each on its event loop, soon."""
        if self._owned and not self.is_async:
            self.client.close()
        for loop, client in self._taken():
            _close_on(loop, client)

    async def aclose(self) -> None:
        """As `close`; what belongs to this event loop is closed when it returns."""
        if self._owned and not self.is_async:
            self.client.close()
        here = asyncio.get_running_loop()
        for loop, client in self._taken():
            if loop is here:
                await aclose(client)
            else:
                _close_on(loop, client)

    def _require_open(self) -> None:
        if self._closed:
            raise BrixConfigurationError(
                "its connections have been closed; make another, and close it after its last call"
            )

    def _taken(self) -> list[tuple[asyncio.AbstractEventLoop, Any]]:
        """What is to be closed, and where; it is used no more."""
        with self._lock:
            self._closed = self._owned
            open_clients = [(loop, copy) for loop, copy in self._copies.items() if copy is not self.client]
            home = self._home() if self._home is not None else None
            if self._owned and self.is_async and home is not None:
                open_clients.append((home, self.client))
            self._copies.clear()
            return open_clients

    def _client_on(self, loop: asyncio.AbstractEventLoop) -> Any:
        if self._copy is None:
            return self.client
        for_portal = is_portal_loop(loop)
        with self._lock:
            if self._home is None and not for_portal:
                self._home = weakref.ref(loop)
                if self._owned:
                    self._keep(loop, self.client)
            if self._home is not None and self._home() is loop:
                return self.client
            if loop not in self._copies:
                for ended in [other for other in self._copies if other.is_closed()]:
                    del self._copies[ended]
                self._copies[loop] = copy = self._copy(for_portal)
                if for_portal:
                    weakref.finalize(self, _close_on, loop, copy).atexit = False
                elif copy is not self.client:
                    self._keep(loop, copy)
            return self._copies[loop]

    def _keep(self, loop: asyncio.AbstractEventLoop, client: Any) -> None:
        """Have the client's connections closed before its event loop is; called on that loop.

        A loop closes the async generators that were begun on it when it ends, or when they are forgotten.
        """
        for ended in [other for other in self._keepers if other.is_closed()]:
            del self._keepers[ended]
        keeper = self._keepers[loop] = _closing(client)
        with suppress(StopIteration):  # it has come to its yield
            keeper.asend(None).send(None)


async def _closing(client: Any) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await aclose(client)


def _close_on(loop: asyncio.AbstractEventLoop, client: Any) -> None:
    """Close a client's connections once nobody can use it any more."""
    if not loop.is_closed():
        asyncio.run_coroutine_threadsafe(aclose(client), loop)


__all__ = ["Send", "Transport"]
