"""Loops and long prompts of LangChain applications: what reaches the server, and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from brix_core import BrixConfigurationError, BrixContextError, BrixLoopError, BrixSchemaError
from brix_core.demo import DemoServer, EndlessRepetition, Reply, ServerError, ToolCalls
from brix_langchain import guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES, attempts
from tests.support.schemas import OSLO, VALID, City
from tests.support.words_langchain import WordEmbeddings

WAYS: Final = ("invoke", "ainvoke", "stream", "astream")
STREAMED: Final = WAYS[2:]
CLAUDE: Final = "claude-haiku-4-5"
PRICES: Final = {MODEL: RATES, "small-model": (1e-7, 1e-7), CLAUDE: (1e-6, 5e-6)}
ROUND_AGAIN: Final = "You are going round in circles"
LOOK: Final = ToolCalls([("lookup", {"key": "Oslo"})])

every_way = pytest.mark.parametrize("way", WAYS)
either_provider = pytest.mark.parametrize("provider", ["openai", "anthropic"])


@pytest.fixture
def models(chat: Make, claude: Make) -> dict[str, Make]:
    """Makers of models, by their provider."""
    return {"openai": chat, "anthropic": claude}


@pytest.fixture
def other() -> Iterator[DemoServer]:
    with DemoServer() as running:
        yield running


@tool
def lookup(key: str) -> str:
    """Looks a key up."""
    return f"nothing about {key}"


async def say(model: Any, way: str, asked: Any = "Hello") -> Any:
    """What a model, or an agent, comes to."""
    if way == "invoke":
        return model.invoke(asked)
    if way == "ainvoke":
        return await model.ainvoke(asked)
    found = list(model.stream(asked)) if way == "stream" else [chunk async for chunk in model.astream(asked)]
    whole = found[0]
    for chunk in found[1:]:
        whole = whole + chunk if isinstance(whole, BaseMessage) else chunk
    return whole


async def run(agent: Any, way: str) -> None:
    await say(agent, way, {"messages": [("user", "What is known about Oslo?")]})


def decided(model: Any, name: str) -> list[str]:
    """What that guard decided about the latest call."""
    return [made["decision"] for made in model.get_traces()[0]["decisions"] if made["guard"] == name]


def texts(server: DemoServer, number: int = -1) -> str:
    """All that was said in a request."""
    body = server.requests[number].body
    return json.dumps([body.get("system"), body["messages"]])


def longest(server: DemoServer) -> int:
    return max(record.prompt_tokens for record in server.requests)


# --- loops -------------------------------------------------------------------------------------------


@every_way
@either_provider
async def test_an_agent_that_goes_round_in_circles_is_led_out(
    models: dict[str, Make], server: DemoServer, provider: str, way: str
) -> None:
    server.script(LOOK, LOOK, LOOK, Reply("Nothing is known."))
    model = guard(models[provider](), tool_loop_detection=True)
    await run(create_agent(model, [lookup]), way)
    assert [ROUND_AGAIN in texts(server, number) for number in range(4)] == [False, False, False, True]
    assert decided(model, "loop") == ["injected"]
    assert attempts(model) == server.stats.requests == 4


@every_way
@either_provider
async def test_an_agent_that_is_not_led_out_is_stopped(
    models: dict[str, Make], server: DemoServer, provider: str, way: str
) -> None:
    server.default = LOOK
    model = guard(models[provider](), tool_loop_detection=True, diversity_attempts=2)
    with pytest.raises(BrixLoopError, match="lookup") as caught:
        await run(create_agent(model, [lookup]), way)
    assert caught.value.repeats >= 3
    nudges = [ROUND_AGAIN in texts(server, number) for number in range(server.stats.requests)]
    assert nudges == [False] * 3 + [True] * 2
    assert attempts(model) == server.stats.requests == 5


@every_way
async def test_an_agent_can_be_stopped_at_once(chat: Make, server: DemoServer, way: str) -> None:
    server.default = LOOK
    model = guard(chat(), tool_loop_detection=True, on_loop="raise")
    with pytest.raises(BrixLoopError, match="lookup"):
        await run(create_agent(model, [lookup]), way)
    assert attempts(model) == server.stats.requests == 3


async def test_a_tool_whose_result_changes_is_no_loop(chat: Make, server: DemoServer) -> None:
    done = iter(range(10))

    @tool
    def poll() -> str:
        """Tells how far it is."""
        return f"{next(done)} done"

    server.script(*[ToolCalls([("poll", {})])] * 6, Reply("Finished."))
    model = guard(chat(), tool_loop_detection=True, on_loop="raise")
    await run(create_agent(model, [poll]), "ainvoke")
    assert attempts(model) == server.stats.requests == 7


@every_way
async def test_the_same_answer_to_the_same_prompt_is_a_loop(chat: Make, server: DemoServer, way: str) -> None:
    server.default = Reply("I am working on it.")
    model = guard(chat(), exact_loop_detection=True, on_loop="raise")
    for _ in range(2):
        await say(model, way)
    with pytest.raises(BrixLoopError, match="came up 3 times"):
        await say(model, way)
    await say(model, way, "Something else")
    assert attempts(model) == server.stats.requests == 4


@pytest.mark.parametrize("way", STREAMED)
async def test_a_stream_that_degenerates_is_cut_off(chat: Make, server: DemoServer, way: str) -> None:
    server.default = EndlessRepetition(text="over and over ", limit=5_000)
    model = guard(chat(stream_chunk_timeout=None), exact_loop_detection=True)
    with pytest.raises(BrixLoopError) as caught:
        await say(model, way)
    assert 0 < len(caught.value.partial) < 20_000
    assert attempts(model) == server.stats.requests == 1


@every_way
async def test_meaning_is_told_by_embeddings_of_langchain(chat: Make, server: DemoServer, way: str) -> None:
    reworded = ("the museum is closed on mondays", "on mondays the museum is closed", "closed is the museum on mondays")
    options: dict[str, Any] = {"semantic_loop_detection": True, "embedder": WordEmbeddings(), "on_loop": "raise"}
    model = guard(chat(), **options)
    server.script(*map(Reply, (*reworded, "dogs have to wait outside")))
    for _ in reworded[1:]:
        await say(model, way)
    with pytest.raises(BrixLoopError):
        await say(model, way)
    assert attempts(model) == server.stats.requests == 3
    exact = guard(chat(), exact_loop_detection=True, on_loop="raise")
    server.script(*map(Reply, reworded))
    for _ in reworded:
        await say(exact, way)


def test_what_embeds_nothing_is_refused(chat: Make) -> None:
    with pytest.raises(BrixConfigurationError, match="embedder"):
        guard(chat(), semantic_loop_detection=True, embedder=7)


# --- prompts that are too long -----------------------------------------------------------------------

LIMIT: Final[dict[str, Any]] = {"max_context_tokens": 400, "context_reserve_tokens": 100}
"""300 tokens of prompt."""
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
FILLER: Final = "and so on " * 12


def long_talk(turns: int = 20) -> list[BaseMessage]:
    """A conversation that begins with a system prompt and ends with a question."""
    kinds: Sequence[Callable[[str], BaseMessage]] = (HumanMessage, AIMessage)
    told = [kinds[number % 2](f"fact {number} {FILLER}") for number in range(turns)]
    return [SystemMessage("Be brief."), *told, HumanMessage("And now?")]


def steps(count: int) -> list[BaseMessage]:
    """So many questions, each with the step of an agent that they led to."""
    messages: list[BaseMessage] = []
    for number in range(count):
        call = {"name": "lookup", "args": {"key": f"place {number}"}, "id": f"c{number}"}
        result = ToolMessage(f"{number} {FILLER}", tool_call_id=f"c{number}")
        messages += [HumanMessage(f"And place {number}?"), AIMessage("", tool_calls=[call]), result]
    return messages


@every_way
@either_provider
@pytest.mark.parametrize("strategy", ["sliding_window", "importance"])
async def test_a_long_conversation_is_trimmed_to_what_fits(
    models: dict[str, Make], server: DemoServer, provider: str, strategy: Any, way: str
) -> None:
    model = guard(models[provider](), **LIMIT, context_strategy=strategy)
    messages = long_talk()
    await say(model, way, messages)
    (record,) = server.requests
    said = [str(message.content) for message in messages]
    sent = [text for text in said if json.dumps(text) in texts(server)]
    assert 150 < record.prompt_tokens <= 300
    assert (sent[0], sent[-1], len(messages)) == ("Be brief.", "And now?", 22)
    assert [texts(server).index(json.dumps(text)) for text in sent] == sorted(
        texts(server).index(json.dumps(text)) for text in sent
    )
    assert decided(model, "context") == ["trimmed"]
    await say(model, way, long_talk(2))
    assert decided(model, "context") == []
    assert attempts(model) == server.stats.requests == 2


@every_way
@either_provider
@pytest.mark.parametrize("writer", [None, "name", "model"])
async def test_what_is_left_out_is_summarised_by_a_counted_request(
    models: dict[str, Make], server: DemoServer, provider: str, writer: str | None, way: str
) -> None:
    given = {"name": "small-model", "model": models["openai"](model="small-model")}.get(writer or "")
    options: dict[str, Any] = {} if given is None else {"context_summary_model": given}
    model = guard(models[provider](), **LIMIT, context_strategy="summarize", max_cost_usd=1.0, prices=PRICES, **options)
    server.default = Reply("They spoke of facts.")
    await say(model, way, long_talk())
    *summaries, asked = server.requests
    assert 1 <= len(summaries) <= 8
    own = MODEL if provider == "openai" else CLAUDE
    assert {told.body["model"] for told in summaries} == {own if writer is None else "small-model"}
    assert all(not told.body.get("stream") and told.prompt_tokens <= 300 for told in summaries)
    assert asked.body["model"] == own
    assert "They spoke of facts." in texts(server)
    assert asked.prompt_tokens <= 300
    cost = 0.0
    for record in server.requests:
        rates = PRICES[record.body["model"]]
        cost += record.prompt_tokens * rates[0] + record.completion_tokens * rates[1]
    assert model.context.session_cost_usd == pytest.approx(cost)
    assert attempts(model) == server.stats.requests == len(summaries) + 1


@every_way
async def test_what_does_not_fit_is_refused_or_cut(chat: Make, server: DemoServer, way: str) -> None:
    long = f"First. {'and so on ' * 400} Last."
    strict = guard(chat(), **LIMIT)
    with pytest.raises(BrixContextError) as caught:
        await say(strict, way, long)
    assert (caught.value.limit, caught.value.tokens > 1_000) == (300, True)
    assert attempts(strict) == server.stats.requests == 0
    cut = guard(chat(), **LIMIT, context_overflow="truncate")
    await say(cut, way, long)
    assert 200 < server.requests[0].prompt_tokens <= 300
    assert all(part in texts(server) for part in ("First.", "tokens cut", "Last."))
    assert decided(cut, "context") == ["truncated"]
    assert attempts(cut) == server.stats.requests == 1


@every_way
@either_provider
async def test_tools_count_and_calls_stay_with_their_results(
    models: dict[str, Make], server: DemoServer, provider: str, way: str
) -> None:
    limit = 300 if provider == "openai" else 1_300  # Anthropic's own prompt for tools counts, too
    model = guard(models[provider](), max_context_tokens=limit + 100, context_reserve_tokens=100)
    await say(model.bind_tools([lookup]), way, [*steps(40), HumanMessage("Well?")])
    (record,) = server.requests
    assert 100 < record.prompt_tokens <= limit
    kept = [f"c{number}" for number in range(40) if f'"c{number}"' in texts(server)]
    assert kept
    assert [texts(server).count(f'"{name}"') for name in kept] == [2] * len(kept)
    many = [lookup.model_copy(update={"name": f"lookup_{number}"}) for number in range(12)]
    with pytest.raises(BrixContextError, match="of them for tools"):
        await say(model.bind_tools(many), way, "Well?")
    assert attempts(model) == server.stats.requests == 1


@every_way
async def test_images_count_and_go_with_their_message(chat: Make, server: DemoServer, way: str) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}}
    seen = HumanMessage([{"type": "text", "text": "What is this?"}, image])
    small = guard(chat(), max_context_tokens=100, context_reserve_tokens=50)
    await say(small, way, [seen, AIMessage("A pixel."), HumanMessage("And now?")])
    assert [message["content"] for message in server.requests[0].body["messages"]] == ["And now?"]
    with pytest.raises(BrixContextError):
        await say(small, way, [seen])
    large = guard(chat(), max_context_tokens=5_000)
    await say(large, way, [seen])
    assert "image_url" in texts(server)
    assert attempts(small, large) == server.stats.requests == 2


async def test_an_agent_goes_on_however_long_it_takes(chat: Make, server: DemoServer) -> None:
    @tool
    def read(page: int) -> str:
        """Reads a page."""
        return f"page {page}: {FILLER}"

    server.script(*(ToolCalls([("read", {"page": page})]) for page in range(15)), Reply("Read."))
    model = guard(chat(), **LIMIT, tool_loop_detection=True, on_loop="raise")
    await run(create_agent(model, [read]), "ainvoke")
    assert longest(server) <= 300
    assert all("What is known about Oslo?" in texts(server, number) for number in range(16))
    assert attempts(model) == server.stats.requests == 16


async def test_auto_is_the_smallest_window_of_the_chain(chat: Make, claude: Make, server: DemoServer) -> None:
    # 128,000 tokens of gpt-4o-mini, 16,385 of gpt-3.5-turbo, 200,000 of Claude
    talk = [HumanMessage("and so on " * 8_000), AIMessage("I see."), HumanMessage("And now?")]
    wide = guard(chat(), fallbacks=[claude()], max_context_tokens="auto", context_reserve_tokens=1_000)
    narrow = guard(
        chat(), fallbacks=[chat(model="gpt-3.5-turbo")], max_context_tokens="auto", context_reserve_tokens=1_000
    )
    await wide.ainvoke(talk)
    assert server.requests[-1].prompt_tokens > 20_000
    await narrow.ainvoke(talk)
    assert server.requests[-1].prompt_tokens < 100
    assert attempts(wide, narrow) == server.stats.requests == 2
    with pytest.raises(BrixConfigurationError, match="nobody-knows-me"):
        guard(chat(model="nobody-knows-me"), max_context_tokens="auto").invoke("Hello")


@every_way
@pytest.mark.parametrize("first", ["openai", "anthropic"])
async def test_what_a_fallback_is_sent_fits_too(
    models: dict[str, Make], server: DemoServer, other: DemoServer, first: str, way: str
) -> None:
    second = "anthropic" if first == "openai" else "openai"
    address = other.anthropic_base_url if second == "anthropic" else other.base_url
    server.default = ServerError()
    spare = models[second](base_url=address)
    limit = {"max_context_tokens": 1_300, "context_reserve_tokens": 100}
    model = guard(models[first](), fallbacks=[spare], tool_loop_detection=True, **limit)
    await say(model, way, long_talk(60))
    loop: list[BaseMessage] = [HumanMessage("What is known about Oslo?")]
    for number in range(3):
        call = {"name": "lookup", "args": {"key": "Oslo"}, "id": f"c{number}"}
        loop += [AIMessage("", tool_calls=[call]), ToolMessage("nothing", tool_call_id=f"c{number}")]
    await say(model.bind_tools([lookup]), way, loop)
    assert len(server.requests[0].body["messages"]) == len(other.requests[0].body["messages"]) + (
        1 if first == "openai" else -1
    )  # Claude's system prompt is no message
    assert 600 < longest(other) <= 1_200
    assert ROUND_AGAIN in texts(other)
    assert (server.stats.requests, other.stats.requests) == (2, 2)
    assert attempts(model) == 4


# --- together ----------------------------------------------------------------------------------------


@every_way
async def test_a_heal_fits_too(chat: Make, server: DemoServer, way: str) -> None:
    model: Any = guard(chat(), **LIMIT, response_schema=City, max_schema_retries=1, stream_mode="validated")
    server.script(Reply("No."), Reply(VALID))
    assert await say(model, way, long_talk()) == OSLO
    assert longest(server) <= 300
    assert [message["content"] for message in server.requests[1].body["messages"]][-3:-1] == ["And now?", "No."]
    server.default = Reply("No.")
    with pytest.raises(BrixSchemaError):
        await say(model, way, long_talk())
    assert attempts(model) == server.stats.requests == 4
