"""Guards within guards: a session is charged once, under the lowest cap, wherever the guards are."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool

from brix_core import BrixBudgetError
from brix_core.demo import DemoServer, Reply, ToolCalls
from brix_core.store import MemoryStore
from brix_langchain import BrixMiddleware, guard, guard_agent_executor
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES

PRICED: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES, "FakeListLLM": RATES}}
ANN: Any = {"configurable": {"session_id": "ann"}}
ASKED: Any = {"messages": [HumanMessage("Hi")]}
CAP = 1e-4


def lower(store: MemoryStore) -> dict[str, Any]:
    return {**PRICED, "max_cost_usd": CAP, "store": store}


def owed(server: DemoServer) -> float:
    """What the server counted, in nano-dollars."""
    assert server.wait_until_idle()
    return (server.stats.prompt_tokens * RATES[0] + server.stats.completion_tokens * RATES[1]) * 1e9


@tool
def clock() -> str:
    """The time."""
    return "noon"


def test_the_middleware_of_a_guarded_agent(chat: Make, server: DemoServer) -> None:
    server.default = Reply("word " * 1_000)
    store = MemoryStore()
    middleware = BrixMiddleware(**PRICED, store=store)
    agent = guard(create_agent(chat(), [clock], middleware=[middleware]), **lower(store))
    agent.invoke(ASKED, ANN)
    assert 0 < server.requests[0].body["max_completion_tokens"] < 200
    assert store.balance("budget:ann").spent == pytest.approx(owed(server))
    assert store.balance("budget:ann").spent <= CAP * 1e9
    with pytest.raises(BrixBudgetError, match="of the run it is in"):
        agent.invoke(ASKED, ANN)
    assert len(middleware.get_traces()) == 2
    assert server.stats.requests == 1


def test_an_executor_in_a_guarded_chain(chat: Make, server: DemoServer) -> None:
    server.script(ToolCalls([("clock", {})]), Reply("Noon."))
    store = MemoryStore()
    prompt = ChatPromptTemplate.from_messages([("human", "{input}"), ("placeholder", "{agent_scratchpad}")])
    bare = AgentExecutor(agent=create_tool_calling_agent(chat(), [clock], prompt), tools=[clock])
    executor = guard_agent_executor(bare, **PRICED, store=store)
    chain: Any = guard(RunnableLambda(lambda text: {"input": text}) | executor, **PRICED, store=store)
    assert chain.invoke("Late?", ANN)["output"] == "Noon."
    assert store.balance("budget:ann").spent == pytest.approx(owed(server))
    assert len(executor.get_traces("ann")) == server.stats.requests == 2
    poor: Any = guard(chain.inner, **lower(store))
    with pytest.raises(BrixBudgetError):
        poor.invoke("x" * 50_000, ANN)
    assert server.stats.requests == 2


def test_a_string_llm_in_a_guarded_chain() -> None:
    store = MemoryStore()
    llm = guard(FakeListLLM(responses=["word"] * 9), **PRICED, store=store)
    chain = guard(RunnablePassthrough() | llm, **{**lower(store), "max_cost_usd": 1e-9})
    with pytest.raises(BrixBudgetError, match="of the run it is in"):
        chain.invoke("Hi", ANN)
    with pytest.raises(BrixBudgetError, match="of the run it is in"):
        list(chain.stream("Hi", ANN))
    assert llm.invoke("Hi", ANN) == "word"


def test_a_chain_that_calls_itself(chat: Make, server: DemoServer) -> None:
    store, model = MemoryStore(), chat(max_retries=0)

    def down(number: int) -> Any:
        return chain.invoke(number - 1) if number else model.invoke("Hi").text

    chain = guard(RunnableLambda(down), **PRICED, store=store)
    chain.invoke(3, ANN)
    assert store.balance("budget:ann").spent == pytest.approx(owed(server))
    assert chain.inside is not None
    assert (len(chain.get_traces()), len(chain.inside.get_traces()), server.stats.requests) == (4, 1, 1)


@pytest.mark.parametrize("way", ["invoke", "generate"])
def test_a_thread_of_the_users_own_that_is_handed_the_configuration(way: str, chat: Make, server: DemoServer) -> None:
    store = MemoryStore()
    model = guard(chat(), **PRICED, store=store)

    def elsewhere(value: str, config: RunnableConfig) -> list[Any]:
        raised: list[Any] = []

        def work() -> None:
            try:
                if way == "invoke":
                    model.invoke(value, config)
                else:
                    model.generate([[HumanMessage(value)]], callbacks=config["callbacks"])
            except BrixBudgetError as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return raised

    chain = guard(RunnableLambda(elsewhere), **{**lower(store), "max_cost_usd": 1e-9})
    (error,) = chain.invoke("Hi", ANN)
    assert error.limit_usd == 1e-9
    assert server.stats.requests == 0


@pytest.mark.parametrize("outer", [{"budget_strategy": "warn"}, {"max_cost_usd": 1e-3}, {"max_cost_usd": 1.0}], ids=str)
@pytest.mark.parametrize("inner", [{"budget_strategy": "warn"}, {"max_cost_usd": 1e-3}, {"max_cost_usd": 1.0}], ids=str)
@pytest.mark.filterwarnings("ignore::brix_core.guards.budget.BrixBudgetWarning")
def test_the_lowest_cap_that_is_enforced_holds(outer: Any, inner: Any, chat: Make, server: DemoServer) -> None:
    server.default = Reply("word " * 10_000)
    store = MemoryStore()
    model = guard(chat(), **{**PRICED, "max_cost_usd": 1e-5, **inner}, store=store)
    chain = guard(RunnablePassthrough() | model, **{**PRICED, "max_cost_usd": 1e-5, **outer}, store=store)
    enforced = [one["max_cost_usd"] for one in (outer, inner) if "max_cost_usd" in one]
    limits = []
    for _ in range(3):
        try:
            chain.invoke("Hi", ANN)
        except BrixBudgetError as error:
            limits.append(error.limit_usd)
    spent = store.balance("budget:ann").spent
    assert spent == pytest.approx(owed(server))
    if enforced:
        assert spent <= min(enforced) * 1e9
        assert limits == ([min(enforced)] * 2 if min(enforced) < 1.0 else [])
    else:
        assert server.stats.requests == 3
