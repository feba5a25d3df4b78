"""Turns a behaviour into a plan for one request.

Example:
    >>> from brix_core.demo.faults import Echo, RateLimited, Reply
    >>> prompt = Prompt(model="gpt-4o", turns=(Turn("user", "Hi"),), prompt_tokens=8, max_tokens=2)
    >>> decide(Reply("one two three"), prompt).answers
    (Answer(text='one two', calls=(), finish='length', stopped_by=None),)
    >>> decide(RateLimited(retry_after="2"), prompt).status
    429
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import singledispatch
from typing import Any

from brix_core.demo.counting import text_tokens, truncate
from brix_core.demo.examples import example, quoted_words
from brix_core.demo.faults import (
    BadRequest,
    Behaviour,
    CutStream,
    Echo,
    EndlessRepetition,
    JsonReply,
    MalformedJson,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    Reply,
    ServerError,
    SlowFirstToken,
    StalledStream,
    ToolCalls,
)
from brix_core.demo.plan import Answer, Call, Plan, Prompt, Refusal, Tool, Turn

QUOTE_LIMIT = 300
"""Characters of a message that `Echo` repeats."""
UNSTREAMED_REPETITIONS = 1_000

_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MIN_WORD = 4
"""Shorter words ("get", "the") say nothing about what a tool is for."""


def decide(behaviour: Behaviour, prompt: Prompt) -> Plan | Refusal:
    """How to respond to `prompt`."""
    return _decide(behaviour, prompt)


@singledispatch
def _decide(behaviour: object, prompt: Prompt) -> Plan | Refusal:
    raise TypeError(f"not a behaviour: {behaviour!r}")


@_decide.register
def _(behaviour: Echo, prompt: Prompt) -> Plan:
    if prompt.batch:
        turns = [(Turn("user", text),) for text in prompt.batch]
        answers = [_echo(replace(prompt, turns=turn, batch=())) for turn in turns]
    else:
        answers = [_echo(prompt)]
    fitted = tuple(_fit(answer, prompt) for answer in answers for _ in range(prompt.choices))
    return Plan(answers=fitted, latency=behaviour.latency)


@_decide.register
def _(behaviour: Reply, prompt: Prompt) -> Plan:
    return Plan(
        answers=_choices(Answer(text=behaviour.text, finish=behaviour.finish_reason), prompt),
        latency=behaviour.latency,
        chunk_delay=behaviour.chunk_delay,
        chunk_size=behaviour.chunk_size,
        usage=behaviour.usage,
    )


@_decide.register
def _(behaviour: ToolCalls, prompt: Prompt) -> Plan:
    calls = tuple(Call(name, _to_json(arguments)) for name, arguments in behaviour.calls)
    return Plan(answers=_choices(Answer(text=behaviour.text, calls=calls, finish="tool_calls"), prompt))


@_decide.register
def _(behaviour: JsonReply, prompt: Prompt) -> Plan:
    return Plan(answers=_choices(Answer(text=_to_json(behaviour.value)), prompt))


@_decide.register
def _(behaviour: MalformedJson, prompt: Prompt) -> Plan:
    return Plan(answers=_choices(Answer(text=behaviour.text), prompt))


@_decide.register
def _(behaviour: StalledStream, prompt: Prompt) -> Plan:
    return Plan(answers=_choices(Answer(text=behaviour.text), prompt), ending="stall", after=behaviour.after)


@_decide.register
def _(behaviour: CutStream, prompt: Prompt) -> Plan:
    return Plan(answers=_choices(Answer(text=behaviour.text), prompt), ending="cut", after=behaviour.after)


@_decide.register
def _(behaviour: EndlessRepetition, prompt: Prompt) -> Plan:
    repetitions = behaviour.limit if prompt.stream else min(behaviour.limit, UNSTREAMED_REPETITIONS)
    answer = Answer(text=behaviour.text * repetitions, finish="length")
    return Plan(
        answers=(answer,) * _wanted(prompt),
        chunk_delay=behaviour.chunk_delay if prompt.stream else 0.0,
        chunk_size=len(behaviour.text),
    )


@_decide.register
def _(behaviour: SlowFirstToken, prompt: Prompt) -> Plan | Refusal:
    decision = decide(behaviour.then, prompt)
    if isinstance(decision, Refusal):
        return replace(decision, latency=decision.latency + behaviour.seconds)
    return replace(decision, first_token=decision.first_token + behaviour.seconds)


@_decide.register
def _(behaviour: RateLimited, prompt: Prompt) -> Refusal:
    return Refusal(
        status=behaviour.status,
        kind="requests",
        message=f"Rate limit reached for {prompt.model} on requests per min. Please try again later.",
        code="rate_limit_exceeded",
        retry_after=behaviour.retry_after,
    )


@_decide.register
def _(behaviour: QuotaExceeded, prompt: Prompt) -> Refusal:
    return Refusal(
        status=429,
        kind="insufficient_quota",
        message="You exceeded your current quota, please check your plan and billing details.",
        code="insufficient_quota",
    )


@_decide.register
def _(behaviour: ServerError, prompt: Prompt) -> Refusal:
    return Refusal(
        status=behaviour.status,
        kind="server_error",
        message="The server had an error while processing your request. Sorry about that!",
        retry_after=behaviour.retry_after,
    )


@_decide.register
def _(behaviour: Overloaded, prompt: Prompt) -> Refusal:
    return Refusal(status=529, kind="overloaded_error", message="Overloaded", retry_after=behaviour.retry_after)


@_decide.register
def _(behaviour: BadRequest, prompt: Prompt) -> Refusal:
    return Refusal(
        status=behaviour.status, kind="invalid_request_error", message=behaviour.message, code=behaviour.code
    )


def _wanted(prompt: Prompt) -> int:
    return prompt.choices * max(1, len(prompt.batch))


def _choices(answer: Answer, prompt: Prompt) -> tuple[Answer, ...]:
    return (_fit(answer, prompt),) * _wanted(prompt)


def _fit(answer: Answer, prompt: Prompt) -> Answer:
    """`answer`, ended by the first stop sequence and by ``max_tokens``."""
    found = [(answer.text.find(stop), stop) for stop in prompt.stop if stop and stop in answer.text]
    if found:
        position, stop = min(found)
        answer = Answer(text=answer.text[:position], stopped_by=stop)
    if prompt.max_tokens is None:
        return answer
    left = prompt.max_tokens
    text = truncate(answer.text, left)
    complete = text == answer.text
    left -= text_tokens(text)
    calls = []
    for call in answer.calls if complete else ():
        left -= text_tokens(call.name)
        if left < 0:
            complete = False
            break
        arguments = truncate(call.arguments, left)
        left -= text_tokens(arguments)
        calls.append(Call(call.name, arguments))
        if arguments != call.arguments:
            complete = False
            break
    return answer if complete else Answer(text=text, calls=tuple(calls), finish="length")


def _echo(prompt: Prompt) -> Answer:
    question = next((turn.text for turn in reversed(prompt.turns) if turn.role == "user"), "")
    tool = _tool_to_call(prompt, question)
    if tool is not None:
        call = Call(tool.name, _to_json(_arguments(tool, question)))
        return Answer(calls=(call,), finish="tool_calls")
    if prompt.response_schema is not None:
        return Answer(text=_to_json(example(prompt.response_schema, question)))
    if prompt.json_mode:
        told = next((schema for turn in prompt.turns if (schema := _schema_in(turn.text)) is not None), None)
        if told is not None:
            return Answer(text=_to_json(example(told, question)))
        keys = [word for turn in prompt.turns for word in quoted_words(turn.text) if word.isidentifier()]
        return Answer(text=_to_json({key: f"sample {key}" for key in keys or ["answer"]}))
    last = prompt.turns[-1] if prompt.turns else Turn("user", "")
    if last.role == "tool":
        return Answer(text=f'The tool answered: "{_quote(last.text)}"')
    return Answer(text=f'I heard: "{_quote(question or last.text)}"')


def _schema_in(text: str) -> dict[str, Any] | None:
    """A JSON Schema that stands on a line of its own: who is told one heeds it."""
    for line in text.splitlines():
        if line.startswith('{"') and '"properties"' in line:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found.get("properties"), dict):
                return dict(found)
    return None


def _arguments(tool: Tool, question: str) -> Any:
    made = example({"type": "object", **tool.schema}, question)
    return made if isinstance(made, dict) else {}


def _tool_to_call(prompt: Prompt, question: str) -> Tool | None:
    if not prompt.tools or prompt.tool_choice == "none":
        return None
    if prompt.named_tool is not None:
        named = (tool for tool in prompt.tools if tool.name == prompt.named_tool)
        return next(named, prompt.tools[0])
    asked = {word.lower() for word in _WORD.findall(question)}
    meant = next((tool for tool in prompt.tools if tool.name.lower() in question.lower()), None) or next(
        (tool for tool in prompt.tools if _name_words(tool) & asked), None
    )
    if prompt.tool_choice == "required":
        return meant or prompt.tools[0]
    if prompt.turns[-1].role == "tool":
        return None
    return meant or (prompt.tools[0] if asked & {"tool", "tools"} else None)


def _name_words(tool: Tool) -> set[str]:
    words = _WORD.findall(_CAMEL.sub(" ", tool.name))
    return {word.lower() for word in words if len(word) >= _MIN_WORD}


def _quote(text: str) -> str:
    return text if len(text) <= QUOTE_LIMIT else text[:QUOTE_LIMIT] + "..."


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


__all__ = ["decide"]
