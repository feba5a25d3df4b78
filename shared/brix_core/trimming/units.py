"""What of a conversation is kept when it does not fit: pure functions over turns and token counts (G7).

A conversation is divided into *units* that stay or go together: a message by itself, or the tool calls of an
assistant with all their results, however many messages those take. Some units are *protected*:

* all system messages,
* the last message in which the user speaks,
* what guards have added at the end,
* the last message, with all that belongs to it: a tool exchange under way is kept (older ones may go).

A *strategy* chooses among the others. Whatever it chooses, order is kept, and a user's message comes first after
the system prompt: Anthropic and Gemini demand it.

Example:
    >>> talk = [Turn("user", "Hi"), Turn("assistant", "Hello!"), Turn("user", "1+1?"), Turn("assistant", "2"),
    ...         Turn("user", "And 2+2?")]
    >>> outline = outline_of(talk, [10, 10, 10, 10, 10])
    >>> outline.messages(sliding_window(outline, 35))
    [2, 3, 4]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from brix_core.trimming.importance import scores
from brix_core.turns import Turn

Unit = tuple[int, ...]
"""Positions of messages that stay or go together, ascending."""


class Outline(NamedTuple):
    """A conversation as strategies see it. Units are named by their number.

    Attributes:
        turns: What each message says.
        units: In the order of their first messages.
        costs: Tokens of each unit.
        protected: Units that cannot go.
    """

    turns: Sequence[Turn]
    units: Sequence[Unit]
    costs: Sequence[int]
    protected: frozenset[int]

    def cost(self, kept: Iterable[int]) -> int:
        """Tokens of some units."""
        return sum(map(self.costs.__getitem__, kept))

    @property
    def least(self) -> int:
        """Tokens of what cannot go."""
        return self.cost(self.protected)

    def messages(self, kept: Iterable[int]) -> list[int]:
        """Positions of the messages in some units, in order."""
        return sorted(position for unit in kept for position in self.units[unit])


def outline_of(turns: Sequence[Turn], tokens: Sequence[int], added: int = 0) -> Outline:
    """Divide a conversation.

    Args:
        turns: What each message says.
        tokens: Tokens of each message.
        added: How many messages at the end are the guards' own.
    """
    units = units_of(turns)
    costs = [sum(map(tokens.__getitem__, unit)) if len(unit) > 1 else tokens[unit[0]] for unit in units]
    unit_of = {position: number for number, unit in enumerate(units) for position in unit}
    return Outline(turns, units, costs, _protected(turns, units, unit_of, added))


def units_of(turns: Sequence[Turn]) -> list[Unit]:
    """Messages that stay or go together.

    A result belongs to the latest call of its id. One whose id is empty, or answers nothing that was asked, belongs to
    the exchange it directly follows; failing that it stands by itself, as a call without results does.

    Example:
        >>> from brix_core.call import ToolCall
        >>> from brix_core.turns import ToolResult
        >>> calls = tuple(ToolCall(id=name, name="look", arguments="{}") for name in "ab")
        >>> first, second = ToolResult("b", "2"), ToolResult("a", "1")
        >>> units_of([Turn("user", "Look!"), Turn("assistant", "", calls=calls),
        ...           Turn("tool", "", results=(first,)), Turn("tool", "", results=(second,))])
        [(0,), (1, 2, 3)]
    """
    units: list[list[int]] = []
    called: dict[str, int] = {}
    exchange: int | None = None  # the unit of the calls this message directly follows
    for position, turn in enumerate(turns):
        if not turn.results:
            exchange = len(units) if turn.calls else None
            for call in turn.calls:
                if call.id:
                    called[call.id] = len(units)
            units.append([position])
            continue
        asked = sorted({called[result.id] for result in turn.results if result.id in called})
        if not asked and exchange is not None:
            asked = [exchange]
        if not asked:
            units.append([position])
            continue
        exchange = asked[0]
        units[exchange].append(position)
        for other in asked[1:]:  # one message answers calls of several: they belong together
            units[exchange] += units[other]
            units[other] = []
            called = {name: exchange if unit == other else unit for name, unit in called.items()}
    return [tuple(sorted(unit)) if len(unit) > 1 else (unit[0],) for unit in units if unit]


def sliding_window(outline: Outline, room: int) -> frozenset[int]:
    """What is protected, and the latest units that fit, without a gap from the end.

    Args:
        outline: The conversation.
        room: Tokens that all of it may have.

    Returns:
        The units that are kept.
    """
    kept = set(outline.protected)
    left = room - outline.least
    for unit in _latest_first(outline):
        left -= outline.costs[unit]
        if left < 0:
            break
        kept.add(unit)
    return led_by_user(outline, kept)


def importance(outline: Outline, room: int) -> frozenset[int]:
    """What is protected, and the units of the highest score that fit (`brix_core.trimming.importance`).

    Args:
        outline: The conversation.
        room: Tokens that all of it may have.

    Returns:
        The units that are kept.
    """
    kept = set(outline.protected)
    left = room - outline.least
    score = scores(outline.turns, outline.units, outline.costs)
    for unit in sorted(_latest_first(outline), key=score.__getitem__, reverse=True):
        if outline.costs[unit] <= left:
            left -= outline.costs[unit]
            kept.add(unit)
    return led_by_user(outline, kept)


def led_by_user(outline: Outline, kept: Set[int]) -> frozenset[int]:
    """Without the units before the first message of a user, unless they are protected."""
    dropped = set()
    for unit in sorted(kept):
        role = outline.turns[outline.units[unit][0]].role
        if role == "user":
            break
        if unit not in outline.protected:
            dropped.add(unit)
    return frozenset(kept - dropped)


def _latest_first(outline: Outline) -> list[int]:
    """Units that may go. By their last message: an exchange is as recent as its last result."""
    free = [unit for unit in range(len(outline.units)) if unit not in outline.protected]
    return sorted(free, key=lambda unit: outline.units[unit][-1], reverse=True)


def _protected(turns: Sequence[Turn], units: Sequence[Unit], unit_of: Mapping[int, int], added: int) -> frozenset[int]:
    """Units that cannot go."""
    end = max(0, len(turns) - added)
    systems = [position for position, turn in enumerate(turns) if turn.role == "system"]
    others = list(range(end, len(turns)))
    others += _latest(turns, end, lambda turn: turn.role != "system")
    others += _latest(turns, end, lambda turn: turn.role == "user")
    # In Anthropic's format the user may speak in the message that brings a tool's results.
    others += _latest(turns, end, lambda turn: turn.role == "tool" and bool(turn.text))
    kept = {unit_of[position] for position in others}
    first = min((units[unit][0] for unit in kept), default=0)
    if first and turns[first].role != "user":
        kept.update(unit_of[position] for position in _latest(turns, first, lambda turn: turn.role == "user"))
    return frozenset(kept.union(unit_of[position] for position in systems))


def _latest(turns: Sequence[Turn], end: int, speaks: Callable[[Turn], bool]) -> list[int]:
    """Where the latest such turn before `end` stands, if there is one."""
    return next(([position] for position in range(end - 1, -1, -1) if speaks(turns[position])), [])


__all__ = ["Outline", "Unit", "importance", "led_by_user", "outline_of", "sliding_window", "units_of"]
