"""What drivers do for flows side by side, and for a retrieval."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest

from brix_core import BrixInternalError, BrixTimeoutError, RetrievalResult
from brix_core.call import CallRequest, CallResponse, Limits
from brix_core.clock import Wakeup
from brix_core.drivers import arun, arun_stream, run, run_stream
from brix_core.drivers.stepwise import Stepwise
from brix_core.flow import Flow, Gather, ModelCall, Retrieve, Run, Sleep, StoreOp
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.virtual import VirtualClock, run_virtual


class Meeting(FakeEndpoint):
    """Answers when so many requests are under way at once, and never before."""

    wanted = 3

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.barrier = threading.Barrier(self.wanted, timeout=10)
        self.most = 0

    def call(self, request: CallRequest) -> CallResponse:
        self._arrive(request)
        self.barrier.wait()
        self._leave()
        return CallResponse(text=str(request.params.get("number")), raw="raw")

    async def acall(self, request: CallRequest) -> CallResponse:
        self._arrive(request)
        while self.in_flight < self.wanted and not self.most:
            await asyncio.sleep(0)
        self.most = self.wanted
        self._leave()
        return CallResponse(text=str(request.params.get("number")), raw="raw")


def setting(kind: type[FakeEndpoint] = FakeEndpoint, **script: Any) -> tuple[FakeEndpoint, CallRequest, VirtualClock]:
    clock = VirtualClock()
    endpoint = kind(clock, **script)
    return endpoint, Driver(pipeline(clock), endpoint).request(), clock


def one(request: CallRequest, number: int, log: list[Any] | None = None) -> Flow:
    """One model call, which tells when it is closed."""
    branch = request.evolve(call=request.call.branch(number), params={"number": number})
    try:
        response: CallResponse = yield ModelCall(branch)
    except Exception as error:
        if log is not None:
            log.append(type(error).__name__)
        raise
    finally:
        if log is not None:
            log.append(f"end {number}")
    return response


def several(flows: Sequence[Flow], outcomes: list[Any]) -> Flow:
    outcomes += yield Gather(flows)
    return CallResponse(text="all", raw="all")


def drive(kind: str, flow: Flow, clock: VirtualClock, request: CallRequest) -> str:
    if kind == "sync":
        return run(flow, clock).text
    if kind == "sync-streamed":
        return "".join(run_stream(flow, request, clock))

    async def main() -> str:
        if kind == "async":
            return (await arun(flow, clock)).text
        return "".join([chunk async for chunk in arun_stream(flow, request, clock)])

    return run_virtual(main, clock)


every_driver = pytest.mark.parametrize("kind", ["sync", "sync-streamed", "async", "async-streamed"])


@every_driver
def test_calls_are_made_at_the_same_time_and_answered_in_order(kind: str) -> None:
    endpoint, request, clock = setting(Meeting)
    outcomes: list[Any] = []
    assert drive(kind, several([one(request, number) for number in range(3)], outcomes), clock, request) == "all"
    assert [outcome.text for outcome in outcomes] == ["0", "1", "2"]
    assert len(endpoint.sent) == 3
    assert [attempt.outcome for attempt in request.call.attempts] == ["ok", "ok", "ok"]


@every_driver
def test_one_that_fails_is_an_outcome_beside_the_others(kind: str) -> None:
    _, request, clock = setting(behave=lambda number: ValueError("no") if number == 1 else None)
    outcomes: list[Any] = []
    drive(kind, several([one(request, number) for number in range(4)], outcomes), clock, request)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["CallResponse"] * 3 + ["ValueError"]
    assert sorted(str(attempt.outcome) for attempt in request.call.attempts) == ["failed", "ok", "ok", "ok"]


def test_an_exhausted_fake_model_is_a_failure_and_no_end() -> None:
    _, request, clock = setting(behave=lambda number: StopIteration() if number == 0 else None)
    outcomes: list[Any] = []
    run(several([one(request, number) for number in range(2)], outcomes), clock)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["CallResponse", "RuntimeError"]


@every_driver
def test_flows_sleep_side_by_side(kind: str) -> None:
    _, request, clock = setting()
    woken = Wakeup()
    order: list[Any] = []

    def sleeping(seconds: float, wakeup: Wakeup | None = None) -> Flow:
        yield Sleep(seconds, wakeup)
        order.append(seconds)
        if seconds == 1.0:
            woken.set()
        return (yield from one(request, int(seconds)))

    outcomes: list[Any] = []
    before = clock.now()
    flows = [sleeping(3.0), sleeping(1.0), sleeping(2.0), sleeping(60.0, woken)]
    drive(kind, several(flows, outcomes), clock, request)
    assert sorted(order[:2]) in ([1.0, 60.0], [1.0, 2.0])
    assert order[-1] == 3.0
    assert clock.now() - before == pytest.approx(3.0)
    assert len(outcomes) == 4


@every_driver
def test_other_effects_are_performed_in_gathered_flows_too(kind: str) -> None:
    def computing() -> Flow:
        text: str = yield Run(lambda: "computed")
        stored: str = yield StoreOp(lambda: "stored")
        inner: list[CallResponse] = yield Gather([one(request, 7)])
        return CallResponse(text=f"{text} {stored} {inner[0].text}")

    _, request, clock = setting()
    outcomes: list[Any] = []
    drive(kind, several([computing(), computing()], outcomes), clock, request)
    assert [outcome.text for outcome in outcomes] == ["computed stored one two three"] * 2


@every_driver
def test_each_call_has_its_own_time_limit(kind: str) -> None:
    """Real time, as little as it takes: the driver's limit is about real clients."""
    release = threading.Event()

    class Hanging(FakeEndpoint):
        def call(self, request: CallRequest) -> CallResponse:
            if request.params["number"] == 1:
                release.wait(10)
            return super().call(request)

        async def acall(self, request: CallRequest) -> CallResponse:
            if request.params["number"] == 1:
                await asyncio.sleep(10)
            return await super().acall(request)

    _, request, clock = setting(Hanging)
    limited = request.evolve(limits=Limits(call=0.05))
    outcomes: list[Any] = []
    try:
        drive(kind, several([one(limited, number) for number in range(3)], outcomes), clock, request)
    finally:
        release.set()
    assert [type(outcome) for outcome in outcomes] == [CallResponse, BrixTimeoutError, CallResponse]
    assert sorted(str(attempt.outcome) for attempt in request.call.attempts) == ["ok", "ok", "timed_out"]


