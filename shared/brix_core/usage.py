"""What a call consumed, in tokens.

Example:
    >>> Usage(input_tokens=100, output_tokens=20, cache_read_tokens=80).total_tokens
    120
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one call, as the provider reported them or as we estimated them.

    Attributes:
        input_tokens: All prompt tokens, cached ones included.
        output_tokens: All output tokens, reasoning included.
        cache_read_tokens: The part of `input_tokens` read from the provider's prompt cache.
        cache_write_tokens: The part of `input_tokens` written to it (billed higher by Anthropic).
        reasoning_tokens: The part of `output_tokens` spent on hidden reasoning.
        estimated: True when the provider reported nothing and the figures are our own count.
    """

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Input plus output tokens."""
        return self.input_tokens + self.output_tokens


__all__ = ["Usage"]
