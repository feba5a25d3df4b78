"""A provider's REST API over httpx, called from threads and from event loops alike.

One blocking client serves all threads; each event loop has an asynchronous client of its own, whose connections are
closed with the loop. Nothing is sent twice, no redirect is followed, and no exception holds the request's headers,
in which the key is.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from brix_core.checks import positive
from brix_core.endpoints.http_errors import ProviderError, UnreadableAnswerError, shortened
from brix_core.endpoints.http_streams import AsyncEventStream, EventStream, Framing
from brix_core.endpoints.sdk import shorter
from brix_core.endpoints.transport import Transport
from brix_core.errors import BrixConfigurationError

DEFAULT_TIMEOUT: Final = 600.0
"""Seconds to wait for the next bytes of an answer, as in the SDKs of OpenAI and Anthropic."""

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to wait for a connection."""

JsonObject = dict[str, Any]
Explain = Callable[[int | None, Any], tuple[str, Mapping[str, str]]]
"""Reads an error's body, given its status: what it says, and headers that it stands for."""


class _Call(NamedTuple):
    method: str
    path: str
    content: bytes | None
    patience: float | None


class HTTPClient:
    """The JSON requests of one provider.

    Args:
        base_url: Where its paths begin; holds no credentials and no query.
        headers: Sent with every request.
        secret: What no error may show: the key.
        timeout: Longest wait for the next bytes, seconds; of own clients.
        client: An ``httpx.Client`` or ``httpx.AsyncClient`` to use instead of own ones; it stays its owner's, and its
            time limits hold.
        options: Further arguments of httpx's clients, such as ``proxy`` and ``verify``.
        explain: Reads the bodies of errors.

    Raises:
        BrixConfigurationError: httpx is not installed, or an argument cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str],
        explain: Explain,
        secret: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        client: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._httpx = _httpx()
        self._base_url, self.address = _checked_url(base_url)
        self._headers = {**headers, "content-type": "application/json"}
        self._secret = secret
        self._explain = explain
        positive("timeout", timeout)
        self._timeout = self._httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT))
        self._options = dict(options or {})
        self._lock = threading.Lock()
        self._blocking: Transport | None = None
        self._async: Transport | None = None
        self._given = client is not None
        self._closed = False
        if self._given:
            self._take(client)
        else:
            self._made(self._httpx.Client).close()  # unusable options are told now

    def request(self, method: str, path: str, body: JsonObject | None = None, patience: float | None = None) -> Any:
        """One request: the parsed body of its answer.

        Raises:
            ProviderError: The provider answered with an error, or with something unreadable.
            Exception: What httpx raised.
        """
        return self._threads().call(self._asking(self._call(method, path, body, patience)), patience)

    async def arequest(
        self, method: str, path: str, body: JsonObject | None = None, patience: float | None = None
    ) -> Any:
        """As `request`, on the event loop."""
        return await self._loops().acall(self._asking(self._call(method, path, body, patience)))

    def stream(self, path: str, body: JsonObject, framing: Framing, patience: float | None = None) -> Iterator[Any]:
        """The events of a streamed answer, parsed. Raises as `request`."""
        return self._threads().stream(self._opening(self._call("POST", path, body, patience), framing), patience)

    def astream(
        self, path: str, body: JsonObject, framing: Framing, patience: float | None = None
    ) -> AsyncIterator[Any]:
        """As `stream`, on the event loop."""
        return self._loops().astream(self._opening(self._call("POST", path, body, patience), framing))

    def close(self) -> None:
        """Close all connections but those of a client that was given; no call can be made afterwards."""
        self._closed = not self._given
        for transport in (self._blocking, self._async):
            if transport is not None:
                transport.close()

    async def aclose(self) -> None:
        """As `close`; those of this event loop are closed when it returns."""
        self._closed = not self._given
        for transport in (self._blocking, self._async):
            if transport is not None:
                await transport.aclose()

    def _call(self, method: str, path: str, body: JsonObject | None, patience: float | None) -> _Call:
        try:
            content = None if body is None else json.dumps(body, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise BrixConfigurationError(f"a parameter of the call cannot be sent as JSON: {error}") from error
        return _Call(method, path, content, patience)

    def _asking(self, call: _Call) -> Callable[[Any], Any]:
        async def asked(client: Any) -> Any:
            with _without_headers(self._httpx):
                response = await client.send(self._built(client, call), follow_redirects=False)
            return self._answer(response)

        def ask(client: Any) -> Any:
            if isinstance(client, self._httpx.AsyncClient):
                return asked(client)
            with _without_headers(self._httpx):
                response = client.send(self._built(client, call), follow_redirects=False)
            return self._answer(response)

        return ask

    def _opening(self, call: _Call, framing: Framing) -> Callable[[Any], Any]:
        async def opened(client: Any) -> Any:
            with _without_headers(self._httpx):
                response = await client.send(self._built(client, call), stream=True, follow_redirects=False)
                if response.status_code != 200:
                    await response.aread()
            return AsyncEventStream(self._checked(response), framing, self._event, self._guarded)

        def open_(client: Any) -> Any:
            if isinstance(client, self._httpx.AsyncClient):
                return opened(client)
            with _without_headers(self._httpx):
                response = client.send(self._built(client, call), stream=True, follow_redirects=False)
                if response.status_code != 200:
                    response.read()
            return EventStream(self._checked(response), framing, self._event, self._guarded)

        return open_

    def _guarded(self) -> Any:
        return _without_headers(self._httpx)

    def _built(self, client: Any, call: _Call) -> Any:
        url = f"{self._base_url}{call.path}"
        own = client.timeout if self._given else self._timeout
        timeout = own if call.patience is None else shorter(own, call.patience)
        return client.build_request(call.method, url, content=call.content, headers=self._headers, timeout=timeout)

    def _checked(self, response: Any) -> Any:
        """The response, unless it is an error.

        Raises:
            ProviderError: It is one.
        """
        status = response.status_code
        if status == 200:
            return response
        text = self._hidden(response.text)
        try:
            body = json.loads(text)
        except ValueError:
            raise ProviderError(
                f"{self.address} answered {status}: {shortened(text)}", status, response.headers, text
            ) from None
        raise self._error(status, body, response.headers)

    def _answer(self, response: Any) -> Any:
        return self._event(self._checked(response).content)

    def _event(self, payload: bytes) -> JsonObject:
        """One event of a stream, or a whole answer.

        Raises:
            ProviderError: It tells of an error, whatever the status line said.
        """
        event = self._object(payload)
        if "error" in event:
            error = event["error"]
            code = error.get("code") if isinstance(error, Mapping) else None
            # Inside a stream, the status line was sent long ago. Where the error names none, the model has failed.
            status = code if isinstance(code, int) and 400 <= code <= 599 else 500
            raise self._error(status, json.loads(self._hidden(json.dumps(event))), {})
        return event

    def _object(self, content: bytes) -> JsonObject:
        try:
            found = json.loads(content)
        except ValueError:  # not raised from: it holds the text, in which the key may be
            found = None
        if isinstance(found, dict):
            return found
        text = self._hidden(content.decode(errors="replace"))
        raise UnreadableAnswerError(f"{self.address} answered with no JSON object: {shortened(text)}", body=text)

    def _error(self, status: int, body: Any, headers: Mapping[str, str]) -> ProviderError:
        text, more = self._explain(status, body)
        return ProviderError(f"{self.address} answered {status}: {shortened(text)}", status, {**more, **headers}, body)

    def _hidden(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text

    def _take(self, client: Any) -> None:
        httpx = self._httpx
        if not isinstance(client, httpx.Client | httpx.AsyncClient):
            raise BrixConfigurationError(
                f"client must be an httpx.Client or httpx.AsyncClient, got {type(client).__name__}"
            )
        if self._options:
            raise BrixConfigurationError(f"{', '.join(self._options)}: give them to the client that you pass")
        is_async = isinstance(client, httpx.AsyncClient)
        self._blocking = self._async = Transport(
            client, is_async=is_async, copy=_not_for_threads(client) if is_async else None
        )

    def _require_open(self) -> None:
        if self._closed:
            raise BrixConfigurationError(f"the connections to {self.address} have been closed; make another")

    def _threads(self) -> Transport:
        with self._lock:
            self._require_open()
            if self._blocking is None:
                self._blocking = Transport(self._made(self._httpx.Client), is_async=False, owned=True)
            return self._blocking

    def _loops(self) -> Transport:
        with self._lock:
            self._require_open()
            if self._async is None:
                make = self._httpx.AsyncClient
                self._async = Transport(
                    self._made(make), is_async=True, copy=lambda for_portal: self._made(make), owned=True
                )
            return self._async

    def _made(self, kind: Callable[..., Any]) -> Any:
        verify = {} if "verify" in self._options else {"verify": _ssl_context()}
        try:
            return kind(**{"timeout": self._timeout, **verify, **self._options})
        except (TypeError, ValueError) as error:
            raise BrixConfigurationError(f"an option of the HTTP client cannot be used: {error}") from error


@contextmanager
def _without_headers(httpx: Any) -> Generator[None]:
    """Failures of the connection tell of the request's address, and nothing of its headers."""
    try:
        yield
    except httpx.RequestError as error:
        with suppress(RuntimeError):  # it may not know its request
            error.request = httpx.Request(error.request.method, error.request.url)
        raise


