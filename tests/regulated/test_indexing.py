"""What is looked at is never less than what matches: the index beside asking every phrase at every place."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import example, given, settings

from brix_core.regulated import Match, PatternSet, fold
from brix_core.regulated.format.loading import BUILT_IN, load_spec
from brix_core.regulated.format.spec import SpecModel
from brix_core.regulated.text.evasion import WAYS
from brix_core.regulated.text.matching import Search
from tests.regulated.test_scanning import PATTERNS, TEXTS


def everywhere(patterns: PatternSet, text: str) -> list[Match]:
    """Every phrase asked at every place."""
    folded, index = fold(text), patterns._index
    search = Search(folded.text, folded.view, folded.raw, index.longest)
    found = set()
    for start in range(len(folded.text)):
        for entry in patterns.entries:
            end = search.at(entry.phrase, start)
            if end >= 0:
                found |= {Match(*owner, *folded.original(start, end)) for owner in entry.owners}
    return sorted(found, key=lambda match: (match.start, match.end, match.rule, match.pattern))


@settings(max_examples=200, deadline=None)
@given(TEXTS)
@example("k!ll!")
@example("don't k.i-l l m y s e l f")
@example("i-a m")
def test_nothing_is_overlooked(text: str) -> None:
    assert PATTERNS.scan(text) == everywhere(PATTERNS, text)


@pytest.mark.parametrize("way", ["plain", "spaced", "hyphenated", "leet"])
def test_nothing_is_overlooked_at_the_seams_of_a_long_text(way: str) -> None:
    patterns = PatternSet({"dose": ["maximum ... dose"]})
    phrase = WAYS[way]("maximum safe daily dose") if way in WAYS else "maximum safe daily dose"
    for length in range(patterns._index.block - 130, patterns._index.block + 30, 8):
        text = "It rains. " * 600
        text = f"{text[:length]} {phrase} {text[length:]}"
        assert [text[match.start : match.end] for match in patterns.scan(text)] == [phrase]


def test_symbols_without_end_between_two_words() -> None:
    patterns = PatternSet({"dose": ["lethal dose"]})
    text = "lethal " + "!" * 9_000 + " dose. "
    stream = patterns.stream()

    assert patterns.scan(text) == stream.feed(text) == [Match("dose", "lethal dose", 0, 9_012)]


@cache
def spec(name: str) -> tuple[SpecModel, PatternSet]:
    """A built-in spec, and all its patterns in one set."""
    known = load_spec(name)
    return known, PatternSet({rule.name: rule.patterns for rule in known.rules() if rule.patterns})


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_stream_of_words_gives_the_matches_of_the_whole(name: str) -> None:
    known, patterns = spec(name)
    matched = 0
    for case in known.test_cases[::4]:
        for text in (case.text, WAYS["spaced"](case.text), WAYS["leet"](case.text)):
            stream, found, safe = patterns.stream(), [], 0
            for piece in text.replace(" ", " \0").split("\0"):
                found += stream.feed(piece)
                assert stream.safe >= safe
                safe = stream.safe
            found += stream.finish()
            assert sorted(found) == sorted(patterns.scan(text))
            matched += bool(found)
    assert matched > 10
