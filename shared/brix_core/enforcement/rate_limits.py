"""Rate limits of the engine: one for all adapters, or one for each provider.

Both are faces of `brix_core.guards.rate_limit`: callers wait in line, first come first served, and in any window at
most rate x window + burst requests start, retries and heals included.

Example:
    >>> limits = PerProviderRateLimiter()
    >>> limits.set_provider_limits("openai", requests_per_minute=500, tokens_per_minute=30_000)
    >>> limits.get_provider_limits("openai").tokens_per_minute
    30000
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping

from brix_core.call import CallRequest
from brix_core.clock import Clock, SystemClock
from brix_core.errors import BrixConfigurationError
from brix_core.flow import Flow, Guard, Proceed
from brix_core.guards.rate_limit import RateLimitConfig, RateLimitGuard
from brix_core.store.base import Store

log = logging.getLogger(__name__)


class RateLimiter:
    """A rate for everything that goes through it: give the same one to several engines, and they share it.

    Args:
        requests_per_minute: Most requests per minute.
        tokens_per_minute: Most tokens per minute, input and output together.
        burst_capacity: Requests that may start at once; one second's worth, at least 1, when left out.
        adaptive: Slow down when a provider answers 429, and recover; else the rate stays as it is.
        name: The rate's name in the store, for processes that share one; a new one when left out.

    Raises:
        BrixConfigurationError: Neither rate is given, or a value is out of range.

    Example:
        >>> RateLimiter(requests_per_minute=60, tokens_per_minute=90_000).requests_per_minute
        60
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        burst_capacity: int | None = None,
        adaptive: bool = True,
        name: str | None = None,
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.name = name or str(uuid.uuid4())
        self._config = RateLimitConfig(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            burst_capacity=burst_capacity,
            adaptive_rate_limiting=adaptive,
        )
        self._lock = threading.Lock()
        self._guards: list[tuple[Store, Clock, RateLimitGuard]] = []

    def __repr__(self) -> str:
        rates = f"requests_per_minute={self.requests_per_minute}, tokens_per_minute={self.tokens_per_minute}"
        return f"RateLimiter({rates})"

    def guard(self, store: Store, clock: Clock, providers: Mapping[str, str]) -> Guard:
        """The guard that keeps it; the same for the same store and clock, so that all wait in one line."""
        with self._lock:
            for known_store, known_clock, guard in self._guards:
                if known_store is store and (known_clock is clock or _is_system(known_clock, clock)):
                    return guard
            guard = RateLimitGuard(self._config, store, clock, self.name)
            self._guards.append((store, clock, guard))
            return guard


class PerProviderRateLimiter:
    """A rate for each provider, by the name that adapters give it (``adapter.provider``); others are not limited.

    In a failover chain each adapter waits for its own provider's rate. Adapters of one provider share its rate.

    Args:
        name: Prefix of the rates' names in the store, for processes that share one; a new one when left out.
    """

    def __init__(self, *, name: str | None = None) -> None:
        self.name = name or str(uuid.uuid4())
        self._limiters: dict[str, RateLimiter] = {}

    def __repr__(self) -> str:
        return f"PerProviderRateLimiter({self._limiters})"

    def set_provider_limits(
        self,
        provider: str,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        burst_capacity: int | None = None,
    ) -> None:
        """Limit a provider; engines that have this limiter keep to it from their next request on.

        Args:
            provider: Its name, as in ``adapter.provider``.
            requests_per_minute: Most requests per minute.
            tokens_per_minute: Most tokens per minute, input and output together.
            burst_capacity: As in `RateLimiter`.

        Raises:
            BrixConfigurationError: The name is empty, neither rate is given, or a value is out of range.
        """
        if not isinstance(provider, str) or not provider:
            raise BrixConfigurationError(f"provider must be a non-empty str such as 'openai', got {provider!r}")
        self._limiters[provider] = RateLimiter(
            requests_per_minute,
            tokens_per_minute,
            burst_capacity=burst_capacity,
            name=f"{self.name}:{provider}",
        )

    def get_provider_limits(self, provider: str) -> RateLimiter | None:
        """The rate of a provider; None when it is not limited."""
        return self._limiters.get(provider)

    def guard(self, store: Store, clock: Clock, providers: Mapping[str, str]) -> Guard:
        """The guard that keeps them.

        Args:
            store: Where the rates are.
            clock: The time.
            providers: The provider of each endpoint, by the endpoint's identity.
        """
        if self._limiters and not self._limiters.keys() & set(providers.values()):
            log.warning(
                "limits are set for %s and hold for nobody here: the adapters are of %s",
                ", ".join(map(repr, self._limiters)),
                ", ".join(map(repr, dict.fromkeys(providers.values()))),
            )
        return _ByProvider(self, store, clock, providers)


class _ByProvider:
    """Sends each request to the guard of its provider."""

    name = "rate_limit"

    def __init__(
        self, limits: PerProviderRateLimiter, store: Store, clock: Clock, providers: Mapping[str, str]
    ) -> None:
        self._limits = limits
        self._store = store
        self._clock = clock
        self._providers = dict(providers)

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one attempt."""
        endpoint = request.endpoint
        provider = self._providers.get(endpoint.identity) or endpoint.provider or ""
        limiter = self._limits.get_provider_limits(provider)
        if limiter is None:
            return proceed(request)
        return limiter.guard(self._store, self._clock, self._providers).flow(request, proceed)


def _is_system(one: Clock, other: Clock) -> bool:
    return isinstance(one, SystemClock) and isinstance(other, SystemClock)


__all__ = ["PerProviderRateLimiter", "RateLimiter"]
