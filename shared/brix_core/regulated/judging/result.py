"""What a call came to in a regulated domain."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

CompatibilityStatus = Literal["verified", "community", "untested", "unknown"]


class UncertaintyType(StrEnum):
    """What the answers to one question tell about it.

    Example:
        >>> UncertaintyType("epistemic") is UncertaintyType.EPISTEMIC
        True
    """

    CERTAIN = "certain"
    """They agree, or there is only one."""
    EPISTEMIC = "epistemic"
    """The model does not know: it says so, or says something else each time."""
    CONTRADICTORY = "contradictory"
    """They cannot all be true."""
    OPEN_ENDED = "open_ended"
    """Several answers are legitimate."""


class ActionTaken(StrEnum):
    """What was done about it.

    Example:
        >>> ActionTaken.FORCE_RETRIEVAL.value
        'force_retrieval'
    """

    NONE = "none"
    FORCE_RETRIEVAL = "force_retrieval"
    """The answer has to rest on what is retrieved; without a provider it is a draft to be verified, or refused."""
    CONFLICT_RESOLUTION = "conflict_resolution"
    """The answer most samples gave, or the model was shown the contradiction and asked to resolve it."""
    DISTRIBUTION_RESPONSE = "distribution_response"
    """The model was shown all answers and asked to say how they are distributed."""


class StructuredResult(BaseModel):
    """What was decided about a call, and why.

    Example:
        >>> result = StructuredResult(
        ...     uncertainty_type="certain", action_taken="none", response="Yes.", registry_version="1.0", latency_ms=2)
        >>> result.circuit_breaker_hit, result.risk_score, result.spec_name
        (False, 0.0, '')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decision_id: UUID = Field(default_factory=uuid4, description="Of this decision; `feedback` takes it.")
    uncertainty_type: UncertaintyType
    subtype: str = Field(default="", description="Which way it is uncertain, such as numbers or tool_calls.")
    action_taken: ActionTaken
    response: str = Field(description="What the user is told: the answer, or why there is none.")
    circuit_breaker_hit: bool = False
    circuit_breaker_name: str | None = None
    signals_triggered: list[str] = Field(default_factory=list, description="Risk signals that count, by name.")
    risk_score: float = Field(default=0.0, ge=0.0, le=1.0)
    reliability_signal: bool = Field(default=True, description="False where intervening was necessary and not done.")
    utility_signal: bool = Field(default=True, description="False where intervening was done and not necessary.")
    balance_index: float = Field(
        default=1.0, ge=0.0, le=1.0, description="Harmonic mean of the session's reliability and utility so far."
    )
    intervention_necessary: bool = False
    registry_version: str = Field(description="Version of the spec.")
    spec_name: str = Field(default="", description="Name of the spec.")
    model_compatibility_status: CompatibilityStatus = "unknown"
    cost_tokens_extra: int = Field(default=0, ge=0, description="Tokens of all answers but the first.")
    latency_ms: float = Field(ge=0.0)
    response_requires_verification: bool = False
    unverified_draft: str | None = Field(default=None, description="The answer, where it has to be verified.")
    samples: list[str] = Field(default_factory=list, description="The answers that were compared.")
    consistency: float | None = Field(default=None, description="Mean cosine of the samples; None for a single one.")
    sampler_partial_failure: bool = Field(default=False, description="Whether some samples failed.")
    retrieval_executed: bool = Field(default=False, description="Whether the answer rests on what was retrieved.")
    retrieval_failed: bool = False
    retrieval_score: float | None = None
    retrieval_sources: list[str] = Field(default_factory=list)
    output_result: SkipValidation[Any] = Field(default=None, description="The `OutputResult` of the output guard.")


__all__ = ["ActionTaken", "CompatibilityStatus", "StructuredResult", "UncertaintyType"]
