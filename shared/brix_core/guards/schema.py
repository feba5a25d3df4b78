"""SchemaGuard: what is returned is a valid instance, or the call fails with every answer it got (G8).

Where each model of the failover chain can be held to the schema in its provider's own way, its endpoint does so; else
the schema is also written into the system prompt. The answer is read from the tool call by the schema's name, or from
the text, mended where its meaning is certain (`brix_core.structured.extraction`), and validated. An answer that does
not fit is asked for again, with what is wrong with it: the original prompt, that answer, and the problems, so that the
prompt does not grow with each attempt. Every such heal goes through the inner guards: it is paid for, paced, retried
and timed.

What a schema does not apply to is handed back untouched, with ``parsed`` left None: an answer that asks for *other*
tools is not the final one.

* Cut off at the output cap, or refused: not valid, and asked for again like any other answer.
* Cut short by a time limit (``on_timeout="return_partial"``): not valid, and not asked for again.
* A heal that runs out of ``max_healing_seconds`` fails with all answers so far. Whatever else goes wrong with a heal
  (no money left, retries used up) comes out as it is; errors of guards have the answers in ``schema_attempts``.
* A heal that does not fit the context is tried once more with a glimpse of the wrong answer.
* A stream whose chunks have reached the consumer is validated at its end, and not asked for again.
* Several choices (``n`` > 1) are refused: one instance is returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from brix_core import checks
from brix_core.call import PARSED, CallRequest, CallResponse, Deadline
from brix_core.clock import Clock
from brix_core.endpoint import Endpoint
from brix_core.errors import (
    BrixConfigurationError,
    BrixContextError,
    BrixGuardError,
    BrixRetryError,
    BrixSchemaError,
    BrixTimeoutError,
    SchemaAttempt,
)
from brix_core.flow import Flow, Proceed

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

REJECTED: Final = "rejected"
"""Where the last response that does not fit is in `LogicalCall.metadata`."""

MAX_ECHO: Final = 4_000
"""Characters of an answer that does not fit which are shown to the model again."""

MIN_ECHO: Final = 200
"""As `MAX_ECHO`, when the prompt would not fit otherwise."""

MAX_PROBLEMS: Final = 5
"""Problems named in a decision and in an error's message; all of them are in `BrixSchemaError.attempts`."""

_CUT_OFF: Final = frozenset({"length", "max_tokens", "model_context_window_exceeded"})
_REFUSED: Final = frozenset({"refusal", "content_filter", "safety"})
_FLAWS: Final = {
    "timed_out": "the answer was cut short by a time limit",
    "cut_off": "the answer was cut off because it was longer than the output limit; it must be shorter",
    "refused": "the request was refused instead of being answered in the format",
}
"""Why an answer cannot be whole, whatever its text looks like."""


@dataclass(frozen=True, kw_only=True)
class SchemaConfig:
    """Options of the schema guard.

    Attributes:
        response_schema: What every answer must fit: a Pydantic model, a dataclass, a TypedDict or a JSON Schema.
            Activates the guard.
        max_schema_retries: How often an answer that does not fit is asked for again.
        inject_schema_in_prompt: Write the schema into the system prompt, where not every model takes it otherwise.
        max_healing_seconds: Longest time from the first answer that does not fit to the last heal's answer, seconds.
        stream_mode: ``"partial"`` lets chunks through as they come and validates at the end; ``"validated"`` holds
            them back until they are valid.
    """

    response_schema: Any = None
    max_schema_retries: int = 2
    inject_schema_in_prompt: bool = True
    max_healing_seconds: float | None = None
    stream_mode: Literal["partial", "validated"] = "partial"

    def __post_init__(self) -> None:
        checks.whole("max_schema_retries", self.max_schema_retries, 0)
        checks.flag("inject_schema_in_prompt", self.inject_schema_in_prompt)
        if self.max_healing_seconds is not None:
            checks.positive("max_healing_seconds", self.max_healing_seconds)
        checks.one_of("stream_mode", self.stream_mode, ("partial", "validated"))
        if self.response_schema is not None:
            from brix_core.structured.response_schema import (
                ResponseSchema,  # pydantic is slow to import, and not always needed
            )

            ResponseSchema.of(self.response_schema)


