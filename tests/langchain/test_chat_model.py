"""A guarded model is a chat model like the one it wraps: runs, caches, settings, copies, odd inputs."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections import Counter
from typing import Any

import openai
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import (
    FakeListChatModel,
    GenericFakeChatModel,
    ParrotFakeChatModel,
)
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import tool

from brix_core import BrixConfigurationError, BrixRetryError
from brix_core.demo import DemoServer, Reply, ServerError, StalledStream, ToolCalls
from brix_core.store import MemoryStore
from brix_langchain import GuardedChatModel, guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, OPTIONS, assert_all_seen, attempts

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore::brix_core.guards.budget.BrixBudgetWarning"),
]


def full(model: BaseChatModel, **options: Any) -> GuardedChatModel:
    return guard(model, **{**OPTIONS, "store": MemoryStore(), **options})


class Recorder(BaseCallbackHandler):
    """Counts events, and keeps what is said about the runs."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.tokens: list[str] = []
        self.starts: list[tuple[Any, Any, Any]] = []
        self.ends: list[Any] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.counts["start"] += 1
        details = {name: kwargs[name] for name in ("invocation_params", "options", "tags", "metadata", "name")}
        self.starts.append((serialized, messages, details))

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.counts["token"] += 1
        self.tokens.append(str(token))

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.counts["end"] += 1
        self.ends.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.counts[f"error {type(error).__name__}"] += 1


async def _astream(model: Any, config: Any) -> None:
    async for _ in model.astream("Hi", config):
        pass


async def _events(model: Any, config: Any) -> None:
    async for _ in model.astream_events("Hi", config, version="v2"):
        pass


WAYS: dict[str, Any] = {
    "invoke": lambda m, c: m.invoke("Hi", c),
    "ainvoke": lambda m, c: m.ainvoke("Hi", c),
    "stream": lambda m, c: list(m.stream("Hi", c)),
    "astream": _astream,
    "batch": lambda m, c: m.batch(["Hi", "Ho"], c),
    "abatch": lambda m, c: m.abatch(["Hi", "Ho"], c),
    "astream_events": _events,
    "stream_events v3": lambda m, c: m.stream_events("Hi", c, version="v3").output,
    "tools": lambda m, c: m.bind_tools([weather]).invoke("The weather in 'Oslo'?", c),
    "streaming": lambda m, c: m.invoke("Hi", c, stream=True),
}


async def use(way: str, model: Any, config: Any) -> Any:
    result = WAYS[way](model, config)
    return await result if asyncio.iscoroutine(result) else result


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


class TestRuns:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("partial", [False, True])
    async def test_one_run_a_call_with_the_tokens_of_the_bare_model(
        self, way: str, partial: bool, chat: Make, server: DemoServer
    ) -> None:
        options = {"on_timeout": "return_partial"} if partial else {}
        seen = []
        for model in (chat(), full(chat(), **options)):
            recorder, usage = Recorder(), UsageMetadataCallbackHandler()
            await use(way, model, {"callbacks": [recorder, usage], "tags": ["t"], "metadata": {"k": "v"}})
            seen.append((recorder, usage.usage_metadata))
        (bare, bare_usage), (ours, our_usage) = seen
        assert ours.counts == bare.counts
        assert ours.counts["start"] == ours.counts["end"] == (2 if "batch" in way else 1)
        assert our_usage == bare_usage != {}
        if "batch" not in way:  # the two runs of a batch come in any order
            assert ours.tokens == bare.tokens
        for (our_model, _, our_details), (bare_model, _, bare_details) in zip(ours.starts, bare.starts, strict=True):
            kwargs = {**bare_model["kwargs"], "max_retries": 0}
            assert our_model == {**bare_model, "kwargs": kwargs}
            assert our_details == bare_details

    async def test_a_failure_is_one_run_with_one_error(self, chat: Make, server: DemoServer) -> None:
        server.default = ServerError()
        model = full(chat(), max_retries=2, backoff_base=1.0, max_backoff=0.0, circuit_breaker=False)
        for way in ("invoke", "ainvoke", "stream", "astream"):
            recorder = Recorder()
            with pytest.raises(BrixRetryError):
                await use(way, model, {"callbacks": [recorder]})
            assert recorder.counts == {"start": 1, "error BrixRetryError": 1}

    async def test_a_handler_that_raises_stops_the_call_before_it_is_sent(self, chat: Make, server: DemoServer) -> None:
        class Veto(BaseCallbackHandler):
            raise_error = run_inline = True

            def on_chat_model_start(self, *_: Any, **__: Any) -> None:
                raise PermissionError("no")

        model = full(chat())
        for way in ("invoke", "ainvoke", "stream", "astream"):
            with pytest.raises(PermissionError):
                await use(way, model, {"callbacks": [Veto()]})
        assert server.stats.requests == 0

    async def test_a_handler_that_raises_in_mid_stream_is_an_abandoned_call(
        self, chat: Make, server: DemoServer
    ) -> None:
        class Veto(BaseCallbackHandler):
            raise_error = run_inline = True

            def on_llm_new_token(self, token: Any, **__: Any) -> None:
                if token:
                    raise PermissionError("no")

        model = full(chat())
        with pytest.raises(PermissionError):
            await use("stream", model, {"callbacks": [Veto()]})
        (trace,) = model.get_traces()
        assert trace["outcome"] == "abandoned"
        assert trace["cost_usd"] > 0

    async def test_answers_are_those_of_the_bare_model(self, chat: Make, server: DemoServer) -> None:
        bare, ours = chat(), full(chat())
        for model_input in ("Hi", [SystemMessage("Be brief"), HumanMessage("Hi")]):
            assert _plain(ours.invoke(model_input)) == _plain(bare.invoke(model_input))
            assert _plain(await ours.ainvoke(model_input)) == _plain(await bare.ainvoke(model_input))
            assert [_plain(one) for one in ours.stream(model_input)] == [
                _plain(one) for one in bare.stream(model_input)
            ]
        ours_in_two = ours.generate([[HumanMessage("Hi")]])
        assert ours_in_two.llm_output is not None
        assert ours_in_two.llm_output["model_name"] == bare.generate([[HumanMessage("Hi")]]).llm_output["model_name"]


