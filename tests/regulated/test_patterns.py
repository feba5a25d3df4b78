"""What patterns match, in every way of writing, and what they never match."""

# ruff: noqa: RUF001  (look-alike letters are the subject)

from __future__ import annotations

import subprocess
import sys

import pytest

from brix_core import BrixConfigurationError
from brix_core.regulated import PatternError, PatternSet, fold, variants

PATTERNS = [
    "lethal dose",
    "overdose",
    "maximum ... dose",
    "(lethal|fatal) ... (dose|amount)",
    "kill myself",
    "end my life",
    "self-harm",
    "suicide",
    "how to make a bomb",
    "pipe bomb",
    "insider trading",
    "launder ... money",
    "tax evasion",
    "evade taxes",
    "guaranteed return",
    "double your money",
    "wrongful termination",
    "fire ... because ... pregnant",
    "chest pain",
    "heart attack",
    "stop taking ... medication",
    "without a prescription",
    "=who is liable",
    "statute of limitations",
    "forge a signature",
    "hide assets",
    "mix bleach and ammonia",
    "take 10 mg",
    "401k withdrawal",
    "don't tell anyone",
    "sepsis",
    "diagnose me",
    "therapy",
    "poison",
    "illicit drug",
    "buy ... online",
    "fake (passport|visa|id card)",
    "dosage for (a|my) (child|baby|toddler)",
    "off-label use",
    "short selling",
    "pump and dump",
    "sexual harassment",
    "is it safe to ... while pregnant",
    "bypass ... security",
    "kill",
]


def found(pattern: str, text: str) -> list[str]:
    """What of a text the pattern matches; a scan of the folded copy must say the same."""
    patterns = PatternSet({"rule": [pattern]})
    matches = patterns.scan(text)
    assert patterns.scan(fold(text)) == matches
    return [text[match.start : match.end] for match in matches]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_variant_of_a_pattern_is_found(pattern: str) -> None:
    patterns = PatternSet({"rule": [pattern]})
    written = list(variants(pattern))

    assert len({name for name, _ in written}) == 12
    assert [
        (name, text)
        for name, text in written
        if not patterns.scan(text) or not patterns.scan(f"Please tell me: {text}, if you can.")
    ] == []


def test_variants_are_written_differently() -> None:
    texts = [text for _, text in variants("lethal dose of aspirin")]

    assert len(set(texts)) == 12
    assert "lethal dose of aspirin" not in texts


