"""Streams whose end is held back until it is known that it may be shown.

A hook that has a method ``held_back() -> int`` says how many characters at the end of the text so far must not reach
the consumer yet. Chunks are delivered whole and in order: one whose text is held back in part waits, and so does all
that comes after it, be it without text. At the end of the stream every hook's ``finish()``, where it has one, is called
before the rest is delivered.

* A hook raises, be it in ``finish()``: nothing of what waits is delivered, to nobody.
* The provider fails, or a time limit is reached, in mid-stream: what waits is dropped, since nobody can tell how it
  would have gone on. As long as nothing has been delivered the call can still be retried.
* A time limit is reached and a partial answer is wanted: it ends there, like a stream that ended by itself.
* Traces keep, and errors tell, of the text only what was delivered: what is stopped is stopped for logs too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from brix_core.call import PARTIAL_CHARACTERS, CallRequest, ChunkHook
from brix_core.clock import Clock
from brix_core.drivers.attempts import Tap


class _Waiting(NamedTuple):
    """A chunk that has not been delivered; `end` is where its text ends in all text of the stream."""

    chunk: Any
    text: str
    end: int


class HoldingTap(Tap):
    """Delivers chunks once no hook holds back any of their text.

    Args:
        request: See `Tap`.
        clock: See `Tap`.
        hooks: See `Tap`.
        held_back: The methods of those hooks that have one.
    """

    __slots__ = ("_arrived", "_delivered", "_held_back", "_safe", "_stopped", "_waiting")

    def __init__(
        self,
        request: CallRequest,
        clock: Clock,
        hooks: Sequence[ChunkHook],
        held_back: Sequence[Callable[[], int]],
    ) -> None:
        super().__init__(request, clock, hooks)
        self._held_back = held_back
        self._waiting: deque[_Waiting] = deque()
        self._arrived = 0
        self._safe = 0
        self._delivered = 0
        self._stopped = False

    def take(self, chunk: Any) -> Sequence[Any]:
        """See `Tap.take`."""
        first = not self.texts
        text = self.collect(chunk)
        call = self._request.call
        if not text and call.streamed and not self._waiting:
            return (chunk,)
        self._waiting.append(_Waiting(chunk, text, self._arrived))
        if not text:
            return ()
        if first:
            call.first_chunk = self._clock.now()
        whole = sum(1 for _ in takewhile(self._is_safe, self._waiting))
        if not whole or not (call.streamed or self._waiting[whole - 1].end):
            return ()
        return self._deliver(whole)

    def collect(self, chunk: Any) -> str:
        """See `Tap.collect`."""
        try:
            text = super().collect(chunk)
        except BaseException:
            self._stopped = True
            raise
        if text:
            self._arrived += len(text)
            self._safe = max(0, self._arrived - max(held_back() for held_back in self._held_back))
        return text

    def end(self) -> None:
        """See `Tap.end`."""
        try:
            super().end()
        except BaseException:
            self._stopped = True
            raise
        self._safe = self._arrived

    def rest(self) -> Sequence[Any]:
        """See `Tap.rest`."""
        if self._stopped:
            return ()
        self.end()
        return self._deliver(len(self._waiting))

    @property
    def shown(self) -> str:
        """See `Tap.shown`. Of a stream, what was delivered."""
        return self.text[: self._delivered if self._request.stream else self._safe]

    def _is_safe(self, waiting: _Waiting) -> bool:
        return waiting.end <= self._safe

    def _deliver(self, count: int) -> Sequence[Any]:
        """The first of those that wait."""
        call = self._request.call
        delivered = [self._waiting.popleft() for _ in range(count)]
        for waiting in delivered:
            if waiting.text and self._kept < PARTIAL_CHARACTERS:
                self._kept += len(waiting.text)
                call.parts.append(waiting.text)
        if delivered:
            call.streamed = True
            self._delivered = delivered[-1].end
        return [waiting.chunk for waiting in delivered]


def tapped(request: CallRequest, clock: Clock) -> Tap:
    """What one attempt's chunks pass through, with hooks that have seen nothing yet."""
    hooks = [hook.anew() if hasattr(hook, "anew") else hook for hook in reversed(request.hooks)]
    held_back = [hook.held_back for hook in hooks if hasattr(hook, "held_back")]
    return HoldingTap(request, clock, hooks, held_back) if held_back else Tap(request, clock, hooks)


def holds_back(request: CallRequest) -> bool:
    """Whether chunks of the request may have to wait: nobody but the driver may show them to anybody, then."""
    return any(hasattr(hook, "held_back") for hook in request.hooks)


__all__ = ["HoldingTap", "holds_back", "tapped"]
