"""Instances from LangChain's models: every way to ask for one, in the model's own manner, valid or an error."""

from __future__ import annotations

import asyncio
import gc
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, Required, TypeVar
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import tool
from pydantic import BaseModel, RootModel, field_validator
from pydantic.v1 import BaseModel as PydanticV1
from typing_extensions import TypedDict

import brix_core
from brix_core import BrixConfigurationError, BrixLoopError, BrixSchemaError, MemoryStore
from brix_core.demo import DemoServer, Reply, ServerError, SlowFirstToken, StalledStream, ToolCalls
from brix_core.structured.response_schema import INSTRUCTIONS_HEADING
from brix_langchain import guard
from brix_langchain.structured import Asked
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES, assert_all_seen, attempts
from tests.support.schemas import CITY_JSON, KINDS, OSLO, VALID, City, CityDict, CityRecord

FENCED: Final = 'Here it is:\n```json\n{"name": "Oslo", "people": 700000,}\n```\nAnything else?'
WRONG: Final = '{"name": "Oslo", "people": "many"}'
AS_DICT: Final = json.loads(VALID)
WAYS: Final = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch")
STREAMED: Final = ("stream", "astream")
METHODS: Final = ("json_schema", "function_calling", "json_mode")
METERED: Final[dict[str, Any]] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES}}
HELD_BACK: Final[dict[str, Any]] = {**METERED, "stream_mode": "validated"}
PROMPT: Final = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "Describe {city}")])

every_way = pytest.mark.parametrize("way", WAYS)
every_method = pytest.mark.parametrize("method", METHODS)
every_kind = pytest.mark.parametrize("kind", KINDS)
either_raw = pytest.mark.parametrize("include_raw", [False, True])


async def outputs(runnable: Runnable[Any, Any], way: str, asked: Any = "Describe Oslo", **kwargs: Any) -> list[Any]:
    """All that it gives for one input, in order."""
    if way == "invoke":
        return [runnable.invoke(asked, **kwargs)]
    if way == "ainvoke":
        return [await runnable.ainvoke(asked, **kwargs)]
    if way == "stream":
        return list(runnable.stream(asked, **kwargs))
    if way == "astream":
        return [output async for output in runnable.astream(asked, **kwargs)]
    if way == "batch":
        return runnable.batch([asked], **kwargs)
    return await runnable.abatch([asked], **kwargs)


async def last(runnable: Runnable[Any, Any], way: str, asked: Any = "Describe Oslo", **kwargs: Any) -> Any:
    return (await outputs(runnable, way, asked, **kwargs))[-1]


async def raw(runnable: Runnable[Any, Any], way: str) -> dict[str, Any]:
    """What came with ``include_raw``; of a stream, all its parts together."""
    parts = await outputs(runnable, way)
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return dict(whole)


def answer(method: str, text: str, name: str = "City") -> Reply | ToolCalls:
    """An answer in the manner that was asked for."""
    return ToolCalls([(name, json.loads(text))]) if method == "function_calling" else Reply(text)


def decisions(model: Any) -> list[str]:
    return [made["decision"] for made in model.get_traces()[0]["decisions"] if made["guard"] == "schema"]


@tool
def capital(country: str) -> str:
    """Tells the capital."""
    return f"The capital of {country} is Oslo"


CALL_CAPITAL: Final = ToolCalls([("capital", {"country": "Norway"})])


# --- guard(model, response_schema=...) ---------------------------------------------------------------


@every_way
@every_kind
async def test_a_chain_gives_healed_instances(chat: Make, server: DemoServer, way: str, kind: str) -> None:
    schema, expected = KINDS[kind]
    model = guard(chat(), response_schema=schema, **HELD_BACK)
    server.script(Reply(WRONG), Reply(FENCED))
    found = await outputs(PROMPT | model, way, {"city": "Oslo"})
    assert found == [expected]
    assert type(found[0]) is type(expected)
    assert decisions(model) == ["healing", "repaired"]
    assert_all_seen(model, server, 2)  # type: ignore[arg-type]
    assert [trace["outcome"] for trace in model.get_traces()] == ["ok"]


@every_way
async def test_claude_gives_healed_instances(claude: Make, server: DemoServer, way: str) -> None:
    rates = (1e-6, 5e-6)
    options = {"max_cost_usd": 1.0, "prices": {"claude-haiku-4-5": rates}, "stream_mode": "validated"}
    model = guard(claude(), response_schema=City, **options)
    server.script(answer("function_calling", WRONG), answer("function_calling", VALID))
    assert await last(PROMPT | model, way, {"city": "Oslo"}) == OSLO
    assert server.requests[0].body["tools"][0]["name"] == "City"
    stats = server.stats
    assert attempts(model) == stats.requests == 2  # type: ignore[arg-type]
    owed = stats.prompt_tokens * rates[0] + stats.completion_tokens * rates[1]
    assert model.context.session_cost_usd == pytest.approx(owed)