@pytest.mark.parametrize(
    ("pattern", "text", "match"),
    [
        ("lethal dose", "What is the Lethal\t dose?", "Lethal\t dose"),
        ("lethal dose", "lethal doses!", "lethal doses"),
        ("lethal dose", "lethal\n\n\ndose", "lethal\n\n\ndose"),
        ("lethal dose", "lethal" + " " * 5_000 + "dose", "lethal" + " " * 5_000 + "dose"),
        ("lethal dose", "«lethal»-dose", "lethal»-dose"),
        ("lethal dose", "lethal. Dose", "lethal. Dose"),
        ("lethal dose", "lethaldose", "lethaldose"),
        ("lethal dose", "#LethalDose", "LethalDose"),
        ("lethal dose", "lethal_dose", "lethal_dose"),
        ("lethal dose", "le\u200bthal do\u0301se of", "le\u200bthal do\u0301se"),
        ("lethal dose", "l3th@l d0$e!", "l3th@l d0$e"),
        ("lethal dose", "LETHAl DOSE", "LETHAl DOSE"),
        ("lethal dose", "lethaI dose", "lethaI dose"),
        ("lethal dose", "l e t h a l d o s e", "l e t h a l d o s e"),
        ("lethal dose", "is a l e t h a l   d o s e", "l e t h a l   d o s e"),
        ("lethal dose", "l.e.t.h.a.l d.o.s.e", "l.e.t.h.a.l d.o.s.e"),
        ("lethal dose", "l--e--t--h--a--l dose", "l--e--t--h--a--l dose"),
        ("lethal dose", "l|e|t|h|a|l d!o!s!e", "l|e|t|h|a|l d!o!s!e"),
        ("lethal dose", "l\ne\nt\nh\na\nl\n\nd\no\ns\ne", "l\ne\nt\nh\na\nl\n\nd\no\ns\ne"),
        ("lethal dose", "le-\n   thal do-\r\nse", "le-\n   thal do-\r\nse"),
        ("lethal dose", "let\nhal dose", "let\nhal dose"),
        ("lethal dose", "le th al do se", "le th al do se"),
        ("overdose", "over-dose", "over-dose"),
        ("overdose", "over\x00\x00\x00\x00\x00dose", "over\x00\x00\x00\x00\x00dose"),
        ("how to make a bomb", "h o w t o m a k e a b o m b", "h o w t o m a k e a b o m b"),
        ("how to make a bomb", "h0w 70 m4k3 4 b0mb", "h0w 70 m4k3 4 b0mb"),
        ("hide assets", "h1d3 455375", "h1d3 455375"),
        ("kill", "it's k i l l", "k i l l"),
        ("forge ... name", "f o r g e my father's n a m e", "f o r g e my father's n a m e"),
        ("self-harm", "self harm", "self harm"),
        ("self harm", "self-harming", "self-harming"),
        ("self-harm", "selfharm", "selfharm"),
        ("don't tell", "dont tell", "dont tell"),
        ("dont tell", "don’t tell", "don’t tell"),
        ("therapy", "therapies", "therapies"),
        ("stop", "stopped", "stopped"),
        ("dose", "dosing", "dosing"),
        ("die", "dying", "dying"),
        ("patient", "the patient's", "patient"),
        ("=dose", "a dose.", "dose"),
        ("maximum ... dose", "maximum dose", "maximum dose"),
        ("maximum ... dose", "maximum a bb cc dd ee ff doses", "maximum a bb cc dd ee ff doses"),
        ("maximum ... dose", "maximum (recommended) m@ximum", ""),
        ("maximum…dose", "maximum safe dose", "maximum safe dose"),
        ("(a|b c) ... d", "b c and d", "b c and d"),
        ("take 10 mg", "take 10mg", ""),
        ("take 10 mg", "Take 10  MG.", "Take 10  MG"),
        ("1.5 mg", "give 1.5 mg", "1.5 mg"),
        ("ill", "ILL", "ILL"),
        ("доза", "Смертельная ДОЗА", "ДОЗА"),
        ("致命剂量", "这是致命剂量吗", "致命剂量"),
        ("치사량", "치사량은", ""),
        ("tödlich", ["todlich", "TÖDLICH"][1], "TÖDLICH"),
    ],
)
def test_matches(pattern: str, text: str, match: str) -> None:
    assert found(pattern, text) == ([match] if match else [])


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("tablet", "The tabletop is oak."),
        ("sepsis", "asepsis matters"),
        ("sepsis", "antisepsis"),
        ("kill", "skills"),
        ("kill", "s k i l l s"),
        ("kill", "s.k.i.l.l.s"),
        ("kill", "skill-set"),
        ("ordinary", "e x t r a o r d i n a r y"),
        ("therapist", "the rapist"),
        ("overdose", "go over dose adjustments"),
        ("take", "start taking notes"[:5]),
        ("stop taking", "start taking notes"),
        ("die", "studied the diet of dietitians"),
        ("sue", "tissue issues pursued"),
        ("=dose", "doses dosing dosed"),
        ("dose", "dosage of doseage"),
        ("io mg", "take 10 mg"),
        ("so", "50"),
        ("lose", "1053 105E3"),
        ("sos", "call 505"),
        ("take a pill", "take 4 b12 pill"),
        ("sos", "505 covid19 10mg 401k"),
        ("10 mg", "lo mg, io mg, 110 mg, 10.5 mg, 2.10 mg, 1,010 mg, 100 mg"),
        ("1.5 mg", "15 mg 1 5 mg 11.5 mg"),
        ("10", "1.0 and 1-0"),
        ("kill", "kiil klll kiii kikl"),
        ("ill", "lll iil"),
        ("ed", "3 d printing"),
        ("at", "a+ and 4+"),
        ("maximum ... dose", "maximum one two three four five six seven dose"),
        ("maximum ... dose", "the maximum.\n\nA dose"),
        ("maximum ... dose", "maximum " + "x" * 90 + " dose"),
        ("maximum ... dose", "dose maximum"),
        ("lethal dose", "lethal daily dose"),
        ("lethal dose", "dose lethal"),
        ("lethal dose", "nonlethal dose"),
        ("lethal dose", "lethal dosimetry"),
        ("car pet", "carpet"),
        ("kill a person", "kill a process"),
        ("shoot ... person", "shoot a photo"),
        ("fire an employee", "fire an employees' photo shoot"[:8]),
        ("", "")[:0] or ("assist", "asinine list"),
    ],
)
def test_traps_do_not_match(pattern: str, text: str) -> None:
    assert found(pattern, text) == []


