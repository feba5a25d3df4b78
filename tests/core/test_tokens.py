"""Counts are exact for OpenAI's models, never too low by table for others, cached, bounded and offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core import tokens
from brix_core.token_ranks import _SPECS, load_encoding
from brix_core.tokens import (
    Tokenizer,
    bare_model_name,
    count_message,
    count_messages,
    count_tools,
    tokenizer_for,
)

GPT = tokenizer_for("gpt-4o")
TEXTS = [
    "",
    "hello world",
    "<|endoftext|> <|fim_prefix|>",
    "def f(x):\n    return x",
    "人工智能",
    "🎉 été",
    "\ud800x",
]


@pytest.fixture(scope="module")
def reference() -> dict[str, tiktoken.Encoding]:
    """tiktoken's own encodings, from the copy inside llama-index-core."""
    import llama_index  # type: ignore[import-untyped]

    folder = next(iter(Path(entry, "core/_static/tiktoken_cache") for entry in llama_index.__path__))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return {name: tiktoken.get_encoding(name) for name in _SPECS}


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", "o200k_base"),
        ("openai/gpt-4o-2024-08-06", "o200k_base"),
        ("azure/gpt-4.1-mini", "o200k_base"),
        ("ft:gpt-4o-mini:org::id", "o200k_base"),
        ("gpt-5.4", "o200k_base"),
        ("gpt-7", "o200k_base"),
        ("o5", "o200k_base"),
        ("o3-mini-2025-01-31", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("openai.gpt-oss-120b-1:0", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-4-turbo-2024-04-09", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
    ],
)
def test_openai_models_are_counted_exactly(model: str, encoding: str, reference: dict[str, tiktoken.Encoding]) -> None:
    tokenizer = tokenizer_for(model)

    assert (tokenizer.encoding, tokenizer.exact, tokenizer.headroom) == (encoding, True, 1.0)
    for text in TEXTS:
        assert tokenizer.count(text) == len(reference[encoding].encode_ordinary(text))


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_is_counted_exactly(text: str, reference: dict[str, tiktoken.Encoding]) -> None:
    assert GPT.count(text) == len(reference["o200k_base"].encode_ordinary(text))


def test_expressions_are_those_of_tiktoken(reference: dict[str, tiktoken.Encoding]) -> None:
    for name, encoding in reference.items():
        assert _SPECS[name].pattern == encoding._pat_str


