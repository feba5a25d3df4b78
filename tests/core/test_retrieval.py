"""Scores read the right way round, providers called from anywhere, and only what is relevant let past."""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import brix_core
from brix_core import (
    BrixConfigurationError,
    BrixRetrievalError,
    RetrievalProvider,
    RetrievalResult,
    RetrievedDocument,
    current_session_id,
    session,
)
from brix_core.endpoints.portal import portal
from brix_core.retrieval.calls import aretrieve, retrieve
from brix_core.retrieval.gate import MAX_MESSAGE, RetrievalGate
from brix_core.retrieval.results import Relevance, source_of
from tests.support.virtual import VirtualClock


def document(score: float, source: str = "a.md", text: str = "text") -> RetrievedDocument:
    return RetrievedDocument(text=text, score=score, source=source)


# --- scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "raw", "expected"),
    [
        ("similarity", 0.75, 0.75),
        ("similarity", 1, 1.0),
        ("similarity", -0.5, 0.0),
        ("similarity", 1.0000002, 1.0),
        ("similarity", np.float32(0.5), 0.5),
        ("distance", 0, 1.0),
        ("distance", 1.0, 0.5),
        ("distance", -1e-7, 1.0),
        ("distance", np.float32(3.0), 0.25),
        (lambda raw: raw / 100, 42, 0.42),
        (lambda raw: 1.0 if raw is None else 0.0, None, 1.0),
    ],
)
def test_scores_are_read_as_relevance(score: Any, raw: Any, expected: float) -> None:
    value = Relevance(score)(raw)
    assert value == pytest.approx(expected)
    assert type(value) is float


@given(st.lists(st.floats(0, 1e30), min_size=2, max_size=2))
def test_a_longer_distance_is_never_more_relevant(pair: list[float]) -> None:
    near, far = sorted(pair)
    assert 0.0 <= Relevance("distance")(far) <= Relevance("distance")(near) <= 1.0


@pytest.mark.parametrize("score", ["similarity", "distance"])
@pytest.mark.parametrize(
    "raw", [None, math.nan, np.float32("nan"), math.inf, -math.inf, "0.9", True, Decimal("0.5"), [0.5], object()]
)
def test_what_is_no_number_is_an_error_and_not_zero(score: Any, raw: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"the score of report\.pdf is .*, and no number") as caught:
        Relevance(score)(raw, "report.pdf")
    assert repr(raw) in str(caught.value)


@pytest.mark.parametrize(
    ("score", "raw", "advice"),
    [
        ("similarity", 1.5, "score='distance'"),
        ("similarity", -2.0, "score='distance'"),
        ("distance", -0.5, "score='similarity'"),
        (lambda raw: 1.5, 7, r"score\(7\) of report.pdf is 1.5"),
        (lambda raw: None, 7, r"score\(7\) of report.pdf is None"),
    ],
)
def test_a_number_beyond_its_range_names_the_next_step(score: Any, raw: Any, advice: str) -> None:
    with pytest.raises(BrixConfigurationError, match=advice):
        Relevance(score)(raw, "report.pdf")


@pytest.mark.parametrize("score", ["cosine", None, 0.5, ["similarity"]])
def test_the_kind_of_score_is_one_of_three(score: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="'similarity', 'distance' or a function"):
        Relevance(score)


def test_a_best_first_list_that_rises_was_read_the_wrong_way_round() -> None:
    with pytest.raises(BrixConfigurationError, match="pass score='distance'"):
        Relevance("similarity").check_order([0.25, 0.5])
    with pytest.raises(BrixConfigurationError, match="pass score='similarity'"):
        Relevance("distance").check_order([0.5, 0.9])
    Relevance("similarity").check_order([0.5, 0.25])
    Relevance("similarity").check_order([0.5, 0.500001])
    Relevance("similarity").check_order([])
    Relevance(float).check_order([0.25, 0.5])


# --- results -------------------------------------------------------------------------------------------


def test_a_result_puts_documents_together() -> None:
    found = RetrievalResult.of([document(0.5, "a", "One."), document(0.75, "b", "Two."), document(0.25, "a", "Three.")])
    assert found.content == "One.\n\nTwo.\n\nThree."
    assert (found.score, found.sources) == (0.75, ("a", "b"))
    assert (found.scores, found.texts) == ((0.5, 0.75, 0.25), ("One.", "Two.", "Three."))


def test_nothing_found_is_the_worst_result() -> None:
    assert RetrievalResult.of([]) == RetrievalResult(content="", score=0.0, sources=[])


