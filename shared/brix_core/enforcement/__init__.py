"""The enforcement engine: a prompt and a schema in, valid data out.

::

    engine = EnforcementEngine(OpenAIAdapter(model="gpt-4o-mini"), PydanticValidator(), max_retries=3)
    result = await engine.enforce("Extract: John Doe is 30", Person)
    result.data, result.success, result.retry_count

What keeps it going and within limits are the guards of `brix_core`; see `EnforcementEngine`.
"""

from brix_core.cache import InMemoryCache
from brix_core.enforcement.adapters import (
    AnthropicAdapter,
    BaseLLMAdapter,
    GeminiAdapter,
    OllamaAdapter,
    OpenAIAdapter,
)
from brix_core.enforcement.cache import BaseCache
from brix_core.enforcement.engine import EnforcementEngine
from brix_core.enforcement.failover import AdapterHealth, FailoverChain
from brix_core.enforcement.outputs import (
    EnforcedOutput,
    GenerationResponse,
    ValidationError,
    ValidationResult,
    ValidationStatus,
)
from brix_core.enforcement.policies import CircuitBreakerConfig, RetryPolicy
from brix_core.enforcement.provider_limits import PROVIDER_LIMITS, ProviderLimits
from brix_core.enforcement.rate_limits import PerProviderRateLimiter, RateLimiter
from brix_core.enforcement.streaming import EnforcedStream
from brix_core.enforcement.training import DatasetCollector
from brix_core.enforcement.validators import BaseValidator, JSONValidator, PydanticValidator

__all__ = [
    "AdapterHealth",
    "AnthropicAdapter",
    "BaseCache",
    "BaseLLMAdapter",
    "BaseValidator",
    "CircuitBreakerConfig",
    "DatasetCollector",
    "EnforcedOutput",
    "EnforcedStream",
    "EnforcementEngine",
    "FailoverChain",
    "GeminiAdapter",
    "GenerationResponse",
    "InMemoryCache",
    "JSONValidator",
    "OllamaAdapter",
    "OpenAIAdapter",
    "PROVIDER_LIMITS",
    "PerProviderRateLimiter",
    "ProviderLimits",
    "PydanticValidator",
    "RateLimiter",
    "RetryPolicy",
    "ValidationError",
    "ValidationResult",
    "ValidationStatus",
]