def _plain(message: BaseMessage) -> dict[str, Any]:
    """A message without what differs from call to call."""
    fields = message.model_dump(exclude={"id"})
    fields["response_metadata"] = {k: v for k, v in fields["response_metadata"].items() if k not in ("id", "brix")}
    return fields


class TestCache:
    @pytest.fixture(params=["global", "own"])
    def cached(self, request: Any, chat: Make) -> Any:
        def make(**fields: Any) -> Any:
            if request.param == "own":
                return chat(cache=cache, **fields)
            set_llm_cache(cache)
            return chat(**fields)

        cache = InMemoryCache()
        return make

    async def test_a_hit_sends_nothing_and_costs_nothing(self, cached: Any, server: DemoServer) -> None:
        model = full(cached())
        first = model.invoke("Hi")
        spent = model.context.session_cost_usd
        assert model.invoke("Hi").content == first.content
        assert (await model.ainvoke("Hi")).content == first.content
        assert model.context.session_cost_usd == spent
        assert_all_seen(model, server, 1)

    def test_models_that_differ_share_no_entries(self, cached: Any, server: DemoServer) -> None:
        variants = [
            full(cached()),
            full(cached(temperature=0.5)),
            full(cached(model="gpt-4o")),
            full(cached(base_url=server.base_url + "/")),
            full(cached(), fallbacks=[cached(model="gpt-4o")]),
        ]
        for number, model in enumerate(variants, 1):
            model.invoke("Hi")
            assert server.stats.requests == number
        full(cached()).invoke("Hi")
        assert server.stats.requests == len(variants)

    def test_tools_and_stop_words_are_part_of_the_key(self, cached: Any, server: DemoServer) -> None:
        model = full(cached())
        for number, one in enumerate((model, model.bind(stop=["z"]), model.bind_tools([weather])), 1):
            one.invoke("Hi")
            one.invoke("Hi")
            assert server.stats.requests == number

    async def test_a_partial_answer_is_not_kept(self, cached: Any, server: DemoServer) -> None:
        model = full(cached(), per_call_timeout=0.1, on_timeout="return_partial")
        server.script(StalledStream(after=2), Reply("Whole."), StalledStream(after=2), Reply("Whole."))
        assert model.invoke("Hi").response_metadata["finish_reason"] == "timeout"
        assert model.invoke("Hi").content == "Whole."
        assert model.invoke("Hi").content == "Whole."
        assert (await model.ainvoke("Ho")).response_metadata["finish_reason"] == "timeout"
        assert (await model.ainvoke("Ho")).content == "Whole."
        assert (await model.ainvoke("Ho")).content == "Whole."
        assert server.stats.requests == 4

    def test_a_cache_that_is_off_stays_off(self, chat: Make, server: DemoServer) -> None:
        set_llm_cache(InMemoryCache())
        model = full(chat(cache=False), on_timeout="return_partial")
        model.invoke("Hi")
        model.invoke("Hi")
        assert server.stats.requests == 2


