"""One decision, from what was found in a prompt to what is told about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from brix_core.call import CallRequest, CallResponse
from brix_core.errors import BrixRegulatedError
from brix_core.regulated.format.spec import SpecModel
from brix_core.regulated.judging.result import ActionTaken, CompatibilityStatus, StructuredResult, UncertaintyType
from brix_core.regulated.judging.risk import Risk
from brix_core.regulated.judging.uncertainty import Answer, Assessment
from brix_core.regulated.rules.hits import Hit, Inputs
from brix_core.response_metadata import REGULATED_RESULT
from brix_core.retrieval.results import RetrievalResult
from brix_core.tokens import tokenizer_for

RESULT: Final = REGULATED_RESULT
"""Where the `StructuredResult` is in `LogicalCall.metadata`."""

RETRIEVAL_SCORE: Final = "retrieval_score"
"""Where an application's own retrieval score is in `LogicalCall.metadata`, when the call begins."""

MAX_MATCHES: Final = 20
"""Matches that stand in a decision; a trace is bounded."""

MAX_SAMPLE: Final = 20_000
"""Characters of each compared answer that a result keeps."""

_INTERVENTIONS: Final = (ActionTaken.FORCE_RETRIEVAL, ActionTaken.CONFLICT_RESOLUTION)


@dataclass(slots=True, kw_only=True)
class Case:
    """What is known of one call.

    Attributes:
        decision_id: Of the decision.
        request: The call.
        spec: The spec.
        started: Monotonic seconds.
        inputs: What was looked at.
        breakers: Circuit breakers that are met, the excluded ones too.
        signals: Risk signals that are met, the excluded ones too.
        risk: The risk.
        given_score: The application's own retrieval score.
        found: What was retrieved and may be used.
        retrieval_error: Why the retrieval gave nothing that can be used.
        answers: The answers that were compared.
        asked: How many were asked for.
        assessment: What they tell.
        tokens_extra: Tokens of all answers but the first.
        needs_verification: Whether the answer has to be verified.
        action: What was done.
        template: What goes with the answer.
        blocked_output: Whether the answer must not be shown.
        details: What else the decision tells.
        breaker: The circuit breaker that stops the call, if one does.
    """

    decision_id: UUID
    request: CallRequest
    spec: SpecModel
    started: float
    inputs: Inputs
    breakers: Sequence[Hit]
    signals: Sequence[Hit]
    risk: Risk
    given_score: float | None = None
    found: RetrievalResult | None = None
    retrieval_error: str = ""
    answers: Sequence[Answer] = ()
    asked: int = 1
    assessment: Assessment | None = None
    tokens_extra: int = 0
    needs_verification: bool = False
    action: ActionTaken = ActionTaken.NONE
    template: str = ""
    blocked_output: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    breaker: Hit | None = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = next((hit for hit in self.breakers if hit.counts), None)

    @property
    def kind(self) -> UncertaintyType:
        """The uncertainty."""
        if self.assessment is not None:
            return self.assessment.kind
        return UncertaintyType.CERTAIN if self.breaker is None else UncertaintyType.EPISTEMIC

    @property
    def necessary(self) -> bool:
        """Whether it is right to intervene, by all that is known."""
        uncertain = self.kind in (UncertaintyType.EPISTEMIC, UncertaintyType.CONTRADICTORY)
        return uncertain or self.breaker is not None or self.blocked_output

    @property
    def intervened(self) -> bool:
        """Whether that was done."""
        return self.action in _INTERVENTIONS or self.blocked_output

    @property
    def context(self) -> str:
        """What the system was told."""
        return "\n\n".join(self.inputs.system_texts)

    def bill(self, request: CallRequest, response: CallResponse) -> None:
        """Count the tokens of an answer that was asked for beside the first."""
        usage = response.usage
        if usage is None and request.call.attempts:
            usage = request.call.attempts[-1].usage
        if usage is None:
            self.tokens_extra += request.prompt_tokens() + tokenizer_for(request.model).count(response.text)
        else:
            self.tokens_extra += usage.total_tokens

    def decide(self, decision: str, rule: str | None = None, **details: Any) -> None:
        """Note the decision in the trace."""
        matches = [
            {**found.as_dict(), **({} if hit.counts else {"excluded_by": hit.excluded_by})}
            for hit in (*self.breakers, *self.signals)
            for found in hit.matches
        ]
        self.request.call.decide(
            "regulated",
            decision,
            decision_id=str(self.decision_id),
            rule=rule or (None if self.breaker is None else self.breaker.name),
            spec=self.spec.label,
            risk_score=round(self.risk.score, 6),
            matches=matches[:MAX_MATCHES],
            **self.details,
            **details,
        )

    def result(self, response: str, now: float, balance: float, **more: Any) -> StructuredResult:
        """What is told of the call."""
        breaker, assessment, found = self.breaker, self.assessment, self.found
        necessary, intervened = self.necessary, self.intervened
        compared = self.answers if len(self.answers) > 1 else ()
        return StructuredResult(
            decision_id=self.decision_id,
            uncertainty_type=self.kind,
            subtype=assessment.subtype if assessment else "circuit_breaker" if breaker else "single_answer",
            action_taken=self.action,
            response=response,
            circuit_breaker_hit=breaker is not None,
            circuit_breaker_name=None if breaker is None else breaker.name,
            signals_triggered=[hit.name for hit in self.signals if hit.counts],
            risk_score=self.risk.score,
            reliability_signal=intervened or not necessary,
            utility_signal=necessary or not intervened,
            balance_index=balance,
            intervention_necessary=necessary,
            registry_version=self.spec.version,
            spec_name=self.spec.name,
            model_compatibility_status=compatibility(self.spec, self.request.model),
            cost_tokens_extra=self.tokens_extra,
            latency_ms=max(0.0, (now - self.started) * 1_000.0),
            response_requires_verification=self.needs_verification,
            samples=[answer.text[:MAX_SAMPLE] for answer in compared],
            consistency=None if assessment is None else assessment.consistency,
            sampler_partial_failure=len(self.answers) < self.asked and bool(self.answers),
            retrieval_executed=found is not None,
            retrieval_failed=bool(self.retrieval_error),
            retrieval_score=self.given_score if found is None else found.score,
            retrieval_sources=[] if found is None else list(found.sources),
            **more,
        )

    def refusal(self, hit: Hit) -> BrixRegulatedError:
        """The error of a call that a circuit breaker stops."""
        words = matched(hit)
        where = hit.matches[0].where.replace("_", " ") if hit.matches else "prompt"
        why = f" by {', '.join(map(repr, words))} in the {where}" if words else ""
        told = getattr(hit.rule, "message", None) or hit.rule.description
        step = (
            f"{self.retrieval_error}; see to the retrieval provider"
            if self.retrieval_error
            else "Give a retrieval_provider to have it answered from documents"
        )
        return BrixRegulatedError(
            f"rule {hit.name!r} of the spec {self.spec.label} is met{why}, and nothing was sent: {told} "
            f"{step}, ask otherwise, or change the rule (decision {self.decision_id})",
            rule=hit.name,
            spec=self.spec.label,
            decision_id=str(self.decision_id),
            matched=words,
        )


def matched(hit: Hit) -> tuple[str, ...]:
    """The words a rule was met by, as they stand in the text."""
    words = (
        found.excerpt[found.start - found.excerpt_start : found.end - found.excerpt_start] for found in hit.matches
    )
    return tuple(dict.fromkeys(word[:200] for word in words))[:5]


def compatibility(spec: SpecModel, model: str) -> CompatibilityStatus:
    """What the spec says of a model; of the family whose name is the longest beginning of its own.

    Example:
        >>> from brix_core.regulated.format.loading import load_spec_from_dict
        >>> spec = load_spec_from_dict({"name": "house", "version": "1.0", "model_compatibility": [
        ...     {"model_family": "gpt-4o", "status": "verified"}]})
        >>> compatibility(spec, "gpt-4o-mini"), compatibility(spec, "claude")
        ('verified', 'unknown')
    """
    known = [
        one for one in spec.metadata.model_compatibility if model.casefold().startswith(one.model_family.casefold())
    ]
    return max(known, key=lambda one: len(one.model_family)).status if known else "unknown"


__all__ = ["MAX_MATCHES", "MAX_SAMPLE", "RESULT", "RETRIEVAL_SCORE", "Case", "compatibility", "matched"]
