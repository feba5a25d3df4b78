r"""Text as its reader sees it: markup taken out, escapes resolved.

Models write HTML, JSON and Markdown. ``<b>lethal</b> dose``, ``lethal&nbsp;dose``, ``[lethal](https://...) dose`` and,
in the arguments of a tool call, ``"lethal\ndose"`` are read as the same two words. Answers are looked at both ways, as
they are and like this. Asterisks and other signs need no rendering: patterns see through them.
"""

from __future__ import annotations

import html
import re
from collections import deque
from typing import Final

LONGEST_TAG: Final = 500
"""Characters of a tag or of a link's address; what is longer is text."""

_TAG: Final = rf"</?[A-Za-z!][^<>\n]{{0,{LONGEST_TAG}}}>"
_TOKEN: Final = re.compile(
    r"(?P<pair>\\{1,9}u[dD][89abAB][0-9a-fA-F]{2}\\{1,9}u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?P<code>\\{1,9}u[0-9a-fA-F]{4})"
    r"|(?P<white>\\{1,9}[nrtfb])"
    r"|(?P<entity>&(?:[A-Za-z][A-Za-z0-9]{1,30}|\#[0-9]{1,7}|\#[xX][0-9a-fA-F]{1,6});)"
    rf"|(?P<tag>{_TAG})"
    rf"|(?P<link>\]\([^()\s]{{0,{LONGEST_TAG}}}\))"
)
_CUT_OFF: Final = re.compile(
    r"(?:\\{1,9}u[dD][89abAB][0-9a-fA-F]{2}(?:\\{1,9}(?:u[0-9a-fA-F]{0,3})?)?"
    r"|\\{1,9}(?:u[0-9a-fA-F]{0,3})?"
    r"|&(?:[A-Za-z][A-Za-z0-9]{0,30}|\#[0-9]{0,7}|\#[xX][0-9a-fA-F]{0,6})?"
    rf"|<(?:/?(?:[A-Za-z!][^<>\n]{{0,{LONGEST_TAG}}})?)"
    rf"|\](?:\([^()\s]{{0,{LONGEST_TAG}}})?)\Z"
)
"""What may be the beginning of a token, at the end of a piece. Every repetition is bounded: the work is linear."""
_APART: Final = re.compile(r"</?(?:br|p|div|li|ul|ol|td|th|tr|h[1-6]|hr|pre|table|section)\b", re.IGNORECASE)
"""Tags that part words; others stand inside them, too."""
_REACH: Final = LONGEST_TAG + 20

MARKED: Final = re.compile(r"[\\&<\]]")
"""What a text without any markup or escapes has none of."""


class Rendering:
    r"""Renders a text that comes in pieces, and remembers where what it gave stood.

    Args:
        start: Where the first piece begins.

    Example:
        >>> rendering = Rendering()
        >>> rendering.feed("a <b>bo"), rendering.feed("ld</b> w&nbs"), rendering.feed("p;ord"), rendering.finish()
        ('a bo', 'ld w', '\xa0ord', '')
        >>> rendering.original(2), rendering.original(7)
        (5, 14)
    """

    __slots__ = ("_given", "_marks", "_pending", "_taken")

    def __init__(self, start: int = 0) -> None:
        self._pending = ""
        self._taken = start
        self._given = 0
        self._marks: deque[tuple[int, int]] = deque([(0, start)])

    def feed(self, piece: str) -> str:
        """What the next piece adds; the beginning of what may be markup waits for its end."""
        text = self._pending + piece
        cut = _CUT_OFF.search(text, max(0, len(text) - _REACH))
        end = len(text) if cut is None else cut.start()
        self._pending = text[end:]
        return self._rendered(text[:end])

    def finish(self) -> str:
        """What waited for its end, which has not come."""
        text, self._pending = self._pending, ""
        return self._rendered(text)

    def original(self, position: int) -> int:
        """Where a position of the rendered text stood. To be asked in ascending order: the rest is forgotten."""
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= position:
            marks.popleft()
        given, taken = marks[0]
        return taken + position - given

    def _rendered(self, text: str) -> str:
        parts: list[str] = []
        done = 0
        for token in _TOKEN.finditer(text):
            shown = _shown(token)
            parts += text[done : token.start()], shown
            self._given += token.start() - done + len(shown)
            done = token.end()
            self._marks.append((self._given, self._taken + done))
        parts.append(text[done:])
        self._given += len(text) - done
        self._taken += len(text)
        return "".join(parts)


def rendered(text: str) -> str:
    r"""A whole text as its reader sees it.

    Example:
        >>> rendered("lethal<br>dose"), rendered("a [lethal](https://x.org) <b>d</b>ose"), rendered(r'"a\nb"')
        ('lethal dose', 'a [lethal] dose', '"a b"')
        >>> rendered("a < b and b > c")
        'a < b and b > c'
    """
    if MARKED.search(text) is None:
        return text
    rendering = Rendering()
    return rendering.feed(text) + rendering.finish()


def _shown(token: re.Match[str]) -> str:
    kind, text = token.lastgroup, token.group()
    if kind == "code":
        return chr(int(text[-4:], 16))
    if kind == "pair":
        high, low = (int(part.lstrip("\\u"), 16) for part in re.findall(r"\\{1,9}u[0-9a-fA-F]{4}", text))
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    if kind == "white":
        return " "
    if kind == "entity":
        return html.unescape(text)
    if kind == "tag":
        return " " if _APART.match(text) else ""
    return "]"


__all__ = ["LONGEST_TAG", "MARKED", "Rendering", "rendered"]