@pytest.mark.parametrize(
    ("model", "headroom"),
    [
        ("claude-sonnet-4-20250514", 1.4),
        ("claude-sonnet-4-5", 1.4),
        ("claude-haiku-4-5-20251001", 1.4),
        ("us.anthropic.claude-opus-4-8-v1:0", 2.0),
        ("claude-opus-4-10", 2.0),
        ("anthropic/claude-sonnet-5", 2.0),
        ("claude-fable-5", 2.0),
        ("gemini-2.5-pro", 1.25),
        ("llama3.1:8b", 1.2),
        ("my-model", 1.5),
        ("demo-model", 1.5),
        ("adagio", 1.5),
        ("o1x", 1.5),
        ("", 1.5),
        ("text-davinci-003", 2.0),
    ],
)
def test_other_models_get_headroom(model: str, headroom: float) -> None:
    tokenizer = tokenizer_for(model)

    assert (tokenizer.headroom, tokenizer.exact, tokenizer.encoding) == (headroom, False, "o200k_base")
    text = "The quick brown fox jumps over the lazy dog. " * 10
    assert tokenizer.count(text) == -(-GPT.count(text) * round(headroom * 100) // 100)
    assert tokenizer.count("") == 0


def test_scripts_and_digits_that_others_split_are_surcharged() -> None:
    assert tokenizer_for("claude-sonnet-4-5").count("人工智能") >= 1.4 * GPT.count("人工智能") + 2
    assert tokenizer_for("gemini-2.5-pro").count("123456789" * 20) >= 180, "every digit is a token there"


def test_models_that_count_alike_share_one_tokenizer_and_its_cache() -> None:
    assert tokenizer_for("gpt-4o") is tokenizer_for("openai/gpt-5") is tokenizer_for("ft:gpt-4o-mini:a::b")
    assert tokenizer_for("gemini-1.5-pro") is tokenizer_for("gemini-3-pro-preview")


def test_count_many_is_the_sum() -> None:
    for model in ("gpt-4o", "gpt-4", "claude-opus-5"):
        tokenizer = tokenizer_for(model)
        assert tokenizer.count_many(TEXTS) == sum(map(tokenizer.count, TEXTS))


@pytest.mark.parametrize("text", [" " * 1_200_000, "a" * 450_000, "word and 12 more, " * 40_000])
def test_long_texts_neither_panic_nor_lose_exactness(text: str, reference: dict[str, tiktoken.Encoding]) -> None:
    tokens_counted = GPT.count(text)

    if text.startswith("word"):
        assert tokens_counted == len(reference["o200k_base"].encode_ordinary(text))
    assert len(text) // 160 < tokens_counted < len(text)


def test_cache_is_bounded_in_entries_and_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MAX_CACHED_CHARS", 5_000)
    monkeypatch.setattr(tokens, "_MAX_CACHED_ENTRIES", 100)
    tokenizer = Tokenizer("o200k_base")
    cache = tokenizer._counts
    for index in range(2_000):
        text = f"text number {index} " * (index % 20 + 1)
        assert tokenizer.count(text) == GPT.count(text)
        assert len(cache) <= 100
        assert len(cache._old) <= 100
        assert sum(map(len, cache)) + sum(map(len, cache._old)) <= 10_000
    too_long = "x" * 5_001
    tokenizer.count(too_long)
    assert too_long not in cache


def test_cache_keeps_what_is_used_across_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MAX_CACHED_ENTRIES", 10)
    tokenizer = Tokenizer("o200k_base")
    measured: list[str] = []
    measure = tokenizer._counts._count
    tokenizer._counts._count = lambda text: (measured.append(text), measure(text))[1]
    for index in range(100):
        tokenizer.count("system prompt")
        tokenizer.count(f"turn {index}")

    assert measured.count("system prompt") == 1


def test_threads_agree_and_load_once() -> None:
    tokenizer = Tokenizer("cl100k_base")
    texts = [f"message {index} of the conversation" for index in range(400)]
    expected = sum(map(tokenizer_for("gpt-4").count, texts))
    barrier, results = threading.Barrier(8), list[int]()

    def work() -> None:
        barrier.wait()
        results.append(tokenizer.count_many(texts))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [expected] * 8


_OFFLINE = """
import os, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from brix_core.tokens import count_messages, tokenizer_for
import brix_core.prices, brix_core.model_limits

heavy = {"tiktoken", "genai_prices", "llama_index", "regex", "requests", "httpx", "langchain_core"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
environment = dict(os.environ)
tokenizer = tokenizer_for("gpt-4o")
assert "tiktoken" not in sys.modules
assert tokenizer.exact and tokenizer.count("hello world") == 2
assert not any(name.partition(".")[0] == "llama_index" for name in sys.modules)
assert os.environ == environment
print("ok")
"""


@pytest.mark.parametrize("cache", [None, "", "empty"])
def test_importing_is_light_and_counting_needs_no_network(cache: str | None, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "TIKTOKEN_CACHE_DIR"} | {"TMPDIR": str(tmp_path)}
    if cache is not None:
        env["TIKTOKEN_CACHE_DIR"] = str(tmp_path) if cache else ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _OFFLINE],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.strip() == "ok", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_encoding_the_application_has_loaded_is_shared(reference: dict[str, tiktoken.Encoding]) -> None:
    from brix_core.token_ranks import _load

    count = _load("o200k_base")
    assert count is not None
    assert reference["o200k_base"] in [
        getattr(cell.cell_contents, "__self__", None) for cell in count.__closure__ or ()
    ]
    assert load_encoding("o200k_base") is load_encoding("o200k_base")


