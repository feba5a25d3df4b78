"""G5: every logical call ends in exactly one trace entry, with every attempt inside it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core import BrixBudgetError, BrixRetryError, BrixTimeoutError
from brix_core.call import CallRequest, CallResponse
from brix_core.usage import Usage
from tests.support.errors import connection_lost, status_error
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.modes import Mode, both_drivers, both_streams, every_mode
from tests.support.virtual import VirtualClock, run_virtual

SEED_FIELDS = {
    "run_id",
    "session_id",
    "sequence",
    "timestamp",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
    "latency_ms",
    "prompt_hash",
    "response_hash",
    "guards_active",
    "chain_hash",
}
PRICE = {"max_cost_usd": 1.0, "prices": {"fake": (0.0, 0.0001)}}


def traces(driver: Driver, session: str | None = None) -> list[dict[str, Any]]:
    return driver.pipe.traces.get_traces(session)


def sha256(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def canonical(entry: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(entry, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # half a surrogate pair, which has no UTF-8
        return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()


def assert_chained(entries: list[dict[str, Any]], session: str) -> None:
    """Check a session's whole chain, newest entry first, from its beginning."""
    expected = sha256(json.dumps({"genesis": session}, separators=(",", ":")))
    for sequence, entry in enumerate(reversed(entries), 1):
        assert entry["sequence"] == sequence
        assert entry["chain_hash"] == expected
        expected = sha256(canonical(entry))


@every_mode
def test_an_answered_call_leaves_an_entry_with_every_field(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=0.25, usage=Usage(input_tokens=10, output_tokens=20))
    driver = Driver(
        pipeline(clock, session_id="s", max_retries=2, requests_per_minute=60, **PRICE),
        endpoint,
    )
    mode.one(driver, "What is it?", max_tokens=50)
    (entry,) = traces(driver)
    assert entry.keys() >= SEED_FIELDS
    assert uuid.UUID(entry["run_id"]).version == 4
    assert datetime.fromisoformat(entry["timestamp"]).utcoffset() == timedelta(0)
    assert entry["session_id"] == "s"
    assert entry["sequence"] == 1
    assert entry["model"] == "fake"
    assert entry["outcome"] == "ok"
    assert (entry["prompt_tokens"], entry["completion_tokens"], entry["usage_estimated"]) == (10, 20, False)
    assert entry["cost_usd"] == 0.002
    assert entry["latency_ms"] == pytest.approx(250.0)
    assert entry["prompt_hash"] == sha256(json.dumps([{"role": "user", "content": "What is it?"}]))
    assert entry["response_hash"] == sha256("one two three")
    assert entry["guards_active"] == ["observability", "retry", "budget", "rate_limit"]
    assert entry["stream"] is mode.streamed
    assert entry["first_chunk_ms"] == (pytest.approx(250.0) if mode.streamed else None)
    assert (entry["error"], entry["error_message"], entry["partial_text"]) == (None, None, None)
    (attempt,) = entry["attempts"]
    assert (attempt["endpoint"], attempt["model"], attempt["outcome"]) == ("fake:fake", "fake", "ok")
    assert attempt["latency_ms"] == pytest.approx(250.0)
    assert attempt["cost_usd"] == 0.002
    assert driver.pipe.session().run_id == entry["run_id"]


@every_mode
def test_a_failed_call_leaves_an_entry(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock), FakeEndpoint(clock, behave=lambda number: status_error(400, "bad input")))
    with pytest.raises(Exception, match="bad input"):
        mode.one(driver)
    (entry,) = traces(driver)
    assert (entry["outcome"], entry["error"], entry["error_message"]) == ("failed", "BadRequestError", "bad input")
    (attempt,) = entry["attempts"]
    assert (attempt["outcome"], attempt["error"], attempt["status"]) == ("failed", "BadRequestError", 400)


@every_mode
def test_a_refused_call_leaves_an_entry_without_attempts(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, max_cost_usd=1e-6, prices={"fake": (0, 0.1)}), FakeEndpoint(clock))
    with pytest.raises(BrixBudgetError):
        mode.one(driver)
    (entry,) = traces(driver)
    assert (entry["outcome"], entry["error"], entry["attempts"]) == ("refused", "BrixBudgetError", [])


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_a_call_that_timed_out_leaves_an_entry(streamed: bool) -> None:
    # The blocking driver's: in test_g04_timeouts, in real time.
    clock = VirtualClock()
    driver = Driver(pipeline(clock, per_call_timeout=1.0), FakeEndpoint(clock, latency=2.0))
    with pytest.raises(BrixTimeoutError):
        Mode("async", streamed).one(driver)
    (entry,) = traces(driver)
    assert (entry["outcome"], entry["error"]) == ("timed_out", "BrixTimeoutError")
    assert entry["attempts"][0]["outcome"] == "timed_out"
    assert entry["attempts"][0]["latency_ms"] == pytest.approx(1_000.0)


