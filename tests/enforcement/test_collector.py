"""Datasets of what was enforced: nothing lost, nothing twice, every format read back by what reads it."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from brix_core import BrixConfigurationError, MemoryStore
from brix_core.demo import DemoServer, JsonReply, Reply
from brix_core.enforcement import EnforcementEngine, OpenAIAdapter, PydanticValidator
from brix_core.enforcement.training.collector import DatasetCollector
from brix_core.enforcement.training.examples import Example


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def adapter(server: DemoServer) -> Iterator[OpenAIAdapter]:
    made = OpenAIAdapter(api_key="test", model="gpt-4o-mini", base_url=server.base_url)
    yield made
    made.close()


def collected(adapter: OpenAIAdapter, server: DemoServer, collector: DatasetCollector, people: int) -> None:
    engine = EnforcementEngine(adapter, PydanticValidator(), collector=collector, store=MemoryStore())
    for number in range(people):
        server.script(JsonReply({"name": f"Person {number}", "age": number}))
        assert engine.enforce_sync(f"Who is number {number}?", Person).success


def test_successes_are_collected_as_they_come_and_failures_are_not(
    adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path
) -> None:
    collector = DatasetCollector(output_dir=tmp_path)
    engine = EnforcementEngine(adapter, PydanticValidator(), max_retries=1, collector=collector, store=MemoryStore())
    server.script(Reply("no JSON"), JsonReply({"name": "Ann", "age": 30}), Reply("never"), Reply("never"))
    assert asyncio.run(engine.enforce("Who is Ann?", Person)).success
    assert len(collector) == 1
    assert not asyncio.run(engine.enforce("Who is Ben?", Person)).success
    (example,) = collector.examples()
    assert (example.prompt, example.schema, example.output) == ("Who is Ann?", "Person", {"name": "Ann", "age": 30})
    assert (example.model, example.provider, example.retry_count) == ("gpt-4o-mini", "openai", 1)
    assert example.json_schema == Person.model_json_schema()


def test_every_format_is_read_back(adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path) -> None:
    collector = DatasetCollector(output_dir=tmp_path)
    server.script(JsonReply({"name": 'Åse "A", \n; =1+1', "age": 1}))
    engine = EnforcementEngine(adapter, PydanticValidator(), collector=collector, store=MemoryStore())
    engine.enforce_sync("Line one\nline two, with a comma", Person)
    collected(adapter, server, collector, 4)
    examples = list(collector.examples())
    jsonl = collector.export_to_jsonl("dataset.jsonl")
    assert jsonl == tmp_path / "dataset.jsonl"
    assert [Example.read(json.loads(line)) for line in jsonl.read_text().splitlines()] == examples
    assert [Example.read(one) for one in json.loads(collector.export_to_json("all.json").read_text())] == examples
    with collector.export_to_csv("table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [example.prompt for example in examples]
    assert [json.loads(row["output"]) for row in rows] == [example.output for example in examples]
    chat = [
        json.loads(line) for line in collector.export_to_chat("chat.jsonl", system="Extract.").read_text().splitlines()
    ]
    assert [turn["role"] for turn in chat[0]["messages"]] == ["system", "user", "assistant"]
    assert [json.loads(one["messages"][-1]["content"]) for one in chat] == [example.output for example in examples]


def test_a_prompt_is_in_one_part_of_the_data_for_ever(tmp_path: Path) -> None:
    examples = [
        Example(id=str(number), prompt=f"prompt {number}", schema="s", json_schema={}, output=number)
        for number in range(10_000)
    ]
    parts = Counter(example.split((0.8, 0.1, 0.1)) for example in examples)
    assert abs(parts["train"] - 8_000) < 150
    assert abs(parts["val"] - 1_000) < 100
    # Kept: another division of these would mix what was trained on with what it is tested by.
    assert [example.split((0.4, 0.3, 0.3)) for example in examples[:12]] == GOLDEN
    assert examples[0].split((0, 0, 1)) == "test"
    assert Counter(example.split((0.8, 0.1, 0.1), "other") for example in examples) != parts


GOLDEN = ["val", "train", "train", "val", "train", "train", "val", "test", "test", "train", "val", "test"]


def test_parts_and_filters_of_an_export(adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path) -> None:
    collector = DatasetCollector(output_dir=tmp_path, split=(0.5, 0.25, 0.25))
    collected(adapter, server, collector, 30)
    files = collector.export_splits("parts")
    lines = {part: file.read_text().splitlines() for part, file in files.items()}
    assert sum(map(len, lines.values())) == 30
    assert all(len(found) >= 2 for found in lines.values())
    old = collector.export_to_jsonl("old.jsonl", filters=[lambda example: example.output["age"] > 20])
    assert len(old.read_text().splitlines()) == 9
    with pytest.raises(BrixConfigurationError, match="split"):
        collector.export_to_jsonl("x.jsonl", split="training")


def test_equal_examples_are_kept_once_also_after_a_restart(
    adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path
) -> None:
    for _ in range(2):
        collected(adapter, server, DatasetCollector(output_dir=tmp_path), 3)
    assert len(DatasetCollector(output_dir=tmp_path)) == 3
    everything = DatasetCollector(output_dir=tmp_path, version="all", deduplicate=False)
    collected(adapter, server, everything, 3)
    collected(adapter, server, everything, 3)
    assert len(everything) == 6
    assert everything.versions() == ["all", "v1"]
    assert len(list(everything.examples(version="v1"))) == 3


def test_what_is_filtered_or_redacted_is_never_written(
    adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path
) -> None:
    def redact(fields: dict[str, Any]) -> dict[str, Any] | None:
        if fields["output"]["age"] == 2:
            return None
        return {**fields, "prompt": "[prompt]", "output": {**fields["output"], "name": "[name]"}}

    collector = DatasetCollector(
        output_dir=tmp_path, redact=redact, filters=[lambda example: example.output["age"] != 1]
    )
    collected(adapter, server, collector, 4)
    text = (tmp_path / "v1.examples.jsonl").read_text()
    assert [example.output["age"] for example in collector.examples()] == [0, 3]
    assert "Person 0" not in text
    assert "number" not in text
    secret = DatasetCollector(output_dir=tmp_path, version="secrets")
    engine = EnforcementEngine(adapter, PydanticValidator(), collector=secret, store=MemoryStore())
    server.script(JsonReply({"name": "x", "age": 1}))
    engine.enforce_sync("My key is sk-proj-abcdefghijklmnop123456.", Person)
    assert "sk-proj" not in (tmp_path / "secrets.examples.jsonl").read_text()


CHILD = """
    import os, sys
    from brix_core.enforcement import EnforcedOutput, GenerationResponse, ValidationResult
    from brix_core.enforcement.training.collector import DatasetCollector
    collector = DatasetCollector(output_dir=sys.argv[1], deduplicate=False)
    generation = GenerationResponse(output="{}", provider="p", model="m")
    output = EnforcedOutput(
        data={"text": "x" * 500}, success=True, generation=generation, validation=ValidationResult(status="valid")
    )
    number = 0
    os.write(1, b"r")
    while True:
        collector.collect(prompt=f"{os.getpid()} {number}", schema={"type": "object"}, output=output)
        os.write(1, b".")
        number += 1
