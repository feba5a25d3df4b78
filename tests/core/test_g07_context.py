"""G7: a prompt fits or is refused; order, system messages, the last words and tool exchanges are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brix_core import BrixConfigurationError, BrixContextError
from brix_core.call import ToolCall
from brix_core.drivers import run
from brix_core.flow import send
from brix_core.guards.context import ContextConfig, ContextGuard
from brix_core.tokens import count_messages, count_tools, tokenizer_for
from brix_core.trimming.shortening import MARKER
from brix_core.trimming.summaries import HEADING
from brix_core.trimming.units import outline_of, units_of
from brix_core.turns import ToolResult, Turn
from tests.support.context import ContextEndpoint, context_pipeline, converse
from tests.support.modes import MODES, Mode, every_mode
from tests.support.virtual import VirtualClock

CUT = MARKER.partition("{")[0]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look something up.", "parameters": {}}}]
TEXTS = ("hello world, ", "你好世界。", "Привет, мир! ", "مرحبا بالعالم ", "👍🏽🙂", "order 4711 ", "def f(x):\n    ")
KINDS = ("user", "picture", "assistant", "exchange", "parallel", "system", "named")
Dialect = Literal["openai", "anthropic"]


@dataclass
class Talk:
    """A conversation, and which of its messages belong together."""

    dialect: Dialect
    messages: list[dict[str, Any]] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)

    def say(self, kind: str, size: int) -> None:
        group = len(self.messages)
        for message in self._made(kind, (TEXTS[size % len(TEXTS)] * size)[: size * 6] or "?", group):
            self.messages.append(message)
            self.groups.append(group)

    def _made(self, kind: str, text: str, number: int) -> list[dict[str, Any]]:
        image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}
        match kind:
            case "picture":
                return [{"role": "user", "content": [{"type": "text", "text": text}, image]}]
            case "named":
                return [{"role": "user", "name": "Ann", "content": text}]
            case "exchange":
                return self._exchange([f"c{number}"], text)
            case "parallel":
                return self._exchange([f"c{number}-{place}" for place in "abc"], text)
        return [{"role": kind, "content": text}]

    def _exchange(self, names: Sequence[str], text: str) -> list[dict[str, Any]]:
        if self.dialect == "openai":
            calls = [
                {"id": name, "type": "function", "function": {"name": "look", "arguments": "{}"}} for name in names
            ]
            results = [{"role": "tool", "tool_call_id": name, "content": text} for name in reversed(names)]
            return [{"role": "assistant", "content": None, "tool_calls": calls}, *results]
        uses = [{"type": "tool_use", "id": name, "name": "look", "input": {"q": name}} for name in names]
        blocks = [{"type": "tool_result", "tool_use_id": name, "content": text} for name in names]
        answers = [{"role": "user", "content": blocks[:2]}, {"role": "user", "content": blocks[2:]}]
        return [{"role": "assistant", "content": [*uses]}, *(answer for answer in answers if answer["content"])]

    def speaks(self, position: int) -> bool:
        content = self.messages[position]["content"]
        results = isinstance(content, list) and content[0]["type"] == "tool_result"
        return self.messages[position]["role"] == "user" and not results

    def protected(self) -> set[int]:
        """Positions that must be kept."""
        found = {place for place, message in enumerate(self.messages) if message["role"] == "system"}
        spoken = [place for place, message in enumerate(self.messages) if message["role"] != "system"]
        found |= {place for place in spoken if self.groups[place] == self.groups[spoken[-1]]} if spoken else set()
        return found | {max((place for place in spoken if self.speaks(place)), default=next(iter(found)))}


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    talk = Talk(draw(st.sampled_from(["openai", "anthropic"])))
    if draw(st.booleans()):
        talk.say("system", draw(st.integers(1, 20)))
    for kind, size in draw(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 90)), min_size=1, max_size=16)):
        talk.say(kind, size)
    return talk


def tokens_of(messages: Sequence[Any], params: Mapping[str, Any], model: str) -> int:
    """Counted afresh, nothing remembered."""
    tokenizer = tokenizer_for(model)
    return count_messages(messages, tokenizer, model=model) + count_tools(params.get("tools"), tokenizer, model=model)


def positions_of(sent: Sequence[Any], talk: Talk) -> list[int]:
    """Where the messages that were sent stand in the conversation, by identity; new ones are left out."""
    places = {id(message): place for place, message in enumerate(talk.messages)}
    return [places[id(message)] for message in sent if id(message) in places]


def assert_kept_its_shape(sent: Sequence[dict[str, Any]], talk: Talk, added: Sequence[Any], summarized: bool) -> None:
    original = talk.messages
    kept = positions_of(sent, talk)
    assert kept == sorted(set(kept))
    assert talk.protected() <= set(kept)
    for group in set(talk.groups):
        members = {place for place, other in enumerate(talk.groups) if other == group}
        assert members <= set(kept) or not members & set(kept)
    new = [message for message in sent[: len(sent) - len(added)] if all(message is not other for other in original)]
    assert len(new) == (summarized and len(kept) < len(original))
    assert all(message["role"] == "user" and message["content"].startswith(HEADING) for message in new)
    assert [message["content"] for message in sent[len(sent) - len(added) :]] == [text for _, text in added]
    leading = next((message for message in sent if message["role"] != "system"), None)
    begins = next((place for place, message in enumerate(original) if message["role"] != "system"), 0)
    if leading is not None and any(map(talk.speaks, range(len(original)))) and talk.speaks(begins):
        assert leading in new or talk.speaks(kept[[original[place] is leading for place in kept].index(True)])


def assert_cut_where_it_must(sent: Sequence[dict[str, Any]], talk: Talk, added: Sequence[Any]) -> None:
    """Nothing but what is protected, in order, and whatever differs shows a marker."""
    expected = [talk.messages[place] for place in sorted(talk.protected())]
    assert len(sent) == len(expected) + len(added)
    for message, original in zip(sent, expected, strict=False):
        assert message is original or (message["role"] == original["role"] and CUT[1:] in str(message))
        assert message.get("tool_calls") is original.get("tool_calls")


SUMMARIES = ("The user asked; all is well.", "事实: 订单 4711。", "word " * 3_000, "", ConnectionError("lost"))


@settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    talk=talks(),
    percent=st.integers(3, 105),
    strategy=st.sampled_from(["sliding_window", "importance", "summarize"]),
    overflow=st.sampled_from(["raise", "truncate"]),
    tools=st.booleans(),
    added=st.sampled_from([(), (("user", "Say it in other words."),), (("assistant", "{x"), ("user", "No JSON."))]),
    other=st.sampled_from([None, None, "claude-opus-4-8"]),
    summary=st.sampled_from(SUMMARIES),
    mode=st.sampled_from(MODES),
)
def test_a_prompt_fits_or_nothing_is_sent(
    talk: Talk,
    percent: int,
    strategy: str,
    overflow: str,
    tools: bool,
    added: Any,
    other: str | None,
    summary: Any,
    mode: Mode,
) -> None:
    clock = VirtualClock()
    endpoint = ContextEndpoint(clock, name="gpt-4o", summary=summary)
    fallbacks = [ContextEndpoint(clock, name=other)] if other else []
    models = ["gpt-4o", *([other] if other else [])]
    params = {"tools": TOOLS} if tools else {}
    whole = max(tokens_of(talk.messages, params, model) for model in models)
    limit = max(1, whole * percent // 100)
    options: dict[str, Any] = {"context_strategy": strategy, "context_overflow": overflow}
    pipe = context_pipeline(clock, fallbacks, max_context_tokens=limit + 10, context_reserve_tokens=10, **options)
    request = pipe.request(endpoint, talk.messages, params, stream=mode.streamed)
    request = request.evolve(conversation=request.conversation.adding(*added))
    result = converse(mode, pipe, request)
    for sent in endpoint.requests:
        for model in models:
            assert tokens_of(sent.conversation.messages, sent.params, model) <= limit
            assert sent.conversation.prompt_tokens(model, sent.params.get("tools", ())) <= limit
    main = [sent for sent in endpoint.requests if not endpoint.is_summary(sent)]
    decisions = {decision["decision"]: decision for decision in request.call.decisions}
    if isinstance(result, BrixContextError):
        assert not main
        assert result.limit == limit < result.tokens
        least = [talk.messages[place] for place in sorted(talk.protected())]
        least += [{"role": role, "content": text} for role, text in added]
        assert other or result.tokens == tokens_of(least, params, "gpt-4o")
        return
    assert result == "answer"
    (sent,) = main
    if not decisions:
        assert sent.conversation is request.conversation
    elif "truncated" in decisions:
        assert_cut_where_it_must(sent.conversation.messages, talk, added)
    else:
        by_summary = decisions["trimmed"]["strategy"] == "summarize"
        assert_kept_its_shape(sent.conversation.messages, talk, added, by_summary)
        assert decisions["trimmed"]["tokens_after"] <= limit < decisions["trimmed"]["tokens_before"]


def chat(*texts: str) -> list[dict[str, Any]]:
    """User and assistant in turns, the user first."""
    return [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)]


def words(count: int, word: str = "word") -> str:
    return f"{word} " * count


def sent_of(messages: Sequence[Any], room: int, mode: Mode = MODES[0], params: Any = None, **options: Any) -> Any:
    """What reaches the model of a prompt that may have `room` tokens; or the error."""
    endpoint = ContextEndpoint(VirtualClock(), name="gpt-4o")
    pipe = context_pipeline(endpoint.clock, max_context_tokens=room + 7, context_reserve_tokens=7, **options)
    result = converse(mode, pipe, pipe.request(endpoint, messages, params or {}, stream=mode.streamed))
    assert len(endpoint.requests) == (result == "answer")
    return endpoint.last if endpoint.requests else result


@every_mode
def test_a_prompt_that_fits_goes_on_as_it_is(mode: Mode) -> None:
    messages = chat("Hi", "Hello!", words(50))
    room = tokens_of(messages, {}, "gpt-4o")
    assert sent_of(messages, room, mode) == messages
    assert sent_of(messages, room - 1, mode) == messages[2:]


@every_mode
def test_the_window_keeps_the_latest_messages_and_begins_with_a_user(mode: Mode) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *chat(*[words(20, str(place)) for place in range(9)])]
    room = tokens_of([messages[0], *messages[4:]], {}, "gpt-4o")
    assert sent_of(messages, room, mode) == [messages[0], *messages[5:]]  # messages[4] is an assistant's


def test_older_exchanges_of_a_turn_go_and_the_one_under_way_stays() -> None:
    talk = Talk("openai")
    for kind in ("user", "exchange", "parallel", "exchange", "parallel"):
        talk.say(kind, 20)
    last = talk.messages[-4:]
    assert sent_of(talk.messages, tokens_of([talk.messages[0], *last], {}, "gpt-4o")) == [talk.messages[0], *last]


def test_what_matters_to_the_question_is_kept_before_what_is_recent() -> None:
    messages = chat(
        "My order number is 4711 and it went to Lisbon.", "Noted.", *[words(12, "chat")] * 8, "Is order 4711 in Lisbon?"
    )
    room = tokens_of(messages, {}, "gpt-4o") - 60
    assert messages[0] not in sent_of(messages, room)
    kept = sent_of(messages, room, context_strategy="importance")
    assert kept[0] is messages[0]
    assert kept[-1] == messages[-1]


def test_results_without_calls_and_calls_without_results_stand_alone() -> None:
    call = ToolCall(id="a", name="look", arguments="{}")
    turns = [
        Turn("tool", "", results=(ToolResult("gone", "1"),)),
        Turn("assistant", "", calls=(call,)),
        Turn("user", "And?"),
        Turn("tool", "", results=(ToolResult("a", "late"),)),
        Turn("assistant", "", calls=(call,)),
        Turn("tool", "", results=(ToolResult("", "nameless"),)),
        Turn("tool", "", results=(ToolResult("a", "again"),)),
    ]
    assert units_of(turns) == [(0,), (1, 3), (2,), (4, 5, 6)]


def test_a_user_comes_first_even_when_the_exchange_under_way_began_before_the_last_words() -> None:
    call = ToolCall(id="a", name="look", arguments="{}")
    turns = [
        Turn("user", "Look!"),
        Turn("assistant", "", calls=(call,)),
        Turn("user", "Hurry."),
        Turn("tool", "", results=(ToolResult("a", "late"),)),
    ]
    outline = outline_of(turns, [10] * 4)
    assert outline.messages(outline.protected) == [0, 1, 2, 3]


# What does not fit


@every_mode
def test_a_prompt_whose_protected_part_does_not_fit_is_refused(mode: Mode) -> None:
    messages = [{"role": "system", "content": words(50)}, *chat("Hi", "Hello!", words(50))]
    least = tokens_of([messages[0], messages[-1]], {}, "gpt-4o")
    error = sent_of(messages, least - 1, mode)
    assert isinstance(error, BrixContextError)
    assert (error.tokens, error.limit) == (least, least - 1)
    assert f"{least} tokens" in str(error)
    assert f"max_context_tokens={least + 6} - context_reserve_tokens=7" in str(error)


def test_a_refusal_is_traced_as_one() -> None:
    endpoint = ContextEndpoint(VirtualClock(), name="gpt-4o")
    pipe = context_pipeline(endpoint.clock, max_context_tokens=10, context_reserve_tokens=5)
    assert isinstance(converse(MODES[0], pipe, pipe.request(endpoint, chat(words(9)), {})), BrixContextError)
    (entry,) = pipe.traces.get_traces()
    assert (entry["outcome"], entry["attempts"]) == ("refused", [])


@every_mode
def test_the_middle_of_the_longest_text_is_cut_and_says_so(mode: Mode) -> None:
    messages = [{"role": "system", "content": words(60, "rule")}, *chat(words(500, "begin") + words(500, "end"))]
    system, user = sent_of(messages, 300, mode, context_overflow="truncate")
    assert system is messages[0] or system == messages[0]
    head, tail = user["content"].split("\n[... ")
    assert head.startswith("begin begin")
    assert tail.endswith("end end ")
    gone = int(tail.partition(" ")[0].replace(",", ""))
    assert 1_001 - gone == pytest.approx(tokenizer_for("gpt-4o").count(user["content"].replace("\n", "")), abs=12)


def test_system_messages_are_cut_last() -> None:
    messages = [{"role": "system", "content": words(400, "rule")}, *chat(words(400))]
    system, user = sent_of(messages, 500, context_overflow="truncate")
    assert system == messages[0]
    assert CUT in user["content"]
    system, user = sent_of(messages, 200, context_overflow="truncate")
    assert CUT in system["content"]
    assert CUT in user["content"]


def test_the_results_of_the_exchange_under_way_are_levelled() -> None:
    talk = Talk("anthropic")
    talk.say("user", 5)
    talk.say("parallel", 300)
    talk.messages[2]["content"][0]["content"] = "short"
    _, calls, first, second = sent_of(talk.messages, 450, context_overflow="truncate")
    assert calls == talk.messages[1]
    assert first["content"][0] == talk.messages[2]["content"][0]
    assert CUT[1:] in first["content"][1]["content"]
    assert CUT[1:] in second["content"][0]["content"]


@pytest.mark.parametrize("overflow", ["raise", "truncate"])
def test_images_and_tools_cannot_be_cut(overflow: str) -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}]
    assert isinstance(sent_of(picture, 1_000, context_overflow=overflow), BrixContextError)
    error = sent_of(chat("Hi"), 60, params={"tools": TOOLS * 3}, context_overflow=overflow)
    assert isinstance(error, BrixContextError)
    assert "for tools" in str(error)


def test_a_response_schema_counts() -> None:
    endpoint = ContextEndpoint(VirtualClock(), name="gpt-4o", native=True)
    guard = ContextGuard(ContextConfig(max_context_tokens=60, context_reserve_tokens=0))
    schema: Any = SimpleNamespace(json_schema={"type": "object", "title": "T"})
    request = context_pipeline(endpoint.clock).request(endpoint, chat("Hi", words(20), "Bye"), {})
    run(guard.flow(request, send), endpoint.clock)
    run(guard.flow(request.evolve(schema=schema), send), endpoint.clock)
    assert [len(sent.conversation) for sent in endpoint.requests] == [3, 1]


# How much is allowed


def test_auto_is_the_smallest_window_of_the_chain_less_the_answer() -> None:
    clock = VirtualClock()
    first, second = ContextEndpoint(clock, name="gpt-4o"), ContextEndpoint(clock, name="gpt-4")
    messages = chat(*["x " * 700] * 21)
    for fallbacks, params, kept in (([], {}, 21), ([second], {}, 9), ([second], {"max_tokens": 3_500}, 5)):
        pipe = context_pipeline(clock, fallbacks, max_context_tokens="auto")
        assert converse(MODES[0], pipe, pipe.request(first, messages, params)) == "answer"
        assert len(first.last) == kept
        size = max(tokens_of(first.last, {}, model) for model in ("gpt-4o", "gpt-4"))
        assert not fallbacks or size <= 8_192 - max(500, params.get("max_tokens", 0))


@pytest.mark.parametrize(("name", "fallback"), [("my-model", "gpt-4o"), ("gpt-4o", "my-model")])
def test_auto_needs_windows_that_are_known(name: str, fallback: str) -> None:
    clock = VirtualClock()
    endpoint = ContextEndpoint(clock, name=name)
    pipe = context_pipeline(clock, [ContextEndpoint(clock, name=fallback)], max_context_tokens="auto")
    error = converse(MODES[0], pipe, pipe.request(endpoint, chat("Hi"), {}))
    assert isinstance(error, BrixConfigurationError)
    assert "max_context_tokens='auto'" in str(error)
    assert "'my-model'" in str(error)
    assert not endpoint.requests


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_context_tokens": 0}, "int >= 1"),
        ({"max_context_tokens": 500}, "leaves nothing"),
        ({"max_context_tokens": "much"}, "'auto'"),
        ({"max_context_tokens": True}, "int >= 1"),
        ({"max_context_tokens": 9_000, "context_reserve_tokens": -1}, "int >= 0"),
        ({"max_context_tokens": 9_000, "context_strategy": "summary"}, "'summarize'"),
        ({"max_context_tokens": 9_000, "context_overflow": "cut"}, "'truncate'"),
        ({"max_context_tokens": 9_000, "context_summary_model": "gpt-4o-mini"}, "no effect"),
        (
            {"max_context_tokens": 9_000, "context_strategy": "summarize", "context_summary_model": ""},
            "name of a model",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BrixConfigurationError, match=says):
        ContextConfig(**options)
