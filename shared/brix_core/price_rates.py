"""Price lists as integers, so that a cost is a few multiplications and exact.

Example:
    >>> flat = ((-1, 2 * FINE),)  # two nano-dollars a token, whatever the size
    >>> rates = Rates(input=flat, output=flat, cache_read=flat, cache_write=flat, reasoning=flat)
    >>> rates.units(Usage(input_tokens=3, output_tokens=1)) // FINE
    8
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

from brix_core.usage import Usage

FINE = 10**15
"""Prices per token are whole numbers of 1 / `FINE` nano-dollar: exact to the last digit of the table."""
FINE_PER_USD = 10**9 * FINE

Tiers = tuple[tuple[int, int], ...]
"""``(above this many input tokens, price of a token in `FINE` units)``, the highest tier first."""


@dataclass(frozen=True, slots=True)
class Rates:
    """One price list, in `FINE` units a token. A tier applies to the whole call, as providers bill."""

    input: Tiers
    output: Tiers
    cache_read: Tiers
    cache_write: Tiers
    reasoning: Tiers
    request: int = 0
    # Without tiers: the five prices, then the dearest of input and of output.
    _flat: tuple[int, int, int, int, int, int, int] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tiers = (self.input, self.cache_read, self.cache_write, self.output, self.reasoning)
        flat = None
        if all(len(steps) == 1 for steps in tiers):
            one, read, write, output, reasoning = (steps[0][1] for steps in tiers)
            flat = (one, read, write, output, reasoning, max(one, read, write), max(output, reasoning))
        object.__setattr__(self, "_flat", flat)

    def units(self, usage: Usage) -> int:
        """Exact cost. Parts larger than their whole, which providers do report, are cut to it."""
        if self._flat is not None and not (
            usage.cache_read_tokens or usage.cache_write_tokens or usage.reasoning_tokens
        ):
            return (
                self.request + max(usage.input_tokens, 0) * self._flat[0] + max(usage.output_tokens, 0) * self._flat[3]
            )
        total = max(usage.input_tokens, 0)
        read = min(max(usage.cache_read_tokens, 0), total)
        write = min(max(usage.cache_write_tokens, 0), total - read)
        output = max(usage.output_tokens, 0)
        reasoning = min(max(usage.reasoning_tokens, 0), output)
        if self._flat is not None:
            plain, reading, writing, answer, thought, *_ = self._flat
        else:
            plain, reading, writing, answer, thought = (
                _at(tiers, total)
                for tiers in (self.input, self.cache_read, self.cache_write, self.output, self.reasoning)
            )
        return (
            self.request
            + (total - read - write) * plain
            + read * reading
            + write * writing
            + (output - reasoning) * answer
            + reasoning * thought
        )

    def worst(self, input_tokens: int) -> tuple[int, int]:
        """Fixed cost, in `FINE` units, of a call with so much input, and the dearest rate of its output."""
        if self._flat is not None:
            return self.request + input_tokens * self._flat[5], self._flat[6]
        dearest = max(_most(tiers, input_tokens) for tiers in (self.input, self.cache_read, self.cache_write))
        output = max(_most(self.output, input_tokens), _most(self.reasoning, input_tokens))
        return self.request + input_tokens * dearest, output


def _at(tiers: Tiers, input_tokens: int) -> int:
    for start, rate in tiers:
        if input_tokens > start:
            return rate
    return tiers[-1][1]


def _most(tiers: Tiers, input_tokens: int) -> int:
    # Every tier up to this size: the count may have been too high and a lower tier apply.
    return max(rate for start, rate in tiers if input_tokens > start or start < 0)


def compile_rates(prices: Any) -> Rates | None:
    """A `ModelPrice` of genai-prices as integers; None when tokens are not what it charges for.

    Example:
        >>> compile_rates(object()) is None
        True
    """
    lists = {key: value for key, value in getattr(prices, "__dict__", {}).items() if value is not None}
    if "input_mtok" not in lists:
        return None
    base = _tiers(lists["input_mtok"])
    output = _tiers(lists["output_mtok"]) if "output_mtok" in lists else ((-1, 0),)
    return Rates(
        input=base,
        output=output,
        cache_read=_tiers(lists["cache_read_mtok"]) if "cache_read_mtok" in lists else base,
        cache_write=_tiers(lists["cache_write_mtok"]) if "cache_write_mtok" in lists else base,
        reasoning=_tiers(lists["output_reasoning_mtok"]) if "output_reasoning_mtok" in lists else output,
        request=_per(lists["requests_kcount"], 1_000) if "requests_kcount" in lists else 0,
    )


def _tiers(price: Any) -> Tiers:
    """Highest tier first, the base price last, as ``(-1, rate)``."""
    if isinstance(price, Decimal):
        return ((-1, _per(price, 1_000_000)),)
    steps = [(tier.start, _per(tier.price, 1_000_000)) for tier in price.tiers]
    return (*reversed(steps), (-1, _per(price.base, 1_000_000)))


def _per(price: Any, units: int) -> int:
    if not isinstance(price, Decimal):  # tiers of a per-request fee do not exist in the table
        price = max([price.base, *(tier.price for tier in price.tiers)])
    return math.ceil(Fraction(price) * FINE_PER_USD / units)


__all__ = ["FINE", "FINE_PER_USD", "Rates", "Tiers", "compile_rates"]
