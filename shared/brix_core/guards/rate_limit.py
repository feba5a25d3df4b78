"""RateLimitGuard: in any window, calls started <= rate x window + burst (G3).

A token bucket for requests, another for tokens, both decided at once. Callers wait in line, first come
first served (`brix_core.pacing`). On a 429 the rate is reduced; after a quiet while it recovers step by step.

Tokens are taken before the call (prompt and output cap) and corrected after it by what was really used;
an underestimate becomes a debt that later calls wait for.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from brix_core import checks
from brix_core.call import CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.errors import BrixConfigurationError, BrixRateLimitError
from brix_core.failures import classify
from brix_core.flow import Effect, Flow, Proceed
from brix_core.pacing import Lines, burst_of, one_request
from brix_core.store.base import Demand, Store

MAX_BURST: Final = 1_000_000_000
"""Beyond it, `burst_capacity` is a slip of the pen."""

ASSUMED_OUTPUT_TOKENS: Final = 1_024
"""Output taken from the token bucket for a call without an output cap, until its usage is known."""


@dataclass(frozen=True, kw_only=True)
class RateLimitConfig:
    """Options of the rate-limit guard.

    Attributes:
        requests_per_minute: Most requests per minute. Activates the guard.
        tokens_per_minute: Most tokens (input and output) per minute. Activates the guard.
        burst_capacity: Requests that may start at once; one second's worth, at least 1, by default.
            The token bucket holds one minute's worth.
        rate_limit_scope: Whether each session has its own rate, or all share the provider's.
        adaptive_rate_limiting: Reduce the rate on a 429.
        min_rate_floor: The rate never drops below this fraction.
        rate_reduction_factor: Multiplies the rate on each 429.
        rate_recovery_factor: Multiplies it for each quiet window.
        recovery_window_seconds: A quiet window: time without a 429.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_capacity: int | None = None
    rate_limit_scope: Literal["session", "provider"] = "session"
    adaptive_rate_limiting: bool = True
    min_rate_floor: float = 0.1
    rate_reduction_factor: float = 0.5
    rate_recovery_factor: float = 1.05
    recovery_window_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            raise BrixConfigurationError("a rate limit needs requests_per_minute or tokens_per_minute")
        if self.requests_per_minute is not None:
            checks.positive("requests_per_minute", self.requests_per_minute)
        if self.tokens_per_minute is not None:
            checks.positive("tokens_per_minute", self.tokens_per_minute)
        if self.burst_capacity is not None:
            checks.whole("burst_capacity", self.burst_capacity, 1, MAX_BURST)
        checks.one_of("rate_limit_scope", self.rate_limit_scope, ("session", "provider"))
        checks.flag("adaptive_rate_limiting", self.adaptive_rate_limiting)
        checks.fraction("min_rate_floor", self.min_rate_floor)
        checks.fraction("rate_reduction_factor", self.rate_reduction_factor)
        checks.at_least("rate_recovery_factor", self.rate_recovery_factor, 1.0)
        checks.positive("recovery_window_seconds", self.recovery_window_seconds)


