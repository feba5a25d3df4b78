"""The chunks of a stream as they came, for whoever records them."""

from __future__ import annotations

from typing import Any

from brix_core.clock import Clock


class DeliveredChunks(list[Any]):
    """The chunks of the last attempt of a stream, and when they came."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.times: list[float] = []

    def append(self, chunk: Any) -> None:
        """Note a chunk."""
        super().append(chunk)
        self.times.append(self._clock.now())

    def anew(self) -> DeliveredChunks:
        """For another attempt."""
        self.clear()
        self.times.clear()
        return self


__all__ = ["DeliveredChunks"]
