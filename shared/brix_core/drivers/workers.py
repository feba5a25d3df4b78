"""Threads that wait for blocking calls, so that their caller need not wait longer than its limit.

A thread cannot be stopped: a call that timed out goes on in its worker until the client's own timeout
ends it, and its result is dropped. Workers are daemons (a hung call does not keep the process from
ending) and are used again; handing a job over costs some 15 microseconds.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any, Final

MAX_IDLE: Final = 64
"""Idle workers kept for later."""

READ_AHEAD: Final = 256
"""Chunks a worker reads ahead of a slow consumer."""


class Job:
    """A function under way in a worker."""

    __slots__ = ("_done", "_function", "error", "result")

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._done = threading.Lock()
        self._done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Run it; called by the worker."""
        try:
            self.result = self._function()
        except BaseException as error:  # handed to whoever waits, whatever it is
            self.error = error
        finally:
            self._done.release()

    def wait(self, seconds: float | None) -> bool:
        """Wait until it has ended, at most `seconds`. True when it has."""
        if seconds is None:
            return self._done.acquire()
        return self._done.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))


class _Worker(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="brix-worker", daemon=True)
        self.inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            job = self.inbox.get()
            try:
                job.run()
            finally:
                del job
            with _lock:
                if len(_idle) >= MAX_IDLE:
                    return
                _idle.append(self)


_lock = threading.Lock()
_idle: list[_Worker] = []


def _forget_workers() -> None:
    """A forked child has the list of workers, but not their threads; the lock may have been held."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def submit(function: Callable[[], Any]) -> Job:
    """Run a function in a worker, in a copy of the caller's context variables."""
    job = Job(partial(copy_context().run, function))
    with _lock:
        worker = _idle.pop() if _idle else None
    if worker is None:
        worker = _Worker()
        worker.start()
    worker.inbox.put(job)
    return job


_END = object()


class EndOfSourceError(Exception):
    """A pumped iterator has no more items; `StopIteration` would end the generator that reads it."""


class Pump:
    """Reads a blocking iterator in a worker, so that each item can be waited for with a limit.

    Args:
        open_source: Makes the iterator; runs in the worker too.
    """

    def __init__(self, open_source: Callable[[], Iterator[Any]]) -> None:
        self._items: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._open_source = open_source
        self._stopped = False
        self._has_room = threading.Event()
        self._has_room.set()
        submit(self._read)

    @property
    def is_ready(self) -> bool:
        """Whether `get` would return at once."""
        return not self._items.empty()

    def get(self, seconds: float | None) -> Any:
        """The next item.

        Raises:
            EndOfSourceError: There are no more.
            queue.Empty: None came within `seconds`.
            BaseException: What the source raised.
        """
        item, error = self._items.get(timeout=None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
        if not self._has_room.is_set() and self._items.qsize() <= READ_AHEAD // 2:
            self._has_room.set()
        if error is not None:
            raise error
        if item is _END:
            raise EndOfSourceError
        return item

    def stop(self) -> None:
        """Let the worker close the source, as soon as it comes back from reading."""
        self._stopped = True
        self._has_room.set()

    def _wait_for_room(self) -> None:
        self._has_room.clear()
        if self._items.qsize() > READ_AHEAD // 2 and not self._stopped:  # not drained meanwhile
            self._has_room.wait()

    def _read(self) -> None:
        source: Iterator[Any] | None = None
        try:
            source = self._open_source()
            for item in source:
                if self._items.qsize() >= READ_AHEAD:
                    self._wait_for_room()
                if self._stopped:
                    return
                self._items.put((item, None))
            self._items.put((_END, None))
        except BaseException as error:  # handed to the consumer, whatever it is
            self._items.put((None, error))
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()


__all__ = ["MAX_IDLE", "READ_AHEAD", "EndOfSourceError", "Job", "Pump", "submit"]
