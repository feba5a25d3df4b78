"""How well a session's interventions hit: neither too few nor too many.

*Reliability* is the share of the calls where intervening was necessary in which it was done; *utility* the share of
the calls where it was not in which it was left alone. Their harmonic mean is the balance index: refusing everything
has no more of it than refusing nothing. What was necessary is the guard's own estimate until `feedback` corrects it.

Example:
    >>> from uuid import uuid4
    >>> balance, blocked = Balance(), uuid4()
    >>> balance.note(blocked, necessary=True, intervened=True)
    1.0
    >>> balance.note(uuid4(), necessary=False, intervened=False)
    1.0
    >>> balance.correct(blocked, necessary=False)       # it was blocked for nothing
    True
    >>> round(balance.index, 2)
    0.67
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final
from uuid import UUID

MAX_CORRECTABLE: Final = 256
"""Latest decisions of a session on which feedback is taken. Older ones count on, as they were."""


class Balance:
    """Counts the decisions of one session. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0, 0, 0, 0]  # by `_place`
        self._latest: OrderedDict[int, int] = OrderedDict()  # a UUID's own hash is slow

    def note(self, decision_id: UUID, *, necessary: bool, intervened: bool) -> float:
        """Count a decision. Returns the balance index with it."""
        place = _place(necessary, intervened)
        with self._lock:
            self._counts[place] += 1
            self._latest[decision_id.int] = place
            if len(self._latest) > MAX_CORRECTABLE:
                self._latest.popitem(last=False)
            return self._index()

    def correct(self, decision_id: UUID, *, necessary: bool) -> bool:
        """Say whether intervening was necessary after all. False when the decision is not known, or no longer."""
        with self._lock:
            known = self._latest.get(decision_id.int)
            if known is None:
                return False
            self._counts[known] -= 1
            self._latest[decision_id.int] = corrected = _place(necessary, bool(known & 1))
            self._counts[corrected] += 1
            return True

    @property
    def index(self) -> float:
        """The harmonic mean of reliability and utility, in [0, 1]."""
        with self._lock:
            return self._index()

    @property
    def reliability(self) -> float:
        """Interventions done, of those necessary; 1 when none was."""
        with self._lock:
            return self._share(necessary=True, intervened=True)

    @property
    def utility(self) -> float:
        """Calls left alone, of those where intervening was not necessary; 1 when there was none."""
        with self._lock:
            return self._share(necessary=False, intervened=False)

    @property
    def decisions(self) -> int:
        """How many there were."""
        with self._lock:
            return sum(self._counts)

    def _index(self) -> float:
        reliability = self._share(necessary=True, intervened=True)
        utility = self._share(necessary=False, intervened=False)
        total = reliability + utility
        return 2.0 * reliability * utility / total if total else 0.0

    def _share(self, *, necessary: bool, intervened: bool) -> float:
        hit = self._counts[_place(necessary, intervened)]
        every = hit + self._counts[_place(necessary, not intervened)]
        return hit / every if every else 1.0


def _place(necessary: bool, intervened: bool) -> int:
    return 2 * necessary + intervened


__all__ = ["MAX_CORRECTABLE", "Balance"]
