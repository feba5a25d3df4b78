"""A spec made ready for use: patterns compiled, examples embedded, callables named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from inspect import iscoroutine, iscoroutinefunction
from typing import Any, Final

from brix_core.embedding import as_embedder
from brix_core.errors import BrixConfigurationError, BrixError, BrixGuardError
from brix_core.regulated.format.loading import as_spec
from brix_core.regulated.format.spec import CircuitBreaker, InputRule, RiskSignal, SpecModel
from brix_core.regulated.format.telling import shown
from brix_core.regulated.rules.hits import Found, Hit, Inputs, Where
from brix_core.regulated.rules.meaning import ExampleSet, Likeness
from brix_core.regulated.rules.remembering import Remembering
from brix_core.regulated.text.patterns import PatternSet
from brix_core.regulated.text.scanning import Match

Signal = Callable[[str], float | bool]
"""A signal of the application's own: the user's last message to a risk in [0, 1], or to whether there is one."""

_EXCLUDE: Final = "exclude:"
"""Before the name of the rule that a phrase excludes; no rule has a colon in its name."""


class CompiledSpec:
    """A spec made ready for use. Immutable, and shared by threads and sessions.

    Args:
        spec: The spec.
        embedder: What compares texts with the examples of rules; see `brix_core.embedding.as_embedder`. Not looked at
            when no rule has examples. Vectors of examples are computed once, on first use.
        signals: Callables or classifiers (anything with ``invoke``) from a text to a risk in [0, 1] or a bool; sync.

    Attributes:
        spec: The spec.
        patterns: Patterns of the rules about what is asked, with those phrases that a user may exclude a rule by.
        outputs: Patterns of the rules about answers.

    Raises:
        BrixConfigurationError: A signal is async or cannot be called, or the embedder cannot be used.

    Example:
        >>> from brix_core.regulated.format.loading import load_spec_from_dict
        >>> spec = load_spec_from_dict({"name": "house", "circuit_breakers": [
        ...     {"name": "keys", "description": "Asks for keys.", "patterns": ["spare ... key"],
        ...      "exclude_context": ["locksmith course"]}]})
        >>> compiled = CompiledSpec.of(spec)
        >>> [hit.name for hit in compiled.breakers(Inputs("Where is the spare door key?"))]
        ['keys']
        >>> inputs = Inputs("Where is the spare door key?", system_texts=["This is a locksmith course."])
        >>> [hit.excluded_by for hit in compiled.breakers(inputs)]
        ['locksmith course']
    """

    def __init__(
        self, spec: SpecModel, embedder: object = None, signals: Iterable[object] | Mapping[str, object] = ()
    ) -> None:
        self.spec = spec
        self.patterns, self._phrases, self.outputs = _compiled(spec)
        self._inputs: dict[str, InputRule] = {rule.name: rule for rule in (*spec.circuit_breakers, *spec.risk_signals)}
        self._outputs = {rule.name: rule for rule in spec.output_signals}
        self._callables = _named(signals)
        self._conversation = any(rule.scope == "conversation" for rule in self._inputs.values())
        # An embedder that is named is the same for all who name it, and so are the examples it has learned.
        of = _shared_examples if embedder is None or isinstance(embedder, str) else _examples
        self._examples, self._output_examples = of(spec, embedder)
        # Most of a conversation has been seen before; what is looked at in answers has not.
        self._matches = Remembering(lambda text: _by_rule(self.patterns.scan(text)))
        self._likeness = Remembering(self._examples.likeness)

    @classmethod
    def of(
        cls, spec: object, embedder: object = None, signals: Iterable[object] | Mapping[str, object] = ()
    ) -> CompiledSpec:
        """A spec, or what stands for one, made ready; patterns of equal specs are compiled once.

        Raises:
            SpecValidationError: `spec` stands for no valid spec.
        """
        return cls(as_spec(spec), embedder, signals)

    def __repr__(self) -> str:
        return f"<CompiledSpec {self.spec.label}>"

    @property
    def slow(self) -> bool:
        """Whether it embeds texts or calls the application's signals, and so belongs off the event loop."""
        return bool(self._callables or any(rule.examples for rule in self.spec.rules()))

    def breakers(self, inputs: Inputs, *, every: bool = False) -> list[Hit]:
        """Circuit breakers that are met, by patterns and then by examples; those that are excluded say by what.

        Only when patterns stop nothing is a text compared with examples, so that what patterns stop is stopped
        whatever the embedder does.

        Args:
            inputs: The texts.
            every: Compare with examples even so: for who wants to know all that is met.

        Raises:
            BrixGuardError: The embedder failed; the call must not be made.
        """
        hits = self.pattern_hits(self.spec.circuit_breakers, inputs)
        if any(hit.counts for hit in hits) and not every:
            return hits
        return _merged(hits, self._by_meaning(self.spec.circuit_breakers, inputs))

    def signals(self, inputs: Inputs) -> list[Hit]:
        """Risk signals that are met, those of the spec first, then the application's own.

        Raises:
            BrixGuardError: The embedder failed, or a signal raised or returned no risk; the call must not be made.
        """
        hits = self.pattern_hits(self.spec.risk_signals, inputs)
        return _merged(hits, self._by_meaning(self.spec.risk_signals, inputs)) + self._asked(inputs.query)

    def output_hits(self, answer: str) -> list[Hit]:
        """Output signals that an answer meets, by patterns and by examples.

        Raises:
            BrixGuardError: The embedder failed; the answer must not be shown.
        """
        by_rule = _by_rule(self.outputs.scan(answer))
        hits = [
            Hit(rule, rule.name, tuple(_found(match, "answer", answer) for match in by_rule[rule.name]), 1.0)
            for rule in self.spec.output_signals
            if rule.name in by_rule
        ]
        similar = []
        for name, likeness in self._output_examples.likeness(answer).items():
            rule = self._outputs[name]
            if rule.examples is not None and likeness.score >= rule.examples.threshold:
                similar.append(Hit(rule, name, (_like(name, likeness, "answer", answer),), likeness.score))
        return _merged(hits, similar)

    def pattern_hits(self, rules: Sequence[CircuitBreaker | RiskSignal], inputs: Inputs) -> list[Hit]:
        """Those of some rules about what is asked that are met by their patterns. Deterministic."""
        scanned = self._scanned(inputs)
        hits = []
        for rule in rules:
            places = [
                (where, text, found[rule.name], _phrase_in(found, rule))
                for where, text, found in scanned
                if rule.name in found and _looks_at(rule, where)
            ]
            if places:
                matches = (_found(match, where, text) for where, text, found, _ in places for match in found)
                phrase = self._phrase(rule, inputs, [phrase for *_, phrase in places])
                hits.append(Hit(rule, rule.name, tuple(matches), 1.0, phrase))
        return hits

    def _by_meaning(self, rules: Sequence[CircuitBreaker | RiskSignal], inputs: Inputs) -> list[Hit]:
        """Those of some rules that are met by their examples, each by the texts that reach its threshold."""
        hits = []
        for rule in rules:
            if rule.examples is None:
                continue
            places = [
                (likeness[rule.name], where, text, _phrase_in(found, rule))
                for where, text, found, likeness in self._compared(inputs)
                if likeness[rule.name].score >= rule.examples.threshold and _looks_at(rule, where)
            ]
            if places:
                places.sort(key=lambda place: -place[0].score)
                matches = (_like(rule.name, likeness, where, text) for likeness, where, text, _ in places)
                phrase = self._phrase(rule, inputs, [phrase for *_, phrase in places])
                hits.append(Hit(rule, rule.name, tuple(matches), places[0][0].score, phrase))
        return hits

    def _compared(self, inputs: Inputs) -> list[tuple[Where, str, dict[str, list[Match]], dict[str, Likeness]]]:
        """Every text that a rule with examples looks at, with how much it is like them; each is embedded once."""
        key = (self, "compared")
        if key not in inputs.known:
            rules = [rule for rule in self._inputs.values() if rule.examples]
            inputs.known[key] = [
                (where, text, found, self._likeness(text))
                for where, text, found in self._scanned(inputs)
                if text.strip() and any(_looks_at(rule, where) for rule in rules)
            ]
        compared: list[tuple[Where, str, dict[str, list[Match]], dict[str, Likeness]]] = inputs.known[key]
        return compared

    def _phrase(self, rule: InputRule, inputs: Inputs, beside: Sequence[str | None]) -> str | None:
        """The phrase that excludes a rule: one of the system's, or one beside each of its matches."""
        if not rule.exclude_context:
            return None
        of_system = self._system(inputs).get(rule.name)
        return of_system or (beside[0] if all(beside) else None)

    def _system(self, inputs: Inputs) -> dict[str, str]:
        key = (self, "system")
        if key not in inputs.known:
            matches = [match for text in inputs.system_texts for match in self._phrases.scan(text)]
            inputs.known[key] = {match.rule: match.pattern for match in reversed(matches)}
        found: dict[str, str] = inputs.known[key]
        return found

    def _scanned(self, inputs: Inputs) -> list[tuple[Where, str, dict[str, list[Match]]]]:
        """Every text that some rule looks at, with what stands in it; each is scanned once."""
        if self not in inputs.known:
            inputs.known[self] = [(where, text, self._matches(text)) for where, text in self._texts(inputs)]
        scanned: list[tuple[Where, str, dict[str, list[Match]]]] = inputs.known[self]
        return scanned

    def _texts(self, inputs: Inputs) -> Iterator[tuple[Where, str]]:
        places = {place for rule in self._inputs.values() for place in rule.applies_to}
        if "messages" in places:
            yield "query", inputs.query
            if self._conversation:
                yield from (("user", text) for text in inputs.earlier)
        if "tool_arguments" in places:
            yield from (("tool_arguments", text) for text in inputs.tool_arguments)
        if "retrieved" in places:
            yield from (("retrieved", text) for text in inputs.retrieved)

    def _asked(self, query: str) -> list[Hit]:
        """The application's own signals."""
        if not query.strip():
            return []
        values = [(name, _value(name, function, query)) for name, function in self._callables]
        return [Hit(_rule_for(name, value), name, (), value) for name, value in values if value > 0]


