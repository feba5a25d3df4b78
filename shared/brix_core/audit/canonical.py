"""JSON in one form only, so that the same entry always has the same hash.

Keys are sorted, there are no spaces, the text is UTF-8.

Example:
    >>> canonical({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    >>> digest({"genesis": "session-1"})[:8]
    '6184085b'
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, Final

import orjson


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value; what JSON does not know is written as its text."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
    except TypeError:  # lone surrogates, which UTF-8 cannot carry, or numbers beyond 64 bits
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def parsed(text: bytes) -> Any:
    """The value of a JSON text, written by `canonical` or not.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)
    return value if len(text) < _LONG or not _BIG.search(text) else json.loads(text)


_LONG: Final = 20
_BIG: Final = re.compile(rb"\d{19}")
"""What may be a number beyond 64 bits, of which orjson makes a float."""


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def chained_digest(values: Iterable[Any], before: str = "") -> str:
    """A hash of values one after the other; goes on from that of the values before them.

    Example:
        >>> chained_digest(["a", "b"]) == chained_digest(["b"], before=chained_digest(["a"]))
        True
    """
    for value in values:
        before = digest_of(before.encode() + canonical(value))
    return before


def digest_of(line: bytes) -> str:
    """SHA-256 of bytes as they are, in hexadecimal."""
    return hashlib.sha256(line).hexdigest()


__all__ = ["canonical", "chained_digest", "digest", "digest_of", "parsed"]
