"""Scans of a whole text and of a text in pieces: the same matches, in linear time, and nothing let go too early."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brix_core.regulated import Match, PatternSet, StreamScan

PATTERNS = PatternSet(
    {
        "dose": ["lethal dose", "overdose", "maximum ... dose", "double ... dose ... now", "10 mg", "1.5 mg"],
        "harm": ["kill myself", "self-harm", "how to kill", "ill", "a (pill|bomb)", "i am", "skills", "致命"],
    }
)
FRAGMENTS = [
    *"leathdosmkiIl105!$|@.,-_ \n",
    *["lethal", "dose", "doses", "maximum", "kill", "myself", "self", "harm", "how", "to", "10", "mg", "1.5", "pill"],
    *["k!ll", "k1ll", "kiIl", "l e t h a l", "o v e r d o s e", "s k i l l s", "d.o.s.e", "le-\nthal", "double", "now"],
    *["\n\n", "   ", " " * 12, "-\n", "\u200b", "\u0301", "\u00ad", "\x00", "\u017f", "ß", "ﬁ", "…", "½", "致", "命"],
    *["\u0430", "\u043e", "\uff21", "\uff4c", "\ufdfa", "\u212a", "\U0001d526"],
]
TEXTS = st.lists(st.tuples(st.sampled_from(FRAGMENTS), st.sampled_from(["", "", " ", "-"])), max_size=24).map(
    lambda pairs: "".join(fragment + between for fragment, between in pairs)
)


def in_pieces(stream: StreamScan, pieces: Iterable[str]) -> list[Match]:
    """Feed the pieces; fail where a match begins in what was called safe before it was found."""
    found: list[Match] = []
    safe = fed = 0
    for piece in (*pieces, None):
        new = stream.finish() if piece is None else stream.feed(piece)
        fed += len(piece or "")
        assert [match for match in new if match.start < safe] == []
        assert safe <= stream.safe <= fed
        safe = stream.safe
        found += new
    assert safe == fed
    assert len(found) == len(set(found)), "a match was told twice"
    return found


def cut(text: str, places: Iterable[int]) -> list[str]:
    stops = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.integers(min_value=0, max_value=400), max_size=12))
@example("o v e r d o s e$   ", [14, 15])
@example("d.o.s.e lethal-", [2])
def test_pieces_give_the_matches_of_the_whole(text: str, places: list[int]) -> None:
    whole = PATTERNS.scan(text)

    assert sorted(in_pieces(PATTERNS.stream(), cut(text, places))) == sorted(whole)
    assert sorted(in_pieces(PATTERNS.stream(), text)) == sorted(whole)


@pytest.mark.parametrize(
    "text",
    [
        "a lethal do\u0301se.",
        "le\u200b\u200b\u200bthal d\u200b\u0301ose",
        "l e t h a l   d o s e",
        "maximum daily dose",
        "k1ll my$elf!",
        "le-\nthal dose",
    ],
)
def test_every_chunking_of_two_cuts(text: str) -> None:
    whole = PATTERNS.scan(text)
    assert whole

    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            pieces = [text[:first], text[first:second], text[second:]]
            assert in_pieces(PATTERNS.stream(), pieces) == whole


def test_a_match_is_told_with_the_character_that_decides_it() -> None:
    stream = PATTERNS.stream()

    assert stream.feed("a lethal dose") == []
    assert stream.feed(",") == [Match("dose", "lethal dose", 2, 13)]


def test_harmless_text_is_safe_at_once() -> None:
    stream = PatternSet({"dose": ["lethal dose", "maximum ... dose"]}).stream()
    lags = []
    fed = 0
    for piece in (
        "The weather ",
        "in June is ",
        "fine, and most ",
        "of us go for ",
        "a walk in the ",
        "morning. ",
    ) * 40:
        assert stream.feed(piece) == []
        fed += len(piece)
        lags.append(fed - stream.safe)

    assert max(lags) == 0


def test_what_is_under_way_is_held_back_no_longer_than_a_match_may_be() -> None:
    patterns = PatternSet({"dose": ["maximum ... dose"]})
    stream = patterns.stream()
    stream.feed("the max")
    assert stream.safe == 4
    stream.feed("imum of one")
    assert stream.safe == 4
    fed = len("the maximum of one")
    for _ in range(patterns.longest):
        stream.feed(" word")
        fed += 5
        assert fed - stream.safe <= patterns.longest
    assert fed - stream.safe <= len(" word")


def test_endless_invisible_characters_hold_nothing_back() -> None:
    stream = PATTERNS.stream()
    stream.feed("Hello there. ")
    for _ in range(2_000):
        stream.feed("\u200b\u0301" * 50)

    assert stream.safe == len("Hello there. ") + 200_000
    assert stream.feed("overdose ") == [Match("dose", "overdose", 200_013, 200_021)]


def test_invisible_characters_within_a_match_change_nothing() -> None:
    stream = PATTERNS.stream()
    stream.feed("an over")
    for _ in range(2_000):
        assert stream.feed("\u200b" * 10) == []
    assert stream.safe == 3
    assert stream.feed("dose.") == [Match("dose", "overdose", 3, 3 + 4 + 20_000 + 4)]


def test_a_stream_forgets_what_lies_behind() -> None:
    stream = PATTERNS.stream()
    for _ in range(3_000):
        stream.feed("It rains, and I take 10 mg of nothing. ")

    assert len(stream._text) < 10_000


def test_a_finished_stream_takes_no_more() -> None:
    stream = PATTERNS.stream()
    assert stream.feed("overdose") == []
    assert [match.pattern for match in stream.finish()] == ["overdose"]
    assert stream.finish() == []
    with pytest.raises(ValueError, match=r"PatternSet\.stream"):
        stream.feed("more")


def seconds(run: Callable[[], object]) -> float:
    """The best of three."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return min(taken)


