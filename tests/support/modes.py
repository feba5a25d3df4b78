"""The four ways to call a pipeline, in the same words: blocking or on an event loop, plain or streamed."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import pytest

from tests.support.fake import Driver
from tests.support.virtual import VirtualClock, run_virtual

Call = dict[str, Any]
"""Arguments of `Driver.request`."""


@dataclass(frozen=True)
class Mode:
    """One way to call a pipeline whose clock is virtual."""

    driver: Literal["sync", "async"]
    streamed: bool = False

    def __str__(self) -> str:
        return f"{self.driver}-{'streamed' if self.streamed else 'plain'}"

    def one(self, driver: Driver, prompt: str = "hello", **more: Any) -> str:
        """One call: its text, or what it raises."""
        if self.driver == "sync":
            return self._block(driver, {"prompt": prompt, **more})
        return run_virtual(lambda: self._await(driver, {"prompt": prompt, **more}), _clock(driver))

    def each(self, driver: Driver, calls: Sequence[Call]) -> list[Any]:
        """Calls one after the other: their texts, or the exceptions they raised."""
        if self.driver == "sync":
            return [self._blocked(driver, call) for call in calls]

        async def main() -> list[Any]:
            return [(await asyncio.gather(self._await(driver, call), return_exceptions=True))[0] for call in calls]

        return run_virtual(main, _clock(driver))

    def all(
        self, driver: Driver, calls: Sequence[Call], *, stagger: float = 0.0, threads: int | None = None
    ) -> list[Any]:
        """Calls at the same time: their texts, or the exceptions they raised, in order.

        Args:
            driver: What to call.
            calls: The calls.
            stagger: Virtual seconds between the arrivals of two calls.
            threads: How many threads share the calls, when blocking; one for each by default.
        """
        if self.driver == "async":
            return run_virtual(lambda: self._gathered(driver, calls, stagger), _clock(driver))
        results: list[Any] = [None] * len(calls)
        numbers: Iterator[int] = iter(range(len(calls)))
        lock = threading.Lock()

        def work(first: int) -> None:
            if stagger:
                driver.pipe.clock.sleep(first * stagger)
            while True:
                with lock:
                    number = next(numbers, None) if threads is not None else None
                number = first if threads is None else number
                if number is None:
                    return
                results[number] = self._blocked(driver, calls[number])
                if threads is None:
                    return

        jobs = [lambda first=first: work(first) for first in range(len(calls) if threads is None else threads)]
        for error in _clock(driver).run_threads(jobs):
            assert error is None, error
        return results

    async def _gathered(self, driver: Driver, calls: Sequence[Call], stagger: float) -> list[Any]:
        async def later(number: int) -> str:
            if stagger:
                await asyncio.sleep(number * stagger)
            return await self._await(driver, calls[number])

        return await asyncio.gather(*map(later, range(len(calls))), return_exceptions=True)

    def _block(self, driver: Driver, call: Call) -> str:
        return driver.stream(**call) if self.streamed else driver.call(**call)

    def _blocked(self, driver: Driver, call: Call) -> Any:
        try:
            return self._block(driver, call)
        except BaseException as error:  # handed to the test
            return error

    async def _await(self, driver: Driver, call: Call) -> str:
        return await (driver.astream(**call) if self.streamed else driver.acall(**call))


def _clock(driver: Driver) -> VirtualClock:
    return cast(VirtualClock, driver.pipe.clock)


MODES = [Mode(driver, streamed) for driver, streamed in itertools.product(("sync", "async"), (False, True))]

every_mode = pytest.mark.parametrize("mode", MODES, ids=str)
"""Both drivers, streamed and not."""

both_drivers = pytest.mark.parametrize("mode", [Mode("sync"), Mode("async")], ids=str)

both_streams = pytest.mark.parametrize("mode", [Mode("sync", True), Mode("async", True)], ids=str)

__all__ = ["MODES", "Call", "Mode", "both_drivers", "both_streams", "every_mode"]
