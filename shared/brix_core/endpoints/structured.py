"""Structured output in the providers' own ways: which models have it, and what they are sent.

A schema is sent only where it keeps its meaning (closed objects, no free-form values; see
`brix_core.structured.strict_schema`): whatever else a provider leaves unchecked is checked when the answer is read.

Sources: OpenAI, "Structured model outputs" (``response_format`` of the type ``json_schema``, from gpt-4o-2024-08-06
and gpt-4o-mini on); Microsoft, "Structured outputs" (from the API version 2024-08-01 on); Anthropic, "Structured
outputs" (``output_config.format``, all models from 4.5 on; no recursive schemas).

Example:
    >>> has_json_schema("gpt-4o-mini"), has_json_schema("gpt-4-turbo"), has_output_format("claude-haiku-4-5")
    (True, False, True)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from brix_core.tokens import bare_model_name

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

AZURE_SINCE: Final = "2024-08-01"
"""The first API version of Azure that takes a schema."""

_JSON_SCHEMA: Final = re.compile(
    r"gpt-4o(?!-2024-05-13)(?!.*(?:audio|realtime|transcribe|tts))|gpt-4\.[15]|gpt-[5-9](?!\d)"
    r"|o1(?!-mini|-preview)(?![a-z0-9])|o[34](?![a-z0-9])"
)
_OUTPUT_FORMAT: Final = re.compile(r"claude-(?:opus|sonnet|haiku)-(?:4[-.][5-9]|[5-9])(?!\d)")


def has_json_schema(model: str) -> bool:
    """Whether this is one of OpenAI's models that take a schema."""
    return bool(_JSON_SCHEMA.match(bare_model_name(model)))


def has_output_format(model: str) -> bool:
    """Whether this is one of Anthropic's models that take a schema."""
    return bool(_OUTPUT_FORMAT.match(bare_model_name(model)))


@lru_cache(maxsize=256)
def response_format(schema: ResponseSchema) -> dict[str, Any] | None:
    """OpenAI's ``response_format`` for a schema; None when strict mode cannot express it."""
    strict = schema.strict_json_schema()
    if strict is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": schema.name, "schema": strict, "strict": True}}


@lru_cache(maxsize=256)
def output_format(schema: ResponseSchema) -> dict[str, Any] | None:
    """The format in Anthropic's ``output_config`` for a schema; None when it cannot be expressed."""
    try:
        from anthropic import transform_schema
    except ImportError:  # an older SDK
        return None
    strict = schema.strict_json_schema()
    if strict is None or is_recursive(strict):
        return None
    try:
        return {"type": "json_schema", "schema": transform_schema(strict)}
    except (ValueError, TypeError, AssertionError):  # how the SDK says that it knows no way
        return None


def is_recursive(schema: dict[str, Any]) -> bool:
    """Whether a part of the schema leads back to itself, or to what is not there.

    Example:
        >>> is_recursive({"$ref": "#/$defs/A", "$defs": {"A": {"items": {"$ref": "#/$defs/A"}}}})
        True
    """
    definitions = {
        f"#/{group}/{name}": part for group in ("$defs", "definitions") for name, part in schema.get(group, {}).items()
    }
    root = {key: part for key, part in schema.items() if key not in ("$defs", "definitions")}

    def returns(part: Any, above: tuple[str, ...]) -> bool:
        return any(
            name in above or name not in definitions or returns(definitions[name], (*above, name))
            for name in _references(part)
        )

    return returns(root, ())


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for below in part.values():
            yield from _references(below)
    elif isinstance(part, list):
        for below in part:
            yield from _references(below)


__all__ = ["AZURE_SINCE", "has_json_schema", "has_output_format", "is_recursive", "output_format", "response_format"]
