"""An entry of a log as it is shown, whatever is in it.

A log may have been edited, and a hook of the application's may have changed an entry: nothing is taken for granted.
A field that is not what it should be counts as absent, never as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from brix_core.audit.canonical import canonical

MAX_TEXT: Final = 2_000
"""Characters of a text that are shown."""

_HARMLESS: Final = "\n\t\u00a0\u200c\u200d\u2009\u202f\u3000"
"""Not printable by Python's lights, and yet part of ordinary texts."""

OUTCOMES: Final = ("ok", "refused", "failed", "timed_out", "cancelled", "abandoned")

Role = Literal["first", "retry", "failover", "follow_up"]
"""Why an attempt was made; see `roles`."""


class Try(NamedTuple):
    """One request to a provider. Costs are in nano-dollars, times in milliseconds."""

    endpoint: str
    model: str
    after_ms: float | None
    latency_ms: float | None
    outcome: str
    error: str
    status: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    nano: int | None


class Decided(NamedTuple):
    """What a guard decided; `kind` is a loop's, `details` the rest as JSON."""

    guard: str
    decision: str
    kind: str
    details: str


class Call(NamedTuple):
    """One entry. Costs are in nano-dollars, times in milliseconds, `time` since the epoch; absent texts are empty."""

    run_id: str
    session: str
    time: int | None
    timestamp: str
    model: str
    provider: str
    outcome: str
    error: str
    message: str
    stopped_by: str
    stream: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    estimated: bool
    nano: int | None
    latency_ms: float | None
    first_chunk_ms: float | None
    prompt_hash: str
    response_hash: str
    chain_hash: str
    finish_reason: str
    partial_text: str
    sequence: int | None
    attempts: tuple[Try, ...]
    decisions: tuple[Decided, ...]
    guards: tuple[str, ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Call:
        """The call of an entry.

        Example:
            >>> call = Call.of({"session_id": "s", "outcome": "ok", "cost_usd": 1e-6, "latency_ms": "soon"})
            >>> call.session, call.nano, call.latency_ms, call.attempts
            ('s', 1000, None, ())
        """
        get = entry.get
        return cls(
            run_id=text(get("run_id")),
            session=text(get("session_id")),
            time=_time(get("timestamp")),
            timestamp=text(get("timestamp")),
            model=text(get("model")),
            provider=text(get("provider")),
            outcome=text(get("outcome")),
            error=text(get("error")),
            message=text(get("error_message")),
            stopped_by=text(get("stopped_by")),
            stream=get("stream") is True,
            prompt_tokens=whole(get("prompt_tokens")),
            completion_tokens=whole(get("completion_tokens")),
            estimated=get("usage_estimated") is True,
            nano=nano(get("cost_usd")),
            latency_ms=number(get("latency_ms")),
            first_chunk_ms=number(get("first_chunk_ms")),
            prompt_hash=text(get("prompt_hash")),
            response_hash=text(get("response_hash")),
            chain_hash=text(get("chain_hash")),
            finish_reason=text(get("finish_reason")),
            partial_text=text(get("partial_text")),
            sequence=whole(get("sequence")),
            attempts=tuple(_try(one) for one in _objects(get("attempts"))),
            decisions=tuple(_decided(one) for one in _objects(get("decisions"))),
            guards=_names(get("guards_active")),
        )


def roles(attempts: Sequence[Try]) -> list[Role]:
    """Why each attempt was made.

    After one that failed, an attempt at the same endpoint is a retry, and one at another a failover; after one that
    did not, it is a follow-up: a repair of an answer, a nudge out of a loop, a summary, another sample.
    """
    found: list[Role] = []
    before: Try | None = None
    for one in attempts:
        if before is None:
            found.append("first")
        elif before.outcome == "ok":
            found.append("follow_up")
        else:
            found.append("retry" if one.endpoint == before.endpoint else "failover")
        before = one
    return found


def text(value: Any) -> str:
    """A text, of bounded length; empty for None. What would steer a screen, or turn a line around, is seen instead.

    Example:
        >>> text(None), text(7), text("x" * 3_000)[-24:], text(chr(27) + "[31m") == chr(92) + "x1b[31m"
        ('', '7', 'xxxxx… (3000 characters)', True)
    """
    if value is None:
        return ""
    if type(value) is str and len(value) <= MAX_TEXT and value.isprintable():
        return value
    if isinstance(value, str):
        written = value
    else:
        written = str(value) if isinstance(value, int | float) else canonical(value).decode()
    if len(written) > MAX_TEXT:
        written = f"{written[:MAX_TEXT]}… ({len(written)} characters)"
    return "".join(one if one.isprintable() or one in _HARMLESS else _code_of(one) for one in written)


def _code_of(character: str) -> str:
    return character.encode("unicode_escape").decode()


def number(value: Any) -> float | None:
    """A finite number that is not negative, or None."""
    if type(value) is not float and type(value) is not int:
        return None
    return float(value) if 0 <= value < 1e15 else None


def whole(value: Any) -> int | None:
    """A number without its fraction, or None."""
    found = number(value)
    return None if found is None else int(found)


def nano(value: Any) -> int | None:
    """US dollars as nano-dollars, in which sums are exact; or None."""
    found = number(value)
    return None if found is None or found >= 1e6 else round(found * 1e9)


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile of values in ascending order; None of no values.

    The smallest value that at least `percent` percent of the values do not exceed
    (https://en.wikipedia.org/wiki/Percentile#The_nearest-rank_method).

    Example:
        >>> percentile([15, 20, 35, 40, 50], 40), percentile([7], 99), percentile([], 50)
        (20, 7, None)
    """
    if not ordered:
        return None
    return ordered[max(1, math.ceil(percent * len(ordered) / 100)) - 1]


def _time(value: Any) -> int | None:
    try:
        found = datetime.fromisoformat(value)
        return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1_000)
    except (TypeError, ValueError, OverflowError):
        return None


def _objects(value: Any) -> Iterable[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else ()


def _names(value: Any) -> tuple[str, ...]:
    return tuple(text(name) for name in value) if isinstance(value, list) else ()


def _try(one: Mapping[str, Any]) -> Try:
    get = one.get
    return Try(
        text(get("endpoint")),
        text(get("model")),
        number(get("after_ms")),
        number(get("latency_ms")),
        text(get("outcome")),
        text(get("error")),
        whole(get("status")),
        whole(get("prompt_tokens")),
        whole(get("completion_tokens")),
        nano(get("cost_usd")),
    )


def _decided(one: Mapping[str, Any]) -> Decided:
    rest = {name: value for name, value in one.items() if name not in ("guard", "decision")}
    return Decided(
        text(one.get("guard")),
        text(one.get("decision")),
        text(one.get("kind")),
        text(canonical(rest).decode()) if rest else "",
    )


__all__ = [
    "MAX_TEXT",
    "OUTCOMES",
    "Call",
    "Decided",
    "Role",
    "Try",
    "nano",
    "number",
    "percentile",
    "roles",
    "text",
    "whole",
]
