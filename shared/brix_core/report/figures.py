"""What the figures of a report are, and how they are found. The page only draws them.

Sums of money are in nano-dollars, so that they are exact. Percentiles are by the nearest rank, of calls that ended ok
and for which a provider was asked: an answer from a cache or a recording says nothing of a model's speed.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from brix_core.report.calls import Call, percentile, roles

TOP_SESSIONS: Final = 4
"""Sessions with a colour of their own."""

LISTED: Final = 20
"""Rows of a table of figures, at most."""

MAX_BUCKETS: Final = 60
"""Steps of a timeline, at most."""

_SECOND: Final = 1_000
_DAY: Final = 86_400 * _SECOND
_WIDTHS: Final = tuple(
    seconds * _SECOND
    for seconds in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200)
)
"""Steps that a reader of a clock expects, milliseconds; longer ones are whole days."""

FOUND: Final = ("found", "injected", "cut", "stopped")
"""Decisions of the loop guard about a loop that is closed; "repeating" is one that is about to be."""


_SUMS: Final = (
    "calls",
    "nano",
    "prompt_tokens",
    "completion_tokens",
    "estimated",
    "unpriced",
    "untimed",
    "unasked",
    "attempts",
    "looped",
)


class Span(NamedTuple):
    """How a timeline is divided: `steps` steps of `width` milliseconds from `start` on."""

    start: int
    width: int
    steps: int

    @classmethod
    def over(cls, first: int, last: int) -> Span:
        """The narrowest usual steps that are not too many.

        Example:
            >>> Span.over(0, 3_599_000)
            Span(start=0, width=60000, steps=60)
        """
        for width in _WIDTHS:
            if last // width - first // width < MAX_BUCKETS:
                break
        else:
            width = _DAY
            while last // width - first // width >= MAX_BUCKETS:
                width *= 2
        return cls(first // width * width, width, last // width - first // width + 1)

    def step(self, time: int) -> int:
        """Which step a time falls into."""
        return (time - self.start) // self.width


class Sums:
    """Spend, tokens and calls of a session."""

    __slots__ = ("calls", "nano", "refused", "tokens", "unpriced")

    def __init__(self) -> None:
        self.nano = self.tokens = self.calls = self.refused = self.unpriced = 0

    def rank(self) -> tuple[int, int, int]:
        """Who spent most comes first; where nobody spent, who used most."""
        return self.nano, self.tokens, self.calls


class Totals:
    """What can be said of any number of calls, without keeping them.

    Attributes:
        sums: Sums by name.
        outcomes: Calls by how they ended.
        roles: Attempts by why they were made.
        latencies: Of calls that ended ok and asked a provider, by model, milliseconds.
    """

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.roles: Counter[str] = Counter()
        self.latencies: defaultdict[str, array[float]] = defaultdict(_floats)
        self._failures: Counter[tuple[str, int | None]] = Counter()
        self._first_chunks = array("d")

    def add(self, call: Call) -> None:
        """Count a call in."""
        sums = self.sums
        sums["calls"] += 1
        sums["nano"] += call.nano or 0
        sums["prompt_tokens"] += call.prompt_tokens or 0
        sums["completion_tokens"] += call.completion_tokens or 0
        sums["estimated"] += call.estimated
        sums["unpriced"] += is_unpriced(call)
        sums["untimed"] += call.time is None
        sums["unasked"] += call.outcome == "ok" and not call.attempts
        sums["attempts"] += len(call.attempts)
        sums["looped"] += has_looped(call)
        self.outcomes[call.outcome] += 1
        for one, role in zip(call.attempts, roles(call.attempts), strict=True):
            self.roles[role] += 1
            if one.outcome != "ok":
                self._failures[one.error or one.outcome or "unknown", one.status] += 1
        if call.outcome == "ok" and call.attempts and call.latency_ms is not None:
            self.latencies[call.model].append(call.latency_ms)
            if call.first_chunk_ms is not None:
                self._first_chunks.append(call.first_chunk_ms)

    def latency(self) -> dict[str, Any]:
        """Percentiles, of all models and of each."""
        ranked = sorted(self.latencies.items(), key=lambda item: (-len(item[1]), item[0]))
        return {
            "all": _percentiles(chain.from_iterable(self.latencies.values())),
            "models": [{"name": name, **_percentiles(values)} for name, values in ranked[:LISTED]],
            "model_count": len(ranked),
            "first_chunk": _percentiles(self._first_chunks),
        }


class Figures(Totals):
    """Figures of the calls that were added.

    Example:
        >>> figures = Figures()
        >>> figures.add(Call.of({"session_id": "s", "outcome": "ok", "cost_usd": 0.5, "prompt_tokens": 7}))
        >>> made = figures.made()
        >>> made["totals"]["nano"], made["totals"]["calls"], made["sessions"][0]["name"]
        (500000000, 1, 's')
    """

    def __init__(self) -> None:
        super().__init__()
        self._stops: Counter[tuple[str, str]] = Counter()
        self._loops: Counter[tuple[str, str]] = Counter()
        self._sessions: defaultdict[str, Sums] = defaultdict(Sums)
        self._moments: list[tuple[int, str, int, int]] = []
        self._decided: list[tuple[int, str, str]] = []

    def add(self, call: Call) -> None:
        """Count a call in."""
        super().add(call)
        tokens = (call.prompt_tokens or 0) + (call.completion_tokens or 0)
        session = self._sessions[call.session]
        session.nano += call.nano or 0
        session.tokens += tokens
        session.calls += 1
        session.refused += call.outcome == "refused"
        session.unpriced += is_unpriced(call)
        if call.stopped_by or call.outcome == "refused":
            self._stops[call.stopped_by or call.error, "refused" if call.outcome == "refused" else "given up"] += 1
        for made in call.decisions:
            if made.guard == "loop":
                self._loops[made.decision, made.kind] += 1
        if call.time is not None:
            self._moments.append((call.time, call.session, call.nano or 0, tokens))
            self._add_decisions(call, call.time)

    def _add_decisions(self, call: Call, time: int) -> None:
        self._decided += [(time, made.guard, made.decision) for made in call.decisions]
        if call.stopped_by:
            label = "refused the call" if call.outcome == "refused" else "gave the call up"
            self._decided.append((time, call.stopped_by, label))

    def made(self) -> dict[str, Any]:
        """All figures, as the page gets them."""
        ranked = sorted(self._sessions.items(), key=lambda item: (*item[1].rank(), item[0]), reverse=True)
        return {
            "totals": {name: self.sums[name] for name in _SUMS},
            "outcomes": [{"name": name, "calls": count} for name, count in self.outcomes.most_common()],
            "latency": self.latency(),
            "sessions": [_session(name, sums) for name, sums in ranked[:LISTED]],
            "session_count": len(ranked),
            "stops": _rows(self._stops, "guard", "what"),
            "attempts": {role: self.roles[role] for role in ("first", "retry", "failover", "follow_up")},
            "failures": _rows(self._failures, "error", "status"),
            "loops": _rows(self._loops, "decision", "kind"),
            **self._over_time([name for name, _ in ranked[:TOP_SESSIONS]], len(ranked)),
        }

    def _over_time(self, top: Sequence[str], sessions: int) -> dict[str, Any]:
        if not self._moments:
            return {"span": None, "series": [], "decisions": []}
        times = [time for time, *_ in self._moments]
        first, last = min(times), max(times)
        span = Span.over(first, last)
        rest = sessions - len(top)
        lines = [_line(name, 1, span) for name in top] + ([_line(None, rest, span)] if rest else [])
        index = dict(zip(top, lines, strict=False))
        for time, name, nano, tokens in self._moments:
            line, step = index.get(name) or lines[-1], span.step(time)
            line["nano"][step] += nano
            line["tokens"][step] += tokens
            line["calls"][step] += 1
        return {
            "span": {**span._asdict(), "first": first, "last": last},
            "series": lines,
            "decisions": self._decisions(span),
        }

    def _decisions(self, span: Span) -> list[dict[str, Any]]:
        rows: dict[tuple[str, str], list[int]] = {}
        for time, guard, decision in self._decided:
            counts = rows.setdefault((guard, decision), [0] * span.steps)
            counts[span.step(time)] += 1
        kept = sorted(rows, key=lambda key: (-sum(rows[key]), key))[: LISTED + LISTED // 2]
        return [
            {"guard": guard, "decision": decision, "total": sum(rows[guard, decision]), "counts": rows[guard, decision]}
            for guard, decision in sorted(kept)
        ]


def _floats() -> array[float]:
    return array("d")


def is_unpriced(call: Call) -> bool:
    """Whether a provider was asked, and nobody knows what that cost."""
    return call.nano is None and bool(call.attempts)


def has_looped(call: Call) -> bool:
    """Whether a closed loop was found in a call."""
    return any(made.guard == "loop" and made.decision in FOUND for made in call.decisions)


def _line(name: str | None, sessions: int, span: Span) -> dict[str, Any]:
    zeros = [0] * span.steps
    return {"name": name, "sessions": sessions, "nano": zeros[:], "tokens": zeros[:], "calls": zeros[:]}


def _session(name: str, sums: Sums) -> dict[str, Any]:
    return {"name": name, **{field: getattr(sums, field) for field in Sums.__slots__}}


def _percentiles(values: Iterable[float]) -> dict[str, Any]:
    ordered = sorted(values)
    return {"calls": len(ordered), **{f"p{percent}": percentile(ordered, percent) for percent in (50, 90, 99)}}


def _rows(counts: Counter[Any], first: str, second: str) -> list[dict[str, Any]]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return [{first: key[0], second: key[1], "count": count} for key, count in ranked]


__all__ = [
    "FOUND",
    "LISTED",
    "MAX_BUCKETS",
    "TOP_SESSIONS",
    "Figures",
    "Span",
    "Sums",
    "Totals",
    "has_looped",
    "is_unpriced",
]
