"""The cache guard: what is answered once is not asked again, and what differs is not mixed up."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from brix_core import BrixBudgetError, BrixSchemaError, BrixTimeoutError, InMemoryCache, MemoryStore
from brix_core.caching.flights import MAX_FAILED
from brix_core.caching.keys import UnkeyableError, canonical
from brix_core.call import PARSED, CallRequest, CallResponse
from brix_core.clock import SystemClock
from brix_core.flow import Flow, Proceed
from brix_core.options import parse
from brix_core.pipeline import Pipeline
from brix_core.structured.response_schema import ResponseSchema
from brix_core.usage import Usage
from tests.enforcement.support import Durable
from tests.support.errors import status_error
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.modes import Mode, both_drivers, both_streams, every_mode
from tests.support.schemas import CITY_JSON, OSLO, VALID, City
from tests.support.virtual import VirtualClock, run_virtual

USAGE = Usage(input_tokens=10, output_tokens=3)


def setup(**fields: Any) -> tuple[Driver, FakeEndpoint]:
    clock = VirtualClock()
    options = fields.pop("options", {})
    options.setdefault("cache", InMemoryCache(clock=clock))
    endpoint = FakeEndpoint(clock, **{"chunks": ["one ", "two"], "usage": USAGE, **fields})
    return Driver(pipeline(clock, options.pop("fallbacks", ()), **options), endpoint), endpoint


def decided(driver: Driver) -> list[str]:
    """What the cache decided, oldest first."""
    traces = reversed(driver.pipe.traces.get_traces())
    return [made["decision"] for trace in traces for made in trace["decisions"] if made["guard"] == "cache"]


# -- hits and misses -------------------------------------------------------------------------------------------


@every_mode
def test_the_second_of_two_is_answered_by_the_cache(mode: Mode) -> None:
    cache = InMemoryCache()
    driver, endpoint = setup(options={"cache": cache, "max_cost_usd": 1.0, "prices": {"fake": (1e-6, 1e-6)}})
    assert mode.each(driver, [{"prompt": "hello"}] * 3) == ["one two"] * 3
    assert len(endpoint.sent) == 1
    assert decided(driver) == ["miss", "hit", "hit"]
    assert cache.get_stats() == {"hits": 2, "misses": 1, "hit_rate": "66.67%"}
    hit, _, asked = driver.pipe.traces.get_traces()
    assert (hit["outcome"], hit["attempts"], hit["cost_usd"], hit["model"]) == ("ok", [], 0.0, "fake")
    assert len(asked["attempts"]) == 1
    assert asked["cost_usd"] > 0
    assert driver.pipe.session().session_cost_usd == pytest.approx(asked["cost_usd"])


@pytest.mark.parametrize("first", ["sync", "async"])
@pytest.mark.parametrize("streamed", [False, True])
def test_streamed_or_not_is_the_same_request(first: Any, streamed: bool) -> None:
    driver, endpoint = setup()
    other: Any = "async" if first == "sync" else "sync"
    assert Mode(first, streamed).one(driver) == Mode(other, not streamed).one(driver) == "one two"
    assert len(endpoint.sent) == 1


@both_streams
def test_a_stream_that_is_left_is_not_kept(mode: Mode) -> None:
    driver, endpoint = setup(chunks=["one ", "two ", "three"])

    async def leave() -> None:
        stream = driver.pipe.astream(driver.request(stream=True))
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

    if mode.driver == "async":
        run_virtual(leave, driver.pipe.clock)  # type: ignore[arg-type]
    else:
        stream = driver.pipe.stream(driver.request(stream=True))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert mode.one(driver) == "one two three"
    assert len(endpoint.sent) == 2
    assert decided(driver) == ["miss", "miss"]


@every_mode
def test_an_answer_holds_for_its_time(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, cache=InMemoryCache(default_ttl=1e6, clock=clock), cache_ttl=10.0), endpoint)
    mode.one(driver)
    clock.advance(9)
    mode.one(driver)
    assert len(endpoint.sent) == 1
    clock.advance(2)
    mode.one(driver)
    assert len(endpoint.sent) == 2


@every_mode
def test_failures_are_not_kept(mode: Mode) -> None:
    driver, endpoint = setup(behave=lambda number: status_error(500) if number == 0 else None)
    [error, answer] = mode.each(driver, [{}, {}])
    assert isinstance(error, Exception)
    assert answer == "one two"
    assert len(endpoint.sent) == 2


@every_mode
@pytest.mark.parametrize("reason", ["length", "max_tokens", "content_filter", "refusal"])
def test_half_an_answer_is_not_kept(mode: Mode, reason: str) -> None:
    class Cut(FakeEndpoint):
        def finish(self, *of: Any) -> Any:
            return super().finish(*of)._replace(finish_reason=reason)

        def _answer(self, *of: Any) -> Any:
            return super()._answer(*of)._replace(finish_reason=reason)

    clock = VirtualClock()
    endpoint = Cut(clock)
    driver = Driver(pipeline(clock, cache=InMemoryCache()), endpoint)
    mode.each(driver, [{}, {}])
    assert len(endpoint.sent) == 2
    assert decided(driver) == ["miss", "not_kept"] * 2


@every_mode
def test_an_answer_cut_by_a_time_limit_or_empty_is_not_kept(mode: Mode) -> None:
    late, slow = setup(
        chunk_delay=2.0, options={"cache": InMemoryCache(), "per_call_timeout": 3.0, "on_timeout": "return_partial"}
    )
    slow.chunks = ["one ", "two ", "three"]
    if mode.driver == "async":  # a blocking time limit waits in real time
        assert mode.one(late) == "one two "
        assert decided(late) == ["miss", "not_kept"]
    empty, silent = setup(chunks=[""])
    mode.each(empty, [{}, {}])
    assert len(silent.sent) == 2


@every_mode
def test_what_a_guard_answers_is_not_kept(mode: Mode) -> None:
    class Blocking:
        name = "regulated"

        def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
            request.call.decide("regulated", "blocked")
            yield from ()
            return CallResponse(text="I may not.")

    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    pipe = Pipeline(parse({"cache": InMemoryCache(), "clock": clock, "store": MemoryStore()}), further=[Blocking()])
    driver = Driver(pipe, endpoint)
    assert mode.each(driver, [{}, {}]) == ["I may not."] * 2
    assert [[made["decision"] for made in trace["decisions"]] for trace in pipe.traces.get_traces()] == [
        ["miss", "blocked", "not_kept"]
    ] * 2  # the rule is applied, and told of, each time
    assert endpoint.sent == []


@both_drivers
def test_several_answers_are_not_kept(mode: Mode) -> None:
    driver, endpoint = setup()
    mode.each(driver, [{"n": 2}, {"n": 2}])
    assert len(endpoint.sent) == 2
    assert decided(driver) == ["bypassed", "bypassed"]


@both_drivers
def test_what_cannot_be_told_apart_is_sent(mode: Mode) -> None:
    driver, endpoint = setup()
    mode.each(driver, [{"tool": object()}, {"tool": lambda: None}])
    assert len(endpoint.sent) == 2
    assert "whose value cannot be told" in driver.pipe.traces.get_traces()[0]["decisions"][0]["reason"]


@every_mode
def test_the_answer_of_a_fallback_is_kept_for_the_request(mode: Mode) -> None:
    clock = VirtualClock()
    down = FakeEndpoint(clock, name="first", behave=lambda number: status_error(503))
    up = FakeEndpoint(clock, name="second", chunks=["from second"])
    driver = Driver(pipeline(clock, [up], cache=InMemoryCache()), down)
    assert mode.each(driver, [{}, {}]) == ["from second"] * 2
    assert (len(down.sent), len(up.sent)) == (1, 1)
    hit = driver.pipe.traces.get_traces()[0]
    assert hit["model"] == "second"
    assert hit["decisions"] == [{"guard": "cache", "decision": "hit", "model": "second"}]


@every_mode
def test_sessions_share_answers_and_a_hit_needs_no_money(mode: Mode) -> None:
    driver, endpoint = setup(options={"cache": InMemoryCache(), "max_cost_usd": 1.3e-5, "prices": {"fake": (1e-6, 0)}})
    first, second, third = mode.each(
        driver,
        [{"session": "a", "max_tokens": 5}, {"session": "a", "max_tokens": 5}, {"prompt": "new", "session": "a"}],
    )
    assert first == second == "one two"
    assert isinstance(third, BrixBudgetError)
    assert len(endpoint.sent) == 1


# -- keys ------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False, width=16) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


def typed(value: Any) -> Any:
    """A value that equals another only if types and signs do as well; the order of keys does not count."""
    if isinstance(value, dict):
        return "dict", frozenset((key, typed(item)) for key, item in value.items())
    if isinstance(value, list):
        return "list", tuple(map(typed, value))
    return type(value).__name__, repr(value)


@settings(deadline=None)
@given(one=VALUES, other=VALUES)
def test_different_parameters_have_different_keys_and_equal_ones_the_same(one: Any, other: Any) -> None:
    assert (repr(canonical(one)) == repr(canonical(other))) == (typed(one) == typed(other))


def test_objects_are_known_by_their_value_or_not_at_all() -> None:
    class Point(BaseModel):
        x: int

    assert canonical(Point(x=1)) == canonical(Point(x=1)) != canonical(Point(x=2))
    assert canonical(City) != canonical(Point)
    assert canonical({1, 2}) == canonical({2, 1})
    assert canonical(b"a") != canonical("a")
    assert canonical(float("inf")) != canonical("inf")
    with pytest.raises(UnkeyableError):
        canonical({"a": [object()]})
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnkeyableError, match="hold themselves"):
        canonical(loop)


@both_drivers
@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "other"},
        {"max_tokens": 5},
        {"max_tokens": 6},
        {"temperature": 0.0},
        {"temperature": None},
        {"temperature": False},
        {"seed": 0},
        {"stop": ["x"]},
        {"stop": "x"},
        {"top_p": 0.5},
        {"model": "other"},
        {"logit_bias": {"1": 2}},
        {"response_format": City},
        {"tools": [{"parameters": {"properties": {"timeout": {"type": "integer"}}}}]},
    ],
    ids=str,
)
def test_every_parameter_is_part_of_the_key(mode: Mode, change: dict[str, Any]) -> None:
    driver, endpoint = setup()
    tools: dict[str, Any] = {"tools": [{"parameters": {"properties": {}}}]}
    mode.each(driver, [{}, tools, change, {}, tools, change])
    assert len(endpoint.sent) == 3


@both_drivers
def test_how_long_one_waits_is_no_part_of_the_key(mode: Mode) -> None:
    driver, endpoint = setup()
    mode.each(driver, [{}, {"timeout": 5.0}])
    assert len(endpoint.sent) == 1


@both_drivers
def test_the_endpoint_the_schema_and_the_guards_inside_are_part_of_the_key(mode: Mode) -> None:
    clock, cache = VirtualClock(), InMemoryCache()
    made: list[tuple[FakeEndpoint, dict[str, Any]]] = [
        (FakeEndpoint(clock, name="a", chunks=[VALID]), {}),
        (FakeEndpoint(clock, name="b", chunks=[VALID]), {}),
        (FakeEndpoint(clock, name="a", chunks=[VALID]), {"max_context_tokens": 9_000}),
        (FakeEndpoint(clock, name="a", chunks=[VALID]), {"response_schema": City}),
        (FakeEndpoint(clock, name="a", chunks=[VALID]), {"response_schema": CITY_JSON}),
    ]
    for _ in range(2):
        for endpoint, options in made:
            mode.one(Driver(pipeline(clock, cache=cache, **options), endpoint), model="same")
    assert [len(endpoint.sent) for endpoint, _ in made] == [1] * len(made)


# -- schemas ---------------------------------------------------------------------------------------------------


@every_mode
def test_a_hit_is_valid_and_an_instance_of_its_own(mode: Mode) -> None:
    driver, endpoint = setup(chunks=[VALID], options={"cache": InMemoryCache(), "response_schema": City})
    got = []
    for _ in range(3):
        request = driver.request(stream=mode.streamed)
        if mode.streamed:
            list(driver.pipe.stream(request))
        else:
            driver.pipe.call(request)
        got.append(request.call.metadata[PARSED])
        got[-1].people += 1  # a caller may do with it what it likes
    assert [city.people for city in got] == [OSLO.people + 1] * 3
    assert len(endpoint.sent) == 1


def test_what_is_kept_is_read_by_the_schema_of_the_caller() -> None:
    """Two classes of one name and one JSON Schema, of which the second takes less: a hit must fit it (G8)."""
    clock, cache = VirtualClock(), InMemoryCache()
    strict = type("City", (City,), {"__qualname__": City.__qualname__, "__module__": City.__module__})

    def refuse(value: Any) -> Any:
        raise ValueError("never")

    schema = ResponseSchema.of(strict)
    schema.json_schema = ResponseSchema.of(City).json_schema
    schema.validate = refuse  # type: ignore[method-assign]
    schema.read_candidate = refuse  # type: ignore[assignment, method-assign]
    endpoint = FakeEndpoint(clock, chunks=[VALID])
    pipe = pipeline(clock, cache=cache, response_schema=City, max_schema_retries=0)
    pipe.call(Driver(pipe, endpoint).request())
    request = pipe.request(endpoint, [{"role": "user", "content": "hello"}], {}, schema=schema)
    with pytest.raises(ValueError, match="never"):
        pipe.call(request)
    assert len(endpoint.sent) == 2


@both_drivers
def test_an_answer_that_does_not_fit_is_not_kept(mode: Mode) -> None:
    driver, endpoint = setup(
        chunks=["never"], options={"cache": InMemoryCache(), "response_schema": City, "max_schema_retries": 0}
    )
    assert all(isinstance(error, BrixSchemaError) for error in mode.each(driver, [{}, {}]))
    assert len(endpoint.sent) == 2


# -- one call for many -----------------------------------------------------------------------------------------


@both_drivers
@pytest.mark.parametrize("count", [2, 100])
def test_identical_requests_at_the_same_time_are_one_call(mode: Mode, count: int) -> None:
    driver, endpoint = setup(latency=5.0)
    assert mode.all(driver, [{}] * count) == ["one two"] * count
    assert len(endpoint.sent) == 1
    traces = driver.pipe.traces.get_traces()
    assert len(traces) == count
    assert sum(len(trace["attempts"]) for trace in traces) == 1
    assert sorted(decided(driver)) == ["miss"] + ["shared"] * (count - 1)
    assert driver.pipe.clock.now() == pytest.approx(1_005.0)


@both_drivers
def test_different_requests_do_not_wait_for_each_other(mode: Mode) -> None:
    driver, endpoint = setup(latency=5.0)
    mode.all(driver, [{"prompt": f"{n % 10}"} for n in range(30)])
    assert len(endpoint.sent) == 10
    assert driver.pipe.clock.now() == pytest.approx(1_005.0)


@both_drivers
def test_a_leader_that_fails_hands_over(mode: Mode) -> None:
    driver, endpoint = setup(latency=5.0, behave=lambda number: status_error(500) if number == 0 else None)
    results = mode.all(driver, [{}] * 20)
    assert sum(isinstance(result, Exception) for result in results) == 1
    assert results.count("one two") == 19
    assert len(endpoint.sent) == 2
    assert driver.pipe.clock.now() == pytest.approx(1_010.0)


@both_drivers
def test_callers_of_a_provider_that_is_down_do_not_fail_one_after_the_other(mode: Mode) -> None:
    driver, endpoint = setup(latency=5.0, behave=lambda number: status_error(500))
    results = mode.all(driver, [{}] * 20)
    assert all(isinstance(result, Exception) for result in results)
    assert len(endpoint.sent) == 20
    assert driver.pipe.clock.now() == pytest.approx(1_000.0 + 5.0 * (MAX_FAILED + 1))


def test_a_leader_that_is_cancelled_hands_over_and_a_waiter_may_leave() -> None:
    driver, endpoint = setup(latency=5.0)

    async def main() -> list[Any]:
        tasks = [asyncio.ensure_future(driver.acall()) for _ in range(6)]
        for number in (0, 3, 1):  # the leader, a waiter, the next leader
            await asyncio.sleep(1.0)
            tasks[number].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = run_virtual(main, driver.pipe.clock)  # type: ignore[arg-type]
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, False, True, False, False]
    assert results[2] == results[4] == results[5] == "one two"
    assert len(endpoint.sent) == 3
    assert endpoint.in_flight == 0
    outcomes = [trace["outcome"] for trace in driver.pipe.traces.get_traces()]
    assert (outcomes.count("cancelled"), outcomes.count("ok")) == (3, 3)


def test_threads_and_event_loops_share_one_call() -> None:
    """In real time: the leader is in a thread, the others in two loops and a thread."""
    started, release = threading.Event(), threading.Event()

    class Waiting(FakeEndpoint):
        def call(self, request: Any) -> Any:
            started.set()
            assert release.wait(10)
            return super().call(request)

    clock = SystemClock()
    endpoint = Waiting(clock)
    driver = Driver(pipeline(clock, cache=InMemoryCache()), endpoint)
    results: list[str] = []

    async def several() -> None:
        results.extend(await asyncio.gather(*(driver.acall() for _ in range(5))))

    threads = [threading.Thread(target=lambda: results.append(driver.call()))]
    threads[0].start()
    assert started.wait(10)
    threads += [threading.Thread(target=lambda: asyncio.run(several())) for _ in range(2)]
    threads += [threading.Thread(target=lambda: results.append(driver.call()))]
    for thread in threads[1:]:
        thread.start()
    while driver.pipe.session().call_count < 12:
        started.wait(0.001)
    release.set()
    for thread in threads:
        thread.join(10)
    assert results == ["one two three"] * 12
    assert len(endpoint.sent) == 1


def test_streams_wait_for_nobody() -> None:
    driver, endpoint = setup()
    stream = driver.pipe.stream(driver.request(stream=True))
    next(stream)
    assert driver.call() == "one two"  # the same, asked for by the consumer of the stream
    assert list(stream) == ["two"]
    assert len(endpoint.sent) == 2


@both_drivers
def test_nobody_waits_for_another_longer_than_the_session_has_time(mode: Mode) -> None:
    driver, endpoint = setup(latency=5.0, options={"cache": InMemoryCache(), "total_timeout": 1_000.0})
    driver.pipe.session("old")
    driver.pipe.clock.advance(997.0)  # type: ignore[attr-defined]
    new, old = mode.all(driver, [{"session": "new"}, {"session": "old"}], stagger=0.5)
    assert new == "one two"
    assert isinstance(old, BrixTimeoutError)
    assert len(endpoint.sent) == 1
    entry = next(trace for trace in driver.pipe.traces.get_traces() if trace["session_id"] == "old")
    assert entry["attempts"] == []


def test_flights_are_forgotten() -> None:
    driver, _ = setup(latency=1.0, behave=lambda number: status_error(500) if number % 3 else None)
    for number in range(3):
        Mode("async").all(driver, [{"prompt": f"{number}{n % 7}"} for n in range(50)])
    [guard] = [guard for guard in driver.pipe.guards if guard.name == "cache"]
    assert len(guard._flights) == 0  # type: ignore[attr-defined]


# -- caches of all kinds ---------------------------------------------------------------------------------------


@every_mode
def test_a_cache_that_does_io_is_used_off_the_loop(mode: Mode) -> None:
    cache = Durable()
    driver, endpoint = setup(options={"cache": cache})
    here = threading.get_ident()

    async def main() -> None:
        for _ in range(2):
            assert await (driver.astream() if mode.streamed else driver.acall()) == "one two"

    if mode.driver == "async":
        asyncio.run(main())
        assert here not in cache.threads
    else:
        mode.each(driver, [{}, {}])
        assert cache.threads == {here}
    assert len(endpoint.sent) == 1


@every_mode
@pytest.mark.parametrize("broken", ["get", "set"])
def test_a_cache_that_fails_costs_only_its_answers(
    mode: Mode, broken: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*of: Any) -> Any:
        raise ConnectionError("the cache is down")

    cache = InMemoryCache()
    monkeypatch.setattr(cache, broken, fail)
    driver, endpoint = setup(options={"cache": cache})
    with caplog.at_level(logging.WARNING):
        assert mode.each(driver, [{}, {}]) == ["one two"] * 2
    assert len(endpoint.sent) == 2
    assert "cache" in caplog.text or "not kept" in caplog.text
    assert decided(driver)[0 if broken == "get" else 1] == ("unavailable" if broken == "get" else "not_kept")


@both_drivers
@pytest.mark.parametrize("kept", [None, False, 7, "text", {"text": 3}, {"endpoint": "x"}, []], ids=repr)
def test_what_is_no_answer_is_a_miss(mode: Mode, kept: Any) -> None:
    class Odd(InMemoryCache):
        def get(self, key: str, default: Any = None) -> Any:
            return kept

    driver, endpoint = setup(options={"cache": Odd()})
    assert mode.one(driver) == "one two"
    assert len(endpoint.sent) == 1
