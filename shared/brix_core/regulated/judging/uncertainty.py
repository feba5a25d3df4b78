"""What several answers to one question tell: that the model is sure, does not know, or contradicts itself.

Answers are put into groups that say the same. Tool calls say the same when they are equal, structured answers when
their instances are, texts when their vectors are alike and nothing in them conflicts: verdicts (yes and no), numbers
with their units, and denials, none of which vectors tell well. (The idea of groups by meaning is that of semantic
entropy: S. Farquhar et al., "Detecting hallucinations in large language models using semantic entropy", Nature 630,
2024.)

Cues of language (doubt, open questions, yes and no) are English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, Final, Literal, NamedTuple

from brix_core.call import CallResponse
from brix_core.embedding import Embedder, LexicalEmbedder, Vectors, similarities
from brix_core.looping.steps import canonical
from brix_core.regulated.judging.result import UncertaintyType

ALIKE: Final = 0.8
"""The cosine from which two texts say the same."""

ALIKE_SPELLING: Final = 0.5
"""The same, for the lexical embedder, which compares spelling."""

SHORT: Final = 300
"""Characters up to which a denial or a differing number is about the whole answer."""

_DOUBT: Final = re.compile(
    r"\bI(?:\s+(?:do\s+not|don['\u2019]?t)\s+(?:know|have\s+(?:enough|sufficient|reliable|access|information))"
    r"|(?:\s+am|['\u2019]m)\s+(?:not\s+(?:sure|certain|aware)|unsure|uncertain)"
    r"|\s+(?:cannot|can['\u2019]t|am\s+(?:unable|not\s+able)\s+to|could\s+not)\s+(?:confirm|verify|determine|say|find))"
    r"|\b(?:not\s+enough|insufficient|no\s+reliable)\s+(?:information|evidence|data)\b"
    r"|\bit\s+is\s+(?:unclear|unknown|not\s+known|uncertain)\b",
    re.IGNORECASE,
)
_OPEN: Final = re.compile(
    r"\b(?:write|draft|compose|suggest|brainstorm|imagine|invent|recommend|ideas?|examples?|tips|advice|opinions?|"
    r"think|feel|pros\s+and\s+cons|should\s+(?:I|we|one)|ways?|options?|strateg(?:y|ies)|approach(?:es)?|"
    r"best|favou?rite|better|describe|tell\s+me\s+about)\b",
    re.IGNORECASE,
)
_VERDICT: Final = re.compile(
    r"\W*(?:(yes|yeah|yep|true|correct|certainly|definitely)|(no|nope|false|incorrect|never))\b", re.I
)
_DENIAL: Final = re.compile(r"\b(?:not|no|never|none|cannot|without|unsafe|illegal)\b|n['\u2019]t\b", re.IGNORECASE)
_NUMBER: Final = re.compile(r"(\d+(?:[.,\u2019' ]\d{3})*(?:[.,]\d+)?)\s*(%|[A-Za-z\u00b5\u03bc]+)?")
_WORD: Final = re.compile(r"[^\W\d_]+")
_UNITS: Final[dict[str, tuple[float, str]]] = {
    "kg": (1e6, "mg"), "g": (1e3, "mg"), "gram": (1e3, "mg"), "grams": (1e3, "mg"), "mg": (1.0, "mg"),
    "milligram": (1.0, "mg"), "milligrams": (1.0, "mg"), "mcg": (1e-3, "mg"), "\u00b5g": (1e-3, "mg"),
    "\u03bcg": (1e-3, "mg"), "l": (1e3, "ml"), "liter": (1e3, "ml"), "liters": (1e3, "ml"), "litre": (1e3, "ml"),
    "litres": (1e3, "ml"), "ml": (1.0, "ml"), "percent": (1.0, "%"), "%": (1.0, "%"),
}  # fmt: skip


class Answer(NamedTuple):
    """An answer, ready to be compared.

    Attributes:
        kind: Whether it is a text, asks for tools, or is an instance of a response schema.
        value: What is compared for equality.
        text: It in words.
    """

    kind: Literal["text", "tools", "instance"]
    value: Any
    text: str

    @classmethod
    def of(cls, response: CallResponse) -> Answer:
        """From a response.

        Example:
            >>> Answer.of(CallResponse(text="It  is SAFE.")).value
            'it is safe.'
        """
        if response.parsed is not None:
            return cls("instance", response.parsed, response.text.strip() or repr(response.parsed))
        if response.tool_calls:
            calls = sorted((call.name, canonical(call.arguments)) for call in response.tool_calls)
            return cls("tools", calls, "; ".join(f"call {name}({arguments})" for name, arguments in calls))
        return cls("text", " ".join(response.text.casefold().split()), response.text.strip())


class Assessment(NamedTuple):
    """What the answers tell.

    Attributes:
        kind: The uncertainty.
        subtype: Which way.
        groups: Indexes of the answers that say the same; the largest group first.
        consistency: Mean cosine of all pairs; None when there is one answer.
    """

    kind: UncertaintyType
    subtype: str
    groups: tuple[tuple[int, ...], ...]
    consistency: float | None = None

    @property
    def chosen(self) -> int:
        """Index of the first answer of the largest group."""
        return self.groups[0][0]

    @property
    def has_majority(self) -> bool:
        """Whether more than half of the answers say the same."""
        return 2 * len(self.groups[0]) > sum(map(len, self.groups))


def assess(answers: Sequence[Answer], query: str, embedder: Embedder) -> Assessment:
    """Tell what answers to one question mean for it.

    Args:
        answers: The answers; at least one.
        query: The question.
        embedder: Compares texts.

    Raises:
        BrixGuardError: The embedder failed.

    Example:
        >>> said = lambda *texts: [Answer.of(CallResponse(text=text)) for text in texts]
        >>> assess(said("At most 4 g a day.", "At most 4000 mg a day."), "How much?", LexicalEmbedder()).kind.value
        'certain'
        >>> found = assess(said("At most 4 g a day.", "At most 10 g a day."), "How much?", LexicalEmbedder())
        >>> found.kind.value, found.subtype, found.has_majority
        ('contradictory', 'numbers', False)
    """
    agreed = unanimous(answers, query)
    if agreed is not None:
        return agreed
    cosines = _cosines(answers, embedder)
    alike = ALIKE_SPELLING if embedder.name == LexicalEmbedder.name else ALIKE
    pairs = list(combinations(range(len(answers)), 2))
    conflicts = {pair: conflict(answers[pair[0]], answers[pair[1]]) for pair in pairs}

    def same(one: int, other: int) -> bool:
        first, second = answers[one], answers[other]
        equal = first.kind == second.kind and first.value == second.value
        return equal or (not conflicts[one, other] and float(cosines[one][other]) >= alike)

    groups = _grouped(len(answers), same)
    consistency = max(0.0, min(1.0, sum(float(cosines[one][other]) for one, other in pairs) / len(pairs)))
    kind, subtype = _judged(answers, query, groups, [found for found in conflicts.values() if found])
    return Assessment(kind, subtype, groups, consistency)


def unanimous(answers: Sequence[Answer], query: str) -> Assessment | None:
    """What equal answers tell; None when they are not all equal. No embedder is needed for it."""
    first = answers[0]
    if any(answer.kind != first.kind or answer.value != first.value for answer in answers[1:]):
        return None
    everyone = (tuple(range(len(answers))),)
    kind, subtype = _judged(answers, query, everyone, ())
    return Assessment(kind, subtype, everyone, 1.0 if len(answers) > 1 else None)


def _judged(
    answers: Sequence[Answer], query: str, groups: Sequence[Sequence[int]], conflicts: Sequence[str]
) -> tuple[UncertaintyType, str]:
    doubts = sum(answer.kind == "text" and _DOUBT.search(answer.text) is not None for answer in answers)
    if 2 * doubts > len(answers):
        return UncertaintyType.EPISTEMIC, "doubt"
    if len(groups) == 1:
        return UncertaintyType.CERTAIN, "agreement"
    if conflicts:
        return UncertaintyType.CONTRADICTORY, conflicts[0]
    if 2 * len(groups[0]) > len(answers):
        return UncertaintyType.CERTAIN, "majority"
    if _OPEN.search(query):
        return UncertaintyType.OPEN_ENDED, "several_answers"
    return UncertaintyType.EPISTEMIC, "divergence"


def conflict(one: Answer, other: Answer) -> str:
    """Why two answers cannot both be true, in a word; empty when nothing says so.

    Example:
        >>> text = lambda said: Answer.of(CallResponse(text=said))
        >>> conflict(text("Yes, it is."), text("No. It is not."))
        'verdict'
        >>> conflict(text("It is safe for children."), text("It is not safe for children."))
        'negation'
        >>> conflict(text("Take it with food."), text("Take it with water."))
        ''
    """
    if one.kind == other.kind and one.value == other.value:
        return ""
    if one.kind != other.kind or one.kind == "tools":
        return "tool_calls"
    first, second = _VERDICT.match(one.text), _VERDICT.match(other.text)
    if first and second and bool(first[1]) != bool(second[1]):
        return "verdict"
    short = max(len(one.text), len(other.text)) <= SHORT
    numbers, others = set(_numbers(one.text)), set(_numbers(other.text))
    if numbers and others and (numbers.isdisjoint(others) or (short and numbers - others and others - numbers)):
        return "numbers"
    if (
        short
        and bool(_DENIAL.search(one.text)) != bool(_DENIAL.search(other.text))
        and _overlap(one.text, other.text) > 0.6
    ):
        return "negation"
    return ""


def _numbers(text: str) -> Iterator[tuple[float, str]]:
    """Numbers with their units, masses and volumes in one unit each."""
    for number, unit in _NUMBER.findall(text):
        plain = re.sub(r"[,\u2019' ](?=\d{3}(?:\D|$))", "", number).replace(",", ".")
        try:
            value = float(plain)
        except ValueError:  # several separators: a date, a version
            continue
        factor, name = _UNITS.get(unit.casefold(), (1.0, ""))
        yield round(value * factor, 9), name


def _overlap(one: str, other: str) -> float:
    """How many of their words two texts share, those that deny left out."""
    words, others = (set(_WORD.findall(_DENIAL.sub(" ", text).casefold())) for text in (one, other))
    return len(words & others) / len(words | others) if words or others else 1.0


def _grouped(count: int, same: Callable[[int, int], bool]) -> tuple[tuple[int, ...], ...]:
    """Put each answer to the first group all of which say the same; the largest group first, then the earliest."""
    groups: list[list[int]] = []
    for number in range(count):
        fitting = [group for group in groups if all(same(member, number) for member in group)]
        if fitting:
            fitting[0].append(number)
        else:
            groups.append([number])
    return tuple(sorted(map(tuple, groups), key=lambda group: (-len(group), group[0])))


def _cosines(answers: Sequence[Answer], embedder: Embedder) -> list[Vectors]:
    vectors = embedder.embed([answer.text for answer in answers])
    return [similarities(vectors, vector) for vector in vectors]


__all__ = ["ALIKE", "ALIKE_SPELLING", "Answer", "Assessment", "assess", "conflict", "unanimous"]
