"""What drivers do for a flow beside the model calls that are streamed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from brix_core.call import CallRequest, CallResponse
from brix_core.drivers import arun, arun_stream, run, run_stream
from brix_core.flow import Flow, ModelCall, Run
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.virtual import VirtualClock


def setting(**script: Any) -> tuple[FakeEndpoint, Callable[..., CallRequest], VirtualClock]:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, **script)
    return endpoint, Driver(pipeline(clock), endpoint).request, clock


def where(seen: list[int]) -> Callable[[], str]:
    def compute() -> str:
        seen.append(threading.get_ident())
        return "computed"

    return compute


def computing(request: CallRequest, seen: list[int]) -> Flow:
    text = yield Run(where(seen))
    return CallResponse(text=text, raw=text)


def unstreamed_first(request: CallRequest) -> Flow:
    """A side call, and then the answer itself."""
    side: CallResponse = yield ModelCall(request.evolve(stream=False, params={"model": "side"}))
    answer: CallResponse = yield ModelCall(request)
    assert side.model == "side"
    return answer


def test_a_heavy_computation_stays_in_the_thread_of_a_blocking_caller() -> None:
    _, request, clock = setting()
    seen: list[int] = []
    assert run(computing(request(), seen), clock).text == "computed"
    assert list(run_stream(computing(request(), seen), request(stream=True), clock)) == ["computed"]
    assert set(seen) == {threading.get_ident()}


async def test_a_heavy_computation_does_not_hold_up_the_event_loop() -> None:
    _, request, clock = setting()
    seen: list[int] = []
    assert (await arun(computing(request(), seen), clock)).text == "computed"
    chunks = arun_stream(computing(request(), seen), request(stream=True), clock)
    assert [chunk async for chunk in chunks] == ["computed"]
    assert threading.get_ident() not in seen


async def test_an_error_of_a_computation_reaches_the_flow() -> None:
    def fails() -> None:
        raise ValueError("no")

    def flow() -> Flow:
        try:
            yield Run(fails)
        except ValueError as error:
            return CallResponse(text=f"caught {error}")
        raise AssertionError

    _, _, clock = setting()
    assert run(flow(), clock).text == "caught no"
    assert (await arun(flow(), clock)).text == "caught no"


def test_a_side_call_of_a_stream_is_not_streamed_to_its_consumer() -> None:
    endpoint, make, clock = setting()
    request = make(stream=True)
    chunks = list(run_stream(unstreamed_first(request), request, clock))
    assert chunks == ["one ", "two ", "three"]
    assert len(endpoint.sent) == 2
    assert [attempt.outcome for attempt in request.call.attempts] == ["ok", "ok"]


async def test_a_side_call_of_an_asynchronous_stream_is_not_streamed_to_its_consumer() -> None:
    endpoint, make, clock = setting()
    request = make(stream=True)
    chunks = [chunk async for chunk in arun_stream(unstreamed_first(request), request, clock)]
    assert chunks == ["one ", "two ", "three"]
    assert len(endpoint.sent) == 2
    assert [attempt.outcome for attempt in request.call.attempts] == ["ok", "ok"]


@pytest.mark.parametrize("after", ["side", "none"])
async def test_an_answer_that_was_not_streamed_comes_as_one_chunk(after: str) -> None:
    def flow(request: CallRequest) -> Flow:
        if after == "none":
            return CallResponse(text="whole", raw="whole")
        return (yield ModelCall(request.evolve(stream=False)))

    expected = ["whole"] if after == "none" else ["one two three"]
    _, make, clock = setting()
    request = make(stream=True)
    assert list(run_stream(flow(request), request, clock)) == expected
    request = make(stream=True)
    assert [chunk async for chunk in arun_stream(flow(request), request, clock)] == expected


async def test_cancelling_a_side_call_of_a_stream_frees_what_it_held() -> None:
    endpoint, make, clock = setting(latency=5.0)
    request = make(stream=True)

    async def consume() -> None:
        async for _ in arun_stream(unstreamed_first(request), request, clock):
            raise AssertionError("nothing is streamed yet")

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert endpoint.in_flight == 0
    assert request.call.attempts[0].outcome == "cancelled"
