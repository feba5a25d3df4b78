"""Where the words of a folded copy are, in whatever way they are written.

A word is known by its key: its letters in letter classes, without what stands between them. Most words stand for
themselves. `spelt` reads the others, from a place on: with signs for letters (``k!ll``), with signs between letters
(``le-thal``), or as letters set apart (``l e t h a l``). `unusual` finds the places where that could be.

What is read is more than what `matching` takes for a word, and never less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from brix_core.regulated.text.letters import SYMBOLS, without_symbols

CONTROLS = dict.fromkeys([*range(9), *range(14, 28), 127])
"""For ``str.translate``: without the control characters, which count as nothing between letters."""
BROKEN = re.compile(r"-[ \t\r]*(?:\n[ \t\r]*)?|\r?\n")
"""What stands in a word that goes on on the next line."""
SHORT = 2
"""Letters at most of a part of a word that is set apart by white space."""

NEAR = 7
"""A gap is of six words at most."""
FAR = 42
"""Single letters in a row are one word of a gap, which has 80 characters at most."""

_SIGNS = re.escape(SYMBOLS)
_TOKEN = re.compile(r"[^\W_]+")
_TOKEN_WITH_SIGNS = re.compile(rf"(?:[^\W_]|[{_SIGNS}])+")
_SIGN = re.compile(rf"[{_SIGNS}]")
_BETWEEN = re.compile(r"[\W_]+")
_BETWEEN_WITHOUT_SIGNS = re.compile(rf"(?:_|[^\w{_SIGNS}])+")
_ATOM = re.compile(rf"[^\W_]+|[{_SIGNS}]")
_SHORT_WORDS = re.compile(rb"[\x01\x02]{3}|\x01\x01")
_SCATTERED = re.compile(r" (?:(?:[^ ]{1,2} +){2,}[^ ]{1,2}|[^ ] +[^ ])(?= )")


class _Shapes(dict[int, str]):
    """For ``str.translate``: ``a`` for letters and digits, spaces as they are, and a point for all else."""

    def __missing__(self, codepoint: int) -> str:
        shape = "a" if chr(codepoint).isalnum() else "."
        if len(self) < 20_000:
            self[codepoint] = shape
        return shape


_SHAPES = _Shapes({ord(" "): " "})


class Words(NamedTuple):
    """What a copy is made of.

    Attributes:
        keys: Keys of the words that are written by their letters and digits alone.
        tokens: The same words, in order, each time.
        near: Tokens at most from a word to the next of a phrase, over a gap.
        unusual: Stretches in which words may be written in other ways, in order.
        signed: Whether there are symbols that may stand for letters.
    """

    keys: frozenset[str]
    tokens: list[str]
    near: int
    unusual: list[tuple[int, int]]
    signed: bool


def words_of(text: str, view: str) -> Words:
    """The words of a copy."""
    signs = signed(text)
    tokens = view.split()
    scattered = _scattered(tokens, view)
    spans = [*scattered, *_joints(text, view)]
    if signs:
        spans += _signed(text, view)
        tokens = without_symbols(text).split()
    spans.sort()
    near = FAR if scattered or signs else NEAR
    return Words(frozenset(tokens), tokens, near, _joined(view, spans), signs)


def signed(text: str) -> bool:
    """Whether a copy has symbols that may stand for letters."""
    return any(sign in text for sign in SYMBOLS)


def tight(separator: str) -> bool:
    """Whether letters of one word may stand on both sides of it, however many."""
    return (len(separator) <= 3 and not any(map(str.isspace, separator))) or BROKEN.fullmatch(separator) is not None


def spelt(text: str, view: str, start: int, longest: int, *, signs: bool) -> tuple[list[tuple[str, int]], str | None]:
    """Keys of words that may begin at a place, each with where it ends.

    Args:
        text: The copy.
        view: Its view.
        start: A letter, or a symbol that may stand for one.
        longest: Letters that no key exceeds.
        signs: Whether symbols stand for letters; they stand between letters otherwise.

    Returns:
        The keys, and the letters up to the end of the text, if more may follow there.
    """
    token, between = (_TOKEN_WITH_SIGNS, _BETWEEN_WITHOUT_SIGNS) if signs else (_TOKEN, _BETWEEN)
    keys: list[tuple[str, int]] = []
    letters, at, n = "", start, len(text)
    narrow = near = True
    while (piece := token.match(text, at, min(n, at + longest - len(letters) + 1))) is not None:
        stop = piece.end()
        if signs:
            keys += [(letters + view[at : sign.start()], sign.start()) for sign in _SIGN.finditer(text, at + 1, stop)]
        letters += view[at:stop]
        if len(letters) > longest:
            return keys, None
        if stop == n or not text[stop].isalnum():
            keys.append((letters, stop))
        if stop == n:
            return keys, letters
        gap = between.match(text, stop)
        if gap is None:
            return keys, None
        narrow = narrow and stop - at <= SHORT
        separator = gap.group().translate(CONTROLS)
        if stop - at > SHORT and separator[:1] == " ":
            return keys, None
        near = near and (tight(separator) or (separator == "\r" and gap.end() == n))
        if not (near or narrow):
            return keys, None
        if gap.end() == n:
            return keys, letters
        at = gap.end()
    return keys, None


def atoms(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where words may begin in a stretch, and how many letters stand together there."""
    for atom in _ATOM.finditer(text, start, stop):
        yield atom.start(), atom.end() - atom.start()