@pytest.mark.parametrize("way", STREAMED)
@every_kind
async def test_a_stream_gives_the_growing_value_and_last_the_instance(
    chat: Make, server: DemoServer, way: str, kind: str
) -> None:
    schema, expected = KINDS[kind]
    server.default = Reply(VALID, chunk_size=3)
    *growing, instance = await outputs(guard(chat(), response_schema=schema), way)
    assert (type(instance), instance) == (type(expected), expected)
    assert len(growing) > 3
    assert all(isinstance(one, dict) for one in growing)
    assert {"name": "Os"} in growing
    assert growing[-1] == AS_DICT


@pytest.mark.parametrize("way", STREAMED)
@pytest.mark.parametrize("finish_reason", ["stop", "length", "content_filter"])
async def test_a_stream_that_has_been_shown_is_not_asked_for_again(
    chat: Make, server: DemoServer, way: str, finish_reason: str
) -> None:
    server.default = Reply(WRONG[:20], finish_reason=finish_reason)
    model = guard(chat(), response_schema=City, **METERED)
    with pytest.raises(BrixSchemaError, match=r"stream_mode='validated'") as caught:
        await last(model, way)
    assert len(caught.value.attempts) == 1
    assert server.wait_until_idle()
    assert attempts(model) == server.stats.requests == 1  # type: ignore[arg-type]
    # Of a stream that OpenAI's SDK breaks off the usage is never told: it is estimated, and not too low.
    owed = server.stats.prompt_tokens * RATES[0] + server.stats.completion_tokens * RATES[1]
    assert owed <= model.context.session_cost_usd <= 2 * owed


@pytest.mark.parametrize("finish_reason", ["length", "content_filter"])
@every_way
async def test_an_answer_that_is_not_whole_is_healed(
    chat: Make, server: DemoServer, way: str, finish_reason: str
) -> None:
    model = guard(chat(), response_schema=City, **HELD_BACK)
    server.script(Reply(VALID, finish_reason=finish_reason), Reply(VALID))
    assert await last(model, way) == OSLO
    assert attempts(model) == server.stats.requests == 2  # type: ignore[arg-type]


async def test_a_model_that_cannot_bind_is_told_in_its_prompt() -> None:
    for way in WAYS:
        model = guard(FakeListChatModel(responses=["Oslo!", FENCED]), response_schema=City, stream_mode="validated")
        assert await last(model, way) == OSLO
        assert attempts(model) == 2  # type: ignore[arg-type]


async def test_it_is_used_like_any_runnable(chat: Make, server: DemoServer) -> None:
    model = guard(chat(), response_schema=City, trace_buffer_size=100)
    server.default = Reply(VALID)
    assert (model | RunnableLambda(lambda city: city.name)).invoke("Where?") == "Oslo"
    bound = model.bind(max_tokens=77).with_config(tags=["mine"])
    assert await bound.ainvoke("Where?") == OSLO
    assert server.requests[-1].body["max_completion_tokens"] == 77
    with brix_core.session("ann"):
        model.invoke("Where?")
    model.invoke("Where?", {"configurable": {"session_id": "bob"}})
    assert [trace["session_id"] for trace in model.get_traces()[:2]] == ["bob", "ann"]
    assert "schema" in model.guards
    assert attempts(model) == server.stats.requests == 4  # type: ignore[arg-type]


async def test_its_errors_are_final(chat: Make, server: DemoServer) -> None:
    server.default = Reply("No.")
    model = guard(chat(), response_schema=City, max_schema_retries=1)
    for way in WAYS[:2]:
        with pytest.raises(BrixSchemaError):
            await last(model.with_retry(stop_after_attempt=3), way)
        with pytest.raises(BrixSchemaError):
            await last(model.with_fallbacks([RunnableLambda(lambda _: OSLO)]), way)
    assert attempts(model) == server.stats.requests == 8  # type: ignore[arg-type]


def test_it_is_guarded_once(chat: Make) -> None:
    with pytest.raises(BrixConfigurationError, match="guarded already"):
        guard(guard(chat(), response_schema=City))
    with pytest.raises(BrixConfigurationError, match="guarded already"):
        guard(chat(), fallbacks=[guard(chat())], response_schema=City)


