"""The drivers for asyncio callers: one answer, or a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from brix_core.call import CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.drivers.alarm import Alarm
from brix_core.drivers.attempts import (
    LimitReachedError,
    Tap,
    Waits,
    as_partial,
    begin,
    fail,
    is_collected,
    succeed,
    summed_up,
)
from brix_core.drivers.gathering import gather
from brix_core.drivers.hold_back import tapped
from brix_core.drivers.lookups import aretrieved
from brix_core.flow import Effect, Flow, Gather, ModelCall, Retrieve, Run, Sleep

log = logging.getLogger(__name__)


async def arun(flow: Flow, clock: Clock) -> CallResponse:
    """Drive a flow to its response on the event loop."""
    value: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                effect = flow.send(value) if error is None else flow.throw(error)
            except StopIteration as stop:
                response: CallResponse = stop.value
                return response
            value = error = None
            try:
                value = await _perform(effect, clock)
            except BaseException as raised:  # thrown into the flow, which re-raises what it does not handle
                error = raised
    finally:
        error = None  # no cycle through the traceback
        flow.close()


async def arun_stream(flow: Flow, request: CallRequest, clock: Clock) -> AsyncIterator[Any]:
    """Drive the flow of a request, and give the consumer its chunks as they come."""
    value: Any = None
    error: BaseException | None = None
    stream: _Stream | None = None
    try:
        while True:
            try:
                effect = flow.send(value) if error is None else flow.throw(error)
            except StopIteration as stop:
                if not request.call.streamed:
                    for chunk in request.endpoint.as_chunks(stop.value):
                        yield chunk
                return
            value = error = None
            try:
                request = effect.request if isinstance(effect, ModelCall) else request
                if isinstance(effect, ModelCall) and request.stream:
                    stream = _Stream(request, clock)
                    async for ready in stream:
                        for chunk in ready:
                            yield chunk
                    value = stream.response
                else:
                    stream = None
                    value = await _perform(effect, clock)
            except GeneratorExit as left:
                if stream is not None:
                    stream.abandon(left)
                raise
            except BaseException as raised:  # thrown into the flow, which re-raises what it does not handle
                error = raised if stream is None else await stream.failed(raised)
    finally:
        error = None
        flow.close()  # first: it releases what the call held, whatever becomes of the loop
        if stream is not None:
            await stream.aclose()


async def _perform(effect: Effect, clock: Clock) -> Any:
    if isinstance(effect, ModelCall):
        return await _call(effect.request, clock)
    if isinstance(effect, Sleep):
        return await clock.asleep(effect.seconds, effect.wakeup)
    if isinstance(effect, Run):
        return await asyncio.to_thread(effect.function)
    if isinstance(effect, Gather):
        return await gather(effect.flows, partial(arun, clock=clock))
    if isinstance(effect, Retrieve):
        return await aretrieved(effect)
    if effect.blocking:
        return await asyncio.to_thread(effect.operation, *effect.arguments)
    return effect.operation(*effect.arguments)


async def _call(request: CallRequest, clock: Clock) -> CallResponse:
    attempt = begin(request, clock)
    limits = request.limits
    try:
        if is_collected(request):
            return succeed(attempt, await _collect(request, clock), clock)
        if limits.call is None:
            return succeed(attempt, await request.endpoint.acall(request), clock)
        alarm = Alarm()
        try:
            response = await alarm.wait(partial(request.endpoint.acall, request), limits.call, limits.call_kind)
        finally:
            alarm.close()
        return succeed(attempt, response, clock)
    except BaseException as error:
        fail(attempt, error, clock)
        if isinstance(error, LimitReachedError):
            if limits.keep_partial:
                return as_partial(request.endpoint.assemble([], "", request))
            raise error.as_error(request, attempt) from None
        raise


async def _collect(request: CallRequest, clock: Clock) -> CallResponse:
    """Read a stream into one response, so that a timeout leaves what has arrived."""
    tap = tapped(request, clock)
    source = _Source(request, tap)
    try:
        while True:
            try:
                tap.collect(await source.next())
            except StopAsyncIteration:
                tap.end()
                return request.endpoint.assemble(tap.chunks, tap.text, request)
            except LimitReachedError as error:
                if not request.limits.keep_partial:
                    raise error.after(tap.shown) from None
                tap.end()
                return as_partial(request.endpoint.assemble(tap.chunks, tap.text, request))
    finally:
        await source.aclose()


class _Source:
    """The provider's chunks, each waited for no longer than the limits allow."""

    __slots__ = ("_alarm", "_bounded", "_chunks", "_loop", "_tap", "_waits", "next")

    def __init__(self, request: CallRequest, tap: Tap) -> None:
        limits = request.limits
        limited = limits.call is not None or limits.first_token is not None or limits.idle is not None
        self._chunks = request.endpoint.astream(request)
        self._tap = tap
        self._waits = Waits(limits)
        self._bounded = limits.call is not None
        self._alarm = Alarm() if limited else None
        self._loop = asyncio.get_running_loop()
        self.next: Callable[[], Awaitable[Any]] = self._limited if limited else self._chunks.__anext__

    async def _limited(self) -> Any:
        alarm = self._alarm
        assert alarm is not None
        has_content = self._tap.has_content
        wait, kind = self._waits.next(has_content)
        counts = self._bounded or not has_content
        before = self._loop.time() if counts else 0.0
        alarm.arm(wait)
        try:
            chunk = await self._chunks.__anext__()
        except BaseException as error:
            raise alarm.judge(error, kind) from error.__cause__
        if alarm.has_rung():
            raise LimitReachedError(kind)
        if counts:
            self._waits.spend(self._loop.time() - before)
        return chunk

    async def aclose(self) -> None:
        if self._alarm is not None:
            self._alarm.close()
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()


