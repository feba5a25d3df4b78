"""A store that checks its own books after every operation."""

from __future__ import annotations

import threading
from collections import Counter

from brix_core.store import MemoryStore
from brix_core.store.base import Balance, Grant


class AuditedStore(MemoryStore):
    """Notes every state of an account that may not be. (An error raised there could pass for a failed call.)"""

    def __init__(self) -> None:
        super().__init__()
        self._audit = threading.Lock()
        self._held: Counter[str] = Counter()
        self._limits: dict[str, int | None] = {}
        self.granted = 0
        self.settled = 0
        self.refused = 0
        self.overcharged: list[int] = []
        self.violations: list[str] = []

    @property
    def held(self) -> int:
        """Granted and not yet settled, in all accounts."""
        return sum(self._held.values())

    def reserve(self, account: str, least: int, most: int, limit: int | None) -> Grant:
        with self._audit:
            grant = super().reserve(account, least, most, limit)
            self._limits[account] = limit
            if grant.granted:
                self.granted += 1
                self._held[account] += grant.amount
            else:
                self.refused += 1
            self._check(account, grant.balance, "reserve")
            return grant

    def settle(self, grant: Grant, actual: int) -> Balance:
        with self._audit:
            self.settled += 1
            self._held[grant.account] -= grant.amount
            balance = super().settle(grant, actual)
            if actual < 0:
                self.violations.append(f"charged {actual}")
            if actual > grant.amount:
                self.overcharged.append(actual - grant.amount)
            self._check(grant.account, balance, "settle")
            return balance

    def assert_sound(self) -> None:
        """No account was ever over its limit, and nothing is held any more."""
        assert self.violations == []
        assert self.granted == self.settled
        assert self.held == 0
        for account in self._limits:
            assert self.balance(account).reserved == 0

    def _check(self, account: str, balance: Balance, operation: str) -> None:
        limit = self._limits[account]
        if balance.reserved != self._held[account]:
            self.violations.append(f"{operation}: {balance.reserved} reserved, {self._held[account]} granted")
        if limit is not None and balance.spent + balance.reserved > limit:
            self.violations.append(f"{operation}: {balance} over {limit}")


__all__ = ["AuditedStore"]
