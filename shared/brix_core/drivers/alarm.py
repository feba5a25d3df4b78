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

    __slots__ = ("_armed_for", "_fired", "_loop", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._fired = False

    async def wait(self, get: Callable[[], Awaitable[Any]], seconds: float | None, kind: TimeoutKind) -> Any:
        """Await ``get()``, at most `seconds`.

        Raises:
            LimitReachedError: The time is over.
            CancelledError: Somebody else cancelled the task, even where what was awaited swallowed it.
        """
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("time limits need an asyncio task")
        cancelled_before = task.cancelling()
        if seconds is not None:
            self._arm(task, self._loop.time() + seconds)
        try:
            result = await get()
        except asyncio.CancelledError:
            if self._disarm() and task.uncancel() <= cancelled_before:
                raise LimitReachedError(kind) from None
            raise
        except StopAsyncIteration:  # the stream ended just as the alarm rang
            if self._disarm():
                task.uncancel()
            raise
        except Exception as error:
            if self._disarm() and task.uncancel() <= cancelled_before:  # our cancellation, dressed up as a failure
                raise LimitReachedError(kind) from error
            raise
        self._armed_for = None
        if self._fired:  # our cancellation was swallowed, or came too late
            self._fired = False
            task.uncancel()
            await _discard(result)
            raise LimitReachedError(kind)
        if task.cancelling() > cancelled_before:  # somebody's cancellation was swallowed
            raise asyncio.CancelledError
        return result

    def close(self) -> None:
        """Drop the timer."""
        self._armed_for = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, task: asyncio.Task[Any], when: float) -> None:
        self._task, self._armed_for = task, when
        timer = self._timer
        if timer is None or timer.when() > when:
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(when, self._ring)

    def _disarm(self) -> bool:
        """Whether the alarm has rung since it was armed."""
        fired, self._fired, self._armed_for, self._task = self._fired, False, None, None
        return fired

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


async def _discard(result: Any) -> None:
    """Close what arrived too late, if it can be closed."""
    close = getattr(result, "aclose", None)
    if close is not None:
        await close()


__all__ = ["Alarm"]
