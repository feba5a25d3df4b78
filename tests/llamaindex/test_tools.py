"""Tools that stop an agent which goes round in circles, and leave alone one that gets on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, BaseWorkflowAgent, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.tools import AsyncBaseTool, FunctionTool, QueryEngineTool, ToolMetadata, ToolOutput
from llama_index.core.tools.types import BaseTool
from llama_index.core.workflow import Context

import brix_core
from brix_core import BrixConfigurationError, BrixLoopError, BrixRunLimitError
from brix_core.demo import DemoServer, Reply, ToolCalls
from brix_llamaindex import guard, guard_tool, guard_tools
from tests.llamaindex.conftest import Make
from tests.llamaindex.hooks import attempts

# Agents look at every attribute of their Pydantic models, deprecated ones included.
of_llama_index = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# LlamaIndex does not serialise an agent's memory, and says so when a context is used again.
with_memory = pytest.mark.filterwarnings("ignore:Skipping serialization of known unserializable key")

LOOK = {"city": "Oslo"}


def look_up(city: str) -> str:
    """Look a city up."""
    return f"nothing about {city}"


async def alook_up(city: str) -> str:
    """Look a city up."""
    return look_up(city)


class Plain(BaseTool):
    """A tool that can only block."""

    @property
    def metadata(self) -> ToolMetadata:
        return ToolMetadata(name="plain", description="Plain.")

    def __call__(self, input: Any) -> ToolOutput:
        return ToolOutput(tool_name="plain", content=f"nothing about {input}", raw_input={"input": input})


class Canned(CustomQueryEngine):
    def custom_query(self, query_str: str) -> str:
        return f"nothing about {query_str}"


def calls(name: str, arguments: dict[str, Any]) -> ToolCalls:
    return ToolCalls([(name, arguments)])


def action(name: str = "look_up", arguments: str = '{"city": "Oslo"}') -> Reply:
    return Reply(f"Thought: I need a tool.\nAction: {name}\nAction Input: {arguments}\n")


def query_tool() -> QueryEngineTool:
    return QueryEngineTool.from_defaults(Canned(), name="engine", description="An engine.")


TOOLS: list[tuple[Callable[[], Any], dict[str, Any]]] = [
    (lambda: look_up, {"city": "Oslo"}),
    (lambda: alook_up, {"city": "Oslo"}),
    (lambda: FunctionTool.from_defaults(look_up), {"city": "Oslo"}),
    (lambda: FunctionTool.from_defaults(async_fn=alook_up), {"city": "Oslo"}),
    (query_tool, {"input": "Oslo"}),
    (Plain, {"input": "Oslo"}),
]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("make", "arguments"), TOOLS)
async def test_the_third_same_result_is_an_error_and_the_fourth_is_raised(
    make: Callable[[], Any], arguments: dict[str, Any], asynchronous: bool
) -> None:
    tool = guard_tool(make())

    async def call() -> ToolOutput:
        return await tool.acall(**arguments) if asynchronous else tool.call(**arguments)

    first, second, third = [await call() for _ in range(3)]
    assert first.content == second.content == "nothing about Oslo"
    assert (first.is_error, second.is_error, third.is_error) == (False, False, True)
    assert "Do not make this call again" in third.content
    assert "nothing about Oslo" in third.content
    with pytest.raises(BrixLoopError) as caught:
        await call()
    assert (caught.value.kind, caught.value.repeats) == ("tool", 4)


def test_a_tool_stays_what_it_was() -> None:
    function = FunctionTool.from_defaults(look_up, return_direct=True)
    tool = guard_tool(function)
    assert isinstance(tool, FunctionTool)
    assert tool.metadata is function.metadata
    assert tool.metadata.fn_schema is function.metadata.fn_schema
    assert tool.fn is function.fn
    assert not hasattr(function, "_brix_tool")
    engine = query_tool()
    assert guard_tool(engine).query_engine is engine.query_engine
    assert isinstance(guard_tool(Plain()), AsyncBaseTool)


def test_arguments_are_compared_by_name_and_value() -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    tool = guard_tool(add)
    outputs = [tool.call(a=1, b=2), tool.call(b=2, a=1), tool(1, b=2)]
    assert [output.is_error for output in outputs] == [False, False, True]


def test_a_result_that_changed_is_progress() -> None:
    numbers = count()
    tool = guard_tool(FunctionTool.from_defaults(lambda: f"{next(numbers)} of 9 done", name="poll"))
    assert not any(tool.call().is_error for _ in range(9))


def test_other_arguments_are_progress() -> None:
    tool = guard_tool(look_up)
    assert not any(tool.call(city=f"city {number}").is_error for number in range(9))


def test_images_are_compared_too() -> None:
    numbers = count()
    tool = guard_tool(FunctionTool.from_defaults(lambda: ImageBlock(url=f"http://x/{next(numbers)}"), name="camera"))
    assert not any(tool.call().is_error for _ in range(4))


def test_a_tool_that_keeps_failing_in_the_same_way_is_a_loop() -> None:
    def fail(city: str) -> str:
        """Fail."""
        raise ConnectionError("no route")

    tool = guard_tool(fail)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            tool.call(city="Oslo")
    assert "ConnectionError: no route" in tool.call(city="Oslo").content
    with pytest.raises(BrixLoopError):
        tool.call(city="Oslo")


def test_tools_guarded_together_share_their_progress() -> None:
    first, second = guard_tools([look_up, FunctionTool.from_defaults(look_up, name="other")])
    assert not first.call(**LOOK).is_error
    assert not first.call(**LOOK).is_error
    assert not second.call(**LOOK).is_error  # something new
    assert not first.call(**LOOK).is_error
    assert not second.call(**LOOK).is_error
    assert second.call(**LOOK).is_error


def test_a_tool_is_called_max_calls_times() -> None:
    called: list[str] = []
    tool = guard_tool(FunctionTool.from_defaults(lambda city: called.append(city), name="note"), max_calls=2)
    outputs = [tool.call(city=city) for city in "abc"]
    assert [output.is_error for output in outputs] == [False, False, True]
    assert "may be called 2 times" in outputs[2].content
    with pytest.raises(BrixRunLimitError, match="max_calls=2 times in a run, and was asked for 4 times") as caught:
        tool.call(city="d")
    assert caught.value.limit == 2
    assert called == ["a", "b"]


def test_sessions_have_counters_of_their_own() -> None:
    tool = guard_tool(look_up, max_calls=1)
    for user in ("ann", "bob"):
        with brix_core.session(user):
            assert not tool.call(**LOOK).is_error
            assert tool.call(**LOOK).is_error


def test_on_loop_raise_raises_at_once() -> None:
    tool = guard_tool(look_up, on_loop="raise", exact_loop_threshold=2)
    tool.call(**LOOK)
    with pytest.raises(BrixLoopError):
        tool.call(**LOOK)


@pytest.mark.parametrize(
    ("wrong", "options", "message"),
    [
        ("look_up", {}, "takes a LlamaIndex tool or a function"),
        (FunctionTool, {}, "takes a LlamaIndex tool or a function"),
        (look_up, {"max_calls": 0}, "max_calls"),
        (look_up, {"max_call": 1}, "unknown option max_call"),
        (guard_tool(look_up), {}, "guarded already"),
    ],
)
def test_what_cannot_be_guarded_is_said(wrong: Any, options: Any, message: str) -> None:
    with pytest.raises(BrixConfigurationError, match=message):
        guard_tool(wrong, **options)


# --- in agents ---------------------------------------------------------------------------------------


@of_llama_index
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("is_async_tool", [False, True])
async def test_the_run_of_a_function_agent_ends(
    openai_like: Make, server: DemoServer, streaming: bool, is_async_tool: bool
) -> None:
    server.default = calls("look_up", LOOK)
    llm = guard(openai_like())
    tool = FunctionTool.from_defaults(**({"async_fn": alook_up} if is_async_tool else {"fn": look_up}), name="look_up")
    agent = FunctionAgent(tools=[guard_tool(tool)], llm=llm, streaming=streaming)
    with pytest.raises(BrixLoopError, match=r"look_up\(.*came up 4 times"):
        await agent.run("Where is Oslo?")
    assert attempts(llm) == server.stats.requests == 4
    told = [message["content"] for message in server.requests[3].body["messages"] if message["role"] == "tool"]
    assert told[:2] == ["nothing about Oslo"] * 2
    assert "going round in circles" in told[2]


@of_llama_index
async def test_an_agent_that_listens_goes_on(openai_like: Make, server: DemoServer) -> None:
    look = calls("look_up", LOOK)
    server.script(look, look, look, Reply("I do not know."))
    llm = guard(openai_like())
    result = await FunctionAgent(tools=[guard_tool(look_up)], llm=llm).run("Where is Oslo?")
    assert str(result) == "I do not know."
    assert attempts(llm) == server.stats.requests == 4


@of_llama_index
async def test_the_run_of_a_react_agent_ends(openai_like: Make, server: DemoServer) -> None:
    server.default = action()
    llm = guard(openai_like())
    with pytest.raises(BrixLoopError):
        await ReActAgent(tools=[guard_tool(look_up)], llm=llm).run("Where is Oslo?")
    assert attempts(llm) == server.stats.requests == 4
    assert "going round in circles" not in str(server.requests[2].body["messages"])
    assert "going round in circles" in str(server.requests[3].body["messages"])


def cities_in_turn(agent: type[BaseWorkflowAgent]) -> list[Any]:
    """Calls with other arguments every time: no loop."""
    cities = ("Oslo", "Bergen", "Rome", "Paris")
    if agent is ReActAgent:
        return [action(arguments=f'{{"city": "{city}"}}') for city in cities]
    return [calls("look_up", {"city": city}) for city in cities]


@of_llama_index
@pytest.mark.parametrize("kind", [FunctionAgent, ReActAgent])
async def test_an_agent_that_calls_a_tool_too_often_is_told_and_then_ended(
    openai_like: Make, server: DemoServer, kind: type[BaseWorkflowAgent]
) -> None:
    looked: list[str] = []
    server.script(*cities_in_turn(kind))
    llm = guard(openai_like())
    tool = guard_tool(FunctionTool.from_defaults(lambda city: looked.append(city), name="look_up"), max_calls=2)
    with pytest.raises(BrixRunLimitError, match="max_calls=2"):
        await kind(tools=[tool], llm=llm).run("Where is Oslo?")
    assert looked == ["Oslo", "Bergen"]
    assert "may be called 2 times" in str(server.requests[3].body["messages"])
    assert attempts(llm) == server.stats.requests == 4


@of_llama_index
@pytest.mark.parametrize(
    ("options", "cities", "told", "error"),
    [
        ({"max_calls": 1}, ["Oslo", "Bergen", "Rome", "Paris"], "may be called 1 times", BrixRunLimitError),
        ({}, ["Oslo"] * 5, "going round in circles", BrixLoopError),
    ],
)
async def test_a_batch_of_calls_is_told_once(
    openai_like: Make, server: DemoServer, options: Any, cities: list[str], told: str, error: type[Exception]
) -> None:
    batch = ToolCalls([("alook_up", {"city": city}) for city in cities])
    server.script(batch, Reply("I do not know."), batch, batch)
    llm = guard(openai_like())
    agent = FunctionAgent(tools=[guard_tool(alook_up, **options)], llm=llm)
    assert str(await agent.run("Where is Oslo?")) == "I do not know."
    assert str(server.requests[1].body["messages"]).count(told) == 3
    with pytest.raises(error):
        await agent.run("Where is Oslo?")
    assert attempts(llm) == server.stats.requests == 4


@of_llama_index
@pytest.mark.parametrize("kind", [FunctionAgent, ReActAgent])
async def test_an_agent_told_that_it_calls_too_often_may_still_answer(
    openai_like: Make, server: DemoServer, kind: type[BaseWorkflowAgent]
) -> None:
    server.script(*cities_in_turn(kind)[:2], Reply("Thought: I know enough.\nAnswer: I do not know."))
    llm = guard(openai_like())
    result = await kind(tools=[guard_tool(look_up, max_calls=1)], llm=llm).run("Where is Oslo?")
    assert "I do not know." in str(result)
    assert attempts(llm) == server.stats.requests == 3


@of_llama_index
async def test_the_run_of_an_agent_workflow_ends(openai_like: Make, server: DemoServer) -> None:
    server.default = calls("look_up", LOOK)
    llm = guard(openai_like())
    agents: list[BaseWorkflowAgent] = [
        FunctionAgent(name="one", description="One.", tools=[guard_tool(look_up)], llm=llm),
        FunctionAgent(name="two", description="Two.", tools=[guard_tool(look_up)], llm=llm),
    ]
    with pytest.raises(BrixLoopError):
        await AgentWorkflow(agents=agents, root_agent="one").run(user_msg="Where is Oslo?")
    assert attempts(llm) == server.stats.requests == 4


@of_llama_index
@with_memory
async def test_a_new_run_begins_to_count_anew(openai_like: Make, server: DemoServer) -> None:
    look, say = calls("look_up", LOOK), Reply("I do not know.")
    server.script(look, look, say, look, look, say)
    llm = guard(openai_like())
    agent = FunctionAgent(tools=[guard_tool(look_up, max_calls=2)], llm=llm)
    context = Context(agent)
    for _ in range(2):
        assert str(await agent.run("Where is Oslo?", ctx=context)) == "I do not know."
    assert attempts(llm) == server.stats.requests == 6


@of_llama_index
async def test_runs_side_by_side_do_not_count_each_other(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like())
    tool = guard_tool(look_up)
    server.script(*[calls("look_up", LOOK)] * 6, *[Reply("I do not know.")] * 3)
    agents = [FunctionAgent(tools=[tool], llm=llm) for _ in range(3)]
    barrier = asyncio.Barrier(3)

    async def run(agent: FunctionAgent) -> str:
        await barrier.wait()
        return str(await agent.run("Where is Oslo?"))

    assert set(await asyncio.gather(*map(run, agents))) <= {"I do not know."}
    assert attempts(llm) == server.stats.requests == 9


@of_llama_index
@with_memory
async def test_a_tool_still_gets_its_context(openai_like: Make, server: DemoServer) -> None:
    async def remember(ctx: Context, city: str) -> str:
        """Remember a city."""
        await ctx.store.set("city", city)
        return "remembered"

    remember.__annotations__["ctx"] = Context
    server.script(calls("remember", LOOK), Reply("Done."))
    agent = FunctionAgent(tools=[guard_tool(remember)], llm=guard(openai_like()))
    context = Context(agent)
    await agent.run("Remember Oslo.", ctx=context)
    assert await context.store.get("city") == "Oslo"


def test_predict_and_call_ends_too(openai_like: Make, server: DemoServer) -> None:
    server.default = calls("look_up", LOOK)
    llm, tool = guard(openai_like()), guard_tool(look_up)
    for _ in range(3):
        llm.predict_and_call([tool], "Where is Oslo?")
    with pytest.raises(BrixLoopError):
        llm.predict_and_call([tool], "Where is Oslo?")
    assert attempts(llm) == server.stats.requests == 4