# --- with_structured_output --------------------------------------------------------------------------


@every_way
@every_method
@either_raw
async def test_an_answer_that_does_not_fit_is_healed(
    chat: Make, server: DemoServer, method: str, include_raw: bool, way: str
) -> None:
    model = guard(chat(), **HELD_BACK)
    asked = model.with_structured_output(City, method=method, include_raw=include_raw)
    server.script(answer(method, WRONG), answer(method, VALID))
    if include_raw:
        found = await raw(asked, way)
        assert (found["parsed"], found["parsing_error"]) == (OSLO, None)
        text = found["raw"].content or json.dumps(found["raw"].tool_calls[0]["args"])
        assert json.loads(text) == AS_DICT
    else:
        assert await outputs(asked, way) == [OSLO]
    assert decisions(model) == ["healing"]
    assert_all_seen(model, server, 2)
    assert len(model.get_traces()) == 1
    told = json.dumps(server.requests[-1].body["messages"][-2:])
    assert "many" in told
    assert "$.people" in told


@every_way
@either_raw
async def test_when_none_fits_every_attempt_is_told(
    chat: Make, server: DemoServer, include_raw: bool, way: str
) -> None:
    model = guard(chat(), max_schema_retries=2, **HELD_BACK)
    asked = model.with_structured_output(City, include_raw=include_raw)
    texts = ["No.", WRONG, '{"name": "Oslo"}']
    server.script(*map(Reply, texts))
    if include_raw:
        found = await raw(asked, way)
        error = found["parsing_error"]
        assert found["parsed"] is None
        assert found["raw"].content == texts[-1]
    else:
        with pytest.raises(BrixSchemaError) as caught:
            await last(asked, way)
        error = caught.value
    assert isinstance(error, BrixSchemaError)
    assert [attempt.text for attempt in error.attempts] == texts
    assert [path for path, _ in error.attempts[1].problems] == ["$.people"]
    assert error.schema_name == "City"
    assert_all_seen(model, server, 3)
    assert [trace["outcome"] for trace in model.get_traces()] == ["failed"]


@pytest.mark.parametrize("way", STREAMED)
async def test_a_raw_stream_is_shown_before_it_is_read(chat: Make, server: DemoServer, way: str) -> None:
    asked = guard(chat()).with_structured_output(City, include_raw=True)
    for text, parsed in ((VALID, OSLO), (WRONG, None)):
        server.default = Reply(text, chunk_size=5)
        parts = await outputs(asked, way)
        assert [list(part) for part in parts[-2:]] == [["parsed"], ["parsing_error"]]
        assert "".join(part["raw"].content for part in parts[:-2]) == text
        assert len(parts) > 5
        assert parts[-2]["parsed"] == parsed
        assert isinstance(parts[-1]["parsing_error"], BrixSchemaError) is (parsed is None)


# langchain-openai 1.0 has this of its own when a schema is a class, with guards or without.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@every_kind
@every_method
@either_raw
async def test_it_asks_as_the_bare_model_does(
    chat: Make, server: DemoServer, kind: str, method: str, include_raw: bool
) -> None:
    schema, expected = KINDS[kind]
    told = {**CITY_JSON, "title": "CityRecord"} if kind == "dataclass" else schema  # LangChain takes no dataclass
    server.default = answer(method, VALID, "City" if kind in ("pydantic", "json") else schema.__name__)
    options = {"method": method, "include_raw": include_raw}
    chat().with_structured_output(told, **options).invoke("Describe Oslo in JSON")
    model = guard(chat(), inject_schema_in_prompt=False)
    found = model.with_structured_output(schema, **options).invoke("Describe Oslo in JSON")
    assert (found["parsed"] if include_raw else found) == expected
    first, second = (_untitled(record.body) for record in server.requests)
    assert second == first


def _untitled(body: Any) -> Any:
    """Without the titles of fields, and with the required ones in order: neither says anything."""
    if isinstance(body, dict):
        kept = {key: _untitled(value) for key, value in body.items() if key != "title" or isinstance(value, dict)}
        return {**kept, "required": sorted(kept["required"])} if isinstance(kept.get("required"), list) else kept
    return [_untitled(item) for item in body] if isinstance(body, list) else body


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_strict_is_handed_on(chat: Make, server: DemoServer, method: str, strict: bool) -> None:
    model = guard(chat(), **METERED)
    for schema, expected in ((CITY_JSON, AS_DICT), (CityDict, AS_DICT)):
        name = "City" if schema is CITY_JSON else "CityDict"
        server.script(answer(method, WRONG, name), answer(method, VALID, name))
        assert model.with_structured_output(schema, method=method, strict=strict).invoke("Describe Oslo") == expected
        body = server.requests[-1].body
        sent = body["response_format"]["json_schema"] if method == "json_schema" else body["tools"][0]["function"]
        assert sent["strict"] is strict
    assert_all_seen(model, server, 4)


