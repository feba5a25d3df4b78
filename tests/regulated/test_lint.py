"""`brix lint`: what is wrong with a spec, what is doubtful, and where it stands."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from brix_core.regulated.text.patterns import PatternSet
from brix_core.regulated.workshop.broadness import MOST, ordinary_sentences
from brix_core.regulated.workshop.lint import CLEAN, DOUBTFUL, UNUSABLE, Finding, lint
from brix_core.regulated.workshop.overlaps import samples

HEAD = 'metadata: {name: house, version: "1.0"}\n'


@pytest.fixture
def findings(tmp_path: Path):  # type: ignore[no-untyped-def]
    def of(body: str, head: str = HEAD) -> list[Finding]:
        file = tmp_path / "house.yaml"
        file.write_text(head + textwrap.dedent(body), encoding="utf-8")
        report = lint(file)
        assert report.file == str(file)
        return [finding for finding in report.findings if finding.code != "no-case"]

    return of


def codes(found: list[Finding]) -> list[tuple[str, str, int | None, str]]:
    return [(finding.level, finding.code, finding.line, finding.rule) for finding in found]


def test_a_good_spec_is_clean(tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    file.write_text(
        HEAD + "circuit_breakers:\n- {name: keys, description: Asks for keys., patterns: [spare house key]}\n"
        "test_cases:\n- {text: A spare house key., kind: positive, expect: keys}\n",
        encoding="utf-8",
    )
    report = lint(file)
    assert report.findings == ()
    assert report.exit_code == CLEAN
    assert report.spec is not None


def test_what_makes_a_spec_unusable_is_an_error_with_file_line_and_rule(tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    file.write_text(HEAD + "risk_signals:\n- {name: a, description: d, patterns: [(x], weight: 2}\n", encoding="utf-8")
    report = lint(file)
    assert report.spec is None
    assert report.exit_code == UNUSABLE
    assert codes(list(report.findings)) == [("error", "invalid", 3, "a")] * 2
    assert str(report.findings[0]).startswith(f"{file}:3: error: rule 'a': pattern '(x' cannot be used: ")
    assert lint(tmp_path / "none.yaml").exit_code == UNUSABLE


@pytest.mark.parametrize(
    ("patterns", "redundant"),
    [
        ("[house key, spare house key]", ["spare house key"]),
        ("[spare ... key, spare house key]", ["spare house key"]),
        ("[(spare|second) key, spare key]", ["spare key"]),
        ("[key holder, keys holder]", ["keys holder"]),
        ("[house key, House  Key]", ["House  Key"]),
        ("[spare key, (spare|second) key]", ["spare key"]),
        ("[house key, house ... key]", ["house key"]),
        ("[=key holder, keys holder]", []),
        ("[house key, door key]", []),
        ("[(spare|second) key, third key]", []),
    ],
)
def test_a_pattern_that_another_of_its_rule_covers_is_redundant(findings, patterns: str, redundant: list[str]) -> None:  # type: ignore[no-untyped-def]
    found = findings(f"circuit_breakers:\n- {{name: keys, description: d, patterns: {patterns}}}\n")
    told = [finding for finding in found if finding.code == "redundant-pattern"]
    assert [finding.message.split(" matches nothing")[0] for finding in told] == [
        f"pattern {pattern!r}" for pattern in redundant
    ]
    assert {finding.level for finding in told} <= {"warning"}


def test_the_same_pattern_in_two_rules_is_told_at_the_second(findings) -> None:  # type: ignore[no-untyped-def]
    found = findings("""\
        circuit_breakers:
        - {name: one, description: d, patterns: [house key, garden gate]}
        risk_signals:
        - {name: two, description: d, patterns: [House Key], weight: 0.5}
        """)
    assert codes(found) == [("warning", "shared-pattern", 5, "two")]


def test_a_wider_pattern_of_another_rule_is_a_note(findings) -> None:  # type: ignore[no-untyped-def]
    found = findings("""\
        circuit_breakers:
        - {name: one, description: d, patterns: [spare house key, garden gate latch]}
        - {name: two, description: d, patterns: [house key]}
        """)
    assert codes(found) == [("note", "overlap", 3, "one")]


def test_a_breaker_that_earlier_ones_forestall_is_unreachable(findings) -> None:  # type: ignore[no-untyped-def]
    body = """\
        circuit_breakers:
        - {{name: one, description: d, patterns: [house key]{first}}}
        - {{name: two, description: d, patterns: [garden gate]}}
        - {{name: three, description: d, patterns: [spare house key, garden gate latch]{third}}}
        """
    found = [finding for finding in findings(body.format(first="", third="")) if finding.level != "note"]
    assert codes(found) == [("warning", "unreachable-rule", 5, "three")]
    assert "one, two" in found[0].message
    for reachable in (
        {"first": ", exclude_context: [locksmith course]", "third": ""},
        {"first": "", "third": ", scope: conversation"},
        {"first": "", "third": ", applies_to: [messages, retrieved]"},
        {"first": "", "third": ", examples: {positive: [A key of a house.]}"},
    ):
        assert "unreachable-rule" not in {finding.code for finding in findings(body.format(**reachable))}


def test_a_phrase_that_stands_in_all_a_pattern_matches_excludes_it(findings) -> None:  # type: ignore[no-untyped-def]
    found = findings("""\
        circuit_breakers:
        - name: keys
          description: d
          patterns: [spare house key, garden gate latch]
          exclude_context:
          - locksmith course
          - house key
        """)
    assert codes(found) == [("warning", "excludes-itself", 8, "keys")]


def test_patterns_that_match_ordinary_sentences_are_over_broad_and_the_figure_is_told(findings) -> None:  # type: ignore[no-untyped-def]
    sentences = ordinary_sentences()
    assert len(sentences) >= 500
    found = findings("""\
        circuit_breakers:
        - {name: all, description: d, patterns: [house key ring, the]}
        risk_signals:
        - {name: some, description: d, patterns: [a], weight: 0.1}
        - {name: few, description: d, patterns: [medicine], weight: 0.1}
        """)
    broad = [finding for finding in found if finding.code == "over-broad"]
    assert [(finding.level, finding.line, finding.rule) for finding in broad] == [
        ("warning", 3, "all"),
        ("warning", 5, "some"),
    ]
    count = sum(bool(PatternSet({"r": ["the"]}).scan(sentence)) for sentence in sentences)
    assert f"matches {count} of {len(sentences)} ordinary sentences" in broad[0].message
    medicine = sum(bool(PatternSet({"r": ["medicine"]}).scan(sentence)) for sentence in sentences)
    assert 0 < medicine <= MOST * len(sentences), "the case shows nothing"


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("spare licen(se|ce)", "inside-word"),
        ("(spare|second)hand latch", "inside-word"),
        ("spare\\\\s+latch", "not-words"),
        ("spare a* latch", "not-words"),
        ("[sS]pare latch", "not-words"),
        ("(a |the )?spare latch", "not-words"),
        ("spare c++ latch", None),
        ("(spare|second) ... =latch, $100", None),
    ],
)
def test_patterns_that_are_not_read_as_they_look(findings, pattern: str, code: str | None) -> None:  # type: ignore[no-untyped-def]
    found = findings(f'circuit_breakers:\n- {{name: keys, description: d, patterns: ["{pattern}"]}}\n')
    assert [(finding.code, finding.line) for finding in found] == ([(code, 3)] if code else [])


def test_other_doubts(findings) -> None:  # type: ignore[no-untyped-def]
    found = findings(
        """\
        risk_signals:
        - {name: none, description: d, patterns: [house key], weight: 0}
        - name: own
          description: d
          patterns: [garden gate latch]
          weight: 0.5
          exclude_context: [locksmith course]
          exclude_from: query
        test_cases:
        - {text: A house key., kind: positive}
        - {text: A house key., kind: negative}
        """,
        head="name: house\n",
    )
    assert codes(found) == [
        ("warning", "no-version", 1, ""),
        ("warning", "no-weight", 3, "none"),
        ("note", "user-excludes", 8, "own"),
        ("warning", "no-expect", 11, ""),
        ("warning", "same-case", 12, ""),
    ]
    assert codes(findings("", HEAD)) == [("warning", "no-rules", 1, "")]


def test_a_rule_without_a_case_is_a_note_and_changes_no_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    file.write_text(
        HEAD + "circuit_breakers:\n- {name: keys, description: d, patterns: [spare house key]}\n", encoding="utf-8"
    )
    report = lint(file)
    assert [(finding.level, finding.code) for finding in report.findings] == [("note", "no-case")]
    assert report.exit_code == CLEAN


def test_warnings_and_errors_have_exit_codes_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    file.write_text("name: house\n", encoding="utf-8")
    assert lint(file).exit_code == DOUBTFUL
    assert lint(file).as_dict()["findings"][0]["level"] == "warning"


@pytest.mark.parametrize(
    "pattern", ["a", "a ... b", "(a|b c) d", "=exact words", "self-harm ... (x|y) z", "(a|(b|c) d) e", "x | y z"]
)
def test_samples_of_a_pattern_are_what_it_matches(pattern: str) -> None:
    compiled = PatternSet({"r": [pattern]})
    texts = samples(pattern)
    assert texts
    assert [text for text in texts if not compiled.scan(text)] == []
