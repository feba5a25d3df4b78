"""The output guard: what an answer must not say.

Rules of a spec's ``output_signals`` either block (the answer is not shown) or raise its risk score. They are matched
like rules about what is asked: patterns over folded text, examples by meaning. Answers are looked at as they are and as
their reader sees them (`brix_core.regulated.text.rendering`).

``exclude_context`` lowers a rule where it stands in the system's words (``context=``), or, with
``exclude_from: query``, in the user's (``query=``). It never does by standing in the answer itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel

from brix_core.call import CallRequest, CallResponse
from brix_core.errors import BrixConfigurationError, BrixError, BrixRegulatedError, SchemaAttempt
from brix_core.regulated.format.spec import SpecModel
from brix_core.regulated.format.telling import shown
from brix_core.regulated.judging.risk import UNIVERSAL_SHARE, risk_of
from brix_core.regulated.output.output_result import OutputResult
from brix_core.regulated.output.output_stream import OutputStream
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.rules.hits import Hit
from brix_core.regulated.text.patterns import PatternSet
from brix_core.regulated.text.rendering import rendered

LONG: Final = 20_000
"""Characters of an answer from which on `OutputGuard.analyze` looks at it off the event loop."""

_UNSAID: Final = frozenset({"logprobs", "data", "b64_json", "signature", "encrypted_content"})
"""What holds no text of its own: tokens once more, sounds and pictures."""
_DEPTH: Final = 12


class OutputGuard:
    """Looks for what an answer must not say. Immutable; one may serve many threads and calls.

    Args:
        spec: A `SpecModel`, the name or path of a spec, its YAML, or a dict.
        embedder: What compares answers with the examples of rules; see `brix_core.embedding.as_embedder`. Not looked at
            when no output signal has examples.

    Attributes:
        blocking: Patterns of the rules that block.

    Raises:
        SpecValidationError: `spec` stands for no valid spec.

    Example:
        >>> guard = OutputGuard({"name": "clinic", "output_signals": [
        ...     {"name": "cure", "description": "Promises a cure.", "patterns": ["guaranteed ... cure"], "weight": 0.6},
        ...     {"name": "dose", "description": "Names a lethal dose.", "patterns": ["lethal dose"], "weight": 1,
        ...      "signal_type": "block"}]})
        >>> result = guard.analyze_sync("This herb is a guaranteed and quick cure.")
        >>> result.output_signals_triggered, result.output_risk_score, result.response_safe_to_display
        (('cure',), 0.6, True)
        >>> result = guard.analyze_sync("The **lethal** dose is ...")
        >>> result.output_blocked, result.output_block_signal, result.response_safe_to_display
        (True, 'dose', False)
    """

    def __init__(self, spec: SpecModel | Mapping[str, Any] | str | Any, *, embedder: object = None) -> None:
        self._use(CompiledSpec.of(spec, embedder))

    @classmethod
    def of(cls, compiled: CompiledSpec) -> OutputGuard:
        """For a spec that has been made ready, whose embedder is shared."""
        guard = cls.__new__(cls)
        guard._use(compiled)
        return guard

    def _use(self, compiled: CompiledSpec) -> None:
        self._compiled = compiled
        self._rules = {rule.name: rule for rule in compiled.spec.output_signals}
        self.blocking, self._phrases = _patterns(compiled.spec)
        self._by_meaning = any(rule.examples for rule in self._rules.values())
        self._blocks_by_meaning = any(rule.examples for rule in self._rules.values() if rule.signal_type == "block")

    def __repr__(self) -> str:
        return f"OutputGuard({self.spec.label!r})"

    @property
    def spec(self) -> SpecModel:
        """The spec."""
        return self._compiled.spec

    @property
    def slow(self) -> bool:
        """Whether it embeds answers, and so belongs off the event loop."""
        return self._by_meaning

    @property
    def needs_whole_answers(self) -> bool:
        """Whether what it blocks shows only in a whole answer: streams are held back to their end, then."""
        return self._blocks_by_meaning

    async def analyze(self, response: str, *, query: str | None = None, context: str | None = None) -> OutputResult:
        """Look at an answer; off the event loop where that takes long.

        Args:
            response: The answer's text.
            query: What the user asked.
            context: What the system was told: its messages.

        Raises:
            BrixGuardError: The embedder failed; the answer must not be shown.

        Example:
            >>> import asyncio
            >>> guard = OutputGuard({"name": "empty"})
            >>> asyncio.run(guard.analyze("Good morning.", query="Hello?")).output_blocked
            False
        """
        self._check(response, query, context)
        if self.slow or len(response) > LONG:
            return await asyncio.to_thread(self.analyze_sync, response, query=query, context=context)
        return self.analyze_sync(response, query=query, context=context)

    def analyze_sync(self, response: str, *, query: str | None = None, context: str | None = None) -> OutputResult:
        """As `analyze`, in this thread."""
        self._check(response, query, context)
        return self._judged([response], (), self._excluded(query, context))

    def analyze_response(
        self, response: CallResponse, *, query: str | None = None, context: str | None = None
    ) -> OutputResult:
        """Look at all that a model call gave: text, reasoning, arguments of tool calls, every choice.

        Raises:
            BrixGuardError: See `analyze`.
        """
        said = [response.text, *(call.arguments for call in response.tool_calls)]
        beside = dict.fromkeys((*(call.name for call in response.tool_calls), *_texts(response.raw, _DEPTH)))
        return self._judged(said, (text for text in beside if text not in said), self._excluded(query, context))

    def stream(
        self,
        *,
        query: str | None = None,
        context: str | None = None,
        delivered: Callable[[], str] | None = None,
        noted: Callable[[str], object] | None = None,
    ) -> OutputStream:
        """A hook that looks at the chunks of a stream, holds back what may become a phrase that is blocked, and raises.

        Args:
            query: What the user asked.
            context: What the system was told: its messages.
            delivered: Tells what had been delivered; for ``partial`` of the error.
            noted: Told the name of the rule that blocks, before the error is raised.
        """
        excluded = self._excluded(query, context)

        def stop(rule: str) -> BrixRegulatedError:
            if noted is not None:
                noted(rule)
            return self.refusal(rule, "" if delivered is None else delivered())

        def judge(answer: str) -> str | None:
            return self._judged([answer], (), excluded).output_block_signal

        return OutputStream(self.blocking, stop, excluded, judge if self._blocks_by_meaning else None)

    def watched(self, request: CallRequest, *, query: str | None = None, context: str | None = None) -> CallRequest:
        """The request with this guard's hook. Where it needs whole answers, a stream of it is read to its end first.

        Raises:
            BrixConfigurationError: Several answers are to be streamed; their texts come mixed.
        """
        choices = request.endpoint.choices(request.params)
        if request.stream and choices > 1:
            raise BrixConfigurationError(
                f"with enable_output_guard one answer is streamed at a time, got n={choices}; leave n out, or do not "
                "stream"
            )
        hook = self.stream(query=query, context=context, delivered=lambda: request.call.partial_text)
        request = request.evolve(hooks=(*request.hooks, hook))
        if request.stream and self.needs_whole_answers:
            return request.evolve(stream=False, collect=True)
        return request

    def blocks_error(self, error: BrixError, *, query: str | None = None, context: str | None = None) -> str | None:
        """The rule that blocks what an error tells of an answer: a part of it, or those that did not fit a schema.

        Args:
            error: What a guard raised.
            query: What the user asked.
            context: What the system was told: its messages.
        """
        attempts = (*getattr(error, "schema_attempts", ()), *getattr(error, "attempts", ()))
        told = [str(error), getattr(error, "partial", "")]
        told += [text for attempt in attempts if isinstance(attempt, SchemaAttempt) for text in _texts(attempt, _DEPTH)]
        return self._judged((), told, self._excluded(query, context)).output_block_signal

    def without_blocked(
        self, texts: Iterable[str], *, query: str | None = None, context: str | None = None
    ) -> tuple[str, ...]:
        """Those texts that no pattern blocks.

        Args:
            texts: Answers that are told of, and not given.
            query: What the user asked.
            context: What the system was told: its messages.
        """
        excluded = self._excluded(query, context)
        return tuple(text for text in texts if not self._judged((), (text,), excluded).output_blocked)

    def refusal(self, rule: str, partial: str = "") -> BrixRegulatedError:
        """The error for an answer that is blocked: it tells the rule, and not what was found.

        Args:
            rule: The name of the rule that blocks.
            partial: What had been delivered.
        """
        found = self._rules[rule]
        told = found.message or found.description
        return BrixRegulatedError(
            f"the answer was stopped by output signal {rule!r} of the spec {self.spec.label}: {told} "
            "Ask otherwise, or change the rule: with signal_type: risk it only raises the score",
            rule=rule,
            spec=self.spec.label,
            partial=partial,
        )

    def _judged(self, said: Sequence[str], beside: Iterable[str], excluded: frozenset[str]) -> OutputResult:
        """What is in the texts of an answer; what stands beside them is not compared with examples."""
        scan, beside = self._compiled.outputs.scan, list(beside)
        triggered = {hit.name for text in said for hit in self._compiled.output_hits(text)}
        plain = (seen for text in (*said, *beside) if (seen := rendered(text)) != text)
        triggered.update(match.rule for text in (*beside, *plain) for match in scan(text))
        triggered -= excluded
        rules = [rule for name, rule in self._rules.items() if name in triggered]
        blocking = next((rule.name for rule in rules if rule.signal_type == "block"), None)
        if not rules:
            return OutputResult()
        risk = risk_of(Hit(rule, rule.name, (), 1.0) for rule in rules if rule.signal_type == "risk")
        score = 1.0 if blocking is not None else risk.score
        universal = UNIVERSAL_SHARE * risk.universal
        return OutputResult(
            output_blocked=blocking is not None,
            output_risk_score=score,
            output_signals_triggered=tuple(rule.name for rule in rules),
            output_block_signal=blocking,
            output_risk_breakdown={
                "max_registered": risk.registered,
                "registered_component": risk.registered,
                "sum_universal": risk.universal,
                "universal_component": universal,
                "raw_score": risk.registered + universal,
            },
            response_safe_to_display=blocking is None and score < self.spec.sampling_config.medium_threshold,
        )

    def _excluded(self, query: str | None, context: str | None) -> frozenset[str]:
        """Rules that do not count here."""
        if self._phrases is None:
            return frozenset()
        of_system = {match.rule for match in self._phrases.scan(context or "")}
        of_user = {
            match.rule for match in self._phrases.scan(query or "") if self._rules[match.rule].exclude_from == "query"
        }
        return frozenset(of_system | of_user)

    def _check(self, response: object, query: object, context: object) -> None:
        for name, value in (("response", response), ("query", query), ("context", context)):
            if not isinstance(value, str) and (name == "response" or value is not None):
                raise BrixConfigurationError(f"analyze takes {name} as a str, got {shown(value)}; give its text")


@lru_cache(maxsize=64)
def _patterns(spec: SpecModel) -> tuple[PatternSet, PatternSet | None]:
    """Patterns of the rules that block, and the phrases that exclude rules, where there are any."""
    blocking = (rule for rule in spec.output_signals if rule.signal_type == "block" and rule.patterns)
    phrases = {rule.name: list(rule.exclude_context) for rule in spec.output_signals if rule.exclude_context}
    return PatternSet({rule.name: list(rule.patterns) for rule in blocking}), PatternSet(phrases) if phrases else None


def _texts(value: Any, depth: int) -> Iterator[str]:
    """Every text in a provider's own result: reasoning and refusals, for example, stand nowhere else."""
    if isinstance(value, str):
        yield value
    elif depth == 0:
        return
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _UNSAID:
                yield from _texts(inner, depth - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, depth - 1)
    elif isinstance(value, BaseModel) or is_dataclass(value):
        for fields in (getattr(value, "__dict__", None), getattr(value, "__pydantic_extra__", None)):
            yield from _texts(fields or {}, depth - 1)


__all__ = ["LONG", "OutputGuard"]
