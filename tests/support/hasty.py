"""A clock that runs faster than the world: minutes of waiting over real HTTP in seconds."""

from __future__ import annotations

import asyncio
import time

from brix_core.clock import SystemClock, Wakeup


class HastyClock:
    """Time that passes `factor` times as fast, for whoever asks it."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._system = SystemClock()
        self._began = time.monotonic()

    def now(self) -> float:
        return self._began + (time.monotonic() - self._began) * self.factor

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        self._system.sleep(seconds / self.factor, wakeup)

    async def asleep(self, seconds: float, wakeup: Wakeup | None = None) -> None:
        if wakeup is None:
            await asyncio.sleep(max(0.0, seconds / self.factor))
        else:
            await self._system.asleep(seconds / self.factor, wakeup)
