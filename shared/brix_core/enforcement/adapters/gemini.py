"""Google's Gemini models, over plain HTTP."""

from __future__ import annotations

import os
from typing import Any, Final

from brix_core.endpoints.gemini import BASE_URL, GeminiEndpoint
from brix_core.endpoints.http_client import DEFAULT_TIMEOUT
from brix_core.enforcement.adapters.http import HTTPAdapter
from brix_core.errors import BrixConfigurationError

DEFAULT_MODEL: Final = "gemini-2.5-flash"

KEY_VARIABLES: Final = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
"""Where Google's own SDK looks for a key, in this order."""


class GeminiAdapter(HTTPAdapter):
    """One of Google's Gemini models.

    Args:
        api_key: The key; that of the first of `KEY_VARIABLES` that is set when left out.
        model: The model's name.
        base_url: Another address of the API.
        client: An ``httpx.Client`` or ``httpx.AsyncClient`` to use instead of own ones; it stays its owner's,
            and its time limits hold.
        timeout: Longest wait for the next bytes, seconds.
        **client_options: Further arguments of httpx's clients, such as ``proxy``.

    Raises:
        BrixConfigurationError: httpx is not installed, there is no key, or an argument cannot be used.

    Example:
        >>> adapter = GeminiAdapter(api_key="your-key", model="gemini-2.5-flash")
        >>> adapter
        GeminiAdapter('google:generativelanguage.googleapis.com/gemini-2.5-flash')
        >>> adapter.provider
        'gemini'
    """

    provider = "gemini"
    listing = "/models?pageSize=1"

    def __init__(
        self,
        api_key: str | None = None,
        model: str = DEFAULT_MODEL,
        base_url: str | None = None,
        client: Any = None,
        timeout: float = DEFAULT_TIMEOUT,
        **client_options: Any,
    ) -> None:
        super().__init__(model)
        key = api_key or next((found for name in KEY_VARIABLES if (found := os.environ.get(name))), None)
        if not key:
            raise BrixConfigurationError(
                f"GeminiAdapter has no key; give api_key=..., or set {' or '.join(KEY_VARIABLES)}"
            )
        self._made = GeminiEndpoint(
            model,
            api_key=key,
            base_url=base_url or BASE_URL,
            timeout=timeout,
            client=client,
            options=client_options,
        )

    def _endpoint(self) -> GeminiEndpoint:
        return self._made


__all__ = ["DEFAULT_MODEL", "KEY_VARIABLES", "GeminiAdapter"]
