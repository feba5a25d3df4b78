"""Any runnable as an endpoint of the core: what is called, timed and tried again is a whole run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import set_config_context, var_child_runnable_config

from brix_core.call import CallRequest, CallResponse
from brix_core.errors import BrixError, BrixRetrievalError, BrixTimeoutError
from brix_langchain.bills import Bill
from brix_langchain.gate import Gate
from brix_langchain.inside import BrixGuards, Inside
from brix_langchain.opaque import TEXTS, TextCodec, chunk_text, written

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

RUN: Final = "run"
"""Where the parameters of a request hold the `Run`."""


@dataclass(slots=True, eq=False)
class Run:
    """One run, as the application asked for it.

    Attributes:
        target: What is run, when it is not the endpoint's own runnable.
        input: Its input.
        config: LangChain's configuration, callbacks of the surrounding run included.
        kwargs: Further arguments.
        chunks: The input, where it comes in chunks.
        handlers: Callbacks of the guards, for what happens inside.
        repeats: Whether the guards may ask for further attempts.
        notes: What the endpoint wants to remember from one attempt to the next.
    """

    target: Runnable[Any, Any] | None
    input: Any
    config: RunnableConfig | None
    kwargs: Mapping[str, Any]
    chunks: Any = None
    handlers: Sequence[BaseCallbackHandler] = ()
    repeats: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


class RunnableEndpoint:
    """One runnable.

    Args:
        inner: The runnable.
        name: Its name; runnables of one name share a circuit breaker. Unnamed ones share nothing.
    """

    codec: TextCodec = TEXTS
    provider: str | None = None
    streams = True

    def __init__(self, inner: Runnable[Any, Any], name: str | None = None) -> None:
        self.inner = inner
        self.name = inner.get_name()
        self.identity = name or getattr(inner, "name", None) or f"{self.name}#{uuid4().hex[:8]}"

    def model(self, params: Mapping[str, Any]) -> str:
        """The runnable's name."""
        return self.name

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        """Unknown: there is any number of models inside."""
        return None

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        """Unknown."""
        return None

    def choices(self, params: Mapping[str, Any]) -> int:
        """One run has one output."""
        return 1

    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        """Nothing is sent beside the input."""
        return ()

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """A run cannot be held to a schema."""
        return False

    def call(self, request: CallRequest) -> CallResponse:
        """One run, blocking."""
        with self._attempt(request) as (run, config), set_config_context(config) as context:
            output = context.run(self._target(run).invoke, run.input, config, **run.kwargs)
        return self._response(request, output)

    async def acall(self, request: CallRequest) -> CallResponse:
        """One run on the event loop."""
        with self._attempt(request) as (run, config), set_config_context(config) as context:
            coroutine = self._target(run).ainvoke(run.input, config, **run.kwargs)
            output = await asyncio.create_task(cast(Any, coroutine), context=context)
        return self._response(request, output)

    def stream(self, request: CallRequest) -> Iterator[Any]:
        """The chunks of one run."""
        with self._attempt(request) as (run, config), set_config_context(config) as context:
            target = self._target(run)
            if run.chunks is None:
                source = context.run(target.stream, run.input, config, **run.kwargs)
            else:
                source = context.run(target.transform, iter(run.chunks), config, **run.kwargs)
            try:
                while True:
                    try:
                        chunk = context.run(next, source)
                    except StopIteration:
                        return
                    yield chunk
            finally:
                _close(source)

    async def astream(self, request: CallRequest) -> AsyncIterator[Any]:
        """The chunks of one run, on the event loop."""
        with self._attempt(request) as (run, config), set_config_context(config) as context:
            target = self._target(run)
            if run.chunks is None:
                source = context.run(target.astream, run.input, config, **run.kwargs)
            else:
                source = context.run(target.atransform, aiter(run.chunks), config, **run.kwargs)
            async with aclosing(cast(Any, source)):
                while True:
                    try:
                        chunk = await asyncio.create_task(cast(Any, anext(source)), context=context)
                    except StopAsyncIteration:
                        return
                    yield chunk

    def read_chunk(self, chunk: Any) -> str:
        """The text in a chunk."""
        return chunk_text(chunk)

    def finish(self, chunks: Sequence[Any], text: str, request: CallRequest) -> CallResponse:
        """Sum up a stream."""
        self._run_ended(request)
        return CallResponse(text=text, usage=request.call.attempts[-1].usage, model=self.name)

    def assemble(self, chunks: Sequence[Any], text: str, request: CallRequest) -> CallResponse:
        """The chunks, added up as LangChain adds them."""
        return CallResponse(text=text, model=self.name, raw=reduce(add, chunks) if chunks else None)

    def as_chunks(self, response: CallResponse) -> Sequence[Any]:
        """The output as one chunk; nothing where a stream ended without a word."""
        return () if response.raw is None else (response.raw,)

    def _target(self, run: Run) -> Runnable[Any, Any]:
        return self.inner if run.target is None else run.target

    @contextmanager
    def _attempt(self, request: CallRequest) -> Iterator[tuple[Run, RunnableConfig]]:
        """An attempt at the run, and its configuration.

        What the models inside come to is the attempt's. One that a guard inside refused before any model was asked,
        or anything looked up, is none.
        """
        run: Run = request.params[RUN]
        attempt = request.call.attempts[-1]
        bill = Bill(attempt, next((one for one in run.handlers if isinstance(one, Inside)), None))
        try:
            yield run, self._configuration(request, run, bill)
        except BrixError as error:
            made = bill.sent or isinstance(error, BrixTimeoutError | BrixRetrievalError)
            if not made and attempt.outcome is None:
                request.call.withdraw(attempt)
            raise
        finally:
            bill.sum_up()

    def _configuration(self, request: CallRequest, run: Run, bill: Bill) -> RunnableConfig:
        handlers: list[BaseCallbackHandler] = []
        limits = request.limits
        if request.stream or limits.call is not None or limits.first_token is not None or limits.idle is not None:
            handlers.append(Gate(request.call.attempts[-1]))
        config = configured(run.config, request.session.session_id, [*handlers, *run.handlers], [bill])
        if len(request.call.attempts) > 1:
            config.pop("run_id", None)
        return config

    def _response(self, request: CallRequest, output: Any) -> CallResponse:
        self._run_ended(request)
        usage = request.call.attempts[-1].usage
        return CallResponse(text=_answer(output), usage=usage, model=self.name, raw=output)

    def _run_ended(self, request: CallRequest) -> None:
        for handler in request.params[RUN].handlers:
            if isinstance(handler, Inside):
                handler.run_ended(self.name)


