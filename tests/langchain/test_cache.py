"""The core's cache where LangChain takes a cache: the standard suites, and real models on the local server."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from langchain_core.caches import BaseCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.tools import tool
from langchain_tests.integration_tests import AsyncCacheTestSuite, SyncCacheTestSuite
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from brix_core import BrixConfigurationError, InMemoryCache, session
from brix_core.demo import DemoServer, Reply, ServerError, SlowFirstToken, StalledStream
from brix_core.store import MemoryStore
from brix_langchain import BrixCache, BrixCallbackHandler, guard
from tests.langchain.conftest import Make
from tests.langchain.support import OPTIONS, attempts
from tests.support.virtual import VirtualClock


class TestStandardSync(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self) -> BaseCache:
        return BrixCache()


class TestStandardAsync(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self) -> BaseCache:
        return BrixCache()


class BlockingCache(InMemoryCache):
    """Does I/O, as a durable cache will: it must be kept off the event loop."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.threads.add(threading.get_ident())
        return super().get(key, default)

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        self.threads.add(threading.get_ident())
        super().set(key, value, ttl)

    def clear(self) -> None:
        self.threads.add(threading.get_ident())
        super().clear()


class TestStandardBlocking(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self) -> Any:
        inner = BlockingCache()
        yield BrixCache(inner)
        assert inner.threads
        assert threading.get_ident() not in inner.threads


@pytest.fixture(params=["of the model", "of all models"])
def cached(request: Any, chat: Make) -> Any:
    """Makes models with a cache, their own or the global one."""

    def make(cache: BrixCache, **fields: Any) -> Any:
        if request.param == "of the model":
            return chat(cache=cache, **fields)
        set_llm_cache(cache)
        return chat(**fields)

    return make


async def test_a_cached_answer_makes_no_request(cached: Any, server: DemoServer) -> None:
    cache = BrixCache()
    model = cached(cache)
    answers = [model.invoke("Hi"), await model.ainvoke("Hi"), *model.batch(["Hi", "Hi"]), *await model.abatch(["Hi"])]
    assert server.stats.requests == 1
    assert len({answer.content for answer in answers}) == 1
    assert cache.get_stats() == {"hits": 4, "misses": 1, "hit_rate": "80.00%"}
    await model.ainvoke("Something else")
    assert server.stats.requests == 2


def test_what_is_asked_differently_is_another_question(cached: Any, server: DemoServer) -> None:
    @tool
    def weather(city: str) -> str:
        """The weather."""
        return "rain"

    cache = BrixCache()
    model = cached(cache)
    asked = [
        model,
        cached(cache, temperature=0.5),
        cached(cache, model="gpt-4o"),
        model.bind_tools([weather]),
        model.bind(stop=["."]),
    ]
    for _ in range(2):
        for runnable in asked:
            runnable.invoke("Hi")
    assert server.stats.requests == len(asked)
    assert cache.get_stats()["hits"] == len(asked)


async def test_a_guarded_model_neither_counts_nor_charges_a_hit(cached: Any, server: DemoServer) -> None:
    model = guard(cached(BrixCache()), **{**OPTIONS, "store": MemoryStore()})
    model.invoke("Hi")
    spent = model.context.session_cost_usd
    assert spent > 0
    await model.ainvoke("Hi")
    with session("somebody else"):
        model.invoke("Hi")
        assert model.context.session_cost_usd == 0
    assert model.context.session_cost_usd == spent
    assert attempts(model) == server.stats.requests == 1


def test_callbacks_do_not_charge_a_hit(chat: Make, server: DemoServer) -> None:
    handler = BrixCallbackHandler(max_cost_usd=1.0, prices=OPTIONS["prices"], store=MemoryStore())
    model = chat(cache=BrixCache(), callbacks=[handler], max_tokens=100, max_retries=0)
    model.invoke("Hi")
    model.invoke("Hi")
    hit, asked = handler.get_traces()
    assert asked["cost_usd"] > 0
    assert not hit["cost_usd"]
    assert server.stats.requests == 1


