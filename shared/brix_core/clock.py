"""Time, injected: the only place that reads a clock or sleeps.

Guards never look at the time by themselves; they are given a `Clock`, and tests give them a virtual
one. A `Wakeup` ends a sleep early, from any thread or event loop.

Example:
    >>> clock = SystemClock()
    >>> wakeup = Wakeup()
    >>> wakeup.set()
    >>> before = clock.now()
    >>> clock.sleep(60.0, wakeup)      # returns at once: it has been woken already
    >>> clock.now() - before < 1.0
    True
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable


class Wakeup:
    """A one-shot signal that ends a sleep; thread-safe, bound to no event loop."""

    __slots__ = ("_callbacks", "_lock", "_set")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._set = False
        self._callbacks: list[Callable[[], object]] = []

    @property
    def is_set(self) -> bool:
        """True once `set` was called."""
        return self._set

    def set(self) -> None:
        """Wake whoever sleeps on this signal now or later."""
        with self._lock:
            self._set = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_set(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the signal is set, at once when it has been."""
        with self._lock:
            if not self._set:
                self._callbacks.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], object]) -> None:
        """Take back a callback that was not called yet."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


@runtime_checkable
class Clock(Protocol):
    """What the drivers need to know about time. Seconds, as floats."""

    def now(self) -> float:
        """A monotonic reading, for durations and deadlines."""
        ...

    def time(self) -> float:
        """Seconds since the epoch, for timestamps and HTTP dates."""
        ...

    def sleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        """Block this thread, at most until `wakeup` is set. `seconds` may be ``inf`` with a wakeup."""
        ...

    async def asleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        """Suspend this task, at most until `wakeup` is set."""
        ...


_LONGEST_WAIT = 86_400.0
"""Slices of an endless wait: `threading` and some event loops refuse very large timeouts."""


class SystemClock:
    """The real time."""

    def now(self) -> float:
        """Monotonic seconds, the same clock as asyncio's."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        """Block this thread, at most until `wakeup` is set."""
        if wakeup is None:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, _LONGEST_WAIT))
            return
        event = threading.Event()
        wakeup.on_set(event.set)
        try:
            end = time.monotonic() + seconds
            while not event.is_set() and (left := end - time.monotonic()) > 0:
                event.wait(min(left, _LONGEST_WAIT))
        finally:
            wakeup.forget(event.set)

    async def asleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        """Suspend this task, at most until `wakeup` is set."""
        if wakeup is None:
            await asyncio.sleep(max(0.0, seconds))
        else:
            await sleep_until_woken(seconds, wakeup)


async def sleep_until_woken(seconds: float, wakeup: Wakeup) -> None:
    """Suspend the running task for `seconds`, or until `wakeup` is set from wherever.

    Uses the running loop's own timers, so that it also holds on a loop with virtual time.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(finish)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
            return

    timer = loop.call_later(min(max(0.0, seconds), _LONGEST_WAIT), finish)
    wakeup.on_set(wake)
    try:
        await done
    finally:
        timer.cancel()
        wakeup.forget(wake)


__all__ = ["Clock", "SystemClock", "Wakeup", "sleep_until_woken"]
