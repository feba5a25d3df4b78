"""What the adapters over the official SDKs have in common."""

from __future__ import annotations

import importlib
import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from brix_core.checks import positive
from brix_core.endpoints.http_client import checked_key
from brix_core.endpoints.sdk import SDKEndpoint
from brix_core.enforcement.adapters.base import BaseLLMAdapter, Connections
from brix_core.errors import BrixConfigurationError


class SDKAdapter(BaseLLMAdapter):
    """A model behind an SDK's client.

    Args:
        api_key: The key; the SDK's environment variable when left out.
        model: The model's name.
        base_url: Another address of the API.
        client: A client of the SDK, synchronous or asynchronous, to use instead of an own one; it stays its owner's.
        timeout: Longest wait for the next bytes, seconds; the SDK's own default when left out.
        **client_options: Further arguments of the SDK's client, such as ``default_headers``.

    Raises:
        BrixConfigurationError: The SDK is not installed, there is no key, or an argument cannot be used.
    """

    sdk: ClassVar[str]
    asynchronous: ClassVar[str]
    key_variable: ClassVar[str]

    def __init__(
        self,
        api_key: str | None = None,
        model: str = "",
        base_url: str | None = None,
        client: Any = None,
        timeout: float | None = None,
        **client_options: Any,
    ) -> None:
        super().__init__(model)
        self._owned = client is None
        options = {**client_options, "base_url": base_url, "timeout": timeout, "api_key": api_key}
        given = {name: value for name, value in options.items() if value is not None}
        if client is not None and given:
            raise BrixConfigurationError(
                f"client and {', '.join(given)} were given; the client has its own: give one or the other"
            )
        self._client = self._made(given) if client is None else self._accepted(client)
        _ = self.endpoint  # made now, so that threads that ask for it at the same time get the same one

    @property
    def _connections(self) -> Connections:
        return self._sdk_endpoint.transport  # closes a given client's copies, never the client

    @property
    def _sdk_endpoint(self) -> SDKEndpoint:
        endpoint = self.endpoint
        assert isinstance(endpoint, SDKEndpoint)
        return endpoint

    @abstractmethod
    def _listing(self, client: Any, timeout: float) -> Any:
        """Ask for the list of models."""

    async def _aprobe(self, timeout: float) -> None:
        await self._sdk_endpoint.transport.acall(self._prober(timeout))

    def _probe(self, timeout: float) -> None:
        self._sdk_endpoint.transport.call(self._prober(timeout), timeout)

    def _prober(self, timeout: float) -> Callable[[Any], Any]:
        async def ask(client: Any) -> Any:
            return await self._listing(client, timeout)

        return ask if self._sdk_endpoint.transport.is_async else lambda client: self._listing(client, timeout)

    def _made(self, options: dict[str, Any]) -> Any:
        name = type(self).__name__
        module = self._module()
        if "timeout" in options:
            positive("timeout", options["timeout"])
        key = options.get("api_key") or os.environ.get(self.key_variable)
        if not key:
            raise BrixConfigurationError(f"{name} has no key; give api_key=..., or set {self.key_variable}")
        if isinstance(key, str):
            checked_key("api_key", key)
        try:
            return getattr(module, self.asynchronous)(**options)
        except (TypeError, ValueError) as error:
            raise BrixConfigurationError(f"an option of the {self.sdk} client cannot be used: {error}") from error

    def _accepted(self, client: Any) -> Any:
        bases = {(base.__module__.partition(".")[0], base.__name__) for base in type(client).__mro__}
        if not bases & {(self.sdk, "SyncAPIClient"), (self.sdk, "AsyncAPIClient")}:
            raise BrixConfigurationError(
                f"client must be a client of the {self.sdk} SDK, got {type(client).__module__}.{type(client).__name__}"
            )
        return client

    def _module(self) -> Any:
        try:
            return importlib.import_module(self.sdk)
        except ImportError as error:
            raise BrixConfigurationError(
                f"{type(self).__name__} needs the {self.sdk} SDK, which is not installed: "
                f'pip install "brix-guards[{self.sdk}]"'
            ) from error


__all__ = ["SDKAdapter"]
