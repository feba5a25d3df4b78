"""What a model can take and give: context window, output limit, hidden reasoning.

By family, from the providers' published model pages as they stood in late 2026:

* OpenAI: developers.openai.com/api/docs/models (and, for GPT-5.4 to 6, the same figures at
  vercel.com/ai-gateway/models and runware.ai/docs/models)
* Anthropic: platform.claude.com/docs/models/overview; Opus 4.6 to 4.8 and Sonnet 4.6 by the API's own error
  message, quoted in Effect-TS/effect#7129
* Google: ai.google.dev/gemini-api/docs/models

The longest matching prefix wins, and only where the version ends there: ``gpt-5`` says nothing about
``gpt-5.9``. Models that are not in the table have no known limit: None, never a guess.

Example:
    >>> max_output_tokens("gpt-4o-mini-2024-07-18"), context_window("azure/gpt-4.1-nano")
    (16384, 1047576)
    >>> max_output_tokens("my-model") is None
    True
"""

from __future__ import annotations

import re
from functools import lru_cache

from brix_core.tokens import bare_model_name

_LIMITS: dict[str, tuple[int, int]] = {
    # prefix: (output tokens, context window)
    "gpt-3.5-turbo": (4_096, 16_385),
    "gpt-3.5-turbo-instruct": (4_096, 4_096),
    "gpt-35-turbo": (4_096, 16_385),
    "gpt-4": (8_192, 8_192),
    "gpt-4-32k": (32_768, 32_768),
    "gpt-4-0125": (4_096, 128_000),
    "gpt-4-1106": (4_096, 128_000),
    "gpt-4-turbo": (4_096, 128_000),
    "gpt-4-vision": (4_096, 128_000),
    "gpt-4o": (16_384, 128_000),
    "gpt-4o-2024-05-13": (4_096, 128_000),
    "chatgpt-4o": (16_384, 128_000),
    "gpt-4.1": (32_768, 1_047_576),
    "gpt-4.5": (16_384, 128_000),
    "gpt-5": (128_000, 400_000),
    "gpt-5-chat": (16_384, 128_000),
    "gpt-5-pro": (272_000, 400_000),
    "gpt-5.1": (128_000, 400_000),
    "gpt-5.1-chat": (16_384, 128_000),
    "gpt-5.2": (128_000, 400_000),
    "gpt-5.2-chat": (16_384, 128_000),
    "gpt-5.3-chat": (16_384, 128_000),
    "gpt-5.3-codex": (128_000, 400_000),
    "gpt-5.4": (128_000, 1_050_000),
    "gpt-5.4-mini": (128_000, 400_000),
    "gpt-5.4-nano": (128_000, 400_000),
    "gpt-5.5": (128_000, 1_000_000),
    "gpt-5.6": (128_000, 1_050_000),
    "gpt-6": (128_000, 1_050_000),
    "gpt-6.1": (128_000, 1_050_000),
    "gpt-6.2": (128_000, 1_050_000),
    "gpt-oss": (131_072, 131_072),
    "o1": (100_000, 200_000),
    "o1-mini": (65_536, 128_000),
    "o1-preview": (32_768, 128_000),
    "o3": (100_000, 200_000),
    "o4-mini": (100_000, 200_000),
    "codex-mini": (100_000, 200_000),
    "claude-3-opus": (4_096, 200_000),
    "claude-3-sonnet": (4_096, 200_000),
    "claude-3-haiku": (4_096, 200_000),
    "claude-3-5-sonnet": (8_192, 200_000),
    "claude-3-5-haiku": (8_192, 200_000),
    "claude-3-7-sonnet": (64_000, 200_000),
    "claude-opus-4": (32_000, 200_000),
    "claude-opus-4-0": (32_000, 200_000),
    "claude-opus-4-1": (32_000, 200_000),
    "claude-opus-4-5": (64_000, 200_000),
    "claude-opus-4-6": (128_000, 1_000_000),
    "claude-opus-4-7": (128_000, 1_000_000),
    "claude-opus-4-8": (128_000, 1_000_000),
    "claude-opus-5": (128_000, 1_000_000),
    "claude-opus-5-5": (128_000, 1_000_000),
    "claude-sonnet-4": (64_000, 200_000),
    "claude-sonnet-4-0": (64_000, 200_000),
    "claude-sonnet-4-5": (64_000, 200_000),
    "claude-sonnet-4-6": (128_000, 1_000_000),
    "claude-sonnet-5": (128_000, 1_000_000),
    "claude-haiku-4-5": (64_000, 200_000),
    "claude-fable-5": (128_000, 1_000_000),
    "claude-fable-5-1": (128_000, 1_000_000),
    "gemini-1.5-flash": (8_192, 1_048_576),
    "gemini-1.5-pro": (8_192, 2_097_152),
    "gemini-2.0-flash": (8_192, 1_048_576),
    "gemini-2.5-flash": (65_536, 1_048_576),
    "gemini-2.5-flash-image": (32_768, 65_536),
    "gemini-2.5-pro": (65_536, 1_048_576),
    "gemini-3-flash": (65_536, 1_048_576),
    "gemini-3-pro": (65_536, 1_048_576),
    "gemini-3-pro-image": (32_768, 65_536),
}
_LONGEST_FIRST = sorted(_LIMITS, key=len, reverse=True)
# "-5" or "-10" after a prefix is another version; "-20250514", "-0613" and "-001" are dates and builds.
_VERSION_ENDS = re.compile(r"(?![.\w])(?!-\d{1,2}(?!\d))")

