"""The value so far of an answer that is still being written.

A text that grows is parsed again only when it has grown by a fiftieth, so that the work stays in proportion to its
length: 100 KB in pieces of four characters take 0.04 s instead of 4.

What is shown is a preview. A string or number at the end may go on, and it is the *first* object or list of the text
that is followed, even if the model corrects itself later: the final answer is `brix_core.structured.extraction`'s.

Example:
    >>> partial_json('Here you are: {"title": "Moby Di')
    {'title': 'Moby Di'}
    >>> growing = PartialJSON()
    >>> [growing.feed(piece) for piece in ("Well, ", '{"a": [', "1, ", "2]}")]
    [None, {'a': []}, {'a': [1]}, {'a': [1, 2]}]
"""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic_core import from_json

GROWTH: Final = 0.02
"""A text is parsed again when it has grown by this share of its length."""

# Possessive, so that a search stays linear. A bracket counts when what follows it begins a key or a value.
_START = re.compile(
    r"\{\s*+(?:[\"}]|\Z)|\[\s*+(?:[\"{\[\]]|(?:[0-9.eE+-]++|true|false|null)\s*+[,\]]|\Z)|(?i:<(?P<closer>/?)(?:think|thinking|reasoning)>)"
)
_CLOSER = re.compile(r"(?i)</(?:think|thinking|reasoning)>")


def _start(text: str) -> int:
    """Where the first object or list outside a think block begins; -1 when there is none yet."""
    at = 0
    while mark := _START.search(text, at):
        if mark.group()[0] != "<":
            return mark.start()
        at = mark.end()
        if not mark["closer"]:
            closer = _CLOSER.search(text, at)
            if closer is None:
                return -1
            at = closer.end()
    return -1


def partial_json(text: str) -> Any | None:
    r"""The value that `text`, the beginning of an answer, holds so far.

    Args:
        text: What the model has written up to now.

    Returns:
        An object or list, possibly with its last string or number unfinished; None when none has begun, or what has
        begun is not JSON.

    Example:
        >>> partial_json("<think>{hm}</think>```json\n[{")
        [{}]
    """
    start = _start(text)
    return None if start < 0 else _parse(text[start:])


def _parse(text: str) -> Any | None:
    try:
        return from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
    except (ValueError, TypeError):  # not JSON; half a surrogate pair
        return None


class PartialJSON:
    """`partial_json` for a text that arrives in pieces.

    Example:
        >>> growing = PartialJSON()
        >>> growing.feed('{"name": "Ad')
        {'name': 'Ad'}
        >>> growing.feed('a"}'), growing.value
        ({'name': 'Ada'}, {'name': 'Ada'})
    """

    def __init__(self) -> None:
        self._text = ""
        self._pieces: list[str] = []
        self._pending = 0
        self._started = False
        self._value: Any | None = None

    def feed(self, text: str) -> Any | None:
        """Add a piece.

        Args:
            text: What has arrived since the last call.

        Returns:
            The value so far, at most a fiftieth of the text behind; None as long as there is none.
        """
        self._pieces.append(text)
        self._pending += len(text)
        return self.value if self._pending > GROWTH * len(self._text) else self._value

    @property
    def value(self) -> Any | None:
        """The value of all that has been fed. What cannot be parsed leaves it as it was."""
        if not self._pending:
            return self._value
        self._text += "".join(self._pieces)
        self._pieces.clear()
        self._pending = 0
        if not self._started and (start := _start(self._text)) >= 0:
            self._text = self._text[start:]  # what stands before is never looked at again
            self._started = True
        if self._started and (value := _parse(self._text)) is not None:
            self._value = value
        return self._value


__all__ = ["GROWTH", "PartialJSON", "partial_json"]
