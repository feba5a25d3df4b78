"""Every positive case of the built-in specs, written so that a simple filter misses it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest

from brix_core.regulated.format.loading import BUILT_IN, load_spec
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.text.evasion import WAYS
from brix_core.regulated.text.patterns import PatternSet

WANTED = 0.98
"""Share of perturbed cases that must still be caught."""


class Case(NamedTuple):
    """A positive case that the patterns of the rule it expects find, and where the first of them stands."""

    spec: str
    rule: str
    patterns: PatternSet
    text: str
    start: int
    end: int


@cache
def cases() -> tuple[Case, ...]:
    """Of all built-in specs; cases that only examples find are left out."""
    found = []
    for name in BUILT_IN:
        compiled = CompiledSpec.of(name, embedder="lexical")
        for case in compiled.spec.test_cases:
            if case.kind != "positive" or not case.expect:
                continue
            patterns = compiled.outputs if case.where == "output" else compiled.patterns
            places = [match for match in patterns.scan(case.text) if match.rule == case.expect]
            if places:
                found.append(Case(name, case.expect, patterns, case.text, places[0].start, places[0].end))
    return tuple(found)


@cache
def alone(spec: str, rule: str) -> PatternSet:
    """The patterns of one rule: they find what they find among all, in a fraction of the time."""
    known = load_spec(spec).rule(rule)
    assert known is not None
    return PatternSet({rule: known.patterns})


def missed(way: str, *, whole: bool) -> list[str]:
    """Perturbed texts that were not caught."""
    write, texts = WAYS[way], []
    for case in cases():
        start, end = (0, len(case.text)) if whole else (case.start, case.end)
        text = case.text[:start] + write(case.text[start:end]) + case.text[end:]
        if not alone(case.spec, case.rule).scan(text):
            texts.append(f"{case.spec}/{case.rule}: {text!r}")
    return texts


def test_twelve_perturbations_and_enough_cases() -> None:
    assert len(WAYS) == 12
    assert {case.spec for case in cases()} == set(BUILT_IN)
    assert len(cases()) >= 250


@pytest.mark.parametrize("whole", [False, True], ids=["matched words", "whole text"])
def test_positive_cases_are_still_caught(whole: bool, record_property: Callable[[str, object], None]) -> None:
    rates = {}
    for way in WAYS:
        texts = missed(way, whole=whole)
        rates[way] = 1 - len(texts) / len(cases())
        record_property(way, rates[way])
        print(f"{way:>16}: {rates[way]:.1%} of {len(cases())}")
        for text in texts:
            print(f"{'missed':>16}: {text}")
    overall = sum(rates.values()) / len(rates)
    record_property("overall", overall)
    print(f"{'overall':>16}: {overall:.2%}")
    assert overall >= WANTED
    assert {way: rate for way, rate in rates.items() if rate < WANTED} == {}


@pytest.mark.parametrize("way", ["spaced", "leet"])
def test_a_rule_alone_finds_what_it_finds_among_all(way: str) -> None:
    for case in cases()[::5]:
        text = WAYS[way](case.text)
        among_all = [match for match in case.patterns.scan(text) if match.rule == case.rule]
        assert alone(case.spec, case.rule).scan(text) == among_all


def test_a_perturbed_text_differs_from_the_case() -> None:
    assert [way for way, write in WAYS.items() if any(write(case.text) == case.text for case in cases())] == []
