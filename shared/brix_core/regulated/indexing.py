"""Which phrases may stand in a text, and where they may begin.

The words of a text are looked up at once, as a set. A phrase is looked at when its rarest word is there, then its
second rarest, then the others; then only where its words stand in the right order and near enough. For what is left
`matching` decides. A long text is looked at in blocks, so that what it asks of a text does not grow with the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from brix_core.regulated.commonness import commonness
from brix_core.regulated.folding import AT_ONCE
from brix_core.regulated.grammar import GAP_CHARACTERS, SEPARATORS, Phrase, Word
from brix_core.regulated.letters import without_symbols
from brix_core.regulated.matching import Search
from brix_core.regulated.spelling import Words, atoms

class Owner(NamedTuple):
    """Whose a phrase is."""

    rule: str
    pattern: str


_OPEN = ("", " ")
_HEAD = 8
_HEAD_REACH = _HEAD * (1 + SEPARATORS)
_BESIDE = 40 + GAP_CHARACTERS
"""Characters to the left or right of a word in which the next word stands, if neither is longer than forty letters."""


class Entry(NamedTuple):
    """A phrase, and whose it is."""

    phrase: Phrase
    owners: tuple[Owner, ...]


class Automaton(Protocol):
    """What is used of pyahocorasick's, which has no types."""

    def iter(self, string: str, *, ignore_white_space: bool) -> Iterator[tuple[int, str]]:
        """Where a key ends, and the key."""


class _Phrase(NamedTuple):
    """A phrase, and what is known of its words beside the two rarest.

    Attributes:
        entry: The phrase.
        others: Keys of the other words.
        apart: Characters between the two rarest at most.
        left: Keys of the word before the rarest.
        right: Keys of the word after it.
    """

    entry: Entry
    others: tuple[frozenset[str], ...]
    apart: int
    left: frozenset[str] | None
    right: frozenset[str] | None


class Index:
    """Phrases by their rarest words.

    Args:
        entries: The phrases.
        free: Finds keys of words that need no edges; ``None`` where there are none.

    Attributes:
        entries: The phrases.
        free: As given.
        longest: Letters of the longest key.
        reach: Characters that a match may take at most.
        block: Characters of a text that are looked at together.
    """

    def __init__(self, entries: Sequence[Entry], free: Automaton | None) -> None:
        self.entries = entries
        self.free = free
        words = {word: None for entry in entries for word in entry.phrase.words}
        self.longest = max((len(key) for word in words for key in word.keys), default=0)
        self.reach = max((entry.phrase.reach for entry in entries), default=0)
        self.block = max(AT_ONCE, self.reach)
        common = commonness()
        rarity = {word: (sum(common[key] for key in word.keys), len(word.keys)) for word in words}
        single: dict[str, list[Entry]] = defaultdict(list)
        pairs: dict[str, dict[frozenset[str], list[_Phrase]]] = defaultdict(lambda: defaultdict(list))
        for entry in entries:
            first, *others = sorted(dict.fromkeys(entry.phrase.words), key=rarity.__getitem__)
            if not others:
                for key in first.keys:
                    single[key].append(entry)
                continue
            phrase = _phrase(entry, first, others)
            for key in first.keys:
                pairs[key][others[0].among].append(phrase)
        keys = {key for word in words for key in word.keys}
        self._short = frozenset(key for key in keys if len(key) < _HEAD)
        self._heads = frozenset(key[:_HEAD] for key in keys if len(key) >= _HEAD)
        self._single = {key: tuple(found) for key, found in single.items()}
        self._pairs = {key: tuple(groups.items()) for key, groups in pairs.items()}
        self._seconds = {key: frozenset().union(*groups) for key, groups in pairs.items()}

    def candidates(self, block: Block) -> dict[Entry, None]:
        """Phrases all of whose words are there, the two rarest near each other."""
        words = block.words
        found: dict[Entry, None] = {}
        for key in self._single.keys() & words:
            found |= dict.fromkeys(self._single[key])
        hits = self._pairs.keys() & words
        for key, alone in zip(hits, map(words.isdisjoint, map(self._seconds.__getitem__, hits)), strict=True):
            if alone:
                continue
            for seconds, phrases in self._pairs[key]:
                if words.isdisjoint(seconds):
                    continue
                apart = block.apart(key, seconds)
                for entry, others, most, left, right in phrases:
                    if apart <= most and not any(map(words.isdisjoint, others)) and block.beside(key, left, right):
                        found[entry] = None
        return found


    def may_begin(self, letters: str, first: int) -> bool:
        """Whether letters may begin with a key of more than `first` letters."""
        if letters[:_HEAD] in self._heads:
            return True
        return any(letters[:stop] in self._short for stop in range(first + 1, min(_HEAD, len(letters) + 1)))


def _phrase(entry: Entry, first: Word, others: Sequence[Word]) -> _Phrase:
    words = entry.phrase.words
    at = words.index(first)
    rest = tuple(word.among for word in others[1:])
    left = words[at - 1].among if at else None
    right = words[at + 1].among if at + 1 < len(words) else None
    if max(len(key) for word in words for key in word.keys) > _BESIDE - GAP_CHARACTERS:
        left = right = None
    return _Phrase(entry, rest, _apart(entry.phrase, first, others[0]), left, right)


