"""JSON out of what models write: found wherever it stands, mended where that is certain, refused where it is not."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core.structured.extraction import candidates, extract
from brix_core.structured.partial_json import PartialJSON, partial_json
from brix_core.structured.response_schema import ResponseSchema, SchemaMismatch
from tests.support.malformed import SCHEMA, malformed_answers

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
CONTAINERS = (st.lists(VALUES, min_size=1) | st.dictionaries(st.text(), VALUES, min_size=1)).filter(
    lambda value: json.loads(json.dumps(value)) == value
)
MARKS = r"""{ } [ ] " ' , : \ ``` ~~~ <think> </think> // /* */ # 1 - 1e999 NaN true None a é “ ” \u \ud800 ..."""
NASTY = st.lists(st.sampled_from([*MARKS.split(), "\n", " ", "\ud800", "\ufeff"]), max_size=60).map("".join)


def first(text: str) -> Any:
    found = extract(text)
    assert found is not None, "nothing was found"
    return found.value


@settings(max_examples=150, deadline=None)
@given(
    CONTAINERS,
    st.booleans(),
    st.sampled_from(
        (
            "@",
            "  @\n",
            "```json\n@\n```",
            "```\n@\n```",
            "~~~\n@\n~~~",
            "```json\n@",
            "````markdown\n```json\n@\n```\n````",
            "Here it is:\n@\nAnything else?",
            "The answer is @ as you see.",
            "<think>perhaps [1] or {</think>\n@",
            "thoughts of {'a': 1}</think>@",
            "<Reasoning>hm</Reasoning>```json\n@\n```",
            "I use {name} for names.\n@",
        )
    ),
)
def test_a_value_comes_back_equal_from_any_wrapping(value: Any, ascii_only: bool, wrapping: str) -> None:
    assert first(wrapping.replace("@", json.dumps(value, ensure_ascii=ascii_only))) == value


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",))), st.text(st.characters(exclude_categories=("Cs",))))
def test_mending_never_changes_what_is_in_a_string(key: str, value: str) -> None:
    text = f"Sure: {{{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}, // mine\n}} there."

    assert first(text) == {key: value}


@settings(max_examples=300, deadline=None)
@given(NASTY | st.text())
def test_no_text_raises(text: str) -> None:
    list(candidates(text))
    partial_json(text)


@pytest.mark.parametrize(
    "piece", ["{", "[", "```", "<think>", "</think>", '"', '{"a":', "[[1,", "{}", "{name} is ", "{/*"]
)
@pytest.mark.parametrize("tail", ["", '{"a":1}'])
def test_time_is_linear_on_hostile_text(piece: str, tail: str) -> None:
    text = piece * (100_000 // len(piece)) + tail
    started = time.perf_counter()
    list(candidates(text))
    partial_json(text)

    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ('{"a": "b"}', "strict"),
        ('```json\n{"a": "b"}\n```', "fenced"),
        ('<think>x</think>{"a": "b"}', "fenced"),
        ('It is {"a": "b"}, I think', "embedded"),
        ("{'a': 'b'}", "literal"),
        ('{"a": "b",}', "repaired"),
        ('{a: "b"}', "repaired"),
        ("{“a”: “b”}", "repaired"),
        ('{"a": /* why */ "b"}', "repaired"),
    ],
)
def test_a_candidate_says_how_it_was_got(text: str, how: str) -> None:
    found = extract(text)

    assert found is not None
    assert (found.value, found.how) == ({"a": "b"}, how)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot answer that.",
        '{"a": "cut of',
        '{"a": 12',
        '{"a": 1, "b": ',
        '{"a": 1,',
        '{"items": [1, 2',
        '[{"a": 1}, {"a": 2}',
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": 1,000, "b": 2}',
        '{"a": [1, ...]}',
        '{"a": [1, // ... and more\n]}',
        "{'a': 1, 'a': 2}",
        "{'a': ('b')}",
        '{"a": oops, "b": {"c": 1}}',
        '{"a": {"b": 1}}, "c": 2}',
        '"a": {"b": 1}, "c": 2}',
        '{"a": 1} {"a": 2}',
        '{"a": 1}, {"a": 2}',
        '{"a": 1}\n{"a": 2}\n{"a": 3}',
        '{"a": 1} Corrected: {"a": 2, "b": [1, ',
        '{"a": 1} Corrected: {"a',
        '{"a": 1} Corrected: {',
        '```json\n{"a": 1}\n```\nCorrected:\n```json\n{"a": 2, "b": "cu',
        '<think>{"a": 1}',
        '{"a": 1}</think> I cannot say.',
        r"{'a': 'C:\temp\docs'}",
        '["a" "b"]',
        '{"a": "\\ud800"}',
        "[" * 500 + "]" * 500,
    ],
)
def test_nothing_is_accepted_that_would_need_a_guess(text: str) -> None:
    assert [found.value for found in candidates(text)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1} Wait, no: {"a": 2}', {"a": 2}),
        ('```json\n{"a": 1}\n```\nBetter:\n```json\n{"a": 2,}\n```', {"a": 2}),
        ('```json\n{"a": 1}\n\nBetter:\n\n{"a": 2}\n```', {"a": 2}),
        ('```json\n{"a": 1}\n```\nNot to be confused with {"b": 1}.', {"a": 1}),
        ('{"a": 1} {"a": 1}', {"a": 1}),
        ('Broken: {"a": oops} and mended: {"a": 2}', {"a": 2}),
        ('{"a": 1}\n\nSources: [1], [2]', {"a": 1}),
        ('No entries {}: {"a": 1}. Rest: {}', {"a": 1}),
        ("{{'a': 1}}", {"a": 1}),
    ],
)
def test_the_last_complete_value_is_the_answer(text: str, expected: Any) -> None:
    assert first(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"code": "```py\nprint({})\n```"}', {"code": "```py\nprint({})\n```"}),
        ('Here: {"t": "</think> and <think>"}', {"t": "</think> and <think>"}),
        ('{"t": "a // b, } ]",}', {"t": "a // b, } ]"}),
        (r'{"re": "\d+\.\d"}', {"re": r"\d+\.\d"}),
        ('{"t": "he said "hi" to me", "n": 1}', {"t": 'he said "hi" to me', "n": 1}),
        ("{'t': \"it's\"}", {"t": "it's"}),
        (r"{'t': 'it\'s'}", {"t": "it's"}),
        ('{“t”: “say "hi", it’s”}', {"t": 'say "hi", it’s'}),  # noqa: RUF001 - the apostrophe is the point
    ],
)
def test_marks_inside_strings_are_text(text: str, expected: Any) -> None:
    assert first(text) == expected


