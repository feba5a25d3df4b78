"""What the demo server saw: one frozen record a request, and sums over all of them.

A request is settled before the last bytes of its response are sent, so whoever holds a complete answer
finds it counted. An abort is noticed a moment later: see `Ledger.wait_until_idle`.

Example:
    >>> ledger = Ledger(history=10)
    >>> entry = ledger.open(path="/v1/chat/completions", model="gpt-4o", stream=False, body={}, headers={})
    >>> ledger.stats.in_flight
    1
    >>> ledger.settle(entry, "answered", status=200, prompt_tokens=9, completion_tokens=2)
    >>> ledger.stats.answered, ledger.records()[0].completion_tokens
    (1, 2)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import Any, Literal

Outcome = Literal["answered", "failed", "aborted", "cut"]
"""Complete and 2xx; refused; the client went away; the server broke the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """A finished request to a model.

    Attributes:
        index: Position in the order of arrival, from 0, since the last reset.
        path: For example ``/v1/chat/completions``.
        model: The model asked for.
        stream: Whether a stream was asked for.
        body: The request's JSON.
        headers: The request's headers, names in lower case, without credentials.
        started_at: When the request had arrived, on `time.monotonic`'s clock.
        finished_at: When the outcome was known, on the same clock.
        status: The HTTP status; None when the connection ended before one was sent.
        prompt_tokens: 0 when the request was refused: providers do not bill those.
        completion_tokens: Tokens of what was really sent, for a broken stream those sent so far; for a
            complete answer the figure reported as usage.
        outcome: How it ended.

    Example:
        >>> RequestRecord.__dataclass_params__.frozen
        True
    """

    index: int
    path: str
    model: str
    stream: bool
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    started_at: float
    finished_at: float
    status: int | None
    prompt_tokens: int
    completion_tokens: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStats:
    """Sums since the last reset, taken at one instant: requests = answered + failed + aborted + in_flight.

    Attributes:
        requests: Requests to a model that have arrived (a listing of models is none).
        answered: Complete answers with a 2xx status.
        failed: Refusals, and connections broken by the server.
        aborted: Clients that went away before the end.
        prompt_tokens: Sum over the finished requests.
        completion_tokens: Sum over the finished requests.
        max_concurrent: The most that were in flight at once.
        in_flight: Requests not finished yet.

    Example:
        >>> ServerStats().requests
        0
    """

    requests: int = 0
    answered: int = 0
    failed: int = 0
    aborted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    max_concurrent: int = 0
    in_flight: int = 0


@dataclass(slots=True, kw_only=True)
class Entry:
    """A request in flight."""

    generation: int
    index: int
    path: str
    model: str
    stream: bool
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    started_at: float = field(default_factory=time.monotonic)
    settled: bool = False


class Ledger:
    """Thread-safe book of requests.

    Args:
        history: Records kept; older ones are dropped, their sums stay.
    """

    def __init__(self, history: int) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=history)
        self._stats = ServerStats()
        self._generation = 0
        self._changed = Condition()

    @property
    def stats(self) -> ServerStats:
        """The sums."""
        return self._stats

    def records(self) -> list[RequestRecord]:
        """The finished requests that are still kept, in the order of arrival."""
        with self._changed:
            return sorted(self._records, key=lambda record: record.index)

    def open(
        self, *, path: str, model: str, stream: bool, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Entry:
        """Enter a request that has arrived."""
        with self._changed:
            stats = self._stats
            in_flight = stats.in_flight + 1
            self._stats = replace(
                stats,
                requests=stats.requests + 1,
                in_flight=in_flight,
                max_concurrent=max(stats.max_concurrent, in_flight),
            )
            return Entry(
                generation=self._generation,
                index=stats.requests,
                path=path,
                model=model,
                stream=stream,
                body=body,
                headers=headers,
            )

    def settle(
        self,
        entry: Entry,
        outcome: Outcome,
        *,
        status: int | None,
        prompt_tokens: int,
        completion_tokens: int,
    ) -> None:
        """Enter how a request ended. Only the first call counts, and none after a reset."""
        with self._changed:
            if entry.settled or entry.generation != self._generation:
                return
            entry.settled = True
            self._records.append(
                RequestRecord(
                    index=entry.index,
                    path=entry.path,
                    model=entry.model,
                    stream=entry.stream,
                    body=entry.body,
                    headers=entry.headers,
                    started_at=entry.started_at,
                    finished_at=time.monotonic(),
                    status=status,
                    prompt_tokens=prompt_tokens,
                    completion_tokens=completion_tokens,
                    outcome=outcome,
                )
            )
            stats = self._stats
            self._stats = replace(
                stats,
                answered=stats.answered + (outcome == "answered"),
                failed=stats.failed + (outcome in ("failed", "cut")),
                aborted=stats.aborted + (outcome == "aborted"),
                prompt_tokens=stats.prompt_tokens + prompt_tokens,
                completion_tokens=stats.completion_tokens + completion_tokens,
                in_flight=stats.in_flight - 1,
            )
            self._changed.notify_all()

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until nothing is in flight; False when `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stats.in_flight == 0, timeout)

    def reset(self) -> None:
        """Forget everything; requests still in flight will not be counted."""
        with self._changed:
            self._generation += 1
            self._records.clear()
            self._stats = ServerStats()
            self._changed.notify_all()


__all__ = ["Entry", "Ledger", "Outcome", "RequestRecord", "ServerStats"]
