"""Which calls a run makes of guarded LLMs, and runs that may make none.

Both are in context variables, which tasks inherit, and the threads that LlamaIndex starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from brix_core.call import LogicalCall
from brix_core.errors import BrixError

_noted: Final[ContextVar[list[LogicalCall] | None]] = ContextVar("brix_llamaindex_calls", default=None)
_refusal: Final[ContextVar[Callable[[], BrixError] | None]] = ContextVar("brix_llamaindex_refusal", default=None)


@contextmanager
def noted_calls() -> Iterator[list[LogicalCall]]:
    """The calls of guarded LLMs that are begun in this block, or in tasks and threads begun in it."""
    calls: list[LogicalCall] = []
    around = _noted.get()
    token = _noted.set(calls)
    try:
        yield calls
    finally:
        _noted.reset(token)
        if around is not None:
            around += calls


@contextmanager
def no_calls(refusal: Callable[[], BrixError] | None) -> Iterator[None]:
    """No guarded LLM is asked in this block.

    Args:
        refusal: Makes what is raised when one would be; None changes nothing.
    """
    token = _refusal.set(refusal or _refusal.get())
    try:
        yield
    finally:
        _refusal.reset(token)


def note_call(call: LogicalCall) -> None:
    """Note a call that begins.

    Raises:
        BrixError: None may begin here.
    """
    refusal = _refusal.get()
    if refusal is not None:
        raise refusal()
    calls = _noted.get()
    if calls is not None:
        calls.append(call)


__all__ = ["no_calls", "note_call", "noted_calls"]
