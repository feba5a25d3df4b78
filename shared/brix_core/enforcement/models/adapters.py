"""Models of all providers, called in one way: `brix_core.enforcement.adapters`."""

from brix_core.enforcement.adapters import (
    AnthropicAdapter,
    BaseLLMAdapter,
    GeminiAdapter,
    OllamaAdapter,
    OpenAIAdapter,
)

__all__ = ["AnthropicAdapter", "BaseLLMAdapter", "GeminiAdapter", "OllamaAdapter", "OpenAIAdapter"]
