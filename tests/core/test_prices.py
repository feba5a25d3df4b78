"""Money is exact, prices are the provider's, and the worst case is one."""

from __future__ import annotations

import math
import threading
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import genai_prices
import pytest
from genai_prices import data_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core import prices
from brix_core.errors import BrixConfigurationError
from brix_core.prices import NANO, Price, PriceBook, to_nano, usd
from brix_core.usage import Usage

BOOK = PriceBook(
    {
        "override": (3e-7, 1.1e-6),
        "cached": {"input": 1e-6, "output": 0, "cache_read": 1e-7, "cache_write": 2e-6},
    }
)
# Flat, cached, tiered (2.5 Pro, Sonnet 4.5), dated (OpenRouter), by the hour (DeepSeek), with a fee per
# request or a price for reasoning (Perplexity).
MODELS = [
    ("gpt-4o-mini", None),
    ("claude-haiku-4-5", None),
    ("claude-sonnet-4-5", "anthropic"),
    ("gemini-2.5-pro", "google_genai"),
    ("gpt-5.5", "openai"),
    ("openai/gpt-4o", "openrouter"),
    ("deepseek-chat", None),
    ("sonar-pro", "perplexity"),
    ("sonar-deep-research", "perplexity"),
    ("override", None),
    ("cached", None),
]
INPUTS = st.one_of(st.integers(0, 5_000), st.integers(100_000, 300_000), st.integers(0, 2_000_000))


def _find(model: str, provider: str | None = None) -> Price:
    price = BOOK.find(model, provider)
    assert price is not None
    return price


@st.composite
def _usages(draw: st.DrawFn) -> Usage:
    total, output = draw(INPUTS), draw(st.integers(0, 200_000))
    read = draw(st.integers(0, total))
    return Usage(
        input_tokens=total,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=draw(st.integers(0, total - read)),
        reasoning_tokens=draw(st.integers(0, output)),
    )


def test_nano_dollars_are_exact() -> None:
    assert to_nano(0.01) * 5 == to_nano("0.05") == to_nano(Decimal("0.05")) == 50_000_000
    assert sum(to_nano(0.1) for _ in range(10)) == to_nano(1) == NANO
    assert usd(to_nano(19.99)) == 19.99
    assert to_nano("0.0000000001") == 1, "rounded up"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "abc", "1/3", None, True, [1]])
def test_amounts_that_are_no_money_are_refused(value: Any) -> None:
    with pytest.raises(BrixConfigurationError):
        to_nano(value)


@pytest.mark.parametrize(("model", "provider"), MODELS)
@settings(max_examples=60, deadline=None)
@given(usage=_usages(), fewer=st.integers(0, 100_000))
def test_worst_case_is_never_below_the_cost(model: str, provider: str | None, usage: Usage, fewer: int) -> None:
    price = _find(model, provider)

    assert price.worst_case(usage.input_tokens, usage.output_tokens) >= price.cost(usage)
    assert price.worst_case(usage.input_tokens + fewer, usage.output_tokens + fewer) >= price.cost(usage)


@pytest.mark.parametrize(("model", "provider"), MODELS)
@settings(max_examples=60, deadline=None)
@given(input_tokens=INPUTS, money=st.integers(0, 20 * NANO))
def test_affordable_output_is_exact(model: str, provider: str | None, input_tokens: int, money: int) -> None:
    price = _find(model, provider)
    output = price.affordable_output(input_tokens, money)

    if price.worst_case(input_tokens, 0) > money:
        assert output == 0
    else:
        assert price.worst_case(input_tokens, output) <= money
        assert output == 2**63 - 1 or price.worst_case(input_tokens, output + 1) > money


@pytest.mark.parametrize(("model", "provider"), [row for row in MODELS if row[0] not in ("override", "cached")])
@settings(max_examples=25, deadline=None)
@given(usage=_usages())
def test_cost_is_what_genai_prices_calculates(model: str, provider: str | None, usage: Usage) -> None:
    ours = {"google_genai": "google"}.get(provider or "", provider)
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_reasoning_tokens=usage.reasoning_tokens,
        ),
        model,
        provider_id=ours,
    )

    assert _find(model, provider).cost(usage) == math.ceil(Fraction(theirs.total_price) * NANO)


def test_every_priced_model_of_the_table_is_compiled_exactly() -> None:
    snapshot, compared = data_snapshot.get_snapshot(), 0
    counts = {
        "input_tokens": 250_001,
        "output_tokens": 1_234,
        "cache_read_tokens": 77,
        "cache_write_tokens": 99,
    }
    theirs = genai_prices.Usage(**counts, output_reasoning_tokens=17)
    for provider in snapshot.providers:
        for info in provider.models:
            price = prices._from_table(info)
            if price is not None:
                expected = info.calc_price(theirs, provider).total_price
                cost = price.cost(Usage(**counts, reasoning_tokens=17))
                assert cost == math.ceil(Fraction(expected) * NANO), (provider.id, info.id)
                assert price.worst_case(250_001, 1_234) >= cost
                compared += 1
    assert compared > 2_000