_HIDES_REASONING = re.compile(
    r"o[1-9](?![a-z0-9])|gpt-(?:[5-9]|[1-9]\d)(?![\d])(?!(?:\.\d+)?-chat)|codex-|computer-use"
    r"|claude-(?:[a-z]+-[5-9](?!\d)|fable|mythos)"
    r"|gemini-(?:2\.5|[3-9])(?!.*image)|grok-(?:3-mini|4|code)"
)


def _family_name(model: str) -> str:
    """The bare name; Claude's without a cloud's prefix (``us.anthropic.``) and with dashes only."""
    name = bare_model_name(model)
    start = name.find("claude")
    return name[start:].replace(".", "-") if start >= 0 else name


@lru_cache(maxsize=1024)
def _limits(model: str) -> tuple[int, int] | None:
    name = _family_name(model)
    for prefix in _LONGEST_FIRST:
        if name.startswith(prefix) and _VERSION_ENDS.match(name, len(prefix)):
            return _LIMITS[prefix]
    return None


def max_output_tokens(model: str) -> int | None:
    """Most tokens one answer of `model` can have, reasoning included; None when not known.

    Example:
        >>> max_output_tokens("us.anthropic.claude-sonnet-4-5-20250929-v1:0"), max_output_tokens("gpt-5.9")
        (64000, None)
    """
    limits = _limits(model)
    return limits[0] if limits else None


def context_window(model: str) -> int | None:
    """Most tokens of prompt and answer together; None when not known.

    Example:
        >>> context_window("gemini-2.5-flash"), context_window("claude-opus-4-8")
        (1048576, 1000000)
    """
    limits = _limits(model)
    return limits[1] if limits else None


@lru_cache(maxsize=1024)
def hides_reasoning(model: str) -> bool:
    """True when `model` by default bills for reasoning that its answer does not show.

    A cut stream of such a model has cost more than what arrived. Models that think only when asked to
    (Claude up to 4.8) are not counted, nor are unknown ones.

    Example:
        >>> hides_reasoning("openai/o3-mini"), hides_reasoning("gpt-5-mini"), hides_reasoning("gpt-4o")
        (True, True, False)
    """
    return bool(_HIDES_REASONING.match(_family_name(model)))


__all__ = ["context_window", "hides_reasoning", "max_output_tokens"]
