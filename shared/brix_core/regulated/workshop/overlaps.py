"""Patterns that say what others say already, and rules that can never decide anything.

A pattern *covers* another when it matches everything the other does. It is found by trying: each pattern is written out
as the texts it stands for, and all patterns are run over them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from brix_core.regulated.format.consistency import Location
from brix_core.regulated.format.spec import CircuitBreaker, SpecModel
from brix_core.regulated.text.grammar import ways
from brix_core.regulated.text.patterns import PatternSet

_Said = Iterator[tuple[Literal["error", "warning", "note"], str, Location, str]]


class _Place(NamedTuple):
    """A pattern and where it stands."""

    group: str
    rule: Any
    at: Location
    pattern: str


def samples(pattern: str, filler: str = "zorblat quimby") -> list[str]:
    """Texts that a pattern stands for: gaps closed and filled, every alternative once.

    Args:
        pattern: The pattern.
        filler: What stands in a gap.

    Example:
        >>> samples("(spare|second) ... =key")
        ['spare key', 'spare zorblat quimby key', 'second key', 'second zorblat quimby key']
    """
    texts: dict[str, None] = {}
    for way in ways(pattern):
        written = [item.text for item in way]
        others = [(place, other.text) for place, item in enumerate(way) for other in item.others]
        others += [(place, re.sub("[-/]", " ", word)) for place, word in enumerate(written) if re.search("[-/]", word)]
        for place, word in ((0, written[0]), *others):
            words = [*written[:place], word, *written[place + 1 :]]
            texts[" ".join(word for word in words if word)] = None
            texts[" ".join(word or filler for word in words)] = None
    return list(texts)


def overlaps(spec: SpecModel) -> _Said:
    """What lint says of patterns that cover each other."""
    for groups in (("circuit_breakers", "risk_signals"), ("output_signals",)):
        places = [
            _Place(group, rule, (group, number, "patterns", position), pattern)
            for group in groups
            for number, rule in enumerate(getattr(spec, group))
            for position, pattern in enumerate(rule.patterns)
        ]
        covers = _covers([place.pattern for place in places])
        for index, place in enumerate(places):
            yield from _of_pattern(index, place, places, covers)
        if "circuit_breakers" in groups:
            yield from _unreachable(spec, places, covers)
    yield from _excluding_itself(spec)


def _covers(patterns: Sequence[str]) -> list[set[int]]:
    """For each pattern, the positions of those that match all it does; itself among them."""
    compiled = PatternSet({str(number): [pattern] for number, pattern in enumerate(patterns)})
    covers = []
    for number, pattern in enumerate(patterns):
        others: set[int] | None = None
        for text in samples(pattern):
            found = {int(match.rule) for match in compiled.scan(text)} - {number}
            others = found if others is None else others & found
            if not others:
                break
        covers.append({number} | (others or set()))
    return covers


def _of_pattern(index: int, place: _Place, places: Sequence[_Place], covers: Sequence[set[int]]) -> _Said:
    others = sorted(covers[index] - {index})
    same_rule = [number for number in others if places[number].rule is place.rule]
    # Of two that cover each other, the later one is told.
    redundant = [number for number in same_rule if index not in covers[number] or number < index]
    if redundant:
        other = places[redundant[0]].pattern
        yield (
            "warning",
            "redundant-pattern",
            place.at,
            f"pattern {place.pattern!r} matches nothing that {other!r} does not match already; remove one",
        )
    told: set[str] = set()
    for number in others:
        other_place = places[number]
        if other_place.rule is place.rule or other_place.rule.name in told:
            continue
        if index in covers[number] and number > index:
            continue  # told at the later one
        told.add(other_place.rule.name)
        if index in covers[number]:
            what = f"pattern {place.pattern!r} also stands in rule {other_place.rule.name!r}; keep it in one of them"
            yield "warning", "shared-pattern", place.at, what
        else:
            what = (
                f"all that pattern {place.pattern!r} matches is matched by {other_place.pattern!r} of rule "
                f"{other_place.rule.name!r} too"
            )
            yield "note", "overlap", place.at, what


def _unreachable(spec: SpecModel, places: Sequence[_Place], covers: Sequence[set[int]]) -> _Said:
    """Breakers that earlier ones always forestall."""
    order = {rule.name: number for number, rule in enumerate(spec.circuit_breakers)}
    for number, rule in enumerate(spec.circuit_breakers):
        own = [index for index, place in enumerate(places) if place.rule is rule]
        if not own or rule.examples:
            continue
        forestalling = [
            [
                places[other].rule.name
                for other in covers[index]
                if order.get(places[other].rule.name, number) < number and _reaches(places[other].rule, rule)
            ]
            for index in own
        ]
        if all(forestalling):
            names = ", ".join(sorted({name for some in forestalling for name in some}))
            yield (
                "warning",
                "unreachable-rule",
                ("circuit_breakers", number),
                f"whatever meets this rule meets {names} before it, so it never decides anything",
            )


def _reaches(earlier: CircuitBreaker, later: CircuitBreaker) -> bool:
    """Whether the earlier breaker looks wherever the later one does, and nothing excludes it."""
    return (
        not earlier.exclude_context
        and set(later.applies_to) <= set(earlier.applies_to)
        and earlier.scope in (later.scope, "conversation")
    )


def _excluding_itself(spec: SpecModel) -> _Said:
    for group in ("circuit_breakers", "risk_signals"):
        for number, rule in enumerate(getattr(spec, group)):
            if not rule.exclude_context or not rule.patterns:
                continue
            phrases = PatternSet({phrase: [phrase] for phrase in rule.exclude_context})
            for position, phrase in enumerate(rule.exclude_context):
                cancelled = [
                    pattern
                    for pattern in rule.patterns
                    if all(phrase in {match.rule for match in phrases.scan(text)} for text in samples(pattern))
                ]
                if cancelled:
                    yield (
                        "warning",
                        "excludes-itself",
                        (group, number, "exclude_context", position),
                        f"exclude_context {phrase!r} stands in all that pattern {cancelled[0]!r} matches",
                    )


__all__ = ["overlaps", "samples"]
