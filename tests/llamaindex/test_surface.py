"""A guarded LLM is still what it was, and there is no way round its guards."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, LLMMetadata
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import LLM, CustomLLM, MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]
from pydantic import BaseModel, PrivateAttr

import brix_core
from brix_core import BrixBudgetError, BrixConfigurationError
from brix_core.demo import DemoServer, JsonReply, Reply, ServerError, ToolCalls
from brix_llamaindex import GuardedLLM, guard
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import HOOKS, ask, attempts, outcomes

# Agents look at every attribute of their Pydantic models, deprecated ones included.
of_llama_index = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class City(BaseModel):
    """A city."""

    name: str
    inhabitants: int


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}"


def agreed(llm: GuardedLLM, server: DemoServer) -> bool:
    """The guard counted what the server saw, and that was something."""
    return 0 < attempts(llm) == server.stats.requests


# --- still what it was -------------------------------------------------------------------------------


def test_it_is_an_instance_of_its_class_with_its_metadata(openai_like: Make) -> None:
    bare = openai_like(context_window=4321, max_tokens=99)
    llm = guard(bare)
    assert isinstance(llm, OpenAILike)
    assert isinstance(llm, FunctionCallingLLM)
    assert isinstance(llm, GuardedLLM)
    assert llm.metadata == bare.metadata
    assert llm.class_name() == bare.class_name() == "OpenAILike"
    assert llm.to_payload() == bare.to_payload()
    assert {**llm.to_dict(), "max_retries": 3} == bare.to_dict()
    assert (llm.brix.endpoint.provider, llm.brix.endpoint.identity) == (
        None,
        f"OpenAILike/{MODEL}@{bare.api_base.partition('//')[2].removesuffix('/v1')}",
    )


def test_llms_of_one_class_share_one_guarded_class() -> None:
    assert type(guard(MockLLM())) is type(guard(MockLLM()))


def test_the_applications_own_object_is_left_as_it_is(openai_like: Make, server: DemoServer) -> None:
    bare = openai_like(additional_kwargs={"seed": 1})
    before = dict(bare.__dict__)
    llm = guard(bare, max_retries=1, max_backoff=0.0)
    llm.additional_kwargs["seed"] = 2
    llm.temperature = 0.7
    llm.chat([ChatMessage("Hello")])
    assert bare.__dict__ == before
    assert bare.additional_kwargs == {"seed": 1}
    assert not hasattr(bare, "brix")
    assert server.requests[0].body["seed"] == 2


def test_an_attribute_that_is_set_reaches_the_wire(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like())
    llm.temperature = 0.75
    llm.model = "other-model"
    llm.max_tokens = 3
    llm.complete("Hello")
    body = server.requests[0].body
    assert (body["temperature"], body["model"], body["max_tokens"]) == (0.75, "other-model", 3)
    assert llm.get_traces()[0]["model"] == "other-model"


def test_what_the_llm_notes_on_itself_can_be_read(openai_like: Make) -> None:
    class Counting(MockLLM):
        calls: int = 0
        _private: int = PrivateAttr(default=0)

        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            self.calls += 1
            self._private += 1
            return CompletionResponse(text=prompt)

    llm = guard(Counting(max_tokens=None))
    llm.complete("Hello")
    llm.chat([ChatMessage("Hello")])
    assert (llm.calls, llm._private) == (2, 2)


def test_retries_cannot_be_switched_on_again(
    openai_like: Make, server: DemoServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.default = ServerError(500)
    llm = guard(openai_like())
    with caplog.at_level(logging.WARNING, "brix_llamaindex"):
        llm.max_retries = 5
    assert "guard(..., max_retries=...)" in caplog.text
    with pytest.raises(Exception, match="500"):
        llm.complete("Hello")
    assert server.stats.requests == 1


@pytest.mark.parametrize(("options", "warned"), [({}, True), ({"max_retries": 2}, False)])
def test_a_chosen_number_of_retries_that_is_switched_off_is_said_so(
    options: Any, warned: bool, openai_like: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "brix_llamaindex"):
        guard(openai_like(max_retries=7), **options)
        assert ("max_retries=7" in caplog.text) is warned
        caplog.clear()
        guard(openai_like(), **options)
        guard(openai_like(max_retries=0), **options)
        assert not caplog.text


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_retries_of_clients_made_before_are_switched_off_too(server: DemoServer) -> None:
    bare = OpenAILike(model=MODEL, api_base=server.base_url, api_key="none", is_chat_model=True)
    bare.complete("Hello")
    client = bare._client
    server.reset()
    server.default = ServerError(500)
    llm = guard(bare)
    with pytest.raises(Exception, match="500"):
        llm.complete("Hello")
    assert server.stats.requests == 1
    assert bare._client is client
    assert client.max_retries == 3
    assert llm._client._client is client._client, "the connections are shared"
    client.close()


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, lambda llm: llm.model_copy(update={})])
def test_a_copy_has_its_own_fields_and_the_same_budget(make_copy: Any, openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), max_cost_usd=1.0, prices={MODEL: (1e-6, 1e-6)})
    other = make_copy(llm)
    assert isinstance(other, GuardedLLM)
    other.model = "other"
    assert llm.model == MODEL
    other.model = MODEL
    other.complete("Hello")
    llm.complete("Hello")
    assert attempts(llm) == attempts(other) == server.stats.requests == 2
    assert llm.brix.context is other.brix.context


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, lambda llm: llm.model_copy(deep=True)])
def test_a_copy_of_what_holds_it_has_the_same_guards(make_copy: Any, openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(should_use_structured_outputs=True))
    server.default = JsonReply({"name": "Oslo", "inhabitants": 1})
    held = make_copy(llm.as_structured_llm(City))
    assert held.chat([ChatMessage("Describe Oslo")]).raw == City(name="Oslo", inhabitants=1)
    assert attempts(llm) == server.stats.requests == 1


def test_pickling_says_what_to_do_instead(openai_like: Make) -> None:
    bare = OpenAILike(model=MODEL, api_base="http://localhost", api_key="none")
    for llm in (guard(MockLLM()), guard(bare)):
        with pytest.raises(BrixConfigurationError, match=r"Pickle the LLM and call guard\(\)"):
            pickle.dumps(llm)
    again = guard(pickle.loads(pickle.dumps(bare)))
    assert again.metadata == bare.metadata


@pytest.mark.parametrize("hook", HOOKS)
async def test_one_that_guard_did_not_make_says_so_and_asks_nobody(
    openai_like: Make, server: DemoServer, hook: str
) -> None:
    llm = guard(openai_like())
    restored = type(llm).from_dict(llm.to_dict())
    with pytest.raises(BrixConfigurationError, match=r"not made by guard\(\).*OpenAILike"):
        await ask(restored, hook)
    with pytest.raises(BrixConfigurationError, match="not made by guard"):
        restored.structured_predict(City, PromptTemplate("Describe Oslo"))
    assert server.stats.requests == 0


def test_guarding_twice_is_refused() -> None:
    llm = guard(MockLLM())
    with pytest.raises(BrixConfigurationError, match="guarded already"):
        guard(llm)
    with pytest.raises(BrixConfigurationError, match="give the LLM itself"):
        guard(MockLLM(), fallbacks=[llm])
    with pytest.raises(BrixConfigurationError, match="as_structured_llm"):
        guard(MockLLM().as_structured_llm(City))


@pytest.mark.parametrize("wrong", ["gpt-4o", None, 3, MockLLM, ChatMessage("Hello"), MockEmbedding(embed_dim=2)])
def test_what_is_no_llm_is_refused_with_what_is_accepted(wrong: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"takes a LlamaIndex LLM, .*got"):
        guard(wrong)
    with pytest.raises(BrixConfigurationError, match="fallbacks"):
        guard(MockLLM(), fallbacks=[wrong])


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(BrixConfigurationError, match="did you mean max_retries"):
        guard(MockLLM(), max_retry=3)  # type: ignore[call-overload]


def test_wrong_messages_fail_as_they_do_bare_and_leave_a_trace() -> None:
    llm = guard(MockLLM())
    with pytest.raises(Exception, match="ChatMessage"):
        llm.chat("Hello")  # type: ignore[arg-type]
    assert outcomes(llm) == ["failed"]


# --- no way round ------------------------------------------------------------------------------------


async def test_tools_pass_the_guards(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like())
    tool = FunctionTool.from_defaults(get_weather)
    response = llm.chat_with_tools([tool], "get_weather of 'Oslo'")
    assert llm.get_tool_calls_from_response(response)[0].tool_kwargs == {"city": "Oslo"}
    assert (await llm.achat_with_tools([tool], "get_weather of 'Oslo'")).message
    assert str(llm.predict_and_call([tool], "get_weather of 'Oslo'")) == "Sunny in Oslo"
    async for _ in await llm.astream_chat_with_tools([tool], "get_weather of 'Oslo'"):
        pass
    assert attempts(llm) == server.stats.requests == 4
    assert set(outcomes(llm)) == {"ok"}


def test_predict_and_stream_pass_the_guards(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(system_prompt="Be brief."))
    assert "Hello" in llm.predict(PromptTemplate("Hello {name}"), name="you")
    assert "Hello" in "".join(llm.stream(PromptTemplate("Hello {name}"), name="you"))
    assert agreed(llm, server)
    assert server.requests[0].body["messages"][0]["role"] == "system"


@of_llama_index
async def test_a_function_agent_passes_the_guards(openai_like: Make, server: DemoServer) -> None:
    server.script(ServerError(500), ToolCalls([("get_weather", {"city": "Oslo"})]), Reply("It is sunny."))
    llm = guard(openai_like(), max_retries=2, max_backoff=0.0)
    agent = FunctionAgent(tools=[get_weather], llm=llm)
    assert agent.llm is llm
    with brix_core.session("agent"):
        result = await agent.run("How is the weather?")
    assert str(result) == "It is sunny."
    assert attempts(llm) == server.stats.requests == 3
    assert len(llm.get_traces("agent")) == 2


@of_llama_index
async def test_a_react_agent_passes_the_guards(openai_like: Make, server: DemoServer) -> None:
    server.script(
        Reply('Thought: I need a tool.\nAction: get_weather\nAction Input: {"city": "Oslo"}\n'),
        Reply("Thought: I can answer without using any more tools.\nAnswer: It is sunny."),
    )
    llm = guard(openai_like())
    result = await ReActAgent(tools=[get_weather], llm=llm).run("How is the weather?")
    assert "sunny" in str(result)
    assert attempts(llm) == server.stats.requests == 2


@pytest.fixture
def index() -> VectorStoreIndex:
    documents = [Document(text=f"Fact {number} about Oslo") for number in range(3)]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=4))


async def test_a_query_engine_passes_the_guards(openai_like: Make, server: DemoServer, index: VectorStoreIndex) -> None:
    llm = guard(openai_like(), max_cost_usd=1.0, prices={MODEL: (1e-6, 1e-6)})
    assert "Oslo" in str(index.as_query_engine(llm=llm).query("What about Oslo?"))
    assert "Oslo" in str(await index.as_query_engine(llm=llm).aquery("What about Oslo?"))
    streamed: Any = index.as_query_engine(llm=llm, streaming=True).query("What about Oslo?")
    assert "Oslo" in "".join(streamed.response_gen)
    summary = index.as_query_engine(llm=llm, response_mode="tree_summarize", use_async=False)
    assert "Oslo" in str(summary.query("What about Oslo?"))
    assert agreed(llm, server)
    assert server.stats.requests == 4


def test_an_exhausted_budget_stops_a_query_engine(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex
) -> None:
    llm = guard(openai_like(), max_cost_usd=0.00001, prices={MODEL: (1e-3, 1e-3)})
    with pytest.raises(BrixBudgetError):
        index.as_query_engine(llm=llm).query("What about Oslo?")
    assert server.stats.requests == 0


def test_a_guarded_llm_can_be_the_default(openai_like: Make, server: DemoServer, index: VectorStoreIndex) -> None:
    llm = guard(openai_like())
    before = Settings._llm
    try:
        Settings.llm = llm
        assert Settings.llm is llm
        index.as_query_engine().query("What about Oslo?")
    finally:
        Settings._llm = before
    assert agreed(llm, server)


async def test_sessions_keep_apart_in_concurrent_calls(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), max_cost_usd=1.0, prices={MODEL: (1e-6, 1e-6)})

    async def talk(user: str, calls: int) -> None:
        with brix_core.session(user):
            for _ in range(calls):
                await llm.achat([ChatMessage(f"I am {user}")])

    await asyncio.gather(talk("ann", 2), talk("bob", 3))
    assert (len(llm.get_traces("ann")), len(llm.get_traces("bob"))) == (2, 3)
    assert server.stats.requests == 5


# --- other models ------------------------------------------------------------------------------------


def test_the_prompt_template_of_an_llm_is_reckoned_with(openai_like: Make, server: DemoServer) -> None:
    preamble = "You are a very careful assistant who never says anything wrong. " * 20
    llm = guard(
        openai_like(is_chat_model=False, completion_to_prompt=lambda prompt: f"{preamble}{prompt}", max_tokens=10),
        max_cost_usd=1.0,
        prices={MODEL: (1e-6, 1e-6)},
    )
    llm.complete("Hello")
    request = llm.brix.pipeline.request(llm.brix.endpoint, ["Hello"], {})
    assert request.prompt_tokens() >= server.requests[0].prompt_tokens > 200


def test_tools_are_reckoned_with(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), max_cost_usd=1.0, prices={MODEL: (1e-6, 1e-6)})
    tool = FunctionTool.from_defaults(get_weather)
    llm.chat_with_tools([tool], "Hello")
    params = {"tools": server.requests[0].body["tools"]}
    request = llm.brix.pipeline.request(llm.brix.endpoint, [ChatMessage("Hello")], params)
    bare = llm.brix.pipeline.request(llm.brix.endpoint, [ChatMessage("Hello")], {})
    assert request.prompt_tokens() > bare.prompt_tokens() + 40
    assert request.prompt_tokens() >= server.requests[0].prompt_tokens


@of_llama_index
def test_an_agent_of_mocks_runs_through_the_guards() -> None:
    llm = guard(MockFunctionCallingLLM())
    agent = FunctionAgent(tools=[get_weather], llm=llm)
    result = asyncio.run(_run(agent))
    assert str(result)
    assert attempts(llm) >= 1


async def _run(agent: FunctionAgent) -> Any:
    return await agent.run("Hello")


def test_a_class_with_a_model_of_its_own_is_priced_by_it() -> None:
    class Own(CustomLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(model_name="gpt-4o-mini", num_output=100)

        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            raw = {"usage": {"input_tokens": 1_000, "output_tokens": 100}}
            return CompletionResponse(text=prompt, raw=raw)

        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
            raise NotImplementedError

    llm: LLM = guard(Own(), max_cost_usd=1.0)
    llm.complete("Hello")
    (trace,) = llm.get_traces()  # type: ignore[attr-defined]
    assert trace["cost_usd"] == pytest.approx(0.00021)
