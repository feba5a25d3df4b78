"""Scanning: a whole text, by what `indexing` finds in it; or a stream, piece by piece.

In a stream the same answers come from the other side. Every place where a phrase may begin is asked, until the answer
no longer depends on what is still to come.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from brix_core.regulated.text.folding import Folded, Narrowing, piece
from brix_core.regulated.text.following import Following, Stage
from brix_core.regulated.text.grammar import GAP_CHARACTERS, unspaced
from brix_core.regulated.text.indexing import Block, Entry, Index
from brix_core.regulated.text.letters import SYMBOLS, view_of
from brix_core.regulated.text.matching import LOOK_BACK, OPEN, Search
from brix_core.regulated.text.spelling import words_of

_UNDECIDED = 8
"""Undecided places of a stream that are asked again for a piece. What stands after them is not safe either."""
_FORGET_AFTER = 2_000
_ENDLESS = re.compile(rf"[{re.escape(SYMBOLS)}][\W_]{{{GAP_CHARACTERS},}}")


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


def scan(index: Index, folded: Folded) -> list[Match]:
    """Every match in a copy, by its place."""
    text, view = folded.text, folded.view
    search = Search(text, view, folded.raw, index.longest)
    # Symbols without end between two words are the one thing that no block is long enough for.
    step = len(text) if search.signs and _ENDLESS.search(text) else index.block
    found: set[Match] = set()
    for begun in range(0, len(text), step):
        span = begun, begun + step + index.reach
        words = folded.words or words_of(text[slice(*span)], view[slice(*span)])
        block = Block(search, words, span, step, index)
        for entry in index.candidates(block):
            for start in block.starts(entry.phrase):
                end = search.at(entry.phrase, start)
                if end >= 0:
                    place = folded.original(start, end)
                    found.update([Match(*owner, *place) for owner in entry.owners])
    return sorted(found, key=by_place)


def by_place(match: Match) -> tuple[int, int, str, str]:
    """The order of matches."""
    return match.start, match.end, match.rule, match.pattern


class StreamScan:
    """Scans a text that comes in pieces, with the same matches as a scan of the whole.

    `PatternSet.stream` makes it.

    Attributes:
        safe: Characters of the original, from its start, in which no match that is still to be found can begin.

    Example:
        >>> from brix_core.regulated.text.patterns import PatternSet
        >>> stream = PatternSet({"poison": ["lethal dose"]}).stream()
        >>> stream.feed("The le"), stream.safe
        ([], 4)
        >>> stream.feed("thal dose "), stream.safe
        ([Match(rule='poison', pattern='lethal dose', start=4, end=15)], 16)
    """

    def __init__(self, index: Index, root: Stage) -> None:
        self._index = index
        self._root = root
        self._text = self._view = ""
        self._source: list[str] = []
        self._positions: list[int] = []
        self._narrowing = Narrowing()
        self._length = 0
        self._next = 0
        self._following = self._searching()
        self._waiting: dict[int, set[Entry | Match]] = {}
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

    def _searching(self) -> Following:
        raw, longest = self._source.__getitem__, self._index.longest
        return Following(self._root, Search(self._text, self._view, raw, longest, final=False))

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
        self._following.search.grow(self._text, self._view, final=final)
        self._following.turn += 1
        found: set[Match] = set()
        self._waiting |= {start: set() for start in self._places()}
        self._next = len(self._text)
        undecided = 0
        for start, told in list(self._waiting.items()):
            if self._decide(start, told, found):
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
                not at or not text[at - 1].isalnum() or (self._index.free is not None and unspaced(character))
            ):
                yield at

    def _decide(self, start: int, told: set[Entry | Match], found: set[Match]) -> bool:
        """Add what is found at a place; whether more text may add to that."""
        attempt = self._following.at(start)
        if attempt is None:
            return False
        alive = attempt.alive
        for entry in attempt.reached:
            if entry in told:
                continue
            end = self._following.search.at(entry.phrase, start)
            if end == OPEN:
                alive = True
                continue
            told.add(entry)
            if end >= 0:
                place = (self._positions[start], self._positions[end - 1] + 1)
                new = {Match(*owner, *place) for owner in entry.owners} - told
                found |= new
                told |= new  # two phrases of a pattern may stand for the same place
        return alive

    def _release(self) -> None:
        """Set `safe`, and now and then forget what no answer needs any more."""
        first = next(iter(self._waiting), None)
        self.safe = self._length if first is None else self._positions[first]
        cut = (len(self._text) if first is None else first) - LOOK_BACK
        if cut > _FORGET_AFTER:
            self._text, self._view = self._text[cut:], self._view[cut:]
            del self._source[:cut], self._positions[:cut]
            self._next -= cut
            self._waiting = {start - cut: told for start, told in self._waiting.items()}
            self._following = self._searching()
