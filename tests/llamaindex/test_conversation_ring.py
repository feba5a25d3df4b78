"""Loops of LlamaIndex applications: what is one, what is none, and what is done about it."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.tools import FunctionTool

from brix_core import BrixLoopError
from brix_core.demo import DemoServer, EndlessRepetition, Reply, ToolCalls
from brix_llamaindex import guard
from tests.llamaindex.conftest import Make
from tests.llamaindex.hooks import HOOKS, STREAMED, ask, attempts, decided, outcomes, say, steps, texts
from tests.support.words_llamaindex import WordEmbedding

CHATS = tuple(hook for hook in HOOKS if "chat" in hook)
COMPLETIONS = tuple(hook for hook in HOOKS if "complete" in hook)
LOOP = {"exact_loop_detection": True}
ROUND_AGAIN = "You are going round in circles"

every_hook = pytest.mark.parametrize("hook", HOOKS)
every_chat = pytest.mark.parametrize("hook", CHATS)
every_completion = pytest.mark.parametrize("hook", COMPLETIONS)
# Agents look at every attribute of their Pydantic models, deprecated ones included.
of_llama_index = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def lookup(key: str) -> str:
    """Looks a key up."""
    return f"nothing about {key}"


# --- loops -------------------------------------------------------------------------------------------


def react_steps(count: int) -> list[ChatMessage]:
    """The same in the words of ReAct."""
    action = ChatMessage('Thought: I look.\nAction: lookup\nAction Input: {"key": "Oslo"}', role=MessageRole.ASSISTANT)
    return [ChatMessage("What is known about Oslo?"), *[action, ChatMessage("Observation: nothing")] * count]


@every_chat
@pytest.mark.parametrize("talk", [steps, react_steps])
async def test_a_step_that_recurs_is_not_sent_a_fourth_time(
    openai_like: Make, server: DemoServer, hook: str, talk: Any
) -> None:
    llm = guard(openai_like(), tool_loop_detection=True, on_loop="raise")
    await say(llm, hook, talk(2))
    with pytest.raises(BrixLoopError) as caught:
        await say(llm, hook, talk(3))
    assert caught.value.repeats == 3
    assert outcomes(llm) == ["ok", "refused"]
    assert attempts(llm) == server.stats.requests == 1


@every_chat
@pytest.mark.parametrize("talk", [steps, react_steps])
async def test_a_step_that_recurs_is_asked_for_in_another_way(
    openai_like: Make, server: DemoServer, hook: str, talk: Any
) -> None:
    server.default = Reply("Then I know nothing.")
    llm = guard(openai_like(), tool_loop_detection=True)
    messages = talk(3)
    assert await say(llm, hook, messages) == "Then I know nothing."
    sent = server.requests[0].body["messages"]
    assert sent[-1]["role"] == "user"
    assert sent[-1]["content"].startswith(ROUND_AGAIN)
    assert len(messages) == len(sent) - 1, "the application's own messages are left as they are"
    assert decided(llm, "loop") == ["injected"]
    assert attempts(llm) == server.stats.requests == 1


def _called(*calls: tuple[str, str], result: str = "nothing") -> list[ChatMessage]:
    """A step: parallel calls of a tool with a key, and their results."""
    blocks = [ToolCallBlock(tool_call_id=name, tool_name="lookup", tool_kwargs={"key": key}) for name, key in calls]
    told = [ChatMessage(result, role=MessageRole.TOOL, additional_kwargs={"tool_call_id": name}) for name, _ in calls]
    return [ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), *told]


LOOPS: dict[str, list[ChatMessage]] = {
    "two in turn": [*_called(("a", "Oslo")), *_called(("b", "Bergen"))] * 2,
    "three in turn": [*_called(("a", "Oslo")), *_called(("b", "Bergen")), *_called(("c", "Bodo"))] * 2,
    "batches": _called(("a", "Oslo"), ("b", "Bergen")) * 3,
}
NO_LOOPS: dict[str, list[ChatMessage]] = {
    "two batches": _called(("a", "Oslo"), ("b", "Bergen")) * 2,
    "other keys": [message for key in ("Oslo", "Bergen", "Bodo", "Alta") for message in _called(("a", key))],
    "other results": [m for found in ("1 %", "50 %", "99 %") for m in _called(("a", "Oslo"), result=found)],
    "asked three times": [ChatMessage("What is known?"), *_called(("a", "Oslo"))] * 3,
}


@pytest.mark.parametrize("talk", LOOPS)
async def test_cycles_of_steps_and_of_batches_are_loops(openai_like: Make, server: DemoServer, talk: str) -> None:
    llm = guard(openai_like(), tool_loop_detection=True, on_loop="raise")
    with pytest.raises(BrixLoopError, match="lookup"):
        await llm.achat([ChatMessage("What is known?"), *LOOPS[talk]])
    assert attempts(llm) == server.stats.requests == 0


@pytest.mark.parametrize("talk", NO_LOOPS)
async def test_progress_and_questions_asked_again_are_none(openai_like: Make, server: DemoServer, talk: str) -> None:
    llm = guard(openai_like(), tool_loop_detection=True, on_loop="raise")
    await llm.achat([ChatMessage("What is known?"), *NO_LOOPS[talk]])
    assert attempts(llm) == server.stats.requests == 1


async def test_a_user_who_asks_the_same_three_times_is_no_loop(openai_like: Make, server: DemoServer) -> None:
    server.default = Reply("No.")
    llm = guard(openai_like(), **LOOP, tool_loop_detection=True, on_loop="raise")
    engine = SimpleChatEngine.from_defaults(llm=llm)
    for _ in range(4):
        assert str(await engine.achat("Is it there?")) == "No."
    for number in range(4):
        assert str(SimpleChatEngine.from_defaults(llm=llm).chat(f"Is number {number} there?")) == "No."
    assert attempts(llm) == server.stats.requests == 8


@pytest.mark.parametrize("hook", ["complete", "achat"])
async def test_answers_that_mean_the_same_are_found_by_an_embedding_of_llama_index(
    openai_like: Make, server: DemoServer, hook: str
) -> None:
    said = ("museum of the sea", "the museum of sea", "of the sea museum")
    server.script(*map(Reply, said))
    llm = guard(openai_like(), semantic_loop_detection=True, embedder=WordEmbedding(), on_loop="raise")
    await ask(llm, hook)
    await ask(llm, hook)
    with pytest.raises(BrixLoopError):
        await ask(llm, hook)
    assert attempts(llm) == server.stats.requests == 3


@every_hook
async def test_the_same_answer_to_the_same_prompt_is_an_error(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = Reply("I am working on it.")
    llm = guard(openai_like(), **LOOP, on_loop="raise")
    for _ in range(2):
        await ask(llm, hook)
    with pytest.raises(BrixLoopError, match="came up 3 times"):
        await ask(llm, hook)
    await ask(llm, hook, "Something else")
    assert attempts(llm) == server.stats.requests == 4


@every_hook
async def test_the_same_answer_to_the_same_prompt_is_asked_for_in_another_way(
    openai_like: Make, server: DemoServer, hook: str
) -> None:
    server.script(*[Reply("I am working on it.")] * 3, Reply("Done."))
    llm = guard(openai_like(), **LOOP)
    answers = [await ask(llm, hook) for _ in range(4 if hook in STREAMED else 3)]
    assert answers[-1] == "Done."
    assert ROUND_AGAIN in texts(server)
    assert ROUND_AGAIN not in texts(server, -2)
    assert attempts(llm) == server.stats.requests == 4


@pytest.mark.parametrize("hook", STREAMED)
async def test_a_stream_that_degenerates_is_cut_off(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = EndlessRepetition(text="over and over ", limit=5_000)
    llm = guard(openai_like(), **LOOP)
    with pytest.raises(BrixLoopError) as caught:
        await ask(llm, hook)
    assert 0 < len(caught.value.partial) < 20_000
    assert attempts(llm) == server.stats.requests == 1


AGENTS: dict[str, Any] = {
    "calls": (FunctionAgent, ToolCalls([("lookup", {"key": "Oslo"})]), Reply("Nothing is known.")),
    "words": (
        ReActAgent,
        Reply('Thought: I look.\nAction: lookup\nAction Input: {"key": "Oslo"}\n'),
        Reply("Thought: I can answer without using any more tools.\nAnswer: Nothing is known."),
    ),
}


@of_llama_index
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", AGENTS)
async def test_an_agent_that_goes_round_in_circles_is_led_out(
    openai_like: Make, server: DemoServer, kind: str, streaming: bool
) -> None:
    agent, step, answer = AGENTS[kind]
    server.script(step, step, step, answer)
    llm = guard(openai_like(), tool_loop_detection=True)
    result = await agent(tools=[lookup], llm=llm, streaming=streaming).run("What is known about Oslo?")
    assert "Nothing is known." in str(result)
    assert [ROUND_AGAIN in texts(server, number) for number in range(4)] == [False, False, False, True]
    assert attempts(llm) == server.stats.requests == 4


@of_llama_index
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", AGENTS)
async def test_an_agent_that_goes_round_in_circles_is_stopped(
    openai_like: Make, server: DemoServer, kind: str, streaming: bool
) -> None:
    agent, step, _ = AGENTS[kind]
    server.default = step
    llm = guard(openai_like(), tool_loop_detection=True, on_loop="raise")
    with pytest.raises(BrixLoopError, match="lookup"):
        await agent(tools=[lookup], llm=llm, streaming=streaming).run("What is known about Oslo?")
    assert attempts(llm) == server.stats.requests == 3


@of_llama_index
async def test_a_tool_whose_result_changes_is_no_loop(openai_like: Make, server: DemoServer) -> None:
    found = iter(range(10))
    tool = FunctionTool.from_defaults(lambda: f"{next(found)} done", name="poll", description="Tells how far it is")
    server.script(*[ToolCalls([("poll", {})])] * 6, Reply("Finished."))
    llm = guard(openai_like(), tool_loop_detection=True, on_loop="raise")
    assert str(await FunctionAgent(tools=[tool], llm=llm).run("Wait for it")) == "Finished."
    assert attempts(llm) == server.stats.requests == 7
