"""What no single field of a spec can tell: whether its parts fit together.

Works on plain data, whatever is wrong with it elsewhere, so that all problems of a spec are told at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from brix_core.regulated.text.grammar import WORDS, GrammarError, phrases, ways

Location = tuple[str | int, ...]
"""Where in a spec: keys and positions, from the top."""

_INPUT: Final = ("circuit_breakers", "risk_signals")
_GROUPS: Final = (*_INPUT, "output_signals")
_PARTS: Final = re.compile(r"[^\W_]+")


class Finding(NamedTuple):
    """One inconsistency.

    Attributes:
        at: Where it is.
        rule: The rule it is about; empty when it is about none.
        message: What does not fit.
    """

    at: Location
    rule: str
    message: str


def inconsistencies(data: Any) -> Iterator[Finding]:
    """Everything in a spec that does not fit together; values of a wrong type are passed over.

    Example:
        >>> twice = [{"name": "a", "patterns": ["x y"]}, {"name": "a", "patterns": ["z"]}]
        >>> [finding.message for finding in inconsistencies({"risk_signals": twice})]
        ["name 'a' is taken by risk_signals[0]; names are unique over all rules"]
    """
    if not isinstance(data, Mapping):
        return
    yield from _names(data)
    for group, number, rule in rules_of(data):
        yield from _rule((group, number), rule)
    yield from _uncertainties(data)
    yield from _sampling(data)
    yield from _cases(data)


def rules_of(data: Mapping[str, Any]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Group, position and rule, for everything in a spec that looks like one."""
    for group in _GROUPS:
        for number, rule in enumerate(_list(data.get(group))):
            if isinstance(rule, Mapping):
                yield group, number, rule


def _names(data: Mapping[str, Any]) -> Iterator[Finding]:
    taken: dict[str, str] = {}
    for group, number, rule in rules_of(data):
        name = _text(rule.get("name"))
        if name in taken:
            yield Finding(
                (group, number, "name"),
                name,
                f"name {name!r} is taken by {taken[name]}; names are unique over all rules",
            )
        elif name:
            taken[name] = f"{group}[{number}]"


def _rule(at: Location, rule: Mapping[str, Any]) -> Iterator[Finding]:
    name = _text(rule.get("name"))
    if not rule.get("patterns") and not rule.get("examples"):
        yield Finding(at, name, "has neither patterns nor examples, so it can never match; give one of them")
    yield from _patterns((*at, "patterns"), name, rule.get("patterns"))
    yield from _patterns((*at, "exclude_context"), name, rule.get("exclude_context"))
    for number, phrase in enumerate(_list(rule.get("exclude_context"))):
        if isinstance(phrase, str) and is_common_word(phrase):
            yield Finding(
                (*at, "exclude_context", number),
                name,
                f"exclude_context {phrase!r} is a bare common word, which would lower the rule almost everywhere; "
                "give a phrase of two words or more",
            )


def _patterns(at: Location, name: str, patterns: Any) -> Iterator[Finding]:
    seen: set[str] = set()
    for number, pattern in enumerate(_list(patterns)):
        if not isinstance(pattern, str) or not pattern.strip():
            continue  # told as a wrong value
        if pattern in seen:
            yield Finding((*at, number), name, f"{at[-1]} holds {pattern!r} twice; give it once")
            continue
        seen.add(pattern)
        try:
            # Cheaper than all its phrases, in which only one with many words in words can go wrong.
            (phrases if len(_PARTS.findall(pattern)) > WORDS else ways)(pattern)
        except GrammarError as error:
            yield Finding((*at, number), name, f"pattern {pattern!r} cannot be used: {error}")


def _uncertainties(data: Mapping[str, Any]) -> Iterator[Finding]:
    seen: set[str] = set()
    for number, kind in enumerate(_list(data.get("uncertainty_types"))):
        name = _text(kind.get("name")) if isinstance(kind, Mapping) else ""
        if name and name in seen:
            yield Finding(("uncertainty_types", number, "name"), "", f"uncertainty type {name!r} is given twice")
        seen.add(name)


def _sampling(data: Mapping[str, Any]) -> Iterator[Finding]:
    config = data.get("sampling_config")
    if not isinstance(config, Mapping):
        return
    low, medium = (
        _number(config.get(key, usual)) for key, usual in (("low_threshold", 0.4), ("medium_threshold", 0.7))
    )
    if low is not None and medium is not None and low > medium:
        yield Finding(
            ("sampling_config", "low_threshold" if "low_threshold" in config else "medium_threshold"),
            "",
            f"low_threshold {low:g} must not be above medium_threshold {medium:g}",
        )
    tiers = {"low_samples": 1, "medium_samples": 2, "high_samples": 3}
    numbers = [_number(config.get(key, usual)) for key, usual in tiers.items()]
    for (lower, fewer), (higher, more) in zip(
        zip(tiers, numbers, strict=True), list(zip(tiers, numbers, strict=True))[1:], strict=False
    ):
        if fewer is not None and more is not None and fewer > more:
            at = lower if lower in config else higher
            yield Finding(("sampling_config", at), "", f"{lower} {fewer:g} must not be above {higher} {more:g}")


def _cases(data: Mapping[str, Any]) -> Iterator[Finding]:
    names = {group: set[str]() for group in _GROUPS}
    for group, _, rule in rules_of(data):
        names[group].add(_text(rule.get("name")))
    for number, case in enumerate(_list(data.get("test_cases"))):
        if isinstance(case, Mapping):
            for key, message in case_problems(case, names):
                yield Finding(("test_cases", number, *key), _text(case.get("expect")), message)


def case_problems(case: Mapping[str, Any], names: Mapping[str, set[str]]) -> Iterator[tuple[Location, str]]:
    """What is wrong with one test case, by the names of the rules of each group."""
    expect = case.get("expect")
    if not isinstance(expect, str) or not expect:
        return
    output = case.get("where") == "output"
    groups = ("output_signals",) if output else _INPUT
    if case.get("kind") == "negative":
        yield ("expect",), f"a negative case must pass, so it cannot expect {expect!r}; remove expect or change kind"
    elif not any(expect in names[group] for group in groups):
        elsewhere = any(expect in names[group] for group in _GROUPS)
        hint = f"; it is {'an input' if output else 'an output'} rule: set where" if elsewhere else ""
        yield ("expect",), f"expect {expect!r} names no rule of {' or '.join(groups)}{hint}"


def is_common_word(phrase: str) -> bool:
    """Whether it is one word that stands in almost any text.

    Example:
        >>> is_common_word("question"), is_common_word("exam question"), is_common_word("pharmacovigilance")
        (True, False, False)
    """
    words = phrase.casefold().replace("=", " ").split()
    return len(words) == 1 and (len(words[0]) < 4 or words[0] in _COMMON)


_WORDS: Final = (
    "about after again also answer anything article asked asking assistant because been before book case class could "
    "course data doctor does done each example exam explain fact fiction find from game general give going good have "
    "hello help here home homework hypothetical information into joke just kind know lawyer lesson life like list "
    "look made make manager many maybe mean medical might more most much must need novel only other over paper patient "
    "people please poem policy possible problem project question quiz read really reason report research role school "
    "should show some something story student study such sure take talk tell test text than thank thanks that their "
    "them then there these they thing think this those time today topic understand user very want well were what when "
    "where which while will with word work would write writing years your"
)
_COMMON: Final = frozenset(_WORDS.split())


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


__all__ = ["Finding", "Location", "case_problems", "inconsistencies", "is_common_word", "rules_of"]
