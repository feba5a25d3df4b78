"""TimeoutGuard: no caller waits longer than it agreed to, sync or async (G4).

Two layers of one guard. `SessionTimeout`, outermost in the call ring, checks what concerns the session (time
since the last call, total time) before anything is reserved or sent. `TimeoutGuard`, innermost, hands each
attempt its limits; the drivers enforce them, by an alarm on the event loop, by a worker thread elsewhere.

What is bounded is the time the caller *waits for the provider*: not the waiting for the rate limit, and not
what the consumer of a stream does between two chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brix_core import checks
from brix_core.call import NO_LIMITS, CallRequest, Deadline, Limits
from brix_core.clock import Clock
from brix_core.errors import BrixConfigurationError, BrixTimeoutError
from brix_core.flow import Flow, Proceed


@dataclass(frozen=True, kw_only=True)
class TimeoutConfig:
    """Options of the timeout guard; any of the limits activates it. All in seconds.

    Attributes:
        per_call_timeout: Longest wait for one attempt, a whole stream included.
        per_step_timeout: Longest time between the starts of two calls of a session.
        total_timeout: Longest time from the session's first call on.
        first_token_timeout: Longest wait for the first chunk with content.
        idle_timeout: Longest wait between two chunks.
        on_timeout: ``"raise"``, or ``"return_partial"`` to answer with what has arrived (calls are then
            streamed under the hood where the model can stream).
    """

    per_call_timeout: float | None = None
    per_step_timeout: float | None = None
    total_timeout: float | None = None
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    on_timeout: Literal["raise", "return_partial"] = "raise"

    def __post_init__(self) -> None:
        limits = ("per_call_timeout", "per_step_timeout", "total_timeout", "first_token_timeout", "idle_timeout")
        for name in limits:
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name))
        if all(getattr(self, name) is None for name in limits):
            raise BrixConfigurationError(f"a timeout guard needs one of {', '.join(limits)}")
        checks.one_of("on_timeout", self.on_timeout, ("raise", "return_partial"))


class SessionTimeout:
    """Refuses a call that begins too late after the last one, or after the session's time is over.

    Args:
        config: Its options.
        clock: The time.
    """

    name = "session_timeout"

    def __init__(self, config: TimeoutConfig, clock: Clock) -> None:
        self.config = config
        self._clock = clock

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one call."""
        now = self._clock.now()
        session = request.session
        last, session.last_call = session.last_call, now
        step, total = self.config.per_step_timeout, self.config.total_timeout
        if step is not None and last is not None and now - last > step:
            raise BrixTimeoutError(
                f"{now - last:.3g} s have passed since the last call of session {session.session_id} began, more "
                f"than per_step_timeout={step:g} s; raise it, or begin a new session",
                kind="step",
                limit=step,
                elapsed=now - last,
            )
        if total is None:
            return (yield from proceed(request))
        deadline = Deadline(session.started + total, total)
        if now >= deadline.at:
            raise deadline.passed(now)
        return (yield from proceed(request.evolve(deadline=deadline.or_earlier(request.deadline))))


class TimeoutGuard:
    """Gives each attempt its time limits.

    Args:
        config: Its options; without any, it keeps to deadlines that others set.
        clock: The time.
    """

    name = "timeout"

    def __init__(self, config: TimeoutConfig | None, clock: Clock) -> None:
        self.config = config
        self._clock = clock
        self._limits = (
            NO_LIMITS
            if config is None
            else Limits(
                call=config.per_call_timeout,
                first_token=config.first_token_timeout,
                idle=config.idle_timeout,
                keep_partial=config.on_timeout == "return_partial",
            )
        )

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one attempt."""
        limits = self._limits
        if request.deadline is not None:
            now = self._clock.now()
            left = request.deadline.at - now
            if left <= 0.0:
                raise request.deadline.passed(now)
            if limits.call is None or left <= limits.call:
                limits = Limits(
                    call=left,
                    call_kind=request.deadline.kind,
                    first_token=limits.first_token,
                    idle=limits.idle,
                    keep_partial=limits.keep_partial,
                )
        response = yield from proceed(request.evolve(limits=limits))
        if response.partial:
            request.call.decide("timeout", "partial", characters=len(response.text))
        return response


__all__ = ["SessionTimeout", "TimeoutConfig", "TimeoutGuard"]
