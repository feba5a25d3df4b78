"""Guarded engines and agents: all their LLMs behind one set of guards, their runs limited, sessions apart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, BaseWorkflowAgent, FunctionAgent, ReActAgent
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.llms import LLM, ChatMessage, MockLLM
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.query_engine import (
    CustomQueryEngine,
    RetrieverQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import QueryBundle
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import Context, StartEvent, StopEvent, Workflow, step

import brix_core
from brix_core import (
    BrixBudgetError,
    BrixConfigurationError,
    BrixLoopError,
    BrixRetrievalError,
    BrixTimeoutError,
    MemoryStore,
)
from brix_core.demo import DemoServer, Reply, ServerError, SlowFirstToken, ToolCalls
from brix_llamaindex import GuardedLLM, GuardedQueryEngine, guard, guard_tools
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import attempts
from tests.support.words import FITTING, FOREIGN, MUSEUM
from tests.support.words_llamaindex import WordEmbedding

# Agents look at every attribute of their Pydantic models, deprecated ones included.
of_llama_index = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PRICES = {MODEL: (1e-6, 1e-6)}


@pytest.fixture
def index() -> VectorStoreIndex:
    documents = [Document(text=text, metadata={"file_name": name}) for name, text in MUSEUM.items()]
    return VectorStoreIndex.from_documents(documents, embed_model=WordEmbedding())


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}"


def agreed(guarded: Any, server: DemoServer) -> bool:
    """The guard counted what the server saw, and that was something."""
    return 0 < attempts(guarded) == server.stats.requests


# --- query engines -----------------------------------------------------------------------------------


async def test_a_query_engine_is_guarded_in_all_ways_to_ask(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    bare = index.as_query_engine(llm=openai_like(), similarity_top_k=1)
    streaming = index.as_query_engine(llm=openai_like(), similarity_top_k=1, streaming=True)
    engine = guard(bare, max_cost_usd=1.0, prices=PRICES)
    streamed = guard(streaming, max_cost_usd=1.0, prices=PRICES)
    assert isinstance(engine, RetrieverQueryEngine)
    assert isinstance(engine, BaseQueryEngine)

    assert "Mondays" in str(engine.query(FITTING))
    response = await engine.aquery(FITTING)
    assert "Mondays" in str(response)
    assert response.source_nodes[0].metadata["file_name"] == "hours.md"
    assert attempts(engine) == server.stats.requests == 2

    read: Any = streamed.query(FITTING)
    assert "Mondays" in "".join(read.response_gen)
    aread: Any = await streamed.aquery(FITTING)
    assert "Mondays" in "".join([text async for text in aread.async_response_gen()])
    assert attempts(streamed) == server.stats.requests - 2 == 2
    assert engine.brix.context.session_cost_usd > 0.0


def test_the_engine_that_was_given_is_left_as_it_is(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    bare = index.as_query_engine(llm=openai_like())
    before = dict(bare.__dict__)
    engine = guard(bare)
    assert bare.__dict__ == before
    assert type(bare) is RetrieverQueryEngine
    assert engine.retriever is bare.retriever  # leads to no LLM
    bare.query(FITTING)
    assert (server.stats.requests, engine.get_traces()) == (1, [])


def test_retries_are_those_of_the_guards(openai_like: Make, server: DemoServer, index: VectorStoreIndex) -> None:
    server.script(ServerError(500), ServerError(500))
    engine = guard(index.as_query_engine(llm=openai_like()), max_retries=2, max_backoff=0.0)
    assert "Mondays" in str(engine.query(FITTING))
    assert attempts(engine) == server.stats.requests == 3


def test_postprocessors_and_synthesizers_share_one_budget(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    server.script(Reply("Doc: 1, Relevance: 9"), Reply("On Mondays."))
    bare = RetrieverQueryEngine.from_args(
        index.as_retriever(),
        llm=openai_like(),
        node_postprocessors=[LLMRerank(llm=openai_like(), top_n=1)],
    )
    engine = guard(bare, max_cost_usd=1.0, prices=PRICES)
    assert str(engine.query(FITTING)) == "On Mondays."
    assert attempts(engine) == server.stats.requests == 2
    assert len({trace["session_id"] for trace in engine.get_traces()}) == 1


def test_a_budget_stops_the_whole_engine(openai_like: Make, server: DemoServer, index: VectorStoreIndex) -> None:
    engine = guard(index.as_query_engine(llm=openai_like()), max_cost_usd=0.00001, prices={MODEL: (1e-3, 1e-3)})
    with pytest.raises(BrixBudgetError):
        engine.query(FITTING)
    assert server.stats.requests == 0


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_budget_stops_an_engine_in_the_middle_of_a_run(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, asynchronous: bool
) -> None:
    bare = index.as_query_engine(llm=openai_like(max_tokens=50), response_mode="refine", similarity_top_k=3)
    engine = guard(bare, max_cost_usd=0.0005, prices={MODEL: (1e-6, 5e-6)}, budget_clamp_output=False)
    server.default = Reply("On Mondays. " * 20)  # each paid answer leaves less than the next one's worst case
    with pytest.raises(BrixBudgetError):
        await (engine.aquery(FITTING) if asynchronous else asyncio.to_thread(engine.query, FITTING))
    assert 0 < attempts(engine) == server.stats.requests < 3
    assert engine.brix.context.session_cost_usd <= 0.0005


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_sub_questions_are_guarded(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, asynchronous: bool
) -> None:
    questions = '```json\n{"items": [{"sub_question": "When is it closed?", "tool_name": "museum"}]}\n```'
    server.script(Reply(questions), Reply("On Mondays."), Reply("It is closed on Mondays."))
    tool = QueryEngineTool.from_defaults(
        index.as_query_engine(llm=openai_like(), similarity_top_k=1), name="museum", description="The museum."
    )
    bare = SubQuestionQueryEngine.from_defaults(
        query_engine_tools=[tool],
        llm=openai_like(),
        question_gen=LLMQuestionGenerator.from_defaults(llm=openai_like()),
        response_synthesizer=get_response_synthesizer(llm=openai_like(), use_async=asynchronous),
        use_async=False,
        verbose=False,
    )
    engine = guard(bare, max_cost_usd=1.0, prices=PRICES)
    assert isinstance(engine, SubQuestionQueryEngine)
    response = await engine.aquery(FITTING) if asynchronous else engine.query(FITTING)
    assert str(response) == "It is closed on Mondays."
    assert attempts(engine) == server.stats.requests == 3


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_router_is_guarded(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, asynchronous: bool
) -> None:
    server.script(Reply('[{"choice": 1, "reason": "fits"}]'), Reply("On Mondays."))
    tool = QueryEngineTool.from_defaults(index.as_query_engine(llm=openai_like()), description="The museum.")
    bare = RouterQueryEngine(
        selector=LLMSingleSelector.from_defaults(llm=openai_like()), query_engine_tools=[tool], llm=openai_like()
    )
    engine = guard(bare)
    response = await engine.aquery(FITTING) if asynchronous else engine.query(FITTING)
    assert str(response) == "On Mondays."
    assert attempts(engine) == server.stats.requests == 2


def test_an_engine_of_ones_own_is_guarded(openai_like: Make, server: DemoServer) -> None:
    class Own(CustomQueryEngine):
        llm: LLM

        def custom_query(self, query_str: str) -> str:
            return str(self.llm.complete(query_str))

    engine = guard(Own(llm=openai_like()))
    assert "Hello" in str(engine.query("Hello"))
    assert agreed(engine, server)


def test_settings_llm_is_taken_when_an_engine_is_built(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    before = Settings._llm
    try:
        Settings.llm = openai_like()
        engine = guard(index.as_query_engine())
    finally:
        Settings._llm = before
    engine.query(FITTING)
    assert agreed(engine, server)


# --- the time of a run -------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_every_run_has_its_own_total_timeout(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, asynchronous: bool
) -> None:
    engine = guard(index.as_query_engine(llm=openai_like(), similarity_top_k=1), total_timeout=0.6)

    async def ask() -> Any:
        return await engine.aquery(FITTING) if asynchronous else engine.query(FITTING)

    for _ in range(3):
        await ask()
        time.sleep(0.25)
    server.default = SlowFirstToken(2.0)
    before = time.monotonic()
    with pytest.raises(BrixTimeoutError) as caught:
        await ask()
    assert time.monotonic() - before < 1.6
    assert caught.value.kind in ("total", "call")
    assert attempts(engine) == server.stats.requests == 4


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_answer_from_nodes_at_hand_is_a_run_too(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, asynchronous: bool
) -> None:
    bare = index.as_query_engine(llm=openai_like(), response_mode="refine", similarity_top_k=3)
    engine = guard(bare, total_timeout=0.5)
    bundle = QueryBundle(FITTING)
    nodes = engine.retrieve(bundle)
    server.default = SlowFirstToken(0.3)  # three calls, each of them well within the time
    with pytest.raises(BrixTimeoutError):
        await engine.asynthesize(bundle, nodes) if asynchronous else engine.synthesize(bundle, nodes)
    assert 0 < attempts(engine) == server.stats.requests < 3


@of_llama_index
async def test_a_tool_that_hangs_is_cut_off_with_the_run(openai_like: Make, server: DemoServer) -> None:
    async def hang() -> str:
        """Hang."""
        await asyncio.sleep(60)
        return "late"

    server.default = ToolCalls([("hang", {})])
    agent = guard(FunctionAgent(tools=[hang], llm=openai_like()), total_timeout=0.5)
    with pytest.raises(BrixTimeoutError, match=r"total_timeout=0\.5"):
        await agent.run("Hang.")
    assert attempts(agent) == server.stats.requests == 1


# --- chat engines ------------------------------------------------------------------------------------


CHATS: list[tuple[Callable[[Any, Any, Any], Any], int]] = [
    (lambda llm, _, memory: SimpleChatEngine.from_defaults(llm=llm, memory=memory), 2),
    (lambda llm, retriever, memory: ContextChatEngine.from_defaults(retriever, llm=llm, memory=memory), 2),
    (lambda llm, retriever, memory: CondensePlusContextChatEngine.from_defaults(retriever, llm=llm, memory=memory), 3),
]


@pytest.mark.parametrize(("make", "requests"), CHATS)
@pytest.mark.parametrize("how", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_a_chat_engine_is_guarded_and_remembers(
    openai_like: Make,
    server: DemoServer,
    index: VectorStoreIndex,
    make: Callable[[Any, Any, Any], Any],
    requests: int,
    how: str,
) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=3_000)
    bare = make(openai_like(), index.as_retriever(similarity_top_k=1), memory)
    chat: Any = guard(bare, max_cost_usd=1.0, prices=PRICES)
    assert isinstance(chat, type(bare))

    async def say(text: str) -> str:
        if how == "chat":
            return str(chat.chat(text))
        if how == "achat":
            return str(await chat.achat(text))
        if how == "stream_chat":
            return "".join(chat.stream_chat(text).response_gen)
        stream = await chat.astream_chat(text)
        return "".join([part async for part in stream.async_response_gen()])

    server.script(Reply("Hello Ann."))
    assert await say("I am Ann.") == "Hello Ann."
    assert await say("Who am I?")
    assert attempts(chat) == server.stats.requests == requests
    assert "I am Ann." in str(server.requests[-1].body["messages"])
    assert [message.content for message in chat.chat_history][:2] == ["I am Ann.", "Hello Ann."]
    assert bare.chat_history == chat.chat_history  # the conversation is the same


def test_a_memory_that_writes_summaries_is_guarded(openai_like: Make, server: DemoServer) -> None:
    history = [ChatMessage(f"A long message about museums, number {number}. " * 20) for number in range(6)]
    memory = ChatSummaryMemoryBuffer.from_defaults(history, llm=openai_like(), token_limit=200)
    chat = guard(SimpleChatEngine.from_defaults(llm=openai_like(), memory=memory))
    chat.chat("Hello")
    assert server.stats.requests >= 2
    assert agreed(chat, server)


# --- agents ------------------------------------------------------------------------------------------


@of_llama_index
async def test_a_function_agent_is_guarded(openai_like: Make, server: DemoServer) -> None:
    server.script(ServerError(500), ToolCalls([("get_weather", {"city": "Oslo"})]), Reply("It is sunny."))
    bare = FunctionAgent(tools=[get_weather], llm=openai_like())
    agent = guard(bare, max_retries=1, max_backoff=0.0)
    assert isinstance(agent, FunctionAgent)
    assert not isinstance(bare.llm, GuardedLLM)
    assert str(await agent.run("How is the weather?")) == "It is sunny."
    assert attempts(agent) == server.stats.requests == 3


@of_llama_index
async def test_a_react_agent_is_guarded(openai_like: Make, server: DemoServer) -> None:
    server.script(
        Reply('Thought: I need a tool.\nAction: get_weather\nAction Input: {"city": "Oslo"}\n'),
        Reply("Thought: I can answer without using any more tools.\nAnswer: It is sunny."),
    )
    agent = guard(ReActAgent(tools=[get_weather], llm=openai_like()))
    assert "sunny" in str(await agent.run("How is the weather?"))
    assert attempts(agent) == server.stats.requests == 2


@of_llama_index
async def test_the_engines_in_an_agents_tools_are_guarded(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    server.script(ToolCalls([("museum", {"input": FITTING})]), Reply("On Mondays."), Reply("It is closed on Mondays."))
    tool = QueryEngineTool.from_defaults(index.as_query_engine(llm=openai_like()), name="museum", description="It.")
    agent = guard(FunctionAgent(tools=guard_tools([tool]), llm=openai_like()), max_cost_usd=1.0, prices=PRICES)
    assert str(await agent.run(FITTING)) == "It is closed on Mondays."
    assert attempts(agent) == server.stats.requests == 3


@of_llama_index
async def test_a_workflow_of_agents_is_guarded(openai_like: Make, server: DemoServer) -> None:
    server.script(ToolCalls([("handoff", {"to_agent": "two", "reason": "It knows."})]), Reply("Hello from two."))
    agents: list[BaseWorkflowAgent] = [
        FunctionAgent(name="one", description="One.", tools=[get_weather], llm=openai_like()),
        FunctionAgent(name="two", description="Two.", tools=[get_weather], llm=openai_like()),
    ]
    workflow = guard(AgentWorkflow(agents=agents, root_agent="one"))
    assert str(await workflow.run(user_msg="Hello")) == "Hello from two."
    assert attempts(workflow) == server.stats.requests == 2


@of_llama_index
async def test_an_agent_that_goes_round_in_circles_is_stopped(openai_like: Make, server: DemoServer) -> None:
    server.default = ToolCalls([("get_weather", {"city": "Oslo"})])
    bare = FunctionAgent(tools=[get_weather], llm=openai_like())
    agent = guard(bare, tool_loop_detection=True, diversity_attempts=1)
    with pytest.raises(BrixLoopError):
        await agent.run("How is the weather?")
    assert attempts(agent) == server.stats.requests == 4


@of_llama_index
async def test_a_react_agent_that_goes_round_in_circles_is_stopped(openai_like: Make, server: DemoServer) -> None:
    server.default = Reply('Thought: I need a tool.\nAction: get_weather\nAction Input: {"city": "Oslo"}\n')
    agent = guard(
        ReActAgent(tools=[get_weather], llm=openai_like()),
        tool_loop_detection=True,
        exact_loop_detection=True,
        diversity_attempts=0,
    )
    with pytest.raises(BrixLoopError):
        await agent.run("How is the weather?")
    assert attempts(agent) == server.stats.requests <= 4


# --- LlamaIndex's own mocks --------------------------------------------------------------------------


class Counting(MockLLM):
    """LlamaIndex's mock, which counts what reaches it."""

    _asked: list[str] = PrivateAttr(default_factory=list)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self._asked.append(prompt)
        return super().complete(prompt, formatted, **kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        self._asked.append(prompt)
        return super().stream_complete(prompt, formatted, **kwargs)


@of_llama_index
async def test_the_guards_count_what_reaches_a_mock(index: VectorStoreIndex) -> None:
    mock = Counting(max_tokens=4)
    engine = guard(index.as_query_engine(llm=mock, response_mode="refine", similarity_top_k=3))
    streaming = guard(index.as_query_engine(llm=mock, streaming=True, similarity_top_k=1))
    chat = guard(CondensePlusContextChatEngine.from_defaults(index.as_retriever(), llm=mock))
    agent = guard(ReActAgent(tools=[get_weather], llm=mock, streaming=False))
    assert str(engine.query(FITTING))
    assert str(await engine.aquery(FITTING))
    read: Any = streaming.query(FITTING)
    assert "".join(read.response_gen)
    aread: Any = await streaming.aquery(FITTING)
    assert "".join([text async for text in aread.async_response_gen()])
    assert str(chat.chat("Hello"))
    assert str(await chat.achat("Hello again"))
    assert str(await agent.run("How is the weather?"))
    counts = [attempts(one) for one in (engine, streaming, chat, agent)]
    assert counts == [6, 2, 3, 1]
    assert sum(counts) == len(mock._asked)


# --- what cannot be guarded --------------------------------------------------------------------------


def test_what_has_no_llm_or_a_guarded_one_is_refused(index: VectorStoreIndex) -> None:
    class Empty(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            return query_str

    with pytest.raises(BrixConfigurationError, match="no LLM was found in this Empty"):
        guard(Empty())
    with pytest.raises(BrixConfigurationError, match="guarded already"):
        guard(index.as_query_engine(llm=guard(MockLLM())))
    with pytest.raises(BrixConfigurationError, match="guarded already"):
        guard(guard(index.as_query_engine(llm=MockLLM())))
    with pytest.raises(BrixConfigurationError, match="total_timeout"):
        guard(index.as_query_engine(llm=MockLLM()), total_timeout=0)


@of_llama_index
def test_a_function_that_uses_an_llm_of_its_own_is_named(caplog: pytest.LogCaptureFixture) -> None:
    hidden, engine = MockLLM(), SimpleChatEngine.from_defaults(llm=MockLLM())

    def ask(question: str) -> str:
        """Ask."""
        return str(hidden.complete(question))

    def chat(question: str) -> str:
        """Chat."""
        return str(engine.chat(question))

    with caplog.at_level(logging.WARNING, "brix_llamaindex"):
        guard(FunctionAgent(tools=[get_weather], llm=MockLLM()))
        assert not caplog.text
        guard(FunctionAgent(tools=[ask, FunctionTool.from_defaults(chat)], llm=MockLLM()))
    assert "ask" in caplog.text
    assert "chat" in caplog.text
    assert "not guarded" in caplog.text


# --- sessions ----------------------------------------------------------------------------------------


async def test_sessions_reach_engines_chats_and_asynchronous_synthesis(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    engines = [
        guard(index.as_query_engine(llm=openai_like(), response_mode=mode, use_async=True))
        for mode in ("tree_summarize", "accumulate")
    ]
    chats: list[Any] = [
        guard(make(openai_like(), index.as_retriever(), ChatMemoryBuffer.from_defaults(token_limit=3_000)))
        for make, _ in CHATS
    ]
    streams = []
    with brix_core.session("ann"):
        for engine in engines:
            await engine.aquery(FITTING)
        for chat in chats:
            await chat.achat("Hello")
            chat.chat("Hello again")
            streams.append(await chat.astream_chat("Hello once more"))
    with brix_core.session("bob"):
        for stream in streams:
            assert "".join([part async for part in stream.async_response_gen()])
    for one in (*engines, *chats):
        assert {trace["session_id"] for trace in one.get_traces()} == {"ann"}
    assert sum(attempts(one) for one in (*engines, *chats)) == server.stats.requests


@of_llama_index
async def test_agents_side_by_side_keep_their_sessions(openai_like: Make, server: DemoServer) -> None:
    agent = guard(FunctionAgent(tools=[get_weather], llm=openai_like()), max_cost_usd=1.0, prices=PRICES)

    async def run(user: str, runs: int) -> None:
        with brix_core.session(user):
            for _ in range(runs):
                await agent.run(f"I am {user}")

    await asyncio.gather(run("ann", 1), run("bob", 2))
    assert (len(agent.get_traces("ann")), len(agent.get_traces("bob"))) == (1, 2)
    assert attempts(agent) == server.stats.requests == 3


async def test_workflows_side_by_side_have_sessions_and_budgets_of_their_own(
    openai_like: Make, server: DemoServer
) -> None:
    # A call costs 110 tokens: there is money for two or three, and not for six.
    # Of its own is the store, too: sessions of the same name share their spending.
    llm = guard(openai_like(max_tokens=100), max_cost_usd=0.0003, prices=PRICES, store=MemoryStore())
    server.default = Reply("word " * 100)
    barrier = asyncio.Barrier(2)

    class Asking(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await barrier.wait()
            answers = [str(await llm.acomplete(f"I am {ev.user}")) for _ in range(ev.calls)]
            return StopEvent(result=answers)

    Asking.ask.__annotations__.update(ctx=Context, ev=StartEvent)
    workflow = Asking()

    async def run(user: str, calls: int) -> Any:
        with brix_core.session(user):
            handler = workflow.run(user=user, calls=calls)
        return await handler

    thrifty, spender = await asyncio.gather(run("ann", 2), run("bob", 6), return_exceptions=True)
    assert len(thrifty) == 2
    assert isinstance(spender, BrixBudgetError)
    assert [trace["outcome"] for trace in llm.get_traces("ann")] == ["ok", "ok"]
    assert llm.get_traces("bob")[0]["outcome"] == "refused"
    assert {trace["session_id"] for trace in llm.get_traces()} == {"ann", "bob"}
    assert attempts(llm) == server.stats.requests >= 4
    for user in ("ann", "bob"):
        with brix_core.session(user):
            assert 0 < llm.brix.context.session_cost_usd <= 0.0003


# --- retrieval that must be good enough --------------------------------------------------------------


def relevant(index: VectorStoreIndex, llm: Any, **options: Any) -> GuardedQueryEngine:
    return GuardedQueryEngine(index, llm=llm, score="similarity", min_score=0.5, **options)


async def ask(engine: GuardedQueryEngine, how: str, question: str) -> Any:
    return await engine.aquery(question) if how == "aquery" else engine.query(question)


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_high_score_leads_to_an_answer_with_sources(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, how: str
) -> None:
    engine = relevant(index, openai_like(), max_cost_usd=1.0, prices=PRICES)
    with brix_core.session("ann"):
        response = await ask(engine, how, FITTING)
    assert "Mondays" in str(response)
    assert [node.metadata["file_name"] for node in response.source_nodes] == ["hours.md"]
    assert [trace.get("guard") for trace in engine.get_traces("ann")] == [None, "retrieval"]
    assert server.stats.requests == 1


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_low_score_leads_to_a_refusal(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, how: str
) -> None:
    engine = relevant(index, openai_like())
    with pytest.raises(BrixRetrievalError, match=r"min_score=0\.5"):
        await ask(engine, how, FOREIGN)
    (trace,) = engine.get_traces()
    assert (trace["guard"], trace["outcome"]) == ("retrieval", "refused")
    assert trace["session_id"] == engine.brix.context.session_id
    dropping = relevant(index, openai_like(), on_low="drop")
    response = await ask(dropping, how, FOREIGN)
    assert (str(response), response.source_nodes) == ("Empty Response", [])
    assert server.stats.requests == 0


def test_an_engine_is_taken_as_well_as_an_index(openai_like: Make, server: DemoServer, index: VectorStoreIndex) -> None:
    bare = index.as_query_engine(llm=openai_like())
    engine = GuardedQueryEngine(bare, score="similarity", min_score=0.5, total_timeout=30)
    with pytest.raises(BrixRetrievalError):
        engine.query(FOREIGN)
    engine.query(FITTING)
    nodes = engine.retrieve(QueryBundle(FITTING))
    assert "Mondays" in str(engine.synthesize(QueryBundle(FITTING), nodes))
    assert server.stats.requests == 2
    bare.query(FOREIGN)
    assert server.stats.requests == 3


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_guarded_query_engine_streams(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, asynchronous: bool
) -> None:
    engine = relevant(index, openai_like(), engine_options={"streaming": True, "similarity_top_k": 1})
    response: Any = await ask(engine, "aquery" if asynchronous else "query", FITTING)
    if asynchronous:
        text = "".join([part async for part in response.async_response_gen()])
    else:
        text = "".join(response.response_gen)
    assert "Mondays" in text
    assert [node.metadata["file_name"] for node in response.source_nodes] == ["hours.md"]
    with pytest.raises(BrixRetrievalError):
        await ask(engine, "aquery" if asynchronous else "query", FOREIGN)
    assert server.stats.requests == 1
    assert [trace["outcome"] for trace in engine.get_traces()] == ["refused", "ok", "ok"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_score": 0.5}, "score='similarity'"),
        ({"score": "similarity"}, "without min_score"),
        ({"min_score": 2.0, "score": "similarity"}, "min_score"),
        ({"max_retry": 2}, "max_retries"),
    ],
)
def test_arguments_that_say_too_little_are_refused(
    index: VectorStoreIndex, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BrixConfigurationError, match=message):
        GuardedQueryEngine(index, llm=MockLLM(), **arguments)
    with pytest.raises(BrixConfigurationError, match="index or query engine"):
        GuardedQueryEngine(MockLLM())  # type: ignore[arg-type]
    with pytest.raises(BrixConfigurationError, match="for an index"):
        GuardedQueryEngine(index.as_query_engine(llm=MockLLM()), llm=MockLLM())