class CountingLimiter(BaseRateLimiter):
    """Lets everything pass, and counts."""

    def __init__(self) -> None:
        self.acquired = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.acquired += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        self.acquired += 1
        return True


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("limits", [True, False])
async def test_langchains_rate_limiter_is_asked_once_an_attempt(
    way: str, limits: bool, chat: Make, server: DemoServer
) -> None:
    limiter = CountingLimiter()
    options = {"per_call_timeout": 5.0} if limits else {}
    model = guard(
        chat(rate_limiter=limiter), max_retries=3, backoff_base=1.0, max_backoff=0.0, store=MemoryStore(), **options
    )
    server.script(ServerError(), ServerError())
    await use(way, model, {})
    assert limiter.acquired == server.stats.requests == attempts(model) == 3


class TestSettings:
    def test_langchains_settings_are_taken_over(self, chat: Make) -> None:
        recorder = Recorder()
        inner = chat(
            tags=["a"],
            metadata={"k": "v"},
            callbacks=[recorder],
            disable_streaming=True,
            output_version="v1",
            profile={"max_input_tokens": 5},
            verbose=True,
            name="mine",
            cache=InMemoryCache(),
        )
        model = full(inner)
        for name in ("tags", "metadata", "callbacks", "disable_streaming", "output_version", "profile", "verbose",
                     "name", "cache"):  # fmt: skip
            assert getattr(model, name) == getattr(inner, name), name
        assert (model.model, model.model_name, model._llm_type) == (MODEL, MODEL, "openai-chat")
        model.invoke("Hi")
        assert recorder.counts == {"start": 1, "end": 1}
        assert recorder.starts[0][2]["tags"] == ["a"]
        assert recorder.starts[0][2]["metadata"]["k"] == "v"

    def test_streaming_that_is_disabled_stays_disabled(self, chat: Make, server: DemoServer) -> None:
        full(chat(disable_streaming=True), on_timeout="return_partial").invoke("Hi")
        assert server.requests[0].stream is False
        server.reset()
        model = full(chat(disable_streaming=True))
        assert len(list(model.stream("Hi"))) == 1
        assert server.requests[0].stream is False
        by_tools = full(chat(disable_streaming="tool_calling"))
        list(by_tools.stream("Hi"))
        list(by_tools.bind_tools([weather]).stream("Hi"))
        assert server.wait_until_idle()
        assert [request.stream for request in server.requests] == [False, True, False]

    def test_a_model_that_always_streams_still_does(self, chat: Make, server: DemoServer) -> None:
        model = full(chat(streaming=True))
        assert model.invoke("Hi").content
        assert server.requests[0].stream is True
        assert_all_seen(model, server, 1)

    async def test_content_blocks_come_as_from_the_bare_model(self, chat: Make, server: DemoServer) -> None:
        bare, ours = chat(output_version="v1"), full(chat(output_version="v1"))
        assert ours.invoke("Hi").content == bare.invoke("Hi").content
        assert isinstance(ours.invoke("Hi").content, list)
        assert [one.content for one in ours.stream("Hi")] == [one.content for one in bare.stream("Hi")]

    def test_tokens_are_counted_by_the_model_itself(self) -> None:
        class Counting(FakeListChatModel):
            def get_token_ids(self, text: str) -> list[int]:
                return [1, 2, 3]

            def get_num_tokens_from_messages(self, messages: Any, tools: Any = None) -> int:
                return 77

        model = full(Counting(responses=["a"]), unknown_price="free")
        assert model.get_token_ids("x") == [1, 2, 3]
        assert model.get_num_tokens("x") == 3
        assert model.get_num_tokens_from_messages([HumanMessage("x")]) == 77
        custom = FakeListChatModel(responses=["a"], custom_get_token_ids=lambda text: [1] * len(text))
        assert full(custom, unknown_price="free").get_num_tokens("four") == 4

    def test_the_answering_model_is_in_the_trace(self, chat: Make, server: DemoServer) -> None:
        model = full(chat())
        model.invoke("Hi", model="gpt-4o")
        (trace,) = model.get_traces()
        assert trace["model"] == trace["attempts"][0]["model"] == "gpt-4o"


