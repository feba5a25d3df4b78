"""Things that happened and mean the same: by the vectors of their wording, where both name the same things.

Example:
    >>> from brix_core.embedding import LexicalEmbedder
    >>> alike = Likeness(LexicalEmbedder(), 0.9).among(["I cannot find it.", "i cannot find  it.", "Done."])
    >>> alike("I cannot find it.", "i cannot find  it."), alike("I cannot find it.", "Done.")
    (True, False)
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, Final

from brix_core.call import CallResponse
from brix_core.embedding import Embedder, Vectors, similarities
from brix_core.looping.loops import IDENTIFIER, TOKEN, Happened, Loop, as_loop, find, quoted, shortened
from brix_core.looping.steps import Step, canonical, values

MAX_VECTORS: Final = 512
"""Vectors that are kept: 2 MiB of 1,024 dimensions."""

MAX_WORDING: Final = 4_000
"""Characters of a text that is compared by meaning; longer ones are the same only when equal."""

_NAME: Final = re.compile(r"(?<![.!?:\n\"]\s)(?<![.!?:\n\"])(?<!^)\b[A-Z]\w*")
_PART: Final = re.compile(r"\w+")
_DENIAL: Final = re.compile(
    r"\b(?:not|no|nor|none|never|nothing|nobody|cannot|without|unable|fail\w*)\b|n['\u2019]t\b", re.IGNORECASE
)


class Likeness:
    """Compares texts by meaning.

    Args:
        embedder: Makes their vectors.
        threshold: The cosine from which two texts mean the same.
    """

    def __init__(self, embedder: Embedder, threshold: float) -> None:
        self._embedder = embedder
        self._threshold = threshold
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self.is_ready = False

    def prepare(self) -> None:
        """Try the embedder, which may load a model: better it fails now than when an answer is there.

        Raises:
            BrixError: It cannot be used.
        """
        self._rows(["ready"])
        self.is_ready = True

    def knows(self, texts: Iterable[str]) -> bool:
        """Whether `among` has nothing to embed."""
        return all(_digest(text) in self._kept for text in texts)

    def among(self, texts: Sequence[str]) -> Callable[[str, str], bool]:
        """Whether two of these texts mean the same. Embeds what is new, which may take long."""
        rows = self._rows(texts)
        place = {text: index for index, text in enumerate(texts)}
        cosines: dict[str, Vectors] = {}

        def alike(one: str, other: str) -> bool:
            if one not in cosines:
                cosines[one] = similarities(rows, rows[place[one]])
            return float(cosines[one][place[other]]) >= self._threshold

        return alike

    def _rows(self, texts: Sequence[str]) -> list[Any]:
        keys = [_digest(text) for text in texts]
        with self._lock:
            rows = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}
        if fresh:
            # Copies: a row is a view that would keep its whole matrix.
            rows.update(zip(fresh, map(_copy, self._embedder.embed(list(fresh.values()))), strict=True))
            with self._lock:
                self._kept.update((key, rows[key]) for key in fresh)
                while len(self._kept) > MAX_VECTORS:
                    self._kept.popitem(last=False)
        return [rows[key] for key in keys]


def loop_by_meaning(
    happened: Sequence[Happened], alike: Callable[[str, str], bool], *, threshold: int, max_cycle: int
) -> Loop | None:
    """The loop that the latest step or answer closes, things alike taken for the same.

    Args:
        happened: Oldest first.
        alike: Whether two texts mean the same.
        threshold: See `find`.
        max_cycle: See `find`.
    """
    classes: list[int] = []
    for index, one in enumerate(happened):
        same = (
            classes[before]
            for before, other in enumerate(happened[:index])
            if other.key == one.key or (_may_be_same(other, one) and _all_alike(other, one, alike))
        )
        classes.append(next(same, index))
    circle = find(classes, threshold=threshold, max_cycle=max_cycle)
    return as_loop("semantic", circle, threshold, [one.what for one in happened[-circle.length :]])


def recurs(happened: Sequence[Happened]) -> bool:
    """Whether the latest step or answer may be the same as an earlier one, by meaning or exactly."""
    return any(_may_be_same(other, happened[-1]) for other in happened[:-1])


def comparable(happened: Sequence[Happened]) -> list[str]:
    """The texts that have to be compared by meaning."""
    found: dict[str, None] = {}
    for one, other in combinations(happened, 2):
        if _may_be_same(one, other):
            found.update(dict.fromkeys(text for pair in _different(one, other) for text in pair))
    return list(found)


def of_step(step: Step) -> Happened:
    """A step, ready to be compared by meaning: by the values in its arguments, and its results."""
    wording = (*(values(arguments) for _, arguments, _ in step.parts), *(result for _, _, result in step.parts))
    return Happened(step.key(), tuple(name for name, _, _ in step.parts), wording, quoted(step))


def of_response(response: CallResponse) -> Happened:
    """An answer, ready to be compared: exactly, and by its text, where that is short and the calls are the same."""
    text = response.text
    calls = [(call.name, canonical(call.arguments)) for call in response.tool_calls]
    group = _digest(repr(calls)) if calls else b""
    key = _digest(text) + group
    what = f"the answer {shortened(text)!r}" if text else "the call of " + ", ".join(name for name, _ in calls)
    return Happened(key, group, (text,) if text.strip() and len(text) <= MAX_WORDING else (), what)


def same_names(one: str, other: str) -> bool:
    """Whether two texts name the same things: every number, path, single letter or proper name of one is in the other.

    And whether both deny something or neither does, which vectors tell no better than names.

    Example:
        >>> same_names("the weather in Paris", "Paris weather"), same_names("read a.py", "read b.py")
        (True, False)
        >>> same_names("It is open.", "It isn't open.")
        False
    """
    words, names, denies = _vocabulary(one)
    other_words, other_names, other_denies = _vocabulary(other)
    return names <= other_words and other_names <= words and denies is other_denies


def _may_be_same(one: Happened, other: Happened) -> bool:
    if one.key == other.key:
        return True
    return (
        one.group == other.group
        and len(one.wording) == len(other.wording) > 0
        and all(
            max(len(text), len(twin)) <= MAX_WORDING and same_names(text, twin) for text, twin in _different(one, other)
        )
    )


def _different(one: Happened, other: Happened) -> list[tuple[str, str]]:
    return [(text, twin) for text, twin in zip(one.wording, other.wording, strict=False) if text != twin]


def _all_alike(one: Happened, other: Happened, alike: Callable[[str, str], bool]) -> bool:
    return all(alike(text, twin) for text, twin in _different(one, other))


def _copy(row: Any) -> Any:
    return row.copy()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


@lru_cache(maxsize=256)
def _vocabulary(text: str) -> tuple[frozenset[str], frozenset[str], bool]:
    """All words of a text; those that tell it from another, such as identifiers and proper names; whether it denies."""
    tokens = TOKEN.findall(text)
    names = [token for token in tokens if IDENTIFIER.search(token)] + _NAME.findall(text)
    words = {*map(str.casefold, tokens), *map(str.casefold, _PART.findall(text))}
    return frozenset(words), frozenset(map(str.casefold, names)), _DENIAL.search(text) is not None


__all__ = [
    "MAX_VECTORS",
    "MAX_WORDING",
    "Likeness",
    "comparable",
    "loop_by_meaning",
    "of_response",
    "of_step",
    "recurs",
    "same_names",
]
