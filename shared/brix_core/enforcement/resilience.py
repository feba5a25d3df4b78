"""What keeps requests going: retries, circuit breakers, failover and rate limits, by the engine's names."""

from brix_core.enforcement.failover import AdapterHealth, FailoverChain
from brix_core.enforcement.policies import CircuitBreakerConfig, RetryPolicy
from brix_core.enforcement.provider_limits import PROVIDER_LIMITS, ProviderLimits
from brix_core.enforcement.rate_limits import PerProviderRateLimiter, RateLimiter

__all__ = [
    "AdapterHealth",
    "CircuitBreakerConfig",
    "FailoverChain",
    "PROVIDER_LIMITS",
    "PerProviderRateLimiter",
    "ProviderLimits",
    "RateLimiter",
    "RetryPolicy",
]
