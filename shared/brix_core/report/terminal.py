"""What ``brix traces`` shows: a line for each call, the newest last.

What comes from a log cannot steer the terminal: whatever is no printable character is shown by its code.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.text import Text

from brix_core.audit.canonical import canonical
from brix_core.audit.lines import entry_of
from brix_core.audit.tail import LogTail
from brix_core.errors import BrixConfigurationError
from brix_core.report.calls import OUTCOMES, Call, percentile
from brix_core.report.columns import in_words
from brix_core.report.figures import Totals

SHOWN: Final = 50
"""Calls shown when no limit is given."""

POLL_SECONDS: Final = 0.25
"""How often ``--follow`` looks for new entries."""

_STYLES: Final = {"ok": "green", "refused": "yellow", "failed": "red", "timed_out": "red"}
_LONGEST: Final = 400
"""Characters of a line's last column where there is no terminal to fit it into."""


_LEAST_WIDE: Final = 132
"""Columns of a terminal from which on a line is shown in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be shown.

    Attributes:
        path: The log's folder.
        session: Only calls of this session.
        outcome: Only calls that ended so.
        limit: The newest so many; None for `SHOWN`, or all of them as JSON.
        follow: Go on as entries are written.
        as_json: Entries as JSON, one a line.
    """

    path: Path
    session: str | None = None
    outcome: str | None = None
    limit: int | None = None
    follow: bool = False
    as_json: bool = False


def run(wish: Wish, sleep: Callable[[float], None] = time.sleep) -> int:
    """Show the calls of a log.

    Args:
        wish: What.
        sleep: Waits for so many seconds, between two looks at a log that is followed.

    Returns:
        The exit code: 0; 2 where there is no such log or outcome.
    """
    try:
        shown = _Traces(wish)
    except (BrixConfigurationError, OSError) as error:
        Console(stderr=True).print(Text(f"error: {error}"), soft_wrap=True)
        return 2
    try:
        shown.show()
        while wish.follow:
            sleep(POLL_SECONDS)
            shown.go_on()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # `brix traces | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    shown.end()
    return 0


class _Traces:
    """A log, as it is shown."""

    def __init__(self, wish: Wish) -> None:
        if wish.outcome is not None and wish.outcome not in OUTCOMES:
            raise BrixConfigurationError(f"no call ends as {wish.outcome!r}; give one of {', '.join(OUTCOMES)}")
        self._wish = wish
        self._tail = LogTail(wish.path)
        self._totals = Totals()
        self._unreadable = 0
        self._console = Console(highlight=False)
        is_narrow = self._console.is_terminal and self._console.width < _LEAST_WIDE
        self._layout = _NARROW if is_narrow else _WIDE

    def show(self) -> None:
        """Show what is there."""
        limit = self._wish.limit
        if limit is None and not self._wish.as_json:
            limit = SHOWN
        if not self._wish.as_json:
            self._print(_heading(self._layout))
        for entry, call in deque(self._new(), limit) if limit is not None else self._new():
            self._print_call(entry, call)

    def go_on(self) -> None:
        """Show what has been added."""
        for entry, call in self._new():
            self._print_call(entry, call)

    def end(self) -> None:
        """Sum up."""
        if not self._wish.as_json:
            self._print(Text(_summary(self._totals, self._unreadable), style="bold"), wraps=True)

    def _new(self) -> Iterator[tuple[dict[str, Any], Call]]:
        for line in self._tail.poll():
            self._unreadable += not line.kind
            if line.kind != "call":
                continue
            call = Call.of(line.fields)
            if self._wish.session not in (None, call.session) or self._wish.outcome not in (None, call.outcome):
                continue
            self._totals.add(call)
            yield entry_of(line.fields), call

    def _print_call(self, entry: dict[str, Any], call: Call) -> None:
        if self._wish.as_json:
            sys.stdout.write(canonical(entry).decode() + "\n")
            sys.stdout.flush()
        else:
            self._print(_line(call, self._layout))

    def _print(self, text: Text, wraps: bool = False) -> None:
        """Where there is a terminal, a line is a line of it."""
        is_cut = self._console.is_terminal and not wraps
        self._console.print(
            text, no_wrap=is_cut, overflow="ellipsis" if is_cut else None, crop=is_cut, soft_wrap=not is_cut
        )
        self._console.file.flush()


