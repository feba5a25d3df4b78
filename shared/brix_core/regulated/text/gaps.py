"""Where the word after a gap may begin."""

from __future__ import annotations

import re

from brix_core.regulated.text.grammar import GAP_CHARACTERS, GAP_WORDS, unspaced
from brix_core.regulated.text.letters import SYMBOLS

TOKEN = re.compile(r"[^\W_]+")
SIGNS = frozenset(SYMBOLS)


class Gap:
    """A gap after a place of a copy, which may still grow.

    Args:
        end: The place: one past the word before the gap.

    Attributes:
        starts: Where the next word may begin, in order.
        last: Where else, as long as the word that stands there does not go on.
        open: Whether more text may add to that.
    """

    __slots__ = ("_at", "_end", "_lines", "_single", "_size", "_words", "last", "open", "starts")

    def __init__(self, end: int) -> None:
        self._end = self._at = end
        self._size = -1
        self._words = -1
        self._lines = 0
        self._single = False
        self.starts: list[int] = []
        self.last: list[int] = []
        self.open = True

    def go_on(self, text: str, *, final: bool) -> None:
        """Look at what has been added to the copy."""
        n = len(text)
        if not self.open or (self._size == n and not final):
            return
        self._size = n
        self.last = []
        while self._at < n:
            if self._at - self._end > GAP_CHARACTERS or not self._step(text, final=final):
                self.open = False
                return
            if self.last:
                return
        self.open = not final

    def _step(self, text: str, *, final: bool) -> bool:
        """Past one word or sign; whether the gap may go on."""
        at, character = self._at, text[self._at]
        if not character.isalnum():
            self._lines += character == "\n"
            if character in SIGNS and self._lines < 2:
                self.starts.append(at)
            self._at = at + 1
            return self._lines < 2
        token = TOKEN.match(text, at)
        stop = token.end() if token else at + 1
        alone = stop - at == 1
        words = self._words + (not (alone and self._single))
        if words > GAP_WORDS:
            return False
        found = range(at, stop) if unspaced(character) else (at,)
        if stop == len(text) and not final:
            self.last = list(found)
            return True
        self.starts += found
        self._words, self._single, self._lines, self._at = words, alone, 0, stop
        return True
