"""Loops and long prompts of LlamaIndex applications: what reaches the server, and what does not."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import LLM
from llama_index.core.tools import FunctionTool

from brix_core import BrixContextError, BrixLoopError, BrixSchemaError
from brix_core.demo import DemoServer, EndlessRepetition, Reply, ServerError, ToolCalls
from brix_llamaindex import guard
from tests.llamaindex.conftest import Make
from tests.llamaindex.hooks import HOOKS, PLAIN, STREAMED, ask, attempts, outcomes
from tests.support.schemas import VALID, City
from tests.support.words_llamaindex import WordEmbedding

CHATS = tuple(hook for hook in HOOKS if "chat" in hook)
COMPLETIONS = tuple(hook for hook in HOOKS if "complete" in hook)
KNOWN = "gpt-4o-mini"
"""A model whose tokenizer is known: what the guard counts is what the server counts, without a margin."""

SMALL = "gpt-4.1-nano"
PRICES = {KNOWN: (1e-6, 2e-6), SMALL: (1e-7, 1e-7)}

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


async def say(llm: LLM, hook: str, messages: Sequence[ChatMessage], **kwargs: Any) -> str:
    """The text of the answer to a chat."""
    given = getattr(llm, hook)(list(messages), **kwargs)
    given = await given if hook.startswith("a") else given
    if "stream" not in hook:
        return str(given.message.content)
    found = [chunk async for chunk in given] if hook.startswith("a") else list(given)
    return str(found[-1].message.content)


def decided(llm: Any, guard_name: str) -> list[str]:
    """What that guard decided about the latest call."""
    return [made["decision"] for made in llm.get_traces()[0]["decisions"] if made["guard"] == guard_name]


def texts(server: DemoServer, number: int = -1) -> str:
    """All that was said in a request."""
    body = server.requests[number].body
    return str(body.get("prompt") or json.dumps(body["messages"]))


# --- loops -------------------------------------------------------------------------------------------


def steps(count: int) -> list[ChatMessage]:
    """An agent's conversation of so many equal steps."""
    messages = [ChatMessage("What is known about Oslo?")]
    for number in range(count):
        call = ToolCallBlock(tool_call_id=f"c{number}", tool_name="lookup", tool_kwargs='{"key": "Oslo"}')
        result = ChatMessage("nothing", role=MessageRole.TOOL, additional_kwargs={"tool_call_id": f"c{number}"})
        messages += [ChatMessage(role=MessageRole.ASSISTANT, blocks=[call]), result]
    return messages


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


# --- prompts that are too long -----------------------------------------------------------------------

LIMIT = {"max_context_tokens": 400, "context_reserve_tokens": 100}
"""300 tokens of prompt."""


def long_talk(turns: int = 20) -> list[ChatMessage]:
    """A conversation that begins with a system prompt and ends with a question."""
    filler = "and so on " * 12
    roles = (MessageRole.USER, MessageRole.ASSISTANT)
    told = [ChatMessage(f"fact {number} {filler}", role=roles[number % 2]) for number in range(turns)]
    return [ChatMessage("Be brief.", role=MessageRole.SYSTEM), *told, ChatMessage("And now?")]


@every_chat
@pytest.mark.parametrize("strategy", ["sliding_window", "importance"])
async def test_a_long_conversation_is_trimmed_to_what_fits(
    openai_like: Make, server: DemoServer, hook: str, strategy: Any
) -> None:
    llm = guard(openai_like(model=KNOWN), **LIMIT, context_strategy=strategy)
    messages = long_talk()
    await say(llm, hook, messages)
    (record,) = server.requests
    sent = [message["content"] for message in record.body["messages"]]
    assert 150 < record.prompt_tokens <= 300
    assert (sent[0], sent[-1]) == ("Be brief.", "And now?")
    assert [text for text in (str(message.content) for message in messages) if text in sent] == sent, "order is kept"
    assert decided(llm, "context") == ["trimmed"]
    assert len(messages) == 22
    await say(llm, hook, long_talk(2))
    assert decided(llm, "context") == []
    assert attempts(llm) == server.stats.requests == 2


@every_chat
@pytest.mark.parametrize("writer", [None, "name", "llm"])
async def test_what_is_left_out_is_summarised_by_a_counted_request(
    openai_like: Make, server: DemoServer, hook: str, writer: str | None
) -> None:
    written_by = {
        None: {},
        "name": {"context_summary_model": SMALL},
        "llm": {"context_summary_model": openai_like(model=SMALL)},
    }
    llm = guard(
        openai_like(model=KNOWN),
        max_context_tokens=1_000,
        context_reserve_tokens=100,
        context_strategy="summarize",
        max_cost_usd=1.0,
        prices=PRICES,
        **written_by[writer],
    )
    server.script(Reply("They spoke of facts."), Reply("Well."), Reply("Still."))
    assert await say(llm, hook, long_talk(26)) == "Well."
    told, asked = server.requests
    assert (told.model, asked.model) == (KNOWN if writer is None else SMALL, KNOWN)
    assert not told.stream
    assert "fact 0" in texts(server, 0)
    assert "They spoke of facts." in texts(server)
    assert max(told.prompt_tokens, asked.prompt_tokens) <= 900
    assert await say(llm, hook, long_talk(26)) == "Still.", "the summary is remembered"
    assert "They spoke of facts." in texts(server)
    costs = [(record.prompt_tokens, record.completion_tokens, PRICES[record.model]) for record in server.requests]
    cost = sum(prompt * rates[0] + completion * rates[1] for prompt, completion, rates in costs)
    assert llm.brix.context.session_cost_usd == pytest.approx(cost)
    assert attempts(llm) == server.stats.requests == 3


