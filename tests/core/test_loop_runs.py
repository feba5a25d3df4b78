"""G10 on real runs of agents: what ended well is let be, what ran out of steps is found, and so are injected loops.

Each run is replayed through the guard as its agent would have called the model: the conversation so far before each of
its turns, and once more after the last, as an agent without a step limit would.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from brix_core import BrixLoopError
from tests.support.fake import FakeEndpoint, pipeline
from tests.support.virtual import VirtualClock

DATA = Path(__file__).parents[3] / "shared" / "data"
Messages = list[dict[str, Any]]
Form = Callable[[dict[str, Any]], Messages]
Round = list[Messages]
"""One step's messages: the assistant's turn and the results."""

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the runs are kept beside the project, in {DATA}")


@cache
def runs(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def action(step: dict[str, Any]) -> tuple[str, str]:
    parsed = re.fullmatch(r"(\w+)\[(.*)\]", step["action"], re.DOTALL)
    return (parsed[1], parsed[2]) if parsed else (step["action"], "")


def as_calls(run: dict[str, Any]) -> Messages:
    """A ReAct run as tool calls."""
    messages: Messages = [{"role": "user", "content": run["question"]}]
    for number, step in enumerate(run["steps"]):
        name, argument = action(step)
        function = {"name": name, "arguments": json.dumps({"query": argument})}
        call = {"id": f"call-{number}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": step["thought"], "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": step["observation"]})
    return messages


def as_text(run: dict[str, Any]) -> Messages:
    """A ReAct run as messages, the way LlamaIndex writes it."""
    messages: Messages = [{"role": "user", "content": run["question"]}]
    for step in run["steps"]:
        name, argument = action(step)
        written = f"Thought: {step['thought']}\nAction: {name}\nAction Input: {json.dumps({'input': argument})}"
        messages.append({"role": "assistant", "content": written})
        messages.append({"role": "user", "content": f"Observation: {step['observation']}"})
    return messages


def prompts(messages: Messages) -> Iterator[Messages]:
    """What the model was asked, each time."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            yield messages[:index]
    yield messages


def prompts_in_one(run: dict[str, Any]) -> Iterator[Messages]:
    """A ReAct run in one growing prompt, the way LangChain's ReAct agent and the original write it."""
    text = f"Answer with Action and Observation steps.\nQuestion: {run['question']}\n"
    yield [{"role": "user", "content": text}]
    for number, step in enumerate(run["steps"], 1):
        text += f"Thought {number}: {step['thought']}\nAction {number}: {step['action']}\n"
        text += f"Observation {number}: {step['observation']}\n"
        yield [{"role": "user", "content": text}]


def stopped_at(asked: Iterator[Messages], **options: Any) -> tuple[int, BrixLoopError] | None:
    """Replay a run: the number of the call that the guard refused."""
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    options = {"exact_loop_detection": True, "tool_loop_detection": True, "on_loop": "raise", **options}
    pipe = pipeline(clock, **options)
    for number, messages in enumerate(asked):
        try:
            pipe.call(pipe.request(endpoint, messages, {}))
        except BrixLoopError as error:
            assert len(endpoint.sent) == number
            return number, error
    return None


def acted_on(name: str, replay: Callable[[dict[str, Any]], Iterator[Messages]], **options: Any) -> dict[str, str]:
    """Of each outcome, how many runs the guard stops."""
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for run in runs(name):
        total[run["outcome"]] += 1
        found[run["outcome"]] += stopped_at(replay(run), **options) is not None
    print(f"{name}: stopped {', '.join(f'{found[key]} of {total[key]} {key}' for key in sorted(total))}")
    return {key: found[key] / total[key] for key in total}  # type: ignore[misc]


REPLAYS: dict[str, Callable[[dict[str, Any]], Iterator[Messages]]] = {
    "calls": lambda run: prompts(as_calls(run)),
    "text": lambda run: prompts(as_text(run)),
    "one prompt": prompts_in_one,
}
SEMANTIC = {"semantic_loop_detection": True, "embedder": "lexical"}


@pytest.mark.parametrize("options", [{}, SEMANTIC], ids=["exact", "lexical"])
@pytest.mark.parametrize("replay", REPLAYS.values(), ids=REPLAYS)
def test_runs_that_ran_out_of_steps_are_stopped_and_those_that_ended_well_are_not(
    replay: Callable[[dict[str, Any]], Iterator[Messages]], options: dict[str, Any]
) -> None:
    shares = acted_on("hotpotqa_react", replay, **options)
    assert shares["correct"] == 0
    assert shares["halted"] >= 0.3


@pytest.mark.parametrize("options", [{}, SEMANTIC], ids=["exact", "lexical"])
def test_conversations_that_ended_well_are_let_be(options: dict[str, Any]) -> None:
    shares = acted_on("tau_airline", lambda run: prompts(run["messages"]), **options)
    assert shares["success"] <= 0.01


# Injected loops


def rounds(messages: Messages) -> Iterator[tuple[int, Messages]]:
    """The steps of a run: where each ends, and its messages."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("tool_calls"):
            end = index + 1
            while end < len(messages) and messages[end]["role"] == "tool":
                end += 1
            yield end, messages[index:end]


def injected(messages: Messages, length: int, reworded: bool) -> Iterator[tuple[Messages, Messages]]:
    """The run up to a step, and after it `length` of its steps over and over; also how long the run itself is."""
    found = list(rounds(messages))
    for chosen in zip(*(found[offset:] for offset in range(length)), strict=False):
        if len({json.dumps([part[0]["tool_calls"], part[1:]]) for _, part in chosen}) < length:
            continue
        loop: Messages = []
        for turn in range(6):
            for _, part in chosen:
                said = f"Attempt {turn}: {random.random()} of it looks right, so let us see." if reworded else "Again."
                loop += [{**part[0], "content": said}, *part[1:]]
        yield messages[: chosen[0][0] - len(chosen[0][1])], loop


@pytest.mark.parametrize("reworded", [False, True], ids=["same words", "other words"])
@pytest.mark.parametrize("length", [1, 2, 3], ids=["A", "A-B", "A-B-C"])
def test_injected_loops_are_found_within_one_repetition_over_the_threshold(length: int, reworded: bool) -> None:
    random.seed(length)
    threshold = 3
    allowed = (threshold if length == 1 else max(2, threshold - 1)) + 1
    after: Counter[int | None] = Counter()
    for run in good_runs():
        for before, loop in injected(run, length, reworded):
            asked = itertools.islice(prompts(before + loop), sum(m["role"] == "assistant" for m in before), None)
            stopped = stopped_at(asked)
            after[None if stopped is None else -(-stopped[0] // length)] += 1
    total = sum(after.values())
    in_time = sum(count for times, count in after.items() if times is not None and 2 <= times <= allowed)
    print(f"{length} steps in turn: {in_time} of {total} found in time; repeats when found: {sorted(after.items())}")
    assert total >= 30
    assert in_time / total >= 0.99


def good_runs() -> Iterator[Messages]:
    for run in runs("tau_airline"):
        if run["outcome"] == "success":
            yield run["messages"]
    for run in runs("hotpotqa_react"):
        if run["outcome"] == "correct":
            yield as_calls(run)
