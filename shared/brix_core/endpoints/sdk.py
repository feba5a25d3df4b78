"""What the endpoints of the official SDKs have in common.

The SDK's own retries are switched off on a copy of the client: every request that leaves must pass the meter.
The caller's parameters are passed on untouched; only the output cap is lowered where the guards say so.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeGuard
from urllib.parse import urlsplit

from brix_core.call import CallRequest, CallResponse
from brix_core.conversation import DictCodec
from brix_core.endpoints.sources import aclose, close
from brix_core.endpoints.transport import Transport
from brix_core.errors import BrixConfigurationError

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

log = logging.getLogger(__name__)

CODEC: Final = DictCodec()
"""One for all: a session remembers what it measured by the codec it used."""

TIMEOUT_SLACK: Final = 0.5
"""Seconds by which the SDK's own timeout comes after the guard's, so that the guard's is the one reported."""

LONGEST_TIMEOUT: Final = 1e8
"""Seconds, about three years: beyond it the SDKs' own timeouts overflow, and none is given."""


@dataclass(slots=True)
class StreamPiece:
    """A chunk of a stream as the endpoints hand it on.

    Attributes:
        billed: Its billed text: content, reasoning, refusal, tool names and arguments.
        text: Its visible text, of the first choice.
        raw: The SDK's own chunk.
        endpoint: Who can put pieces together again.
    """

    billed: str
    text: str
    raw: Any
    endpoint: Any


