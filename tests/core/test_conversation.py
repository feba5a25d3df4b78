"""The conversation's memory of its measured prefix: by value, and never wrong."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from brix_core.conversation import Conversation, DictCodec, PrefixMemory
from brix_core.errors import BrixConfigurationError
from brix_core.turns import text_of

CODEC = DictCodec()
MODELS = ("gpt-4o", "gpt-4", "claude-opus-4-8", "nobody-knows-it")

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
arguments = st.dictionaries(st.sampled_from(["a", "b"]), st.one_of(st.none(), st.integers(2, 9), texts), max_size=2)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, st.just("https://a.example/b.png")),
)
messages = st.one_of(
    st.builds(lambda text: {"role": "user", "content": text}, texts),
    st.builds(lambda text: {"role": "system", "content": text, "name": "ann"}, texts),
    st.builds(lambda content: {"role": "user", "content": content}, st.lists(parts, max_size=3)),
    st.builds(
        lambda given: {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps(given)}}],
        },
        arguments,
    ),
    st.builds(lambda text: {"role": "tool", "tool_call_id": "1", "content": text}, texts),
)


def sha256_of(talk: list[Any]) -> str:
    return hashlib.sha256(json.dumps(talk).encode()).hexdigest()


def assert_measured_rightly(talk: list[Any], memory: PrefixMemory) -> None:
    remembered, fresh = Conversation(talk, CODEC, memory), Conversation(talk, CODEC)
    for model in MODELS:
        assert remembered.prompt_tokens(model) == fresh.prompt_tokens(model)
    assert remembered.sha256() == fresh.sha256() == sha256_of(talk)
    # Copies of the same memory's conversation measure the same, too.
    assert Conversation(copy.deepcopy(talk), CODEC, memory).sha256() == remembered.sha256()


class Talk(RuleBasedStateMachine):
    """A conversation grows, is edited in place, branches, shrinks; its session remembers one prefix throughout."""

    @initialize()
    def begin(self) -> None:
        self.memory = PrefixMemory()
        self.talk: list[Any] = []
        self.branches: list[list[Any]] = []

    @rule(more=st.lists(messages, min_size=1, max_size=4), measured=st.booleans())
    def grow(self, more: list[Any], measured: bool) -> None:
        self.talk.extend(more)
        if measured:
            assert_measured_rightly(self.talk, self.memory)

    @precondition(lambda self: self.talk)
    @rule(data=st.data(), text=texts)
    def edit_in_place(self, data: st.DataObject, text: str) -> None:
        message = data.draw(st.sampled_from(self.talk))
        if isinstance(message["content"], list):
            for part in message["content"]:
                if part["type"] == "text":
                    part["text"] = text
                else:
                    part["image_url"]["url"] += "x"
        elif message.get("tool_calls"):
            message["tool_calls"][0]["function"]["arguments"] = json.dumps({"edited": text})
        else:
            message["content"] = text
        assert_measured_rightly(self.talk, self.memory)

    @precondition(lambda self: self.talk)
    @rule(data=st.data(), message=messages)
    def replace(self, data: st.DataObject, message: Any) -> None:
        self.talk[data.draw(st.integers(0, len(self.talk) - 1))] = message
        assert_measured_rightly(self.talk, self.memory)

    @precondition(lambda self: self.talk)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        del self.talk[data.draw(st.integers(0, len(self.talk) - 1)) :]
        assert_measured_rightly(self.talk, self.memory)

    @rule()
    def branch(self) -> None:
        self.branches.append(copy.deepcopy(self.talk))

    @precondition(lambda self: self.branches)
    @rule(data=st.data(), message=messages)
    def go_on_with_a_branch(self, data: st.DataObject, message: Any) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        self.talk, branch[:] = [*branch, message], self.talk
        assert_measured_rightly(self.talk, self.memory)


TestAnyConversation = Talk.TestCase
TestAnyConversation.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)


@settings(deadline=None, max_examples=60)
@given(talk=st.lists(messages, max_size=8), cuts=st.lists(st.integers(0, 8), max_size=5))
def test_every_way_of_growing_gives_the_same_hash(talk: list[Any], cuts: list[int]) -> None:
    memory = PrefixMemory()
    for cut in [*cuts, len(talk)]:
        assert Conversation(talk[:cut], CODEC, memory).sha256() == sha256_of(talk[:cut])


def test_the_hash_is_that_of_the_json_text_in_any_script() -> None:
    talk = [
        {"role": "user", "content": 'Grüße, 世界 🌍 "quoted" \\ and \\ud83d spelt out'},
        {"role": "assistant", "content": ""},
    ]
    assert Conversation(talk, CODEC).sha256() == sha256_of(talk)
    assert Conversation([], CODEC).sha256() == sha256_of([])


def test_half_of_a_surrogate_pair_is_refused_and_named() -> None:
    talk = [{"role": "user", "content": "fine \U0001f600"}, {"role": "user", "content": "broken \ud83d"}]
    with pytest.raises(BrixConfigurationError, match=r"messages\[1\] holds a lone surrogate \('\\ud83d'\)"):
        Conversation(talk, CODEC).prompt_tokens("gpt-4o")
    assert Conversation(talk[:1], CODEC).prompt_tokens("gpt-4o") > 0


class Counting(DictCodec):
    """Notes which messages are read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def to_dict(self, message: Any) -> dict[str, Any]:
        self.read.append(message["content"])
        return super().to_dict(message)