@lru_cache(maxsize=64)
def _compiled(spec: SpecModel) -> tuple[PatternSet, PatternSet, PatternSet]:
    rules = (*spec.circuit_breakers, *spec.risk_signals)
    patterns = {rule.name: list(rule.patterns) for rule in rules if rule.patterns}
    own = {
        f"{_EXCLUDE}{rule.name}": list(rule.exclude_context)
        for rule in rules
        if rule.exclude_context and rule.exclude_from == "query"
    }
    return (
        PatternSet({**patterns, **own}),
        PatternSet({rule.name: list(rule.exclude_context) for rule in rules if rule.exclude_context}),
        PatternSet({rule.name: list(rule.patterns) for rule in spec.output_signals if rule.patterns}),
    )


def _examples(spec: SpecModel, embedder: object) -> tuple[ExampleSet, ExampleSet]:
    """Examples of rules about what is asked, one set so that a text is embedded once; and of those about answers."""
    asked = {rule.name: rule.examples for rule in (*spec.circuit_breakers, *spec.risk_signals) if rule.examples}
    answered = {rule.name: rule.examples for rule in spec.output_signals if rule.examples}
    shared = as_embedder(embedder) if asked or answered else None
    return ExampleSet(asked, shared, spec.harmless), ExampleSet(answered, shared)


