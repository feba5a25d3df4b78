"""Failures of providers that are called over plain HTTP, in the terms that `brix_core.failures` reads.

::

    ProviderError                 the provider answered with an error, or with something that is no answer
    └── UnreadableAnswerError     a success by its status, but not what the API promises
    StreamCutError                a stream that ended before the model had finished; a ConnectionError

Connections that fail and time limits are httpx's own exceptions. None of these hold the request: its headers hold
the key.

Example:
    >>> from brix_core.failures import classify
    >>> failure = classify(ProviderError("too fast", 429, {"retry-after": "2"}))
    >>> failure.retryable, failure.retry_after, failure.billable
    (True, 2.0, False)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

MAX_MESSAGE: Final = 500
"""Characters of a provider's own words in an error's message."""


class ProviderError(Exception):
    """A provider's answer that is an error.

    Args:
        message: What happened.
        status_code: The HTTP status, or the one that an error inside a stream stands for.
        headers: The response's headers, names in lower case.
        body: The response's body: parsed, or as text.

    Example:
        >>> error = ProviderError("no such model", 404)
        >>> str(error), error.status_code
        ('no such model', 404)
    """

    def __init__(
        self, message: str, status_code: int | None = None, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> None:
        super().__init__(message, status_code, headers, body)
        self.message = message
        self.status_code = status_code
        self.headers = dict(headers or {})
        self.body = body

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, status_code={self.status_code})"


class UnreadableAnswerError(ProviderError):
    """What came with a success is no answer: not JSON, or not an object. A gateway's page, perhaps.

    Worth another attempt; but the model may have done the work, so it is charged.

    Example:
        >>> UnreadableAnswerError("not JSON", body="<html>").is_retryable
        True
    """

    is_retryable: ClassVar[bool] = True


class StreamCutError(ConnectionError):
    """A stream ended, without any error of the connection, before the model said that it had finished.

    Example:
        >>> from brix_core.failures import classify
        >>> classify(StreamCutError("cut")).kind
        'connection'
    """


def shortened(text: str) -> str:
    r"""A provider's own words, one line of them.

    Example:
        >>> shortened("<html>\n  Bad  gateway")
        '<html> Bad gateway'
    """
    words = " ".join(text[: 2 * MAX_MESSAGE].split())
    return words if len(words) <= MAX_MESSAGE else words[: MAX_MESSAGE - 1] + "…"


__all__ = ["MAX_MESSAGE", "ProviderError", "StreamCutError", "UnreadableAnswerError", "shortened"]