@pytest.mark.parametrize("score", [math.nan, None, 1.5, -0.5, "high"])
def test_a_result_without_a_usable_score_cannot_be_made(score: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="score of a RetrievalResult is"):
        RetrievalResult(content="text", score=score)
    with pytest.raises(BrixConfigurationError, match=r"score of a\.md is"):
        document(score)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"content": None}, "content"), ({"content": b"text"}, "content"), ({"sources": "a.md"}, "sources")],
)
def test_a_result_takes_a_text_and_a_list_of_sources(fields: Any, message: str) -> None:
    with pytest.raises(BrixConfigurationError, match=message):
        RetrievalResult(**{"content": "text", "score": 1.0, **fields})


def test_a_result_cannot_be_changed() -> None:
    sources = ["a.md"]
    found = RetrievalResult(content="text", score=1.0, sources=sources)
    sources.clear()
    assert found.sources == ("a.md",)
    with pytest.raises(AttributeError):
        found.score = 0.5  # type: ignore[misc]


def test_a_source_is_looked_for_in_the_metadata() -> None:
    metadata = {"file_name": "b", "url": "u", "page": 3}
    assert source_of(metadata, None, "id") == "u"
    assert source_of(metadata, "page", "id") == "3"
    assert source_of(metadata, "absent", "id") == "id"
    assert source_of({}, None, None) == ""


# --- providers -----------------------------------------------------------------------------------------


