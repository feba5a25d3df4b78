"""How the engine tries again and when it leaves a provider alone: the guards' options, by the engine's names.

Example:
    >>> RetryPolicy(max_attempts=5, timeout=180.0).options()["max_retries"]
    4
    >>> CircuitBreakerConfig(timeout=30.0).options()["circuit_open_seconds"]
    30.0
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from brix_core import checks
from brix_core.errors import BrixConfigurationError
from brix_core.guards.circuit_breaker import CircuitBreakerConfig as BreakerOptions
from brix_core.options import GuardOptions

GROWTH: Final = 2.0
"""By how much the longest delay grows with each retry."""

LONGEST_DELAY: Final = threading.TIMEOUT_MAX
"""Seconds; no thread can wait for longer at a time."""

MAX_ATTEMPTS: Final = 1_000_000
"""Of one request."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and when a failed request is tried again (`brix_core.guards.retry`); bad answers are not its matter.

    Without `retryable_exceptions`, failures are judged by kind and HTTP status: 408, 409, 429, 5xx, timeouts and lost
    connections are tried again; bad requests, refused credentials, guards' refusals and unknown failures are not. The
    delay is drawn from [0, min(max_delay, base_delay * 2 ** n)] ("full jitter"), and is never shorter than what the
    provider asks for; where that is longer than `max_delay`, the request is given up.

    Attributes:
        max_attempts: Requests in all, the first included, for each adapter of a chain; errors tell of ``max_retries``,
            which is one less.
        base_delay: Longest delay before the first retry, seconds.
        max_delay: Longest delay, seconds.
        timeout: Longest wait for each attempt, seconds; None is no limit.
        retryable_exceptions: Try again only after these: instances of the classes, and timeouts and lost connections
            of SDKs where `TimeoutError` and `ConnectionError` are among them. Fatal HTTP statuses stay fatal.

    Raises:
        BrixConfigurationError: A value is out of range.
    """

    max_attempts: int = 3
    base_delay: float = 1.0
    max_delay: float = 30.0
    timeout: float | None = None
    retryable_exceptions: Sequence[type[Exception]] | None = None

    def __post_init__(self) -> None:
        checks.whole("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS)
        checks.at_least("base_delay", self.base_delay, 0.0)
        if checks.at_least("max_delay", self.max_delay, 0.0) > LONGEST_DELAY:
            raise BrixConfigurationError(
                f"max_delay must be <= {LONGEST_DELAY:g}, the longest that can be waited, got {self.max_delay!r}"
            )
        if self.timeout is not None:
            checks.positive("timeout", self.timeout)
        classes = self.retryable_exceptions
        listed = isinstance(classes, list | tuple | set | frozenset) and all(map(_is_exception_class, classes))
        if classes is not None and not listed:
            raise BrixConfigurationError(
                "retryable_exceptions must be a list of exception classes, such as [TimeoutError, ConnectionError], "
                f"got {classes!r:.200}"
            )

    def options(self) -> GuardOptions:
        """The options of the guards that keep to it."""
        options: GuardOptions = {
            "max_retries": self.max_attempts - 1,
            "backoff_base": GROWTH,
            "backoff_initial": self.base_delay,
            "max_backoff": self.max_delay,
            "retry_budget_seconds": self.max_delay * self.max_attempts,
        }
        if self.timeout is not None:
            options["per_call_timeout"] = self.timeout
        if self.retryable_exceptions is not None:
            options["retry_exceptions"] = tuple(self.retryable_exceptions)
        return options


@dataclass(frozen=True, kw_only=True)
class CircuitBreakerConfig:
    """When an adapter that fails is left alone (`brix_core.guards.circuit_breaker`).

    Attributes:
        failure_threshold: Failures in a row that open the circuit.
        success_threshold: Successful probes that close it again.
        timeout: How long it stays open before a probe, seconds.
        half_open_probes: Most probes at a time.

    Raises:
        BrixConfigurationError: A value is out of range.
    """

    failure_threshold: int = 5
    success_threshold: int = 2
    timeout: float = 60.0
    half_open_probes: int = 1

    def __post_init__(self) -> None:
        checks.whole("failure_threshold", self.failure_threshold, 1)
        checks.whole("success_threshold", self.success_threshold, 1)
        checks.positive("timeout", self.timeout)
        checks.whole("half_open_probes", self.half_open_probes, 1)

    def guarding(self) -> BreakerOptions:
        """The config of the guard."""
        return BreakerOptions(
            circuit_failure_threshold=self.failure_threshold,
            circuit_success_threshold=self.success_threshold,
            circuit_open_seconds=self.timeout,
            circuit_half_open_probes=self.half_open_probes,
        )

    def options(self) -> GuardOptions:
        """The options of the guard."""
        return {
            "circuit_breaker": True,
            "circuit_failure_threshold": self.failure_threshold,
            "circuit_success_threshold": self.success_threshold,
            "circuit_open_seconds": self.timeout,
            "circuit_half_open_probes": self.half_open_probes,
        }


def _is_exception_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


__all__ = ["GROWTH", "LONGEST_DELAY", "MAX_ATTEMPTS", "CircuitBreakerConfig", "RetryPolicy"]
