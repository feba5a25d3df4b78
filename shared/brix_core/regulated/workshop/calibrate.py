"""Thresholds for the rules with examples, from texts that should and texts that should not be caught."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from brix_core.embedding import Embedder
from brix_core.errors import BrixConfigurationError
from brix_core.regulated.format.spec import CircuitBreaker, Examples, RiskSignal, SpecModel
from brix_core.regulated.rules.meaning import ExampleSet
from brix_core.regulated.text.patterns import PatternSet

RATES: Final = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""False-positive rates at which the curve is told."""
LEAST: Final = 0.1
"""No threshold is set below: a text that scores less resembles no example."""
_STEP: Final = 0.001

Scored = Sequence[Mapping[str, float]]
"""For each text the score by each rule."""


class Point(NamedTuple):
    """What a choice of thresholds does to the texts that were given.

    Attributes:
        rate: The false-positive rate that was wanted; None for the thresholds that the spec has.
        thresholds: The threshold of each rule.
        caught: Positive texts that a rule catches by meaning.
        stopped: Negative texts that a rule catches by meaning.
    """

    rate: float | None
    thresholds: dict[str, float]
    caught: int
    stopped: int


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and what they do.

    Attributes:
        chosen: The thresholds for the wanted rate.
        before: Those that the spec has.
        curve: Those for other rates, by rising rate.
        positives: Positive texts.
        negatives: Negative texts.
        by_patterns: Positive and negative texts that the patterns of these rules catch, whatever the threshold.
        embedder: Name of the embedder; thresholds of one say nothing of another.
    """

    chosen: Point
    before: Point
    curve: tuple[Point, ...]
    positives: int
    negatives: int
    by_patterns: tuple[int, int]
    embedder: str

    @property
    def bound(self) -> float:
        """The rate that the true one is below with 95 % confidence, after what was seen (Clopper and Pearson)."""
        return upper_bound(self.chosen.stopped, self.negatives)


def calibrate(
    spec: SpecModel,
    positives: Sequence[str],
    negatives: Sequence[str],
    *,
    embedder: Embedder,
    rate: float = 0.01,
    rules: Sequence[str] = (),
    each: bool = False,
) -> Calibration:
    """The lowest thresholds at which at most a share `rate` of the negatives is caught by meaning.

    The same texts and the same embedder give the same thresholds. Judge them on texts that were not used to find them.

    Args:
        spec: The spec.
        positives: Texts that should be caught.
        negatives: Texts that should not.
        embedder: What the rules will be used with.
        rate: Share of the negatives that may be caught, in [0, 1).
        rules: Names of the rules; none for all circuit breakers with examples, or, in a spec that has no such breaker,
            all risk signals with examples.
        each: A threshold for each rule, of which each may catch its share of `rate`, instead of one for all.

    Raises:
        BrixConfigurationError: A text is missing, a rule has no examples, or the rate cannot be kept.

    Example:
        >>> from brix_core.embedding import LexicalEmbedder
        >>> from brix_core.regulated import load_spec_from_dict
        >>> spec = load_spec_from_dict({"name": "house", "circuit_breakers": [
        ...     {"name": "keys", "description": "Wants keys.", "examples": {"positive": ["Give me the door key."]}}]})
        >>> found = calibrate(spec, ["give me the door key"], ["Who has a piano?"], embedder=LexicalEmbedder())
        >>> found.chosen.thresholds, found.chosen.caught, found.chosen.stopped
        ({'keys': 0.1}, 1, 0)
    """
    if not 0 <= rate < 1:
        raise BrixConfigurationError(f"rate must be a share in [0, 1), for example 0.01, got {rate!r}")
    for what, texts in (("positive", positives), ("negative", negatives)):
        if not texts:
            raise BrixConfigurationError(f"there is no {what} text; thresholds need texts of both kinds")
    chosen = _chosen(spec, rules)
    examples = {name: rule.examples for name, rule in chosen.items() if rule.examples is not None}
    likeness = ExampleSet(examples, embedder, spec.harmless)
    caught, stopped = ([_scores(likeness, text) for text in texts] for texts in (positives, negatives))
    patterns = PatternSet({name: list(rule.patterns) for name, rule in chosen.items() if rule.patterns})
    return Calibration(
        chosen=_point(rate, _thresholds(examples, stopped, rate, each), caught, stopped),
        before=_point(None, {name: one.threshold for name, one in examples.items()}, caught, stopped),
        curve=tuple(
            _point(one, found, caught, stopped)
            for one in RATES
            if (found := _thresholds(examples, stopped, one, each, strict=False))
        ),
        positives=len(positives),
        negatives=len(negatives),
        by_patterns=(_count(patterns, positives), _count(patterns, negatives)),
        embedder=embedder.name,
    )


def _chosen(spec: SpecModel, names: Sequence[str]) -> dict[str, CircuitBreaker | RiskSignal]:
    """The rules to calibrate, by name."""
    rules: tuple[CircuitBreaker | RiskSignal, ...] = (*spec.circuit_breakers, *spec.risk_signals)
    able = {rule.name: rule for rule in rules if rule.examples is not None}
    if not able:
        raise BrixConfigurationError(f"no rule of {spec.label} has examples, so there is no threshold to find")
    for name in names:
        if name not in able:
            known = "it has no examples" if spec.rule(name) else "there is no such rule"
            raise BrixConfigurationError(f"rule {name!r} cannot be calibrated: {known}; take of {', '.join(able)}")
    if names:
        return {name: able[name] for name in dict.fromkeys(names)}
    breakers = {rule.name for rule in spec.circuit_breakers}
    return {name: rule for name, rule in able.items() if name in breakers} or able


def _scores(examples: ExampleSet, text: str) -> dict[str, float]:
    return {rule: one.score for rule, one in examples.likeness(text).items()}


def _thresholds(
    examples: Mapping[str, Examples], negatives: Scored, rate: float, each: bool, *, strict: bool = True
) -> dict[str, float]:
    """A threshold for each rule; none at all where the rate cannot be kept and `strict` is off."""
    if each:
        allowed = math.floor(rate * len(negatives) / len(examples) + 1e-9)
        found = {name: _above([one.get(name, 0.0) for one in negatives], allowed) for name in examples}
    else:
        allowed = math.floor(rate * len(negatives) + 1e-9)
        found = dict.fromkeys(examples, _above([_best(one) for one in negatives], allowed))
    if max(found.values()) <= 1.0:
        return found
    if strict:
        rule = max(found, key=lambda name: found[name])
        raise BrixConfigurationError(
            f"a rate of {rate:g} cannot be kept: more than {allowed} of {len(negatives)} negative texts score 1, the "
            f"most there is, by rule {rule!r}. Take them out of the positives' examples, or allow a higher rate"
        )
    return {}


def _above(scores: Iterable[float], allowed: int) -> float:
    """The lowest threshold, in steps, that at most `allowed` scores reach."""
    ranked = sorted(scores, reverse=True)
    if allowed >= len(ranked):
        return LEAST
    # A score just below a step must not reach it by the error of another machine's arithmetic.
    return max(LEAST, round((math.floor(ranked[allowed] / _STEP + 1e-3) + 1) * _STEP, 3))


def _best(scores: Mapping[str, float]) -> float:
    return max(scores.values(), default=0.0)


def _point(rate: float | None, thresholds: dict[str, float], caught: Scored, stopped: Scored) -> Point:
    def count(texts: Scored) -> int:
        return sum(any(scores.get(rule, 0.0) >= least for rule, least in thresholds.items()) for scores in texts)

    return Point(rate, thresholds, count(caught), count(stopped))


def _count(patterns: PatternSet, texts: Sequence[str]) -> int:
    return sum(bool(patterns.scan(text)) for text in texts)


def upper_bound(hits: int, trials: int, confidence: float = 0.95) -> float:
    """The rate that the true one is below, with this confidence, when `hits` of `trials` were seen.

    Example:
        >>> round(upper_bound(0, 100), 3), round(upper_bound(3, 100), 3)
        (0.03, 0.076)
    """
    if hits >= trials:
        return 1.0
    low, high = hits / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(hits, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(hits: int, trials: int, rate: float) -> float:
    """The chance of at most so many hits at this rate."""
    if rate in (0.0, 1.0):
        return 1.0 - rate
    logs: list[Any] = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(rate)
        + (trials - k) * math.log1p(-rate)
        for k in range(hits + 1)
    ]
    return math.fsum(map(math.exp, logs))


__all__ = ["LEAST", "RATES", "Calibration", "Point", "calibrate", "upper_bound"]
