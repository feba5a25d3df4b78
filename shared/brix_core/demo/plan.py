"""The terms in which behaviours and wire formats meet: what was asked, and what is to be answered.

Wire formats read a request body into a `Prompt` and render `Answer` objects; behaviours become a `Plan`
or a `Refusal` for that prompt. Neither side knows the other.

Example:
    >>> answer = Answer(text="Hello")
    >>> [piece.text for piece in answer.pieces(chunk_size=4)]
    ['Hell', 'o']
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

ToolChoice = Literal["auto", "required", "none"]


class InvalidRequest(Exception):
    """The body is not what the API expects: status 400."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: its role (``tool`` for a tool's result) and its text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool on offer, with the JSON schema of its arguments."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request to a model.

    Attributes:
        model: The model asked for.
        turns: The conversation.
        prompt_tokens: What the provider counts for it.
        tools: The tools on offer.
        tool_choice: Whether a tool must, may or must not be called.
        named_tool: The tool that must be called, if one is named.
        response_schema: The JSON schema the answer must conform to.
        json_mode: Any JSON object will do.
        max_tokens: Most tokens of the completion.
        stop: Texts that end the completion.
        choices: How many answers to give.
        stream: Whether to stream them.
        include_usage: Whether a stream ends with the usage (OpenAI).
        batch: Several prompts in one request (OpenAI's legacy format), `choices` answers each.
    """

    model: str
    turns: tuple[Turn, ...]
    prompt_tokens: int
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    named_tool: str | None = None
    response_schema: Mapping[str, Any] | None = None
    json_mode: bool = False
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    stream: bool = False
    include_usage: bool = False
    batch: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is JSON text, cut short perhaps."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of an answer: text, or a part of the call with that number (`name` in its first part)."""

    text: str = ""
    call: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One choice.

    Attributes:
        text: Its text.
        calls: Its tool calls.
        finish: Why it ended, in OpenAI's terms.
        stopped_by: The stop sequence that ended it.
    """

    text: str = ""
    calls: tuple[Call, ...] = ()
    finish: str = "stop"
    stopped_by: str | None = None

    def pieces(self, chunk_size: int) -> Iterator[Piece]:
        """The chunks to stream it in, of at most `chunk_size` characters."""
        for start in range(0, len(self.text), chunk_size):
            yield Piece(self.text[start : start + chunk_size])
        for number, call in enumerate(self.calls):
            yield Piece(call=number, name=call.name)
            for start in range(0, len(call.arguments), chunk_size):
                yield Piece(call.arguments[start : start + chunk_size], call=number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to answer.

    Attributes:
        answers: The choices.
        latency: Seconds before the status line.
        first_token: Seconds between the status line and the first chunk.
        chunk_delay: Seconds between chunks.
        chunk_size: Characters a chunk.
        ending: Whether it is completed, falls silent or is cut.
        after: Chunks sent before an ending that is no completion.
        usage: Figures to report instead of the counted ones; empty reports none.
    """

    answers: tuple[Answer, ...]
    latency: float = 0.0
    first_token: float = 0.0
    chunk_delay: float = 0.0
    chunk_size: int = 4
    ending: Literal["complete", "stall", "cut"] = "complete"
    after: int = 0
    usage: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error response: status, OpenAI's error type and code, message and headers' content."""

    status: int
    kind: str
    message: str
    code: str | None = None
    retry_after: str | None = None
    latency: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens to report. Cached ones are part of the prompt, reasoning ones of the completion."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


__all__ = [
    "Answer",
    "Call",
    "InvalidRequest",
    "Piece",
    "Plan",
    "Prompt",
    "Refusal",
    "Tool",
    "ToolChoice",
    "Turn",
    "Usage",
]
