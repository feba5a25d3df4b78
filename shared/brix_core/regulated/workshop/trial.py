"""Test cases run against a spec, and against a model behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, Protocol

from brix_core.errors import BrixConfigurationError, BrixGuardBlockedError
from brix_core.regulated.format.spec import SpecModel, TestCase
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.workshop.suite import Tally, Verdict, judged

_PROVIDER: Final = "openai:"
_MOST_NOTE: Final = 200
_PATIENCE: Final = 3
"""Calls in a row that a model may fail before the others are not tried."""


class Router(Protocol):
    """What asks a model under a spec: `brix_core.regulated.judging.router.BrixRouter`."""

    async def process(self, query: str) -> Any:
        """A `StructuredResult`."""
        ...


class Trial(NamedTuple):
    """What a spec made of its cases.

    Attributes:
        spec: Name and version of the spec.
        model: Who was asked.
        verdicts: One for each case, in order.
    """

    spec: str
    model: str
    verdicts: tuple[Verdict, ...]

    @property
    def tally(self) -> Tally:
        """The verdicts, summed up."""
        return Tally.of(self.verdicts)

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """Verdicts of the cases that failed."""
        return tuple(verdict for verdict in self.verdicts if not verdict.passed)

    def as_dict(self) -> dict[str, Any]:
        """As ``brix test --format json`` prints it."""
        return {
            "spec": self.spec,
            "model": self.model,
            "cases": len(self.verdicts),
            "failed": len(self.failed),
            **self.tally.as_dict(),
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
        }


async def tried(
    spec: SpecModel,
    cases: Iterable[TestCase],
    *,
    model: str = "mock",
    embedder: object = None,
    progress: Callable[[], None] = lambda: None,
) -> Trial:
    """Run cases, one after the other.

    Each is judged by the spec. What is asked also goes through a `BrixRouter` to the model: what the spec stops must be
    stopped there, too, and nothing else may be; an answer that is withheld counts as stopped.

    Args:
        spec: The spec.
        cases: The cases.
        model: ``"mock"``, which answers by itself and needs no network, or ``"openai:"`` and the name of a model.
        embedder: What compares texts with examples of rules; see `brix_core.embedding.as_embedder`.
        progress: Called after every case.

    Raises:
        BrixConfigurationError: There is no such model, or the openai SDK or its key is missing.

    Example:
        >>> import asyncio
        >>> from brix_core.regulated.format.loading import load_spec_from_dict
        >>> spec = load_spec_from_dict({"name": "house", "circuit_breakers": [
        ...     {"name": "keys", "description": "Asks for keys.", "patterns": ["spare key"]}]})
        >>> cases = [TestCase(text="Spare keys?", kind="positive"), TestCase(text="Piano keys", kind="negative")]
        >>> asyncio.run(tried(spec, cases)).tally.balance_index
        1.0
    """
    if embedder is None and not any(rule.examples for rule in spec.rules()):
        embedder = "lexical"  # nothing but samples to compare: no model has to be loaded for that
    compiled = CompiledSpec.of(spec, embedder)
    verdicts: list[Verdict] = []
    async with _router(spec, model, embedder) as router:
        in_vain = 0
        for case in cases:
            verdict = judged(compiled, case)
            if case.where == "input":
                verdict, asked = await _asked(router, verdict)
                in_vain = 0 if asked else in_vain + 1
                if in_vain == _PATIENCE:
                    raise BrixConfigurationError(f"{model} failed {in_vain} times in a row; last, {verdict.note}")
            verdicts.append(verdict)
            progress()
    return Trial(spec.label, model, tuple(verdicts))


async def _asked(router: Router, verdict: Verdict) -> tuple[Verdict, bool]:
    """The verdict after the model was asked as well, and whether it could be."""
    try:
        result = await router.process(verdict.case.text)
    except BrixGuardBlockedError as error:
        return _withheld(verdict, f"the guard refused it: {error}"), True
    except BrixConfigurationError:
        raise
    except Exception as error:
        note = f"the model could not be asked: {type(error).__name__}: {error}"
        return verdict._replace(passed=False, note=note[:_MOST_NOTE]), False
    return _compared(verdict, result), True


def _compared(verdict: Verdict, result: Any) -> Verdict:
    """The verdict, beside what the router made of the case."""
    output = result.output_result
    if result.circuit_breaker_hit:
        note = f"the router stopped it by {result.circuit_breaker_name}, unlike the spec"
        return verdict if verdict.stopped else verdict._replace(passed=False, note=note)
    if verdict.stopped:
        return verdict._replace(passed=False, note="the router let it through, unlike the spec")
    if output is not None and output.output_blocked:
        return _withheld(verdict, f"the answer was withheld: {output.output_block_signal}")
    return verdict._replace(note=f"answered, risk {result.risk_score:.2f}")


def _withheld(verdict: Verdict, note: str) -> Verdict:
    """It was stopped later than by the spec's breakers: well for what has to be caught, ill for what is harmless."""
    caught = verdict.caught or verdict.case.expect is None or verdict.case.kind == "negative"
    return verdict._replace(caught=caught, passed=caught != (verdict.case.kind == "negative"), note=note[:_MOST_NOTE])


@asynccontextmanager
async def _router(spec: SpecModel, model: str, embedder: object) -> AsyncIterator[Router]:
    """A router to the model; closed with what it opened."""
    from brix_core.regulated.judging.mock import MockLLMClient
    from brix_core.regulated.judging.router import BrixRouter

    if model == "mock":
        yield BrixRouter(MockLLMClient(), spec, embedder=embedder)
        return
    name = model.removeprefix(_PROVIDER).strip()
    if not model.startswith(_PROVIDER) or not name:
        raise BrixConfigurationError(f"model must be mock, or openai: and the name of a model, got {model!r}")
    try:
        import openai
    except ImportError as error:
        raise BrixConfigurationError('models of openai need its SDK: pip install "brix-guards[openai]"') from error
    try:
        client = openai.AsyncOpenAI()
    except openai.OpenAIError as error:
        raise BrixConfigurationError(f"the openai SDK cannot be used: {error}") from None
    async with client:
        yield BrixRouter(client, spec, model=name, embedder=embedder, enable_output_guard=bool(spec.output_signals))


__all__ = ["Router", "Trial", "tried"]
