"""Reading patterns: words, gaps, alternatives, exact words.

A pattern is read into `Phrase` objects, one for each way through its alternatives; ``(a|b) c`` gives two. A word
written with a hyphen or slash gives two more ways: as one word and as several.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, product

from brix_core.regulated.text.folding import RUN, fold
from brix_core.regulated.text.inflection import inflected
from brix_core.regulated.text.letters import view_of

ALTERNATIVES = 256
WORDS = 24
CHARACTERS = 400
DEPTH = 8
GAPS = 6
GAP_WORDS = 6
GAP_CHARACTERS = 80
SEPARATORS = RUN + 2
"""The most separators that a folded copy has in a row."""

_JOINED_FROM = 8
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_PIECES = re.compile(r"\.{3,}|[()|]|(?:(?!\.{3})[^\s()|])+")
_PARTS = re.compile(r"[^\W_]+(?:(?<=\d)[.,](?=\d)[^\W_]+)*")
_APOSTROPHES = str.maketrans("", "", "'`\u2019\u00b4\u02bc")


class GrammarError(ValueError):
    """A pattern cannot be read; the message says why."""


def unspaced(character: str) -> bool:
    """Whether a letter belongs to a script that writes no spaces between words."""
    return character >= "\u0e00" and _UNSPACED.match(character) is not None


@dataclass(frozen=True, eq=False)
class Word:
    """One word of a pattern, with its forms; the same object wherever the forms are the same.

    Attributes:
        forms: What it may be, folded; the written form first.
    """

    forms: tuple[str, ...]

    @cached_property
    def exact(self) -> frozenset[str]:
        """The forms, to look a token up."""
        return frozenset(self.forms)

    @cached_property
    def keys(self) -> dict[str, tuple[str, ...]]:
        """The forms by their key: in letter classes, without separators."""
        found: dict[str, tuple[str, ...]] = {}
        for form in self.forms:
            key = view_of(form).replace(" ", "")
            found[key] = (*found.get(key, ()), form)
        return found

    @cached_property
    def among(self) -> frozenset[str]:
        """The keys."""
        return frozenset(self.keys)

    @cached_property
    def initials(self) -> frozenset[str]:
        """First letters of the keys."""
        return frozenset(key[0] for key in self.keys)

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """Every beginning of a key."""
        return frozenset(key[:stop] for key in self.keys for stop in range(1, len(key) + 1))

    @cached_property
    def reach(self) -> int:
        """Characters that it may take at most, written apart."""
        return max(map(len, self.forms)) * (1 + SEPARATORS)

    @cached_property
    def free(self) -> bool:
        """Whether it needs no word edges, because its script has none."""
        return unspaced(self.forms[0][0]) or unspaced(self.forms[0][-1])


@dataclass(frozen=True, eq=False)
class Phrase:
    """Words in a row, some with a gap before them.

    Attributes:
        words: At least one.
        gaps: For each word, whether a gap comes before it.
    """

    words: tuple[Word, ...]
    gaps: tuple[bool, ...]

    @property
    def key(self) -> tuple[tuple[tuple[str, ...], ...], tuple[bool, ...]]:
        """The same for phrases that match the same."""
        return tuple(word.forms for word in self.words), self.gaps

    @cached_property
    def reach(self) -> int:
        """Characters of a folded copy that a match may take at most."""
        between = [GAP_CHARACTERS if gap else SEPARATORS for gap in (*self.gaps[1:], False)]
        return sum(word.reach + space for word, space in zip(self.words, between, strict=True))


@dataclass(frozen=True)
class Item:
    """A word as it stands in the pattern, or a gap."""

    text: str
    exact: bool = False
    others: tuple[Item, ...] = ()

    @property
    def gap(self) -> bool:
        """Whether it is a gap."""
        return not self.text

    @property
    def forms(self) -> tuple[str, ...]:
        """Its forms and those of the words that may stand for it, folded."""
        return tuple(dict.fromkeys(form for item in self.each for form in _word(parts(item.text)[0], item.exact).forms))

    @property
    def each(self) -> tuple[Item, ...]:
        """Itself and the words that may stand for it, one by one."""
        return (Item(self.text, self.exact), *self.others)


_GAP = Item("")


def phrases(pattern: str) -> tuple[Phrase, ...]:
    """Read a pattern into every phrase it stands for.

    Raises:
        GrammarError: It is empty, unbalanced, too large, or has a gap at an edge.

    Example:
        >>> [[word.forms[0] for word in phrase.words] for phrase in phrases("(kill|harm) self")]
        [['kill', 'self'], ['killself']]
        >>> phrases("(=kill|harm) self")[0].words[0].forms
        ('kill', 'harm', 'harms', 'harmed', 'harming')
    """
    read = ways(pattern)
    if len(read) > 1:  # Words that may stand for each other are one word; whoever shows the ways wants them apart.
        read = _Reader(_pieces(pattern), merging=True).whole()
    made = {phrase.key: phrase for way in read for phrase in _phrases_of(way)}
    return tuple(made.values())


def ways(pattern: str) -> list[tuple[Item, ...]]:
    """Every way through the alternatives of a pattern, checked."""
    if not isinstance(pattern, str):
        raise GrammarError(f"it is of type {type(pattern).__name__}, not text: put it in quotes")
    if len(pattern) > CHARACTERS:
        raise GrammarError(f"it has {len(pattern)} characters (limit {CHARACTERS}): make several patterns of it")
    if not pattern.strip():
        raise GrammarError("it is empty: write the words to look for")
    read = _Reader(_pieces(pattern)).whole()
    for way in read:
        _check(way)
    return read


def _pieces(pattern: str) -> list[str]:
    return _PIECES.findall(pattern.replace("…", "..."))


def _check(way: Sequence[Item]) -> None:
    if all(item.gap for item in way):
        raise GrammarError("it is only a gap ('...'): write words on both sides of it")
    if way[0].gap or way[-1].gap:
        raise GrammarError("a gap ('...') stands at its edge: write words on both sides of it")
    if any(left.gap and right.gap for left, right in pairwise(way)):
        raise GrammarError("two gaps ('...') stand side by side: one is enough")
    if sum(item.gap for item in way) > GAPS:
        raise GrammarError(f"it has {sum(item.gap for item in way)} gaps (limit {GAPS}): make several patterns of it")
    if len(way) > WORDS:
        raise GrammarError(f"it has {len(way)} words and gaps in a row (limit {WORDS}): shorten it")


class _Reader:
    """Recursive descent over the pieces of one pattern."""

    def __init__(self, pieces: list[str], *, merging: bool = False) -> None:
        self._pieces = pieces
        self._at = 0
        self._merging = merging or any(piece.startswith("...") for piece in pieces)

    def whole(self) -> list[tuple[Item, ...]]:
        read = self._alternatives(0)
        if self._at < len(self._pieces):
            raise GrammarError("a ')' has no '(' before it")
        return read

    def _alternatives(self, depth: int) -> list[tuple[Item, ...]]:
        if depth > DEPTH:
            raise GrammarError(f"its parentheses are nested more than {DEPTH} deep")
        read = self._row(depth)
        while self._peek() == "|":
            self._at += 1
            read = self._limited(read + self._row(depth))
        return read

    def _row(self, depth: int) -> list[tuple[Item, ...]]:
        row: list[tuple[Item, ...]] = [()]
        begun = self._at
        while (piece := self._peek()) is not None and piece not in ")|":
            self._at += 1
            if piece == "(":
                inner = self._alternatives(depth + 1)
                if self._peek() != ")":
                    raise GrammarError("a '(' is never closed")
                self._at += 1
                inner = _merged(inner) if self._merging else inner
            else:
                inner = [(_item(piece),)]
            if len(row) * len(inner) > ALTERNATIVES:
                self._limited([()] * (len(row) * len(inner)))
            row = [left + right for left in row for right in inner]
        if self._at == begun:
            raise GrammarError("an alternative is empty: write a word on each side of '|' and between '(' and ')'")
        return row

    def _limited(self, read: list[tuple[Item, ...]]) -> list[tuple[Item, ...]]:
        if len(read) > ALTERNATIVES:
            raise GrammarError(
                f"its alternatives make {len(read)} phrases or more (limit {ALTERNATIVES}): make several patterns of it"
            )
        return read

    def _peek(self) -> str | None:
        return self._pieces[self._at] if self._at < len(self._pieces) else None


def _merged(alternatives: list[tuple[Item, ...]]) -> list[tuple[Item, ...]]:
    """Alternatives of which those that are one word are one item: three groups of ten are not a thousand phrases."""
    single = [way[0] for way in alternatives if _single(way)]
    if len(single) < 2:
        return alternatives
    every = [item for way in single for item in way.each]
    merged = Item(every[0].text, every[0].exact, tuple(every[1:]))
    ways_: list[tuple[Item, ...]] = [way for way in alternatives if not _single(way)]
    ways_.insert(next(index for index, way in enumerate(alternatives) if _single(way)), (merged,))
    return ways_


def _single(way: tuple[Item, ...]) -> bool:
    return len(way) == 1 and way[0].text.isascii() and way[0].text.isalpha()


def _item(piece: str) -> Item:
    if piece.startswith("..."):
        return _GAP
    exact = piece.startswith("=")
    text = piece[1:] if exact else piece
    if not text:
        raise GrammarError("a '=' has no word right after it")
    if not parts(text):
        raise GrammarError(f"{piece!r} has no letter or digit")
    return Item(text, exact)


@lru_cache(maxsize=8192)
def parts(text: str) -> tuple[str, ...]:
    """The words that a written word is made of: "self-harm" is two."""
    return tuple(_PARTS.findall(fold(text.translate(_APOSTROPHES)).text))


@lru_cache(maxsize=8192)
def _of(forms: tuple[str, ...]) -> Word:
    return Word(forms)


@lru_cache(maxsize=8192)
def _word(text: str, exact: bool) -> Word:
    return _of((text,) if exact else inflected(text))


def _phrases_of(way: Sequence[Item]) -> Iterator[Phrase]:
    apart: list[tuple[Word, bool]] = []
    together: list[tuple[Word, bool]] = []
    heads: list[tuple[Word, ...]] = []
    gap = False
    for item in way:
        if item.gap:
            gap = True
            continue
        pieces = parts(item.text)
        if item.others:
            apart.append((_of(item.forms), gap))
            together.append(apart[-1])
            heads.append(tuple(_word(parts(one.text)[0], one.exact) for one in item.each))
            gap = False
            continue
        words = [_word(piece, item.exact or index < len(pieces) - 1) for index, piece in enumerate(pieces)]
        whole = "".join(pieces)
        apart += [(word, gap and index == 0) for index, word in enumerate(words)]
        added = [(_word(whole, item.exact), gap)] if whole.isalpha() else apart[-len(words) :]
        together += added
        heads += [(word,) for word, _ in added]
        gap = False
    yield _phrase(apart)
    if together != apart:
        yield _phrase(together)
    if len(together) > 1 and not any(item.gap for item in way):
        yield from _run_together(heads)


def _run_together(heads: Sequence[tuple[Word, ...]]) -> Iterator[Phrase]:
    """The phrase as one word: "lethaldose", or its letters spaced apart evenly."""
    forms: dict[str, None] = {}
    for words in product(*heads):
        front = "".join([word.forms[0] for word in words[:-1]])
        whole = front + words[-1].forms[0]
        if len(whole) >= _JOINED_FROM and whole.isalpha() and whole.isascii():
            forms |= dict.fromkeys([front + form for form in words[-1].forms])
    if forms:
        yield _phrase([(_of(tuple(forms)), False)])


def _phrase(words: Sequence[tuple[Word, bool]]) -> Phrase:
    if len(words) > WORDS:
        raise GrammarError(f"it has {len(words)} words in a row (limit {WORDS}): shorten it")
    return Phrase(tuple(word for word, _ in words), tuple(gap for _, gap in words))
