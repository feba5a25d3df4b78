"""The enforcement engine over LlamaIndex's LLMs, and as a program."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from pydantic import BaseModel

from brix_core import BrixConfigurationError, BrixSchemaError, MemoryStore
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
from brix_core.enforcement import EnforcementEngine, OpenAIAdapter, PydanticValidator, RetryPolicy
from brix_core.failures import classify
from brix_llamaindex import EnforcementProgram, LlamaIndexAdapter, guard

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
    async def test_one_answer_is_one_request(self, server: DemoServer, openai_like: Make) -> None:
        server.default = Reply("Oslo.", usage={"prompt_tokens": 100, "completion_tokens": 7})
        adapter = LlamaIndexAdapter(openai_like())
        for answer in (await adapter.generate("Capital?"), adapter.generate_sync("Capital?")):
            assert (answer.output, answer.provider, answer.model) == ("Oslo.", "OpenAILike", "demo-model")
            assert (answer.tokens_used, answer.tokens_estimated) == (107, False)
        assert server.stats.requests == 2

    async def test_a_stream_gives_what_is_new(self, server: DemoServer, openai_like: Make) -> None:
        server.default = Reply("Oslo, the capital", chunk_size=5)
        adapter = LlamaIndexAdapter(openai_like())
        assert [piece async for piece in adapter.stream("Hi")] == ["Oslo,", " the ", "capit", "al"]
        assert list(adapter.stream_sync("Hi")) == ["Oslo,", " the ", "capit", "al"]
        assert server.stats.requests == 2

    async def test_a_schema_stands_in_the_prompt_or_in_the_format(self, server: DemoServer, openai_like: Make) -> None:
        await LlamaIndexAdapter(openai_like()).generate("Hi", City)
        assert "Format of the answer" in json.dumps(server.requests[-1].body)
        answer = await LlamaIndexAdapter(openai_like(should_use_structured_outputs=True)).generate("'Oslo' 3", City)
        assert City.model_validate_json(answer.output).name == "Oslo"
        assert server.requests[-1].body["response_format"]["type"] == "json_schema"

    async def test_messages_are_taken_as_llamaindex_or_openai_writes_them(
        self, server: DemoServer, openai_like: Make
    ) -> None:
        adapter = LlamaIndexAdapter(openai_like())
        for talk in (
            [ChatMessage("Be brief.", role="system"), ChatMessage("Two?")],
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two?"}],
        ):
            assert (await adapter.generate(talk)).output == 'I heard: "Two?"'
        assert server.requests[0].body["messages"] == server.requests[1].body["messages"]
        wrongs: list[Any] = [["Hi"], [{"role": "nobody", "content": "x"}], 3]
        for wrong in wrongs:
            with pytest.raises(BrixConfigurationError):
                await adapter.generate(wrong)
        assert server.stats.requests == 2

    @pytest.mark.parametrize(("fault", "status"), [(RateLimited(retry_after="7"), 429), (ServerError(), 500)])
    async def test_its_own_retries_are_off(
        self, server: DemoServer, openai_like: Make, fault: Any, status: int
    ) -> None:
        server.default = fault
        llm = openai_like(max_retries=5)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the SDK's own
            await LlamaIndexAdapter(llm).generate("Hi")
        assert classify(caught.value).status == status
        assert server.stats.requests == 1
        assert llm.max_retries == 5

    async def test_cancelling_closes_the_connection(self, server: DemoServer, openai_like: Make) -> None:
        server.default = StalledStream()
        task = asyncio.create_task(LlamaIndexAdapter(openai_like()).generate("Hi"))
        while not server.stats.in_flight:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.wait_until_idle)

    async def test_health_is_asked_of_the_client_inside(self, server: DemoServer, openai_like: Make) -> None:
        well = LlamaIndexAdapter(openai_like())
        assert await well.health_check() is True
        assert await asyncio.to_thread(well.health_check_sync) is True
        assert await LlamaIndexAdapter(openai_like(api_base="http://127.0.0.1:9/v1")).health_check() is False
        # Nothing can be asked of it without asking the model, and nothing is known against it.
        assert await LlamaIndexAdapter(MockLLM()).health_check() is True
        assert server.stats.requests == 0

    def test_what_is_no_llm_is_told(self) -> None:
        for wrong in (None, "gpt-4o", MockLLM):
            with pytest.raises(BrixConfigurationError, match="takes a LlamaIndex LLM"):
                LlamaIndexAdapter(wrong)  # type: ignore[arg-type]
        with pytest.raises(BrixConfigurationError, match="guarded already"):
            LlamaIndexAdapter(guard(MockLLM()))


class TestEngine:
    async def test_an_engine_over_any_llm(self, server: DemoServer, openai_like: Make) -> None:
        server.script(RateLimited(retry_after="0.001"), MalformedJson(), CutStream(), JsonReply(OSLO))
        made = engine(LlamaIndexAdapter(openai_like(max_retries=4)))
        result = await made.enforce("Which city?", City)
        assert (result.success, result.data, result.retry_count) == (True, City(**OSLO), 1)
        assert counted(made) == server.stats.requests == 4

    async def test_partial_objects_come_as_they_grow(self, server: DemoServer, openai_like: Make) -> None:
        server.default = Reply(json.dumps(OSLO), chunk_size=6)
        items = [item async for item in engine(LlamaIndexAdapter(openai_like())).enforce_stream("Which city?", City)]
        assert len(items) > 2
        assert items[-1].data == City(**OSLO)


class TestProgram:
    @pytest.fixture
    def made(self, server: DemoServer, openai_like: Make) -> EnforcementEngine:
        server.default = JsonReply(OSLO)
        return engine(LlamaIndexAdapter(openai_like()))

    @pytest.mark.parametrize(
        "template",
        [
            "Which city? {text}",
            PromptTemplate("Which city? {text}"),
            ChatPromptTemplate([ChatMessage("Be brief.", role="system"), ChatMessage("Which city? {text}")]),
        ],
    )
    async def test_a_prompt_s_variables_give_an_instance(
        self, server: DemoServer, made: EnforcementEngine, template: Any
    ) -> None:
        program = EnforcementProgram(made, City, template)
        assert program.output_cls is City
        for city in (program(text="Norway"), await program.acall(text="Norway")):
            assert city == City(**OSLO)
        assert "Which city? Norway" in json.dumps(server.requests[0].body["messages"])
        assert counted(made) == server.stats.requests == 2

    async def test_streams_give_the_object_as_it_grows(self, server: DemoServer, made: EnforcementEngine) -> None:
        server.default = Reply(json.dumps(OSLO), chunk_size=6)
        program = EnforcementProgram(made, City, "Which city? {text}")
        for items in (
            list(program.stream_call(text="Norway")),
            [item async for item in await program.astream_call(text="Norway")],
        ):
            assert items[-1] == City(**OSLO)
            assert len(items) > 2
        assert counted(made) == server.stats.requests == 2

    async def test_without_an_instance_it_raises_why(self, server: DemoServer, made: EnforcementEngine) -> None:
        program = EnforcementProgram(made, City, "Which city? {text}")
        server.default = MalformedJson("no JSON")
        with pytest.raises(BrixSchemaError):
            program(text="Norway")
        server.default = ServerError()
        with pytest.raises(Exception, match="attempt"):
            await program.acall(text="Norway")
        with pytest.raises(Exception, match="attempt"):
            list(program.stream_call(text="Norway"))
        assert counted(made) == server.stats.requests

    async def test_parameters_are_those_of_the_program_and_of_the_call(
        self, server: DemoServer, made: EnforcementEngine
    ) -> None:
        program = EnforcementProgram(made, City, "Which city? {text}", temperature=0.25, max_tokens=50)
        await program.acall(text="Norway", llm_kwargs={"max_tokens": 77})
        assert (server.requests[0].body["temperature"], server.requests[0].body["max_tokens"]) == (0.25, 77)

    async def test_over_an_adapter_of_the_core_messages_are_converted(self, server: DemoServer) -> None:
        server.default = JsonReply(OSLO)
        template = ChatPromptTemplate([ChatMessage("Be brief.", role="system"), ChatMessage("Which city? {text}")])
        async with OpenAIAdapter(api_key="sk-secret", base_url=server.base_url) as adapter:
            program = EnforcementProgram(engine(adapter), City, template)
            assert await program.acall(text="Norway") == City(**OSLO)
        assert [message["role"] for message in server.requests[0].body["messages"]] == ["system", "user"]

    def test_what_cannot_be_used_is_told(self, made: EnforcementEngine) -> None:
        with pytest.raises(BrixConfigurationError, match="must be an EnforcementEngine"):
            EnforcementProgram("engine", City, "x")  # type: ignore[arg-type]
        with pytest.raises(BrixConfigurationError, match="must be a Pydantic model"):
            EnforcementProgram(made, dict, "x")  # type: ignore[type-var]
