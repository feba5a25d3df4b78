"""The demo on a terminal, or in a log: rich tables, and no figure of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from brix_core.demo.scene import Case, Exhibit, Scenario, Side
    from brix_core.demo.surface import Surface, Target

SHORTEST_SECRET: Final = 8
"""Characters."""

LOG_WIDTH: Final = 100
"""Columns where there is no terminal to ask."""


class Figures(Protocol):
    """See `brix_core.demo.show.Tally`."""

    spent: float
    billed: float
    counted: int
    seen: int
    unguarded: float


class SessionTally(Figures, Protocol):
    """See `brix_core.demo.show.Tally`."""

    cap: float

    @property
    def agrees(self) -> bool:
        """Whether the figures agree."""
        ...


@dataclass(slots=True)
class Sum:
    """Figures of all sessions."""

    spent: float = 0.0
    billed: float = 0.0
    counted: int = 0
    seen: int = 0
    unguarded: float = 0.0

    def add(self, one: Figures) -> None:
        """Add those of one."""
        self.spent += one.spent
        self.billed += one.billed
        self.counted += one.counted
        self.seen += one.seen
        self.unguarded += one.unguarded


def console(*, color: bool = True, stderr: bool = False) -> Console:
    """A console that respects NO_COLOR, and is wide enough in logs."""
    made = Console(no_color=None if color else True, stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in made._environ:
        made.width = LOG_WIDTH
    return made


class Screen:
    """Shows the demo.

    Args:
        out: Where.
        secret: A text that must never be shown: the key of a real provider.
    """

    def __init__(self, out: Console, secret: str = "") -> None:
        self._out = out
        # Something as short as "none", which local servers are given, is no secret, and part of many words.
        self._secret = secret if len(secret) >= SHORTEST_SECRET else ""
        self._yes, self._no = ("ok", "NO") if out.options.ascii_only else ("✓", "✗")
        self._position = (0, 1)

    def opening(self, target: Target, surfaces: Sequence[Surface]) -> None:
        """Say where, and through what."""
        host = urlsplit(target.base_url).netloc.rpartition("@")[2]
        if target.live:
            place = f"{target.model} at {host}. These are real requests; they may cost money."
        else:
            place = (
                f"a server on loopback ({host}) that plays {target.model} and fails on demand. "
                "Nothing leaves this machine."
            )
        self._say(Text.assemble(("brix demo", "bold"), f": guards around model calls, shown on {place}"))
        for surface in surfaces:
            recipe = surface.recipe.format(options="...")
            self._say(Text.assemble(f"  {surface.title:<11} ", (recipe, "cyan")))
        self._say(Text("Every guarded model has max_cost_usd=1.00, where nothing else is said.", "dim"))

    @contextmanager
    def starting(self) -> Iterator[None]:
        """A sign of life while the frameworks are imported; on terminals only."""
        if not self._out.is_terminal:
            yield
            return
        with self._out.status("importing the frameworks", spinner="line"):
            yield

    def listing(self, known: Sequence[Scenario]) -> None:
        """The scenarios, by name."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("scenario", "what goes wrong", "options"):
            table.add_column(column)
        for scenario in known:
            table.add_row(Text(scenario.name, "bold"), scenario.title, Text(scenario.options, "cyan"))
        self._out.print(table)

    def begin(self, number: int, total: int, scenario: Scenario) -> None:
        """A scenario's headline."""
        self._position = (number, total)
        title = Text.assemble((f"{number}/{total} {scenario.name}", "bold"), f"  {scenario.title}")
        self._out.print()
        self._out.print(Rule(title, align="left", style="dim"))
        self._say(Text(scenario.story))
        self._say(Text.assemble("guard(model, ", (scenario.options, "cyan"), ")"))

    def skip(self, reason: str) -> None:
        """A scenario that is not played."""
        self._say(Text(reason, "yellow"))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A progress line, as long as the block takes; on terminals only."""
        number, total = self._position
        columns = (SpinnerColumn("line"), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
        with Progress(*columns, console=self._out, transient=True, disable=not self._out.is_terminal) as line:
            line.add_task(f"{number}/{total} {what}" if number else what, total=total, completed=max(0, number - 1))
            yield

    def cases(self, cases: Mapping[str, Sequence[Case]], *, live: bool) -> None:
        """What came of a scenario, on each framework."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
        table.add_column("")
        table.add_column("with the guard", header_style="green", ratio=1)
        if not live:
            table.add_column("without it", header_style="yellow", ratio=1)
        several = max(map(len, cases.values()), default=0) > 1
        for title, case in _by_case(cases):
            first = Group(Text(title, "bold"), Text(case.label, "dim")) if several else Text(title, "bold")
            cells: list[RenderableType] = [self._cell(case.did, case.guarded)]
            if not live:
                cells.append(self._cell(case.without, case.bare) if case.bare else Text())
            table.add_row(first, *cells)
        self._out.print(Padding(table, (1, 0, 1, 0)))
        found = next((case.exhibit for group in cases.values() for case in group if case.exhibit), None)
        if found is not None:
            self._exhibit(found)
        self._checks(cases)

    def summary(
        self, sessions: Mapping[str, Mapping[str, SessionTally]], failures: Sequence[str], *, live: bool
    ) -> None:
        """What was spent and sent, and whether it all holds."""
        self._out.print()
        self._out.print(Rule(Text("costs", "bold"), align="left", style="dim"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in _LIVE_COLUMNS if live else _COLUMNS:
            table.add_column(name, justify="left" if name in ("session", "through", "") else "right")
        total = Sum()
        for session, tallies in sessions.items():
            for position, (title, one) in enumerate(tallies.items()):
                total.add(one)
                mark = Text(self._yes, "green") if one.agrees else Text(self._no, "bold red")
                table.add_row("" if position else session, title, _cap(one.cap), *_figures(one, mark, live))
        table.add_section()
        table.add_row("all", "", "", *_figures(total, Text(), live), style="bold")
        self._out.print(Padding(table, (1, 0, 1, 0)))
        if not live:
            self._say(Text(_HOW_TO_READ, "dim"))
        self._verdict(failures, total.counted, total.seen, live=live)

    def stopped(self) -> None:
        """The user has seen enough."""
        self._say(Text("stopped", "yellow"))

    def error(self, message: str) -> None:
        """Why there is nothing to show."""
        self._say(Text.assemble(("error: ", "bold red"), message))

    def _verdict(self, failures: Sequence[str], counted: int, seen: int, *, live: bool) -> None:
        for failure in failures:
            self._say(Text(f"{self._no} {failure}", "bold red"))
        if failures:
            self._say(Text(f"{len(failures)} claim(s) did not hold.", "bold red"))
        elif live:
            self._say(Text(f"{self._yes} Every claim holds; the guards counted {counted} requests.", "green"))
        else:
            agreement = f"the server saw {seen} requests, the guards counted {counted}"
            self._say(Text(f"{self._yes} Every claim holds: {agreement}.", "green"))

    def _cell(self, sentence: str, side: Side) -> Group:
        return Group(self._clean(Text(sentence)), Text(_measured(side), "dim"))

    def _checks(self, cases: Mapping[str, Sequence[Case]]) -> None:
        """Each claim once: it holds if it does for all frameworks and cases."""
        verdicts: dict[str, list[str]] = {}
        for title, group in cases.items():
            for case in group:
                for check in case.checks:
                    failed = verdicts.setdefault(check.claim, [])
                    if not check.holds:
                        failed.append(f"{title} {case.label}".strip())
        lines = []
        for claim, failed in verdicts.items():
            mark = (f"{self._no} ", "bold red") if failed else (f"{self._yes} ", "green")
            lines.append(Text.assemble(mark, claim, f" ({', '.join(failed)})" if failed else ""))
        self._out.print(Columns(lines, padding=(0, 3)))

    def _exhibit(self, exhibit: Exhibit) -> None:
        table = Table(title=exhibit.title, title_justify="left", title_style="cyan", box=None, pad_edge=False)
        for column in exhibit.columns:
            table.add_column(column, style="dim")
        for row in exhibit.rows:
            table.add_row(*row)
        self._out.print(Padding(table, (0, 0, 1, 0)))

    def _say(self, text: Text) -> None:
        self._out.print(self._clean(text))

    def _clean(self, text: Text) -> Text:
        """The text, without the secret."""
        if self._secret and self._secret in text.plain:
            return Text(text.plain.replace(self._secret, "***"), text.style)
        return text


_COLUMNS: Final = (
    "session", "through", "cap", "spent", "server's bill", "counted", "server saw", "", "bare"
)  # fmt: skip
_LIVE_COLUMNS: Final = ("session", "through", "cap", "spent", "counted", "")
_HOW_TO_READ: Final = (
    "spent and counted: by the guards. server's bill: the tokens the server counted, at the model's price. "
    "They differ where a call was given up half-way: the guards charge what had arrived, or what it may cost at most. "
    "bare: the bill for the same work without guards."
)


def _by_case(cases: Mapping[str, Sequence[Case]]) -> Iterator[tuple[str, Case]]:
    """Case by case, and within a case framework by framework."""
    for number in range(max(map(len, cases.values()), default=0)):
        for title, group in cases.items():
            if number < len(group):
                yield title, group[number]


def _measured(side: Side) -> str:
    """Requests, tokens and time of a run."""
    requests = f"{side.sent} request{'s' if side.sent != 1 else ''}"
    if side.stats is None:
        return f"{requests}, {side.seconds:.2f} s"
    tokens = f"{side.stats.prompt_tokens:,} + {side.stats.completion_tokens:,} tokens"
    return f"{requests}, {tokens}, {side.seconds:.2f} s"


def _cap(cap: float) -> str:
    return f"${cap:.2f}" if cap >= 0.01 else f"${cap:g}"


def _figures(one: Figures, mark: Text, live: bool) -> list[RenderableType]:
    """The cells of a row of the summary, from the spend on."""
    spent, counted = _usd(one.spent), str(one.counted)
    if live:
        return [spent, counted, mark]
    return [spent, _usd(one.billed), counted, str(one.seen), mark, _usd(one.unguarded)]


def _usd(amount: float) -> str:
    return f"${amount:.6f}"


__all__ = ["LOG_WIDTH", "Screen", "SessionTally", "console"]