def _scattered(tokens: list[str], view: str) -> list[tuple[int, int]]:
    """Words of one or two letters in a row."""
    try:
        few = _SHORT_WORDS.search(bytes(map(len, tokens))) is None
    except ValueError:  # a word of more than 255 letters
        few = False
    if few:
        return []
    return [(found.start(), found.end() - 1) for found in _SCATTERED.finditer(f" {view} ")]


def _joints(text: str, view: str) -> Iterator[tuple[int, int]]:
    """Words with nothing but signs between them, or a hyphen and perhaps a new line."""
    shapes = text.translate(_SHAPES)
    at = shapes.find(".a")
    while at >= 0:
        before = at
        while before and shapes[before] == ".":
            before -= 1
        if shapes[before] == "a":
            yield _around(view, before, at + 2)
        at = shapes.find(".a", at + 1)
    at = text.find("-")
    while at >= 0:
        if at and text[at - 1] != " " and text[at + 1 : at + 2].isspace():
            yield _around(view, at - 1, at + 2)
        at = text.find("-", at + 1)


def _around(view: str, start: int, stop: int) -> tuple[int, int]:
    """From the word at `start` to the word that follows `stop`, or stands there."""
    while start and view[start] == " ":
        start -= 1
    stop = next((at for at in range(stop - 1, len(view)) if view[at] != " "), len(view))
    end = view.find(" ", stop)
    return view.rfind(" ", 0, start) + 1, len(view) if end < 0 else end


def _signed(text: str, view: str) -> Iterator[tuple[int, int]]:
    """Words with a symbol in them, each with short words beside it."""
    done = 0
    for sign in _SIGN.finditer(text):
        if sign.start() < done:
            continue
        start, stop = _around(view, sign.start(), sign.end())
        while start > done:
            last = len(view[done:start].rstrip(" ")) + done
            first = view.rfind(" ", done, last) + 1
            if not 0 < last - max(first, done) <= SHORT:
                break
            start = max(first, done)
        while True:
            word = _word_after(view, stop)
            if word is None or word[1] - word[0] > SHORT:
                break
            stop = word[1]
        done = stop
        yield start, stop


def _word_after(view: str, at: int) -> tuple[int, int] | None:
    while at < len(view) and view[at] == " ":
        at += 1
    if at == len(view):
        return None
    end = view.find(" ", at)
    return at, len(view) if end < 0 else end


def _joined(view: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those put together between which no word stands."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and (start <= joined[-1][1] or view[joined[-1][1] : start].isspace()):
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def fits(text: str, start: int, end: int) -> bool:
    """Whether what separates two letters may hold symbols: not such as end a word ("stop! now")."""
    signs = [at for at in range(start, end) if text[at] in SYMBOLS]
    return not signs or any(_separates(text, at) for at in signs)


def _separates(text: str, at: int) -> bool:
    """Whether a symbol has white space on both sides or on none."""
    return 0 < at < len(text) - 1 and text[at - 1].isspace() == text[at + 1].isspace()
