"""Patterns that match what ordinary people say about ordinary things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

from brix_core.regulated.format.consistency import Location
from brix_core.regulated.format.loading import SPECS
from brix_core.regulated.format.spec import RULE_GROUPS, SpecModel
from brix_core.regulated.text.patterns import PatternSet

MOST: Final = 0.05
"""Share of ordinary sentences that a pattern of a signal may match; of a circuit breaker, none."""


@cache
def ordinary_sentences() -> tuple[str, ...]:
    """The ordinary sentences that come with the toolkit; none when the file is absent."""
    file = SPECS / "ordinary.txt"
    if not file.is_file():
        return ()
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def over_broad(spec: SpecModel, sentences: Sequence[str]) -> Iterator[tuple[Location, str, int, str]]:
    """Patterns that match too many of some harmless sentences.

    Args:
        spec: The spec.
        sentences: Sentences that no rule is meant for.

    Yields:
        Where the pattern stands, the pattern, how many sentences it matches, and the first of them.

    Example:
        >>> from brix_core.regulated.format.loading import load_spec_from_dict
        >>> spec = load_spec_from_dict({"name": "house", "circuit_breakers": [
        ...     {"name": "keys", "description": "Asks for keys.", "patterns": ["key", "door key"]}]})
        >>> list(over_broad(spec, ["The key to success is sleep.", "Which key is this song in?"]))
        [(('circuit_breakers', 0, 'patterns', 0), 'key', 2, 'The key to success is sleep.')]
    """
    places = [
        (group, number, position)
        for group in RULE_GROUPS
        for number, rule in enumerate(getattr(spec, group))
        for position in range(len(rule.patterns))
    ]
    rules = [getattr(spec, group)[number] for group, number, _ in places]
    patterns = [rule.patterns[position] for rule, (_, _, position) in zip(rules, places, strict=True)]
    compiled = PatternSet({str(index): [pattern] for index, pattern in enumerate(patterns)})
    matched: dict[int, list[str]] = {}
    for sentence in sentences:
        for index in {int(match.rule) for match in compiled.scan(sentence)}:
            matched.setdefault(index, []).append(sentence)
    for index, found in sorted(matched.items()):
        group, number, position = places[index]
        if len(found) > (0.0 if group == "circuit_breakers" else MOST) * len(sentences):
            yield (group, number, "patterns", position), patterns[index], len(found), found[0]


__all__ = ["MOST", "ordinary_sentences", "over_broad"]
