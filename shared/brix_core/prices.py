"""The only price lookup of the toolkit: what a call cost, and what it could cost at most.

Money is an integer number of nano-dollars (1 USD = 10**9), rounded up once per call, so that nothing
drifts. Prices come from the user's overrides first, then from the table bundled with `genai-prices`,
whose network updater is never started. A model found in neither has no price: `PriceBook.find` returns
None, and what then happens is the caller's policy, never $0.

How genai-prices 0.2.3 matches names (measured): of 3,700 clauses 85 % are equality, 5 % a prefix
(``claude-opus-4-8`` also prices ``claude-opus-4-8-anything``), 7 % "contains". Unknown names
(``my-model``, ``demo-model``, ``gpt-4o-but-not-really``, ``gpt-99``, ``my-gpt-4o``) match nothing, with
any of its 47 providers. Fine-tuned OpenAI models have entries of their own at about twice the base price,
matched by the dated identifier OpenAI issues (``ft:gpt-4o-mini-2024-07-18:org::id``). One without an
entry has no price here, because the base model's would be half the bill.

Known gaps: audio and image tokens are priced as text, Anthropic's one-hour cache writes as five-minute
ones, web searches and priority tiers not at all. `Usage` does not tell them apart; use an override.

Example:
    >>> book = PriceBook({"my-model": (1e-6, 2e-6)})
    >>> price = book.find("my-model")
    >>> price.source, price.worst_case(1_000, 500), usd(price.worst_case(1_000, 500))
    ('override', 2000000, 0.002)
    >>> book.find("nobody-knows-this-model") is None
    True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from threading import Lock
from typing import Any, Literal

from brix_core.errors import BrixConfigurationError
from brix_core.price_rates import FINE, FINE_PER_USD, Rates, Tiers, compile_rates
from brix_core.usage import Usage

NANO = 10**9
"""Nano-dollars in a dollar."""

_UNLIMITED = 2**63 - 1

PriceSource = Literal["override", "genai-prices"]

_PROVIDERS = {
    "amazon_bedrock": "aws", "anthropic": "anthropic", "anthropic_bedrock": "aws", "aws": "aws",
    "azure": "azure", "azure_ai": "azure", "azure_openai": "azure", "bedrock": "aws",
    "bedrock_converse": "aws", "cerebras": "cerebras", "cohere": "cohere", "deepseek": "deepseek",
    "fireworks": "fireworks", "fireworks_ai": "fireworks", "gemini": "google", "google": "google",
    "google_anthropic_vertex": "google", "google_genai": "google", "google_vertexai": "google",
    "groq": "groq", "mistral": "mistral", "mistralai": "mistral", "openai": "openai",
    "openrouter": "openrouter", "perplexity": "perplexity", "together": "together",
    "together_ai": "together", "vertex_ai": "google", "x-ai": "x-ai", "xai": "x-ai",
}  # fmt: skip
"""Names of LangChain (``ls_provider``), LiteLLM and LlamaIndex to those of genai-prices."""

_LOCAL = frozenset({"ollama", "huggingface", "llamacpp", "llama_cpp", "lmstudio", "lm_studio", "vllm"})
"""Self-hosted: what a vendor charges for a model of the same name says nothing about them."""


def usd(nano: int) -> float:
    """Dollars, for people and error messages.

    Example:
        >>> usd(50_000_000)
        0.05
    """
    return nano / NANO


def to_nano(usd: float | int | Decimal | str) -> int:
    """Nano-dollars of an amount in dollars, exact for what the decimal text says, rounded up.

    Raises:
        BrixConfigurationError: When `usd` is no finite amount.

    Example:
        >>> to_nano(0.01) * 5 == to_nano(0.05), to_nano("1.5"), to_nano(0.1) + to_nano(0.2) == to_nano(0.3)
        (True, 1500000000, True)
    """
    return math.ceil(_amount(usd, "amount") * NANO)


def _amount(value: object, what: str) -> Fraction:
    if not isinstance(value, (int, float, Decimal, str)) or isinstance(value, bool):
        raise BrixConfigurationError(f"{what} must be a number of USD, got {value!r}")
    try:
        return Fraction(Decimal(str(value)))
    except (ValueError, ArithmeticError) as error:
        raise BrixConfigurationError(f"{what} must be a finite number of USD, got {value!r}") from error


class Price:
    """What one model costs. Get it from `PriceBook.find`.

    Args:
        source: Where the price comes from.
        model: The entry that matched.
        rates: Every price list that can apply to a call started now.
        current: The list that applies at this moment.

    Attributes:
        source: ``"override"`` or ``"genai-prices"``.
        model: The name of the entry that matched, for logs.

    Example:
        >>> price = PriceBook().find("gpt-4o-mini")
        >>> price.cost(Usage(input_tokens=1_000, output_tokens=100, cache_read_tokens=800))
        150000
        >>> price.worst_case(1_000, 100), price.free
        (210000, False)
    """

    __slots__ = ("_current", "_rates", "model", "source")

    def __init__(
        self,
        source: PriceSource,
        model: str,
        rates: Callable[[], Sequence[Rates]],
        current: Callable[[], Rates],
    ) -> None:
        self.source: PriceSource = source
        self.model = model
        self._rates = rates
        self._current = current

    def __repr__(self) -> str:
        return f"Price({self.source!r}, {self.model!r})"

    @property
    def free(self) -> bool:
        """True when nothing the call can do costs money."""
        return all(rates.worst(2**40) == (0, 0) for rates in self._rates())

    def cost(self, usage: Usage) -> int:
        """Nano-dollars of a call that consumed `usage`, rounded up.

        Cached tokens have their own price, reasoning counts as output (which includes it).

        Example:
            >>> PriceBook({"m": (1e-9, 1e-9)}).find("m").cost(Usage(input_tokens=1, output_tokens=0))
            1
        """
        return -(-self._current().units(usage) // FINE)

    def worst_case(self, input_tokens: int, output_tokens: int) -> int:
        """The most, in nano-dollars, that a call with these totals can cost, whatever the cache does.

        Never below `cost` of a usage with at most these totals.

        Example:
            >>> PriceBook().find("claude-haiku-4-5").worst_case(1_000_000, 0) == to_nano("1.25")
            True
        """
        tokens, output, most = max(input_tokens, 0), max(output_tokens, 0), 0
        for rates in self._rates():
            fixed, rate = rates.worst(tokens)
            most = max(most, fixed + output * rate)
        return -(-most // FINE)

    def affordable_output(self, input_tokens: int, money_nano: int) -> int:
        """The largest output with ``worst_case(input_tokens, output) <= money_nano``; 0 if there is none.

        ``2**63 - 1`` when output costs nothing.

        Example:
            >>> price = PriceBook({"m": (1e-6, 2e-6)}).find("m")
            >>> price.affordable_output(1_000, to_nano("0.002")), price.affordable_output(1_000, 1)
            (500, 0)
        """
        money, most = money_nano * FINE, _UNLIMITED
        for rates in self._rates():
            fixed, rate = rates.worst(max(input_tokens, 0))
            if fixed > money:
                return 0
            if rate:
                most = min(most, (money - fixed) // rate)
        return most


class PriceBook:
    """Finds the price of a model: the user's overrides, then genai-prices' bundled table.

    Args:
        overrides: By model name (with or without its provider prefix), either a pair of USD per token,
            input and output, or a mapping with ``input``, ``output`` and optionally ``cache_read`` and
            ``cache_write``. Zero means free. Cached tokens without a price cost as much as input.

    Raises:
        BrixConfigurationError: When an override is no finite price of at least zero.

    Example:
        >>> book = PriceBook({"local-llama": (0, 0), "gpt-4o": {"input": 2e-6, "output": 8e-6}})
        >>> book.find("local-llama").free, book.find("azure/gpt-4o").source, book.find("gpt-4o-mini").source
        (True, 'override', 'genai-prices')
    """

    _MAX_CACHED = 4096

    def __init__(self, overrides: Mapping[str, tuple[float, float] | Mapping[str, Any]] | None = None) -> None:
        if overrides is not None and not isinstance(overrides, Mapping):
            raise BrixConfigurationError(f"prices must map model names to USD per token, got {overrides!r}")
        self._overrides = {_key(name): _override(name, value) for name, value in (overrides or {}).items()}
        self._found: dict[tuple[str, str | None], Price | None] = {}
        self._lock = Lock()

    def find(self, model: str, provider: str | None = None) -> Price | None:
        """The price of `model`, or None when nobody knows it.

        Args:
            model: The model's name, with or without provider prefix.
            provider: The provider as LangChain (``ls_provider``), LlamaIndex or genai-prices call it.
                When it has no such model, the providers are tried by the model's name alone, except
                for self-hosted ones (``ollama``), whose models have no public price.

        Example:
            >>> PriceBook().find("llama3.1:8b", "ollama") is None
            True
        """
        key = (model, provider)
        try:
            return self._found[key]
        except KeyError:
            pass
        price = self._override_of(model) or _table_price(model, provider)
        with self._lock:
            if len(self._found) >= self._MAX_CACHED:
                self._found.clear()
            self._found[key] = price
        return price

    def _override_of(self, model: str) -> Price | None:
        name = model.strip().lower()
        while True:
            if price := self._overrides.get(name):
                return price
            _, slash, name = name.partition("/")
            if not slash:
                return None


def _key(name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise BrixConfigurationError(f"a price needs a model name, got {name!r}")
    return name.strip().lower()


def _override(name: str, value: object) -> Price:
    fields = ("input", "output", "cache_read", "cache_write")
    if isinstance(value, Mapping):
        given = dict(value)
        if not {"input", "output"} <= given.keys() <= set(fields):
            raise BrixConfigurationError(
                f"price of {name!r} needs input and output, and may have cache_read and cache_write; got {value!r}"
            )
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        given = {"input": value[0], "output": value[1]}
    else:
        raise BrixConfigurationError(f"price of {name!r} must be (input, output) in USD per token, got {value!r}")
    tiers: dict[str, Tiers] = {}
    for field, amount in given.items():
        what = f"{field} price of {name!r}"
        if isinstance(amount, str):
            raise BrixConfigurationError(f"{what} must be a number of USD per token, got {amount!r}")
        per_token = _amount(amount, what)
        if per_token < 0:
            raise BrixConfigurationError(f"{what} must be at least 0 USD per token, got {amount!r}")
        tiers[field] = ((-1, math.ceil(per_token * FINE_PER_USD)),)
    rates = Rates(
        input=tiers["input"],
        output=tiers["output"],
        cache_read=tiers.get("cache_read", tiers["input"]),
        cache_write=tiers.get("cache_write", tiers["input"]),
        reasoning=tiers["output"],
    )
    return Price("override", name, lambda: (rates,), lambda: rates)


def _table_price(model: str, provider: str | None) -> Price | None:
    from genai_prices.data_snapshot import get_snapshot  # 0.25 s: only once a table price is asked for

    hint = (provider or "").strip().lower()
    if hint in _LOCAL:
        return None
    snapshot = get_snapshot()
    known = {entry.id for entry in snapshot.providers}
    for candidate, name in _candidates(model.strip(), _PROVIDERS.get(hint, hint if hint in known else None)):
        try:
            _, info = snapshot.find_provider_model(name, None, candidate, None)
        except LookupError:
            continue
        return _from_table(info)
    return None


def _candidates(model: str, provider: str | None) -> list[tuple[str | None, str]]:
    """Where to look, in order: the provider given, the one a prefix names, any."""
    if model.lower().partition("/")[0] in _LOCAL:
        return []
    names: list[tuple[str | None, str]] = [(provider, model)]
    head, slash, rest = model.partition("/")
    while slash:
        prefix = _PROVIDERS.get(head.lower())
        if prefix is None and head.lower() not in ("models", "publishers"):
            break
        names += [(prefix or provider, rest), (provider, rest)]
        if head.lower() == "publishers":
            rest = rest.rpartition("/")[2]
            names.append((provider, rest))
        head, slash, rest = rest.partition("/")
    last = names[-1][1]
    if last.lower().startswith("ft:"):
        names.append(("openai", last))
    return list(dict.fromkeys([*names, (None, model), (None, last)]))


def _from_table(info: Any) -> Price | None:
    """A genai-prices entry, compiled to integers; None when tokens are not what it charges for."""
    if not isinstance(info.prices, list):
        flat = compile_rates(info.prices)
        return None if flat is None else Price("genai-prices", info.id, lambda: (flat,), lambda: flat)
    compiled = {id(entry.prices): compile_rates(entry.prices) for entry in info.prices}
    usable = {key: rates for key, rates in compiled.items() if rates is not None}
    if len(usable) < len(compiled):
        return None

    def current() -> Rates:
        return usable[id(info.get_prices(datetime.now(tz=UTC)))]

    quarter, lists = -1, tuple(usable.values())

    def possible() -> Sequence[Rates]:
        """The lists of the coming day: off-peak hours may end, or a new price start, during the call."""
        nonlocal quarter, lists
        now = int(datetime.now(tz=UTC).timestamp()) // 900
        if now != quarter:
            moments = (datetime.fromtimestamp((now + step) * 900, tz=UTC) for step in range(98))
            lists = tuple(usable[key] for key in {id(info.get_prices(moment)) for moment in moments})
            quarter = now
        return lists

    return Price("genai-prices", info.id, possible, current)


__all__ = ["NANO", "Price", "PriceBook", "PriceSource", "to_nano", "usd"]
