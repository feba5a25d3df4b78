"""What each character is read as: the table behind `fold`, made from Unicode's own data and a list of look-alikes.

Most of it is computed for a character when it is first seen, from `unicodedata`: the compatibility decomposition
(fullwidth, mathematical, circled, superscript letters, ligatures), its category (marks and format characters vanish),
its full case folding, its value as a digit, and its name ("LATIN SMALL LETTER O WITH STROKE" is an o). What no name
tells is in `LOOK_ALIKES`, written for this toolkit: letters of Cyrillic, Greek, Armenian, Cherokee, Lisu and Coptic
that most fonts draw like a Latin one, each checked against the shape of the glyph, and small letters of those scripts
whose *capital* is so drawn, because case is folded too.
"""

# Letters that are easily taken for others are the content of this file.
# ruff: noqa: RUF001

from __future__ import annotations

import re
import unicodedata

LOOK_ALIKES = {
    "a": "аɑαΑАᎪꓮⲀⲁƛ",
    "b": "вьъВЬβΒᏏᏴꓐҍ",
    "c": "сСϲϹᏟꓚⲤⲥↄɔƆ",
    "d": "ԁԀᎠꓓδժ",
    "e": "еЕєЄεΕϵᎬꓰℯə",
    "f": "ϝϜꓝғҒք",
    "g": "ԍԌᏀꓖցɡ",
    "h": "һҺнНΗᎻꓧհҥӊ",
    "i": "іІιΙɩɪӀꓲᎥ",
    "j": "јЈϳᎫꓙյ",
    "k": "кКκΚᏦꓗⲔⲕҝқҡ",
    "l": "ӏᏞꓡǀɭ∣",
    "m": "мМΜᎷꓟⲘⲙ",
    "n": "пПηΝꓠոռŋ",
    "o": "оОοΟσθօՕⲞⲟꓳ၀ഠ",
    "p": "рРρΡᏢꓑⲢⲣ",
    "q": "ԛԚզգ",
    "r": "гГᎡᏒꓣɼґ",
    "s": "ѕЅᏚꓢςʂտ",
    "t": "тТτΤᎢꓔⲦⲧҭ",
    "u": "υսꓴμцʋ",
    "v": "νѵѴᏙꓦ",
    "w": "ԝԜшШщωᎳꓪա",
    "x": "хХχΧꓫⲬⲭ",
    "y": "уУүҮΥγꓬⲨⲩ",
    "z": "ΖζᏃꓜ",
}
_LATIN = {other: letter for letter, others in LOOK_ALIKES.items() for other in others}

_NAMED = re.compile(r".*?\b(?:LATIN|INDICATOR SYMBOL) .*?\bLETTER (?:[A-Z]+ )*?([A-Z]{1,2})(?: WITH .*)?")
_INVISIBLE = {"Cf", "Mn", "Me", "Cc", "Cs"}
# Default-ignorable code points (DerivedCoreProperties.txt) whose category does not say so.
_IGNORABLE = frozenset([0x115F, 0x1160, 0x2065, 0x3164, 0xFFA0, *range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000)])
_LINE_ENDS = "\u0085\u2028\u2029"


def read_as(character: str) -> str:
    r"""What one character is read as: nothing, one or several characters in lower case.

    It depends on no neighbour, so a text may be folded in pieces.

    Example:
        >>> [read_as(c) for c in "\uff21\u0430\u200b\ufb01ø1"]
        ['a', 'a', '', 'fi', 'o', '1']
    """
    if character.isascii():
        return character.lower()
    if character in _LINE_ENDS:
        return "\n"
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category in _INVISIBLE or ord(character) in _IGNORABLE:
        return ""
    if letter := _LATIN.get(character):
        return letter
    for simpler in (unicodedata.normalize("NFKD", character), character.casefold()):
        if simpler != character:
            return "".join(map(read_as, simpler))
    return _by_name(character, category)


def _by_name(character: str, category: str) -> str:
    if category == "Pd":
        return "-"
    digit = unicodedata.digit(character, None)
    if digit is not None:
        return str(digit)
    named = _NAMED.fullmatch(unicodedata.name(character, ""))
    return named[1].lower() if named else character


class Readings(dict[int, str]):
    """`read_as` for ``str.translate``; it keeps what it was asked for, up to a limit."""

    def __missing__(self, codepoint: int) -> str:
        reading = read_as(chr(codepoint))
        if len(self) < 20_000:
            self[codepoint] = reading
        return reading
