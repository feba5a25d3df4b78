"""Messages as they are counted and hashed, and what responses report."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CompletionResponse,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)

from brix_core.conversation import Conversation, PrefixMemory
from brix_core.usage import Usage
from brix_llamaindex.chunks import DeltaReader
from brix_llamaindex.messages import CODEC, MessageCodec, Prompt, tool_calls_of
from brix_llamaindex.usage import finish_reason_of, usage_of, usage_of_stream

CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}

EVERY_BLOCK: list[Any] = [
    TextBlock(text="text"),
    ImageBlock(image=b"abc", image_mimetype="image/png", detail="low"),
    ImageBlock(url="http://127.0.0.1/a.png"),
    AudioBlock(audio=b"abc", format="wav"),
    VideoBlock(video=b"abc", video_mimetype="video/mp4"),
    DocumentBlock(data=b"abc", document_mimetype="application/pdf", title="a.pdf"),
    ThinkingBlock(content="hm"),
    CachePoint(cache_control=CacheControl(type="ephemeral")),
    CitableBlock(title="t", source="s", content=[TextBlock(text="cited")]),
    ToolCallBlock(tool_call_id="c1", tool_name="now", tool_kwargs={"zone": "UTC"}),
]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (ChatMessage("Hi"), {"role": "user", "content": "Hi"}),
        (ChatMessage("Hi", role="system"), {"role": "system", "content": "Hi"}),
        (ChatMessage(blocks=[TextBlock(text="a"), TextBlock(text="b")]), {"role": "user", "content": "ab"}),
        (ChatMessage(blocks=[]), {"role": "user", "content": ""}),
        (Prompt("Once"), {"role": "user", "content": "Once"}),
        (
            ChatMessage("12:00", role="tool", additional_kwargs={"tool_call_id": "c1"}),
            {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
        ),
        (
            ChatMessage(role="assistant", blocks=[EVERY_BLOCK[-1]]),
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            ChatMessage("", role="assistant", additional_kwargs={"tool_calls": [CALL]}),
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
    ],
)
def test_messages_become_openai_dicts(message: Any, expected: dict[str, Any]) -> None:
    assert CODEC.to_dict(message) == expected


def test_every_block_is_counted() -> None:
    def tokens(*blocks: Any) -> int:
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=list(blocks))
        return Conversation([message], CODEC).prompt_tokens("gpt-4o")

    silent = {"cache_point"}
    for block in EVERY_BLOCK:
        alone = tokens(block)
        assert alone > tokens() or block.block_type in silent, block.block_type
        assert tokens(TextBlock(text="text"), block) >= alone
    assert tokens(EVERY_BLOCK[1]) - tokens() == 85


def test_odd_messages_do_not_break_the_count() -> None:
    odd = ChatMessage("x", additional_kwargs={"object": object(), "nested": {"call": SimpleNamespace(a=1)}})
    assert Conversation([odd, 3, None, "text"], CODEC).prompt_tokens("gpt-4o") > 10


def test_a_session_pays_only_for_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, talk = PrefixMemory(), [ChatMessage(f"message {number}") for number in range(50)]
    whole = Conversation(talk, CODEC, memory)
    expected = whole.prompt_tokens("gpt-4o"), whole.sha256()
    asked: list[Any] = []
    real = MessageCodec.to_dict

    def noting(self: MessageCodec, message: Any) -> dict[str, Any]:
        asked.append(message)
        return real(self, message)

    monkeypatch.setattr(MessageCodec, "to_dict", noting)
    assert Conversation(talk, CODEC, memory).sha256() == expected[1]
    assert not asked
    Conversation([*talk, ChatMessage("new")], CODEC, memory).sha256()
    assert {message.content for message in asked} == {"new"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda message: setattr(message.blocks[0], "text", "edited"),
        lambda message: message.blocks.append(TextBlock(text="more")),
        lambda message: message.additional_kwargs["tool_calls"][0]["function"].update(name="later"),
        lambda message: setattr(message, "role", MessageRole.SYSTEM),
        lambda message: message.blocks[1].tool_kwargs.update(zone="CET"),
    ],
)
def test_an_edit_in_place_is_seen(edit: Any) -> None:
    def fresh() -> ChatMessage:
        blocks: list[Any] = [TextBlock(text="a"), ToolCallBlock(tool_name="now", tool_kwargs={"zone": "UTC"})]
        extra = {"tool_calls": [copy.deepcopy(CALL)]}
        return ChatMessage(blocks=blocks, additional_kwargs=extra)

    message, memory = fresh(), PrefixMemory()
    Conversation([message], CODEC, memory).sha256()
    assert CODEC.extends(memory.last.snapshot, [fresh()])  # type: ignore[union-attr]
    edit(message)
    assert not CODEC.extends(memory.last.snapshot, [message])  # type: ignore[union-attr]


def test_what_cannot_be_copied_is_measured_anew() -> None:
    message = ChatMessage("x", additional_kwargs={"file": io.BufferedReader(io.BytesIO(b"abc"))})
    assert not CODEC.extends(CODEC.snapshot([message]), [message])


def test_tool_calls_of_older_integrations_are_found() -> None:
    anthropic = {"id": "t1", "name": "now", "input": {"zone": "UTC"}}
    selection = SimpleNamespace(tool_id="t1", tool_name="now", tool_kwargs={"zone": "UTC"})
    for call in (CALL, anthropic, selection):
        (found,) = tool_calls_of(ChatMessage("", additional_kwargs={"tool_calls": [call]}))
        assert (found.name, found.arguments) == ("now", '{"zone": "UTC"}')


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            {
                "usage": {
                    "prompt_tokens": 10,
                    "completion_tokens": 5,
                    "prompt_tokens_details": {"cached_tokens": 4},
                    "completion_tokens_details": {"reasoning_tokens": 3},
                }
            },
            Usage(input_tokens=10, output_tokens=5, cache_read_tokens=4, reasoning_tokens=3),
        ),
        (
            {"usage": {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4}}},
            Usage(input_tokens=10, output_tokens=5, cache_read_tokens=4),
        ),
        (
            {
                "usage": SimpleNamespace(
                    input_tokens=10, output_tokens=5, cache_read_input_tokens=4, cache_creation_input_tokens=2
                )
            },
            Usage(input_tokens=16, output_tokens=5, cache_read_tokens=4, cache_write_tokens=2),
        ),
        (
            {
                "usage_metadata": {
                    "prompt_token_count": 10,
                    "candidates_token_count": 5,
                    "thoughts_token_count": 3,
                }
            },
            Usage(input_tokens=10, output_tokens=8, reasoning_tokens=3),
        ),
        ({"prompt_eval_count": 10, "eval_count": 5}, Usage(input_tokens=10, output_tokens=5)),
        ({"usage": {"inputTokens": 10, "outputTokens": 5}}, Usage(input_tokens=10, output_tokens=5)),
        ({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}, None),
        ({"usage": None}, None),
        (None, None),
    ],
)
def test_usage_is_read_from_what_providers_report(raw: Any, expected: Usage | None) -> None:
    assert usage_of(CompletionResponse(text="", raw=raw)) == expected
    assert usage_of(ChatResponse(message=ChatMessage(""), raw=raw)) == expected


def test_the_halves_that_anthropic_streams_are_put_together() -> None:
    begin = {"message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}
    end = {"usage": {"output_tokens": 7}, "delta": {"stop_reason": "end_turn"}}
    responses = [CompletionResponse(text="", raw=raw) for raw in (begin, *({} for _ in range(99)), end)]
    assert usage_of_stream(responses) == Usage(input_tokens=10, output_tokens=7)
    assert finish_reason_of(reversed(responses)) == "end_turn"


def test_reasoning_and_cumulative_tool_calls_are_part_of_what_a_chunk_adds() -> None:
    def chunk(arguments: Any, delta: str = "", **extra: Any) -> ChatResponse:
        blocks: list[Any] = [TextBlock(text=""), ToolCallBlock(tool_name="now", tool_kwargs=arguments)]
        return ChatResponse(message=ChatMessage(role="assistant", blocks=blocks), delta=delta, additional_kwargs=extra)

    reader = DeltaReader()
    chunks = [chunk({}, thinking_delta="hm "), chunk('{"a"'), chunk('{"a": 1}'), chunk('{"a": 1}', "done")]
    assert [reader.read(one) for one in chunks] == ["hm now", '{"a"', ": 1}", "done"]