class _Stream:
    """One streamed attempt: an async iterator over what may go to the consumer at a time."""

    def __init__(self, request: CallRequest, clock: Clock) -> None:
        self.request = request
        self.response: CallResponse | None = None
        self._clock = clock
        self._attempt = begin(request, clock)
        self._tap = tapped(request, clock)
        self._source: _Source | None = None
        self._ended = False

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Sequence[Any]:
        if self._ended:
            raise StopAsyncIteration
        if self._source is None:
            self._source = _Source(self.request, self._tap)
        try:
            chunk = await self._source.next()
        except StopAsyncIteration:
            self._ended = True
            rest = self._tap.rest()
            response = summed_up(self._tap, self.request)
            self.response = succeed(self._attempt, response, self._clock)
        except LimitReachedError as error:
            if not self.request.limits.keep_partial:
                raise
            self._ended = True
            fail(self._attempt, error, self._clock)
            rest = self._tap.rest()
            self.response = as_partial(summed_up(self._tap, self.request))
        else:
            return self._tap.take(chunk)
        await self.aclose()
        return rest

    async def failed(self, error: BaseException) -> BaseException:
        """Note a failure and close the provider's stream; returns what to throw into the flow."""
        if self._attempt.outcome is None:
            fail(self._attempt, error, self._clock)
        try:
            await self.aclose()
        except Exception:  # what matters is why the attempt failed
            log.warning("closing the stream of %s failed too", self.request.endpoint.identity, exc_info=True)
        if isinstance(error, LimitReachedError):
            return error.as_error(self.request, self._attempt, self._tap.shown)
        return error

    def abandon(self, left: GeneratorExit) -> None:
        """Note that the consumer went away."""
        if self._attempt.outcome is None:
            fail(self._attempt, left, self._clock)

    async def aclose(self) -> None:
        """Close the provider's stream."""
        source, self._source = self._source, None
        if source is not None:
            self._ended = True
            await source.aclose()


__all__ = ["arun", "arun_stream"]
