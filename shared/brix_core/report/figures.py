"""What the figures of a report are, and how they are found. The page only draws them.

Sums of money are in nano-dollars, so that they are exact. Percentiles are by the nearest rank, of calls that ended ok
and for which a provider was asked: an answer from a cache or a recording says nothing of a model's speed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
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


class Span(NamedTuple):
    """How a timeline is divided: `count` steps of `width` milliseconds from `start` on."""

    start: int
    width: int
    count: int

    @classmethod
    def over(cls, first: int, last: int) -> Span:
        """The narrowest usual steps that are not too many.

        Example:
            >>> Span.over(0, 3_599_000)
            Span(start=0, width=60000, count=60)
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

    __slots__ = ("calls", "looped", "nano", "refused", "tokens", "unpriced")

    def __init__(self) -> None:
        self.nano = self.tokens = self.calls = self.refused = self.looped = self.unpriced = 0

    def rank(self) -> tuple[int, int, int]:
        """Who spent most comes first; where nobody spent, who used most."""
        return self.nano, self.tokens, self.calls


class Figures:
    """Figures of the calls that were added.

    Example:
        >>> figures = Figures()
        >>> figures.add(Call.of({"session_id": "s", "outcome": "ok", "cost_usd": 0.5, "prompt_tokens": 7}))
        >>> made = figures.made()
        >>> made["totals"]["nano"], made["totals"]["calls"], made["sessions"][0]["name"]
        (500000000, 1, 's')
    """

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._stops: Counter[tuple[str, str]] = Counter()
        self._roles: Counter[str] = Counter()
        self._failures: Counter[tuple[str, int | None]] = Counter()
        self._loops: Counter[tuple[str, str]] = Counter()
        self._latencies: defaultdict[str, list[float]] = defaultdict(list)
        self._first_chunks: list[float] = []
        self._sessions: defaultdict[str, Sums] = defaultdict(Sums)
        self._moments: list[tuple[int, str, int, int]] = []
        self._decided: list[tuple[int, str, str]] = []

    def add(self, call: Call) -> None:
        """Count a call in."""
        totals, tokens = self._totals, (call.prompt_tokens or 0) + (call.completion_tokens or 0)
        totals["calls"] += 1
        totals["nano"] += call.nano or 0
        totals["prompt_tokens"] += call.prompt_tokens or 0
        totals["completion_tokens"] += call.completion_tokens or 0
        totals["estimated"] += call.estimated
        totals["unpriced"] += bool(call.attempts) and call.nano is None
        totals["untimed"] += call.time is None
        totals["unasked"] += call.outcome == "ok" and not call.attempts
        self._outcomes[call.outcome] += 1
        if call.stopped_by:
            self._stops[call.stopped_by, "refused" if call.outcome == "refused" else "given up"] += 1
        elif call.outcome == "refused":
            self._stops[call.error, "refused"] += 1
        session = self._sessions[call.session]
        session.nano += call.nano or 0
        session.tokens += tokens
        session.calls += 1
        session.refused += call.outcome == "refused"
        session.unpriced += bool(call.attempts) and call.nano is None
        if call.time is not None:
            self._moments.append((call.time, call.session, call.nano or 0, tokens))
        self._add_decisions(call, session)
        self._add_attempts(call)

    def _add_decisions(self, call: Call, session: Sums) -> None:
        looped = False
        for made in call.decisions:
            if call.time is not None:
                self._decided.append((call.time, made.guard, made.decision))
            if made.guard == "loop":
                self._loops[made.decision, made.kind] += 1
                looped = looped or made.decision in FOUND
        if call.stopped_by and call.time is not None:
            label = "refused the call" if call.outcome == "refused" else "gave the call up"
            self._decided.append((call.time, call.stopped_by, label))
        self._totals["looped"] += looped
        session.looped += looped

    def _add_attempts(self, call: Call) -> None:
        for one, role in zip(call.attempts, roles(call.attempts), strict=True):
            self._roles[role] += 1
            if one.outcome != "ok":
                self._failures[one.error or one.outcome or "unknown", one.status] += 1
        self._totals["attempts"] += len(call.attempts)
        self._totals["repeated"] += len(call.attempts) > 1
        if call.outcome == "ok" and call.attempts and call.latency_ms is not None:
            self._latencies[call.model].append(call.latency_ms)
            if call.first_chunk_ms is not None:
                self._first_chunks.append(call.first_chunk_ms)

    def made(self) -> dict[str, Any]:
        """All figures, as the page gets them."""
        names = ("calls", "nano", "prompt_tokens", "completion_tokens", "estimated", "unpriced", "untimed", "unasked")
        names += ("attempts", "repeated", "looped")
        ranked = sorted(self._sessions.items(), key=lambda item: (*item[1].rank(), item[0]), reverse=True)
        return {
            "totals": {name: self._totals[name] for name in names},
            "outcomes": [{"name": name, "calls": count} for name, count in self._outcomes.most_common()],
            "latency": self._latency(),
            "sessions": [_session(name, sums) for name, sums in ranked[:LISTED]],
            "session_count": len(ranked),
            "stops": _rows(self._stops, "guard", "what"),
            "attempts": {role: self._roles[role] for role in ("first", "retry", "failover", "follow_up")},
            "failures": _rows(self._failures, "error", "status"),
            "loops": _rows(self._loops, "decision", "kind"),
            **self._over_time([name for name, _ in ranked[:TOP_SESSIONS]], len(ranked)),
        }

    def _latency(self) -> dict[str, Any]:
        ranked = sorted(self._latencies.items(), key=lambda item: (-len(item[1]), item[0]))
        everything = [value for values in self._latencies.values() for value in values]
        return {
            "all": _percentiles(everything),
            "models": [{"name": name, **_percentiles(values)} for name, values in ranked[:LISTED]],
            "model_count": len(ranked),
            "first_chunk": _percentiles(self._first_chunks),
        }

    def _over_time(self, top: Sequence[str], sessions: int) -> dict[str, Any]:
        if not self._moments:
            return {"span": None, "series": [], "decisions": []}
        times = [time for time, *_ in self._moments]
        first, last = min(times), max(times)
        span = Span.over(first, last)
        rest = sessions - len(top)
        lines = [_line(name, 1, span) for name in top] + ([_line(None, rest, span)] if rest else [])
        index = {name: line for name, line in zip(top, lines, strict=False)}
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
            counts = rows.setdefault((guard, decision), [0] * span.count)
            counts[span.step(time)] += 1
        kept = sorted(rows, key=lambda key: (-sum(rows[key]), key))[: LISTED + LISTED // 2]
        return [
            {"guard": guard, "decision": decision, "total": sum(rows[guard, decision]), "counts": rows[guard, decision]}
            for guard, decision in sorted(kept)
        ]


def _line(name: str | None, sessions: int, span: Span) -> dict[str, Any]:
    zeros = [0] * span.count
    return {"name": name, "sessions": sessions, "nano": zeros[:], "tokens": zeros[:], "calls": zeros[:]}


def _session(name: str, sums: Sums) -> dict[str, Any]:
    return {"name": name, **{field: getattr(sums, field) for field in Sums.__slots__}}


def _percentiles(values: Iterable[float]) -> dict[str, Any]:
    ordered = sorted(values)
    return {"calls": len(ordered), **{f"p{percent}": percentile(ordered, percent) for percent in (50, 90, 99)}}


def _rows(counts: Counter[Any], first: str, second: str) -> list[dict[str, Any]]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return [{first: key[0], second: key[1], "count": count} for key, count in ranked]


__all__ = ["FOUND", "LISTED", "MAX_BUCKETS", "TOP_SESSIONS", "Figures", "Span", "Sums"]
