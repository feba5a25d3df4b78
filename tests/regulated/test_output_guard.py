"""The output guard: what is blocked never reaches a consumer, however it is spelled, marked up and cut into chunks."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brix_core import (
    BrixBudgetError,
    BrixConfigurationError,
    BrixGuardBlockedError,
    BrixGuardError,
    BrixSchemaError,
    BrixTimeoutError,
    SchemaAttempt,
)
from brix_core.call import CallRequest, CallResponse, ToolCall
from brix_core.regulated import OutputGuard, SpecValidationError, load_spec, load_spec_from_dict, variants
from brix_core.regulated.text.rendering import Rendering, rendered
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.virtual import VirtualClock


def blocking(name: str, *patterns: str, **more: Any) -> dict[str, Any]:
    rule = {"name": name, "description": f"Says {name}.", "patterns": patterns, "weight": 1.0, "signal_type": "block"}
    return {**rule, **more}


def raising(name: str, pattern: str, weight: float, category: str = "registered") -> dict[str, Any]:
    return {"name": name, "description": f"Says {name}.", "patterns": [pattern], "weight": weight, "category": category}


SPEC = load_spec_from_dict(
    {
        "name": "clinic",
        "version": "1.2.0",
        "output_signals": [
            blocking("dose", "lethal dose", "maximum ... dose"),
            blocking("poison", "ricin", message="Ask a pharmacist."),
            blocking("secret", "(buy|sell) insider shares"),
            raising("cure", "guaranteed cure", 0.6),
            raising("hope", "miracle", 0.3),
            raising("trust", "trust me", 0.25, "universal"),
            raising("hurry", "act now", 0.25, "universal"),
        ],
    }
)
GUARD = OutputGuard(SPEC)
BLOCKED = [
    "lethal dose",
    "Lethal doses",
    "maximum dose",
    "maximum and safe daily dose",
    "ricin",
    "R\u0456cin",
    "buy insider shares",
    "selling insider shares",
]
LEADING = {
    "lethal** dose": "**",
    "lethal_ `dose`": "_",
    "le</b>thal dose": "<b>",
    "lethal](https://example.org/a?b=c) dose": "[",
    "lethal</p><p>dose": "<p>",
}
"""What may stand before it, and is no part of it."""
MARKED_UP = [
    *LEADING,
    "lethal<br/>dose",
    "lethal&nbsp;dose",
    "l&#101;thal &#x64;ose",
    r"lethal\ndose",
    r"\u006cethal\u0020dose",
    r"lethal\\ndose",
    r"lethal\_dose",
    "lethal <!-- x -->dose",
]
HARMLESS = [
    "The let hal of documents, a lethargic dosage: nothing else.",
    "Buy shares of insiders' companies. Maximum speed is 30 km/h, and then\n\na dose of sunshine.",
    "a lethal weapon in the film; dose it yourself",
    "riciner is no word & 3 < 4, [link](https://example.org) **bold** `code` \\alpha \\n",
    "letha",
]


class Reader:
    """Reads streams through a guard, and sees what a consumer sees."""

    def __init__(self, guard: OutputGuard = GUARD) -> None:
        self.guard = guard
        self.endpoint = FakeEndpoint(VirtualClock())
        self.pipe = pipeline(self.endpoint.clock, trace_buffer_size=1)
        self.driver = Driver(self.pipe, self.endpoint)
        self.seen = ""
        self.error: BrixGuardBlockedError | None = None

    def request(self, **context: str) -> CallRequest:
        request = self.driver.request(stream=True)
        return self.guard.watched(request, **context)

    def read(self, chunks: Sequence[str], **context: str) -> bool:
        """Whether the stream was stopped."""
        self.endpoint.chunks = [chunk for chunk in chunks if chunk]
        self.seen, self.error = "", None
        try:
            for chunk in self.pipe.stream(self.request(**context)):
                self.seen += chunk
        except BrixGuardBlockedError as error:
            self.error = error
        return self.error is not None


def cut(text: str, places: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in zip((0, *places), (*places, len(text)), strict=True)]


def chunkings(text: str) -> Iterator[list[str]]:
    """Every one of them for short texts; else all with two cuts, and characters one by one."""
    inner = range(1, len(text))
    if len(text) <= 11:
        for count in range(len(text)):
            for places in combinations(inner, count):
                yield cut(text, places)
        return
    yield [text]
    yield list(text)
    for places in combinations(inner, 2):
        yield cut(text, places)


def check_stopped(reader: Reader, before: str, phrase: str, chunks: Sequence[str]) -> None:
    assert reader.read(chunks), f"{chunks} was not stopped"
    assert before.startswith(reader.seen), f"{reader.seen!r} of {phrase!r} got through {chunks}"
    assert reader.error is not None
    assert reader.error.partial == reader.seen


@pytest.mark.parametrize("phrase", [*BLOCKED, *MARKED_UP])
def test_no_part_of_what_is_blocked_gets_through_however_it_is_cut(phrase: str) -> None:
    reader = Reader()
    ways = 0
    for chunks in chunkings(phrase):
        check_stopped(reader, "", phrase, chunks)
        ways += 1
    if leading := LEADING.get(phrase):
        check_stopped(reader, leading, phrase, [*leading, *phrase])
        ways += 1
    assert len(reader.endpoint.sent) == ways
    size = len(phrase)
    assert ways >= (2 ** (size - 1) if size <= 11 else 2 + (size - 1) * (size - 2) // 2)


@pytest.mark.parametrize("phrase", [*BLOCKED, *MARKED_UP])
@pytest.mark.parametrize("before", ["So: ", "<p>*A* & b, ", "letha lethal, "], ids=["plain", "marked", "almost"])
def test_what_stands_before_it_arrives_and_no_more(before: str, phrase: str) -> None:
    reader = Reader()
    text = f"{before}{phrase} it is."
    begins = range(max(1, len(before) - 2), len(before) + len(phrase) + 2)
    for places in [*((place,) for place in begins), *pairwise(begins), tuple(begins)]:
        check_stopped(reader, before, phrase, cut(text, places))
    assert reader.read(cut(text, begins))
    assert len(reader.seen) >= len(before) - len("lethal, ")


@pytest.mark.parametrize("pattern", ["lethal dose", "ricin", "buy insider shares", "maximum ... dose"])
def test_evasive_spellings_do_not_get_through_either(pattern: str) -> None:
    reader = Reader()
    names = set()
    for name, text in variants(pattern):
        if not GUARD.analyze_sync(text).output_blocked:
            continue  # what the text engine does not see is counted in its own tests
        names.add(name)
        before, whole = "Well. ", f"Well. {text}. So."
        begin = next(place for place, letter in enumerate(whole) if place >= len(before) and letter.isalnum())
        for chunks in ([whole], list(whole), *(cut(whole, (place,)) for place in range(1, len(whole)))):
            check_stopped(reader, whole[:begin], text, chunks)
    assert len(names) >= 10


@pytest.mark.parametrize("name", ["medical", "legal", "finance", "hr", "general"])
def test_what_the_built_in_specs_block_does_not_get_through(name: str) -> None:
    guard = OutputGuard(name)
    reader = Reader(guard)
    blocked = 0
    for case in guard.spec.test_cases:
        text = case.text
        if case.where != "output" or not guard.analyze_sync(text).output_blocked:
            continue
        blocked += 1
        begin = min(match.start for match in guard.blocking.scan(text))
        for size in (1, 9, len(text)):
            check_stopped(reader, text[:begin], text, cut(text, range(size, len(text), size)))
    assert blocked >= 5


@st.composite
def _pieces(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> list[str]:
    text = draw(texts)
    places = draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    return cut(text, places)


PARTS = ["lethal", " dose", "maximum", " ", "\n\n", "a", "*", "<b", "\\u00"]
SAID = st.lists(st.sampled_from([*BLOCKED, *MARKED_UP, *HARMLESS, *PARTS]), max_size=5).map("".join)
MARKS = [*r"<>\u006e&#1;[]()*_`~/ n", "</b>", "&amp;", r"\ud83d\ude00"]


@settings(max_examples=300)
@given(_pieces(SAID))
@example(["letha", "l", " ", "dos", "e"])
@example([r"lethal\u002", "0dose"])
def test_a_stream_is_stopped_where_the_whole_answer_is_blocked_and_only_there(chunks: list[str]) -> None:
    reader = Reader()
    text = "".join(chunks)
    blocked = GUARD.analyze_sync(text).output_blocked
    assert reader.read(chunks) == blocked
    if not blocked:
        assert reader.seen == text
    else:
        begins = [match.start for match in GUARD.blocking.scan(text)]
        assert text.startswith(reader.seen)
        assert len(reader.seen) <= min(begins, default=len(text) - 1)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_arrives_whole_and_soon(text: str) -> None:
    reader = Reader()
    for chunks in ([text], list(text), *(cut(text, (place,)) for place in range(1, len(text)))):
        assert not reader.read(chunks)
        assert reader.seen == text
    hook = GUARD.stream()
    for character in text * 5:
        hook(character)
        # A gap of a pattern is 80 characters; a tag and a link's address are let through at their end.
        assert hook.held_back() <= 120
    ordinary = GUARD.stream()
    for word in re.findall(r"\S+ ", "Please read the leaflet and ask somebody who knows about it. " * 5):
        ordinary(word)
        assert ordinary.held_back() <= 8


@settings(max_examples=200)
@given(_pieces(st.lists(st.sampled_from([*MARKED_UP, *MARKS])).map("".join)))
@example([r"\ud83d\ude00\ud83", r"d\ude00"])
@example([r"a \ud83d\ude00", "b"])
def test_markup_is_read_the_same_in_pieces(pieces: list[str]) -> None:
    rendering = Rendering()
    text = "".join(pieces)
    assert "".join([*(rendering.feed(piece) for piece in pieces), rendering.finish()]) == rendered(text)


async def test_an_answer_is_judged_by_the_formula_of_risk() -> None:
    result = await GUARD.analyze("A guaranteed cure, a miracle: trust me and act now!", query="Does it help?")
    assert result.model_dump() == {
        "output_blocked": False,
        "output_risk_score": pytest.approx(0.9),
        "output_signals_triggered": ("cure", "hope", "trust", "hurry"),
        "output_block_signal": None,
        "output_risk_breakdown": {
            "max_registered": 0.6,
            "registered_component": 0.6,
            "sum_universal": 0.5,
            "universal_component": pytest.approx(0.3),
            "raw_score": pytest.approx(0.9),
        },
        "response_safe_to_display": False,
    }
    assert (await GUARD.analyze("A guaranteed cure.")).response_safe_to_display
    harmless = await GUARD.analyze("Drink water.")
    assert (harmless.output_risk_score, harmless.output_risk_breakdown) == (0.0, {})


async def test_what_blocks_is_named_and_not_safe_to_display() -> None:
    result = await GUARD.analyze("Trust me, the lethal dose of ricin is ...")
    assert (result.output_blocked, result.output_block_signal) == (True, "dose")
    assert (result.output_risk_score, result.response_safe_to_display) == (1.0, False)
    assert result.output_signals_triggered == ("dose", "poison", "trust")
    error = GUARD.refusal("poison", "Well")
    assert (error.guard, error.partial) == ("regulated", "Well")
    for told in ("'poison'", "clinic 1.2.0", "Ask a pharmacist."):
        assert told in str(error)


async def test_the_example_of_the_documentation_runs(tmp_path: Any) -> None:
    path = tmp_path / "my_spec.yaml"
    path.write_text(
        "name: mine\noutput_signals:\n"
        "- {name: cure, description: Promises., patterns: [guaranteed cure], weight: 0.6}\n"
    )
    response_text, original_query = "It is a guaranteed cure.", "Does it help?"
    guard = OutputGuard(load_spec(path))
    result = await guard.analyze(response_text, query=original_query)
    assert result.output_signals_triggered == ("cure",)
    assert OutputGuard(str(path)).analyze_sync(response_text) == result


def test_all_that_a_model_gave_is_looked_at() -> None:
    call = ToolCall(id="1", name="search", arguments=r'{"query": "the lethal\ndose"}')
    for response in (
        CallResponse(text="The lethal dose"),
        CallResponse(text="Wait.", tool_calls=(call,)),
        CallResponse(text="No.", raw={"choices": [{"message": {"content": "No.", "reasoning": "a lethal dose"}}]}),
        CallResponse(text="No.", raw=SPEC.model_copy(update={"extra": ["lethal dose"]})),
    ):
        assert GUARD.analyze_response(response).output_block_signal == "dose"
    tokens = {"logprobs": {"content": ["lethal dose"]}, "n": 3, "none": None}
    assert not GUARD.analyze_response(CallResponse(text="No.", raw=tokens)).output_blocked


def test_phrases_that_exclude_a_rule_do_so_by_standing_in_the_question_never_in_the_answer() -> None:
    def guard(**more: Any) -> OutputGuard:
        rule = blocking("dose", "lethal dose", exclude_context=["toxicology course"], **more)
        return OutputGuard({"name": "course", "output_signals": [rule]})

    said, phrase = "The lethal dose is a topic of the toxicology course.", "This is a toxicology course."
    for rules, query, context, blocked in [
        (guard(), "", "", True),
        (guard(), phrase, "", True),
        (guard(), "", phrase, False),
        (guard(exclude_from="query"), phrase, "", False),
        (guard(exclude_from="query"), "", phrase, False),
        (guard(exclude_from="query"), "", "", True),
    ]:
        assert rules.analyze_sync(said, query=query, context=context).output_blocked == blocked
        reader = Reader(rules)
        assert reader.read(["The le", "thal dose", " is"], query=query, context=context) == blocked
        assert reader.seen == ("The " if blocked else "The lethal dose is")[: len(reader.seen)]


MEANING = {
    "name": "meaning",
    "output_signals": [
        {
            "name": "door",
            "description": "Tells the door code.",
            "examples": {"positive": ["The code of the door is 1234."], "threshold": 0.2},
            "weight": 1.0,
            "signal_type": "block",
        }
    ],
}


async def test_what_is_blocked_by_its_meaning_holds_a_stream_back_to_its_end() -> None:
    guard = OutputGuard(MEANING, embedder="lexical")
    assert guard.needs_whole_answers
    assert (await guard.analyze("The code of the door is 9876.")).output_blocked
    assert not (await guard.analyze("The weather is fine.")).output_blocked
    reader = Reader(guard)
    assert reader.read(["The code of ", "the door ", "is 9876."])
    assert reader.seen == ""
    assert not reader.read(["The weather ", "is fine."])
    assert reader.seen == "The weather is fine."


async def test_an_embedder_that_fails_lets_nothing_through() -> None:
    def broken(texts: Sequence[str]) -> list[list[float]]:
        raise ValueError("no vectors today")

    guard = OutputGuard(MEANING, embedder=broken)
    with pytest.raises(Exception, match="no vectors today"):
        await guard.analyze("Hello.")
    reader = Reader(guard)
    with pytest.raises(Exception, match="no vectors today"):
        reader.read(["Hel", "lo."])
    assert reader.seen == ""


async def test_one_guard_serves_many_at_once() -> None:
    texts = ["Drink water.", "The lethal dose", "A guaranteed cure."] * 20
    results = await asyncio.gather(*map(GUARD.analyze, texts))
    assert [result.output_blocked for result in results] == [False, True, False] * 20
    first, second = GUARD.stream(), GUARD.stream()
    first("leth")
    second("al dose")
    first("argic")
    assert first.anew() is not first
    with pytest.raises(BrixGuardBlockedError):
        first(" lethal dose.")
    with pytest.raises(BrixGuardBlockedError):
        first("still stopped")
    assert first.held_back() > 0
    first.anew()("al dose")


@pytest.mark.parametrize(("response", "more"), [(None, {}), (b"x", {}), (["x"], {}), ("x", {"query": 3})])
def test_what_is_no_text_is_refused(response: Any, more: dict[str, Any]) -> None:
    with pytest.raises(BrixConfigurationError, match="as a str, got"):
        GUARD.analyze_sync(response, **more)


def test_what_is_no_spec_is_refused() -> None:
    with pytest.raises(SpecValidationError):
        OutputGuard("no such spec")


def test_what_errors_tell_of_answers_is_looked_at_too() -> None:
    attempt = SchemaAttempt("the lethal dose", how="text")
    timeout = BrixTimeoutError("late", kind="call", limit=1.0, elapsed=1.0, partial="a lethal dose")
    healing = BrixBudgetError("no money")
    healing.schema_attempts = (attempt,)
    blocked = [
        BrixGuardError("'the lethal dose' does not fit"),
        timeout,
        healing,
        BrixSchemaError("", attempts=[attempt]),
    ]
    assert [GUARD.blocks_error(error) for error in blocked] == ["dose"] * len(blocked)
    assert GUARD.blocks_error(BrixSchemaError("no valid answer", attempts=[SchemaAttempt("{}", how="text")])) is None


def test_nothing_to_look_for_is_nothing_held_back() -> None:
    reader = Reader(OutputGuard({"name": "empty"}))
    assert not reader.read(["lethal ", "dose"])
    hook = reader.guard.stream()
    hook("anything <b")
    assert hook.held_back() <= 2


def test_long_answers_are_looked_at_in_linear_time() -> None:
    def seconds(text: str) -> float:
        began = time.perf_counter()
        GUARD.analyze_sync(text)
        return time.perf_counter() - began

    for unit in ("Please read the leaflet. ", "<b", "\\", "&", "](", "*", "lethal maximum "):
        GUARD.analyze_sync(unit * 50)
        short = min(seconds(unit * (10_000 // len(unit))) for _ in range(3))
        long = min(seconds(unit * (80_000 // len(unit))) for _ in range(2))
        assert long < 30 * short + 0.05, unit
