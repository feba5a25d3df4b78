"""What the adapters over plain HTTP have in common."""

from __future__ import annotations

from typing import ClassVar

from brix_core.endpoints.http import HTTPEndpoint
from brix_core.enforcement.adapters.base import BaseLLMAdapter, Connections


class HTTPAdapter(BaseLLMAdapter):
    """A model behind a REST API."""

    listing: ClassVar[str]

    @property
    def _connections(self) -> Connections:
        return self._http_endpoint.http

    @property
    def _http_endpoint(self) -> HTTPEndpoint:
        endpoint = self.endpoint
        assert isinstance(endpoint, HTTPEndpoint)
        return endpoint

    async def _aprobe(self, timeout: float) -> None:
        await self._http_endpoint.http.arequest("GET", self.listing, patience=timeout)

    def _probe(self, timeout: float) -> None:
        self._http_endpoint.http.request("GET", self.listing, patience=timeout)


__all__ = ["HTTPAdapter"]
