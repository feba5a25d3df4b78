"""A deadline for whatever the running task waits for.

`asyncio.wait_for` swallows cancellations on Python 3.11, and a new `asyncio.timeout` for every chunk
costs more than the chunk. An `Alarm` keeps one timer for a whole stream, moves it lazily, and tells its
own cancellation from anybody else's by the task's cancellation count (as `asyncio.timeout` does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from brix_core.drivers.attempts import LimitReachedError
from brix_core.errors import TimeoutKind


class Alarm:
    """Bounds awaits of the running task, one after the other."""

    __slots__ = ("_armed_for", "_cancelled_before", "_fired", "_loop", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled_before = 0
        self._fired = False

    async def wait(self, get: Callable[[], Awaitable[Any]], seconds: float | None, kind: TimeoutKind) -> Any:
        """Await ``get()``, at most `seconds`.

        Raises:
            LimitReachedError: The time is over.
            CancelledError: Somebody else cancelled the task, even where what was awaited swallowed it.
        """
        self.arm(seconds)
        try:
            result = await get()
        except BaseException as error:
            raise self.judge(error, kind) from error.__cause__
        if self.has_rung():
            raise LimitReachedError(kind)
        return result

    def arm(self, seconds: float | None) -> None:
        """Before an await: ring after so many seconds (None: only watch for swallowed cancellations)."""
        task = self._task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("time limits need an asyncio task")
        self._cancelled_before = task.cancelling()
        if seconds is not None:
            when = self._armed_for = self._loop.time() + seconds
            timer = self._timer
            if timer is None or timer.when() > when:
                if timer is not None:
                    timer.cancel()
                self._timer = self._loop.call_at(when, self._ring)

    def has_rung(self) -> bool:
        """After an await that gave a result: whether the time was over (our cancellation swallowed, or too late).

        Raises:
            CancelledError: Somebody else's cancellation was swallowed.
        """
        task, self._task, self._armed_for = self._task, None, None
        if task is None:
            return False
        if self._fired:
            self._fired = False
            if task.uncancel() <= self._cancelled_before:
                return True
        if task.cancelling() > self._cancelled_before:
            raise asyncio.CancelledError
        return False

    def judge(self, error: BaseException, kind: TimeoutKind) -> BaseException:
        """After an await that raised: what to raise instead. Our own cancellation becomes `LimitReachedError`."""
        task, self._task, self._armed_for = self._task, None, None
        fired, self._fired = self._fired, False
        if not fired or task is None:
            return error
        ours = task.uncancel() <= self._cancelled_before
        if ours and isinstance(error, StopAsyncIteration):  # the stream ended just as the alarm rang
            return error
        if ours and isinstance(error, Exception | asyncio.CancelledError):
            return LimitReachedError(kind)
        return error

    def close(self) -> None:
        """Drop the timer."""
        self._armed_for = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self._armed_for is None or self._task is None:
            return
        if self._loop.time() < self._armed_for:
            self._timer = self._loop.call_at(self._armed_for, self._ring)
            return
        self._armed_for = None
        self._fired = True
        self._task.cancel()


__all__ = ["Alarm"]
