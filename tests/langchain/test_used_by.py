"""What the README says LangChain users do with it, run over the local server.

They pipe a guarded runnable into a chain, wrap an agent executor so that it stops going round in circles, and answer
from an index through a provider that knows scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import pytest
from langchain.agents import create_agent
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from brix_core import BrixBudgetError, BrixLoopError, BrixRetrievalError
from brix_core.demo import DemoServer, Reply, ServerError, ToolCalls
from brix_core.store import MemoryStore
from brix_langchain import GuardedRetriever, LangChainRetrievalProvider, guard, guard_agent_executor
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES
from tests.support.words import DIMENSIONS, FITTING, FOREIGN, MUSEUM
from tests.support.words_langchain import WordEmbeddings

WAYS = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch")
BUDGET: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {MODEL: RATES}}


async def ask(chain: Any, way: str, value: Any) -> str:
    """What a chain that gives text says."""
    if way == "invoke":
        return str(chain.invoke(value))
    if way == "ainvoke":
        return str(await chain.ainvoke(value))
    if way == "batch":
        return str(chain.batch([value])[0])
    if way == "abatch":
        return str((await chain.abatch([value]))[0])
    if way == "stream":
        return "".join(chain.stream(value))
    return "".join([chunk async for chunk in chain.astream(value)])


@pytest.mark.parametrize("way", WAYS)
class TestPiped:
    async def test_a_guarded_model_stands_in_a_chain(self, way: str, chat: Make, server: DemoServer) -> None:
        server.script(ServerError(), Reply("Oslo."))
        model = guard(chat(), **BUDGET, max_retries=2, backoff_base=1.0, max_backoff=0.0, store=MemoryStore())
        chain = ChatPromptTemplate.from_template("The capital of {country}?") | model | StrOutputParser() | str.upper
        assert await ask(chain, way, {"country": "Norway"}) == "OSLO."
        assert server.wait_until_idle()
        assert len(model.get_traces()[0]["attempts"]) == server.stats.requests == 2
        assert model.context.session_cost_usd == pytest.approx(
            server.stats.prompt_tokens * RATES[0] + server.stats.completion_tokens * RATES[1]
        )

    async def test_a_guarded_chain_stands_in_a_chain(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = Reply("Oslo.")
        prompt = ChatPromptTemplate.from_template("The capital of {country}?")
        inner = guard(prompt | chat() | StrOutputParser(), **BUDGET, per_call_timeout=20.0, store=MemoryStore())
        chain = RunnableLambda(lambda country: {"country": country}) | inner | str.upper
        assert await ask(chain, way, "Norway") == "OSLO."
        assert server.wait_until_idle()
        assert inner.inside is not None
        assert len(inner.get_traces()) == len(inner.inside.get_traces()) == server.stats.requests == 1

    async def test_when_the_money_is_gone_nothing_is_sent(self, way: str, chat: Make, server: DemoServer) -> None:
        prompt: Any = ChatPromptTemplate.from_template("{country}?")
        for chain in (prompt | guard(chat(), **poor()), guard(prompt | chat(max_tokens=100), **poor())):
            with pytest.raises(BrixBudgetError) as caught:
                await ask(chain | StrOutputParser(), way, {"country": "Norway"})
            assert caught.value.limit_usd == 1e-9
        assert server.stats.requests == 0


def poor() -> dict[str, Any]:
    return {**BUDGET, "max_cost_usd": 1e-9, "store": MemoryStore()}


AGAIN = ToolCalls([("order_status", {"number": "8"})])


@tool
def order_status(number: str) -> str:
    """The status of an order."""
    return f"Order {number} is not known."


def executor(model: Any, **fields: Any) -> AgentExecutor:
    prompt = ChatPromptTemplate.from_messages([("human", "{input}"), ("placeholder", "{agent_scratchpad}")])
    return AgentExecutor(agent=create_tool_calling_agent(model, [order_status], prompt), tools=[order_status], **fields)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch"])
class TestWrapped:
    async def run(self, agent: Any, way: str, value: Any) -> None:
        if way in ("stream", "astream"):
            parts = list(agent.stream(value)) if way == "stream" else [part async for part in agent.astream(value)]
            assert parts
        else:
            await ask(agent, way, value)

    async def test_an_executor_that_repeats_itself_stops_after_the_third_request(
        self, way: str, chat: Make, server: DemoServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server.default = AGAIN
        bare = executor(chat())
        await self.run(bare, way, {"input": "Where is order 8?"})
        wasted = server.stats.requests
        assert wasted == bare.max_iterations == 15

        server.reset()
        server.default = AGAIN
        wrapped = guard_agent_executor(executor(chat()), on_loop="raise", **BUDGET, store=MemoryStore())
        with pytest.raises(BrixLoopError, match="order_status") as caught:
            await self.run(wrapped, way, {"input": "Where is order 8?"})
        assert caught.value.repeats == 3
        assert server.wait_until_idle()
        assert len(wrapped.get_traces()) == server.stats.requests == 3
        print(f"{wasted - server.stats.requests} of {wasted} requests saved")
        assert capsys.readouterr().out == "12 of 15 requests saved\n"

    async def test_so_does_an_agent_of_langgraph(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = AGAIN
        agent = create_agent(chat(max_retries=0), [order_status])
        wrapped = guard(agent, tool_loop_detection=True, **BUDGET, store=MemoryStore())
        with pytest.raises(BrixLoopError):
            await self.run(wrapped, way, {"messages": [HumanMessage("Where is order 8?")]})
        assert server.wait_until_idle()
        assert sum(len(trace["attempts"]) for trace in wrapped.inside.get_traces()) == server.stats.requests == 3


def in_memory() -> VectorStore:
    return InMemoryVectorStore(WordEmbeddings())


def faiss_index() -> VectorStore:
    index = faiss.IndexFlatL2(DIMENSIONS)
    return FAISS(WordEmbeddings(), index, InMemoryDocstore(), {}, distance_strategy=DistanceStrategy.EUCLIDEAN_DISTANCE)


INDEXES: dict[str, tuple[Callable[[], VectorStore], Any]] = {
    "InMemoryVectorStore": (in_memory, "similarity"),
    "FAISS": (faiss_index, "distance"),
}
PROMPT = ChatPromptTemplate.from_template("Answer from:\n{context}\n\nQuestion: {question}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("index", INDEXES)
class TestRetrieval:
    def filled(self, index: str) -> tuple[VectorStore, Any]:
        make, score = INDEXES[index]
        store = make()
        store.add_documents([Document(text, metadata={"source": source}) for source, text in MUSEUM.items()])
        return store, score

    async def test_an_answer_comes_from_what_the_provider_finds(
        self, index: str, way: str, chat: Make, server: DemoServer
    ) -> None:
        server.default = Reply("On Mondays.")
        store, score = self.filled(index)
        provider = LangChainRetrievalProvider(store, score=score, k=1)
        find = RunnableLambda(
            lambda question: provider.retrieve_sync(question).content,
            lambda question: _content(provider, question),
        )
        model = guard(chat(), **BUDGET, store=MemoryStore())
        rag = {"context": find, "question": RunnablePassthrough()} | PROMPT | model | StrOutputParser()
        assert await ask(rag, way, FITTING) == "On Mondays."
        assert server.wait_until_idle()
        assert MUSEUM["hours.md"] in server.requests[0].body["messages"][0]["content"]
        assert len(model.get_traces()) == server.stats.requests == 1
        found = await provider.retrieve(FITTING)
        assert found.sources == ("hours.md",)
        assert found.score > 0.5

    async def test_what_is_not_relevant_enough_is_not_asked_about(
        self, index: str, way: str, chat: Make, server: DemoServer
    ) -> None:
        server.default = Reply("On Mondays.")
        store, score = self.filled(index)
        retriever = GuardedRetriever(store, score=score, min_score=0.6)
        rag = guard(
            {"context": retriever, "question": RunnablePassthrough()} | PROMPT | chat() | StrOutputParser(),
            **BUDGET, max_retries=2, circuit_breaker=True, circuit_failure_threshold=1, store=MemoryStore(),
        )  # fmt: skip
        with pytest.raises(BrixRetrievalError):
            await ask(rag, way, FOREIGN)
        assert server.stats.requests == 0
        assert await ask(rag, way, FITTING) == "On Mondays."
        assert server.wait_until_idle()
        assert rag.inside is not None
        assert len(rag.inside.get_traces()) == server.stats.requests == 1
        assert [len(trace["attempts"]) for trace in rag.get_traces()] == [1, 1]


async def _content(provider: LangChainRetrievalProvider, question: str) -> str:
    return (await provider.retrieve(question)).content
