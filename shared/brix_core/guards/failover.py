"""FailoverGuard: when one model fails, the next one answers.

Each model of the chain passes the inner guards by itself: its own retries, its own circuit breaker, its own
prices, the same session's budget. The chain moves on when the *provider* failed (down, overloaded, open circuit,
retries used up, timed out, credentials refused, model not found), never when the request is bad or a guard
refused it, and not once a chunk of a stream has reached the consumer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from brix_core.call import CallRequest
from brix_core.endpoint import Endpoint
from brix_core.errors import BrixCircuitOpenError, BrixFailoverError, BrixRetryError, BrixTimeoutError
from brix_core.failures import classify
from brix_core.flow import Flow, Proceed

PROVIDER_STATUSES: Final = frozenset({401, 402, 403, 404})
"""Fatal for this provider (credentials, billing, unknown model), but not for the next one."""


class FailoverGuard:
    """Tries endpoints in order. See the module's docstring.

    Args:
        fallbacks: Where to go after the first endpoint, in order.
    """

    name = "failover"

    def __init__(self, fallbacks: Sequence[Endpoint]) -> None:
        self.fallbacks = tuple(fallbacks)

    def with_endpoints(self, fallbacks: Sequence[Endpoint]) -> FailoverGuard:
        """The same guard for other endpoints."""
        return FailoverGuard(fallbacks)

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one call."""
        errors: list[tuple[str, Exception]] = []
        endpoints = (request.endpoint, *self.fallbacks)
        for endpoint in endpoints:
            try:
                onward = request if endpoint is request.endpoint else request.evolve(endpoint=endpoint)
                response = yield from proceed(onward)
            except Exception as error:
                if request.call.streamed or not _moves_on(error):
                    if errors and error.__cause__ is None and error is not errors[-1][1]:
                        error.__cause__ = errors[-1][1]  # why this model was asked at all
                    raise
                errors.append((endpoint.identity, error))
                request.call.decide("failover", "moved_on", endpoint=endpoint.identity, error=type(error).__name__)
            else:
                return response
        names = ", ".join(f"{name} ({type(error).__name__}: {error})" for name, error in errors)
        raise BrixFailoverError(
            f"all {len(errors)} models failed: {names}. Name further fallbacks, or try again later", errors=errors
        ) from errors[-1][1]


def _moves_on(error: Exception) -> bool:
    if isinstance(error, BrixCircuitOpenError | BrixRetryError):
        return not (isinstance(error, BrixRetryError) and error.reason == "deadline")
    if isinstance(error, BrixTimeoutError):
        return error.kind in ("call", "first_token", "idle")
    failure = classify(error)
    return failure.retryable or failure.provider_down or failure.rate_limited or failure.status in PROVIDER_STATUSES


__all__ = ["PROVIDER_STATUSES", "FailoverGuard"]
