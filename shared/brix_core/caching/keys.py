"""By which key an answer is kept: all that decides what a model answers, and nothing else.

The prompt, the model and where it is asked, every parameter of the call, the schema, and the guards that change what
is asked or what is accepted. None and False are values. What cannot be told apart for certain (an object of some class
nobody knows) has no key: such a request is sent, and its answer is not kept.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from brix_core.call import CallRequest
    from brix_core.structured.response_schema import ResponseSchema

VERSION: Final = 1
"""Part of every key: grows when what is kept changes its shape."""

_NO_PART: Final = frozenset({"timeout", "run_manager"})
"""Parameters that decide how long one waits and who listens, and not what is answered."""

_ABSENT: Final = frozenset({"NotGiven", "Omit"})
"""Classes of the SDKs' sentinels for a parameter that is not given."""

_BY_TEXT: Final = (uuid.UUID, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, PurePath)


class UnkeyableError(ValueError):
    """A request has no key; the message says why."""


def key_of(request: CallRequest, variant: str = "") -> str:
    """The key of a request.

    Args:
        request: The request, before any guard inside has touched it. Whether it is streamed makes no difference.
        variant: What else decides the answer: the guards inside.

    Raises:
        UnkeyableError: It has none.

    Example:
        >>> from brix_core.caching.keys import canonical
        >>> canonical({"temperature": 0.0, "stop": None}) == canonical({"stop": None, "temperature": 0.0})
        True
        >>> canonical({"stop": None}) == canonical({})
        False
    """
    endpoint = request.endpoint
    n = endpoint.choices(request.params)
    if n > 1:
        raise UnkeyableError(f"n={n} asks for several answers")
    messages = request.conversation.messages
    settings = getattr(endpoint, "settings", answering)
    beside = getattr(endpoint.codec, "beside", None)  # what a framework's messages hold beside the chat format
    parts = {
        "version": VERSION,
        "endpoint": endpoint.identity,
        "model": request.model,
        "messages": [_name(type(endpoint.codec)), _name(type(messages[0])) if messages else ""],
        "prompt": request.conversation.sha256(),
        "beside": None if beside is None else canonical([beside(message) for message in messages]),
        "settings": canonical(settings(request.params)),
        "schema": None if request.schema is None else _schema(request.schema),
        "variant": variant,
    }
    return f"brix:answer:{digest(parts)}"


def answering(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that decide what is answered.

    An endpoint whose client has settings of its own tells them all by a method ``settings(params)``; for others, these
    are all.

    Example:
        >>> answering({"temperature": 0.2, "timeout": 5.0})
        {'temperature': 0.2}
    """
    return {name: value for name, value in params.items() if name not in _NO_PART}


def digest(parts: Any) -> str:
    """SHA-256 of what JSON can hold, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def canonical(value: Any) -> Any:
    """A value as JSON in which different values stay different.

    Raises:
        UnkeyableError: It holds something whose value nothing tells.

    Example:
        >>> canonical([1, True, None, b"x"])
        [1, True, None, {'bytes': '78'}]
    """
    try:
        return _canonical(value)
    except RecursionError:
        raise UnkeyableError("its parameters are nested too deeply, or hold themselves") from None


def _canonical(value: Any) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, enum.Enum):
        return {"enum": _name(type(value)), "name": value.name}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Mapping):
        return {"map": sorted(_items(value))}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, set | frozenset):
        return {"set": sorted(json.dumps(_canonical(item)) for item in value)}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    return _of_object(value)


def _items(mapping: Mapping[Any, Any]) -> list[list[str]]:
    """Key and value as JSON text, so that they can be sorted."""
    given = ((key, value) for key, value in mapping.items() if type(value).__name__ not in _ABSENT)
    return [[json.dumps(_canonical(key)), json.dumps(_canonical(value))] for key, value in given]


def _of_object(value: Any) -> Any:
    schema = getattr(value, "model_json_schema", None)
    if isinstance(value, type) and callable(schema):
        return {"class": _name(value), "schema": _canonical(schema())}
    if isinstance(value, type):
        return {"class": _name(value)}
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return {"object": _name(type(value)), "fields": _canonical(dump())}
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"object": _name(type(value)), "fields": _canonical(fields)}
    if isinstance(value, _BY_TEXT):
        return {"object": _name(type(value)), "text": str(value)}
    if isinstance(value, int | str):  # of a subclass
        return {"object": _name(type(value)), "text": repr(value)}
    raise UnkeyableError(f"a parameter holds a {_name(type(value))}, whose value cannot be told")


def _schema(schema: ResponseSchema) -> Any:
    return [schema.identity, schema.name, _canonical(schema.json_schema)]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


__all__ = ["VERSION", "UnkeyableError", "answering", "canonical", "digest", "key_of"]
