"""Flows side by side: how the drivers perform `Gather`.

On an event loop each flow is a task. For a blocking caller the flows themselves all stay in its thread, which goes
from one to the other; only their model calls are made in worker threads. So guards need not fear each other, and a
caller that is interrupted closes all flows at once, whatever the workers still wait for.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from brix_core.call import Attempt, CallRequest, CallResponse
from brix_core.clock import Clock, Wakeup
from brix_core.drivers.attempts import begin, fail, succeed
from brix_core.drivers.workers import Job, submit
from brix_core.flow import Effect, Flow, ModelCall, Sleep

Outcomes = list[CallResponse | Exception]
"""What each flow came to."""


Send = Callable[[CallRequest, Clock], CallResponse]
"""Sends a request and waits for the answer, in whichever thread."""

Failed = Callable[[CallRequest, Attempt, BaseException, Clock], CallResponse]
"""Notes how an attempt failed. Gives a partial answer, or raises."""


async def gather(flows: Sequence[Flow], drive: Callable[[Flow], Awaitable[CallResponse]]) -> Outcomes:
    """Drive flows in tasks of their own.

    Raises:
        BaseException: What is no `Exception`, be it in a flow or around all of them. No flow is under way any more.
    """

    async def outcome(flow: Flow) -> CallResponse | Exception:
        try:
            return await drive(flow)
        except Exception as error:
            return error

    tasks = [asyncio.ensure_future(outcome(flow)) for flow in flows]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        return [task.result() for task in tasks]
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)  # each tells its own guards that it was cancelled
        for task in tasks:
            if not task.cancelled():
                task.exception()  # looked at, or asyncio reports it as forgotten
        raise
    finally:
        for flow in flows:
            flow.close()  # also where a second cancellation came while the tasks were ending


class SideBySide:
    """Drives flows in the thread of a blocking caller.

    Args:
        flows: The flows.
        clock: The time.
        send: Makes their model calls.
        failed: Says what becomes of those that fail.
        perform: Performs any other effect, at once.
    """

    def __init__(
        self,
        flows: Sequence[Flow],
        clock: Clock,
        send: Send,
        failed: Failed,
        perform: Callable[[Effect, Clock], Any],
    ) -> None:
        self._flows = flows
        self._clock = clock
        self._send = send
        self._failed = failed
        self._perform = perform
        self._outcomes: dict[int, CallResponse | Exception] = {}
        self._under_way: dict[int, tuple[CallRequest, Attempt, Job]] = {}
        self._asleep: dict[int, tuple[float, Wakeup | None]] = {}
        self._answered: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._bell = Wakeup()

    def run(self) -> Outcomes:
        """Drive them all to their ends.

        Raises:
            BaseException: What is no `Exception`, in a flow or while waiting. No flow is under way any more.
        """
        try:
            for number in range(len(self._flows)):
                self._go_on(number)
            while self._under_way or self._asleep:
                number = self._next()
                if number in self._asleep:
                    del self._asleep[number]
                    self._go_on(number)
                else:
                    self._take_answer(number)
            return [self._outcomes[number] for number in range(len(self._flows))]
        except BaseException as error:
            for _, attempt, _ in self._under_way.values():
                fail(attempt, error, self._clock)
            raise
        finally:
            for flow in self._flows:
                flow.close()

    def _go_on(self, number: int, value: Any = None, error: BaseException | None = None) -> None:
        """Drive one flow until it has to wait."""
        flow = self._flows[number]
        try:
            while True:
                try:
                    effect = flow.send(value) if error is None else flow.throw(error)
                except StopIteration as stop:
                    self._outcomes[number] = stop.value
                    return
                except Exception as raised:
                    self._outcomes[number] = raised
                    return
                value = error = None
                try:
                    if isinstance(effect, ModelCall):
                        return self._start(number, effect.request)
                    if isinstance(effect, Sleep):
                        self._asleep[number] = self._clock.now() + effect.seconds, effect.wakeup
                        return
                    value = self._perform(effect, self._clock)
                except BaseException as raised:  # thrown into the flow, which re-raises what it does not handle
                    error = raised
        finally:
            error = None  # no cycle through the traceback

    def _start(self, number: int, request: CallRequest) -> None:
        def send() -> CallResponse:
            try:
                return self._send(request, self._clock)
            finally:
                self._answered.put(number)
                self._bell.set()

        attempt = begin(request, self._clock)  # in this thread: what has left is known when the flow is closed
        try:
            self._under_way[number] = request, attempt, submit(send)
        except BaseException as error:  # no thread can be started
            fail(attempt, error, self._clock)
            raise

    def _take_answer(self, number: int) -> None:
        request, attempt, job = self._under_way.pop(number)
        job.wait(None)  # its function has told of its end, and returns now
        try:
            if job.error is None:
                response = succeed(attempt, job.result, self._clock)
            else:
                response = self._failed(request, attempt, job.error, self._clock)
        except BaseException as error:
            self._go_on(number, error=error)
        else:
            self._go_on(number, response)

    def _next(self) -> int:
        """Wait for whichever flow can go on first."""
        while True:
            if not self._asleep:
                return self._answered.get()
            bell = self._bell = Wakeup()  # first: an answer that comes from here on rings it
            try:
                return self._answered.get_nowait()
            except queue.Empty:
                pass
            now = self._clock.now()
            for number, (until, wakeup) in self._asleep.items():
                if until <= now or (wakeup is not None and wakeup.is_set):
                    return number
            self._sleep(min(until for until, _ in self._asleep.values()) - now, bell)

    def _sleep(self, seconds: float, bell: Wakeup) -> None:
        own = [wakeup for _, wakeup in self._asleep.values() if wakeup is not None]
        for wakeup in own:
            wakeup.on_set(bell.set)
        try:
            self._clock.sleep(seconds, bell)
        finally:
            for wakeup in own:
                wakeup.forget(bell.set)


__all__ = ["Failed", "Outcomes", "Send", "SideBySide", "gather"]
