"""Which phrases may stand in a text, and where they may begin.

The words of a text are looked up as they come. Where the rarest word of a phrase stands, its second rarest must be
somewhere, the words next to it near, and the others somewhere too; then all of them must stand in the right order and
near enough. For the few places that are left `matching` decides. A long text is looked at in blocks, so that what is
asked of a place does not grow with the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple, Protocol

from brix_core.regulated.text.commonness import commonness
from brix_core.regulated.text.folding import AT_ONCE
from brix_core.regulated.text.grammar import GAP_CHARACTERS, SEPARATORS, Phrase, Word
from brix_core.regulated.text.letters import without_symbols
from brix_core.regulated.text.matching import Search
from brix_core.regulated.text.spelling import Words, atoms


class Owner(NamedTuple):
    """Whose a phrase is."""

    rule: str
    pattern: str


_ANY = frozenset({""})
"""Stands for any word: no word has this key, but every stretch beside a word does."""
_HEAD = 4
"""Letters by which it is told whether a word in parts may be one that is looked for."""
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
        left: Keys of the word before the rarest; `_ANY` where there is none.
        right: Keys of the word after it.
    """

    entry: Entry
    others: tuple[frozenset[str], ...]
    left: frozenset[str]
    right: frozenset[str]


class Index:
    """Phrases by their rarest words.

    Args:
        entries: The phrases.
        free: Finds keys of words that need no edges; ``None`` where there are none.

    Attributes:
        free: As given.
        longest: Letters of the longest key.
        reach: Characters that a match may take at most.
        block: Characters of a text that are looked at together.
    """

    def __init__(self, entries: Sequence[Entry], free: Automaton | None) -> None:
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
        pairs, tokens, near, also = self._pairs, block.tokens, block.near, block.also
        for at, key in enumerate(tokens):
            if key in pairs and not words.isdisjoint(self._seconds[key]):
                before = tokens[at - near if at > near else 0 : at] + also
                self._near(key, words, before, tokens[at + 1 : at + 1 + near] + also, found)
        for key in block.elsewhere:
            if key in pairs:
                self._near(key, words, [*words, ""], [*words, ""], found)
        return found

    def _near(self, key: str, words: Set[str], before: list[str], after: list[str], found: dict[Entry, None]) -> None:
        """Add phrases whose rarest word has a key, and stands between some words."""
        for seconds, phrases in self._pairs[key]:
            if words.isdisjoint(seconds):
                continue
            for entry, others, left, right in phrases:
                if left.isdisjoint(before) or right.isdisjoint(after):
                    continue
                for other in others:
                    if words.isdisjoint(other):
                        break
                else:
                    found[entry] = None

    def may_begin(self, letters: str, first: int) -> bool:
        """Whether a key may begin with these letters, or be their first ones, more than `first`."""
        if letters in self._heads:
            return True
        return any(letters[:stop] in self._short for stop in range(first + 1, len(letters) + 1))


def _phrase(entry: Entry, first: Word, others: Sequence[Word]) -> _Phrase:
    words = entry.phrase.words
    at = words.index(first)
    rest = tuple(word.among for word in others[1:])
    left = words[at - 1].among if at else _ANY
    right = words[at + 1].among if at + 1 < len(words) else _ANY
    if max(len(key) for word in words for key in word.keys) > _BESIDE - GAP_CHARACTERS:
        left = right = _ANY
    return _Phrase(entry, rest, left, right)


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

    def __init__(self, search: Search, words: Words, span: tuple[int, int], step: int, index: Index) -> None:
        start, stop = span
        self._search = search
        self._start = start
        self._stop = start + step
        self._next = len(search.text) if words.signed else SEPARATORS
        self._text = search.text[start:stop]
        self._view = search.view[start:stop]
        self._padded = f" {self._view} "
        self._without_symbols = f" {without_symbols(self._text)} " if words.signed else ""
        self._chained: dict[str, list[tuple[int, int]]] = {}
        self._places: dict[Word, list[tuple[int, int]]] = {}
        self._found: dict[str, list[tuple[int, int]]] = {}
        for begun, ended in words.unusual:
            self._unusual(index, begun, ended)
        if index.free is not None:
            for last, key in index.free.iter(self._view, ignore_white_space=True):
                self._add(key, start + _back(self._view, last, len(key)), start + last + 1)
        self.words = words.keys | self._chained.keys() if self._chained else words.keys
        self.tokens = words.tokens
        self.near = words.near
        self.also = ["", *self._chained]
        self.elsewhere = self.words if words.signed else self._chained.keys()

    def _unusual(self, index: Index, begun: int, ended: int) -> None:
        """Read the words of a stretch that are written in parts, where letters in a row may be some."""
        letters, signs = self._view[begun:ended].replace(" ", ""), self._next > SEPARATORS
        done = 0
        for at, first in atoms(self._text, begun, ended):
            if signs or index.may_begin(letters[done : done + _HEAD], first):
                self._read(at + self._start)
            done += first

    def _read(self, at: int) -> None:
        for key, end in self._search.readings(at)[0]:
            if end - at > len(key) or self._next > SEPARATORS:
                self._add(key, at, end)

    def _add(self, key: str, at: int, end: int) -> None:
        self._chained.setdefault(key, []).append((at, end))

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
        found = self._found[key] = list(self._chained.get(key, ()))
        sought = f" {key} "
        for padded in (self._padded, self._without_symbols) if self._without_symbols else (self._padded,):
            at = padded.find(sought)
            while at >= 0:
                found.append((self._start + at, self._start + at + len(key)))
                at = padded.find(sought, at + 1)
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
