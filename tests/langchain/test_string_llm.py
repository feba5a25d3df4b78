"""String LLMs (text in, text out) behind their guards: still LLMs, and no entry point goes around."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseLLM
from langchain_core.language_models.fake import FakeListLLM, FakeStreamingListLLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableParallel
from langchain_openai import OpenAI

import brix_core
from brix_core import (
    BrixBudgetError,
    BrixConfigurationError,
    BrixRetryError,
    BrixTimeoutError,
)
from brix_core.demo import DemoServer, Reply, ServerError
from brix_core.store import MemoryStore
from brix_langchain import guard
from brix_langchain.string_llm import GuardedLLM
from tests.langchain.conftest import Make

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:langchain_core._api.deprecation.LangChainDeprecationWarning"),
]

MODEL = "gpt-3.5-turbo-instruct"
RATES = (1.5e-6, 2e-6)
OPTIONS: dict[str, Any] = {
    "max_cost_usd": 1.0,
    "prices": {MODEL: RATES},
    "requests_per_minute": 1_000_000,
    "tokens_per_minute": 1e12,
    "per_call_timeout": 20.0,
    "max_retries": 2,
    "backoff_base": 1.0,
    "max_backoff": 0.0,
    "circuit_breaker": True,
}


@pytest.fixture
async def llm(server: DemoServer) -> AsyncIterator[Make]:
    """Makes an OpenAI LLM on the demo server, on connections that are closed after the test."""
    with httpx.Client(verify=False) as blocking:
        async with httpx.AsyncClient(verify=False) as asynchronous:

            def make(**fields: Any) -> OpenAI:
                return OpenAI(
                    **{
                        "model": MODEL,
                        "base_url": server.base_url,
                        "api_key": "sk-secret",
                        "http_client": blocking,
                        "http_async_client": asynchronous,
                        **fields,
                    }
                )

            yield make


def guarded(model: BaseLLM, **options: Any) -> GuardedLLM:
    made: GuardedLLM = guard(model, **{**OPTIONS, "store": MemoryStore(), **options})
    return made


def assert_all_seen(model: GuardedLLM, server: DemoServer, requests: int, *, counted: bool = False) -> None:
    """`counted`: streams of this model report no usage, so the spend is our own, slightly higher count."""
    assert server.wait_until_idle()
    stats = server.stats
    assert sum(len(trace["attempts"]) for trace in model.get_traces()) == stats.requests == requests
    owed = stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1]
    spent = sum(trace["cost_usd"] for trace in model.get_traces())
    if counted:
        assert owed <= spent <= owed + requests * 12 * RATES[0]
    else:
        assert spent == pytest.approx(owed, rel=1e-6)


async def drain(source: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in source]


SYNC: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "invoke": (1, lambda m: m.invoke("Hi")),
    "stream": (1, lambda m: list(m.stream("Hi"))),
    "batch": (3, lambda m: m.batch(["Hi", "Ho", "Hu"])),
    "batch, two at a time": (3, lambda m: m.batch(["Hi", "Ho", "Hu"], config={"max_concurrency": 2})),
    "batch_as_completed": (3, lambda m: list(m.batch_as_completed(["Hi", "Ho", "Hu"]))),
    "generate": (3, lambda m: m.generate(["Hi", "Ho", "Hu"])),
    "generate_prompt": (2, lambda m: m.generate_prompt([PromptTemplate.from_template("Hi").invoke({})] * 2)),
    "transform, streamed": (1, lambda m: list(m.transform(iter(["Hi"])))),
    "with_config": (1, lambda m: m.with_config(tags=["t"]).invoke("Hi")),
    "bind": (1, lambda m: m.bind(stop=["zzz"]).invoke("Hi")),
    "bind, streamed": (1, lambda m: list(m.bind(stop=["zzz"]).stream("Hi"))),
    "with_retry": (1, lambda m: m.with_retry(stop_after_attempt=2).invoke("Hi")),
    "with_fallbacks": (1, lambda m: m.with_fallbacks([m]).invoke("Hi")),
    "pipe": (1, lambda m: (PromptTemplate.from_template("Hi {x}") | m | StrOutputParser()).invoke({"x": "a"})),
    "pipe, streamed": (1, lambda m: list((PromptTemplate.from_template("Hi {x}") | m).stream({"x": "a"}))),
    "parallel": (2, lambda m: RunnableParallel(a=m, b=m).invoke("Hi")),
    "copies": (1, lambda m: copy.deepcopy(m).invoke("Hi")),
}
ASYNC: dict[str, tuple[int, Callable[[Any], Awaitable[Any]]]] = {
    "ainvoke": (1, lambda m: m.ainvoke("Hi")),
    "astream": (1, lambda m: drain(m.astream("Hi"))),
    "abatch": (3, lambda m: m.abatch(["Hi", "Ho", "Hu"])),
    "agenerate": (3, lambda m: m.agenerate(["Hi", "Ho", "Hu"])),
    "astream_events, streamed": (1, lambda m: drain(m.astream_events("Hi", version="v2"))),
    "astream_log, streamed": (1, lambda m: drain(m.astream_log("Hi"))),
    "pipe, streamed": (1, lambda m: drain((PromptTemplate.from_template("Hi {x}") | m).astream({"x": "a"}))),
}


class TestEntryPoints:
    @pytest.mark.parametrize("way", SYNC)
    def test_every_blocking_one_is_guarded(self, way: str, llm: Make, server: DemoServer) -> None:
        requests, call = SYNC[way]
        model = guarded(llm())
        call(model)
        assert_all_seen(model, server, requests, counted="stream" in way)

    @pytest.mark.parametrize("way", ASYNC)
    async def test_every_async_one_is_guarded(self, way: str, llm: Make, server: DemoServer) -> None:
        requests, call = ASYNC[way]
        model = guarded(llm())
        await call(model)
        await asyncio.to_thread(assert_all_seen, model, server, requests, counted="stream" in way)


class TestAnswers:
    async def test_they_are_those_of_the_bare_model(self, llm: Make) -> None:
        bare, model = llm(), guarded(llm())
        assert model.invoke("Hi") == bare.invoke("Hi")
        assert await model.ainvoke("Hi") == await bare.ainvoke("Hi")
        assert "".join(model.stream("Hi")) == "".join(bare.stream("Hi"))
        assert model.batch(["Hi", "Ho"]) == bare.batch(["Hi", "Ho"])
        ours, theirs = model.generate(["Hi", "Ho"]), bare.generate(["Hi", "Ho"])
        assert ours.generations == theirs.generations
        assert ours.llm_output == theirs.llm_output

    async def test_a_model_that_cannot_stream_gives_one_chunk(self) -> None:
        model = guarded(FakeListLLM(responses=["Paris"]), max_cost_usd=None, prices=None)
        assert list(model.stream("Hi")) == ["Paris"]
        assert await drain(model.astream("Hi")) == ["Paris"]
        assert "".join(guard(FakeStreamingListLLM(responses=["Paris"])).stream("Hi")) == "Paris"

    def test_all_choices_are_charged(self, llm: Make, server: DemoServer) -> None:
        model = guarded(llm(n=3, best_of=3))
        assert len(model.generate(["Hi"]).generations[0]) == 3
        assert_all_seen(model, server, 1)

    def test_it_is_still_a_string_llm(self, llm: Make) -> None:
        bare = llm(custom_get_token_ids=lambda text: [7] * len(text))
        model = guarded(bare)
        assert isinstance(model, BaseLLM)
        assert model._llm_type == "openai"
        assert model.get_num_tokens("Hello") == bare.get_num_tokens("Hello") == 5
        assert model.get_input_jsonschema() | {"title": ""} == bare.get_input_jsonschema() | {"title": ""}
        assert repr(model).startswith("GuardedLLM(")


class TestGuards:
    async def test_its_own_retries_are_off_and_ours_count(self, llm: Make, server: DemoServer) -> None:
        server.default = ServerError()
        with pytest.raises(openai.InternalServerError):
            guarded(llm(), max_retries=None, backoff_base=None, max_backoff=None).invoke("Hi")
        assert server.stats.requests == 1
        model = guarded(llm())
        with pytest.raises(BrixRetryError):
            await model.ainvoke("Hi")
        assert server.stats.requests == 4

    async def test_a_call_that_does_not_fit_never_leaves(self, llm: Make, server: DemoServer) -> None:
        model = guarded(llm(), max_cost_usd=1e-6)
        for call in (lambda: model.invoke("Hi"), lambda: list(model.stream("Hi")), lambda: model.generate(["Hi"])):
            with pytest.raises(BrixBudgetError):
                call()
        with pytest.raises(BrixBudgetError):
            await model.ainvoke("Hi")
        assert server.stats.requests == 0

    def test_the_output_cap_is_lowered_to_what_is_affordable(self, llm: Make, server: DemoServer) -> None:
        guarded(llm(), max_cost_usd=1e-4).invoke("Hi")
        assert server.requests[0].body["max_tokens"] < 50

    async def test_a_call_that_hangs_is_given_up(self, llm: Make, server: DemoServer) -> None:
        server.default = Reply("Late.", latency=1.0)
        model = guarded(llm(), per_call_timeout=0.1, max_retries=None, backoff_base=None, max_backoff=None)
        with pytest.raises(BrixTimeoutError):
            model.invoke("Hi")
        with pytest.raises(BrixTimeoutError):
            await model.ainvoke("Hi")

    def test_the_next_model_answers(self, llm: Make, server: DemoServer) -> None:
        server.default = ServerError()
        model = guarded(llm(), fallbacks=[FakeListLLM(responses=["Spare."])], unknown_price="free")
        assert model.invoke("Hi") == "Spare."
        assert list(model.stream("Hi")) == ["Spare."]

    async def test_when_one_of_several_prompts_fails_the_others_are_settled(
        self, llm: Make, server: DemoServer
    ) -> None:
        server.script(Reply("Yes."), ServerError())
        model = guarded(llm(), max_retries=None, backoff_base=None, max_backoff=None)
        with pytest.raises(openai.InternalServerError):
            await model.agenerate(["Hi", "Ho", "Hu"])
        for _ in range(100):
            if len(model.get_traces()) == 3:
                break
            await asyncio.sleep(0.01)
        store: Any = model._pipeline.store
        assert store.balance(f"budget:{model.context.session_id}").reserved == 0

    async def test_each_caller_has_a_session_of_its_own(self, llm: Make) -> None:
        model = guarded(llm())
        model.invoke("Hi", {"configurable": {"session_id": "ann"}})
        with brix_core.session("ben"):
            chunks = model.stream("Hi")
        list(chunks)
        model.batch(["Hi"], [{"configurable": {"thread_id": "cleo"}}])
        await (PromptTemplate.from_template("{x}") | model).ainvoke(
            {"x": "Hi"}, {"configurable": {"session_id": "dan"}}
        )
        assert [trace["session_id"] for trace in model.get_traces()] == ["dan", "cleo", "ben", "ann"]


class TestCache:
    async def test_an_answer_from_the_cache_is_no_call(self, llm: Make, server: DemoServer) -> None:
        set_llm_cache(InMemoryCache())
        bare, model = llm(), guarded(llm())
        assert model.invoke("Hi") == model.invoke("Hi") == await model.ainvoke("Hi")
        assert bare.invoke("Hi", {"configurable": {"session_id": "x"}}) == model.invoke("Hi")
        model.generate(["Hi", "Ho"])
        assert_all_seen(model, server, 2)

    def test_with_fallbacks_it_is_kept_apart(self, llm: Make, server: DemoServer) -> None:
        set_llm_cache(InMemoryCache())
        guarded(llm()).invoke("Hi")
        guarded(llm(), fallbacks=[FakeListLLM(responses=["Spare."])]).invoke("Hi")
        assert server.stats.requests == 2


class TestWrongUse:
    def test_it_is_refused(self, llm: Make, chat: Make) -> None:
        model = guarded(llm())
        for wrong in (model, model.bind(stop=["z"])):
            with pytest.raises(BrixConfigurationError, match="guarded already"):
                guard(wrong)
        with pytest.raises(BrixConfigurationError, match="bind afterwards"):
            guard(llm().bind(stop=["z"]))
        with pytest.raises(BrixConfigurationError, match="guarded already"):
            guard(llm(), fallbacks=[model])
        with pytest.raises(BrixConfigurationError, match="takes a LangChain LLM"):
            guard(llm(), fallbacks=[chat()])
        with pytest.raises(BrixConfigurationError, match="response_schema"):
            guard(llm(), response_schema=dict)
        with pytest.raises(BrixConfigurationError, match="pickled"):
            pickle.dumps(model)


def test_usage_callbacks_do_not_mind(llm: Make) -> None:
    with get_usage_metadata_callback() as usage:
        guarded(llm()).invoke("Hi")
    assert usage.usage_metadata == {}