def test_the_usage_of_a_hit_is_marked_and_that_of_the_first_answer_is_not(chat: Make, server: DemoServer) -> None:
    model = chat(cache=BrixCache())
    first, second, third = (model.invoke("Hi").usage_metadata for _ in range(3))
    assert first["total_tokens"] > 0
    assert "total_cost" not in first
    assert second == third == {**first, "total_cost": 0}


def test_nobody_can_edit_what_is_kept() -> None:
    cache = BrixCache()
    given = [ChatGeneration(message=AIMessage("Paris", response_metadata={"list": [1]}))]
    cache.update("p", "m", given)
    given[0].message.response_metadata["list"].append(2)
    for _ in range(2):
        found: Any = cache.lookup("p", "m")
        assert [generation.message.response_metadata for generation in found] == [{"list": [1]}]
        found[0].message.response_metadata["list"].append(3)
        found.append("more")


def test_prompt_and_model_are_not_run_together() -> None:
    cache = BrixCache()
    cache.update("b", "a", [Generation(text="1")])
    assert cache.lookup("ab", "") is None
    assert cache.lookup("", "ab") is None
    assert cache.lookup("a", "b") is None
    assert cache.lookup("b", "a") == [Generation(text="1")]
    assert cache.lookup("\udc80", "a") is None  # half a character, as a cut text may end with


def test_answers_are_forgotten_when_they_are_many_or_old(chat: Make, server: DemoServer) -> None:
    clock = VirtualClock()
    model = chat(cache=BrixCache(InMemoryCache(max_size=2, default_ttl=60, clock=clock)))
    for text in ("one", "two", "three", "three", "two"):
        model.invoke(text)
    assert server.stats.requests == 3
    model.invoke("one")
    assert server.stats.requests == 4
    clock.advance(60)
    model.invoke("one")
    assert server.stats.requests == 5


def test_the_same_answer_twice_in_a_conversation_is_two_messages(chat: Make, server: DemoServer) -> None:
    model = chat(cache=BrixCache())
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"][-1:])]})
    graph: Any = builder.add_edge(START, "model").compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    for _ in range(3):
        state = graph.invoke({"messages": [("user", "Hi")]}, config)
    assert [message.type for message in state["messages"]] == ["human", "ai"] * 3
    assert len({message.id for message in state["messages"]}) == 6
    assert server.stats.requests == 1


def test_an_id_that_the_provider_gave_stays() -> None:
    cache = BrixCache()
    cache.update("p", "m", [ChatGeneration(message=AIMessage("Paris", id="msg_1"))])
    found: Any = cache.lookup("p", "m")
    assert found[0].message.id == "msg_1"


async def test_a_partial_answer_is_not_kept(cached: Any, server: DemoServer) -> None:
    cache = BrixCache()
    options = {**OPTIONS, "store": MemoryStore(), "per_call_timeout": 0.1, "on_timeout": "return_partial"}
    model = guard(cached(cache), **options)
    server.script(StalledStream(), StalledStream())
    for answer in (model.invoke("Hi"), await model.ainvoke("Hi")):
        assert answer.response_metadata["finish_reason"] == "timeout"
    assert model.invoke("Hi").response_metadata["finish_reason"] == "stop"
    assert model.invoke("Hi").response_metadata["finish_reason"] == "stop"
    assert server.stats.requests == 3
    assert cache.get_stats()["hits"] == 1


def test_a_partial_answer_is_not_kept_whoever_brings_it() -> None:
    cache = BrixCache()
    cut = ChatGeneration(message=AIMessage("Par", response_metadata={"finish_reason": "timeout"}))
    cache.update("p", "m", [cut])
    assert cache.lookup("p", "m") is None


def test_an_answer_that_cannot_be_copied_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    cache = BrixCache()
    cache.update("p", "m", [ChatGeneration(message=AIMessage("Paris", additional_kwargs={"raw": threading.Lock()}))])
    assert cache.lookup("p", "m") is None
    assert "was not cached" in caplog.text


