"""Whether a phrase stands at a place of a folded copy: word edges, forms, substitutes, letters apart, gaps.

`Search` answers for one copy. What it has found out about a place it keeps, so each word of each phrase is tried at a
place once, however many phrases, gaps and partial hits overlap there: the work is linear in the text. For a text that
is not complete yet, an answer that depends on what is still to come is `OPEN`.

How a word may be written, beside as it is:

* With digits or symbols for letters, if at least one of its own letters is there: ``k1ll``, and not ``10`` for "io".
  Among such words one may be of digits alone: ``h0w 70 m4k3 4 b0mb``.
* With other signs between its letters, without white space: ``le-thal``, ``l.e.t.h.a.l``, or broken over two lines.
* With white space between single letters or pairs: ``l e t h a l``. Then what looks like more letters of the same
  word at either end counts as such: "skills" does not contain "kill", spaced apart either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from brix_core.regulated.text.gaps import SIGNS, TOKEN, Gap
from brix_core.regulated.text.grammar import Phrase, Word
from brix_core.regulated.text.letters import SUBSTITUTES
from brix_core.regulated.text.spelling import BROKEN, CONTROLS, fits, signed, spelt, tight

NONE = -1
OPEN = -2

_EVEN_RUN = 14
"""Letters spaced evenly from which on nobody can tell where words end: a part of them will do."""
LOOK_BACK = 200
"""Characters before a match that may decide about it: an even run, with its separators."""

_BROKEN_FROM = 5
_MIXED = re.compile(r"[^\W\d_]\d+[^\W\d_]")
_BESIDE = 16
_APOSTROPHE = re.compile("[^\\W_]{2}['`\u2019\u00b4\u02bc]")
"""Before the last letter of "father's" and "don't", which is none of letters that are set apart."""
_ONE_LETTER_WORDS = frozenset("ai")

_Ends: TypeAlias = tuple[tuple[int, ...], bool]
_NOWHERE: _Ends = ((), False)

Readings: TypeAlias = tuple[tuple[tuple[str, int], ...], tuple[str, ...]]
"""Keys with their ends, and letters at the end of the text that may turn into keys."""


class Search:
    """Looks for phrases in one copy.

    Args:
        text: The copy.
        view: Its view.
        raw: Tells the character of the original behind one of the copy, by its index.
        longest: Letters of the longest key of a word.
        final: Whether nothing follows.

    Attributes:
        text: The copy.
        view: Its view.
        signs: Whether it has symbols that may stand for letters.
    """

    def __init__(self, text: str, view: str, raw: Callable[[int], str], longest: int, *, final: bool = True) -> None:
        self._raw = raw
        self._longest = longest
        self._readings: dict[int, Readings] = {}
        self._ends: dict[tuple[Word, int], _Ends] = {}
        self._from: dict[tuple[Phrase, int, int], int] = {}
        self._gaps: dict[int, Gap] = {}
        self.grow(text, view, final=final)

    def grow(self, text: str, view: str, *, final: bool) -> None:
        """Go on with a longer copy that begins with the same text: what is known stays known, unless it was open."""
        self.text = text
        self.view = view
        self._final = final
        self._n = len(text)
        self.signs = signed(text)
        self._open_readings: dict[int, Readings] = {}
        self._open_ends: dict[tuple[Word, int], _Ends] = {}
        self._open_from: set[tuple[Phrase, int, int]] = set()

    def at(self, phrase: Phrase, start: int) -> int:
        """Where a phrase ends that begins at `start`: one past its end, `NONE`, or `OPEN`."""
        return self._match(phrase, 0, start)

    def _match(self, phrase: Phrase, index: int, start: int) -> int:
        ends, open_ = self.ends(phrase.words[index], start)
        if index + 1 == len(phrase.words):
            return ends[0] if ends else (OPEN if open_ else NONE)
        if not ends:
            return OPEN if open_ else NONE
        key = (phrase, index, start)
        if key in self._open_from:
            return OPEN
        known = self._from.get(key)
        if known is None:
            known = self._on(phrase, index + 1, ends, open_)
            if known == OPEN:
                self._open_from.add(key)
            else:
                self._from[key] = known
        return known

    def _on(self, phrase: Phrase, index: int, ends: tuple[int, ...], open_: bool) -> int:
        for end in ends:
            starts = self._after_gap(end) if phrase.gaps[index] else self.next(end)
            for start in starts:
                found = OPEN if start < 0 else self._match(phrase, index, start)
                if found != NONE:
                    return found
        return OPEN if open_ else NONE

    def next(self, end: int) -> Iterator[int]:
        """Where the word right after `end` may begin."""
        text, at = self.text, end
        while at < self._n:
            if text[at].isalnum():
                yield at
                return
            if text[at] in SIGNS:
                yield at
            at += 1
        if not self._final:
            yield OPEN

    def gap(self, end: int) -> Gap:
        """The gap after a place."""
        gap = self._gaps.get(end)
        if gap is None:
            gap = self._gaps[end] = Gap(end)
        if gap.open:
            gap.go_on(self.text, final=self._final)
        return gap

    def _after_gap(self, end: int) -> Iterator[int]:
        gap = self.gap(end)
        yield from gap.starts
        yield from gap.last
        if gap.open:
            yield OPEN

    def ends(self, word: Word, start: int) -> _Ends:
        """Where a word ends that begins at `start`, and whether more text could add to that."""
        key = (word, start)
        known = self._ends.get(key) or self._open_ends.get(key)
        if known is None:
            known = self._ends_of(word, start)
            (self._open_ends if known[1] else self._ends)[key] = known
        return known

    def readings(self, start: int) -> Readings:
        """Keys of words that may begin at a place, where words have edges."""
        known = self._readings.get(start) or self._open_readings.get(start)
        if known is None:
            known = self._read(start)
            (self._open_readings if known[1] else self._readings)[start] = known
        return known

    def _read(self, start: int) -> Readings:
        text, view = self.text, self.view
        stop = view.find(" ", start)
        if stop - start > 2 and text[stop] == " " and not self.signs:
            return (((view[start:stop], stop),) if stop - start <= self._longest else ()), ()
        keys, partial = spelt(text, view, start, self._longest, signs=True)
        partials = {partial}
        if self.signs and text[start].isalnum():
            more, partial = spelt(text, view, start, self._longest, signs=False)
            keys += [key for key in more if key not in keys]
            partials.add(partial)
        return tuple(keys), () if self._final else tuple(letters for letters in partials if letters is not None)

    def _ends_of(self, word: Word, start: int) -> _Ends:
        if word.free:
            return self._spelled(word.forms, start, free=True)
        if self.view[start] not in word.initials or (start and self.text[start - 1].isalnum()):
            return _NOWHERE
        keys, partials = self.readings(start)
        found = [key for key, _ in keys if key in word.keys]
        open_ = bool(partials) and not word.prefixes.isdisjoint(partials)
        if not found and not open_:
            return _NOWHERE
        token = TOKEN.match(self.text, start)
        if (
            token is not None
            and token.end() < self._n
            and token.group() in word.exact
            and not (self.text[start].isdigit() or self.text[token.end() - 1].isdigit())
        ):
            return (token.end(),), False
        if open_:
            return self._spelled(word.forms, start)
        if len(found) == 1:
            return self._spelled(word.keys[found[0]], start)
        met = {form for key in found for form in word.keys[key]}
        return self._spelled(tuple(form for form in word.forms if form in met), start)

    def _spelled(self, forms: tuple[str, ...], start: int, *, free: bool = False) -> _Ends:
        found: list[int] = []
        for form in forms:
            for signs in (True, False) if self.signs else (True,):
                end = _Spelling(self, form, start, signs, free).end()
                if end == OPEN:  # the first one counts, and this may turn out to be it
                    return tuple(found), True
                if end != NONE and end not in found:
                    found.append(end)
        return tuple(found), False

    def missing(self) -> int:
        """What a place beyond the end means."""
        return NONE if self._final else OPEN

    def raw(self, index: int) -> str:
        """The character of the text behind one of the copy."""
        return self._raw(index)


class _Spelling:
    """One form of a word, letter by letter, from one place on."""

    __slots__ = ("_form", "_free", "_own", "_pieces", "_search", "_seps", "_signs", "_start", "_tricks")

    def __init__(self, search: Search, form: str, start: int, signs: bool, free: bool) -> None:
        self._search = search
        self._form = form
        self._start = start
        self._signs = signs and len(form) > 2
        self._free = free
        self._own = 0
        self._tricks: list[int] = []
        self._seps: list[str] = []
        self._pieces: list[int] = [0]

    def end(self) -> int:
        """One past its last letter, or `NONE`, or `OPEN`."""
        search, text, at = self._search, self._search.text, self._start
        for letter in self._form:
            if at >= len(text):
                return search.missing()
            if not self._takes(letter, at):
                after = self._separated(at)
                if after < 0:
                    return after
                if not self._takes(letter, after):
                    return NONE
                at = after
            self._pieces[-1] += 1
            at += 1
        return self._judged(at)

    def _takes(self, letter: str, at: int) -> bool:
        """Whether the character is the letter or stands for it."""
        character = self._search.text[at]
        if character == letter:
            self._own += 1
            return True
        if character in SUBSTITUTES.get(letter, "") and (self._signs or character.isdigit()):
            return True
        if (letter == "l" and character == "i") or (letter == "i" and character == "l"):
            if self._search.raw(at) != ("I" if letter == "l" else "l"):
                return False
            self._tricks.append(at)
            return True
        return False

    def _separated(self, at: int) -> int:
        """Past the separators at a place inside the word, where they may be there."""
        text, begun = self._search.text, at
        if begun == self._start:
            return NONE
        while at < len(text) and not text[at].isalnum() and not (self._signs and text[at] in SIGNS):
            at += 1
        if at == begun:
            return NONE
        separator = text[begun:at].translate(CONTROLS)
        if self._pieces[-1] > 2 and separator[:1] == " ":
            return NONE
        if at == len(text):
            return self._search.missing()
        if not self._signs and not fits(text, begun, at):
            return NONE
        self._seps.append(separator)
        self._pieces.append(0)
        return at

    def _judged(self, end: int) -> int:
        """What to say of a word whose letters are all there."""
        text = self._search.text
        if self._free:
            return end
        if self._tricks and not self._tricked(end):
            return NONE
        if end < len(text) and text[end].isalnum():
            return NONE
        if end == len(text) and self._search.missing() == OPEN:
            return OPEN
        if self._own < min(2 if self._seps else 1, len(self._form)):
            return NONE if self._seps else self._among_digits(end)
        if self._form[0].isdigit() or self._form[-1].isdigit():
            return NONE if self._seps else self._number(end)
        if not self._seps:
            return end
        return self._apart(end)

    def _tricked(self, end: int) -> bool:
        """Whether a capital I stands for an l among small letters, or a small l for an I among capitals."""
        search = self._search
        others = [
            search.raw(at) for at in range(self._start, end) if at not in self._tricks and search.text[at].isalpha()
        ]
        small = sum(other.islower() for other in others)
        if search.text[self._tricks[0]] == "i":
            return small > 0
        return small * 2 < len(others)

    def _among_digits(self, end: int) -> int:
        """A word of digits alone is read as letters only beside words with digits in their midst: "h0w 70 m4k3"."""
        text = self._search.text
        if _MIXED.search(text, max(0, self._start - _BESIDE), self._start) or _MIXED.search(text, end, end + _BESIDE):
            return end
        return NONE if end + _BESIDE <= len(text) else self._search.missing()

    def _number(self, end: int) -> int:
        """A number is not a part of a longer one."""
        text, start = self._search.text, self._start
        if self._form[0].isdigit() and start > 1 and text[start - 1] in ".," and text[start - 2].isdigit():
            return NONE
        if self._form[-1].isdigit() and end < len(text) and text[end] in ".,":
            if end + 1 == len(text):
                return end if self._search.missing() == NONE else OPEN
            return NONE if text[end + 1].isdigit() else end
        return end

    def _apart(self, end: int) -> int:
        """Whether its letters may stand apart like this."""
        if any(character.isdigit() for character in self._form):
            return NONE
        if max(self._pieces) == 1:
            return self._even(end)
        if all(map(self._tight, self._seps)):
            return end
        return end if len(self._pieces) > 2 and max(self._pieces) <= 2 else NONE

    def _tight(self, separator: str) -> bool:
        if BROKEN.fullmatch(separator):
            return separator[0] == "-" or len(self._form) >= _BROKEN_FROM
        return tight(separator)

    def _even(self, end: int) -> int:
        """Single letters: whether the word ends where they, or what stands between them, end or change."""
        before, before_all = self._run(self._start, -1)
        if before_all == OPEN:
            return OPEN
        after, after_all = self._run(end - 1, 1)
        if after_all == OPEN:
            return OPEN
        if before_all + len(self._form) + after_all >= _EVEN_RUN:
            return end
        return end if all(not more or more in _ONE_LETTER_WORDS for more in (before, after)) else NONE

    def _run(self, at: int, step: int) -> tuple[str, int]:
        """Single letters that go on from `at`, set apart in the same way; and how many, or `OPEN`."""
        text, letters = self._search.text, ""
        n = len(text)
        while len(letters) < _EVEN_RUN:
            near = at + step
            far = near
            while 0 <= far < n and not text[far].isalnum():
                far += step
            if far == n:
                return (letters, len(letters)) if self._search.missing() == NONE else ("", OPEN)
            if far < 0 or far == near:
                break
            between = text[near:far] if step > 0 else text[far + 1 : near + 1]
            beyond = far + step
            if between.translate(CONTROLS) not in self._seps or text[far].isdigit():
                break
            if beyond == n and self._search.missing() == OPEN:
                return "", OPEN
            if 0 <= beyond < n and text[beyond].isalnum():
                break
            if step < 0 and _APOSTROPHE.fullmatch(text, max(0, far - 3), far):
                break
            letters += text[far]
            at = far
        return letters, len(letters)
