"""Shared state in this process's memory: the default store.

Example:
    >>> store = MemoryStore()
    >>> grant = store.reserve("user-42", least=30, most=50, limit=100)
    >>> store.settle(grant, 20)
    Balance(spent=20, reserved=0)
    >>> store.reserve("user-42", least=90, most=90, limit=100).granted
    False
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from brix_core.store.base import Balance, Demand, Grant

MAX_RECORDS: Final = 100_000
"""Accounts, buckets and records each; beyond them the longest unused goes, never one in use."""


class MemoryStore:
    """Atomic by one lock, held for microseconds. Gone when the process ends.

    The garbage collector may close an abandoned stream, and so settle its call, in the middle of an operation of
    the very same thread. What comes in that way is put aside and done at the start of the next operation.

    Bounded: of more than `MAX_RECORDS` accounts the longest unused one without a reservation is
    forgotten, its spend too. An application with more sessions than that wants a durable store.
    """

    blocking = False

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._late: deque[Callable[[], object]] = deque()
        self._accounts: OrderedDict[str, Balance] = OrderedDict()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._records: OrderedDict[str, Any] = OrderedDict()

    def reserve(self, account: str, least: int, most: int, limit: int | None) -> Grant:
        """See `Store.reserve`."""
        with self._lock:
            self._catch_up()
            now = self._accounts.get(account, Balance())
            left = most if limit is None else limit - now.spent - now.reserved
            if left < least:
                return Grant(account, 0, False, now)
            amount = min(most, left)
            after = Balance(now.spent, now.reserved + amount)
            self._keep(account, after)
            return Grant(account, amount, True, after)

    def settle(self, grant: Grant, actual: int) -> Balance:
        """See `Store.settle`."""
        if self._is_interrupted():
            self._late.append(partial(self._settle, grant, actual))
            return self._accounts.get(grant.account, Balance())
        with self._lock:
            self._catch_up()
            return self._settle(grant, actual)

    def balance(self, account: str) -> Balance:
        """See `Store.balance`."""
        with self._lock:
            self._catch_up()
            return self._accounts.get(account, Balance())

    def take(self, now: float, demands: Sequence[Demand]) -> float:
        """See `Store.take`."""
        with self._lock:
            self._catch_up()
            levels = []
            wait = 0.0
            for demand in demands:
                level = self._level(now, demand)
                levels.append(level)
                short = demand.amount - level
                if short > _ROUNDING:
                    wait = max(wait, short / demand.rate if demand.rate > 0 else math.inf)
            if not wait:
                for demand, level in zip(demands, levels, strict=True):
                    self._put(now, demand, level - demand.amount)
            return wait

    def give(self, now: float, demands: Sequence[Demand]) -> None:
        """See `Store.give`."""
        if self._is_interrupted():
            self._late.append(partial(self._give, now, demands))
            return
        with self._lock:
            self._catch_up()
            self._give(now, demands)

    def update(self, key: str, change: Callable[[Any], tuple[Any, Any]]) -> Any:
        """See `Store.update`."""
        if self._is_interrupted():
            self._late.append(partial(self._update, key, change))
            return None
        with self._lock:
            self._catch_up()
            return self._update(key, change)

    def _is_interrupted(self) -> bool:
        """Whether this thread is in the middle of an operation already."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]  # as `threading.Condition` asks

    def _catch_up(self) -> None:
        while self._late:
            self._late.popleft()()

    def _settle(self, grant: Grant, actual: int) -> Balance:
        now = self._accounts.get(grant.account, Balance())
        after = Balance(now.spent + actual, max(0, now.reserved - grant.amount))
        self._keep(grant.account, after)
        return after

    def _give(self, now: float, demands: Sequence[Demand]) -> None:
        for demand in demands:
            self._put(now, demand, min(demand.capacity, self._level(now, demand) + demand.amount))

    def _update(self, key: str, change: Callable[[Any], tuple[Any, Any]]) -> Any:
        record, result = change(self._records.get(key))
        if record is None:
            self._records.pop(key, None)
        else:
            self._records[key] = record
            self._records.move_to_end(key)
            if len(self._records) > MAX_RECORDS:
                self._records.popitem(last=False)
        return result

    def _keep(self, account: str, balance: Balance) -> None:
        self._accounts[account] = balance
        self._accounts.move_to_end(account)
        if len(self._accounts) > MAX_RECORDS:
            idle = next((name for name, money in self._accounts.items() if not money.reserved), account)
            if idle != account:
                del self._accounts[idle]

    def _level(self, now: float, demand: Demand) -> float:
        level, since = self._buckets.get(demand.bucket) or (demand.capacity, now)
        if now > since:
            level += (now - since) * demand.rate
        return level if level < demand.capacity else demand.capacity

    def _put(self, now: float, demand: Demand, level: float) -> None:
        known = self._buckets.get(demand.bucket)
        self._buckets[demand.bucket] = (level, now if known is None or now > known[1] else known[1])
        self._buckets.move_to_end(demand.bucket)
        if len(self._buckets) > MAX_RECORDS:
            self._buckets.popitem(last=False)


_ROUNDING = 1e-9
"""Tolerance of a bucket's level, in tokens: a waiter that slept exactly long enough must not find
itself short by a rounding error."""


_default = MemoryStore()


def default_store() -> MemoryStore:
    """The store of this process: sessions of one name share their state across wrapped models."""
    return _default


__all__ = ["MAX_RECORDS", "MemoryStore", "default_store"]
