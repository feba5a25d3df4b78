"""What was found in a text, kept for when the same text comes again: most of a conversation is old."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")

MAX_CHARACTERS: Final = 2_000_000
"""Characters of texts that are kept."""


class Remembering(Generic[_T]):
    """A pure function of a text, with its latest results kept. Safe to share between threads.

    A text that makes up more than a quarter of what is kept is never kept itself.

    Args:
        function: The function. When it fails, nothing is kept.
        most: Characters of texts that are kept; the least recently used go first.

    Example:
        >>> length = Remembering(lambda text: print("counting") or len(text))
        >>> length("abc"), length("abc")
        counting
        (3, 3)
    """

    def __init__(self, function: Callable[[str], _T], most: int = MAX_CHARACTERS) -> None:
        self._function = function
        self._most = most
        self._lock = Lock()
        self._kept: OrderedDict[str, _T] = OrderedDict()
        self.characters = 0

    def __call__(self, text: str) -> _T:
        """The function's result, computed or remembered."""
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        result = self._function(text)
        if 4 * len(text) <= self._most:
            with self._lock:
                self._keep(text, result)
        return result

    def _keep(self, text: str, result: _T) -> None:
        if text not in self._kept:
            self.characters += max(1, len(text))
        self._kept[text] = result
        while self.characters > self._most:
            forgotten, _ = self._kept.popitem(last=False)
            self.characters -= max(1, len(forgotten))


__all__ = ["MAX_CHARACTERS", "Remembering"]
