"""The driver for callers who do not make the call, and are only told when it begins and how it ends.

Callbacks of a framework are such callers. They can refuse a call and stop a stream, and that is all: guards that wait,
or that call the model again, cannot be driven from there.
"""

from __future__ import annotations

from typing import Any

from brix_core.call import PARTIAL_CHARACTERS, Attempt, CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.drivers.attempts import LimitReachedError, begin, fail, succeed
from brix_core.drivers.lookups import retrieved
from brix_core.errors import BrixInternalError
from brix_core.flow import Effect, Flow, Gather, ModelCall, Retrieve, Run, Sleep


class Stepwise:
    """One call, driven step by step: `begin`, any number of `chunk`, then `finish`, `fail`, `withdraw` or `close`.

    Effects are performed in place, in the thread that takes the step.

    Args:
        flow: The flow of the request.
        clock: The time.
    """

    __slots__ = ("_attempt", "_clock", "_flow", "_kept", "_request")

    def __init__(self, flow: Flow, clock: Clock) -> None:
        self._flow = flow
        self._clock = clock
        self._request: CallRequest | None = None
        self._attempt: Attempt | None = None
        self._kept = 0

    def begin(self) -> CallRequest:
        """Run the guards up to the model call. Returns the request as they would have it sent.

        Raises:
            Exception: Whatever a guard raises to refuse the call; it has ended then.
        """
        if self._go_on() is not None or self._request is None:
            raise BrixInternalError("a guard answered in the model's place, which nobody here can hand on")
        return self._request

    def chunk(self, text: str) -> None:
        """Text of a stream has arrived.

        Raises:
            Exception: Whatever a hook raises to stop the stream, or that the time is over. The call goes on until
                it is told how it ended: by this very error, as a rule.
        """
        request, attempt = self._under_way()
        call, limit, now = request.call, request.limits.call, self._clock.now()
        if limit is not None and now - attempt.started > limit:
            attempt.seconds = now - attempt.started
            raise LimitReachedError(request.limits.call_kind).as_error(request, attempt, call.partial_text)
        for hook in reversed(request.hooks):  # the innermost first, see `Tap`; nothing can be held back from here
            hook(text)
        if self._kept < PARTIAL_CHARACTERS:
            self._kept += len(text)
            call.parts.append(text)
        if not call.streamed:
            call.first_chunk = now
            call.streamed = True

    def finish(self, response: CallResponse) -> CallResponse:
        """The model has answered. Returns what the guards make of it.

        Raises:
            Exception: Whatever a guard raises to refuse the answer.
        """
        request, attempt = self._under_way()
        response = succeed(attempt, response, self._clock)
        try:
            for hook in request.hooks if request.call.streamed else ():
                if hasattr(hook, "finish"):
                    hook.finish()
        except Exception as error:
            return self._end(error=error)
        return self._end(response)

    def fail(self, error: BaseException) -> CallResponse:
        """The call has failed.

        Raises:
            BaseException: `error` itself, or what the guards make of it.
        """
        _, attempt = self._under_way()
        fail(attempt, error, self._clock)
        return self._end(error=_throwable(error))

    def withdraw(self, error: Exception) -> CallResponse:
        """The request was not sent after all: no attempt, and nothing to pay.

        Raises:
            Exception: `error` itself, or what the guards make of it.
        """
        request, attempt = self._under_way()
        request.call.withdraw(attempt)
        return self._end(error=error)

    def close(self) -> None:
        """Nobody will tell how the call ended: it may have been done."""
        if self._request is not None and self._attempt is not None:
            fail(self._attempt, GeneratorExit(), self._clock)
        self._request = None
        self._flow.close()

    def _under_way(self) -> tuple[CallRequest, Attempt]:
        if self._request is None or self._attempt is None:
            raise BrixInternalError("this call is not under way: it has not begun, or has ended")
        return self._request, self._attempt

    def _end(self, value: CallResponse | None = None, error: BaseException | None = None) -> CallResponse:
        self._request = None
        response = self._go_on(value, error)
        assert response is not None
        return response

    def _go_on(self, value: Any = None, error: BaseException | None = None) -> CallResponse | None:
        """Drive the flow to its response, or to the model call: None."""
        try:
            while True:
                try:
                    effect = self._flow.send(value) if error is None else self._flow.throw(error)
                except StopIteration as stop:
                    response: CallResponse = stop.value
                    return response
                value = error = None
                try:
                    if isinstance(effect, ModelCall) and self._attempt is None:
                        self._attempt = begin(effect.request, self._clock)
                        self._request = effect.request
                        return None
                    value = _perform(effect)
                except BaseException as raised:  # thrown into the flow, which re-raises what it does not handle
                    error = raised
        finally:
            error = None  # no cycle through the traceback
            if self._request is None:
                self._flow.close()


def _perform(effect: Effect) -> Any:
    if isinstance(effect, ModelCall | Sleep | Gather):
        raise BrixInternalError(
            f"a guard asked for {type(effect).__name__}, which cannot be had here: this call can neither wait nor be "
            "made again"
        )
    if isinstance(effect, Run):
        return effect.function()
    if isinstance(effect, Retrieve):
        return retrieved(effect)
    return effect.operation(*effect.arguments)


def _throwable(error: BaseException) -> BaseException:
    """The error; inside a generator, the `StopIteration` of an exhausted fake would be mangled."""
    if not isinstance(error, StopIteration):
        return error
    replacement = RuntimeError("the model raised StopIteration")
    replacement.__cause__ = error
    return replacement


__all__ = ["Stepwise"]
