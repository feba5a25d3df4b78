"""The only token counter of the toolkit.

`tokenizer_for` gives the tokenizer of a model, `Tokenizer.count` the tokens of a text, `count_messages`
those of a prompt in OpenAI's message format. Nothing here touches the network: OpenAI's ranks are read
from a cache directory (the user's own, or the copy inside llama-index-core), and without them a bound
is counted instead (`brix_core.token_estimate`), with one `TokenEstimateWarning` a process.

OpenAI's models are counted exactly. No other family has a public tokenizer that we carry: their texts
are counted with ``o200k_base`` times a headroom factor (`HEADROOM`, rounded up), plus `WIDE_SURCHARGE`
for every character outside Latin scripts and `DIGIT_SURCHARGE` where digits are split. A budget reserves
with these figures and settles with what the provider reports, so too high a figure costs only head-room,
too low a figure could overspend.

Example:
    >>> tokenizer = tokenizer_for("openai/gpt-4o-mini")
    >>> tokenizer.count("hello world"), tokenizer.exact, tokenizer.encoding
    (2, True, 'o200k_base')
    >>> claude = tokenizer_for("claude-opus-4-8")
    >>> claude.count("hello world"), claude.exact, claude.headroom
    (4, False, 2.0)
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from threading import Lock, RLock
from typing import NamedTuple

from brix_core.token_estimate import estimate_tokens
from brix_core.token_messages import (
    REPLY_PRIMING,
    count_message,
    count_messages,
    count_tools,
)
from brix_core.token_ranks import EncodingName, load_encoding


class TokenEstimateWarning(UserWarning):
    """No ranks could be found: token counts are conservative estimates, up to 2 or 3 times too high."""


class Family(NamedTuple):
    """Headroom of one model family.

    Attributes:
        pattern: Regular expression searched in the lower-case model name.
        percent: Percent of the ``o200k_base`` count to assume.
        reason: Where the figure comes from.
        splits_digits: True when every digit is a token; ``o200k_base`` groups three.
    """

    pattern: str
    percent: int
    reason: str
    splits_digits: bool = False


HEADROOM: tuple[Family, ...] = (
    Family(
        r"claude-(?:[a-z]+-(?:4[-.](?:[7-9]|\d\d)(?!\d)|[5-9](?!\d))|fable|mythos|[5-9](?!\d))",
        200,
        "newer tokenizer (Opus 4.7 and later, Sonnet 5, Fable, Mythos): 'approximately 30 percent more "
        "tokens than on earlier models' (platform.claude.com, token counting; 1.0 to 1.35 x at launch), "
        "up to 1.46 x measured (sol.ava.dev, 2026-04-17), on top of the 1.16 to 1.30 x of the older one",
    ),
    Family(
        r"claude",
        140,
        "older tokenizer: 16 % (English), 21 % (mathematics), 30 % (Python) more than GPT-4o "
        "(VentureBeat, 2025-05-01); rounded up",
    ),
    Family(
        r"gemini|gemma",
        125,
        "256k vocabulary; published comparisons find counts 5 to 15 % apart on prose",
        True,
    ),
    Family(
        r"llama-?2|codellama|mistral-7b|mixtral|vicuna",
        160,
        "32k vocabularies of 2023: about 1.2 x on English, more on code; an assumption",
        True,
    ),
    Family(
        r"mistral|ministral|magistral|codestral|devstral|pixtral|voxtral",
        135,
        "131k (Tekken) or 32k vocabularies, by model; an assumption",
        True,
    ),
    Family(r"llama", 120, "128k vocabulary built on cl100k_base's 100k, an assumption"),
    Family(r"deepseek", 125, "129k vocabulary; an assumption"),
    Family(r"qwen|qwq|qvq", 135, "152k vocabulary derived from cl100k_base; an assumption", True),
    Family(r"grok", 130, "131k vocabulary, not published; an assumption", True),
    Family(
        r"^(?:text-|code-)?(?:davinci|curie|babbage|ada|cushman)\b|^gpt-?2\b|^gpt-(?:j|neo)",
        200,
        "r50k_base and p50k_base, not carried: 50k vocabulary; an assumption",
    ),
)
"""Families, first match wins."""

UNKNOWN_HEADROOM = Family(
    r"",
    150,
    "a model we do not know: above the open families of today, below the newest Claude",
    True,
)
WIDE_SURCHARGE = 50
"""Percent of a token added for each character beyond U+024F when the tokenizer is not OpenAI's.

