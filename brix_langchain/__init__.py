"""Guards for LangChain: ``guard(model, max_cost_usd=1.0, max_retries=3)`` is still a chat model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brix_langchain import extras as _extras
from brix_langchain.cache import BrixCache
from brix_langchain.callbacks import BrixCallbackHandler
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.enforcement import EnforcementRunnable, LangChainAdapter, as_runnable
from brix_langchain.guarding import guard
from brix_langchain.output_parser import BrixOutputParser
from brix_langchain.rate_limiter import BrixRateLimiter
from brix_langchain.retrieval import GuardedRetriever, LangChainRetrievalProvider
from brix_langchain.runnable import GuardedRunnable
from brix_langchain.string_llm import GuardedLLM

if TYPE_CHECKING:
    from brix_langchain.agent_executor import guard_agent_executor
    from brix_langchain.middleware import BrixMiddleware


def __getattr__(name: str) -> Any:
    """Load what needs an extra when it is asked for."""
    return _extras.load(name)


def __dir__() -> list[str]:
    """The names that are there, loaded or not."""
    return sorted({*globals(), *__all__})


__all__ = [
    "BrixCache",
    "BrixCallbackHandler",
    "BrixMiddleware",
    "BrixOutputParser",
    "BrixRateLimiter",
    "EnforcementRunnable",
    "GuardedChatModel",
    "GuardedLLM",
    "GuardedRetriever",
    "GuardedRunnable",
    "LangChainAdapter",
    "LangChainRetrievalProvider",
    "as_runnable",
    "guard",
    "guard_agent_executor",
]
__all__[:] = [name for name in __all__ if name not in _extras.absent()]