GAPS = PatternSet({"gaps": [" ... ".join(["dog"] * 6) + " ... cat"]})
LETTERS = PatternSet({"letters": [" ... ".join(["d"] * 6) + " ... d"]})
NESTED = PatternSet({"nested": ["k" * length for length in range(1, 60)]})
SHARED = PatternSet({f"rule {number}": [f"dose ... word{number}"] for number in range(1_000)})
PLAIN = PatternSet({"plain": ["lethal dose", "illicit", "maximum ... dose"]})

ADVERSARIAL = {
    "partial hits of many gaps": (GAPS, "dog ", 3_000),
    "gaps and single letters": (LETTERS, "d ", 1_500),
    "patterns within patterns": (NESTED, "k", 2_000),
    "a thousand patterns on one word": (SHARED, "dose ", 800),
    "zero-width characters": (PLAIN, "l\u200b", 40_000),
    "marks": (PLAIN, "e\u0301", 40_000),
    "single letters": (PLAIN, "l e t h a l ", 2_500),
    "symbols": (PLAIN, "l!e!t|h$a@", 2_000),
    "separators": (PLAIN, "lethal-. - ", 10_000),
    "white space": (PLAIN, "lethal" + " " * 500, 80_000),
    "symbols for letters": (PLAIN, "i!|1", 6_000),
    "ordinary": (PLAIN, "It rains in the valley, and nobody minds. ", 200_000),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_time_is_linear_in_the_text(name: str) -> None:
    """Four times the text takes about four times as long; quadratic work would take sixteen times as long."""
    patterns, unit, length = ADVERSARIAL[name]
    short = unit * (length // len(unit))

    once, four_times = seconds(lambda: patterns.scan(short)), seconds(lambda: patterns.scan(short * 4))

    print(f"{name}: {once * 1e3:.1f} ms, {four_times * 1e3:.1f} ms")
    assert four_times < 9 * once + 0.005


@pytest.mark.parametrize("name", ["partial hits of many gaps", "zero-width characters", "single letters", "ordinary"])
def test_time_of_a_stream_is_linear(name: str) -> None:
    patterns, unit, length = ADVERSARIAL[name]
    short = (unit * length)[: min(length, 1_000)]

    def read(text: str) -> None:
        stream = patterns.stream()
        for at in range(0, len(text), 4):
            stream.feed(text[at : at + 4])
        stream.finish()

    once, four_times = seconds(lambda: read(short)), seconds(lambda: read(short * 4))

    assert four_times < 9 * once + 0.005


def test_a_hundred_kilobytes_of_ordinary_text_take_milliseconds() -> None:
    text = "It rains in the valley, and nobody minds the maximum of it. " * 1_700

    assert seconds(lambda: PLAIN.scan(text)) < 0.25
