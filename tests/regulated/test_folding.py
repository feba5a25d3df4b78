"""The matching copy of a text: what is folded away, and the way back."""

# ruff: noqa: RUF001  (look-alike letters are the subject)

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brix_core.regulated import fold
from brix_core.regulated.text.confusables import LOOK_ALIKES, read_as


@pytest.mark.parametrize(
    ("written", "copy"),
    [
        ("Lethal DOSE", "lethal dose"),
        ("ｌｅｔｈａｌ　ｄｏｓｅ", "lethal dose"),
        ("𝓵𝓮𝓽𝓱𝓪𝓵 𝐝𝐨𝐬𝐞 𝕕𝕠𝕤𝕖", "lethal dose dose"),
        ("ⓛⓔⓣⓗⓐⓛ", "lethal"),
        ("🅛🅔🅣🅗🅐🅛 🅻🅴🆃🅷🅰🅻", "lethal lethal"),
        ("🇩🇴🇸🇪", "dose"),
        ("ʟᴇᴛʜᴀʟ ᴅᴏsᴇ", "lethal dose"),
        ("l\u200be\u200ct\u200dh\u2060a\ufeffl\u00ad", "lethal"),
        ("l\u202ee\u202ct\u2066h\u034fa\ufe0fl", "lethal"),
        ("l\u3164ethal \U000e0041dose", "lethal dose"),
        ("lé̶t̴h̷à̸l", "lethal"),
        ("ĹÉŤĤÂĹ", "lethal"),
        ("łøđħŧ", "lodht"),
        ("lеthаl dоѕе", "lethal dose"),
        ("lεthαl dοsε", "lethal dose"),
        ("ΚΙΜΒΗ ΚІМВН", "kimbh kimbh"),
        ("ﬁx ﬄ Straße æon", "fix ffl strasse aeon"),
        ("ᎠᎾᏚ ꓓꓳꓢꓰ".replace("ᎾᏚ", ""), "d dose"),
        ("٣ ３ ³ ③", "3 3 3 3"),
        ("a\u00a0b\u2009c\u3000d\u2028e", "a b c d\ne"),
        ("self‐harm self–harm", "self-harm self-harm"),
        ("", ""),
    ],
)
def test_ways_of_writing_a_letter_are_folded_away(written: str, copy: str) -> None:
    assert fold(written).text == copy


def test_digits_and_symbols_stay_in_the_copy() -> None:
    assert fold("Take 10 mg @ 8:30!").text == "take 10 mg @ 8:30!"


def test_every_look_alike_is_read_as_its_letter() -> None:
    assert {
        (letter, other, read_as(other))
        for letter, others in LOOK_ALIKES.items()
        for other in others
        if read_as(other) != letter
    } == set()


def test_no_letter_looks_like_two() -> None:
    every = "".join(LOOK_ALIKES.values())

    assert len(every) == len(set(every))


def test_a_reading_is_itself_folded() -> None:
    """Over all of Unicode: folding twice changes nothing, and no reading has a mark or an invisible character."""
    unstable = []
    for codepoint in range(0x30000):
        reading = read_as(chr(codepoint))
        if any(read_as(c) != c for c in reading) or any(unicodedata.category(c) in {"Mn", "Me", "Cf"} for c in reading):
            unstable.append(chr(codepoint))

    assert unstable == []


def test_positions_lead_back_to_the_text() -> None:
    text = "Die ﬁnale D\u200bo\u0301sis: ½ ㎎"
    folded = fold(text)

    def behind(copy: str) -> str:
        start = folded.text.index(copy)
        begin, end = folded.original(start, start + len(copy))
        return text[begin:end]

    assert behind("finale") == "ﬁnale"
    assert behind("i") == "i"
    assert behind("nale") == "nale"
    assert behind("dosis") == "D\u200bo\u0301sis"
    assert behind("mg") == "㎎"


def test_long_runs_of_separators_are_cut_and_blank_lines_kept() -> None:
    text = "a" + " " * 500 + "b" + "-" * 500 + "\n" + " " * 90 + "\n" + "\n" * 400 + "c"
    folded = fold(text)

    assert len(folded.text) < 30
    assert folded.text.count("\n") == 2
    assert text[slice(*folded.original(folded.text.index("b"), folded.text.index("b") + 1))] == "b"
    assert text[slice(*folded.original(len(folded.text) - 1, len(folded.text)))] == "c"


@given(st.text(max_size=60))
def test_each_character_is_folded_by_itself(text: str) -> None:
    folded = fold(text)
    positions = list(folded.positions)

    assert len(positions) == len(folded.text) == len(folded.view)
    assert positions == sorted(positions)
    assert all(folded.text[at] in read_as(text[place]) for at, place in enumerate(positions))


@given(st.text(alphabet="ab \n-.", max_size=60), st.text(alphabet="\u200b\u0301\u00adао Ａ", max_size=60))
def test_the_copy_is_the_pieces_put_together(first: str, second: str) -> None:
    apart = "".join(map(read_as, first + second))
    folded = fold(first + second).text

    assert "".join(folded.split()) == "".join(apart.split()) or len(folded) < len(apart)
    assert [c for c in folded if c.isalnum()] == [c for c in apart if c.isalnum()]