def _apart(phrase: Phrase, first: Word, second: Word) -> int:
    """Characters between the beginnings of two words of a phrase at most, if none is written apart."""
    places = [at for at, word in enumerate(phrase.words) if word in (first, second)]
    between = range(min(places), max(places))
    return sum(
        max(map(len, phrase.words[at].forms)) + (GAP_CHARACTERS if phrase.gaps[at + 1] else SEPARATORS)
        for at in between
    )


class Block:
    """A stretch of a copy, and the places of words in it.

    Args:
        search: What looks closer.
        words: The words of the stretch.
        start: Where it begins.
        stop: Where it ends.
        step: Characters to the next block.
        index: The phrases.
    """

    __slots__ = ("_chained", "_found", "_next", "_places", "_search", "_spans", "_start", "_stop", "_text", "_view", "words")

    def __init__(self, search: Search, words: Words, span: tuple[int, int], step: int, index: Index) -> None:
        start, stop = span
        self._search = search
        self._start = start
        self._stop = start + step
        self._next = len(search.text) if words.signed else SEPARATORS
        self._text = search.text[start:stop]
        self._view = search.view[start:stop]
        self._chained: dict[str, list[tuple[int, int]]] = {}
        self._places: dict[Word, list[tuple[int, int]]] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        self._found: dict[str, list[tuple[int, int]]] = {}
        self.words = set(words.keys) if words.unusual or index.free is not None else words.keys
        for begun, ended in words.unusual:
            for at, first in atoms(self._text, begun, ended):
                if self._may_begin(index, at, first):
                    self._read(at + start)
        if index.free is not None:
            for last, key in index.free.iter(self._view, ignore_white_space=True):
                self._add(key, start + _back(self._view, last, len(key)), start + last + 1)

    def _may_begin(self, index: Index, at: int, first: int) -> bool:
        """Whether it is worth the while to read a word from a place on, whose first part has so many letters."""
        stop = at + first + _HEAD_REACH
        if index.may_begin(self._view[at:stop].replace(" ", ""), first):
            return True
        return self._next > SEPARATORS and index.may_begin(
            without_symbols(self._text[at:stop]).replace(" ", ""), first
        )

    def _read(self, at: int) -> None:
        for key, end in self._search.readings(at)[0]:
            if key not in self.words or end - at > len(key):
                self._add(key, at, end)

    def _add(self, key: str, at: int, end: int) -> None:
        self.words.add(key)
        self._chained.setdefault(key, []).append((at, end))

    def apart(self, key: str, others: frozenset[str]) -> int:
        """Characters between a word and the nearest of others, at most; nothing is known where words are apart."""
        if self._next > SEPARATORS or key in self._chained:
            return 0
        first, last = self._span(key)
        nearest = self._stop
        for other in others & self.words:
            if other in self._chained:
                return 0
            begun, ended = self._span(other)
            nearest = min(nearest, max(begun - last, first - ended))
        return nearest

    def beside(self, key: str, left: frozenset[str] | None, right: frozenset[str] | None) -> bool:
        """Whether, somewhere, a word has one of others before it and one of others after it, near enough."""
        if self._next > SEPARATORS or key in self._chained or len(key) > _BESIDE - GAP_CHARACTERS:
            return True
        for keys in (left, right):
            if keys is not None and any(chained in keys for chained in self._chained):
                return True
        view = self._view
        at = view.find(key)
        while at >= 0:
            if left is None or not left.isdisjoint(view[max(0, at - _BESIDE) : at].split()):
                if right is None or not right.isdisjoint(view[at + len(key) : at + len(key) + _BESIDE].split()):
                    return True
            at = view.find(key, at + 1)
        return False

    def _span(self, key: str) -> tuple[int, int]:
        """The first and the last place of a key."""
        known = self._spans.get(key)
        if known is None:
            known = self._spans[key] = self._view.find(key), self._view.rfind(key)
        return known

    def starts(self, phrase: Phrase) -> list[int]:
        """Where a phrase may begin in this block."""
        later: list[int] = []
        for index in range(len(phrase.words) - 1, -1, -1):
            places = self.places(phrase.words[index])
            if index == len(phrase.words) - 1:
                later = [start for start, _ in places]
                continue
            reach = GAP_CHARACTERS if phrase.gaps[index + 1] else self._next
            later = [start for start, end in places if _between(later, end, end + reach)]
            if not later:
                return later
        return [start for start in dict.fromkeys(later) if start < self._stop]

    def places(self, word: Word) -> list[tuple[int, int]]:
        """Where a word may stand, in order."""
        known = self._places.get(word)
        if known is None:
            known = sorted({place for key in word.among & self.words for place in self._of(key)})
            self._places[word] = known
        return known

    def _of(self, key: str) -> list[tuple[int, int]]:
        known = self._found.get(key)
        if known is not None:
            return known
        text, view, size = self._text, self._view, len(key)
        found = self._found[key] = list(self._chained.get(key, ()))
        at = view.find(key)
        while at >= 0:
            end = at + size
            if (view[at - 1 : at] in _OPEN or not text[at - 1].isalnum()) and (
                view[end : end + 1] in _OPEN or not text[end].isalnum()
            ):
                found.append((self._start + at, self._start + end))
            at = view.find(key, at + 1)
        return found


def _between(places: list[int], low: int, high: int) -> bool:
    at = bisect_left(places, low)
    return at < len(places) and places[at] <= high


def _back(view: str, last: int, letters: int) -> int:
    """Where the last `letters` letters up to `last` begin."""
    at = last
    while True:
        if view[at] != " ":
            letters -= 1
            if not letters:
                return at
        at -= 1
