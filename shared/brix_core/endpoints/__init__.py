"""Clients as the guards call them: the openai and anthropic SDKs, and anything with a ``complete``."""

from brix_core.endpoints.anthropic import AnthropicEndpoint
from brix_core.endpoints.llm_client import LLMClient, LLMClientEndpoint
from brix_core.endpoints.openai import OpenAIEndpoint
from brix_core.endpoints.recognise import endpoint_for

__all__ = ["AnthropicEndpoint", "LLMClient", "LLMClientEndpoint", "OpenAIEndpoint", "endpoint_for"]
