"""Which endpoint a client needs, told by the names of its classes: no SDK is imported."""

from __future__ import annotations

from typing import Any

from brix_core.endpoints.anthropic import AnthropicEndpoint
from brix_core.endpoints.llm_client import LLMClientEndpoint
from brix_core.endpoints.openai import OpenAIEndpoint
from brix_core.endpoints.sdk import SDKEndpoint
from brix_core.errors import BrixConfigurationError

ACCEPTED = (
    "openai.OpenAI, openai.AsyncOpenAI and their Azure variants, anthropic.Anthropic, "
    "anthropic.AsyncAnthropic and their cloud variants, or any object with a "
    "complete(prompt, *, system=..., temperature=..., max_tokens=...)"
)
"""What can be wrapped, for people."""

ClientEndpoint = OpenAIEndpoint | AnthropicEndpoint | LLMClientEndpoint
"""An endpoint of a client."""

_KINDS: dict[str, type[OpenAIEndpoint] | type[AnthropicEndpoint]] = {
    "openai": OpenAIEndpoint,
    "anthropic": AnthropicEndpoint,
}


def endpoint_for(client: Any, default_model: str | None = None) -> ClientEndpoint:
    """The endpoint of a client.

    Args:
        client: A client of the openai or anthropic SDK, or an `LLMClient`.
        default_model: The model asked for when a call names none.

    Raises:
        BrixConfigurationError: The client is none of these.

    Example:
        >>> class Parrot:
        ...     def complete(self, prompt, **options):
        ...         return prompt
        >>> endpoint_for(Parrot(), "my-model").model({})
        'my-model'
    """
    if isinstance(client, type):
        name = client.__name__
        raise BrixConfigurationError(f"{name} is a class; give an instance of it: {name}(...)")
    packages = [
        base.__module__.partition(".")[0]
        for base in type(client).__mro__
        if base.__name__ in ("SyncAPIClient", "AsyncAPIClient")
    ]
    kind = next((_KINDS[package] for package in packages if package in _KINDS), None)
    if kind is not None and _can_chat(client, kind):
        return kind(client, default_model)
    if kind is None and callable(getattr(client, "complete", None)):
        return LLMClientEndpoint(client, default_model)
    raise BrixConfigurationError(f"{_described(client)} cannot be wrapped; accepted are {ACCEPTED}")


def _can_chat(client: Any, kind: type[SDKEndpoint]) -> bool:
    return hasattr(client, "chat" if kind is OpenAIEndpoint else "messages")


def _described(client: Any) -> str:
    name = type(client).__qualname__
    module = type(client).__module__
    return f"{client!r:.100}" if module == "builtins" else f"a {module}.{name}"


__all__ = ["ACCEPTED", "ClientEndpoint", "endpoint_for"]
