"""The regular forms of an English word: plural, third person, past and -ing."""

from __future__ import annotations

_VOWELS = frozenset("aeiou")
_SIBILANTS = ("s", "x", "z", "ch", "sh", "o")


def inflected(word: str) -> tuple[str, ...]:
    """A word and its regular inflections, the word itself first.

    Words of fewer than three letters, with a digit, or of another script than Latin have no other form.

    Args:
        word: In lower case.

    Returns:
        Forms by spelling rules alone: a few of them exist in no dictionary, and irregular ones are missing.

    Example:
        >>> inflected("dose")
        ('dose', 'doses', 'dosed', 'dosing')
        >>> inflected("therapy")[1:3], "stopped" in inflected("stop"), inflected("mg")
        (('therapies', 'therapied'), True, ('mg',))
    """
    if len(word) < 3 or not (word.isascii() and word.isalpha()):
        return (word,)
    last, before = word[-1], word[-2]
    forms = [word]
    if last == "y" and before not in _VOWELS:
        forms += [word[:-1] + "ies", word[:-1] + "ied", word + "ing"]
    elif word.endswith("ie"):
        forms += [word + "s", word + "d", word[:-2] + "ying"]
    elif last == "e":
        forms += [word + "s", word + "d", word[:-1] + "ing"]
        if before in "eoy":
            forms.append(word + "ing")
    else:
        forms += [word + "s", word + "ed", word + "ing"]
        if word.endswith(_SIBILANTS):
            forms.append(word + "es")
        if last not in _VOWELS | set("wxy") and before in _VOWELS:
            forms += [word + last + "ed", word + last + "ing"]
    return tuple(dict.fromkeys(forms))
