"""The time limit of a whole run, as whatever is called within it sees it.

A run (of a query engine, a chat engine, an agent) sets it in a context variable, which tasks and threads inherit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from brix_core.call import Deadline
from brix_core.clock import Clock
from brix_core.errors import BrixTimeoutError


class RunLimit(NamedTuple):
    """When a run must be over, by which clock."""

    deadline: Deadline
    clock: Clock

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.deadline.at - self.clock.now()

    def deadline_by(self, clock: Clock) -> Deadline:
        """The deadline as another clock shows it."""
        return self.deadline if clock is self.clock else self.deadline._replace(at=clock.now() + self.left)

    def passed(self) -> BrixTimeoutError:
        """The error of what comes too late."""
        return BrixTimeoutError(
            f"the run was not over after total_timeout={self.deadline.seconds:g} s; raise it, or ask for less",
            kind="total",
            limit=self.deadline.seconds,
            elapsed=self.deadline.seconds - self.left,
        )


_current: ContextVar[RunLimit | None] = ContextVar("brix_llamaindex_run_limit", default=None)


def current_limit() -> RunLimit | None:
    """The limit of the run around this call, if it has one."""
    return _current.get()


@contextmanager
def run_limit(seconds: float | None, clock: Clock) -> Iterator[RunLimit | None]:
    """A run within its time; a run within another one has at most the time left to that.

    Args:
        seconds: How long it may take; None leaves it to the run around it.
        clock: The time.

    Example:
        >>> from brix_core.clock import SystemClock
        >>> with run_limit(5.0, SystemClock()) as outer, run_limit(60.0, SystemClock()) as inner:
        ...     round(inner.left), inner.deadline.seconds
        (5, 5.0)
    """
    around = _current.get()
    if seconds is None:
        yield around
        return
    limit = RunLimit(Deadline(clock.now() + seconds, seconds), clock)
    if around is not None and around.left < limit.left:
        limit = around
    token = _current.set(limit)
    try:
        yield limit
    finally:
        _current.reset(token)


@asynccontextmanager
async def within(limit: RunLimit | None) -> AsyncIterator[None]:
    """Cut off what a run awaits when its time is over.

    Args:
        limit: That of the run; None is no limit.

    Raises:
        BrixTimeoutError: The time is over.
    """
    if limit is None:
        yield
        return
    alarm = asyncio.timeout(max(0.0, limit.left))
    try:
        async with alarm:
            yield
    except TimeoutError as error:
        if alarm.expired() and not isinstance(error, BrixTimeoutError):
            raise limit.passed() from error
        raise


__all__ = ["RunLimit", "current_limit", "run_limit", "within"]
