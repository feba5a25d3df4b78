"""Messages as `BRIX.wrap`'s clients take them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from brix_core.errors import BrixConfigurationError

Messages = str | Iterable[Mapping[str, Any]]
"""Messages in OpenAI's chat format; a str is one user message."""


def listed(messages: Any, kwargs: dict[str, Any]) -> list[Any]:
    """Messages as a list; a ``system`` among the other parameters is taken out of them and comes first.

    Raises:
        BrixConfigurationError: They are none.
    """
    found = _listed(messages)
    if kwargs.get("system") and isinstance(kwargs["system"], str | list | tuple):
        found.insert(0, {"role": "system", "content": kwargs.pop("system")})
    return found


def checked_messages(messages: Any, kwargs: dict[str, Any]) -> list[Any]:
    """As `listed`, each of them looked at.

    Raises:
        BrixConfigurationError: One is no message.
    """
    found = listed(messages, kwargs)
    check_messages(found)
    return found


def _listed(messages: Any) -> list[Any]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping) or not isinstance(messages, Iterable):
        raise BrixConfigurationError(
            f"messages must be a list of dicts or a str, got {type(messages).__name__}; put a single message in a list"
        )
    found = list(messages)
    if not found:
        raise BrixConfigurationError("messages is empty; give [{'role': 'user', 'content': '...'}]")
    return found


def check_messages(messages: Sequence[Any], start: int = 0) -> None:
    """Every message from `start` on must be a dict with a role.

    Raises:
        BrixConfigurationError: One is not.
    """
    for number, message in enumerate(messages[start:], start):
        if not isinstance(message, Mapping):
            hint = "; give message.model_dump(exclude_none=True)" if hasattr(message, "model_dump") else ""
            raise BrixConfigurationError(
                f"messages[{number}] must be a dict with a role, got {type(message).__name__}{hint}"
            )
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise BrixConfigurationError(f"messages[{number}] has no role; it has only {sorted(map(str, message))}")


__all__ = ["Messages", "check_messages", "checked_messages", "listed"]
