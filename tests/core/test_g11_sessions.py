"""G11: sessions are isolated, however their calls are interleaved."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
import threading
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core import BrixBudgetError, BrixConfigurationError, current_session_id, session
from brix_core.usage import Usage
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.ledger import AuditedStore
from tests.support.modes import Mode, both_drivers, every_mode
from tests.support.virtual import VirtualClock, run_virtual

CENT = {"prices": {"fake": (0.0, 0.0001)}, "budget_warning_threshold": 1.0}
quiet = pytest.mark.filterwarnings("ignore::brix_core.guards.budget.BrixBudgetWarning")


def cent_endpoint(clock: VirtualClock) -> FakeEndpoint:
    return FakeEndpoint(clock, latency=0.1, usage=Usage(input_tokens=8, output_tokens=100), known_longest=100)


@quiet
@every_mode
def test_fifty_interleaved_sessions_have_a_cap_a_rate_and_a_chain_each(mode: Mode) -> None:
    clock, store = VirtualClock(), AuditedStore()
    endpoint = cent_endpoint(clock)
    options = {"max_cost_usd": 0.03, "requests_per_minute": 60, "burst_capacity": 1, **CENT}
    driver = Driver(pipeline(clock, store=store, **options), endpoint)
    names = [f"user-{number}" for number in range(50)]
    calls = [{"session": name, "prompt": f"{name} {turn}"} for turn in range(4) for name in names]
    results = mode.all(driver, calls)
    for name in names:
        own = [result for result, call in zip(results, calls, strict=True) if call["session"] == name]
        assert sorted(type(result).__name__ for result in own) == ["BrixBudgetError", "str", "str", "str"]
        assert store.balance(f"budget:{name}").spent == 30_000_000
        at = [sent.at for sent in endpoint.sent if sent.session == name]
        assert at == pytest.approx([1_000.0, 1_001.0, 1_002.0])  # its own line: nobody else's calls delay it
        assert all(sent.text.startswith(f"{name} ") for sent in endpoint.sent if sent.session == name)
        entries = driver.pipe.traces.get_traces(name)
        assert [entry["sequence"] for entry in entries] == [4, 3, 2, 1]
        assert {entry["session_id"] for entry in entries} == {name}
        expected = hashlib.sha256(json.dumps({"genesis": name}, separators=(",", ":")).encode()).hexdigest()
        for entry in reversed(entries):
            assert entry["chain_hash"] == expected
            expected = hashlib.sha256(orjson.dumps(entry, option=orjson.OPT_SORT_KEYS)).hexdigest()
        state = driver.pipe.session(name)
        assert (state.call_count, state.session_cost_usd) == (4, 0.03)
    store.assert_sound()


@quiet
@every_mode
def test_one_sessions_spent_budget_is_nobody_elses(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, max_cost_usd=0.01, **CENT), cent_endpoint(clock))
    results = mode.each(driver, [{"session": name} for name in ("a", "a", "b", "b", "c")])
    assert [isinstance(result, BrixBudgetError) for result in results] == [False, True, False, True, False]


@both_drivers
def test_one_sessions_timeout_is_nobody_elses(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, total_timeout=10.0), FakeEndpoint(clock))
    mode.one(driver, session="early")
    clock.advance(20.0)
    results = mode.each(driver, [{"session": "early"}, {"session": "late"}])
    assert [isinstance(result, str) for result in results] == [False, True]


@settings(deadline=None, max_examples=50)
@both_drivers
@given(calls=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=20))
def test_the_known_prefix_of_one_session_never_leaks_into_another(mode: Mode, calls: list[tuple[str, int]]) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock), FakeEndpoint(clock))
    mode.all(driver, [{"session": name, "prompt": f"prompt {number}"} for name, number in calls])
    expected = sorted(
        (name, hashlib.sha256(json.dumps([{"role": "user", "content": f"prompt {number}"}]).encode()).hexdigest())
        for name, number in calls
    )
    entries = driver.pipe.traces.get_traces()
    assert sorted((entry["session_id"], entry["prompt_hash"]) for entry in entries) == expected


def test_without_a_name_a_call_belongs_to_the_clients_own_session() -> None:
    clock = VirtualClock()
    first, second = pipeline(clock), pipeline(clock, session_id="mine")
    assert first.session().session_id != pipeline(clock).session().session_id
    assert second.session() is second.session("mine")


# session(): whose calls are whose


def served(endpoint: FakeEndpoint) -> dict[str, str]:
    return {sent.text: sent.session for sent in endpoint.sent}


@every_mode
def test_calls_in_a_block_belong_to_its_session(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, session_id="own"), endpoint)
    mode.one(driver, "before")
    with session("outer") as name:
        assert name == current_session_id() == "outer"
        mode.one(driver, "outer")
        with session("inner"):
            mode.one(driver, "inner")
            mode.one(driver, "named", session="named by the framework")
        mode.one(driver, "outer again")
    mode.one(driver, "after")
    assert served(endpoint) == {
        "before": "own",
        "outer": "outer",
        "inner": "inner",
        "named": "named by the framework",
        "outer again": "outer",
        "after": "own",
    }


def test_tasks_keep_the_session_they_were_started_in() -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=1.0)
    driver = Driver(pipeline(clock, session_id="own"), endpoint)

    async def user(number: int) -> None:
        with session(f"user-{number}"):
            await asyncio.sleep(number % 3 * 0.1)
            await driver.acall(f"first {number}")
            async with asyncio.TaskGroup() as group:
                group.create_task(driver.acall(f"child {number}"))
                group.create_task(driver.astream(f"stream {number}"))

    async def main() -> None:
        await asyncio.gather(*map(user, range(50)))
        await driver.acall("alone")

    run_virtual(main, clock)
    seen = served(endpoint)
    assert seen.pop("alone") == "own"
    assert len(seen) == 150
    assert all(name == f"user-{text.split()[1]}" for text, name in seen.items())


def test_copied_contexts_carry_the_session_into_threads_and_bare_threads_do_not() -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=1.0)
    driver = Driver(pipeline(clock, session_id="own"), endpoint)
    jobs: list[Any] = []
    for number in range(20):
        with session(f"user-{number}"):
            context = contextvars.copy_context()
            jobs.append(lambda context=context, number=number: context.run(driver.call, f"copied {number}"))
            jobs.append(lambda number=number: driver.call(f"bare {number}"))
    assert set(clock.run_threads(jobs)) == {"one two three"}
    for text, name in served(endpoint).items():
        kind, number = text.split()
        assert name == (f"user-{number}" if kind == "copied" else "own")


def test_work_in_a_worker_thread_belongs_to_the_callers_session() -> None:
    # A blocking call with a time limit runs in a worker; what it does there sees the caller's context.
    clock = VirtualClock()
    seen: list[tuple[str | None, bool]] = []

    class Looks(FakeEndpoint):
        def _raise(self, number: int) -> None:
            seen.append((current_session_id(), threading.current_thread() is threading.main_thread()))

    driver = Driver(pipeline(clock, per_call_timeout=60.0), Looks(clock))
    with session("user-1"):
        driver.call()
        driver.stream()
    driver.call()
    assert seen == [("user-1", False), ("user-1", False), (None, False)]


def test_a_generated_session_is_new_each_time() -> None:
    with session() as first, session() as second:
        assert first != second
        assert current_session_id() == second
    assert current_session_id() is None


def test_a_session_ends_with_its_block_even_when_the_block_fails() -> None:
    with pytest.raises(RuntimeError), session("failing"):
        raise RuntimeError
    assert current_session_id() is None


@pytest.mark.parametrize("name", ["", 7, b"bytes", False])
def test_a_session_needs_a_name_that_is_one(name: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="session id"), session(name):
        pass


def test_a_stream_belongs_to_the_session_in_which_it_was_asked_for_wherever_it_is_read() -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock)
    driver = Driver(pipeline(clock, session_id="own"), endpoint)
    with session("asker"):
        chunks = driver.pipe.stream(driver.request("q", stream=True))
    with session("reader"):
        assert "".join(chunks) == "one two three"
        assert current_session_id() == "reader"
    assert served(endpoint) == {"q": "asker"}
