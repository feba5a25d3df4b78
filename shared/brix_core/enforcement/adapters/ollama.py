"""Models served by Ollama, over plain HTTP."""

from __future__ import annotations

import os
from typing import Any, Final

from brix_core.endpoints.http_client import DEFAULT_TIMEOUT
from brix_core.endpoints.ollama import BASE_URL, OllamaEndpoint
from brix_core.enforcement.adapters.http import HTTPAdapter

DEFAULT_MODEL: Final = "llama3.2"
HOST_VARIABLE: Final = "OLLAMA_HOST"
"""Where Ollama's own programmes look for the server's address."""

_PORT: Final = 11434


class OllamaAdapter(HTTPAdapter):
    """A model served by Ollama.

    Args:
        model: The model's name, with or without a tag.
        base_url: The server; that of ``OLLAMA_HOST`` when left out, or this machine's.
        api_key: A key, for Ollama's cloud or a proxy; sent as a bearer token. None is needed on a machine of one's own.
        client: An ``httpx.Client`` or ``httpx.AsyncClient`` to use instead of own ones; it stays its owner's,
            and its time limits hold.
        timeout: Longest wait for the next bytes, seconds. The first request loads the model.
        **client_options: Further arguments of httpx's clients, such as ``headers``.

    Raises:
        BrixConfigurationError: httpx is not installed, or an argument cannot be used.

    Example:
        >>> adapter = OllamaAdapter(model="llama3.2", base_url="http://127.0.0.1:11434")
        >>> adapter
        OllamaAdapter('ollama:127.0.0.1:11434/llama3.2')
    """

    provider = "ollama"
    listing = "/api/tags"

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        base_url: str | None = None,
        api_key: str | None = None,
        client: Any = None,
        timeout: float = DEFAULT_TIMEOUT,
        **client_options: Any,
    ) -> None:
        super().__init__(model)
        self._made = OllamaEndpoint(
            model,
            base_url=base_url or _url(os.environ.get(HOST_VARIABLE, "")),
            api_key=api_key,
            timeout=timeout,
            client=client,
            options=client_options,
        )

    def _endpoint(self) -> OllamaEndpoint:
        return self._made


def _url(host: str) -> str:
    """The address in ``OLLAMA_HOST``, which may be a mere host, with or without a port.

    Example:
        >>> _url("gpu-box"), _url("0.0.0.0:8000"), _url("https://ollama.example"), _url("")
        ('http://gpu-box:11434', 'http://127.0.0.1:8000', 'https://ollama.example', 'http://127.0.0.1:11434')
    """
    host = host.strip()
    if not host:
        return BASE_URL
    if "://" not in host:
        name, colon, port = host.rpartition(":")
        name, port = (name, port) if colon and port.isdigit() else (host, str(_PORT))
        host = f"http://{name}:{port}"
    # What a server listens on is not always what a client can connect to.
    return host.replace("//0.0.0.0", "//127.0.0.1", 1).rstrip("/")


__all__ = ["DEFAULT_MODEL", "HOST_VARIABLE", "OllamaAdapter"]