@every_chat
async def test_a_summary_that_fails_costs_nothing_but_itself(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(model=KNOWN), **LIMIT, context_strategy="summarize")
    server.script(ServerError(500), Reply("Well."))
    assert await say(llm, hook, long_talk()) == "Well."
    assert decided(llm, "context") == ["summary_failed", "trimmed"]
    assert 150 < server.requests[1].prompt_tokens <= 300
    assert attempts(llm) == server.stats.requests == 2


@every_completion
async def test_a_prompt_is_one_text_and_refused_when_it_does_not_fit(
    openai_like: Make, server: DemoServer, hook: str
) -> None:
    llm = guard(openai_like(model=KNOWN), **LIMIT)
    with pytest.raises(BrixContextError) as caught:
        await ask(llm, hook, "and so on " * 400)
    assert (caught.value.limit, caught.value.tokens > 1_000) == (300, True)
    assert outcomes(llm) == ["refused"]
    assert attempts(llm) == server.stats.requests == 0


@every_completion
@pytest.mark.parametrize("is_chat_model", [True, False])
async def test_the_middle_of_a_prompt_can_be_cut(
    openai_like: Make, server: DemoServer, hook: str, is_chat_model: bool
) -> None:
    bare = openai_like(model=KNOWN, is_chat_model=is_chat_model, is_function_calling_model=is_chat_model, max_tokens=50)
    llm = guard(bare, **LIMIT, context_overflow="truncate")
    await ask(llm, hook, f"First. {'and so on ' * 400} Last.")
    (record,) = server.requests
    assert 200 < record.prompt_tokens <= 300
    assert "First." in texts(server)
    assert "tokens cut" in texts(server)
    assert "Last." in texts(server)
    assert decided(llm, "context") == ["truncated"]
    assert attempts(llm) == 1


@pytest.mark.parametrize("hook", ["chat", "astream_chat"])
async def test_images_count_and_go_with_their_message(openai_like: Make, server: DemoServer, hook: str) -> None:
    pixel = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    seen = ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), ImageBlock(image=pixel, detail="low")])
    answer = ChatMessage("A pixel.", role=MessageRole.ASSISTANT)
    small = guard(openai_like(model=KNOWN), max_context_tokens=100, context_reserve_tokens=50)
    await say(small, hook, [seen, answer, ChatMessage("And now?")])
    assert "image_url" not in texts(server)
    assert [message["content"] for message in server.requests[0].body["messages"]] == ["And now?"]
    with pytest.raises(BrixContextError):
        await say(small, hook, [seen])
    large = guard(openai_like(model=KNOWN), max_context_tokens=5_000)
    await say(large, hook, [seen])
    assert "image_url" in texts(server)
    assert attempts(small) + attempts(large) == server.stats.requests == 2


@every_chat
async def test_tools_count_and_calls_stay_with_their_results(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(model=KNOWN), **LIMIT)
    tools = [FunctionTool.from_defaults(lookup).metadata.to_openai_tool()]
    await say(llm, hook, steps(12), tools=tools)
    (record,) = server.requests
    assert record.body["messages"][0]["content"] == "What is known about Oslo?"
    assert 150 < record.prompt_tokens <= 300
    called: set[str] = set()
    for message in record.body["messages"]:
        called |= {call["id"] for call in message.get("tool_calls") or ()}
        if message["role"] == "tool":
            called.remove(message["tool_call_id"])
    assert not called
    many = [{**tools[0], "function": {**tools[0]["function"], "name": f"lookup_{number}"}} for number in range(12)]
    with pytest.raises(BrixContextError, match="of them for tools"):
        await say(llm, hook, [ChatMessage("Well?")], tools=many)
    assert attempts(llm) == server.stats.requests == 1


async def test_a_chat_engine_goes_on_however_long_it_talks(openai_like: Make, server: DemoServer) -> None:
    server.default = Reply("I see. " * 10)
    llm = guard(openai_like(model=KNOWN), **LIMIT)
    engine = SimpleChatEngine.from_defaults(llm=llm)
    for number in range(6):
        engine.chat(f"fact {number} " + "and so on " * 12)
        await engine.achat(f"more about {number}")
        for _ in engine.stream_chat(f"even more about {number}").response_gen:
            pass
    assert max(record.prompt_tokens for record in server.requests) <= 300
    assert attempts(llm) == server.stats.requests == 18


def test_a_query_engine_whose_sources_do_not_fit_cuts_them(openai_like: Make, server: DemoServer) -> None:
    documents = [Document(text=f"Oslo {number}. " + "and so on " * 200) for number in range(2)]
    index = VectorStoreIndex.from_documents(documents, embed_model=WordEmbedding())
    llm = guard(openai_like(model=KNOWN), **LIMIT, context_overflow="truncate")
    index.as_query_engine(llm=llm).query("What about Oslo?")
    assert max(record.prompt_tokens for record in server.requests) <= 300
    assert "tokens cut" in texts(server)
    assert attempts(llm) == server.stats.requests


# --- together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", [hook for hook in PLAIN if "chat" in hook])
async def test_a_heal_fits_too(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(model=KNOWN), **LIMIT, response_schema=City, max_schema_retries=1)
    server.script(Reply("No."), Reply(VALID))
    assert City.model_validate_json(await say(llm, hook, long_talk())) == City.model_validate_json(VALID)
    first, healed = server.requests
    assert max(first.prompt_tokens, healed.prompt_tokens) <= 300
    assert [message["content"] for message in healed.body["messages"]][-3:-1] == ["And now?", "No."]
    server.default = Reply("No.")
    with pytest.raises(BrixSchemaError):
        await say(llm, hook, long_talk())
    assert attempts(llm) == server.stats.requests == 4
