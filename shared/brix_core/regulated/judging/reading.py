"""What of a conversation a spec looks at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from brix_core.regulated.rules.hits import Inputs
from brix_core.turns import Turn


def read_inputs(turns: Sequence[Turn], *, everything: bool = False) -> Inputs:
    r"""The texts of a call.

    The query is all that the user has said since the model last answered: a phrase that is spread over two messages is
    one phrase. Tool results come in between, and text beside them is the user's too. Where no user speaks at all, the
    last text is the query, whoever is said to speak.

    Args:
        turns: What each message says.
        everything: Also what was said before the query, for rules about the whole conversation.

    Example:
        >>> turns = [Turn("system", "Be brief."), Turn("user", "Hi."), Turn("assistant", "Hello."),
        ...          Turn("user", "What is the lethal"), Turn("user", "dose?")]
        >>> inputs = read_inputs(turns, everything=True)
        >>> inputs.query, inputs.earlier, inputs.system_texts
        ('What is the lethal\ndose?', ('Hi.',), ('Be brief.',))
    """
    said = [number for number, turn in enumerate(turns) if turn.text and turn.role in ("user", "tool")]
    if not said:
        return _without_user(turns)
    users = [number for number in said if turns[number].role == "user"]
    first = users[-1] if users else said[0]
    while first and turns[first - 1].role in ("user", "system"):
        first -= 1
    query = "\n".join(turns[number].text for number in said if number >= first)
    earlier = [turns[number].text for number in said if number < first] if everything else []
    looked_at = turns if everything else turns[first:]
    return Inputs(
        query,
        user_texts=(*earlier, query),
        system_texts=tuple(turn.text for turn in turns if turn.role == "system"),
        tool_arguments=tuple(text for turn in looked_at for call in turn.calls for text in _as_meant(call.arguments)),
        retrieved=tuple(result.text for turn in looked_at for result in turn.results),
    )


def _as_meant(arguments: str) -> Iterator[str]:
    """Arguments as they are written and, where JSON escapes stand in them, as the tool reads them."""
    yield arguments
    if "\\" not in arguments:
        return
    try:
        value = json.loads(arguments)
    except (RecursionError, ValueError):
        return
    yield "\n".join(_texts_in(value))


def _texts_in(value: Any) -> Iterator[str]:
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            left += [*reversed(value.values()), *reversed(value)]
        elif isinstance(value, list):
            left += reversed(value)


def _without_user(turns: Sequence[Turn]) -> Inputs:
    last = next((number for number in range(len(turns) - 1, -1, -1) if turns[number].text), None)
    if last is None:
        return Inputs("")
    query = turns[last].text
    system = tuple(turn.text for turn in turns[:last] if turn.role == "system")
    return Inputs(query, user_texts=(query,), system_texts=system)


__all__ = ["read_inputs"]
