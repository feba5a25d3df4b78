"""The enforcement engine over LangChain's chat models, and as a step of a chain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel

from brix_core import BrixConfigurationError, BrixSchemaError, MemoryStore, session
from brix_core.demo import (
    CutStream,
    DemoServer,
    JsonReply,
    MalformedJson,
    RateLimited,
    Reply,
    ServerError,
    StalledStream,
)
from brix_core.enforcement import (
    EnforcedOutput,
    EnforcementEngine,
    FailoverChain,
    OpenAIAdapter,
    PydanticValidator,
    RetryPolicy,
)
from brix_core.failures import classify
from brix_langchain import LangChainAdapter, as_runnable, guard

Make = Callable[..., Any]

OSLO: Any = {"name": "Oslo", "people": 700_000}


class City(BaseModel):
    name: str
    people: int


def engine(adapter: Any, **options: Any) -> EnforcementEngine:
    policy = RetryPolicy(max_attempts=3, base_delay=0.001, max_delay=0.01)
    return EnforcementEngine(
        adapter, PydanticValidator(), **{"retry_policy": policy, "store": MemoryStore(), **options}
    )


def counted(made: EnforcementEngine) -> int:
    return sum(len(trace["attempts"]) for trace in made.get_traces())


class TestAdapter:
    async def test_one_answer_is_one_request(self, server: DemoServer, chat: Make) -> None:
        server.default = Reply("Oslo.", usage={"prompt_tokens": 100, "completion_tokens": 7})
        adapter = LangChainAdapter(chat())
        for answer in (await adapter.generate("Capital?"), adapter.generate_sync("Capital?")):
            assert (answer.output, answer.provider, answer.model) == ("Oslo.", "openai", "gpt-4o-mini")
            assert (answer.tokens_used, answer.tokens_estimated) == (107, False)
        assert server.stats.requests == 2

    async def test_a_stream_gives_text(self, server: DemoServer, chat: Make) -> None:
        server.default = Reply("Oslo, the capital", chunk_size=5)
        adapter = LangChainAdapter(chat())
        assert [piece async for piece in adapter.stream("Hi")] == ["Oslo,", " the ", "capit", "al"]
        assert list(adapter.stream_sync("Hi")) == ["Oslo,", " the ", "capit", "al"]

    async def test_openai_holds_its_models_to_the_schema(self, server: DemoServer, chat: Make) -> None:
        adapter = LangChainAdapter(chat())
        answer = await adapter.generate("It is 'Oslo', 3", City)
        assert City.model_validate_json(answer.output).name == "Oslo"
        assert server.requests[-1].body["response_format"]["json_schema"]["strict"] is True
        assert "".join([piece async for piece in adapter.stream("It is 'Oslo', 3", City)]) == answer.output
        assert server.requests[-1].body["response_format"]["type"] == "json_schema"

    async def test_for_others_it_stands_in_the_prompt(self, server: DemoServer, chat: Make) -> None:
        for model in (chat(model="gpt-4-turbo"), chat(model="llama")):
            await LangChainAdapter(model).generate("Hi", City)
            assert "Format of the answer" in json.dumps(server.requests[-1].body)
            assert "response_format" not in server.requests[-1].body

    async def test_messages_are_taken_in_all_of_langchain_s_forms(self, server: DemoServer, chat: Make) -> None:
        adapter = LangChainAdapter(chat())
        prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "Two?")]).invoke({})
        forms: list[Any] = [
            [SystemMessage("Be brief."), HumanMessage("Two?")],
            [("system", "Be brief."), ("user", "Two?")],
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two?"}],
            prompt,
        ]
        for form in forms:
            assert (await adapter.generate(form)).output == 'I heard: "Two?"'
        assert {json.dumps(record.body["messages"]) for record in server.requests} == {
            json.dumps([{"content": "Be brief.", "role": "system"}, {"content": "Two?", "role": "user"}])
        }

    @pytest.mark.parametrize(("fault", "status"), [(RateLimited(retry_after="7"), 429), (ServerError(), 500)])
    async def test_its_own_retries_are_off(self, server: DemoServer, chat: Make, fault: Any, status: int) -> None:
        server.default = fault
        model = chat(max_retries=5)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the SDK's own
            await LangChainAdapter(model).generate("Hi")
        assert classify(caught.value).status == status
        assert server.stats.requests == 1
        assert model.max_retries == 5

    async def test_cancelling_closes_the_connection(self, server: DemoServer, chat: Make) -> None:
        server.default = StalledStream()
        task = asyncio.create_task(LangChainAdapter(chat()).generate("Hi"))
        while not server.stats.in_flight:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.wait_until_idle)

    async def test_health_is_asked_of_the_client_inside(self, server: DemoServer, chat: Make) -> None:
        well = LangChainAdapter(chat())
        assert await well.health_check() is True
        assert await asyncio.to_thread(well.health_check_sync) is True
        assert await LangChainAdapter(chat(base_url="http://127.0.0.1:9/v1")).health_check() is False
        # Nothing can be asked of it without asking the model, and nothing is known against it.
        assert await LangChainAdapter(FakeListChatModel(responses=["x"])).health_check() is True
        assert server.stats.requests == 0

    def test_what_is_no_model_is_told(self) -> None:
        fake = FakeListChatModel(responses=["x"])
        for wrong in (None, "gpt-4o", StrOutputParser(), FakeListChatModel):
            with pytest.raises(BrixConfigurationError, match="takes a LangChain chat model"):
                LangChainAdapter(wrong)  # type: ignore[arg-type]
        with pytest.raises(BrixConfigurationError, match="guarded already"):
            LangChainAdapter(guard(fake))

    async def test_the_key_is_not_shown(self, chat: Make) -> None:
        assert "sk-secret" not in repr(LangChainAdapter(chat()))


class TestEngine:
    async def test_an_engine_over_any_chat_model(self, server: DemoServer, chat: Make) -> None:
        server.script(RateLimited(retry_after="0.001"), MalformedJson(), CutStream(), JsonReply(OSLO))
        made = engine(LangChainAdapter(chat(max_retries=4)))
        result = await made.enforce("Which city?", City)
        assert (result.success, result.data, result.retry_count) == (True, City(**OSLO), 1)
        assert counted(made) == server.stats.requests == 4

    def test_when_the_retries_are_used_up_it_says_so(self, server: DemoServer, chat: Make) -> None:
        server.default = MalformedJson("no JSON at all")
        made = engine(LangChainAdapter(chat()), max_retries=1)
        result = made.enforce_sync("Which city?", City)
        assert (result.success, result.data) == (False, None)
        assert result.validation.errors
        assert counted(made) == server.stats.requests == 2

    async def test_partial_objects_come_as_they_grow(self, server: DemoServer, chat: Make) -> None:
        server.default = Reply(json.dumps(OSLO), chunk_size=6)
        items = [item async for item in engine(LangChainAdapter(chat())).enforce_stream("Which city?", City)]
        assert len(items) > 2
        assert items[-1].data == City(**OSLO)
        assert all(isinstance(item, dict) for item in items[:-1])


class TestRunnable:
    @pytest.fixture
    def made(self, server: DemoServer, chat: Make) -> EnforcementEngine:
        server.default = JsonReply(OSLO)
        return engine(LangChainAdapter(chat()))

    async def test_in_a_chain_it_takes_what_a_prompt_gives(self, server: DemoServer, made: EnforcementEngine) -> None:
        chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{text}")]) | made.as_runnable(City)
        for result in (chain.invoke({"text": "Norway"}), await chain.ainvoke({"text": "Norway"})):
            assert isinstance(result, EnforcedOutput)
            assert result.data == City(**OSLO)
        assert [message["content"] for message in server.requests[0].body["messages"]] == ["Be brief.", "Norway"]
        assert counted(made) == server.stats.requests == 2

    @pytest.mark.parametrize(
        "given", ["Norway", HumanMessage("Norway"), [HumanMessage("Norway")], [("user", "Norway")]]
    )
    async def test_what_a_chat_model_takes_it_takes(
        self, server: DemoServer, made: EnforcementEngine, given: Any
    ) -> None:
        assert (await as_runnable(made, City).ainvoke(given)).success
        assert server.requests[0].body["messages"][-1]["content"] == "Norway"

    async def test_unwrapped_it_gives_the_data_and_raises(self, server: DemoServer, made: EnforcementEngine) -> None:
        chain = as_runnable(made, City, unwrap=True) | RunnableLambda(lambda city: city.name.upper())
        assert chain.invoke("Norway") == "OSLO"
        assert await chain.abatch(["Norway", "Norway"]) == ["OSLO", "OSLO"]
        server.default = MalformedJson("no JSON")
        with pytest.raises(BrixSchemaError):
            await chain.ainvoke("Norway")
        assert counted(made) == server.stats.requests

    async def test_a_failure_is_an_output_and_not_raised(self, server: DemoServer, made: EnforcementEngine) -> None:
        server.default = ServerError()
        results = await as_runnable(made, City).abatch(["a", "b"])
        assert [result.success for result in results] == [False, False]
        assert counted(made) == server.stats.requests == 6

    async def test_streams_give_the_value_as_it_grows(self, server: DemoServer, made: EnforcementEngine) -> None:
        server.default = Reply(json.dumps(OSLO), chunk_size=6)
        step = as_runnable(made, City, unwrap=True)
        chain = ChatPromptTemplate.from_template("{text}") | step
        for items in (
            list(chain.stream({"text": "Norway"})),
            [item async for item in chain.astream({"text": "Norway"})],
        ):
            assert items[-1] == City(**OSLO)
            assert len(items) > 2
        assert counted(made) == server.stats.requests == 2

    async def test_a_stream_that_is_left_closes_its_connection(
        self, server: DemoServer, made: EnforcementEngine
    ) -> None:
        server.default = StalledStream(text=json.dumps(OSLO), after=6)
        stream: Any = as_runnable(made, City).astream("Norway")
        await anext(stream)
        await stream.aclose()
        assert await asyncio.to_thread(server.wait_until_idle)
        assert server.stats.aborted == 1

    async def test_parameters_are_bound_or_given(self, server: DemoServer, made: EnforcementEngine) -> None:
        step = as_runnable(made, City, temperature=0.25)
        await step.ainvoke("Norway", max_tokens=77)
        body = server.requests[-1].body
        assert body["temperature"] == 0.25
        assert 77 in (body.get("max_tokens"), body.get("max_completion_tokens"))

    async def test_sessions_are_those_of_the_configuration(self, server: DemoServer, made: EnforcementEngine) -> None:
        step = as_runnable(made, City)
        await step.ainvoke("a", {"configurable": {"session_id": "user-1"}})
        step.invoke("b", {"configurable": {"thread_id": "user-2"}})
        list(step.stream("c", {"configurable": {"session_id": "user-3"}}))
        with session("user-4"):
            await step.ainvoke("d")
        assert [trace["session_id"] for trace in made.get_traces()] == ["user-4", "user-3", "user-2", "user-1"]

    async def test_over_an_adapter_of_the_core_messages_are_converted(self, server: DemoServer) -> None:
        server.default = JsonReply(OSLO)
        async with OpenAIAdapter(api_key="sk-secret", base_url=server.base_url) as adapter:
            chain = ChatPromptTemplate.from_messages(
                [("system", "Be brief."), ("user", "{text}"), AIMessage("Yes?"), ("user", "Now.")]
            ) | as_runnable(engine(adapter), City, unwrap=True)
            assert (await chain.ainvoke({"text": "Norway"})).name == "Oslo"
        assert [message["role"] for message in server.requests[0].body["messages"]] == [
            "system",
            "user",
            "assistant",
            "user",
        ]

    def test_what_cannot_be_used_is_told(self, made: EnforcementEngine) -> None:
        with pytest.raises(BrixConfigurationError, match="takes an EnforcementEngine"):
            as_runnable("engine", City)  # type: ignore[arg-type]
        for wrong in (None, 3, {"text": "Norway"}):
            with pytest.raises(BrixConfigurationError, match="takes a text, messages or a prompt"):
                as_runnable(made, City).invoke(wrong)


def test_adapters_of_two_kinds_make_no_chain(chat: Make) -> None:
    core = OpenAIAdapter(api_key="test", model="gpt-4o-mini")
    with pytest.raises(BrixConfigurationError, match="LangChainAdapter and OpenAIAdapter word their messages"):
        FailoverChain([LangChainAdapter(chat()), core])