def test_cached_and_reasoning_tokens_have_the_providers_prices() -> None:
    mini, claude = _find("gpt-4o-mini"), _find("claude-haiku-4-5")

    assert mini.cost(Usage(input_tokens=1_000_000, output_tokens=0)) == to_nano("0.15")
    assert mini.cost(Usage(input_tokens=1_000_000, output_tokens=0, cache_read_tokens=1_000_000)) == to_nano("0.075")
    assert claude.cost(Usage(input_tokens=1_000_000, output_tokens=0, cache_write_tokens=1_000_000)) == to_nano("1.25")
    assert mini.cost(Usage(input_tokens=0, output_tokens=10, reasoning_tokens=10)) == mini.cost(
        Usage(input_tokens=0, output_tokens=10)
    )


def test_impossible_usage_reports_are_cut_to_their_totals() -> None:
    price = _find("claude-haiku-4-5")
    odd = Usage(input_tokens=10, output_tokens=5, cache_read_tokens=50, cache_write_tokens=50, reasoning_tokens=99)

    assert 0 < price.cost(odd) <= price.worst_case(10, 5)
    assert price.cost(Usage(input_tokens=-5, output_tokens=-1)) == 0


def test_prices_by_the_hour_reserve_for_the_dearer_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        hour_now = 20

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2026, 1, 15, cls.hour_now, 10, tzinfo=UTC)

    monkeypatch.setattr(prices, "datetime", Clock)
    price = PriceBook().find("deepseek-reasoner")
    assert price is not None
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
    cheap = price.cost(usage)
    assert price.worst_case(1_000_000, 1_000_000) > cheap, "the call may end after the cheap hours"
    Clock.hour_now = 12
    assert price.cost(usage) >= cheap
    assert price.worst_case(1_000_000, 1_000_000) >= price.cost(usage)


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("azure/gpt-4o", None),
        ("gpt-4o", "azure"),
        ("vertex_ai/gemini-2.5-pro", None),
        ("models/gemini-2.5-pro", "google_genai"),
        ("publishers/google/models/gemini-2.5-pro", "google_vertexai"),
        ("openai/gpt-4o", None),
        ("llama-3.3-70b-versatile", "groq"),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "together"),
        ("accounts/fireworks/models/llama-v3p1-8b-instruct", "fireworks"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "amazon_bedrock"),
        ("bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0", None),
        ("mistral-large-latest", "mistralai"),
        ("grok-4", "xai"),
        ("deepseek-chat", "openai"),
        ("gpt-4o", "some-proxy"),
    ],
)
def test_names_of_frameworks_are_understood(model: str, provider: str | None) -> None:
    assert _find(model, provider).source == "genai-prices"


@pytest.mark.parametrize(
    "model",
    ["my-model", "demo-model", "gpt-4o-but-not-really", "gpt-99", "my-gpt-4o", "claude-foo", "test", "",
     "acme/x", "llama3.1:8b", "gpt-4o-2099-01-01", "ft:gpt-4.1-mini:org::id"],
)  # fmt: skip
@pytest.mark.parametrize("provider", [None, "openai", "anthropic", "openrouter", "litellm", "ollama", "nobody"])
def test_unknown_models_are_not_priced_by_accident(model: str, provider: str | None) -> None:
    assert PriceBook().find(model, provider) is None


def test_self_hosted_models_have_no_vendors_price() -> None:
    assert PriceBook().find("deepseek-chat") is not None
    assert PriceBook().find("deepseek-chat", "ollama") is None
    assert PriceBook().find("ollama/deepseek-chat") is None


def test_fine_tuned_models_have_their_own_price() -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=0)
    assert _find("ft:gpt-4o-mini-2024-07-18:org::id").cost(usage) == 2 * _find("gpt-4o-mini").cost(usage)


def test_overrides_win_and_match_with_or_without_prefix() -> None:
    book = PriceBook({"gpt-4o": (1, 2), "azure/gpt-4o": (3, 4), "Local": (0, 0)})

    for model, expected in (("gpt-4o", 1), ("openai/gpt-4o", 1), ("azure/gpt-4o", 3)):
        price = book.find(model, "openai")
        assert price is not None
        assert (price.source, price.cost(Usage(input_tokens=1, output_tokens=0))) == (
            "override",
            expected * NANO,
        )
    local = book.find("local")
    assert local is not None
    assert local.free
    assert local.worst_case(10**9, 10**9) == 0
    assert local.affordable_output(10, 0) == 2**63 - 1
    assert not _find("gpt-4o-mini").free


@pytest.mark.parametrize(
    "value",
    [(1,), (1, 2, 3), "12", (-1e-6, 1), (float("nan"), 1), (1, float("inf")), ("1", 2), (True, 1), None, 5,
     {}, {"input": 1}, {"input": 1, "output": 2, "cached": 3}, {"input": 1, "output": -2}, (None, 1)],
)  # fmt: skip
def test_bad_overrides_are_refused_by_name(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="bad-model"):
        PriceBook({"bad-model": value})


@pytest.mark.parametrize("overrides", [[("m", (1, 2))], {"": (1, 2)}, {3: (1, 2)}])
def test_overrides_that_name_no_model_are_refused(overrides: Any) -> None:
    with pytest.raises(BrixConfigurationError):
        PriceBook(overrides)


def test_lookups_are_cached_and_bounded() -> None:
    book = PriceBook({"m": (1e-6, 1e-6)})
    assert book.find("gpt-4o") is book.find("gpt-4o")
    for index in range(5_000):
        book.find(f"p{index}/m")
    assert len(book._found) <= 4_096


def test_the_updater_is_never_started() -> None:
    PriceBook().find("gpt-4o")
    assert not [thread for thread in threading.enumerate() if "genai" in thread.name.lower()]
    assert not data_snapshot.get_snapshot().from_auto_update
