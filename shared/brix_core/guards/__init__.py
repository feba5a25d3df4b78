"""The guards: one failure mode, one guard, one file."""

from brix_core.guards.budget import BrixBudgetWarning, BudgetConfig, BudgetGuard
from brix_core.guards.cache import CacheConfig, CacheGuard
from brix_core.guards.circuit_breaker import BreakerState, CircuitBreakerConfig, CircuitBreakerGuard
from brix_core.guards.context import ContextConfig, ContextGuard
from brix_core.guards.failover import FailoverGuard
from brix_core.guards.loop import LoopConfig, LoopGuard
from brix_core.guards.observability import ObservabilityConfig, ObservabilityGuard
from brix_core.guards.rate_limit import RateLimitConfig, RateLimitGuard
from brix_core.guards.recording import RecordingConfig, RecordingGuard
from brix_core.guards.regulated import RegulatedConfig, RegulatedGuard
from brix_core.guards.replay import ReplayConfig, ReplayGuard
from brix_core.guards.retry import RetryConfig, RetryGuard
from brix_core.guards.schema import SchemaConfig, SchemaGuard
from brix_core.guards.timeout import SessionTimeout, TimeoutConfig, TimeoutGuard

__all__ = [
    "BreakerState",
    "BrixBudgetWarning",
    "BudgetConfig",
    "BudgetGuard",
    "CacheConfig",
    "CacheGuard",
    "CircuitBreakerConfig",
    "CircuitBreakerGuard",
    "ContextConfig",
    "ContextGuard",
    "FailoverGuard",
    "LoopConfig",
    "LoopGuard",
    "ObservabilityConfig",
    "ObservabilityGuard",
    "RateLimitConfig",
    "RateLimitGuard",
    "RecordingConfig",
    "RecordingGuard",
    "RegulatedConfig",
    "RegulatedGuard",
    "ReplayConfig",
    "ReplayGuard",
    "RetryConfig",
    "RetryGuard",
    "SchemaConfig",
    "SchemaGuard",
    "SessionTimeout",
    "TimeoutConfig",
    "TimeoutGuard",
]
