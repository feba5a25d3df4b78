"""What the trace of a guarded run tells: its money, its tokens, and whether anything was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import tool

from brix_core.demo import DemoServer, Reply, ServerError, StalledStream, ToolCalls
from brix_core.errors import BrixBudgetError, BrixFailoverError, BrixTimeoutError
from brix_core.store import MemoryStore
from brix_langchain import BrixMiddleware, guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES

PROMPT: Any = ChatPromptTemplate.from_template("{c}")
INPUT: Any = {"c": "Hi"}
ASKED: Any = {"messages": [("human", "Hi")]}
PRICED: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES, "gpt-4o": RATES}}
WAYS = ["invoke", "ainvoke", "stream", "astream"]


@tool
def nothing() -> str:
    """Nothing."""
    return "nothing"


async def use(runnable: Any, way: str, value: Any) -> None:
    if way == "invoke":
        runnable.invoke(value)
    elif way == "ainvoke":
        await runnable.ainvoke(value)
    elif way == "stream":
        list(runnable.stream(value))
    else:
        async for _ in runnable.astream(value):
            pass


def owed(server: DemoServer) -> float:
    assert server.wait_until_idle()
    return server.stats.prompt_tokens * RATES[0] + server.stats.completion_tokens * RATES[1]


Guarded = Callable[[BaseChatModel, dict[str, Any]], Any]
RUNS: dict[str, tuple[int, Any, Guarded]] = {
    "chain": (1, INPUT, lambda m, o: guard(PROMPT | m | StrOutputParser(), **o)),
    "two models": (2, INPUT, lambda m, o: guard(RunnableParallel(a=PROMPT | m, b=PROMPT | m), **o)),
    "guarded model": (1, INPUT, lambda m, o: guard(PROMPT | guard(m, **o), **o)),
    "guarded model in a run without a budget": (
        1, INPUT, lambda m, o: guard(PROMPT | guard(m, **o), store=o["store"], per_call_timeout=20.0),
    ),
    "guarded model with books of its own": (
        1, INPUT, lambda m, o: guard(PROMPT | guard(m, **{**o, "store": MemoryStore()}), **o),
    ),
    "guarded model of nobody's account": (
        1, INPUT, lambda m, o: guard(PROMPT | guard(m, per_call_timeout=20.0, store=MemoryStore()), **o),
    ),
    "guarded chain with books of its own": (
        1, INPUT, lambda m, o: guard(RunnablePassthrough() | guard(PROMPT | m, **{**o, "store": MemoryStore()}), **o),
    ),
    "guarded chain": (1, INPUT, lambda m, o: guard(RunnablePassthrough() | guard(PROMPT | m, **o), **o)),
    "agent": (1, ASKED, lambda m, o: guard(create_agent(m), **o)),
    "agent with the middleware": (
        1, ASKED, lambda m, o: guard(create_agent(m, middleware=[BrixMiddleware(**o)]), **o),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", RUNS)
async def test_a_run_costs_what_its_models_cost(kind: str, way: str, chat: Make, server: DemoServer) -> None:
    calls, value, make = RUNS[kind]
    run = make(chat(max_retries=0), {**PRICED, "store": MemoryStore()})
    for number in (1, 2):
        await use(run, way, value)
        cost = owed(server)
        assert server.stats.requests == calls * number
        (trace,) = run.get_traces()[:1]
        (attempt,) = trace["attempts"]
        for told in (trace, attempt):
            assert told["cost_usd"] == pytest.approx(cost / number, rel=1e-6)
            assert told["prompt_tokens"] == server.stats.prompt_tokens / number
            assert told["completion_tokens"] == server.stats.completion_tokens / number
        if kind != "guarded model in a run without a budget":  # which keeps no account
            assert run.context.session_cost_usd == pytest.approx(cost, rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
async def test_where_nobody_meters_nothing_is_known(way: str, chat: Make, server: DemoServer) -> None:
    chain = guard(PROMPT | chat(), per_call_timeout=20.0, store=MemoryStore())
    await use(chain, way, INPUT)
    (trace,) = chain.get_traces()
    assert (trace["outcome"], trace["cost_usd"], trace["prompt_tokens"]) == ("ok", None, None)
    assert server.stats.requests == len(trace["attempts"]) == 1


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_each_attempt_has_what_it_cost(way: str, chat: Make, server: DemoServer) -> None:
    server.script(Reply("One."), ServerError(503), Reply("One."), Reply("Two."))
    model = chat(max_retries=0)
    chain = guard(PROMPT | model | RunnableLambda(lambda said: {"c": said.text}) | PROMPT | model,
                  **PRICED, max_retries=1, backoff_base=1.0, max_backoff=0.0, store=MemoryStore())  # fmt: skip
    await use(chain, way, INPUT)
    (trace,) = chain.get_traces()
    assert [attempt["outcome"] for attempt in trace["attempts"]] == ["failed", "ok"]
    assert all(attempt["cost_usd"] > 0 for attempt in trace["attempts"])
    assert trace["cost_usd"] == pytest.approx(sum(attempt["cost_usd"] for attempt in trace["attempts"]))
    assert trace["cost_usd"] == pytest.approx(chain.context.session_cost_usd)
    assert server.stats.requests == 4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", RUNS)
async def test_a_run_that_sent_nothing_is_refused(kind: str, way: str, chat: Make, server: DemoServer) -> None:
    _, value, make = RUNS[kind]
    run = make(chat(max_retries=0, max_tokens=100), {**PRICED, "max_cost_usd": 1e-9, "store": MemoryStore()})
    with pytest.raises(BrixBudgetError):
        await use(run, way, value)
    (trace,) = run.get_traces()
    assert (trace["outcome"], trace["error"], trace["attempts"]) == ("refused", "BrixBudgetError", [])
    assert server.stats.requests == 0


@pytest.mark.parametrize("way", WAYS)
async def test_one_that_sent_something_has_failed(way: str, chat: Make, server: DemoServer) -> None:
    server.script(Reply("word " * 100), Reply("Two."))
    model = chat(max_retries=0, max_tokens=100)
    chain = guard(PROMPT | model | (lambda said: {"c": said.text * 10}) | PROMPT | model,
                  **{**PRICED, "max_cost_usd": 1.1e-4}, store=MemoryStore())  # fmt: skip
    with pytest.raises(BrixBudgetError):
        await use(chain, way, INPUT)
    (trace,) = chain.get_traces()
    assert (trace["outcome"], len(trace["attempts"]), server.stats.requests) == ("failed", 1, 1)
    assert trace["cost_usd"] == pytest.approx(owed(server), rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
async def test_an_agent_that_is_stopped_midway_has_cost_what_it_sent(way: str, chat: Make, server: DemoServer) -> None:
    server.default = ToolCalls([("nothing", {})])
    agent = guard(create_agent(chat(max_retries=0, max_tokens=100), [nothing]), **{**PRICED, "max_cost_usd": 9e-5},
                  store=MemoryStore())  # fmt: skip
    with pytest.raises(BrixBudgetError):
        await use(agent, way, ASKED)
    (trace,) = agent.get_traces()
    assert trace["outcome"] == "failed"
    assert 0 < server.stats.requests == sum(len(inner["attempts"]) for inner in agent.inside.get_traces())
    assert trace["cost_usd"] == pytest.approx(owed(server), rel=1e-6)


async def test_a_cancelled_run_has_cost_its_worst_case(chat: Make, server: DemoServer) -> None:
    server.default = StalledStream(after=0)
    chain = guard(PROMPT | chat(max_retries=0, max_tokens=100), **PRICED, store=MemoryStore())
    run = asyncio.create_task(chain.ainvoke(INPUT))
    while not server.stats.requests:
        await asyncio.sleep(0.005)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.sleep(0.01)
    (trace,) = chain.get_traces()
    assert trace["outcome"] == "cancelled"
    assert trace["cost_usd"] == pytest.approx(chain.inside.get_traces()[0]["cost_usd"])
    assert trace["cost_usd"] >= 100 * RATES[1]


@pytest.mark.parametrize("way", WAYS)
async def test_an_attempt_that_timed_out_says_so(way: str, chat: Make, server: DemoServer) -> None:
    server.default = StalledStream(after=0)
    chain = guard(PROMPT | chat(max_retries=0), per_call_timeout=0.1, store=MemoryStore())
    with pytest.raises(BrixTimeoutError):
        await use(chain, way, INPUT)
    (attempt,) = chain.get_traces()[0]["attempts"]
    assert (attempt["outcome"], attempt["error"]) == ("timed_out", "BrixTimeoutError")
    assert server.stats.requests == 1


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_refusal_is_logged_in_the_guards_name(
    way: str, chat: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
) -> None:
    chain = guard(PROMPT | chat(max_tokens=100), **{**PRICED, "max_cost_usd": 1e-9}, store=MemoryStore())
    with pytest.raises(BrixBudgetError):
        await use(chain, way, INPUT)
    assert "Error in BrixGuards.on_chat_model_start callback: BrixBudgetError" in caplog.text
    assert server.stats.requests == 0


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_fallback_that_cannot_read_the_input_tells_what_it_was_asked_for(
    way: str, chat: Make, server: DemoServer
) -> None:
    server.default = ServerError(503)
    chain = guard(PROMPT | chat(), fallbacks=[chat(model="gpt-4o")], store=MemoryStore())
    with pytest.raises(ValueError, match="Invalid input type") as caught:
        await use(chain, way, INPUT)
    assert "503" in str(caught.value.__cause__)
    assert not isinstance(caught.value, BrixFailoverError)
    assert server.stats.requests == 1
