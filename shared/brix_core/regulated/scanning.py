"""Scanning: a whole text by one pass of an automaton, or a stream piece by piece.

The automaton reads the view of the folded copy without its spaces and reports where an anchor, the rarest word of a
phrase in letter classes, ends. Only there `matching` looks closer.

In a stream the same answers come from the other side. Every place where a phrase may begin is asked, until the answer
no longer depends on what is still to come.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from brix_core.regulated.folding import SYMBOLS, Folded, Narrowing, piece, view_of, without_symbols
from brix_core.regulated.grammar import SEPARATORS, Phrase, Word, unspaced
from brix_core.regulated.matching import LOOK_BACK, OPEN, Search, separates

_UNDECIDED = 8
"""Undecided places of a stream that are asked again for a piece. What stands after them is not safe either."""
_FORGET_AFTER = 2_000


class Automaton(Protocol):
    """What is used of pyahocorasick's, which has no types."""

    def iter(self, string: str, *, ignore_white_space: bool) -> Iterator[tuple[int, Group]]:
        """Where an anchor ends, and its group."""


class Match(NamedTuple):
    """A pattern found in a text.

    Attributes:
        rule: The rule that the pattern belongs to.
        pattern: The pattern as written.
        start: First character, in the original text.
        end: One past the last, in the original text.
    """

    rule: str
    pattern: str
    start: int
    end: int


class Owner(NamedTuple):
    """Whose a phrase is."""

    rule: str
    pattern: str


class Entry(NamedTuple):
    """A phrase, and which of its words an anchor stands for."""

    phrase: Phrase
    owners: tuple[Owner, ...]


class Group(NamedTuple):
    """What to look at where an anchor ends: for each word that has it, the phrases anchored in that word."""

    anchor: str
    words: tuple[tuple[Word, tuple[Entry, ...]], ...]


