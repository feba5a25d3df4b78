"""What a loop is, and what is none.

Two things that happened, steps of an agent or answers to one prompt, are *the same* when their keys are equal, or by
meaning when an embedder finds their wording alike *and* both name the same things: "file a.py" and "file b.py" are 0.93
alike to a small model, and two different files. A loop is then

- the same thing `threshold` times, with nothing new since it came up first;
- a cycle of 2 to `max_cycle` things, seen ``max(2, threshold - 1)`` times in a row at the end;
- a failing call reworded: ``threshold + 1`` calls of one tool in a row, each a variation of the one before it, all of
  which failed. Of seven real runs that ran out of steps this finds two besides the two that repeat a step word for
  word, and none of those that ended well (tests/core/test_loop_runs.py).

Changed results are progress, whatever the call. Results alone never make a loop.

Example:
    >>> find(["a", "b", "c", "b", "c"], threshold=3, max_cycle=4)
    Circle(repeats=2, length=2)
    >>> find(["b", "a", "c", "a", "d", "a"], threshold=3, max_cycle=4)
    Circle(repeats=1, length=1)
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from brix_core.errors import LoopKind
from brix_core.looping.steps import Step, canonical, values

MAX_QUOTED: Final = 120
"""Characters of a call or an answer that are quoted."""

TOKEN: Final = re.compile(r"\w+(?:[./@:_'\u2019-]+\w+)*")
IDENTIFIER: Final = re.compile(r"[\d./@:_]|[a-z][A-Z]|^[^\Wai]$")
"""Tokens that tell things apart: numbers, paths, names in programs, single letters."""

_FAILED: Final = re.compile(
    r"\W*(?:error|exception|traceback|fail|invalid|unable|(?:could|can) ?n[o'\u2019]t|"
    r"no (?:results?|match|such|data|file)|"
    r"not found|nothing found|unknown|denied|forbidden|unauthori[sz]ed|timed? ?out|bad request)",
    re.IGNORECASE,
)


class Circle(NamedTuple):
    """How the end of a sequence has come up before.

    Attributes:
        repeats: How often, with nothing new in between.
        length: How many things recur in turn.
    """

    repeats: int
    length: int


class Loop(NamedTuple):
    """What goes round in circles, or is about to.

    Attributes:
        kind: What recurs.
        repeats: How often it has come up.
        cycle_length: How many steps or answers it consists of.
        what: A short description.
        closed: False when it is no loop yet, but one more repeat makes it one.
    """

    kind: LoopKind
    repeats: int
    cycle_length: int
    what: str
    closed: bool = True


class Happened(NamedTuple):
    """A step or an answer, as it is compared.

    Attributes:
        key: Equal for what is exactly the same.
        group: Equal for what may be the same by meaning.
        wording: The texts that are compared by meaning.
        what: A short description.
    """

    key: Hashable
    group: Hashable
    wording: tuple[str, ...]
    what: str


def find(keys: Sequence[Hashable], *, threshold: int, max_cycle: int) -> Circle:
    """How often the end of a sequence has come up: a loop from `threshold` times on, or when it is a cycle.

    Args:
        keys: What happened, oldest first; not empty.
        threshold: How often makes a loop.
        max_cycle: Longest cycle.
    """
    keys, rounds = list(keys), max(2, threshold - 1)
    for length in range(2, min(max_cycle, len(keys) // rounds) + 1):
        cycle = keys[-length:]
        if len(set(cycle)) > 1 and keys[-length * rounds :] == cycle * rounds:
            while keys[-length * (rounds + 1) :] == cycle * (rounds + 1):
                rounds += 1
            return Circle(rounds, length)
    seen: set[Hashable] = set()
    newest = 0
    for index, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            newest = index
    return Circle(keys[newest:].count(keys[-1]), 1)


def tool_loop(steps: Sequence[Step], *, threshold: int, max_cycle: int) -> Loop | None:
    """The loop that an agent's latest step closes, by exact comparison; also one that is not closed yet.

    Example:
        >>> step = Step((("search", '{"q": "x"}', "nothing"),), ("search",), ("nothing",))
        >>> tool_loop([step] * 3, threshold=3, max_cycle=4).what
        'search({"q":"x"})'
    """
    if not steps:
        return None
    last = steps[-1]
    if any(step.results == last.results and step.names == last.names for step in steps[:-1]):
        circle = find([step.key() for step in steps], threshold=threshold, max_cycle=max_cycle)
        loop = as_loop("tool", circle, threshold, [quoted(step) for step in steps[-circle.length :]])
        if loop is not None:
            return loop
    return _failing(steps, threshold + 1)


def response_loop(happened: Sequence[Happened], *, threshold: int, max_cycle: int) -> Loop | None:
    """The loop that the latest answer to one prompt closes, by exact comparison; also one not closed yet."""
    if not happened:
        return None
    circle = find([one.key for one in happened], threshold=threshold, max_cycle=max_cycle)
    return as_loop("response", circle, threshold, [one.what for one in happened[-circle.length :]])


def quoted(step: Step) -> str:
    """The calls of a step, shortened."""
    return " + ".join(f"{name}({shortened(canonical(arguments))})" for name, arguments, _ in step.parts)


def as_loop(kind: LoopKind, circle: Circle, threshold: int, what: Iterable[str]) -> Loop | None:
    """The loop that a circle is, or is about to be; `what` are its members."""
    closed = circle.length > 1 or circle.repeats >= threshold
    if not closed and not 2 <= circle.repeats == threshold - 1:
        return None
    kind = "cycle" if circle.length > 1 and kind != "semantic" else kind
    return Loop(kind, circle.repeats, circle.length, ", then ".join(what), closed)


def _failing(steps: Sequence[Step], threshold: int) -> Loop | None:
    """A failing call reworded: each step a variation of the one before, all of them failures."""
    if not _failed(steps[-1]):
        return None
    repeats = 1
    for after, before in pairwise(reversed(steps)):
        if not (_failed(before) and _varies(before, after)):
            break
        repeats += 1
    if repeats < threshold - 1:
        return None
    what = f"variations of the failing call {quoted(steps[-1])}"
    return Loop("tool", repeats, 1, what, closed=repeats >= threshold)


def _failed(step: Step) -> bool:
    return all(map(_FAILED.match, step.results))


def _varies(before: Step, after: Step) -> bool:
    """Whether a step does over, in other words, what the one before it did; never when only a name was exchanged."""
    if [name for name, _, _ in before.parts] != [name for name, _, _ in after.parts]:
        return False
    for (_, one, result), (_, other, changed) in zip(before.parts, after.parts, strict=True):
        if canonical(one) == canonical(other):
            if result != changed:  # the same call fails in another way: something moves
                return False
            continue
        words, others = set(_tokens(values(one))), set(_tokens(values(other)))
        gone, come = words - others, others - words
        if any(map(IDENTIFIER.search, gone)) and any(map(IDENTIFIER.search, come)):
            return False
        if not words or not others or 2 * len(words & others) < min(len(words), len(others)):
            return False
    return True


def _tokens(text: str) -> list[str]:
    return [token.casefold() for token in TOKEN.findall(text)]


def shortened(text: str) -> str:
    """At most `MAX_QUOTED` characters of a text."""
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def told(loop: Loop) -> str:
    """What recurs, in a sentence."""
    return f"{loop.what} came up {loop.repeats} times{' in turn' if loop.cycle_length > 1 else ''} without anything new"


def diversity_text(loop: Loop) -> str:
    """What to tell an agent that goes round in circles, unless the application has words of its own."""
    return (
        f"You are going round in circles: {told(loop)}. Do not repeat it. Take another approach, with other steps or "
        "other arguments; if there is none, give the best final answer you can from what you know by now, and say "
        "what is missing."
    )


__all__ = [
    "IDENTIFIER",
    "MAX_QUOTED",
    "TOKEN",
    "Circle",
    "Happened",
    "Loop",
    "as_loop",
    "diversity_text",
    "find",
    "quoted",
    "response_loop",
    "shortened",
    "told",
    "tool_loop",
]