def configured(
    config: RunnableConfig | None,
    session_id: str,
    handlers: Sequence[BaseCallbackHandler],
    bills: Sequence[Bill] = (),
) -> RunnableConfig:
    """The configuration of a run inside: with the guards' callbacks, and of this session whatever is called in it.

    What the surrounding run passes on is filled in as LangChain does it, key by key.
    """
    around = var_child_runnable_config.get() or {}
    filled: Any = {key: value for one in (around, config or {}) for key, value in one.items() if value is not None}
    callbacks = filled.get("callbacks")
    known = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks or ()
    outer = [one for one in known if isinstance(one, BrixGuards)]
    ours = BrixGuards(
        [*(member for one in outer for member in one.beneath(handlers)), *handlers],
        [*(bill for one in outer for bill in one.bills), *bills],
    )
    if isinstance(callbacks, BaseCallbackManager):
        callbacks = callbacks.copy()
        for one in outer:
            callbacks.remove_handler(one)
        callbacks.add_handler(ours, inherit=True)
    else:
        callbacks = [*(one for one in known if one not in outer), ours]
    configurable = {**(filled.get("configurable") or {}), "session_id": session_id}
    return cast(RunnableConfig, {**filled, "callbacks": callbacks, "configurable": configurable})


def _answer(output: Any) -> str:
    """What a run came to, in text: of a state with messages, what the last one says."""
    messages = output.get("messages") if isinstance(output, Mapping) else None
    if isinstance(messages, list) and messages and isinstance(messages[-1], BaseMessage):
        output = messages[-1]
    return chunk_text(output) if isinstance(output, BaseMessage) else written(output)


def _close(source: Any) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        close()


class Replay:
    """An input that comes in chunks, to be read by one attempt after the other.

    An attempt that timed out may go on reading in its thread; the lock lets one read at a time.

    Example:
        >>> chunks = Replay(iter("ab"))
        >>> list(chunks), list(chunks)
        (['a', 'b'], ['a', 'b'])
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = iter(source)
        self._seen: list[Any] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        position = 0
        while True:
            with self._lock:
                if position == len(self._seen):
                    try:
                        self._seen.append(next(self._source))
                    except StopIteration:
                        return
                item = self._seen[position]
            position += 1
            yield item


class AsyncReplay:
    """The same on an event loop. A source that was cancelled while it was read has no more to give."""

    def __init__(self, seen: Iterable[Any], source: AsyncIterator[Any]) -> None:
        self._source = source
        self._seen = list(seen)
        self._broken: BaseException | None = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        position = 0
        while True:
            if position == len(self._seen):
                if self._broken is not None:
                    raise RuntimeError("the input broke off and cannot be read again") from self._broken
                try:
                    self._seen.append(await anext(self._source))
                except StopAsyncIteration:
                    return
                except BaseException as error:
                    self._broken = error
                    raise
            yield self._seen[position]
            position += 1


__all__ = ["RUN", "AsyncReplay", "Replay", "Run", "RunnableEndpoint", "configured"]
