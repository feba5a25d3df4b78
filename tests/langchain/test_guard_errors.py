"""Guard errors in LangChain's eyes: decisions, which nothing retries and nothing answers over."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware
from langchain_core import exceptions
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.retry import RunnableRetry
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy

from brix_core import BrixBudgetError, BrixGuardBlockedError, BrixLoopError, BrixTimeoutError
from brix_core.demo import DemoServer, Reply, ServerError
from brix_core.store import MemoryStore
from brix_langchain import BrixCallbackHandler, guard
from brix_langchain.refusals import but_guard_errors, with_fallbacks
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES, needs_middlewares_that_stop

TAKES_PREDICATES = RunnableRetry.model_fields["retry_exception_types"].annotation != tuple[type[BaseException], ...]

Way = Callable[[Any], Any]

WAYS: dict[str, Way] = {
    "invoke": lambda target: target.invoke("Hi"),
    "ainvoke": lambda target: asyncio.run(target.ainvoke("Hi")),
    "stream": lambda target: list(target.stream("Hi")),
    "astream": lambda target: asyncio.run(_drain(target)),
    "batch": lambda target: target.batch(["Hi", "Ho"]),
    "abatch": lambda target: asyncio.run(target.abatch(["Hi", "Ho"])),
}


async def _drain(target: Any) -> list[Any]:
    return [chunk async for chunk in target.astream("Hi")]


def too_dear(model: Any, **options: Any) -> Any:
    """Guarded, and out of money from the beginning."""
    return guard(model, max_cost_usd=1e-9, prices={MODEL: RATES, **PRICES}, store=MemoryStore(), **options)


PRICES = {"FakeListChatModel": RATES, "FakeListLLM": RATES}
TARGETS: dict[str, Callable[[], Any]] = {
    "chat model": lambda: too_dear(FakeListChatModel(responses=["Paris"])),
    "string LLM": lambda: too_dear(FakeListLLM(responses=["Paris"])),
    "runnable": lambda: too_dear(
        FakeListChatModel(responses=["Paris"], metadata={"ls_max_tokens": 9}) | StrOutputParser()
    ),
}
ASKED: Any = {"messages": [HumanMessage("Hi")]}
SPARE = FakeListChatModel(responses=["Spare."])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TARGETS)
class TestRecovery:
    def test_with_retry_does_not_retry_them(self, kind: str, way: str) -> None:
        target = TARGETS[kind]()
        with pytest.raises(BrixBudgetError):
            WAYS[way](target.with_retry(stop_after_attempt=3, wait_exponential_jitter=False))
        assert len(target.get_traces()) == (2 if "batch" in way else 1)

    def test_unless_they_are_named(self, kind: str, way: str) -> None:
        target = TARGETS[kind]()
        retrying = target.with_retry(
            stop_after_attempt=2, wait_exponential_jitter=False, retry_if_exception_type=(BrixBudgetError,)
        )
        with pytest.raises(BrixBudgetError):
            WAYS[way](retrying)
        # LangChain retries no streams.
        assert len(target.get_traces()) == (1 if "stream" in way else 4 if "batch" in way else 2)

    def test_with_fallbacks_does_not_answer_over_them(self, kind: str, way: str) -> None:
        with pytest.raises(BrixBudgetError):
            WAYS[way](TARGETS[kind]().with_fallbacks([SPARE]))

    def test_unless_they_are_named_here_too(self, kind: str, way: str) -> None:
        answered = WAYS[way](TARGETS[kind]().with_fallbacks([SPARE], exceptions_to_handle=(BrixGuardBlockedError,)))
        assert "S" in str(answered)


class TestOtherFailures:
    def test_with_retry_retries_them(self, chat: Make, server: DemoServer) -> None:
        server.script(ServerError(), Reply("At last."))
        model = guard(chat(), store=MemoryStore()).with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        assert model.invoke("Hi").content == "At last."

    @pytest.mark.skipif(not TAKES_PREDICATES, reason="`with_retry` takes predicates from langchain-core 1.7 on")
    def test_a_predicate_is_left_as_it_is(self, chat: Make, server: DemoServer) -> None:
        server.script(ServerError(), Reply("At last."))
        model = guard(chat(), store=MemoryStore())
        retrying = model.with_retry(
            stop_after_attempt=2, wait_exponential_jitter=False, retry_if_exception_type=lambda error: True
        )
        assert retrying.invoke("Hi").content == "At last."

    async def test_with_fallbacks_answers_over_them(self, chat: Make, server: DemoServer) -> None:
        server.default = ServerError()
        model = guard(chat(), store=MemoryStore()).with_fallbacks([SPARE])
        assert model.invoke("Hi").content == "Spare."
        assert (await model.ainvoke("Hi")).content == "Spare."
        assert [answer.content for answer in model.batch(["Hi", "Ho"])] == ["Spare.", "Spare."]
        assert "".join(chunk.content for chunk in model.stream("Hi")) == "Spare."

    def test_tools_are_bound_to_all_of_them(self, chat: Make, server: DemoServer) -> None:
        first, second = guard(chat(), store=MemoryStore()), guard(chat(model="gpt-4o"), store=MemoryStore())
        bound = first.with_fallbacks([second]).bind_tools([])
        server.script(ServerError(), Reply("Second."))
        assert bound.invoke("Hi").content == "Second."

    async def test_of_a_batch_only_what_failed_goes_to_the_fallback(self) -> None:
        def answer(text: str) -> str:
            if text == "refused":
                raise BrixBudgetError("no")
            if text == "broken":
                raise ValueError("bad")
            return text

        chain = with_fallbacks(RunnableLambda(answer), [RunnableLambda(lambda text: f"spare {text}")])
        for outputs in (
            chain.batch(["fine", "broken", "refused"], return_exceptions=True),
            await chain.abatch(["fine", "broken", "refused"], return_exceptions=True),
        ):
            assert outputs[:2] == ["fine", "spare broken"]
            assert isinstance(outputs[2], BrixBudgetError)


class TestAroundAChain:
    """What contains a guarded model is LangChain's own: told by hand."""

    def test_its_retries_can_be_told(self) -> None:
        model = TARGETS["chat model"]()
        chain = (model | StrOutputParser()).with_retry(
            stop_after_attempt=3, wait_exponential_jitter=False, retry_if_exception_type=but_guard_errors()
        )
        with pytest.raises(BrixBudgetError):
            chain.invoke("Hi")
        assert len(model.get_traces()) == 1

    def test_so_can_its_fallbacks(self) -> None:
        chain = with_fallbacks(TARGETS["chat model"]() | StrOutputParser(), [SPARE])
        with pytest.raises(BrixBudgetError):
            chain.invoke("Hi")

    def test_a_binding_passes_retries_on_to_the_model(self) -> None:
        model = TARGETS["chat model"]()
        with pytest.raises(BrixBudgetError):
            model.bind(stop=["z"]).with_retry(wait_exponential_jitter=False).invoke("Hi")
        assert len(model.get_traces()) == 1


