"""Long prompts of LlamaIndex applications: what reaches the server of them, and what does not."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.tools import FunctionTool

from brix_core import BrixConfigurationError, BrixContextError, BrixSchemaError
from brix_core.demo import DemoServer, Reply, ServerError
from brix_llamaindex import guard
from tests.llamaindex.conftest import Make
from tests.llamaindex.hooks import HOOKS, PLAIN, ask, attempts, decided, outcomes, say, steps, texts
from tests.support.schemas import VALID, City
from tests.support.words_llamaindex import WordEmbedding

KNOWN = "gpt-4o-mini"
"""A model whose tokenizer is known: what the guard counts is what the server counts, without a margin."""

SMALL = "gpt-4.1-nano"
PRICES = {KNOWN: (1e-6, 2e-6), SMALL: (1e-7, 1e-7)}

every_chat = pytest.mark.parametrize("hook", [hook for hook in HOOKS if "chat" in hook])
every_completion = pytest.mark.parametrize("hook", [hook for hook in HOOKS if "complete" in hook])


def lookup(key: str) -> str:
    """Looks a key up."""
    return f"nothing about {key}"


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


async def test_auto_is_the_window_of_a_known_model_and_of_no_other(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(model="gpt-4", max_tokens=1_000), max_context_tokens="auto")
    await say(llm, "achat", long_talk(400))
    assert 6_000 < server.requests[0].prompt_tokens <= 8_192 - 1_000
    unknown = guard(openai_like(), max_context_tokens="auto")
    with pytest.raises(BrixConfigurationError, match="demo-model"):
        await say(unknown, "achat", long_talk(2))
    assert (attempts(llm), attempts(unknown), server.stats.requests) == (1, 0, 1)


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
