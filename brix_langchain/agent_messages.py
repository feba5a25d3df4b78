"""An agent's messages: tool calls that nothing has answered, and what a guard puts in their place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage

from brix_core.errors import SchemaAttempt

STOPPED: Final = "stopped_by"
"""In the ``response_metadata`` of an agent's last message: the guard that ended the run."""


def last_word(guard: str, why: str) -> AIMessage:
    """The message that ends a run."""
    return AIMessage(f"The run was stopped: {why}", response_metadata={STOPPED: guard, "finish_reason": "stop"})


def not_run(call: ToolCall, why: str) -> ToolMessage:
    """The answer to a tool call that is not made."""
    text = f"{call['name']} was not run: {why}"
    return ToolMessage(text, tool_call_id=call["id"] or "", name=call["name"], status="error")


def pending_calls(messages: Sequence[BaseMessage]) -> list[ToolCall]:
    """The tool calls of the last answer that nothing has answered."""
    answered: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            return [call for call in message.tool_calls if call["id"] not in answered]
    return []


def all_answered(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """The messages, each tool call followed by a result."""
    whole: list[AnyMessage] = []
    answered: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            missing = [call for call in message.tool_calls if call["id"] not in answered]
            whole.extend(not_run(call, "the run was broken off") for call in reversed(missing))
            answered.clear()  # ids may come again
        whole.append(message)
    whole.reverse()
    return whole


def since_user(messages: Sequence[BaseMessage]) -> Sequence[BaseMessage]:
    """What came after the user last spoke."""
    spoken = (index for index in range(len(messages) - 1, -1, -1) if isinstance(messages[index], HumanMessage))
    return messages[next(spoken, -1) + 1 :]


def structured_attempts(messages: Iterable[BaseMessage], names: set[str | None]) -> list[tuple[str, SchemaAttempt]]:
    """Name and history of answers by these tools that did not fit; two in one message are one attempt."""
    attempts: list[tuple[str, SchemaAttempt]] = []
    for message in messages:
        if isinstance(message, AIMessage):
            calls = [call for call in message.tool_calls if call["name"] in names]
            if calls:
                text = "\n".join(json.dumps(call["args"], default=str) for call in calls)
                attempts.append((calls[0]["name"], SchemaAttempt(text, (("$", "was not accepted"),), "tool_call")))
        elif isinstance(message, ToolMessage) and message.name in names and attempts:
            name, attempt = attempts[-1]
            attempts[-1] = name, attempt._replace(problems=(("$", message.text),))
    return attempts


__all__ = ["STOPPED", "all_answered", "last_word", "not_run", "pending_calls", "since_user", "structured_attempts"]