def _not_for_threads(client: Any) -> Callable[[bool], Any]:
    def same(for_portal: bool) -> Any:
        if not for_portal:
            return client  # its owner's to keep on the right loop
        raise BrixConfigurationError(
            "an httpx.AsyncClient is bound to its event loop and cannot serve blocking calls; give an httpx.Client, "
            "or none at all, for those"
        )

    return same


def checked_key(name: str, key: str) -> str:
    """The key, if it can be sent in a header; the error does not show it.

    Raises:
        BrixConfigurationError: It is empty, or holds a character that no header takes.

    Example:
        >>> checked_key("api_key", "abc")
        'abc'
    """
    if not isinstance(key, str) or not key:
        raise BrixConfigurationError(f"{name} must be a non-empty str, got {type(key).__name__} of length 0")
    bad = next((place for place, character in enumerate(key) if not "!" <= character <= "~"), None)
    if bad is not None:
        raise BrixConfigurationError(
            f"{name} holds a character at position {bad} of {len(key)} that no HTTP header takes (a line feed or a "
            "space, perhaps); give it stripped"
        )
    return key


def _checked_url(url: str) -> tuple[str, str]:
    """The URL without a final slash, and its address for people."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except (ValueError, AttributeError) as error:
        raise BrixConfigurationError(f"base_url must be an http:// or https:// URL, got {url!r}: {error}") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BrixConfigurationError(
            "base_url must hold no credentials, query or fragment; keys travel in headers: api_key=..., headers={...}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BrixConfigurationError(f"base_url must be an http:// or https:// URL, got {url!r}")
    host = parts.hostname + (f":{port}" if port else "")
    return url.rstrip("/"), host


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise BrixConfigurationError(
            'Gemini and Ollama are called through httpx, which is not installed: pip install "brix-guards[http]"'
        ) from error
    return httpx


@lru_cache(maxsize=1)
def _ssl_context() -> Any:
    """One for all clients: reading the certificates takes 20 ms."""
    return _httpx().create_ssl_context()


__all__ = ["CONNECT_TIMEOUT", "DEFAULT_TIMEOUT", "HTTPClient", "JsonObject", "checked_key"]
