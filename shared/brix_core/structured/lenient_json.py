r"""Reading what is nearly JSON, without guessing.

One pass from left to right over JSON with the slips models make. What is *meant* must be certain, so that only what
stands between the values is mended: commas (missing, trailing), comments, quotes around keys, Python's words and
quotes, typographic quotes, and the last closing brace of an object. The text of a string is taken as it stands. What
would need a guess is refused: bare words, NaN, duplicate keys, brackets that do not match, ``...``, a cut-off list,
string or number, escapes that can be read in two ways.

Quotes inside a string that nobody escaped are understood only where no other reading exists: in a value of an object,
in pairs, on one line.

Example:
    >>> read("{name: 'Ada', 'tags': ['x',], } // done", 0)
    Reading(value={'name': 'Ada', 'tags': ['x']}, end=31, mended=True, cut=False)
    >>> read('{"a": NaN}', 0)
    Traceback (most recent call last):
    ...
    brix_core.structured.lenient_json.UnreadableError: not a value at character 6
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, NamedTuple

MAX_DEPTH: Final = 200
"""Levels of nesting; pydantic-core stops at the same depth."""

# Each of these is matched at one position, once: none can backtrack over the text.
_SPACE = re.compile(r"[\s\ufeff]*")
_NAME = re.compile(r"[A-Za-z_$][\w$-]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS: Final = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_QUOTES: Final = {'"': '"', "'": "'", "\u201c": "\u201d", "\u201e": "\u201c", "\u2018": "\u2019"}
_ESCAPES: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PYTHON_ESCAPES: Final = frozenset("avxNU01234567\n")
_FENCES: Final = ("```", "~~~")


class Reading(NamedTuple):
    """A value that was read.

    Attributes:
        value: The value.
        end: Position behind it.
        mended: More than Python's way of writing literals had to be understood.
        cut: The last closing brace was missing; every member is complete, further members may be missing.

    Example:
        >>> read('{"a": "b"', 0).cut
        True
    """

    value: Any
    end: int
    mended: bool
    cut: bool


class UnreadableError(Exception):
    """What stands here has no certain meaning.

    Args:
        message: What was found.
        at: Where reading stopped.
        depth: Levels that were open.
        structured: A key in quotes or with its colon, or an item with its comma, had begun: no mere bracket in prose.

    Example:
        >>> UnreadableError("not a value", at=6, depth=1, structured=True).at
        6
    """

    def __init__(self, message: str, *, at: int, depth: int, structured: bool) -> None:
        super().__init__(f"{message} at character {at}")
        self.at = at
        self.depth = depth
        self.structured = structured


class _Frame:
    """A container being read; `state` is what came last in it: "open", "comma" or "value"."""

    __slots__ = ("container", "key", "state")

    def __init__(self, container: dict[str, Any] | list[Any]) -> None:
        self.container = container
        self.key = ""
        self.state = "open"

    def add(self, value: Any) -> None:
        self.state = "value"
        if isinstance(self.container, dict):
            self.container[self.key] = value
        else:
            self.container.append(value)


class _Reader:
    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.at = start
        self.stack: list[_Frame] = []
        self.mended = self.cut = self.structured = self.newline = False
        self.number_end = -1

    def fail(self, message: str) -> UnreadableError:
        return UnreadableError(message, at=self.at, depth=len(self.stack), structured=self.structured)

    def run(self) -> Reading:
        root = self.open()
        while self.stack:
            self.step()
        return Reading(root, self.at, self.mended, self.cut)

    def open(self) -> dict[str, Any] | list[Any]:
        container: dict[str, Any] | list[Any] = {} if self.text[self.at] == "{" else []
        if len(self.stack) >= MAX_DEPTH:
            raise self.fail("nested too deeply")
        if self.stack:
            self.stack[-1].add(container)
        self.stack.append(_Frame(container))
        self.at += 1
        return container

    def step(self) -> None:
        """Read up to the next comma, closing bracket, or value."""
        before = self.at
        self.skip()
        frame, char = self.stack[-1], self.text[self.at : self.at + 1]
        if not char or self.text.startswith(_FENCES, self.at):
            self.close_cut_off(frame)
        elif char in "}]":
            if (char == "}") is not isinstance(frame.container, dict):
                raise self.fail("a bracket that does not match")
            self.mended |= frame.state == "comma"
            self.at += 1
            self.stack.pop()
        elif char == ",":
            if frame.state != "value":
                raise self.fail("a comma without a value")
            self.structured = True
            frame.state = "comma"
            self.at += 1
        else:
            if frame.state == "value":
                self.check_missing_comma(frame, before, char)
            if isinstance(frame.container, dict):
                frame.key = self.key(frame.container)
            self.value(frame)

    def close_cut_off(self, frame: _Frame) -> None:
        """The end of the text: an object may lack its last brace, if nothing shows that more was to come."""
        complete = frame.state == "value" and self.number_end != len(self.text)
        if len(self.stack) > 1 or isinstance(frame.container, list) or not complete:
            raise self.fail("cut off")
        self.stack.pop()
        self.mended = self.cut = True

    def check_missing_comma(self, frame: _Frame, before: int, char: str) -> None:
        """In a list, neighbouring strings could be one string: the items must show where one ends."""
        if isinstance(frame.container, dict):
            certain = self.at > before and char in _QUOTES  # a bare word may be prose behind a missing brace
        else:
            certain = char not in _QUOTES and (self.newline or (self.text[before - 1] in "}]" and char in "{["))
        if not certain:
            raise self.fail("a missing comma")
        self.mended = True

    def skip(self) -> None:
        """Pass white space and comments."""
        self.newline = False
        while True:
            end = self._space_end()
            self.newline = self.newline or "\n" in self.text[self.at : end]
            self.at = end
            if self.text.startswith(("//", "#"), end):
                stop = closing = self.text.find("\n", end)
            elif self.text.startswith("/*", end):
                stop = self.text.find("*/", end + 2)
                closing = stop + 2
            else:
                return
            if stop < 0:
                self.at = len(self.text)
                raise self.fail("a comment without an end")
            comment = self.text[end:stop]
            if "..." in comment or "…" in comment or '":' in comment:
                raise self.fail("a comment that may stand for content")
            self.mended = True
            self.at = closing

    def _space_end(self) -> int:
        match = _SPACE.match(self.text, self.at)
        return match.end() if match else self.at

    def key(self, members: dict[str, Any]) -> str:
        if self.text[self.at] in _QUOTES:
            self.structured = True
            key = self.string(value=False)
        elif name := _NAME.match(self.text, self.at):
            key, self.at, self.mended = name.group(), name.end(), True
        else:
            raise self.fail("not a key")
        self.skip()
        if not self.text.startswith(":", self.at):
            raise self.fail("a key without a colon")
        self.structured = True
        if key in members:
            raise self.fail(f"the key {key[:40]!r} again")
        self.at += 1
        self.skip()
        return key

    def value(self, frame: _Frame) -> None:
        char = self.text[self.at : self.at + 1]
        if char and char in "{[":
            self.open()
        elif char in _QUOTES:
            frame.add(self.string(value=isinstance(frame.container, dict)))
        elif number := _NUMBER.match(self.text, self.at):
            frame.add(self.number(number))
        else:
            word = _NAME.match(self.text, self.at)
            if word is None or word.group() not in _WORDS:
                raise self.fail("not a value")
            frame.add(_WORDS[word.group()])
            self.at = word.end()

    def number(self, match: re.Match[str]) -> int | float:
        following = self.text[match.end() : match.end() + 1]
        if following and not following.isspace() and following not in ",}]/#`~":
            raise self.fail("not a number")
        try:
            number = float(match.group()) if match.group(1) or match.group(2) else int(match.group())
        except ValueError:  # Python converts no integer of more than 4300 digits
            raise self.fail("a number too long") from None
        if math.isinf(number) if isinstance(number, float) else False:
            raise self.fail("a number too large")
        self.at = self.number_end = match.end()
        return number

    def string(self, *, value: bool) -> str:
        opening = self.text[self.at]
        start = self.at + 1
        end = self.closing(_QUOTES[opening], start)
        if value and opening == '"' and not self.ends_value(end):
            end = self.closing_after_inner_quotes(start, end)
        raw = self.text[start:end]
        if opening != '"':
            self.mended |= opening != "'"
            if "\n" in raw:
                raise self.fail("a line end in a string")
        self.at = end + 1
        return self.unescape(raw) if "\\" in raw else raw

    def closing(self, quote: str, start: int, stop: int | None = None) -> int:
        """The position of the next `quote` that is not escaped."""
        at = self.text.find(quote, start, stop)
        while at >= 0:
            back = at
            while back > start and self.text[back - 1] == "\\":
                back -= 1
            if (at - back) % 2 == 0:
                return at
            at = self.text.find(quote, at + 1, stop)
        raise self.fail("a string without an end")

    def ends_value(self, quote: int) -> bool:
        """Whether what follows a quote fits the end of a value: a comma, a bracket, a comment or a line end."""
        at = quote + 1
        while self.text.startswith((" ", "\t"), at):
            at += 1
        return at >= len(self.text) or self.text[at] in ",}]\r\n/#" or (at > quote + 1 and self.text[at] in _QUOTES)

    def closing_after_inner_quotes(self, start: int, first: int) -> int:
        """The end of a string with unescaped quotes in it: the first that fits, if those before come in pairs."""
        line_end = self.text.find("\n", start)
        stop = len(self.text) if line_end < 0 else line_end
        inner, quote = 1, self.closing('"', first + 1, stop)
        while not self.ends_value(quote):
            inner, quote = inner + 1, self.closing('"', quote + 1, stop)
        if inner % 2:
            raise self.fail("quotes in a string that do not pair")
        self.mended = True
        return quote

    def unescape(self, raw: str) -> str:
        parts: list[str] = []
        at = 0
        decoded = kept = False
        while (slash := raw.find("\\", at)) >= 0:
            parts.append(raw[at:slash])
            char = raw[slash + 1]  # there is one: a quote behind a backslash does not close
            at = slash + 2
            if char == "u" and re.fullmatch("[0-9a-fA-F]{4}", raw[at : at + 4]):
                parts.append(chr(int(raw[at : at + 4], 16)))
                at += 4
                decoded = True
            elif char in _ESCAPES or char == "'":
                parts.append(_ESCAPES.get(char, char))
                decoded |= char not in "\"'"
            elif char in _PYTHON_ESCAPES or char == "u":
                raise self.fail("an escape with two meanings")
            else:
                parts.append("\\" + char)
                kept = True
        if kept and decoded:  # a string half escaped: "C:\temp\docs"
            raise self.fail("escapes with two meanings")
        self.mended |= kept
        parts.append(raw[at:])
        try:  # joins the halves of what was written as two escapes
            return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self.fail("half a character") from None


def read(text: str, start: int) -> Reading:
    r"""Read the object or list that begins at `start`.

    Args:
        text: The whole text; what follows the value is not looked at.
        start: Position of its ``{`` or ``[``.

    Returns:
        The value, and what it took to read it. Time is linear in the length of what was read.

    Raises:
        UnreadableError: It has no certain meaning.

    Example:
        >>> read(r'{"say": "he said "hi" to me", "re": "\d+"}', 0).value
        {'say': 'he said "hi" to me', 're': '\\d+'}
    """
    return _Reader(text, start).run()


__all__ = ["MAX_DEPTH", "Reading", "UnreadableError", "read"]
