"""Pacing: taking from a store's token buckets, first come, first served.

Callers wait in line: only the head of a line asks the bucket, and whoever leaves the line, served or cancelled, wakes
the next. Threads and tasks of any event loop stand in the same line.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from brix_core.call import Deadline
from brix_core.clock import Clock, Wakeup
from brix_core.flow import Effect, Sleep, StoreOp
from brix_core.store.base import Demand, Store

Demands = Callable[[float], Sequence[Demand]]
"""What a caller wants at a moment (monotonic seconds)."""


def burst_of(requests_per_minute: float, burst_capacity: int | None) -> float:
    """How many requests may start at once: one second's worth, at least 1, unless told.

    Example:
        >>> burst_of(600, None), burst_of(6, None), burst_of(6, 3)
        (10.0, 1.0, 3.0)
    """
    return float(burst_capacity or max(1, math.floor(requests_per_minute / 60.0)))


def one_request(key: str, requests_per_minute: float, burst: float, factor: float = 1.0) -> Demand:
    """One request from a key's bucket, which refills at `factor` of its rate."""
    return Demand(f"{key}:requests:{requests_per_minute:g}/{burst:g}", 1.0, requests_per_minute / 60.0 * factor, burst)


class Lines:
    """Lines before a store's token buckets, one for each key.

    Args:
        store: Where the buckets are.
        clock: The time.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.RLock()  # the garbage collector may close a waiting call inside `_join`
        self._lines: dict[str, deque[_Ticket]] = {}

    def take(
        self, key: str, demands: Demands, deadline: Deadline | None = None, *, alone: bool = False
    ) -> Generator[Effect, Any, float]:
        """Stand in line until the buckets give what is wanted.

        Args:
            key: Whose line.
            demands: What is wanted.
            deadline: When it comes too late.
            alone: Stand in no line: who waits for a place would wait for tasks that wait for him.

        Returns:
            Seconds waited.

        Raises:
            BrixTimeoutError: The deadline comes first.
        """
        if not self._store.blocking and (yield from self.take_at_once(key, demands)):
            return 0.0
        arrived = self._clock.now()
        ticket = self._join(key, alone=alone)
        try:
            while True:
                now = self._clock.now()
                if not ticket.is_head:
                    yield Sleep(math.inf if deadline is None else max(0.0, deadline.at - now), ticket.wakeup)
                    now = self._clock.now()
                    if deadline is not None and now >= deadline.at:
                        raise deadline.passed(now)
                    continue
                wait: float = yield StoreOp(self._store.take, (now, demands(now)), self._store.blocking)
                if wait <= 0.0:
                    return self._clock.now() - arrived
                if deadline is not None and now + wait > deadline.at:
                    raise deadline.passed(now)
                yield Sleep(wait)
        finally:
            self._leave(ticket)

    def take_at_once(self, key: str, demands: Demands) -> Generator[Effect, Any, bool]:
        """Take what is wanted if it is there and nobody waits for it. Returns whether it was taken."""
        if key in self._lines:
            return False
        now = self._clock.now()
        wait: float = yield StoreOp(self._store.take, (now, demands(now)), self._store.blocking)
        return wait <= 0.0

    def _join(self, key: str, *, alone: bool) -> _Ticket:
        with self._lock:
            line = deque() if alone else self._lines.setdefault(key, deque())
            ticket = _Ticket(key, line)
            line.append(ticket)
            if not alone:
                self._lines[key] = line
            return ticket

    def _leave(self, ticket: _Ticket) -> None:
        """Give the place back; whoever is next is woken."""
        line = ticket.line
        with self._lock:
            was_head = ticket.is_head
            if was_head:
                line.popleft()
            else:
                line.remove(ticket)
            heir = line[0] if was_head and line else None
            if not line and self._lines.get(ticket.key) is line:
                del self._lines[ticket.key]
        if heir is not None:
            heir.wakeup.set()


class _Ticket:
    """A place in line."""

    __slots__ = ("key", "line", "wakeup")

    def __init__(self, key: str, line: deque[_Ticket]) -> None:
        self.key = key
        self.line = line
        self.wakeup = Wakeup()

    @property
    def is_head(self) -> bool:
        return self.line[0] is self


__all__ = ["Demands", "Lines", "burst_of", "one_request"]
