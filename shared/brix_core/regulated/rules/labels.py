"""What a classifier of a framework says of a text, as a risk.

Classifiers answer with numbers, yes and no, labels, or an object with one such field. A label that is not known is an
error: a guess would be a hole, or a refusal that nobody can explain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from brix_core.errors import BrixGuardError
from brix_core.regulated.format.telling import shown

RISKY: Final = frozenset(
    {"yes", "true", "unsafe", "risky", "harmful", "dangerous", "flagged", "toxic", "block", "blocked"}
)
"""Labels that are a risk of 1."""

HARMLESS: Final = frozenset({"no", "false", "safe", "harmless", "benign", "ok", "none", "allow", "allowed", "pass"})
"""Labels that are no risk."""


def risk_in(verdict: Any) -> float | bool:
    """The risk in what a classifier returned: a number or bool as it is, a label, or the only field of an object.

    Raises:
        BrixGuardError: It is none of these; the call must not be made.

    Example:
        >>> risk_in(0.3), risk_in(" Unsafe. "), risk_in("safe"), risk_in("0.75"), risk_in({"harmful": True})
        (0.3, 1.0, 0.0, 0.75, True)
    """
    if isinstance(verdict, str):
        return _label(verdict)
    fields = verdict if isinstance(verdict, Mapping) else getattr(verdict, "__dict__", None)
    if isinstance(fields, Mapping) and len(fields) == 1:
        return risk_in(next(iter(fields.values())))
    if isinstance(verdict, int | float):
        return verdict
    raise _unread(verdict)


def _label(text: str) -> float:
    word = text.strip().strip(".!\"'`*").casefold()
    if word in RISKY or word in HARMLESS:
        return float(word in RISKY)
    try:
        return float(word)
    except ValueError:
        raise _unread(text) from None


def _unread(verdict: Any) -> BrixGuardError:
    return BrixGuardError(
        f"a classifier said {shown(verdict)}, which is no number, bool or known label, so the risk is unknown and the "
        f"call is not made; have it say one of {', '.join(sorted(RISKY | HARMLESS))} or a number in [0, 1], or put a "
        "function behind it that does",
        guard="regulated",
    )


__all__ = ["HARMLESS", "RISKY", "risk_in"]
