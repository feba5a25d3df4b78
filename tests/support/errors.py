"""The failures of a provider, as the real SDKs raise them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import openai

_REQUEST = httpx.Request("POST", "https://api.example/v1/chat/completions")

_CLASSES: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}


def status_error(
    status: int, message: str = "failed", *, headers: Mapping[str, str] | None = None, body: Any = None
) -> openai.APIStatusError:
    """What the openai SDK raises for an answer with this status."""
    response = httpx.Response(status, headers=headers, request=_REQUEST)
    cls = _CLASSES.get(status, openai.InternalServerError if status >= 500 else openai.APIStatusError)
    return cls(message, response=response, body=body)


def never_reached() -> openai.APIConnectionError:
    """A connection that could not be made, wrapped as the SDK wraps it."""
    error = openai.APIConnectionError(request=_REQUEST)
    error.__cause__ = httpx.ConnectError("connection refused", request=_REQUEST)
    return error


def connection_lost() -> openai.APIConnectionError:
    """A connection that broke after the request had left."""
    error = openai.APIConnectionError(request=_REQUEST)
    error.__cause__ = httpx.ReadError("connection reset", request=_REQUEST)
    return error


__all__ = ["connection_lost", "never_reached", "status_error"]
