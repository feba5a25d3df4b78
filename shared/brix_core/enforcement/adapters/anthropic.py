"""Anthropic's models, through the ``anthropic`` SDK."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from brix_core.call import CallRequest
from brix_core.endpoints.anthropic import AnthropicEndpoint
from brix_core.enforcement.adapters.sdk import SDKAdapter

log = logging.getLogger(__name__)

DEFAULT_MODEL: Final = "claude-haiku-4-5"

SAMPLING: Final = ("temperature", "top_p", "top_k")
"""Parameters that Claude has had: the API refuses them from its version 2026-10-21 on (which the SDK sends from 2.0 on,
and which has had no such arguments since 1.0), and earlier versions refuse them for the models below."""

_WITHOUT_SAMPLING: Final = re.compile(r"claude-(?:opus-4[-.](?:[7-9]|\d\d)(?!\d)|[a-z]+-[5-9](?!\d)|fable|mythos)")


class AnthropicAdapter(SDKAdapter):
    """One of Anthropic's models.

    The API wants ``max_tokens``: when a call names none, `brix_core.endpoints.anthropic.DEFAULT_MAX_TOKENS` is sent, or
    the model's own limit where that is lower. `SAMPLING` parameters are left out, with one warning, where the SDK or
    the model has none, so that a call can be the same for all providers of a chain; in ``extra_body`` they are sent.

    Args:
        api_key: The key; ``ANTHROPIC_API_KEY`` when left out.
        model: The model's name.
        base_url: Another address of the API.
        client: An ``anthropic.Anthropic`` or ``AsyncAnthropic``, or a cloud variant, to use instead of an own one.
        timeout: Longest wait for the next bytes, seconds; the SDK's 600 when left out.
        **client_options: Further arguments of ``anthropic.AsyncAnthropic``.

    Raises:
        BrixConfigurationError: The SDK is not installed, there is no key, or an argument cannot be used.

    Example:
        >>> adapter = AnthropicAdapter(api_key="your-key", model="claude-haiku-4-5")
        >>> adapter
        AnthropicAdapter('anthropic:api.anthropic.com/claude-haiku-4-5')
    """

    provider = "anthropic"
    sdk = "anthropic"
    asynchronous = "AsyncAnthropic"
    key_variable = "ANTHROPIC_API_KEY"

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

    def _endpoint(self) -> AnthropicEndpoint:
        return _Endpoint(self._client, self.model, owned=self._owned)

    def _listing(self, client: Any, timeout: float) -> Any:
        return client.models.list(limit=1, timeout=timeout)


class _Endpoint(AnthropicEndpoint):
    """The endpoint, for callers who say ``temperature`` to every provider."""

    def check(self, params: Mapping[str, Any]) -> None:
        """See `SDKEndpoint`."""
        super().check(self._sendable(params))

    def _arguments(self, request: CallRequest, stream: bool) -> dict[str, Any]:
        return super()._arguments(request.evolve(params=self._sendable(request.params)), stream)

    def _sendable(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        model = self.model(params)
        absent = [
            name
            for name in SAMPLING
            if name in params and (name not in self._accepted or _WITHOUT_SAMPLING.match(model))
        ]
        if not absent:
            return params
        for name in absent:
            _warn_once(name, model)
        return {name: value for name, value in params.items() if name not in absent}


@lru_cache(maxsize=256)
def _warn_once(name: str, model: str) -> None:
    log.warning("%s is not sent to %s: the API has no such parameter any more", name, model)


__all__ = ["DEFAULT_MODEL", "SAMPLING", "AnthropicAdapter"]
