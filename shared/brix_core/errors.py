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
            ├── BrixContextError        the prompt cannot be made to fit
            ├── BrixLoopError           the conversation goes round in circles
            ├── BrixRunLimitError       a run has made all the calls it may
            ├── BrixRetrievalError      nothing that was found is relevant enough
            ├── BrixRegulatedError      a rule of a regulated domain stops the call, or its answer
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
from typing import Any, ClassVar, Literal, NamedTuple


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

    Attributes:
        schema_attempts: Answers that did not fit the response schema, when the call was about to mend that.
    """

    guard: str = ""
    schema_attempts: tuple[SchemaAttempt, ...] = ()

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


TimeoutKind = Literal["call", "step", "total", "first_token", "idle", "healing"]
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


class BrixContextError(BrixGuardBlockedError):
    """What must be sent has more tokens than the prompt may have.

    Args:
        message: See `BrixError`.
        tokens: Tokens of what cannot be left out: system messages, the last user turn, tools.
        limit: Tokens the prompt may have.
    """

    guard = "context"

    def __init__(self, message: str = "", *, tokens: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.limit = limit


LoopKind = Literal["response", "tool", "cycle", "semantic", "stream"]
"""What recurs: an answer to one prompt, a tool call, several in turn, what means the same, an answer's own text."""


class BrixLoopError(BrixGuardBlockedError):
    """The conversation goes round in circles.

    Args:
        message: See `BrixError`.
        kind: What recurs.
        repeats: How often it has come up.
        cycle_length: How many steps or answers recur in turn; 1 when it is always the same.
        what: What recurs, in short.
        partial: Text delivered before a stream was cut off, or else of the answer that closed the loop.
    """

    guard = "loop"

    def __init__(
        self,
        message: str = "",
        *,
        kind: LoopKind = "response",
        repeats: int = 0,
        cycle_length: int = 1,
        what: str = "",
        partial: str = "",
    ) -> None:
        super().__init__(message)
        self.kind: LoopKind = kind
        self.repeats = repeats
        self.cycle_length = cycle_length
        self.what = what
        self.partial = partial


class BrixRunLimitError(BrixGuardBlockedError):
    """A run, of an agent or of any chain, has made all the calls it may.

    Args:
        message: See `BrixError`.
        limit: Calls it may make.
    """

    guard = "run_limit"

    def __init__(self, message: str = "", *, limit: int = 0) -> None:
        super().__init__(message)
        self.limit = limit


class BrixRetrievalError(BrixGuardBlockedError):
    """No document that was found is relevant enough to answer from.

    Args:
        message: See `BrixError`.
        score: Score of the best document, in [0, 1]; 0 when there was none.
        threshold: The score asked for.
        sources: Where the documents come from, the refused ones.
    """

    guard = "retrieval"

    def __init__(
        self, message: str = "", *, score: float = 0.0, threshold: float = 0.0, sources: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.score = score
        self.threshold = threshold
        self.sources = tuple(sources)


class BrixRegulatedError(BrixGuardBlockedError):
    """A rule of a regulated domain stops the call, or its answer.

    Args:
        message: See `BrixError`.
        rule: The rule.
        spec: Name and version of the spec it is in.
        decision_id: Of the decision; it is also in the trace, and feedback is given by it.
        matched: The words that the rule was met by.
        partial: Text delivered before a stream was stopped.
    """

    guard = "regulated"

    def __init__(
        self,
        message: str = "",
        *,
        rule: str = "",
        spec: str = "",
        decision_id: str = "",
        matched: Sequence[str] = (),
        partial: str = "",
    ) -> None:
        super().__init__(message)
        self.rule = rule
        self.spec = spec
        self.decision_id = decision_id
        self.matched = tuple(matched)
        self.partial = partial


class SchemaAttempt(NamedTuple):
    """One answer that was no valid instance.

    Attributes:
        text: The answer, or the arguments of the tool call it was given by.
        problems: What was wrong with it: path and message of each problem.
        how: What it was: an answer to be read, one cut off at the output cap or by a time limit, a refusal.
    """

    text: str
    problems: tuple[tuple[str, str], ...] = ()
    how: Literal["text", "tool_call", "cut_off", "timed_out", "refused"] = "text"


class BrixSchemaError(BrixGuardBlockedError):
    """No valid instance after all healing attempts.

    Args:
        message: See `BrixError`.
        attempts: Every answer there was, in order, with what was wrong with it.
        schema_name: The schema's name.
        partial: Text delivered before a stream turned out to be invalid.
    """

    guard = "schema"

    def __init__(
        self, message: str = "", *, attempts: Sequence[SchemaAttempt] = (), schema_name: str = "", partial: str = ""
    ) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)
        self.schema_name = schema_name
        self.partial = partial


__all__ = [
    "BrixBudgetError",
    "BrixCircuitOpenError",
    "BrixConfigurationError",
    "BrixContextError",
    "BrixError",
    "BrixFailoverError",
    "BrixGuardBlockedError",
    "BrixGuardError",
    "BrixInternalError",
    "BrixLoopError",
    "BrixRateLimitError",
    "BrixRegulatedError",
    "BrixReplayError",
    "BrixRetrievalError",
    "BrixRetryError",
    "BrixRunLimitError",
    "BrixSchemaError",
    "BrixTimeoutError",
    "BrixUnknownPriceError",
    "LoopKind",
    "SchemaAttempt",
    "TimeoutKind",
]
