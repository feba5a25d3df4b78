"""A spec in plain language."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from brix_core.regulated.format.spec import CircuitBreaker, InputRule, OutputSignal, RiskSignal, SpecModel
from brix_core.regulated.text.grammar import Item, ways

_PLACES: Final = {
    "tool_arguments": "arguments of tool calls",
    "retrieved": "documents that were retrieved",
}
_GROUPS: Final = (
    ("circuit_breakers", "Circuit breakers: each stops a call by itself, whatever its risk."),
    ("risk_signals", "Risk signals: they raise the risk of a call, and with it how often the model is asked."),
    ("output_signals", "Output signals: looked for in what the model answers."),
)
_ACTIONS: Final = {
    "none": "nothing is done",
    "force_retrieval": "the answer has to be looked up",
    "conflict_resolution": "the contradiction is shown and has to be resolved",
    "distribution_response": "the different answers are given side by side",
}
_WAYS: Final = 8
"""Ways through nested alternatives that are written out."""
_SHOWN: Final = 40
"""Patterns of a rule that are written out."""


def explained(spec: SpecModel) -> Iterator[str]:
    r"""The spec, line by line, in plain language.

    Example:
        >>> from brix_core.regulated.format.loading import load_spec_from_dict
        >>> spec = load_spec_from_dict({"name": "house", "version": "1.0", "circuit_breakers": [
        ...     {"name": "keys", "description": "Asks for keys.", "patterns": ["spare ... key"]}]})
        >>> print("\n".join(list(explained(spec))[:8]))
        house 1.0 (domain: general)
        <BLANKLINE>
        Circuit breakers: each stops a call by itself, whatever its risk.
        <BLANKLINE>
          keys
            Asks for keys.
            Looks at the user's last message and arguments of tool calls.
            Met by: "spare", up to 6 words, "key"
    """
    yield f"{spec.label} (domain: {spec.metadata.domain})"
    if spec.metadata.description:
        yield spec.metadata.description.strip()
    for group, heading in _GROUPS:
        rules = getattr(spec, group)
        if rules:
            yield from ("", heading)
        for rule in rules:
            yield ""
            yield from (f"  {line}" for line in explained_rule(rule, spec))
    yield from ("", *_sampling(spec))
    if spec.uncertainty_types:
        yield from ("", "Uncertainty:")
        for kind in spec.uncertainty_types:
            yield f"  {kind.name}: {kind.description} Then {_ACTIONS[kind.action_config.action]}."


def explained_rule(rule: CircuitBreaker | RiskSignal | OutputSignal, spec: SpecModel) -> Iterator[str]:
    """One rule in plain language, its name first."""
    yield rule.name
    yield f"  {rule.description.strip()}"
    if isinstance(rule, InputRule):
        yield f"  Looks at {_looked_at(rule)}."
    if rule.patterns:
        first, *others = [described(pattern) for pattern in rule.patterns[:_SHOWN]]
        yield f"  Met by: {first}"
        yield from (f"          {other}" for other in others)
        if len(rule.patterns) > _SHOWN:
            yield f"          and {len(rule.patterns) - _SHOWN} more"
    if rule.examples:
        one = rule.examples
        yield (
            f"  Met by meaning: from a score of {one.threshold:g} on, by likeness to {len(one.positive)} examples such "
            f"as {_quoted(one.positive[0])}"
            + (f", and not to {len(one.negative)} harmless ones." if one.negative else ".")
        )
    if isinstance(rule, InputRule) and rule.exclude_context:
        whose = "the system messages say" if rule.exclude_from == "system" else "the system messages or the user say"
        yield f"  Lowered where {whose} {_or([_quoted(phrase) for phrase in rule.exclude_context])}."
    yield from (f"  {line}" for line in _effect(rule))
    cases = sum(case.expect == rule.name for case in spec.test_cases)
    yield f"  Test cases: {cases or 'none'}"


def described(pattern: str) -> str:
    """A pattern in plain language.

    Example:
        >>> print(described("(max|maximum) ... =dose of it"))
        "max" or "maximum", up to 6 words, exactly "dose" "of it"
    """
    outside = re.sub(r"\([^()]*\)", "", pattern)
    if set(outside) & set("(|)"):  # alternatives in alternatives: written out
        texts = [
            " ".join("/".join((item.text or "...", *(one.text for one in item.others))) for item in way)
            for way in ways(pattern)
        ]
        more = [f"{len(texts) - _WAYS} more"] if len(texts) > _WAYS else []
        return _or([_quoted(text) for text in texts[:_WAYS]] + more)
    gaps = []
    for part in re.split(r"\.\.\.|\u2026", pattern):
        pieces: list[str] = []
        plain: list[str] = []
        for piece in re.findall(r"\([^()]*\)|[^()\s]+", part):
            if piece[0] not in "(=":
                plain.append(piece)
                continue
            pieces += [_quoted(" ".join(plain))] if plain else []
            plain = []
            exact = f"exactly {_quoted(piece[1:])}"
            pieces.append(exact if piece[0] == "=" else _or([_quoted(one.strip()) for one in piece[1:-1].split("|")]))
        gaps.append(" ".join(pieces + ([_quoted(" ".join(plain))] if plain else [])))
    return ", up to 6 words, ".join(gaps)


def _either(item: Item) -> str:
    return "/".join((item.text or "...", *(other.text for other in item.others)))


def _looked_at(rule: InputRule) -> str:
    messages = "the user's last message" if rule.scope == "last_user" else "all that the user said"
    return _list(
        [messages if place == "messages" else _PLACES[place] for place in dict.fromkeys(rule.applies_to)], "and"
    )


def _effect(rule: CircuitBreaker | RiskSignal | OutputSignal) -> Iterator[str]:
    if isinstance(rule, CircuitBreaker):
        yield "Then the call is stopped, or answered from retrieved documents only."
    elif isinstance(rule, OutputSignal) and rule.signal_type == "block":
        yield "Then the answer is not shown."
    elif rule.category == "universal":
        yield f"Adds {0.6 * rule.weight:.2g} to the risk (weight {rule.weight:g} x 0.6, as universal signals add up)."
    else:
        yield f"Raises the risk to at least {rule.weight:g}."
    message = getattr(rule, "message", None)
    if message:
        yield f"The user is told: {_quoted(message.strip())}"


def _sampling(spec: SpecModel) -> Iterator[str]:
    config = spec.sampling_config
    yield "Sampling:"
    for tier, samples in (
        (f"below a risk of {config.low_threshold:g}", config.low_samples),
        (f"below {config.medium_threshold:g}", config.medium_samples),
        ("from there on", config.high_samples),
        ("after a circuit breaker, from what was retrieved", config.circuit_breaker_samples),
    ):
        yield f"  {tier}: the model is asked {'once' if samples == 1 else f'{samples} times'}"


def _quoted(text: str) -> str:
    return f'"{text}"'


def _or(parts: Sequence[str]) -> str:
    return _list(parts, "or")


def _list(parts: Sequence[str], word: str) -> str:
    return f"{', '.join(parts[:-1])} {word} {parts[-1]}" if len(parts) > 1 else parts[0]


__all__ = ["described", "explained", "explained_rule"]
