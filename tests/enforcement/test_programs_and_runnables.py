"""Engines inside LangChain and LlamaIndex: what is refused when they are made, what they give, what is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, field_validator

from brix_core import BrixConfigurationError, BrixSchemaError
from brix_core.demo import DemoServer, Reply, ServerError
from brix_core.enforcement import JSONValidator, OpenAIAdapter, PydanticValidator, RetryPolicy
from brix_core.enforcement.training.collector import DatasetCollector
from brix_langchain import LangChainAdapter, as_runnable
from brix_llamaindex import EnforcementProgram, LlamaIndexAdapter
from tests.enforcement.support import OSLO, VALID, City, engine_of

# -- programs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validator", [JSONValidator(), PydanticValidator()], ids=lambda made: type(made).__name__)
async def test_a_program_gives_an_instance_whatever_validates(
    server: DemoServer, adapter: OpenAIAdapter, validator: Any
) -> None:
    server.default = Reply(VALID)
    program = EnforcementProgram(engine_of(adapter, validator), City, "Which city? {text}")
    found = [
        program(text="Norway"),
        await program.acall(text="Norway"),
        list(program.stream_call(text="Norway"))[-1],
        [piece async for piece in await program.astream_call(text="Norway")][-1],
    ]
    assert found == [OSLO] * 4
    assert [type(each) for each in found] == [City] * 4
    assert len(server.requests) == 4


class Capital(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def is_known(cls, name: str) -> str:
        if name != "Oslo":
            raise ValueError("no capital")
        return name


async def test_what_the_json_schema_cannot_say_is_an_error_that_says_what_to_do(
    server: DemoServer, adapter: OpenAIAdapter
) -> None:
    server.default = Reply('{"name": "Bergen"}')
    program = EnforcementProgram(engine_of(adapter, JSONValidator()), Capital, "Which city?")
    with pytest.raises(BrixSchemaError, match=r"no capital.*PydanticValidator\(\)") as caught:
        program()
    assert caught.value.attempts[0].text == '{"name": "Bergen"}'
    assert len(server.requests) == 1


@pytest.mark.parametrize("template", [None, 5, b"x", ["x"]], ids=repr)
def test_a_program_without_a_prompt_is_refused(adapter: OpenAIAdapter, template: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="prompt_template_str must be a str"):
        EnforcementProgram(engine_of(adapter), City, template)


def test_a_template_is_a_prompt(server: DemoServer, adapter: OpenAIAdapter) -> None:
    server.default = Reply(VALID)
    assert EnforcementProgram(engine_of(adapter), City, PromptTemplate("In {text}?"))(text="Norway") == OSLO
    assert server.requests[0].body["messages"][-1]["content"] == "In Norway?"


# -- runnables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "how", "said"),
    [
        (None, {}, "PydanticValidator takes"),
        ({"type": "object"}, {}, "PydanticValidator takes"),
        (City, {"unwrap": "no"}, "unwrap must be True or False, got 'no'"),
        (City, {"unwrap": None}, "unwrap must be True or False"),
    ],
    ids=repr,
)
def test_a_runnable_that_cannot_be_is_refused(adapter: OpenAIAdapter, schema: Any, how: Any, said: str) -> None:
    engine = engine_of(adapter)
    for make in (lambda: as_runnable(engine, schema, **how), lambda: engine.as_runnable(schema, **how)):
        with pytest.raises(BrixConfigurationError, match=said):
            make()


# -- prompts of the frameworks ---------------------------------------------------------------------------------


@pytest.fixture
async def framework_adapters(server: DemoServer) -> AsyncIterator[dict[str, Any]]:
    """Adapters of both frameworks, on connections that are closed after the test."""
    with httpx.Client(verify=False) as blocking:
        async with httpx.AsyncClient(verify=False) as asynchronous:
            chat: Any = ChatOpenAI
            like: Any = OpenAILike
            yield {
                "langchain": LangChainAdapter(
                    chat(
                        model="gpt-4o-mini",
                        base_url=server.base_url,
                        api_key="test",
                        http_client=blocking,
                        http_async_client=asynchronous,
                    )
                ),
                "llamaindex": LlamaIndexAdapter(
                    like(
                        model="demo-model",
                        api_base=server.base_url,
                        api_key="test",
                        is_chat_model=True,
                        http_client=blocking,
                        async_http_client=asynchronous,
                    )
                ),
            }


async def test_what_is_no_prompt_fails_alone_and_what_was_asked_is_collected(
    server: DemoServer, framework_adapters: dict[str, Any], tmp_path: Path
) -> None:
    server.default = Reply(VALID)
    wrong: list[Any] = [None, 5, b"x", "", [], [5], [{"role": "nobody", "content": "x"}]]
    for name, adapter in framework_adapters.items():
        collector = DatasetCollector(output_dir=tmp_path / name)
        engine = engine_of(adapter, collector=collector)
        before = len(server.requests)
        outputs = await engine.enforce_batch(["a", *wrong, "b"], City, system="Be brief.")
        assert [output.error_type for output in outputs] == [
            None, *["BrixConfigurationError"] * len(wrong), None,
        ], name  # fmt: skip
        assert len(server.requests) == before + 2
        system = {"role": "system", "content": "Be brief."}
        assert sorted((example.messages for example in collector.examples()), key=str) == [
            [system, {"role": "user", "content": text}] for text in "ab"
        ]


async def test_messages_of_a_framework_are_kept_as_json(
    server: DemoServer, framework_adapters: dict[str, Any], tmp_path: Path
) -> None:
    server.default = Reply(VALID)
    collector = DatasetCollector(output_dir=tmp_path)
    engine = engine_of(framework_adapters["langchain"], collector=collector)
    assert (await engine.enforce([SystemMessage("Be brief."), HumanMessage("Where?")], City)).success
    [example] = collector.examples()
    assert example.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
    ]


# -- words of errors -------------------------------------------------------------------------------------------


async def test_errors_name_the_engines_own_options(server: DemoServer, adapter: OpenAIAdapter) -> None:
    server.default = Reply("no")
    unfit = await engine_of(adapter, max_retries=1).enforce("x", City)
    assert "of an engine: max_retries" in str(unfit.error)
    server.default = ServerError(500)
    policy = RetryPolicy(max_attempts=3, base_delay=0.0, max_delay=0.0)
    failed = await engine_of(adapter, retry_policy=policy).enforce("x", City)
    assert "of a RetryPolicy: max_attempts=3" in str(failed.error)
    assert len(server.requests) == 5


@pytest.mark.parametrize("value", [TimeoutError, "TimeoutError", "", 5, [5], [TimeoutError()], [KeyboardInterrupt]])
def test_exceptions_of_a_policy_are_a_list_of_classes(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"retryable_exceptions must be a list.*\[TimeoutError, .*got"):
        RetryPolicy(retryable_exceptions=value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"base_delay": 1e308, "max_delay": 1e308}, "max_delay must be <= .*got 1e\\+308"),
        ({"max_delay": 1e10}, "max_delay must be <="),
        ({"max_attempts": 10**400}, "max_attempts must be an int >= 1 and <= 1000000"),
    ],
)
def test_delays_that_nobody_can_wait_are_refused(values: Any, said: str) -> None:
    with pytest.raises(BrixConfigurationError, match=said):
        RetryPolicy(**values)


def test_every_policy_that_can_be_made_makes_an_engine(adapter: OpenAIAdapter) -> None:
    policy = RetryPolicy(max_attempts=1_000_000, base_delay=1e308, max_delay=9e9, retryable_exceptions={OSError})  # type: ignore[arg-type]
    assert "retry" in repr(engine_of(adapter, retry_policy=policy))
