"""The risk of a call, from the signals it gives and from how well what was retrieved fits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from brix_core.regulated.rules.hits import Hit

UNIVERSAL_SHARE: Final = 0.6
"""How much of their weight universal signals add."""

RETRIEVAL_SHARE: Final = 0.8
"""How much of what a retrieval falls short by is added."""

GOOD_RETRIEVAL: Final = 0.85
"""The retrieval score from which on nothing is added."""


class Risk(NamedTuple):
    """A risk score and its parts.

    Attributes:
        score: In [0, 1].
        registered: The highest weight of a registered signal.
        universal: The sum of the weights of universal signals.
        retrieval: What the retrieval falls short by.
    """

    score: float
    registered: float = 0.0
    universal: float = 0.0
    retrieval: float = 0.0


def risk_of(signals: Iterable[Hit], retrieval_score: float | None = None) -> Risk:
    """The risk: max(registered) + 0.6 x sum(universal) + 0.8 x max(0, 0.85 - retrieval score), clamped to [0, 1].

    Args:
        signals: What was found; what is excluded does not count.
        retrieval_score: How well what was retrieved fits, in [0, 1]; None when nothing was: unknown is not 0.

    Example:
        >>> from brix_core.regulated.format.spec import RiskSignal
        >>> def signal(weight, category):
        ...     rule = RiskSignal(name="s", description="d", patterns=("p",), weight=weight, category=category)
        ...     return Hit(rule, "s", (), 1.0)
        >>> round(risk_of([signal(0.5, "registered"), signal(0.3, "registered"), signal(0.2, "universal")]).score, 3)
        0.62
        >>> round(risk_of([], retrieval_score=0.6).score, 3), risk_of([]).score
        (0.2, 0.0)
    """
    registered = universal = 0.0
    for hit in signals:
        if not hit.counts:
            continue
        if getattr(hit.rule, "category", "registered") == "universal":
            universal += hit.weight
        else:
            registered = max(registered, hit.weight)
    short = 0.0 if retrieval_score is None else max(0.0, GOOD_RETRIEVAL - retrieval_score)
    score = registered + UNIVERSAL_SHARE * universal + RETRIEVAL_SHARE * short
    return Risk(min(1.0, max(0.0, score)), registered, universal, short)


__all__ = ["GOOD_RETRIEVAL", "RETRIEVAL_SHARE", "UNIVERSAL_SHARE", "Risk", "risk_of"]
