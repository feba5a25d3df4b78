"""G10: loops are found, and legitimate repeats are not."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brix_core import BrixConfigurationError, BrixGuardError, BrixLoopError
from brix_core.call import CallRequest
from brix_core.embedding import LexicalEmbedder
from brix_core.guards import loop as loop_module
from brix_core.guards.loop import LoopConfig, LoopGuard
from brix_core.looping.loops import find
from brix_core.looping.repetition import KEPT, RepetitionWatch, repetition_in
from brix_core.looping.steps import canonical, steps
from brix_core.turns import Turn, read_turn
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.modes import MODES, Mode, both_drivers, both_streams, every_mode
from tests.support.virtual import VirtualClock, run_virtual

Messages = list[dict[str, Any]]
TURN = "going round in circles"
"""What the built-in turn says."""


class Provider(FakeEndpoint):
    """Keeps the prompts it was sent."""

    def _arrive(self, request: CallRequest) -> int:
        prompts: list[Messages] = self.__dict__.setdefault("prompts", [])
        prompts.append(request.conversation.messages)
        return super()._arrive(request)


class Talk(Driver):
    """Calls with whole conversations."""

    endpoint: Provider

    def request(self, prompt: Any = "hello", *, stream: bool = False, session: str | None = None, **params: Any) -> Any:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return self.pipe.request(self.endpoint, messages, params, stream=stream, session_id=session)

    @property
    def sent(self) -> list[Messages]:
        found: list[Messages] = self.endpoint.__dict__.get("prompts", [])
        return found

    @property
    def injected(self) -> list[bool]:
        """Of each request, whether it carried a turn of the guard's."""
        return [TURN in str(messages[-1]["content"]) for messages in self.sent]

    def decisions(self) -> list[list[str]]:
        """What the guard decided, of each call."""
        traces = reversed(self.pipe.traces.get_traces())
        return [[d["decision"] for d in trace["decisions"] if d["guard"] == "loop"] for trace in traces]


def talk(answers: Any = None, **options: Any) -> Talk:
    """A provider that gives these answers (or the same for ever), behind the guard."""
    clock = VirtualClock()
    behave = (
        answers if callable(answers) else (lambda number: answers[number] if isinstance(answers, list) else answers)
    )
    return Talk(pipeline(clock, **options), Provider(clock, behave=behave))


def call(name: str, **arguments: Any) -> tuple[str, str]:
    return name, json.dumps(arguments)


def step(
    *calls: tuple[str, str], results: Sequence[str] = ("the same",), said: str | None = None
) -> list[dict[str, Any]]:
    """One turn of an agent, with its calls and their results."""
    ids = [f"{name}-{random.random()}" for name, _ in calls]
    asked = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, (name, arguments) in zip(ids, calls, strict=True)
    ]
    results = [*results, *results[-1:] * (len(calls) - len(results))]
    answered = [
        {"role": "tool", "tool_call_id": id_, "content": result} for id_, result in zip(ids, results, strict=True)
    ]
    return [{"role": "assistant", "content": said, "tool_calls": asked}, *answered]


ASKED: Messages = [{"role": "system", "content": "Be of use."}, {"role": "user", "content": "Where is it?"}]
A, B, C, D = (call(name, q="x") for name in "abcd")


def after(*taken: list[dict[str, Any]]) -> Messages:
    """A conversation after these steps."""
    return [*ASKED, *(message for one in taken for message in one)]


def is_loop(messages: Messages, **options: Any) -> bool:
    made = talk("an answer", tool_loop_detection=True, on_loop="raise", **options)
    try:
        made.call(messages)
    except BrixLoopError:
        return True
    return False


# The same answer to the same prompt


@both_drivers
def test_the_same_answer_to_the_same_prompt_is_asked_for_in_another_way(mode: Mode) -> None:
    made = talk(["one"] * 3 + ["another"], exact_loop_detection=True)
    prompt: Messages = [{"role": "user", "content": "hello"}]
    assert mode.each(made, [{"prompt": prompt}] * 3) == ["one", "one", "another"]
    assert made.injected == [False, False, False, True]
    assert made.sent[-1][:-1] == prompt
    assert "'one' came up 3 times" in made.sent[-1][-1]["content"]
    assert prompt == [{"role": "user", "content": "hello"}]
    assert made.decisions() == [[], ["repeating"], ["injected"]]


