r"""Getting JSON out of what models write.

The whole text is tried first. Then its parts: think blocks are passed over, and what stands in code fences and in prose
is read from left to right, each object or list as strict JSON or, failing that, by `brix_core.structured.lenient_json`.

Which comes first. A model that drafts and then corrects itself means the last one, so candidates come last to first:
those in code fences before those in prose, objects before lists, empty ones at the end. A caller with a schema takes
the first that fits.

What is refused rather than guessed:

- A part that began as JSON and has no certain meaning (cut off in a list, a string or a number; bare words) makes
  everything before it a draft: only what follows is a candidate, and nothing inside it.
- Values side by side with nothing but white space or commas between them are not drafts but one broken list, unless
  they are equal. A value that is a member of something broken (``"a": {...}``, ``{...}, "b"``) is no candidate either.
- An object without its last brace is a candidate if all its members are complete (``cut=True``): a schema must tell
  whether others are missing. A cut-off list is none: nothing tells how long it was to be.
- NaN and Infinity are no JSON, and no text gives them.

As in every JSON parser, the last of duplicate keys counts in text that is strict JSON.

Example:
    >>> extract('Sure!\n```json\n{"city": "Oslo",}\n```')
    Extracted(value={'city': 'Oslo'}, how='repaired', cut=False)
    >>> [found.value for found in candidates('First {"a": 1}, no, wait: {"a": 2}')]
    [{'a': 2}, {'a': 1}]
    >>> print(extract("I cannot answer that."))
    None
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from pydantic_core import from_json

from brix_core.structured.lenient_json import MAX_DEPTH, UnreadableError, read

How = Literal["strict", "fenced", "embedded", "literal", "repaired"]
"""How a value was got: strict JSON (the whole text, in a fence or behind a think block, in prose); as Python literals
or with line ends inside strings; or mended."""

MAX_STARTS: Final = 4096
"""Values and brackets in a text that are tried, before the search is given up without a result."""

# None of these can backtrack over the text: what repeats in them is possessive, and matches white space only.
_MARK = re.compile(
    r"\{\s*+[\"'\u2018\u201c\u201e}/#A-Za-z_$]|\[\s*+[\"'\u2018\u201c\u201e{\[\]/#0-9tfnTFN-]"
    r"|(?i:<(?P<closer>/?)(?:think|thinking|reasoning)>)"
)
_FENCE = re.compile("```|~~~")
_CLOSER = re.compile(r"(?i)</(?:think|thinking|reasoning)>")
_INSIDE_BROKEN = re.compile(r"(?i)[{}\[\]\"]|```|~~~|</(?:think|reasoning)")
_GOES_ON = re.compile(r"\s*+,\s*+[\"{\[]")
_HUGE_EXPONENT = re.compile(r"[eE]\+?[0-9]{3}")


class Extracted(NamedTuple):
    """A value found in a text.

    Attributes:
        value: The value, made of what `json.loads` makes.
        how: How it was got.
        cut: The last brace was missing; members may be, too.

    Example:
        >>> extract('{"a": 1}')
        Extracted(value={'a': 1}, how='strict', cut=False)
    """

    value: Any
    how: How
    cut: bool = False


@dataclass(slots=True)
class _Part:
    """A stretch of text that is a value, or one without certain meaning (`found` is None)."""

    start: int
    end: int
    found: Extracted | None
    fenced: bool = False


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(digits)
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=_refuse_constant)


def _strict(text: str) -> Extracted | None:
    try:
        value = from_json(text, allow_inf_nan=False)
        if _HUGE_EXPONENT.search(text):
            _DECODER.decode(text)  # refuses what from_json reads as infinity
    except (ValueError, TypeError, RecursionError):
        return None
    return Extracted(value, "strict")


class _Scan:
    """One pass over a text: its parts, in order."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.end = len(text.rstrip())
        self.thought_end = 0
        self.parts: list[_Part] = []
        self.misses = 0

    def run(self) -> list[_Part]:
        while mark := _MARK.search(self.text, self.at):
            if mark.group()[0] != "<":
                self.read_part(mark.start())
            elif mark["closer"]:  # the block began in the prompt
                self.parts.clear()
                self.at = self.thought_end = mark.end()
            else:
                closer = _CLOSER.search(self.text, mark.end())
                self.at = self.thought_end = closer.end() if closer else len(self.text)
            if self.misses + len(self.parts) > MAX_STARTS:
                return []
        return self.parts

    def read_part(self, start: int) -> None:
        fenced = self.is_fenced(start)
        try:
            found, end = self.decode(start, fenced)
        except (ValueError, RecursionError):
            try:
                value, end, mended, cut = read(self.text, start)
            except UnreadableError as error:
                self.pass_unreadable(start, error)
                return
            found = Extracted(value, "repaired" if mended else "literal", cut)
        self.at = end
        if self.is_member(start):
            self.parts.append(_Part(start, end, None, fenced))
        elif not _GOES_ON.match(self.text, end):
            self.parts.append(_Part(start, end, found, fenced))
        elif not _is_flat(found.value):  # a list such as [1] in "see [1], [2]" is nobody's draft
            self.parts.append(_Part(start, end, None, fenced))

    def decode(self, start: int, fenced: bool) -> tuple[Extracted, int]:
        """Strict JSON, but for line ends inside strings.

        Raises:
            ValueError: It is not, is nested too deeply, or holds half a character.
        """
        value, end = _DECODER.raw_decode(self.text, start)
        source = self.text[start:end]
        if source.count("{") + source.count("[") > MAX_DEPTH and _too_deep(value):
            raise ValueError("nested too deeply")
        if "\\u" in source:
            json.dumps(value, ensure_ascii=False).encode()
        if end >= self.end and not self.text[self.thought_end : start].strip():
            return Extracted(value, "fenced" if self.thought_end else "literal"), end
        return Extracted(value, "fenced" if fenced else "embedded"), end

    def pass_unreadable(self, start: int, error: UnreadableError) -> None:
        self.at = max(error.at, start + 1)
        self.misses += 1
        if error.depth >= MAX_DEPTH:
            self.at = len(self.text)
        elif error.structured:
            self.at = _end_of_broken(self.text, self.at, error.depth)
        else:
            return
        self.parts.append(_Part(start, self.at, None))

    def is_fenced(self, start: int) -> bool:
        """Whether `start` is in a fence: right behind its language, or behind a value that is."""
        before = self.text[max(0, start - 200, self.thought_end) : start].rstrip()
        line = before[before.rfind("\n") + 1 :]
        fence = max(line.rfind("```"), line.rfind("~~~"))
        if fence >= 0 and " " not in line[fence + 3 :].strip(" `~"):
            return True
        last = self.parts[-1] if self.parts else None  # further values in the same fence
        return last is not None and last.fenced and not _FENCE.search(self.text, last.end, start)

    def is_member(self, start: int) -> bool:
        """Whether what begins at `start` belongs to something broken: ``"a": {...}``."""
        before = self.text[max(0, start - 40) : start].rstrip()
        return before.endswith(":") and before[:-1].rstrip().endswith('"')


