"""What happens between event loops and processes: `asyncio.run` again and again, and fork."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from pydantic import Field, create_model

from brix_core import MemoryStore
from brix_core.demo import DemoServer, Reply, StalledStream
from brix_langchain import guard

# The connections of a loop that has ended cannot be closed any more; that is what these tests are about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def openai_on(server: DemoServer, **more: object) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-4o-mini", base_url=server.base_url, api_key="none", **more)  # type: ignore[arg-type]


def claude_on(server: DemoServer) -> ChatAnthropic:
    return ChatAnthropic(
        model_name="claude-opus-4-8", base_url=server.anthropic_base_url, api_key="none", max_tokens=50
    )  # type: ignore[call-arg,arg-type]


@pytest.fixture(autouse=True)
def _nothing_left_for_the_next_test() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize("make", [openai_on, claude_on])
def test_every_event_loop_has_connections_of_its_own(make: Callable[..., Any], server: DemoServer) -> None:
    model = guard(make(server), max_cost_usd=1, store=MemoryStore())

    async def read() -> None:
        async for _ in model.astream("hi"):
            pass

    for _ in range(4):
        asyncio.run(model.ainvoke("hi"))
        asyncio.run(read())
    # LangChain's models share their connections with one another.
    another = guard(make(server), max_cost_usd=1, store=MemoryStore())
    asyncio.run(another.ainvoke("hi"))
    assert server.stats.requests == server.stats.answered == 9
    assert [entry["outcome"] for entry in model.get_traces() + another.get_traces()] == ["ok"] * 9


def test_connections_that_a_bare_model_made_on_a_loop_before_are_left_alone(server: DemoServer) -> None:
    bare = claude_on(server)
    asyncio.run(bare.ainvoke("hi"))
    connections = bare._async_client._client._transport._pool.connections
    assert connections
    for connection in connections:  # as if it had been idle for long: it will be closed, on a loop that has ended
        connection._connection._expire_at = 0.0
    before = server.stats.requests
    model = guard(claude_on(server), max_cost_usd=1, store=MemoryStore())
    for _ in range(2):
        asyncio.run(model.ainvoke("hi"))
    assert server.stats.requests - before == 2
    assert [entry["outcome"] for entry in model.get_traces()] == ["ok"] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_workers_of_its_own(server: DemoServer) -> None:
    model = guard(openai_on(server), per_call_timeout=5, store=MemoryStore())
    model.invoke("hi")  # leaves an idle worker behind, whose thread the child does not have
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if model.invoke("hi").content else 2
        finally:
            os._exit(code)
    ends = time.monotonic() + 10
    done = 0, 0
    while time.monotonic() < ends and done[0] == 0:
        done = os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    assert done == (child, 0)
    assert server.stats.requests == 2


def test_a_connection_that_is_never_made_costs_nothing() -> None:
    model = guard(
        ChatOpenAI(model="gpt-4o-mini", base_url="http://127.0.0.1:9/v1", api_key="none"),
        max_cost_usd=1,
        store=MemoryStore(),
    )
    with pytest.raises(Exception, match="onnection"):
        model.invoke("hi")
    assert model.context.session_cost_usd == 0.0


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_schema_is_part_of_the_prompt_that_is_reserved(method: str, way: str, server: DemoServer) -> None:
    described = Field(description="a field that is described at considerable length for the model " * 3)
    big = create_model("Big", **{f"field_{number}": (str, described) for number in range(60)})  # type: ignore[call-overload]
    server.default = Reply("{}")
    model = guard(openai_on(server), max_cost_usd=0.0003, store=MemoryStore())
    asked = model.with_structured_output(big, method=method)
    with pytest.raises(Exception, match="max_cost_usd"):
        asked.invoke("hi", max_tokens=20) if way == "invoke" else list(asked.stream("hi", max_tokens=20))
    assert server.stats.requests == 0


def test_a_lone_surrogate_costs_nothing(server: DemoServer) -> None:
    model = guard(openai_on(server), max_cost_usd=1, store=MemoryStore())
    with pytest.raises(Exception, match=r"messages\[0\] holds a lone surrogate"):
        model.invoke("a\ud800")
    assert model.invoke("an emoji \U0001f600").content
    assert server.stats.requests == 1


def test_a_call_that_timed_out_leaves_no_request_behind(server: DemoServer) -> None:
    server.default = StalledStream(after=1)
    model = guard(openai_on(server), per_call_timeout=0.1, store=MemoryStore())
    with pytest.raises(TimeoutError):
        model.invoke("hi")
    assert server.wait_until_idle(3.0)


def test_a_stream_belongs_to_the_session_it_was_asked_for_in(server: DemoServer) -> None:
    from brix_core import session

    model = guard(openai_on(server), store=MemoryStore())
    with session("alice"):
        chunks = model.stream("hi")
    with session("bob"):
        list(chunks)
    assert [entry["session_id"] for entry in model.get_traces()] == ["alice"]


def test_a_warning_made_an_error_does_not_lose_a_paid_answer(server: DemoServer) -> None:
    model = guard(openai_on(server), max_cost_usd=1e-3, budget_warning_threshold=0.001, store=MemoryStore())
    assert model.invoke("hi").content  # warnings are errors in this suite
