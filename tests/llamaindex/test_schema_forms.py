"""Schemas in every form, on every class of LLM: native where it can be, healed within time, money and session."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, ToolCallBlock
from llama_index.core.llms import MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.llms.openai import OpenAI
from typing_extensions import TypedDict

import brix_core
from brix_core import BrixBudgetError, BrixSchemaError, MemoryStore
from brix_core.demo import DemoServer, Reply, StalledStream, ToolCalls
from brix_core.structured.response_schema import INSTRUCTIONS_HEADING
from brix_llamaindex import guard
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import HOOKS, attempts, outcomes
from tests.support.schemas import OSLO, VALID, City
from tests.support.virtual import VirtualClock

PRICES = {MODEL: (1e-6, 2e-6)}
WRONG = '{"name": "Oslo", "people": "many"}'
PROMPT = PromptTemplate("Describe {city}")
# LlamaIndex's own StructuredLLM calls a deprecated method of Pydantic's on every streamed object.
pytestmark = pytest.mark.filterwarnings("ignore:The `json` method is deprecated")


@dataclass
class CityRecord:
    name: str
    people: int


class CityEntry(TypedDict):
    name: str
    people: int


JSON_SCHEMA = {
    "title": "City",
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name", "people"],
    "additionalProperties": False,
}
FORMS: dict[str, tuple[Any, Any]] = {
    "model": (City, OSLO),
    "dataclass": (CityRecord, CityRecord("Oslo", 700_000)),
    "typed dict": (CityEntry, {"name": "Oslo", "people": 700_000}),
    "json schema": (JSON_SCHEMA, {"name": "Oslo", "people": 700_000}),
}

every_form = pytest.mark.parametrize("form", FORMS)


async def final(llm: Any, hook: str, text: str = "Describe Oslo") -> Any:
    """The last response of a hook."""
    given = getattr(llm, hook)([ChatMessage(text)] if "chat" in hook else text)
    given = await given if hook.startswith("a") else given
    if "stream" not in hook:
        return given
    return [chunk async for chunk in given][-1] if hook.startswith("a") else list(given)[-1]


@every_form
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
async def test_an_instance_in_every_form(
    openai_like: Make, server: DemoServer, hook: str, native: bool, form: str
) -> None:
    schema, expected = FORMS[form]
    server.script(Reply(WRONG), Reply(VALID))
    bare = openai_like(should_use_structured_outputs=native)
    llm = guard(bare, response_schema=schema, stream_mode="validated")
    found = await final(llm, hook)
    assert found.raw == expected
    assert type(found.raw) is type(expected)
    assert ["response_format" in record.body for record in server.requests] == [native, native]
    assert attempts(llm) == server.stats.requests == 2


@every_form
async def test_an_answer_that_never_fits_is_told_in_every_form(
    openai_like: Make, server: DemoServer, form: str
) -> None:
    server.default = Reply(WRONG)
    llm = guard(openai_like(), response_schema=FORMS[form][0], max_schema_retries=1)
    with pytest.raises(BrixSchemaError) as caught:
        await llm.achat([ChatMessage("Describe Oslo")])
    assert [attempt.text for attempt in caught.value.attempts] == [WRONG, WRONG]
    assert caught.value.attempts[0].problems[0][0] == "$.people"
    assert (outcomes(llm), attempts(llm), server.stats.requests) == (["failed"], 2, 2)


@pytest.mark.parametrize("way", ["hook", "program"])
async def test_openai_itself_is_held_to_the_schema_in_its_own_way(
    openai_like: Make, server: DemoServer, way: str
) -> None:
    shared = openai_like()
    made: dict[str, Any] = {
        "model": "gpt-4o-mini",
        "api_base": server.base_url,
        "api_key": "none",
        "http_client": shared._http_client,
        "async_http_client": shared._async_http_client,
    }
    server.script(Reply(VALID), Reply(WRONG), Reply(VALID))
    assert OpenAI(**made).structured_predict(City, PROMPT, city="Oslo") == OSLO
    if way == "hook":
        llm = guard(OpenAI(**made), response_schema=City)
        assert (await llm.achat([ChatMessage("Describe Oslo")])).raw == OSLO
    else:
        llm = guard(OpenAI(**made))
        assert await llm.astructured_predict(City, PROMPT, city="Oslo") == OSLO
    bare, *asked = (record.body for record in server.requests)
    assert [body["response_format"]["type"] for body in (bare, *asked)] == ["json_schema"] * 3
    for body in asked:
        assert body["response_format"]["json_schema"]["schema"]["properties"].keys() == {"name", "people"}
        assert INSTRUCTIONS_HEADING not in json.dumps(body)
    assert attempts(llm) == server.stats.requests - 1 == 2


async def test_the_schema_is_told_once_however_often_it_is_asked_for(openai_like: Make, server: DemoServer) -> None:
    server.script(Reply("No."), Reply(WRONG), Reply(VALID))
    llm = guard(openai_like(), response_schema=City)
    messages = [ChatMessage("Be brief.", role="system"), ChatMessage("Describe Oslo")]
    assert (await llm.achat(messages)).raw == OSLO
    for record in server.requests:
        assert json.dumps(record.body).count(INSTRUCTIONS_HEADING) == 1
        assert record.body["messages"][0]["content"].startswith("Be brief.")
    assert [str(message.content) for message in messages] == ["Be brief.", "Describe Oslo"]


def test_a_heal_is_part_of_the_call_it_heals(openai_like: Make, server: DemoServer) -> None:
    server.script(Reply(WRONG), Reply(VALID))
    llm = guard(openai_like(), response_schema=City, max_cost_usd=1.0, prices=PRICES)
    llm.complete("Describe Oslo")
    (trace,) = llm.get_traces()
    assert (trace["outcome"], len(trace["attempts"])) == ("ok", 2)
    cost = sum(record.prompt_tokens * 1e-6 + record.completion_tokens * 2e-6 for record in server.requests)
    assert sum(attempt["cost_usd"] for attempt in trace["attempts"]) == pytest.approx(cost)
    assert llm.brix.context.session_cost_usd == pytest.approx(cost)


@pytest.mark.parametrize("way", ["structured_predict", "chat"])
def test_a_heal_that_cannot_be_paid_for_is_not_sent(openai_like: Make, server: DemoServer, way: str) -> None:
    server.default = Reply("word " * 80)
    prices = {MODEL: (0.0, 1e-5)}
    llm = guard(openai_like(max_tokens=100), max_cost_usd=0.0015, prices=prices, budget_clamp_output=False)
    describe = {
        "structured_predict": lambda: llm.structured_predict(City, PROMPT, city="Oslo"),
        "chat": lambda: llm.as_structured_llm(City).chat([ChatMessage("Describe Oslo")]),
    }
    with pytest.raises(BrixBudgetError):
        describe[way]()
    assert attempts(llm) == server.stats.requests == 1


def test_no_heal_begins_after_the_time_for_healing() -> None:
    clock = VirtualClock()

    class Slow(MockLLM):
        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            clock.advance(4.0)
            return CompletionResponse(text=WRONG)

    llm = guard(Slow(), response_schema=City, max_schema_retries=50, max_healing_seconds=10.0, clock=clock)
    with pytest.raises(BrixSchemaError, match="max_healing_seconds") as caught:
        llm.complete("Describe Oslo")
    assert len(caught.value.attempts) == attempts(llm)
    assert 2 <= attempts(llm) <= 4


@pytest.mark.parametrize("way", ["structured_predict", "astructured_predict"])
async def test_a_mock_that_calls_functions_is_healed(way: str) -> None:
    replies = iter([WRONG, VALID])

    def respond(messages: Any, **kwargs: Any) -> ChatMessage:
        return ChatMessage(blocks=[ToolCallBlock(tool_name="City", tool_kwargs=next(replies))], role="assistant")

    llm = guard(MockFunctionCallingLLM(response_generator=respond))
    given = getattr(llm, way)(City, PROMPT, city="Oslo")
    assert (await given if way.startswith("a") else given) == OSLO
    assert attempts(llm) == 2


async def test_a_prompt_is_left_as_it_is_and_serves_for_other_schemas(openai_like: Make, server: DemoServer) -> None:
    class Town(City):
        town_hall: str

    prompt = PromptTemplate("Describe {city}")
    server.script(Reply(VALID), Reply('{"name": "Oslo", "people": 1, "town_hall": "red"}'), Reply("Hello"))
    llm = guard(openai_like(is_function_calling_model=False))
    assert await llm.astructured_predict(City, prompt, city="Oslo") == OSLO
    assert llm.structured_predict(Town, prompt, city="Oslo").town_hall == "red"
    assert prompt.output_parser is None
    assert "".join(llm.stream(prompt, city="Oslo")) == "Hello"
    assert ["town_hall" in json.dumps(record.body) for record in server.requests] == [False, True, False]
    assert attempts(llm) == server.stats.requests == 3


async def test_instances_asked_for_side_by_side_are_told_apart(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(should_use_structured_outputs=True), max_cost_usd=1.0, prices=PRICES)
    server.default = Reply(VALID)
    server.script(Reply(WRONG), Reply(WRONG))

    async def describe(user: str) -> City:
        with brix_core.session(user):
            return await llm.astructured_predict(City, PROMPT, city=user)

    assert await asyncio.gather(*(describe(f"user-{number % 4}") for number in range(12))) == [OSLO] * 12
    assert [len(llm.get_traces(f"user-{number}")) for number in range(4)] == [3] * 4
    assert attempts(llm) == server.stats.requests == 14


@pytest.mark.parametrize("native", [True, False])
async def test_cancelling_frees_what_was_held(openai_like: Make, server: DemoServer, native: bool) -> None:
    server.default = StalledStream(after=1)
    store = MemoryStore()
    bare = openai_like(should_use_structured_outputs=native)
    llm = guard(bare, max_cost_usd=1.0, prices=PRICES, store=store, session_id="s")
    task = asyncio.create_task(llm.astructured_predict(City, PROMPT, city="Oslo"))
    while not server.stats.requests:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcomes(llm) == ["cancelled"]
    assert store.balance("budget:s").reserved == 0
    assert server.wait_until_idle()


@pytest.mark.parametrize("way", ["stream_chat", "astream_chat"])
async def test_closing_the_stream_of_a_structured_llm_frees_what_it_held(
    openai_like: Make, server: DemoServer, way: str
) -> None:
    server.default = StalledStream(after=4, text=VALID)
    store = MemoryStore()
    bare = openai_like(should_use_structured_outputs=True)
    llm = guard(bare, max_cost_usd=1.0, prices=PRICES, store=store, session_id="s")
    stream = getattr(llm.as_structured_llm(City), way)([ChatMessage("Describe Oslo")], max_tokens=100)
    if way.startswith("a"):
        stream = await stream
        await anext(stream)
        await stream.aclose()
        async with asyncio.timeout(5.0):  # LlamaIndex leaves what is inside to the event loop's next rounds
            while not (llm.get_traces() and server.wait_until_idle(0.0)):
                await asyncio.sleep(0.001)
    else:
        next(stream)
        stream.close()
    assert outcomes(llm) == ["abandoned"]
    assert store.balance("budget:s").reserved == 0
    assert server.wait_until_idle()


async def test_fallbacks_are_held_to_the_schema_too(openai_like: Make, server: DemoServer) -> None:
    server.script(ToolCalls([("City", {"name": "Oslo", "people": "many"})]), ToolCalls([("City", json.loads(VALID))]))
    llm = guard(openai_like(), fallbacks=[openai_like(model="second-model")])
    assert await llm.astructured_predict(City, PROMPT, city="Oslo") == OSLO
    assert attempts(llm) == server.stats.requests == 2
