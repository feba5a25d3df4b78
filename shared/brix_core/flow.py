"""How guards are written, and how they are put in order.

A guard is a plain generator that *yields effects* and never awaits, sleeps or does I/O::

    class RetryGuard:
        name = "retry"

        def flow(self, request, proceed):
            while True:
                try:
                    return (yield from proceed(request))
                except Exception as error:
                    delay = self._delay_or_raise(error)
                yield Sleep(delay)

A driver (`brix_core.drivers`) performs the effects, in this thread, on an event loop, or around a
stream. Failures are thrown into the generator, results are sent; ``finally`` always closes it.

Three rules: catch `Exception`, never `BaseException`, unless you re-raise it; yield nothing while
being closed, so releases in ``finally`` are plain synchronous calls; hold no context-variable token
and no lock across a ``yield``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from brix_core.call import CallRequest, CallResponse
from brix_core.clock import Wakeup
from brix_core.errors import BrixConfigurationError

if TYPE_CHECKING:
    from brix_core.retrieval.results import RetrievalProvider


class ModelCall(NamedTuple):
    """Send the request to its endpoint; the driver answers with a `CallResponse`."""

    request: CallRequest


class Sleep(NamedTuple):
    """Wait `seconds`, or until `wakeup` is set. Answered with None."""

    seconds: float
    wakeup: Wakeup | None = None


class StoreOp(NamedTuple):
    """Run an operation of a shared-state store, which may block. Answered with its result."""

    operation: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    blocking: bool = False


class Run(NamedTuple):
    """Run a heavy computation, off the event loop where there is one. Answered with its result."""

    function: Callable[[], Any]


class Gather(NamedTuple):
    """Drive flows side by side. Answered with what each came to, in order: its `CallResponse`, or its exception."""

    flows: Sequence[Flow]


class Retrieve(NamedTuple):
    """Ask a retrieval provider. Answered with its `RetrievalResult`; raises TimeoutError after so many seconds."""

    provider: RetrievalProvider
    query: str
    seconds: float | None = None


Effect = ModelCall | Sleep | StoreOp | Run | Gather | Retrieve
Flow = Generator[Effect, Any, CallResponse]
Proceed = Callable[[CallRequest], Flow]


class Guard(Protocol):
    """One failure mode, guarded. Shared by all calls of a pipeline: it keeps no state of a call."""

    @property
    def name(self) -> str:
        """The guard's name; also its place in `ORDER`."""
        ...

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one request; reach the model only through ``yield from proceed(request)``."""
        ...


CONVERSATION_RING: Final = ("observability", "replay", "recording", "cache", "regulated", "loop", "schema", "context")
"""Guards that decide what to ask and what to accept. Outermost first."""

CALL_RING: Final = (
    "session_timeout",
    "failover",
    "retry",
    "circuit_breaker",
    "budget",
    "rate_limit",
    "circuit_gate",
    "timeout",
)
"""Guards that make one model call paid for, paced and reliable. Whatever needs another model call
re-enters here, so that nothing escapes the meter."""

ORDER: Final = CONVERSATION_RING + CALL_RING


def send(request: CallRequest) -> Flow:
    """The innermost layer: the model itself."""
    response: CallResponse = yield ModelCall(request)
    return response


def in_order(guards: Iterable[Guard]) -> list[Guard]:
    """Guards from the outermost to the innermost.

    Raises:
        BrixConfigurationError: Two guards of one name, or a name that has no place in `ORDER`.
    """
    placed: dict[str, Guard] = {}
    for guard in guards:
        if guard.name not in ORDER:
            raise BrixConfigurationError(
                f"guard {guard.name!r} has no place in the order of the guards; known are: {', '.join(ORDER)}"
            )
        if guard.name in placed:
            raise BrixConfigurationError(f"guard {guard.name!r} is given twice; give it once")
        placed[guard.name] = guard
    return [placed[name] for name in ORDER if name in placed]


def compose(guards: Sequence[Guard]) -> Proceed:
    """Nest guards around `send`, the first outermost."""
    proceed: Proceed = send
    for guard in reversed(guards):
        proceed = partial(guard.flow, proceed=proceed)
    return proceed


__all__ = [
    "CALL_RING",
    "CONVERSATION_RING",
    "ORDER",
    "Effect",
    "Flow",
    "Gather",
    "Guard",
    "ModelCall",
    "Proceed",
    "Retrieve",
    "Run",
    "Sleep",
    "StoreOp",
    "compose",
    "in_order",
    "send",
]