def test_string_models_are_cached_as_well() -> None:
    cache = BrixCache()
    model = FakeListLLM(responses=["Paris", "Lyon"], cache=cache)
    assert [model.invoke("Hi"), model.invoke("Hi"), *model.batch(["Hi"])] == ["Paris"] * 3
    assert cache.get_stats()["hits"] == 2


async def test_identical_requests_at_once_are_all_sent(chat: Make, server: DemoServer) -> None:
    cache = BrixCache()
    model = chat(cache=cache)
    await asyncio.gather(*(model.ainvoke("Hi") for _ in range(4)))
    assert server.stats.requests == cache.get_stats()["misses"] == 4  # as LangChain's interface has it


async def test_a_hundred_at_once_get_the_answer_to_their_own_question(cached: Any, server: DemoServer) -> None:
    cache = BrixCache()
    model = cached(cache)
    for _ in range(2):
        answers = await asyncio.gather(*(model.ainvoke(f"Say {n}") for n in range(50)))
        assert all(str(n) in answer.text for n, answer in enumerate(answers))
    assert server.stats.requests == cache.get_stats()["misses"] == cache.get_stats()["hits"] == 50


def test_threads_neither_lose_nor_mix_answers() -> None:
    cache = BrixCache(InMemoryCache(max_size=40))

    def work(seed: int) -> int:
        found = 0
        for step in range(200):
            key = str((seed * 7 + step) % 30)
            cache.update(key, "m", [ChatGeneration(message=AIMessage(key))])
            answer = cache.lookup(key, "m")
            assert answer is not None
            assert answer[0].text == key
            found += 1
        return found

    with ThreadPoolExecutor(16) as threads:
        found = sum(threads.map(work, range(16)))
    assert cache.get_stats() == {"hits": found, "misses": 0, "hit_rate": "100.00%"}


async def test_an_empty_answer_is_an_answer(chat: Make, server: DemoServer) -> None:
    cache = BrixCache()
    cache.update("p", "m", [])
    assert cache.lookup("p", "m") == []
    assert await cache.alookup("q", "m") is None
    model = chat(cache=cache)
    server.default = Reply("")
    assert [model.invoke("Hi").text, (await model.ainvoke("Hi")).text] == ["", ""]
    assert server.stats.requests == 1


async def test_what_failed_or_was_cancelled_is_not_kept(cached: Any, server: DemoServer) -> None:
    cache = BrixCache()
    model = cached(cache, max_retries=0)
    server.script(ServerError(), SlowFirstToken(5.0))
    with pytest.raises(openai.InternalServerError):
        model.invoke("Hi")
    task = asyncio.create_task(model.ainvoke("Hi"))
    while server.stats.requests < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.invoke("Hi").text
    assert cache.get_stats()["hits"] == 0
    assert server.stats.requests == 3


@pytest.mark.parametrize("no_cache", ["redis://localhost", {}, 7, InMemoryCache, BrixCache()])
def test_what_is_no_cache_of_the_core_is_refused(no_cache: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"cache must be .*InMemoryCache\(max_size=1000\), got"):
        BrixCache(no_cache)


async def test_clearing_forgets_answers_and_counts() -> None:
    cache = BrixCache()
    model = FakeListChatModel(responses=["Paris", "Lyon", "Nice"], cache=cache)
    answers = [model.invoke("Hi").content]
    cache.clear()
    answers.append(model.invoke("Hi").content)
    await cache.aclear()
    answers.append(model.invoke("Hi").content)
    assert answers == ["Paris", "Lyon", "Nice"]
    assert cache.get_stats() == {"hits": 0, "misses": 1, "hit_rate": "0.00%"}


def test_copies_share_what_is_kept_and_none_is_pickled() -> None:
    cache = BrixCache()
    copies = copy.copy(cache), copy.deepcopy(FakeListChatModel(responses=["Paris", "Lyon"], cache=cache)).cache
    for twin in copies:
        assert FakeListChatModel(responses=["Paris"], cache=twin).invoke("Capital?").content == "Paris"
    assert cache.get_stats()["hits"] == 1
    with pytest.raises(BrixConfigurationError, match=r"BrixCache cannot be pickled.*on the other side"):
        pickle.dumps(cache)
