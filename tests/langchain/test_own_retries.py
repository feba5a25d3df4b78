"""The retries a model makes by itself: no guard sees them, so that they are switched off, or the model is refused."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_openai import ChatOpenAI

from brix_core.demo import DemoServer, ServerError
from brix_core.errors import BrixConfigurationError
from brix_core.store import MemoryStore
from brix_langchain import BrixCallbackHandler, BrixMiddleware, guard
from brix_langchain.own_retries import chain_without_own_retries
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES

PROMPT: Any = ChatPromptTemplate.from_template("Tell me about {topic}")
INPUT = {"topic": "guards"}
ASKED: Any = {"messages": [("human", "Hi")]}
PRICED: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES, "claude-haiku-4-5": RATES}}

CHAINS: dict[str, Callable[[BaseChatModel], Runnable[Any, Any]]] = {
    "sequence": lambda model: PROMPT | model | StrOutputParser(),
    "binding": lambda model: PROMPT | model.bind(stop=["x"]),
    "parallel": lambda model: RunnableParallel(answer=PROMPT | model),
    "assign": lambda model: RunnablePassthrough.assign(answer=PROMPT | model),
    "branch": lambda model: RunnableBranch((lambda _: True, PROMPT | model), RunnablePassthrough()),
    "branch, default": lambda model: RunnableBranch((lambda _: False, RunnablePassthrough()), PROMPT | model),
    "fallbacks": lambda model: (PROMPT | model).with_fallbacks([PROMPT | model], exceptions_to_handle=(KeyError,)),
    "each": lambda model: (lambda topic: [topic]) | (PROMPT | model).map(),
    "with_config": lambda model: (PROMPT | model).with_config(tags=["t"]),
    "configurable": lambda model: PROMPT | model.configurable_fields(temperature=ConfigurableField(id="t")),
}


async def use(runnable: Any, way: str, value: Any, config: Any = None) -> None:
    if way == "invoke":
        runnable.invoke(value, config)
    elif way == "ainvoke":
        await runnable.ainvoke(value, config)
    elif way == "stream":
        list(runnable.stream(value, config))
    else:
        chunks: AsyncIterator[Any] = runnable.astream(value, config)
        async for _ in chunks:
            pass


WAYS = ["invoke", "ainvoke", "stream", "astream"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CHAINS)
async def test_in_a_guarded_chain_each_request_is_seen(kind: str, way: str, chat: Make, server: DemoServer) -> None:
    server.default = ServerError(503)
    model = chat(max_tokens=10)
    chain = guard(CHAINS[kind](model), **PRICED, store=MemoryStore())
    with pytest.raises(Exception, match="503"):
        await use(chain, way, INPUT)
    assert server.wait_until_idle()
    assert chain.inside is not None
    seen = sum(len(trace["attempts"]) for trace in chain.inside.get_traces())
    assert seen == server.stats.requests == 1
    assert model.max_retries is None


def test_so_it_is_with_anthropic(claude: Make, server: DemoServer) -> None:
    server.default = ServerError(503)
    chain = guard(PROMPT | claude(), **PRICED, store=MemoryStore())
    with pytest.raises(Exception, match="503"):
        chain.invoke(INPUT)
    assert chain.inside is not None
    assert len(chain.inside.get_traces()) == server.stats.requests == 1


def test_the_bare_chain_stays_as_it_is(chat: Make, server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0)
    server.default = ServerError(503)
    bare = PROMPT | chat(max_tokens=10)
    guarded = guard(bare, **PRICED, store=MemoryStore())
    assert guarded.inner is bare
    with pytest.raises(Exception, match="503"):
        bare.invoke(INPUT)
    assert server.stats.requests == 3


def test_the_fallbacks_of_a_guarded_chain_do_not_retry_either(chat: Make, server: DemoServer) -> None:
    server.default = ServerError(503)
    chain = guard(PROMPT | chat(), fallbacks=[PROMPT | chat(model="gpt-4o")], store=MemoryStore())
    with pytest.raises(Exception, match="all 2 models failed"):
        chain.invoke(INPUT)
    assert len(chain.get_traces()[0]["attempts"]) == server.stats.requests == 2


def test_one_model_in_two_places_stays_one_and_what_needs_no_copy_is_none(chat: Make) -> None:
    model, quiet = chat(), chat(max_retries=0)
    chain = chain_without_own_retries(RunnableParallel(a=PROMPT | model, b=PROMPT | model))
    first, second = map(_model_of, chain.steps__.values())
    assert first is second is not model
    assert isinstance(first, ChatOpenAI)
    assert first.max_retries == 0
    guarded = PROMPT | guard(quiet, store=MemoryStore())
    assert chain_without_own_retries(guarded) is guarded


def _model_of(chain: Any) -> Any:
    return chain.steps[-1]


def test_retries_that_were_asked_for_are_missed_aloud(chat: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "brix_langchain"):
        guard(PROMPT | chat(), store=MemoryStore())
        assert caplog.messages == []
        guard(PROMPT | chat(max_retries=4), store=MemoryStore())
    assert "ChatOpenAI retries 4 times by itself" in caplog.text
    assert "guard(model, max_retries=4)" in caplog.text


@pytest.mark.parametrize("way", WAYS)
class TestWhereTheModelIsOutOfReach:
    async def refused(self, runnable: Any, way: str, value: Any, config: Any, server: DemoServer, name: str) -> None:
        with pytest.raises(BrixConfigurationError, match="it retries by itself") as caught:
            await use(runnable, way, value, config)
        for word in (name, "max_retries=2", "max_retries=0", "guard(model, ", "BrixMiddleware", "'warn'"):
            assert word in str(caught.value)
        assert server.stats.requests == 0

    async def test_it_is_refused_under_a_handler(self, way: str, chat: Make, server: DemoServer) -> None:
        handler = BrixCallbackHandler(**PRICED)
        config = {"callbacks": [handler]}
        await self.refused(PROMPT | chat(), way, INPUT, config, server, MODEL)
        assert [trace["outcome"] for trace in handler.get_traces()] == ["refused"]
        await use(PROMPT | chat(max_retries=0), way, INPUT, config)
        assert server.wait_until_idle()
        assert len(handler.get_traces()) - 1 == server.stats.requests == 1

    async def test_so_is_claude(self, way: str, claude: Make, server: DemoServer) -> None:
        config = {"callbacks": [BrixCallbackHandler(**PRICED)]}
        await self.refused(claude(), way, "Hi", config, server, "claude-haiku-4-5")

    async def test_in_a_guarded_agent(self, way: str, chat: Make, server: DemoServer) -> None:
        agent = guard(create_agent(chat()), **PRICED, store=MemoryStore())
        await self.refused(agent, way, ASKED, None, server, MODEL)
        quiet = guard(create_agent(chat(max_retries=0)), **PRICED, store=MemoryStore())
        await use(quiet, way, ASKED)
        assert server.wait_until_idle()
        assert len(quiet.inside.get_traces()) == server.stats.requests == 1

    async def test_in_what_a_function_holds(self, way: str, chat: Make, server: DemoServer) -> None:
        model = chat()

        def ask(value: Any) -> Any:
            return model.invoke("Hi").text

        async def aask(value: Any) -> Any:
            return (await model.ainvoke("Hi")).text

        chain = guard(RunnableLambda(ask, aask), **PRICED, store=MemoryStore())
        await self.refused(chain, way, INPUT, None, server, MODEL)

    async def test_a_model_that_is_guarded_is_not(self, way: str, chat: Make, server: DemoServer) -> None:
        config: Any = {"callbacks": [BrixCallbackHandler(**PRICED)]}
        await use(PROMPT | guard(chat(), **PRICED, store=MemoryStore()), way, INPUT, config)
        middleware = BrixMiddleware(**PRICED, store=MemoryStore())
        await use(create_agent(chat(), middleware=[middleware]), way, ASKED, config)
        assert server.wait_until_idle()
        assert server.stats.requests == 2

    async def test_without_a_budget_that_refuses_it_is_not(self, way: str, chat: Make, server: DemoServer) -> None:
        for options in ({"max_calls_per_run": 5}, {**PRICED, "budget_strategy": "warn"}):
            await use(PROMPT | chat(), way, INPUT, {"callbacks": [BrixCallbackHandler(**options)]})
        assert server.wait_until_idle()
        assert server.stats.requests == 2
