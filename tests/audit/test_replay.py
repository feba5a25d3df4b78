"""Recordings and replays through BRIX.wrap, over the real SDKs: G14, and everything as it was."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from brix_core import BRIX, BrixBudgetError, BrixConfigurationError, BrixReplayError, MemoryStore
from brix_core.audit.log import flush_logs
from brix_core.audit.recordings import read, session_file
from brix_core.client import BrixClient
from brix_core.demo import CutStream, DemoServer, JsonReply, Reply, ServerError, ToolCalls
from brix_core.endpoints.sources import aclose
from tests.support.virtual import VirtualClock

CLIENTS = ("openai.OpenAI", "openai.AsyncOpenAI", "anthropic.Anthropic", "anthropic.AsyncAnthropic")
MODEL = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}

in_loop = pytest.mark.asyncio(loop_scope="module")
every_client = pytest.mark.parametrize("name", CLIENTS)


class City(BaseModel):
    name: str
    population: int


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(demo_server: DemoServer) -> AsyncIterator[dict[str, Any]]:
    made = {}
    for name in CLIENTS:
        package, _, kind = name.partition(".")
        module = openai if package == "openai" else anthropic
        url = demo_server.base_url if package == "openai" else demo_server.anthropic_base_url
        made[name] = getattr(module, kind)(api_key="test", base_url=url)
    yield made
    for client in made.values():
        await aclose(client)


Wrap = Callable[..., BrixClient[Any]]


@pytest.fixture
def wrap(server: DemoServer, clients: dict[str, Any]) -> Wrap:
    def wrapped(name: str, **options: Any) -> BrixClient[Any]:
        options = {"model": MODEL[name.partition(".")[0]], "session_id": "s", **options}
        return BRIX.wrap(clients[name], store=MemoryStore(), **options)

    return wrapped


def as_told(answer: Any) -> tuple[Any, ...]:
    return str(answer), answer.tool_calls, answer.usage, answer.finish_reason, answer.model, answer.raw


@in_loop
@every_client
async def test_answers_come_back_as_they_were_and_nothing_is_sent(
    server: DemoServer, wrap: Wrap, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "calls.jsonl"
    server.script(Reply("One."), ToolCalls([("get_weather", {"city": "Oslo"})]), Reply("Three."))
    tools = [WEATHER] if name.startswith("openai") else [{"name": "get_weather", "input_schema": {"type": "object"}}]
    recorded, replayed = [], []
    for record, client in ((recorded, wrap(name, record=file)), (replayed, None)):
        sent = len(server.requests)
        client = client or wrap(name, replay=file)
        record.append(as_told(await client.complete("First")))
        record.append(as_told(client.complete_sync("Second", tools=tools)))
        record.append(as_told(await client.complete([{"role": "user", "content": "Third"}])))
        assert len(server.requests) - sent == (3 if record is recorded else 0)
    assert replayed == recorded
    trace = client.get_traces()[0]
    assert (trace["outcome"], trace["attempts"], trace["cost_usd"]) == ("ok", [], None)
    assert trace["decisions"][0]["decision"] == "replayed"


@in_loop
@every_client
async def test_streams_come_back_chunk_by_chunk(server: DemoServer, wrap: Wrap, name: str, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    server.script(Reply("A rather long answer in many chunks."), Reply("Another one in chunks."))

    async def read_both(client: BrixClient[Any]) -> list[Any]:
        one, two = client.stream("First"), client.stream("Second")
        pieces = [list(one), [piece async for piece in two]]
        return [*pieces, as_told(one.result), as_told(two.result)]

    recorded = await read_both(wrap(name, record=file))
    sent = len(server.requests)
    assert await read_both(wrap(name, replay=file)) == recorded
    assert len(server.requests) == sent
    assert len(recorded[0]) > 3


@every_client
def test_instances_come_back(server: DemoServer, wrap: Wrap, name: str, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    oslo = City(name="Oslo", population=700_000)
    server.script(Reply("No JSON."), JsonReply(oslo.model_dump()))
    assert wrap(name, record=file, response_schema=City).complete_sync("Oslo?") == oslo
    assert len(read(file)) == 1  # one call, heals included
    assert wrap(name, replay=file, response_schema=City).complete_sync("Oslo?") == oslo

    class Town(BaseModel):
        mayor: str

    with pytest.raises(BrixReplayError, match="other tools or another response format"):
        wrap(name, replay=file, response_schema=Town).complete_sync("Oslo?")


def test_a_prompt_that_was_not_recorded_names_the_first_difference(
    server: DemoServer, wrap: Wrap, tmp_path: Path
) -> None:
    file = tmp_path / "calls.jsonl"
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Oslo?"}]
    wrap("openai.OpenAI", record=file).complete_sync(talk)
    sent = len(server.requests)
    client = wrap("openai.OpenAI", replay=file)
    changed = [talk[0], {"role": "user", "content": "Weather in Bergen?"}]
    with pytest.raises(BrixReplayError) as caught:
        client.complete_sync(changed)
    text = str(caught.value)
    assert "messages[1].content differs from character 11 on" in text
    assert "recorded 'Weather in Oslo?', came 'Weather in Bergen?'" in text
    for messages, what in (
        (talk[:1], r"messages\[1\] is missing"),
        ([*talk, {"role": "user", "content": "More"}], r"messages\[2\] is new"),
        ([talk[0], {"role": "user", "content": "Weather in Oslo?", "name": "ann"}], r"messages\[1\].name differs"),
        ([{**talk[0], "role": "developer"}, talk[1]], r"messages\[0\].role differs"),
    ):
        with pytest.raises(BrixReplayError, match=what):
            client.complete_sync(messages)
    with pytest.raises(BrixReplayError, match="other tools or another response format"):
        client.complete_sync(talk, tools=[WEATHER])
    assert str(client.complete_sync(talk))  # a miss uses nothing up
    with pytest.raises(BrixReplayError, match=r"recorded 1 time\(s\), and is asked once more"):
        client.complete_sync(talk)
    assert len(server.requests) == sent
    assert [trace["outcome"] for trace in client.get_traces()].count("ok") == 1


def test_true_is_not_one(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    """Values that compare equal in Python are other prompts all the same."""
    file = tmp_path / "calls.jsonl"
    wrap("openai.OpenAI", record=file).complete_sync([{"role": "user", "content": "x", "metadata": {"n": 1}}])
    with pytest.raises(BrixReplayError, match="metadata differs"):
        wrap("openai.OpenAI", replay=file).complete_sync([{"role": "user", "content": "x", "metadata": {"n": True}}])


def test_not_strictly_answers_come_in_the_recorded_order(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    server.script(Reply("One."), Reply("Two."))
    client = wrap("openai.OpenAI", record=file)
    client.complete_sync("a")
    client.complete_sync("b")
    client = wrap("openai.OpenAI", replay=file, replay_strict=False)
    assert [client.complete_sync(prompt) for prompt in ("what", "ever")] == ["One.", "Two."]
    with pytest.raises(BrixReplayError, match="all 2 recorded calls have been replayed"):
        client.complete_sync("more")


def test_concurrent_calls_get_their_own_answers(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"

    async def ask(client: BrixClient[Any], order: range) -> dict[int, str]:
        answers = await asyncio.gather(*(client.complete(f"question {n}") for n in order))
        return {n: str(answer) for n, answer in zip(order, answers, strict=True)}

    async def main() -> None:
        async with openai.AsyncOpenAI(api_key="test", base_url=server.base_url) as inner:
            recorded = await ask(BRIX.wrap(inner, model="gpt-4o-mini", record=file), range(50))
            sent = len(server.requests)
            replayed = await ask(BRIX.wrap(inner, model="gpt-4o-mini", replay=file), range(49, -1, -1))
            assert (replayed, len(server.requests)) == (recorded, sent)

    asyncio.run(main())


def test_failures_fail_again(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    server.script(ServerError())
    client = wrap("openai.OpenAI", record=file, max_cost_usd=0.000001)
    with pytest.raises(BrixBudgetError) as refused:
        client.complete_sync("x" * 4_000)
    with pytest.raises(openai.InternalServerError):
        wrap("openai.OpenAI", record=file).complete_sync("fail")
    again = wrap("openai.OpenAI", replay=file)
    with pytest.raises(BrixBudgetError) as replayed:
        again.complete_sync("x" * 4_000)
    assert vars(replayed.value) == vars(refused.value)
    with pytest.raises(BrixReplayError, match="failed with InternalServerError"):
        again.complete_sync("fail")


def read_until_it_breaks(client: BrixClient[Any]) -> tuple[list[str], type[Exception]]:
    pieces: list[str] = []
    try:
        pieces.extend(iter(client.stream("Go on")))
    except Exception as error:
        return pieces, type(error)
    raise AssertionError("it ended well")


def test_a_stream_that_broke_off_breaks_off_again(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    server.script(CutStream())
    recorded, error = read_until_it_breaks(wrap("openai.OpenAI", record=file))
    replayed, again = read_until_it_breaks(wrap("openai.OpenAI", replay=file))
    assert replayed == recorded != []
    assert error is not BrixReplayError
    assert again is BrixReplayError


def test_chunks_come_at_their_pace_when_asked_to(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    server.script(Reply("Slowly, word by word.", chunk_delay=0.02))
    pieces = list(wrap("openai.OpenAI", record=file).stream("Go"))
    clock = VirtualClock()
    began, ended = clock.now(), None

    def run() -> None:
        nonlocal ended
        assert list(wrap("openai.OpenAI", replay=file, replay_timing=True, clock=clock).stream("Go")) == pieces
        ended = clock.now()

    clock.run_threads([run])
    assert ended is not None
    assert ended - began >= 0.02 * (len(pieces) - 2)


def test_a_file_grows_with_what_is_said_and_not_with_its_square(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    client = wrap("openai.OpenAI", record=file)
    talk: list[dict[str, Any]] = []
    sizes = []
    for number in range(60):
        talk.append({"role": "user", "content": f"{number}: " + "a question " * 20})
        talk.append({"role": "assistant", "content": str(client.complete_sync(talk))})
        sizes.append(file.stat().st_size)
    growth = [after - before for before, after in itertools.pairwise(sizes)]
    assert max(growth[-5:]) < 1.2 * max(growth[:5])
    records = read(file)
    assert [len(record.messages) for record in records] == list(range(1, 120, 2))
    assert records[-1].messages == talk[:-1]
    again = wrap("openai.OpenAI", replay=file)
    assert all(str(again.complete_sync(talk[:n])) == talk[n]["content"] for n in range(1, 120, 2))


def test_messages_that_are_changed_while_the_answer_comes(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    talk = [{"role": "user", "content": "Hello"}]
    stream = wrap("openai.OpenAI", record=file).stream(talk)
    next(stream)
    talk[0]["content"] = "changed"
    list(stream)
    assert read(file)[0].messages == [{"role": "user", "content": "Hello"}]


def test_a_session_is_recorded_beside_its_log_and_replayed_by_its_id(
    server: DemoServer, wrap: Wrap, tmp_path: Path
) -> None:
    client = wrap("openai.OpenAI", log_path=tmp_path, session_id="user/42", response_schema=City)
    server.script(JsonReply({"name": "Oslo", "population": 1}), JsonReply({"name": "Bergen", "population": 2}))
    client.complete_sync("one")
    client.complete_sync("two")
    flush_logs()
    replay = BRIX.replay("user/42", tmp_path, City)
    assert (replay.session_id, replay.total_calls, replay.calls_remaining) == ("user/42", 2, 2)
    assert replay.complete_sync() == City(name="Oslo", population=1)
    assert asyncio.run(replay.acomplete("two")) == City(name="Bergen", population=2)
    assert replay.calls_remaining == 0
    with pytest.raises(BrixReplayError, match="all 2 recorded calls"):
        asyncio.run(replay.complete())
    assert json.loads(BRIX.replay("user/42", tmp_path).complete_sync()) == {"name": "Oslo", "population": 1}
    with pytest.raises(BrixReplayError, match="no recording"):
        BRIX.replay("another", tmp_path)
    other = wrap("openai.OpenAI", replay=tmp_path, session_id="user/42", response_schema=City)
    assert other.complete_sync("two") == City(name="Bergen", population=2)


def test_sessions_of_one_client_have_files_of_their_own(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    import brix_core

    client = wrap("openai.OpenAI", log_path=tmp_path)
    for name in ("ann", "ben", "../../etc", "x" * 400):
        with brix_core.session(name):
            client.complete_sync(f"I am {name}")
    flush_logs()
    for name in ("ann", "ben", "../../etc", "x" * 400):
        (record,) = read(session_file(tmp_path, name))
        assert (record.session_id, record.messages[0]["content"]) == (name, f"I am {name}")
    assert len(list(tmp_path.glob(".brix_sessions/*.jsonl"))) == 4


def test_files_of_many_calls_are_set_aside(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    client = wrap("openai.OpenAI", log_path=tmp_path, max_session_records=3)
    for number in range(8):
        client.complete_sync(f"question {number}")
    flush_logs()
    files = sorted(file.name for file in (tmp_path / ".brix_sessions").iterdir())
    assert files == ["s.1.jsonl", "s.2.jsonl", "s.jsonl"]
    replay = BRIX.replay("s", tmp_path)
    assert replay.total_calls == 8
    assert [replay.complete_sync(f"question {number}") for number in range(8)]


def test_old_sessions_are_purged_and_others_are_not(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    import os

    for name in ("old", "new"):
        wrap("openai.OpenAI", log_path=tmp_path, session_id=name).complete_sync("hello")
    flush_logs()
    past = time.time() - 8 * 86_400
    os.utime(session_file(tmp_path, "old"), (past, past))
    assert BRIX.purge_sessions(tmp_path, older_than_days=7) == 1
    assert BRIX.replay("new", tmp_path).total_calls == 1
    with pytest.raises(BrixReplayError):
        BRIX.replay("old", tmp_path)
    with pytest.raises(BrixConfigurationError, match="older_than_days"):
        BRIX.purge_sessions(tmp_path, older_than_days=-1)


def test_bad_input(tmp_path: Path, server: DemoServer, wrap: Wrap) -> None:
    (tmp_path / "no.jsonl").write_text('{"some": "other file"}\n')
    with pytest.raises(BrixConfigurationError, match="there is no recording"):
        wrap("openai.OpenAI", replay=tmp_path / "nothing.jsonl")
    with pytest.raises(BrixReplayError, match="no record of a call"):
        wrap("openai.OpenAI", replay=tmp_path / "no.jsonl").complete_sync("x")
    with pytest.raises(BrixConfigurationError, match="is a folder"):
        wrap("openai.OpenAI", record=tmp_path)
    with pytest.raises(BrixConfigurationError, match="record=True needs log_path"):
        wrap("openai.OpenAI", record=True)
    with pytest.raises(BrixConfigurationError, match="max_session_records has no effect"):
        wrap("openai.OpenAI", max_session_records=3)
    with pytest.raises(BrixConfigurationError, match="the replay guard is not active"):
        wrap("openai.OpenAI", replay_strict=False)
    assert not server.requests


def test_a_torn_last_line_is_left_out(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    wrap("openai.OpenAI", record=file).complete_sync("one")
    with file.open("ab") as torn:
        torn.write(b'{"format":1,"run')
    wrap("openai.OpenAI", record=file).complete_sync("two")
    assert [record.messages[0]["content"] for record in read(file)] == ["one", "two"]


def test_secrets_are_not_recorded(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    wrap("openai.OpenAI", record=file).complete_sync("my key is sk-proj-abcdefghijklmnop123456, keep it")
    assert "sk-proj" not in file.read_text()
    assert wrap("openai.OpenAI", replay=file).complete_sync("my key is sk-proj-abcdefghijklmnop123456, keep it")


def test_nothing_is_recorded_when_told_so(server: DemoServer, wrap: Wrap, tmp_path: Path) -> None:
    wrap("openai.OpenAI", log_path=tmp_path, record=False).complete_sync("hello")
    flush_logs()
    assert not (tmp_path / ".brix_sessions").exists()
    assert (tmp_path / "brix_audit.jsonl").exists()
