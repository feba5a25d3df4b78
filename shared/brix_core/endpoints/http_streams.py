r"""Streamed bodies, framed by lines: server-sent events and newline-delimited JSON.

Lines end at a line feed and nowhere else. (httpx's own lines end at U+2028 and its like too, which JSON texts may
hold as they are.)

Sources: WHATWG HTML, "Server-sent events", 9.2.6; github.com/ndjson/ndjson-spec.

Example:
    >>> framing = ServerSentEvents()
    >>> framing.feed(b'data: {"a":'), framing.feed(b' 1}\r\n\r\ndata: 2\n'), framing.end()
    ([], [b'{"a": 1}'], [b'2'])
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self


class Framing(Protocol):
    """Cuts a body into payloads."""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are complete with these bytes."""
        ...

    def end(self) -> list[bytes]:
        """What was left when the body ended."""
        ...


class JsonLines:
    r"""Newline-delimited JSON: each line is a payload.

    Example:
        >>> framing = JsonLines()
        >>> framing.feed(b'{"a": 1}\n\n{"b"'), framing.feed(b': 2}'), framing.end()
        ([b'{"a": 1}'], [], [b'{"b": 2}'])
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def lines(self, data: bytes) -> list[bytes]:
        """The lines that are complete, blank ones included."""
        head, *tail = data.split(b"\n")
        if not tail:
            self._parts.append(data)
            return []
        first = b"".join([*self._parts, head])
        self._parts = [tail.pop()]
        return [line.removesuffix(b"\r") for line in (first, *tail)]

    def feed(self, data: bytes) -> list[bytes]:
        """See `Framing`."""
        return [line for line in self.lines(data) if line.strip()]

    def end(self) -> list[bytes]:
        """See `Framing`."""
        rest = b"".join(self._parts)
        self._parts = []
        return [rest] if rest.strip() else []


class ServerSentEvents:
    """Server-sent events: the payload is the ``data`` of each event."""

    def __init__(self) -> None:
        self._lines = JsonLines()
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """See `Framing`."""
        return [payload for line in self._lines.lines(data) for payload in self._read(line)]

    def end(self) -> list[bytes]:
        """See `Framing`."""
        for line in self._lines.end():
            self._read(line)
        return self._read(b"")

    def _read(self, line: bytes) -> list[bytes]:
        if not line:
            payload, self._data = b"\n".join(self._data), []
            return [payload] if payload.strip() else []
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return []


class EventStream:
    """The events of a streamed response, read in the thread that asks.

    Args:
        response: httpx's response, its body not yet read.
        framing: How the body is cut.
        read: Makes an event of a payload.
        guarded: What surrounds each read of the connection.
    """

    def __init__(
        self,
        response: Any,
        framing: Framing,
        read: Callable[[bytes], Any],
        guarded: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._response = response
        self._bytes: Iterator[bytes] = response.iter_bytes()
        self._framing = framing
        self._read = read
        self._guarded = guarded
        self._ready: deque[bytes] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while not self._ready:
            with self._guarded():
                data = next(self._bytes, None)
            self._ready += self._framing.end() if data is None else self._framing.feed(data)
            if data is None and not self._ready:
                raise StopIteration
        return self._read(self._ready.popleft())

    def close(self) -> None:
        """Close the connection, unless everything was read."""
        self._response.close()


class AsyncEventStream:
    """As `EventStream`, on the event loop."""

    def __init__(
        self,
        response: Any,
        framing: Framing,
        read: Callable[[bytes], Any],
        guarded: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._response = response
        self._bytes: AsyncIterator[bytes] = response.aiter_bytes()
        self._framing = framing
        self._read = read
        self._guarded = guarded
        self._ready: deque[bytes] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._ready:
            with self._guarded():
                data = await anext(self._bytes, None)
            self._ready += self._framing.end() if data is None else self._framing.feed(data)
            if data is None and not self._ready:
                raise StopAsyncIteration
        return self._read(self._ready.popleft())

    async def aclose(self) -> None:
        """Close the connection, unless everything was read."""
        await self._response.aclose()


__all__ = ["AsyncEventStream", "EventStream", "Framing", "JsonLines", "ServerSentEvents"]
