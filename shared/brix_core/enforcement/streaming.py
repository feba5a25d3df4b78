"""An enforced answer as it comes: previews of the value, and last the output."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from typing import Any, Final, Self, cast

from brix_core.call import PARSED, CallResponse
from brix_core.closing import Closing
from brix_core.enforcement.outputs import EnforcedOutput
from brix_core.enforcement.verdicts import Asked
from brix_core.errors import BrixConfigurationError, BrixError
from brix_core.pipeline import Pipeline
from brix_core.structured.partial_json import PartialJSON

_NOTHING: Final = object()


class EnforcedStream(Closing):
    """Iterate with ``async for`` or ``for``, in a ``with`` block or without; see `EnforcementEngine.enforce_stream`.

    Gives the value as it grows, whenever it has changed: dicts and lists, a preview that is not validated. The last
    item is the `EnforcedOutput`, there whatever happened, also as `result`. Nothing is sent before the first item is
    asked for. Leaving early: close it, or use ``with``; what has not come is not paid for.

    Args:
        pipeline: The guards.
        begin: Begins the call.
        text_of: The visible text of a chunk.
        failure: Gives back an error that is a failure, and raises any other.
        hand_over: Told a valid output; may block.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        begin: Callable[[], Asked],
        text_of: Callable[[Any], str],
        failure: Callable[[Exception], Exception],
        hand_over: Callable[[Asked, EnforcedOutput], None] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._begin = begin
        self._text_of = text_of
        self._failure = failure
        self._hand_over = hand_over
        self._growing = PartialJSON()
        self._last: Any = _NOTHING
        self._texts: list[str] = []
        self._result: EnforcedOutput | None = None
        self._sync: Generator[Any, None, None] | None = None
        self._async: AsyncGenerator[Any, None] | None = None

    @property
    def result(self) -> EnforcedOutput:
        """The output.

        Raises:
            BrixError: The stream has not been read to its end.
        """
        if self._result is None:
            raise BrixError("a stream has a result once it was read to its end")
        return self._result

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._async is not None:
            raise BrixConfigurationError("a stream is read with `for` or with `async for`, not with both")
        if self._sync is None:
            self._sync = self._read()
        return next(self._sync)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._sync is not None:
            raise BrixConfigurationError("a stream is read with `for` or with `async for`, not with both")
        if self._async is None:
            self._async = self._aread()
        return await anext(self._async)

    def close(self) -> None:
        """Stop reading: the provider's stream is closed and what the call held is freed.

        Raises:
            BrixConfigurationError: It is being read with ``async for``: await `aclose`.
        """
        if self._async is not None and self._result is None:
            raise BrixConfigurationError("this stream is read with `async for`; await stream.aclose()")
        if self._sync is None:
            self._sync = self._read()  # closed before it has begun: it stays empty
        self._sync.close()

    async def aclose(self) -> None:
        """Stop reading, as `close`, from a coroutine."""
        if self._async is None:
            self.close()
        else:
            await self._async.aclose()

    def _read(self) -> Generator[Any, None, None]:
        asked = self._begin()
        try:
            with closing(cast(Any, self._pipeline.stream(asked.request))) as chunks:
                for chunk in chunks:
                    if self._has_changed(chunk):
                        yield self._last
            output = asked.answered(self._response(asked))
        except Exception as error:
            output = asked.failed(self._failure(error))
        if self._hand_over is not None:
            self._hand_over(asked, output)
        self._result = output
        yield output

    async def _aread(self) -> AsyncGenerator[Any, None]:
        asked = self._begin()
        try:
            async with aclosing(cast(Any, self._pipeline.astream(asked.request))) as chunks:
                async for chunk in chunks:
                    if self._has_changed(chunk):
                        yield self._last
            output = asked.answered(self._response(asked))
        except Exception as error:
            output = asked.failed(self._failure(error))
        if self._hand_over is not None:
            await asyncio.to_thread(self._hand_over, asked, output)
        self._result = output
        yield output

    def _has_changed(self, chunk: Any) -> bool:
        """Add a chunk; whether there is a new value to show."""
        text = self._text_of(chunk)
        if not text:
            return False
        self._texts.append(text)
        value = self._growing.feed(text)
        if value is None or value is self._last or value == self._last:
            return False
        self._last = value
        return True

    def _response(self, asked: Asked) -> CallResponse:
        """What has come, in short: the response of a stream reaches no consumer."""
        call = asked.request.call
        attempt = call.attempts[-1] if call.attempts else None
        return CallResponse(
            text="".join(self._texts),
            usage=None if attempt is None else attempt.usage,
            model=asked.request.model if attempt is None else attempt.model,
            parsed=call.metadata.get(PARSED),
        )


__all__ = ["EnforcedStream"]
