"""Models of all providers, called in one way.

Example:
    >>> adapter = OpenAIAdapter(api_key="your-key", model="gpt-4o-mini")
    >>> adapter.provider
    'openai'
"""

from brix_core.enforcement.adapters.anthropic import AnthropicAdapter
from brix_core.enforcement.adapters.base import BaseLLMAdapter, Prompt
from brix_core.enforcement.adapters.gemini import GeminiAdapter
from brix_core.enforcement.adapters.ollama import OllamaAdapter
from brix_core.enforcement.adapters.openai import OpenAIAdapter

__all__ = [
    "AnthropicAdapter",
    "BaseLLMAdapter",
    "GeminiAdapter",
    "OllamaAdapter",
    "OpenAIAdapter",
    "Prompt",
]
