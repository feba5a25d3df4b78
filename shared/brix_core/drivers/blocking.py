"""The drivers for blocking callers: one answer, or a stream."""

from __future__ import annotations

import queue
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from brix_core.call import Attempt, CallRequest, CallResponse
from brix_core.clock import Clock
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
from brix_core.drivers.gathering import SideBySide
from brix_core.drivers.hold_back import tapped
from brix_core.drivers.lookups import retrieved
from brix_core.drivers.workers import EndOfSourceError, Pump, submit
from brix_core.flow import Effect, Flow, Gather, ModelCall, Retrieve, Run, Sleep


def run(flow: Flow, clock: Clock) -> CallResponse:
    """Drive a flow to its response in this thread."""
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
                value = _perform(effect, clock)
            except BaseException as raised:  # thrown into the flow, which re-raises what it does not handle
                error = raised
    finally:
        error = None  # no cycle through the traceback
        flow.close()


def run_stream(flow: Flow, request: CallRequest, clock: Clock) -> Iterator[Any]:
    """Drive the flow of a request, and give the consumer its chunks as they come."""
    value: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                effect = flow.send(value) if error is None else flow.throw(error)
            except StopIteration as stop:
                if not request.call.streamed:
                    yield from request.endpoint.as_chunks(stop.value)
                return
            value = error = None
            try:
                request = effect.request if isinstance(effect, ModelCall) else request
                if isinstance(effect, ModelCall) and request.stream:
                    value = yield from _stream(request, clock)
                else:
                    value = _perform(effect, clock)
            except GeneratorExit:
                raise
            except BaseException as raised:  # thrown into the flow, which re-raises what it does not handle
                error = raised
    finally:
        error = None
        flow.close()


def _perform(effect: Effect, clock: Clock) -> Any:
    if isinstance(effect, ModelCall):
        return _call(effect.request, clock)
    if isinstance(effect, Sleep):
        return clock.sleep(effect.seconds, effect.wakeup)
    if isinstance(effect, Run):
        return effect.function()
    if isinstance(effect, Gather):
        return SideBySide(effect.flows, clock, _send, _failed, _perform).run()
    if isinstance(effect, Retrieve):
        return retrieved(effect)
    return effect.operation(*effect.arguments)


def _call(request: CallRequest, clock: Clock) -> CallResponse:
    attempt = begin(request, clock)
    try:
        response = _send(request, clock)
    except BaseException as error:
        return _failed(request, attempt, error, clock)
    return succeed(attempt, response, clock)


def _send(request: CallRequest, clock: Clock) -> CallResponse:
    if is_collected(request):
        return _collect(request, clock)
    if request.limits.call is None:
        return request.endpoint.call(request)
    job = submit(partial(request.endpoint.call, request))
    if not job.wait(request.limits.call):
        raise LimitReachedError(request.limits.call_kind)
    if job.error is not None:
        raise job.error
    response: CallResponse = job.result
    return response


def _failed(request: CallRequest, attempt: Attempt, error: BaseException, clock: Clock) -> CallResponse:
    """Note how an attempt failed. Gives the empty answer where time limits are to leave what has arrived."""
    try:
        fail(attempt, error, clock)
        if isinstance(error, LimitReachedError):
            if request.limits.keep_partial:
                return as_partial(request.endpoint.assemble([], "", request))
            raise error.as_error(request, attempt) from None
        if isinstance(error, StopIteration):  # an exhausted fake; inside a generator it would be mangled
            raise RuntimeError(f"{request.endpoint.identity} raised StopIteration") from error
        raise error
    finally:
        del error  # no cycle through the traceback


def _collect(request: CallRequest, clock: Clock) -> CallResponse:
    """Read a stream into one response, so that a timeout leaves what has arrived."""
    tap = tapped(request, clock)
    source = _chunks(request, tap, clock)
    try:
        for chunk in source:
            tap.collect(chunk)
    except LimitReachedError as error:
        if not request.limits.keep_partial:
            raise error.after(tap.shown) from None
        tap.end()
        return as_partial(request.endpoint.assemble(tap.chunks, tap.text, request))
    finally:
        source.close()
    tap.end()
    return request.endpoint.assemble(tap.chunks, tap.text, request)


def _stream(request: CallRequest, clock: Clock) -> Generator[Any, None, CallResponse]:
    attempt = begin(request, clock)
    tap = tapped(request, clock)
    source = _chunks(request, tap, clock)
    try:
        for chunk in source:
            yield from tap.take(chunk)
        yield from tap.rest()
        return succeed(attempt, summed_up(tap, request), clock)
    except BaseException as error:
        fail(attempt, error, clock)
        if isinstance(error, LimitReachedError):
            if request.limits.keep_partial:
                yield from tap.rest()
                return as_partial(summed_up(tap, request))
            raise error.as_error(request, attempt, tap.shown) from None
        raise
    finally:
        source.close()


def _chunks(request: CallRequest, tap: Tap, clock: Clock) -> Generator[Any, None, None]:
    """The provider's chunks, each waited for no longer than the limits allow."""
    limits = request.limits
    if limits.call is None and limits.first_token is None and limits.idle is None:
        source = request.endpoint.stream(request)
        try:
            yield from source
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
        return
    waits, pump = Waits(limits), Pump(partial(request.endpoint.stream, request))
    try:
        while True:
            try:
                if pump.is_ready:  # no waiting, nothing to count
                    yield pump.get(None)
                    continue
                wait, kind = waits.next(tap.has_content)
                before = clock.now()
                chunk = pump.get(wait)
            except queue.Empty:
                raise LimitReachedError(kind) from None
            except EndOfSourceError:
                return
            waits.spend(clock.now() - before)
            yield chunk
    finally:
        with suppress(Exception):
            pump.stop()


__all__ = ["run", "run_stream"]
