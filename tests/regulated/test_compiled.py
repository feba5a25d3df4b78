"""A compiled spec: what is met, where, by what it is lowered, and that nothing that fails opens the gate."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brix_core.embedding import LexicalEmbedder
from brix_core.embedding.vectors import Vectors
from brix_core.errors import BrixConfigurationError, BrixError, BrixGuardError
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.rules.hits import Hit, Inputs
from brix_core.regulated.rules.meaning import windows
from brix_core.regulated.rules.remembering import Remembering
from brix_core.regulated.text.evasion import WAYS

KEY = "Where do you keep the spare door key?"


def breaker(name: str = "keys", **fields: Any) -> dict[str, Any]:
    return {"name": name, "description": "Asks for keys.", "patterns": ["spare ... key"], **fields}


def compiled(*breakers: dict[str, Any], embedder: Any = None, signals: Any = (), **groups: Any) -> CompiledSpec:
    return CompiledSpec.of({"name": "house", "circuit_breakers": list(breakers), **groups}, embedder, signals)


def stops(spec: CompiledSpec, inputs: Inputs) -> list[str]:
    return [hit.name for hit in spec.breakers(inputs) if hit.counts]


class Counting:
    """The lexical embedder, with a count of what it is asked."""

    name = "counting"

    def __init__(self, failing: bool = False) -> None:
        self.texts: list[str] = []
        self.failing = failing
        self._inner = LexicalEmbedder()
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            self.texts += texts
        if self.failing:
            raise ConnectionError("no route to host")
        return self._inner.embed(texts)


# --- where and what


def test_a_match_tells_rule_pattern_place_and_surroundings_in_the_original_text() -> None:
    spare, key = WAYS["fullwidth"]("SPARE"), WAYS["cyrillic"]("key")
    said = f"{spare}\u200b d-o-o-r {key}"
    text = f"{'Good morning. ' * 10}Where is the {said}? Thanks."
    (hit,) = compiled(breaker()).breakers(Inputs(text))
    (found,) = hit.matches

    assert (hit.name, hit.rule.name, hit.score, hit.excluded_by, hit.weight) == ("keys", "keys", 1.0, None, 1.0)
    assert (found.rule, found.pattern, found.where) == ("keys", "spare ... key", "query")
    assert text[found.start : found.end] == said
    assert text[found.excerpt_start :].startswith(found.excerpt)
    assert found.excerpt[found.start - found.excerpt_start :].startswith(spare)
    assert found.as_dict()["start"] == found.start


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({}, {"query", "tool_arguments"}),
        ({"scope": "conversation"}, {"query", "user", "tool_arguments"}),
        ({"applies_to": ["messages"]}, {"query"}),
        ({"applies_to": ["tool_arguments"], "scope": "conversation"}, {"tool_arguments"}),
        ({"applies_to": ["retrieved"]}, {"retrieved"}),
        (
            {"applies_to": ["messages", "tool_arguments", "retrieved"], "scope": "conversation"},
            {"query", "user", "tool_arguments", "retrieved"},
        ),
    ],
)
@pytest.mark.parametrize("by", ["patterns", "examples"])
def test_a_rule_looks_where_it_says_and_nowhere_else(by: str, fields: dict[str, Any], where: set[str]) -> None:
    examples = {"patterns": [], "examples": {"positive": [KEY], "threshold": 0.8}}
    meant: dict[str, Any] = examples if by == "examples" else {}
    spec = compiled(breaker(**fields, **meant), embedder="lexical")
    inputs = Inputs(KEY, user_texts=(KEY, "Hello.", KEY), tool_arguments=(KEY,), retrieved=(KEY,), system_texts=(KEY,))
    (hit,) = spec.breakers(inputs)
    assert {found.where for found in hit.matches} == where

    for place in ("query", "user", "tool_arguments", "retrieved"):
        said: dict[str, dict[str, Any]] = {
            "query": {"query": KEY},
            "user": {"query": "Hi.", "user_texts": (KEY, "Hi.")},
            "tool_arguments": {"query": "Hi.", "tool_arguments": (KEY,)},
            "retrieved": {"query": "Hi.", "retrieved": (KEY,)},
        }
        assert stops(spec, Inputs(**said[place])) == (["keys"] if place in where else [])


def test_a_phrase_is_not_put_together_from_two_messages() -> None:
    spec = compiled(breaker(scope="conversation"))
    assert stops(spec, Inputs("key", user_texts=("the spare", "key"))) == []


def test_breakers_come_in_the_order_of_the_spec() -> None:
    spec = compiled(breaker("second", patterns=["door"]), breaker("first", patterns=["spare"]))
    assert stops(spec, Inputs(KEY)) == ["second", "first"]


def test_nothing_is_met_in_nothing() -> None:
    spec = compiled(breaker(examples={"positive": [KEY]}), embedder="lexical", signals=[lambda text: True])
    for text in ("", " \n\t", "\u00a0"):
        assert spec.breakers(Inputs(text)) == spec.signals(Inputs(text)) == []
    assert compiled().breakers(Inputs(KEY)) == []


# --- what lowers a rule


def test_by_default_only_system_messages_lower_a_rule() -> None:
    spec = compiled(breaker(exclude_context=["locksmith course"]))
    said = f"Locksmith course: {KEY} locksmith course"
    assert stops(spec, Inputs(said, user_texts=("locksmith course", said), tool_arguments=("locksmith course",))) == [
        "keys"
    ]

    (hit,) = spec.breakers(Inputs(KEY, system_texts=("You teach.", "This is a LOCKSMITH\ncourse.")))
    assert (hit.counts, hit.excluded_by) == (False, "locksmith course")
    assert hit.matches


@given(before=st.text(max_size=40), after=st.text(max_size=40), phrases=st.integers(0, 3))
def test_no_words_of_the_user_lower_a_rule_that_does_not_allow_it(before: str, after: str, phrases: int) -> None:
    text = f"{before}\n\n{KEY}\n\n{'locksmith course ' * phrases}{after}"
    assert stops(_BY_SYSTEM, Inputs(text, user_texts=("locksmith course", text))) == ["keys"]


_BY_SYSTEM = compiled(breaker(exclude_context=["locksmith course"]))


def test_a_rule_may_let_users_lower_it_but_only_in_the_very_text_they_say_it_in() -> None:
    spec = compiled(breaker(exclude_context=["locksmith course"], exclude_from="query", scope="conversation"))
    assert stops(spec, Inputs(f"{KEY} It is for my locksmith course.")) == []
    assert stops(spec, Inputs(KEY, system_texts=("A locksmith course.",))) == []
    # said in another message, or beside another match
    assert stops(spec, Inputs(KEY, user_texts=("I take a locksmith course.", KEY))) == ["keys"]
    assert stops(spec, Inputs(f"{KEY} For my locksmith course.", tool_arguments=(KEY,))) == ["keys"]


def test_a_phrase_of_one_rule_does_not_lower_another() -> None:
    spec = compiled(breaker(exclude_context=["locksmith course"]), breaker("doors", patterns=["door"]))
    inputs = Inputs(KEY, system_texts=("A locksmith course.",))
    assert [(hit.name, hit.excluded_by) for hit in spec.breakers(inputs)] == [
        ("keys", "locksmith course"),
        ("doors", None),
    ]


# --- what was seen before


def test_what_was_seen_before_is_not_looked_at_again_and_memory_is_bounded() -> None:
    embedder = Counting()
    spec = compiled(breaker(patterns=[], scope="conversation", examples={"positive": [KEY]}), embedder=embedder)
    said: list[str] = []
    for number in range(30):
        said.append(f"Question {number}?")
        assert stops(spec, Inputs(said[-1], user_texts=tuple(said))) == []
    assert sorted(embedder.texts) == sorted([KEY, *said])

    lengths = Remembering(len, most=1_000)
    for number in range(500):
        assert lengths("x" * (number % 400)) == number % 400
        assert lengths.characters <= 1_000


def test_a_failure_is_not_remembered() -> None:
    embedder = Counting(failing=True)
    spec = compiled(breaker(patterns=[], examples={"positive": [KEY], "threshold": 0.5}), embedder=embedder)
    with pytest.raises(BrixGuardError):
        spec.breakers(Inputs(KEY))
    embedder.failing = False
    assert stops(spec, Inputs(KEY)) == ["keys"]


# --- examples


def test_examples_are_met_by_likeness_and_not_where_a_harmless_one_is_nearer() -> None:
    examples = {"positive": [KEY], "negative": ["Which key is this song in?"], "threshold": 0.5}
    spec = compiled(breaker(patterns=[], examples=examples), embedder="lexical")

    (hit,) = spec.breakers(Inputs("where do you keep the spare door key??"))
    assert 0.5 < hit.score <= 1
    assert hit.matches[0].pattern == f"like: {KEY}"
    assert stops(spec, Inputs("Which key is this song in, please?")) == []
    assert stops(spec, Inputs("Tell me a story.")) == []


def test_the_threshold_decides() -> None:
    said = "Where might one keep the other door key?"
    scores = []
    for threshold in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        spec = compiled(breaker(patterns=[], examples={"positive": [KEY], "threshold": threshold}), embedder="lexical")
        hits = spec.breakers(Inputs(said))
        assert all(hit.score >= threshold for hit in hits)
        scores.append(len(hits))
    assert scores == sorted(scores, reverse=True)
    assert {0, 1} == set(scores)


@pytest.mark.parametrize(
    "filling", ["The weather is fine today. " * 200, "x" * 5_000 + ". ", "words without end " * 300]
)
def test_what_stands_in_a_long_text_is_not_drowned(filling: str) -> None:
    spec = compiled(breaker(patterns=[], examples={"positive": [KEY], "threshold": 0.6}), embedder="lexical")
    text = f"{filling}\n{KEY}\n{filling}"
    (hit,) = spec.breakers(Inputs(text))
    found = hit.matches[0]
    assert KEY in text[found.start : found.end]


@pytest.mark.parametrize("way", WAYS)
def test_examples_are_met_in_disguise_too(way: str) -> None:
    spec = compiled(breaker(patterns=[], examples={"positive": [KEY], "threshold": 0.6}), embedder="lexical")
    assert stops(spec, Inputs(WAYS[way](KEY))) == ["keys"]


@given(st.text(alphabet=st.sampled_from("ab .!?\n\u200bé"), max_size=1_500))
def test_windows_cover_all_that_a_text_says(text: str) -> None:
    covered = set()
    for start, end in windows(text):
        assert 0 <= start < end <= len(text)
        covered |= set(range(start, end))
    assert [text[place] for place in range(len(text)) if place not in covered and not text[place].isspace()] == []


def test_a_pattern_stops_a_text_whatever_the_embedder_does() -> None:
    embedder = Counting(failing=True)
    spec = compiled(breaker(examples={"positive": [KEY]}), embedder=embedder)
    assert stops(spec, Inputs(KEY)) == ["keys"]
    assert embedder.texts == []


def test_whoever_wants_to_know_all_that_is_met_is_told_what_examples_would_say_too() -> None:
    near = breaker("near", patterns=[], examples={"positive": [KEY], "threshold": 0.5})
    spec = compiled(near, breaker(), embedder="lexical")
    assert [hit.name for hit in spec.breakers(Inputs(KEY))] == ["keys"]
    assert sorted(hit.name for hit in spec.breakers(Inputs(KEY), every=True)) == ["keys", "near"]


def test_an_embedder_that_fails_opens_no_gate() -> None:
    rule = {"name": "doors", "description": "d", "weight": 0.5, "examples": {"positive": ["A door."]}}
    spec = compiled(breaker(examples={"positive": [KEY]}), embedder=Counting(failing=True), risk_signals=[rule])
    for look in (spec.breakers, spec.signals):
        with pytest.raises(BrixGuardError, match="the call is not made: ConnectionError: no route to host") as caught:
            look(Inputs("Hello."))
        assert isinstance(caught.value.__cause__, ConnectionError)
        assert caught.value.guard == "regulated"


def test_examples_are_embedded_once_and_a_text_once_for_breakers_and_signals() -> None:
    embedder = Counting()
    rule = {"name": "doors", "description": "d", "weight": 0.5, "examples": {"positive": ["A door."]}}
    spec = compiled(breaker(patterns=[], examples={"positive": [KEY]}), embedder=embedder, risk_signals=[rule])
    assert embedder.texts == [], "embedded before it was needed"

    def look(number: int) -> None:
        inputs = Inputs(f"Question {number}?")
        spec.breakers(inputs)
        spec.signals(inputs)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, range(40)))
    assert embedder.texts.count(KEY) == embedder.texts.count("A door.") == 1
    assert sorted(text for text in embedder.texts if text.startswith("Question")) == sorted(
        f"Question {number}?" for number in range(40)
    )


def test_examples_lowered_by_the_system_do_not_count() -> None:
    rule = breaker(patterns=[], exclude_context=["locksmith course"], examples={"positive": [KEY]})
    (hit,) = compiled(rule, embedder="lexical").breakers(Inputs(KEY, system_texts=("A locksmith course.",)))
    assert hit.excluded_by == "locksmith course"


def test_without_examples_no_embedder_is_asked_or_even_looked_at() -> None:
    spec = compiled(breaker(), embedder=0.5)
    assert stops(spec, Inputs(KEY)) == ["keys"]
    assert not spec.slow
    with pytest.raises(BrixConfigurationError, match="embedder must be"):
        compiled(breaker(examples={"positive": [KEY]}), embedder=0.5)


# --- the application's own signals


class Classifier:
    def invoke(self, text: str) -> float:
        return 0.75 if "door" in text else 0.0


def shouting(text: str) -> bool:
    return text.isupper()


def test_signals_are_callables_classifiers_and_named_ones() -> None:
    spec = compiled(signals=[shouting, Classifier(), lambda text: np.float32(0.25), lambda text: np.bool_(False)])
    hits = spec.signals(Inputs(KEY.replace("the", "my")))
    assert [(hit.name, hit.weight, hit.score) for hit in hits] == [
        ("Classifier", 0.75, 0.75),
        ("<lambda>", 0.25, 0.25),
    ]
    assert all(hit.counts and hit.rule.category == "registered" for hit in hits if hit.rule.weight)  # type: ignore[union-attr]
    assert [hit.name for hit in compiled(signals={"loud": shouting}).signals(Inputs("HELP"))] == ["loud"]
    assert spec.slow


def test_signals_of_the_spec_come_before_those_of_the_application() -> None:
    rule = {"name": "doors", "description": "d", "weight": 0.5, "patterns": ["door"], "category": "universal"}
    hits = compiled(signals=[Classifier()], risk_signals=[rule]).signals(Inputs(KEY))
    assert [(hit.name, hit.weight) for hit in hits] == [("doors", 0.5), ("Classifier", 0.75)]


@pytest.mark.parametrize("result", [float("nan"), -0.1, 1.5, 7, "0.5", None, [], float("inf"), 10**400])
def test_a_signal_that_says_nothing_usable_opens_no_gate(result: Any) -> None:
    spec = compiled(breaker(), signals={"own": lambda text: result})
    with pytest.raises(BrixGuardError, match=r"signal 'own' returned .* wanted a bool or a number in \[0, 1\]"):
        spec.signals(Inputs("Hello."))
    assert stops(spec, Inputs(KEY)) == ["keys"]


def test_a_signal_that_raises_opens_no_gate() -> None:
    def broken(text: str) -> float:
        raise TimeoutError("model is down")

    with pytest.raises(BrixGuardError, match="signal 'broken' failed, so the risk is unknown") as caught:
        compiled(signals=[broken]).signals(Inputs("Hello."))
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_a_coroutine_is_no_risk_even_when_it_comes_out_of_a_plain_function() -> None:
    async def later(text: str) -> float:
        return 0.5

    with pytest.raises(BrixConfigurationError, match="signal 'later' is async"):
        compiled(signals=[later])
    with pytest.raises(BrixGuardError, match="wanted a bool or a number"):
        compiled(signals=[lambda text: later(text)]).signals(Inputs("Hello."))


@pytest.mark.parametrize("signals", [5, "shouting", [5], [None], [Classifier], {"a": "b"}, shouting])
def test_what_is_no_signal_is_refused_when_it_is_given(signals: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"signal"):
        compiled(signals=signals)


# --- answers


def test_output_signals_are_met_by_patterns_and_by_examples() -> None:
    rules = [
        {"name": "told", "description": "d", "weight": 0.6, "patterns": ["under the mat"], "signal_type": "block"},
        {"name": "hinted", "description": "d", "weight": 0.2, "examples": {"positive": ["Look near the flower pot."]}},
    ]
    spec = compiled(output_signals=rules, embedder="lexical")
    (told,) = spec.output_hits("It lies under the m\u200bat.")
    assert (told.name, told.matches[0].where, told.weight) == ("told", "answer", 0.6)
    assert [hit.name for hit in spec.output_hits("look near the flower pot!")] == ["hinted"]
    assert spec.output_hits("I cannot tell.") == []
    assert [match.rule for match in spec.outputs.scan("Under the mat")] == ["told"]


# --- sharing


def test_equal_specs_share_their_patterns_and_one_compiled_spec_serves_many_threads() -> None:
    one, other = compiled(breaker()), compiled(breaker())
    assert one.patterns is other.patterns

    def look(number: int) -> list[Hit]:
        return one.breakers(Inputs(KEY if number % 2 else "Hello."))

    with ThreadPoolExecutor(8) as pool:
        assert [len(hits) for hits in pool.map(look, range(200))] == [number % 2 for number in range(200)]


@given(st.text(max_size=200), st.lists(st.text(max_size=50), max_size=3))
def test_no_text_makes_a_lookup_fail_in_another_way_than_told(query: str, others: list[str]) -> None:
    try:
        _EVERYWHERE.breakers(Inputs(query, tuple(others), tuple(others), tuple(others), tuple(others)))
        _EVERYWHERE.signals(Inputs(query))
    except BrixError as error:
        pytest.fail(str(error))


_EVERYWHERE = compiled(
    breaker(applies_to=["messages", "tool_arguments", "retrieved"], scope="conversation", examples={"positive": [KEY]}),
    embedder="lexical",
)
