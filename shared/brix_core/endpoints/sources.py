"""Iterators that are read in one place and consumed in another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from inspect import isawaitable
from typing import Any, Final

from brix_core.drivers.workers import submit

READ_AHEAD: Final = 64
"""Items a worker reads ahead of a slow consumer."""

_END: Final = object()


def close(source: Any) -> None:
    """Close a blocking iterator, if it can be closed."""
    if (method := getattr(source, "close", None)) is not None:
        method()


async def aclose(source: Any) -> None:
    """Close an async iterator, whichever name it has for that."""
    method = getattr(source, "aclose", None) or getattr(source, "close", None)
    if method is not None and isawaitable(closing := method()):
        await closing


def aiter_of(source: Any) -> AsyncIterator[Any]:
    """The iterator itself where it is one: an SDK's ``__aiter__`` adds a generator that is closed late."""
    return _Reader(source) if hasattr(source, "__anext__") else aiter(source)


class _Reader:
    """Asks the iterator itself for each item."""

    __slots__ = ("_source",)

    def __init__(self, source: Any) -> None:
        self._source = source

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> Any:
        return await self._source.__anext__()


async def in_worker(function: Callable[[], Any]) -> Any:
    """Run a blocking function in a daemon thread and await its result.

    Not `asyncio.to_thread`: its pool has few threads (6 on 2 cores) and `asyncio.run` waits for all of them,
    so that a hung call would hold up other calls and the end of the programme.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def work() -> None:
        try:
            outcome = function(), None
        except BaseException as error:  # handed to whoever waits, whatever it is
            _post(loop, _settle, done, (None, error))
        else:
            _post(loop, _settle, done, outcome)

    submit(work)
    result, error = await done
    if error is not None:
        raise error
    return result


async def iterate_in_worker(open_source: Callable[[], Iterator[Any]]) -> AsyncIterator[Any]:
    """Read a blocking iterator in a daemon thread, item by item.

    Closed early, the thread closes the source as soon as it comes back from reading.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()
    room, stopped = threading.Semaphore(READ_AHEAD), threading.Event()

    def read() -> None:
        source: Iterator[Any] | None = None
        try:
            source = open_source()
            for item in source:
                if stopped.is_set():
                    return
                _post(loop, items.put_nowait, (item, None))
                room.acquire()
            _post(loop, items.put_nowait, (_END, None))
        except BaseException as error:  # handed to the consumer, whatever it is
            _post(loop, items.put_nowait, (_END, error))
        finally:
            close(source)

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


def _settle(done: asyncio.Future[Any], outcome: tuple[Any, BaseException | None]) -> None:
    if not done.done():
        done.set_result(outcome)


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
        return


__all__ = ["READ_AHEAD", "aclose", "aiter_of", "close", "in_worker", "iterate_in_worker"]
