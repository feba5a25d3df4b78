"""`BrixMiddleware` before and behind others: whatever model they choose, no request passes by the guards."""

from __future__ import annotations

import copy
import logging
import pickle
from dataclasses import replace
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelFallbackMiddleware,
    ModelRequest,
    ModelResponse,
    ModelRetryMiddleware,
)
from langchain.agents.structured_output import AutoStrategy, ToolStrategy
from langchain_core.tools import tool
from pydantic import BaseModel

from brix_core import BrixBudgetError, BrixConfigurationError, BrixLoopError, BrixSchemaError, MemoryStore, session
from brix_core.demo import DemoServer, JsonReply, Reply, ServerError, ToolCalls
from brix_langchain import BrixMiddleware, guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES, needs_middlewares_that_stop

QUESTION: Any = {"messages": [("user", "Who wrote it?")]}
BOTH: Any = {MODEL: RATES, "gpt-4o": RATES}
SEARCH = ToolCalls([("search", {"query": "author"})])

both_ways = pytest.mark.parametrize("way", ["invoke", "ainvoke"])


class Answer(BaseModel):
    author: str


@tool
def search(query: str) -> str:
    """Search the library."""
    return f"No result for {query}."


def guards(**options: Any) -> BrixMiddleware:
    return BrixMiddleware(**{"store": MemoryStore(), "prices": BOTH, "max_cost_usd": 1.0, **options})


async def run(agent: Any, way: str) -> Any:
    """The state in which a run ends."""
    agent = agent.with_config(recursion_limit=60)
    return agent.invoke(QUESTION) if way == "invoke" else await agent.ainvoke(QUESTION)


def assert_all_counted(middleware: BrixMiddleware, server: DemoServer, requests: int) -> None:
    assert server.wait_until_idle()
    assert sum(len(trace["attempts"]) for trace in middleware.get_traces()) == server.stats.requests == requests
    stats = server.stats
    owed = stats.prompt_tokens * RATES[0] + stats.completion_tokens * RATES[1]
    assert sum(trace["cost_usd"] or 0.0 for trace in middleware.get_traces()) == pytest.approx(owed, rel=1e-6)