class TestAgents:
    @needs_middlewares_that_stop
    @pytest.mark.parametrize("on_failure", ["continue", "error"])
    def test_the_retry_middleware_does_not_retry_them(self, on_failure: Any) -> None:
        model = TARGETS["chat model"]()
        retry = ModelRetryMiddleware(max_retries=3, initial_delay=0.0, on_failure=on_failure)
        with pytest.raises(BrixBudgetError):
            create_agent(model, middleware=[retry]).invoke(ASKED)
        assert len(model.get_traces()) == 1

    @needs_middlewares_that_stop
    @pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
    def test_the_fallback_middleware_does_not_answer_over_them(self, way: str) -> None:
        model, spare = TARGETS["chat model"](), guard(FakeListChatModel(responses=["Spare."]), store=MemoryStore())
        agent = create_agent(model, middleware=[ModelFallbackMiddleware(spare)])
        with pytest.raises(BrixBudgetError):
            WAYS[way](RunnableLambda(lambda _: ASKED) | agent)
        assert (len(model.get_traces()), len(spare.get_traces())) == (1, 0)

    @needs_middlewares_that_stop
    @pytest.mark.parametrize("way", ["invoke", "ainvoke"])
    def test_nor_over_those_of_the_callback_handler(self, chat: Make, server: DemoServer, way: str) -> None:
        handler = BrixCallbackHandler(max_cost_usd=1e-9, prices={MODEL: RATES})
        agent = create_agent(chat(max_tokens=10, max_retries=0), middleware=[ModelFallbackMiddleware(SPARE)])
        with pytest.raises(BrixBudgetError):
            WAYS[way]((RunnableLambda(lambda _: ASKED) | agent).with_config(callbacks=[handler]))
        assert [trace["outcome"] for trace in handler.get_traces()] == ["refused"]
        assert server.stats.requests == 0

    def test_but_over_a_failure_of_the_provider(self, chat: Make, server: DemoServer) -> None:
        server.default = ServerError()
        model = guard(chat(), store=MemoryStore())
        agent = create_agent(model, middleware=[ModelFallbackMiddleware(SPARE)])
        assert agent.invoke(ASKED)["messages"][-1].content == "Spare."

    def test_the_fallbacks_of_a_guard_are_guarded(self, chat: Make, server: DemoServer) -> None:
        server.script(ServerError(), Reply("Second."))
        prices = {MODEL: RATES, "gpt-4o": RATES}
        model = guard(chat(), max_cost_usd=1.0, prices=prices, store=MemoryStore(), fallbacks=[chat(model="gpt-4o")])
        assert create_agent(model).invoke(ASKED)["messages"][-1].content == "Second."
        assert len(model.get_traces()[0]["attempts"]) == server.stats.requests == 2


