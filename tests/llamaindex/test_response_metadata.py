"""``additional_kwargs["brix"]`` of responses: in every answer, in no prompt, no hash and no recording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.generic_utils import completion_response_to_chat_response
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

import brix_core
from brix_core import MemoryStore
from brix_core.demo import DemoServer, JsonReply, Reply, ServerError, ToolCalls
from brix_core.regulated import StructuredResult
from brix_llamaindex import BrixGuardEvent, guard
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import HOOKS
from tests.support.house import HOUSE

of_llama_index = pytest.mark.filterwarnings("ignore::DeprecationWarning")
every_hook = pytest.mark.parametrize("hook", HOOKS)

PLAIN: Any = {"max_retries": 2, "max_backoff": 0.01, "max_cost_usd": 1.0, "prices": {MODEL: (1e-6, 1e-6)}}
SPEC: Any = {"regulated_spec": HOUSE, "regulated_embedder": "lexical"}
OURS = ("brix", "run_id", "session_id", "regulated", "cost_usd")


class City(BaseModel):
    name: str


async def chunks(llm: Any, hook: str, asked: Any = "Hello") -> list[Any]:
    """The response, or all chunks of it."""
    if "chat" in hook:
        asked = [ChatMessage(asked)] if isinstance(asked, str) else asked
    found = getattr(llm, hook)(asked)
    found = await found if hook.startswith("a") else found
    if "stream" not in hook:
        return [found]
    return [chunk async for chunk in found] if hook.startswith("a") else list(found)


async def told(llm: Any, hook: str, asked: Any = "Hello") -> dict[str, Any]:
    """What the answer tells, which is in the last chunk alone."""
    found = await chunks(llm, hook, asked)
    assert not any("brix" in chunk.additional_kwargs for chunk in found[:-1])
    last: dict[str, Any] = found[-1].additional_kwargs["brix"]
    return last


@every_hook
async def test_an_answer_tells_of_its_call(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(max_tokens=100), **PLAIN)
    with brix_core.session("user-42"):
        found = await told(llm, hook)
    trace = llm.get_traces()[0]
    assert found == {"run_id": trace["run_id"], "session_id": "user-42", "cost_usd": trace["cost_usd"]}
    assert found["cost_usd"] > 0.0


@every_hook
async def test_decisions_and_the_regulated_result_are_told(openai_like: Make, server: DemoServer, hook: str) -> None:
    llm = guard(openai_like(), **PLAIN, **SPEC)
    server.script(ServerError(), Reply("Ten."))
    found = await told(llm, hook, "What dosage?")
    assert found["decisions"] == llm.get_traces()[0]["decisions"]
    assert json.loads(json.dumps(found)) == found
    result = StructuredResult.model_validate(found["regulated"])
    assert result == llm.brix.context.metadata["regulated_result"]
    assert result.signals_triggered == ["dosage"]


@every_hook
async def test_nothing_else_of_an_answer_changes(openai_like: Make, server: DemoServer, hook: str) -> None:
    text = "one two three four"
    server.default = Reply(text, chunk_size=4)
    llm, bare = guard(openai_like()), openai_like(additional_kwargs={"stream_options": {"include_usage": True}})
    bare = bare if "stream" in hook else openai_like()
    ours, theirs = await chunks(llm, hook), await chunks(bare, hook)
    assert [chunk.delta for chunk in ours] == [chunk.delta for chunk in theirs]
    if "chat" in hook:
        assert [chunk.message for chunk in ours] == [chunk.message for chunk in theirs]
    else:
        assert [chunk.text for chunk in ours] == [chunk.text for chunk in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert {
            name: value for name, value in our.additional_kwargs.items() if name != "brix"
        } == their.additional_kwargs


@pytest.mark.parametrize("hook", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])
async def test_a_stream_whose_every_chunk_has_text_ends_with_one_that_has_none(hook: str) -> None:
    llm = guard(MockLLM(max_tokens=3))
    found = await chunks(llm, hook, "one two three")
    assert "".join(chunk.delta or "" for chunk in found[:-1]) == "".join(chunk.delta or "" for chunk in found)
    assert found[-1].delta == ""
    assert found[-1].additional_kwargs["brix"]["run_id"] == llm.get_traces()[0]["run_id"]
    whole = [chunk.text if "complete" in hook else chunk.message.content for chunk in found[-2:]]
    assert whole[0] == whole[1]


@pytest.mark.parametrize("hook", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_structured_answers_tell_too(openai_like: Make, server: DemoServer, hook: str) -> None:
    server.default = JsonReply({"name": "Oslo"})
    llm = guard(openai_like(), response_schema=City, **SPEC)
    found = await chunks(llm, hook, "Oslo?")
    assert found[-1].raw == City(name="Oslo")
    assert found[-1].additional_kwargs["brix"]["regulated"]["spec_name"] == "house"


# -- instrumentation ---------------------------------------------------------------------------------------------------


class Listener(BaseEventHandler):
    seen: list[BrixGuardEvent] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Listener"

    def handle(self, event: Any, **kwargs: Any) -> None:
        if isinstance(event, BrixGuardEvent):
            self.seen.append(event)


@every_hook
async def test_instrumentation_gets_run_id_cost_and_decision(openai_like: Make, server: DemoServer, hook: str) -> None:
    listener = Listener()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(listener)
    try:
        llm = guard(openai_like(), **PLAIN, **SPEC)
        found = await told(llm, hook, "Hello")
    finally:
        dispatcher.event_handlers.remove(listener)
    decision = next(event for event in listener.seen if event.guard == "regulated")
    assert (decision.decision, decision.run_id, decision.cost_usd) == ("passed", found["run_id"], found["cost_usd"])
    assert decision.session_id == found["session_id"]
    assert decision.details["decision_id"] == found["regulated"]["decision_id"]


# -- it goes nowhere else ----------------------------------------------------------------------------------------------


def assert_nothing_sent(server: DemoServer, requests: int) -> None:
    assert len(server.requests) == requests
    for request in server.requests:
        assert not any(word in json.dumps(request.body) for word in OURS)


async def test_chat_engines_never_send_it(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(), **PLAIN, **SPEC)
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=ChatMemoryBuffer.from_defaults(llm=llm))
    engine.chat("Hello")
    await engine.achat("And then?")
    "".join(engine.stream_chat("And now?").response_gen)
    await engine.achat("Bye.")
    assert_nothing_sent(server, 4)


@of_llama_index
async def test_agents_never_send_it(openai_like: Make, server: DemoServer) -> None:
    def search(query: str) -> str:
        """Search."""
        return "found"

    agent = guard(FunctionAgent(tools=[FunctionTool.from_defaults(search)], llm=openai_like()), **PLAIN, **SPEC)
    server.script(ToolCalls([("search", {"query": "x"})]), Reply("Done."))
    assert str(await agent.run("Search.")) == "Done."
    assert_nothing_sent(server, 2)


@every_hook
async def test_a_message_made_of_a_completion_is_sent_without_it(
    openai_like: Make, server: DemoServer, hook: str
) -> None:
    llm = guard(openai_like(), **PLAIN)
    made = completion_response_to_chat_response(llm.complete("Hello")).message
    assert "brix" in made.additional_kwargs  # LlamaIndex takes over all of a completion's
    if "chat" in hook:
        await chunks(llm, hook, [ChatMessage("Hello"), made, ChatMessage("And then?")])
        assert_nothing_sent(server, 2)
        assert "brix" in made.additional_kwargs


def test_hashes_of_prompts_know_nothing_of_it(openai_like: Make, server: DemoServer) -> None:
    hashes = []
    for _ in range(2):
        llm = guard(openai_like(), **PLAIN, session_id="s", store=MemoryStore())
        made = completion_response_to_chat_response(llm.complete("Hello")).message
        answer = llm.chat([ChatMessage("Hello")]).message
        for first in (made, answer):
            llm.chat([ChatMessage("Hello"), first, ChatMessage("And then?")])
        hashes.append([trace["prompt_hash"] for trace in llm.get_traces()])
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("hook", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_a_replayed_answer_tells_of_its_own_call(
    openai_like: Make, server: DemoServer, tmp_path: Path, hook: str
) -> None:
    file = tmp_path / "chat.jsonl"

    async def talk(**options: Any) -> list[Any]:
        llm = guard(openai_like(), **options)
        said = [ChatMessage("Hello")]
        answers = []
        for text in ("And then?", "Bye."):
            found = await chunks(llm, hook, list(said))
            answers.append(found[-1])
            said += [found[-1].message, ChatMessage(text, role=MessageRole.USER)]
        return answers

    recorded = await talk(record=file, **PLAIN)
    assert "brix" not in file.read_text()
    replayed = await talk(replay=file, **PLAIN)
    assert len(server.requests) == 2
    for new, old in zip(replayed, recorded, strict=True):
        ours, theirs = new.additional_kwargs["brix"], old.additional_kwargs["brix"]
        assert ours["decisions"] == [{"guard": "replay", "decision": "replayed", "recorded": theirs["run_id"]}]
        assert (ours["cost_usd"], new.message) == (None, old.message)
        assert ours["run_id"] != theirs["run_id"]


async def test_what_is_told_is_nobody_elses(openai_like: Make, server: DemoServer) -> None:
    llm = guard(openai_like(max_tokens=100), **PLAIN, **SPEC)
    found = await told(llm, "chat")
    found["decisions"].clear()
    assert [one["decision"] for one in llm.get_traces()[0]["decisions"]] == ["passed"]