def test_an_object_without_its_last_brace_is_marked_as_cut() -> None:
    found = extract('{"a": {"b": 1}')

    assert found is not None
    assert (found.value, found.how, found.cut) == ({"a": {"b": 1}}, "repaired", True)


def test_a_draft_does_not_stand_in_for_a_refused_answer_that_was_cut_off() -> None:
    assert extract('{"a": 1, "b": 2} Corrected: {"a": "x"', accepts=lambda value: "b" in value) is None


def test_scalars_are_found_in_fences_and_behind_think_blocks() -> None:
    assert first("```json\n42\n```") == 42
    assert first('<think>hm</think>"yes"') == "yes"


def test_malformed_answers_are_read_right_or_not_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    schema = ResponseSchema.of(SCHEMA)
    answers = malformed_answers()
    right = wrong = 0
    for answer in answers:
        try:
            value = schema.read(answer.text)
        except SchemaMismatch:
            continue
        right += value == answer.truth
        wrong += value != answer.truth
    recoverable = sum(answer.recoverable for answer in answers)
    with capsys.disabled():
        print(f"\n{right} of {len(answers)} malformed answers read, {recoverable} can be; {wrong} read wrong")

    assert wrong == 0
    assert right >= 0.78 * len(answers)
    assert right >= 0.97 * recoverable


def test_malformed_answers_are_the_same_for_the_same_seed() -> None:
    assert malformed_answers(20, seed=3) == malformed_answers(20, seed=3)
    assert {kind for answer in malformed_answers() for kind in answer.kinds} >= {"cut", "nan", "drafts", "smart_quotes"}


@settings(max_examples=100, deadline=None)
@given(CONTAINERS, st.integers(1, 9))
def test_a_stream_ends_with_the_whole_value(value: Any, size: int) -> None:
    text = "<think>{no}</think>Here:\n```json\n" + json.dumps(value) + "\n```"
    growing = PartialJSON()
    for at in range(0, len(text), size):
        growing.feed(text[at : at + size])

    assert growing.value == partial_json(text) == value


def test_a_growing_text_is_parsed_in_proportion_to_its_length() -> None:
    text = json.dumps([{"text": "x" * 50, "n": n} for n in range(3000)])
    growing = PartialJSON()
    started = time.perf_counter()
    for at in range(0, len(text), 4):
        growing.feed(text[at : at + 4])

    assert growing.value == json.loads(text)
    assert time.perf_counter() - started < 1.0


def test_a_stream_without_json_has_no_value() -> None:
    growing = PartialJSON()

    assert [growing.feed(piece) for piece in ("I see {name}", " and <think>", '{"a": 1}')] == [None, None, None]