class Noted(TypedDict):
    said: str


def asking(target: Any, **options: Any) -> Any:
    """A graph of one node that asks."""

    def node(state: Noted) -> Noted:
        return {"said": str(target.invoke("Hi"))}

    async def anode(state: Noted) -> Noted:
        return {"said": str(await target.ainvoke("Hi"))}

    builder = StateGraph(Noted)
    builder.add_node("ask", RunnableLambda(node, anode), **options)
    builder.add_edge(START, "ask")
    return builder.compile()


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
class TestGraphs:
    async def run(self, graph: Any, way: str, value: Any) -> Any:
        return graph.invoke(value) if way == "invoke" else await graph.ainvoke(value)

    @pytest.mark.parametrize("kind", TARGETS)
    async def test_the_retry_policy_of_a_node_does_not_retry_them(self, kind: str, way: str) -> None:
        target = TARGETS[kind]()
        policy = RetryPolicy(max_attempts=3, initial_interval=0.0, jitter=False, retry_on=Exception)
        with pytest.raises(BrixBudgetError):
            await self.run(asking(target, retry_policy=policy), way, {"said": ""})
        assert len(target.get_traces()) == 1

    @pytest.mark.parametrize("kind", TARGETS)
    async def test_a_tool_that_tells_its_errors_does_not_tell_them(self, kind: str, way: str) -> None:
        target = TARGETS[kind]()

        @tool
        async def ask(question: str) -> str:
            """Ask somebody."""
            return str(await target.ainvoke(question))

        @tool("ask")
        def ask_blocking(question: str) -> str:
            """Ask somebody."""
            return str(target.invoke(question))

        call = AIMessage("", tool_calls=[{"name": "ask", "args": {"question": "Who?"}, "id": "1"}])
        builder = StateGraph(MessagesState)
        builder.add_node("tools", ToolNode([ask_blocking if way == "invoke" else ask], handle_tool_errors=True))
        builder.add_edge(START, "tools")
        with pytest.raises(BrixBudgetError):
            await self.run(builder.compile(), way, {"messages": [call]})

    async def test_nor_does_it_tell_of_a_loop(self, way: str) -> None:
        searched: list[str] = []

        @tool
        def search(query: str) -> str:
            """Search."""
            searched.append(query)
            return "nothing"

        def again(state: MessagesState) -> Any:
            return {"messages": [AIMessage("", tool_calls=[{"name": "search", "args": {"query": "x"}, "id": "1"}])]}

        builder = StateGraph(MessagesState)
        builder.add_node("again", again)
        builder.add_node("tools", ToolNode([search], handle_tool_errors=True))
        builder.add_edge(START, "again")
        builder.add_edge("again", "tools")
        builder.add_conditional_edges("tools", lambda state: "again" if len(state["messages"]) < 20 else END)
        with pytest.raises(BrixLoopError):
            await self.run(guard(builder.compile(), tool_loop_detection=True, store=MemoryStore()), way, ASKED)
        assert len(searched) == 3


class TestTheErrorItself:
    def raised(self) -> BrixBudgetError:
        with pytest.raises(BrixBudgetError) as caught:
            TARGETS["chat model"]().invoke("Hi")
        return caught.value

    def test_it_is_the_guards_and_not_retryable(self) -> None:
        error = self.raised()
        assert type(error).__name__ == "BrixBudgetError"
        assert error.is_retryable is False
        assert error.needed_usd > error.limit_usd
        assert isinstance(error, getattr(exceptions, "ModelError", Exception))

    @pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
    def test_it_survives_copies_and_pickling(self, again: Callable[[Any], Any]) -> None:
        error = self.raised()
        assert isinstance(again(error), BrixBudgetError)
        assert again(error).__dict__ == error.__dict__

    def test_a_time_limit_is_still_a_timeout_error(self, chat: Make, server: DemoServer) -> None:
        server.default = Reply("Late.", latency=0.5)
        model = guard(chat(), per_call_timeout=0.05, store=MemoryStore())
        with pytest.raises(TimeoutError) as caught:
            model.invoke("Hi")
        assert isinstance(caught.value, BrixTimeoutError)
        assert caught.value.kind == "call"
