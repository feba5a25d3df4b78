"""Guards for LangChain: ``guard(model, max_cost_usd=1.0, max_retries=3)`` is still a chat model."""

from brix_langchain.callbacks import BrixCallbackHandler
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.guarding import guard
from brix_langchain.retrieval import GuardedRetriever, LangChainRetrievalProvider

__all__ = ["BrixCallbackHandler", "GuardedChatModel", "GuardedRetriever", "LangChainRetrievalProvider", "guard"]
