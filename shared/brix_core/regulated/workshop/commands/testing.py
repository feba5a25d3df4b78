"""``brix test``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from brix_core.errors import BrixConfigurationError
from brix_core.regulated.format.loading import read_source, spec_from_text
from brix_core.regulated.workshop.commands.speaking import run, say, say_json
from brix_core.regulated.workshop.decisions import plain
from brix_core.regulated.workshop.suite import Tally, Verdict, load_suite
from brix_core.regulated.workshop.trial import Trial, tried

PASSED = 0
FAILED = 1


def run_tests_command(spec: str, *, suite: Path | None, model: str, embedder: str | None, as_json: bool) -> int:
    """Run the cases of a spec, or of a suite.

    Returns:
        0 when all pass, 1 when one fails, 2 when spec, suite or model cannot be used.
    """
    return run(lambda: _test(spec, suite, model, embedder, as_json))


def _test(source: str, suite: Path | None, model: str, embedder: str | None, as_json: bool) -> int:
    spec = spec_from_text(*read_source(source))
    cases = spec.test_cases if suite is None else load_suite(suite, spec)
    if not cases:
        raise BrixConfigurationError(
            f"{spec.label} has no test cases; give --suite, or draft some with `brix generate`"
        )
    with _bar(len(cases)) as advance:
        trial = asyncio.run(tried(spec, cases, model=model, embedder=embedder, progress=advance))
    if as_json:
        say_json(trial.as_dict())
    else:
        _tell(trial)
    return FAILED if trial.failed else PASSED


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal; nothing where there is none."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("cases", total=total)
        yield lambda: progress.advance(task)


def _tell(trial: Trial) -> None:
    for verdict in trial.failed:
        say(_failure(verdict))
    say(f"{plain(trial.spec)}, model {plain(trial.model)}: {len(trial.verdicts)} cases, {len(trial.failed)} failed")
    say()
    Console(highlight=False).print(_confusion(trial))
    tally = trial.tally
    say()
    say(f"reliability    {_share(tally.reliability)}  of what had to be caught was caught")
    say(f"utility        {_share(tally.utility)}  of what is harmless was let through")
    say(f"balance index  {_share(tally.balance_index)}  their harmonic mean")


def _failure(verdict: Verdict) -> str:
    case = verdict.case
    wanted = (
        "to pass" if case.kind == "negative" else f"rule {case.expect!r}" if case.expect else "any rule that stops it"
    )
    met = ", ".join(verdict.rules) or "no rule"
    note = f" ({plain(verdict.note)})" if verdict.note else ""
    text = plain(case.text)
    shown = text if len(text) <= 200 else f"{text[:197]}..."
    return f"FAILED {case.kind} {case.where}: {shown}\n       expected {wanted}; met {met}{note}"


def _confusion(trial: Trial) -> Table:
    """What the cases are, by what became of them."""
    table = Table("case", "caught", "let through", "passed")
    for where in ("input", "output"):
        for kind in ("positive", "evasive", "negative"):
            verdicts = [one for one in trial.verdicts if one.case.kind == kind and one.case.where == where]
            if not verdicts:
                continue
            tally = Tally.of(verdicts)
            passed = sum(verdict.passed for verdict in verdicts)
            table.add_row(
                f"{kind}, {where}",
                str(tally.caught + tally.stopped),
                str(tally.missed + tally.let_through),
                f"{passed} of {len(verdicts)}",
            )
    return table


def _share(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.1%}"


__all__ = ["run_tests_command"]