@both_drivers
@pytest.mark.parametrize("attempts", [0, 1, 2])
def test_when_asking_otherwise_is_in_vain_an_error_says_so(mode: Mode, attempts: int) -> None:
    made = talk("one", exact_loop_detection=True, diversity_attempts=attempts)
    *_, error = mode.each(made, [{}] * 3)
    assert isinstance(error, BrixLoopError)
    assert (error.kind, error.repeats, error.cycle_length) == ("response", 3 + attempts, 1)
    assert (f"{attempts} times (diversity_attempts)" in str(error)) == bool(attempts)
    assert len(made.sent) == 3 + attempts


@both_drivers
def test_the_next_call_of_a_prompt_that_looped_may_still_find_a_way_out(mode: Mode) -> None:
    made = talk(["one"] * 5 + ["another", "one", "one"], exact_loop_detection=True)
    results = mode.each(made, [{}] * 6)
    assert isinstance(results[2], BrixLoopError)
    assert results[3:] == ["another", "one", "one"]
    assert made.injected == [False, False, False, True, True, True, False, False]


@every_mode
def test_raise_means_at_once(mode: Mode) -> None:
    made = talk("one", exact_loop_detection=True, on_loop="raise")
    *before, error = mode.each(made, [{}] * 3)
    assert before == ["one", "one"]
    assert isinstance(error, BrixLoopError)
    assert error.partial == "one"
    assert "exact_loop_threshold=3" in str(error)
    assert made.injected == [False, False, False]
    assert made.decisions()[-1] == ["stopped"]


@both_streams
def test_a_streamed_answer_cannot_be_taken_back_so_the_next_call_is_asked_otherwise(mode: Mode) -> None:
    made = talk("one", exact_loop_detection=True)
    results = mode.each(made, [{}] * 5)
    assert results[:4] == ["one"] * 4
    assert isinstance(results[4], BrixLoopError)
    assert results[4].partial == "one"
    assert made.injected == [False, False, False, True, True]
    assert made.decisions() == [[], ["repeating"], ["found"], ["injected", "found"], ["injected", "stopped"]]


@every_mode
def test_answers_that_alternate_are_a_cycle(mode: Mode) -> None:
    made = talk(["one", "two", "one", "two"], exact_loop_detection=True, on_loop="raise")
    *before, error = mode.each(made, [{}] * 4)
    assert before == ["one", "two", "one"]
    assert isinstance(error, BrixLoopError)
    assert (error.kind, error.repeats, error.cycle_length) == ("cycle", 2, 2)


@every_mode
def test_prompts_in_turn_are_found_too(mode: Mode) -> None:
    made = talk("one", exact_loop_detection=True, on_loop="raise")
    results = mode.each(made, [{"prompt": prompt} for prompt in ("p", "q", "r") * 3])
    assert results[:6] == ["one"] * 6
    assert all(isinstance(result, BrixLoopError) for result in results[6:])


@every_mode
def test_different_questions_with_the_same_short_answer_are_no_loop(mode: Mode) -> None:
    made = talk("yes", exact_loop_detection=True, semantic_loop_detection=True, embedder="lexical")
    assert mode.each(made, [{"prompt": f"Is it {number}?"} for number in range(20)]) == ["yes"] * 20
    assert not any(made.injected)


@every_mode
def test_three_user_turns_asking_the_same_are_no_loop(mode: Mode) -> None:
    made = talk("Noon.", exact_loop_detection=True, semantic_loop_detection=True, embedder="lexical")
    said: Messages = []
    for _ in range(6):
        said = [*said, {"role": "user", "content": "What time is it?"}]
        assert mode.one(made, said) == "Noon."  # type: ignore[arg-type]
        said = [*said, {"role": "assistant", "content": "Noon."}]
    assert not any(made.injected)


@every_mode
def test_an_answer_that_changed_in_between_is_progress(mode: Mode) -> None:
    answers = ["busy", "busy", "half done", "busy", "busy", "done"]
    assert mode.each(talk(answers, exact_loop_detection=True, on_loop="raise"), [{}] * 6) == answers


