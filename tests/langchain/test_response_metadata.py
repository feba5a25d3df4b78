"""``response_metadata["brix"]``: in every answer and its trace, in no prompt, no hash and no cache."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langchain_core.tracers.context import collect_runs
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

import brix_core
from brix_core import MemoryStore
from brix_core.demo import DemoServer, JsonReply, Reply, ServerError, ToolCalls
from brix_core.regulated import StructuredResult
from brix_langchain import BrixMiddleware, guard
from tests.langchain.conftest import Make
from tests.langchain.support import OPTIONS, needs_v3
from tests.support.house import HOUSE

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

PLAIN: Any = {**OPTIONS, "max_backoff": 0.01}
SPEC: Any = {"regulated_spec": HOUSE, "regulated_embedder": "lexical"}


class City(BaseModel):
    name: str


@tool
def search(query: str) -> str:
    """Search."""
    return "found"


def _merged(chunks: list[AIMessageChunk]) -> AIMessage:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert sum("brix" in chunk.response_metadata for chunk in chunks) == 1
    assert "brix" in chunks[-1].response_metadata
    return whole


async def _astreamed(model: Any, text: str) -> AIMessage:
    return _merged([chunk async for chunk in model.astream(text)])


async def _by_events(model: Any, text: str) -> AIMessage:
    events = [event async for event in model.astream_events(text, version="v2")]
    chunks = [event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream"]
    ended = events[-1]["data"]["output"].response_metadata["brix"]
    assert ended == _merged(chunks).response_metadata["brix"]
    return _merged(chunks)


async def _by_v3(model: Any, text: str) -> AIMessage:
    stream = await model.astream_events(text, version="v3")
    found: AIMessage = await stream.output
    return found


def _agent(model: Any, **options: Any) -> Any:
    return create_agent(model, [search], **options)


WAYS: dict[str, Callable[[Any, str], Any]] = {
    "invoke": lambda model, text: model.invoke(text),
    "ainvoke": lambda model, text: model.ainvoke(text),
    "batch": lambda model, text: model.batch([text])[0],
    "stream": lambda model, text: _merged(list(model.stream(text))),
    "astream": _astreamed,
    "astream_events": _by_events,
    "tools": lambda model, text: model.bind_tools([search]).invoke(text),
    "agent": lambda model, text: _agent(model).invoke({"messages": text})["messages"][-1],
}
every_way = pytest.mark.parametrize("way", [*WAYS, pytest.param("v3", marks=needs_v3)])


async def ask(way: str, model: Any, text: str = "Hello") -> AIMessage:
    found: Any = (_by_v3 if way == "v3" else WAYS[way])(model, text)
    message: AIMessage = await found if hasattr(found, "__await__") else found
    return message


@every_way
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_an_answer_tells_of_its_call(
    chat: Make, claude: Make, server: DemoServer, way: str, provider: str
) -> None:
    model = guard(chat() if provider == "openai" else claude(), **PLAIN)
    with brix_core.session("user-42"):
        message = await ask(way, model)
    told = message.response_metadata["brix"]
    trace = model.get_traces()[0]
    assert told == {"run_id": trace["run_id"], "session_id": "user-42", "cost_usd": trace["cost_usd"]}
    assert told["cost_usd"] > 0.0
    assert message.text


@every_way
async def test_decisions_and_the_regulated_result_are_told(chat: Make, server: DemoServer, way: str) -> None:
    model = guard(chat(), **PLAIN, **SPEC)
    server.script(ServerError(), Reply("Ten."))
    message = await ask(way, model, "What dosage?")
    told = message.response_metadata["brix"]
    trace = model.get_traces()[0]
    assert told["decisions"] == trace["decisions"]
    assert json.loads(json.dumps(told)) == told
    result = StructuredResult.model_validate(told["regulated"])
    assert result == model.context.metadata["regulated_result"]
    assert result.signals_triggered == ["dosage"]
    assert (result.spec_name, result.registry_version) == ("house", "1.2.0")


@pytest.mark.parametrize("streamed", [False, True])
async def test_structured_output_tells_by_its_raw_message(chat: Make, server: DemoServer, streamed: bool) -> None:
    server.default = JsonReply({"name": "Oslo"})
    model = guard(chat(), **PLAIN, **SPEC).with_structured_output(City, include_raw=True)
    if streamed:
        parts = [part async for part in model.astream("Oslo?")]
        raw = _merged([part["raw"] for part in parts if "raw" in part])
    else:
        raw = (await model.ainvoke("Oslo?"))["raw"]
    assert raw.response_metadata["brix"]["regulated"]["spec_name"] == "house"
    assert raw.response_metadata["brix"]["run_id"] == model.get_traces()[0]["run_id"]


@pytest.mark.parametrize("way", ["invoke", "stream", "astream", "agent"])
async def test_tracers_get_it_with_the_run(chat: Make, server: DemoServer, way: str) -> None:
    model = guard(chat(), **PLAIN, **SPEC)
    with collect_runs() as runs:
        message = await ask(way, model)
    (run,) = [one for root in runs.traced_runs for one in _all(root) if one.run_type == "llm"]
    generation = run.outputs["generations"][0][0]
    told = generation["message"]["kwargs"]["response_metadata"]["brix"]
    assert told == message.response_metadata["brix"]
    assert told["regulated"]["registry_version"] == "1.2.0"


def _all(run: Any) -> Any:
    yield run
    for child in run.child_runs:
        yield from _all(child)


def test_what_a_model_decides_is_nobody_elses(chat: Make, server: DemoServer) -> None:
    model = guard(chat(), **PLAIN, **SPEC)
    message = model.invoke("Hello")
    message.response_metadata["brix"]["decisions"][0]["decision"] = "changed"
    message.response_metadata["brix"]["decisions"].clear()
    assert model.get_traces()[0]["decisions"][0]["decision"] == "passed"


# -- it goes nowhere else --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("with_tools", [False, True])
async def test_it_is_never_sent_to_a_provider(
    chat: Make, claude: Make, server: DemoServer, provider: str, with_tools: bool
) -> None:
    model = guard(chat() if provider == "openai" else claude(), **PLAIN, **SPEC)
    agent: Any = create_agent(model, [search] if with_tools else [], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    if with_tools:
        server.script(ToolCalls([("search", {"query": "x"})]), Reply("One."), Reply("Two."))
    for text in ("Hello", "And then?"):
        found = await agent.ainvoke({"messages": text}, config)
    answers = [message for message in found["messages"] if isinstance(message, AIMessage)]
    assert all("brix" in message.response_metadata for message in answers)
    assert len(server.requests) == len(answers) == (3 if with_tools else 2)
    for request in server.requests:
        sent = json.dumps(request.body)
        assert not any(word in sent for word in ("brix", "run_id", "session_id", "regulated", "cost_usd"))


def test_hashes_of_prompts_know_nothing_of_it(chat: Make, server: DemoServer) -> None:
    hashes = []
    for _ in range(2):
        model = guard(chat(), **PLAIN, session_id="s", store=MemoryStore())
        first = model.invoke("Hello")
        model.invoke([HumanMessage("Hello"), first, HumanMessage("And then?")])
        hashes.append([trace["prompt_hash"] for trace in model.get_traces()])
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_replayed_answer_tells_of_its_own_call(
    chat: Make, server: DemoServer, tmp_path: Path, streamed: bool
) -> None:
    file = tmp_path / "chat.jsonl"

    def talk(**options: Any) -> list[AIMessage]:
        model = guard(chat(), **options)
        said: list[Any] = [HumanMessage("Hello")]
        answers = []
        for text in ("And then?", "Bye."):
            answer = _merged(list(model.stream(said))) if streamed else model.invoke(said)
            answers.append(answer)
            said += [answer, HumanMessage(text)]
        return answers

    recorded = talk(record=file, **PLAIN)
    assert "brix" not in file.read_text()
    requests = len(server.requests)
    replayed = talk(replay=file, **PLAIN)
    assert len(server.requests) == requests == 2
    for new, old in zip(replayed, recorded, strict=True):
        told = new.response_metadata.pop("brix")
        told_before = old.response_metadata.pop("brix")
        assert told["run_id"] != told_before["run_id"]
        assert told["decisions"] == [{"guard": "replay", "decision": "replayed", "recorded": told_before["run_id"]}]
        assert told["cost_usd"] is None
        assert (new.content, new.response_metadata) == (old.content, old.response_metadata)


@pytest.mark.parametrize("own", [False, True])
def test_langchains_cache_keeps_none_of_it(chat: Make, server: DemoServer, own: bool) -> None:
    from langchain_core.globals import set_llm_cache

    cache = InMemoryCache()
    set_llm_cache(None if own else cache)

    def talk() -> list[AIMessage]:
        bare = chat(cache=cache) if own else chat()
        model = guard(bare, **PLAIN)
        first = model.invoke("Hello")
        return [first, model.invoke([HumanMessage("Hello"), first, HumanMessage("And then?")])]

    # An answer out of the cache has LangChain's own mark (a cost of 0), so the second turn is asked once more.
    asked, _, cached = talk(), talk(), talk()
    assert all("brix" in message.response_metadata for message in asked)
    assert not any("brix" in message.response_metadata for message in cached)
    assert [message.content for message in asked] == [message.content for message in cached]
    assert len(server.requests) == 3


def test_secrets_in_decisions_are_blotted_out(chat: Make, server: DemoServer) -> None:
    model = guard(chat(), **PLAIN, **SPEC)
    told = model.invoke("What dosage of sk-proj-abcdefghijklmnop1234?").response_metadata["brix"]
    assert "sk-proj" not in json.dumps(told["decisions"])
    assert "What dosage" in told["decisions"][0]["matches"][0]["excerpt"]


def test_an_agents_middleware_tells_too(chat: Make, server: DemoServer) -> None:
    guards: Any = BrixMiddleware(**PLAIN, **SPEC)
    found = _agent(chat(), middleware=[guards]).invoke({"messages": [("user", "Hello")]})
    told = found["messages"][-1].response_metadata["brix"]
    assert told["run_id"] == guards.get_traces()[0]["run_id"]
    assert told["regulated"]["spec_name"] == "house"


async def test_many_calls_at_once_tell_each_of_their_own(chat: Make, server: DemoServer) -> None:
    model = guard(chat(), **PLAIN, **SPEC)

    async def one(number: int) -> tuple[str, dict[str, Any]]:
        with brix_core.session(f"user-{number}"):
            way = "astream" if number % 2 else "ainvoke"
            message = await ask(way, model, f"What dosage, {number}?" if number % 3 == 0 else f"Hello {number}")
        return message.text, message.response_metadata["brix"]

    found = await asyncio.gather(*map(one, range(20)))
    traces = {trace["session_id"]: trace for trace in model.get_traces()}
    for number, (text, told) in enumerate(found):
        assert str(number) in text
        assert told["run_id"] == traces[f"user-{number}"]["run_id"]
        assert told["cost_usd"] == traces[f"user-{number}"]["cost_usd"]
        assert told["regulated"]["signals_triggered"] == (["dosage"] if number % 3 == 0 else [])


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_that_is_left_early_tells_nothing_and_is_settled(
    chat: Make, server: DemoServer, asynchronous: bool
) -> None:
    server.default = Reply("one two three four five six", chunk_size=3)
    model = guard(chat(), **PLAIN)
    if asynchronous:
        source = model.astream("Hello")
        first = await anext(source)
        await source.aclose()
    else:
        blocking = model.stream("Hello")
        first = next(blocking)
        blocking.close()
    assert "brix" not in first.response_metadata
    assert model.get_traces()[0]["outcome"] == "abandoned"
    assert model.get_traces()[0]["cost_usd"] > 0.0