_shared_examples = lru_cache(maxsize=16)(_examples)


def _by_rule(matches: Iterable[Match]) -> dict[str, list[Match]]:
    found: dict[str, list[Match]] = {}
    for match in matches:
        found.setdefault(match.rule, []).append(match)
    return found


def _looks_at(rule: InputRule, where: Where) -> bool:
    if where in ("query", "user"):
        return "messages" in rule.applies_to and (where == "query" or rule.scope == "conversation")
    return where in rule.applies_to


def _phrase_in(found: Mapping[str, Sequence[Match]], rule: InputRule) -> str | None:
    """The phrase by which the text itself excludes a rule."""
    phrases = found.get(f"{_EXCLUDE}{rule.name}")
    return phrases[0].pattern if phrases else None


def _found(match: Match, where: Where, text: str) -> Found:
    return Found.at(match.rule, match.pattern, (match.start, match.end), where, text)


def _like(rule: str, likeness: Likeness, where: Where, text: str) -> Found:
    return Found.at(rule, f"like: {likeness.example}", (likeness.start, likeness.end), where, text)


def _merged(hits: Sequence[Hit], similar: Sequence[Hit]) -> list[Hit]:
    """One hit for each rule; one that counts goes before one that is excluded, a pattern before an example."""
    best: dict[str, Hit] = {}
    for hit in (*hits, *similar):
        known = best.get(hit.name)
        if known is None or (hit.counts and not known.counts):
            best[hit.name] = hit
    return list(best.values())


def _named(signals: Iterable[object] | Mapping[str, object]) -> list[tuple[str, Signal]]:
    """The application's signals with names of their own."""
    if isinstance(signals, str) or not isinstance(signals, Iterable):
        raise BrixConfigurationError(
            f"signals must be a list of callables, or a dict of names to callables, got {shown(signals)}"
        )
    given = signals.items() if isinstance(signals, Mapping) else ((None, signal) for signal in signals)
    named: list[tuple[str, Signal]] = []
    for name, signal in given:
        function = signal if callable(signal) else getattr(signal, "invoke", None)
        if not callable(function) or isinstance(signal, type):
            raise BrixConfigurationError(
                f"a signal must be a callable, or have invoke, from a text to a float or a bool; got {shown(signal)}"
            )
        label = str(name or getattr(signal, "__name__", None) or type(signal).__name__)
        if iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__):
            raise BrixConfigurationError(
                f"signal {label!r} is async; give a sync function: guards call it off the event loop already"
            )
        named.append((label, function))
    return named


def _value(name: str, function: Signal, text: str) -> float:
    """What a signal says of a text, in [0, 1]."""
    try:
        result: Any = function(text)
    except BrixError:
        raise
    except Exception as error:
        raise BrixGuardError(
            f"signal {name!r} failed, so the risk is unknown and the call is not made: {type(error).__name__}: {error}",
            guard="regulated",
        ) from error
    if iscoroutine(result):
        result.close()  # or Python warns that it was never awaited
    try:
        value = math.nan if isinstance(result, str | bytes) else float(result)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value <= 1:
        raise BrixGuardError(
            f"signal {name!r} returned {shown(result)}; wanted a bool or a number in [0, 1]. The call is not made",
            guard="regulated",
        )
    return value


def _rule_for(name: str, value: float) -> RiskSignal:
    """A rule for what a callable returned; not checked, since it has no patterns."""
    return RiskSignal.model_construct(
        name=name, description="A signal of the application's own.", weight=value, category="registered"
    )


__all__ = ["CompiledSpec", "Signal"]