@every_mode
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_a_cancelled_call_leaves_an_entry(mode: Mode, error: type[BaseException]) -> None:
    clock = VirtualClock()

    class Interrupted(FakeEndpoint):
        def _raise(self, number: int) -> str | None:
            raise error

    driver = Driver(pipeline(clock, max_retries=3), Interrupted(clock))
    with pytest.raises(error):
        mode.one(driver)
    (entry,) = traces(driver)
    assert (entry["outcome"], entry["error"]) == ("cancelled", error.__name__)
    assert [attempt["outcome"] for attempt in entry["attempts"]] == ["cancelled"]


@both_streams
def test_an_abandoned_stream_leaves_an_entry_with_what_was_read(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock), FakeEndpoint(clock))
    request = driver.request(stream=True)

    async def main() -> None:
        chunks: Any = driver.pipe.astream(request)
        assert await anext(chunks) == "one "
        assert traces(driver) == []
        await chunks.aclose()

    if mode.driver == "async":
        run_virtual(main, clock)
    else:
        chunks: Any = driver.pipe.stream(request)
        assert next(chunks) == "one "
        assert traces(driver) == []
        chunks.close()
    (entry,) = traces(driver)
    assert (entry["outcome"], entry["partial_text"]) == ("abandoned", "one ")
    assert [attempt["outcome"] for attempt in entry["attempts"]] == ["abandoned"]
    assert entry["response_hash"] == sha256("one ")


@both_streams
def test_a_broken_stream_leaves_an_entry_with_what_had_arrived(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, max_retries=2), FakeEndpoint(clock, cut_after=2))
    with pytest.raises(ConnectionResetError):
        mode.one(driver)
    (entry,) = traces(driver)
    assert (entry["outcome"], entry["partial_text"], entry["error"]) == ("failed", "one two ", "ConnectionResetError")


@every_mode
def test_every_attempt_of_retries_and_failover_is_listed_in_order(mode: Mode) -> None:
    clock = VirtualClock()
    primary = FakeEndpoint(clock, latency=0.5, behave=lambda n: status_error(503) if n else connection_lost())
    fallback = FakeEndpoint(clock, name="other", latency=0.5, usage=Usage(input_tokens=1, output_tokens=2))
    driver = Driver(pipeline(clock, [fallback], max_retries=1, max_backoff=0.0), primary)
    mode.one(driver)
    (entry,) = traces(driver)
    seen = [(a["endpoint"], a["outcome"], a["error"], a["status"], a["after_ms"]) for a in entry["attempts"]]
    assert seen == [
        ("fake:fake", "failed", "APIConnectionError", None, pytest.approx(0.0)),
        ("fake:fake", "failed", "InternalServerError", 503, pytest.approx(500.0)),
        ("fake:other", "ok", None, None, pytest.approx(1_000.0)),
    ]
    assert entry["outcome"] == "ok"
    assert entry["model"] == "other"
    decisions = [(decision["guard"], decision["decision"]) for decision in entry["decisions"]]
    assert decisions == [("retry", "waiting"), ("failover", "moved_on")]


@every_mode
def test_entries_come_newest_first_and_the_oldest_go_first(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, trace_buffer_size=100, session_id="s"), FakeEndpoint(clock))
    mode.each(driver, [{"prompt": str(number)} for number in range(250)])
    entries = traces(driver)
    assert [entry["sequence"] for entry in entries] == list(range(250, 150, -1))
    assert entries[0]["prompt_hash"] == sha256(json.dumps([{"role": "user", "content": "249"}]))
    for newer, older in itertools.pairwise(entries):
        assert newer["chain_hash"] == sha256(canonical(older))


def test_entries_are_copies_that_a_reader_may_change() -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, session_id="s"), FakeEndpoint(clock))
    driver.call()
    (entry,) = traces(driver)
    entry["attempts"].clear()
    entry["decisions"].append("mine")
    entry["guards_active"].append("mine")
    driver.call()
    assert_chained(traces(driver), "s")
    assert all(len(entry["attempts"]) == 1 for entry in traces(driver))
    assert traces(driver)[0]["guards_active"] == ["observability"]


@every_mode
def test_any_change_to_an_entry_breaks_the_chain(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, session_id="s"), FakeEndpoint(clock))
    mode.each(driver, [{}] * 5)
    entries = traces(driver)
    assert_chained(entries, "s")
    entries[2]["latency_ms"] += 1.0
    with pytest.raises(AssertionError):
        assert_chained(entries, "s")
    with pytest.raises(AssertionError):
        assert_chained(entries[:2] + entries[3:], "s")


FATES = {
    "ok": lambda: None,
    "overloaded": lambda: status_error(503),
    "bad": lambda: status_error(400),
    "unknown": lambda: RuntimeError("?"),
    "lost": connection_lost,
    "surrogate": lambda: RuntimeError("half a \ud83d pair"),
}