class SDKEndpoint(ABC):
    """One model behind an official SDK's client.

    Args:
        client: The SDK's client; left as it is.
        model: The model it is asked for when a call names none.
        owned: Whether nobody else uses the client: its connections are closed with their event loop.

    Raises:
        BrixConfigurationError: The client cannot be copied with its retries switched off.
    """

    codec = CODEC
    streams = True
    sdk: ClassVar[str]

    def __init__(self, client: Any, model: str | None = None, *, owned: bool = False) -> None:
        self._client = _without_retries(client, self.sdk)
        self._transport = Transport(
            self._client,
            is_async=any(base.__name__ == "AsyncAPIClient" for base in type(client).__mro__),
            copy=partial(_with_own_pool, self._client, self.sdk),
            owned=owned,
        )
        self._model = model
        url = urlsplit(str(self._client.base_url))
        self.host: Final = url.hostname or ""
        path = url.path.strip("/")
        self._address = self.host + (f":{url.port}" if url.port else "") + ("" if path in ("", "v1") else f"/{path}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity!r})"

    def with_model(self, model: str | None) -> Self:
        """The same client, asked for another model."""
        twin = copy(self)
        twin._model = model
        twin.__dict__.pop("identity", None)
        twin.__dict__.pop("provider", None)
        return twin

    @property
    def default_model(self) -> str | None:
        """The model asked for when a call names none."""
        return self._model

    @property
    def transport(self) -> Transport:
        """What calls the client, from threads and from event loops."""
        return self._transport

    @cached_property
    def identity(self) -> str:
        """Provider, address and model."""
        return f"{self.provider or 'custom'}:{self._address}/{self._model or '?'}"

    @cached_property
    def account(self) -> str:
        """Whose it is, told by the key and telling nothing about it: two accounts fail apart from each other."""
        key = getattr(self._client, "api_key", None)
        return hashlib.sha256(key.encode()).hexdigest()[:8] if isinstance(key, str) else ""

    @cached_property
    def provider(self) -> str | None:
        """The provider's name for the price table."""
        return self._provider()

    @abstractmethod
    def _provider(self) -> str | None:
        """The provider, from the client, the host and the model's name."""

    def model(self, params: Mapping[str, Any]) -> str:
        """The model asked for."""
        return str(params.get("model") or self._model or "")

    @abstractmethod
    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        """The output cap that is sent for each choice, in tokens."""

    @abstractmethod
    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        """What is billed beside the messages."""

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the model takes a schema."""
        return False

    def check(self, params: Mapping[str, Any]) -> None:
        """Refuse, before anything is reserved, what the SDK would refuse.

        Raises:
            BrixConfigurationError: A parameter that does not exist, or that must be given another way.
        """
        for name in ("messages", "model", "stream"):
            if name in (params.get("extra_body") or {}) or (name != "model" and name in params):
                raise BrixConfigurationError(_OWN_WAY[name])
        if isinstance(params.get("tools"), Iterator):
            raise BrixConfigurationError("tools must be a list: an iterator cannot be both counted and sent")
        for name in params.keys() - self._accepted if self._accepted else ():
            close_names = difflib.get_close_matches(name, self._accepted, n=1)
            hint = "if the provider knows it, give it in extra_body={...}"
            if close_names:
                hint = f"did you mean {close_names[0]}? Otherwise, {hint}"
            raise BrixConfigurationError(f"the {self.sdk} SDK takes no parameter {name!r}; {hint}")

    def call(self, request: CallRequest) -> CallResponse:
        """One blocking request."""
        raw = self._transport.call(self._sender(request, stream=False), patience(request))
        return self._response(raw, request)

    async def acall(self, request: CallRequest) -> CallResponse:
        """One request on the event loop."""
        return self._response(await self._transport.acall(self._sender(request, stream=False)), request)

    def stream(self, request: CallRequest) -> Iterator[StreamPiece]:
        """Chunks, blocking."""
        source = self._transport.stream(self._sender(request, stream=True), patience(request))
        try:
            for chunk in source:
                yield self.piece(chunk)
        finally:
            close(source)

    async def astream(self, request: CallRequest) -> AsyncIterator[StreamPiece]:
        """Chunks, on the event loop."""
        source = self._transport.astream(self._sender(request, stream=True))
        try:
            async for chunk in source:
                yield self.piece(chunk)
        finally:
            await aclose(source)

    def read_chunk(self, chunk: StreamPiece) -> str:
        """The billed text in a chunk."""
        return chunk.billed

    def pack(self, raw: Any) -> Any:
        """The SDK's answer as JSON."""
        return raw.model_dump(mode="json", exclude_unset=True)

    @abstractmethod
    def unpack(self, data: Any) -> Any:
        """The SDK's answer."""

    def pack_chunks(self, chunks: Sequence[StreamPiece]) -> list[Any]:
        """The SDK's chunks as JSON."""
        return [chunk.raw.model_dump(mode="json", exclude_unset=True) for chunk in chunks]

    def unpack_chunks(self, data: Sequence[Any]) -> Iterator[StreamPiece]:
        """The SDK's chunks, read."""
        return (self.piece(self._unpacked_chunk(chunk)) for chunk in data)

    @abstractmethod
    def _unpacked_chunk(self, data: Any) -> Any:
        """The SDK's chunk."""

    @abstractmethod
    def piece(self, chunk: Any) -> StreamPiece:
        """Read one of the SDK's chunks."""

    @abstractmethod
    def _create(self, client: Any) -> Callable[..., Any]:
        """The SDK's method that makes a request."""

    @abstractmethod
    def _arguments(self, request: CallRequest, stream: bool) -> dict[str, Any]:
        """Its arguments."""

    @abstractmethod
    def _response(self, raw: Any, request: CallRequest) -> CallResponse:
        """Read its result."""

    def _sender(self, request: CallRequest, *, stream: bool) -> Callable[[Any], Any]:
        self.check(request.params)
        arguments = self._arguments(request, stream)
        if stream:
            arguments["stream"] = True
        if "timeout" not in arguments and (bound := patience(request)) is not None:
            arguments["timeout"] = shorter(self._client.timeout, bound)
        return lambda client: self._create(client)(**arguments)

    @cached_property
    def _accepted(self) -> frozenset[str]:
        """Names of the SDK's parameters; empty when it takes any."""
        parameters = inspect.signature(self._create(self._client)).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return frozenset()
        return frozenset(parameters)


_OWN_WAY: Final = {
    "messages": "messages are the first argument of the call, not a keyword",
    "model": "the model must be given as model=, not inside extra_body, or it would be priced as another",
    "stream": "stream= is not taken here; use client.stream(messages, ...)",
}


def sent_body(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters as they reach the provider: ``extra_body`` wins in both SDKs."""
    extra = params.get("extra_body")
    return {**params, **extra} if isinstance(extra, Mapping) else params


def put(arguments: dict[str, Any], name: str, value: Any) -> None:
    """Set a parameter where it takes effect, be it in ``extra_body``; the caller's dict stays as it is."""
    extra = arguments.get("extra_body")
    if isinstance(extra, Mapping) and name in extra:
        arguments["extra_body"] = {**extra, name: value}
    else:
        arguments[name] = value


def is_cap(value: Any) -> TypeGuard[int]:
    """Whether a count was really given: SDKs mark absence by sentinels, callers by None."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_given(value: Any) -> bool:
    """Whether a parameter holds something: None and the SDKs' sentinels do not."""
    return value is not None and type(value).__name__ not in ("NotGiven", "Omit")


def patience(request: CallRequest) -> float | None:
    """Seconds after which certainly nobody waits for the provider's next bytes any more.

    The limits between chunks bound streams only: a whole answer comes when it is ready.
    """
    limits = request.limits
    if limits.call is not None:
        return limits.call + TIMEOUT_SLACK if limits.call < LONGEST_TIMEOUT else None
    if request.stream and limits.first_token is not None and limits.idle is not None:
        longest = max(limits.first_token, limits.idle)
        return longest + TIMEOUT_SLACK if longest < LONGEST_TIMEOUT else None
    return None


def shorter(own: Any, bound: float) -> Any:
    """The client's own timeout, nowhere longer than `bound`."""
    if own is None:
        return bound
    if isinstance(own, int | float):
        return min(own, bound)
    parts = {name: getattr(own, name) for name in ("connect", "read", "write", "pool")}
    return type(own)(**{name: bound if part is None else min(part, bound) for name, part in parts.items()})


def _without_retries(client: Any, sdk: str) -> Any:
    default = getattr(sys.modules.get(sdk), "DEFAULT_MAX_RETRIES", 2)
    if client.max_retries not in (0, default):
        log.warning(
            "max_retries=%s of the %s client is not used: retries are the guard's; pass max_retries=%s here",
            client.max_retries, type(client).__name__, client.max_retries,
        )  # fmt: skip
    try:
        return client.with_options(max_retries=0)
    except Exception as error:
        raise BrixConfigurationError(
            f"{type(client).__name__} cannot be copied with its retries switched off ({error}); its class "
            "must take the arguments of its base class"
        ) from error


def _with_own_pool(client: Any, sdk: str, for_portal: bool) -> Any:
    """A copy for another event loop."""
    module: Any = sys.modules[sdk]
    if type(getattr(client, "_client", None)).__name__ == "AsyncHttpxClientWrapper":
        return client.copy(http_client=module.DefaultAsyncHttpxClient())
    if not for_portal:
        return client  # a custom HTTP client is its owner's to keep on the right loop
    name = type(client).__name__
    raise BrixConfigurationError(
        f"{name} was given an http_client of its own, which is bound to the caller's event loop and cannot "
        f"serve blocking calls; wrap the synchronous {name.removeprefix('Async')} for those, or await the "
        "asynchronous methods"
    )


__all__ = [
    "CODEC",
    "TIMEOUT_SLACK",
    "SDKEndpoint",
    "StreamPiece",
    "is_cap",
    "is_given",
    "patience",
    "put",
    "sent_body",
    "shorter",
]
