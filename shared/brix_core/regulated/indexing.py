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
from brix_core.regulated.folding import without_symbols
from brix_core.regulated.grammar import GAP_CHARACTERS, SEPARATORS, Phrase, Word
from brix_core.regulated.matching import Search
from brix_core.regulated.spelling import atoms, unusual

BLOCK = 2_000
"""Characters of a text that are looked at together, at least."""


class Owner(NamedTuple):
    """Whose a phrase is."""

    rule: str
    pattern: str


class Entry(NamedTuple):
    """A phrase, and whose it is."""

    phrase: Phrase
    owners: tuple[Owner, ...]


class Automaton(Protocol):
    """What is used of pyahocorasick's, which has no types."""

    def iter(self, string: str, *, ignore_white_space: bool) -> Iterator[tuple[int, str]]:
        """Where a key ends, and the key."""


class _Second(NamedTuple):
    """Phrases whose rarest word has a key in common, by their second rarest."""

    word: Word
    phrases: tuple[tuple[Entry, tuple[Word, ...]], ...]


class Index:
    """Phrases by their rarest words.

    Args:
        entries: The phrases.
        free: Finds keys of words that need no edges; ``None`` where there are none.

    Attributes:
        longest: Letters of the longest key.
        reach: Characters that a match may take at most.
    """

    def __init__(self, entries: Sequence[Entry], free: Automaton | None) -> None:
        self.entries = entries
        self.free = free
        words = {word: None for entry in entries for word in entry.phrase.words}
        self.longest = max((len(key) for word in words for key in word.keys), default=0)
        self.reach = max((entry.phrase.reach for entry in entries), default=0)
        self.block = max(BLOCK, self.reach)
        common = commonness()
        rarity = {word: (sum(common[key] for key in word.keys), len(word.keys)) for word in words}
        self._single: dict[str, list[Entry]] = defaultdict(list)
        rest: dict[tuple[Word, Word], list[tuple[Entry, tuple[Word, ...]]]] = defaultdict(list)
        for entry in entries:
            first, *others = sorted(dict.fromkeys(entry.phrase.words), key=rarity.__getitem__)
            if others:
                rest[first, others[0]].append((entry, tuple(others[1:])))
            else:
                for key in first.keys:
                    self._single[key].append(entry)
        self._pairs: dict[str, list[_Second]] = defaultdict(list)
        for (first, second), phrases in rest.items():
            group = _Second(second, tuple(phrases))
            for key in first.keys:
                self._pairs[key].append(group)

    def candidates(self, words: set[str]) -> Iterable[Entry]:
        """Phrases all of whose words are among some words."""
        found: dict[Entry, None] = {}
        for key in self._single.keys() & words:
            found |= dict.fromkeys(self._single[key])
        for key in self._pairs.keys() & words:
            for second, phrases in self._pairs[key]:
                if second.keys.keys().isdisjoint(words):
                    continue
                for entry, others in phrases:
                    if not any(word.keys.keys().isdisjoint(words) for word in others):
                        found[entry] = None
        return found


class Block:
    """A stretch of a copy, and the places of words in it.

    Args:
        search: What looks closer.
        index: The phrases.
        start: Where it begins; matches begin in it or in the next block.
    """

    __slots__ = ("_chained", "_index", "_places", "_search", "_start", "_stop", "_text", "_view", "words")

    def __init__(self, search: Search, index: Index, start: int) -> None:
        stop = start + index.block + index.reach
        self._search = search
        self._index = index
        self._start = start
        self._stop = start + index.block
        self._text = search.text[start:stop]
        self._view = search.view[start:stop]
        self._chained: dict[str, list[tuple[int, int]]] = {}
        self._places: dict[Word, list[tuple[int, int]]] = {}
        self.words = set((without_symbols(self._text) if search.signs else self._view).split())
        for begun, ended in unusual(self._text, self._view, signs=search.signs):
            for at in atoms(self._text, begun, ended):
                self._read(at + start)
        if index.free is not None:
            for last, key in index.free.iter(self._view, ignore_white_space=True):
                self._add(key, start + _back(self._view, last, len(key)), start + last + 1)

    def _read(self, at: int) -> None:
        for key, end in self._search.readings(at)[0]:
            if key not in self.words or end - at > len(key):
                self._add(key, at, end)

    def _add(self, key: str, at: int, end: int) -> None:
        self.words.add(key)
        self._chained.setdefault(key, []).append((at, end))

    def starts(self, phrase: Phrase) -> list[int]:
        """Where a phrase may begin in this block."""
        later: list[int] = []
        for index in range(len(phrase.words) - 1, -1, -1):
            places = self.places(phrase.words[index])
            if index == len(phrase.words) - 1:
                later = [start for start, _ in places]
                continue
            reach = GAP_CHARACTERS if phrase.gaps[index + 1] else SEPARATORS
            if self._search.signs:
                reach = max(reach, self._index.reach)
            later = [start for start, end in places if _between(later, end, end + reach)]
            if not later:
                return later
        return [start for start in dict.fromkeys(later) if start < self._stop]

    def places(self, word: Word) -> list[tuple[int, int]]:
        """Where a word may stand, in order."""
        known = self._places.get(word)
        if known is None:
            keys = [key for key in word.keys if key in self.words]
            known = sorted({place for key in keys for place in self._of(key)})
            self._places[word] = known
        return known

    def _of(self, key: str) -> Iterator[tuple[int, int]]:
        yield from self._chained.get(key, ())
        text, view = self._text, self._view
        at = view.find(key)
        while at >= 0:
            end = at + len(key)
            if not (at and text[at - 1].isalnum()) and not (end < len(text) and text[end].isalnum()):
                yield self._start + at, self._start + end
            at = view.find(key, at + 1)


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
