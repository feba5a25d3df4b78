"""What a guarded run came to: the money and tokens of the model calls in it, for its trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from brix_core.call import Attempt, LogicalCall
from brix_core.usage import Usage

if TYPE_CHECKING:
    from brix_langchain.inside import Inside


class Bill:
    """What one attempt at a run came to.

    Args:
        attempt: The attempt at the run, which is given the sum.
        own: The run's own callbacks, if it has any.

    Attributes:
        own: See above.
        sent_unmetered: Whether a model was called that nobody meters.
    """

    def __init__(self, attempt: Attempt, own: Inside | None) -> None:
        self._attempt = attempt
        self._calls: list[list[Attempt]] = []
        self.own = own
        self.sent_unmetered = False

    def add(self, call: LogicalCall) -> None:
        """A model call begins; its attempts are looked at when the sum is made."""
        self._calls.append(call.attempts)

    @property
    def sent(self) -> bool:
        """Whether a request to a model has left."""
        return self.sent_unmetered or any(True for _ in self._requests())

    def call_ended(self) -> None:
        """A call is over. One that has outlived the attempt, in a thread or a task of its own, is counted as well."""
        if self._attempt.outcome is not None:
            self.sum_up()

    def sum_up(self) -> None:
        """Give the attempt what is known by now."""
        requests = list(self._requests())
        costs = [request.cost_nano for request in requests if request.cost_nano is not None]
        self._attempt.usage = _total(request.usage for request in requests)
        self._attempt.cost_nano = sum(costs) if costs else None

    def _requests(self) -> Iterable[Attempt]:
        return (request for attempts in tuple(self._calls) for request in tuple(attempts))


def _total(usages: Iterable[Usage | None]) -> Usage | None:
    known = [usage for usage in usages if usage is not None]
    if not known:
        return None
    return Usage(
        input_tokens=sum(usage.input_tokens for usage in known),
        output_tokens=sum(usage.output_tokens for usage in known),
        cache_read_tokens=sum(usage.cache_read_tokens for usage in known),
        cache_write_tokens=sum(usage.cache_write_tokens for usage in known),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in known),
        estimated=any(usage.estimated for usage in known),
    )


__all__ = ["Bill"]
