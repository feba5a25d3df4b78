"""The balance of every session, and whose decision was whose."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final
from uuid import UUID

from brix_core.errors import BrixConfigurationError
from brix_core.regulated.judging.balance import MAX_CORRECTABLE, Balance
from brix_core.session import PerSession, Session

MAX_DECISIONS: Final = 10_000
"""Latest decisions of all sessions on which feedback is taken."""


class Scores:
    """Keeps a `Balance` for each session, and finds it again by a decision."""

    def __init__(self) -> None:
        self._balances = PerSession(Balance)
        self._lock = threading.Lock()
        self._decisions: OrderedDict[int, Balance] = OrderedDict()  # a UUID's own hash is slow

    def of(self, session: Session) -> Balance:
        """That of a session."""
        return self._balances.of(session)

    def note(self, session: Session, decision_id: UUID, *, necessary: bool, intervened: bool) -> float:
        """Count a decision. Returns the session's balance index with it."""
        balance = self._balances.of(session)
        with self._lock:
            self._decisions[decision_id.int] = balance
            if len(self._decisions) > MAX_DECISIONS:
                self._decisions.popitem(last=False)
        return balance.note(decision_id, necessary=necessary, intervened=intervened)

    def feedback(self, decision_id: UUID | str, was_intervention_necessary: bool) -> float:
        """Say whether intervening was necessary. Returns the balance index with it.

        Raises:
            BrixConfigurationError: The decision is not known, or no longer; or an argument is of another type.
        """
        if not isinstance(was_intervention_necessary, bool):
            raise BrixConfigurationError(
                f"was_intervention_necessary must be True or False, got {was_intervention_necessary!r:.200}"
            )
        try:
            known = decision_id if isinstance(decision_id, UUID) else UUID(decision_id)
        except (ValueError, AttributeError, TypeError) as error:
            raise BrixConfigurationError(
                f"decision_id must be that of a StructuredResult, a UUID; got {decision_id!r:.200}"
            ) from error
        with self._lock:
            balance = self._decisions.get(known.int)
        if balance is None or not balance.correct(known, necessary=was_intervention_necessary):
            raise BrixConfigurationError(
                f"decision {known} is not known here: feedback is taken on the latest {MAX_CORRECTABLE} decisions of a "
                f"session and {MAX_DECISIONS} of all, by the object that made them; keep its result and tell earlier"
            )
        return balance.index


__all__ = ["MAX_DECISIONS", "Scores"]
