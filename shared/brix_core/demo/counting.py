"""What a provider would bill: token counts of the demo server.

Deliberately not `brix_core.tokens.count_messages`: that is the guards' upper bound, this is the published
rule, so that tests can hold one against the other. Text is counted with ``o200k_base``, whatever the
model. Both agree on plain conversations.

Sources: OpenAI cookbook, "How to count tokens with tiktoken", sections 6 (messages) and 7 (tools).

Example:
    >>> message_tokens([{"role": "user", "content": "hello world"}])
    9
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from brix_core.tokens import tokenizer_for

PER_MESSAGE = 3
PER_NAME = 1
PRIMING = 3
PER_TOOL = 7
PROPERTIES_INIT = 3
PER_PROPERTY = 3
ENUM_INIT = -3
PER_ENUM_ITEM = 3
TOOLS_END = 12
PER_IMAGE = 85
"""OpenAI's price of an image with ``detail: low``; the server does not look into images."""


def text_tokens(text: str) -> int:
    """Tokens of a text.

    Example:
        >>> text_tokens("hello world")
        2
    """
    return tokenizer_for("gpt-4o").count(text)


def truncate(text: str, limit: int) -> str:
    """The longest beginning of `text` found that has at most `limit` tokens.

    Example:
        >>> truncate("one two three", 2)
        'one two'
    """
    if text_tokens(text) <= limit:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_tokens(text[:middle]) <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def message_tokens(messages: Iterable[Mapping[str, Any]]) -> int:
    """Tokens of a conversation: 3 a message, every value, 1 a name, and 3 that prime the reply."""
    total = PRIMING
    for message in messages:
        total += PER_MESSAGE
        for key, value in message.items():
            total += _value_tokens(value) + (PER_NAME if key == "name" else 0)
    return total


def tool_tokens(tools: Iterable[tuple[str, str, Mapping[str, Any]]]) -> int:
    """Tokens of tools, given as name, description and JSON schema; 0 without any.

    Example:
        >>> tool_tokens([("now", "Tells the time.", {})])
        24
    """
    total = 0
    for name, description, schema in tools:
        total += PER_TOOL + text_tokens(f"{name}:{description.removesuffix('.')}")
        properties = schema.get("properties") or {}
        total += PROPERTIES_INIT if properties else 0
        for key, value in properties.items():
            total += PER_PROPERTY + _property_tokens(key, value if isinstance(value, Mapping) else {})
    return total + TOOLS_END if total else 0


def schema_tokens(schema: Mapping[str, Any] | None) -> int:
    """Tokens of a response schema, as compact JSON."""
    return text_tokens(json.dumps(schema, separators=(",", ":"), ensure_ascii=False)) if schema else 0


def _property_tokens(key: str, schema: Mapping[str, Any]) -> int:
    total = 0
    if "enum" in schema:
        total += ENUM_INIT + sum(PER_ENUM_ITEM + text_tokens(str(item)) for item in schema["enum"])
    description = str(schema.get("description", "")).removesuffix(".")
    return total + text_tokens(f"{key}:{schema.get('type', '')}:{description}")


def _value_tokens(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return text_tokens(value)
    if isinstance(value, Mapping):
        kind = value.get("type")
        if kind in ("image_url", "image", "input_image"):
            return PER_IMAGE
        # Discriminators and identifiers are syntax, not text of the prompt.
        return sum(_value_tokens(item) for key, item in value.items() if key not in ("type", "id", "tool_use_id"))
    if isinstance(value, list):
        return sum(map(_value_tokens, value))
    return text_tokens(json.dumps(value))


__all__ = ["message_tokens", "schema_tokens", "text_tokens", "tool_tokens", "truncate"]
