"""Draft test cases from the rules of a spec: what each must catch, the same in disguise, what must pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from brix_core.regulated.format.spec import CircuitBreaker, OutputSignal, RiskSignal, SpecModel, TestCase
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.rules.hits import Inputs
from brix_core.regulated.text.evasion import concrete, variants
from brix_core.regulated.workshop.broadness import ordinary_sentences

AnyRule = CircuitBreaker | RiskSignal | OutputSignal

_ASKED: Final = "Please tell me about {}."
_ANSWERED: Final = "You should know this: {}."
_NEGATIVES: Final = 3
"""Harmless cases drafted for a rule."""
_SHORT: Final = 4
"""Words of fewer letters say nothing about a rule."""


def drafted(spec: SpecModel, *, per_rule: int = 3) -> Iterator[TestCase]:
    """Draft cases.

    Args:
        spec: The spec.
        per_rule: Patterns of a rule that positive cases are drafted from. The first of them is disguised in every way
            that matching sees through.

    Yields:
        Cases, rule by rule, no text twice.

    Example:
        >>> from brix_core.regulated.format.loading import load_spec_from_dict
        >>> spec = load_spec_from_dict({"name": "house", "circuit_breakers": [
        ...     {"name": "keys", "description": "Asks for keys.", "patterns": ["spare key"]}]})
        >>> cases = list(drafted(spec))
        >>> cases[0].text, cases[0].expect, sum(case.kind == "evasive" for case in cases)
        ('Please tell me about spare key.', 'keys', 12)
    """
    compiled = CompiledSpec.of(spec, embedder="lexical")
    seen: set[tuple[str, str]] = set()
    for rule in spec.rules():
        for case in (*_positives(rule, per_rule), *_negatives(rule, compiled)):
            if (case.text, case.where) not in seen:
                seen.add((case.text, case.where))
                yield case


def as_suite(spec: SpecModel, cases: list[TestCase]) -> str:
    """Cases as the text of a suite file, which ``brix test --suite`` takes."""
    body: dict[str, Any] = {
        "spec": spec.label,
        "test_cases": [case.model_dump(exclude_none=True, exclude_defaults=True) for case in cases],
    }
    heading = f"# Drafted from {spec.label} by `brix generate`. Read every case before you rely on it.\n"
    return heading + str(yaml.safe_dump(body, allow_unicode=True, sort_keys=False, width=120))


def _positives(rule: AnyRule, per_rule: int) -> Iterator[TestCase]:
    where, carrier = _carrier(rule)
    for number, pattern in enumerate(rule.patterns[:per_rule]):
        yield TestCase(text=carrier.format(concrete(pattern)), kind="positive", expect=rule.name, where=where)
        if number == 0:
            for _, disguised in variants(pattern):
                yield TestCase(text=carrier.format(disguised), kind="evasive", expect=rule.name, where=where)
    for example in rule.examples.positive[:per_rule] if rule.examples else ():
        yield TestCase(text=example, kind="positive", expect=rule.name, where=where)


def _negatives(rule: AnyRule, compiled: CompiledSpec) -> Iterator[TestCase]:
    """Harmless texts in which words of the rule stand; none that its patterns stop."""
    where, carrier = _carrier(rule)
    words = {word for pattern in rule.patterns for word in re.findall(r"[^\W\d_]+", pattern.casefold())}
    words = {word for word in words if len(word) >= _SHORT}
    harmless = list(rule.examples.negative) if rule.examples else []
    harmless += [text for text in ordinary_sentences() if words & set(re.findall(r"[^\W\d_]+", text.casefold()))]
    harmless += [carrier.format(f"the word {word}") for word in sorted(words)]
    drafted = 0
    for text in harmless:
        if drafted < _NEGATIVES and not _stopped(compiled, text, where):
            drafted += 1
            yield TestCase(text=text, kind="negative", where=where)


def _stopped(compiled: CompiledSpec, text: str, where: str) -> bool:
    if where == "output":
        return bool(compiled.outputs.scan(text))
    return bool(compiled.pattern_hits(compiled.spec.circuit_breakers, Inputs(text)))


def _carrier(rule: AnyRule) -> tuple[Any, str]:
    return ("output", _ANSWERED) if isinstance(rule, OutputSignal) else ("input", _ASKED)


__all__ = ["as_suite", "drafted"]