@every_mode
def test_sessions_have_windows_of_their_own(mode: Mode) -> None:
    made = talk("one", exact_loop_detection=True, on_loop="raise")
    calls = [{"session": f"user-{number % 5}"} for number in range(10)]
    assert mode.all(made, calls) == ["one"] * 10
    assert all(isinstance(result, BrixLoopError) for result in mode.all(made, calls[:5]))


@every_mode
def test_of_callers_at_the_same_time_none_slips_through(mode: Mode) -> None:
    made = talk("one", exact_loop_detection=True, on_loop="raise", exact_loop_threshold=5)
    results = mode.all(made, [{}] * 9)
    assert results.count("one") == 4
    assert sum(isinstance(result, BrixLoopError) for result in results) == 5


def test_the_window_ends() -> None:
    made = talk("one", exact_loop_detection=True, on_loop="raise", loop_window=4, max_cycle_length=2)
    results = Mode("sync").each(made, [{"prompt": prompt} for prompt in "pabpcdpefp"])
    assert results == ["one"] * 10


def test_without_exact_detection_answers_may_recur() -> None:
    assert Mode("sync").each(talk("one", tool_loop_detection=True), [{}] * 9) == ["one"] * 9


def test_an_answer_a_time_limit_cut_short_does_not_count() -> None:
    clock = VirtualClock()
    endpoint = Provider(clock, chunk_delay=3.0)
    made = Talk(pipeline(clock, exact_loop_detection=True, per_call_timeout=2.0, on_timeout="return_partial"), endpoint)
    assert Mode("async").each(made, [{}] * 6) == ["one "] * 6


# Steps of agents


@every_mode
def test_an_agent_that_repeats_a_step_is_asked_for_another_way(mode: Mode) -> None:
    made = talk("an answer", tool_loop_detection=True)
    messages = after(*[step(A, said=f"Attempt {number}.") for number in range(3)])
    length = len(messages)
    assert mode.one(made, messages) == "an answer"  # type: ignore[arg-type]
    assert made.injected == [True]
    assert 'a({"q":"x"}) came up 3 times' in made.sent[0][-1]["content"]
    assert made.sent[0][:-1] == messages
    assert len(messages) == length


@every_mode
def test_nothing_is_sent_when_a_loop_is_to_raise(mode: Mode) -> None:
    made = talk("an answer", tool_loop_detection=True, on_loop="raise")
    with pytest.raises(BrixLoopError, match="end the run") as caught:
        mode.one(made, after(*[step(A)] * 3))  # type: ignore[arg-type]
    error = caught.value
    assert (error.kind, error.repeats, error.cycle_length, error.what) == ("tool", 3, 1, 'a({"q":"x"})')
    assert made.sent == []
    assert made.pipe.traces.get_traces()[0]["outcome"] == "refused"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.what, again.repeats, again.kind) == (str(error), error.what, 3, "tool")


@every_mode
def test_after_so_many_turns_in_vain_nothing_more_is_sent(mode: Mode) -> None:
    made = talk("going on", tool_loop_detection=True, diversity_attempts=2)
    results = mode.each(made, [{"prompt": after(*[step(A)] * number)} for number in range(7)])
    assert results[:5] == ["going on"] * 5
    assert all(isinstance(error, BrixLoopError) and "2 times (diversity" in str(error) for error in results[5:])
    assert made.injected == [False, False, False, True, True]
    assert made.decisions() == [[], [], ["repeating"], ["injected"], ["injected"], ["stopped"], ["stopped"]]


@every_mode
def test_after_progress_the_count_starts_over(mode: Mode) -> None:
    made = talk("going on", tool_loop_detection=True, diversity_attempts=2)
    taken: list[list[dict[str, Any]]] = []
    for number in range(10):
        for one in [step(A)] * 4 + [step(call("b", q=number))]:
            taken.append(one)
            assert mode.one(made, after(*taken)) == "going on"  # type: ignore[arg-type]
    assert sum(made.injected) == 20


@every_mode
def test_conversations_of_one_session_are_counted_apart(mode: Mode) -> None:
    made = talk("going on", tool_loop_detection=True, diversity_attempts=1)
    calls = [
        {"prompt": [{"role": "user", "content": f"Where is {number}?"}, *after(*[step(A)] * 3)[2:]]}
        for number in range(20)
    ]
    assert mode.all(made, calls) == ["going on"] * 20
    assert all(isinstance(result, BrixLoopError) for result in mode.all(made, calls))
    assert mode.all(made, [{**one, "session": "another"} for one in calls]) == ["going on"] * 20


