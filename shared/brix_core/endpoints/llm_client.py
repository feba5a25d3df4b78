"""Any object with a ``complete(prompt, ...)``: the smallest thing that can be guarded."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import copy
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from brix_core.call import CallRequest, CallResponse
from brix_core.endpoints.sdk import CODEC, StreamPiece, is_cap, patience
from brix_core.endpoints.sources import aclose, close
from brix_core.endpoints.transport import Transport
from brix_core.errors import BrixConfigurationError
from brix_core.model_limits import max_output_tokens
from brix_core.turns import text_of

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema


@runtime_checkable
class LLMClient(Protocol):
    """A client of your own. A plain ``def complete`` is accepted too.

    It may also have ``stream(prompt, ...)``, with the same parameters, giving the answer's text piece by
    piece (an async or a plain iterator). Parameters a caller does not name are not passed.

    Example:
        >>> class Parrot:
        ...     async def complete(self, prompt, *, system=None, temperature=0.7, max_tokens=1024):
        ...         return prompt
        >>> isinstance(Parrot(), LLMClient)
        True
    """

    async def complete(
        self, prompt: str, *, system: str | None = None, temperature: float = 0.7, max_tokens: int = 1024
    ) -> str:
        """Answer a prompt."""
        ...


class LLMClientEndpoint:
    """An `LLMClient`.

    A single user message is the prompt as it is; a longer conversation becomes a transcript
    (``User: ...``, ``Assistant: ...``). System messages are given as ``system``.

    Args:
        client: The client.
        model: A name for prices and traces; the client's ``model``, or its class, when left out. It is not
            passed on: the protocol knows no model.
    """

    codec = CODEC
    provider: str | None = None

    def __init__(self, client: Any, model: str | None = None) -> None:
        self._client = client
        own = getattr(client, "model", None)
        self._model = model or (own if isinstance(own, str) and own else type(client).__name__)
        self._complete = Transport(client.complete, is_async=_is_async(client.complete))
        stream = getattr(client, "stream", None)
        self._stream = Transport(stream, is_async=_is_async(stream)) if callable(stream) else None

    def __repr__(self) -> str:
        return f"LLMClientEndpoint({self.identity!r})"

    def with_model(self, model: str | None) -> Self:
        """The same client under another model's name."""
        twin = copy(self)
        twin._model = model or self._model
        return twin

    @property
    def default_model(self) -> str:
        """The model's name."""
        return self._model

    @property
    def identity(self) -> str:
        """The client's class, which one of its instances, and the model's name."""
        kind = type(self._client)
        return f"custom:{kind.__module__}.{kind.__qualname__}#{_ordinal(self._client)}/{self._model}"

    @property
    def streams(self) -> bool:
        """Whether the client has a ``stream``."""
        return self._stream is not None

    def model(self, params: Mapping[str, Any]) -> str:
        """The model's name."""
        return self._model

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        """``max_tokens``, when the caller named it."""
        cap = params.get("max_tokens")
        return cap if is_cap(cap) else None

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        """The model's own limit, when known."""
        return max_output_tokens(self._model)

    def choices(self, params: Mapping[str, Any]) -> int:
        """Always 1."""
        return 1

    def schemas(self, params: Mapping[str, Any]) -> tuple[()]:
        """Nothing."""
        return ()

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """False: its protocol knows no schema."""
        return False

    def check(self, params: Mapping[str, Any]) -> None:
        """Whatever the client takes."""

    def call(self, request: CallRequest) -> CallResponse:
        """One blocking request."""
        return self._answer(self._complete.call(_sender(request), patience(request)))

    async def acall(self, request: CallRequest) -> CallResponse:
        """One request on the event loop."""
        return self._answer(await self._complete.acall(_sender(request)))

    def stream(self, request: CallRequest) -> Iterator[StreamPiece]:
        """Pieces, blocking."""
        if self._stream is None:
            yield from self.as_chunks(self.call(request))
            return
        source = self._stream.stream(_opener(request, self._stream.is_async), patience(request))
        try:
            for text in source:
                yield self._piece(text)
        finally:
            close(source)

    async def astream(self, request: CallRequest) -> AsyncIterator[StreamPiece]:
        """Pieces, on the event loop."""
        if self._stream is None:
            for piece in self.as_chunks(await self.acall(request)):
                yield piece
            return
        source = self._stream.astream(_opener(request, self._stream.is_async))
        try:
            async for text in source:
                yield self._piece(text)
        finally:
            await aclose(source)

    def read_chunk(self, chunk: StreamPiece) -> str:
        """The text of a piece."""
        return chunk.billed

    def finish(self, chunks: Sequence[StreamPiece], text: str, request: CallRequest) -> CallResponse:
        """Sum up a stream."""
        return CallResponse(text="".join(piece.text for piece in chunks), model=self._model)

    def assemble(self, chunks: Sequence[StreamPiece], text: str, request: CallRequest) -> CallResponse:
        """The response that ``complete`` would have given."""
        whole = "".join(piece.text for piece in chunks)
        return CallResponse(text=whole, model=self._model, raw=whole)

    def as_chunks(self, response: CallResponse) -> list[StreamPiece]:
        """One piece that holds all of a response."""
        return [self._piece(response.text)]

    def _piece(self, text: Any) -> StreamPiece:
        return StreamPiece(_checked(text, self._client, "stream"), text, text, self)

    def pack(self, raw: Any) -> Any:
        """The text."""
        return raw

    def unpack(self, data: Any) -> Any:
        """The text."""
        return data

    def pack_chunks(self, chunks: Sequence[StreamPiece]) -> list[Any]:
        """Their texts."""
        return [chunk.text for chunk in chunks]

    def unpack_chunks(self, data: Sequence[Any]) -> Iterator[StreamPiece]:
        """The texts as pieces."""
        return map(self._piece, data)

    def _answer(self, text: Any) -> CallResponse:
        return CallResponse(text=_checked(text, self._client, "complete"), model=self._model, raw=text)


