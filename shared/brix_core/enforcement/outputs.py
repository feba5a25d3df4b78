"""What the enforcement engine, its adapters and its validators give back.

Example:
    >>> result = ValidationResult(status=ValidationStatus.VALID, parsed_output={"city": "Oslo"}, raw_output="...")
    >>> result.is_valid, result.repair_attempted
    (True, False)
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ValidationStatus(StrEnum):
    """What became of an answer.

    `VALID` fits the schema. `INVALID` does not, or a rule of the validator. `UNREPAIRABLE` holds no JSON whose meaning
    is certain. `NOT_VALIDATED`: there was no answer.
    """

    VALID = "valid"
    INVALID = "invalid"
    UNREPAIRABLE = "unrepairable"
    NOT_VALIDATED = "not_validated"


class ValidationError(BaseModel):
    """One thing that is wrong.

    Attributes:
        path: Where, as in ``$.items[0].price``.
        message: What is expected there, or what happened.
        actual: What stands there.

    Example:
        >>> print(ValidationError(path="$.age", message="Field required"))
        $.age: Field required
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    path: str
    message: str
    actual: Any = None

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ValidationResult(BaseModel):
    """What a validator found.

    Attributes:
        status: Valid, or why not.
        parsed_output: The value, where it is valid: an instance of the model, or what the JSON says.
        errors: What is wrong, where it is not.
        raw_output: The text that was looked at.
        repair_attempted: Whether the text as a whole was no JSON, so that it was searched and mended.
        repair_successful: Whether that gave a valid value.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    status: ValidationStatus
    parsed_output: Any = None
    errors: list[ValidationError] = Field(default_factory=list)
    raw_output: str = ""
    repair_attempted: bool = False
    repair_successful: bool = False

    @property
    def is_valid(self) -> bool:
        """Whether the status is `ValidationStatus.VALID`."""
        return self.status is ValidationStatus.VALID


class GenerationResponse(BaseModel):
    """One answer of a model.

    Attributes:
        output: Its text; empty when there was none.
        provider: Who was asked, by the adapter's name for it.
        model: The model that answered, or was asked.
        tokens_used: Input and output tokens of this answer, as reported; our own count where nothing was.
        latency_ms: How long this answer took, milliseconds.
        timestamp: When it was asked for, UTC.
        finish_reason: The provider's own word.
        input_tokens: The part of `tokens_used` that is the prompt.
        output_tokens: The part that is the answer.
        tokens_estimated: True when the provider reported nothing.
        raw: The SDK's own result; in no dump.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    output: str
    provider: str
    model: str
    tokens_used: int = 0
    latency_ms: float = 0.0
    timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))
    finish_reason: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    tokens_estimated: bool = False
    raw: Any = Field(default=None, exclude=True, repr=False)


class EnforcedOutput(BaseModel):
    """What `EnforcementEngine.enforce` gives: valid data, or why there is none.

    Attributes:
        data: The valid value; None when there is none.
        generation: The last answer there was; its `output` is empty when nothing was answered.
        validation: What the validator found in it.
        retry_count: How often the model was asked again because its answer did not fit.
        success: Whether `data` is valid.
        error: Why not: `BrixSchemaError` after the last retry, the error of a guard that refused the call, or what the
            provider's SDK raised. In no dump.
        error_type: Its class's name.
        attempts: Requests that were sent, those of retries and fallbacks included; 0 for a cached answer.
        tokens_used: Tokens of all of them, as far as reported.
        cost_usd: What they were charged, USD; None when nothing was metered.
        cached: Whether the answer is one to another, identical request.
        run_id: UUID4 of the call, as in its trace entry; empty for a prompt of which no request could be made.
        session_id: Whose call it was.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    data: Any = None
    generation: GenerationResponse
    validation: ValidationResult
    retry_count: int = 0
    success: bool
    error: Exception | None = Field(default=None, exclude=True)
    error_type: str | None = None
    attempts: int = 0
    tokens_used: int = 0
    cost_usd: float | None = None
    cached: bool = False
    run_id: str = ""
    session_id: str = ""


__all__ = ["EnforcedOutput", "GenerationResponse", "ValidationError", "ValidationResult", "ValidationStatus"]