def grouped(entries: Iterable[Entry]) -> list[Group]:
    """Phrases by the anchors that find them."""
    found: dict[str, dict[Word, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        word = entry.phrase.words[entry.phrase.anchor]
        for anchor in word.anchors:
            found[anchor][word].append(entry)
    return [
        Group(anchor, tuple((word, tuple(group)) for word, group in words.items())) for anchor, words in found.items()
    ]


def scan(automaton: Automaton, folded: Folded) -> list[Match]:
    """Every match in a copy, by its place."""
    text, closer = folded.text, _Closer(folded)
    _pass(automaton, text, folded.view, closer)
    for sign in SYMBOLS:
        if sign in text and _separating(text, sign):
            closer.looked.clear()
            _pass(automaton, text, without_symbols(text), closer)
            break
    if not closer.found:
        return []
    matches = {Match(*owner, *folded.original(start, end)) for start, end, owner in closer.found}
    return sorted(matches, key=by_place)


def by_place(match: Match) -> tuple[int, int, str, str]:
    """The order of matches."""
    return match.start, match.end, match.rule, match.pattern


def _pass(automaton: Automaton, text: str, view: str, closer: _Closer) -> None:
    for last, (anchor, words) in automaton.iter(view, ignore_white_space=True):
        start = last - len(anchor) + 1
        if view[start : last + 1] != anchor:
            start = _back(view, last, len(anchor))
        # Most of what is found stands inside another word.
        if start and text[start - 1].isalnum() and text[start] < "\u0e00":
            continue
        for word, entries in words:
            closer.look(word, entries, start)


class _Closer:
    """Looks closer where an anchor stands."""

    __slots__ = ("_folded", "_search", "found", "looked")

    def __init__(self, folded: Folded) -> None:
        self._folded = folded
        self._search: Search | None = None
        self.looked: dict[Phrase, int] = {}
        self.found: set[tuple[int, int, Owner]] = set()

    def look(self, word: Word, entries: tuple[Entry, ...], place: int) -> None:
        """Try the phrases that are anchored in a word, where the word may begin."""
        if self._search is None:
            self._search = Search(self._folded.text, self._folded.view, self._folded.raw)
        search = self._search
        if not search.ends(word, place)[0]:
            return
        for entry in entries:
            for start in self._starts(entry.phrase, place):
                end = search.at(entry.phrase, start)
                if end >= 0:
                    self.found.update((start, end, owner) for owner in entry.owners)

    def _starts(self, phrase: Phrase, place: int) -> Iterator[int]:
        """Where a phrase may begin whose anchor stands at `place`; each place once."""
        if not phrase.anchor:
            yield place
            return
        low = max(0, place - phrase.before(phrase.anchor), self.looked.get(phrase, 0))
        for start in phrase.words[0].starts.finditer(self._folded.text, low, place):
            yield start.start()
        # An anchor of another form, a little further left, may still come.
        self.looked[phrase] = max(low, place - phrase.words[phrase.anchor].reach)


def _separating(text: str, sign: str) -> bool:
    at = text.find(sign)
    while at >= 0:
        if separates(text, at):
            return True
        at = text.find(sign, at + 1)
    return False


def _back(view: str, last: int, letters: int) -> int:
    """Where the last `letters` letters up to `last` begin."""
    at = last
    while True:
        if view[at] != " ":
            letters -= 1
            if not letters:
                return at
        at -= 1


class Beginnings:
    """Which phrases may begin with two given letters, in letter classes."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._by_pair: dict[str, dict[int, None]] = defaultdict(dict)
        self._by_first: dict[str, dict[int, None]] = defaultdict(dict)
        self.free = False
        for number, entry in enumerate(entries):
            word = entry.phrase.words[0]
            self.free = self.free or word.free
            for form in word.views:
                letters = form.replace(" ", "")
                self._by_first[letters[0]][number] = None
                if len(letters) == 1:
                    self._by_pair[letters][number] = None
                else:
                    self._by_pair[letters[:2]][number] = None

    def first(self, letter: str) -> bool:
        """Whether any phrase begins with the letter."""
        return letter in self._by_first

    def pair(self, letters: str) -> Iterable[int]:
        """The numbers of the phrases that begin with two letters, or with the first as a whole word."""
        return (*self._by_pair.get(letters, ()), *self._by_pair.get(letters[0], ()))


class StreamScan:
    """Scans a text that comes in pieces, with the same matches as a scan of the whole.

    `PatternSet.stream` makes it.

    Attributes:
        safe: Characters of the original, from its start, in which no match that is still to be found can begin.

    Example:
        >>> from brix_core.regulated.patterns import PatternSet
        >>> stream = PatternSet({"poison": ["lethal dose"]}).stream()
        >>> stream.feed("The le"), stream.safe
        ([], 4)
        >>> stream.feed("thal dose "), stream.safe
        ([Match(rule='poison', pattern='lethal dose', start=4, end=15)], 16)
    """

    def __init__(self, beginnings: Beginnings) -> None:
        self._beginnings = beginnings
        self._text = self._view = ""
        self._source: list[str] = []
        self._positions: list[int] = []
        self._narrowing = Narrowing()
        self._length = 0
        self._next = 0
        self._search = self._searching()
        self._waiting: dict[int, list[int] | None] = {}
        self._finished = False
        self.safe = 0

    def feed(self, text: str) -> list[Match]:
        """Take the next piece.

        Args:
            text: Any piece of the text; it may end within a word or between a letter and its accent.

        Returns:
            The matches that this piece completes, by their place.
        """
        if self._finished:
            raise ValueError("the stream is finished: make another one with PatternSet.stream()")
        grown = self._append(text)
        found = self._ask(final=False) if grown else []
        self._release()
        return found

    def finish(self) -> list[Match]:
        """Say that nothing follows.

        Returns:
            The matches that only the end of the text decides.
        """
        found = [] if self._finished else self._ask(final=True)
        self._finished = True
        self.safe = self._length
        return found

    def _searching(self) -> Search:
        return Search(self._text, self._view, self._source.__getitem__, final=False)

    def _append(self, text: str) -> bool:
        copy, indices = piece(text)
        view = view_of(copy)
        keeps, offset = self._narrowing.keeps, self._length
        self._length += len(text)
        kept = [at for at, pair in enumerate(zip(copy, view, strict=True)) if keeps(*pair)]
        self._text += "".join([copy[at] for at in kept])
        self._view += "".join([view[at] for at in kept])
        self._source += [text[indices[at]] for at in kept]
        self._positions += [offset + indices[at] for at in kept]
        return bool(kept)

    def _ask(self, *, final: bool) -> list[Match]:
        """Ask the places that are still undecided, a limited number at a time, from the first on."""
        self._search.grow(self._text, self._view, final=final)
        found: set[Match] = set()
        self._waiting |= dict.fromkeys(self._places())
        self._next = len(self._text)
        undecided = 0
        for start, numbers in list(self._waiting.items()):
            still = self._decide(start, numbers, found, final=final)
            if still or still is None:
                self._waiting[start] = still
                undecided += 1
                if undecided == _UNDECIDED:
                    break
            else:
                del self._waiting[start]
        return sorted(found, key=by_place)

    def _places(self) -> Iterator[int]:
        """New places where a phrase may begin."""
        text = self._text
        for at in range(self._next, len(text)):
            character = text[at]
            if (character.isalnum() or character in SYMBOLS) and (
                not at or not text[at - 1].isalnum() or (self._beginnings.free and unspaced(character))
            ):
                yield at

    def _decide(self, start: int, numbers: list[int] | None, found: set[Match], *, final: bool) -> list[int] | None:
        """Phrases that may still begin at a place; ``None`` where not even its second letter is known."""
        if numbers is None:
            numbers = self._candidates(start, final=final)
            if numbers is None:
                return None
        still = []
        for number in numbers:
            entry = self._beginnings.entries[number]
            end = self._search.at(entry.phrase, start)
            if end == OPEN:
                still.append(number)
            elif end >= 0:
                place = (self._positions[start], self._positions[end - 1] + 1)
                found.update(Match(*owner, *place) for owner in entry.owners)
        return still

    def _candidates(self, start: int, *, final: bool) -> list[int] | None:
        text, view = self._text, self._view
        first = view[start]
        if not self._beginnings.first(first):
            return []
        seconds = set()
        stop = min(len(view), start + 2 + SEPARATORS)
        for at in range(start + 1, stop):
            if view[at] != " ":
                seconds.add(view[at])
            if text[at].isalnum():
                break
        else:
            if not final and stop == len(view):
                return None
        return sorted({number for second in seconds or {" "} for number in self._beginnings.pair(first + second)})

    def _release(self) -> None:
        """Set `safe`, and now and then forget what no answer needs any more."""
        first = next(iter(self._waiting), None)
        self.safe = self._length if first is None else self._positions[first]
        cut = (len(self._text) if first is None else first) - LOOK_BACK
        if cut > _FORGET_AFTER:
            self._text, self._view = self._text[cut:], self._view[cut:]
            del self._source[:cut], self._positions[:cut]
            self._next -= cut
            self._waiting = {start - cut: numbers for start, numbers in self._waiting.items()}
            self._search = self._searching()
