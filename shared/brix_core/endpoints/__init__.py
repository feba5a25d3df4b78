"""Clients as the guards call them: the openai and anthropic SDKs, REST APIs, and anything with a ``complete``."""

from brix_core.endpoints.anthropic import AnthropicEndpoint
from brix_core.endpoints.gemini import GeminiEndpoint
from brix_core.endpoints.http_errors import ProviderError, StreamCutError, UnreadableAnswerError
from brix_core.endpoints.llm_client import LLMClient, LLMClientEndpoint
from brix_core.endpoints.ollama import OllamaEndpoint
from brix_core.endpoints.openai import OpenAIEndpoint
from brix_core.endpoints.recognise import endpoint_for

__all__ = [
    "AnthropicEndpoint",
    "GeminiEndpoint",
    "LLMClient",
    "LLMClientEndpoint",
    "OllamaEndpoint",
    "OpenAIEndpoint",
    "ProviderError",
    "StreamCutError",
    "UnreadableAnswerError",
    "endpoint_for",
]
