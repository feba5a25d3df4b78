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
