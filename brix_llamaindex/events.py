"""What guards decide, as events of LlamaIndex's instrumentation.

LlamaIndex's dispatcher swallows whatever an event handler raises, so a handler can watch and never block: only
`brix_llamaindex.guard` keeps a budget or a limit.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from llama_index.core.bridge.pydantic import Field
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.dispatcher import (  # type: ignore[attr-defined]
    active_instrument_tags,
    instrument_tags,
)
from llama_index.core.instrumentation.events import BaseEvent

from brix_core.call import CallRequest, LogicalCall, Outcome
from brix_core.errors import BrixError, BrixTimeoutError

RUN_TAG: Final = "brix.run_id"
"""Tag of the events of a guarded LLM: the ``run_id`` of its trace entry."""

_dispatcher = get_dispatcher(__name__)
_failures: ContextVar[list[BrixError] | None] = ContextVar("brix_llamaindex_failures", default=None)


class BrixGuardEvent(BaseEvent):
    """What a guard decided about a call, or how the call ended. Dispatched when it has ended.

    One event for each entry in ``decisions`` of the call's trace entry, in order; then one from the guard
    ``"observability"``, whose decision is the outcome, and whose details hold the numbers of the guard that refused.
    A retrieval that must be good enough dispatches one from the guard ``"retrieval"``, decision ok, refused or failed;
    a guarded tool that is called in circles or too often, one from ``"loop"`` or ``"run_limit"``, decision told (the
    model, by an error result) or raised.

    Attributes:
        run_id: That of the trace entry; of tools, that of the agent's run, empty in none.
        session_id: Whose call it was; of tools, empty in none.
        guard: Which guard.
        decision: What it decided, or the outcome: ok, refused, failed, timed_out, cancelled or abandoned.
        details: The numbers behind it.
        cost_usd: Charged for the call with all its attempts; None when nothing was metered.

    Example:
        >>> event = BrixGuardEvent(run_id="r", session_id="s", guard="retry", decision="retrying")
        >>> event.class_name(), event.cost_usd
        ('BrixGuardEvent', None)
    """

    run_id: str
    session_id: str
    guard: str
    decision: str
    details: dict[str, Any] = Field(default_factory=dict)
    cost_usd: float | None = None

    @classmethod
    def class_name(cls) -> str:
        """Its name, as LlamaIndex serialises it."""
        return "BrixGuardEvent"


@contextmanager
def outspoken() -> Iterator[None]:
    """Raise what the guards raised last in this block, where LlamaIndex has made a text of it."""
    failures: list[BrixError] = []
    token = _failures.set(failures)
    try:
        yield
    finally:
        _failures.reset(token)
    if failures:
        raise failures[-1]


@contextmanager
def announced(request: CallRequest) -> Iterator[None]:
    """Dispatch the events of a call when its block ends."""
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
        noted = _failures.get()
        if noted is not None and isinstance(error, BrixError):
            noted.append(error)
        raise
    finally:
        if _is_watched():
            for event in _events(request, failure):
                _dispatcher.event(event)


def announce_retrieval(entry: Mapping[str, Any]) -> None:
    """Dispatch how a retrieval ended.

    Args:
        entry: Its trace entry.
    """
    if not _is_watched():
        return
    found = entry["documents"]
    details = {name: entry[name] for name in ("score", "min_score", "error")}
    details |= {"found": len(found), "kept": sum(document["kept"] for document in found)}
    _dispatcher.event(
        BrixGuardEvent(
            run_id=entry["run_id"],
            session_id=entry["session_id"],
            guard="retrieval",
            decision=entry["outcome"],
            details=details,
        )
    )


def announce_tool(guard: str, decision: str, session_id: str | None, run_id: str | None, **details: Any) -> None:
    """Dispatch what was decided about a tool.

    Args:
        guard: ``"loop"`` or ``"run_limit"``.
        decision: ``"told"``, the model by an error result; or ``"raised"``.
        session_id: Whose call it was.
        run_id: The agent's run.
        **details: The numbers behind it.
    """
    if _is_watched():
        _dispatcher.event(
            BrixGuardEvent(
                run_id=run_id or "", session_id=session_id or "", guard=guard, decision=decision, details=details
            )
        )


def numbers_of(error: BaseException | None) -> dict[str, Any]:
    """The numbers that an error of the guards carries, and which limit they are of.

    Example:
        >>> from brix_core.errors import BrixBudgetError
        >>> numbers_of(BrixBudgetError("no", limit_usd=0.5, spent_usd=0.4, needed_usd=0.2))
        {'limit_usd': 0.5, 'spent_usd': 0.4, 'reserved_usd': 0.0, 'needed_usd': 0.2}
    """
    if not isinstance(error, BrixError):
        return {}
    return {
        name: value
        for name, value in vars(error).items()
        if isinstance(value, int | float) or (name in ("kind", "reason") and isinstance(value, str))
    }


@contextmanager
def tagged(request: CallRequest) -> Iterator[None]:
    """Mark the events of an LLM that is called in this block as those of a guarded call. No ``yield`` inside."""
    with instrument_tags({**active_instrument_tags.get(), RUN_TAG: request.call.run_id}):
        yield


def _is_watched() -> bool:
    dispatcher = _dispatcher
    while not dispatcher.event_handlers:
        if not dispatcher.propagate or not dispatcher.parent_name:
            return False
        dispatcher = dispatcher.parent
    return True


def _events(request: CallRequest, failure: BaseException | None) -> Iterator[BrixGuardEvent]:
    call = request.call
    costs = [attempt.cost_nano for attempt in call.attempts if attempt.cost_nano is not None]
    cost = sum(costs) / 1e9 if costs else None
    ended = {
        "guard": "observability",
        "decision": outcome_of(call, failure),
        "model": request.model,
        "attempts": len(call.attempts),
        "error": None if failure is None else type(failure).__name__,
        **{name: value for name, value in numbers_of(failure).items() if name != "attempts"},
    }
    for decision in (*call.decisions, ended):
        details = {name: value for name, value in decision.items() if name not in ("guard", "decision")}
        yield BrixGuardEvent(
            run_id=call.run_id,
            session_id=call.session.session_id,
            guard=decision["guard"],
            decision=decision["decision"],
            details=details,
            cost_usd=cost,
        )


def outcome_of(call: LogicalCall, failure: BaseException | None) -> Outcome:
    """How a call ended, as its trace entry has it."""
    if failure is None:
        partial = any((one["guard"], one["decision"]) == ("timeout", "partial") for one in call.decisions)
        return "timed_out" if partial else "ok"
    if isinstance(failure, GeneratorExit):
        return "abandoned"
    if isinstance(failure, CancelledError | KeyboardInterrupt | SystemExit):
        return "cancelled"
    if isinstance(failure, BrixTimeoutError):
        return "timed_out"
    return "refused" if isinstance(failure, BrixError) and not call.attempts else "failed"


__all__ = [
    "RUN_TAG",
    "BrixGuardEvent",
    "announce_retrieval",
    "announce_tool",
    "announced",
    "numbers_of",
    "outcome_of",
    "outspoken",
    "tagged",
]
