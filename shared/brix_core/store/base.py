"""What shared state must be able to do: a few atomic operations.

State that must be atomic (budget reservations, rate buckets, breaker states) lives behind `Store`.
Money is integer nano-dollars. Times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol


class Balance(NamedTuple):
    """An account's money: `spent` is settled, `reserved` is held by calls in flight."""

    spent: int = 0
    reserved: int = 0


class Grant(NamedTuple):
    """The answer to a reservation. `amount` 0 with `granted` False means refused.

    Attributes:
        account: Whose money.
        amount: Held until settled.
        granted: Whether it may go ahead.
        balance: The account after the decision, this amount included.
    """

    account: str
    amount: int
    granted: bool
    balance: Balance


class Demand(NamedTuple):
    """What a call wants from one token bucket.

    Attributes:
        bucket: The bucket's key.
        amount: Tokens wanted; they are taken only if every demand of the call can be met.
        rate: Refill, per second.
        capacity: Most the bucket holds; a bucket is full when first seen.
    """

    bucket: str
    amount: float
    rate: float
    capacity: float


class Store(Protocol):
    """Atomic operations on shared state. Each is one decision; none is check-then-act."""

    @property
    def blocking(self) -> bool:
        """Whether operations do I/O, so that an event loop must not run them itself."""
        ...

    def reserve(self, account: str, least: int, most: int, limit: int | None) -> Grant:
        """Hold up to `most`, at least `least`, so that spent + reserved stays <= `limit`.

        With `limit` None everything is granted. A refusal holds nothing.
        """
        ...

    def settle(self, grant: Grant, actual: int) -> Balance:
        """Replace what was held by what was really spent. Plain and synchronous: it runs in ``finally``."""
        ...

    def balance(self, account: str) -> Balance:
        """The account's money now."""
        ...

    def take(self, now: float, demands: Sequence[Demand]) -> float:
        """Take from all buckets at once. Returns 0.0 when taken, else seconds until it could be."""
        ...

    def give(self, now: float, demands: Sequence[Demand]) -> None:
        """Put tokens back; negative amounts are debt, for calls that turned out larger than asked for."""
        ...

    def update(self, key: str, change: Callable[[Any], tuple[Any, Any]]) -> Any:
        """Replace the record at `key` (None when absent) by ``change(record)[0]``; returns ``[1]``.

        `change` is pure and may run more than once.
        """
        ...


__all__ = ["Balance", "Demand", "Grant", "Store"]
