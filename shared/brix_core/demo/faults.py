"""What the demo server may do with a request: answers, refusals, and streams that go wrong.

Every behaviour is a frozen description; `brix_core.demo.replies` turns it into a plan for one request.
Times are in seconds. Unless said otherwise a behaviour honours ``max_tokens``, ``stop`` and ``n``.

Example:
    >>> Reply("Paris.", chunk_delay=0.01)
    Reply(text='Paris.', latency=0.0, usage=None, finish_reason='stop', chunk_delay=0.01, chunk_size=4)
    >>> SlowFirstToken(0.2, then=ServerError(503)).then
    ServerError(status=503, retry_after=None)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brix_core.checks import at_least, whole
from brix_core.errors import BrixConfigurationError

USAGE_KEYS = frozenset({"prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"})
"""What `Reply.usage` may set."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A sensible, deterministic answer to whatever was asked; the server's default.

    Calls a tool when the request demands one or the last user message is about it, with arguments made
    from the tool's JSON schema (numbers and quoted words come from that message). Answers in JSON when
    ``response_format`` asks for it, conforming to the schema. Otherwise repeats the last message.

    Example:
        >>> Echo()
        Echo(latency=0.0)
    """

    latency: float = 0.0

    def __post_init__(self) -> None:
        at_least("latency", self.latency, 0)


@dataclass(frozen=True, slots=True)
class Reply:
    """A fixed text.

    Args:
        text: The answer.
        latency: Seconds before the status line is sent.
        usage: Figures to report instead of the counted ones: any of `USAGE_KEYS`. Reasoning tokens are
            added to the counted completion tokens unless those are set too. An empty mapping leaves
            usage out of OpenAI's formats altogether, as some gateways do.
        finish_reason: In OpenAI's terms; translated for Anthropic.
        chunk_delay: Seconds between two chunks; a reply that is not streamed takes as long in all.
        chunk_size: Characters per streamed chunk.

    Example:
        >>> Reply("Hi", usage={"cached_tokens": 2, "reasoning_tokens": 64}).finish_reason
        'stop'
        >>> Reply("Hi", usage={"tokens": 3})
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixConfigurationError: usage has the unknown key 'tokens'; known are \
cached_tokens, completion_tokens, prompt_tokens, reasoning_tokens
    """

    text: str
    latency: float = 0.0
    usage: Mapping[str, int] | None = None
    finish_reason: str = "stop"
    chunk_delay: float = 0.0
    chunk_size: int = 4

    def __post_init__(self) -> None:
        at_least("latency", self.latency, 0)
        at_least("chunk_delay", self.chunk_delay, 0)
        whole("chunk_size", self.chunk_size, 1)
        for key, value in (self.usage or {}).items():
            if key not in USAGE_KEYS:
                known = ", ".join(sorted(USAGE_KEYS))
                raise BrixConfigurationError(f"usage has the unknown key {key!r}; known are {known}")
            whole(f"usage[{key!r}]", value, 0)


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """Calls of tools, whether the request offered them or not.

    Args:
        calls: Name and arguments of each.
        text: Text in front of the calls.

    Example:
        >>> ToolCalls([("get_weather", {"city": "Oslo"})]).calls[0][0]
        'get_weather'
    """

    calls: Sequence[tuple[str, Mapping[str, Any]]]
    text: str = ""

    def __post_init__(self) -> None:
        if not self.calls:
            raise BrixConfigurationError("calls must name at least one tool; use Reply for plain text")
        for name, arguments in self.calls:
            _require_json(f"arguments of {name}", arguments)


@dataclass(frozen=True, slots=True)
class JsonReply:
    """A value, answered as compact JSON text.

    Example:
        >>> JsonReply({"city": "Oslo"}).value
        {'city': 'Oslo'}
    """

    value: Any

    def __post_init__(self) -> None:
        _require_json("value", self.value)


@dataclass(frozen=True, slots=True)
class MalformedJson:
    """JSON text that does not parse, whatever ``response_format`` demanded.

    Example:
        >>> MalformedJson().text
        '{"answer": "unfinished'
    """

    text: str = '{"answer": "unfinished'


@dataclass(frozen=True, slots=True)
class RateLimited:
    """A refusal because of too many requests; waiting helps.

    Args:
        retry_after: The ``Retry-After`` header: seconds or an HTTP date.
        status: The HTTP status.

    Example:
        >>> RateLimited(retry_after="2").status
        429
    """

    retry_after: str | None = None
    status: int = 429

    def __post_init__(self) -> None:
        _status(self.status, 400, 599)


@dataclass(frozen=True, slots=True)
class QuotaExceeded:
    """A refusal because the account is out of money: 429 ``insufficient_quota``; waiting does not help.

    Example:
        >>> QuotaExceeded()
        QuotaExceeded()
    """


@dataclass(frozen=True, slots=True)
class ServerError:
    """A failure of the provider.

    Args:
        status: The HTTP status, 500 to 599.
        retry_after: The ``Retry-After`` header: seconds or an HTTP date.

    Example:
        >>> ServerError(503).status
        503
    """

    status: int = 500
    retry_after: str | None = None

    def __post_init__(self) -> None:
        _status(self.status, 500, 599)


@dataclass(frozen=True, slots=True)
class Overloaded:
    """Anthropic's 529 ``overloaded_error``.

    Example:
        >>> Overloaded(retry_after="1").retry_after
        '1'
    """

    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class BadRequest:
    """A refusal that is the caller's fault.

    Args:
        message: The error's message.
        code: OpenAI's error code, for example ``context_length_exceeded``.
        status: The HTTP status, 400 to 499.

    Example:
        >>> BadRequest(code="context_length_exceeded").status
        400
    """

    message: str = "The request was refused by the script of the demo server."
    code: str | None = None
    status: int = 400

    def __post_init__(self) -> None:
        _status(self.status, 400, 499)


@dataclass(frozen=True, slots=True)
class StalledStream:
    """A stream that falls silent with its connection open, until the client leaves or the server stops.

    A request that is not streamed gets no answer at all.

    Args:
        after: Chunks of content sent before the silence.
        text: What the chunks are cut from.

    Example:
        >>> StalledStream(after=0).after
        0
    """

    after: int = 3
    text: str = "This answer will never be finished, because the model fell silent."

    def __post_init__(self) -> None:
        whole("after", self.after, 0)


@dataclass(frozen=True, slots=True)
class CutStream:
    """A stream whose connection breaks, without a terminating chunk.

    A request that is not streamed loses its connection before the status line.

    Args:
        after: Chunks of content sent before the cut.
        text: What the chunks are cut from.

    Example:
        >>> CutStream(after=1).after
        1
    """

    after: int = 3
    text: str = "This answer will never be finished, because the connection broke."

    def __post_init__(self) -> None:
        whole("after", self.after, 0)


@dataclass(frozen=True, slots=True)
class EndlessRepetition:
    """A model caught in a loop: ignores ``max_tokens`` and ``stop``, and streams until the client leaves.

    Args:
        text: What is repeated, one chunk each time.
        limit: Chunks after which the stream ends all the same. A reply that is not streamed is of at
            most 1,000 repetitions.
        chunk_delay: Seconds between two chunks.

    Example:
        >>> EndlessRepetition(limit=50).text
        'again and again '
    """

    text: str = "again and again "
    limit: int = 100_000
    chunk_delay: float = 0.001

    def __post_init__(self) -> None:
        whole("limit", self.limit, 1)
        at_least("chunk_delay", self.chunk_delay, 0)
        if not self.text:
            raise BrixConfigurationError("text must not be empty")


@dataclass(frozen=True, slots=True)
class SlowFirstToken:
    """Another behaviour, late: a stream sends its status line at once, and then nothing for a while.

    Args:
        seconds: The wait. A refusal, or a reply that is not streamed, is delayed as a whole.
        then: What happens afterwards.

    Example:
        >>> SlowFirstToken(0.5).then.text
        'Here I am at last.'
    """

    seconds: float
    then: Behaviour = Reply("Here I am at last.")

    def __post_init__(self) -> None:
        at_least("seconds", self.seconds, 0)


Behaviour = (
    Echo
    | Reply
    | ToolCalls
    | JsonReply
    | MalformedJson
    | RateLimited
    | QuotaExceeded
    | ServerError
    | Overloaded
    | BadRequest
    | StalledStream
    | CutStream
    | EndlessRepetition
    | SlowFirstToken
)
"""Anything the server can be told to do."""


def _require_json(name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise BrixConfigurationError(f"{name} must be JSON, got {value!r}") from error


def _status(value: int, least: int, most: int) -> None:
    whole("status", value, least)
    if value > most:
        raise BrixConfigurationError(f"status must be {least} to {most}, got {value}")


__all__ = [
    "USAGE_KEYS",
    "BadRequest",
    "Behaviour",
    "CutStream",
    "Echo",
    "EndlessRepetition",
    "JsonReply",
    "MalformedJson",
    "Overloaded",
    "QuotaExceeded",
    "RateLimited",
    "Reply",
    "ServerError",
    "SlowFirstToken",
    "StalledStream",
    "ToolCalls",
]
