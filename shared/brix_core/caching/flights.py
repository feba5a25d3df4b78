"""Single flight: of identical requests under way at the same time, one is sent, and all get its answer.

The first to come leads; whoever comes later waits, in a thread or a task of any event loop. A leader that is cancelled
or fails hands over to the next in line. One who has seen `MAX_FAILED` leaders fail waits no longer and asks for itself,
so that a hundred callers of a provider that is down do not fail one after the other.

Example:
    >>> flights = Flights()
    >>> first, second = flights.join("k"), flights.join("k")
    >>> first.leads, second.leads
    (True, False)
    >>> flights.land(first, "Oslo")
    >>> second.answer, second.wakeup.is_set
    ('Oslo', True)
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any, Final

from brix_core.cache import MISSING
from brix_core.clock import Wakeup

MAX_FAILED: Final = 2
"""Leaders that may fail before a caller asks for itself."""


class Seat:
    """A caller's place in a flight.

    Attributes:
        key: What is asked for.
        wakeup: Set when there is an answer, or when the caller must act.
        leads: Whether this caller is to ask.
        alone: Whether it is to ask for itself, and nobody waits for it.
        answer: What the leader got; `MISSING` until then.
        failed: Leaders it has seen fail.
    """

    __slots__ = ("alone", "answer", "failed", "key", "leads", "line", "wakeup")

    def __init__(self, key: str, line: deque[Seat]) -> None:
        self.key = key
        self.line = line
        self.wakeup = Wakeup()
        self.leads = False
        self.alone = False
        self.answer: Any = MISSING
        self.failed = 0


class Flights:
    """Flights by key. Thread-safe; bounded by the number of calls under way."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may close an abandoned call, which leaves its flight, inside `join`.
        self._lock = threading.RLock()
        self._lines: dict[str, deque[Seat]] = {}

    def __len__(self) -> int:
        """Flights under way."""
        return len(self._lines)

    def join(self, key: str) -> Seat:
        """Take a seat, as leader where there is no flight of this key."""
        with self._lock:
            line = self._lines.setdefault(key, deque())
            seat = Seat(key, line)
            line.append(seat)
            self._lines[key] = line
            seat.leads = line[0] is seat
            return seat

    def land(self, seat: Seat, answer: Any) -> None:
        """The leader has an answer: all others in its flight get it, and the flight is over."""
        with self._lock:
            others = [other for other in list(seat.line) if other is not seat]
            self._end(seat.line, seat.key)
            for other in others:
                other.answer = answer
        for other in others:
            other.wakeup.set()

    def leave(self, seat: Seat, *, failed: bool = False) -> None:
        """Give the seat back; harmless when it was already. A leader hands over.

        Args:
            seat: The seat.
            failed: Whether its call failed; one that was cancelled says nothing about the next.
        """
        with self._lock:
            line = seat.line
            if seat not in line:
                return
            was_leader = seat.leads
            line.remove(seat)
            woken = self._hand_over(line, failed) if was_leader else []
            if not line:
                self._end(line, seat.key)
        for other in woken:
            other.wakeup.set()

    def _hand_over(self, line: deque[Seat], failed: bool) -> list[Seat]:
        woken = []
        for other in list(line):  # a copy: others may leave meanwhile, see `__init__`
            other.failed += failed
            if other.failed >= MAX_FAILED and other in line:
                other.alone = True
                line.remove(other)
                woken.append(other)
        if line:
            line[0].leads = True
            woken.append(line[0])
        return woken

    def _end(self, line: deque[Seat], key: str) -> None:
        line.clear()
        if self._lines.get(key) is line:
            del self._lines[key]


_lock = threading.Lock()
_over: weakref.WeakKeyDictionary[Any, Flights] = weakref.WeakKeyDictionary()


def flights_over(cache: Any) -> Flights:
    """The flights of whoever uses this cache: requests that would find each other's answers wait for each other."""
    try:
        with _lock:
            return _over.setdefault(cache, Flights())
    except TypeError:  # not hashable, or without weak references
        return Flights()


__all__ = ["MAX_FAILED", "Flights", "Seat", "flights_over"]