async def test_a_cancelled_caller_ends_every_flow() -> None:
    endpoint, request, clock = setting(latency=60.0)
    clock.asleep = asyncio_sleep  # type: ignore[method-assign]
    log: list[Any] = []
    outcomes: list[Any] = []
    task = asyncio.create_task(arun(several([one(request, number, log) for number in range(3)], outcomes), clock))
    while endpoint.in_flight < 3:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["end 0", "end 1", "end 2"]
    assert endpoint.in_flight == 0
    assert outcomes == []
    assert [attempt.outcome for attempt in request.call.attempts] == ["cancelled"] * 3


async def asyncio_sleep(seconds: float, wakeup: Wakeup | None = None) -> None:
    await asyncio.sleep(seconds)


async def test_a_caller_cancelled_before_the_first_step_ends_every_flow() -> None:
    _, request, clock = setting()
    task = asyncio.create_task(arun(several([one(request, 0), one(request, 1)], []), clock))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert request.call.attempts == []


async def test_a_client_that_is_slow_to_be_cancelled_holds_nothing_once_the_caller_insists() -> None:
    stubborn = asyncio.Event()

    class Stubborn(FakeEndpoint):
        async def acall(self, request: CallRequest) -> CallResponse:
            self._arrive(request)
            while not stubborn.is_set():
                try:
                    await stubborn.wait()
                except asyncio.CancelledError:
                    continue
            raise ConnectionError("late")

    endpoint, request, clock = setting(Stubborn)
    log: list[Any] = []
    task = asyncio.create_task(arun(several([one(request, 0, log), one(request, 1, log)], []), clock))
    while endpoint.in_flight < 2:
        await asyncio.sleep(0)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["end 0", "end 1"]
    stubborn.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_an_interrupted_blocking_caller_ends_every_flow_at_once() -> None:
    release, began, caller = threading.Event(), threading.Barrier(3), threading.get_ident()

    class Interrupting(FakeEndpoint):
        def call(self, request: CallRequest) -> CallResponse:
            if began.wait(10) == 0:
                release.wait(0.05)  # until the caller waits: CPython may miss a signal in the moment before
                signal.pthread_kill(caller, signal.SIGINT)
            release.wait(10)
            return super().call(request)

    _, request, clock = setting(Interrupting)
    log: list[Any] = []
    flow = several([one(request, number, log) for number in range(3)], [])
    try:
        with pytest.raises(KeyboardInterrupt):
            run(flow, clock)
        assert log == ["end 0", "end 1", "end 2"]
        assert [attempt.outcome for attempt in request.call.attempts] == ["cancelled"] * 3
    finally:
        release.set()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_is_no_exception_ends_all_of_them(kind: str) -> None:
    class Leaving(FakeEndpoint):
        def call(self, request: CallRequest) -> CallResponse:
            if request.params["number"] == 1:
                raise SystemExit(3)
            return super().call(request)

        async def acall(self, request: CallRequest) -> CallResponse:
            if request.params["number"] == 1:
                raise asyncio.CancelledError
            await asyncio.sleep(0)
            await asyncio.sleep(5)
            return await super().acall(request)

    endpoint, request, clock = setting(Leaving)
    log: list[Any] = []
    with pytest.raises(SystemExit if kind == "sync" else asyncio.CancelledError):
        drive(kind, several([one(request, number, log) for number in range(3)], []), clock, request)
    assert sorted(log) == ["end 0", "end 1", "end 2"]
    assert endpoint.in_flight == 0


