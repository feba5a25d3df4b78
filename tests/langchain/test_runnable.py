"""A chain, or any other runnable, behind the guards of whole runs."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import openai
import pytest
from langchain_classic.agents import AgentExecutor
from langchain_core.agents import AgentFinish
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langgraph.errors import GraphInterrupt
from langgraph.types import Interrupt

import brix_core
from brix_core import (
    BrixBudgetError,
    BrixCircuitOpenError,
    BrixConfigurationError,
    BrixFailoverError,
    BrixLoopError,
    BrixRetryError,
    BrixTimeoutError,
)
from brix_core.demo import DemoServer, Reply, ServerError
from brix_core.store import MemoryStore
from brix_langchain import guard
from brix_langchain.opaque import chunk_text, written
from brix_langchain.runnable import GuardedRunnable
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:langchain_core._api.deprecation.LangChainDeprecationWarning"),
]

PROMPT = ChatPromptTemplate.from_template("Tell me about {topic}")
INPUT = {"topic": "guards"}
PRICED: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES}}
ALL: dict[str, Any] = {
    **PRICED,
    "requests_per_minute": 1_000_000,
    "per_call_timeout": 20.0,
    "idle_timeout": 10.0,
    "max_retries": 2,
    "backoff_base": 1.0,
    "max_backoff": 0.0,
    "circuit_breaker": True,
    "exact_loop_detection": True,
    "exact_loop_threshold": 50,
    "tool_loop_detection": True,
}


def pipe(model: BaseChatModel) -> Runnable[Any, str]:
    return PROMPT | model | StrOutputParser()


def guarded(runnable: Runnable[Any, Any], **options: Any) -> GuardedRunnable[Any, Any]:
    chosen: Any = {"store": MemoryStore(), **options}
    return guard(runnable, **chosen)


def assert_all_seen(chain: GuardedRunnable[Any, Any], server: DemoServer, runs: int) -> None:
    """One trace entry a run; inside, as many model calls and as much money as the server counted."""
    assert server.wait_until_idle()
    assert chain.inside is not None
    assert len(chain.get_traces()) == runs
    stats = server.stats
    assert sum(len(trace["attempts"]) for trace in chain.inside.get_traces()) == stats.requests == runs
    owed = stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1]
    assert chain.context.session_cost_usd == pytest.approx(owed, rel=1e-6)


async def drain(source: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in source]


async def one(value: Any) -> AsyncIterator[Any]:
    yield value


SYNC: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "invoke": (1, lambda c: c.invoke(INPUT)),
    "stream": (1, lambda c: list(c.stream(INPUT))),
    "transform": (1, lambda c: list(c.transform(iter([INPUT])))),
    "batch": (3, lambda c: c.batch([INPUT] * 3)),
    "batch, two at a time": (3, lambda c: c.batch([INPUT] * 3, config={"max_concurrency": 2})),
    "batch_as_completed": (3, lambda c: list(c.batch_as_completed([INPUT] * 3))),
    "with_config": (1, lambda c: c.with_config(tags=["t"]).invoke(INPUT)),
    "with_retry": (1, lambda c: c.with_retry(stop_after_attempt=2).invoke(INPUT)),
    "with_fallbacks": (1, lambda c: c.with_fallbacks([c]).invoke(INPUT)),
    "with_listeners": (1, lambda c: c.with_listeners(on_end=lambda run: None).invoke(INPUT)),
    "pipe": (1, lambda c: (RunnablePassthrough() | c | str.upper).invoke(INPUT)),
    "pipe, streamed": (1, lambda c: list((RunnablePassthrough() | c | StrOutputParser()).stream(INPUT))),
    "map": (2, lambda c: c.map().invoke([INPUT, INPUT])),
    "parallel": (2, lambda c: RunnableParallel(a=c, b=c).invoke(INPUT)),
    "parallel, streamed": (2, lambda c: list(RunnableParallel(a=c, b=c).stream(INPUT))),
    "copies": (1, lambda c: copy.deepcopy(c).invoke(INPUT)),
}
ASYNC: dict[str, tuple[int, Callable[[Any], Awaitable[Any]]]] = {
    "ainvoke": (1, lambda c: c.ainvoke(INPUT)),
    "astream": (1, lambda c: drain(c.astream(INPUT))),
    "atransform": (1, lambda c: drain(c.atransform(one(INPUT)))),
    "abatch": (3, lambda c: c.abatch([INPUT] * 3)),
    "abatch_as_completed": (3, lambda c: drain(c.abatch_as_completed([INPUT] * 3))),
    "astream_events v1": (1, lambda c: drain(c.astream_events(INPUT, version="v1"))),
    "astream_events v2": (1, lambda c: drain(c.astream_events(INPUT, version="v2"))),
    "astream_log": (1, lambda c: drain(c.astream_log(INPUT))),
    "pipe, streamed": (1, lambda c: drain((RunnablePassthrough() | c | StrOutputParser()).astream(INPUT))),
}


@pytest.mark.parametrize("options", [PRICED, ALL], ids=["budget", "all"])
class TestEntryPoints:
    @pytest.mark.parametrize("way", SYNC)
    def test_every_blocking_one_is_guarded(self, way: str, options: Any, chat: Make, server: DemoServer) -> None:
        runs, call = SYNC[way]
        chain = guarded(pipe(chat()), **options)
        call(chain)
        assert_all_seen(chain, server, runs)

    @pytest.mark.parametrize("way", ASYNC)
    async def test_every_async_one_is_guarded(self, way: str, options: Any, chat: Make, server: DemoServer) -> None:
        runs, call = ASYNC[way]
        chain = guarded(pipe(chat()), **options)
        await call(chain)
        await asyncio.to_thread(assert_all_seen, chain, server, runs)


class TestBudget:
    async def test_a_call_that_does_not_fit_never_leaves(self, chat: Make, server: DemoServer) -> None:
        chain = guarded(pipe(chat(max_tokens=1_000)), **{**PRICED, "max_cost_usd": 1e-5}, max_retries=3)
        for call in (lambda: chain.invoke(INPUT), lambda: list(chain.stream(INPUT))):
            with pytest.raises(BrixBudgetError):
                call()
        with pytest.raises(BrixBudgetError):
            await chain.ainvoke(INPUT)
        with pytest.raises(BrixBudgetError):
            await drain(chain.astream(INPUT))
        assert server.stats.requests == 0
        assert [trace["error"] for trace in chain.get_traces()] == ["BrixBudgetError"] * 4

    def test_a_guarded_model_inside_is_not_charged_twice(self, chat: Make, server: DemoServer) -> None:
        store = MemoryStore()
        model = guard(chat(), **PRICED, store=store)
        chain = guarded(pipe(model), **PRICED, store=store)
        with brix_core.session("ann"):
            chain.invoke(INPUT)
            assert model.context.session_cost_usd > 0
        stats = server.stats
        owed = stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1]
        assert store.balance("budget:ann").spent == pytest.approx(owed * 1e9)

    @pytest.mark.parametrize("way", ["invoke", "stream"])
    def test_nor_is_a_model_in_a_guarded_run_inside(self, way: str, chat: Make, server: DemoServer) -> None:
        store = MemoryStore()
        inner = guarded(pipe(chat()), **PRICED, store=store)
        chain = guarded(RunnablePassthrough() | inner, **{**PRICED, "max_cost_usd": 1e-9}, store=store)
        generous = guarded(RunnablePassthrough() | inner, **PRICED, store=store)

        def ask(runnable: Any) -> Any:
            return list(runnable.stream(INPUT)) if way == "stream" else runnable.invoke(INPUT)

        with brix_core.session("ann"):
            ask(generous)
            with pytest.raises(BrixBudgetError, match="of the run"):
                ask(chain)
        stats = server.stats
        owed = stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1]
        assert store.balance("budget:ann").spent == pytest.approx(owed * 1e9)
        assert stats.requests == 1

    def test_a_run_and_the_guarded_models_in_it_share_one_session(self, chat: Make) -> None:
        model = guard(chat(), **PRICED)
        chain = guard(pipe(model), per_call_timeout=5.0)
        chain.invoke(INPUT)
        assert model.get_traces()[0]["session_id"] == chain.get_traces()[0]["session_id"]

    def test_the_runs_cap_stops_a_guarded_model_inside(self, chat: Make, server: DemoServer) -> None:
        store = MemoryStore()
        model = guard(chat(), **PRICED, store=store)
        chain = guarded(pipe(model), **{**PRICED, "max_cost_usd": 1e-9}, store=store)
        for call in (lambda: chain.invoke(INPUT), lambda: list(chain.stream(INPUT))):
            with pytest.raises(BrixBudgetError, match="max_cost_usd=1e-09 of the run") as caught:
                call()
            assert caught.value.limit_usd == 1e-9
        assert server.stats.requests == 0
        assert model.invoke("Hi")

    @pytest.mark.parametrize("way", ["invoke", "stream"])
    def test_what_a_guarded_model_may_say_is_lowered_to_the_runs_cap(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        server.default = Reply("word " * 1_000)
        store = MemoryStore()
        chain = guarded(pipe(guard(chat(), **PRICED, store=store)), **{**PRICED, "max_cost_usd": 1e-4}, store=store)
        with brix_core.session("ann"):
            list(chain.stream(INPUT)) if way == "stream" else chain.invoke(INPUT)
        assert 0 < server.requests[0].body["max_completion_tokens"] < 200
        assert 0 < store.balance("budget:ann").spent <= 1e-4 * 1e9

    @pytest.mark.parametrize("inside", ["model", "run"])
    async def test_a_hundred_at_once_keep_the_lower_cap(self, inside: str, chat: Make, server: DemoServer) -> None:
        store, cap = MemoryStore(), 1e-3
        server.default = Reply("word " * 100)
        model = guard(chat(max_tokens=100), **PRICED, store=store)
        within = pipe(model) if inside == "model" else guarded(pipe(chat(max_tokens=100)), **PRICED, store=store)
        chain = guarded(RunnablePassthrough() | within, **{**PRICED, "max_cost_usd": cap}, store=store)
        config: Any = {"configurable": {"session_id": "ann"}}
        answers = await asyncio.gather(*(chain.ainvoke(INPUT, config) for _ in range(100)), return_exceptions=True)
        refused = [answer for answer in answers if not isinstance(answer, str)]
        assert {type(error).__name__ for error in refused} == {"BrixBudgetError"}
        assert await asyncio.to_thread(server.wait_until_idle)
        assert server.stats.requests == 100 - len(refused) > 5
        balance = store.balance("budget:ann")
        assert balance.reserved == 0
        assert balance.spent <= cap * 1e9
        assert balance.spent == pytest.approx(
            (server.stats.prompt_tokens * RATES[0] + server.stats.completion_tokens * RATES[1]) * 1e9, rel=1e-6
        )

    def test_sessions_have_accounts_of_their_own(self, chat: Make) -> None:
        chain = guarded(pipe(chat()), **PRICED)
        chain.invoke(INPUT, {"configurable": {"session_id": "ann"}})
        with brix_core.session("ben"):
            chunks = chain.stream(INPUT)
        list(chunks)
        chain.invoke(INPUT, {"configurable": {"thread_id": "cleo"}})
        assert chain.inside is not None
        for traces in (chain.get_traces(), chain.inside.get_traces()):
            assert [trace["session_id"] for trace in traces] == ["cleo", "ben", "ann"]
        assert chain.context.session_cost_usd == 0


class TestTimeLimits:
    def test_a_run_that_hangs_is_given_up_and_begins_nothing_more(self, chat: Make, server: DemoServer) -> None:
        def slow(text: str) -> str:
            time.sleep(0.3)
            return text

        chain = guarded(RunnableLambda(slow) | chat(), per_call_timeout=0.05)
        with pytest.raises(BrixTimeoutError):
            chain.invoke("Hi")
        time.sleep(0.4)
        assert server.stats.requests == 0

    async def test_on_the_event_loop_it_is_cancelled(self) -> None:
        ended: list[str] = []

        async def slow(text: str) -> str:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                ended.append(text)
                raise
            return text

        chain = guarded(RunnableLambda(slow), per_call_timeout=0.05)
        with pytest.raises(BrixTimeoutError):
            await chain.ainvoke("Hi")
        assert ended == ["Hi"]
        assert chain.get_traces()[0]["outcome"] == "timed_out"

    async def test_a_stream_is_watched_between_its_chunks(self) -> None:
        def slowly(source: Iterator[str]) -> Iterator[str]:
            yield from source
            time.sleep(0.3)
            yield "late"

        async def slowly_too(source: AsyncIterator[str]) -> AsyncIterator[str]:
            async for chunk in source:
                yield chunk
            await asyncio.sleep(10)

        chain = guarded(RunnableGenerator(slowly, slowly_too), idle_timeout=0.05)
        chunks, more = chain.stream("now"), chain.astream("now")
        assert (next(chunks), await anext(more)) == ("now", "now")
        with pytest.raises(BrixTimeoutError):
            next(chunks)
        with pytest.raises(BrixTimeoutError):
            await anext(more)


class Flaky:
    """Fails so often, and then answers."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.left = failures
        self.calls = 0
        self._error = error or ConnectionError("flaky")

    def __call__(self, value: Any) -> Any:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self._error
        return value

    def stream(self, chunks: Iterator[Any]) -> Iterator[Any]:
        for chunk in chunks:
            yield self(chunk)


