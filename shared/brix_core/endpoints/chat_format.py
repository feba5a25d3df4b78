"""Messages in OpenAI's chat format, taken apart for APIs that word them otherwise.

Example:
    >>> parts_of({"role": "user", "content": [{"type": "text", "text": "What is this?"},
    ...     {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}}]}, 0, "Gemini")
    ['What is this?', Image(media_type='image/png', data='iVBOR')]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from brix_core.errors import BrixConfigurationError

_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,([A-Za-z0-9+/=_-]+)\Z")


class Image(NamedTuple):
    """An image's media type, and its data in Base64."""

    media_type: str
    data: str


class Called(NamedTuple):
    """A tool call in a message; `extra` is what the provider put beside it."""

    id: str
    name: str
    arguments: dict[str, Any]
    extra: Mapping[str, Any]


def parts_of(message: Mapping[str, Any], number: int, api: str) -> list[str | Image]:
    """What a message shows: texts and images.

    Args:
        message: The message.
        number: Its place, for errors.
        api: Who cannot take anything else, for errors.

    Raises:
        BrixConfigurationError: It holds something else, or an image that is not given by its data.
    """
    content = message.get("content")
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list | tuple):
        raise BrixConfigurationError(
            f"messages[{number}].content must be a str or a list of parts, got {content!r:.80}"
        )
    return [_part(part, number, api) for part in content]


def text_in(message: Mapping[str, Any], number: int, api: str) -> str:
    """The text of a message that may hold nothing else.

    Example:
        >>> text_in({"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, 0, "Gemini")
        'Be brief.'
    """
    parts = parts_of(message, number, api)
    if any(isinstance(part, Image) for part in parts):
        raise BrixConfigurationError(
            f"messages[{number}] has the role {message.get('role')!r} and holds an image, which {api} does not take "
            "there; put it into a user message"
        )
    return "".join(str(part) for part in parts)


def calls_of(message: Mapping[str, Any], number: int) -> list[Called]:
    """The tool calls of an assistant's message.

    Raises:
        BrixConfigurationError: One has no name, or arguments that are no JSON object.

    Example:
        >>> call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        >>> calls_of({"role": "assistant", "tool_calls": [call]}, 0)[0].arguments
        {'a': 1}
    """
    found = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not function.get("name"):
            raise BrixConfigurationError(
                f"messages[{number}] holds a tool call without a function's name: {call!r:.80}"
            )
        arguments = _object(function.get("arguments") or {})
        if arguments is None:
            raise BrixConfigurationError(
                f"messages[{number}]: the arguments of {function['name']} are no JSON object: "
                f"{function.get('arguments')!r:.80}"
            )
        extra = call.get("extra_content")
        found.append(
            Called(
                str(call.get("id") or ""),
                str(function["name"]),
                arguments,
                extra if isinstance(extra, Mapping) else {},
            )
        )
    return found


def names_of_calls(messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The name of the tool for the id of each call."""
    return {
        call.id: call.name
        for number, message in enumerate(messages)
        if message.get("role") == "assistant"
        for call in calls_of(message, number)
    }


def tool_name(message: Mapping[str, Any], number: int, names: Mapping[str, str]) -> str:
    """Which tool a result comes from.

    Raises:
        BrixConfigurationError: Nothing tells.

    Example:
        >>> tool_name({"role": "tool", "tool_call_id": "c1", "content": "3"}, 1, {"c1": "add"})
        'add'
    """
    name = names.get(str(message.get("tool_call_id") or "")) or message.get("name") or message.get("tool_name")
    if not name:
        raise BrixConfigurationError(
            f"messages[{number}] is the result of no call that stands before it (tool_call_id="
            f"{message.get('tool_call_id')!r}); keep the assistant's message with its tool_calls, or give name="
        )
    return str(name)


def result_of(text: str) -> dict[str, Any]:
    """A tool's result as an object; what is none is put under ``output``.

    Example:
        >>> result_of('{"degrees": 3}'), result_of("rain")
        ({'degrees': 3}, {'output': 'rain'})
    """
    found = _object(text) if text.lstrip().startswith("{") else None
    return {"output": text} if found is None else found


def functions_in(tools: Any) -> Iterator[Mapping[str, Any]]:
    """What is in each tool, OpenAI's wrapping taken off.

    Raises:
        BrixConfigurationError: They are no list of dicts.

    Example:
        >>> list(functions_in([{"type": "function", "function": {"name": "now"}}]))
        [{'name': 'now'}]
    """
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BrixConfigurationError(f"tools must be a list of dicts in OpenAI's format, got {tools!r:.80}")
    for tool in tools:
        function = tool.get("function")
        yield function if isinstance(function, Mapping) else tool


def named_choice(choice: Any) -> str | None:
    """The tool that a ``tool_choice`` names.

    Example:
        >>> named_choice({"type": "function", "function": {"name": "now"}}), named_choice("auto")
        ('now', None)
    """
    if not isinstance(choice, Mapping):
        return None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    return name if isinstance(name, str) else None


def _part(part: Any, number: int, api: str) -> str | Image:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        found = _DATA_URL.match(url) if isinstance(url, str) else None
        if found is None:
            raise BrixConfigurationError(
                f"messages[{number}] holds an image by its address ({url!r:.60}), which {api} does not fetch; give its "
                "data: 'data:image/png;base64,...'"
            )
        return Image(found[1], found[2])
    if kind == "image" and isinstance(source := part.get("source"), Mapping) and source.get("type") == "base64":
        return Image(str(source.get("media_type")), str(source.get("data")))
    raise BrixConfigurationError(
        f"messages[{number}] holds a part of the type {kind!r}, which is not sent to {api} from here; give text and "
        "images"
    )


def _object(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return dict(value) if isinstance(value, Mapping) else None


__all__ = [
    "Called",
    "Image",
    "calls_of",
    "functions_in",
    "named_choice",
    "names_of_calls",
    "parts_of",
    "result_of",
    "text_in",
    "tool_name",
]