def test_bare_model_name_strips_prefixes() -> None:
    assert bare_model_name(" OpenRouter/OpenAI/GPT-4o ") == "gpt-4o"


# Messages


def test_messages_follow_the_cookbook() -> None:
    # The example of OpenAI's cookbook, "How to count tokens with tiktoken": 124 tokens billed by gpt-4o.
    system = {"role": "system"}
    messages = [
        {
            **system,
            "content": "You are a helpful, pattern-following assistant that translates corporate jargon into "
            "plain English.",
        },
        {**system, "name": "example_user", "content": "New synergies will help drive top-line growth."},
        {
            **system,
            "name": "example_assistant",
            "content": "Things working well together will increase revenue.",
        },
        {
            **system,
            "name": "example_user",
            "content": "Let's circle back when we have more bandwidth to touch base on opportunities for "
            "increased leverage.",
        },
        {
            **system,
            "name": "example_assistant",
            "content": "Let's talk later when we're less busy about how to do better.",
        },
        {
            "role": "user",
            "content": "This late pivot means we don't have time to boil the ocean for the client deliverable.",
        },
    ]

    assert count_messages(messages, GPT, "gpt-4o") == 124


def test_parts_count_like_the_text_they_hold() -> None:
    text = {"role": "user", "content": "what is this?"}
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "what is"}, {"type": "input_text", "text": " this?"}],
    }

    assert count_message(parts, GPT) == count_message(text, GPT)


@pytest.mark.parametrize(
    ("model", "detail", "expected"),
    [
        ("gpt-4o", "high", 1_445),
        ("gpt-4o", "low", 85),
        ("gpt-4o-mini", "high", 48_169),
        ("gpt-4.1-mini", "low", 2_489),
        ("o3", None, 1_275),
        ("gpt-5", None, 1_190),
        ("claude-sonnet-4-5", None, 1_640),
        ("claude-opus-5", None, 4_784),
        ("my-model", None, 6_500),
    ],
)
def test_images_cost_their_rule_and_never_their_base64(model: str, detail: str | None, expected: int) -> None:
    url = "data:image/png;base64," + "iVBORw0KGgo" * 50_000
    image: dict[str, Any] = {
        "type": "image_url",
        "image_url": {"url": url} | ({"detail": detail} if detail else {}),
    }
    bare = count_message({"role": "user", "content": []}, GPT)

    assert count_message({"role": "user", "content": [image]}, GPT, model=model) - bare == expected
    if detail is None:
        anthropic = {"type": "image", "source": {"type": "base64", "data": url}}
        assert count_message({"role": "user", "content": [anthropic]}, GPT, model=model) - bare == expected


def test_audio_and_files_are_counted_by_size() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "wav"}}
    assert 9_600 <= count_message({"role": "user", "content": [audio]}, GPT) <= 9_700
    pdf = {"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 400_000}}
    assert count_message({"role": "user", "content": [pdf]}, GPT) >= 300_000
    by_id = {"type": "file", "file": {"file_id": "file-1"}}
    assert count_message({"role": "user", "content": [by_id]}, GPT) >= 50_000


def test_tool_calls_count_name_arguments_and_id() -> None:
    arguments = {"city": "Oslo", "days": 3}
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps(arguments)},
    }
    as_text = count_message({"role": "assistant", "content": None, "tool_calls": [call]}, GPT)
    least = 3 + GPT.count("assistant") + GPT.count("weather") + GPT.count(json.dumps(arguments))
    call["function"] = {"name": "weather", "arguments": arguments}
    as_dict = count_message({"role": "assistant", "content": None, "tool_calls": [call]}, GPT)

    assert as_text > least
    assert abs(as_text - as_dict) < 5
    flat = {"name": "weather", "args": arguments, "id": "call_1", "type": "tool_call"}
    assert count_message({"role": "assistant", "tool_calls": [flat]}, GPT) == as_dict
    result = {"role": "tool", "tool_call_id": "call_1", "content": "7 degrees"}
    assert count_message(result, GPT) == 3 + GPT.count("tool") + len("call_1") + GPT.count("7 degrees")
    assert count_message({"role": "assistant", "refusal": "I can not do that"}, GPT) > 6


