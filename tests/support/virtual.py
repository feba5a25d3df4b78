"""Virtual time: nothing sleeps, and a minute passes in a millisecond.

`VirtualClock` is the `Clock` handed to the guards. On asyncio, `run_virtual` runs a coroutine on a loop whose own
time is the clock's: when nothing is left to do, time jumps to the next timer, so that `asyncio.sleep`, timeouts
and alarms hold too. For threads, `VirtualClock.run_threads` starts them and lets time jump whenever all of those
that are still alive are asleep.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from brix_core.clock import Wakeup, sleep_until_woken

T = TypeVar("T")

EPOCH = 1_750_000_000.0


class VirtualClock:
    """A clock that moves only when everybody waits."""

    def __init__(self) -> None:
        self._now = 1_000.0
        self._condition = threading.Condition()
        self._threads = 0
        self._asleep = 0
        self._sleepers: list[tuple[float, int, list[bool]]] = []
        self._tickets = itertools.count()

    def now(self) -> float:
        return self._now

    def time(self) -> float:
        return EPOCH + self._now

    def advance(self, seconds: float) -> None:
        """Let time pass by hand."""
        with self._condition:
            self._now += seconds
            self._ring()

    def jump_to(self, when: float) -> None:
        self._now = max(self._now, when)

    async def asleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        if wakeup is None:
            await asyncio.sleep(max(0.0, seconds))
        else:
            await sleep_until_woken(seconds, wakeup)

    def sleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        done = [False]

        def wake() -> None:
            with self._condition:
                if not done[0]:
                    done[0] = True
                    self._asleep -= 1
                    self._condition.notify_all()

        with self._condition:
            if not self._threads:  # nobody else: time simply passes
                if wakeup is not None and wakeup.is_set:
                    return
                self._now += max(0.0, seconds)
                return
            self._asleep += 1
            heapq.heappush(self._sleepers, (self._now + max(0.0, seconds), next(self._tickets), done))
        if wakeup is not None:
            wakeup.on_set(wake)
        with self._condition:
            self._jump_if_all_sleep()
            while not done[0]:
                self._condition.wait()

    def run_threads(self, functions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run functions in threads of their own; results, or the exceptions they raised, in order."""
        results: list[Any] = [None] * len(functions)
        with self._condition:
            self._threads += len(functions)

        def body(index: int) -> None:
            try:
                results[index] = functions[index]()
            except BaseException as error:  # handed to the test
                results[index] = error
            finally:
                with self._condition:
                    self._threads -= 1
                    self._jump_if_all_sleep()

        threads = [threading.Thread(target=body, args=(index,), daemon=True) for index in range(len(functions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a thread never came back"
        return results

    def _jump_if_all_sleep(self) -> None:
        if self._threads and self._asleep >= self._threads:
            while self._sleepers and self._sleepers[0][2][0]:
                heapq.heappop(self._sleepers)
            if self._sleepers and self._sleepers[0][0] != float("inf"):
                self._now = max(self._now, self._sleepers[0][0])
                self._ring()

    def _ring(self) -> None:
        while self._sleepers and self._sleepers[0][0] <= self._now:
            done = heapq.heappop(self._sleepers)[2]
            if not done[0]:
                done[0] = True
                self._asleep -= 1
        self._condition.notify_all()


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        return self._clock.now()

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            while self._scheduled and self._scheduled[0]._cancelled:  # type: ignore[attr-defined]
                heapq.heappop(self._scheduled)._scheduled = False  # type: ignore[attr-defined]
                self._timer_cancelled_count -= 1
            if self._scheduled:  # type: ignore[attr-defined]
                self._clock.jump_to(self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]

    _timer_cancelled_count: int


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]], clock: VirtualClock) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=lambda: _VirtualLoop(clock)) as runner:
        return runner.run(main())


__all__ = ["EPOCH", "VirtualClock", "run_virtual"]