RETRY: dict[str, Any] = {"max_retries": 2, "backoff_base": 1.0, "max_backoff": 0.0}


class TestRetries:
    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch"])
    async def test_a_run_is_tried_again(self, way: str, chat: Make, server: DemoServer) -> None:
        server.script(ServerError(), ServerError(), Reply("At last."))
        chain = guarded(pipe(chat(max_retries=0)), **PRICED, **RETRY)
        answer: dict[str, Callable[[], Any]] = {
            "invoke": lambda: chain.invoke(INPUT),
            "stream": lambda: "".join(chain.stream(INPUT)),
            "batch": lambda: chain.batch([INPUT])[0],
        }
        if way == "ainvoke":
            said = await chain.ainvoke(INPUT)
        elif way == "astream":
            said = "".join(await drain(chain.astream(INPUT)))
        else:
            said = answer[way]()
        assert said == "At last."
        (trace,) = chain.get_traces()
        assert [attempt["outcome"] for attempt in trace["attempts"]] == ["failed", "failed", "ok"]
        assert server.stats.requests == 3

    async def test_an_input_in_chunks_is_read_again(self) -> None:
        flaky = Flaky(2)
        chain = guarded(RunnableGenerator(flaky.stream), **RETRY)
        assert list(chain.transform(iter("abc"))) == ["a", "b", "c"]
        assert flaky.calls == 5

        async def letters() -> AsyncIterator[str]:
            for letter in "abc":
                yield letter

        async def astream(chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for chunk in chunks:
                yield flaky(chunk)

        flaky.left = 2
        chain = guarded(RunnableGenerator(flaky.stream, astream), **RETRY)
        assert await drain(chain.atransform(letters())) == ["a", "b", "c"]

    def test_nothing_is_tried_again_once_a_chunk_was_seen(self) -> None:
        def breaks(chunks: Iterator[str]) -> Iterator[str]:
            yield from chunks
            raise ConnectionError("flaky")

        chain = guarded(RunnableGenerator(breaks), **RETRY)
        with pytest.raises(ConnectionError):
            list(chain.stream("a"))
        assert len(chain.get_traces()[0]["attempts"]) == 1

    @pytest.mark.parametrize(
        "passing", [KeyboardInterrupt(), asyncio.CancelledError(), GraphInterrupt((Interrupt("?"),)), ValueError("bad")]
    )
    def test_control_flow_and_bugs_pass_untouched(self, passing: BaseException) -> None:
        flaky = Flaky(1, passing)
        chain = guarded(
            RunnableLambda(flaky),
            **RETRY,
            circuit_breaker=True,
            circuit_failure_threshold=1,
            fallbacks=[StrOutputParser()],
        )
        with pytest.raises(type(passing)) as caught:
            chain.invoke("a")
        assert caught.value is passing
        assert flaky.calls == 1
        assert chain.invoke("a") == "a"

    def test_when_all_attempts_fail_the_last_failure_is_told(self) -> None:
        with pytest.raises(BrixRetryError, match="flaky"):
            guarded(RunnableLambda(Flaky(9)), **RETRY).invoke("a")


class TestOtherGuards:
    async def test_the_next_runnable_answers(self, chat: Make, server: DemoServer) -> None:
        server.default = ServerError()
        chain = guarded(pipe(chat(max_retries=0)), **PRICED, fallbacks=[RunnableLambda(lambda value: "Spare.")])
        assert chain.invoke(INPUT) == "Spare."
        assert await chain.ainvoke(INPUT) == "Spare."
        assert "".join(chain.stream(INPUT)) == "Spare."
        assert "".join(await drain(chain.astream(INPUT))) == "Spare."
        with pytest.raises(BrixFailoverError):
            guarded(pipe(chat(max_retries=0)), fallbacks=[RunnableLambda(Flaky(9))]).invoke(INPUT)

    def test_an_open_circuit_refuses_the_next_run(self, chat: Make, server: DemoServer) -> None:
        server.default = ServerError()
        store = MemoryStore()
        chain = guarded(pipe(chat(max_retries=0)), circuit_breaker=True, circuit_failure_threshold=1, store=store)
        with pytest.raises(openai.InternalServerError):
            chain.invoke(INPUT)
        with pytest.raises(BrixCircuitOpenError):
            chain.invoke(INPUT)
        assert server.stats.requests == 1
        assert guarded(PROMPT | str, circuit_breaker=True, store=store).invoke(INPUT)  # another chain is not concerned

    @pytest.mark.parametrize("way", ["invoke", "stream", "transform"])
    def test_the_same_input_with_the_same_output_is_a_loop(self, way: str) -> None:
        chain = guarded(RunnableLambda(lambda value: f"same {value}"), exact_loop_detection=True)

        def ask(text: str) -> None:
            if way == "invoke":
                chain.invoke(text)
            else:
                list(chain.stream(text) if way == "stream" else chain.transform(iter(text)))

        ask("first")
        ask("other")
        ask("first")
        with pytest.raises(BrixLoopError):
            ask("first")

    def test_a_tool_loop_is_looked_for_inside(self) -> None:
        chain = guarded(RunnableLambda(str), tool_loop_detection=True)
        assert chain.guards == ("observability", "loop")
        assert chain.inside is not None

    def test_runs_are_counted_by_the_rate_limit(self, chat: Make) -> None:
        chain = guarded(pipe(chat()), requests_per_minute=6_000, burst_capacity=1)
        begun = time.monotonic()
        chain.batch([INPUT] * 6)
        assert time.monotonic() - begun >= 0.05


class TestStreaming:
    def test_chunks_come_as_they_are_made(self) -> None:
        asked: list[str] = []

        def letters() -> Iterator[str]:
            for letter in "abcd":
                asked.append(letter)
                yield letter

        def loud(chunks: Iterator[str]) -> Iterator[str]:
            for chunk in chunks:
                yield chunk.upper()

        chain = guarded(RunnableGenerator(loud))
        chunks = chain.transform(letters())
        assert next(chunks) == "A"
        assert len(asked) <= 3
        assert "".join(chunks) == "BCD"

    def test_a_stream_left_in_the_middle_is_over(self) -> None:
        ended: list[bool] = []

        def endless(chunks: Iterator[str]) -> Iterator[str]:
            try:
                while True:
                    yield "word"
            finally:
                ended.append(True)

        chain = guarded(RunnableGenerator(endless))
        chunks: Any = chain.stream("go")
        assert next(chunks) == "word"
        chunks.close()
        del chunks
        assert ended == [True]
        assert chain.get_traces()[0]["outcome"] == "abandoned"

    async def test_so_is_an_async_one(self, chat: Make, server: DemoServer) -> None:
        server.default = Reply("word " * 500, chunk_delay=0.002)
        chain = guarded(pipe(chat()), **PRICED)
        chunks: Any = chain.astream(INPUT)
        while not await anext(chunks):
            pass
        await chunks.aclose()
        assert chain.get_traces()[0]["outcome"] == "abandoned"
        for _ in range(100):  # LangChain leaves it to the event loop to close what is inside
            if chain.context.session_cost_usd:
                return
            await asyncio.sleep(0.01)
        pytest.fail("the model call inside was not charged")


class Spans(BaseCallbackHandler):
    def __init__(self) -> None:
        self.begun: list[tuple[str, Any, Any]] = []

    def on_chain_start(self, *args: Any, run_id: Any, parent_run_id: Any = None, **kwargs: Any) -> None:
        self.begun.append((kwargs["name"], run_id, parent_run_id))


class TestRuns:
    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
    async def test_one_span_with_the_runnable_as_its_child(self, way: str) -> None:
        spans = Spans()
        chain = guarded(RunnableLambda(lambda value: value, name="inner"), **ALL)
        config: Any = {"callbacks": [spans], "tags": ["t"]}
        if way == "invoke":
            chain.invoke("a", config)
        elif way == "ainvoke":
            await chain.ainvoke("a", config)
        elif way == "stream":
            list(chain.stream("a", config))
        else:
            await drain(chain.astream("a", config))
        (outer, outer_id, none), (inner, _, parent) = spans.begun
        assert (outer, inner) == ("Guarded<inner>", "inner")
        assert none is None
        assert parent == outer_id

    async def test_events_tell_of_both(self) -> None:
        chain = guarded(RunnableLambda(lambda value: value, name="inner"))
        events = await drain(chain.astream_events("a", version="v2"))
        assert {event["name"] for event in events} == {"Guarded<inner>", "inner"}

    def test_an_item_of_a_batch_fails_by_itself(self) -> None:
        chain = guarded(RunnableLambda(int))
        outputs = chain.batch(["1", "x", "3"], return_exceptions=True)
        assert (outputs[0], type(outputs[1]), outputs[2]) == (1, ValueError, 3)
        assert sorted(trace["outcome"] for trace in chain.get_traces()) == ["failed", "ok", "ok"]

    def test_further_arguments_and_bound_ones_reach_the_runnable(self) -> None:
        def plus(value: int, more: int = 0) -> int:
            return value + more

        chain = guarded(RunnableLambda(plus))
        assert chain.invoke(1, more=2) == 3
        assert chain.bind(more=3).invoke(1) == 4

    def test_schemas_graph_and_name_are_the_runnables(self) -> None:
        plain = pipe_of_steps()
        chain = guarded(plain)
        assert chain.get_input_jsonschema() == plain.get_input_jsonschema()
        assert chain.get_output_jsonschema() == plain.get_output_jsonschema()
        assert [node.name for node in chain.get_graph().nodes.values()] == [
            node.name for node in plain.get_graph().nodes.values()
        ]
        assert repr(chain).startswith("GuardedRunnable(")

    def test_the_prompt_hash_is_that_of_the_input(self) -> None:
        chain = guarded(RunnableLambda(lambda value: value))
        for value in ({"b": 1, "a": 2}, {"a": 2, "b": 1}, {"a": 2, "b": 3}):
            chain.invoke(value)
        list(chain.stream({"a": 2, "b": 1}))
        streamed, other, second, first = (trace["prompt_hash"] for trace in chain.get_traces())
        assert first == second == streamed != other


def pipe_of_steps() -> Runnable[Any, Any]:
    return PROMPT | RunnableLambda(lambda value: value.to_string()) | StrOutputParser()


class TestWrongUse:
    @pytest.mark.parametrize(
        "options",
        [
            {"tokens_per_minute": 1_000},
            {"max_context_tokens": 1_000},
            {"response_schema": dict},
            {"on_loop": "inject_diversity", "exact_loop_detection": True},
            {"on_timeout": "return_partial", "per_call_timeout": 1.0},
            {"budget_clamp_output": True, "max_cost_usd": 1.0},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_what_cannot_be_kept_around_a_run_is_refused_with_a_hint(self, options: dict[str, Any]) -> None:
        with pytest.raises(BrixConfigurationError, match=f"{next(iter(options))}.*guard the model"):
            guard(RunnableLambda(str), **options)

    @pytest.mark.parametrize(
        "options", [{"max_costs_usd": 1.0}, {"backoff_base": 2.0}, {"prices": {}}, {"fallbacks": [3]}]
    )
    def test_other_mistakes_are_refused_as_with_models(self, options: dict[str, Any]) -> None:
        with pytest.raises(BrixConfigurationError):
            guard(RunnableLambda(str), **options)

    def test_a_guarded_runnable_is_not_guarded_again(self) -> None:
        chain = guarded(RunnableLambda(str))
        with pytest.raises(BrixConfigurationError, match="guarded already"):
            guard(chain)
        with pytest.raises(BrixConfigurationError, match="pickled"):
            pickle.dumps(chain)

    def test_an_agent_executor_is_guarded_as_one(self) -> None:
        agent = RunnableLambda(lambda step: AgentFinish({"output": "Done."}, ""))
        executor = guard(AgentExecutor(agent=agent, tools=[]), tool_loop_detection=True)
        assert isinstance(executor, AgentExecutor)
        assert executor.invoke({"input": "Go"})["output"] == "Done."

    def test_importing_the_package_does_not_import_langgraph(self) -> None:
        code = "import sys, brix_langchain; print([name for name in sys.modules if name.split('.')[0] == 'langgraph'])"
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert json.loads(output.replace("'", '"')) == []


def test_values_are_written_by_what_they_say() -> None:
    assert written([AIMessageChunk(content="Hi", id="1")]) == written([AIMessageChunk(content="Hi", id="2")])
    assert written(Document("a", metadata={"n": 1}, id="1")) == written(Document("a", metadata={"n": 1}, id="2"))
    assert written(PROMPT.invoke(INPUT)) == '[{"content": "Tell me about guards", "role": "user"}]'
    assert chunk_text([1, {"a": None}]) == '[1, {"a": null}]'