@pytest.mark.parametrize("way", STREAMED)
@every_method
async def test_streams_look_as_the_bare_models(chat: Make, server: DemoServer, method: str, way: str) -> None:
    model = guard(chat())
    server.default = answer(method, VALID)
    assert set(map(type, await outputs(model.with_structured_output(City, method=method), way))) == {City}
    grown = await outputs(model.with_structured_output(CITY_JSON, method=method), way)
    assert set(map(type, grown)) == {dict}
    assert grown[-1] == AS_DICT


async def test_json_mode_takes_any_object_without_a_schema(chat: Make, server: DemoServer) -> None:
    model = guard(chat())
    server.script(Reply("[]"), Reply('{"any": "thing"}'))
    assert model.with_structured_output(None, method="json_mode").invoke("JSON!") == {"any": "thing"}  # type: ignore[arg-type]
    assert attempts(model) == server.stats.requests == 2


async def test_a_schema_of_a_call_wins_over_that_of_the_guard(chat: Make, server: DemoServer) -> None:
    class Town(BaseModel):
        town: str

    model = guard(chat(), response_schema=Town)
    server.default = Reply(VALID)
    assert model.with_structured_output(City).invoke("Where?") == OSLO
    assert attempts(model) == server.stats.requests == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("way", [way for way in WAYS if way not in STREAMED])
async def test_claude_is_held_to_a_schema_in_its_own_way(
    claude: Make, server: DemoServer, method: str, way: str
) -> None:
    model = guard(claude())
    server.script(answer(method, WRONG), answer(method, VALID))
    assert await last(model.with_structured_output(City, method=method), way) == OSLO
    body = server.requests[0].body
    assert ("output_config" in body, "tools" in body) == (method == "json_schema", method == "function_calling")
    assert INSTRUCTIONS_HEADING not in json.dumps(body)
    assert attempts(model) == server.stats.requests == 2


# --- schemas -----------------------------------------------------------------------------------------

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    items: list[Item]


class Node(BaseModel):
    name: str
    below: list[Node] = []


class Cities(RootModel[list[City]]):
    pass


class Loose(BaseModel):
    values: dict[str, int]


class Described(TypedDict):
    """A city."""

    name: Annotated[str, ..., "Its name"]
    people: Annotated[int | None, None, "How many live there"]


@dataclass
class Country:
    capital: CityRecord
    others: list[CityRecord]


def describe(name: str, people: int) -> None:
    """Describe a city.

    Args:
        name: Its name.
        people: How many live there.
    """


SCHEMAS: Final[dict[str, tuple[Any, str, Any, str]]] = {
    "generic": (Page[City], f'{{"items": [{VALID}]}}', Page[City](items=[OSLO]), "Page_City"),
    "recursive": (Node, '{"name": "a", "below": [{"name": "b"}]}', Node(name="a", below=[Node(name="b")]), "Node"),
    "free-form": (Loose, '{"values": {"a": 1}}', Loose(values={"a": 1}), "Loose"),
    "annotated": (Described, '{"name": "Oslo"}', {"name": "Oslo"}, "Described"),
    "nested": (
        Country,
        f'{{"capital": {VALID}, "others": []}}',
        Country(CityRecord("Oslo", 700_000), []),
        "Country",
    ),
    "function": (describe, VALID, AS_DICT, "describe"),
    "spaced title": ({**CITY_JSON, "title": "One city"}, VALID, AS_DICT, "One_city"),
    "no title": ({key: CITY_JSON[key] for key in ("type", "properties", "required")}, VALID, AS_DICT, "response"),
    "tool format": ({"name": "city", "description": "", "parameters": CITY_JSON}, VALID, AS_DICT, "city"),
}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", SCHEMAS)
async def test_schemas_of_all_kinds(chat: Make, server: DemoServer, case: str, method: str) -> None:
    schema, text, expected, name = SCHEMAS[case]
    model = guard(chat())
    for way in ("invoke", "astream"):
        server.default = answer(method, text, name)
        assert await last(model.with_structured_output(schema, method=method), way) == expected
        body = server.requests[-1].body
        if method == "function_calling":
            assert body["tools"][0]["function"]["name"] == body["tool_choice"]["function"]["name"] == name
        elif method == "json_schema":
            assert body["response_format"]["json_schema"]["name"] == name
        server.default = Reply("No.")
        with pytest.raises(BrixSchemaError, match=f"no valid {name}"):
            await last(model.with_structured_output(schema, method=method), way)
    assert attempts(model) == server.stats.requests


