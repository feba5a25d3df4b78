"""Sessions: the scope of a budget, a rate, a trace.

Which session a call belongs to is resolved for every call: a framework's own configuration, else
``with session("user-42"):``, else the default session of the wrapped client.

Example:
    >>> with session("user-42"):
    ...     current_session_id()
    'user-42'
    >>> current_session_id() is None
    True
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar
from uuid import uuid4

from brix_core.clock import Clock
from brix_core.conversation import PrefixMemory
from brix_core.errors import BrixConfigurationError

_current: ContextVar[str | None] = ContextVar("brix_session", default=None)


@contextmanager
def session(session_id: str | None = None) -> Iterator[str]:
    """Give every guarded call inside the block to one session.

    The identity is a context variable: tasks inherit it, as do the threads LangChain and LlamaIndex
    start; a bare `threading.Thread` does not (run it in `contextvars.copy_context`).

    Args:
        session_id: Any non-empty text; a new UUID4 when left out.

    Yields:
        The session's id.

    Raises:
        BrixConfigurationError: The id is empty or no text.
    """
    name = str(uuid4()) if session_id is None else checked_session_id(session_id)
    token = _current.set(name)
    try:
        yield name
    finally:
        _current.reset(token)


def current_session_id() -> str | None:
    """The session of the surrounding ``with session(...)`` block, if any."""
    return _current.get()


def checked_session_id(value: Any) -> str:
    """The id, if it is usable as one.

    Raises:
        BrixConfigurationError: The id is empty or no text.
    """
    if isinstance(value, str) and value:
        return value
    raise BrixConfigurationError(f"a session id must be a non-empty str, got {value!r}")


class Session:
    """What is remembered of one session, in bounded space. Also a client's ``context``.

    Attributes:
        session_id: Its identity.
        session_start: When it was first seen, UTC.
        run_id: UUID4 of the latest call.
        call_count: Calls begun.
        session_cost_usd: Settled spend, USD, as of the latest call.
        metadata: Notes of guards about the latest call, such as ``"retry_history"``.
        started: Monotonic moment it was first seen.
        last_call: Monotonic moment its latest call began.
        prefix: The part of the conversation measured last.
    """

    def __init__(self, session_id: str, clock: Clock) -> None:
        self.session_id = session_id
        self.session_start = datetime.fromtimestamp(clock.time(), UTC)
        self.run_id = ""
        self.call_count = 0
        self.session_cost_usd = 0.0
        self.metadata: dict[str, Any] = {}
        self.started = clock.now()
        self.last_call: float | None = None
        self.prefix = PrefixMemory()

    def __repr__(self) -> str:
        return f"Session({self.session_id!r}, calls={self.call_count}, cost=${self.session_cost_usd:.6f})"


_T = TypeVar("_T")


class PerSession(Generic[_T]):
    """What a guard keeps for each session; forgotten with the session.

    Args:
        make: Makes it for a new session.

    Example:
        >>> from brix_core.clock import SystemClock
        >>> windows, ann = PerSession(list), Session("ann", SystemClock())
        >>> windows.of(ann).append("hello")
        >>> windows.of(ann), windows.of(Session("ben", SystemClock()))
        (['hello'], [])
    """

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._kept: weakref.WeakKeyDictionary[Session, _T] = weakref.WeakKeyDictionary()

    def of(self, session: Session) -> _T:
        """That of this session; made when new."""
        kept = self._kept.get(session)
        if kept is None:
            with self._lock:
                kept = self._kept.setdefault(session, self._make())
        return kept


MAX_SESSIONS: Final = 10_000
"""Sessions a pipeline remembers; beyond them, the longest unused is forgotten."""

MAX_PREFIXES: Final = 256
"""Sessions whose last measured conversation is kept as well."""


class Sessions:
    """The sessions of one pipeline, least recently used first out.

    Args:
        clock: Gives new sessions their start.
        default_id: The session of calls that name none; a new UUID4 when left out.
    """

    def __init__(self, clock: Clock, default_id: str | None = None) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._measured: OrderedDict[str, Session] = OrderedDict()
        self._latest: Session | None = None
        self.default_id = str(uuid4()) if default_id is None else checked_session_id(default_id)

    def resolve(self, session_id: str | None = None) -> Session:
        """The session by this id, of the surrounding block, or the default one; made when new."""
        name = session_id or _current.get() or self.default_id
        latest = self._latest
        if latest is not None and latest.session_id == name:
            return latest
        with self._lock:
            found = self._sessions.get(name)
            if found is None:
                found = self._sessions[name] = Session(name, self._clock)
                if len(self._sessions) > MAX_SESSIONS:
                    self._forget_one(keep=name)
            self._sessions.move_to_end(name)
            self._measured[name] = found
            self._measured.move_to_end(name)
            if len(self._measured) > MAX_PREFIXES:
                self._measured.popitem(last=False)[1].prefix = PrefixMemory()
            self._latest = found
            return found

    def _forget_one(self, keep: str) -> None:
        """Forget the longest unused session, but never the default one."""
        for name in self._sessions:
            if name not in (self.default_id, keep):
                del self._sessions[name]
                self._measured.pop(name, None)
                return


__all__ = [
    "MAX_PREFIXES",
    "MAX_SESSIONS",
    "PerSession",
    "Session",
    "Sessions",
    "checked_session_id",
    "current_session_id",
    "session",
]
