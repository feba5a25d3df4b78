"""A text that degenerates: the same words over and over, verbatim.

Looked at every `STEP` characters: does the text end as it has before, one period ago? Then the run is followed as long
as it goes on. That takes a few microseconds and `KEPT` characters, however long the text. How long a run may be depends
on what recurs. Prose says a thing eight times only when it is stuck; rules, tables, matrices of zeros and base64 may
recur for long and mean it.

Example:
    >>> repetition_in("I am not sure. " * 200).repeats
    68
    >>> repetition_in("|---|---|" * 100) is None
    True
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

STEP: Final = 256
"""Characters between two looks."""

MAX_PERIOD: Final = 1_000
"""Longest text, in characters, whose recurrence is seen."""

KEPT: Final = 2 * MAX_PERIOD + STEP
"""Characters of the text that are kept."""

PROSE_REPEATS: Final = 8
PROSE_RUN: Final = 1_000
BLANK_RUN: Final = 2_000
MARKS_RUN: Final = 4_000
CODE_RUN: Final = 8_000
DATA_RUN: Final = 32_000

_PROBE: Final = 64
_STRUCTURE: Final = re.compile(r"[|{}\[\]<>=;\\\"`_#/\t]|,\S|\w\(")
_WORD: Final = re.compile(r"[^\W\d_]{3,}")


class Repetition(NamedTuple):
    """A run of the same text.

    Attributes:
        unit: What recurs.
        run: How long it has gone on, in characters.
    """

    unit: str
    run: int

    @property
    def repeats(self) -> int:
        """How often the unit has come up."""
        return self.run // len(self.unit)


class RepetitionWatch:
    """Sees a stream's text, and stops it when it degenerates.

    Args:
        stop: Makes the exception to raise.
    """

    __slots__ = ("_limit", "_pending", "_period", "_run", "_stop", "_tail", "_waiting")

    def __init__(self, stop: Callable[[Repetition], Exception]) -> None:
        self._stop = stop
        self._pending: list[str] = []
        self._waiting = 0
        self._tail = ""
        self._period = 0
        self._run = 0
        self._limit = 0

    def anew(self) -> RepetitionWatch:
        """A watch over another text; one that has seen nothing is as good."""
        return RepetitionWatch(self._stop) if self._tail or self._pending else self

    def __call__(self, text: str) -> None:
        """Take note of a chunk.

        Raises:
            Exception: What `stop` makes, when the text has degenerated.
        """
        self._pending.append(text)
        self._waiting += len(text)
        if self._waiting >= STEP:
            fresh = "".join(self._pending)
            self._pending.clear()
            self._waiting = 0
            for start in range(0, len(fresh), STEP):
                self._look(fresh[start : start + STEP])

    def _look(self, fresh: str) -> None:
        tail = self._tail = (self._tail + fresh)[-KEPT:]
        period, length = self._period, len(fresh)
        if period and tail[-length:] == tail[-length - period : -period]:
            self._run += length
        else:
            self._period, self._run = period, run = _recurring(tail)
            self._limit = longest_run(tail[-period:]) if run else 0
        if self._run > self._limit:
            raise self._stop(Repetition(tail[-self._period :], self._run))


def repetition_in(text: str) -> Repetition | None:
    """The run that a whole text ends in or goes through, if it is a degenerate one."""
    if len(text) <= PROSE_RUN:
        return None
    watch = RepetitionWatch(_FoundError)
    try:
        watch(text)
    except _FoundError as found:
        return found.repetition
    return None


def longest_run(unit: str) -> int:
    """How many characters this may recur for and still be meant."""
    if unit.isspace():
        return BLANK_RUN
    if not any(map(str.isalnum, unit)):
        return MARKS_RUN
    if _WORD.search(unit) is None and not _is_spaced(unit):
        return DATA_RUN
    if _STRUCTURE.search(unit):
        return CODE_RUN
    if unit.isascii() and not _is_spaced(unit):
        return DATA_RUN
    return max(PROSE_RUN, PROSE_REPEATS * len(unit))


def _is_spaced(unit: str) -> bool:
    """Whether there are words with space between them, as prose has: "ha ha", but not "0, 0" and not base64."""
    return any(map(str.isalpha, unit)) and any(map(str.isspace, unit))


def _recurring(tail: str) -> tuple[int, int]:
    """The period in which a text recurs at its end, and for how many characters; zeros when it does not."""
    size = len(tail)
    at = tail.rfind(tail[-_PROBE:], 0, size - 1) if size > _PROBE else -1
    period = size - _PROBE - at
    if at < 0 or period > MAX_PERIOD:
        return 0, 0
    low, high = _PROBE, size - period  # the end that equals what stood one period before it
    while low < high:
        middle = (low + high + 1) // 2
        if tail[size - middle :] == tail[size - middle - period : size - period]:
            low = middle
        else:
            high = middle - 1
    return (period, low + period) if low >= period else (0, 0)


class _FoundError(Exception):
    def __init__(self, repetition: Repetition) -> None:
        self.repetition = repetition


__all__ = ["KEPT", "MAX_PERIOD", "STEP", "Repetition", "RepetitionWatch", "longest_run", "repetition_in"]
