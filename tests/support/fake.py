"""An endpoint for property tests: it counts what really reaches it, and does what its script says.

Used where thousands of calls are driven in virtual time; whatever concerns a real client is tested over HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brix_core.call import CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.conversation import DictCodec
from brix_core.options import parse
from brix_core.pipeline import Pipeline
from brix_core.store import MemoryStore
from brix_core.usage import Usage

CODEC = DictCodec()


@dataclass
class Sent:
    """One request as the fake provider saw it."""

    at: float
    cap: int | None
    session: str
    text: str


@dataclass
class FakeEndpoint:
    """A provider in memory.

    Attributes:
        clock: Its time.
        latency: Seconds before an answer, or before the first chunk.
        chunk_delay: Seconds between two chunks.
        behave: Called with the number of the request (from 0); an exception it returns is raised, a text it
            returns is the answer.
        usage: Reported with every answer; None reports nothing.
        report: Makes the usage from the request instead.
        write: Makes the chunks from the request instead.
        native: Whether it holds itself to a schema.
    """

    clock: Clock
    name: str = "fake"
    latency: float = 0.0
    chunk_delay: float = 0.0
    behave: Callable[[int], BaseException | str | None] = lambda number: None
    usage: Usage | None = None
    report: Callable[[CallRequest], Usage | None] | None = None
    write: Callable[[CallRequest], Sequence[str]] | None = None
    chunks: Sequence[str] = ("one ", "two ", "three")
    cut_after: int | None = None
    known_longest: int | None = None
    native: bool = False
    sent: list[Sent] = field(default_factory=list)
    in_flight: int = 0
    closed: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    provider = None
    codec = CODEC
    streams = True

    @property
    def identity(self) -> str:
        return f"fake:{self.name}"

    def model(self, params: Mapping[str, Any]) -> str:
        return str(params.get("model") or self.name)

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        return params.get("max_tokens")

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        return self.known_longest

    def choices(self, params: Mapping[str, Any]) -> int:
        return params.get("n") or 1

    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        return ()

    def structured(self, schema: Any, params: Mapping[str, Any]) -> bool:
        return self.native

    def call(self, request: CallRequest) -> CallResponse:
        number = self._arrive(request)
        try:
            if self.latency:
                self.clock.sleep(self.latency)
            return self._answer(number, request)
        finally:
            self._leave()

    async def acall(self, request: CallRequest) -> CallResponse:
        number = self._arrive(request)
        try:
            if self.latency:
                await self.clock.asleep(self.latency)
            else:
                await asyncio.sleep(0)
            return self._answer(number, request)
        finally:
            self._leave()

    def stream(self, request: CallRequest) -> Iterator[str]:
        number = self._arrive(request)
        try:
            if self.latency:
                self.clock.sleep(self.latency)
            text = self._raise(number)
            for index, chunk in enumerate(self._chunks(request) if text is None else [text]):
                if index == self.cut_after:
                    raise ConnectionResetError("the connection was cut")
                if index and self.chunk_delay:
                    self.clock.sleep(self.chunk_delay)
                yield chunk
        finally:
            self._leave()

    async def astream(self, request: CallRequest) -> AsyncIterator[str]:
        number = self._arrive(request)
        try:
            if self.latency:
                await self.clock.asleep(self.latency)
            text = self._raise(number)
            for index, chunk in enumerate(self._chunks(request) if text is None else [text]):
                if index == self.cut_after:
                    raise ConnectionResetError("the connection was cut")
                if index and self.chunk_delay:
                    await self.clock.asleep(self.chunk_delay)
                else:
                    await asyncio.sleep(0)
                yield chunk
        finally:
            self._leave()

    def read_chunk(self, chunk: str) -> str:
        return chunk

    def finish(self, chunks: Sequence[str], text: str, request: CallRequest) -> CallResponse:
        return CallResponse(
            text=text, usage=self._usage(request), model=self.model(request.params), finish_reason="stop"
        )

    def assemble(self, chunks: Sequence[str], text: str, request: CallRequest) -> CallResponse:
        return self.finish(chunks, text, request)._replace(raw=text)

    def as_chunks(self, response: CallResponse) -> Sequence[str]:
        return [response.text] if response.text else []

    def _arrive(self, request: CallRequest) -> int:
        with self._lock:
            self.in_flight += 1
            self.sent.append(
                Sent(
                    self.clock.now(),
                    request.requested_cap,
                    request.session.session_id,
                    str(request.conversation.messages[-1]["content"]),
                )
            )
            return len(self.sent) - 1

    def _usage(self, request: CallRequest) -> Usage | None:
        return self.usage if self.report is None else self.report(request)

    def _chunks(self, request: CallRequest) -> Sequence[str]:
        return self.chunks if self.write is None else self.write(request)

    def _leave(self) -> None:
        with self._lock:
            self.in_flight -= 1
            self.closed += 1

    def _raise(self, number: int) -> str | None:
        result = self.behave(number)
        if isinstance(result, BaseException):
            raise result
        return result

    def _answer(self, number: int, request: CallRequest) -> CallResponse:
        text = self._raise(number)
        text = "".join(self._chunks(request)) if text is None else text
        return CallResponse(text=text, usage=self._usage(request), model=self.model(request.params), raw=text)


def pipeline(clock: Clock, fallbacks: Sequence[Any] = (), **options: Any) -> Pipeline:
    """A pipeline with a store of its own (unless one is given)."""
    options.setdefault("store", MemoryStore())
    return Pipeline(parse({**options, "clock": clock}), fallbacks)


class Driver:
    """Calls a pipeline, sync or async, plain or streamed, in the same words."""

    def __init__(self, pipe: Pipeline, endpoint: FakeEndpoint) -> None:
        self.pipe = pipe
        self.endpoint = endpoint

    def request(
        self, prompt: str = "hello", *, stream: bool = False, session: str | None = None, **params: Any
    ) -> CallRequest:
        messages = [{"role": "user", "content": prompt}]
        return self.pipe.request(self.endpoint, messages, params, stream=stream, session_id=session)

    def call(self, prompt: str = "hello", **more: Any) -> str:
        return self.pipe.call(self.request(prompt, **more)).text

    def stream(self, prompt: str = "hello", **more: Any) -> str:
        return "".join(self.pipe.stream(self.request(prompt, stream=True, **more)))

    async def acall(self, prompt: str = "hello", **more: Any) -> str:
        return (await self.pipe.acall(self.request(prompt, **more))).text

    async def astream(self, prompt: str = "hello", **more: Any) -> str:
        return "".join([chunk async for chunk in self.pipe.astream(self.request(prompt, stream=True, **more))])


__all__ = ["Driver", "FakeEndpoint", "Sent", "pipeline"]
