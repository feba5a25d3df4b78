"""What a spec looks at, and what it finds there."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from brix_core.regulated.format.spec import CircuitBreaker, OutputSignal, RiskSignal

Where = Literal["query", "user", "tool_arguments", "retrieved", "answer"]
"""In what something was found: the user's last message, an earlier one, and so on."""

CONTEXT: Final = 60
"""Characters of an excerpt before and after what was found."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The texts of one call.

    Attributes:
        query: The user's last message.
        user_texts: All that the user said, in order; with or without the last.
        system_texts: The system messages.
        tool_arguments: Arguments of the model's tool calls, as text.
        retrieved: Documents that were retrieved for the call.

    Example:
        >>> Inputs("And for a child?", user_texts=("How much ibuprofen may I take?", "And for a child?")).earlier
        ('How much ibuprofen may I take?',)
    """

    query: str
    user_texts: Sequence[str] = ()
    system_texts: Sequence[str] = ()
    tool_arguments: Sequence[str] = ()
    retrieved: Sequence[str] = ()
    known: dict[Hashable, Any] = field(default_factory=dict, repr=False)  # what was found in them already

    @property
    def earlier(self) -> tuple[str, ...]:
        """What the user said before the last message."""
        texts = tuple(self.user_texts)
        return texts[:-1] if texts and texts[-1] == self.query else texts


class Found(NamedTuple):
    """One place that a rule is about.

    Attributes:
        rule: Name of the rule.
        pattern: The pattern that matched there, or ``"like: "`` and the example that is nearest in meaning.
        start: Where it begins in the text it was found in, characters.
        end: Where it ends.
        where: Which text that is.
        excerpt: The place and some text around it.
        excerpt_start: Where the excerpt begins in the text.
    """

    rule: str
    pattern: str
    start: int
    end: int
    where: Where
    excerpt: str
    excerpt_start: int

    @classmethod
    def at(cls, rule: str, pattern: str, span: tuple[int, int], where: Where, text: str) -> Found:
        """With the excerpt cut out of `text`.

        Example:
            >>> found = Found.at("dose", "lethal dose", (12, 23), "query", "What is the lethal dose of it?")
            >>> found.excerpt[found.start - found.excerpt_start : found.end - found.excerpt_start]
            'lethal dose'
        """
        start, end = span
        begin = max(0, start - CONTEXT)
        return cls(rule, pattern, start, end, where, text[begin : end + CONTEXT], begin)

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a trace."""
        return self._asdict()


class Hit(NamedTuple):
    """A rule that was met.

    Attributes:
        rule: The rule. For a signal that is a callable, a risk signal made for it, its weight what it returned.
        name: The rule's name.
        matches: Where it was met; what gave the highest score first.
        score: 1.0 for a pattern, the similarity for an example, what a callable returned.
        excluded_by: The phrase of ``exclude_context`` that lowers the rule here; None when none does. A breaker that is
            excluded stops nothing, a signal that is excluded raises no risk.

    Example:
        >>> rule = RiskSignal(name="dosage", description="Asks for a dose.", patterns=("dose",), weight=0.5)
        >>> Hit(rule, "dosage", (), 1.0).weight
        0.5
    """

    rule: CircuitBreaker | RiskSignal | OutputSignal
    name: str
    matches: tuple[Found, ...]
    score: float
    excluded_by: str | None = None

    @property
    def weight(self) -> float:
        """How much it raises the risk, in [0, 1]; 1 for a breaker."""
        return getattr(self.rule, "weight", 1.0)

    @property
    def counts(self) -> bool:
        """Whether it is not excluded."""
        return self.excluded_by is None


__all__ = ["CONTEXT", "Found", "Hit", "Inputs", "Where"]