class Chooses(AgentMiddleware[Any, Any]):
    """Asks another model, in one of the ways there are."""

    def __init__(self, model: Any, how: str) -> None:
        super().__init__()
        self._model, self._how = model, how

    def _chosen(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        if self._how == "override":
            return request.override(model=self._model)
        if self._how == "replace":
            return replace(request, model=self._model)
        if self._how == "set":
            with pytest.warns(DeprecationWarning, match="override"):
                request.model = self._model
            return request
        return ModelRequest(
            model=self._model,
            messages=request.messages,
            tools=request.tools,
            state=request.state,
            runtime=request.runtime,
        )

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(self._chosen(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(self._chosen(request))


@both_ways
class TestOtherModels:
    @pytest.mark.parametrize("first", [True, False])
    async def test_a_fallback_is_guarded_wherever_it_stands(
        self, way: str, first: bool, chat: Make, server: DemoServer
    ) -> None:
        middleware, fallback = guards(), ModelFallbackMiddleware(chat(model="gpt-4o"))
        order = [middleware, fallback] if first else [fallback, middleware]
        server.script(ServerError(), SEARCH, Reply("Nobody."))
        state = await run(create_agent(chat(), [search], middleware=order), way)
        assert state["messages"][-1].text == "Nobody."
        assert [record.model for record in server.requests] == [MODEL, "gpt-4o", MODEL]
        assert server.requests[1].body["tools"]
        assert_all_counted(middleware, server, 3)

    @pytest.mark.parametrize("how", ["override", "replace", "set"])
    async def test_a_choice_is_guarded_however_it_is_made(
        self, way: str, how: str, chat: Make, server: DemoServer
    ) -> None:
        middleware = guards()
        agent = create_agent(chat(), [search], middleware=[middleware, Chooses(chat(model="gpt-4o"), how)])
        server.script(SEARCH, Reply("Nobody."))
        await run(agent, way)
        assert [record.model for record in server.requests] == ["gpt-4o"] * 2
        assert_all_counted(middleware, server, 2)

    async def test_no_money_for_it_no_request(self, way: str, chat: Make, server: DemoServer) -> None:
        middleware = guards(max_cost_usd=1e-9)
        agent = create_agent(chat(), [], middleware=[middleware, Chooses(chat(model="gpt-4o"), "override")])
        with pytest.raises(BrixBudgetError):
            await run(agent, way)
        assert server.stats.requests == 0

    async def test_a_loop_is_seen_through_it(self, way: str, chat: Make, server: DemoServer) -> None:
        middleware = guards(on_loop="raise")
        agent = create_agent(chat(), [search], middleware=[middleware, Chooses(chat(model="gpt-4o"), "override")])
        server.default = SEARCH
        with pytest.raises(BrixLoopError):
            await run(agent, way)
        assert_all_counted(middleware, server, 3)

    @needs_middlewares_that_stop
    async def test_one_that_is_guarded_already_is_refused_before_it_is_asked(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        other = guard(chat(model="gpt-4o"), store=MemoryStore())
        server.default = ServerError()
        agent = create_agent(chat(), [], middleware=[guards(), ModelFallbackMiddleware(other)])
        with pytest.raises(BrixConfigurationError, match=r"\(gpt-4o\) is guarded already"):
            await run(agent, way)
        assert [record.model for record in server.requests] == [MODEL]

    async def test_one_with_arguments_bound_to_it_is_refused_before_it_is_asked(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        other = chat(model="gpt-4o").bind(stop=["."])
        agent = create_agent(chat(), [], middleware=[guards(), Chooses(other, "override")])
        with pytest.raises(BrixConfigurationError, match="takes a LangChain chat model"):
            await run(agent, way)
        assert server.stats.requests == 0

    async def test_the_guarded_model_itself_may_be_bound_and_kept(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        kept: list[Any] = []

        class Binds(AgentMiddleware[Any, Any]):
            def _with_model(self, request: Any) -> Any:
                kept.append(request.model)
                chosen = kept[0] if len(kept) > 1 else request.model.with_config(tags=["bound"])
                return request.override(model=chosen)

            def wrap_model_call(self, request: Any, handler: Any) -> Any:
                return handler(self._with_model(request))

            async def awrap_model_call(self, request: Any, handler: Any) -> Any:
                return await handler(self._with_model(request))

        middleware = guards()
        agent = create_agent(chat(), [], middleware=[middleware, Binds()])
        await run(agent, way)
        await run(agent, way)
        assert_all_counted(middleware, server, 2)

    async def test_an_answer_without_the_guards_is_an_error(self, way: str, chat: Make, server: DemoServer) -> None:
        middleware = guards()
        agent = create_agent(chat(), [], middleware=[middleware, Chooses(chat(model="gpt-4o"), "made anew")])
        with pytest.raises(BrixConfigurationError, match="BrixMiddleware last"):
            await run(agent, way)
        assert middleware.get_traces() == []

    async def test_a_limit_alone_leaves_requests_alone(self, way: str, chat: Make, server: DemoServer) -> None:
        seen: list[Any] = []

        class Sees(AgentMiddleware[Any, Any]):
            def wrap_model_call(self, request: Any, handler: Any) -> ModelResponse[Any]:
                seen.append(type(request))
                return handler(request)  # type: ignore[no-any-return]

            async def awrap_model_call(self, request: Any, handler: Any) -> ModelResponse[Any]:
                seen.append(type(request))
                return await handler(request)  # type: ignore[no-any-return]

        limits = BrixMiddleware(max_model_calls=5, tool_loop_detection=False)
        await run(create_agent(chat(), [], middleware=[limits, Sees()]), way)
        assert seen == [ModelRequest]


@both_ways
class TestAnswersThatDoNotFit:
    """They are bounded by `max_schema_retries`, and are no steps of a loop."""

    @pytest.mark.parametrize("wanted", [ToolStrategy(Answer), AutoStrategy(Answer)])
    async def test_the_same_answer_again_is_no_loop(
        self, way: str, wanted: Any, chat: Make, server: DemoServer
    ) -> None:
        middleware = guards(max_schema_retries=5, prices={"gpt-3.5-turbo": RATES})
        model = chat(model="gpt-3.5-turbo")  # has no way of its own to keep a schema
        agent = create_agent(model, [search], response_format=wanted, middleware=[middleware])
        server.default = ToolCalls([("Answer", {"author": 1})])
        with pytest.raises(BrixSchemaError, match=r"6 answer\(s\): max_schema_retries=5") as caught:
            await run(agent, way)
        assert len(caught.value.attempts) == 6
        assert not any("circles" in str(record.body["messages"]) for record in server.requests)
        assert_all_counted(middleware, server, 6)

    async def test_steps_between_them_are_a_loop_all_the_same(self, way: str, chat: Make, server: DemoServer) -> None:
        middleware = guards(max_schema_retries=5, on_loop="raise")
        agent = create_agent(chat(), [search], response_format=ToolStrategy(Answer), middleware=[middleware])
        wrong = ToolCalls([("Answer", {"author": 1})])
        server.script(SEARCH, wrong, SEARCH, wrong, SEARCH, wrong)
        with pytest.raises(BrixLoopError, match=r"search.* 3 times"):
            await run(agent, way)
        assert_all_counted(middleware, server, 5)

    async def test_they_do_not_push_steps_out_of_memory(self, way: str, chat: Make, server: DemoServer) -> None:
        threshold, heals = 5, 12
        middleware = guards(max_schema_retries=heals, on_loop="raise", exact_loop_threshold=threshold)
        agent = create_agent(chat(), [search], response_format=ToolStrategy(Answer), middleware=[middleware])
        wrong = ToolCalls([("Answer", {"author": 1})])
        server.script(*[SEARCH] * (threshold - 1), *[wrong] * heals, SEARCH)
        server.default = JsonReply({"author": "Austen"})
        with pytest.raises(BrixLoopError, match=f"{threshold} times"):
            await run(agent, way)
        assert_all_counted(middleware, server, threshold + heals)


@both_ways
class TestNamesOfTools:
    async def test_a_limit_for_a_tool_that_is_not_there_is_told_once(
        self, way: str, chat: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        middleware = guards(max_tool_calls={"serch": 1, "search": 3, "zzz": 2})
        agent = create_agent(
            chat(), [search, {"type": "function", "function": {"name": "zap"}}], middleware=[middleware]
        )
        server.script(SEARCH, Reply("Nobody."), Reply("Nobody."))
        with caplog.at_level(logging.WARNING, "brix_langchain"):
            await run(agent, way)
            await run(agent, way)
        assert [record.getMessage() for record in caplog.records] == [
            "max_tool_calls limits 'serch', which is none of the agent's tools (search, zap); did you mean 'search'?",
            "max_tool_calls limits 'zzz', which is none of the agent's tools (search, zap)",
        ]

    async def test_a_tool_that_comes_later_is_limited(
        self, way: str, chat: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        @tool
        def lend(title: str) -> str:
            """Lend a book."""
            return f"{title} is yours."

        class Lends(AgentMiddleware[Any, Any]):
            def wrap_model_call(self, request: Any, handler: Any) -> Any:
                return handler(request.override(tools=[*request.tools, lend]))

            async def awrap_model_call(self, request: Any, handler: Any) -> Any:
                return await handler(request.override(tools=[*request.tools, lend]))

            def wrap_tool_call(self, request: Any, handler: Any) -> Any:
                return handler(request.override(tool=lend))

            async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
                return await handler(request.override(tool=lend))

        middleware = guards(max_tool_calls={"lend": 1})
        agent = create_agent(chat(), [search], middleware=[middleware, Lends()])
        server.script(*[ToolCalls([("lend", {"title": "Emma"})])] * 2, Reply("Done."))
        messages = (await run(agent, way))["messages"]
        assert [message.status for message in messages if message.type == "tool"] == ["success", "error"]
        assert "limits 'lend'" in caplog.text

    async def test_names_that_are_there_are_not_told_of(
        self, way: str, chat: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        await run(create_agent(chat(), [search], middleware=[guards(max_tool_calls={"search": 1})]), way)
        assert "max_tool_calls" not in caplog.text


class TestCopies:
    async def test_a_copy_shares_all_counts(self, chat: Make, server: DemoServer) -> None:
        middleware = guards(max_cost_usd=1e-4, budget_clamp_output=False)
        server.default = Reply("word " * 90)
        with session("one"):
            await run(create_agent(chat(max_tokens=100), [], middleware=[middleware]), "invoke")
            for twin in (copy.copy(middleware), copy.deepcopy({"middleware": [middleware]})["middleware"][0]):
                assert twin is not middleware
                with pytest.raises(BrixBudgetError):  # the money is spent
                    await run(create_agent(chat(max_tokens=100), [], middleware=[twin]), "invoke")
        assert len(middleware.get_traces()) == 3
        assert server.stats.requests == 1

    def test_it_is_not_pickled(self) -> None:
        with pytest.raises(BrixConfigurationError, match=r"BrixMiddleware cannot be pickled.*both sides"):
            pickle.dumps(guards())


async def test_a_retry_behind_the_guards_is_guarded(chat: Make, server: DemoServer) -> None:
    middleware = guards()
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, on_failure="error")
    server.script(ServerError(), Reply("Here."))
    await run(create_agent(chat(), [], middleware=[middleware, retry]), "ainvoke")
    assert_all_counted(middleware, server, 2)
