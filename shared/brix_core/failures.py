"""What a failure means: its status, whether another attempt may help, whether it may have cost money.

Judged by exception type and HTTP status of openai, anthropic, httpx, LangChain's ``ModelError`` and
the built-in exceptions; never by digits in a message. SDKs are recognised by the names of their
classes, so that none has to be imported. Unknown exceptions are not retryable.

Example:
    >>> classify(ConnectionRefusedError()).retryable
    True
    >>> classify(ValueError("HTTP 500")).retryable
    False
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

from brix_core.errors import BrixError, BrixTimeoutError

FailureKind = Literal["status", "timeout", "connection", "guard", "unknown"]
"""What a failure was judged by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The meaning of an exception.

    Attributes:
        kind: What it was judged by.
        retryable: Another attempt at the same endpoint may succeed.
        status: The HTTP status, if the provider answered with one.
        retry_after: Seconds the provider asked us to wait.
        billable: The provider may have done, and billed, the work. False when it refused the request
            or was never reached.
    """

    kind: FailureKind
    retryable: bool
    status: int | None = None
    retry_after: float | None = None
    billable: bool = True

    @property
    def rate_limited(self) -> bool:
        """The provider said that we are too fast (429)."""
        return self.status == 429

    @property
    def provider_down(self) -> bool:
        """The provider is unwell: what a circuit breaker counts. Rate limits and bad requests are not."""
        if self.kind == "status":
            return self.status is not None and self.status >= 500
        return self.kind in ("timeout", "connection")


RETRYABLE_STATUSES: Final = frozenset({408, 409, 429})
"""And every 5xx but 501 and 505. As in the retry rules of the openai and anthropic SDKs."""

FATAL_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""Error codes that come with status 429 though waiting does not help (OpenAI's error reference)."""

_SDKS = frozenset({"openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "aiohttp"})
_TIMEOUTS = frozenset({"APITimeoutError", "TimeoutException", "Timeout", "ServerTimeoutError"})
_CONNECTIONS = frozenset(
    {"APIConnectionError", "TransportError", "ConnectionError", "ClientConnectionError", "ChunkedEncodingError"}
)
_DEPTH = 8
_STATUS_OF_EVENT: Final = {
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "api_error": 500,
    "server_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Error types of OpenAI's and Anthropic's API references, with the status each has outside a stream."""
_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ClientConnectorError"})


def classify(error: BaseException, *, also_retry: Collection[int] = (), now: float | None = None) -> Failure:
    """Judge a failure.

    Args:
        error: What was raised.
        also_retry: Further HTTP statuses to count as retryable.
        now: Seconds since the epoch, to read a ``Retry-After`` date; the system's time by default.
    """
    if isinstance(error, BrixError):
        timed_out = isinstance(error, BrixTimeoutError) and error.kind != "step"
        waited = timed_out and error.kind != "total"  # type: ignore[attr-defined]
        return Failure(kind="timeout" if waited else "guard", retryable=waited, billable=timed_out)
    status = _status(error)
    if status is not None:
        headers = _headers(error)
        return Failure(
            kind="status",
            retryable=status in also_retry or _retryable_status(error, status, headers),
            status=status,
            retry_after=_retry_after(headers, time.time() if now is None else now),
            billable=False,
        )
    kind = _kind(error)
    declared = getattr(error, "is_retryable", None)
    return Failure(
        kind=kind,
        retryable=declared if isinstance(declared, bool) else kind != "unknown",
        billable=not _never_sent(error),
    )


def _kind(error: BaseException) -> FailureKind:
    names = _sdk_names(error)
    if isinstance(error, TimeoutError) or names & _TIMEOUTS:
        return "timeout"
    if isinstance(error, ConnectionError) or names & _CONNECTIONS:
        return "connection"
    return "unknown"


def _sdk_names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] in _SDKS}


def _never_sent(error: BaseException) -> bool:
    """The connection was not even made; looks through the wrappers of SDKs and frameworks at the first cause."""
    link: BaseException | None = error
    for _ in range(_DEPTH):
        if link is None:
            return False
        if isinstance(link, ConnectionRefusedError) or _sdk_names(link) & _NEVER_SENT:
            return True
        link = link.__cause__
    return False


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    # The last is google.api_core's; elsewhere it is deprecated (aiohttp), so it is only looked at if need be.
    for holder, name in ((error, "status_code"), (response, "status_code"), (error, "status"), (error, "code")):
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            return int(value)
    if isinstance(response, Mapping):  # botocore
        value = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode")
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return _status_in_stream(error)


def _status_in_stream(error: BaseException) -> int | None:
    """The status that an error event stands for: a stream that has begun with 200 can report it in no other way."""
    body = getattr(error, "body", None)
    if not isinstance(body, Mapping) or not _sdk_names(error):
        return None
    nested = body.get("error")
    holder = nested if isinstance(nested, Mapping) else body
    for value in (holder.get("type"), holder.get("code")):
        if isinstance(value, str) and value in _STATUS_OF_EVENT:
            return _STATUS_OF_EVENT[value]
    return None


def _headers(error: BaseException) -> Mapping[str, str]:
    response = getattr(error, "response", None)
    headers: Any = getattr(response, "headers", None) or getattr(error, "headers", None)
    if not isinstance(headers, Mapping):
        return {}
    return {str(name).lower(): str(value) for name, value in headers.items()}


def _retryable_status(error: BaseException, status: int, headers: Mapping[str, str]) -> bool:
    if _code(error) in FATAL_CODES:
        return False
    advice = headers.get("x-should-retry")  # sent by OpenAI and Anthropic; their SDKs obey it too
    if advice in ("true", "false"):
        return advice == "true"
    return status in RETRYABLE_STATUSES or (status >= 500 and status not in (501, 505))


def _code(error: BaseException) -> str | None:
    body = getattr(error, "body", None)
    nested = body.get("error", body) if isinstance(body, Mapping) else None
    for holder in (vars(error).get("code"), nested.get("code") if isinstance(nested, Mapping) else None):
        if isinstance(holder, str):
            return holder
    return None


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait: ``retry-after-ms``, or ``Retry-After`` in seconds or as a date (RFC 9110, 10.2.3)."""
    seconds = _number(headers.get("retry-after-ms"), scale=0.001)
    if seconds is None:
        seconds = _number(headers.get("retry-after"))
    if seconds is None and (text := headers.get("retry-after")):
        try:
            date = parsedate_to_datetime(text)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (TypeError, ValueError, OverflowError):
            return None
    return None if seconds is None else max(0.0, seconds)


def _number(text: str | None, scale: float = 1.0) -> float | None:
    try:
        value = float(text) * scale if text is not None else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


def is_control_flow(error: BaseException) -> bool:
    """Whether it is an interrupt of LangGraph, which is no failure. Known by name, since the core knows no framework.

    Example:
        >>> is_control_flow(ValueError("no"))
        False
    """
    if isinstance(error, BrixError):  # in a graph, a refusal is control flow as well, and still a refusal
        return False
    return any(cls.__name__ == "GraphBubbleUp" for cls in type(error).__mro__)


__all__ = ["FATAL_CODES", "RETRYABLE_STATUSES", "Failure", "FailureKind", "classify", "is_control_flow"]
