"""Where the words of a folded copy are, in whatever way they are written.

A word is known by its key: its letters in letter classes, without what stands between them. Most words stand for
themselves. `spelt` reads the others, from a place on: with signs for letters (``k!ll``), with signs between letters
(``le-thal``), or as letters set apart (``l e t h a l``). `unusual` finds the places where that could be.

What is read is more than what `matching` takes for a word, and never less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from brix_core.regulated.folding import SYMBOLS

CONTROLS = dict.fromkeys([*range(9), *range(14, 28), 127])
"""For ``str.translate``: without the control characters, which count as nothing between letters."""
BROKEN = re.compile(r"-[ \t\r]*(?:\n[ \t\r]*)?|\r?\n")
"""What stands in a word that goes on on the next line."""
SHORT = 2
"""Letters at most of a part of a word that is set apart by white space."""

_SIGNS = re.escape(SYMBOLS)
_TOKEN = re.compile(r"[^\W_]+")
_TOKEN_WITH_SIGNS = re.compile(rf"(?:[^\W_]|[{_SIGNS}])+")
_SIGN = re.compile(rf"[{_SIGNS}]")
_BETWEEN = re.compile(r"[\W_]+")
_BETWEEN_WITHOUT_SIGNS = re.compile(rf"(?:_|[^\w{_SIGNS}])+")
_ATOM = re.compile(rf"[^\W_]+|[{_SIGNS}]")
# Signs right behind a word and right before another, without a space; or a hyphen, and perhaps a new line.
_JOINT = re.compile(r"[^\w ]+(?:[^\W_]|(?<=[\x00-\x1f\x7f-])\s)")
_JOINT_OR_UNDERSCORE = re.compile(r"(?:_|[^\w ])+(?:[^\W_]|(?<=[\x00-\x1f\x7f-])\s)")
_SCATTERED = re.compile(r" (?:(?:[^ ]{1,2} +){2,}[^ ]{1,2}|[^ ] +[^ ])(?= )")


def signed(text: str) -> bool:
    """Whether a copy has symbols that may stand for letters."""
    return any(sign in text for sign in SYMBOLS)


def tight(separator: str) -> bool:
    """Whether letters of one word may stand on both sides of it, however many."""
    return (len(separator) <= 3 and not any(map(str.isspace, separator))) or BROKEN.fullmatch(separator) is not None


def spelt(text: str, view: str, start: int, longest: int, *, signs: bool) -> tuple[list[tuple[str, int]], str | None]:
    """Keys of words that may begin at a place, each with where it ends.

    Args:
        text: The copy.
        view: Its view.
        start: A letter, or a symbol that may stand for one.
        longest: Letters that no key exceeds.
        signs: Whether symbols stand for letters; they stand between letters otherwise.

    Returns:
        The keys, and the letters up to the end of the text, if more may follow there.
    """
    token, between = (_TOKEN_WITH_SIGNS, _BETWEEN_WITHOUT_SIGNS) if signs else (_TOKEN, _BETWEEN)
    keys: list[tuple[str, int]] = []
    letters, at, n = "", start, len(text)
    narrow = near = True
    while (piece := token.match(text, at, min(n, at + longest - len(letters) + 1))) is not None:
        stop = piece.end()
        if signs:
            keys += [(letters + view[at : sign.start()], sign.start()) for sign in _SIGN.finditer(text, at + 1, stop)]
        letters += view[at:stop]
        if len(letters) > longest:
            return keys, None
        if stop == n or not text[stop].isalnum():
            keys.append((letters, stop))
        if stop == n:
            return keys, letters
        gap = between.match(text, stop)
        if gap is None:
            return keys, None
        narrow = narrow and stop - at <= SHORT
        separator = gap.group().translate(CONTROLS)
        if stop - at > SHORT and separator[:1] == " ":
            return keys, None
        near = near and (tight(separator) or (separator == "\r" and gap.end() == n))
        if not (near or narrow):
            return keys, None
        if gap.end() == n:
            return keys, letters
        at = gap.end()
    return keys, None


def atoms(text: str, start: int, stop: int) -> Iterator[int]:
    """Where words may begin in a stretch."""
    for atom in _ATOM.finditer(text, start, stop):
        yield atom.start()


def unusual(text: str, view: str, *, signs: bool) -> list[tuple[int, int]]:
    """Stretches in which words may be written in other ways than by their letters alone, in order."""
    found = [stretch.span() for stretch in _SCATTERED.finditer(f" {view} ")]
    spans = [(start, stop - 1) for start, stop in found]
    joints = _JOINT_OR_UNDERSCORE if "_" in text else _JOINT
    for joint in joints.finditer(text):
        start = joint.start()
        if start and view[start - 1] != " ":
            spans.append(_around(view, start - 1, joint.end()))
    if signs:
        spans += _signed(text, view)
    spans.sort()
    return _joined(view, spans)


def _around(view: str, start: int, stop: int) -> tuple[int, int]:
    """From the word at `start` to the word that follows `stop`, or stands there."""
    stop = next((at for at in range(stop - 1, len(view)) if view[at] != " "), len(view))
    end = view.find(" ", stop)
    return view.rfind(" ", 0, start) + 1, len(view) if end < 0 else end


def _signed(text: str, view: str) -> Iterator[tuple[int, int]]:
    """Words with a symbol in them, each with short words beside it."""
    done = 0
    for sign in _SIGN.finditer(text):
        if sign.start() < done:
            continue
        start, stop = _around(view, sign.start(), sign.end())
        while start > done:
            last = len(view[done:start].rstrip(" ")) + done
            first = view.rfind(" ", done, last) + 1
            if not 0 < last - max(first, done) <= SHORT:
                break
            start = max(first, done)
        while True:
            word = _word_after(view, stop)
            if word is None or word[1] - word[0] > SHORT:
                break
            stop = word[1]
        done = stop
        yield start, stop


def _word_after(view: str, at: int) -> tuple[int, int] | None:
    while at < len(view) and view[at] == " ":
        at += 1
    if at == len(view):
        return None
    end = view.find(" ", at)
    return at, len(view) if end < 0 else end


def _joined(view: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those put together between which no word stands."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and (start <= joined[-1][1] or view[joined[-1][1] : start].isspace()):
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
