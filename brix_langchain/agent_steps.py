"""What an agent has done in a run: kept in its state, since summaries and context editing take it out of its prompts.

A record is plain data, for the checkpoint: the id of the model's message, and name, arguments and result of each of its
tool calls.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from brix_core.errors import SchemaAttempt
from brix_core.looping.steps import Step, Taken
from brix_core.turns import written

MAX_KEPT: Final = 10_000
"""Characters of a call's arguments, or of a result, that a record holds; of longer ones, their beginning and digest."""

Record = dict[str, Any]
"""``{"id": ..., "calls": [[name, arguments, result], ...]}``"""

Run = dict[str, Any]
"""``{"id": ..., "since": ..., "steps": [...]}``: its name, the last message before it, its latest records."""


def begun(messages: Sequence[BaseMessage], limit: int) -> Run:
    """A run that begins with these messages; what was done since the user last spoke is part of it.

    Args:
        messages: The thread.
        limit: Records at most.
    """
    spoken = (index for index in range(len(messages) - 1, -1, -1) if isinstance(messages[index], HumanMessage))
    steps = _done(messages[next(spoken, -1) + 1 :], (), limit)
    return {"id": str(uuid4()), "since": messages[-1].id if messages else None, "steps": steps}


def continued(run: Run, messages: Sequence[BaseMessage], limit: int) -> Run:
    """The run, with what these messages show of it beside. They need not reach back to its beginning."""
    known = {run["since"], *(record["id"] for record in run["steps"])} - {None}
    return {**run, "steps": [*run["steps"], *_done(messages, known, limit)][-limit:]}


def taken(run: Run, answers: Collection[str] = ()) -> Taken:
    """The run, as the loop guard looks at it.

    Args:
        run: The run.
        answers: Tools whose calls are answers that did not fit: bounded by themselves (`rejected`), they are no steps.
    """
    batches = ([call for call in record["calls"] if call[0] not in answers] for record in run["steps"])
    return Taken(run["id"], tuple(Step.of((name, given, result) for name, given, result in batch)
                                  for batch in batches if batch))  # fmt: skip


def rejected(records: Iterable[Record], names: Collection[str | None]) -> list[tuple[str, SchemaAttempt]]:
    """Name and history of answers by these tools that did not fit; two in one message are one attempt."""
    attempts = []
    for record in records:
        calls = [call for call in record["calls"] if call[0] in names]
        if calls:
            text = "\n".join(given for _, given, _ in calls)
            attempts.append((calls[0][0], SchemaAttempt(text, (("$", calls[-1][2]),), "tool_call")))
    return attempts


def _done(messages: Sequence[BaseMessage], known: Collection[str], limit: int) -> list[Record]:
    """The batches of tool calls that are answered, after the latest message that is known, oldest first."""
    found: list[Record] = []
    results: dict[str, str] = {}
    for message in reversed(messages):
        if message.id in known or len(found) >= limit:
            break
        if isinstance(message, ToolMessage):
            results[message.tool_call_id] = written(message.content)
        elif isinstance(message, AIMessage):
            calls = message.tool_calls
            if calls and all(call["id"] in results for call in calls):
                found.append({"id": message.id, "calls": [_kept(call, results) for call in calls]})
            results.clear()  # ids may come again
    found.reverse()
    return found


def _kept(call: Mapping[str, Any], results: Mapping[str, str]) -> list[str]:
    return [call["name"], _bounded(json.dumps(call["args"], default=str)), _bounded(results[call["id"]])]


def _bounded(text: str) -> str:
    """The text; of a long one the beginning, and what tells it from others that begin alike."""
    if len(text) <= MAX_KEPT:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:MAX_KEPT]}… ({len(text)} characters, sha256 {digest})"


__all__ = ["MAX_KEPT", "Record", "Run", "begun", "continued", "rejected", "taken"]