def test_a_cancelled_call_leaves_no_count() -> None:
    made = talk("going on", tool_loop_detection=True, exact_loop_detection=True, diversity_attempts=1)
    made.endpoint.latency = 5.0
    messages = after(*[step(A)] * 3)

    async def main() -> None:
        for stream in (False, True) * 3:
            coroutine = made.astream(messages) if stream else made.acall(messages)  # type: ignore[arg-type]
            task = asyncio.create_task(coroutine)
            await asyncio.sleep(1.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await made.acall(messages) == "going on"  # type: ignore[arg-type]
        with pytest.raises(BrixLoopError):
            await made.acall(messages)  # type: ignore[arg-type]

    run_virtual(main, made.pipe.clock)  # type: ignore[arg-type]
    assert made.injected == [True] * 7


def test_a_dropped_stream_and_a_failed_call_leave_no_count() -> None:
    made = talk(lambda number: OSError("down") if number == 1 else None, tool_loop_detection=True, diversity_attempts=1)
    messages = after(*[step(A)] * 3)
    stream = made.pipe.stream(made.request(messages, stream=True))
    assert next(stream) == "one "
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="down"):
        made.call(messages)  # type: ignore[arg-type]
    assert made.call(messages) == "one two three"  # type: ignore[arg-type]


LOOPS: dict[str, Messages] = {
    "the same": after(*[step(A)] * 3),
    "in other words": after(*[step(A, said=f"Let me try {word}.") for word in ("this", "that", "once more")]),
    "another notation of the arguments": after(
        step(("a", '{"x": 1, "y": 2}')), step(("a", '{"y":2,"x":1}')), step(("a", ' {"x":1,"y":2}\n'))
    ),
    "arguments that are no JSON": after(*[step(("a", "{broken"))] * 3),
    "the same failure": after(*[step(A, results=["Error: no such file"])] * 3),
    "A-B": after(step(A), step(B), step(A), step(B)),
    "A-B-C": after(*[step(A), step(B), step(C)] * 2),
    "A-B-C-D": after(*[step(A), step(B), step(C), step(D)] * 2),
    "the same in no order": after(step(A), step(B), step(B), step(A), step(B)),
    "a batch": after(*[step(A, B, results=["1", "2"])] * 3),
    "a batch in another order": after(step(A, B, results="12"), step(B, A, results="21"), step(A, B, results="12")),
    "batches in turn": after(*[step(A, B), step(C, D)] * 2),
    "after a while": after(*[step(call("e", q=number)) for number in range(30)], *[step(A)] * 3),
    "LlamaIndex's text": after(
        *[
            [
                {"role": "assistant", "content": f"Thought: {n}\nAction: a\nAction Input: {{'q': 1}}"},
                {"role": "user", "content": "Observation: none"},
            ]
            for n in range(3)
        ]
    ),
    "LangChain's scratchpad": [
        {
            "role": "user",
            "content": "Question: where?\n"
            + "".join(f"Thought: {n}\nAction: a\nAction Input: x\nObservation: none\n" for n in range(3))
            + "Thought:",
        }
    ],
    "Anthropic's blocks": after(
        *[
            [
                {"role": "assistant", "content": [{"type": "tool_use", "id": f"t{n}", "name": "a", "input": {"q": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"t{n}", "content": "none"}]},
            ]
            for n in range(3)
        ]
    ),
    "a failing call reworded": after(
        *[
            step(call("search", q=q), results=[f"Could not find [{q}]. Similar: {q.split()}"])
            for q in ("Scatman", "Scatman the player", "player called Scatman", "the basketball player called Scatman")
        ]
    ),
}


@pytest.mark.parametrize("messages", LOOPS.values(), ids=LOOPS)
def test_loops(messages: Messages) -> None:
    assert is_loop(messages)


NO_LOOPS: dict[str, Messages] = {
    "a call whose result changed": after(*[step(A, results=[f"{number} %"]) for number in range(20)]),
    "two calls each of two": after(step(A), step(A), step(B), step(B)),
    "a check between changes": after(*[one for number in range(9) for one in (step(A), step(call("edit", n=number)))]),
    "the same result of different calls": after(*[step(call("a", q=number)) for number in range(20)]),
    "different arguments that look alike": after(*[step(call("read", path=f"{name}.py")) for name in "pqrstuvw"]),
    "parallel batches": after(*[step(A, B, results=["1", "2"])] * 2),
    "results that changed places": after(*[step(A, A, results=["1", str(number)]) for number in range(6)]),
    "three users asking the same": [*ASKED, *[*step(A), {"role": "user", "content": "Where is it?"}] * 6],
    "files that are not there": after(
        *[step(call("read", path=f"{n}.py"), results=[f"Error: no file {n}.py"]) for n in "pqrstuvw"]
    ),
    "pages without results": after(*[step(call("search", q="x", page=n), results=["No results"]) for n in range(8)]),
    "a call that fails in another way each time": after(
        *[step(A, results=[f"Error: still starting, {n} % done"]) for n in range(8)]
    ),
    "searches for different things that fail": after(
        *[step(call("search", q=q), results=["No results"]) for q in ("Paris hotels", "Rome flights", "Oslo", "cats")]
    ),
    "a different wording, and it works": after(
        *[step(call("search", q=f"{word} weather"), results=[f"It is {word}"]) for word in ("one", "two", "some", "no")]
    ),
}


@pytest.mark.parametrize("options", [{}, {"semantic_loop_detection": True, "embedder": "lexical"}], ids=["1", "2"])
@pytest.mark.parametrize("messages", NO_LOOPS.values(), ids=NO_LOOPS)
def test_no_loops(messages: Messages, options: dict[str, Any]) -> None:
    for end in range(2, len(messages) + 1):
        assert not is_loop(messages[:end], **options)


@pytest.mark.parametrize(("threshold", "found"), [(2, 2), (3, 3), (5, 5), (12, 12)])
def test_the_threshold_says_how_often(threshold: int, found: int) -> None:
    made = [is_loop(after(*[step(A)] * times), exact_loop_threshold=threshold) for times in range(1, found + 1)]
    assert made == [False] * (found - 1) + [True]


@pytest.mark.parametrize(("longest", "found"), [(1, False), (2, False), (3, True), (4, True)])
def test_the_longest_cycle_is_an_option(longest: int, found: bool) -> None:
    assert is_loop(LOOPS["A-B-C"], max_cycle_length=longest) is found


def test_the_turn_can_be_worded_by_the_application() -> None:
    made = talk("so be it", tool_loop_detection=True, loop_diversity_prompt="Stop that.")
    assert made.call(LOOPS["the same"]) == "so be it"  # type: ignore[arg-type]
    assert made.sent[0][-1] == {"role": "user", "content": "Stop that."}


def test_tool_loops_can_be_let_be() -> None:
    made = talk("so be it", exact_loop_detection=True, tool_loop_detection=False)
    assert made.call(LOOPS["the same"]) == "so be it"  # type: ignore[arg-type]
    assert made.injected == [False]


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(2, 5), st.integers(1, 4))
def test_what_is_found_is_there(keys: list[int], threshold: int, longest: int) -> None:
    circle = find([9, *keys], threshold=threshold, max_cycle=longest)
    ends = [9, *keys][-circle.length * circle.repeats :]
    if circle.length > 1:
        assert circle.length <= longest
        assert circle.repeats >= max(2, threshold - 1)
        assert ends == ends[: circle.length] * circle.repeats
    else:
        assert [9, *keys].count([9, *keys][-1]) >= circle.repeats >= 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9, unique=True), st.integers(2, 5), st.integers(2, 4))
