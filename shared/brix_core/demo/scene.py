"""What is said and measured about a piece of an application that was run with guards, and without.

All figures are measured: by the server, or where there is none, by the guards.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brix_core.demo.ledger import RequestRecord, ServerStats
from brix_core.prices import PriceBook, usd
from brix_core.usage import Usage

if TYPE_CHECKING:
    from brix_core.demo.stage import Stage


@dataclass(frozen=True, slots=True)
class Result:
    """What the application got from one call.

    Attributes:
        text: The answer, or what had arrived of it.
        error: The exception that ended it, if any.
        seconds: How long the application waited.
        gave_up: The demo stopped waiting; there was no end to it.
    """

    text: str
    error: Exception | None = None
    seconds: float = 0.0
    gave_up: bool = False

    @property
    def answered(self) -> bool:
        """There was no error."""
        return self.error is None and not self.gave_up

    @property
    def error_name(self) -> str:
        """The exception's class."""
        return type(self.error).__name__ if self.error is not None else ""


@dataclass(frozen=True, slots=True)
class Side:
    """One run, as the application, the server and the guards saw it.

    Attributes:
        results: The application's calls.
        seconds: Duration of the whole run.
        stats: The server's counts; None when the endpoint is a real provider.
        records: The server's finished requests.
        traces: The guards' trace entries, oldest first; none without guards.
        guarded: Whether there were guards.
        session: The session it ran in.
        cap: That session's ``max_cost_usd``.
    """

    results: tuple[Result, ...]
    seconds: float
    stats: ServerStats | None
    records: tuple[RequestRecord, ...]
    traces: tuple[dict[str, Any], ...]
    guarded: bool
    session: str
    cap: float

    @property
    def answered(self) -> int:
        """Calls with an answer."""
        return sum(result.answered for result in self.results)

    @property
    def refused(self) -> int:
        """Calls the guards refused before anything was sent."""
        return sum(trace["outcome"] == "refused" for trace in self.traces)

    @property
    def counted(self) -> int:
        """Requests that left, as the guards counted them."""
        return sum(len(trace["attempts"]) for trace in self.traces)

    @property
    def sent(self) -> int:
        """Requests that arrived, as the server counted them; the guards' count where there is no server."""
        return self.counted if self.stats is None else self.stats.requests

    @property
    def spent(self) -> float:
        """USD charged by the guards."""
        return sum(trace["cost_usd"] or 0.0 for trace in self.traces)

    @property
    def billed(self) -> float:
        """USD for the tokens the server counted."""
        return sum(map(_price, self.records))

    @property
    def last(self) -> Result:
        """The application's last call."""
        return self.results[-1]


@dataclass(frozen=True, slots=True)
class Check:
    """A claim of the demo, and whether the figures bear it out."""

    claim: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A small table to look at."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        label: What sets it apart from the scenario's other cases; may be empty.
        guarded: The run behind guards.
        bare: The run without; None when there was none.
        did: What happened with the guards, in a sentence.
        without: What happened without.
        checks: What must hold.
        exhibit: Something to look at.
    """

    label: str = ""
    guarded: Side
    bare: Side | None = None
    did: str
    without: str = ""
    checks: tuple[Check, ...] = ()
    exhibit: Exhibit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One thing to show.

    Attributes:
        name: For ``--scenario``.
        title: The failure it is about.
        options: The guards' options, as one writes them.
        story: What the provider, or the application, does.
        play: Plays it on one framework.
        rank: Its place in the order.
        live: Whether it is for a real provider instead of the demo server.
        requires_price: Skipped, live, for a model without a known price.
    """

    name: str
    title: str
    options: str
    story: str
    play: Callable[[Stage], Awaitable[Sequence[Case]]]
    rank: int
    live: bool = False
    requires_price: bool = False


_BOOK = PriceBook()


def _price(record: RequestRecord) -> float:
    price = _BOOK.find(record.model, "openai")
    usage = Usage(input_tokens=record.prompt_tokens, output_tokens=record.completion_tokens)
    return 0.0 if price is None else usd(price.cost(usage))


__all__ = ["Case", "Check", "Exhibit", "Result", "Scenario", "Side"]
