"""LLMs that come to a guarded agent or engine later, and those that cannot be replaced: nothing passes in silence."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.agent.workflow.workflow_events import AgentWorkflowStartEvent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer, FactExtractionMemoryBlock, Memory
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.tools import FunctionTool

import brix_core
from brix_core import BrixBudgetError, BrixConfigurationError
from brix_core.demo import DemoServer, Reply, ToolCalls
from brix_llamaindex import GuardedLLM, guard
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import attempts
from tests.support.words import FITTING, MUSEUM
from tests.support.words_llamaindex import WordEmbedding

# Agents look at every attribute of their Pydantic models, deprecated ones included.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PRICES = {MODEL: (1e-6, 1e-6)}
LONG = "A long message about museums. " * 30


@pytest.fixture
def index() -> VectorStoreIndex:
    documents = [Document(text=text, metadata={"file_name": name}) for name, text in MUSEUM.items()]
    return VectorStoreIndex.from_documents(documents, embed_model=WordEmbedding())


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}"


# --- memories given for a run ------------------------------------------------------------------------


def summaries(llm: Any) -> Any:
    return ChatSummaryMemoryBuffer.from_defaults(
        [ChatMessage(LONG + str(number)) for number in range(4)], llm=llm, token_limit=200
    )


def facts(llm: Any) -> Any:
    block = FactExtractionMemoryBlock(llm=llm, max_facts=50)
    return Memory.from_defaults(
        session_id="ann", token_limit=300, chat_history_token_ratio=0.1, token_flush_size=50, memory_blocks=[block]
    )


def one_agent(llm: Any) -> Any:
    return FunctionAgent(tools=[get_weather], llm=llm)


def several_agents(llm: Any) -> Any:
    agent = FunctionAgent(name="one", description="One.", tools=[get_weather], llm=llm)
    return AgentWorkflow(agents=[agent], root_agent="one")


async def given_to_run(agent: Any, memory: Any) -> None:
    await agent.run(user_msg=LONG, memory=memory)


async def given_in_an_event(agent: Any, memory: Any) -> None:
    await agent.run(start_event=AgentWorkflowStartEvent(user_msg=LONG, memory=memory))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("give", [given_to_run, given_in_an_event])
@pytest.mark.parametrize("remember", [summaries, facts])
@pytest.mark.parametrize("make", [one_agent, several_agents])
async def test_the_llm_of_a_memory_given_for_a_run_is_guarded(
    openai_like: Make,
    server: DemoServer,
    make: Callable[[Any], Any],
    remember: Callable[[Any], Any],
    give: Callable[[Any, Any], Any],
) -> None:
    server.default = Reply("<facts><fact>Ann likes museums.</fact></facts>")
    agent = guard(make(openai_like()), max_cost_usd=1.0, prices=PRICES)
    memory = remember(openai_like())
    with brix_core.session("ann"):
        for _ in range(3):
            await give(agent, memory)
    assert server.stats.requests > 3
    assert attempts(agent) == server.stats.requests
    assert {trace["session_id"] for trace in agent.get_traces()} == {"ann"}
    if isinstance(memory, Memory):
        block: Any = memory.memory_blocks[0]
        assert block.facts == ["Ann likes museums."]
        assert not isinstance(block.llm, GuardedLLM)  # what was given is left as it is
    else:
        assert memory.get_all()  # the same conversation


async def test_a_memory_is_paid_for_by_the_budget_of_the_agent(openai_like: Make, server: DemoServer) -> None:
    agent = guard(one_agent(openai_like(max_tokens=20)), max_cost_usd=1e-6, prices={MODEL: (1e-3, 1e-3)})
    with pytest.raises(BrixBudgetError):
        await agent.run(user_msg=LONG, memory=summaries(openai_like(max_tokens=20)))
    assert server.stats.requests == 0


async def test_a_memory_without_an_llm_is_used_as_it_is(openai_like: Make, server: DemoServer) -> None:
    agent = guard(one_agent(openai_like()))
    memory = ChatMemoryBuffer.from_defaults(token_limit=3_000)
    await agent.run(user_msg="I am Ann.", memory=memory)
    assert memory.get()[0].content == "I am Ann."
    assert attempts(agent) == server.stats.requests == 1


# --- LLMs that are set -------------------------------------------------------------------------------


async def test_an_llm_that_is_set_on_an_agent_is_guarded(openai_like: Make, server: DemoServer) -> None:
    agent = guard(one_agent(openai_like()), max_cost_usd=1.0, prices=PRICES, max_retries=1)
    agent.llm = openai_like(max_tokens=77)
    assert isinstance(agent.llm, GuardedLLM)
    await agent.run("Hello")
    assert server.requests[0].body["max_tokens"] == 77
    copied = agent.model_copy(update={"llm": openai_like(max_tokens=78)})
    await copied.run("Hello")
    assert server.requests[1].body["max_tokens"] == 78
    assert attempts(agent) == attempts(copied) == server.stats.requests == 2


async def test_an_llm_that_is_set_on_an_agent_of_a_workflow_is_guarded(openai_like: Make, server: DemoServer) -> None:
    bare = several_agents(openai_like())
    workflow = guard(bare, max_cost_usd=1.0, prices=PRICES)
    workflow.agents["one"].llm = openai_like(max_tokens=77)
    assert isinstance(workflow.agents["one"], FunctionAgent)
    assert type(bare.agents["one"]) is FunctionAgent
    await workflow.run(user_msg="Hello")
    assert server.requests[0].body["max_tokens"] == 77
    assert attempts(workflow) == server.stats.requests == 1


async def test_what_is_set_on_an_engine_is_guarded(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    engine: Any = guard(index.as_query_engine(llm=openai_like()), max_cost_usd=1.0, prices=PRICES)
    server.script(Reply("Doc: 1, Relevance: 9"))
    engine._node_postprocessors = [LLMRerank(llm=openai_like(), top_n=1)]
    engine.query(FITTING)
    chat: Any = guard(SimpleChatEngine.from_defaults(llm=openai_like()))
    chat._llm = openai_like()
    await chat.achat("Hello")
    assert (attempts(engine), attempts(chat)) == (2, 1)
    assert server.stats.requests == 3


def test_an_llm_with_guards_of_its_own_cannot_be_set() -> None:
    agent = guard(FunctionAgent(tools=[], llm=MockLLM()))
    with pytest.raises(BrixConfigurationError, match="llm of this GuardedFunctionAgent: GuardedMockLLM has guards of"):
        agent.llm = guard(MockLLM())
    agent.llm = agent.llm  # its own
    agent.name = "Ann"
    assert agent.name == "Ann"


def test_an_llm_whose_output_cannot_be_capped_does_not_join_a_budget_that_relies_on_it(openai_like: Make) -> None:
    agent = guard(one_agent(openai_like()), max_cost_usd=1.0, prices=PRICES)
    with pytest.raises(BrixConfigurationError, match="budget_clamp_output=False"):
        agent.llm = MockLLM(max_tokens=5)


# --- what cannot be replaced is named ----------------------------------------------------------------


class Helper:
    """An application's own."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def ask(self, question: str) -> str:
        """Ask."""
        return str(self.llm.complete(question))


