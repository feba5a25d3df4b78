"""An engine's guards, from what its constructor is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from brix_core import checks
from brix_core.cache import Cache
from brix_core.clock import SystemClock
from brix_core.enforcement.adapters.base import BaseLLMAdapter
from brix_core.enforcement.failover import FailoverChain
from brix_core.enforcement.policies import CircuitBreakerConfig, RetryPolicy
from brix_core.enforcement.rate_limits import PerProviderRateLimiter, RateLimiter
from brix_core.errors import BrixConfigurationError
from brix_core.guards.rate_limit import RateLimitConfig
from brix_core.options import parse
from brix_core.pipeline import Pipeline
from brix_core.store import default_store

_INSTEAD: Final = {
    "response_schema": "give the schema with each prompt: enforce(prompt, schema)",
    "max_schema_retries": "it is the engine's max_retries",
    "fallbacks": "give FailoverChain([...]) as the adapter",
    "circuit_breaker": "give use_circuit_breaker=True",
}
"""Options of guards that an engine has its own words for."""

_RATES: Final = tuple(RateLimitConfig.__dataclass_fields__)


class Resilience(NamedTuple):
    """What keeps requests going, as the engine is given it."""

    cache: Cache | None
    retry_policy: RetryPolicy | None
    use_circuit_breaker: bool
    circuit_breaker_config: CircuitBreakerConfig | None
    rate_limiter: RateLimiter | PerProviderRateLimiter | None


def adapters_of(adapter: Any) -> tuple[BaseLLMAdapter, ...]:
    """The adapters, the preferred one first.

    Raises:
        BrixConfigurationError: It is none, and no chain of them.
    """
    if isinstance(adapter, FailoverChain):
        return adapter.adapters
    if isinstance(adapter, type) or not hasattr(adapter, "endpoint"):
        raise BrixConfigurationError(
            f"adapter must be one such as OpenAIAdapter(model=...), or a FailoverChain of them, got {adapter!r:.200}"
        )
    return (adapter,)


def pipeline_of(adapter: Any, max_retries: int, resilience: Resilience, options: Mapping[str, Any]) -> Pipeline:
    """The guards around an adapter or a chain.

    Raises:
        BrixConfigurationError: Something cannot be used, or is said twice.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, instead in _INSTEAD.items():
        if name in given:
            raise BrixConfigurationError(f"{name} is no option of an engine; {instead}")
    adapters = adapters_of(adapter)
    breaker = _breaker(adapter, resilience)
    policy = _of_type("retry_policy", resilience.retry_policy, RetryPolicy) or RetryPolicy()
    given |= _once(given, policy.options(), "retry_policy")
    if breaker is not None:
        given |= _once(given, breaker.options(), "circuit_breaker_config")
    limiter = resilience.rate_limiter
    if limiter is not None:
        _of_type("rate_limiter", limiter, RateLimiter | PerProviderRateLimiter)
        _once(given, dict.fromkeys(_RATES), "rate_limiter")
    checks.whole("max_retries", max_retries, 0)
    parsed = parse({**given, "max_schema_retries": max_retries, "cache": resilience.cache})
    store = default_store() if parsed.store is None else parsed.store
    clock = SystemClock() if parsed.clock is None else parsed.clock
    if isinstance(adapter, FailoverChain) and breaker is not None:
        adapter.used(breaker, store, clock)
    providers = {each.endpoint.identity: each.provider for each in adapters}
    further = () if limiter is None else (limiter.guard(store, clock, providers),)
    return Pipeline(parsed, [each.endpoint for each in adapters[1:]], further=further)


def checked_collector(collector: Any) -> Callable[..., Any] | None:
    """The collector's method.

    Raises:
        BrixConfigurationError: It has none.
    """
    if collector is None:
        return None
    method = getattr(collector, "collect", None)
    if isinstance(collector, type) or not callable(method):
        raise BrixConfigurationError(
            f"collector must have a method collect(prompt=, schema=, output=), got {collector!r:.200}"
        )
    return cast(Callable[..., Any], method)


def _breaker(adapter: Any, resilience: Resilience) -> CircuitBreakerConfig | None:
    config = _of_type("circuit_breaker_config", resilience.circuit_breaker_config, CircuitBreakerConfig)
    wanted = checks.flag("use_circuit_breaker", resilience.use_circuit_breaker)
    if config is not None and not wanted:
        raise BrixConfigurationError("circuit_breaker_config has no effect without use_circuit_breaker=True")
    if isinstance(adapter, FailoverChain):
        return adapter.breaker(config)
    return (config or CircuitBreakerConfig()) if wanted else None


def _of_type(name: str, value: Any, kind: Any) -> Any:
    if value is not None and not isinstance(value, kind):
        wanted = getattr(kind, "__name__", str(kind))
        raise BrixConfigurationError(f"{name} must be of type {wanted}, got {value!r:.200}")
    return value


def _once(given: Mapping[str, Any], said: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """What is said, if no option says it too."""
    twice = sorted(given.keys() & said.keys())
    if twice:
        raise BrixConfigurationError(f"{', '.join(twice)} is said by {where} already; give it there, and only there")
    return said


__all__ = ["Resilience", "adapters_of", "checked_collector", "pipeline_of"]
