"""Pydantic's errors about a spec in plain words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from pydantic import BaseModel

from brix_core.regulated.format.consistency import Location
from brix_core.regulated.format.spec import SpecModel

_WANTED: Final = {
    "string_type": "must be text",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping of fields to values",
    "model_attributes_type": "must be a mapping of fields to values",
}


def told(error: Mapping[str, Any]) -> str:
    """One error of a `ValidationError` as a sentence: which field, what is allowed, what it is, what to do.

    Args:
        error: An item of ``ValidationError.errors()``, its ``loc`` as in the spec.

    Example:
        >>> told({"type": "extra_forbidden", "loc": ("sampling_config", "temprature"), "input": 1})
        "sampling_config has no field 'temprature'; did you mean 'temperature'?"
        >>> told({"type": "string_type", "loc": ("metadata", "version"), "input": 1.0})
        'metadata.version must be text, got 1.0; put it in quotes'
    """
    at: Location = tuple(error["loc"])
    kind, value, context = error["type"], error.get("input"), error.get("ctx") or {}
    where = path(at)
    if kind == "missing":
        if at == ("metadata",):
            return "metadata is missing; give it with a name and a version"
        return f"{path(at[:-1]) or 'the spec'} needs the field {at[-1]!r}"
    if kind == "extra_forbidden":
        return f"{path(at[:-1]) or 'the spec'} has no field {at[-1]!r}; {_hint(at)}"
    wanted = _WANTED.get(kind) or _limit(kind, context) or _plain(error)
    quotes = "; put it in quotes" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    return f"{where or 'the spec'} {wanted}, got {shown(value)}{quotes}"


def _limit(kind: str, context: Mapping[str, Any]) -> str:
    """What is allowed, where pydantic says it in a context."""
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "string_pattern_mismatch":
        if "A-Za-z" in context["pattern"]:
            return "must begin with a letter and hold only letters, digits, '_', '-' and '.'"
        return "must not be blank"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']:,} characters"
    if kind == "too_short":
        return f"must have at least {context['min_length']} item{'s' if context['min_length'] > 1 else ''}"
    bounds = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le")}
    if kind in bounds:
        words, key = bounds[kind]
        return f"must be {words} {context[key]:g}"
    return ""


def _plain(error: Mapping[str, Any]) -> str:
    message = str(error.get("msg", "cannot be used"))
    return f"cannot be used: {message[:1].lower()}{message[1:]}"


def _hint(at: Location) -> str:
    known = fields_at(at[:-1])
    close = difflib.get_close_matches(str(at[-1]), known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(at) == 1 and at[0] in fields_at(("metadata",)):
        return "put it into metadata"
    return f"it has {', '.join(known)}"


def fields_at(at: Location) -> Sequence[str]:
    """Names of the fields a spec has at a place.

    Example:
        >>> fields_at(("circuit_breakers", 0, "examples"))
        ['positive', 'negative', 'threshold']
    """
    model: Any = SpecModel
    for step in at:
        if isinstance(step, str):
            field = model.model_fields.get(step) if model else None
            model = _model_in(field.annotation) if field else None
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model a field holds, by itself, in a tuple or beside None."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def path(at: Location) -> str:
    """A place in a spec, as one would write it in Python.

    Example:
        >>> path(("circuit_breakers", 0, "patterns", 2))
        'circuit_breakers[0].patterns[2]'
    """
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in at).removeprefix(".")


def shown(value: object) -> str:
    """What a message quotes of a value."""
    try:
        text = repr(value)
    except Exception:  # an int of more digits than Python prints, an object with a broken repr
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


__all__ = ["fields_at", "path", "shown", "told"]