def test_a_repeat_after_anything_is_found_and_nothing_new_never_is(
    keys: list[int], threshold: int, longest: int
) -> None:
    assert find(keys, threshold=threshold, max_cycle=longest) == (1, 1)
    assert find([*keys, *keys[-1:] * (threshold - 1)], threshold=threshold, max_cycle=longest).repeats >= threshold
    cycle = list(range(10, 10 + longest))
    rounds = max(2, threshold - 1)
    assert find([*keys, *cycle * rounds], threshold=threshold, max_cycle=longest) == (rounds, longest)


class Looked(list[Turn]):
    """A conversation that counts how much of it is looked at."""

    looked = 0

    def __reversed__(self) -> Any:
        for turn in super().__reversed__():
            self.looked += 1
            yield turn


def test_a_long_conversation_is_not_read_anew() -> None:
    turns = Looked([Turn("user", "go"), *[Turn("assistant", "", calls=()), Turn("tool", "")] * 500])
    made = LoopGuard(LoopConfig())
    agent = Looked([Turn("user", "go"), *map(read_turn, after(*[step(A)] * 500)[2:])])
    assert len(steps(agent, made.config.reach)) == 10
    assert agent.looked <= 20
    chat = Looked([*turns, Turn("user", "and now?")])
    assert steps(chat, made.config.reach) == []
    assert chat.looked == 1


