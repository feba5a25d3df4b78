"""One event loop in a background thread, for blocking callers of an asynchronous client.

Started on first use, shared by the process, a daemon. A child made by `os.fork` starts its own.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

from brix_core.endpoints.sources import aclose, aiter_of
from brix_core.errors import BrixConfigurationError

READ_AHEAD: Final = 64
"""Items read ahead of a slow consumer."""

_END: Final = object()


class Portal:
    """Runs coroutines on its own loop, and hands their results to threads."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="brix-portal", daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], Awaitable[Any]], patience: float | None = None) -> Any:
        """Await ``function()`` on the portal's loop; blocks. A wait interrupted or too long cancels it.

        Args:
            function: Gives what is awaited.
            patience: Longest wait, seconds.

        Raises:
            TimeoutError: It took longer.
        """
        future = self._start(function)
        try:
            return future.result(patience)
        finally:
            future.cancel()

    def iterate(
        self, open_source: Callable[[], Awaitable[Any]], patience: float | None = None
    ) -> Generator[Any, None, None]:
        """Read an async iterator from this thread, item by item; closing cancels the reading at once.

        Args:
            open_source: Awaited on the portal's loop; gives the iterator.
            patience: Longest wait for an item, seconds.

        Raises:
            TimeoutError: An item took longer.
        """
        items: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        room = asyncio.Semaphore(READ_AHEAD)

        async def read() -> None:
            # One task reads all items: what the source does around a yield may be bound to its task.
            source = None
            try:
                source = await open_source()
                async for item in aiter_of(source):
                    items.put((item, None))
                    await room.acquire()
                items.put((_END, None))
            except BaseException as error:  # handed to the consumer, whatever it is
                items.put((_END, error))
            finally:
                await aclose(source)

        future = self._start(read)
        taken = 0
        try:
            while True:
                try:
                    item, error = items.get(timeout=patience)
                except queue.Empty:
                    raise TimeoutError(f"nothing came within {patience:g} s") from None
                if error is not None:
                    raise error
                if item is _END:
                    return
                yield item
                taken += 1
                if taken == READ_AHEAD // 2:  # in batches: waking the loop costs more than an item
                    self.loop.call_soon_threadsafe(_release, room, taken)
                    taken = 0
        finally:
            future.cancel()

    def _start(self, function: Callable[[], Awaitable[Any]]) -> Any:
        if threading.current_thread() is self._thread:
            raise BrixConfigurationError(
                "a blocking call through an asynchronous client was made on the event loop that serves such "
                "calls, and would wait for itself; await the asynchronous method instead"
            )

        async def task() -> Any:
            return await function()

        return asyncio.run_coroutine_threadsafe(task(), self.loop)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


def _release(room: asyncio.Semaphore, count: int) -> None:
    for _ in range(count):
        room.release()


_lock = threading.Lock()
_portal: Portal | None = None


def portal() -> Portal:
    """The portal of this process."""
    global _portal
    with _lock:
        if _portal is None:
            _portal = Portal()
        return _portal


def is_portal_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop is the portal's."""
    return _portal is not None and _portal.loop is loop


def _forget() -> None:
    """In a forked child: the loop's thread did not come along, and the lock may be held for good."""
    global _lock, _portal
    _lock, _portal = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

__all__ = ["READ_AHEAD", "Portal", "is_portal_loop", "portal"]
