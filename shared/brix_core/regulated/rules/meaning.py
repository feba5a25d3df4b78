"""Rules recognised by what a text means: examples of what they are for, and of what only looks like it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, Final, NamedTuple

from brix_core.embedding import Embedder, Vectors, similarities
from brix_core.errors import BrixError, BrixGuardError
from brix_core.regulated.format.spec import Examples
from brix_core.regulated.rules.contrast import Contrast
from brix_core.regulated.text.folding import fold

WINDOW: Final = 300
"""Characters of a window: some sentences, so that what matters is not drowned by what stands around it."""
WHOLE: Final = 1_000
"""Texts up to this length are looked at as a whole, too; models read about as much."""
ALONE: Final = 16
"""Characters from which on a sentence of a longer text is looked at by itself."""
_SENTENCE: Final = re.compile(r"[^.!?\n]{1,120}(?:[.!?]+|\n|$)?|[.!?\n]+")
_APART: Final = re.compile(r"(?<![a-z])[a-z](?: [a-z](?: [a-z])+|([.\-_*|/])[a-z](?:\1[a-z])*)(?![a-z])")
_DIVIDED: Final = re.compile(r"(?<=[a-z])[-\u2010\u00ad] ?\r?\n ?(?=[a-z])")
_LINE_END: Final = re.compile(r"(?<!\n)\r?\n(?!\r?\n)")
_TOKEN: Final = re.compile(r"[a-z0-9@$]+")
_MEASURE: Final = re.compile(r"\d+[a-z]{0,2}")
_LETTERS: Final = str.maketrans("013457@$", "oieastas")


class Likeness(NamedTuple):
    """How much a text is like the examples of a rule.

    Attributes:
        score: From 0, harmless or unrelated, to 1, just like a positive example; see `Contrast`.
        example: The positive example that is nearest.
        start: Where the part that gave this score begins, characters.
        end: Where it ends.
    """

    score: float
    example: str
    start: int
    end: int


class ExampleSet:
    """The examples of some rules, embedded once. Shared by threads.

    Args:
        examples: The examples of each rule.
        embedder: The embedder; may be None when there are no examples.
        harmless: Texts that are negative examples of every rule.

    Example:
        >>> from brix_core.embedding import LexicalEmbedder
        >>> keys = Examples(positive=("Where is the door key?",), negative=("Which key is this song in?",))
        >>> found = ExampleSet({"keys": keys}, LexicalEmbedder()).likeness("where is the door  key")["keys"]
        >>> found.example, found.score > 0.7
        ('Where is the door key?', True)
    """

    def __init__(self, examples: dict[str, Examples], embedder: Embedder | None, harmless: Sequence[str] = ()) -> None:
        self._examples = examples
        self._embedder = embedder
        self._harmless = harmless
        self._lock = Lock()
        self._known: tuple[Contrast, dict[str, Vectors]] | None = None

    def likeness(self, text: str) -> dict[str, Likeness]:
        """How much a text is like the examples of each rule; of its parts, the one most like them counts.

        Raises:
            BrixGuardError: The embedder failed.
        """
        parts = list(_parts(text))
        if not parts or not self._examples:
            return {}
        contrast, positives = self._learned()
        vectors = self._embed([part for _, _, part in parts])
        best: dict[str, Likeness] = {}
        for rule, scores in contrast.scores(vectors).items():
            which = int(scores.argmax())
            nearest = int(similarities(positives[rule], vectors[which]).argmax())
            start, end, _ = parts[which]
            best[rule] = Likeness(float(scores[which]), self._examples[rule].positive[nearest], start, end)
        return best

    def _learned(self) -> tuple[Contrast, dict[str, Vectors]]:
        """What tells the examples apart, and the positive ones of each rule; by the first use."""
        with self._lock:
            if self._known is None:
                texts = [*self._harmless, *_texts_of(self._examples.values())]
                row = dict(zip(texts, self._embed(texts), strict=True))
                positives = {rule: _rows(row, one.positive) for rule, one in self._examples.items()}
                negatives = {rule: _rows(row, one.negative) for rule, one in self._examples.items()}
                self._known = Contrast(positives, negatives, _rows(row, self._harmless)), positives
            return self._known

    def _embed(self, texts: Sequence[str]) -> Any:
        assert self._embedder is not None  # there are examples
        try:
            return self._embedder.embed(texts)
        except BrixError:
            raise
        except Exception as error:
            raise BrixGuardError(
                f"embedder {self._embedder.name!r} failed, so rules with examples cannot be checked and the call is "
                f"not made: {type(error).__name__}: {error}",
                guard="regulated",
            ) from error


def _texts_of(examples: Iterable[Examples]) -> Iterator[str]:
    for one in examples:
        yield from one.positive
        yield from one.negative


def _rows(row: Mapping[str, Vectors], texts: Iterable[str]) -> Any:
    import numpy as np

    return np.asarray([row[text] for text in texts])


def _parts(text: str) -> Iterator[tuple[int, int, str]]:
    """What is compared: the windows of a text, and where it is in disguise, of what it reads as, too."""
    seen: set[str] = set()
    for start, end in windows(text):
        part = text[start:end]
        if part not in seen:
            seen.add(part)
            yield start, end, part
    reading = undisguised(text)
    if reading.split() == text.casefold().split():
        return
    for start, end in windows(reading):
        part = reading[start:end]
        if part not in seen:
            seen.add(part)
            yield 0, len(text), part


def undisguised(text: str) -> str:
    """What a text reads as: plain letters, those written apart put together, digits within words read as letters.

    Words that are divided at the end of a line are put together, too, and lines that go on are joined.

    Example:
        >>> undisguised("L\u00e9thal d0se, l e t h a l, 5p4c3d 1.2.3.4 500mg")
        'lethal dose, lethal, spaced 1.2.3.4 500mg'
        >>> undisguised("le-" + chr(10) + "thal" + chr(10) + "dose")
        'lethal dose'
    """
    folded = _LINE_END.sub(" ", _DIVIDED.sub("", fold(text).text))
    folded = _APART.sub(lambda found: re.sub(r"[^a-z]", "", found[0]), folded)
    return _TOKEN.sub(_in_letters, folded)


def _in_letters(token: re.Match[str]) -> str:
    """A word with its digits read as letters; numbers and measures as they are."""
    word = token[0]
    return word if word.isalpha() or _MEASURE.fullmatch(word) else word.translate(_LETTERS)


def windows(text: str) -> Iterator[tuple[int, int]]:
    """Parts of a text: a few sentences each, every one overlapping the next by a sentence, and each sentence alone.

    Short texts come whole, first.

    Example:
        >>> list(windows("Short. Text."))
        [(0, 12)]
        >>> text = "Forty characters make one such sentence. " * 30
        >>> parts = list(windows(text))
        >>> len(parts), parts[:3], parts[-1][1] == len(text.rstrip())
        (35, [(0, 286), (245, 532), (491, 778)], True)
    """
    if not text.strip():
        return
    if len(text) <= WHOLE:
        yield 0, len(text)
    sentences = [found.span() for found in _SENTENCE.finditer(text) if found.group().strip()]
    if len(sentences) == 1:
        yield from () if len(text) <= WHOLE else sentences
        return
    if len(text) > WINDOW:
        yield from _packed(sentences)
    yield from ((start, end) for start, end in sentences if end - start >= ALONE)


def _packed(sentences: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """As many sentences as a window takes, the last of each again as the first of the next."""
    first = 0
    while first < len(sentences):
        last = first
        while last + 1 < len(sentences) and sentences[last + 1][1] - sentences[first][0] <= WINDOW:
            last += 1
        yield sentences[first][0], sentences[last][1]
        if last + 1 == len(sentences):
            return
        first = last if last > first else first + 1


__all__ = ["ALONE", "WHOLE", "WINDOW", "ExampleSet", "Likeness", "windows"]
