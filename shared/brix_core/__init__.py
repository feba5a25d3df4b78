"""Guards around every model call: budget, rate, time, retries, failover, traces.

The framework-free core. `brix_langchain` and `brix_llamaindex` put it into their frameworks.
"""

from brix_core.cache import Cache, InMemoryCache
from brix_core.client import BRIX, BrixClient, GuardChain
from brix_core.completion import Completion, CompletionStream
from brix_core.endpoints import LLMClient
from brix_core.errors import (
    BrixBudgetError,
    BrixCircuitOpenError,
    BrixConfigurationError,
    BrixContextError,
    BrixError,
    BrixFailoverError,
    BrixGuardBlockedError,
    BrixGuardError,
    BrixInternalError,
    BrixLoopError,
    BrixRateLimitError,
    BrixReplayError,
    BrixRetrievalError,
    BrixRetryError,
    BrixRunLimitError,
    BrixSchemaError,
    BrixTimeoutError,
    BrixUnknownPriceError,
    SchemaAttempt,
)
from brix_core.options import GuardOptions
from brix_core.policy import load_policy
from brix_core.retrieval.results import RetrievalProvider, RetrievalResult, RetrievedDocument
from brix_core.session import Session, current_session_id, session
from brix_core.store import MemoryStore, Store
from brix_core.structured.object_stream import ObjectStream
from brix_core.usage import Usage

__version__ = "0.1.0"

__all__ = [
    "BRIX",
    "BrixBudgetError",
    "BrixCircuitOpenError",
    "BrixClient",
    "BrixConfigurationError",
    "BrixContextError",
    "BrixError",
    "BrixFailoverError",
    "BrixGuardBlockedError",
    "BrixGuardError",
    "BrixInternalError",
    "BrixLoopError",
    "BrixRateLimitError",
    "BrixReplayError",
    "BrixRetrievalError",
    "BrixRetryError",
    "BrixRunLimitError",
    "BrixSchemaError",
    "BrixTimeoutError",
    "BrixUnknownPriceError",
    "Cache",
    "Completion",
    "CompletionStream",
    "GuardChain",
    "GuardOptions",
    "InMemoryCache",
    "LLMClient",
    "MemoryStore",
    "ObjectStream",
    "RetrievalProvider",
    "RetrievalResult",
    "RetrievedDocument",
    "SchemaAttempt",
    "Session",
    "Store",
    "Usage",
    "__version__",
    "current_session_id",
    "load_policy",
    "session",
]
