"""How much each part of a conversation matters to its latest question: a score without a model.

For a unit u of n (see `brix_core.trimming.units`), with terms T(u) and those of the user's last words Q::

    score(u) = 0.35 * recency + 0.40 * reference + 0.15 * role + 0.10 * brevity

    recency    (number of u, from 1) / n
    reference  share of Q's weight that u mentions: sum of w(t) over t in T(u) and Q, by that over t in Q
    w(t)       log(1 + n / other units that mention t), the inverse document frequency (K. Sparck Jones, "A
               statistical interpretation of term specificity", 1972); double for numbers and names; 0 for what
               no other unit mentions
    role       1 for a user, 0.7 for an assistant, 0.4 for a tool exchange
    brevity    1 / (1 + tokens of u / mean tokens of a unit)

A term is a word of three letters or more in lower case, or a number; writing without spaces (Chinese, Japanese, Thai,
...) counts by pairs of characters. A name is a word that the user's last words write with a capital letter.

The weights are an assumption: what the user refers to comes first, then what is recent.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final

from brix_core.turns import Turn

RECENCY: Final = 0.35
REFERENCE: Final = 0.40
ROLE: Final = 0.15
BREVITY: Final = 0.10

_ROLES: Final = {"user": 1.0, "assistant": 0.7}
_TOOLS: Final = 0.4

MAX_CHARACTERS: Final = 20_000
"""How much of a text is read for its terms."""

_SHORT: Final = 1_000
"""Characters of a text whose terms are remembered: the memory for them stays below some 20 MB."""

_WORD: Final = re.compile(r"\w+")
_UNSPACED: Final = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def scores(turns: Sequence[Turn], units: Sequence[tuple[int, ...]], costs: Sequence[int]) -> list[float]:
    """The score of each unit, between 0 and 1.

    Args:
        turns: What each message says.
        units: Positions of messages that belong together, for each unit.
        costs: Tokens of each unit.

    Example:
        >>> said = ["The code is 4711.", "Noted.", "Nice weather.", "Indeed.", "What was the code?"]
        >>> talk = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(said)]
        >>> found = scores(talk, [(0,), (1,), (2,), (3,), (4,)], [10] * 5)
        >>> found[0] > found[1], found[0] > found[2]
        (True, True)
    """
    count = len(units)
    mean = sum(costs) / max(1, count) or 1.0
    last = max((position for position, turn in enumerate(turns) if turn.role == "user"), default=len(turns) - 1)
    question = turns[last].text if turns else ""
    asked = terms(question)
    mentioned = [_mentioned([turns[position] for position in unit], asked) for unit in units]
    weights = _weights(question, [found for found, unit in zip(mentioned, units, strict=True) if last not in unit])
    whole = math.fsum(weights.values()) or 1.0  # `fsum`: the order of a set must not show
    found = []
    for number, unit in enumerate(units):
        reference = math.fsum(weights.get(term, 0.0) for term in mentioned[number]) / whole
        role = _TOOLS if turns[unit[0]].calls or turns[unit[0]].results else _ROLES.get(turns[unit[0]].role, 1.0)
        brevity = 1.0 / (1.0 + costs[number] / mean)
        found.append(RECENCY * (number + 1) / count + REFERENCE * reference + ROLE * role + BREVITY * brevity)
    return found


def terms(text: str) -> frozenset[str]:
    """The terms of a text.

    Example:
        >>> sorted(terms("Order 42 of Ann: is it late?"))
        ['42', 'ann', 'late', 'order']
    """
    return _cached(text) if len(text) <= _SHORT else frozenset(_terms(text[:MAX_CHARACTERS].lower()))


@lru_cache(maxsize=2_048)
def _cached(text: str) -> frozenset[str]:
    return frozenset(_terms(text.lower()))


def _terms(text: str) -> Iterator[str]:
    for word in _WORD.findall(text):
        if not word.isascii() and _UNSPACED.search(word):
            yield from map("".join, pairwise(word))
        elif len(word) > 2 or word.isdigit():
            yield word


def _mentioned(turns: Sequence[Turn], asked: frozenset[str]) -> frozenset[str]:
    """Those of the terms that a unit mentions."""
    if len(turns) == 1 and not turns[0].calls and not turns[0].results:
        return asked & terms(turns[0].text)
    texts = [turn.text for turn in turns]
    for turn in turns:
        texts += [part for call in turn.calls for part in (call.name, call.arguments)]
        texts += [result.text for result in turn.results]
    return frozenset().union(*(asked & terms(text) for text in texts))


def _weights(question: str, others: Sequence[frozenset[str]]) -> dict[str, float]:
    """What it tells that a unit mentions a term of the question."""
    spread = Counter(term for found in others for term in found)
    names = {word.lower() for word in _WORD.findall(question[:MAX_CHARACTERS]) if word[0].isupper()}
    return {
        term: math.log(1 + len(others) / units) * (2 if term in names or term[0].isdigit() else 1)
        for term, units in spread.items()
    }


__all__ = ["BREVITY", "MAX_CHARACTERS", "RECENCY", "REFERENCE", "ROLE", "scores", "terms"]