class Outer:
    """Holds one that does."""

    def __init__(self, llm: Any) -> None:
        self.helpers = [Helper(llm)]

    def ask(self, question: str) -> str:
        """Ask."""
        return self.helpers[0].ask(question)


class Own(CustomQueryEngine):
    """An engine with a helper."""

    llm: Any
    helper: Any

    def custom_query(self, query_str: str) -> str:
        return str(self.helper.ask(query_str))


def closure(helper: Helper) -> Callable[[str], str]:
    def ask_it(question: str) -> str:
        """Ask."""
        return helper.ask(question)

    return ask_it


def tools_that_hide(llm: Any) -> dict[str, Any]:
    helper = Helper(llm)
    return {
        "Helper.ask": helper.ask,
        "Outer.ask": Outer(llm).ask,
        "ask_it": closure(helper),
        "of class Helper": FunctionTool.from_defaults(functools.partial(Helper.ask, helper), name="p", description="P"),
    }


@pytest.mark.parametrize("name", ["Helper.ask", "Outer.ask", "ask_it", "of class Helper"])
def test_a_tool_whose_object_has_an_llm_is_named_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "brix_llamaindex"):
        guard(FunctionAgent(tools=[tools_that_hide(MockLLM())[name]], llm=MockLLM()))
    (record,) = caplog.records
    assert name in record.getMessage()
    assert "not guarded" in record.getMessage()
    assert "_async_wrapped_fn" not in record.getMessage()


def test_a_helper_of_an_engine_is_named(
    openai_like: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "brix_llamaindex"):
        engine = guard(Own(llm=openai_like(), helper=Helper(openai_like())))
    (record,) = caplog.records
    assert "an object of class Helper in this Own" in record.getMessage()
    engine.query("Hello")
    assert (attempts(engine), server.stats.requests) == (0, 1)


def test_helpers_with_guarded_llms_or_none_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    tools = [*tools_that_hide(guard(MockLLM())).values(), get_weather, Helper(None).ask]
    with caplog.at_level(logging.WARNING, "brix_llamaindex"):
        guard(FunctionAgent(tools=tools[:1], llm=MockLLM()))
        guard(FunctionAgent(tools=tools[1:], llm=MockLLM()))
        agent = guard(FunctionAgent(tools=[get_weather], llm=MockLLM()))
        assert not caplog.text
        agent.tools = [FunctionTool.from_defaults(Helper(MockLLM()).ask)]
    assert "Helper.ask in tools of this GuardedFunctionAgent" in caplog.text


def test_helpers_that_know_each_other_are_no_endless_search(caplog: pytest.LogCaptureFixture) -> None:
    first, second = Helper(None), Helper(None)
    first.llm, second.llm = second, first
    agents: list[Any] = []

    def again(question: str) -> str:
        """Ask the agent that has this tool."""
        return str(agents[0].name + first.ask(question))

    agents.append(FunctionAgent(tools=[again, first.ask], llm=MockLLM()))
    with caplog.at_level(logging.WARNING, "brix_llamaindex"):
        guard(agents[0])
    assert "again" in caplog.text  # it uses the agent that is not guarded


async def test_a_bound_tool_is_called_as_before(openai_like: Make, server: DemoServer) -> None:
    server.script(ToolCalls([("ask", {"question": "x"})]), Reply("from the helper"), Reply("done"))
    agent = guard(FunctionAgent(tools=[Helper(guard(openai_like())).ask], llm=openai_like()))
    assert str(await agent.run("Hello")) == "done"
    assert (attempts(agent), server.stats.requests) == (2, 3)
