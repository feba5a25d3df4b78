"""Values that conform to a JSON schema, made the same way every time.

Numbers and quoted words of a hint are used up in order, so that the arguments of a tool call have to do
with the message that asked for it. ``pattern``, ``not`` and conditionals are not considered.

Example:
    >>> schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    >>> example(schema, hint="3 days in 'Oslo', please")
    {'city': 'Oslo', 'days': 3}
    >>> example(schema)
    {'city': 'sample city', 'days': 1}
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
_QUOTED = re.compile(r"(?<!\w)(['\"`])(.+?)\1(?!\w)")
_FORMATS = {
    "date": "2025-01-31",
    "date-time": "2025-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_SHALLOW = 5
"""Depth beyond which everything optional is left out, which ends recursive schemas."""
_DEEPEST = 30


def example(schema: Mapping[str, Any], hint: str = "") -> Any:
    """A value that conforms to `schema`.

    Args:
        schema: A JSON schema; local references are followed.
        hint: Text whose numbers and quoted words to use.
    """
    return _Maker(schema, hint).make(schema, "value", 0)


def quoted_words(text: str) -> list[str]:
    """The quoted parts of a text.

    Example:
        >>> quoted_words("keys 'setup' and `punchline`, don't forget")
        ['setup', 'punchline']
    """
    return [match[1] for match in _QUOTED.findall(text)]


class _Maker:
    def __init__(self, root: Mapping[str, Any], hint: str) -> None:
        self._root = root
        self._numbers = deque(_NUMBER.findall(hint))
        self._words = deque(quoted_words(hint))

    def make(self, schema: Any, name: str, depth: int) -> Any:
        """One value; `name` is the property it is for."""
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            return None
        schema = self._resolve(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        for keyword in ("anyOf", "oneOf"):
            if schema.get(keyword):
                return self._one_of(schema[keyword], name, depth)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((item for item in kind if item != "null"), "null")
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        if kind == "boolean":
            return True
        return None if kind == "null" else self._string(schema, name)

    def _resolve(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        merged = dict(schema)
        for _ in range(_DEEPEST):
            reference = merged.pop("$ref", None)
            parts = merged.pop("allOf", None)
            if isinstance(reference, str):
                merged = {**self._look_up(reference), **merged}
            elif parts:
                for part in parts:
                    part = self._resolve(part)
                    properties = {**merged.get("properties", {}), **part.get("properties", {})}
                    required = [*merged.get("required", []), *part.get("required", [])]
                    merged = {**part, **merged}
                    if properties:
                        merged |= {"properties": properties, "required": required}
            else:
                break
        return merged

    def _look_up(self, reference: str) -> Mapping[str, Any]:
        node: Any = self._root
        for key in reference.removeprefix("#").strip("/").split("/"):
            if key:
                node = node.get(key.replace("~1", "/").replace("~0", "~"), {})
        return node if isinstance(node, Mapping) else {}

    def _one_of(self, options: list[Any], name: str, depth: int) -> Any:
        nulls = [option for option in options if isinstance(option, Mapping) and option.get("type") == "null"]
        others = [option for option in options if option not in nulls]
        if nulls and (depth > _SHALLOW or not others):
            return None
        return self.make(others[0], name, depth + 1)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = set(schema.get("required", ()))
        return {
            key: self.make(value, key, depth + 1)
            for key, value in schema.get("properties", {}).items()
            if depth <= _SHALLOW or key in required
        }

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        fixed = [self.make(item, name, depth + 1) for item in schema.get("prefixItems", ())]
        least = schema.get("minItems", 0 if depth > _SHALLOW else 1)
        wanted = max(len(fixed), min(least, schema.get("maxItems", math.inf)))
        if "items" not in schema and not schema.get("minItems"):
            return fixed
        return fixed + [self.make(schema.get("items", {}), name, depth + 1) for _ in range(wanted - len(fixed))]

    def _number(self, schema: Mapping[str, Any], *, whole: bool) -> int | float:
        text = self._numbers.popleft() if self._numbers else "1"
        value: int | float = float(text) if "." in text and not whole else math.floor(float(text))
        step = schema.get("multipleOf", 1 if whole else 0)
        nudge = step or 1e-6
        if (least := schema.get("minimum")) is not None:
            value = max(value, least)
        if (above := schema.get("exclusiveMinimum")) is not None and value <= above:
            value = above + nudge
        if (most := schema.get("maximum")) is not None:
            value = min(value, most)
        if (below := schema.get("exclusiveMaximum")) is not None and value >= below:
            value = below - nudge
        if step and value % step:
            value = math.ceil(value / step) * step
        return int(value) if whole else value

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        known = _FORMATS.get(schema.get("format", ""))
        text = known or (self._words.popleft() if self._words else f"sample {name.replace('_', ' ')}")
        text = text.ljust(schema.get("minLength", 0), ".")
        return text[: schema["maxLength"]] if "maxLength" in schema else text


__all__ = ["example", "quoted_words"]
