"""OpenAI's models, and all servers that speak its chat completions, through the ``openai`` SDK."""

from __future__ import annotations

from typing import Any, Final

from brix_core.call import CallRequest
from brix_core.endpoints.openai import OpenAIEndpoint
from brix_core.enforcement.adapters.sdk import SDKAdapter
from brix_core.model_limits import hides_reasoning

DEFAULT_MODEL: Final = "gpt-4o-mini"


class OpenAIAdapter(SDKAdapter):
    """One of OpenAI's models.

    ``max_tokens`` is sent as ``max_completion_tokens`` to the models that know no other name for it.

    Args:
        api_key: The key; ``OPENAI_API_KEY`` when left out.
        model: The model's name.
        base_url: Another server that speaks OpenAI's API.
        client: An ``openai.OpenAI`` or ``AsyncOpenAI``, or an Azure variant, to use instead of an own one.
        timeout: Longest wait for the next bytes, seconds; the SDK's 600 when left out.
        **client_options: Further arguments of ``openai.AsyncOpenAI``, such as ``organization``.

    Raises:
        BrixConfigurationError: The SDK is not installed, there is no key, or an argument cannot be used.

    Example:
        >>> adapter = OpenAIAdapter(api_key="your-key", model="gpt-4o-mini")
        >>> adapter
        OpenAIAdapter('openai:api.openai.com/gpt-4o-mini')
        >>> adapter.provider, adapter.model
        ('openai', 'gpt-4o-mini')
    """

    provider = "openai"
    sdk = "openai"
    asynchronous = "AsyncOpenAI"
    key_variable = "OPENAI_API_KEY"

    def __init__(
        self,
        api_key: str | None = None,
        model: str = DEFAULT_MODEL,
        base_url: str | None = None,
        client: Any = None,
        timeout: float | None = None,
        **client_options: Any,
    ) -> None:
        super().__init__(api_key, model, base_url, client, timeout, **client_options)

    def _endpoint(self) -> OpenAIEndpoint:
        return _Endpoint(self._client, self.model, owned=self._owned)

    def _listing(self, client: Any, timeout: float) -> Any:
        return client.models.list(timeout=timeout)


class _Endpoint(OpenAIEndpoint):
    """The endpoint, for callers who say ``max_tokens`` to every provider."""

    def _arguments(self, request: CallRequest, stream: bool) -> dict[str, Any]:
        arguments = super()._arguments(request, stream)
        if "max_tokens" in arguments and hides_reasoning(self.model(request.params)):
            cap = arguments.pop("max_tokens")
            arguments.setdefault("max_completion_tokens", cap)
        return arguments


__all__ = ["DEFAULT_MODEL", "OpenAIAdapter"]
