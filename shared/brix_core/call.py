"""The data that flows through the guards.

A *logical call* is what the application asked for; it ends in one trace entry. Inside it, every
request that really leaves for a provider is an *attempt*. Guards pass a frozen `CallRequest` down and
a `CallResponse` up; what they find out about the logical call as a whole is kept in its `LogicalCall`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

from brix_core.errors import BrixTimeoutError
from brix_core.usage import Usage

if TYPE_CHECKING:
    from brix_core.conversation import Conversation
    from brix_core.delivered import DeliveredChunks
    from brix_core.endpoint import Endpoint
    from brix_core.looping.steps import Taken
    from brix_core.session import Session
    from brix_core.structured.response_schema import ResponseSchema

Outcome = Literal["ok", "refused", "failed", "timed_out", "cancelled", "abandoned"]
"""How a logical call, or one attempt of it, ended."""

ChunkHook = Callable[[str], None]
"""Sees the text of every streamed chunk before the consumer does; raises to stop the stream.

Three methods are optional. ``anew()`` gives the hook for an attempt, which has seen nothing. ``held_back()`` tells
how many characters at the end of the text so far must not reach the consumer yet (`brix_core.drivers.hold_back`).
``finish()`` is called at the end of the stream, before what was held back is delivered, and may raise."""

PARTIAL_CHARACTERS = 65_536
"""How much text of a stream a trace keeps."""

PARSED: Final = "parsed"
"""Where a valid instance is in `LogicalCall.metadata`: the response of a stream reaches no consumer."""


CACHED: Final = "cached"
"""Where `LogicalCall.metadata` has the identity of the endpoint that answered, when nothing was sent: the answer is
that to another, identical request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call the model asked for. `arguments` is the JSON text as it came."""

    id: str
    name: str
    arguments: str


class CallResponse(NamedTuple):
    """What a model call gave.

    Attributes:
        text: The text of the answer (of all choices, when several were asked for).
        usage: Tokens as reported, or None when the provider said nothing.
        model: The model that answered.
        tool_calls: Tool calls the model asked for.
        finish_reason: The provider's own word, such as ``"stop"`` or ``"length"``; ``"timeout"`` for a
            partial answer.
        partial: True when a time limit cut the answer short and the caller asked for what had arrived.
        raw: The framework's or the SDK's own result, handed back unchanged.
        parsed: The valid instance, where the request had a schema.
    """

    text: str
    usage: Usage | None = None
    model: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    partial: bool = False
    raw: Any = None
    parsed: Any = None


@dataclass(slots=True, kw_only=True, eq=False)
class Attempt:
    """One request that left for a provider. Two are never the same, however equal.

    Attributes:
        endpoint: Identity of the endpoint.
        model: Model asked for.
        provider: The provider's name, as the endpoint gives it.
        started: Monotonic seconds.
        seconds: Duration, once it has ended.
        outcome: None while under way.
        error: Class name of the failure.
        status: HTTP status of the failure, if there was one.
        usage: Tokens reported.
        cost_nano: Charged, in nano-dollars; None when nothing was metered.
    """

    endpoint: str
    model: str
    provider: str | None
    started: float
    seconds: float | None = None
    outcome: Outcome | None = None
    error: str | None = None
    status: int | None = None
    usage: Usage | None = None
    cost_nano: int | None = None


@dataclass(slots=True, kw_only=True)
class LogicalCall:
    """One call of the application, from the first guard to the trace entry. Owned by one driver.

    Attributes:
        run_id: UUID4 of the call.
        session: Whose call it is.
        started: Monotonic seconds.
        started_at: Seconds since the epoch.
        attempts: Every request that left for a provider, in order.
        decisions: What guards decided about it, in order.
        metadata: Per-call notes of guards, such as ``"retry_history"``.
        parts: The text streamed so far, bounded by `PARTIAL_CHARACTERS`.
        streamed: True once a chunk has reached the consumer: nothing may be re-issued from then on.
        first_chunk: Monotonic seconds of the first chunk with content.
        cap_usd: A cap that the session is under beside the budget's own, USD, since the call is made in a guarded run.
        delivered: Where the chunks of a stream are noted as they come, for whoever records them.
        sample: Which of several answers to one prompt this is, from 0; see `branch`.
        whole: The call of the application that it is a branch of.
        blocking: Whether a thread waits for it, and not a task.
    """

    run_id: str
    session: Session
    started: float
    started_at: float
    attempts: list[Attempt] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    streamed: bool = False
    first_chunk: float | None = None
    cap_usd: float | None = None
    delivered: DeliveredChunks | None = None
    sample: int = 0
    whole: LogicalCall | None = None
    blocking: bool = False

    @property
    def blocks_a_loop(self) -> bool:
        """Whether it is a blocking call inside a coroutine: no task of that loop gets on before it has ended."""
        return self.blocking and asyncio._get_running_loop() is not None

    def decide(self, guard: str, decision: str, **details: Any) -> None:
        """Note what a guard decided; shows in the trace entry."""
        if self.whole is not None:
            self.whole.decide(guard, decision, **details, sample=self.sample)
        else:
            self.decisions.append({"guard": guard, "decision": decision, **details})

    def begun(self, attempt: Attempt) -> None:
        """Note that a request leaves now."""
        self.attempts.append(attempt)
        if self.whole is not None:
            self.whole.begun(attempt)

    def withdraw(self, attempt: Attempt) -> None:
        """An attempt has turned out to be none: nothing left."""
        self.attempts.remove(attempt)
        if self.whole is not None:
            self.whole.withdraw(attempt)

    def branch(self, sample: int) -> LogicalCall:
        """The same call, for one of several answers to it that are asked for side by side.

        Guards take the last attempt for their own and keep notes in `metadata`: each branch has its own of both.
        Attempts and decisions show in the whole call as they happen; the notes of the answer that is given are handed
        over by `adopt`.
        """
        return LogicalCall(
            run_id=self.run_id,
            session=self.session,
            started=self.started,
            started_at=self.started_at,
            cap_usd=self.cap_usd,
            blocking=self.blocking,
            sample=sample,
            whole=self,
        )

    def adopt(self, branch: LogicalCall) -> None:
        """Take over the notes of the branch whose answer is given; its last attempt is that of the answer."""
        self.metadata.update(branch.metadata)
        if branch.attempts and branch.attempts[-1] in self.attempts:
            self.attempts.remove(branch.attempts[-1])
            self.attempts.append(branch.attempts[-1])

    @property
    def partial_text(self) -> str:
        """The text streamed so far, at most `PARTIAL_CHARACTERS` of it."""
        return "".join(self.parts)[:PARTIAL_CHARACTERS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits of one attempt, in seconds; None is no limit.

    Attributes:
        call: Longest the caller waits for the provider, over the whole attempt.
        first_token: Longest until the first chunk with content.
        idle: Longest between two chunks.
        call_kind: Which option `call` stems from: the per-call limit, or what is left until the deadline.
        keep_partial: On a timeout, answer with what has arrived instead of raising.
    """

    call: float | None = None
    call_kind: Literal["call", "total", "healing"] = "call"
    first_token: float | None = None
    idle: float | None = None
    keep_partial: bool = False


