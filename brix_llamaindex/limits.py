"""The time limit of a whole run, as whatever is called within it sees it.

A run (of a query engine, a chat engine, an agent) sets it in a context variable, which tasks and threads inherit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Self, TypeVar

from brix_core.call import Deadline
from brix_core.clock import Clock
from brix_core.errors import BrixTimeoutError
from brix_core.session import current_session_id, session

T = TypeVar("T")


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


def nearer(one: RunLimit | None, other: RunLimit | None) -> RunLimit | None:
    """The limit that comes first; None is none."""
    if one is None or other is None:
        return other if one is None else one
    return other if other.left < one.left else one


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
    limit = nearer(RunLimit(Deadline(clock.now() + seconds, seconds), clock), around)
    token = _current.set(limit)
    try:
        yield limit
    finally:
        _current.reset(token)


class RunScope(NamedTuple):
    """What calls belong to that LlamaIndex makes only when their answer is read: the run in which they were asked for.

    Attributes:
        session_id: Whose calls they are.
        limit: That of the run.

    Example:
        >>> from brix_core.session import session
        >>> def asked():
        ...     yield current_session_id()
        >>> with session("user-42"):
        ...     scope = RunScope.here("nobody")
        >>> list(scope.steps(asked())), list(asked())
        (['user-42'], [None])
    """

    session_id: str
    limit: RunLimit | None

    @classmethod
    def here(cls, default_id: str) -> Self:
        """The scope of what is asked for now.

        Args:
            default_id: The session when there is none around.
        """
        return cls(current_session_id() or default_id, current_limit())

    def steps(self, source: Iterator[T]) -> Generator[T, None, None]:
        """What `source` gives; each step of it in this scope, wherever it is read."""
        try:
            while True:
                with self._entered():
                    try:
                        item = next(source)
                    except StopIteration:
                        return
                yield item
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    async def asteps(self, source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        """As `steps`, on the event loop."""
        try:
            while True:
                with self._entered():
                    try:
                        item = await anext(source)
                    except StopAsyncIteration:
                        return
                yield item
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        token = _current.set(nearer(self.limit, current_limit()))
        try:
            with session(self.session_id):
                yield
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


__all__ = ["RunLimit", "RunScope", "current_limit", "nearer", "run_limit", "within"]
