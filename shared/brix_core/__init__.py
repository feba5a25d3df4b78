"""Guards around every model call: budget, rate, time, retries, failover, traces.

The framework-free core. `brix_langchain` and `brix_llamaindex` put it into their frameworks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from brix_core.audit.log import flush_logs
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
    BrixRegulatedError,
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

if TYPE_CHECKING:
    from brix_core.regulated import (
        ActionTaken,
        BrixRouter,
        MockLLMClient,
        OutputGuard,
        OutputResult,
        RegulatedGuard,
        SpecModel,
        SpecValidationError,
        StructuredResult,
        UncertaintyType,
        load_spec,
        load_spec_from_dict,
    )

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Names of the regulated domain are imported when they are first used."""
    regulated = import_module("brix_core.regulated")
    if name not in regulated.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(regulated, name)
    return value


__all__ = [
    "ActionTaken",
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
    "BrixRegulatedError",
    "BrixReplayError",
    "BrixRetrievalError",
    "BrixRetryError",
    "BrixRouter",
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
    "MockLLMClient",
    "ObjectStream",
    "OutputGuard",
    "OutputResult",
    "RegulatedGuard",
    "RetrievalProvider",
    "RetrievalResult",
    "RetrievedDocument",
    "SchemaAttempt",
    "Session",
    "SpecModel",
    "SpecValidationError",
    "Store",
    "StructuredResult",
    "UncertaintyType",
    "Usage",
    "__version__",
    "current_session_id",
    "flush_logs",
    "load_policy",
    "load_spec",
    "load_spec_from_dict",
    "session",
]
