"""The calls of a log as the page gets them: compact columns, and the details in parts that are read when asked for.

What the table shows, sorts and searches is in columns: a text that occurs often is in them once, and elsewhere by its
number. What is shown of one call only (hashes, attempts, decisions) is in parts of `PART` calls.
"""

from __future__ import annotations

from typing import Any, Final

from brix_core.audit.canonical import canonical
from brix_core.report.calls import Call, Try, roles

PART: Final = 500
"""Calls whose details are read at once."""


class Texts:
    """Texts by their numbers."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text; 0 is the first."""
        return self._numbers.setdefault(text, len(self._numbers))

    def all(self) -> list[str]:
        """The texts, in the order of their numbers."""
        return list(self._numbers)


_BY_NUMBER: Final = ("session", "model", "outcome", "error", "message", "stopped_by")
_PLAIN: Final = ("run_id", "time", "prompt_tokens", "completion_tokens", "nano", "latency_ms", "attempts")


class Columns:
    """Calls in columns."""

    def __init__(self) -> None:
        self.count = 0
        self._texts = {name: Texts() for name in (*_BY_NUMBER, "decisions")}
        self._columns: dict[str, list[Any]] = {name: [] for name in (*_BY_NUMBER, *_PLAIN, "decisions")}
        self._names = Texts()
        self._guards = Texts()
        self._part: list[Any] = []
        self._parts: list[bytes] = []

    def add(self, call: Call, place: str) -> None:
        """Add a call.

        Args:
            call: The call.
            place: File and line of its entry.
        """
        columns = self._columns
        for name in _BY_NUMBER:
            columns[name].append(self._texts[name].number(getattr(call, name)))
        columns["run_id"].append(call.run_id)
        columns["time"].append(call.time)
        columns["prompt_tokens"].append(call.prompt_tokens)
        columns["completion_tokens"].append(call.completion_tokens)
        columns["nano"].append(call.nano)
        columns["latency_ms"].append(None if call.latency_ms is None else round(call.latency_ms, 2))
        columns["attempts"].append(len(call.attempts))
        columns["decisions"].append(self._texts["decisions"].number(in_words(call)))
        self._part.append(self._details(call, place))
        self.count += 1
        if len(self._part) == PART:
            self._end_part()

    def written(self) -> bytes:
        """The columns, as JSON."""
        return canonical(
            {
                "count": self.count,
                "part": PART,
                "texts": {name: texts.all() for name, texts in self._texts.items()},
                "columns": self._columns,
                "names": self._names.all(),
                "guards": self._guards.all(),
            }
        )

    def parts(self) -> list[bytes]:
        """The details, each part as JSON."""
        self._end_part()
        return self._parts

    def _end_part(self) -> None:
        if self._part:
            self._parts.append(canonical(self._part))
            self._part = []

    def _details(self, call: Call, place: str) -> list[Any]:
        """What is shown of one call only, in the order in which ``details.js`` reads it."""
        name = self._names.number
        return [
            place,
            call.timestamp,
            name(call.provider),
            int(call.stream),
            int(call.estimated),
            call.first_chunk_ms,
            call.finish_reason,
            call.sequence,
            call.prompt_hash,
            call.response_hash,
            call.chain_hash,
            call.partial_text,
            self._guards.number(", ".join(call.guards)),
            [self._attempt(one, role) for one, role in zip(call.attempts, roles(call.attempts), strict=True)],
            [[name(made.guard), name(made.decision), made.details] for made in call.decisions],
        ]

    def _attempt(self, one: Try, role: str) -> list[Any]:
        name = self._names.number
        return [
            name(one.endpoint),
            name(one.model),
            one.after_ms,
            one.latency_ms,
            name(one.outcome),
            name(one.error),
            one.status,
            one.prompt_tokens,
            one.completion_tokens,
            one.nano,
            name(role),
        ]


def in_words(call: Call) -> str:
    """What guards decided about a call, in few words.

    Example:
        >>> in_words(Call.of({"decisions": [{"guard": "cache", "decision": "miss"}], "stopped_by": "budget"}))
        'cache miss, stopped by budget'
    """
    counts: dict[str, int] = {}
    for made in call.decisions:
        said = f"{made.guard} {made.decision}"
        counts[said] = counts.get(said, 0) + 1
    words = [said if count == 1 else f"{said} ×{count}" for said, count in counts.items()]  # noqa: RUF001
    if call.stopped_by:
        words.append(f"stopped by {call.stopped_by}")
    return ", ".join(words)


__all__ = ["PART", "Columns", "in_words"]
