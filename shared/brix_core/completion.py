"""What a guarded client gives back: an answer, or a stream of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

from brix_core.call import CACHED, CallRequest, CallResponse, LogicalCall, ToolCall
from brix_core.closing import Closing
from brix_core.errors import BrixConfigurationError, BrixError
from brix_core.guards.schema import PARSED
from brix_core.pipeline import Pipeline
from brix_core.usage import Usage


class Completion(str):
    """An answer: its text, and beside it what is known about it.

    It is a `str`: print it, split it, compare it. With ``n`` > 1 it is the first choice; all of them, and
    whatever else the SDK gave, are in `raw`.

    Args:
        text: The answer.
        tool_calls: Tool calls the model asked for.
        usage: Tokens as reported; None when the provider said nothing.
        finish_reason: The provider's own word; ``"timeout"`` for a partial answer.
        model: The model that answered.
        raw: The SDK's own response.
        run_id: UUID4 of the call, as in its trace entry.
        partial: True when a time limit cut the answer short.
        cost_usd: What the whole call was charged, retries included, USD; None when nothing was metered, 0 for an answer
            out of a cache.
        parsed: The valid instance, where a schema was asked for and the model did not ask for tools.

    Example:
        >>> answer = Completion("Paris", finish_reason="stop")
        >>> answer == "Paris", answer.upper(), answer.finish_reason
        (True, 'PARIS', 'stop')
    """

    tool_calls: tuple[ToolCall, ...]
    usage: Usage | None
    finish_reason: str | None
    model: str
    raw: Any
    run_id: str
    partial: bool
    cost_usd: float | None
    parsed: Any

    def __new__(
        cls,
        text: str,
        *,
        tool_calls: tuple[ToolCall, ...] = (),
        usage: Usage | None = None,
        finish_reason: str | None = None,
        model: str = "",
        raw: Any = None,
        run_id: str = "",
        partial: bool = False,
        cost_usd: float | None = None,
        parsed: Any = None,
    ) -> Self:
        """Make one; see the class."""
        self = super().__new__(cls, text)
        self.tool_calls = tool_calls
        self.usage = usage
        self.finish_reason = finish_reason
        self.model = model
        self.raw = raw
        self.run_id = run_id
        self.partial = partial
        self.cost_usd = cost_usd
        self.parsed = parsed
        return self

    @classmethod
    def of(cls, response: CallResponse, call: LogicalCall) -> Self:
        """The answer to a call."""
        costs = [attempt.cost_nano for attempt in call.attempts if attempt.cost_nano is not None]
        return cls(
            _first_choice(response),
            tool_calls=response.tool_calls,
            usage=response.usage,
            finish_reason=response.finish_reason,
            model=response.model,
            raw=response.raw,
            run_id=call.run_id,
            partial=response.partial,
            cost_usd=0.0 if call.metadata.get(CACHED) else sum(costs) / 1e9 if costs else None,
            parsed=call.metadata.get(PARSED),
        )


def _first_choice(response: CallResponse) -> str:
    choices = getattr(response.raw, "choices", None)
    return response.text if not choices or len(choices) == 1 else choices[0].message.content or ""


class CompletionStream(Closing):
    """An answer as it comes: iterate with ``for`` or ``async for``, in a ``with`` block or without.

    Gives the text of the answer piece by piece; `result` has the whole, with tool calls and usage, once the
    stream has ended. Nothing is sent before the first piece is asked for. Leaving early: close it, or use
    ``with``.

    Args:
        pipeline: The guards.
        begin: Makes the request, when the first piece is asked for.
    """

    def __init__(self, pipeline: Pipeline, begin: Callable[[], CallRequest]) -> None:
        self._pipeline = pipeline
        self._begin = begin
        self._request: CallRequest | None = None
        self._pieces: list[Any] = []
        self._sync: Iterator[Any] | None = None
        self._async: AsyncIterator[Any] | None = None
        self._state = "not begun"

    @property
    def result(self) -> Completion:
        """The whole answer.

        Raises:
            BrixError: The stream has not ended yet, failed, or was closed before its end.
        """
        request = self._request
        if self._state != "ended" or request is None:
            raise BrixError(f"a stream has a result once it was read to its end; this one is {self._state}")
        endpoint = self._pieces[-1].endpoint if self._pieces else request.endpoint
        text = "".join(piece.billed for piece in self._pieces)
        response = endpoint.assemble(self._pieces, text, request)
        attempts = request.call.attempts
        if attempts and attempts[-1].outcome == "timed_out":
            response = response._replace(partial=True, finish_reason="timeout")
        return Completion.of(response, request.call)

    @property
    def is_parsed(self) -> bool:
        """Whether the stream has ended with a valid instance of its schema."""
        return self._state == "ended" and self._request is not None and PARSED in self._request.call.metadata

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        source = self._sync
        if source is None:
            if self._is_over():
                raise StopIteration
            source = self._sync = self._pipeline.stream(self._start())
        try:
            while True:
                piece = next(source)
                self._pieces.append(piece)
                if piece.text:
                    return str(piece.text)
        except StopIteration:
            self._end("ended")
            raise
        except BaseException:
            self._end("failed")
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        source = self._async
        if source is None:
            if self._is_over():
                raise StopAsyncIteration
            source = self._async = self._pipeline.astream(self._start())
        try:
            while True:
                piece = await anext(source)
                self._pieces.append(piece)
                if piece.text:
                    return str(piece.text)
        except StopAsyncIteration:
            self._end("ended")
            raise
        except BaseException:
            self._end("failed")
            raise

    def close(self) -> None:
        """Stop reading: the provider's stream is closed and what the call held is freed.

        Raises:
            BrixConfigurationError: It is being read with ``async for``: await `aclose`.
        """
        if self._async is not None:
            if self._state == "under way":
                raise BrixConfigurationError("this stream is read with `async for`; await stream.aclose()")
            return
        self._end("closed")
        if self._sync is not None:
            self._sync.close()  # type: ignore[attr-defined]

    async def aclose(self) -> None:
        """Stop reading, as `close`, from a coroutine."""
        if self._async is None:
            self.close()
            return
        self._end("closed")
        await self._async.aclose()  # type: ignore[attr-defined]

    def _is_over(self) -> bool:
        """Whether there is nothing to read; refuses to be read in two ways at once."""
        if self._state == "under way":
            raise BrixConfigurationError("a stream is read with `for` or with `async for`, not with both")
        return self._state != "not begun"

    def _start(self) -> CallRequest:
        self._request = self._begin()
        self._state = "under way"
        return self._request

    def _end(self, state: str) -> None:
        if self._state in ("not begun", "under way"):
            self._state = state


__all__ = ["Completion", "CompletionStream"]
