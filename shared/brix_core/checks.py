"""Checks of option values: each error names the option, the value and what is allowed.

Example:
    >>> positive("per_call_timeout", 2)
    2.0
    >>> positive("per_call_timeout", -1)
    Traceback (most recent call last):
    ...
    brix_core.errors.BrixConfigurationError: per_call_timeout must be a number > 0, got -1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from brix_core.errors import BrixConfigurationError


def _refuse(name: str, allowed: str, value: Any) -> NoReturn:
    raise BrixConfigurationError(f"{name} must be {allowed}, got {value!r:.200}")


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # an int beyond any float
        return False


def positive(name: str, value: Any, *, infinite: bool = False) -> float:
    """A number > 0, finite unless `infinite`."""
    if not _is_number(value) or value <= 0 or (math.isinf(value) and not infinite):
        _refuse(name, "a number > 0", value)
    return float(value)


def at_least(name: str, value: Any, least: float) -> float:
    """A finite number >= `least`."""
    if not _is_number(value) or math.isinf(value) or value < least:
        _refuse(name, f"a finite number >= {least:g}", value)
    return float(value)


def fraction(name: str, value: Any, *, zero: bool = False) -> float:
    """A number in (0, 1], or [0, 1] with `zero`."""
    if not _is_number(value) or not (0 if zero else 5e-324) <= value <= 1:
        _refuse(name, f"a number in {'[' if zero else '('}0, 1]", value)
    return float(value)


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An int >= `least`, and <= `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        _refuse(name, f"an int >= {least}" + ("" if most is None else f" and <= {most}"), value)
    return value


def flag(name: str, value: Any) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        _refuse(name, "True or False", value)
    return value


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """One of a few words."""
    if value not in allowed:
        _refuse(name, "one of " + ", ".join(map(repr, allowed)), value)


__all__ = ["at_least", "flag", "fraction", "one_of", "positive", "whole"]