class RateLimitGuard:
    """Waits until the rate allows the call. See the module's docstring.

    Args:
        config: Its options.
        store: Where the buckets are.
        clock: The time.
        account: Whose rate it is, whatever the session and the provider; that of ``rate_limit_scope`` when left out.
    """

    name = "rate_limit"

    def __init__(self, config: RateLimitConfig, store: Store, clock: Clock, account: str | None = None) -> None:
        self.config = config
        self._account = account
        self._store = store
        self._clock = clock
        self._lines = Lines(store, clock)
        self._paces: dict[str, _Pace] = {}
        self._burst = burst_of(config.requests_per_minute or 0.0, config.burst_capacity)

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one attempt."""
        key = self._key(request)
        pace = self._pace(key)
        tokens = self._tokens(request)
        yield from self._wait(request, key, pace, tokens)
        used = 0.0
        sent = len(request.call.attempts)
        try:
            response = yield from proceed(request)
            used = _used(response, tokens)
            return response
        except Exception as error:
            if self.config.adaptive_rate_limiting and classify(error).rate_limited:
                pace.slow_down(self._clock.now())
                request.call.decide("rate_limit", "slowed", factor=pace.factor)
            used = tokens
            raise
        except BaseException:
            used = tokens
            raise
        finally:
            if tokens and len(request.call.attempts) > sent and used != tokens:
                self._store.give(self._clock.now(), [self._token_demand(key, pace.factor, tokens - used)])

    def _wait(self, request: CallRequest, key: str, pace: _Pace, tokens: float) -> Generator[Effect, Any, None]:
        """Stand in line until the buckets give what the call needs."""
        waited = yield from self._lines.take(
            key,
            lambda now: self._demands(key, pace.at(now), tokens),
            request.deadline,
            alone=request.call.blocks_a_loop,
        )
        if waited > 0.001:
            request.call.decide("rate_limit", "waited", seconds=round(waited, 6))

    def _demands(self, key: str, factor: float, tokens: float) -> Sequence[Demand]:
        demands = []
        if self.config.requests_per_minute is not None:
            demands.append(one_request(key, self.config.requests_per_minute, self._burst, factor))
        if tokens:
            demands.append(self._token_demand(key, factor, tokens))
        return demands

    def _token_demand(self, key: str, factor: float, tokens: float) -> Demand:
        limit = self.config.tokens_per_minute or 0.0
        return Demand(f"{key}:tokens:{limit:g}", tokens, limit / 60.0 * factor, limit)

    def _tokens(self, request: CallRequest) -> float:
        limit = self.config.tokens_per_minute
        if limit is None:
            return 0.0
        cap = request.requested_cap
        output = ASSUMED_OUTPUT_TOKENS if cap is None else cap
        prompt = request.prompt_tokens()
        needed = prompt + output * max(1, request.endpoint.choices(request.params))
        if cap is None:
            needed = max(prompt, min(needed, int(limit)))
        if needed > limit:
            raise BrixRateLimitError(
                f"one call of {prompt} prompt tokens and up to {needed - prompt} of output needs more than "
                f"tokens_per_minute={limit:g} can ever give; raise the limit, shorten the prompt or lower max_tokens",
                needed=needed,
                limit=limit,
            )
        return float(needed)

    def _key(self, request: CallRequest) -> str:
        if self._account is not None:
            return f"rate:account:{self._account}"
        if self.config.rate_limit_scope == "provider":
            return f"rate:provider:{request.endpoint.provider or request.endpoint.identity}"
        return f"rate:session:{request.session.session_id}"

    def _pace(self, key: str) -> _Pace:
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces[key] = _Pace(self.config)
            if len(self._paces) > 10_000:
                self._paces.pop(next(iter(self._paces)), None)
        return pace


class _Pace:
    """How much of its rate a key may use, from the 429s seen. Approximate under threads, never above 1."""

    __slots__ = ("_changed", "_config", "factor")

    def __init__(self, config: RateLimitConfig) -> None:
        self._config = config
        self._changed = 0.0
        self.factor = 1.0

    def slow_down(self, now: float) -> None:
        self.factor = max(self._config.min_rate_floor, self.factor * self._config.rate_reduction_factor)
        self._changed = now

    def at(self, now: float) -> float:
        if self.factor < 1.0:
            windows = int((now - self._changed) / self._config.recovery_window_seconds)
            if windows > 0:
                gain = windows * math.log(self._config.rate_recovery_factor)
                # Compared as logarithms: after a long rest the power would overflow.
                self.factor = 1.0 if gain >= -math.log(self.factor) else self.factor * math.exp(gain)
                self._changed += windows * self._config.recovery_window_seconds
        return self.factor


def _used(response: CallResponse, reserved: float) -> float:
    """Tokens a call really used; what was reserved when nobody knows."""
    return reserved if response.usage is None or response.partial else float(response.usage.total_tokens)


__all__ = ["ASSUMED_OUTPUT_TOKENS", "RateLimitConfig", "RateLimitGuard"]