def test_what_is_kept_of_a_session_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MAX_CONVERSATIONS", 5)
    made = talk("going on", tool_loop_detection=True, exact_loop_detection=True)
    for number in range(50):
        made.call([{"role": "user", "content": f"{number}?"}, *after(*[step(A)] * 3)[2:]])  # type: ignore[arg-type]
    guard = next(guard for guard in made.pipe.guards if isinstance(guard, LoopGuard))
    state = guard._states.of(made.pipe.session())
    assert len(state.injected) == 5
    assert len(state.answers) == guard.config.reach == 10


# Text that degenerates


def matrix(size: int) -> str:
    return json.dumps([[0] * size] * size)


MEANT: dict[str, str] = {
    "a table": "| a | b | c |\n|---|---|---|\n" + "".join(f"| {n} | x{n * n} | N/A |\n" for n in range(400)),
    "a table without news": "| n/a | n/a | n/a |\n" * 150,
    "a wide table": "|" + "---|" * 400 + "\n",
    "rules": "-" * 500 + "\n" + "=" * 500 + "\n" + "* " * 300,
    "blank lines": "The end.\n" + "\n" * 500 + "Really.",
    "indentation": "\n".join(" " * (n % 120) + "x" for n in range(400)),
    "zeros": matrix(80),
    "a list of equal objects": json.dumps([{"id": None, "name": ""}] * 200),
    "CSV": "".join(f"{n},unknown,0,0\n" for n in range(1_000)),
    "CSV of equal rows": "unknown,unknown,0\n" * 300,
    "code of like lines": "".join(f"    self.assertEqual(result[{n}], 0)\n" for n in range(300)),
    "closing tags": "</div>\n" * 40 + "</body>\n",
    "base64": base64.b64encode(bytes(20_000)).decode(),
    "hex": "00" * 10_000,
    "DNA": "GATTACA" * 2_000,
    "laughter": "ha " * 120 + "!",
    "a song": "Na na na nananana, nananana, hey Jude\n" * 18,
    "a refrain": "".join(f"Verse {n} has {n * 7919} other words.\nRow, row, row your boat\n\n" for n in range(60)),
    "a poem": "Over and over and over again,\n" * 12,
    "prose": " ".join(random.Random(1).choices(["the", "of", "go", "sea", "wind", "rope", "mast"], k=9_000)),
}
STUCK: dict[str, str] = {
    "a line": "The answer is yes.\n" * 2_000,
    "a phrase": "and so on and so forth, " * 2_000,
    "a paragraph": "I will now look at the result of the search and then go on with the next step of the plan.\n\n"
    * 200,
    "a word": "the " * 4_000,
    "laughter without end": "ha " * 4_000,
    "another script": "我不知道。" * 2_000,
    "marks": "!" * 20_000,
    "white space": "\n  " * 5_000,
    "a line of code": "    self.assertEqual(result, expected)\n" * 1_000,
    "after a good beginning": MEANT["prose"][:5_000] + " I cannot say. I am sorry." * 500,
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("text", MEANT.values(), ids=MEANT)
def test_repetition_that_is_meant(text: str, size: int) -> None:
    watch = RepetitionWatch(lambda repetition: AssertionError(repetition))
    for start in range(0, len(text), size):
        watch(text[start : start + size])
    assert repetition_in(text) is None


@pytest.mark.parametrize("text", STUCK.values(), ids=STUCK)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.streamed], ids=str)
def test_a_stream_that_degenerates_is_cut_off(mode: Mode, text: str) -> None:
    made = talk(None, tool_loop_detection=True)
    made.endpoint.chunks = [text[start : start + 20] for start in range(0, len(text), 20)]
    with pytest.raises(BrixLoopError, match="end the run") as caught:
        mode.one(made)
    error = caught.value
    assert error.kind == "stream"
    assert error.repeats >= 8
    assert text.startswith(error.partial)
    assert 1_000 <= len(error.partial) <= min(len(text) - 20, 15_000)
    assert made.decisions() == [["cut"]]
    assert made.endpoint.in_flight == 0