class TestTheModelItWraps:
    async def test_it_is_left_as_it_was(self, chat: Make, server: DemoServer) -> None:
        inner = chat(max_retries=1)
        before, clients = dict(inner.__dict__), (inner.root_client, inner.client, inner.async_client)
        full(inner)
        assert inner.__dict__ == before
        assert (inner.root_client, inner.client, inner.async_client) == clients
        assert inner.max_retries == inner.root_client.max_retries == 1
        server.script(ServerError())
        assert inner.invoke("Hi").content  # by its own retry
        assert server.stats.requests == 2

    async def test_its_own_retries_are_off_behind_the_guard(self, chat: Make, server: DemoServer) -> None:
        server.default = ServerError()
        model = guard(chat(max_retries=4), store=MemoryStore())
        for number, way in enumerate(("invoke", "ainvoke", "stream", "astream"), 1):
            with pytest.raises(openai.InternalServerError):
                await use(way, model, {})
            assert server.stats.requests == number

    async def test_structured_output_goes_by_a_client_without_retries_too(self, chat: Make, server: DemoServer) -> None:
        server.default = ServerError()
        schema = {"title": "City", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        chain = guard(chat(), store=MemoryStore()).with_structured_output(schema, method="json_schema")
        for number, way in enumerate(("invoke", "ainvoke", "stream", "astream"), 1):
            with pytest.raises(openai.InternalServerError):
                await use(way, chain, {})
            assert server.stats.requests == number

    def test_claude_before_and_after_its_clients_are_made(self, claude: Make, server: DemoServer) -> None:
        inner = claude(max_retries=4)
        assert inner.invoke("Hi").content
        server.default = ServerError()
        with pytest.raises(Exception, match="error"):
            guard(inner, store=MemoryStore()).invoke("Hi")
        assert server.stats.requests == 2
        assert inner._client.max_retries == 4

    def test_retries_that_were_asked_for_are_announced_as_off(
        self, chat: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard(chat(max_retries=4))
        assert "Pass max_retries=4 to guard()" in caplog.text
        caplog.clear()
        guard(chat())
        guard(chat(max_retries=4), max_retries=2)
        assert not caplog.records


class TestSecrets:
    def test_no_key_is_shown_anywhere(self, chat: Make, server: DemoServer) -> None:
        recorder = Recorder()
        address = server.base_url.replace("://", "://user:hidden-password@")
        model = full(chat(base_url=address, default_headers={}), session_id="s")
        server.script(ServerError())
        model.invoke("Hi", {"callbacks": [recorder]})
        shown = [repr(model), str(model), repr(model.get_traces()), repr(model.context), repr(model.guards)]
        for text in shown:
            assert "sk-secret" not in text
        assert "hidden-password" not in repr(model.get_traces())
        assert "sk-secret" not in repr(recorder.starts)
        assert "sk-secret" not in repr(dumpd(model))


class TestCopies:
    def test_copies_share_the_budget_and_the_traces(self, chat: Make, server: DemoServer) -> None:
        model = full(chat())
        copies = [copy.copy(model), copy.deepcopy(model), model.model_copy(), model.model_copy(deep=True)]
        copies.append(copy.deepcopy(model.bind(stop=["z"])).bound)
        for one in copies:
            one.invoke("Hi")
        assert_all_seen(model, server, len(copies))

    def test_pickling_says_why_not(self, chat: Make) -> None:
        with pytest.raises(BrixConfigurationError, match="pickled"):
            pickle.dumps(full(chat()))

    def test_langchains_serialisation_never_gives_an_unguarded_model(self, chat: Make) -> None:
        model = full(chat())
        assert not model.is_lc_serializable()
        written = dumpd(model)
        assert written["type"] == "not_implemented"
        with pytest.raises(NotImplementedError):
            load(written, allowed_objects="all")

    def test_settings_can_be_dumped_and_the_model_stays_out(self, chat: Make) -> None:
        model, bare = full(chat(output_version="v1")), FakeListChatModel(responses=[], output_version="v1")
        assert model.model_dump() == {k: v for k, v in bare.model_dump().items() if k in model.model_dump()}
        assert model.model_dump()["output_version"] == "v1"
        assert "inner" not in model.model_dump()
        assert model.asdict()["_type"] == "openai-chat"


class TestWrongUse:
    def test_a_guarded_model_is_not_guarded_again(self, chat: Make) -> None:
        model = full(chat())
        for wrong in (model, model.bind_tools([weather]), model.with_config(tags=["t"])):
            with pytest.raises(BrixConfigurationError, match=r"guarded already|chat model"):
                guard(wrong)
        with pytest.raises(BrixConfigurationError, match="guarded already"):
            guard(chat(), fallbacks=[model])

    @pytest.mark.parametrize("wrong", [None, "gpt-4o", ChatGeneration, openai.OpenAI, lambda prompt: prompt])
    def test_what_is_no_chat_model_is_refused(self, wrong: Any) -> None:
        with pytest.raises(BrixConfigurationError, match="chat model"):
            guard(wrong)

    def test_a_bound_model_is_refused(self, chat: Make) -> None:
        with pytest.raises(BrixConfigurationError, match="Binding"):
            guard(chat().bind(stop=["z"]))  # type: ignore[arg-type]

    def test_an_unknown_option_is_refused_with_a_hint(self, chat: Make) -> None:
        with pytest.raises(BrixConfigurationError, match="max_cost_usd"):
            guard(chat(), max_costs_usd=1.0)  # type: ignore[call-arg]

    def test_an_option_without_its_guard_is_refused(self, chat: Make) -> None:
        with pytest.raises(BrixConfigurationError, match="max_retries"):
            guard(chat(), backoff_base=2.0)

    def test_tools_that_cannot_be_guarded_are_refused(self) -> None:
        class Odd(FakeListChatModel):
            def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
                hidden = self
                return RunnableBinding(bound=FakeListChatModel(responses=["x"]), kwargs={}).pipe(
                    lambda message: hidden.invoke(message.content)
                )

        with pytest.raises(BrixConfigurationError, match="cannot be guarded"):
            guard(Odd(responses=["a"])).bind_tools([weather])

    def test_a_model_without_tools_says_so_itself(self) -> None:
        with pytest.raises(NotImplementedError):
            guard(FakeListChatModel(responses=["a"])).bind_tools([weather])


class TestInputs:
    def test_several_answers_are_charged_each(self, chat: Make, server: DemoServer) -> None:
        model = full(chat(n=3))
        generations = model.generate([[HumanMessage("Hi")]]).generations[0]
        assert len(generations) == 3
        assert_all_seen(model, server, 1)

    @pytest.mark.parametrize("way", ["invoke", "ainvoke"])
    async def test_several_answers_survive_a_partial_timeout(self, way: str, chat: Make, server: DemoServer) -> None:
        model = full(chat(n=3), on_timeout="return_partial")
        messages = [[HumanMessage("Hi")]]
        result = model.generate(messages) if way == "invoke" else await model.agenerate(messages)
        assert len(result.generations[0]) == 3

    async def test_pictures_and_files_pass_untouched(self, chat: Make, server: DemoServer) -> None:
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        message = HumanMessage([{"type": "text", "text": "What is this?"}, picture])
        model = full(chat())
        assert model.invoke([message]).content
        assert "".join([chunk.text async for chunk in model.astream([message])])
        assert server.requests[0].body["messages"][0]["content"][1] == picture
        assert attempts(model) == server.stats.requests == 2

    async def test_streamed_tool_calls_add_up(self, chat: Make, server: DemoServer) -> None:
        server.default = ToolCalls([("weather", {"city": "Oslo"}), ("weather", {"city": "Bergen"})])
        model = full(chat()).bind_tools([weather])
        for chunks in (list(model.stream("Hi")), [chunk async for chunk in model.astream("Hi")]):
            whole = chunks[0]
            for chunk in chunks[1:]:
                whole += chunk
            assert isinstance(whole, AIMessageChunk)
            assert [call["args"] for call in whole.tool_calls] == [{"city": "Oslo"}, {"city": "Bergen"}]

    async def test_a_conversation_with_tools_goes_on(self, chat: Make, server: DemoServer) -> None:
        server.script(ToolCalls([("weather", {"city": "Oslo"})]), Reply("Sunny."))
        model = full(chat())
        talk: list[BaseMessage] = [HumanMessage("Weather?")]
        talk.append(model.bind_tools([weather]).invoke(talk))
        talk.append(ToolMessage("Sunny", tool_call_id=talk[-1].tool_calls[0]["id"]))  # type: ignore[attr-defined]
        assert (await model.ainvoke(talk)).content == "Sunny."
        assert_all_seen(model, server, 2)

    async def test_nothing_to_say_is_as_with_the_bare_model(self, chat: Make, server: DemoServer) -> None:
        model = full(chat())
        with pytest.raises(openai.BadRequestError):
            model.invoke([])
        with pytest.raises(openai.BadRequestError):
            [chunk async for chunk in model.astream([])]
        assert model.invoke([HumanMessage("")]) is not None
        with pytest.raises(ValueError, match="Invalid input type"):
            model.invoke(42)  # type: ignore[arg-type]
        server.script(Reply(""), Reply(""))
        assert model.invoke("Hi").content == ""
        assert "".join(chunk.text for chunk in model.stream("Hi")) == ""


class TestFakes:
    """Models that are no SDK: what tests of applications use."""

    def test_an_exhausted_fake_is_an_error_and_not_the_end_of_an_iteration(self) -> None:
        for limits in ({}, {"per_call_timeout": 5.0}, {"per_call_timeout": 5.0, "on_timeout": "return_partial"}):
            model = guard(GenericFakeChatModel(messages=iter([AIMessage("one")])), store=MemoryStore(), **limits)
            assert model.invoke("Hi").content == "one"
            with pytest.raises(RuntimeError, match="StopIteration"):
                model.invoke("Hi")
            with pytest.raises(RuntimeError, match="StopIteration"):
                list(model.stream("Hi"))
            assert [trace["outcome"] for trace in model.get_traces()] == ["failed", "failed", "ok"]

    async def test_an_exhausted_fake_in_async_code(self) -> None:
        for limits in ({}, {"per_call_timeout": 5.0}):
            model = guard(GenericFakeChatModel(messages=iter([])), store=MemoryStore(), **limits)
            with pytest.raises(RuntimeError) as caught:
                await model.ainvoke("Hi")
            assert isinstance(caught.value.__cause__, StopIteration)
            with pytest.raises(RuntimeError) as caught:
                await use("astream", model, {})
            assert [trace["outcome"] for trace in model.get_traces()] == ["failed", "failed"]

    async def test_a_model_that_cannot_stream_gives_one_chunk(self) -> None:
        for options in ({}, {"per_call_timeout": 5.0, "on_timeout": "return_partial"}):
            model = guard(ParrotFakeChatModel(), store=MemoryStore(), **options)
            assert [chunk.content for chunk in model.stream("Hi")] == ["Hi"]
            assert [chunk.content async for chunk in model.astream("Hi")] == ["Hi"]
            assert model.invoke("Hi").content == "Hi"
            assert (await model.ainvoke("Hi")).content == "Hi"
            assert attempts(model) == 4

    async def test_a_model_that_streams_on_the_loop_alone(self) -> None:
        model = guard(
            AsyncStreamer(), per_call_timeout=5.0, on_timeout="return_partial", unknown_price="free", max_cost_usd=1.0,
            store=MemoryStore(),
        )  # fmt: skip
        assert model.invoke("Hi").content == "whole"
        assert (await model.ainvoke("Hi")).content == "in parts"
        assert [chunk.content async for chunk in model.astream("Hi")] == ["in ", "parts", ""]
        assert [chunk.content for chunk in model.stream("Hi")] == ["whole"]

    def test_a_hook_that_takes_no_run_manager_is_given_none(self) -> None:
        class Plain(BaseChatModel):
            @property
            def _llm_type(self) -> str:
                return "plain"

            def _generate(self, messages: Any, stop: Any = None, **kwargs: Any) -> ChatResult:
                assert "run_manager" not in kwargs
                return ChatResult(generations=[ChatGeneration(message=AIMessage("plain"))])

        assert guard(Plain()).invoke("Hi").content == "plain"


class AsyncStreamer(BaseChatModel):
    @property
    def _llm_type(self) -> str:
        return "async-streamer"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("whole"))])

    async def _astream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        for part in ("in ", "parts"):
            yield ChatGenerationChunk(message=AIMessageChunk(content=part))


def test_a_guard_without_options_still_observes(chat: Make, server: DemoServer) -> None:
    model = guard(chat())
    model.invoke("Hi")
    assert model.guards == ("observability",)
    (trace,) = model.get_traces()
    assert (trace["outcome"], trace["cost_usd"]) == ("ok", None)
    assert trace["prompt_tokens"] == server.stats.prompt_tokens
    assert trace["completion_tokens"] == server.stats.completion_tokens