async def test_what_is_no_object_is_asked_for_in_the_prompt(chat: Make, server: DemoServer) -> None:
    server.default = Reply(f"[{VALID}]")
    model = guard(chat(), response_schema=Cities)
    assert await last(model, "astream") == Cities([OSLO])
    body = server.requests[0].body
    assert "response_format" not in body
    assert INSTRUCTIONS_HEADING in body["messages"][0]["content"]


def test_a_class_of_pydantic_1_is_guarded_as_it_is(chat: Make, server: DemoServer) -> None:
    class Old(PydanticV1):
        name: str

    model = guard(chat(), **METERED)
    server.default = ToolCalls([("Old", {"name": "Oslo"})])
    for include_raw in (False, True):
        found = model.with_structured_output(Old, method="function_calling", include_raw=include_raw).invoke("Where?")
        assert (found["parsed"] if include_raw else found) == Old(name="Oslo")
    assert_all_seen(model, server, 2)


class _Opaque(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    inside: MemoryStore


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (int, "<class 'int'>"),
        ("City", "'City'"),
        (list[City], "list"),
        (Annotated[City, "a city"], "Annotated"),
        (City | None, "City"),
        (OSLO, "Oslo"),
        ({"title": "Bad", "type": "no such type"}, "no such type"),
        ({"title": "Far", "$ref": "https://example.com/city.json"}, "example.com"),
        (_Opaque, "_Opaque"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("include_raw", [None, False, True])
def test_a_schema_that_cannot_be_used_is_named(chat: Make, schema: Any, named: str, include_raw: bool | None) -> None:
    by_guard, model = include_raw is None, guard(chat())
    with pytest.raises(BrixConfigurationError, match=named):
        _ = (
            guard(chat(), response_schema=schema)
            if by_guard
            else model.with_structured_output(schema, include_raw=bool(include_raw))
        )


# --- LangChain's cache -------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
async def test_a_cached_answer_is_an_instance_too(chat: Make, server: DemoServer, method: str, way: str) -> None:
    set_llm_cache(InMemoryCache())
    model = guard(chat(), **METERED)
    server.script(answer(method, WRONG), answer(method, VALID))
    asked = model.with_structured_output(City, method=method)
    assert [await last(asked, way) for _ in range(3)] == [OSLO] * 3
    found = await last(model.with_structured_output(City, method=method, include_raw=True), way)
    assert found["parsed"] == OSLO
    assert_all_seen(model, server, 2)


async def test_schemas_do_not_share_answers(chat: Make, server: DemoServer) -> None:
    set_llm_cache(InMemoryCache())

    class Populous(City):
        @field_validator("people")
        @classmethod
        def _many(cls, people: int) -> int:
            if people < 1_000_000:
                raise ValueError("too few")
            return people

    Populous.__name__ = "City"  # the same to a provider
    schemas: list[Any] = [City, Populous, CityRecord, CityDict, CITY_JSON, {**CITY_JSON, "required": ["name"]}]
    large = VALID.replace("700000", "7000000")
    server.default = Reply(large)
    model = guard(chat(), **METERED)
    for method in ("json_mode", "json_schema"):
        for schema in schemas:
            for _ in range(2):
                found = model.with_structured_output(schema, method=method).invoke("Describe Oslo")
                assert (found if isinstance(found, dict) else vars(found)) == json.loads(large)
    model.invoke("Describe Oslo")
    assert_all_seen(model, server, 2 * len(schemas) + 1)


async def test_what_does_not_fit_is_not_cached(chat: Make, server: DemoServer) -> None:
    set_llm_cache(InMemoryCache())
    model = guard(chat(), response_schema=City, max_schema_retries=0)
    server.script(Reply(WRONG), Reply(VALID))
    with pytest.raises(BrixSchemaError):
        model.invoke("Describe Oslo")
    assert [model.invoke("Describe Oslo"), await model.ainvoke("Describe Oslo")] == [OSLO, OSLO]
    assert attempts(model) == server.stats.requests == 2  # type: ignore[arg-type]


# --- fallbacks ---------------------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[DemoServer]:
    with DemoServer() as running:
        yield running


@every_way
async def test_another_provider_answers_in_its_own_way(
    chat: Make, claude: Make, server: DemoServer, other: DemoServer, way: str
) -> None:
    spare = claude(base_url=other.anthropic_base_url)
    server.default = ServerError()
    by_guard = guard(chat(), fallbacks=[spare], response_schema=City, stream_mode="validated")
    model = guard(chat(), fallbacks=[spare], stream_mode="validated")
    for asked in (by_guard, model.with_structured_output(City)):
        other.script(answer("function_calling", WRONG), answer("function_calling", VALID))
        assert await last(asked, way) == OSLO
    found = model.with_structured_output(City, include_raw=True)
    other.script(answer("function_calling", WRONG), answer("function_calling", VALID))
    assert (await raw(found, way))["parsed"] == OSLO
    assert {record.body["tool_choice"]["name"] for record in other.requests} == {"City"}
    assert {record.body["tool_choice"]["function"]["name"] for record in server.requests} == {"City"}
    assert (server.stats.requests, other.stats.requests) == (6, 6)
    assert attempts(model, by_guard) == 12  # type: ignore[arg-type]


async def test_a_fallback_that_cannot_bind_puts_the_schema_into_the_prompt(chat: Make, server: DemoServer) -> None:
    server.default = ServerError()
    model = guard(chat(), fallbacks=[FakeListChatModel(responses=["Oslo!", FENCED])], response_schema=City)
    assert await model.ainvoke("Where?") == OSLO
    assert INSTRUCTIONS_HEADING in json.dumps(server.requests[0].body)
    assert server.stats.requests == 2
    assert attempts(model) == 4  # type: ignore[arg-type]


# --- beside tools ------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["chat", "claude"])
@pytest.mark.parametrize("way", WAYS[:2])
async def test_tools_beside_a_schema_come_before_the_answer(
    chat: Make, claude: Make, server: DemoServer, provider: str, way: str
) -> None:
    model = guard(chat() if provider == "chat" else claude(), response_schema=City)
    bound = model.bind_tools([capital])
    server.script(CALL_CAPITAL, Reply("It is Oslo."), Reply(VALID))
    first = await last(bound, way)
    assert [call["name"] for call in first.tool_calls] == ["capital"]
    result = ToolMessage("Oslo", tool_call_id=first.tool_calls[0]["id"])
    second = await last(bound, way, [("user", "Describe the capital"), first, result])
    assert isinstance(second, AIMessage)
    assert City.model_validate_json(second.text) == OSLO
    assert attempts(model) == server.stats.requests == 3  # type: ignore[arg-type]
    body = server.requests[-1].body
    assert [offered.get("name") or offered["function"]["name"] for offered in body["tools"]] == ["capital"]


@pytest.mark.parametrize("way", WAYS)
async def test_calls_of_other_tools_are_handed_back(chat: Make, server: DemoServer, way: str) -> None:
    model = guard(chat(), **HELD_BACK)
    asked = model.with_structured_output(City, tools=[capital], strict=True, include_raw=True)
    server.default = CALL_CAPITAL
    found = await raw(asked, way)
    assert [call["name"] for call in found["raw"].tool_calls] == ["capital"]
    assert (found["parsed"], found["parsing_error"]) == (None, None)
    plain = model.with_structured_output(City, tools=[capital], strict=True)
    assert await last(plain, way) is None
    assert decisions(model) == []
    assert_all_seen(model, server, 2)


async def test_tools_and_a_schema_with_fallbacks_of_another_provider(
    chat: Make, claude: Make, server: DemoServer, other: DemoServer
) -> None:
    spare = claude(base_url=other.anthropic_base_url)
    model = guard(chat(), fallbacks=[spare], response_schema=City)
    server.default = ServerError()
    other.script(CALL_CAPITAL, Reply("It is Oslo."), Reply(VALID))
    bound = model.bind_tools([capital])
    assert bound.invoke("Describe the capital").tool_calls
    assert City.model_validate_json((await bound.ainvoke("Describe the capital")).text) == OSLO
    assert {offered["name"] for record in other.requests for offered in record.body["tools"]} == {"capital"}
    assert all("tool_choice" not in record.body for record in other.requests)
    assert attempts(model) == server.stats.requests + other.stats.requests == 6  # type: ignore[arg-type]


# --- agents ------------------------------------------------------------------------------------------


async def run(agent: Any, way: str) -> Any:
    """The last state of an agent's run."""
    asked = {"messages": [("user", "Describe the capital of Norway")]}
    if way in STREAMED:
        return await last(agent, way, asked, stream_mode="values")
    return await last(agent, way, asked)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
@pytest.mark.parametrize("with_schema", [False, True])
async def test_an_agent_answers_with_an_instance(
    chat: Make, server: DemoServer, strategy: Any, with_schema: bool, way: str
) -> None:
    model: Any = guard(chat(), response_schema=City, **METERED) if with_schema else guard(chat(), **METERED)
    agent = create_agent(model, [capital], response_format=strategy(City))
    method = "function_calling" if strategy is ToolStrategy else "json_schema"
    wrong = [answer(method, WRONG)] if with_schema else []
    server.script(CALL_CAPITAL, *wrong, answer(method, VALID))
    state = await run(agent, way)
    assert state["structured_response"] == OSLO
    assert_all_seen(model, server, 2 + len(wrong))


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_an_agent_whose_instance_never_fits_comes_to_an_end(chat: Make, server: DemoServer, way: str) -> None:
    server.default = answer("function_calling", WRONG)
    schema: Any = guard(chat(), response_schema=City, max_schema_retries=1)
    with pytest.raises(BrixSchemaError):
        await run(create_agent(schema, [capital], response_format=ToolStrategy(City)), way)
    assert attempts(schema) == server.stats.requests == 2
    loops = guard(chat(), tool_loop_detection=True, on_loop="raise")
    with pytest.raises(BrixLoopError):
        await run(create_agent(loops, [capital], response_format=ToolStrategy(City)), way)
    assert attempts(loops) == server.stats.requests - 2 == 3


async def test_an_agent_without_a_strategy_answers_in_the_schemas_json(chat: Make, server: DemoServer) -> None:
    model: Any = guard(chat(), response_schema=City)
    server.script(CALL_CAPITAL, Reply("It is Oslo."), Reply(VALID))
    state = await run(create_agent(model, [capital]), "ainvoke")
    assert City.model_validate_json(state["messages"][-1].text) == OSLO
    assert attempts(model) == server.stats.requests == 3


# --- callbacks, concurrency, cancellation ------------------------------------------------------------


class Runs(BaseCallbackHandler):
    """What began below what."""

    def __init__(self) -> None:
        self.names: dict[UUID, str] = {}
        self.tree: list[tuple[str | None, str]] = []
        self.ended: list[str] = []
        self.told = ""

    def _began(self, name: str, run_id: UUID, parent: UUID | None) -> None:
        self.names[run_id] = name
        self.tree.append((None if parent is None else self.names[parent], name))

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._began(kwargs["name"], run_id, kwargs.get("parent_run_id"))

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.told += repr(kwargs.get("invocation_params"))
        self._began("model", run_id, kwargs.get("parent_run_id"))

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.ended.append(self.names[run_id])

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.ended.append(self.names[run_id])


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_callbacks_see_one_model_run_inside_the_chain(chat: Make, server: DemoServer, way: str) -> None:
    for by_guard, chain in ((True, "StructuredModel"), (False, "StructuredModelWithRaw")):
        server.script(Reply(WRONG), Reply(VALID))
        seen = Runs()
        model = guard(chat(), response_schema=City, stream_mode="validated")
        asked = model if by_guard else model.with_structured_output(City, include_raw=True)
        await last(asked, way, config={"callbacks": [seen]})
        assert seen.tree == [(None, chain), (chain, "model"), (chain, "InstanceReader")]
        assert sorted(seen.ended) == sorted([chain, "model", "InstanceReader"])
        assert "_brix" not in seen.told


async def test_events_come_in_order(chat: Make, server: DemoServer) -> None:
    server.default = Reply(VALID, chunk_size=8)
    model = guard(chat(), response_schema=City)
    events = [event async for event in (PROMPT | model).astream_events({"city": "Oslo"}, version="v2")]
    began = [event["name"] for event in events if event["event"].endswith("_start")]
    assert began[0] == "RunnableSequence"
    assert began.count("ChatOpenAI") == 1
    streamed = [event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(chunk.content for chunk in streamed) == VALID
    assert events[-1]["event"] == "on_chain_end"
    assert events[-1]["data"]["output"] == OSLO
    (ended,) = (event for event in events if event["event"] == "on_chat_model_end")
    assert events[0]["run_id"] in ended["parent_ids"]


@pytest.mark.parametrize("way", ["batch", "abatch", "gather"])
async def test_a_hundred_at_once(chat: Make, server: DemoServer, way: str) -> None:
    server.default = Reply(VALID)
    model = guard(chat(), response_schema=City, trace_buffer_size=1_000, **METERED)
    asked = [f"City {number}" for number in range(100)]
    if way == "gather":
        found = await asyncio.gather(*map(model.ainvoke, asked))
    else:
        found = model.batch(asked, {"max_concurrency": 16}) if way == "batch" else await model.abatch(asked)
    assert found == [OSLO] * 100
    assert_all_seen(model, server, 100)  # type: ignore[arg-type]


@either_raw
@pytest.mark.parametrize("way", ["ainvoke", "astream"])
async def test_a_heal_that_is_cancelled_holds_nothing(
    chat: Make, server: DemoServer, include_raw: bool, way: str
) -> None:
    store = MemoryStore()
    model = guard(chat(stream_chunk_timeout=None), store=store, session_id="s", **HELD_BACK)
    server.script(Reply(WRONG), SlowFirstToken(30.0, then=Reply(VALID)))
    asked = model.with_structured_output(City, include_raw=include_raw)
    task = asyncio.create_task(last(asked, way))
    while server.stats.requests < 2 and not task.done():
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.balance("budget:s").reserved == 0
    (trace,) = model.get_traces()
    assert trace["outcome"] == "cancelled"
    assert [made["outcome"] for made in trace["attempts"]] == ["ok", "cancelled"]


@pytest.mark.parametrize("way", STREAMED)
@either_raw
async def test_a_stream_that_is_dropped_holds_nothing(
    chat: Make, server: DemoServer, include_raw: bool, way: str
) -> None:
    store = MemoryStore()
    model = guard(chat(), store=store, session_id="s", **METERED)
    server.default = StalledStream(after=4, text=VALID)
    stream: Any = getattr(model.with_structured_output(CITY_JSON, include_raw=include_raw), way)("Where?")
    if way == "astream":
        await anext(stream)
        await stream.aclose()
    else:
        next(stream)
        stream.close()
    for _ in range(20):  # LangChain leaves its own generators to the event loop to close
        await asyncio.sleep(0)
    assert store.balance("budget:s").reserved == 0
    assert [trace["outcome"] for trace in model.get_traces()] == ["abandoned"]


async def test_calls_are_not_kept(chat: Make, server: DemoServer) -> None:
    server.default = Reply(VALID)
    model = guard(chat())
    asked = [model.with_structured_output(City), model.with_structured_output(City, include_raw=True)]
    for _ in range(20):
        for one in asked:
            await one.ainvoke("Where?")
    kept = [one for one in gc.get_objects() if isinstance(one, Asked)]
    assert kept
    assert sum(len(one.calls or ()) for one in kept) == 0


class Stop(typing.TypedDict, total=False):
    name: Required[str]
    lines: int


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
async def test_a_typed_dict_of_the_standard_library(chat: Make, server: DemoServer, way: str) -> None:
    server.script(Reply('{"lines": 3}'), Reply('{"name": "Oslo S"}'))
    model: Any = guard(chat(), response_schema=Stop, stream_mode="validated", store=MemoryStore())
    assert await last(model, way) == {"name": "Oslo S"}
    assert attempts(model) == server.stats.requests == 2
    server.script(Reply('{"name": "Oslo S"}'))
    assert await last(guard(chat()).with_structured_output(Stop), way) == {"name": "Oslo S"}


@pytest.mark.parametrize("make", ["chat", "claude"])
@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"title": "C", "type": "object"},
        {"$ref": "#/$defs/C", "$defs": {"C": {"type": "object", "additionalProperties": {"type": "integer"}}}},
    ],
)
@pytest.mark.parametrize("by_option", [True, False])
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_schema_without_properties_asks_for_any_object(
    make: str, schema: Any, by_option: bool, way: str, chat: Make, claude: Make, server: DemoServer
) -> None:
    bare = chat() if make == "chat" else claude()
    guarded = guard(bare, store=MemoryStore())
    model: Any = guard(bare, response_schema=schema) if by_option else guarded.with_structured_output(schema)
    name = schema.get("title", "response")
    server.default = ToolCalls([(name, {"a": 1})]) if make == "claude" else Reply('{"a": 1}')
    assert await last(model, way) == {"a": 1}
    assert attempts(model) == server.stats.requests == 1


async def test_a_schema_of_alternatives_is_asked_for_in_the_prompt(chat: Make, server: DemoServer) -> None:
    model: Any = guard(chat(), response_schema={"title": "Id", "anyOf": [{"type": "string"}, {"type": "integer"}]})
    server.default = Reply("7")
    assert await last(model, "ainvoke") == 7
    assert INSTRUCTIONS_HEADING in str(server.requests[0].body["messages"])


@pytest.mark.parametrize("schema", [{"toolSpec": {"a": 1}}, {"toolSpec": {"name": "a", "inputSchema": 1}}])
def test_a_format_that_lacks_its_schema_is_named(chat: Make, schema: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="toolSpec"):
        guard(chat()).with_structured_output(schema)
