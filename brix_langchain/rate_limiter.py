"""BrixRateLimiter: the core's pacing, where LangChain takes a rate limiter."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal, cast
from uuid import uuid4

from langchain_core.rate_limiters import BaseRateLimiter
from typing_extensions import override

from brix_core import checks
from brix_core.clock import Clock, SystemClock
from brix_core.drivers import arun, run
from brix_core.errors import BrixConfigurationError
from brix_core.flow import Effect
from brix_core.options import parse
from brix_core.pacing import Lines, burst_of, one_request
from brix_core.store import Store, default_store
from brix_langchain.live_state import SharedByCopies
from brix_langchain.run_guards import session_now


class BrixRateLimiter(SharedByCopies, BaseRateLimiter):
    """LangChain's rate limiter: in any window, calls started <= rate x window + burst, first come first served.

    ``ChatOpenAI(..., rate_limiter=BrixRateLimiter(60))``. Threads and tasks of any event loop stand in one line; who is
    cancelled while waiting leaves it. The bucket is that of the ``requests_per_minute`` guard, and is full at first.

    LangChain asks its limiter once a call and tells it nothing of the call. So it paces no retries that the provider's
    SDK makes by itself, does not slow down on a 429, and knows no tokens: all that is
    ``guard(model, requests_per_minute=..., tokens_per_minute=...)``.

    Args:
        requests_per_minute: Most calls per minute.
        burst_capacity: Calls that may start at once; one second's worth, at least 1, by default.
        scope: ``"shared"``: all calls share the rate. ``"session"``: each session has its own, as named by
            ``with brix_core.session(...)`` or by the configuration of the surrounding chain, agent or graph. LangChain
            keeps to itself the configuration of a model that is called directly: such calls share one rate.
        name: Limiters of one name and one store share the rate; one without is by itself.
        store: Where the bucket is; this process's memory by default.
        clock: The time.
        tokens_per_minute: Refused, with a hint.

    Raises:
        BrixConfigurationError: A value is out of range, or ``tokens_per_minute`` is given. Later: it is pickled. (A
            copy of it, deep or not, shares the rate.)

    Example:
        >>> limiter = BrixRateLimiter(60, burst_capacity=2)
        >>> [limiter.acquire(blocking=False) for _ in range(3)]
        [True, True, False]
    """

    _INSTEAD_OF_PICKLING = (
        "Make one on the other side; with the same name and a store that both sides reach, they share the rate"
    )

    def __init__(
        self,
        requests_per_minute: float,
        *,
        burst_capacity: int | None = None,
        scope: Literal["shared", "session"] = "shared",
        name: str | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        if tokens_per_minute is not None:
            raise BrixConfigurationError(
                "LangChain tells its rate limiter nothing of a call, so that BrixRateLimiter cannot keep "
                "tokens_per_minute; guard the model instead: guard(model, tokens_per_minute=...)"
            )
        self._per_minute = checks.positive("requests_per_minute", requests_per_minute)
        if burst_capacity is not None:
            checks.at_least("burst_capacity", checks.whole("burst_capacity", burst_capacity, 1), 1)
        checks.one_of("scope", scope, ("shared", "session"))
        if name is not None and not isinstance(name, str):
            raise BrixConfigurationError(
                f"name must be a str that limiters of one rate have in common, got {name!r:.200}"
            )
        where = parse({"store": store, "clock": clock})
        self._burst = burst_of(self._per_minute, burst_capacity)
        self._by_session = scope == "session"
        self._key = f"limiter:{str(uuid4()) if name is None else name!r}"
        self._clock: Clock = where.clock or SystemClock()
        self._lines = Lines(default_store() if where.store is None else where.store, self._clock)

    @override
    def acquire(self, *, blocking: bool = True) -> bool:
        return cast(bool, run(cast(Any, self._flow(blocking)), self._clock))

    @override
    async def aacquire(self, *, blocking: bool = True) -> bool:
        return cast(bool, await arun(cast(Any, self._flow(blocking)), self._clock))

    def _flow(self, blocking: bool) -> Generator[Effect, Any, bool]:
        key = f"{self._key}:{session_now(None)!r}" if self._by_session else self._key
        demands = [one_request(key, self._per_minute, self._burst)]
        if not blocking:
            return (yield from self._lines.take_at_once(key, lambda now: demands))
        yield from self._lines.take(key, lambda now: demands)
        return True


__all__ = ["BrixRateLimiter"]
