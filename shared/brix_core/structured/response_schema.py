"""What an answer must look like, from whatever an application describes it by.

`ResponseSchema.of` takes a Pydantic model, a dataclass, a TypedDict or a JSON Schema. One compiled schema then says how
to ask for the answer, reads it out of what the model wrote, and words what was wrong with it.

Validation follows JSON: what Pydantic accepts from JSON text is accepted (a date as a string), whatever way the value
was found. What fits only because a schema asks for nothing is not taken for an answer: an object without a single field
of the schema, an empty object in the middle of prose, the schema itself sent back, an object that was cut off and lacks
fields, even optional ones.

Example:
    >>> schema = ResponseSchema.of({"title": "City", "type": "object", "required": ["name"],
    ...                             "properties": {"name": {"type": "string"}}})
    >>> schema.read("It is {'name': 'Oslo'}.")
    {'name': 'Oslo'}
    >>> try:
    ...     schema.read('{"name": 3}')
    ... except SchemaMismatch as mismatch:
    ...     mismatch.problems
    (Problem(path='$.name', message='3 is not of type "string"', input=3),)
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import jsonschema_rs
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import is_typeddict

from brix_core.errors import BrixConfigurationError
from brix_core.structured.extraction import Extracted, candidates
from brix_core.structured.partial_json import partial_json
from brix_core.structured.resemblance import Resemblance
from brix_core.structured.strict_schema import strict
from brix_core.structured.typed_dicts import readable

INSTRUCTIONS_HEADING: Final = "# Format of the answer"
"""The first line of `ResponseSchema.instructions`, by which a prompt that has them is recognised."""

MAX_FEEDBACK_CHARS: Final = 2000
"""Length of `ResponseSchema.feedback`, characters."""

_MAX_PROBLEMS = 50
_UNREADABLE = "no complete JSON value can be read: it is cut off, is not JSON, or several stand side by side"
_MAX_INPUT_CHARS = 60


class Problem(NamedTuple):
    """One thing that is wrong with a value.

    Attributes:
        path: Where, as in ``$.items[0].price``.
        message: What is expected there.
        input: What stands there; for a missing field, the object it is missing from.

    Example:
        >>> Problem("$.age", "Input should be a valid integer", "old").path
        '$.age'
    """

    path: str
    message: str
    input: Any


class SchemaMismatch(ValueError):
    """An answer holds no valid instance.

    Args:
        problems: What is wrong, never empty.
        text: The answer.

    Example:
        >>> str(SchemaMismatch((Problem("$.age", "Field required", {}),), "{}"))
        '$.age: Field required'
    """

    def __init__(self, problems: Sequence[Problem], text: str) -> None:
        super().__init__(problems, text)
        self.problems = tuple(problems)
        self.text = text

    def __str__(self) -> str:
        return "; ".join(f"{problem.path}: {problem.message}" for problem in self.problems)


class ResponseSchema:
    """A compiled schema; see `of`.

    Attributes:
        name: What APIs know it by: at most 64 of ``a-zA-Z0-9_-``.
        json_schema: The JSON Schema.
        source: What it was made from.
        instructions: What to tell a model that knows no structured output; begins with `INSTRUCTIONS_HEADING`.

    Example:
        >>> class City(BaseModel):
        ...     name: str
        >>> schema = ResponseSchema.of(City)
        >>> schema.name, schema.read('<think>...</think>{"name": "Oslo"}')
        ('City', City(name='Oslo'))
    """

    def __init__(self, source: Any, name: str, json_schema: dict[str, Any], adapter: TypeAdapter[Any] | None) -> None:
        self._validator = _compile(json_schema, source) if adapter is None else None
        self.source = source
        self.name = re.sub(r"[^a-zA-Z0-9_-]+", "_", name).strip("_")[:64] or "response"
        self.json_schema = json_schema
        self.instructions = (
            f"{INSTRUCTIONS_HEADING}\n"
            "Answer with one JSON value and nothing else: no explanation, no code fence. It must be an instance of "
            f"this JSON Schema (do not repeat the schema):\n{json.dumps(json_schema, ensure_ascii=False)}"
        )
        self._adapter = adapter
        self._resemblance = Resemblance(json_schema, source)

    def __repr__(self) -> str:
        return f"ResponseSchema({self.name!r})"

    @property
    def identity(self) -> str:
        """Its source by name, and what reads it: part of the key under which an answer is cached."""
        source = self.source
        return f"{source.__module__}.{source.__qualname__}" if isinstance(source, type) else ""

    @classmethod
    def of(cls, schema: Any) -> ResponseSchema:
        """Compile a schema.

        Args:
            schema: A Pydantic model class, a dataclass, a TypedDict, a JSON Schema (its title or name is taken for the
                name), or a ResponseSchema, which is returned as it is.

        Raises:
            BrixConfigurationError: It is something else, or not a valid JSON Schema. References to other documents are
                never fetched, so a schema with one is not valid.

        Example:
            >>> ResponseSchema.of(int)
            Traceback (most recent call last):
            ...
            brix_core.errors.BrixConfigurationError: response_schema must be a Pydantic model, a dataclass, a TypedDict
            or a JSON Schema dict, got <class 'int'>; wrap other types in a pydantic.RootModel
        """
        if isinstance(schema, ResponseSchema):
            return schema
        if isinstance(schema, Mapping):
            json_schema = copy.deepcopy(dict(schema))
            name = next((json_schema[key] for key in ("title", "name") if isinstance(json_schema.get(key), str)), "")
            return cls(schema, name, json_schema, None)
        if not isinstance(schema, type) or not (
            issubclass(schema, BaseModel) or dataclasses.is_dataclass(schema) or is_typeddict(schema)
        ):
            raise BrixConfigurationError(
                "response_schema must be a Pydantic model, a dataclass, a TypedDict or a JSON Schema dict, got "
                f"{_shortened(repr(schema), 200)}; wrap other types in a pydantic.RootModel"
            )
        try:
            adapter = _adapter(schema)
            return cls(schema, schema.__name__, adapter.json_schema(), adapter)
        except (PydanticUserError, NameError) as error:
            reason = error.message if isinstance(error, PydanticUserError) else error
            shown = _shortened(repr(schema), 200)
            raise BrixConfigurationError(f"response_schema: {shown} has no JSON Schema: {reason}") from error

    def strict_json_schema(self) -> dict[str, Any] | None:
        """The schema for OpenAI's strict mode, or None when it has none; see `brix_core.structured.strict_schema`.

        Example:
            >>> ResponseSchema.of({"type": "object", "properties": {"a": {"type": "null"}}}).strict_json_schema()
            {'type': 'object', 'properties': {'a': {'type': 'null'}}, 'additionalProperties': False, 'required': ['a']}
        """
        return strict(self.json_schema)

    def is_instance(self, value: Any) -> bool:
        """Whether `value` is what `validate` returns.

        Example:
            >>> ResponseSchema.of({"type": "array"}).is_instance([1])
            True
        """
        if isinstance(self.source, type) and not is_typeddict(self.source):
            return isinstance(value, self.source)
        return isinstance(value, dict | list | str | int | float | None) and not self._check(value)[1]

    def validate(self, value: Any) -> Any:
        """Make an instance of a parsed JSON value.

        Args:
            value: What `json.loads` returns; an instance is returned as it is.

        Returns:
            An instance of the model or dataclass; for a TypedDict or a JSON Schema, dicts and lists.

        Raises:
            SchemaMismatch: It does not fit.

        Example:
            >>> ResponseSchema.of({"type": "integer"}).validate(3)
            3
        """
        if isinstance(self.source, type) and not is_typeddict(self.source) and isinstance(value, self.source):
            return value
        instance, problems = self._check(value)
        if problems:
            raise SchemaMismatch(problems, "")
        return instance

    def is_echo(self, value: Any) -> bool:
        """Whether a parsed JSON value is the schema itself, which is no answer even where it fits.

        Example:
            >>> ResponseSchema.of({"type": "object"}).is_echo({"type": "object"})
            True
        """
        return self._resemblance.is_echo(value)

    def to_json(self, instance: Any) -> Any:
        """An instance as JSON, of which `validate` makes it again.

        Example:
            >>> class City(BaseModel):
            ...     name: str
            >>> ResponseSchema.of(City).to_json(City(name="Oslo"))
            {'name': 'Oslo'}
        """
        return instance if self._adapter is None else self._adapter.dump_python(instance, mode="json", by_alias=True)

    def read(self, text: str) -> Any:
        """Find the instance in what a model wrote: the first of `brix_core.structured.extraction.candidates` that fits.

        Args:
            text: The answer.

        Returns:
            As `validate`.

        Raises:
            SchemaMismatch: None fits; the problems are those of the first candidate that resembles an answer.

        Example:
            >>> ResponseSchema.of({"type": "array", "items": {"type": "integer"}}).read("Numbers: [1, 2]")
            [1, 2]
        """
        return self.read_candidate(text)[0]

    def read_candidate(self, text: str) -> tuple[Any, Extracted]:
        """Like `read`, and how the value was found.

        Example:
            >>> ResponseSchema.of({"type": "array"}).read_candidate("[1,]")[1].how
            'repaired'
        """
        unlike: list[Problem] = []
        problems: list[Problem] = []
        for found in candidates(text):
            objection = self._resemblance.objection(found)
            instance, wrong = (None, [Problem("$", objection, found.value)]) if objection else self._check(found.value)
            if not wrong:
                return instance, found
            if objection:
                unlike = unlike or wrong
            else:
                problems = problems or wrong
            if found.cut:  # the answer itself: what stands before it is a draft
                break
        if not problems and not unlike:
            broken = "{" in text or "[" in text
            unlike = [Problem("$", _UNREADABLE if broken else "there is no JSON in the answer", None)]
        raise SchemaMismatch(problems or unlike, text)

    def partial(self, text: str) -> Any | None:
        """The value so far of an answer still being written, not validated; see `structured.partial_json`.

        Example:
            >>> ResponseSchema.of({"type": "object"}).partial('{"name": "Os')
            {'name': 'Os'}
        """
        return partial_json(text)

    def feedback(self, mismatch: SchemaMismatch) -> str:
        """What to tell the model about its answer: each problem with its path, at most `MAX_FEEDBACK_CHARS` long.

        Example:
            >>> schema = ResponseSchema.of({"title": "Age", "type": "integer"})
            >>> print(schema.feedback(SchemaMismatch((Problem("$", "not an integer", "old"),), '"old"')))
            The previous answer is not a valid Age:
            - $: not an integer (got "old")
            Answer again, with the complete corrected JSON and nothing else.
        """
        head = f"The previous answer is not a valid {self.name}:"
        tail = "Answer again, with the complete corrected JSON and nothing else."
        left = MAX_FEEDBACK_CHARS - len(head) - len(tail) - 40
        lines = [head]
        for index, problem in enumerate(mismatch.problems):
            line = _line(problem)
            left -= len(line) + 1
            if left < 0:
                lines.append(f"- and {len(mismatch.problems) - index} more")
                break
            lines.append(line)
        return "\n".join([*lines, tail])

    def _check(self, value: Any) -> tuple[Any, list[Problem]]:
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            return None, [Problem("$", f"not a JSON value: {error}", value)]
        if self._adapter is None:
            errors = self._validator.iter_errors(value) if self._validator else iter(())
            problems = [
                Problem(_path(error.instance_path), _shortened(error.message, 200), error.instance)
                for error in islice(errors, _MAX_PROBLEMS)
            ]
            return value, [*problems, *_more(sum(1 for _ in errors))]
        try:
            return self._adapter.validate_json(text), []
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False)[:_MAX_PROBLEMS]
            problems = [
                Problem(_path(_location(value, detail["loc"], detail["type"])), detail["msg"], detail["input"])
                for detail in details
            ]
            return None, [*problems, *_more(error.error_count() - len(problems))]


def _adapter(schema: type) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(schema)
    except PydanticUserError as error:
        if error.code != "typed-dict-version" or not is_typeddict(schema):
            raise
        return TypeAdapter(readable(schema))


def _compile(schema: dict[str, Any], source: Any) -> Any:
    def refuse(uri: str) -> Any:
        raise ValueError(f"{uri} is not fetched; put it under $defs")

    try:
        return jsonschema_rs.validator_for(schema, validate_formats=True, retriever=refuse)
    except (ValueError, TypeError, jsonschema_rs.ReferencingError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise BrixConfigurationError(
            f"response_schema is not a valid JSON Schema: {reason}; got {_shortened(repr(source), 200)}"
        ) from error


def _more(count: int) -> list[Problem]:
    return [Problem("$", f"and {count} more problems", None)] if count > 0 else []


def _location(value: Any, location: Sequence[int | str], kind: str) -> list[int | str]:
    """The path of an error in the value itself: Pydantic also names the branches of a union."""
    path: list[int | str] = []
    for index, step in enumerate(location):
        found = isinstance(step, int) and step < len(value) if isinstance(value, list) else False
        if found or (isinstance(value, dict) and step in value):
            value = value[step]
        elif kind != "missing" or index < len(location) - 1:
            continue
        path.append(step)
    return path


def _path(steps: Sequence[int | str]) -> str:
    path = "$"
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}" if step.isidentifier() else f"[{_shortened(json.dumps(step, ensure_ascii=False), 80)}]"
    return path


def _line(problem: Problem) -> str:
    line = f"- {_shortened(problem.path, 200)}: {_shortened(problem.message, 200)}"
    if problem.input is None or isinstance(problem.input, dict | list):
        return line  # no more than a glimpse of the answer goes back
    return f"{line} (got {_shortened(json.dumps(problem.input, default=str, ensure_ascii=False), _MAX_INPUT_CHARS)})"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


__all__ = ["INSTRUCTIONS_HEADING", "MAX_FEEDBACK_CHARS", "Problem", "ResponseSchema", "SchemaMismatch"]
