"""The JSON Schema subset of OpenAI's strict mode: closed objects, every property required.

Example:
    >>> strict({"type": "object", "properties": {"a": {"type": "string", "default": "x"}}})
    {'type': 'object', 'properties': {'a': {'type': 'string'}}, 'additionalProperties': False, 'required': ['a']}
    >>> print(strict({"type": "object"}))
    None
"""

from __future__ import annotations

import copy
from typing import Any, Final

# Without these a schema means something else; the rest of what strict mode does not know is checked afterwards.
_IMPOSSIBLE: Final = frozenset(
    {
        *("allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"),
        *("patternProperties", "prefixItems", "additionalItems", "unevaluatedProperties", "propertyNames", "contains"),
        "$dynamicRef",
    }
)
_KEPT: Final = frozenset(
    {
        *("type", "title", "description", "enum", "const", "pattern", "multipleOf", "minimum", "maximum"),
        *("exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"),
    }
)
_FORMATS: Final = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"))
_DEFINITIONS: Final = ("$defs", "definitions")


class _NotStrictError(Exception):
    pass


def strict(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The strict variant of a schema.

    What matches it also matches `schema`: keywords are only left out where validation checks them afterwards.

    Args:
        schema: A JSON Schema; it is not changed.

    Returns:
        The variant, or None when there is none: the root is no object, an object is free-form, or a value may be
        anything.

    Example:
        >>> strict({"type": "array", "items": {"type": "string"}}) is None
        True
    """
    try:
        root = dict(schema)
        reference = root.get("$ref")
        if isinstance(reference, str) and reference.startswith(("#/$defs/", "#/definitions/")):  # a recursive root
            _, group, name = reference.split("/", 2)
            root = {**root[group][name], **{key: schema[key] for key in _DEFINITIONS if key in schema}}
        converted = _convert(root)
        for group in _DEFINITIONS:
            if group in schema:
                converted[group] = {name: _convert(part) for name, part in schema[group].items()}
    except (_NotStrictError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return converted if converted.get("type") == "object" else None


def _convert(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, dict) or _IMPOSSIBLE & schema.keys() or _is_of_draft_4(schema):
        raise _NotStrictError
    if "$ref" in schema:
        if not schema["$ref"].startswith("#"):
            raise _NotStrictError
        return {"$ref": schema["$ref"]}  # strict mode allows no neighbours
    result = {key: copy.deepcopy(value) for key, value in schema.items() if key in _KEPT}
    if schema.get("format") in _FORMATS:
        result["format"] = schema["format"]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            if "anyOf" in result:
                raise _NotStrictError
            result["anyOf"] = [_convert(part) for part in schema[union]]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "object" in kinds or "properties" in schema:
        _close(schema, result)
    if "array" in kinds:
        result["items"] = _convert(schema.get("items"))
    if not result.keys() & {"type", "anyOf", "enum", "const"}:
        raise _NotStrictError
    return result


def _is_of_draft_4(schema: dict[str, Any]) -> bool:
    return any(isinstance(schema.get(key), bool) for key in ("exclusiveMinimum", "exclusiveMaximum"))


def _close(schema: dict[str, Any], result: dict[str, Any]) -> None:
    if "properties" not in schema or schema.get("additionalProperties", False) is not False:
        raise _NotStrictError
    result["properties"] = {name: _convert(part) for name, part in schema["properties"].items()}
    result["additionalProperties"] = False
    result["required"] = list(schema["properties"])


__all__ = ["strict"]
