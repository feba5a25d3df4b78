"""Model calls that callbacks have seen begin and not yet end, and what becomes of those whose end nobody tells."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from brix_core.drivers.stepwise import Stepwise
from brix_core.usage import Usage
from brix_langchain.outermost import OutermostRun, running_task

MAX_OPEN: Final = 10_000
"""Calls under way that are remembered; beyond them, the oldest is taken to be lost, and charged."""


@dataclass(slots=True, eq=False, kw_only=True)
class OpenCall:
    """A model call under way.

    Attributes:
        step: Its guards.
        model: The model asked.
        run: The outermost run it belongs to.
        batch: The parameters it shares with the other calls of one `generate`; None when it is alone.
        chat: Whether it is a chat model's.
        task: The asyncio task that began it, if it lives as long as the call.
        usage: What the chunks of its stream have reported.
        streams: Whether chunks have come.
    """

    step: Stepwise
    model: str
    run: OutermostRun
    batch: Mapping[str, Any] | None
    chat: bool
    task: asyncio.Task[Any] | None = None
    usage: Usage | None = None
    streams: bool = False
    on_task_done: Callable[[asyncio.Task[Any]], None] | None = None

    def fail(self, error: BaseException) -> None:
        """Tell the guards; what they raise is on its way to the application already."""
        with suppress(BaseException):
            self.step.fail(error)


class OpenCalls:
    """The open calls of one handler, by LangChain's run ids."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may close a stream while this thread holds it
        self._calls: OrderedDict[UUID, OpenCall] = OrderedDict()
        with _everywhere_lock:
            _everywhere.add(self)

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, run_id: UUID) -> OpenCall | None:
        """The call, if it is open."""
        return self._calls.get(run_id)

    def add(self, run_id: UUID, call: OpenCall) -> None:
        """A call has begun."""
        if call.task is not None:
            call.on_task_done = partial(self._task_ended, run_id)
            call.task.add_done_callback(call.on_task_done)
        with self._lock:
            self._calls[run_id] = call
            lost = [next(iter(self._calls))] if len(self._calls) > MAX_OPEN else []
        self._give_up(lost)

    def take(self, run_id: UUID) -> OpenCall | None:
        """The call, which from now on nobody else will end."""
        with self._lock:
            call = self._calls.pop(run_id, None)
        if call is not None and call.task is not None and call.on_task_done is not None:
            call.task.remove_done_callback(call.on_task_done)
        return call

    def run_ended(self, run: OutermostRun, error: BaseException | None) -> None:
        """An outermost run is over: nothing of it goes on, but what has a task of its own."""
        ended = (None, run.task)
        self._give_up(self._where(lambda call: call.run is run and (call.task in ended or _is_done(call.task))), error)

    def batch_failed(self, failed: OpenCall) -> None:
        """A call of a batch has failed.

        A chat model's blocking `generate` asks one prompt after the other, gives up at the first failure, and does not
        tell what became of the rest. The async one tells, in another task than the one it began in.
        """
        if failed.chat and failed.batch is not None and failed.task is running_task():
            self._give_up(self._where(lambda call: call.batch is failed.batch))

    def _where(self, condition: Callable[[OpenCall], bool]) -> list[UUID]:
        with self._lock:
            return [run_id for run_id, call in self._calls.items() if condition(call)]

    def _task_ended(self, run_id: UUID, task: asyncio.Task[Any]) -> None:
        """The task that began a call is over: so is the call, unless it is a stream that others read on."""
        call = self.get(run_id)
        if call is not None and (task.cancelled() or not call.streams):
            self._give_up([run_id], asyncio.CancelledError() if task.cancelled() else None)

    def _give_up(self, run_ids: Iterable[UUID], error: BaseException | None = None) -> None:
        for call in filter(None, map(self.take, run_ids)):
            if error is None or isinstance(error, Exception):
                call.step.close()
            else:  # cancelled, or abandoned
                call.fail(error)


_everywhere: weakref.WeakSet[OpenCalls] = weakref.WeakSet()
_everywhere_lock = threading.RLock()


def withdraw(run_id: UUID, batch: Mapping[str, Any] | None, error: Exception) -> None:
    """A call is refused: nothing is sent of what other handlers have let go, nor of the batch it is one of."""
    with _everywhere_lock:
        handlers = list(_everywhere)
    for calls in handlers:
        same = [] if batch is None else calls._where(lambda call: call.batch is batch)
        for call in filter(None, map(calls.take, [run_id, *same])):
            with suppress(Exception):
                call.step.withdraw(error)


def _is_done(task: asyncio.Task[Any] | None) -> bool:
    return task is not None and task.done()


__all__ = ["MAX_OPEN", "OpenCall", "OpenCalls", "withdraw"]
