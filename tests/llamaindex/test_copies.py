"""Copies of guarded engines, agents and tools share their guards; none of them goes into another process."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeWithScore, TextNode

from brix_core import BrixBudgetError, BrixConfigurationError, BrixLoopError
from brix_core.demo import DemoServer, Reply
from brix_llamaindex import GuardedQueryEngine, RegulatedPostprocessor, guard, guard_tool
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import attempts
from tests.support.schemas import City
from tests.support.words import FITTING, MUSEUM
from tests.support.words_llamaindex import WordEmbedding

# Agents look at every attribute of their Pydantic models, deprecated ones included.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

COPIES = (copy.copy, copy.deepcopy)


def museum() -> Any:
    documents = [Document(text=text, metadata={"file_name": name}) for name, text in MUSEUM.items()]
    return VectorStoreIndex.from_documents(documents, embed_model=WordEmbedding())


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}"


def agent(llm: Any, **options: Any) -> Any:
    return guard(FunctionAgent(name="one", description="One.", tools=[get_weather], llm=llm), **options)


def several(llm: Any, **options: Any) -> Any:
    bare = FunctionAgent(name="one", description="One.", tools=[get_weather], llm=llm)
    return guard(AgentWorkflow(agents=[bare], root_agent="one"), **options)


def engine(llm: Any, **options: Any) -> Any:
    return guard(museum().as_query_engine(llm=llm), **options)


def tied(llm: Any, **options: Any) -> Any:
    return GuardedQueryEngine(museum(), llm=llm, **options)


def chat(llm: Any, **options: Any) -> Any:
    return guard(SimpleChatEngine.from_defaults(llm=llm), **options)


KINDS = (agent, several, engine, tied, chat)


async def use(guarded: Any) -> None:
    if hasattr(guarded, "run"):
        await guarded.run(user_msg="Hello")
    elif hasattr(guarded, "achat"):
        await guarded.achat("Hello")
    else:
        await guarded.aquery(FITTING)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("copied", COPIES)
async def test_a_copy_shares_the_budget_and_the_traces(
    openai_like: Make, server: DemoServer, make: Callable[..., Any], copied: Callable[[Any], Any]
) -> None:
    given = make(openai_like(max_tokens=400), max_cost_usd=1.0, prices={MODEL: (1e-6, 1e-6)})
    twin = copied(given)
    assert type(twin) is type(given)
    assert twin is not given
    await use(given)
    await use(twin)
    assert attempts(twin) == attempts(given) == server.stats.requests == 2
    assert twin.brix.context is given.brix.context


@pytest.mark.parametrize("copied", COPIES)
async def test_a_copy_has_no_money_of_its_own(
    openai_like: Make, server: DemoServer, copied: Callable[[Any], Any]
) -> None:
    server.default = Reply("word " * 50)
    prices = {MODEL: (0.0, 1e-3)}
    given = agent(openai_like(max_tokens=50), max_cost_usd=0.07, prices=prices, budget_clamp_output=False)
    await use(given)  # costs 0.05
    with pytest.raises(BrixBudgetError):
        await use(copied(given))
    assert given.brix.context.session_cost_usd == pytest.approx(0.05)
    assert attempts(given) == server.stats.requests == 1


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_a_tool_counts_with_it(copied: Callable[[Any], Any]) -> None:
    tool: Any = guard_tool(get_weather)
    twin = copied(tool)
    assert type(twin) is type(tool)
    assert [one.call(city="Oslo").is_error for one in (tool, twin, tool)] == [False, False, True]
    with pytest.raises(BrixLoopError):
        twin.call(city="Oslo")


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_a_postprocessor_shares_its_traces(copied: Callable[[Any], Any]) -> None:
    given = RegulatedPostprocessor(score="similarity", min_score=0.5)
    twin = copied(given)
    nodes = [NodeWithScore(node=TextNode(text="a"), score=0.9)]
    assert twin.postprocess_nodes(nodes, query_str="a") == nodes
    assert len(given.get_traces()) == len(twin.get_traces()) == 1


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        *[(lambda kind=kind: kind(MockLLM()), "guard() where" if kind is not tied else "Make it") for kind in KINDS],
        (lambda: guard_tool(get_weather), "guard_tool() where"),
        (lambda: RegulatedPostprocessor(score="similarity", min_score=0.5), "Make it where"),
        (lambda: guard(MockLLM()).as_structured_llm(City), "as_structured_llm"),
    ],
)
def test_what_is_guarded_is_not_pickled_and_says_what_to_do(make: Callable[[], Any], advice: str) -> None:
    with pytest.raises(BrixConfigurationError) as caught:
        pickle.dumps(make())
    assert "cannot be pickled" in str(caught.value)
    assert advice in str(caught.value)
