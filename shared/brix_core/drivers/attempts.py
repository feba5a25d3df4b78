"""What all drivers share: the record of an attempt, time limits as errors, chunks on their way."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Sequence
from typing import Any, Self

from brix_core.call import PARTIAL_CHARACTERS, Attempt, CallRequest, CallResponse, ChunkHook, Limits, Outcome
from brix_core.clock import Clock
from brix_core.errors import BrixBudgetError, BrixInternalError, BrixTimeoutError, TimeoutKind
from brix_core.failures import classify, is_control_flow

_OPTION: dict[TimeoutKind, str] = {
    "call": "per_call_timeout",
    "total": "total_timeout",
    "healing": "max_healing_seconds",
    "first_token": "first_token_timeout",
    "idle": "idle_timeout",
}


class LimitReachedError(Exception):
    """A time limit of the attempt was reached; drivers turn it into a partial answer or an error."""

    def __init__(self, kind: TimeoutKind) -> None:
        super().__init__(kind)
        self.kind: TimeoutKind = kind
        self.text = ""

    def after(self, text: str) -> Self:
        """The same, with what had arrived by then."""
        self.text = text
        return self

    def as_error(self, request: CallRequest, attempt: Attempt, partial: str = "") -> BrixTimeoutError:
        """The error a caller sees."""
        partial = partial or self.text
        limits = request.limits
        limit = {"first_token": limits.first_token, "idle": limits.idle}.get(self.kind, limits.call) or 0.0
        option, deadline = _OPTION[self.kind], request.deadline
        if deadline is not None and deadline.kind == self.kind:  # the option's value, not what was left of it
            option, limit = deadline.option, deadline.seconds
        what = {"first_token": "no first token", "idle": "no further chunk"}.get(self.kind, "no complete answer")
        return BrixTimeoutError(
            f"{what} from {request.endpoint.identity} within {option}={limit:.6g} s "
            f"({len(partial)} characters had arrived); raise {option}, or set on_timeout='return_partial'",
            kind=self.kind,
            limit=limit,
            elapsed=attempt.seconds or 0.0,
            partial=partial,
        )


def begin(request: CallRequest, clock: Clock) -> Attempt:
    """Note that a request leaves now."""
    if request.call.streamed:
        raise BrixInternalError(
            "a guard re-issued a call whose chunks had already reached the consumer; check "
            "request.call.streamed before calling proceed again"
        )
    endpoint = request.endpoint
    attempt = Attempt(endpoint=endpoint.identity, model=request.model, provider=endpoint.provider, started=clock.now())
    request.call.begun(attempt)
    return attempt


def succeed(attempt: Attempt, response: CallResponse, clock: Clock) -> CallResponse:
    """Note the answer."""
    attempt.seconds = clock.now() - attempt.started
    attempt.outcome = "timed_out" if response.partial else "ok"
    attempt.usage = response.usage
    return response


def fail(attempt: Attempt, error: BaseException, clock: Clock) -> None:
    """Note how the attempt failed."""
    attempt.seconds = clock.now() - attempt.started
    attempt.error = (BrixTimeoutError if isinstance(error, LimitReachedError) else type(error)).__name__
    attempt.outcome = _outcome(error)
    if isinstance(error, Exception):
        attempt.status = classify(error).status


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, GeneratorExit):
        return "abandoned"
    if isinstance(error, CancelledError | KeyboardInterrupt | SystemExit) or is_control_flow(error):
        return "cancelled"
    if isinstance(error, TimeoutError | LimitReachedError):
        return "timed_out"
    return "refused" if isinstance(error, BrixBudgetError) else "failed"


def summed_up(tap: Tap, request: CallRequest) -> CallResponse:
    """The response that a stream has made."""
    sum_up = request.endpoint.assemble if request.keep else request.endpoint.finish
    return sum_up(tap.chunks, tap.text, request)


def as_partial(response: CallResponse) -> CallResponse:
    """Mark a response as cut short by a time limit."""
    return response._replace(partial=True, finish_reason="timeout")


def is_collected(request: CallRequest) -> bool:
    """Whether an answer is streamed under the hood: by a model that can, and one choice, which chunks tell."""
    wanted = request.collect or request.limits.keep_partial
    return wanted and request.endpoint.streams and request.endpoint.choices(request.params) == 1


class Tap:
    """Passes the chunks of one attempt through its hooks, and keeps what is needed at the end. Made by `tapped`.

    Chunks without content are held back until the first with content, so that a provider that fails
    after its opening line can still be tried again.

    Args:
        request: Whose chunks they are.
        clock: The time.
        hooks: The request's, new for this attempt. The innermost sees a chunk first: what has arrived is paid for,
            whoever stops the stream.
    """

    __slots__ = ("_clock", "_held", "_hooks", "_kept", "_read", "_request", "chunks", "texts")

    def __init__(self, request: CallRequest, clock: Clock, hooks: Sequence[ChunkHook]) -> None:
        self._request = request
        self._clock = clock
        self._hooks = hooks
        self._read = request.endpoint.read_chunk
        self._held: list[Any] = []
        self._kept = 0
        delivered = request.call.delivered
        self.chunks: list[Any] = [] if delivered is None or not request.stream else delivered.anew()
        self.texts: list[str] = []

    def take(self, chunk: Any) -> Sequence[Any]:
        """Look at a chunk. Returns what may go to the consumer now.

        Raises:
            Exception: Whatever a hook raises to stop the stream; the chunk is not delivered.
        """
        text = self._read(chunk)
        call = self._request.call
        self.chunks.append(chunk)
        if text:
            for hook in self._hooks:
                hook(text)
            self.texts.append(text)
            if self._kept < PARTIAL_CHARACTERS:
                self._kept += len(text)
                call.parts.append(text)
            if not call.streamed:
                call.first_chunk = self._clock.now()
                call.streamed = True
                self._held.append(chunk)
                return self._release()
        elif not call.streamed:
            self._held.append(chunk)
            return ()
        return (chunk,)

    def collect(self, chunk: Any) -> str:
        """Look at a chunk that no consumer waits for: it may be lost to a retry. Returns its text.

        Raises:
            Exception: Whatever a hook raises to stop the stream.
        """
        text = self._read(chunk)
        self.chunks.append(chunk)
        if text:
            for hook in self._hooks:
                hook(text)
            self.texts.append(text)
        return text

    def end(self) -> None:
        """Tell the hooks that no more will come.

        Raises:
            Exception: Whatever a hook raises; what was not delivered may not be, then.
        """
        for hook in self._hooks:
            finish = getattr(hook, "finish", None)
            if finish is not None:
                finish()

    def rest(self) -> Sequence[Any]:
        """What is still held back at the end of the stream.

        Raises:
            Exception: Whatever a hook raises at the end.
        """
        self.end()
        if self._held:
            self._request.call.streamed = True
        return self._release()

    @property
    def has_content(self) -> bool:
        """Whether any text has come."""
        return bool(self.texts)

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.texts)

    @property
    def shown(self) -> str:
        """The text so far, as far as it may be shown to anybody."""
        return self.text

    def _release(self) -> Sequence[Any]:
        held, self._held = self._held, []
        return held


class Waits:
    """How long the next chunk may be waited for. Only time spent waiting counts, not the consumer's."""

    __slots__ = ("_call_left", "_first_left", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._call_left = limits.call
        self._first_left = limits.first_token

    def next(self, has_content: bool) -> tuple[float | None, TimeoutKind]:
        """Seconds the next chunk may take (None: no limit), and which limit that is."""
        kind: TimeoutKind = "idle" if has_content else "first_token"
        wait = self._limits.idle if has_content else self._first_left
        if self._call_left is not None and (wait is None or self._call_left <= wait):
            return max(0.0, self._call_left), self._limits.call_kind
        return wait, kind

    def spend(self, seconds: float) -> None:
        """Count time that was waited."""
        if self._call_left is not None:
            self._call_left -= seconds
        if self._first_left is not None:
            self._first_left = max(0.0, self._first_left - seconds)


__all__ = ["LimitReachedError", "Tap", "Waits", "as_partial", "begin", "fail", "is_collected", "succeed", "summed_up"]
