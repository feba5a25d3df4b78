"""Endpoints: a provider's model as the drivers call it, whatever client or framework stands before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from brix_core.call import CallRequest, CallResponse

if TYPE_CHECKING:
    from brix_core.conversation import Codec
    from brix_core.structured.response_schema import ResponseSchema


class Endpoint(Protocol):
    """One provider's model as the drivers call it. Adapters of clients and frameworks implement it.

    Its methods raise the provider's own exceptions, unchanged. It never retries by itself.
    """

    @property
    def identity(self) -> str:
        """Provider, address and model: the key of a circuit breaker, the name in traces."""
        ...

    @property
    def provider(self) -> str | None:
        """The provider's name for the price table, such as ``"openai"``; None when unknown."""
        ...

    @property
    def codec(self) -> Codec:
        """How to read this framework's messages."""
        ...

    @property
    def streams(self) -> bool:
        """Whether the model can stream at all."""
        ...

    def model(self, params: Mapping[str, Any]) -> str:
        """The model these parameters ask for."""
        ...

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        """The output cap the caller set for each choice, in tokens."""
        ...

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        """The most output tokens the model itself can give, when known."""
        ...

    def choices(self, params: Mapping[str, Any]) -> int:
        """How many answers are asked for (``n``)."""
        ...

    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        """What is sent, and billed, beside the messages: tools, functions, response format."""
        ...

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the model can be held to a schema in its provider's own way, which the endpoint then does."""
        ...

    def call(self, request: CallRequest) -> CallResponse:
        """One blocking request."""
        ...

    async def acall(self, request: CallRequest) -> CallResponse:
        """One request on the event loop."""
        ...

    def stream(self, request: CallRequest) -> Iterator[Any]:
        """The provider's chunks, blocking."""
        ...

    def astream(self, request: CallRequest) -> AsyncIterator[Any]:
        """The provider's chunks, on the event loop."""
        ...

    def read_chunk(self, chunk: Any) -> str:
        """The billed text in a chunk: content, tool names and arguments. Empty for mere metadata."""
        ...

    def finish(self, chunks: Sequence[Any], text: str, request: CallRequest) -> CallResponse:
        """Sum up a stream whose chunks the consumer has seen; cheap, `raw` stays None."""
        ...

    def assemble(self, chunks: Sequence[Any], text: str, request: CallRequest) -> CallResponse:
        """Build from chunks the response that `call` would have given, `raw` included."""
        ...

    def as_chunks(self, response: CallResponse) -> Sequence[Any]:
        """Chunks for a consumer of a stream, from a response that did not come as one."""
        ...


class PackingEndpoint(Endpoint, Protocol):
    """An endpoint whose answers can be written to a file and read again."""

    def pack(self, raw: Any) -> Any:
        """The `raw` of a response as JSON, for a file."""
        ...

    def unpack(self, data: Any) -> Any:
        """The `raw` that was packed."""
        ...

    def pack_chunks(self, chunks: Sequence[Any]) -> list[Any]:
        """The chunks of a stream as JSON, one by one, for a file."""
        ...

    def unpack_chunks(self, data: Sequence[Any]) -> Iterator[Any]:
        """The chunks that were packed."""
        ...


__all__ = ["Endpoint", "PackingEndpoint"]
