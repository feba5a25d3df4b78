"""Ways of writing a pattern so that a simple filter misses it, for drafts of test cases and for tests."""

# Letters that are easily taken for others are the content of this file.
# ruff: noqa: RUF001

from __future__ import annotations

from collections.abc import Callable, Iterator

from brix_core.regulated.text.grammar import ways

_FILLING = "safe daily"

_CYRILLIC = str.maketrans("aceopxyijsABCEHKMOPTX", "асеорхуіјѕАВСЕНКМОРТХ")
_GREEK = str.maketrans("aeiopvxkABEHIKMNOPTXZ", "αειορνχκΑΒΕΗΙΚΜΝΟΡΤΧΖ")
_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_SMALL_CAPITALS = str.maketrans("abcdefghijklmnoprtuvwyz", "ᴀʙᴄᴅᴇғɢʜɪᴊᴋʟᴍɴᴏᴘʀᴛᴜᴠᴡʏᴢ")
_FULLWIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)} | {0x20: 0x3000}


def variants(pattern: str) -> Iterator[tuple[str, str]]:
    r"""Twelve evasive ways of writing a pattern.

    A pattern with alternatives stands for its first ones, a gap for two words.

    Args:
        pattern: As in a spec.

    Yields:
        The name of the way, and the text.

    Raises:
        ValueError: The pattern cannot be read.

    Example:
        >>> written = dict(variants("(lethal|fatal) dose"))
        >>> written["spaced"], written["leet"], written["line_break"]
        ('l e t h a l   d o s e', 'l37h4l d053', 'let-\nhal\ndose')
        >>> len(written)
        12
    """
    text = concrete(pattern)
    for name, write in WAYS.items():
        yield name, write(text)


def concrete(pattern: str) -> str:
    """A plain text that the pattern matches.

    Example:
        >>> concrete("=maximum ... (dose|amount)")
        'maximum safe daily dose'
    """
    return " ".join(item.text or _FILLING for item in ways(pattern)[0])


def _letters(between: str) -> Callable[[str], str]:
    return lambda text: " ".join(_apart(word, between) for word in text.split())


def _apart(word: str, between: str) -> str:
    return word if any(map(str.isdigit, word)) else between.join(character for character in word if character.isalnum())


def _spaced(text: str) -> str:
    return "   ".join(_apart(word, " ") for word in text.split())


def _line_break(text: str) -> str:
    return "\n".join(_broken(word) for word in text.split())


def _broken(word: str) -> str:
    middle = len(word) // 2
    return f"{word[:middle]}-\n{word[middle:]}" if len(word) > 5 and word.isalpha() else word


def _leet(text: str) -> str:
    """Digits for letters, with one letter of each word left as it is."""
    return " ".join(_with_digits(word) for word in text.split())


def _with_digits(word: str) -> str:
    written = word.translate(_LEET)
    if any(map(str.isdigit, word)) or any(map(str.isalpha, written)):
        return word if any(map(str.isdigit, word)) else written
    return word[0] + written[1:]


def _alternate_case(text: str) -> str:
    return "".join(c.upper() if index % 2 else c.lower() for index, c in enumerate(text))


WAYS: dict[str, Callable[[str], str]] = {
    "fullwidth": lambda text: text.translate(_FULLWIDTH),
    "case": _alternate_case,
    "zero_width": lambda text: "\u200b".join(text),
    "combining_marks": lambda text: "".join(c + "\u0301" if c.isalpha() else c for c in text),
    "cyrillic": lambda text: text.translate(_CYRILLIC),
    "greek": lambda text: text.translate(_GREEK),
    "leet": _leet,
    "spaced": _spaced,
    "hyphenated": _letters("-"),
    "dotted": _letters("."),
    "line_break": _line_break,
    "small_capitals": lambda text: text.lower().translate(_SMALL_CAPITALS),
}
"""The perturbations, by name."""