@settings(deadline=None, max_examples=40)
@every_mode
@given(
    fates=st.lists(st.sampled_from(sorted(FATES)), min_size=1, max_size=30),
    calls=st.lists(st.sampled_from("ab"), min_size=1, max_size=20),
    retries=st.integers(0, 2),
)
def test_concurrent_calls_of_every_fate_leave_one_entry_each_in_a_sound_chain(
    mode: Mode, fates: list[str], calls: list[str], retries: int
) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, latency=0.1, behave=lambda number: FATES[fates[number % len(fates)]]())
    endpoint.known_longest = 10
    driver = Driver(pipeline(clock, max_retries=retries, **{**PRICE, "max_cost_usd": 0.01}), endpoint)
    results = mode.all(driver, [{"session": session} for session in calls])
    entries = traces(driver)
    assert len(entries) == len({entry["run_id"] for entry in entries}) == len(calls)
    assert sum(len(entry["attempts"]) for entry in entries) == len(endpoint.sent)
    assert sum(entry["outcome"] == "ok" for entry in entries) == sum(isinstance(result, str) for result in results)
    # Refused is a call of which nothing was sent; a retry that the budget refused has failed.
    for entry in entries:
        assert (entry["outcome"] == "refused") == (not entry["attempts"])
        assert (entry["outcome"] == "ok") == (entry["error"] is None)
        assert entry["outcome"] in ("ok", "failed", "refused")
    for session in "ab":
        assert_chained([entry for entry in entries if entry["session_id"] == session], session)
        assert [entry for entry in entries if entry["session_id"] == session] == traces(driver, session)


@every_mode
def test_the_retry_history_is_among_the_sessions_notes(mode: Mode) -> None:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(503) if number == 0 else None)
    driver = Driver(pipeline(clock, max_retries=1), endpoint)
    mode.one(driver)
    (failed,) = driver.pipe.session().metadata["retry_history"]
    assert (failed["attempt"], failed["status"], failed["error"]) == (1, 503, "InternalServerError")
    mode.one(driver)
    assert driver.pipe.session().metadata["retry_history"] == []


@both_streams
def test_the_prompt_hash_is_that_of_the_prompt_as_it_was_sent(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock), FakeEndpoint(clock))
    messages = [{"role": "user", "content": "as it was sent"}]
    expected = sha256(json.dumps(messages))
    request = driver.pipe.request(driver.endpoint, messages, {}, stream=True)

    async def main() -> None:
        async for _ in driver.pipe.astream(request):
            messages[0]["content"] = "edited while the answer came"

    if mode.driver == "async":
        run_virtual(main, clock)
    else:
        for _ in driver.pipe.stream(request):
            messages[0]["content"] = "edited while the answer came"
    assert traces(driver)[0]["prompt_hash"] == expected


def _awaited(driver: Driver) -> Callable[[CallRequest], CallResponse]:
    return lambda request: run_virtual(lambda: driver.pipe.acall(request), cast(VirtualClock, driver.pipe.clock))


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this works")


@every_mode
def test_a_failure_that_cannot_be_printed_leaves_an_entry_too(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock), FakeEndpoint(clock, behave=lambda number: Unprintable()))
    with pytest.raises(Unprintable):
        mode.one(driver)
    (entry,) = traces(driver)
    assert (entry["outcome"], entry["error"], entry["error_message"]) == ("failed", "Unprintable", "")


@both_drivers
@pytest.mark.parametrize("messages", [[None], [{"role": "user", "content": {("no", "json"): 1}}]])
def test_a_prompt_that_cannot_be_read_leaves_an_entry_too(mode: Mode, messages: list[Any]) -> None:
    clock = VirtualClock()

    class Unmoved(FakeEndpoint):
        def _arrive(self, request: Any) -> int:
            raise RuntimeError("never mind")

    endpoint = Unmoved(clock)
    driver = Driver(pipeline(clock, **PRICE), endpoint)
    request = driver.pipe.request(endpoint, messages, {})
    run: Any = driver.pipe.call if mode.driver == "sync" else _awaited(driver)
    with pytest.raises((TypeError, RuntimeError)):
        run(request)
    (entry,) = traces(driver)
    assert entry["outcome"] == "failed"


@both_drivers
def test_a_call_given_up_after_retries_has_failed(mode: Mode) -> None:
    clock = VirtualClock()
    driver = Driver(pipeline(clock, max_retries=2), FakeEndpoint(clock, behave=lambda number: status_error(503)))
    with pytest.raises(BrixRetryError):
        mode.one(driver)
    (entry,) = traces(driver)
    assert (entry["outcome"], entry["error"], len(entry["attempts"])) == ("failed", "BrixRetryError", 3)
