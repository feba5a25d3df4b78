"""Whose call it is in a batch, where LangChain keeps its configuration from callbacks."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableParallel, RunnablePassthrough

from brix_core import session
from brix_core.demo import DemoServer
from brix_core.store import MemoryStore
from brix_langchain import BrixCallbackHandler, guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES

PROMPT: Any = ChatPromptTemplate.from_template("{c}")
USERS = [f"u{number}" for number in range(6)]
INPUTS: Any = [{"c": user} for user in USERS]
PRICED: dict[str, Any] = {"max_cost_usd": 8e-5, "prices": {MODEL: RATES}}
"""Money for two calls at a time."""

pytestmark = pytest.mark.parametrize("way", ["batch", "abatch"])


async def batch(chain: Any, way: str, configs: Any) -> list[Any]:
    if way == "batch":
        return list(chain.batch(INPUTS, configs, return_exceptions=True))
    return list(await chain.abatch(INPUTS, configs, return_exceptions=True))


def each_pays_for_one(handler: BrixCallbackHandler, server: DemoServer) -> None:
    assert server.wait_until_idle()
    assert server.stats.requests == len(USERS)
    assert sorted(trace["session_id"] for trace in handler.get_traces()) == USERS


@pytest.mark.parametrize("key", ["session_id", "thread_id"])
async def test_the_metadata_name_it(key: str, way: str, chat: Make, server: DemoServer) -> None:
    handler = BrixCallbackHandler(**PRICED)
    configs = [{"callbacks": [handler], "metadata": {key: user}} for user in USERS]
    answers = await batch(PROMPT | chat(max_tokens=50, max_retries=0), way, configs)
    assert not any(isinstance(answer, Exception) for answer in answers)
    each_pays_for_one(handler, server)


@pytest.mark.parametrize("key", ["session_id", "thread_id"])
@pytest.mark.parametrize("first", ["parallel", "assign"])
async def test_it_is_known_from_any_other_run_in_the_chain(
    first: str, key: str, way: str, chat: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
) -> None:
    handler = BrixCallbackHandler(**PRICED)
    steps: Any = RunnableParallel(c=lambda x: x["c"]) if first == "parallel" else RunnablePassthrough.assign(d=str)
    configs = [{"callbacks": [handler], "configurable": {key: user}} for user in USERS]
    answers = await batch(steps | PROMPT | chat(max_tokens=50, max_retries=0), way, configs)
    assert not any(isinstance(answer, Exception) for answer in answers)
    each_pays_for_one(handler, server)
    assert "did not tell" not in caplog.text


async def test_a_guarded_chain_knows_it(way: str, chat: Make, server: DemoServer) -> None:
    chain: Any = guard(PROMPT | chat(max_tokens=50) | StrOutputParser(), **PRICED, store=MemoryStore())
    answers = await batch(chain, way, [{"configurable": {"session_id": user}} for user in USERS])
    assert not any(isinstance(answer, Exception) for answer in answers)
    each_pays_for_one(chain.inside, server)


async def test_where_nobody_tells_it_is_said_once(
    way: str, chat: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
) -> None:
    handler = BrixCallbackHandler(max_cost_usd=1.0, prices={MODEL: RATES})
    configs = [{"callbacks": [handler], "configurable": {"session_id": user}} for user in USERS]
    for _ in range(2):
        await batch(PROMPT | chat(max_retries=0), way, configs)
    assert [record.levelno for record in caplog.records if "did not tell" in record.message] == [logging.WARNING]
    assert server.wait_until_idle()
    sessions = {trace["session_id"] for trace in handler.get_traces()}
    assert len(sessions) == 1
    assert sessions.pop() in caplog.text
    assert len(handler.get_traces()) == server.stats.requests == 12


async def test_nothing_is_said_where_the_session_is_known(
    way: str, chat: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
) -> None:
    chain = PROMPT | chat(max_retries=0)
    ours = BrixCallbackHandler(max_cost_usd=1.0, prices={MODEL: RATES}, session_id="ours")
    await batch(chain, way, {"callbacks": [ours]})
    anns = BrixCallbackHandler(max_cost_usd=1.0, prices={MODEL: RATES})
    with session("ann"):
        await batch(chain, way, {"callbacks": [anns]})
    alone = BrixCallbackHandler(max_cost_usd=1.0, prices={MODEL: RATES})
    await chain.ainvoke(INPUTS[0], {"callbacks": [alone]})
    assert "did not tell" not in caplog.text
    assert {trace["session_id"] for trace in ours.get_traces()} == {"ours"}
    assert {trace["session_id"] for trace in anns.get_traces()} == {"ann"}
    assert server.stats.requests == 13
