r"""Texts cut in their middle, with a marker that says how much is gone.

The beginning of a long text says what it is, its end is what was said last; what can best be missed is the middle.

Example:
    >>> cut_middle("a" * 50 + "b" * 50, 60, len)
    'aaaaaaaaaaaaaaaaa\n[... 66 tokens cut ...]\nbbbbbbbbbbbbbbbbb'
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

from brix_core.conversation import Codec

LEAST_TEXT: Final = 64
"""Tokens a text is left with, at least: the marker, and some words on both sides."""

MARKER: Final = "\n[... {:,} tokens cut ...]\n"
"""What stands for the middle."""

_TRIES: Final = 24


def cut_middle(text: str, most: int, count: Callable[[str], int]) -> str:
    """A text without its middle.

    Args:
        text: The text.
        most: Tokens it may have, marker included.
        count: Counts the tokens of a text.

    Returns:
        The text itself when it fits; else at most `most` tokens, unless the marker alone has more.
    """
    tokens = count(text)
    if tokens <= most:
        return text
    marker = count(MARKER.format(tokens))
    kept = len(text) * max(0, most - marker) // tokens
    for _ in range(_TRIES):
        found = count(_without_middle(text, kept, tokens))
        if found <= most or not kept:
            break
        kept = max(0, min(kept - 1, kept * most // found - 8))
    return _without_middle(text, kept, tokens - max(0, found - marker))


def _without_middle(text: str, kept: int, tokens: int) -> str:
    tail = kept // 2
    return text[: kept - tail] + MARKER.format(tokens) + text[len(text) - tail :]


def level(sizes: Sequence[int], total: int) -> int:
    """The size to which the largest must come down, so that all together have at most `total`.

    Example:
        >>> level([10, 50, 90], 100), level([10, 50], 100)
        (45, 50)
    """
    left = total
    for number, size in enumerate(ordered := sorted(sizes)):
        if size * (len(ordered) - number) > left:
            return max(0, left // (len(ordered) - number))
        left -= size
    return max(sizes, default=0)


class _Text(NamedTuple):
    message: int
    place: int
    tokens: int


def shorten(
    messages: Sequence[Any], codec: Codec, excess: int, count: Callable[[str], int], last: Collection[int] = ()
) -> list[Any] | None:
    """Messages that have fewer tokens, because their longest texts were cut; untouched ones are the same objects.

    Args:
        messages: The framework's own.
        codec: How to change them.
        excess: Tokens to be rid of.
        count: Counts the tokens of a text.
        last: Positions of messages that are cut only when cutting the others does not suffice.

    Returns:
        The messages, or None when all texts are as short as they may get.
    """
    texts = [text for number, message in enumerate(messages) for text in _texts_of(number, message, codec, count)]
    limits: dict[tuple[int, int], int] = {}
    for group in (
        [text for text in texts if text.message not in last],
        [text for text in texts if text.message in last],
    ):
        sizes = [text.tokens for text in group]
        gain = min(excess, sum(size - LEAST_TEXT for size in sizes))
        if gain > 0:
            excess -= gain
            height = level(sizes, sum(sizes) - gain)
            limits |= {(text.message, text.place): height for text in group if text.tokens > height}
    if excess > 0:
        return None
    touched = {number for number, _ in limits}
    return [
        _with_limits(message, number, codec, limits, count) if number in touched else message
        for number, message in enumerate(messages)
    ]


def _texts_of(number: int, message: Any, codec: Codec, count: Callable[[str], int]) -> list[_Text]:
    """The texts of a message that can be cut."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    codec.map_text(message, note)
    sizes = [_Text(number, place, count(text)) for place, text in enumerate(found)]
    return [text for text in sizes if text.tokens > LEAST_TEXT]


def _with_limits(
    message: Any, number: int, codec: Codec, limits: dict[tuple[int, int], int], count: Callable[[str], int]
) -> Any:
    place = -1

    def cut(text: str) -> str:
        nonlocal place
        place += 1
        most = limits.get((number, place))
        return text if most is None else cut_middle(text, most, count)

    return codec.map_text(message, cut)


__all__ = ["LEAST_TEXT", "cut_middle", "level", "shorten"]
