"""`asyncio.run` again and again: every event loop has connections of its own."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Iterator

import pytest
from llama_index.llms.openai_like import OpenAILike

from brix_core import MemoryStore
from brix_core.demo import DemoServer
from brix_llamaindex import guard

# The connections of a loop that has ended cannot be closed any more; that is what this test is about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_left_for_the_next_test() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_no_call_meets_the_connections_of_another_loop(server: DemoServer) -> None:
    bare = OpenAILike(model="gpt-4o-mini", api_base=server.base_url, api_key="none", is_chat_model=True, max_tokens=50)
    llm = guard(bare, max_cost_usd=1, store=MemoryStore())

    async def read() -> None:
        async for _ in await llm.astream_complete("hi"):
            pass

    for _ in range(3):
        asyncio.run(llm.acomplete("hi"))
        asyncio.run(read())
    assert server.stats.requests == server.stats.answered == 6
    assert [entry["outcome"] for entry in llm.get_traces()] == ["ok"] * 6


@pytest.mark.parametrize("streamed", [False, True])
def test_connections_of_ended_loops_are_let_go_without_a_word(
    server: DemoServer, caplog: pytest.LogCaptureFixture, streamed: bool
) -> None:
    bare = OpenAILike(model="gpt-4o-mini", api_base=server.base_url, api_key="none", is_chat_model=True, max_tokens=50)
    llm = guard(bare)

    async def ask() -> None:
        gc.collect()  # what the loops before left behind
        if streamed:
            async for _ in await llm.astream_complete("hi"):
                pass
        else:
            await llm.acomplete("hi")
        await asyncio.sleep(0.01)  # time for a task that would close it here

    for _ in range(4):
        asyncio.run(ask())
    gc.collect()
    assert server.stats.requests == server.stats.answered == 4
    assert not [record for record in caplog.records if record.name == "asyncio"]