def _cookbook_tool_tokens(tools: list[dict[str, Any]]) -> int:
    """OpenAI's cookbook for gpt-4o: the figure billed, within a token or two."""
    total = 12
    for tool in tools:
        function = tool["function"]
        total += 7 + GPT.count(f"{function['name']}:{function['description'].rstrip('.')}")
        properties = function["parameters"]["properties"]
        total += 3 if properties else 0
        for key, value in properties.items():
            total += 3 + GPT.count(f"{key}:{value['type']}:{value['description'].rstrip('.')}")
            if "enum" in value:
                total += -3 + sum(3 + GPT.count(item) for item in value["enum"])
    return total


@pytest.mark.parametrize("number", [1, 3, 20])
@pytest.mark.parametrize("width", [0, 1, 6])
def test_tools_are_never_below_the_cookbooks_figure(number: int, width: int) -> None:
    fields = {f"p{i}": {"type": "string", "description": "a", "enum": ["x", "y", "z"]} for i in range(width)}
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": fields}}
    tools = [{"type": "function", "function": function}] * number

    assert count_tools(tools, GPT, model="gpt-4o") >= _cookbook_tool_tokens(tools)


def test_anthropics_hidden_tool_prompt_is_counted() -> None:
    claude, tools = tokenizer_for("claude-sonnet-4-5"), [{"name": "f", "input_schema": {}}]
    assert count_tools(tools, claude, model="claude-sonnet-4-5") == count_tools(tools, claude) > 850
    gemini = tokenizer_for("gemini-2.5-pro")
    assert count_tools(tools, gemini, model="gemini-2.5-pro") < 100
    assert count_tools([], gemini) == count_tools(None, gemini) == 0


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    value["self"] = value
    return value


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "odd",
    [None, 0, 12.5, True, b"\xff" * 10, bytearray(4), [], {}, {"a": {"b": [1, None]}}, [None, 3, b"x", ["y"]],
     {1: {2, 3}}, {(1, 2): 3}, _Broken(), [_Broken()], 10**6000, float("nan"), object(), "\udfff",
     [{"type": None}], [{"type": "text", "text": None}], [{"type": "image_url", "image_url": None}],
     [{"type": "file", "file": 7}], [{"type": "tool_use", "input": None}],
     [{"type": "tool_result", "content": None}]],
    ids=lambda odd: type(odd).__name__,
)  # fmt: skip
def test_odd_values_are_counted_and_never_raise(odd: object) -> None:
    for message in (
        {"role": "user", "content": odd},
        {"role": odd, "content": "x"},
        {"role": "user", "content": "x", "name": odd, "tool_calls": odd, "tool_call_id": odd, "extra": odd},
        {"role": "user", "content": [odd, {"type": "tool_result", "content": odd}]},
        odd,
    ):
        assert count_message(message, GPT) >= 3  # type: ignore[arg-type]
    assert count_tools([odd], GPT) > 0
    assert count_messages([odd], GPT) > 0


def test_cyclic_and_deep_values_are_counted() -> None:
    assert count_message({"role": "user", "content": [_cyclic()], "tool_calls": [_cyclic()]}, GPT) > 10
    assert count_message({"role": "user", "content": "x", "extra": _deep()}, GPT) >= 100_000
    assert count_tools(_cyclic(), GPT) > 10