class SchemaGuard:
    """Asks, reads, validates and heals. See the module's docstring.

    Args:
        config: Its options.
        clock: The time.
        fallbacks: The rest of the failover chain, whose models must get the schema too.
    """

    name = "schema"

    def __init__(self, config: SchemaConfig, clock: Clock, fallbacks: Sequence[Endpoint] = ()) -> None:
        self.config = config
        self._clock = clock
        self._fallbacks = tuple(fallbacks)

    def with_endpoints(self, fallbacks: Sequence[Endpoint]) -> SchemaGuard:
        """The same guard before another failover chain."""
        return SchemaGuard(self.config, self._clock, fallbacks)

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one call; does nothing for one without a schema."""
        schema = request.schema
        if schema is None:
            return (yield from proceed(request))
        from brix_core.structured.response_schema import SchemaMismatch  # loaded with the schema, if it comes to this

        request.call.metadata.pop(PARSED, None)
        asked = current = self._asking(request, schema)
        attempts: list[SchemaAttempt] = []
        deadline: Deadline | None = None
        feedback = ""
        while True:
            try:
                response = yield from self._asked(proceed, current, attempts)
            except (BrixTimeoutError, BrixRetryError) as error:
                if not _is_out_of_time(error, deadline):
                    raise
                raise self._failure(request, schema, attempts, self._time_is_over()) from error
            except BrixContextError:
                if not attempts or len(attempts[-1].text) <= MIN_ECHO:
                    raise
                current = _healing(asked, attempts[-1].text, feedback, deadline, MIN_ECHO)
                response = yield from self._asked(proceed, current, attempts)
            if _asks_for_tools(request, response, schema):
                return response
            answer = _answer(response, schema)
            try:
                return _accepted(request, response, schema, answer)
            except SchemaMismatch as mismatch:
                problems = tuple((problem.path, problem.message) for problem in mismatch.problems)
                attempts.append(answer._replace(problems=problems))
                request.call.metadata[REJECTED] = response
                feedback = schema.feedback(mismatch)
            if deadline is None and self.config.max_healing_seconds is not None:
                seconds = self.config.max_healing_seconds
                deadline = Deadline(self._clock.now() + seconds, seconds, "healing", "max_healing_seconds")
            why_not = self._why_not(request, response, len(attempts), deadline)
            if why_not:
                raise self._failure(request, schema, attempts, why_not)
            request.call.decide("schema", "healing", attempt=len(attempts), problems=_named(attempts[-1]))
            current = _healing(asked, attempts[-1].text, feedback, deadline)

    def _asked(self, proceed: Proceed, request: CallRequest, attempts: Sequence[SchemaAttempt]) -> Flow:
        """The answer; a guard that has none is told of those before it."""
        try:
            return (yield from proceed(request))
        except BrixGuardError as error:
            error.schema_attempts = tuple(attempts)
            raise

    def _asking(self, request: CallRequest, schema: ResponseSchema) -> CallRequest:
        """The request, its prompt with the schema where a model needs it there."""
        n = request.endpoint.choices(request.params)
        if n > 1:
            raise BrixConfigurationError(f"with a response schema one answer is asked for, got n={n}; leave n out")
        conversation = request.conversation
        if self.config.inject_schema_in_prompt and not self._is_held(request, schema):
            conversation = conversation.with_system(schema.instructions)
        held_back = request.stream and self.config.stream_mode == "validated"
        stream = request.stream and not held_back
        return request.evolve(conversation=conversation, stream=stream, collect=held_back or request.collect)

    def _is_held(self, request: CallRequest, schema: ResponseSchema) -> bool:
        """Whether every model that may answer is held to the schema by its provider."""
        offered = list(_offered(request))
        if schema.name in map(_tool_name, offered) or any(map(_is_format, offered)):
            return True
        chain = (request.endpoint, *self._fallbacks)
        return all(endpoint.structured(schema, request.params) for endpoint in chain)

    def _why_not(self, request: CallRequest, response: CallResponse, answers: int, deadline: Deadline | None) -> str:
        """Why the answer is not asked for again; empty when it is."""
        if deadline is not None and self._clock.now() >= deadline.at:
            return self._time_is_over()
        if response.partial:
            return "a time limit cut the answer short; raise it"
        if request.call.streamed:
            return "its chunks had reached the consumer; stream_mode='validated' holds them back until they are valid"
        if answers > self.config.max_schema_retries:
            limit = self.config.max_schema_retries
            return (
                f"max_schema_retries={limit} (of an engine: max_retries) is used up; raise it, or simplify the schema"
            )
        return ""

    def _time_is_over(self) -> str:
        return f"max_healing_seconds={self.config.max_healing_seconds} is over; raise it"

    def _failure(
        self, request: CallRequest, schema: ResponseSchema, attempts: Sequence[SchemaAttempt], why: str
    ) -> BrixSchemaError:
        problems = "; ".join(_named(attempts[-1]))
        request.call.decide("schema", "rejected", attempt=len(attempts), problems=_named(attempts[-1]))
        return BrixSchemaError(
            f"no valid {schema.name} in {len(attempts)} answer(s): {why}. The last one: {problems}",
            attempts=attempts,
            schema_name=schema.name,
            partial=request.call.partial_text if request.call.streamed else "",
        )


def _answer(response: CallResponse, schema: ResponseSchema) -> SchemaAttempt:
    """Where the instance should be, nothing being wrong with it yet: a call by the schema's name, or the text."""
    arguments = next((call.arguments for call in response.tool_calls if call.name == schema.name), None)
    text = response.text if arguments is None else arguments
    reason = (response.finish_reason or "").lower()
    if response.partial:
        return SchemaAttempt(text, how="timed_out")
    if reason in _CUT_OFF:
        return SchemaAttempt(text, how="cut_off")
    if reason in _REFUSED:
        return SchemaAttempt(text, how="refused")
    return SchemaAttempt(text, how="text" if arguments is None else "tool_call")