def test_many_blocking_callers_gather_at_once() -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=1.0)
    driver = Driver(pipeline(clock), endpoint)

    def call() -> list[Any]:
        request = driver.request()
        outcomes: list[Any] = []
        run(several([one(request, number) for number in range(3)], outcomes), clock)
        return outcomes

    results = clock.run_threads([call] * 20)
    assert [len(result) for result in results] == [3] * 20
    assert len(endpoint.sent) == 60


def test_callbacks_cannot_have_several_answers() -> None:
    _, request, clock = setting()
    step = Stepwise(several([one(request, 0)], []), clock)
    with pytest.raises(BrixInternalError, match="Gather"):
        step.begin()


class Blocking:
    def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
        return RetrievalResult(f"about {query}", score=0.5)


class Asynchronous:
    async def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
        await asyncio.sleep(0)
        return RetrievalResult(f"about {query}", score=0.5)


class Slow:
    """Both ways, and never in time."""

    def __init__(self) -> None:
        self.release = threading.Event()

    async def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
        await asyncio.sleep(60)
        raise AssertionError

    def retrieve_sync(self, query: str, *, max_results: int = 3) -> RetrievalResult:
        self.release.wait(10)
        return RetrievalResult("late", score=0.5)


def looking_up(provider: Any, seconds: float | None) -> Generator[Any, Any, CallResponse]:
    found: RetrievalResult = yield Retrieve(provider, "tea", seconds)
    return CallResponse(text=found.content, raw=found.content)


@every_driver
@pytest.mark.parametrize("provider", [Blocking, Asynchronous])
@pytest.mark.parametrize("seconds", [None, 10.0])
def test_a_retrieval_is_made_the_way_its_provider_is_written(
    kind: str, provider: Callable[[], Any], seconds: float | None
) -> None:
    _, request, clock = setting()
    assert drive(kind, looking_up(provider(), seconds), clock, request) == "about tea"


@every_driver
def test_a_retrieval_is_waited_for_no_longer_than_told(kind: str) -> None:
    _, request, clock = setting()
    slow = Slow()
    with pytest.raises(TimeoutError, match=r"Slow.retrieve\(\) gave nothing within 0.05 s"):
        drive(kind, looking_up(slow, 0.05), clock, request)
    slow.release.set()


@every_driver
@pytest.mark.parametrize("seconds", [None, 10.0])
def test_a_failing_retrieval_fails_in_the_flow(kind: str, seconds: float | None) -> None:
    class Failing:
        def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
            raise LookupError("index is gone")

    _, request, clock = setting()
    with pytest.raises(LookupError, match="index is gone"):
        drive(kind, looking_up(Failing(), seconds), clock, request)


def test_a_retrieval_can_be_had_by_callbacks() -> None:
    _, request, clock = setting()

    def flow() -> Flow:
        found: RetrievalResult = yield Retrieve(Blocking(), "tea")
        assert found.content == "about tea"
        response: CallResponse = yield ModelCall(request)
        return response

    step = Stepwise(flow(), clock)
    step.begin()
    assert step.finish(CallResponse(text="done")).text == "done"
