"""CacheGuard: what was answered is not asked again.

A request whose answer is kept gets it at once: nothing is sent, nothing is charged, no limit is used up, and its trace
entry has no attempts. Identical requests under way at the same time are one call (`brix_core.caching.flights`).
Failures are never kept. What a key is made of stands in `brix_core.caching.keys`, what is kept of an answer in
`brix_core.caching.answers`.

* Whatever the session: an answer to a prompt is one for all who ask the same of the same model. Give each tenant a
  cache of its own where that must not be.
* Behind failover the key is that of the request; the response says which model answered.
* Streams: a hit comes as chunks, a miss is kept once it is complete. Streams wait for no other call and no other call
  waits for them: how fast a stream gets on is its consumer's affair, who may himself be about to ask the same. Nor
  does a blocking call inside a coroutine wait: the task it would wait for could not go on.
* A cache that fails costs nothing but its answers: the request is sent, and a warning logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from brix_core import checks
from brix_core.cache import MISSING, Cache
from brix_core.caching.answers import as_written, kept, restored, why_not_kept
from brix_core.caching.flights import Seat, flights_over
from brix_core.caching.keys import UnkeyableError, key_of
from brix_core.call import CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.errors import BrixConfigurationError
from brix_core.flow import Effect, Flow, Proceed, Sleep, StoreOp

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Options of the cache guard.

    Attributes:
        cache: Where answers are kept, such as ``InMemoryCache(max_size=100, default_ttl=3600)``. Activates the guard.
        cache_ttl: Seconds an answer holds; the cache's own default when left out.
    """

    cache: Cache
    cache_ttl: float | None = None

    def __post_init__(self) -> None:
        usable = all(callable(getattr(self.cache, name, None)) for name in ("get", "set"))
        if isinstance(self.cache, type) or not usable or not hasattr(self.cache, "blocking"):
            raise BrixConfigurationError(
                f"cache must be a cache such as brix_core.InMemoryCache(max_size=1000), got {self.cache!r:.200}"
            )
        if self.cache_ttl is not None:
            checks.positive("cache_ttl", self.cache_ttl, infinite=True)


class CacheGuard:
    """Answers from a cache. See the module's docstring.

    Args:
        config: Its options.
        clock: The time.
        variant: What the guards inside make of requests and answers, as part of the key.
        total_timeout: The option, in seconds: nobody waits for another's answer longer than that.
    """

    name = "cache"

    def __init__(
        self, config: CacheConfig, clock: Clock, variant: str = "", total_timeout: float | None = None
    ) -> None:
        self.config = config
        self._clock = clock
        self._variant = variant
        self._total = total_timeout
        self._flights = flights_over(config.cache)

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one call."""
        try:
            key = key_of(request, self._variant)
        except UnkeyableError as why:
            request.call.decide("cache", "bypassed", reason=str(why))
            return (yield from proceed(request))
        if request.stream:
            response = yield from self._looked_up(request, key)
            return response[0] if response else (yield from self._asked(request, proceed, key))[0]
        return (yield from self._in_flight(request, proceed, key))

    def _in_flight(self, request: CallRequest, proceed: Proceed, key: str) -> Flow:
        """The answer, of this call or of an identical one that is under way."""
        seat = self._flights.join(key)
        failed = False
        try:
            if not (seat.leads or request.call.blocks_a_loop):
                yield from self._wait(seat, request)
                shared = None if seat.answer is MISSING else restored(seat.answer, request)
                if shared is not None:
                    request.call.decide("cache", "shared", model=shared.model)
                    return shared
            found = None if seat.alone else (yield from self._looked_up(request, key))
            response, value = found or (yield from self._asked(request, proceed, key))
            failed = value is MISSING
            if seat.leads and not failed:
                self._flights.land(seat, value)
            return response
        except Exception:
            failed = True
            raise
        finally:
            self._flights.leave(seat, failed=failed)

    def _wait(self, seat: Seat, request: CallRequest) -> Generator[Effect, Any, None]:
        """Until there is an answer, or this caller is to ask."""
        until = math.inf if self._total is None else request.session.started + self._total
        while not (seat.leads or seat.alone or seat.answer is not MISSING):
            left = until - self._clock.now()
            if left <= 0.0:
                return  # the session's time is over, which the guard inside says
            yield Sleep(left, seat.wakeup)

    def _looked_up(self, request: CallRequest, key: str) -> Generator[Effect, Any, tuple[CallResponse, Any] | None]:
        """The answer in the cache, and as it is kept."""
        cache = self.config.cache
        try:
            value = yield StoreOp(cache.get, (key, MISSING), cache.blocking)
        except Exception:
            log.warning("the cache could not be read; the request is sent", exc_info=True)
            request.call.decide("cache", "unavailable")
            return None
        response = None if value is MISSING else restored(value, request)
        if response is None:
            request.call.decide("cache", "miss")
            return None
        request.call.decide("cache", "hit", model=response.model)
        return response, value

    def _asked(
        self, request: CallRequest, proceed: Proceed, key: str
    ) -> Generator[Effect, Any, tuple[CallResponse, Any]]:
        """The model's answer, and as it is shared: `MISSING` when it is not."""
        response = yield from proceed(request.evolve(keep=True))
        cache = self.config.cache
        why = why_not_kept(response, request)
        if why:
            request.call.decide("cache", "not_kept", reason=why)
            return response, MISSING
        value: Any = MISSING
        try:
            value = kept(response, request)
            written = as_written(value, request) if cache.blocking else value
            yield StoreOp(cache.set, (key, written, self.config.cache_ttl), cache.blocking)
        except Exception as error:  # the answer is paid for, and must not be lost
            log.warning("an answer was not kept", exc_info=True)
            request.call.decide("cache", "not_kept", reason=f"{type(error).__name__}: {error}")
        return response, value


__all__ = ["CacheConfig", "CacheGuard"]