def _accepted(
    request: CallRequest, response: CallResponse, schema: ResponseSchema, answer: SchemaAttempt
) -> CallResponse:
    """The response with its instance.

    Raises:
        SchemaMismatch: There is none.
    """
    from brix_core.structured.response_schema import Problem, SchemaMismatch

    flaw = _FLAWS.get(answer.how)
    if flaw is not None:
        raise SchemaMismatch([Problem("$", flaw, None)], answer.text)
    instance, found = schema.read_candidate(answer.text)
    if found.how == "repaired":
        request.call.decide("schema", "repaired")
    request.call.metadata[PARSED] = instance
    return response._replace(parsed=instance)


def _named(attempt: SchemaAttempt) -> list[str]:
    """What is wrong, in a few words."""
    return [f"{path}: {message}" for path, message in attempt.problems[:MAX_PROBLEMS]]


def _healing(
    asked: CallRequest, text: str, feedback: str, deadline: Deadline | None, most: int = MAX_ECHO
) -> CallRequest:
    """The original request, with the answer that does not fit and what is wrong with it."""
    shown = text.strip() or "(no answer)"  # an empty message is refused by some providers
    if len(shown) > most:
        shown = f"{shown[: most // 2]}\n[...]\n{shown[-most // 2 :]}"
    return asked.evolve(
        conversation=asked.conversation.adding(("assistant", shown), ("user", feedback)),
        stream=False,
        deadline=asked.deadline if deadline is None else deadline.or_earlier(asked.deadline),
    )


def _is_out_of_time(error: BrixTimeoutError | BrixRetryError, deadline: Deadline | None) -> bool:
    """Whether a heal failed because the time for healing is over, or would be before the next retry."""
    if deadline is None:
        return False
    return error.kind == "healing" if isinstance(error, BrixTimeoutError) else error.reason == "deadline"


def _asks_for_tools(request: CallRequest, response: CallResponse, schema: ResponseSchema) -> bool:
    """Whether the model wants other tools to be run before it answers."""
    names = {call.name for call in response.tool_calls}
    if not names or schema.name in names:
        return False
    return any(name and name != schema.name for name in map(_tool_name, _offered(request)))


def _offered(request: CallRequest) -> Iterator[Any]:
    """Tools and formats of the request, one by one."""
    for item in request.endpoint.schemas(request.params):
        if isinstance(item, list | tuple):
            yield from item
        else:
            yield item


def _tool_name(item: Any) -> str:
    """The name of a tool, be it in OpenAI's or in Anthropic's format; empty for anything else."""
    if not isinstance(item, dict):
        return ""
    function = item.get("function")
    name = function.get("name") if isinstance(function, dict) else item.get("name")
    return name if isinstance(name, str) else ""


def _is_format(item: Any) -> bool:
    """Whether this is a response format with a JSON schema, given by the caller."""
    if not isinstance(item, dict):
        return False
    inner = item.get("format")
    return "json_schema" in (item.get("type"), inner.get("type") if isinstance(inner, dict) else None)


__all__ = ["MAX_ECHO", "MAX_PROBLEMS", "MIN_ECHO", "PARSED", "REJECTED", "SchemaConfig", "SchemaGuard"]
