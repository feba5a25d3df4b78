"""What guards decide as events, and traces of LLMs that nobody guards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from llama_index.core import PromptTemplate
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import ChatMessage, MockLLM
from pydantic import Field

import brix_core
from brix_core import BrixBudgetError, BrixRetryError
from brix_core.demo import CutStream, DemoServer, EndlessRepetition, Reply, ServerError, StalledStream
from brix_llamaindex import BrixEventHandler, BrixGuardEvent, guard
from brix_llamaindex.event_handler import MAX_OPEN
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import HOOKS, STREAMED, ask, outcomes, parts
from tests.support.schemas import OSLO, VALID, City

PRICES = {MODEL: (1e-6, 2e-6)}


class Collected(BaseEventHandler):
    seen: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Collected"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)

    @property
    def decisions(self) -> list[tuple[str, str]]:
        return [(event.guard, event.decision) for event in self.seen if isinstance(event, BrixGuardEvent)]


@contextmanager
def listening(handler: Any) -> Iterator[Any]:
    dispatcher = get_dispatcher()
    before = dispatcher.event_handlers
    dispatcher.event_handlers = [*before, handler]
    try:
        yield handler
    finally:
        dispatcher.event_handlers = before


@pytest.fixture
def collected() -> Iterator[Collected]:
    with listening(Collected()) as handler:
        yield handler


@pytest.fixture
def watching() -> Iterator[BrixEventHandler]:
    with listening(BrixEventHandler(prices=PRICES)) as handler:
        yield handler


# --- decisions as events -----------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
async def test_decisions_and_the_outcome_are_events(
    openai_like: Make, server: DemoServer, hook: str, collected: Collected
) -> None:
    server.script(ServerError(500), Reply("Hello"))
    llm = guard(openai_like(), max_retries=1, max_backoff=0.0, max_cost_usd=1.0, prices=PRICES)
    with brix_core.session("ann"):
        await ask(llm, hook)
    (trace,) = llm.get_traces()
    expected = [(one["guard"], one["decision"]) for one in trace["decisions"]]
    assert expected
    assert collected.decisions == [*expected, ("observability", "ok")]
    events = [event for event in collected.seen if isinstance(event, BrixGuardEvent)]
    assert {(event.run_id, event.session_id) for event in events} == {(trace["run_id"], "ann")}
    assert events[-1].cost_usd == pytest.approx(trace["cost_usd"])
    assert events[-1].details["attempts"] == 2


async def test_heals_are_told_as_they_are_traced(openai_like: Make, server: DemoServer, collected: Collected) -> None:
    server.script(Reply("No."), Reply(VALID))
    llm = guard(openai_like())
    assert llm.as_structured_llm(City).complete("Describe Oslo").raw == OSLO
    assert collected.decisions == [("schema", "healing"), ("observability", "ok")]
    assert server.stats.requests == len(llm.get_traces()[0]["attempts"]) == 2


async def test_every_outcome_is_told(openai_like: Make, server: DemoServer, collected: Collected) -> None:
    server.default = ServerError(500)
    with pytest.raises(openai.InternalServerError):
        guard(openai_like()).complete("Hello")
    with pytest.raises(BrixBudgetError):
        guard(openai_like(), max_cost_usd=1e-6, prices={MODEL: (1e-3, 1e-3)}).complete("Hello")
    server.default = StalledStream(after=1)
    with pytest.raises(TimeoutError):
        await guard(openai_like(), per_call_timeout=0.05).acomplete("Hello")
    partial = guard(openai_like(), per_call_timeout=0.05, on_timeout="return_partial")
    await partial.acomplete("Hello")
    task = asyncio.create_task(guard(openai_like()).acomplete("Hello"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.default = EndlessRepetition(text="word ")
    stream = guard(openai_like(max_tokens=5_000)).stream_complete("Hello")
    next(stream)
    stream.close()
    ended = [decision for name, decision in collected.decisions if name == "observability"]
    assert ended == ["failed", "refused", "timed_out", "timed_out", "cancelled", "abandoned"]
    assert outcomes(partial) == ["timed_out"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_the_events_of_a_guarded_llm_name_its_run(
    openai_like: Make, server: DemoServer, hook: str, collected: Collected
) -> None:
    llm = guard(openai_like())
    await ask(llm, hook)
    starts = [event for event in collected.seen if event.class_name().endswith("StartEvent")]
    assert [event.tags["brix.run_id"] for event in starts] == [llm.get_traces()[0]["run_id"]]


# --- traces of what nobody guards --------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
async def test_an_unguarded_llm_leaves_the_trace_a_guarded_one_would(
    openai_like: Make, server: DemoServer, hook: str, watching: BrixEventHandler
) -> None:
    fields = {"additional_kwargs": {"stream_options": {"include_usage": True}}} if hook in STREAMED else {}
    llm = guard(openai_like(**fields), max_cost_usd=1.0, prices=PRICES)
    with brix_core.session("ann"):
        await ask(openai_like(**fields), hook)
        await ask(llm, hook)
    (seen,), (guarded,) = watching.get_traces("ann"), llm.get_traces("ann")
    assert seen.keys() == guarded.keys()
    same = ("model", "outcome", "prompt_tokens", "completion_tokens", "cost_usd", "prompt_hash", "response_hash")
    assert {name: seen[name] for name in same} == {name: guarded[name] for name in same}
    assert seen["cost_usd"] > 0.0
    assert server.stats.requests == 2


@pytest.mark.parametrize("hook", HOOKS)
async def test_guarded_llms_are_not_counted_twice(openai_like: Make, hook: str, watching: BrixEventHandler) -> None:
    for llm in (guard(openai_like()), guard(MockLLM()), guard(MockLLM(), per_call_timeout=5)):
        await ask(llm, hook)
    assert watching.get_traces() == []


@pytest.mark.filterwarnings("ignore:The `json` method is deprecated")
@pytest.mark.parametrize("hook", [hook for hook in HOOKS if "stream_complete" not in hook])
async def test_a_structured_llm_makes_the_calls_of_the_llm_in_it(
    openai_like: Make, server: DemoServer, hook: str, watching: BrixEventHandler
) -> None:
    server.default = Reply(VALID)
    bare = openai_like(should_use_structured_outputs=True)
    given = getattr(bare.as_structured_llm(City), hook)([ChatMessage("Hi")] if "chat" in hook else "Hi")
    given = await given if hook.startswith("a") else given
    if "stream" in hook:
        assert [one async for one in given] if hook.startswith("a") else list(given)
    assert len(watching.get_traces()) == server.stats.requests == 1
    assert guard(bare).as_structured_llm(City).complete("Describe Oslo").raw == OSLO
    assert len(watching.get_traces()) == server.stats.requests - 1 == 1


@pytest.mark.parametrize("hook", HOOKS)
async def test_an_llm_that_answers_by_another_of_its_hooks_makes_one_call(
    hook: str, watching: BrixEventHandler
) -> None:
    await ask(MockLLM(), hook)
    await ask(MockLLM(), hook)
    assert [trace["outcome"] for trace in watching.get_traces()] == ["ok", "ok"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_failures_are_seen(openai_like: Make, server: DemoServer, hook: str, watching: BrixEventHandler) -> None:
    server.default = ServerError(500)
    with pytest.raises(openai.InternalServerError):
        await ask(openai_like(max_retries=0), hook)
    (trace,) = watching.get_traces()
    assert (trace["outcome"], trace["error"]) == ("failed", "InternalServerError")
    assert trace["attempts"][0]["status"] == 500


@pytest.mark.parametrize("hook", STREAMED)
async def test_a_stream_that_broke_off_is_seen(
    openai_like: Make, server: DemoServer, hook: str, watching: BrixEventHandler
) -> None:
    server.default = CutStream(after=2)
    with pytest.raises(Exception, match="peer closed"):
        await ask(openai_like(max_retries=0), hook)
    (trace,) = watching.get_traces()
    assert (trace["outcome"], trace["partial_text"]) == ("failed", "This ans")


@pytest.mark.parametrize("hook", STREAMED)
async def test_a_stream_that_nobody_reads_on_is_seen(
    openai_like: Make, server: DemoServer, hook: str, watching: BrixEventHandler
) -> None:
    server.default = Reply("one two three four five")
    stream = parts(openai_like(), hook)
    async for part in stream:
        if part:
            break
    await stream.aclose()
    (trace,) = watching.get_traces()
    assert trace["outcome"] == "abandoned"


async def test_calls_side_by_side_are_told_apart(openai_like: Make, watching: BrixEventHandler) -> None:
    llm = openai_like()

    async def talk(user: str, calls: int) -> None:
        with brix_core.session(user):
            for number in range(calls):
                await llm.achat([ChatMessage(f"{user} {number}")])

    await asyncio.gather(talk("ann", 2), talk("bob", 3))
    assert (len(watching.get_traces("ann")), len(watching.get_traces("bob"))) == (2, 3)
    assert len({trace["prompt_hash"] for trace in watching.get_traces()}) == 5


def test_calls_in_threads_are_told_apart(openai_like: Make, server: DemoServer, watching: BrixEventHandler) -> None:
    llm = openai_like()

    def talk(number: int) -> None:
        with brix_core.session(f"user-{number % 3}"):
            llm.complete("the same prompt")
            list(llm.stream_complete("the same prompt"))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(talk, range(12)))
    assert [len(watching.get_traces(f"user-{number}")) for number in range(3)] == [8, 8, 8]
    assert server.stats.requests == len(watching.get_traces()) == 24


@pytest.mark.parametrize("hook", STREAMED)
async def test_streams_of_one_prompt_that_are_open_together_are_calls_of_their_own(
    openai_like: Make, server: DemoServer, hook: str, watching: BrixEventHandler
) -> None:
    server.default = Reply("one two three four five")
    for llm in (openai_like(), MockLLM()):
        before = len(watching.get_traces())
        first, second = parts(llm, hook), parts(llm, hook)
        await anext(first)
        await anext(second)
        async for _ in second:
            pass
        await first.aclose()
        assert [trace["outcome"] for trace in watching.get_traces()[: -before or None]] == ["abandoned", "ok"]
    assert server.stats.requests == 2


def test_a_model_without_a_price_costs_nothing_known(watching: BrixEventHandler) -> None:
    MockLLM(max_tokens=3).predict(PromptTemplate("Hello"))
    (trace,) = watching.get_traces()
    assert (trace["model"], trace["outcome"], trace["cost_usd"]) == ("MockLLM", "ok", None)


def test_memory_is_bounded(watching: BrixEventHandler) -> None:
    streams = []
    for _ in range(MAX_OPEN + 5):
        stream = MockLLM(max_tokens=3).stream_complete("Hello")
        next(stream)
        streams.append(stream)
    assert len(watching._open) == MAX_OPEN
    assert [trace["outcome"] for trace in watching.get_traces()] == ["abandoned"] * 5
    for stream in streams:
        stream.close()
    assert not watching._open
    small = BrixEventHandler(trace_buffer_size=2)
    with listening(small):
        for _ in range(5):
            MockLLM().complete("Hello")
    assert len(small.get_traces()) == 2


# --- LlamaIndex's own events ------------------------------------------------------------------------


class Events(BaseEventHandler):
    """Collects the names of events."""

    seen: list[str] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if not isinstance(event, BrixGuardEvent):
            self.seen.append(event.class_name())


@pytest.fixture
def watched() -> Iterator[tuple[Events, SimpleSpanHandler]]:
    dispatcher, events, spans = get_dispatcher(), Events(), SimpleSpanHandler()
    handlers, span_handlers = dispatcher.event_handlers, dispatcher.span_handlers
    dispatcher.event_handlers, dispatcher.span_handlers = [*handlers, events], [*span_handlers, spans]
    yield events, spans
    dispatcher.event_handlers, dispatcher.span_handlers = handlers, span_handlers


@pytest.mark.parametrize("hook", HOOKS)
async def test_events_spans_and_token_counts_are_those_of_the_bare_llm(
    openai_like: Make, server: DemoServer, hook: str, watched: tuple[Events, SimpleSpanHandler]
) -> None:
    server.default = Reply("Hello there")
    events, spans = watched
    found = []
    for make in (lambda llm: llm, guard):
        counter = TokenCountingHandler()
        llm = make(openai_like(additional_kwargs={"stream_options": {"include_usage": True}}))
        llm.callback_manager = CallbackManager([counter])
        events.seen.clear()
        spans.completed_spans.clear()
        await ask(llm, hook)
        names = [span.id_.partition("-")[0] for span in spans.completed_spans]
        found.append((list(events.seen), names, len(counter.llm_token_counts), counter.total_llm_token_count))
    bare, guarded = found
    assert guarded == bare
    assert bare[2] == 1


@pytest.mark.parametrize("hook", HOOKS)
async def test_the_tokens_counted_are_those_the_server_counts(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.script(ServerError(500))
    server.default = Reply("Hello there my friend")
    counter = TokenCountingHandler()
    llm = guard(openai_like(), max_retries=1, max_backoff=0.0)
    llm.callback_manager = CallbackManager([counter])
    await ask(llm, hook)
    seen = server.requests[-1]
    assert counter.prompt_llm_token_count == seen.prompt_tokens == llm.get_traces()[0]["prompt_tokens"]
    assert counter.completion_llm_token_count == seen.completion_tokens == llm.get_traces()[0]["completion_tokens"]
    assert len(counter.llm_token_counts) == server.stats.requests == 2


async def test_every_attempt_has_its_own_events(
    openai_like: Make, server: DemoServer, watched: tuple[Events, SimpleSpanHandler]
) -> None:
    server.default = ServerError(500)
    llm = guard(openai_like(), max_retries=2, max_backoff=0.0)
    with pytest.raises(BrixRetryError):
        await llm.achat([ChatMessage("Hello")])
    assert watched[0].seen.count("LLMChatStartEvent") == server.stats.requests == 3