_ordinals: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_counter = itertools.count(1)


def _ordinal(client: Any) -> int:
    """A number for each client: two of one class may go to different places, and share no circuit breaker."""
    try:
        return _ordinals.setdefault(client, next(_counter)) if client not in _ordinals else _ordinals[client]
    except TypeError:  # not hashable, or without weak references
        return id(client)


def _is_async(method: Any) -> bool:
    call = getattr(method, "__call__", None)  # noqa: B004 - an object with an asynchronous __call__
    return any(
        inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) for function in (method, call)
    )


def _sender(request: CallRequest) -> Callable[[Any], Any]:
    prompt, arguments = _arguments(request)
    return lambda method: method(prompt, **arguments)


def _opener(request: CallRequest, is_async: bool) -> Callable[[Any], Any]:
    prompt, arguments = _arguments(request)
    if not is_async:
        return lambda method: method(prompt, **arguments)

    async def open_stream(method: Any) -> Any:
        source = method(prompt, **arguments)
        return await source if isawaitable(source) else source

    return open_stream


def _arguments(request: CallRequest) -> tuple[str, dict[str, Any]]:
    arguments = dict(request.params)
    if request.output_cap is not None:
        arguments["max_tokens"] = request.output_cap
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(request.conversation.messages):
        role, text = str(message.get("role")), _text(message, number)
        if role in ("system", "developer"):
            system.append(text)
        else:
            turns.append((role, text))
    if system:
        given = arguments.get("system")
        arguments["system"] = "\n\n".join([given, *system] if given else system)
    if [role for role, _ in turns] == ["user"]:
        return turns[0][1], arguments
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in turns), arguments


def _text(message: Mapping[str, Any], number: int) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [content]
    if message.get("tool_calls") or any(isinstance(part, Mapping) and "text" not in part for part in parts):
        raise BrixConfigurationError(
            f"messages[{number}] holds more than text, which an LLMClient's complete(prompt) cannot take; "
            "wrap an SDK's client for images, files and tools"
        )
    return text_of(content)


def _checked(text: Any, client: Any, method: str) -> str:
    if isinstance(text, str):
        return text
    # No BrixError: the request was made, and must be charged.
    raise TypeError(f"{type(client).__name__}.{method} must give str, got {type(text).__name__}")


__all__ = ["LLMClient", "LLMClientEndpoint"]
