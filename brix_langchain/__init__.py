"""Guards for LangChain: ``guard(model, max_cost_usd=1.0, max_retries=3)`` is still a chat model."""

from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.guarding import guard

__all__ = ["GuardedChatModel", "guard"]
