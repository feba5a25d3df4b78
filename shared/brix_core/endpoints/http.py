"""What endpoints over plain HTTP have in common: one model behind a provider's REST API.

Their parameters are OpenAI's names for what all providers have (``temperature``, ``max_tokens``, ``stop``, ``tools``,
...), which each puts where its API has it, and some names of the API itself. What is in ``extra_body`` is sent as it
is, and wins.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from brix_core.call import CallRequest, CallResponse
from brix_core.endpoints.http_client import HTTPClient, JsonObject
from brix_core.endpoints.http_errors import StreamCutError, UnreadableAnswerError
from brix_core.endpoints.http_streams import Framing
from brix_core.endpoints.sdk import CODEC, StreamPiece, is_cap, patience
from brix_core.endpoints.sources import aclose, close
from brix_core.errors import BrixConfigurationError
from brix_core.model_limits import max_output_tokens

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema


class HTTPEndpoint(ABC):
    """One model behind a REST API.

    Args:
        http: The API's requests.
        model: The model asked for when a call names none.
    """

    codec = CODEC
    streams = True
    provider: ClassVar[str]
    api: ClassVar[str]
    known: ClassVar[frozenset[str]]
    framing: ClassVar[Callable[[], Framing]]

    def __init__(self, http: HTTPClient, model: str | None) -> None:
        self._http = http
        self._model = model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity!r})"

    def with_model(self, model: str | None) -> Self:
        """The same connections, asked for another model."""
        twin = copy(self)
        twin._model = model
        twin.__dict__.pop("identity", None)
        return twin

    @property
    def default_model(self) -> str | None:
        """The model asked for when a call names none."""
        return self._model

    @property
    def http(self) -> HTTPClient:
        """The API's requests."""
        return self._http

    @cached_property
    def identity(self) -> str:
        """Provider, address and model."""
        return f"{self.provider}:{self._http.address}/{self._model or '?'}"

    def model(self, params: Mapping[str, Any]) -> str:
        """The model asked for."""
        return str(params.get("model") or self._model or "")

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        """The model's own limit, when known."""
        return max_output_tokens(self.model(params))

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        """The output cap that is sent for each choice, in tokens; None where none is."""
        cap = self._sent_cap(params)
        return cap if is_cap(cap) and cap > 0 else None

    def check(self, params: Mapping[str, Any]) -> None:
        """Refuse, before anything is reserved, what cannot be sent.

        Raises:
            BrixConfigurationError: A parameter that does not exist, or that must be given another way.
        """
        extra = params.get("extra_body")
        if extra is not None and not isinstance(extra, Mapping):
            raise BrixConfigurationError(f"extra_body must be a dict, got {type(extra).__name__}")
        for name in self._own_way:
            if name in (extra or ()):
                raise BrixConfigurationError(
                    f"extra_body={{{name!r}: ...}} would replace what the guards have counted; {self._own_way[name]}"
                )
        if isinstance(params.get("tools"), Iterator):
            raise BrixConfigurationError("tools must be a list: an iterator cannot be both counted and sent")
        for name in params.keys() - self.known:
            close_names = difflib.get_close_matches(name, self.known, n=1)
            hint = f"did you mean {close_names[0]}? Otherwise, " if close_names else ""
            raise BrixConfigurationError(
                f"{self.api} has no parameter {name!r} here; {hint}if the API knows it, give it as it is sent, in "
                "extra_body={...}"
            )

    @abstractmethod
    def choices(self, params: Mapping[str, Any]) -> int:
        """How many answers are asked for."""

    @abstractmethod
    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        """What is billed beside the messages."""

    @abstractmethod
    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the model is sent the schema."""

    def call(self, request: CallRequest) -> CallResponse:
        """One blocking request."""
        path, body = self._prepared(request, stream=False)
        return self._whole(self._http.request("POST", path, body, patience(request)), request)

    async def acall(self, request: CallRequest) -> CallResponse:
        """One request on the event loop."""
        path, body = self._prepared(request, stream=False)
        return self._whole(await self._http.arequest("POST", path, body, patience(request)), request)

    def stream(self, request: CallRequest) -> Iterator[StreamPiece]:
        """Chunks, blocking."""
        path, body = self._prepared(request, stream=True)
        source = self._http.stream(path, body, type(self).framing(), patience(request))
        finished = False
        try:
            for event in source:
                finished = finished or self._finishes(event)
                yield self.piece(event)
        finally:
            close(source)
        self._require(finished)

    async def astream(self, request: CallRequest) -> AsyncIterator[StreamPiece]:
        """Chunks, on the event loop."""
        path, body = self._prepared(request, stream=True)
        source = self._http.astream(path, body, type(self).framing(), patience(request))
        finished = False
        try:
            async for event in source:
                finished = finished or self._finishes(event)
                yield self.piece(event)
        finally:
            await aclose(source)
        self._require(finished)

    def read_chunk(self, chunk: StreamPiece) -> str:
        """The billed text in a chunk."""
        return chunk.billed

    @abstractmethod
    def piece(self, event: JsonObject) -> StreamPiece:
        """Read an event of a stream."""

    def finish(self, chunks: Sequence[StreamPiece], text: str, request: CallRequest) -> CallResponse:
        """Sum up a stream; `raw` stays None."""
        return self.assemble(chunks, text, request)._replace(raw=None)

    def assemble(self, chunks: Sequence[StreamPiece], text: str, request: CallRequest) -> CallResponse:
        """The response that the same request would have given unstreamed; `raw` is the API's JSON."""
        events = [piece.raw for piece in chunks]
        response = self._read(self._merged(events), request)
        # Until the end, the counts in a stream are those of a part of it.
        return response if any(map(self._finishes, events)) else response._replace(usage=None)

    def as_chunks(self, response: CallResponse) -> list[StreamPiece]:
        """One chunk that holds all of a response."""
        return [self.piece(self._told(response))]

    def pack(self, raw: JsonObject) -> JsonObject:
        """JSON it is."""
        return raw

    def unpack(self, data: JsonObject) -> JsonObject:
        """JSON it is."""
        return data

    def pack_chunks(self, chunks: Sequence[StreamPiece]) -> list[JsonObject]:
        """The API's events."""
        return [piece.raw for piece in chunks]

    def unpack_chunks(self, data: Sequence[JsonObject]) -> Iterator[StreamPiece]:
        """The events, read."""
        return map(self.piece, data)

    def _prepared(self, request: CallRequest, *, stream: bool) -> tuple[str, JsonObject]:
        self.check(request.params)
        if not self.model(request.params):
            raise BrixConfigurationError(f"{self.api} is asked for no model; name one: model=...")
        return self._path(request, stream), self._body(request, stream)

    def _whole(self, data: JsonObject, request: CallRequest) -> CallResponse:
        if not data.keys() & self._answered:
            raise UnreadableAnswerError(
                f"{self.identity} answered with none of {', '.join(sorted(self._answered))} but with "
                f"{', '.join(sorted(data)) or 'nothing'}: is this {self.api}?"
            )
        return self._read(data, request)

    def _require(self, finished: bool) -> None:
        if not finished:
            raise StreamCutError(
                f"the stream of {self.identity} ended before the model had finished; what came may be a part"
            )

    @property
    @abstractmethod
    def _answered(self) -> frozenset[str]:
        """Fields of which an answer has one at least."""

    @property
    @abstractmethod
    def _own_way(self) -> Mapping[str, str]:
        """What must not stand in ``extra_body``, and what to do instead."""

    @abstractmethod
    def _sent_cap(self, params: Mapping[str, Any]) -> Any:
        """The output cap in the parameters."""

    @abstractmethod
    def _path(self, request: CallRequest, stream: bool) -> str:
        """The path of a request."""

    @abstractmethod
    def _body(self, request: CallRequest, stream: bool) -> JsonObject:
        """The body of a request."""

    @abstractmethod
    def _read(self, data: JsonObject, request: CallRequest) -> CallResponse:
        """Read a whole answer."""

    @abstractmethod
    def _finishes(self, event: JsonObject) -> bool:
        """Whether the model says in it that it has finished."""

    @abstractmethod
    def _merged(self, events: Sequence[JsonObject]) -> JsonObject:
        """The whole answer that events make."""

    @abstractmethod
    def _told(self, response: CallResponse) -> JsonObject:
        """A response as one event."""


__all__ = ["HTTPEndpoint"]
