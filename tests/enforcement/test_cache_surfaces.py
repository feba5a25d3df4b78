"""The option ``cache`` on every surface, over the real SDKs and real HTTP: a hit is what the model would have given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from llama_index.core.llms import ChatMessage

from brix_core import BRIX, BrixConfigurationError, InMemoryCache, MemoryStore
from brix_core.demo import BadRequest, DemoServer, Reply, ToolCalls
from brix_core.enforcement import AnthropicAdapter, FailoverChain, JSONValidator, OpenAIAdapter, PydanticValidator
from brix_langchain import BrixCallbackHandler
from brix_langchain import guard as guard_langchain
from brix_llamaindex import guard as guard_llamaindex
from tests.enforcement.support import OSLO, VALID, Ask, City, Collected, Durable, engine_of, every_way
from tests.langchain.conftest import Make as MakeChat
from tests.langchain.conftest import chat
from tests.llamaindex.conftest import Make, openai_like

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}

__all__ = ["chat", "openai_like"]


@pytest.fixture
async def client(server: DemoServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="test", base_url=server.base_url) as made:
        yield made


# -- BRIX.wrap -------------------------------------------------------------------------------------------------


async def test_wrapped_clients_have_it(server: DemoServer, client: openai.AsyncOpenAI) -> None:
    cache = InMemoryCache(max_size=10)
    brix = BRIX.wrap(client, model="gpt-4o-mini", cache=cache, max_cost_usd=1.0, store=MemoryStore())
    first = await brix.complete("Hello", temperature=0.5)
    second = await brix.complete("Hello", temperature=0.5)
    async with brix.stream("Hello", temperature=0.5) as stream:
        assert "".join([piece async for piece in stream]) == first
    third = stream.result
    assert first == second == third
    assert (first.finish_reason, first.usage, first.model) == (second.finish_reason, second.usage, second.model)
    assert first.raw == second.raw
    assert first.raw is not second.raw
    assert (second.cost_usd, third.cost_usd) == (0.0, 0.0)
    assert first.cost_usd == pytest.approx(brix.context.session_cost_usd)
    assert len(server.requests) == 1
    assert brix.chain.names == ("observability", "cache", "budget")
    assert (await brix.complete("Hello", temperature=0.6)) == first
    assert len(server.requests) == 2


async def test_a_streamed_miss_is_kept_with_all_it_held(server: DemoServer, client: openai.AsyncOpenAI) -> None:
    brix = BRIX.wrap(client, model="gpt-4o-mini", cache=InMemoryCache(), store=MemoryStore())
    server.default = ToolCalls([("get_weather", {"city": "Oslo"})])
    async with brix.stream("Weather?", tools=[WEATHER]) as stream:
        assert [piece async for piece in stream] == []
    answer = await brix.complete("Weather?", tools=[WEATHER])
    assert answer.tool_calls == stream.result.tool_calls
    assert answer.tool_calls[0].name == "get_weather"
    assert answer.raw.choices[0].message.tool_calls[0].function.name == "get_weather"
    assert len(server.requests) == 1


async def test_a_hundred_at_once_are_one_request(server: DemoServer, client: openai.AsyncOpenAI) -> None:
    brix = BRIX.wrap(client, model="gpt-4o-mini", cache=InMemoryCache(), store=MemoryStore())
    server.default = Reply("one for all", latency=0.05)
    answers = await asyncio.gather(*(brix.complete("Hello") for _ in range(100)))
    assert set(answers) == {"one for all"}
    assert len({id(answer.raw) for answer in answers}) == 100
    assert len(server.requests) == 1


async def test_nobody_can_change_what_another_gets(server: DemoServer, client: openai.AsyncOpenAI) -> None:
    brix = BRIX.wrap(client, model="gpt-4o-mini", cache=InMemoryCache(), store=MemoryStore())
    for _ in range(3):
        answer = await brix.complete("Hello")
        assert answer.raw.choices[0].message.content == answer
        answer.raw.choices[0].message.content = "changed"


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("reply", [Reply("Oslo, I think."), ToolCalls([("get_weather", {"city": "Oslo"})], text="So:")])
def test_an_answer_is_made_again_of_what_was_written_down(server: DemoServer, kind: str, reply: Any) -> None:
    cache, store = Durable(), MemoryStore()
    server.default = reply
    answers = []
    for _ in range(2):
        sdk: Any = openai.OpenAI if kind == "openai" else anthropic.Anthropic
        url = server.base_url if kind == "openai" else server.anthropic_base_url
        tool: Any = WEATHER if kind == "openai" else {"name": "get_weather", "input_schema": {"type": "object"}}
        with sdk(api_key="test", base_url=url) as client:
            model = "gpt-4o-mini" if kind == "openai" else "claude-haiku-4-5"
            brix = BRIX.wrap(client, model=model, cache=cache, store=store)
            answers.append(brix.complete_sync("Where?", tools=[tool], max_tokens=100))
    asked, hit = answers
    assert hit == asked
    assert (hit.tool_calls, hit.usage, hit.model) == (asked.tool_calls, asked.usage, asked.model)
    assert hit.finish_reason == asked.finish_reason
    assert type(hit.raw) is type(asked.raw)
    if kind == "openai":
        assert hit.raw.choices[0].message.content == asked.raw.choices[0].message.content
    else:
        assert [block.type for block in hit.raw.content] == [block.type for block in asked.raw.content]
    assert len(server.requests) == 1


# -- LangChain -------------------------------------------------------------------------------------------------


async def test_chat_models_have_it(server: DemoServer, chat: MakeChat) -> None:
    model = guard_langchain(chat(), cache=InMemoryCache(), store=MemoryStore())
    asked = await model.ainvoke("Hello")
    hit = model.invoke("Hello")
    streamed = [chunk async for chunk in model.astream("Hello")]
    assert hit.content == asked.content == "".join(str(chunk.content) for chunk in streamed)
    of_hit, of_asked = hit.response_metadata.pop("brix"), asked.response_metadata.pop("brix")
    assert of_hit["run_id"] != of_asked["run_id"]
    assert of_hit["decisions"][-1]["decision"] == "hit"
    assert hit.response_metadata == asked.response_metadata
    assert hit.id != asked.id
    assert len(server.requests) == 1
    assert [len(trace["attempts"]) for trace in model.get_traces()] == [0, 0, 1]


async def test_a_streamed_answer_of_a_chat_model_keeps_its_tool_calls(server: DemoServer, chat: MakeChat) -> None:
    model = guard_langchain(chat(), cache=InMemoryCache(), store=MemoryStore()).bind_tools([WEATHER])
    server.default = ToolCalls([("get_weather", {"city": "Oslo"})])
    async for _ in model.astream("Weather?"):
        pass
    hit = model.invoke("Weather?")
    assert isinstance(hit, AIMessage)
    assert hit.tool_calls[0]["args"] == {"city": "Oslo"}
    assert len(server.requests) == 1


async def test_what_a_chat_model_is_set_to_is_part_of_the_key(server: DemoServer, chat: MakeChat) -> None:
    cache, store = InMemoryCache(), MemoryStore()
    models = [chat(), chat(temperature=0.1), chat(logit_bias={1: 2}), chat(model="gpt-4o"), chat(max_tokens=70)]
    guarded: list[Any] = [guard_langchain(model, cache=cache, store=store) for model in models]
    guarded += [guarded[0].bind(stop=["x"]), guarded[0].bind_tools([WEATHER])]
    for _ in range(2):
        for model in guarded:
            await model.ainvoke("Hello")
    assert len(server.requests) == len(guarded)


async def test_what_a_message_holds_beside_its_text_is_part_of_the_key(server: DemoServer, chat: MakeChat) -> None:
    model = guard_langchain(chat(), cache=InMemoryCache(), store=MemoryStore())
    developer = SystemMessage("Hello", additional_kwargs={"__openai_role__": "developer"})
    prompts: list[Any] = [
        [HumanMessage("Hello")],
        [HumanMessage("Hello", name="ann")],
        [HumanMessage([{"type": "text", "text": "Hello"}])],
        [SystemMessage("Hello")],
        [developer],
        [SystemMessage("Hello"), developer],
        [developer, SystemMessage("Hello")],
    ]
    for _ in range(2):
        for prompt in prompts:
            await model.ainvoke(prompt)
    assert len(server.requests) == len(prompts)


async def test_string_models_have_it() -> None:
    llm = FakeListLLM(responses=["one", "two"])
    model = guard_langchain(llm, cache=InMemoryCache(), store=MemoryStore())
    assert await model.ainvoke("Hello") == model.invoke("Hello") == "one"
    assert "".join([piece async for piece in model.astream("Hello")]) == "one"
    assert model.invoke("Hello", stop=["x"]) == "two"


@pytest.mark.parametrize(
    "make",
    [
        lambda: guard_langchain(RunnableLambda(lambda text: text), cache=InMemoryCache()),
        lambda: BrixCallbackHandler(cache=InMemoryCache()),
    ],
)
def test_where_no_single_answer_is_seen_it_is_refused(make: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="cache"):
        make()


# -- LlamaIndex ------------------------------------------------------------------------------------------------


async def test_llamaindex_models_have_it(server: DemoServer, openai_like: Make) -> None:
    llm = guard_llamaindex(openai_like(), cache=InMemoryCache(), store=MemoryStore())
    talk = [ChatMessage("Hello")]
    asked = await llm.achat(talk)
    hit = llm.chat(talk)
    streamed = [chunk async for chunk in await llm.astream_chat(talk)]
    assert hit.message.content == asked.message.content == streamed[-1].message.content
    assert hit is not asked
    assert len(server.requests) == 1
    completed = await llm.acomplete("Hello")
    assert llm.complete("Hello").text == completed.text
    assert len(server.requests) == 2


async def test_a_streamed_answer_of_llamaindex_is_kept(server: DemoServer, openai_like: Make) -> None:
    llm = guard_llamaindex(openai_like(), cache=InMemoryCache(), store=MemoryStore())
    talk = [ChatMessage("Hello")]
    chunks = list(llm.stream_chat(talk))
    assert llm.chat(talk).message.content == chunks[-1].message.content
    assert len(server.requests) == 1


def test_what_a_llamaindex_model_is_set_to_is_part_of_the_key(server: DemoServer, openai_like: Make) -> None:
    cache, store = InMemoryCache(), MemoryStore()
    llms = [openai_like(), openai_like(temperature=0.7), openai_like(additional_kwargs={"seed": 1})]
    for _ in range(2):
        for llm in llms:
            guard_llamaindex(llm, cache=cache, store=store).chat([ChatMessage("Hello")])
    assert len(server.requests) == len(llms)


# -- the engine ------------------------------------------------------------------------------------------------


@every_way
async def test_engines_have_it(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    cache, collected = InMemoryCache(max_size=100, default_ttl=3600), Collected()
    engine = engine_of(adapter, cache=cache, collector=collected, max_cost_usd=1.0, max_retries=1)
    server.script(Reply('{"name": "Oslo"}'))
    server.default = Reply(VALID)
    first = await engine.enforce("Where?", City)
    hit = await ask(engine, "Where?")
    assert (hit.data, hit.success, hit.cached) == (OSLO, True, True)
    assert hit.data is not first.data
    assert (hit.attempts, hit.tokens_used, hit.cost_usd, hit.retry_count) == (0, 0, 0.0, 0)
    assert (hit.generation.output, hit.generation.model) == (VALID, "gpt-4o-mini")
    assert hit.validation.is_valid
    assert cache.get_stats() == {"hits": 1, "misses": 1, "hit_rate": "50.00%"}
    assert len(server.requests) == 2
    assert len(collected.examples) == 1
    assert len(engine.get_traces()) == 2


async def test_a_hundred_enforced_at_once_are_one_request(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter, cache=InMemoryCache())
    server.default = Reply(VALID, latency=0.05)
    outputs = await asyncio.gather(*(engine.enforce("Where?", City) for _ in range(100)))
    assert all(output.data == OSLO for output in outputs)
    assert len({id(output.data) for output in outputs}) == 100
    assert [output.cached for output in outputs].count(False) == 1
    assert sum(output.attempts for output in outputs) == len(server.requests) == 1


async def test_in_threads_too(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter, cache=InMemoryCache())
    server.default = Reply(VALID, latency=0.1)
    outputs = await asyncio.to_thread(engine.enforce_batch_sync, ["Where?"] * 20, City, 20)
    assert all(output.data == OSLO for output in outputs)
    assert len(server.requests) == 1


async def test_a_failure_is_not_kept(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter, cache=InMemoryCache(), max_retries=0)
    server.script(Reply("no"), Reply(VALID))
    assert not (await engine.enforce("Where?", City)).success
    assert (await engine.enforce("Where?", City)).data == OSLO


async def test_the_answer_of_a_fallback_says_whose_it_is(
    server: DemoServer, adapter: OpenAIAdapter, other: AnthropicAdapter
) -> None:
    engine = engine_of(FailoverChain([adapter, other]), PydanticValidator(), cache=InMemoryCache())
    server.script(BadRequest(status=401))
    server.default = Reply(VALID)
    first = await engine.enforce("Where?", City)
    hit = await engine.enforce("Where?", City)
    for output in (first, hit):
        assert (output.generation.provider, output.generation.model) == ("anthropic", "claude-haiku-4-5")
        assert output.data == OSLO
    assert (hit.cached, hit.attempts) == (True, 0)
    assert len(server.requests) == 2


def test_a_blocking_call_in_a_coroutine_does_not_wait_for_its_own_loop(
    server: DemoServer, adapter: OpenAIAdapter
) -> None:
    engine = engine_of(adapter, cache=InMemoryCache())
    server.default = Reply(VALID, latency=0.1)
    outputs: list[Any] = []

    async def main() -> None:
        leader = asyncio.create_task(engine.enforce("Where?", City))
        while not server.stats.requests:
            await asyncio.sleep(0.005)
        outputs.append(engine.enforce_sync("Where?", City))  # the loop stands still meanwhile
        outputs.append(await leader)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    thread.join(20)
    assert [output.data for output in outputs] == [OSLO, OSLO]
    assert len(server.requests) == 2


async def test_validators_do_not_get_each_others_values(server: DemoServer, adapter: OpenAIAdapter) -> None:
    cache, store = InMemoryCache(), MemoryStore()
    server.default = Reply(VALID)
    for _ in range(2):
        for validator, expected in ((PydanticValidator(), OSLO), (JSONValidator(), OSLO.model_dump())):
            output = await engine_of(adapter, validator, cache=cache, store=store).enforce("Where?", City)
            assert output.data == expected
            assert type(output.data) is type(expected)
    assert len(server.requests) == 2