class MyRAG(RetrievalProvider):
    """As an application writes it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str | None, Any]] = []

    async def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
        await asyncio.sleep(0)
        self.seen.append((max_results, current_session_id(), asyncio.get_running_loop()))
        return RetrievalResult(content=query, score=0.5, sources=["https://example.com"])


class Blocking:
    def __init__(self) -> None:
        self.threads: list[int] = []

    def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
        self.threads.append(threading.get_ident())
        return RetrievalResult(content=f"{query} {current_session_id()} {max_results}", score=0.5)


def test_an_asynchronous_provider_serves_blocking_callers_in_their_session_on_one_loop() -> None:
    provider = MyRAG()
    with session("user-42"):
        assert retrieve(provider, "query").content == "query"
        retrieve(provider, "query", max_results=7)
    (first, name, loop), (second, _, again) = provider.seen
    assert (first, second, name) == (3, 7, "user-42")
    assert loop is again


async def test_an_asynchronous_provider_serves_the_loop_it_is_awaited_on() -> None:
    provider = MyRAG()
    assert (await aretrieve(provider, "query")).sources == ("https://example.com",)
    retrieve(provider, "query")  # a blocking call on the loop does not wait for itself
    assert provider.seen[0][2] is asyncio.get_running_loop()
    assert provider.seen[1][2] is not provider.seen[0][2]


async def test_a_blocking_provider_does_not_hold_up_the_loop() -> None:
    provider = Blocking()
    with session("user-42"):
        assert (await aretrieve(provider, "query", max_results=2)).content == "query user-42 2"
        assert retrieve(provider, "query").content == "query user-42 3"
    assert provider.threads[0] != threading.get_ident() == provider.threads[1]


async def test_a_function_that_gives_a_coroutine_is_awaited() -> None:
    class Wrapped:
        def retrieve(self, query: str, *, max_results: int = 3) -> Any:
            return MyRAG().retrieve(query, max_results=max_results)

    assert (await aretrieve(Wrapped(), "query")).content == "query"
    assert retrieve(Wrapped(), "query").content == "query"


def test_a_blocking_twin_is_preferred_by_blocking_callers() -> None:
    class Both(MyRAG):
        def retrieve_sync(self, query: str, *, max_results: int = 3) -> RetrievalResult:
            return RetrievalResult(content="in this thread", score=0.5)

    assert retrieve(Both(), "query").content == "in this thread"


async def test_failures_of_a_provider_come_through() -> None:
    class Failing:
        async def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
            raise ConnectionError("the index is down")

    with pytest.raises(ConnectionError, match="the index is down"):
        await aretrieve(Failing(), "query")
    with pytest.raises(ConnectionError, match="the index is down"):
        retrieve(Failing(), "query")


async def test_a_provider_that_returns_something_else_is_named() -> None:
    class Careless:
        def retrieve(self, query: str, *, max_results: int = 3) -> Any:
            return [query]

    with pytest.raises(BrixConfigurationError, match=r"Careless\.retrieve\(\) must return a RetrievalResult"):
        await aretrieve(Careless(), "query")
    with pytest.raises(BrixConfigurationError, match=r"got \['query'\]"):
        retrieve(Careless(), "query")


def test_a_call_that_would_wait_for_itself_is_refused() -> None:
    async def on_the_portal() -> None:
        retrieve(MyRAG(), "query")

    with pytest.raises(BrixConfigurationError, match="would wait for itself"):
        portal().run(on_the_portal, patience=5.0)


# --- the gate ------------------------------------------------------------------------------------------


def gate(**options: Any) -> RetrievalGate:
    return RetrievalGate(**{"min_score": 0.5, "clock": VirtualClock(), **options})


def pass_through(guard: RetrievalGate, *documents: RetrievedDocument, query: str | None = "query") -> list[bool]:
    with guard.retrieval(query) as admit:
        return admit(documents)


def test_only_documents_with_the_score_pass() -> None:
    assert pass_through(gate(), document(0.5), document(0.4999), document(0.9)) == [True, False, True]


def test_when_none_passes_it_refuses_with_the_numbers() -> None:
    with pytest.raises(
        BrixRetrievalError, match=r"best of 2 documents has a score of 0\.400, and min_score=0\.5"
    ) as caught:
        pass_through(gate(), document(0.25, "a.md"), document(0.4, "b.md"))
    error = caught.value
    assert (error.score, error.threshold, error.sources) == (0.4, 0.5, ("a.md", "b.md"))
    assert isinstance(error, brix_core.BrixGuardBlockedError)


def test_nothing_found_is_refused_whatever_the_score_asked_for() -> None:
    with pytest.raises(BrixRetrievalError, match="nothing was found") as caught:
        pass_through(gate(min_score=0.0))
    assert (caught.value.score, caught.value.sources) == (0.0, ())


def test_it_can_go_on_without_any() -> None:
    assert pass_through(gate(on_low="drop"), document(0.25)) == [False]
    assert pass_through(gate(on_low="drop")) == []


def test_an_entry_tells_what_was_found_and_what_passed() -> None:
    guard = gate()
    with session("user-42"):
        pass_through(guard, document(0.25, "a.md"), document(0.75, "b.md"))
    (entry,) = guard.get_traces()
    assert (entry["session_id"], entry["guard"], entry["outcome"], entry["error"]) == (
        "user-42",
        "retrieval",
        "ok",
        None,
    )
    assert (entry["score"], entry["min_score"]) == (0.75, 0.5)
    assert [(found["source"], found["kept"]) for found in entry["documents"]] == [("a.md", False), ("b.md", True)]
    assert "text" not in str(entry).replace("text_hash", "")
    assert "'query'" not in str(entry)
    entry["documents"].clear()
    assert len(guard.get_traces()[0]["documents"]) == 2


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectionError("down"), "failed"),
        (BrixConfigurationError("no score"), "failed"),
        (BrixRetrievalError("low"), "refused"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (ValueError("x" * 10_000), "failed"),
    ],
)
def test_every_retrieval_ends_in_one_entry(error: BaseException, outcome: str) -> None:
    guard = gate()
    with pytest.raises(type(error)), guard.retrieval(None):
        raise error
    (entry,) = guard.get_traces()
    assert (entry["outcome"], entry["error"]) == (outcome, type(error).__name__)
    assert (entry["query_hash"], entry["score"], entry["documents"]) == (None, None, [])
    assert len(entry["error_message"]) <= MAX_MESSAGE


def test_entries_are_bounded_and_by_session() -> None:
    guard = gate(trace_buffer_size=3, session_id="default")
    for number in range(5):
        with guard.retrieval("query", "named" if number % 2 else None) as admit:
            admit([document(1.0, str(number))])
    assert [entry["documents"][0]["source"] for entry in guard.get_traces()] == ["4", "3", "2"]
    assert [entry["documents"][0]["source"] for entry in guard.get_traces("named")] == ["3"]
    assert len(guard.get_traces("default")) == 2


def test_time_is_measured() -> None:
    clock = VirtualClock()
    guard = gate(clock=clock)
    with guard.retrieval("query") as admit:
        clock.advance(0.25)
        admit([document(1.0)])
    assert guard.get_traces()[0]["latency_ms"] == pytest.approx(250.0)


def test_threads_share_a_gate() -> None:
    guard = RetrievalGate(min_score=0.5, trace_buffer_size=10_000)

    def work(number: int) -> None:
        with session(f"user-{number}"):
            for _ in range(50):
                pass_through(guard, document(1.0, str(number)), query=None)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    for number in range(16):
        assert {entry["documents"][0]["source"] for entry in guard.get_traces(f"user-{number}")} == {str(number)}
    assert len(guard.get_traces()) == 16 * 50


@pytest.mark.parametrize(
    "options",
    [
        {"min_score": 1.5},
        {"min_score": -0.1},
        {"min_score": math.nan},
        {"min_score": None},
        {"on_low": "ignore"},
        {"trace_buffer_size": 0},
        {"session_id": ""},
    ],
)
def test_options_are_checked(options: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=next(iter(options)).replace("_", ".")):
        gate(**options)
