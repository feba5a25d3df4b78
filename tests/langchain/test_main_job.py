"""The main job, ``prompt | guard(model, ...) | parser`` over real HTTP, on a provider that misbehaves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel

from brix_core import BrixBudgetError, BrixFailoverError, BrixRetryError, BrixTimeoutError
from brix_core.demo import (
    BadRequest,
    CutStream,
    DemoServer,
    EndlessRepetition,
    QuotaExceeded,
    RateLimited,
    Reply,
    ServerError,
    SlowFirstToken,
    StalledStream,
    ToolCalls,
)
from brix_core.errors import BrixCircuitOpenError, BrixConfigurationError
from brix_core.store import MemoryStore
from brix_langchain import GuardedChatModel, guard
from tests.langchain.conftest import Make
from tests.langchain.support import RATES, assert_all_seen, attempts

# ChatAnthropic keeps its connections for the process, and they belong to one loop.
pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore::brix_core.guards.budget.BrixBudgetWarning"),
]

SOON = 0.4
"""A caller is released within this many seconds, whatever the provider does."""


def guarded(model: Any, **options: Any) -> GuardedChatModel:
    return guard(model, **{"store": MemoryStore(), "prices": {"gpt-4o-mini": RATES}, **options})


def budgeted(model: Any, dollars: float = 1.0, **options: Any) -> GuardedChatModel:
    return guarded(model, max_cost_usd=dollars, **options)


def chain(model: Any) -> Any:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    return prompt | model | StrOutputParser()


QUESTION = {"question": "What does a guard do?"}

WAYS = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch")
STREAMS = ("stream", "astream")


async def ask(runnable: Any, way: str, value: Any = QUESTION) -> str:
    """Ask in one of `WAYS`; the text of the answer."""
    if way == "invoke":
        answers = [runnable.invoke(value)]
    elif way == "ainvoke":
        answers = [await runnable.ainvoke(value)]
    elif way == "stream":
        answers = list(runnable.stream(value))
    elif way == "astream":
        answers = [chunk async for chunk in runnable.astream(value)]
    elif way == "batch":
        answers = runnable.batch([value])
    else:
        answers = await runnable.abatch([value])
    return "".join(answer if isinstance(answer, str) else answer.text for answer in answers)


async def collect(model: Any, way: str, into: list[Any]) -> None:
    """Stream into a list, which keeps what came before a failure."""
    if way == "stream":
        into.extend(model.stream("Hi"))
    else:
        async for chunk in model.astream("Hi"):
            into.append(chunk)


class Watch:
    """Seconds spent in a block."""

    def __enter__(self) -> Watch:
        self._begun = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._begun


@pytest.mark.parametrize("way", WAYS)
class TestRetries:
    async def test_a_rate_limited_call_waits_as_asked_and_succeeds(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        model = budgeted(chat(), max_retries=2, backoff_base=1.0, max_backoff=0.2)
        server.script(RateLimited(retry_after="0.15"), Reply("It stands."))
        with Watch() as watch:
            assert await ask(chain(model), way) == "It stands."
        assert watch.seconds >= 0.15
        assert_all_seen(model, server, 2)
        trace = model.get_traces()[0]
        assert [one["status"] for one in trace["attempts"]] == [429, None]
        assert trace["outcome"] == "ok"

    async def test_without_max_retries_a_failing_provider_gets_one_request(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        model = budgeted(chat())
        server.default = ServerError()
        with pytest.raises(openai.InternalServerError):
            await ask(chain(model), way)
        assert_all_seen(model, server, 1)

    async def test_max_retries_are_counted_exactly(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(max_retries=5), max_retries=2, backoff_base=1.0, max_backoff=0.01)
        server.default = ServerError()
        with pytest.raises(BrixRetryError) as caught:
            await ask(chain(model), way)
        assert caught.value.attempts == 3
        assert isinstance(caught.value.last_error, openai.InternalServerError)
        assert_all_seen(model, server, 3)
        assert model.context.session_cost_usd == 0

    @pytest.mark.parametrize("fault", [BadRequest(), QuotaExceeded(), ServerError(501)])
    async def test_what_is_fatal_is_not_tried_again(self, way: str, fault: Any, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), max_retries=3)
        server.default = fault
        with pytest.raises(openai.APIStatusError):
            await ask(chain(model), way)
        assert_all_seen(model, server, 1)


async def test_retry_after_as_a_date_is_understood(chat: Make, server: DemoServer) -> None:
    model = budgeted(chat(), max_retries=1, max_backoff=1.0)
    server.script(RateLimited(retry_after=formatdate(time.time() + 3_600, usegmt=True)))
    with pytest.raises(BrixRetryError) as caught:
        model.invoke("Hi")
    assert caught.value.reason == "retry_after"
    assert_all_seen(model, server, 1)


@pytest.mark.parametrize("way", STREAMS)
class TestTroubledStreams:
    async def test_a_slow_first_token_is_not_waited_for(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), first_token_timeout=0.1)
        server.default = SlowFirstToken(5.0)
        with Watch() as watch, pytest.raises(BrixTimeoutError) as caught:
            await ask(chain(model), way)
        assert watch.seconds < SOON
        assert caught.value.kind == "first_token"
        assert model.context.session_cost_usd > 0
        assert model.get_traces()[0]["outcome"] == "timed_out"

    async def test_a_slow_first_token_is_tried_again(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), first_token_timeout=0.1, max_retries=1, backoff_base=1.0, max_backoff=0.0)
        server.script(SlowFirstToken(5.0), Reply("Here."))
        assert await ask(chain(model), way) == "Here."
        assert attempts(model) == 2

    async def test_a_stalled_stream_is_left(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), idle_timeout=0.1, max_retries=3)
        server.default = StalledStream(after=3)
        got: list[Any] = []
        with Watch() as watch, pytest.raises(BrixTimeoutError) as caught:
            await collect(model, way, got)
        assert watch.seconds < SOON
        assert caught.value.kind == "idle"
        assert caught.value.partial == "".join(chunk.text for chunk in got) != ""
        trace = model.get_traces()[0]
        assert trace["partial_text"] == caught.value.partial
        assert trace["cost_usd"] == model.context.session_cost_usd > 0
        assert attempts(model) == 1  # the consumer had chunks: nothing is asked again

    async def test_a_cut_stream_fails_and_what_came_is_charged(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), max_retries=3)
        server.default = CutStream(after=3)
        with pytest.raises(Exception, match=r"(?i)connection|peer|chunk"):
            await ask(chain(model), way)
        trace = model.get_traces()[0]
        assert trace["outcome"] == "failed"
        assert trace["partial_text"]
        assert attempts(model) == 1
        assert 0 < model.context.session_cost_usd < 1e-4

    async def test_a_stream_cut_before_its_first_word_is_tried_again(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        model = budgeted(chat(), max_retries=1, backoff_base=1.0, max_backoff=0.0)
        server.script(CutStream(after=0), Reply("Whole."))
        assert await ask(chain(model), way) == "Whole."
        assert attempts(model) == 2

    async def test_endless_repetition_is_cut_off_at_the_cap(self, way: str, chat: Make, server: DemoServer) -> None:
        cap = 2e-4
        model = budgeted(chat(), cap)
        server.default = EndlessRepetition()
        with pytest.raises(BrixBudgetError) as caught:
            await ask(chain(model), way)
        assert caught.value.partial.startswith("again and again")
        spent = model.context.session_cost_usd
        # The provider ignored the cap it was sent: the chunk that went past it is billed as well.
        chunk = 4 * RATES[1]
        assert cap / 2 < spent <= cap + chunk
        assert server.wait_until_idle()
        assert server.stats.aborted == 1
        with pytest.raises(BrixBudgetError):
            await ask(chain(model), way)
        assert server.stats.requests == 1

    async def test_a_total_limit_holds_for_a_dribbling_stream(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), per_call_timeout=0.15)
        server.default = Reply("word " * 1_000, chunk_delay=0.02)
        with Watch() as watch, pytest.raises(BrixTimeoutError) as caught:
            await ask(chain(model), way)
        assert watch.seconds < SOON
        assert caught.value.kind == "call"
        assert caught.value.partial.startswith("word")


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
class TestSlowAnswers:
    async def test_the_caller_is_released_in_time(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), per_call_timeout=0.15)
        server.default = Reply("Too late", latency=5.0)
        with Watch() as watch, pytest.raises(BrixTimeoutError) as caught:
            await ask(chain(model), way)
        assert 0.15 <= watch.seconds < SOON
        assert (caught.value.kind, caught.value.limit) == ("call", 0.15)
        # The provider may have done the work: the worst case is charged.
        assert model.context.session_cost_usd == pytest.approx(16_384 * RATES[1], rel=0.01)

    async def test_what_had_arrived_is_returned(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), per_call_timeout=0.2, on_timeout="return_partial")
        server.default = StalledStream(after=3)
        with Watch() as watch:
            text = await ask(chain(model), way)
        assert watch.seconds < SOON
        assert text == StalledStream().text[:12]
        assert model.get_traces()[0]["outcome"] == "timed_out"
        assert model.context.session_cost_usd > 0


@pytest.mark.parametrize("limit", [{"idle_timeout": 0.15}, {"per_call_timeout": 0.15}])
class TestPartialAnswers:
    OPTIONS: Any = {"on_timeout": "return_partial"}  # noqa: RUF012

    async def test_an_answer_says_that_it_is_partial(
        self, limit: dict[str, float], chat: Make, server: DemoServer
    ) -> None:
        model = guarded(chat(), **self.OPTIONS, **limit, prices=None)
        server.default = StalledStream(after=3)
        for answer in (model.invoke("Hi"), await model.ainvoke("Hi")):
            assert answer.text == StalledStream().text[:12]
            assert answer.response_metadata["finish_reason"] == "timeout"

    async def test_a_stream_says_that_it_is_partial(
        self, limit: dict[str, float], chat: Make, server: DemoServer
    ) -> None:
        model = guarded(chat(), **self.OPTIONS, **limit, prices=None)
        server.default = StalledStream(after=3)
        blocking = list(model.stream("Hi"))
        waiting = [chunk async for chunk in model.astream("Hi")]
        for chunks in (blocking, waiting):
            whole = chunks[0]
            for chunk in chunks[1:]:
                whole += chunk
            assert whole.text == StalledStream().text[:12]
            assert whole.response_metadata["finish_reason"] == "timeout"
            assert whole.chunk_position == "last"

    async def test_nothing_at_all_is_an_empty_answer(
        self, limit: dict[str, float], chat: Make, server: DemoServer
    ) -> None:
        model = guarded(chat(), **self.OPTIONS, **{"per_call_timeout": 0.15, **limit}, prices=None)
        server.default = Reply("Too late", latency=5.0)
        assert model.invoke("Hi").text == ""
        assert (await model.ainvoke("Hi")).text == ""

    async def test_a_complete_answer_is_as_ever(self, limit: dict[str, float], chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), **self.OPTIONS, **limit)
        bare = chat()
        server.default = Reply("All of it.")
        answer, plain = model.invoke("Hi"), bare.invoke("Hi")
        assert answer.content == plain.content
        assert answer.usage_metadata == plain.usage_metadata
        assert answer.response_metadata["finish_reason"] == "stop"
        assert [chunk.content for chunk in model.stream("Hi")] == [chunk.content for chunk in bare.stream("Hi")]


class TestMoney:
    @pytest.mark.parametrize("way", WAYS)
    async def test_a_refused_call_sends_nothing(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), 1e-6)
        with pytest.raises(BrixBudgetError) as caught:
            await ask(chain(model), way)
        assert caught.value.limit_usd == 1e-6
        assert caught.value.needed_usd > 1e-6
        assert server.stats.requests == 0
        assert model.get_traces()[0]["outcome"] == "refused"

    @pytest.mark.parametrize("way", WAYS)
    async def test_a_clamped_cap_is_on_the_wire(self, way: str, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), 1e-4)
        server.default = Reply("word " * 400, chunk_size=1_000)
        text = await ask(chain(model), way)
        assert server.wait_until_idle()
        cap = server.requests[0].body["max_completion_tokens"]
        assert 100 < cap < 170
        assert text.count("word") <= cap
        assert model.context.session_cost_usd <= 1e-4

    async def test_the_callers_own_cap_is_lowered_under_its_own_name(self, chat: Make, server: DemoServer) -> None:
        for fields, arguments in (
            ({"max_tokens": 900}, {}),
            ({}, {"max_tokens": 900}),
            ({}, {"max_completion_tokens": 900}),
        ):
            server.reset()
            budgeted(chat(**fields), 1e-4).invoke("Hi", **arguments)
            body = server.requests[0].body
            assert "max_tokens" not in body
            assert body["max_completion_tokens"] < 170

    async def test_a_cap_that_is_affordable_is_left_alone(self, chat: Make, server: DemoServer) -> None:
        budgeted(chat()).invoke("Hi")
        budgeted(chat()).invoke("Hi", max_tokens=77)
        first, second = (request.body for request in server.requests)
        assert "max_completion_tokens" not in first
        assert second["max_completion_tokens"] == 77

    async def test_claudes_cap_is_lowered_too(self, claude: Make, server: DemoServer) -> None:
        model = guarded(claude(), max_cost_usd=1e-3, prices={"claude-haiku-4-5": (1e-6, 5e-6)})
        model.invoke("Hi")
        assert 150 < server.requests[0].body["max_tokens"] < 200
        assert model.context.session_cost_usd <= 1e-3

    async def test_many_at_once_do_not_overspend(self, chat: Make, server: DemoServer) -> None:
        cap = 1e-3
        model = budgeted(chat(max_tokens=400), cap, budget_clamp_output=False)
        server.default = Reply("word " * 500, latency=0.01)
        results = await asyncio.gather(*(model.ainvoke("Hi") for _ in range(20)), return_exceptions=True)
        answered = [result for result in results if not isinstance(result, Exception)]
        assert len(answered) == 4
        assert all(isinstance(result, BrixBudgetError) for result in results if isinstance(result, Exception))
        assert server.stats.requests == 4
        assert model.context.session_cost_usd <= cap


class TestLeaving:
    async def test_a_stream_left_in_the_middle_is_settled_at_once(self, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat())
        server.default = Reply("word " * 2_000, chunk_delay=0.002)
        for chunk in model.stream("Hi"):
            if chunk.content:
                break
        del chunk
        await self._check(model, server)

    async def test_a_closed_stream_is_settled_at_once(self, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), idle_timeout=5.0)
        server.default = Reply("word " * 2_000, chunk_delay=0.002)
        chunks: Any = model.stream("Hi")
        while not next(chunks).content:
            pass
        chunks.close()
        await self._check(model, server)

    async def test_an_async_stream_left_in_the_middle_is_settled(self, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat())
        server.default = Reply("word " * 2_000, chunk_delay=0.002)
        async for chunk in model.astream("Hi"):
            if chunk.content:
                break
        await self._let_finish(model)
        await self._check(model, server)

    async def test_a_closed_async_stream_is_settled(self, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat(), idle_timeout=5.0)
        server.default = Reply("word " * 2_000, chunk_delay=0.002)
        chunks: Any = model.astream("Hi")
        while not (await anext(chunks)).content:
            pass
        await chunks.aclose()
        await self._let_finish(model)
        await self._check(model, server)

    async def test_a_stream_never_begun_costs_nothing(self, chat: Make, server: DemoServer) -> None:
        model = budgeted(chat())
        model.stream("Hi")
        model.astream("Hi")
        assert server.stats.requests == 0
        assert model.context.session_cost_usd == 0

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_cancelled_call_is_charged_and_traced(self, stream: bool, chat: Make, server: DemoServer) -> None:
        # Without a chunk timeout: ChatOpenAI's swallows some cancellations on Python 3.11.
        model = budgeted(chat(stream_chunk_timeout=None), per_call_timeout=5.0)
        server.default = Reply("word " * 2_000, chunk_delay=0.002)
        task = asyncio.create_task(ask(model, "astream" if stream else "ainvoke", "Hi"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self._let_finish(model)
        await self._check(model, server, "cancelled")

    async def _let_finish(self, model: GuardedChatModel) -> None:
        for _ in range(100):  # what Python itself does when an async generator is dropped takes a turn of the loop
            if model.get_traces():
                return
            await asyncio.sleep(0.005)

    async def _check(self, model: GuardedChatModel, server: DemoServer, outcome: str = "abandoned") -> None:
        (trace,) = model.get_traces()
        assert trace["outcome"] == outcome
        assert [one["outcome"] for one in trace["attempts"]] == [outcome]
        assert trace["cost_usd"] == model.context.session_cost_usd > 0
        store: Any = model._pipeline.store
        assert store.balance(f"budget:{model.context.session_id}").reserved == 0
        assert await asyncio.to_thread(server.wait_until_idle)
        assert server.stats.requests == 1


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


class City(BaseModel):
    """A city."""

    name: str
    people: int


@pytest.fixture(scope="module")
def second_server() -> Iterator[DemoServer]:
    with DemoServer() as running:
        yield running


@pytest.fixture
def other(second_server: DemoServer) -> DemoServer:
    second_server.reset()
    return second_server


class TestFallbacks:
    @pytest.mark.parametrize("way", WAYS)
    async def test_the_next_model_answers(self, way: str, chat: Make, server: DemoServer, other: DemoServer) -> None:
        spare = chat(base_url=other.base_url, model="gpt-4o")
        model = budgeted(chat(), fallbacks=[spare], max_retries=1, backoff_base=1.0, max_backoff=0.0)
        server.default, other.default = ServerError(), Reply("I am the other one.")
        assert await ask(chain(model), way) == "I am the other one."
        assert (server.stats.requests, other.stats.requests) == (2, 1)
        trace = model.get_traces()[0]
        assert trace["model"] == "gpt-4o"
        assert [one["status"] for one in trace["attempts"]] == [500, 500, None]
        assert trace["cost_usd"] == model.context.session_cost_usd > 0

    async def test_when_all_fail_the_error_names_each(self, chat: Make, server: DemoServer, other: DemoServer) -> None:
        model = guarded(chat(), fallbacks=[chat(base_url=other.base_url, model="gpt-4o")], prices=None)
        server.default = other.default = ServerError()
        with pytest.raises(BrixFailoverError) as caught:
            model.invoke("Hi")
        assert [name.partition("@")[0] for name, _ in caught.value.errors] == ["openai:gpt-4o-mini", "openai:gpt-4o"]
        with pytest.raises(BrixFailoverError):
            await model.ainvoke("Hi")

    async def test_a_fallback_keeps_its_own_name_and_its_own_word_for_the_cap(
        self, chat: Make, claude: Make, server: DemoServer, other: DemoServer
    ) -> None:
        model = guarded(chat(), fallbacks=[claude(base_url=other.anthropic_base_url)], max_cost_usd=1.0, prices=None)
        server.default = ServerError()
        model.invoke("Hi", model="gpt-4o", max_completion_tokens=55)
        assert server.requests[0].body["model"] == "gpt-4o"
        body = other.requests[0].body
        assert (body["model"], body["max_tokens"]) == ("claude-haiku-4-5", 55)
        assert "max_completion_tokens" not in body
        assert [one["model"] for one in model.get_traces()[0]["attempts"]] == ["gpt-4o", "claude-haiku-4-5"]

    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
    async def test_tools_are_bound_in_the_fallbacks_own_words(
        self, way: str, chat: Make, claude: Make, server: DemoServer, other: DemoServer
    ) -> None:
        spare = claude(base_url=other.anthropic_base_url)
        model = guarded(chat(), fallbacks=[spare], max_cost_usd=1.0, prices=None)
        server.default = ServerError()
        other.default = ToolCalls([("weather", {"city": "Oslo"})])
        bound = model.bind_tools([weather], tool_choice="weather")
        if way == "invoke":
            answer = bound.invoke("Hi")
        elif way == "ainvoke":
            answer = await bound.ainvoke("Hi")
        else:
            chunks = list(bound.stream("Hi")) if way == "stream" else [one async for one in bound.astream("Hi")]
            answer = chunks[0]
            for chunk in chunks[1:]:
                answer += chunk
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("weather", {"city": "Oslo"})]
        assert server.requests[0].body["tools"][0]["function"]["name"] == "weather"
        assert other.requests[0].body["tools"][0]["input_schema"]["required"] == ["city"]
        assert other.requests[0].body["tool_choice"] == {"type": "tool", "name": "weather"}
        assert attempts(model) == 2
        assert server.stats.requests + other.stats.requests == 2

    @pytest.mark.parametrize("include_raw", [False, True])
    async def test_structured_output_comes_from_either_provider(
        self, include_raw: bool, chat: Make, claude: Make, server: DemoServer, other: DemoServer
    ) -> None:
        model = guarded(chat(), fallbacks=[claude(base_url=other.anthropic_base_url)], max_cost_usd=1.0, prices=None)
        structured = model.with_structured_output(City, include_raw=include_raw)
        for answer in (structured.invoke("Oslo has 700000"), await structured.ainvoke("Oslo has 700000")):
            assert isinstance(answer["parsed"] if include_raw else answer, City)
        server.default = ServerError()
        for answer in (structured.invoke("Oslo has 700000"), await structured.ainvoke("Oslo has 700000")):
            assert isinstance(answer["parsed"] if include_raw else answer, City)
        assert (server.stats.requests, other.stats.requests) == (4, 2)
        assert attempts(model) == 6

    async def test_a_method_that_one_provider_alone_understands_is_refused(self, chat: Make, claude: Make) -> None:
        model = guarded(chat(), fallbacks=[claude()], prices=None)
        with pytest.raises(BrixConfigurationError, match="function_calling"):
            model.with_structured_output(City, method="json_schema")

    async def test_an_open_circuit_goes_to_the_fallback_at_once(
        self, chat: Make, server: DemoServer, other: DemoServer
    ) -> None:
        model = guarded(
            chat(),
            fallbacks=[chat(base_url=other.base_url)],
            circuit_breaker=True,
            circuit_failure_threshold=2,
            prices=None,
        )
        server.default, other.default = ServerError(), Reply("Here.")
        for way in WAYS:
            assert await ask(chain(model), way) == "Here."
        assert (server.stats.requests, other.stats.requests) == (2, len(WAYS))

    async def test_without_a_fallback_an_open_circuit_refuses(self, chat: Make, server: DemoServer) -> None:
        model = guarded(chat(), circuit_breaker=True, circuit_failure_threshold=1, prices=None)
        server.default = ServerError()
        with pytest.raises(openai.InternalServerError):
            model.invoke("Hi")
        with pytest.raises(BrixCircuitOpenError):
            await model.ainvoke("Hi")
        assert server.stats.requests == 1

    async def test_nothing_fails_over_once_the_consumer_has_chunks(
        self, chat: Make, server: DemoServer, other: DemoServer
    ) -> None:
        model = guarded(chat(), fallbacks=[chat(base_url=other.base_url)], prices=None)
        server.default = CutStream(after=2)
        with pytest.raises(Exception, match=r"(?i)connection|peer|chunk"):
            list(model.stream("Hi"))
        assert other.stats.requests == 0


async def test_claude_is_asked_once_when_it_fails(claude: Make, server: DemoServer) -> None:
    model = guarded(claude(max_retries=4), max_cost_usd=1.0, prices=None)
    server.default = ServerError()
    for way in ("invoke", "ainvoke", "stream", "astream"):
        server.reset()
        server.default = ServerError()
        with pytest.raises(Exception, match="error"):
            await ask(model, way, "Hi")
        assert server.stats.requests == 1


async def test_claude_is_charged_what_it_reports(claude: Make, server: DemoServer) -> None:
    rates = (1e-6, 5e-6)
    model = guarded(claude(), max_cost_usd=1.0, prices={"claude-haiku-4-5": rates})
    for way in WAYS:
        await ask(model, way, "Tell me something")
    stats = server.stats
    owed = stats.prompt_tokens * rates[0] + stats.completion_tokens * rates[1]
    assert model.context.session_cost_usd == pytest.approx(owed)
    assert {trace["finish_reason"] for trace in model.get_traces()} == {"end_turn"}


async def test_a_hundred_at_once(chat: Make, server: DemoServer) -> None:
    model = budgeted(chat(), requests_per_minute=1_000_000, per_call_timeout=10.0, max_retries=1)
    answers = await asyncio.gather(*(model.ainvoke(f"Number {number}") for number in range(100)))
    assert all(f"Number {number}" in answer.content for number, answer in enumerate(answers))
    assert_all_seen(model, server, 100)


async def test_a_hundred_from_twenty_threads(chat: Make, server: DemoServer) -> None:
    model = budgeted(chat(), requests_per_minute=1_000_000, per_call_timeout=10.0, max_retries=1)
    answers: dict[int, Any] = {}

    def work(first: int) -> None:
        for number in range(first, 100, 20):
            answers[number] = model.invoke([HumanMessage(f"Number {number}")]).content

    threads = [threading.Thread(target=work, args=(first,)) for first in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 100
    assert all(f"Number {number}" in answer for number, answer in answers.items())
    assert_all_seen(model, server, 100)
