"""The engine over the real openai SDK and real HTTP: what it gives back, whatever happens, in all its ways."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from pydantic import BaseModel

from brix_core import (
    BrixBudgetError,
    BrixConfigurationError,
    BrixRetryError,
    BrixSchemaError,
    BrixTimeoutError,
    BrixUnknownPriceError,
    MemoryStore,
    session,
)
from brix_core.demo import (
    BadRequest,
    DemoServer,
    JsonReply,
    QuotaExceeded,
    RateLimited,
    Reply,
    ServerError,
    StalledStream,
    ToolCalls,
)
from brix_core.enforcement import (
    EnforcedOutput,
    EnforcementEngine,
    JSONValidator,
    OpenAIAdapter,
    PydanticValidator,
    RetryPolicy,
    ValidationStatus,
)
from brix_core.structured.response_schema import INSTRUCTIONS_HEADING
from tests.enforcement.support import (
    CITY_JSON,
    OSLO,
    VALID,
    Ask,
    City,
    Collected,
    both,
    engine_of,
    every_single,
    every_stream,
    every_way,
    every_whole,
)

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


def counted(engine: EnforcementEngine, output: EnforcedOutput, server: DemoServer) -> int:
    """Requests, as the output, the trace and the server count them."""
    [trace] = engine.get_traces()
    assert output.attempts == len(trace["attempts"]) == len(server.requests)
    assert trace["run_id"] == output.run_id
    return output.attempts


# -- valid data ------------------------------------------------------------------------------------------------


@every_way
async def test_valid_data_in_one_request(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter, max_cost_usd=1.0)
    server.default = Reply(VALID)
    output = await ask(engine, "Where?")
    assert counted(engine, output, server) == 1
    assert (output.success, output.data, output.retry_count, output.error) == (True, OSLO, 0, None)
    assert output.validation.status is ValidationStatus.VALID
    assert output.validation.parsed_output is output.data
    assert not output.validation.repair_attempted
    generation, [record] = output.generation, server.requests
    assert (generation.output, generation.provider, generation.model) == (VALID, "openai", "gpt-4o-mini")
    assert generation.tokens_used == output.tokens_used == record.prompt_tokens + record.completion_tokens
    assert generation.latency_ms > 0
    assert generation.timestamp.tzinfo is not None
    assert 0 < (output.cost_usd or 0) == pytest.approx(engine.context.session_cost_usd)
    assert record.body["response_format"]["json_schema"]["strict"] is True


@every_whole
async def test_a_bad_answer_is_asked_for_again(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter, max_retries=2)
    server.script(Reply('{"name": "Oslo"}'), Reply("Sorry!"), Reply(VALID))
    output = await ask(engine, "Where?")
    assert counted(engine, output, server) == 3
    assert (output.success, output.data, output.retry_count) == (True, OSLO, 2)
    assert output.generation.output == VALID
    assert output.tokens_used > output.generation.tokens_used


@every_whole
async def test_used_up_retries_are_a_failure_with_the_errors(
    server: DemoServer, adapter: OpenAIAdapter, ask: Ask
) -> None:
    engine = engine_of(adapter, max_retries=1)
    server.default = Reply('{"name": "Oslo", "people": "many"}')
    output = await ask(engine, "Where?")
    assert counted(engine, output, server) == 2
    assert (output.success, output.data, output.retry_count) == (False, None, 1)
    assert [error.path for error in output.validation.errors] == ["$.people"]
    assert output.validation.errors[0].actual == "many"
    assert output.validation.status is ValidationStatus.INVALID
    assert output.validation.raw_output == output.generation.output == '{"name": "Oslo", "people": "many"}'
    assert isinstance(output.error, BrixSchemaError)
    assert output.error_type == "BrixSchemaError"
    assert len(output.error.attempts) == 2


@every_stream
async def test_a_streamed_answer_that_does_not_fit_is_a_failure(
    server: DemoServer, adapter: OpenAIAdapter, ask: Ask
) -> None:
    engine = engine_of(adapter)
    server.default = Reply('{"name": "Oslo", "people": "many"}')
    output = await ask(engine, "Where?")
    assert counted(engine, output, server) == 1
    assert (output.success, output.error_type, output.validation.errors[0].path) == (
        False,
        "BrixSchemaError",
        "$.people",
    )


@both
async def test_the_prompt_does_not_grow_with_each_retry(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter, max_retries=6)
    server.default = Reply("I would rather not say.")
    output = await ask(engine, "Where?")
    assert output.retry_count == 6
    heals = [record.body["messages"] for record in server.requests[1:]]
    assert [len(messages) for messages in heals] == [3] * 6  # the prompt, the last answer, what is wrong with it
    assert len({record.prompt_tokens for record in server.requests[1:]}) == 1
    assert all(messages == heals[0] for messages in heals)


@both
async def test_without_native_output_the_schema_is_in_the_prompt_once(server: DemoServer, ask: Ask) -> None:
    with OpenAIAdapter(api_key="test", model="my-model", base_url=server.base_url) as adapter:
        engine = engine_of(adapter, max_retries=2)
        server.script(Reply("no"), Reply("no"), Reply(VALID))
        output = await ask(engine, "Where?", system="Be brief.")
    assert output.success
    for record in server.requests:
        assert "response_format" not in record.body
        told = [message["content"] for message in record.body["messages"] if message["role"] == "system"]
        assert len(told) == 1
        assert told[0].startswith("Be brief.")
        assert told[0].count(INSTRUCTIONS_HEADING) == 1


@every_way
async def test_a_repaired_answer_says_so(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter)
    server.default = Reply("Sure:\n```json\n{'name': 'it\\'s, ok', 'people': 7,}\n```")
    output = await ask(engine, "Where?")
    assert output.data == City(name="it's, ok", people=7)
    assert (output.validation.repair_attempted, output.validation.repair_successful) == (True, True)
    assert output.validation.raw_output == output.generation.output
    assert output.attempts == 1


@every_way
async def test_a_json_schema_gives_what_the_json_says(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter, JSONValidator())
    server.default = Reply(VALID)
    output = await ask(engine, "Where?", CITY_JSON)
    assert output.data == {"name": "Oslo", "people": 700_000}
    assert type(output.data) is dict


@every_way
async def test_parameters_reach_the_provider(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter)
    server.default = Reply(VALID)
    await ask(engine, "Where?", temperature=0.2, max_tokens=500, top_p=0.9, system="Be brief.")
    [record] = server.requests
    assert (record.body["temperature"], record.body["max_tokens"], record.body["top_p"]) == (0.2, 500, 0.9)
    assert record.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
    ]


@both
async def test_an_output_can_be_dumped(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    server.script(Reply(VALID), ServerError(), ServerError(), ServerError())
    engine = engine_of(adapter)
    done, failed = await ask(engine, "Where?"), await ask(engine, "Why?")
    dumped = json.loads(done.model_dump_json())
    assert dumped["data"] == {"name": "Oslo", "people": 700_000}
    assert "raw" not in dumped["generation"]
    assert json.loads(failed.model_dump_json())["error_type"] == "BrixRetryError"


# -- failures --------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(
    ("behaviour", "error", "requests"),
    [
        (ServerError(503), "BrixRetryError", 3),
        (RateLimited(), "BrixRetryError", 3),
        (RateLimited(retry_after="3600"), "BrixRetryError", 1),
        (BadRequest(), "BadRequestError", 1),
        (BadRequest(status=401), "AuthenticationError", 1),
        (QuotaExceeded(), "RateLimitError", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_failing_provider_is_a_typed_failure(
    server: DemoServer, adapter: OpenAIAdapter, ask: Ask, behaviour: Any, error: str, requests: int
) -> None:
    engine = engine_of(adapter, max_cost_usd=1.0)
    server.default = behaviour
    output = await ask(engine, "Where?")
    assert counted(engine, output, server) == requests
    assert (output.success, output.data, output.error_type) == (False, None, error)
    assert type(output.error).__name__ == error
    assert output.validation.status is ValidationStatus.NOT_VALIDATED
    assert error in output.validation.errors[0].message
    assert (output.generation.output, output.generation.provider) == ("", "openai")
    assert engine._pipeline.store.balance(f"budget:{output.session_id}").reserved == 0


@every_way
async def test_a_guard_that_refuses_is_a_typed_failure(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    server.default = Reply(VALID)
    broke = engine_of(adapter, max_cost_usd=1e-9)
    refused = await ask(broke, "Where?")
    assert isinstance(refused.error, BrixBudgetError)
    assert refused.error.limit_usd == 1e-9
    assert counted(broke, refused, server) == 0
    with OpenAIAdapter(api_key="test", model="nobody-knows", base_url=server.base_url) as unpriced:
        unknown = await ask(engine_of(unpriced, max_cost_usd=1.0), "Where?")
    assert isinstance(unknown.error, BrixUnknownPriceError)
    assert server.requests == []


@every_way
async def test_a_slow_provider_is_a_typed_failure(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter, retry_policy=RetryPolicy(max_attempts=1, timeout=0.05))
    server.default = StalledStream(after=0)
    output = await ask(engine, "Where?")
    assert isinstance(output.error, BrixTimeoutError)
    assert output.attempts == 1
    assert await asyncio.to_thread(server.wait_until_idle)
    assert len(server.requests) <= 1  # a slow machine may not even have come to sending it


@every_whole
async def test_what_was_wrong_before_the_provider_failed_is_told(
    server: DemoServer, adapter: OpenAIAdapter, ask: Ask
) -> None:
    engine = engine_of(adapter)
    server.script(Reply('{"name": "Oslo"}'))
    server.default = ServerError(500)
    output = await ask(engine, "Where?")
    assert isinstance(output.error, BrixRetryError)
    assert output.error.schema_attempts[0].problems[0][0] == "$.people"
    assert output.retry_count == 1
    assert output.generation.output == '{"name": "Oslo"}'
    assert counted(engine, output, server) == 4


@every_whole
async def test_a_model_that_wants_tools_has_not_answered(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter)
    server.default = ToolCalls([("get_weather", {})])
    output = await ask(engine, "Where?", tools=[WEATHER])
    assert (output.success, output.attempts) == (False, 1)
    assert "tools" in output.validation.errors[0].message


async def test_a_cut_off_answer_is_a_failure_with_the_reason(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter, max_retries=0)
    server.default = Reply(VALID, finish_reason="length")
    output = await engine.enforce("Where?", City)
    assert not output.success
    assert "cut off" in output.validation.errors[0].message
    assert output.generation.finish_reason == "length"


async def test_a_cancelled_call_is_cancelled_and_holds_nothing(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter, max_cost_usd=1.0, session_id="s", use_circuit_breaker=True)
    server.default = Reply(VALID, latency=30.0)
    task = asyncio.create_task(engine.enforce("Where?", City))
    while not server.stats.requests:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine._pipeline.store.balance("budget:s").reserved == 0
    [trace] = engine.get_traces()
    assert trace["outcome"] == "cancelled"
    assert await asyncio.to_thread(server.wait_until_idle)


# -- wrong use -------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(
    ("prompt", "schema", "kwargs", "said"),
    [
        ("x", {"type": "object"}, {}, "PydanticValidator takes a Pydantic model"),
        ("x", int, {}, "response_schema must be a Pydantic model"),
        ("x", None, {}, "PydanticValidator takes"),
        ("x", City, {"temprature": 1}, "did you mean temperature"),
        ("x", City, {"stream": True}, "engine.enforce_stream"),
    ],
    ids=str,
)
async def test_wrong_use_is_raised_before_anything_is_sent(
    server: DemoServer, adapter: OpenAIAdapter, ask: Ask, prompt: Any, schema: Any, kwargs: Any, said: str
) -> None:
    engine = engine_of(adapter)
    with pytest.raises(BrixConfigurationError, match=said):
        await ask(engine, prompt, schema, **kwargs)
    assert server.requests == []
    assert engine.get_traces() == []


@every_single
@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (7, "prompt must be a str or a list"),
        (None, "prompt must be a str or a list"),
        (b"x", "prompt must be a str or a list"),
        ([], "prompt is an empty list"),
        ("", "prompt is an empty text"),
        (" \n", "prompt is an empty text"),
    ],
    ids=repr,
)
async def test_what_is_no_prompt_is_refused(
    server: DemoServer, adapter: OpenAIAdapter, ask: Ask, prompt: Any, said: str
) -> None:
    engine = engine_of(adapter)
    with pytest.raises(BrixConfigurationError, match=said):
        await ask(engine, prompt)
    assert server.requests == []
    assert engine.get_traces() == []


@both
async def test_several_answers_are_refused(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    with pytest.raises(BrixConfigurationError, match="one answer is asked for, got n=2"):
        await ask(engine_of(adapter), "x", n=2)
    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "gpt-4o-mini"}, "adapter must be one such as"),
        ({"adapter": OpenAIAdapter}, "adapter must be one such as"),
        ({"validator": PydanticValidator}, "validator must be a PydanticValidator"),
        ({"validator": None}, "validator must be a PydanticValidator"),
        ({"max_retries": -1}, "max_retries must be an int >= 0"),
        ({"max_retries": None}, "max_retries must be an int >= 0"),
        ({"collector": {}}, "collector must have a method collect"),
        ({"cache": {}}, "cache must be a cache"),
        ({"retry_policy": {"max_attempts": 3}}, "retry_policy must be of type RetryPolicy"),
        ({"rate_limiter": 60}, "rate_limiter must be of type"),
        ({"circuit_breaker_config": 5, "use_circuit_breaker": True}, "circuit_breaker_config must be of type"),
        ({"use_circuit_breaker": "yes"}, "use_circuit_breaker must be True or False"),
        ({"response_schema": City}, "give the schema with each prompt"),
        ({"max_schema_retries": 2}, "it is the engine's max_retries"),
        ({"fallbacks": []}, "FailoverChain"),
        ({"backoff_base": 3.0}, "backoff_base is said by retry_policy already"),
        ({"max_cost": 3.0}, "did you mean max_cost_usd"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_engine_that_cannot_be_is_refused(adapter: OpenAIAdapter, options: dict[str, Any], said: str) -> None:
    given = {"adapter": adapter, "validator": PydanticValidator(), **options}
    with pytest.raises(BrixConfigurationError, match=said):
        EnforcementEngine(**given)


# -- sessions, collectors --------------------------------------------------------------------------------------


@every_way
async def test_a_call_belongs_to_its_session(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter, max_cost_usd=1.0)
    server.default = Reply(VALID)
    with session("ann"):
        assert (await ask(engine, "Where?")).session_id == "ann"
    assert (await ask(engine, "Where?")).session_id != "ann"
    assert len(engine.get_traces("ann")) == 1


@every_way
async def test_valid_answers_are_collected(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    collected = Collected()
    engine = engine_of(adapter, collector=collected, max_retries=0)
    server.script(Reply(VALID), Reply("no"))
    done, failed = await ask(engine, "Where?"), await ask(engine, "Why?")
    assert not failed.success
    [example] = collected.examples
    assert example == {"prompt": "Where?", "schema": City, "output": done}


@every_way
async def test_a_collector_that_fails_costs_no_answer(
    server: DemoServer, adapter: OpenAIAdapter, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def collect(self, **example: Any) -> None:
            raise OSError("no space left")

    server.default = Reply(VALID)
    with caplog.at_level(logging.WARNING):
        output = await ask(engine_of(adapter, collector=Full()), "Where?")
    assert output.data == OSLO
    assert "could not be collected" in caplog.text


def test_one_engine_serves_threads_and_loops_together(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter)
    server.default = Reply(VALID)
    first = engine.enforce_sync("a", City)
    second = asyncio.run(engine.enforce("b", City))
    third = asyncio.run(engine.enforce("c", City))
    assert [first.success, second.success, third.success] == [True] * 3
    assert len(server.requests) == 3


async def test_messages_are_a_prompt_too(server: DemoServer, adapter: OpenAIAdapter) -> None:
    server.default = Reply(VALID)
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "?"},
    ]
    assert (await engine_of(adapter).enforce(talk, City)).success
    assert server.requests[0].body["messages"] == talk


async def test_further_guards_are_options(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter, max_context_tokens=300, context_reserve_tokens=0)
    output = await engine.enforce("many words " * 400, City)
    assert output.error_type == "BrixContextError"
    assert server.requests == []


class Nested(BaseModel):
    cities: list[City]


async def test_default_options_hold_for_any_schema(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = EnforcementEngine(adapter, PydanticValidator(), store=MemoryStore())
    server.script(JsonReply({"cities": [{"name": "Oslo", "people": 1}]}), Reply(VALID))
    assert (await engine.enforce("Which?", Nested)).data == Nested(cities=[City(name="Oslo", people=1)])
    assert (await engine.enforce("Where?", City)).data == OSLO
