"""What `guard` and its kin take, and what they say of anything else."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.llms import MockLLM
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step

from brix_core import BrixConfigurationError, BrixSchemaError
from brix_core.demo import DemoServer, Reply, ToolCalls
from brix_llamaindex import BrixOutputParser, guard, guard_tools
from tests.llamaindex.conftest import Make
from tests.llamaindex.hooks import attempts
from tests.support.schemas import VALID, City
from tests.support.words_llamaindex import WordEmbedding

# Agents look at every attribute of their Pydantic models, deprecated ones included.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Steps(Workflow):
    """A workflow of the application's."""

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


Steps.only.__annotations__.update(ev=StartEvent)


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda: VectorStoreIndex([], embed_model=WordEmbedding()), ["index.as_query_engine()", "GuardedQueryEngine"]),
        (lambda: Steps(), ["workflow Steps", "guard the LLMs that its steps use"]),
        (lambda: MockLLM, ["got the class MockLLM", "an instance"]),
        (lambda: "gpt-4o", ["got a str: 'gpt-4o'"]),
        (lambda: [Document(text="word " * 500)], ["got a list"]),
        (lambda: FunctionTool.from_defaults(get_weather), ["got a FunctionTool"]),
        (lambda: None, ["got a NoneType"]),
    ],
)
def test_what_cannot_be_guarded_is_refused_in_few_words(target: Any, words: list[str]) -> None:
    with pytest.raises(
        BrixConfigurationError, match="a LlamaIndex LLM, a query engine, a chat engine, an agent"
    ) as caught:
        guard(target())
    message = str(caught.value)
    assert all(word in message for word in words)
    assert len(message) < 250


def agents(llm: Any) -> list[Any]:
    own: Any = {"tools": [get_weather], "llm": llm}
    one = FunctionAgent(name="one", description="One.", **own)
    return [FunctionAgent(**own), ReActAgent(**own), AgentWorkflow(agents=[one], root_agent="one")]


@pytest.mark.parametrize("number", [0, 2])
async def test_an_agents_answer_is_healed_although_agents_stream(
    openai_like: Make, server: DemoServer, number: int
) -> None:
    server.script(ToolCalls([("get_weather", {"city": "Oslo"})]), Reply("It is sunny."), Reply(VALID))
    agent = guard(agents(openai_like())[number], response_schema=City)
    assert City.model_validate_json(str(await agent.run(user_msg="How is Oslo?"))) == City(name="Oslo", people=700_000)
    assert attempts(agent) == server.stats.requests == 3


async def test_an_agent_may_stream_as_it_comes_all_the_same(openai_like: Make, server: DemoServer) -> None:
    server.default = Reply("It is sunny.")
    agent = guard(agents(openai_like())[0], response_schema=City, stream_mode="partial")
    with pytest.raises(BrixSchemaError, match="stream_mode='validated'"):
        await agent.run(user_msg="How is Oslo?")
    assert attempts(agent) == server.stats.requests == 1


def test_one_tool_gives_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    hidden = MockLLM()

    def ask(question: str) -> str:
        """Ask."""
        return str(hidden.complete(question))

    async def aask(question: str) -> str:
        """Ask."""
        return str(await hidden.acomplete(question))

    tools: list[Any] = [ask, FunctionTool.from_defaults(async_fn=aask)]
    with caplog.at_level(logging.WARNING, "brix_llamaindex"):
        guard(FunctionAgent(tools=tools, llm=MockLLM()))
    names = [record.getMessage().split(" in this ")[0].rpartition(".")[2] for record in caplog.records]
    assert names == ["ask", "aask"]


@pytest.mark.parametrize("given", [FunctionTool.from_defaults(get_weather), get_weather, None, 3])
def test_guard_tools_takes_a_list(given: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"guard_tools takes a list .* give \[tool\], or call guard_tool"):
        guard_tools(given)


def test_a_parser_names_its_own_argument() -> None:
    with pytest.raises(BrixConfigurationError, match=r"^schema must be") as caught:
        BrixOutputParser(3)
    assert "response_schema" not in str(caught.value)


@pytest.mark.parametrize("given", [None, 3, b"{}", {"name": "Oslo"}])
def test_a_parser_parses_texts(given: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="takes the text of an answer, got"):
        BrixOutputParser(City).parse(given)
