"""RetryGuard: transient failures are tried again, fatal ones never (G9).

Failures are judged by exception type and HTTP status (`brix_core.failures`). The delay before retry n (from 0) is
drawn from the whole interval [0, min(max_backoff, backoff_initial * backoff_base ** n)] ("full jitter", M. Brooker,
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015), but never shorter than the provider's ``Retry-After``;
where that asks for more than the limits allow, the guard gives up at once instead of knocking too early.

Nothing is tried again once a chunk of a stream has reached the consumer, and nothing unknown: control-flow
exceptions such as LangGraph's interrupts pass through untouched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from brix_core import checks
from brix_core.call import CallRequest
from brix_core.clock import Clock
from brix_core.errors import BrixConfigurationError, BrixError, BrixRetryError
from brix_core.failures import Failure, classify, is_control_flow
from brix_core.flow import Flow, Proceed, Sleep


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """Options of the retry guard.

    Attributes:
        max_retries: Further attempts after the first. Activates the guard.
        backoff_base: By how much the longest delay grows with each retry.
        backoff_initial: Longest delay before the first retry, seconds.
        max_backoff: Longest delay before one retry, seconds.
        retry_budget_seconds: Longest sum of all delays of one call, seconds.
        retry_on: Further HTTP statuses to try again.
        retry_exceptions: Try again only after these exceptions: instances of the classes, timeouts and lost connections
            of SDKs where `TimeoutError` or `ConnectionError` is among them. HTTP statuses that are fatal stay so.
    """

    max_retries: int
    backoff_base: float = 2.0
    backoff_initial: float = 1.0
    max_backoff: float = 60.0
    retry_budget_seconds: float = 120.0
    retry_on: Sequence[int] | None = None
    retry_exceptions: Sequence[type[Exception]] | None = None

    def __post_init__(self) -> None:
        checks.whole("max_retries", self.max_retries, 0)
        checks.at_least("backoff_base", self.backoff_base, 1.0)
        checks.at_least("backoff_initial", self.backoff_initial, 0.0)
        checks.at_least("max_backoff", self.max_backoff, 0.0)
        checks.at_least("retry_budget_seconds", self.retry_budget_seconds, 0.0)
        if not isinstance(self.retry_on, Collection | None):
            raise BrixConfigurationError(f"retry_on must be a list of HTTP statuses, got {self.retry_on!r}")
        for status in self.retry_on or ():
            if isinstance(status, bool) or not isinstance(status, int) or not 400 <= status <= 599:
                raise BrixConfigurationError(f"retry_on takes HTTP statuses from 400 to 599, got {status!r}")
        classes = self.retry_exceptions
        listed = isinstance(classes, list | tuple)
        if classes is not None and not (listed and all(map(_is_exception_class, classes))):
            raise BrixConfigurationError(f"retry_exceptions must be a list of exception classes, got {classes!r:.200}")


class RetryGuard:
    """Tries again. See the module's docstring.

    Args:
        config: Its options.
        clock: The time.
        uniform: Draws from an interval; `random.uniform` by default.
    """

    name = "retry"

    def __init__(
        self, config: RetryConfig, clock: Clock, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self.config = config
        self._clock = clock
        self._uniform = uniform
        self._statuses = frozenset(config.retry_on or ())
        self._classes = None if config.retry_exceptions is None else tuple(config.retry_exceptions)

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one call to one endpoint."""
        history: list[dict[str, Any]] = request.call.metadata.setdefault("retry_history", [])
        waited = 0.0
        for attempt in range(self.config.max_retries + 1):
            try:
                return (yield from proceed(request))
            except Exception as error:
                delay = self._delay_or_raise(error, request, attempt, waited, history)
            waited += delay
            yield Sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    def _delay_or_raise(
        self, error: Exception, request: CallRequest, attempt: int, waited: float, history: list[dict[str, Any]]
    ) -> float:
        """Seconds until the next attempt; re-raises `error` when it is fatal, or tells why there is none."""
        failure = classify(error, also_retry=self._statuses, now=self._clock.time())
        if request.call.streamed or not self._is_retryable(error, failure):
            raise error
        history.append(
            {
                "attempt": attempt + 1,
                "endpoint": request.endpoint.identity,
                "error": type(error).__name__,
                "status": failure.status,
                "retry_after": failure.retry_after,
            }
        )
        if attempt >= self.config.max_retries:
            most = self.config.max_retries
            reason = f"max_retries={most} (of a RetryPolicy: max_attempts={most + 1}) is used up"
            raise self._give_up(error, attempt, "attempts", reason)
        longest = self.config.backoff_initial * _power(self.config.backoff_base, attempt)
        delay = self._uniform(0.0, min(self.config.max_backoff, longest))
        asked = failure.retry_after or 0.0
        if asked > self.config.max_backoff:
            reason = f"the provider asks to wait {asked:g} s, longer than max_backoff={self.config.max_backoff:g} s"
            raise self._give_up(error, attempt, "retry_after", reason)
        delay = max(delay, asked)
        if waited + delay > self.config.retry_budget_seconds:
            reason = f"retry_budget_seconds={self.config.retry_budget_seconds:g} would be exceeded"
            raise self._give_up(error, attempt, "budget", reason)
        deadline = request.deadline
        if deadline is not None and self._clock.now() + delay > deadline.at:
            reason = f"{deadline.option}={deadline.seconds:g} would be exceeded"
            raise self._give_up(error, attempt, "deadline", reason)
        history[-1]["delay"] = delay
        request.call.decide("retry", "waiting", seconds=round(delay, 6), error=type(error).__name__)
        return delay

    def _is_retryable(self, error: Exception, failure: Failure) -> bool:
        classes = self._classes
        if classes is None or failure.status in self._statuses:
            return failure.retryable
        if isinstance(error, BrixError) and failure.kind != "timeout":
            return False  # a guard's decision, whatever its class is derived from
        if failure.kind == "unknown":
            return isinstance(error, classes) and not is_control_flow(error)
        kinds: dict[str, type[Exception]] = {"timeout": TimeoutError, "connection": ConnectionError}
        named = isinstance(error, classes) or issubclass(kinds.get(failure.kind, type(error)), classes)
        return failure.retryable and named

    def _give_up(
        self,
        error: Exception,
        attempt: int,
        reason: Literal["attempts", "budget", "retry_after", "deadline"],
        why: str,
    ) -> BrixRetryError:
        if self.config.max_retries == 0:
            raise error
        failed = BrixRetryError(
            f"gave up after {attempt + 1} attempt(s): {why}. Last failure: {type(error).__name__}: {error}",
            attempts=attempt + 1,
            reason=reason,
            last_error=error,
        )
        failed.__cause__ = error
        return failed


def _is_exception_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _power(base: float, exponent: int) -> float:
    try:
        return base**exponent
    except OverflowError:
        return float("inf")


__all__ = ["RetryConfig", "RetryGuard"]