def test_a_growing_conversation_pays_only_for_what_is_new() -> None:
    codec, memory = Counting(), PrefixMemory()
    talk = [{"role": "user", "content": str(number)} for number in range(100)]
    Conversation(talk, codec, memory).prompt_tokens("gpt-4o")
    codec.read.clear()
    talk.append({"role": "user", "content": "new"})
    conversation = Conversation(talk, codec, memory)
    conversation.prompt_tokens("gpt-4o")
    conversation.sha256()
    assert set(codec.read) == {"new"}
    codec.read.clear()
    again = Conversation(talk, codec, memory)
    again.prompt_tokens("gpt-4o")
    again.sha256()
    assert codec.read == []


def test_another_codec_starts_anew() -> None:
    memory = PrefixMemory()
    talk = [{"role": "user", "content": "one"}]
    Conversation(talk, DictCodec(), memory).sha256()
    codec = Counting()
    Conversation(talk, codec, memory).sha256()
    assert codec.read == ["one"]


def test_the_list_is_copied_and_the_messages_are_not() -> None:
    talk = [{"role": "user", "content": "one"}]
    conversation = Conversation(talk, CODEC)
    talk.append({"role": "user", "content": "two"})
    assert len(conversation) == 1
    assert conversation.messages[0] is talk[0]


def test_a_model_counted_meanwhile_does_not_disturb_the_extension_of_the_prefix() -> None:
    # Two calls of a session share the known prefix. While one extends it, the other counts for another model,
    # as it does when it fails over.
    memory = PrefixMemory()
    first = Conversation([{"role": "user", "content": "one"}], CODEC, memory)
    for model in MODELS:
        first.prompt_tokens(model)
    second = Conversation([*first.messages, {"role": "user", "content": "two"}], CODEC, memory)
    meddled = threading.Event()
    original = Conversation._count

    def count(self: Conversation, model: str, fresh: Any) -> int:
        if self is second and not meddled.is_set():
            meddled.set()
            first.prompt_tokens("a model that nobody had asked for")
        return original(self, model, fresh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conversation, "_count", count)
        tokens = second.prompt_tokens("gpt-4o")
    assert meddled.is_set()
    assert tokens == Conversation(second.messages, CODEC).prompt_tokens("gpt-4o")


def test_threads_of_one_session_measure_rightly() -> None:
    memory = PrefixMemory()
    talk = [{"role": "user", "content": f"message {number}"} for number in range(60)]
    expected = {cut: sha256_of(talk[:cut]) for cut in range(61)}
    wrong: list[int] = []

    def measure(start: int) -> None:
        for cut in range(start, 61, 3):
            conversation = Conversation(talk[:cut], CODEC, memory)
            tokens = conversation.prompt_tokens(MODELS[cut % 4])
            if conversation.sha256() != expected[cut] or tokens != Conversation(talk[:cut], CODEC).prompt_tokens(
                MODELS[cut % 4]
            ):
                wrong.append(cut)

    threads = [threading.Thread(target=measure, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        (None, ""),
        (b"bytes", ""),
        ({"text": "one"}, "one"),
        ({"text": 7}, ""),
        ([{"type": "text", "text": "a"}, "b", {"type": "image_url"}, ["c"]], "abc"),
        (7, ""),
    ],
)
def test_text_is_found_in_content_of_any_shape(content: Any, text: str) -> None:
    assert text_of(content) == text