@both_drivers
def test_a_whole_answer_that_degenerated_is_asked_for_in_another_way(mode: Mode) -> None:
    made = talk([STUCK["a line"], "Yes."], tool_loop_detection=True)
    assert mode.one(made) == "Yes."
    assert made.injected == [False, True]
    with pytest.raises(BrixLoopError) as caught:
        mode.one(talk(STUCK["a line"], exact_loop_detection=True))
    assert caught.value.kind == "stream"


def test_a_watch_keeps_little_and_sees_a_period_however_the_text_is_cut() -> None:
    rng = random.Random(7)
    for period in (1, 3, 50, 300, 900):
        unit = "".join(rng.choices("abcdefgh ijklmn. ", k=period)) if period > 1 else "\n"
        watch = RepetitionWatch(ValueError)
        pieces = (unit if period > 1 else unit * rng.randrange(1, 5) for _ in range(40_000))
        with pytest.raises(ValueError, match="Repetition"):
            any(map(watch, pieces))  # the watch gives None, so this goes on until it raises
        assert len(watch._tail) <= KEPT


# By meaning, with the lexical embedder; tests/semantic has those with a real model.


MEANING: dict[str, Any] = {"semantic_loop_detection": True, "embedder": "lexical"}


@every_mode
def test_nearly_the_same_answers_to_the_same_prompt_are_a_loop(mode: Mode) -> None:
    answers = [f"I could not find the document that you are asking for{end}" for end in (".", "!", " ...")]
    made = talk(answers, **MEANING, on_loop="raise")
    *before, error = mode.each(made, [{}] * 3)
    assert before == answers[:2]
    assert isinstance(error, BrixLoopError)
    assert (error.kind, error.repeats) == ("semantic", 3)
    plain = talk(answers, exact_loop_detection=True, on_loop="raise")
    assert mode.each(plain, [{}] * 3) == answers


@pytest.mark.parametrize(
    "answer",
    [
        "Please have a look at file {}.py in the folder of the project, it has what you are asking for.",
        "Page {} of the report has nothing about what you are asking for, I am going on with the next one.",
        "I have asked {} in the office about it, and there was no answer to what you are asking for.",
    ],
)
def test_answers_that_name_different_things_are_not_the_same(answer: str) -> None:
    for names in ("pqrstuvw", "12345678", ["Ann", "Ben", "Cem", "Dan"]):
        made = talk([answer.format(name) for name in names], **MEANING, semantic_loop_threshold=0.5, on_loop="raise")
        results = Mode("sync").each(made, [{}] * len(names))
        assert not any(isinstance(result, Exception) for result in results)


def test_steps_whose_calls_differ_in_wording_only_are_a_loop() -> None:
    wordings = [
        "weather in the city of Paris today",
        "the weather in the city of Paris today",
        "Weather in the city of Paris, today",
    ]
    messages = after(*[step(call("search", q=wording)) for wording in wordings])
    assert is_loop(messages, **MEANING, semantic_loop_threshold=0.8)
    assert not is_loop(messages)
    moved = after(*[step(call("search", q=wording), results=[str(n)]) for n, wording in enumerate(wordings)])
    assert not is_loop(moved, **MEANING, semantic_loop_threshold=0.8)


def test_embedding_does_not_hold_up_the_event_loop_and_knows_what_it_has_seen() -> None:
    threads: list[str] = []
    seen: list[str] = []

    def embed(texts: list[str]) -> list[list[float]]:
        threads.append(threading.current_thread().name)
        seen.extend(texts)
        return [[1.0, 0.0] for _ in texts]

    answers = [f"nothing here {'at all ' * number}" for number in range(6)]
    made = talk(answers, semantic_loop_detection=True, embedder=embed, exact_loop_threshold=5)
    results = asyncio.run(gathered(made, 4))
    assert results == answers[:4]
    assert sorted(seen) == sorted([*answers[:4], "ready"])  # the embedder is tried before the first call
    assert threading.main_thread().name not in threads


