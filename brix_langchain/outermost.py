"""Outermost runs, as callbacks see them: what belongs to which, how many calls it made, whether its tools loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter, OrderedDict
from typing import Any, Final
from uuid import UUID

from brix_core.errors import BrixGuardBlockedError, BrixLoopError, BrixRunLimitError
from brix_core.looping.loops import MAX_QUOTED
from brix_core.looping.steps import canonical

MAX_RUNS: Final = 100_000
"""Runs under way that are remembered; beyond them, the oldest is forgotten."""

MAX_TOOLS: Final = 10_000
"""Tool calls under way that are remembered."""

MAX_RESULTS: Final = 1_000
"""Different results of tool calls that an outermost run remembers."""

ToolUse = tuple[str, str]
"""Name and input of a tool call."""


class OutermostRun:
    """One run of the application: a chain, an agent, a graph, or a model by itself.

    Attributes:
        run_id: LangChain's.
        task: The asyncio task in which it began, if any.
        session_id: Whose it is, as soon as anything in it was told.
    """

    def __init__(self, run_id: UUID) -> None:
        self.run_id = run_id
        self.task = running_task()
        self.session_id: str | None = None
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._again: Counter[tuple[ToolUse, int]] = Counter()

    def count(self, what: str, limit: int | None, option: str) -> None:
        """Count a call.

        Raises:
            BrixRunLimitError: There were enough.
        """
        with self._lock:
            if limit is None or self._calls[what] < limit:
                self._calls[what] += 1
                return
        raise BrixRunLimitError(
            f"this run has made all the {what} calls it may ({option}={limit}); raise {option}, or find out why the "
            "run does not come to an end",
            limit=limit,
        )

    def refuse_repeats(self, use: ToolUse, threshold: int) -> None:
        """Refuse a tool call that came to the same result so often, with nothing new from any tool in between.

        Raises:
            BrixLoopError: It would be a loop.
        """
        repeats = max((times for (before, _), times in self._again.items() if before == use), default=0)
        if repeats >= threshold:
            what = f"{use[0]}({use[1] if len(use[1]) <= MAX_QUOTED else use[1][: MAX_QUOTED - 1] + '…'})"
            raise BrixLoopError(
                f"{what} came to the same result {repeats} times without anything new "
                f"(exact_loop_threshold={threshold}), and was not run again. Change the prompt or the tools, end the "
                "run, or raise the limit",
                kind="tool",
                repeats=repeats,
                what=what,
            )

    def remember(self, use: ToolUse, result: str) -> None:
        """What a tool call came to."""
        key = (use, hash(result))
        seen = hash(key)
        if seen not in self._seen:
            self._again.clear()
        self._seen[seen] = None
        self._seen.move_to_end(seen)
        if len(self._seen) > MAX_RESULTS:
            self._seen.popitem(last=False)
        self._again[key] += 1


class Runs:
    """Runs under way, and the tool calls in them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may close a stream while this thread holds it
        self._outermost: OrderedDict[UUID, OutermostRun] = OrderedDict()
        self._tools: OrderedDict[UUID, tuple[OutermostRun, ToolUse]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._outermost) + len(self._tools)

    def of(self, run_id: UUID, parent: UUID | None) -> OutermostRun:
        """The outermost run that a run belongs to; one whose parent is unknown is its own."""
        run = None if parent is None else self._outermost.get(parent)
        return run or OutermostRun(run_id)

    def enter(self, run_id: UUID, parent: UUID | None) -> OutermostRun:
        """A run that may have others in it has begun. Returns the outermost one it belongs to."""
        with self._lock:
            run = self._outermost[run_id] = self.of(run_id, parent)
            if len(self._outermost) > MAX_RUNS:
                self._outermost.popitem(last=False)
        return run

    def leave(self, run_id: UUID) -> OutermostRun | None:
        """A run has ended. Returns it if it was an outermost one."""
        with self._lock:
            run = self._outermost.pop(run_id, None)
        return run if run is not None and run.run_id == run_id else None

    def begin_tool(
        self, run_id: UUID, parent: UUID | None, use: ToolUse, *, threshold: int | None, limit: int | None
    ) -> None:
        """A tool is to be called.

        Raises:
            BrixLoopError: Once more would be a loop.
            BrixRunLimitError: There were enough.
        """
        with self._lock:
            run = self.enter(run_id, parent)
            try:
                if threshold is not None:
                    run.refuse_repeats(use, threshold)
                run.count("tool", limit, "max_tool_calls_per_run")
            except BrixGuardBlockedError:
                self.leave(run_id)
                raise
            self._tools[run_id] = run, use
            if len(self._tools) > MAX_TOOLS:
                self._tools.popitem(last=False)

    def end_tool(self, run_id: UUID, result: str) -> None:
        """What a tool call came to."""
        with self._lock:
            run, use = self._tools.pop(run_id, (None, None))
            if run is not None and use is not None:
                run.remember(use, result)


def tool_use(serialized: dict[str, Any] | None, text: str, inputs: dict[str, Any] | None, name: Any) -> ToolUse:
    """A tool call, in one notation."""
    called = (serialized or {}).get("name") or name or "tool"
    return str(called), canonical(text if inputs is None else json.dumps(inputs, default=str))


def running_task() -> asyncio.Task[Any] | None:
    """The asyncio task we are in, if any."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop in this thread
        return None


__all__ = ["OutermostRun", "Runs", "ToolUse", "running_task", "tool_use"]
