"""Limits by family; what is not published is None."""

from __future__ import annotations

import pytest

from brix_core.model_limits import _LIMITS, context_window, hides_reasoning, max_output_tokens


@pytest.mark.parametrize(
    ("model", "output", "window"),
    [
        ("gpt-4o", 16_384, 128_000),
        ("gpt-4o-2024-05-13", 4_096, 128_000),
        ("openai/gpt-4o-mini-2024-07-18", 16_384, 128_000),
        ("ft:gpt-4o-mini-2024-07-18:org::id", 16_384, 128_000),
        ("gpt-4", 8_192, 8_192),
        ("gpt-4-0613", 8_192, 8_192),
        ("gpt-4-turbo-2024-04-09", 4_096, 128_000),
        ("gpt-4.1-nano", 32_768, 1_047_576),
        ("o1-mini", 65_536, 128_000),
        ("o3-mini-2025-01-31", 100_000, 200_000),
        ("gpt-5-mini", 128_000, 400_000),
        ("gpt-5-chat-latest", 16_384, 128_000),
        ("gpt-5.2-2025-12-11", 128_000, 400_000),
        ("gpt-6-astra", 128_000, 1_050_000),
        ("claude-3-5-sonnet-20241022", 8_192, 200_000),
        ("claude-3-7-sonnet-latest", 64_000, 200_000),
        ("claude-sonnet-4-20250514", 64_000, 200_000),
        ("claude-opus-4-1-20250805", 32_000, 200_000),
        ("anthropic/claude-opus-4.8", 128_000, 1_000_000),
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", 64_000, 200_000),
        ("claude-opus-5-5", 128_000, 1_000_000),
        ("models/gemini-2.5-pro", 65_536, 1_048_576),
        ("gemini-2.0-flash-001", 8_192, 1_048_576),
        ("gemini-3-pro-preview", 65_536, 1_048_576),
    ],
)
def test_published_limits(model: str, output: int, window: int) -> None:
    assert (max_output_tokens(model), context_window(model)) == (output, window)


@pytest.mark.parametrize(
    "model",
    [
        "my-model",
        "demo-model",
        "",
        "gpt-5.9",
        "gpt-50",
        "claude-opus-4-9",
        "gemini-4-pro",
        "llama3",
        "o9",
        "o1x",
    ],
)
def test_unknown_models_have_no_limit(model: str) -> None:
    assert (max_output_tokens(model), context_window(model)) == (None, None)


def test_output_fits_the_window() -> None:
    assert all(0 < output <= window for output, window in _LIMITS.values())


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        ("o1", True),
        ("azure/o4-mini", True),
        ("gpt-5.4-nano", True),
        ("gpt-5-chat-latest", False),
        ("gpt-5.2-chat-latest", False),
        ("gpt-6-astra", True),
        ("gemini-2.5-flash", True),
        ("gemini-2.0-flash", False),
        ("claude-opus-5", True),
        ("claude-sonnet-4-5", False),
        ("grok-4", True),
        ("gpt-4o", False),
        ("gpt-4.1", False),
        ("my-model", False),
        ("olmo", False),
    ],
)
def test_hidden_reasoning(model: str, hidden: bool) -> None:
    assert hides_reasoning(model) is hidden
