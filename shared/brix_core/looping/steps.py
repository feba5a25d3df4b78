r"""The steps of an agent, read from its conversation: what it did, and what came of it.

A step is one assistant turn with its whole batch of tool calls and their results. Agents that write their calls as
text are read too: an assistant's ``Action:`` and the user message ``Observation:`` that answers it (LlamaIndex), or
both in the scratchpad at the end of one prompt (LangChain's ReAct).

Example:
    >>> from brix_core.turns import Turn
    >>> talk = [Turn("user", "2 + 2?"), Turn("assistant", "Action: add\nAction Input: [2, 2]"),
    ...         Turn("user", "Observation: 4")]
    >>> steps(talk, 10)[0].parts
    (('add', '[2, 2]', '4'),)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from brix_core.call import ToolCall
from brix_core.turns import ToolResult, Turn

_OBSERVATION: Final = re.compile(r"\s*Observation[ \d]*:[ \t]*", re.IGNORECASE)
_ACTION: Final = re.compile(r"^[ \t*]*Action[ \d]*:[ \t*]*(.*)$", re.MULTILINE)
_INPUT: Final = re.compile(r"^[ \t*]*Action Input[ \d]*:[ \t*]*", re.MULTILINE)
_NEXT: Final = re.compile(r"^[ \t*]*(?:Thought|Action)[ \d]*:", re.MULTILINE)
_INLINE: Final = re.compile(r"(\w+)\s*[\[(](.*)[\])]\s*", re.DOTALL)

_LONG_NUMBER: Final = re.compile(r"\d{16}")


class Step(NamedTuple):
    """One assistant turn, its tool calls and what came of them.

    Attributes:
        parts: Name, arguments and result of each call, in order.
        names: Names of the calls, sorted.
        results: Results, sorted.
    """

    parts: tuple[tuple[str, str, str], ...]
    names: tuple[str, ...]
    results: tuple[str, ...]

    @classmethod
    def of(cls, parts: Iterable[tuple[str, str, str]]) -> Step:
        """The step of these calls: name, arguments and result of each."""
        parts = tuple(parts)
        names = tuple(sorted(name for name, _, _ in parts))
        return cls(parts, names, tuple(sorted(result for _, _, result in parts)))

    def key(self) -> tuple[tuple[str, str, str], ...]:
        """Equal for the same batch of calls with the same results, in whatever order and notation."""
        return tuple(sorted((name, canonical(arguments), result) for name, arguments, result in self.parts))


class Taken(NamedTuple):
    """What an agent has done in a run, as its framework tells: a prompt that was shortened may show less of it.

    Attributes:
        run: Names the run.
        steps: The latest steps, oldest first.
    """

    run: str
    steps: tuple[Step, ...]


def steps(turns: Sequence[Turn], limit: int) -> list[Step]:
    """The latest steps since the user last spoke, oldest first.

    Args:
        turns: The conversation.
        limit: How many steps at most; no more of the conversation is looked at.
    """
    found: list[Step] = []
    results: list[ToolResult] = []
    for turn in reversed(turns):
        role = turn.role
        if role == "tool":
            results.extend(reversed(turn.results))
        elif role == "assistant":
            step = _step(turn, results)
            results = []
            if step is not None:
                found.append(step)
        elif role == "user":
            observed = _OBSERVATION.match(turn.text)
            if observed is None:
                found.extend(_scratchpad(turn.text, limit - len(found)))
                break
            results.append(ToolResult("", turn.text[observed.end() :]))
        if len(found) >= limit:
            break
    found.reverse()
    return found


def canonical(arguments: str) -> str:
    """Arguments in one notation: JSON without spaces, its keys sorted; what is no JSON as it is.

    Example:
        >>> canonical('{"b": 2, "a": 1}'), canonical(" Paris ")
        ('{"a":1,"b":2}', 'Paris')
        >>> canonical('{"wei": 20000000000000000001}')
        '{"wei":20000000000000000001}'
    """
    try:
        if _LONG_NUMBER.search(arguments):  # beyond 64 bits, all numbers look alike
            return json.dumps(json.loads(arguments, parse_float=str), separators=(",", ":"), sort_keys=True)
        return orjson.dumps(orjson.loads(arguments), option=orjson.OPT_SORT_KEYS).decode()
    except (ValueError, RecursionError):
        return arguments.strip()


def values(arguments: str) -> str:
    """The values in arguments, without the names that all calls of a tool share.

    Example:
        >>> values('{"city": "Paris", "days": [1, 2]}')
        'Paris 1 2'
    """
    try:
        return " ".join(_leaves(orjson.loads(arguments)))
    except orjson.JSONDecodeError:
        return arguments.strip()


def _step(turn: Turn, latest_first: Sequence[ToolResult]) -> Step | None:
    calls = turn.calls
    if not calls:
        written = _written_call(turn.text) if latest_first else None
        return None if written is None else _single(*written, latest_first[-1].text)
    if len(calls) == 1:
        text = latest_first[0].text if len(latest_first) == 1 else "\n".join(r.text for r in reversed(latest_first))
        return _single(calls[0].name, calls[0].arguments, text)
    results = _in_order(calls, latest_first)
    return Step.of((call.name, call.arguments, result) for call, result in zip(calls, results, strict=True))


def _single(name: str, arguments: str, result: str) -> Step:
    return Step(((name, arguments, result),), (name,), (result,))


def _in_order(calls: Sequence[ToolCall], latest_first: Sequence[ToolResult]) -> list[str]:
    """The result of each call: by its id, or by position where ids are missing or doubled."""
    by_id = {result.id: result.text for result in latest_first}
    if len(by_id) == len(latest_first) and "" not in by_id:
        return [by_id.get(call.id, "") for call in calls]
    texts = [result.text for result in reversed(latest_first)][: len(calls)]
    return texts + [""] * (len(calls) - len(texts))


def _written_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of the last ``Action:`` in a text."""
    start = text.rfind("Action Input")
    start = text.rfind("Action", 0, start if start > 0 else None)
    start = text.rfind("\n", 0, start + 1) + 1
    action = _ACTION.search(text, start) if start >= 0 else None
    if action is None:
        return None
    given = _INPUT.search(text, action.end())
    if given is not None:
        return action[1].strip(), text[given.end() :].strip()
    inline = _INLINE.fullmatch(action[1])
    return (inline[1], inline[2]) if inline else (action[1].strip(), "")


def _scratchpad(text: str, limit: int) -> Iterator[Step]:
    """Steps written into one prompt, the latest first."""
    if limit < 1 or "\nObservation" not in text:
        return
    pieces = text.rsplit("\nObservation", limit)
    for before, after in zip(reversed(pieces[:-1]), reversed(pieces[1:]), strict=True):
        call = _written_call(before)
        if call is None:
            return
        following = _NEXT.search(after)
        result = after[: following.start()] if following else after
        yield _single(*call, result.partition(":")[2].strip())


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield str(value)


__all__ = ["Step", "Taken", "canonical", "steps", "values"]