``o200k_base`` is unusually thrifty there (0.56 tokens a Chinese character on our sample); vocabularies of
32k to 128k spend 1 and more. An assumption, not a published figure.
"""

DIGIT_SURCHARGE = 60
"""Percent of a token added for each digit where every digit is a token: 1 is at most 1.25 / 3 + 0.6."""

_WIDE = re.compile(r"[^\x00-\u024f]")
_O200K = re.compile(
    r"(?:chatgpt|codex|computer-use|gpt-oss|gpt-(?:realtime|audio|image|live)|o[1-9]\d*(?![a-z0-9])|omni-)"
    r"|gpt-?(?:4o|4[.-]?[15](?!\d)|[5-9]|[1-9]\d(?!\d))"
)
_CL100K = re.compile(r"gpt-?(?:4|35|3\.5)(?![\d.o])|text-embedding-|(?:davinci|babbage)-002$")

_MAX_CACHED_CHARS = 2_000_000
_MAX_CACHED_ENTRIES = 2_048


class _Counts(dict[str, int]):
    """Two-generation cache: ``self`` is the young one. ``__missing__`` keeps ``map`` at C speed."""

    __slots__ = ("_chars", "_count", "_lock", "_old")

    def __init__(self, count: Callable[[str], int]) -> None:
        super().__init__()
        self._count = count
        self._old: dict[str, int] = {}
        self._chars = 0
        self._lock = RLock()

    def __missing__(self, text: str) -> int:
        tokens = self._old.get(text)
        if tokens is None:
            tokens = self._count(text)  # outside the lock: tiktoken releases the GIL
        # A str subclass would keep its own attributes alive, so only the plain text is kept.
        size = len(text)
        if size <= _MAX_CACHED_CHARS:
            with self._lock:
                if self._chars + size > _MAX_CACHED_CHARS or len(self) >= _MAX_CACHED_ENTRIES:
                    self._old = dict(self)
                    self.clear()
                    self._chars = 0
                self._chars += size
                self[text if type(text) is str else str(text)] = tokens
        return tokens


class Tokenizer:
    """Counts tokens with one encoding and one headroom factor. Get it from `tokenizer_for`.

    Thread-safe. Counts are cached by text, across models that share a tokenizer; the cache keeps at
    most two generations of 2 million characters, so memory stays flat however many texts are seen.

    Args:
        encoding: The tiktoken encoding to count with.
        percent: Percent of that count to return, rounded up; 100 with `native`.
        native: True when the model itself uses that encoding.
        splits_digits: Add `DIGIT_SURCHARGE`.

    Example:
        >>> tokenizer_for("gpt-4o").count_many(["hello", "hello world"])
        3
    """

    __slots__ = ("_cached", "_counts", "_encode", "_name", "_native", "_percent", "_splits_digits")

    def __init__(
        self, encoding: EncodingName, percent: int = 100, *, native: bool = True, splits_digits: bool = False
    ) -> None:
        self._name: EncodingName = encoding
        self._percent = percent
        self._native = native
        self._encode: Callable[[str], int] | None = None
        self._splits_digits = splits_digits
        self._counts = _Counts(self._measure)
        self._cached = self._counts.__getitem__

    def __repr__(self) -> str:
        return f"Tokenizer({self._name!r}, {self._percent}, native={self._native})"

    def count(self, text: str) -> int:
        """Tokens of `text`; special tokens such as ``<|endoftext|>`` count as plain text.

        Example:
            >>> tokenizer_for("gpt-4o").count("<|endoftext|>") > 1
            True
        """
        return self._cached(text)

    def count_many(self, texts: Iterable[str]) -> int:
        """Sum of `count` over `texts`.

        Example:
            >>> tokenizer_for("gpt-4o").count_many([])
            0
        """
        return sum(map(self._cached, texts))

    @property
    def exact(self) -> bool:
        """True when the figures are the provider's own: an OpenAI encoding whose ranks were found."""
        return self._native and self.encoding is not None

    @property
    def encoding(self) -> str | None:
        """The tiktoken encoding counted with; None when its ranks are missing and counts are estimates."""
        self._ranks()
        return None if self._encode is estimate_tokens else self._name

    @property
    def headroom(self) -> float:
        """Factor applied to the count of that encoding.

        Example:
            >>> tokenizer_for("my-model").headroom, tokenizer_for("gpt-4o").headroom
            (1.5, 1.0)
        """
        return self._percent / 100

    def _ranks(self) -> Callable[[str], int]:
        encode = self._encode
        if encode is None:
            encode = self._encode = load_encoding(self._name) or estimate_tokens
            if encode is estimate_tokens:
                _warn_once()
        return encode

    def _measure(self, text: str) -> int:
        tokens = self._ranks()(text)
        if self._native or not tokens:
            return tokens
        wide = 0 if text.isascii() else len(_WIDE.findall(text))
        digits = sum(map(text.count, "0123456789")) if self._splits_digits else 0
        return -(-(tokens * self._percent + wide * WIDE_SURCHARGE + digits * DIGIT_SURCHARGE) // 100)


_warned = False
_warn_lock = Lock()


def _warn_once() -> None:
    global _warned
    with _warn_lock:
        if _warned:
            return
        _warned = True
    warnings.warn(
        "No tiktoken ranks found: token counts are conservative estimates, often 2 to 3 times too high. "
        "Install tiktoken and llama-index-core, or set TIKTOKEN_CACHE_DIR to a directory holding them.",
        TokenEstimateWarning,
        stacklevel=2,
    )


def bare_model_name(model: str) -> str:
    """`model` in lower case without provider prefixes and fine-tune suffixes.

    Example:
        >>> bare_model_name("azure/gpt-4o"), bare_model_name("ft:gpt-4o-mini:acme::x1")
        ('gpt-4o', 'gpt-4o-mini')
        >>> bare_model_name("openrouter/anthropic/claude-sonnet-4"), bare_model_name("openai.gpt-oss-20b")
        ('claude-sonnet-4', 'gpt-oss-20b')
    """
    name = model.strip().lower().rpartition("/")[2]
    if name.startswith("ft:"):
        name = name[3:].partition(":")[0]
    return name.removeprefix("openai.")


_TOKENIZERS: dict[tuple[EncodingName, int, bool, bool], Tokenizer] = {}
_tokenizers_lock = RLock()


@lru_cache(maxsize=1024)
def tokenizer_for(model: str) -> Tokenizer:
    """The tokenizer of `model`, cached; models that count alike share one.

    Args:
        model: A model name, with or without provider prefix (``azure/gpt-4o``), fine-tune suffix
            (``ft:gpt-4o-mini:org::id``) or date. Names that look like OpenAI's but are not known yet
            (``gpt-7``, ``o9``) count with ``o200k_base``; unknown ones with headroom.

    Example:
        >>> tokenizer_for("gpt-4o-2024-08-06") is tokenizer_for("azure/gpt-5.2")
        True
        >>> tokenizer_for("gpt-4-turbo").encoding
        'cl100k_base'
    """
    name = bare_model_name(model)
    key: tuple[EncodingName, int, bool, bool]
    if _CL100K.match(name):
        key = ("cl100k_base", 100, True, False)
    elif _O200K.match(name):
        key = ("o200k_base", 100, True, False)
    else:
        family = next((row for row in HEADROOM if re.search(row.pattern, name)), UNKNOWN_HEADROOM)
        key = ("o200k_base", family.percent, False, family.splits_digits)
    with _tokenizers_lock:
        if key not in _TOKENIZERS:
            _TOKENIZERS[key] = Tokenizer(key[0], key[1], native=key[2], splits_digits=key[3])
        return _TOKENIZERS[key]


__all__ = [
    "DIGIT_SURCHARGE",
    "HEADROOM",
    "REPLY_PRIMING",
    "UNKNOWN_HEADROOM",
    "WIDE_SURCHARGE",
    "Family",
    "TokenEstimateWarning",
    "Tokenizer",
    "bare_model_name",
    "count_message",
    "count_messages",
    "count_tools",
    "tokenizer_for",
]
