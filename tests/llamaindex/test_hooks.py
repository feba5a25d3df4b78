"""Each of the eight hooks passes the guards: what the guard counted is what the server saw."""

from __future__ import annotations

import asyncio
import time

import httpx
import openai
import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms import CustomLLM, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.mock import MockFunctionCallingLLM

import brix_core
from brix_core import BrixBudgetError, BrixFailoverError, BrixRetryError, BrixTimeoutError
from brix_core.demo import (
    BadRequest,
    CutStream,
    DemoServer,
    EndlessRepetition,
    RateLimited,
    Reply,
    ServerError,
    SlowFirstToken,
    StalledStream,
    ToolCalls,
)
from brix_llamaindex import guard
from brix_llamaindex.chunks import Chunk
from brix_llamaindex.endpoint import LLMEndpoint
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import HOOKS, PLAIN, STREAMED, ask, attempts, outcomes, parts

pytestmark = pytest.mark.filterwarnings("ignore::brix_core.guards.budget.BrixBudgetWarning")

PRICES = {MODEL: (1e-6, 2e-6)}


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_call_is_answered_traced_and_counted_once(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(), max_cost_usd=1.0, prices=PRICES)
    server.script(Reply("Hello there, friend"))
    assert await ask(llm, hook) == "Hello there, friend"
    assert attempts(llm) == server.stats.requests == 1
    (trace,) = llm.get_traces()
    seen = server.requests[0]
    assert (trace["outcome"], trace["model"], trace["stream"]) == ("ok", MODEL, "stream" in hook)
    assert (trace["prompt_tokens"], trace["completion_tokens"]) == (
        seen.prompt_tokens,
        seen.completion_tokens,
    )
    cost = seen.prompt_tokens * 1e-6 + seen.completion_tokens * 2e-6
    assert trace["cost_usd"] == pytest.approx(cost)
    assert llm.brix.context.session_cost_usd == pytest.approx(cost)
    assert trace["finish_reason"] == "stop"


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_failure_is_one_request_without_max_retries(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = ServerError(500)
    bare = openai_like()
    llm = guard(bare)
    with pytest.raises(openai.InternalServerError):
        await ask(llm, hook)
    assert attempts(llm) == server.stats.requests == 1
    assert outcomes(llm) == ["failed"]
    assert bare.max_retries == 3


@pytest.mark.parametrize("hook", HOOKS)
async def test_two_retries_are_three_requests(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = ServerError(500)
    llm = guard(openai_like(), max_retries=2, max_backoff=0.0)
    with pytest.raises(BrixRetryError):
        await ask(llm, hook)
    assert attempts(llm) == server.stats.requests == 3


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_retry_that_succeeds_is_invisible(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.script(ServerError(503), RateLimited(retry_after="0"), Reply("at last"))
    llm = guard(openai_like(), max_retries=3, max_backoff=0.0)
    assert await ask(llm, hook) == "at last"
    assert attempts(llm) == server.stats.requests == 3
    assert outcomes(llm) == ["ok"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_bad_request_is_never_tried_again(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = BadRequest()
    llm = guard(openai_like(), max_retries=5, max_backoff=0.0)
    with pytest.raises(openai.BadRequestError):
        await ask(llm, hook)
    assert attempts(llm) == server.stats.requests == 1


@pytest.mark.parametrize("hook", HOOKS)
async def test_when_money_runs_short_the_output_cap_reaches_the_wire(
    openai_like: Make, server: DemoServer, hook: str
) -> None:
    llm = guard(openai_like(max_tokens=1000), max_cost_usd=0.0001, prices={MODEL: (0.0, 2e-6)})
    server.default = Reply("word " * 500)
    answer = await ask(llm, hook)
    body = server.requests[0].body
    assert body["max_tokens"] == 50
    assert answer.count("word") == 50
    assert llm.brix.context.session_cost_usd <= 0.0001
    assert llm.max_tokens == 1000
    with pytest.raises(BrixBudgetError):
        await ask(llm, hook)
    assert attempts(llm) == server.stats.requests == 1


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_refused_call_sends_nothing(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(), max_cost_usd=0.000001, prices={MODEL: (1e-3, 1e-3)})
    with pytest.raises(BrixBudgetError):
        await ask(llm, hook)
    assert server.stats.requests == 0
    assert outcomes(llm) == ["refused"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_no_caller_waits_longer_than_the_limit(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = SlowFirstToken(0.3)
    llm = guard(openai_like(), per_call_timeout=0.1)
    before = time.monotonic()
    with pytest.raises(BrixTimeoutError):
        await ask(llm, hook)
    assert time.monotonic() - before < 0.25
    assert outcomes(llm) == ["timed_out"]
    assert attempts(llm) == server.stats.requests == 1


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_partial_answer_is_returned_when_asked_for(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = StalledStream(after=3, text="one two three four five")
    llm = guard(openai_like(), per_call_timeout=0.15, on_timeout="return_partial")
    assert await ask(llm, hook) == "one two thre"
    assert outcomes(llm) == ["timed_out"]
    assert attempts(llm) == server.stats.requests == 1


async def test_a_partial_answer_says_so(openai_like: Make, server: DemoServer) -> None:
    server.default = StalledStream(after=1)
    llm = guard(openai_like(), per_call_timeout=0.1, on_timeout="return_partial")
    response = await llm.achat([ChatMessage("Hello")])
    assert isinstance(response, ChatResponse)
    assert response.additional_kwargs["finish_reason"] == "timeout"


@pytest.mark.parametrize("hook", STREAMED)
async def test_a_stream_past_its_cap_is_cut(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = EndlessRepetition(chunk_delay=0.0, limit=5000)
    llm = guard(openai_like(max_tokens=100), max_cost_usd=1.0, prices=PRICES)
    with pytest.raises(BrixBudgetError) as caught:
        await ask(llm, hook)
    assert "again and again" in caught.value.partial
    assert server.wait_until_idle()
    assert attempts(llm) == server.stats.requests == 1
    assert server.stats.aborted == 1
    (trace,) = llm.get_traces()
    assert trace["partial_text"].startswith("again and again")
    assert trace["cost_usd"] <= 0.01


@pytest.mark.parametrize("hook", STREAMED)
async def test_a_connection_lost_in_mid_stream_is_an_error_and_not_repeated(
    openai_like: Make, server: DemoServer, hook: str
) -> None:
    server.default = CutStream(after=2)
    llm = guard(openai_like(), max_retries=3, max_backoff=0.0)
    received = []

    async def read() -> None:
        async for part in parts(llm, hook):
            received.append(part)

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert "".join(received) == "This ans"
    assert attempts(llm) == server.stats.requests == 1
    (trace,) = llm.get_traces()
    assert (trace["outcome"], trace["partial_text"]) == ("failed", "This ans")


@pytest.mark.parametrize("hook", STREAMED)
async def test_an_abandoned_stream_is_released_and_traced(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = EndlessRepetition(text="word ")
    llm = guard(openai_like(max_tokens=5000), max_cost_usd=1.0, prices=PRICES)
    stream = parts(llm, hook)
    async for part in stream:
        if "word" in part:
            break
    await stream.aclose()
    assert server.wait_until_idle()
    (trace,) = llm.get_traces()
    assert trace["outcome"] == "abandoned"
    assert "word" in trace["partial_text"]
    balance = llm.brix.pipeline.store.balance(f"budget:{llm.brix.context.session_id}")
    assert balance.reserved == 0
    assert 0 < trace["cost_usd"] < 0.01


@pytest.mark.parametrize("hook", ["achat", "acomplete", "astream_chat", "astream_complete"])
async def test_a_cancelled_call_is_released_and_traced(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = StalledStream(after=1)
    llm = guard(openai_like(), max_cost_usd=1.0, prices=PRICES)
    task = asyncio.create_task(ask(llm, hook))
    while not server.stats.requests:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.wait_until_idle()
    assert outcomes(llm) == ["cancelled"]
    assert attempts(llm) == server.stats.requests == 1
    assert llm.brix.pipeline.store.balance(f"budget:{llm.brix.context.session_id}").reserved == 0


@pytest.mark.parametrize("hook", HOOKS)
async def test_the_next_model_answers_when_one_fails(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.script(ServerError(500), Reply("from the second"))
    llm = guard(openai_like(), fallbacks=[openai_like(model="second-model")])
    assert await ask(llm, hook) == "from the second"
    assert [record.model for record in server.requests] == [MODEL, "second-model"]
    (trace,) = llm.get_traces()
    assert [attempt["model"] for attempt in trace["attempts"]] == [MODEL, "second-model"]
    assert trace["model"] == "second-model"


async def test_a_fallback_does_not_retry_by_itself(openai_like: Make, server: DemoServer) -> None:
    server.default = ServerError(500)
    llm = guard(openai_like(), fallbacks=[openai_like(model="second-model")])
    with pytest.raises(BrixFailoverError):
        await llm.achat([ChatMessage("Hello")])
    assert attempts(llm) == server.stats.requests == 2


@pytest.mark.parametrize("hook", HOOKS)
async def test_sessions_have_their_own_traces_and_money(openai_like: Make, hook: str) -> None:
    llm = guard(openai_like(), max_cost_usd=1.0, prices=PRICES)
    with brix_core.session("ann"):
        await ask(llm, hook)
        spent = llm.brix.context.session_cost_usd
    with brix_core.session("bob"):
        assert llm.brix.context.session_cost_usd == 0.0
    assert spent > 0.0
    assert [trace["session_id"] for trace in llm.get_traces("ann")] == ["ann"]
    assert llm.get_traces("bob") == []


def test_a_stream_belongs_to_the_session_in_which_it_was_asked_for(openai_like: Make) -> None:
    llm = guard(openai_like())
    with brix_core.session("ann"):
        stream = llm.stream_chat([ChatMessage("Hello")])
    with brix_core.session("bob"):
        assert list(stream)
    assert [trace["session_id"] for trace in llm.get_traces()] == ["ann"]


def test_a_stream_sends_the_messages_it_was_given(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like())
    messages = [ChatMessage("Hello")]
    stream = llm.stream_chat(messages)
    messages.append(ChatMessage("later"))
    assert list(stream)
    assert len(server.requests[0].body["messages"]) == 1


@pytest.mark.parametrize("hook", ["stream_chat", "astream_chat"])
async def test_streamed_tool_calls_are_metered_and_traced(
    openai_like: Make, server: DemoServer, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"city": "Oslo", "days": 3}
    server.default = ToolCalls([("get_weather", arguments), ("get_news", {"topic": "sea"})])
    llm = guard(openai_like(), max_cost_usd=1.0, prices=PRICES)
    seen: list[str] = []
    read_chunk = LLMEndpoint.read_chunk

    def noting(self: LLMEndpoint, chunk: Chunk) -> str:
        seen.append(read_chunk(self, chunk))
        return seen[-1]

    monkeypatch.setattr(LLMEndpoint, "read_chunk", noting)
    await ask(llm, hook)
    assert "".join(seen) == 'get_weather{"city":"Oslo","days":3}get_news{"topic":"sea"}'
    (trace,) = llm.get_traces()
    assert (trace["outcome"], trace["finish_reason"]) == ("ok", "tool_calls")


@pytest.mark.parametrize("hook", STREAMED)
async def test_a_caller_may_decline_the_usage_of_a_stream(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(), max_cost_usd=1.0, prices=PRICES)
    await ask(llm, hook, stream_options={"include_usage": False})
    await ask(llm, hook)
    declined, asked = (record.body["stream_options"]["include_usage"] for record in server.requests)
    assert (declined, asked) == (False, True)
    assert min(trace["cost_usd"] for trace in llm.get_traces()) > 0.0


@pytest.mark.parametrize("hook", HOOKS)
async def test_text_completion_models_are_guarded_too(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(
        openai_like(is_chat_model=False, is_function_calling_model=False, max_tokens=1000),
        max_cost_usd=0.0002,
        prices={MODEL: (0.0, 2e-6)},
    )
    server.default = Reply("word " * 500)
    assert (await ask(llm, hook)).count("word") == 100
    (record,) = server.requests
    assert (record.path, record.body["max_tokens"]) == ("/v1/completions", 100)
    assert attempts(llm) == 1
    assert llm.get_traces()[0]["cost_usd"] == pytest.approx(0.0002)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("mock", [MockLLM, MockFunctionCallingLLM])
async def test_any_llm_can_be_guarded(mock: type[MockLLM], hook: str) -> None:
    bare, llm = mock(), guard(mock(), max_retries=1, requests_per_minute=600, per_call_timeout=5.0)
    assert await ask(llm, hook, "Hello there") == await ask(bare, hook, "Hello there")
    assert outcomes(llm) == ["ok"]
    assert attempts(llm) == 1


class SlowLLM(CustomLLM):
    """As the documentation tells users to write one: its asynchronous methods block the event loop."""

    seconds: float = 0.3

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="slow")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> CompletionResponse:
        time.sleep(self.seconds)
        return CompletionResponse(text=prompt)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> CompletionResponseGen:
        def chunks() -> CompletionResponseGen:
            for number in range(4):
                yield CompletionResponse(text="a" * (number + 1), delta="a")
                time.sleep(0.1)

        return chunks()


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_time_limit_holds_for_an_llm_that_blocks_the_event_loop(hook: str) -> None:
    llm = guard(SlowLLM(), per_call_timeout=0.05)
    before = time.monotonic()
    with pytest.raises(BrixTimeoutError):
        await ask(llm, hook)
    assert time.monotonic() - before < 0.2
    assert outcomes(llm) == ["timed_out"]


@pytest.mark.parametrize("hook", PLAIN)
async def test_an_llm_that_cannot_stream_still_answers_with_return_partial(hook: str) -> None:
    class Unstreamable(SlowLLM):
        @llm_completion_callback()
        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> CompletionResponseGen:
            raise NotImplementedError

    llm = guard(Unstreamable(seconds=0.0), per_call_timeout=5.0, on_timeout="return_partial")
    assert "Hello" in await ask(llm, hook)
    assert not llm.brix.endpoint.streams
    assert attempts(llm) == 1
