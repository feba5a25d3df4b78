"""Streams of partial objects, and many prompts at a time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import sys
import threading
from typing import Any

import pytest

from brix_core import BrixConfigurationError, BrixError, session
from brix_core.demo import BadRequest, CutStream, DemoServer, Reply, ServerError
from brix_core.enforcement import EnforcedOutput, OpenAIAdapter, RetryPolicy
from tests.enforcement.support import (
    OSLO,
    VALID,
    Ask,
    City,
    by_stream,
    by_stream_sync,
    engine_of,
    every_stream,
)

# -- streams ---------------------------------------------------------------------------------------------------


async def items_of(stream: Any, *, sync: bool) -> list[Any]:
    if sync:
        return await asyncio.to_thread(list, stream)
    return [item async for item in stream]


both_readers = pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])


@both_readers
async def test_objects_grow_and_the_output_comes_last(server: DemoServer, adapter: OpenAIAdapter, sync: bool) -> None:
    server.default = Reply(VALID)
    stream = engine_of(adapter).enforce_stream("Where?", City)
    assert server.requests == []
    *partial, output = await items_of(stream, sync=sync)
    assert {} in partial
    assert {"name": "Os"} in partial
    assert partial[-1] == OSLO.model_dump()
    sizes = [len(str(value)) for value in partial]
    assert sizes == sorted(sizes)
    assert isinstance(output, EnforcedOutput)
    assert output.data == OSLO
    assert output is stream.result
    assert len(server.requests) == 1
    assert server.requests[0].stream


@both_readers
async def test_validated_streams_show_nothing_before_it_fits(
    server: DemoServer, adapter: OpenAIAdapter, sync: bool
) -> None:
    engine = engine_of(adapter, stream_mode="validated", max_retries=2)
    server.script(Reply('{"name": "Bergen"}'), Reply(VALID))
    items = await items_of(engine.enforce_stream("Where?", City), sync=sync)
    assert "Bergen" not in str(items)
    assert items[-1].data == OSLO
    assert (items[-1].retry_count, items[-1].attempts, len(server.requests)) == (1, 2, 2)


@both_readers
async def test_a_stream_that_breaks_ends_in_a_failure(server: DemoServer, adapter: OpenAIAdapter, sync: bool) -> None:
    server.default = CutStream(after=3, text=VALID)
    *partial, output = await items_of(engine_of(adapter).enforce_stream("Where?", City), sync=sync)
    assert partial
    assert not output.success
    assert output.attempts == 1  # nothing is sent again once something was shown
    assert output.error is not None


@every_stream
async def test_before_the_first_chunk_it_is_tried_again(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    server.script(ServerError(503), CutStream(after=0))
    server.default = Reply(VALID)
    output = await ask(engine_of(adapter), "Where?")
    assert (output.data, output.attempts) == (OSLO, 3)


@both_readers
async def test_a_stream_may_be_left(server: DemoServer, adapter: OpenAIAdapter, sync: bool) -> None:
    engine = engine_of(adapter, max_cost_usd=1.0, session_id="s")
    server.default = Reply(VALID, chunk_delay=0.05)
    stream = engine.enforce_stream("Where?", City)
    if sync:

        def leave() -> None:
            with stream:
                next(stream)

        await asyncio.to_thread(leave)
    else:
        async with stream:
            await anext(stream)
    with pytest.raises(BrixError, match="read to its end"):
        _ = stream.result
    assert engine._pipeline.store.balance("budget:s").reserved == 0
    assert [trace["outcome"] for trace in engine.get_traces()] == ["abandoned"]
    assert await asyncio.to_thread(server.wait_until_idle)
    assert len(server.requests) == 1


async def test_a_stream_that_is_cancelled_is_cancelled(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter, max_cost_usd=1.0, session_id="s")
    server.default = Reply(VALID, chunk_delay=1.0)
    task = asyncio.create_task(by_stream(engine, "Where?"))
    while not server.stats.requests:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine._pipeline.store.balance("budget:s").reserved == 0
    assert await asyncio.to_thread(server.wait_until_idle)


async def test_a_closed_stream_sends_nothing(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter)
    unread, closed = engine.enforce_stream("Where?", City), engine.enforce_stream("Where?", City)
    closed.close()
    assert list(closed) == []
    del unread
    gc.collect()
    assert server.requests == []
    assert engine.get_traces() == []


async def test_a_stream_is_read_in_one_way(server: DemoServer, adapter: OpenAIAdapter) -> None:
    stream = engine_of(adapter).enforce_stream("Where?", City)
    await anext(stream)
    with pytest.raises(BrixConfigurationError, match="not with both"):
        next(stream)
    with pytest.raises(BrixConfigurationError, match=r"await stream\.aclose"):
        stream.close()
    await stream.aclose()


@pytest.mark.parametrize("read", [by_stream, by_stream_sync], ids=lambda read: read.__name__)
async def test_a_stream_belongs_to_the_session_it_was_made_in(
    server: DemoServer, adapter: OpenAIAdapter, read: Any
) -> None:
    engine = engine_of(adapter)
    server.default = Reply(VALID)
    with session("ann"):
        stream = engine.enforce_stream("Where?", City)
    items = [item async for item in stream]
    assert items[-1].session_id == "ann"


# -- batches ---------------------------------------------------------------------------------------------------


async def batch(engine: Any, sync: bool, prompts: Any, *args: Any, **kwargs: Any) -> list[EnforcedOutput]:
    outputs: list[EnforcedOutput]
    if sync:
        outputs = await asyncio.to_thread(engine.enforce_batch_sync, prompts, City, *args, **kwargs)
    else:
        outputs = await engine.enforce_batch(prompts, City, *args, **kwargs)
    return outputs


@both_readers
async def test_outputs_are_in_the_order_of_the_prompts(server: DemoServer, adapter: OpenAIAdapter, sync: bool) -> None:
    engine = engine_of(adapter, retry_policy=RetryPolicy(max_attempts=1))
    prompts = [f"city {number}" for number in range(12)]
    outputs = await batch(engine, sync, prompts, max_concurrency=4)
    told = {record.body["messages"][-1]["content"] for record in server.requests}
    assert told == set(prompts)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert prompt.rpartition(" ")[2] in output.generation.output  # the server makes its answer from the prompt


@both_readers
async def test_one_failure_does_not_sink_the_rest(server: DemoServer, adapter: OpenAIAdapter, sync: bool) -> None:
    engine = engine_of(adapter, max_retries=0, retry_policy=RetryPolicy(max_attempts=1))
    server.script(Reply(VALID), BadRequest(), Reply("no"), ServerError(500), Reply(VALID))
    outputs = await batch(engine, sync, list("abcde"), max_concurrency=1)
    assert [output.error_type for output in outputs] == [
        None, "BadRequestError", "BrixSchemaError", "InternalServerError", None,
    ]  # fmt: skip
    assert len(server.requests) == 5


@both_readers
async def test_a_prompt_that_cannot_be_sent_is_its_own_failure(
    server: DemoServer, adapter: OpenAIAdapter, sync: bool
) -> None:
    server.default = Reply(VALID)
    outputs = await batch(engine_of(adapter, max_cost_usd=1.0), sync, ["a", "half of an emoji: \ud83d", "b"])
    assert [output.error_type for output in outputs] == [None, "BrixConfigurationError", None]
    assert "lone surrogate" in outputs[1].validation.errors[0].message


@both_readers
async def test_no_more_at_a_time_than_allowed(server: DemoServer, adapter: OpenAIAdapter, sync: bool) -> None:
    server.default = Reply(VALID, latency=0.05)
    await batch(engine_of(adapter), sync, [str(number) for number in range(12)], max_concurrency=3)
    events = sorted(event for record in server.requests for event in ((record.started_at, 1), (record.finished_at, -1)))
    level = most = 0
    for _, change in events:
        level += change
        most = max(most, level)
    assert most == 3


@both_readers
async def test_what_is_wrong_for_all_is_raised_before_any_is_sent(
    server: DemoServer, adapter: OpenAIAdapter, sync: bool
) -> None:
    engine = engine_of(adapter)
    for prompts, options, said in (
        ("abc", {}, "prompts must be a list.*; one prompt goes to enforce"),
        (b"abc", {}, "prompts must be a list"),
        (7, {}, "prompts must be a list"),
        (iter("abc"), {}, r"prompts must be a list.*; give a list: list\(prompts\)"),
        ((prompt for prompt in "abc"), {}, r"give a list: list\(prompts\)"),
        (["a"], {"temprature": 1}, "did you mean temperature"),
        ([], {"temprature": 1}, "did you mean temperature"),
        ([None], {"stream": True}, "enforce_stream"),
        (["a"], {"max_concurrency": 0}, "max_concurrency must be an int >= 1"),
        (["a"], {"progress": "yes"}, "progress must be"),
    ):
        with pytest.raises(BrixConfigurationError, match=said):
            await batch(engine, sync, prompts, **options)
    for prompts in (["a"], [None], []):
        with pytest.raises(BrixConfigurationError, match="PydanticValidator takes"):
            await engine.enforce_batch(prompts, {"type": "object"})
        with pytest.raises(BrixConfigurationError, match="PydanticValidator takes"):
            engine.enforce_batch_sync(prompts, {"type": "object"})
    assert server.requests == []
    assert await batch(engine, sync, []) == []


@both_readers
async def test_what_is_no_prompt_is_its_own_failure(server: DemoServer, adapter: OpenAIAdapter, sync: bool) -> None:
    server.default = Reply(VALID)
    prompts = ["a", None, 5, b"x", "", [], ["text"], "b"]
    told: list[int] = []
    with session("ann"):
        outputs = await batch(engine_of(adapter), sync, prompts, progress=lambda done, total: told.append(done))
    assert [output.success for output in outputs] == [True, *[False] * 6, True]
    for output in outputs[1:-1]:
        assert isinstance(output.error, BrixConfigurationError)
        assert (output.error_type, output.attempts, output.session_id) == ("BrixConfigurationError", 0, "ann")
        assert "prompt" in output.validation.errors[0].message
        assert output.model_dump_json()
    assert len(server.requests) == 2
    assert told == [1, 2, 3, 4, 5, 6, 7, 8]


@both_readers
async def test_progress_is_told_or_shown(
    server: DemoServer, adapter: OpenAIAdapter, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.default = Reply(VALID)
    told: list[tuple[int, int]] = []
    await batch(engine_of(adapter), sync, list("abc"), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    await batch(engine_of(adapter), sync, list("abc"), progress=True)
    assert "3/3" in shown.getvalue()


async def test_a_cancelled_batch_stops_and_holds_nothing(server: DemoServer, adapter: OpenAIAdapter) -> None:
    engine = engine_of(adapter, max_cost_usd=1.0, session_id="s")
    server.default = Reply(VALID, latency=30.0)
    before = asyncio.all_tasks()
    task = asyncio.create_task(engine.enforce_batch([str(number) for number in range(50)], City, max_concurrency=5))
    while server.stats.requests < 5:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
    assert engine._pipeline.store.balance("budget:s").reserved == 0
    assert await asyncio.to_thread(server.wait_until_idle)
    assert len(server.requests) == 5


@both_readers
async def test_a_progress_that_fails_costs_no_answer(
    server: DemoServer, adapter: OpenAIAdapter, sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []

    def fail(done: int, total: int) -> None:
        told.append(done)
        raise LookupError("no window")

    server.default = Reply(VALID)
    outputs = await batch(engine_of(adapter), sync, list("abcde"), 2, progress=fail)
    assert [output.data for output in outputs] == [OSLO] * 5
    assert told == [1, 2, 3, 4, 5]
    assert len(server.requests) == 5
    [record] = caplog.records
    assert "progress could not be told" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


@both_readers
async def test_a_progress_that_interrupts_ends_the_batch(
    server: DemoServer, adapter: OpenAIAdapter, sync: bool
) -> None:
    def stop(done: int, total: int) -> None:
        raise SystemExit(3)

    def work() -> None:
        engine, prompts = engine_of(adapter), [str(number) for number in range(50)]
        if sync:
            engine.enforce_batch_sync(prompts, City, 2, progress=stop)
        else:
            asyncio.run(engine.enforce_batch(prompts, City, 2, progress=stop))

    server.default = Reply(VALID)
    with pytest.raises(SystemExit):
        await asyncio.to_thread(work)
    assert await asyncio.to_thread(server.wait_until_idle)
    assert len(server.requests) < 20


async def test_threads_have_the_callers_context(server: DemoServer, adapter: OpenAIAdapter) -> None:
    server.default = Reply(VALID)
    engine = engine_of(adapter)

    def work() -> list[str]:
        with session("ann"):
            return [output.session_id for output in engine.enforce_batch_sync(list("abc"), City)]

    assert await asyncio.to_thread(contextvars.copy_context().run, work) == ["ann"] * 3
    assert threading.active_count() < 100
