"""Blocking hooks under asynchronous time limits.

`CustomLLM` answers its asynchronous methods by calling the blocking ones, on the event loop: nothing can
interrupt them, and no time limit holds. Where a limit is set, they run in a worker thread instead. (A thread
cannot be stopped: what timed out goes on in it, and its result is dropped.)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from brix_core.drivers.workers import submit

READ_AHEAD: Final = 64
"""Chunks a worker reads ahead of a slow consumer."""

_END: Final = object()


async def in_worker(function: Callable[[], Any]) -> Any:
    """The result of a blocking function, run in a worker thread.

    Example:
        >>> asyncio.run(in_worker(lambda: 1 + 1))
        2
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def deliver(result: Any, error: BaseException | None) -> None:
        if done.done():  # nobody waits any more
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # handed to whoever waits, whatever it is
            error = RuntimeError(str(raised)) if isinstance(raised, StopIteration) else raised
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(deliver, result, error)

    submit(work)
    return await done


async def iterate_in_worker(open_source: Callable[[], Iterable[Any]]) -> AsyncGenerator[Any, None]:
    """The items of a blocking iterable, read in a worker thread.

    Args:
        open_source: Makes it; runs in the worker too.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()
    room = threading.Semaphore(READ_AHEAD)
    stopped = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(items.put_nowait, (item, error))

    def read() -> None:
        source: Any = None
        try:
            source = open_source()
            for item in source:
                room.acquire()
                if stopped.is_set():
                    return
                put(item)
            put(_END)
        except BaseException as error:  # handed to the consumer, whatever it is
            put(_END, error)
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    submit(read)
    try:
        while True:
            item, error = await items.get()
            if error is not None:
                raise error
            if item is _END:
                return
            room.release()
            yield item
    finally:
        stopped.set()
        room.release()


__all__ = ["READ_AHEAD", "in_worker", "iterate_in_worker"]
