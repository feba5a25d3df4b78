"""Rate limits that providers publish for their usage tiers: a start, until you know those of your account.

Limits depend on the account, the model and the day; a provider's console shows those that hold. The figures are of one
chat model each, and were read on 2026-11-21 in stored copies of these pages, since live ones could not be:

- OpenAI, "Rate limits", https://platform.openai.com/docs/guides/rate-limits/usage-tiers, gpt-4o, in the copy of its
  documentation that OpenAI keeps in openai/openai-cookbook (``examples/data/oai_docs/tier-*.txt``, of 2024). Smaller
  and newer models have more: gpt-4o-mini 200,000 tokens per minute in tier 1. The free tier is gpt-3.5-turbo's.
- Anthropic, "Rate limits", https://platform.claude.com/docs/en/api/rate-limits, Claude Sonnet 4.x, as three public
  copies of 2026-03 to 2026-05 agree. Its tiers have had other names since (Start, Build, Scale); what these allow could
  not be verified. It counts input and output apart: `tokens_per_minute` is the input limit, the output limit (8,000;
  90,000; 160,000; 400,000) is not kept by it.
- Google, "Rate limits", https://ai.google.dev/gemini-api/docs/rate-limits, Gemini 2.5 Flash, in copies of 2025-09;
  tier 3 in one of them only. Later versions of the page name no figures, and those of tier 2 could not be found.

Example:
    >>> PROVIDER_LIMITS["openai"]["tier_1"].__dict__
    {'requests_per_minute': 500, 'tokens_per_minute': 30000}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class ProviderLimits:
    """What a provider allows in one tier; `vars` of it are arguments of `PerProviderRateLimiter.set_provider_limits`.

    Attributes:
        requests_per_minute: Most requests per minute.
        tokens_per_minute: Most tokens per minute.
    """

    requests_per_minute: int
    tokens_per_minute: int


def _tiers(**tiers: tuple[int, int]) -> Mapping[str, ProviderLimits]:
    return MappingProxyType({name: ProviderLimits(*limits) for name, limits in tiers.items()})


PROVIDER_LIMITS: Final[Mapping[str, Mapping[str, ProviderLimits]]] = MappingProxyType(
    {
        "openai": _tiers(
            free=(3, 40_000),
            tier_1=(500, 30_000),
            tier_2=(5_000, 450_000),
            tier_3=(5_000, 600_000),
            tier_4=(10_000, 800_000),
            tier_5=(10_000, 12_000_000),
        ),
        "anthropic": _tiers(
            tier_1=(50, 30_000),
            tier_2=(1_000, 450_000),
            tier_3=(2_000, 800_000),
            tier_4=(4_000, 2_000_000),
        ),
        "gemini": _tiers(
            free=(10, 250_000),
            tier_1=(1_000, 1_000_000),
            tier_3=(10_000, 8_000_000),
        ),
    }
)
"""By provider, as adapters name it, and tier; sources in the module's docstring."""

__all__ = ["PROVIDER_LIMITS", "ProviderLimits"]
