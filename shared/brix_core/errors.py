"""Every exception of the toolkit.

::

    BrixError
    ├── BrixConfigurationError      an option, a policy file or a client cannot be used
    ├── BrixReplayError             a recording is missing or does not fit the prompt
    ├── BrixInternalError           a broken invariant inside the toolkit: please report it
    └── BrixGuardError              a guard could not do its work
        └── BrixGuardBlockedError   a guard refused the call, or gave it up
            ├── BrixBudgetError         the money of the session does not suffice
            │   └── BrixUnknownPriceError   the model has no price and the policy is to refuse
            ├── BrixRateLimitError      a single call needs more than the limit can ever give
            ├── BrixTimeoutError        a time limit was reached
            ├── BrixCircuitOpenError    the provider's circuit breaker is open
            ├── BrixRetryError          all attempts failed, or the retry budget is used up
            ├── BrixFailoverError       every model of the failover chain failed
            ├── BrixLoopError           the conversation goes round in circles
            └── BrixSchemaError         no valid instance after all healing attempts

The numbers behind a refusal are fields of the exception; its message names the limit, the actual
value and the next step. All of them survive ``pickle`` and ``copy``.

A guard error is a decision and not a fault of the provider: ``is_retryable`` is False, the attribute
by which LangChain's own retry middleware (and ours) recognises failures worth another attempt.

Example:
    >>> error = BrixTimeoutError("no answer in 2 s", kind="call", limit=2.0, elapsed=2.01)
    >>> error.limit, error.is_retryable, isinstance(error, BrixGuardError)
    (2.0, False, True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal


class BrixError(Exception):
    """The root: ``except BrixError`` catches whatever the toolkit itself decided.

    Args:
        message: What happened, which limit, which value, what to do next.
    """

    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Callable[..., BrixError], tuple[type[BrixError], dict[str, Any]]]:
        """Pickle by fields, so that keyword-only arguments survive."""
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(cls: type[BrixError], state: dict[str, Any]) -> BrixError:
    error = cls.__new__(cls, state["message"])
    error.args = (state["message"],)  # OSError, and so TimeoutError, would set them in __init__ only
    error.__dict__.update(state)
    return error


class BrixConfigurationError(BrixError):
    """An option, a policy file or a client cannot be used as given."""


class BrixReplayError(BrixError):
    """A recording is missing or does not fit the prompt."""


class BrixInternalError(BrixError):
    """An invariant of the toolkit is broken; never raised for bad input."""


class BrixGuardError(BrixError):
    """A guard could not do its work.

    Args:
        message: See `BrixError`.
        guard: Name of the guard, for example ``"budget"``.
    """

    guard: str = ""

    def __init__(self, message: str = "", *, guard: str | None = None) -> None:
        super().__init__(message)
        if guard is not None:
            self.guard = guard


class BrixGuardBlockedError(BrixGuardError):
    """A guard refused the call, or gave it up. `partial` holds what a cut stream had delivered."""

    partial: str = ""


class BrixBudgetError(BrixGuardBlockedError):
    """The session's money does not suffice.

    Args:
        message: See `BrixError`.
        limit_usd: The session's cap, USD.
        spent_usd: Settled spend so far, USD.
        reserved_usd: Held by calls in flight, USD.
        needed_usd: Worst case of the refused call, USD.
        partial: Text delivered before a stream was cut off.
    """

    guard = "budget"

    def __init__(
        self,
        message: str = "",
        *,
        limit_usd: float = 0.0,
        spent_usd: float = 0.0,
        reserved_usd: float = 0.0,
        needed_usd: float = 0.0,
        partial: str = "",
    ) -> None:
        super().__init__(message)
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.reserved_usd = reserved_usd
        self.needed_usd = needed_usd
        self.partial = partial


class BrixUnknownPriceError(BrixBudgetError):
    """The model has no known price, and ``unknown_price="raise"``.

    Args:
        message: See `BrixError`.
        model: The model without a price.
    """

    def __init__(self, message: str = "", *, model: str = "") -> None:
        super().__init__(message)
        self.model = model


class BrixRateLimitError(BrixGuardBlockedError):
    """One call needs more than the limit can ever give; waiting would not help.

    Args:
        message: See `BrixError`.
        needed: Requests or tokens the call needs.
        limit: The most that can ever be had at once, in the same unit.
    """

    guard = "rate_limit"

    def __init__(self, message: str = "", *, needed: float = 0.0, limit: float = 0.0) -> None:
        super().__init__(message)
        self.needed = needed
        self.limit = limit


TimeoutKind = Literal["call", "step", "total", "first_token", "idle"]
"""Which limit of the timeout guard was reached."""


class BrixTimeoutError(BrixGuardBlockedError, TimeoutError):
    """A time limit was reached. Also a built-in `TimeoutError`.

    Args:
        message: See `BrixError`.
        kind: Which limit.
        limit: That limit, seconds.
        elapsed: Time that had passed, seconds.
        partial: Text delivered before a stream was cut off.
    """

    guard = "timeout"

    def __init__(
        self,
        message: str = "",
        *,
        kind: TimeoutKind = "call",
        limit: float = 0.0,
        elapsed: float = 0.0,
        partial: str = "",
    ) -> None:
        super().__init__(message)
        self.kind: TimeoutKind = kind
        self.limit = limit
        self.elapsed = elapsed
        self.partial = partial


class BrixCircuitOpenError(BrixGuardBlockedError):
    """The provider's circuit breaker is open.

    Args:
        message: See `BrixError`.
        endpoint: Which endpoint is given a rest.
        retry_after: Seconds until a probe is admitted; 0 when probes are under way.
    """

    guard = "circuit_breaker"

    def __init__(self, message: str = "", *, endpoint: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.retry_after = retry_after


class BrixRetryError(BrixGuardBlockedError):
    """All attempts failed, or the retry budget is used up. ``__cause__`` is the last failure.

    Args:
        message: See `BrixError`.
        attempts: Attempts made.
        reason: What ended them.
        last_error: The last failure.
    """

    guard = "retry"

    def __init__(
        self,
        message: str = "",
        *,
        attempts: int = 0,
        reason: Literal["attempts", "budget", "retry_after", "deadline"] = "attempts",
        last_error: BaseException | None = None,
    ) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.reason = reason
        self.last_error = last_error


class BrixFailoverError(BrixGuardBlockedError):
    """Every model of the failover chain failed.

    Args:
        message: See `BrixError`.
        errors: One ``(endpoint, exception)`` for each model tried, in order.
    """

    guard = "failover"

    def __init__(self, message: str = "", *, errors: Sequence[tuple[str, Exception]] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class BrixLoopError(BrixGuardBlockedError):
    """The conversation goes round in circles."""

    guard = "loop"


class BrixSchemaError(BrixGuardBlockedError):
    """No valid instance after all healing attempts."""

    guard = "schema"


__all__ = [
    "BrixBudgetError",
    "BrixCircuitOpenError",
    "BrixConfigurationError",
    "BrixError",
    "BrixFailoverError",
    "BrixGuardBlockedError",
    "BrixGuardError",
    "BrixInternalError",
    "BrixLoopError",
    "BrixRateLimitError",
    "BrixReplayError",
    "BrixRetryError",
    "BrixSchemaError",
    "BrixTimeoutError",
    "BrixUnknownPriceError",
    "TimeoutKind",
]
