"""Validators: whether a text is what a schema asks for, and what it says.

Answers are read by the reader of all structured output (`brix_core.structured.extraction`). A text that is JSON as a
whole is taken as it is, and is valid whenever the schema allows it. Any other text is searched (fences, prose) and
mended where its meaning is certain (quotes, commas, comments, Python literals, a missing last brace), and must resemble
an answer; values inside strings are never changed, and what is not certain is refused rather than guessed.

Example:
    >>> result = JSONValidator().validate_and_repair("Sure: {'city': 'Oslo',}", {"type": "object"})
    >>> result.parsed_output, result.repair_attempted, result.repair_successful
    ({'city': 'Oslo'}, True, True)
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from brix_core.enforcement.outputs import ValidationError, ValidationResult, ValidationStatus
from brix_core.errors import BrixConfigurationError
from brix_core.structured.extraction import Extracted, candidates
from brix_core.structured.resemblance import ECHO
from brix_core.structured.response_schema import Problem, ResponseSchema, SchemaMismatch

NOT_JSON: Final = "the text as a whole is not JSON"
"""The error of a strict validation."""


class BaseValidator(ABC):
    """A validator. Subclass one of the two below to add rules of your own: override `validate`.

    Example:
        >>> class Positive(JSONValidator):
        ...     def validate(self, output, schema):
        ...         result = super().validate(output, schema)
        ...         if result.is_valid and result.parsed_output <= 0:
        ...             return invalid(output, [ValidationError(path="$", message="must be > 0")])
        ...         return result
        >>> Positive().validate("-1", {"type": "integer"}).errors[0].message
        'must be > 0'
    """

    @abstractmethod
    def compile(self, schema: Any) -> ResponseSchema:
        """Compile a schema; compiled ones are remembered.

        Raises:
            BrixConfigurationError: It is none that this validator takes.
        """

    def validate(self, output: str, schema: Any) -> ValidationResult:
        """Validate a text that should be JSON as a whole.

        Args:
            output: The text.
            schema: What it must fit.

        Raises:
            BrixConfigurationError: The schema cannot be used, or `output` is no text.
        """
        compiled, text = self.compile(schema), checked_text(output)
        found = _whole(text)
        if found is None:
            return invalid(text, [ValidationError(path="$", message=NOT_JSON)])
        try:
            value = compiled.validate(found.value)
        except SchemaMismatch as mismatch:
            return invalid(text, errors_of(mismatch.problems))
        return ValidationResult(status=ValidationStatus.VALID, parsed_output=value, raw_output=text)

    def validate_and_repair(self, output: str, schema: Any) -> ValidationResult:
        """Validate a text; one that is not JSON as a whole is searched and mended first.

        Args:
            output: The text.
            schema: What it must fit.

        Raises:
            BrixConfigurationError: The schema cannot be used, or `output` is no text.
        """
        result = self.validate(output, schema)
        if result.is_valid or _whole(output):
            return result
        attempted = {"raw_output": output, "repair_attempted": True}
        try:
            found = self.compile(schema).read_candidate(output)[1]
        except SchemaMismatch as mismatch:
            status = ValidationStatus.INVALID if _has_json(output) else ValidationStatus.UNREPAIRABLE
            return invalid(output, errors_of(mismatch.problems)).model_copy(update={**attempted, "status": status})
        again = self.validate(json.dumps(found.value), schema)
        return again.model_copy(update={**attempted, "repair_successful": again.is_valid})


class PydanticValidator(BaseValidator):
    """Validates by a Pydantic model, a dataclass or a TypedDict; the value is an instance of it.

    Example:
        >>> from pydantic import BaseModel
        >>> class City(BaseModel):
        ...     name: str
        >>> PydanticValidator().validate('{"name": "Oslo"}', City).parsed_output
        City(name='Oslo')
        >>> PydanticValidator().validate('{"name": 7}', City).errors[0].path
        '$.name'
    """

    def compile(self, schema: Any) -> ResponseSchema:
        """See `BaseValidator.compile`."""
        if isinstance(schema, type):
            return _compiled_class(schema)
        if isinstance(schema, ResponseSchema) and isinstance(schema.source, type):
            return schema
        raise BrixConfigurationError(
            f"PydanticValidator takes a Pydantic model, a dataclass or a TypedDict, got {schema!r:.200}; use "
            "JSONValidator for a JSON Schema"
        )


class JSONValidator(BaseValidator):
    """Validates by a JSON Schema; the value is what the JSON says: dicts, lists and so on.

    The draft is the one that the schema names in ``$schema``, 2020-12 when it names none. References to other documents
    are never fetched: such a schema is refused. A Pydantic model stands for its JSON Schema.

    Example:
        >>> schema = {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}}}}
        >>> [str(error) for error in JSONValidator().validate('{"tags": ["a", 7]}', schema).errors]
        ['$.tags[1]: 7 is not of type "string"']
    """

    def compile(self, schema: Any) -> ResponseSchema:
        """See `BaseValidator.compile`."""
        if isinstance(schema, type):
            return _compiled_as_json(schema)
        if isinstance(schema, ResponseSchema):
            return schema if isinstance(schema.source, Mapping) else _compiled_as_json(schema.source)
        if not isinstance(schema, Mapping):
            raise BrixConfigurationError(
                f"JSONValidator takes a JSON Schema dict or a Pydantic model, got {schema!r:.200}"
            )
        try:
            return _compiled_text(json.dumps(schema))
        except (TypeError, ValueError, RecursionError):
            return ResponseSchema.of(schema)


class ValidatedSchema(ResponseSchema):
    """A compiled schema whose answers a validator reads: what the schema guard is given for one call.

    Args:
        compiled: The schema.
        validator: Reads by it.
        schema: The schema as the validator takes it.

    Attributes:
        result: What the validator found last; None before.
    """

    def __init__(self, compiled: ResponseSchema, validator: BaseValidator, schema: Any) -> None:
        self.__dict__.update(compiled.__dict__)
        self._compiled = compiled
        self._reader = validator
        self._given = schema
        self.result: ValidationResult | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ValidatedSchema) and other._compiled is self._compiled

    def __hash__(self) -> int:
        return hash(self._compiled)  # what is derived from a schema is remembered by it

    @property
    def identity(self) -> str:
        """See `ResponseSchema.identity`."""
        reader = type(self._reader)
        return f"{reader.__module__}.{reader.__qualname__}:{self._compiled.identity}"

    def read_candidate(self, text: str) -> tuple[Any, Extracted]:
        """See `ResponseSchema.read_candidate`.

        A text that is JSON as a whole need not resemble an answer, but the schema itself, sent back, is none.
        """
        result = self._reader.validate_and_repair(text, self._given)
        whole = _whole(text) if result.is_valid else None
        if whole is not None and self.is_echo(whole.value):
            result = invalid(text, [ValidationError(path="$", message=ECHO)])
        self.result = result
        if not result.is_valid:
            problems = [Problem(error.path, error.message, error.actual) for error in result.errors]
            raise SchemaMismatch(problems or [Problem("$", result.status.value, None)], text)
        return result.parsed_output, Extracted(None, "repaired" if result.repair_attempted else "strict")


def invalid(text: str, errors: Sequence[ValidationError]) -> ValidationResult:
    """The result for a text with errors."""
    return ValidationResult(status=ValidationStatus.INVALID, errors=list(errors), raw_output=text)


def errors_of(problems: Sequence[Problem]) -> list[ValidationError]:
    """What is wrong, in the words of the reader of structured output."""
    return [ValidationError(path=path, message=message, actual=value) for path, message, value in problems]


def checked_text(output: Any) -> str:
    """The text.

    Raises:
        BrixConfigurationError: It is none.
    """
    if not isinstance(output, str):
        raise BrixConfigurationError(f"output must be a str, the model's text, got {type(output).__name__}")
    return output


def _whole(text: str) -> Extracted | None:
    """The value of a text that is JSON as a whole."""
    found = next(candidates(text), None)
    return found if found is not None and found.how == "strict" else None


def _has_json(text: str) -> bool:
    return next(candidates(text), None) is not None


@lru_cache(maxsize=256)
def _compiled_class(schema: type) -> ResponseSchema:
    return ResponseSchema.of(schema)


@lru_cache(maxsize=256)
def _compiled_text(schema: str) -> ResponseSchema:
    return ResponseSchema.of(json.loads(schema))


@lru_cache(maxsize=256)
def _compiled_as_json(schema: type) -> ResponseSchema:
    compiled = ResponseSchema.of(schema)
    return ResponseSchema.of({"title": compiled.name, **compiled.json_schema})


__all__ = [
    "NOT_JSON",
    "BaseValidator",
    "JSONValidator",
    "PydanticValidator",
    "ValidatedSchema",
    "checked_text",
    "errors_of",
    "invalid",
]
