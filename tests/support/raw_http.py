"""A server that says exactly what a test wants, bytes for bytes; and the four ways to call an endpoint."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from brix_core.call import CallRequest
from brix_core.options import parse
from brix_core.pipeline import Pipeline
from brix_core.store import MemoryStore

KINDS = ("call", "acall", "stream", "astream")
"""The ways to call: blocking or not, plain or streamed."""

USER = [{"role": "user", "content": "Hi"}]


class RawServer:
    """Answers each request with the next of some byte strings, and closes the connection."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.seen: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection:
                self.seen.append(_request(connection))
                connection.sendall(answer)

    def close(self) -> None:
        self._listener.close()


@contextmanager
def raw_server(*answers: bytes) -> Iterator[RawServer]:
    with closing(RawServer(*answers)) as server:
        yield server


def http(body: bytes | str, status: str = "200 OK", kind: str = "application/json", *headers: str) -> bytes:
    """An HTTP response of its own length."""
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(content)}", "connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + content


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        more = connection.recv(65_536)
        body += more
        data += more
    return data


def guards(**options: Any) -> Pipeline:
    return Pipeline(parse({"store": MemoryStore(), **options}))


def begun(pipe: Pipeline, endpoint: Any, kind: str = "call", messages: Any = USER, **params: Any) -> CallRequest:
    return pipe.request(endpoint, messages, params, stream="stream" in kind)


async def drive(pipe: Pipeline, request: CallRequest, kind: str) -> str:
    """Call it; gives the visible text."""
    if kind == "call":
        return (await asyncio.to_thread(pipe.call, request)).text
    if kind == "acall":
        return (await pipe.acall(request)).text
    if kind == "stream":
        return await asyncio.to_thread(lambda: "".join(piece.text for piece in pipe.stream(request)))
    return "".join([piece.text async for piece in pipe.astream(request)])


async def ask(endpoint: Any, kind: str, messages: Any = USER, options: Any = None, **params: Any) -> str:
    """One call behind guards."""
    pipe = guards(**(options or {}))
    return await drive(pipe, begun(pipe, endpoint, kind, messages, **params), kind)


__all__ = ["KINDS", "USER", "RawServer", "ask", "begun", "drive", "guards", "http", "raw_server"]
