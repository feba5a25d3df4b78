"""A copy of a text for matching, in which the ways of writing a letter differently are gone.

`fold` makes it: one lower-case letter for fullwidth, mathematical, small-capital, accented, Cyrillic or Greek ones;
no zero-width and other format characters, no combining marks. Every character is folded by itself
(`confusables.read_as`), so a text may come in pieces. Digits and symbols that stand for letters, and letters written
apart, are left in the copy: a pattern sees through them (`matching`), and numbers stay numbers. Only the copy is
folded; `Folded.original` leads back to the text itself.

Longer runs of separators than `RUN` are cut to it, so that the work around a place in the text has a bound.
"""

from __future__ import annotations

from itertools import chain, repeat

from brix_core.regulated.text.confusables import Readings
from brix_core.regulated.text.letters import view_of
from brix_core.regulated.text.spelling import Words, words_of

RUN = 8
"""Separators that are kept of a run; two ends of line are kept beyond, because a blank line ends a gap."""

AT_ONCE = 2_000
"""Characters of a copy whose words are looked up at once."""

_WIDE = " " * (RUN + 1)


_READINGS = Readings()


class Folded:
    """A text and its copy for matching.

    Attributes:
        source: The text as it came.
        text: The matching copy, in lower case.
        view: The copy in letter classes and spaces, as long as `text`.
        words: The words of the copy, and where they may be written in other ways; ``None`` for a long text, which is
            looked at in parts.
    """

    __slots__ = ("_kept", "_positions", "source", "text", "view", "words")

    def __init__(self, source: str, text: str, view: str, kept: list[int] | None, *, same: bool) -> None:
        self.source = source
        self.text = text
        self.view = view
        self.words: Words | None = words_of(text, view) if len(text) <= AT_ONCE else None
        self._kept = kept
        self._positions: list[int] | range | None = range(len(text)) if same and kept is None else None

    def original(self, start: int, end: int) -> tuple[int, int]:
        r"""Where `start` to `end` of the copy stands in the text.

        Args:
            start: First character, counted in `text`.
            end: One past the last.

        Returns:
            The same stretch of `source`, without marks and invisible characters that follow its last letter.

        Example:
            >>> folded = fold("a le\u200bt\u0301hal dose")
            >>> folded.text[2:8], folded.source[slice(*folded.original(2, 8))]
            ('lethal', 'le\u200bt\u0301hal')
        """
        positions = self.positions
        if start >= end:
            place = positions[start] if start < len(positions) else len(self.source)
            return place, place
        return positions[start], positions[end - 1] + 1

    @property
    def positions(self) -> list[int] | range:
        """For each character of the copy, the index of the character it came from."""
        if self._positions is None:
            readings = _READINGS
            every = list(
                chain.from_iterable(
                    repeat(index, len(readings[ord(character)])) for index, character in enumerate(self.source)
                )
            )
            self._positions = every if self._kept is None else [every[index] for index in self._kept]
        return self._positions

    def raw(self, index: int) -> str:
        """The character of the source behind one of the copy."""
        return self.source[self.positions[index]]


def fold(text: str) -> Folded:
    r"""Make the copy of a text that patterns are matched against.

    Args:
        text: Any text.

    Returns:
        The copy, with the way back.

    Example:
        >>> fold("\uff2c\uff45\u0301th\u0430l \ufb01x").text
        'lethal fix'
    """
    same = text.isascii()
    copy = text.lower() if same else text.translate(_READINGS)
    view = view_of(copy)
    if _WIDE not in view:
        return Folded(text, copy, view, None, same=same)
    kept = narrowed(copy, view)
    return Folded(text, "".join([copy[i] for i in kept]), "".join([view[i] for i in kept]), kept, same=same)


def piece(text: str) -> tuple[str, list[int]]:
    """A piece of a text folded, and for each character of the copy the index in the piece it came from."""
    if text.isascii():
        return text.lower(), list(range(len(text)))
    copies = [_READINGS[ord(character)] for character in text]
    return "".join(copies), [index for index, copy in enumerate(copies) for _ in copy]


class Narrowing:
    """Decides which separators of a run are kept, character by character."""

    __slots__ = ("lines", "run")

    def __init__(self) -> None:
        self.run = 0
        self.lines = 0

    def keeps(self, character: str, seen: str) -> bool:
        """Whether to keep a character of the copy that the view shows as `seen`."""
        if seen != " ":
            self.run = self.lines = 0
            return True
        self.run += 1
        if character == "\n":
            self.lines += 1
            return self.run <= RUN or self.lines <= 2
        return self.run <= RUN


def narrowed(copy: str, view: str) -> list[int]:
    """The indices of a copy that remain when long runs of separators are cut."""
    keeps = Narrowing().keeps
    return [index for index, pair in enumerate(zip(copy, view, strict=True)) if keeps(*pair)]