async def gathered(made: Talk, count: int) -> list[str]:
    return [await made.acall() for _ in range(count)]


# Options


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("exact_loop_detection", 1, "True or False"),
        ("semantic_loop_detection", "yes", "True or False"),
        ("tool_loop_detection", None, "True or False"),
        ("exact_loop_threshold", 1, "an int >= 2"),
        ("exact_loop_threshold", 2.0, "an int >= 2"),
        ("semantic_loop_threshold", 0, "a number in"),
        ("semantic_loop_threshold", 1.01, "a number in"),
        ("max_cycle_length", 0, "an int >= 1"),
        ("on_loop", "stop", "one of 'inject_diversity', 'raise'"),
        ("diversity_attempts", -1, "an int >= 0"),
        ("loop_window", 1, "an int >= 2"),
        ("loop_diversity_prompt", " ", "a non-empty str"),
        ("loop_diversity_prompt", 7, "a non-empty str"),
        ("embedder", "lexical", "no effect without semantic_loop_detection"),
    ],
)
def test_a_bad_option_is_named(option: str, value: Any, said: str) -> None:
    with pytest.raises(BrixConfigurationError, match=f"{option}.*{said}"):
        LoopConfig(**{option: value})


def test_a_bad_embedder_is_refused_when_the_guard_is_made() -> None:
    with pytest.raises(BrixConfigurationError, match="embedder must be"):
        pipeline(VirtualClock(), semantic_loop_detection=True, embedder=0.9)


class FailingLater:
    """An embedder whose service goes away after so many calls."""

    name = "failing"

    def __init__(self, after: int) -> None:
        self.calls = 0
        self.after = after

    def embed(self, texts: Sequence[str]) -> Any:
        self.calls += 1
        if self.calls > self.after:
            raise BrixGuardError("the embedding service is down")
        return LexicalEmbedder().embed(texts)


def test_an_embedder_whose_model_cannot_be_had_is_found_before_anything_is_sent() -> None:
    def missing(texts: Sequence[str]) -> Any:
        raise BrixConfigurationError("there is no such model")

    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, semantic_loop_detection=True, embedder=missing), endpoint)
    with pytest.raises(BrixConfigurationError, match="no such model"):
        driver.call()
    assert endpoint.sent == []


def test_an_embedder_that_is_down_refuses_no_call_and_is_tried_again() -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, semantic_loop_detection=True, embedder=FailingLater(0)), FakeEndpoint(clock))
    for _ in range(2):
        driver.call()
    noted = [trace["decisions"][0]["decision"] for trace in driver.pipe.traces.get_traces()]
    assert noted == ["embedder_failed", "embedder_failed"]


def test_an_embedder_that_fails_later_loses_no_answer() -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: f"I could not find it, sorry{'.' * number}")
    driver = Driver(pipeline(clock, semantic_loop_detection=True, embedder=FailingLater(1)), endpoint)
    for number in range(4):
        assert driver.call() == f"I could not find it, sorry{'.' * number}"
    decisions = driver.pipe.traces.get_traces()[0]["decisions"]
    assert [decision["decision"] for decision in decisions] == ["embedder_failed"]


def test_numbers_that_no_float_tells_apart_are_different_calls() -> None:
    for amount in (20 * 10**18 + 1, 20 * 10**18 + 2, 20 * 10**18 + 3):
        assert canonical(f'{{"wei": {amount}}}') == f'{{"wei":{amount}}}'
    assert canonical('{"b": 1.0000000000000000001, "a": 2}') != canonical('{"b": 1.0000000000000000002, "a": 2}')


@pytest.mark.parametrize(
    ("option", "most"), [("loop_window", 10_000), ("exact_loop_threshold", 1_000), ("max_cycle_length", 100)]
)
def test_no_limit_is_beyond_what_can_be_looked_back_on(option: str, most: int) -> None:
    with pytest.raises(BrixConfigurationError, match=f"{option} must be an int >= . and <= {most}, got"):
        LoopConfig(**{option: 10**30})
