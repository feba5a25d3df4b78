"""Instances from LlamaIndex's LLMs: every way to ask for one, in the LLM's own manner, valid or an error."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse
from llama_index.core.base.response.schema import PydanticResponse
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAIResponses
from pydantic import BaseModel, ConfigDict

import brix_core
from brix_core import BrixConfigurationError, BrixSchemaError, MemoryStore
from brix_core.demo import DemoServer, Reply, StalledStream, ToolCalls
from brix_core.structured.response_schema import INSTRUCTIONS_HEADING
from brix_llamaindex import guard
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import HOOKS, PLAIN, STREAMED, attempts
from tests.support.schemas import OSLO, VALID, City
from tests.support.words_llamaindex import WordEmbedding

PRICES = {MODEL: (1e-6, 2e-6)}
FENCED = 'Here it is:\n```json\n{"name": "Oslo", "people": 700000,}\n```\nAnything else?'
WRONG = '{"name": "Oslo", "people": "many"}'
PROMPT = PromptTemplate("Describe {city}")

MODES: dict[str, dict[str, Any]] = {
    "format": {"should_use_structured_outputs": True},
    "function": {},
    "text": {"is_function_calling_model": False},
    "completion": {"is_function_calling_model": False, "is_chat_model": False, "max_tokens": 1_000},
}
"""How OpenAILike asks for an instance: a response format, a function call, words in a chat or in a prompt."""

PREDICT = ("structured_predict", "astructured_predict")
PREDICT_STREAMED = ("stream_structured_predict", "astream_structured_predict")
CHAT = ("chat", "achat", "complete", "acomplete")
CHAT_STREAMED = ("stream_chat", "astream_chat")
WAYS = (*PREDICT, *PREDICT_STREAMED, *CHAT, *CHAT_STREAMED)

every_way = pytest.mark.parametrize("way", WAYS)
every_mode = pytest.mark.parametrize("mode", MODES)
# LlamaIndex's own StructuredLLM calls a deprecated method of Pydantic's on every streamed object.
pytestmark = pytest.mark.filterwarnings("ignore:The `json` method is deprecated")


async def objects(llm: LLM, way: str, output_cls: type[BaseModel] = City) -> list[Any]:
    """What it gives, in order; by `as_structured_llm` where the way is that of a chat."""
    predicts = "predict" in way
    source = llm if predicts else llm.as_structured_llm(output_cls)
    asked: Any = [ChatMessage("Describe Oslo")] if "chat" in way else "Describe Oslo"
    method = getattr(source, way)
    given = method(output_cls, PROMPT, city="Oslo") if predicts else method(asked)
    if way.startswith("a"):
        given = await given
    if isinstance(given, AsyncIterator):
        found = [one async for one in given]
    else:
        found = list(given) if isinstance(given, Iterator) else [given]
    return found if predicts else [one.raw for one in found]


async def last(llm: LLM, way: str, output_cls: type[BaseModel] = City) -> Any:
    return (await objects(llm, way, output_cls))[-1]


def answer(mode: str, text: str) -> Reply | ToolCalls:
    """An answer in the manner that was asked for."""
    return ToolCalls([("City", json.loads(text))]) if mode == "function" else Reply(text)


def decisions(llm: Any) -> list[str]:
    return [made["decision"] for made in llm.get_traces()[0]["decisions"] if made["guard"] == "schema"]


# --- the LLM's own way -------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("mode", ["format", "function", "text"])
async def test_it_asks_as_the_bare_llm_does(openai_like: Make, server: DemoServer, mode: str, way: str) -> None:
    server.default = answer(mode, VALID)
    bare, llm = openai_like(**MODES[mode]), guard(openai_like(**MODES[mode]))
    assert await last(bare, way) == await last(llm, way) == OSLO
    first, second = (record.body for record in server.requests)
    second.pop("stream_options", None)
    if mode == "text":  # without tools, a model is not told to choose one
        assert first.pop("tool_choice") == "required"
    assert second == first
    assert ("response_format" in second, "tools" in second) == (mode == "format", mode == "function")
    assert attempts(llm) == server.stats.requests - 1 == 1


@every_way
@pytest.mark.parametrize("mode", ["format", "text", "completion"])
async def test_json_in_prose_with_a_comma_too_many_is_repaired(
    openai_like: Make, server: DemoServer, mode: str, way: str
) -> None:
    server.default = Reply(FENCED)
    llm = guard(openai_like(**MODES[mode]))
    assert await last(llm, way) == OSLO
    assert server.stats.requests == attempts(llm) == 1
    assert decisions(llm) == ["repaired"]


@every_way
@every_mode
async def test_wrong_types_are_healed_with_one_more_request(
    openai_like: Make, server: DemoServer, mode: str, way: str
) -> None:
    server.script(answer(mode, WRONG), answer(mode, VALID))
    llm = guard(openai_like(**MODES[mode]), stream_mode="validated", max_cost_usd=1.0, prices=PRICES)
    assert await last(llm, way) == OSLO
    assert server.stats.requests == attempts(llm) == 2
    assert decisions(llm) == ["healing"]
    cost = sum(record.prompt_tokens * 1e-6 + record.completion_tokens * 2e-6 for record in server.requests)
    assert llm.brix.context.session_cost_usd == pytest.approx(cost)
    wrong, healed = (record.body for record in server.requests)
    for name in ("tools", "response_format"):
        assert wrong.get(name) == healed.get(name)
    asked = healed.get("prompt") or "\n".join(message["content"] for message in healed["messages"][-2:])
    assert '"people"' in asked
    assert "$.people: Input should be a valid integer" in asked


@every_way
async def test_an_answer_that_never_fits_is_an_error_with_all_of_them(
    openai_like: Make, server: DemoServer, way: str
) -> None:
    server.script(Reply("Never."), ToolCalls([("City", {"name": "Oslo"})]), Reply("Never again."))
    llm = guard(openai_like(), stream_mode="validated")
    with pytest.raises(BrixSchemaError) as caught:
        await last(llm, way)
    assert [attempt.text for attempt in caught.value.attempts] == ["Never.", '{"name":"Oslo"}', "Never again."]
    assert server.stats.requests == attempts(llm) == 3


@every_way
@pytest.mark.parametrize("reply", [Reply(VALID), Reply(FENCED), ToolCalls([("City", json.loads(VALID))] * 2)])
async def test_a_program_of_tool_calls_gets_what_it_can_read(
    openai_like: Make, server: DemoServer, way: str, reply: Any
) -> None:
    server.default = reply
    llm = guard(openai_like())
    assert await last(llm, way) == OSLO
    assert "tools" in server.requests[0].body
    assert server.stats.requests == attempts(llm) == 1


async def test_other_tools_called_instead_are_healed(openai_like: Make, server: DemoServer) -> None:
    server.script(ToolCalls([("Town", {"name": "Oslo"})]), ToolCalls([("City", json.loads(VALID))]))
    llm = guard(openai_like())
    assert await last(llm, "astructured_predict") == OSLO
    assert server.stats.requests == attempts(llm) == 2


async def test_a_tool_is_known_by_the_title_of_its_model(openai_like: Make, server: DemoServer) -> None:
    class Titled(City):
        model_config = ConfigDict(title="Large_City")

    server.script(ToolCalls([("Large_City", {"name": "Oslo"})]), ToolCalls([("Large_City", json.loads(VALID))]))
    found = await last(guard(openai_like()), "structured_predict", Titled)
    assert found == Titled(**json.loads(VALID))
    assert all(INSTRUCTIONS_HEADING not in json.dumps(record.body) for record in server.requests)


async def test_what_only_json_can_say_is_an_instance_too(openai_like: Make, server: DemoServer) -> None:
    class Route(BaseModel):
        model_config = ConfigDict(strict=True)
        stops: tuple[str, ...]

    server.default = ToolCalls([("Route", {"stops": ["Oslo", "Bergen"]})])
    for way in WAYS[:4]:
        assert await last(guard(openai_like()), way, Route) == Route(stops=("Oslo", "Bergen"))


# --- streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [*PREDICT_STREAMED, *CHAT_STREAMED])
@every_mode
async def test_a_stream_gives_partial_objects_and_last_the_instance(
    openai_like: Make, server: DemoServer, mode: str, way: str
) -> None:
    server.default = Reply(VALID, chunk_size=3) if mode != "function" else answer(mode, VALID)
    *growing, instance = await objects(guard(openai_like(**MODES[mode])), way)
    assert instance == OSLO
    assert type(instance) is City
    assert len(growing) > 3
    assert any(getattr(one, "name", None) and not isinstance(one, City) for one in growing)


@pytest.mark.parametrize("way", [*PREDICT_STREAMED, *CHAT_STREAMED])
async def test_a_stream_that_does_not_fit_fails_at_its_end(openai_like: Make, server: DemoServer, way: str) -> None:
    server.default = Reply(WRONG)
    llm = guard(openai_like(**MODES["format"]))
    with pytest.raises(BrixSchemaError, match=r"stream_mode='validated'"):
        await last(llm, way)
    assert server.stats.requests == attempts(llm) == 1


@pytest.mark.parametrize("way", PREDICT_STREAMED)
@pytest.mark.parametrize("mode", ["format", "text"])
async def test_closing_a_stream_of_objects_frees_what_it_held(
    openai_like: Make, server: DemoServer, mode: str, way: str
) -> None:
    server.default = StalledStream(after=4, text=VALID)
    store = MemoryStore()
    llm = guard(openai_like(**MODES[mode]), max_cost_usd=1.0, prices=PRICES, store=store, session_id="s")
    stream = getattr(llm, way)(City, PROMPT, llm_kwargs={"max_tokens": 100}, city="Oslo")
    if way.startswith("a"):
        stream = await stream
        await anext(stream)
        await stream.aclose()
    else:
        next(stream)
        stream.close()
    assert store.balance("budget:s").reserved == 0
    assert llm.get_traces()[0]["outcome"] == "abandoned"
    server.wait_until_idle(2.0)


@pytest.mark.parametrize("way", PREDICT_STREAMED)
async def test_a_stream_of_objects_belongs_to_the_session_in_which_it_was_asked_for(
    openai_like: Make, server: DemoServer, way: str
) -> None:
    server.default = answer("function", VALID)
    llm = guard(openai_like())
    with brix_core.session("ann"):
        stream = getattr(llm, way)(City, PROMPT, city="Oslo")
        stream = await stream if way.startswith("a") else stream
    with brix_core.session("bob"):
        found = [one async for one in stream] if way.startswith("a") else list(stream)
    assert found[-1] == OSLO
    assert [trace["session_id"] for trace in llm.get_traces()] == ["ann"]


# --- where instances are asked for -------------------------------------------------------------------


async def test_a_query_engine_answers_with_healed_instances(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), max_cost_usd=1.0, prices=PRICES)
    index = VectorStoreIndex.from_documents([Document(text="Oslo has people")], embed_model=WordEmbedding())
    engine = index.as_query_engine(llm=llm.as_structured_llm(City))
    server.script(*[answer("function", WRONG), answer("function", VALID)] * 2)
    for response in (engine.query("How many?"), await engine.aquery("How many?")):
        assert isinstance(response, PydanticResponse)
        assert response.response == OSLO
    assert attempts(llm) == server.stats.requests == 4
    assert len(llm.get_traces()) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_the_structured_output_of_an_agent_is_healed(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like())
    server.script(Reply("It is Oslo."), answer("function", WRONG), answer("function", VALID))
    tool = FunctionTool.from_defaults(lambda: "Oslo", name="capital", description="Tells the capital")
    result = await FunctionAgent(tools=[tool], llm=llm, output_cls=City).run("Which?")
    assert result.get_pydantic_model(City) == OSLO
    assert attempts(llm) == server.stats.requests == 3


@pytest.mark.parametrize("way", [*PREDICT, *CHAT])
async def test_tokens_are_counted_once_for_each_request(openai_like: Make, server: DemoServer, way: str) -> None:
    found = []
    for make, replies in ((lambda llm: llm, [VALID]), (guard, [VALID]), (guard, [WRONG, VALID])):
        counter = TokenCountingHandler()
        llm = make(openai_like())
        llm.callback_manager = CallbackManager([counter])
        server.script(*(answer("function", reply) for reply in replies))
        assert await last(llm, way) == OSLO
        found.append(len(counter.llm_token_counts))
    assert found == [1, 1, 2]


@every_way
async def test_a_text_model_of_ones_own_is_healed(way: str) -> None:
    replies = iter([WRONG, FENCED])

    class Own(MockLLM):
        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            return CompletionResponse(text=next(replies))

        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
            text = next(replies)
            return (CompletionResponse(text=text[:end], delta=text[end - 1 : end]) for end in range(1, len(text) + 1))

    llm = guard(Own(), stream_mode="validated")
    assert await last(llm, way) == OSLO
    assert attempts(llm) == 2


@pytest.mark.parametrize("way", PREDICT)
async def test_a_class_that_goes_round_its_own_methods_is_found_out(way: str) -> None:
    class Own(MockLLM):
        def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
            return OSLO

        async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
            return OSLO

    with pytest.raises(BrixConfigurationError, match="past the guards"):
        await last(guard(Own()), way)


@pytest.mark.parametrize("way", [*PREDICT, *PREDICT_STREAMED])
async def test_a_class_known_to_go_round_its_own_methods_does_not(
    openai_like: Make, server: DemoServer, way: str
) -> None:
    shared = openai_like()
    clients = {"http_client": shared._http_client, "async_http_client": shared._async_http_client}
    llm = guard(OpenAIResponses(model="gpt-4o-mini", api_base=server.base_url, api_key="none", **clients))
    with pytest.raises(Exception, match="404"):  # the server does not have this API
        await last(llm, way)
    assert attempts(llm) == 1


# --- response_schema ---------------------------------------------------------------------------------


async def response(llm: LLM, hook: str, text: str = "Describe Oslo", **kwargs: Any) -> list[Any]:
    asked: Any = [ChatMessage(text)] if "chat" in hook else text
    given = getattr(llm, hook)(asked, **kwargs)
    given = await given if hook.startswith("a") else given
    if isinstance(given, AsyncIterator):
        return [one async for one in given]
    return list(given) if isinstance(given, Iterator) else [given]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("mode", ["format", "text", "completion"])
async def test_every_answer_is_json_and_holds_its_instance(
    openai_like: Make, server: DemoServer, hook: str, mode: str
) -> None:
    llm = guard(openai_like(**MODES[mode]), response_schema=City, stream_mode="validated")
    server.script(Reply(WRONG), Reply(FENCED))
    found = (await response(llm, hook))[-1]
    assert found.raw == OSLO
    text = found.message.content if "chat" in hook else found.text
    assert City.model_validate_json(text) == OSLO
    assert attempts(llm) == server.stats.requests == 2
    for record in server.requests:
        assert ("response_format" in record.body) is (mode == "format")
        assert (INSTRUCTIONS_HEADING in json.dumps(record.body)) is (mode != "format")


@pytest.mark.parametrize("hook", STREAMED)
async def test_the_text_of_a_stream_is_shown_once(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = Reply(FENCED)
    llm = guard(openai_like(), response_schema=City)
    found = await response(llm, hook)
    assert "".join(one.delta or "" for one in found) == FENCED
    assert found[-1].raw == OSLO


@pytest.mark.parametrize("hook", [hook for hook in PLAIN if "chat" in hook])
async def test_other_tools_come_before_the_answer(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(), response_schema=City)
    tool = FunctionTool.from_defaults(lambda: "Oslo", name="capital", description="Tells the capital")
    tools = [tool.metadata.to_openai_tool()]
    server.script(ToolCalls([("capital", {})]), Reply(VALID))
    (first,) = await response(llm, hook, tools=tools)
    assert [call.tool_name for call in llm.get_tool_calls_from_response(first)] == ["capital"]
    assert not isinstance(first.raw, City)
    (second,) = await response(llm, hook, tools=tools)
    assert second.raw == OSLO


async def test_a_schema_of_a_call_wins_over_that_of_the_guard(openai_like: Make, server: DemoServer) -> None:
    class Town(BaseModel):
        town: str

    llm = guard(openai_like(), response_schema=Town)
    server.default = answer("function", VALID)
    assert await last(llm, "structured_predict") == OSLO
    assert attempts(llm) == server.stats.requests == 1


async def test_a_query_engine_gets_the_json(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), response_schema=City)
    index = VectorStoreIndex.from_documents([Document(text="Oslo has people")], embed_model=WordEmbedding())
    server.script(Reply(WRONG), Reply(FENCED))
    assert City.model_validate_json(str(index.as_query_engine(llm=llm).query("How many?"))) == OSLO
    assert attempts(llm) == server.stats.requests == 2