def _is_flat(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)


def _too_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        depth += 1
    return depth > MAX_DEPTH


def _end_of_broken(text: str, at: int, depth: int) -> int:
    """Where what broke off at `at` ends: at its own bracket, a fence, the end of a think block, or the end."""
    while match := _INSIDE_BROKEN.search(text, at):
        mark, at = match.group(), match.end()
        if mark == '"':
            line_end = text.find("\n", at)
            closing = text.find('"', at, line_end if line_end >= 0 else len(text))
            at = closing + 1 if closing >= 0 else at
        elif mark in "{[":
            depth += 1
        elif mark in "}]":
            depth -= 1
            if depth <= 0:
                return at
        else:
            return match.start()
    return len(text)


def _settled(text: str, parts: list[_Part]) -> list[_Part]:
    """The parts that can be an answer: behind the last one without meaning, and no list without brackets."""
    for one, other in itertools.pairwise(parts):
        beside = not text[one.end : other.start].strip(" \t\r\n,;") and not _is_flat(_value(other))
        if beside and (one.found is None or other.found is None or one.found.value != other.found.value):
            other.found = None
    broken = [index for index, part in enumerate(parts) if part.found is None]
    return parts[broken[-1] + 1 :] if broken else parts


def _scalar(text: str) -> Extracted | None:
    """A number, string or word that is all there is behind a think block or in a fence."""
    text = text.strip()
    for fence in ("```", "~~~"):
        if text.startswith(fence):
            text = text.strip(fence[0])
            text = text[text.find("\n") + 1 :]
    found = _strict(text.strip())
    return found._replace(how="fenced") if found else None


def candidates(text: str) -> Iterator[Extracted]:
    r"""The values an answer may mean, the most plausible first.

    Args:
        text: What the model wrote.

    Yields:
        Values, parsed as they are asked for; none when there is none with a certain meaning. Time is linear in the
        length of the text, and no text raises.

    Example:
        >>> text = "<think>maybe {\"n\": 1}</think>Here: ```json\n{\"n\": 2}\n```"
        >>> list(candidates(text))
        [Extracted(value={'n': 2}, how='fenced', cut=False)]
    """
    text = text.lstrip("\ufeff \t\r\n") if text.isascii() or _is_encodable(text) else ""
    if found := _strict(text):
        yield found
        return
    scan = _Scan(text)
    everything = scan.run()
    if not everything and not scan.misses and (found := _scalar(text[scan.thought_end :])):
        yield found
    parts = [] if text.rstrip()[-1:] in ("{", "[") else _settled(text, everything)  # the answer has just begun
    parts.sort(key=lambda part: (bool(_value(part)), part.fenced, isinstance(_value(part), dict), part.start))
    for part in reversed(parts):
        if part.found is not None:
            yield part.found


def _value(part: _Part) -> Any:
    return part.found.value if part.found else None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: nothing downstream can send or store it
        return False
    return True


def extract(text: str, accepts: Callable[[Any], bool] | None = None) -> Extracted | None:
    """The first of the `candidates` that is accepted.

    Args:
        text: What the model wrote.
        accepts: Says whether a value will do; without it the most plausible is taken.

    Returns:
        The value and how it was got, or None.

    Example:
        >>> extract('{"n": 1} or, as a list, [1]', accepts=lambda value: isinstance(value, list)).value
        [1]
    """
    for found in candidates(text):
        if accepts is None or accepts(found.value):
            return found
        if found.cut:  # the answer itself: what stands before it is a draft
            break
    return None


__all__ = ["MAX_STARTS", "Extracted", "How", "candidates", "extract"]