"""


def test_a_killed_process_loses_nothing_but_the_line_it_is_writing(tmp_path: Path) -> None:
    dice, acknowledged = random.Random(3), 0
    for _ in range(6):
        children = [
            subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)], stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for child in children:
            assert child.stdout is not None
            child.stdout.read(1)
        time.sleep(dice.uniform(0.0, 0.05))
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
            assert child.stdout is not None
            acknowledged += len(child.stdout.read())
            child.stdout.close()
            child.wait()
    examples = list(DatasetCollector(output_dir=tmp_path, deduplicate=False).examples())
    assert acknowledged <= len(examples) <= acknowledged + 12
    assert len({example.prompt for example in examples}) == len(examples)
    with (tmp_path / "v1.examples.jsonl").open("ab") as torn:
        torn.write(b'{"id":"torn')
    assert len(list(DatasetCollector(output_dir=tmp_path, deduplicate=False).examples())) == len(examples)


def test_a_collector_that_fails_does_not_cost_the_answer(
    adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path
) -> None:
    collector = DatasetCollector(output_dir=tmp_path, filters=[lambda example: 1 / 0 > 0])
    engine = EnforcementEngine(adapter, PydanticValidator(), collector=collector, store=MemoryStore())
    server.script(JsonReply({"name": "Ann", "age": 30}))
    assert engine.enforce_sync("Who?", Person).data == Person(name="Ann", age=30)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"output_dir": ""}, "output_dir"),
        ({"output_dir": 3}, "output_dir"),
        ({"version": "../up"}, "version"),
        ({"version": ""}, "version"),
        ({"split": (1, 2)}, "split"),
        ({"split": (0, 0, 0)}, "split"),
        ({"split": (-1, 1, 1)}, "share"),
        ({"split": (8, 1, 1)}, "share"),
        ({"split": (0.8, 0.1, 0.2)}, "sum 1"),
        ({"split": (0.8, 0.1, 0.1 + 1e-8)}, "sum 1"),
        ({"split": ("a", 0, 1)}, "share"),
        ({"split": 5}, "split"),
        ({"filters": [5]}, "filters"),
        ({"filters": 5}, "filters"),
        ({"filters": "x"}, "filters"),
        ({"filters": len}, "filters"),
        ({"redact": "x"}, "redact"),
        ({"deduplicate": "yes"}, "deduplicate"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(BrixConfigurationError, match=says):
        DatasetCollector(**{"output_dir": tmp_path, **arguments})


TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Extract people."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Whom?"},
    {"role": "user", "content": [{"type": "text", "text": "Ann, 30"}]},
]
ANN = {"name": "Ann", "age": 30}


def chats(collector: DatasetCollector, **how: Any) -> list[list[dict[str, Any]]]:
    lines = collector.export_to_chat("chat.jsonl", **how).read_text().splitlines()
    return [json.loads(line)["messages"] for line in lines]


@pytest.mark.parametrize("way", ["enforce", "sync", "batch", "stream"])
async def test_examples_keep_what_was_sent(
    adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path, way: str
) -> None:
    collector = DatasetCollector(output_dir=tmp_path)
    engine = EnforcementEngine(adapter, PydanticValidator(), collector=collector, store=MemoryStore())
    server.default = JsonReply(ANN)
    asked: list[tuple[Any, dict[str, Any]]] = [("x", {}), ("x", {"system": "SYSTEM"}), (iter(TALK), {}), (TALK[1:], {})]
    for prompt, params in asked:
        if way == "enforce":
            await engine.enforce(prompt, Person, **params)
        elif way == "sync":
            await asyncio.to_thread(engine.enforce_sync, prompt, Person, **params)
        elif way == "batch":
            await engine.enforce_batch([prompt], Person, **params)
        else:
            assert [item async for item in engine.enforce_stream(prompt, Person, **params)]
    user = {"role": "user", "content": "x"}
    examples = list(collector.examples())
    sent = [record.body["messages"] for record in server.requests]
    assert [example.messages for example in examples] == sent
    assert sent == [[user], [{"role": "system", "content": "SYSTEM"}, user], TALK, TALK[1:]]
    assert [example.prompt for example in examples] == ["x", "x", "Hello\nAnn, 30", "Hello\nAnn, 30"]
    assert len({example.id for example in examples}) == 4
    answer = {"role": "assistant", "content": json.dumps(ANN)}
    assert chats(collector) == [[*messages, answer] for messages in sent]
    general = {"role": "system", "content": "General."}
    assert [talk[0] for talk in chats(collector, system="General.")] == [
        general, {"role": "system", "content": "SYSTEM"}, TALK[0], general,
    ]  # fmt: skip
    with collector.export_to_csv("table.csv").open(newline="") as file:
        assert [json.loads(row["messages"]) for row in csv.DictReader(file)] == sent


def test_a_message_changed_later_is_kept_as_it_was_sent(
    adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path
) -> None:
    collector = DatasetCollector(output_dir=tmp_path, filters=[lambda example: example.prompt == "first"])
    engine = EnforcementEngine(adapter, PydanticValidator(), collector=collector, store=MemoryStore())
    server.default = JsonReply(ANN)
    message = {"role": "user", "content": "first"}
    stream = engine.enforce_stream([message], Person)
    for item in stream:
        message["content"] = f"changed after {item!r}"
    assert stream.result.success
    assert [example.prompt for example in collector.examples()] == ["first"]


def test_parts_depend_on_all_messages() -> None:
    def part(system: str | None) -> str:
        turns = [{"role": "user", "content": "x"}]
        messages = turns if system is None else [{"role": "system", "content": system}, *turns]
        example = Example(id="", prompt="x", schema="s", json_schema={}, output=1, messages=messages)
        return example.split((0.4, 0.3, 0.3))

    assert part(None) == Example(id="", prompt="x", schema="s", json_schema={}, output=1).split((0.4, 0.3, 0.3))
    assert {part(str(number)) for number in range(30)} == {"train", "val", "test"}


def test_lines_without_messages_are_read(adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path) -> None:
    collected(adapter, server, DatasetCollector(output_dir=tmp_path), 1)
    file = tmp_path / "v1.examples.jsonl"
    fields = json.loads(file.read_text())
    expected = list(DatasetCollector(output_dir=tmp_path).examples())
    del fields["messages"]
    file.write_text(json.dumps(fields) + "\n" + json.dumps({**fields, "id": "x", "messages": [5]}) + "\n")
    assert list(DatasetCollector(output_dir=tmp_path).examples()) == expected


@pytest.mark.parametrize(
    ("redact", "messages", "prompt"),
    [
        (lambda fields: {**fields, "prompt": "[gone]"}, [{"role": "user", "content": "[gone]"}], "[gone]"),
        (
            lambda fields: {**fields, "messages": [{"role": "user", "content": "[gone]"}]},
            [{"role": "user", "content": "[gone]"}],
            "[gone]",
        ),
        (lambda fields: fields["messages"][0].update(content="Be kind.") or fields, None, "secret"),
    ],
    ids=["prompt", "messages", "in place"],
)
def test_what_is_taken_out_of_one_is_in_neither(
    adapter: OpenAIAdapter, server: DemoServer, tmp_path: Path, redact: Any, messages: Any, prompt: str
) -> None:
    collector = DatasetCollector(output_dir=tmp_path, redact=redact)
    engine = EnforcementEngine(adapter, PydanticValidator(), collector=collector, store=MemoryStore())
    server.default = JsonReply(ANN)
    engine.enforce_sync("secret", Person, system="secret too")
    [example] = collector.examples()
    kept = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "secret"}]
    assert (example.messages, example.prompt) == (messages or kept, prompt)
    assert "secret too" not in (tmp_path / "v1.examples.jsonl").read_text()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda fields: "text", "a dict, or None to drop it, got str"),
        (lambda fields: [fields], "a dict, or None to drop it, got list"),
        (lambda fields: {"prompt": "x"}, "missing"),
        (lambda fields: {**fields, "more": 1}, "more"),
        (lambda fields: {**fields, "prompt": None}, "prompt must be a str"),
        (lambda fields: {**fields, "messages": "x"}, "messages must be a list of dicts"),
        (lambda fields: {**fields, "output": {1, 2}}, "not JSON serializable"),
    ],
    ids=["text", "list", "few", "more", "prompt", "messages", "no JSON"],
)
def test_a_redact_hook_that_is_wrong_is_told_once(
    adapter: OpenAIAdapter,
    server: DemoServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wrong: Any,
    said: str,
) -> None:
    collector = DatasetCollector(output_dir=tmp_path, redact=wrong)
    collected(adapter, server, collector, 3)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "redact must return" in record.getMessage()
    assert said in record.getMessage()
    assert len(collector) == 0


def test_an_export_does_not_replace_the_dataset(tmp_path: Path) -> None:
    with pytest.raises(BrixConfigurationError, match="another name"):
        DatasetCollector(output_dir=tmp_path).export_to_jsonl("v1.examples.jsonl")
