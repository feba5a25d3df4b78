"""An agent's messages: tool calls that nothing has answered, and what a guard puts in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolCall, ToolMessage

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


__all__ = ["STOPPED", "all_answered", "last_word", "not_run", "pending_calls"]
