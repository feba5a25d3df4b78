"""What the output guard found in an answer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class OutputResult(BaseModel):
    """What an answer says that it should not.

    Example:
        >>> OutputResult().response_safe_to_display
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    output_blocked: bool = Field(default=False, description="Whether the answer must not be shown.")
    output_risk_score: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="max(registered weights) + 0.6 x sum(universal weights) of the risk signals; 1 when it is blocked.",
    )
    output_signals_triggered: tuple[str, ...] = Field(
        default=(), description="Output signals that were found, by name, in the order of the spec."
    )
    output_block_signal: str | None = Field(default=None, description="The first of them that blocks.")
    output_risk_breakdown: dict[str, float] = Field(
        default_factory=dict,
        description="max_registered, registered_component, sum_universal, universal_component, raw_score; empty when "
        "nothing was found.",
    )
    response_safe_to_display: bool = Field(
        default=True, description="Not blocked, and the score below the spec's medium_threshold."
    )


__all__ = ["OutputResult"]
