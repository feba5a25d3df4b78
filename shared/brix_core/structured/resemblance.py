"""Whether a value looks like an answer at all, before it is validated: a lax schema lets almost anything pass."""

from __future__ import annotations

from typing import Any, Final

from pydantic import AliasChoices, AliasPath

from brix_core.structured.extraction import Extracted

_OPENING: Final = frozenset({"patternProperties", "if", "dependentSchemas", "dependencies"})
"""Keywords of an object that has more fields than ``properties`` names."""


ECHO: Final = "this is the JSON Schema; answer with an instance of it"
"""The objection to the schema itself, sent back."""


class Resemblance:
    """What an answer to a schema looks like.

    Args:
        schema: The JSON Schema.
        source: What it was made from; a Pydantic model's fields go by other names, too.

    Example:
        >>> closed = Resemblance({"properties": {"a": {}}}, None)
        >>> closed.objection(Extracted({"b": 1}, "strict"))
        'the object has none of the fields of the schema'
        >>> opened = Resemblance({"properties": {"a": {}}, "additionalProperties": True}, None)
        >>> opened.objection(Extracted({"b": 1}, "strict"))
        ''
    """

    def __init__(self, schema: dict[str, Any], source: Any) -> None:
        self._schema = schema
        self._open = _is_open(schema)
        self._fields = _root_fields(schema)
        self._known = self._fields | _other_names(source) if self._fields else self._fields

    def is_echo(self, value: Any) -> bool:
        """Whether a value is the schema itself, sent back."""
        return isinstance(value, dict) and _is_echo(value, self._schema, self._fields)

    def objection(self, found: Extracted) -> str:
        """Why a candidate is no answer, whatever the schema allows; empty when it may be one."""
        value = found.value
        if not isinstance(value, dict):
            return ""
        if self.is_echo(value):
            return ECHO
        if not self._fields:
            return "the object is cut off" if found.cut else ""
        if not value:
            return "" if found.how in ("strict", "fenced") else "an empty object"
        if not self._known & value.keys() and not (self._open and found.how in ("strict", "fenced")):
            return "the object has none of the fields of the schema"
        if missing := sorted(self._fields - value.keys()) if found.cut else []:
            return f"the object is cut off before {', '.join(missing)}"
        return ""


def _other_names(source: Any) -> frozenset[str]:
    """By what else a model may know its fields than by the names in its JSON Schema."""
    names: set[str] = set()
    for name, field in getattr(source, "model_fields", {}).items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        names |= {str(choice.path[0]) if isinstance(choice, AliasPath) else str(choice) for choice in choices}
        names.add(name)
    return frozenset(names)


def _root_fields(schema: dict[str, Any], depth: int = 0) -> frozenset[str]:
    """The properties an object at the top may have; empty when it may have any, or need not be an object."""
    if schema.get("additionalProperties") not in (None, False) and not schema.get("properties"):
        return frozenset()
    fields = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    reference = schema.get("$ref")
    parts = [part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key, ())]
    return (
        frozenset(fields) if not reference and not parts else _fields_of_parts(schema, fields, reference, parts, depth)
    )


def _fields_of_parts(
    schema: dict[str, Any], fields: set[str], reference: Any, parts: list[Any], depth: int
) -> frozenset[str]:
    if isinstance(reference, str) and reference.startswith(("#/$defs/", "#/definitions/")):
        _, group, name = reference.split("/", 2)
        parts = [*parts, schema.get(group, {}).get(name)]
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for part in parts:
        if isinstance(part, dict) and depth < 8:
            fields |= _root_fields({**shared, **part}, depth + 1)
    return frozenset(fields)


def _is_echo(value: dict[str, Any], schema: dict[str, Any], fields: frozenset[str]) -> bool:
    if value == schema:
        return True
    properties = value.get("properties")
    if "properties" in fields or not isinstance(properties, dict) or not properties:
        return "$defs" in value and "$defs" in schema and "$defs" not in fields
    return properties.keys() <= fields and all(isinstance(part, dict) for part in properties.values())


def _is_open(schema: dict[str, Any], depth: int = 0) -> bool:
    """Whether an object may have fields that the schema does not name, and says so."""
    if schema.get("additionalProperties") not in (None, False) or _OPENING & schema.keys():
        return True
    parts = [part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key, ())]
    return depth < 8 and any(isinstance(part, dict) and _is_open(part, depth + 1) for part in parts)


__all__ = ["ECHO", "Resemblance"]