NO_LIMITS = Limits()


class Deadline(NamedTuple):
    """When a call must be over.

    Attributes:
        at: Monotonic seconds.
        seconds: The limit it stems from.
        kind: Which limit that is, the session's total time or the time for healing.
        option: The limit's option.
    """

    at: float
    seconds: float
    kind: Literal["total", "healing"] = "total"
    option: str = "total_timeout"

    def or_earlier(self, other: Deadline | None) -> Deadline:
        """The nearer of two."""
        return self if other is None or self.at <= other.at else other

    def passed(self, now: float) -> BrixTimeoutError:
        """The error of a call that comes too late, or would."""
        return BrixTimeoutError(
            f"{self.option}={self.seconds:g} s is over, or would be before this call could be made; raise it"
            + (", or begin a new session or run" if self.kind == "total" else ""),
            kind=self.kind,
            limit=self.seconds,
            elapsed=now - self.at + self.seconds,
        )


class CallRequest(NamedTuple):
    """One request on its way down the guards; a named tuple, the cheapest frozen record there is.

    Attributes:
        call: The logical call it belongs to.
        conversation: The prompt, in the framework's own messages.
        endpoint: Where it will go.
        params: The provider's own parameters (tools, response_format, stop, ...), passed on untouched.
        stream: Whether the consumer wants chunks.
        collect: Whether an answer that the consumer gets as a whole is read as a stream, where the model has one: what
            watches streams sees it, and ends it early.
        output_cap: Output tokens the guards allow; None leaves the caller's own cap alone.
        limits: Time limits of the attempt.
        deadline: When it must be over.
        hooks: See `ChunkHook`; in order.
        schema: What the answer must fit.
        taken: The steps of the agent that calls, where its framework tells; else they are read from the prompt.
        keep: Whether the answer is to be kept: a stream is then summed up as a whole, `CallResponse.raw` included.
    """

    call: LogicalCall
    conversation: Conversation
    endpoint: Endpoint
    params: Mapping[str, Any]
    stream: bool = False
    output_cap: int | None = None
    limits: Limits = NO_LIMITS
    deadline: Deadline | None = None
    hooks: tuple[ChunkHook, ...] = ()
    schema: ResponseSchema | None = None
    taken: Taken | None = None
    collect: bool = False
    keep: bool = False

    def evolve(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return self._replace(**changes)

    @property
    def session(self) -> Session:
        """Whose call it is."""
        return self.call.session

    @property
    def model(self) -> str:
        """The model it asks for."""
        return self.endpoint.model(self.params)

    @property
    def requested_cap(self) -> int | None:
        """Output tokens it may produce in each choice: the guards' cap, or the caller's own."""
        if self.output_cap is not None:
            return self.output_cap
        return self.endpoint.requested_cap(self.params)

    def prompt_tokens(self) -> int:
        """Tokens of the prompt, tools and schemas included, for the endpoint's model."""
        return self.prompt_tokens_for(self.endpoint)

    def prompt_tokens_for(self, endpoint: Endpoint) -> int:
        """As `prompt_tokens`, were it sent to another endpoint."""
        schemas = endpoint.schemas(self.params)
        if self.schema is not None and endpoint.structured(self.schema, self.params):
            schemas = [*schemas, self.schema.json_schema]
        return self.conversation.prompt_tokens(endpoint.model(self.params), schemas)


__all__ = [
    "CACHED",
    "NO_LIMITS",
    "PARSED",
    "PARTIAL_CHARACTERS",
    "Attempt",
    "CallRequest",
    "CallResponse",
    "ChunkHook",
    "Deadline",
    "Limits",
    "LogicalCall",
    "Outcome",
    "ToolCall",
]
