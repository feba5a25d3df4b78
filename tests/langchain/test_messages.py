"""The codec: a known prefix is recognised by value, so that edits in place are seen, and nothing is counted twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from brix_core.conversation import Conversation, PrefixMemory
from brix_core.looping.steps import steps
from brix_langchain.messages import CODEC

MODEL = "gpt-4o-mini"
CALL: Any = {"name": "weather", "args": {"city": "Oslo", "days": [1, 2]}, "id": "c1", "type": "tool_call"}


def talk() -> list[BaseMessage]:
    return [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "How is"}, {"type": "text", "text": "the weather?"}], name="ann"),
        AIMessage("", tool_calls=[copy.deepcopy(CALL)]),
        ToolMessage("Sunny", tool_call_id="c1"),
        AIMessage("It is sunny."),
    ]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (HumanMessage("hi"), {"role": "user", "content": "hi"}),
        (SystemMessage("hi", name="n"), {"role": "system", "content": "hi", "name": "n"}),
        (AIMessageChunk(content="hi"), {"role": "assistant", "content": "hi"}),
        (ToolMessage("hi", tool_call_id="c"), {"role": "tool", "content": "hi", "tool_call_id": "c"}),
        (ChatMessage("hi", role="critic"), {"role": "critic", "content": "hi"}),
        (FunctionMessage("hi", name="f"), {"role": "function", "content": "hi", "name": "f"}),
        (
            AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}}),
            {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}},
        ),
        (
            AIMessage("", tool_calls=[CALL]),
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": [1, 2]}'},
                    }
                ],
            },
        ),
    ],
)
def test_messages_are_read_in_openais_format(message: BaseMessage, expected: dict[str, Any]) -> None:
    assert CODEC.to_dict(message) == expected


def test_a_conversation_extends_itself_and_what_it_began_with() -> None:
    messages = talk()
    for length in range(len(messages) + 1):
        seen = CODEC.snapshot(messages[:length])
        assert CODEC.extends(seen, messages)
        assert CODEC.extends(seen, copy.deepcopy(messages))
        assert len(seen) == length


def test_a_snapshot_built_on_another_is_the_same() -> None:
    messages = talk()
    for length in range(len(messages) + 1):
        grown = CODEC.snapshot(messages, CODEC.snapshot(messages[:length]))
        assert CODEC.extends(grown, copy.deepcopy(messages))
        for edit in EDITS.values():
            edited = copy.deepcopy(messages)
            edit(edited)
            assert not CODEC.extends(grown, edited)


EDITS: dict[str, Callable[[list[Any]], Any]] = {
    "text": lambda m: setattr(m[0], "content", "Be long."),
    "a block": lambda m: m[1].content[1].update(text="the climate?"),
    "a block more": lambda m: m[1].content.append({"type": "text", "text": "Now?"}),
    "a block less": lambda m: m[1].content.pop(),
    "an argument": lambda m: m[2].tool_calls[0]["args"].update(city="Bergen"),
    "a nested argument": lambda m: m[2].tool_calls[0]["args"]["days"].append(3),
    "a tool call more": lambda m: m[2].tool_calls.append(copy.deepcopy(CALL)),
    "no tool call": lambda m: m[2].tool_calls.clear(),
    "a tool's result": lambda m: setattr(m[3], "content", "Rain"),
    "the last answer": lambda m: setattr(m[4], "content", "It rains."),
    "another object": lambda m: m.__setitem__(3, ToolMessage("Rain", tool_call_id="c1")),
    "another kind": lambda m: m.__setitem__(0, HumanMessage("Be brief.")),
    "another kind in the middle": lambda m: m.__setitem__(3, HumanMessage("Sunny")),
    "a name": lambda m: m.__setitem__(1, m[1].model_copy(update={"name": "bob"})),
    "a tool call id": lambda m: m.__setitem__(3, m[3].model_copy(update={"tool_call_id": "c2"})),
    "one less": lambda m: m.pop(),
    "one less in the middle": lambda m: m.pop(3),
    "the order": lambda m: m.reverse(),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("copied", [False, True])
def test_an_edit_is_seen(edit: str, copied: bool) -> None:
    messages = talk()
    seen = CODEC.snapshot(messages)
    edited = copy.deepcopy(messages) if copied else messages
    EDITS[edit](edited)
    assert not CODEC.extends(seen, edited)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_conversation_is_measured_afresh(edit: str) -> None:
    memory, messages = PrefixMemory(), talk()
    Conversation(messages, CODEC, memory).prompt_tokens(MODEL)
    EDITS[edit](messages)
    _assert_as_new(messages, memory)


def test_a_replaced_object_that_says_the_same_is_no_edit() -> None:
    messages = talk()
    seen = CODEC.snapshot(messages)
    messages[0] = SystemMessage("Be brief.")
    messages[4] = AIMessage("It is sunny.", id="another")
    assert CODEC.extends(seen, messages)


TEXTS = st.text(max_size=12)
ARGUMENTS = st.dictionaries(
    st.sampled_from("ab"), st.one_of(TEXTS, st.integers(), st.lists(TEXTS, max_size=2)), max_size=2
)
CALLS = st.builds(
    lambda name, args: {"name": name, "args": args, "id": "c", "type": "tool_call"},
    st.sampled_from(["f", "g"]),
    ARGUMENTS,
)
BLOCKS = st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXTS), max_size=3)
CONTENTS = st.one_of(TEXTS, BLOCKS)
NAMES = st.one_of(st.none(), st.sampled_from(["ann", "bob"]))
MESSAGES = st.one_of(
    st.builds(lambda content, name: HumanMessage(content, name=name), CONTENTS, NAMES),
    st.builds(lambda content: SystemMessage(content), CONTENTS),
    st.builds(lambda content, calls: AIMessage(content, tool_calls=calls), CONTENTS, st.lists(CALLS, max_size=2)),
    st.builds(lambda content: ToolMessage(content, tool_call_id="c"), TEXTS),
)


def _change(messages: list[Any], data: st.DataObject) -> None:
    """One step of what an application does to its list between two calls."""
    kind = data.draw(st.sampled_from(["append", "replace", "edit", "block", "call", "drop", "copy", "name"]))
    index = data.draw(st.integers(0, max(0, len(messages) - 1)))
    if kind == "append" or not messages:
        messages.extend(data.draw(st.lists(MESSAGES, max_size=3)))
    elif kind == "replace":
        messages[index] = data.draw(MESSAGES)
    elif kind == "edit":
        messages[index].content = data.draw(TEXTS)
    elif kind == "block" and isinstance(messages[index].content, list):
        messages[index].content.append({"type": "text", "text": data.draw(TEXTS)})
    elif kind == "call" and isinstance(messages[index], AIMessage) and messages[index].tool_calls:
        messages[index].tool_calls[0]["args"]["a"] = data.draw(TEXTS)
    elif kind == "drop":
        del messages[index]
    elif kind == "copy":
        messages[:] = copy.deepcopy(messages)
    elif kind == "name":
        # In place, a new name goes unseen as long as the objects are the same: see `_Seen`.
        messages[index] = messages[index].model_copy(update={"name": data.draw(NAMES)})


def _assert_as_new(messages: list[Any], memory: PrefixMemory) -> None:
    known, fresh = Conversation(messages, CODEC, memory), Conversation(messages, CODEC)
    assert known.prompt_tokens(MODEL) == fresh.prompt_tokens(MODEL)
    assert known.sha256() == fresh.sha256()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_remembered_prefix_measures_as_a_fresh_conversation(data: st.DataObject) -> None:
    memory = PrefixMemory()
    messages: list[Any] = data.draw(st.lists(MESSAGES, max_size=4))
    for _ in range(data.draw(st.integers(1, 5))):
        _assert_as_new(messages, memory)
        _change(messages, data)
    _assert_as_new(messages, memory)


def polled(*, cleared: bool) -> list[BaseMessage]:
    """A tool whose results were all different, before context editing took them out."""
    edited = {"context_editing": {"cleared": True, "strategy": "clear_tool_uses"}} if cleared else {}
    messages: list[BaseMessage] = [HumanMessage("Is it done?")]
    for number in range(4):
        call: Any = {"name": "status", "args": {}, "id": f"c{number}", "type": "tool_call"}
        messages += [
            AIMessage("", tool_calls=[call]),
            ToolMessage("[cleared]", tool_call_id=f"c{number}", response_metadata=edited),
        ]
    return messages


def test_results_that_context_editing_cleared_are_told_apart() -> None:
    for cleared, different in ((True, 4), (False, 1)):
        found = steps(Conversation(polled(cleared=cleared), CODEC).turns(), 10)
        assert len(found) == 4
        assert len({step.results for step in found}) == different
