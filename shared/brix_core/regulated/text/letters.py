"""Letters, and the digits and symbols that stand for them."""

from __future__ import annotations

SUBSTITUTES = {
    "a": "4@",
    "b": "86",
    "e": "3€",
    "g": "96",
    "i": "1!|",
    "l": "1!|£",
    "o": "0",
    "s": "5$",
    "t": "7+",
    "z": "2",
    "c": "¢",
    "y": "¥",
}
"""Digits and symbols read as a letter, inside a word that has a real letter too."""

SYMBOLS = "".join(sorted({sign for signs in SUBSTITUTES.values() for sign in signs if not sign.isdigit()}))

# Letters that share a substitute share a class: i and l, b and g.
_CLASSES = {"l": "i", "g": "b"} | {
    sign: {"l": "i", "g": "b"}.get(letter, letter) for letter, signs in SUBSTITUTES.items() for sign in signs
}


class _View(dict[int, str]):
    """For ``str.translate``: one class for letters that share a substitute, a space for what is no letter."""

    def __missing__(self, codepoint: int) -> str:
        character = chr(codepoint)
        seen = character if character.isalnum() else " "
        if len(self) < 20_000:
            self[codepoint] = seen
        return seen


_VIEW = _View({ord(key): value for key, value in _CLASSES.items()})
_WITHOUT_SYMBOLS = _View({**_VIEW, **{ord(sign): " " for sign in SYMBOLS}})


def view_of(copy: str) -> str:
    """The view of a copy: letters in classes, with digits and symbols for letters among them, and spaces."""
    return copy.translate(_VIEW)


def without_symbols(copy: str) -> str:
    """The view of a copy in which symbols separate letters instead of standing for one."""
    return copy.translate(_WITHOUT_SYMBOLS)
