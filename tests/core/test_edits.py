"""Edits of a conversation: what is counted, read and kept, in every codec."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages import (
    ChatMessage as LangChainChatMessage,
)
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock

from brix_core.call import ToolCall
from brix_core.conversation import Codec, Conversation, DictCodec, PrefixMemory
from brix_core.turns import ToolResult, Turn
from brix_langchain.messages import CODEC as LANGCHAIN
from brix_llamaindex.messages import CODEC as LLAMAINDEX
from brix_llamaindex.messages import Prompt

DICTS = DictCodec()
MODELS = ("gpt-4o", "claude-opus-4-8")

TALKS: dict[str, tuple[Codec, list[Any]]] = {
    "dicts": (
        DICTS,
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Add 1 and 2."}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
    ),
    "anthropic": (
        DICTS,
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add 1 and 2."},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1, "b": 2}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "3"}]},
        ],
    ),
    "langchain": (
        LANGCHAIN,
        [
            SystemMessage("Be brief."),
            HumanMessage([{"type": "text", "text": "Add 1 and 2."}]),
            AIMessage("", tool_calls=[{"id": "c1", "name": "add", "args": {"a": 1, "b": 2}}]),
            ToolMessage("3", tool_call_id="c1"),
        ],
    ),
    "llamaindex": (
        LLAMAINDEX,
        [
            ChatMessage("Be brief.", role="system"),
            ChatMessage("Add 1 and 2.", role="user"),
            ChatMessage(
                role="assistant",
                blocks=[ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 1, "b": 2})],
            ),
            ChatMessage("3", role="tool", additional_kwargs={"tool_call_id": "c1"}),
        ],
    ),
}

in_every_codec = pytest.mark.parametrize("name", TALKS)


def given_talk(name: str, memory: PrefixMemory | None = None) -> Conversation:
    codec, messages = TALKS[name]
    return Conversation(messages, codec, memory)


def afresh(talk: Conversation) -> Conversation:
    return Conversation(talk.messages, talk.codec)


def assert_measured_as_if_new(talk: Conversation) -> None:
    fresh = afresh(talk)
    for model in MODELS:
        assert talk.prompt_tokens(model) == fresh.prompt_tokens(model)
        assert list(talk.message_tokens(model)) == list(fresh.message_tokens(model))
    assert list(talk.turns()) == list(fresh.turns())
    assert talk.sha256() == fresh.sha256()


@in_every_codec
def test_a_conversation_reads_as_turns(name: str) -> None:
    assert list(given_talk(name).turns()) == [
        Turn("system", "Be brief."),
        Turn("user", "Add 1 and 2."),
        Turn("assistant", "", calls=(ToolCall(id="c1", name="add", arguments='{"a": 1, "b": 2}'),)),
        Turn("tool", "", results=(ToolResult("c1", "3"),)),
    ]


@in_every_codec
def test_turns_of_a_growing_conversation_are_those_of_a_new_one(name: str) -> None:
    memory = PrefixMemory()
    codec, messages = TALKS[name]
    for length in range(1, len(messages) + 1):
        grown = Conversation(messages[:length], codec, memory)
        grown.turns(), grown.message_tokens("gpt-4o")
        assert_measured_as_if_new(grown)


@settings(max_examples=40, deadline=None)
@given(
    edits=st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=4),
    text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20),
)
@in_every_codec
def test_an_edited_conversation_counts_as_if_it_were_new(name: str, edits: Sequence[Any], text: str) -> None:
    talk = given_talk(name)
    for edit in edits:
        talk = talk.with_system(text) if edit == "system" else talk.adding((edit, text))
    assert_measured_as_if_new(talk)
    assert talk.added == sum(edit != "system" for edit in edits)


@in_every_codec
def test_an_edit_leaves_the_original_and_shares_its_messages(name: str) -> None:
    _, messages = TALKS[name]
    before = copy.deepcopy(messages)
    talk = given_talk(name)
    edited = talk.with_system("Answer in JSON.").adding(("assistant", "Hm."), ("user", "Go on."))
    assert messages == before
    assert talk.messages == before
    assert all(one is other for one, other in zip(talk.messages[1:], edited.messages[1:-2], strict=True))
    assert [turn.role for turn in edited.turns()] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert edited.turns()[-1].text == "Go on."


@in_every_codec
def test_the_same_system_text_is_added_once(name: str) -> None:
    talk = given_talk(name).with_system("Answer in JSON.")
    assert "Be brief." in talk.turns()[0].text
    assert "Answer in JSON." in talk.turns()[0].text
    assert talk.with_system("Answer in JSON.") is talk
    again = afresh(talk)
    assert again.with_system("Answer in JSON.") is again


@in_every_codec
def test_a_conversation_without_a_system_message_gets_one(name: str) -> None:
    codec, messages = TALKS[name]
    talk = Conversation(messages[1:], codec).with_system("Answer in JSON.")
    assert talk.turns()[0] == Turn("system", "Answer in JSON.")
    assert len(talk) == len(messages)
    assert_measured_as_if_new(talk)


@in_every_codec
def test_texts_can_be_mapped_in_a_copy(name: str) -> None:
    codec, messages = TALKS[name]
    changed = [codec.map_text(message, str.upper) for message in messages]
    turns = Conversation(changed, codec).turns()
    assert [turn.text for turn in turns] == ["BE BRIEF.", "ADD 1 AND 2.", "", ""]
    assert turns[2].calls == given_talk(name).turns()[2].calls
    assert given_talk(name).turns()[0].text == "Be brief."


@in_every_codec
def test_other_messages_with_a_known_count_are_not_counted_again(name: str) -> None:
    talk = given_talk(name)
    each = talk.message_tokens("gpt-4o")
    kept = talk.keeping(talk.messages[:2], lambda model: sum(each[:2]))
    assert kept.prompt_tokens("gpt-4o") == afresh(kept).prompt_tokens("gpt-4o")


def test_a_completions_prompt_stays_one_text() -> None:
    talk = Conversation([Prompt("Once upon a time")], LLAMAINDEX)
    edited = talk.with_system("Write a tale.").adding(("user", "Go on."))
    assert edited.messages == ["Write a tale.\n\nOnce upon a time\n\nGo on."]
    assert type(edited.messages[0]) is Prompt
    assert edited.added == 0
    assert edited.with_system("Write a tale.") is edited
    assert_measured_as_if_new(edited)


def test_images_survive_an_edit() -> None:
    picture = ImageBlock(url="https://a.example/b.png")
    talk = [ChatMessage(role="user", blocks=[TextBlock(text="Look"), picture])]
    changed = LLAMAINDEX.map_text(talk[0], str.upper)
    assert changed.blocks == [TextBlock(text="LOOK"), picture]


def test_langchains_free_roles_are_read() -> None:
    roles = [LangChainChatMessage("x", role=role) for role in ("developer", "assistant", "critic")]
    assert [turn.role for turn in Conversation(roles, LANGCHAIN).turns()] == ["system", "assistant", "user"]