class _Layout(NamedTuple):
    """Columns of the terminal for each part of a line."""

    time: int
    session: int
    model: int
    outcome: int
    tokens: int
    cost: int
    latency: int
    tries: int

    def line(self, *cells: Text | str) -> Text:
        """A line of these cells, the last one as long as it is."""
        found = Text()
        for cell, width, end in zip(cells, (*self, 0), _ALIGNED, strict=True):
            text = cell if isinstance(cell, Text) else Text(cell)
            if width:
                text.truncate(width, overflow="ellipsis")
                found.append_text(Text(" " * (width - text.cell_len)) + text if end else text)
                found.append(" " * (2 if end else 2 + width - text.cell_len))
            elif end is None:
                found.append_text(text)
        found.rstrip()
        return found


_ALIGNED: Final = (False, False, False, False, True, True, True, True, None)
"""Whether a cell stands at the end of its columns; None for the last one, which has none."""

_WIDE: Final = _Layout(23, 16, 20, 9, 15, 10, 8, 5)
_NARROW: Final = _Layout(8, 8, 10, 9, 10, 10, 7, 0)


def _heading(layout: _Layout) -> Text:
    heads = ("time, UTC" if layout is _WIDE else "UTC", "session", "model", "outcome")
    made = layout.line(*heads, "tokens", "cost", "latency", "tries", "decisions")
    made.stylize("dim")
    return made


def _line(call: Call, layout: _Layout) -> Text:
    tokens = "-" if call.prompt_tokens is None else f"{call.prompt_tokens}+{call.completion_tokens or 0}"
    said = in_words(call)
    if call.error:
        said += f"{'; ' if said else ''}{call.error}: {call.message}"
    return layout.line(
        _moment(call.time, layout),
        _printable(call.session[:100]) or "-",
        _printable(call.model[:100]) or "-",
        Text(_printable(call.outcome[:20]), style=_STYLES.get(call.outcome, "magenta")),
        tokens,
        money(call.nano),
        duration(call.latency_ms),
        str(len(call.attempts)),
        Text(_printable(said[:_LONGEST]), style="dim"),
    )


def _moment(time: int | None, layout: _Layout) -> str:
    if time is None:
        return "no time"
    written = datetime.fromtimestamp(time / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return written[-8:] if layout is _NARROW else f"{written}.{time % 1_000:03d}"


def _summary(totals: Totals, unreadable: int) -> str:
    """The figures of all calls that fit, shown or not."""
    sums, latencies = totals.sums, sorted(chain.from_iterable(totals.latencies.values()))
    ends = ", ".join(f"{count:,} {_printable(name)}" for name, count in totals.outcomes.most_common())
    parts = [f"{sums['calls']:,} calls" + (f": {ends}" if ends else "")]
    parts.append(money(sums["nano"]) + (f" and {sums['unpriced']:,} without a price" if sums["unpriced"] else ""))
    parts.append(f"{sums['prompt_tokens']:,}+{sums['completion_tokens']:,} tokens")
    if latencies:
        parts.append(", ".join(f"p{rank} {duration(percentile(latencies, rank))}" for rank in (50, 90, 99)))
    parts.append(
        f"{sums['attempts']:,} attempts, {totals.roles['retry']:,} retries, {totals.roles['failover']:,} failovers"
    )
    parts.append(f"{sums['looped']:,} with loops")
    if unreadable:
        parts.append(f"{unreadable:,} lines could not be read (see brix verify)")
    return " · ".join(parts)


def money(nano: int | None) -> str:
    """Nano-dollars as dollars: cents from one dollar on, else three digits that mean something, to a millionth.

    Example:
        >>> money(1_234_567_890_000), money(1_234_567), money(25_000), money(25), money(0), money(None)
        ('$1,234.57', '$0.00123', '$0.000025', '<$0.000001', '$0', '-')
    """
    if nano is None:
        return "-"
    if nano >= 10**9:
        return f"${nano / 1e9:,.2f}"
    if nano < 1_000:
        return "<$0.000001" if nano else "$0"
    return "$" + f"{nano / 1e9:.{min(6, 2 - math.floor(math.log10(nano / 1e9)))}f}".rstrip("0")


def duration(ms: float | None) -> str:
    """Milliseconds, in the unit that fits.

    Example:
        >>> duration(0.25), duration(830.4), duration(61_000.0), duration(None)
        ('0.2 ms', '830 ms', '61.0 s', '-')
    """
    if ms is None:
        return "-"
    if ms < 1_000:
        return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"
    return f"{ms / 1_000:,.2f} s" if ms < 10_000 else f"{ms / 1_000:,.1f} s"


def _printable(text: str) -> str:
    """A text that cannot steer a terminal, nor turn the rest of a line around.

    Example:
        >>> _printable("red: " + chr(27) + "[31m") == "red: " + chr(92) + "x1b[31m"
        True
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


__all__ = ["POLL_SECONDS", "SHOWN", "Wish", "duration", "money", "run"]