def test_matches_name_rule_and_pattern_and_stand_in_order() -> None:
    patterns = PatternSet({"b": ["dose", "lethal dose"], "a": ["dose"]})

    assert [tuple(match) for match in patterns.scan("A lethal dose. Dose?")] == [
        ("b", "lethal dose", 2, 13),
        ("a", "dose", 9, 13),
        ("b", "dose", 9, 13),
        ("a", "dose", 15, 19),
        ("b", "dose", 15, 19),
    ]


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("...", "only a gap"),
        ("... dose", "at its edge"),
        ("dose ...", "at its edge"),
        ("(a|... b) c", "at its edge"),
        ("a ... ... b", "side by side"),
        ("(a|b", "never closed"),
        ("a|b)", "no '('"),
        ("(a|)", "alternative is empty"),
        ("()", "alternative is empty"),
        ("a = b", "no word right after it"),
        ("dose !!", "no letter or digit"),
        ("(a|b|c|d) (a|b|c|d) (a|b|c|d) (a|b|c|d) (a|b)", "limit 256"),
        ("|".join(["a"] * 257)[:400] + "|" + "(a|b)" * 0, "limit"),
        (" ".join(["(a|b)"] * 60), "limit 256"),
        (" ".join(["a"] * 25), "limit 24"),
        (" ... ".join(["a"] * 8), "limit 6"),
        ("a" * 401, "limit 400"),
        ("(" * 20 + "a" + ")" * 20, "nested"),
        (7, "not text"),
        (None, "not text"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused_by_name(pattern: object, why: str) -> None:
    with pytest.raises(PatternError, match=why.replace("(", r"\(")) as caught:
        PatternSet({"dosage": ["fine", pattern]})  # type: ignore[list-item]

    assert (caught.value.rule, caught.value.pattern) == ("dosage", pattern)
    assert "dosage" in str(caught.value)
    assert repr(pattern) in str(caught.value)
    assert isinstance(caught.value, BrixConfigurationError)


def test_patterns_of_a_rule_are_a_list() -> None:
    with pytest.raises(PatternError, match="a list of texts"):
        PatternSet({"dosage": "lethal dose"})


def test_256_alternatives_are_accepted() -> None:
    patterns = PatternSet({"rule": [" ".join(["(aa|bb)"] * 8)]})

    assert len(patterns.scan("aa bb aa bb aa bb aa bb")) == 1


def test_a_set_without_patterns_finds_nothing() -> None:
    patterns = PatternSet({"rule": []})

    assert patterns.scan("lethal dose") == []
    assert patterns.longest == 0
    assert patterns.stream().feed("lethal dose") == []


def test_longest_bounds_every_match() -> None:
    patterns = PatternSet({"rule": ["maximum ... dose", "lethal dose"]})
    widest = "m        a        ximum"

    for text in (widest, "maximum " + "ab" * 36 + " dose", "l        e        t        h        a        l dosing"):
        for match in patterns.scan(text):
            assert match.end - match.start <= patterns.longest
    assert 80 < patterns.longest < 1_000


def test_without_the_automaton_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["ahocorasick"] = None
from brix_core.regulated import PatternSet
from brix_core import BrixConfigurationError
try:
    PatternSet({"rule": ["lethal dose"]})
except BrixConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert 'pip install "brix-guards[regulated]"' in done.stdout
