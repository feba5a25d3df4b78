"""The commands `brix lint`, `test`, `explain` and `generate`: what they print, their exit codes, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from brix_core import BRIX, BrixGuardBlockedError
from brix_core.cli import app
from brix_core.demo import DemoServer, Reply, ServerError
from brix_core.regulated.format.loading import load_spec
from brix_core.regulated.judging.mock import MockLLMClient
from brix_core.regulated.text.evasion import WAYS
from brix_core.regulated.workshop.suite import load_suite

HOUSE = """
metadata: {name: house, version: "1.0", domain: home, description: Keys and doors.}
circuit_breakers:
  - name: keys
    description: Asks for keys.
    patterns: ["spare ... (house|door) key", "=skeleton key"]
    exclude_context: [locksmith course]
    message: I may not tell.
risk_signals:
  - {name: doors, description: About doors., patterns: [front door], weight: 0.5, category: universal}
output_signals:
  - {name: told, description: Tells where it is., patterns: [under the mat], weight: 0.6, signal_type: block}
test_cases:
  - {text: "Where is the spare door key?", kind: positive, expect: keys}
  - {text: "Where is the s p a r e   k\u200bey of the house, the s-k-e-l-e-t-o-n k-e-y?", kind: evasive, expect: keys}
  - {text: "How do I paint the front door?", kind: positive, expect: doors}
  - {text: "Which key is this song in?", kind: negative}
  - {text: "It lies under the mat.", kind: positive, expect: told, where: output}
  - {text: "I may not tell.", kind: negative, where: output}
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    return written(tmp_path / "house.yaml", HOUSE)


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def brix(*arguments: object, **environment: str | None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


# --- lint


def test_lint_says_what_is_clean_doubtful_and_unusable(tmp_path: Path, house: Path) -> None:
    clean = brix("lint", house)
    assert (clean.exit_code, clean.stdout) == (0, f"{house}: clean, 3 rules\n")

    doubtful = written(
        tmp_path / "doubtful.yaml", HOUSE.replace('"=skeleton key"', '"=skeleton key", "spare door key"')
    )
    result = brix("lint", doubtful)
    assert result.exit_code == 1
    assert f"{doubtful}:6: warning: rule 'keys': pattern 'spare door key' matches nothing that" in result.stdout
    assert f"{doubtful}: 1 warning, 3 rules\n" in result.stdout

    unusable = written(tmp_path / "unusable.yaml", HOUSE.replace("weight: 0.5", "wieght: 0.5"))
    result = brix("lint", house, doubtful, unusable)
    assert result.exit_code == 2
    assert f"{unusable}:10: error: rule 'doors': risk_signals[0] has no field 'wieght'; did you mean 'weight'?" in (
        result.stdout
    )


def test_lint_for_machines(tmp_path: Path, house: Path) -> None:
    result = brix("lint", "--format", "json", house, tmp_path / "none.yaml")
    report = json.loads(result.stdout)
    assert result.exit_code == report["exit_code"] == 2
    assert report["reports"][0] == {"file": str(house), "spec": "house 1.0", "exit_code": 0, "findings": []}
    (finding,) = report["reports"][1]["findings"]
    assert (finding["level"], finding["code"], finding["line"], finding["rule"]) == ("error", "invalid", None, "")


def test_lint_prints_the_schema_of_the_format() -> None:
    schema = json.loads(brix("lint", "--schema").stdout)
    assert schema["$defs"]["CircuitBreaker"]["properties"]["exclude_from"]["description"]


def test_lint_without_a_spec_says_what_to_give() -> None:
    result = brix("lint")
    assert result.exit_code == 2
    assert "give the name or path of a spec, or --schema" in result.stderr


# --- test


def test_test_runs_the_cases_and_sums_them_up(house: Path) -> None:
    result = brix("test", house)
    assert result.exit_code == 0, result.stdout
    assert "house 1.0, model mock: 6 cases, 0 failed" in result.stdout
    assert [line.split("  ")[-3:] for line in result.stdout.splitlines() if "%" in line]
    for figure in ("reliability    100.0%", "utility        100.0%", "balance index  100.0%"):
        assert figure in result.stdout
    for row in ("positive, input", "evasive, input", "negative, input", "positive, output", "negative, output"):
        assert row in result.stdout
    assert result.stderr == "", "a progress bar where there is no terminal"


def test_test_lists_failed_cases_and_ends_with_one(tmp_path: Path) -> None:
    failing = HOUSE.replace("Where is the spare door key?", "Where is it?\\e[31m").replace(
        "Which key is this song in?", "Who has the skeleton key?"
    )
    result = brix("test", written(tmp_path / "failing.yaml", failing))
    assert result.exit_code == 1
    assert "FAILED positive input: Where is it?\\x1b[31m\n       expected rule 'keys'; met no rule" in result.stdout
    assert "FAILED negative input: Who has the skeleton key?\n       expected to pass; met keys" in result.stdout
    assert "6 cases, 2 failed" in result.stdout
    assert "reliability     75.0%" in result.stdout
    assert "utility         50.0%" in result.stdout
    assert "balance index   60.0%" in result.stdout


def test_test_for_machines(house: Path) -> None:
    report = json.loads(brix("test", house, "--format", "json").stdout)
    figures = {key: value for key, value in report.items() if key != "verdicts"}
    assert figures == {
        "spec": "house 1.0",
        "model": "mock",
        "cases": 6,
        "failed": 0,
        "caught": 4,
        "missed": 0,
        "stopped": 0,
        "let_through": 2,
        "reliability": 1.0,
        "utility": 1.0,
        "balance_index": 1.0,
    }
    assert report["verdicts"][0]["rules"] == ["keys"]


def test_test_with_cases_of_one_kind_claims_no_figure_for_the_other(tmp_path: Path, house: Path) -> None:
    suite = written(tmp_path / "suite.yaml", "- {text: Which key?, kind: negative}\n")
    result = brix("test", house, "--suite", suite)
    assert result.exit_code == 0
    assert "reliability         -" in result.stdout
    assert "balance index       -" in result.stdout


@pytest.mark.parametrize("name", ["finance", "hr", "legal"])  # all five: test_builtin_specs.py
def test_specs_that_come_with_the_toolkit_pass_their_own_cases(name: str) -> None:
    report = json.loads(brix("test", name, "--format", "json").stdout)
    assert [verdict for verdict in report["verdicts"] if not verdict["passed"]] == []
    assert report["cases"] >= 60


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty; a suite needs cases"),
        ("[]", "must be a list with at least one case"),
        ("test_cases: 5", "must be a list with at least one case"),
        ("cases: []", "a suite has no field 'cases'"),
        ("word", "a suite must be a list of test cases"),
        ("- {text: a, kind: odd}", "test_cases[0].kind must be 'positive', 'evasive' or 'negative'"),
        ("- {text: a, kind: positive}\n- {text: a, kind: positive, expect: gates}", ":2: expect 'gates' names no rule"),
        ("- {text: a, kind: positive, expect: told}", "set where"),
        ("- {text: a, text: b, kind: negative}", "key 'text' is given twice"),
        ("- 5", "test_cases[0] must be a mapping"),
    ],
)
def test_a_suite_that_cannot_be_used_is_told_with_its_line(
    tmp_path: Path, house: Path, text: str, message: str
) -> None:
    suite = written(tmp_path / "suite.yaml", text)
    result = brix("test", house, "--suite", suite)
    assert result.exit_code == 2
    assert str(suite) in result.stderr
    assert message in result.stderr


def test_test_says_what_is_missing(tmp_path: Path, house: Path) -> None:
    no_suite = brix("test", house, "--suite", tmp_path / "none.yaml")
    assert (no_suite.exit_code, "give the path of a suite file" in no_suite.stderr) == (2, True)
    no_cases = brix("test", written(tmp_path / "bare.yaml", "name: bare\n"))
    assert (no_cases.exit_code, "has no test cases; give --suite" in no_cases.stderr) == (2, True)
    for model in ("gpt-4o", "openai:", "mock:x"):
        wrong = brix("test", house, "--model", model)
        assert (wrong.exit_code, f"got {model!r}" in wrong.stderr) == (2, True)
    no_key = brix("test", house, "--model", "openai:gpt-4o-mini", OPENAI_API_KEY=None)
    assert (no_key.exit_code, "the openai SDK cannot be used" in no_key.stderr) == (2, True)


def asked(server: DemoServer, *arguments: object) -> Result:
    return brix(*arguments, "--model", "openai:gpt-4o-mini", OPENAI_API_KEY="key", OPENAI_BASE_URL=server.base_url)


def test_test_asks_a_model_of_openai_only_what_the_spec_lets_through(server: DemoServer, house: Path) -> None:
    server.default = Reply("I may not tell.")
    result = asked(server, "test", house)
    assert result.exit_code == 0, result.stdout + result.stderr
    # Two of four questions are stopped; the other two have no more than one sample each.
    assert len(server.requests) == 2
    assert "house 1.0, model openai:gpt-4o-mini: 6 cases, 0 failed" in result.stdout


def test_an_answer_that_is_withheld_counts_as_stopped(server: DemoServer, house: Path) -> None:
    server.default = Reply("It lies under the mat.")
    result = asked(server, "test", house, "--format", "json")
    verdicts = json.loads(result.stdout)["verdicts"]
    (harmless,) = [one for one in verdicts if one["kind"] == "negative" and one["where"] == "input"]
    assert result.exit_code == 1
    assert (harmless["passed"], harmless["note"]) == (False, "the answer was withheld: told")
    assert [one["passed"] for one in verdicts if one["kind"] != "negative"] == [True] * 4


def test_a_model_that_cannot_be_asked_fails_the_case_and_three_in_a_row_end_the_run(
    server: DemoServer, tmp_path: Path, house: Path
) -> None:
    server.script(ServerError(), Reply("No."))
    result = asked(server, "test", house)
    assert result.exit_code == 1
    assert "the model could not be asked: InternalServerError" in result.stdout

    server.reset()
    server.default = ServerError()
    many = "".join(f"- {{text: Question {number}?, kind: negative}}\n" for number in range(50))
    result = asked(server, "test", house, "--suite", written(tmp_path / "many.yaml", many))
    assert result.exit_code == 2
    assert "openai:gpt-4o-mini failed 3 times in a row" in result.stderr
    assert len(server.requests) == 3


# --- explain


def test_explain_says_in_plain_language_what_each_rule_does(house: Path) -> None:
    result = brix("explain", house)
    assert result.exit_code == 0
    for line in (
        "house 1.0 (domain: home)",
        "Keys and doors.",
        "    Asks for keys.",
        "    Looks at the user's last message and arguments of tool calls.",
        '    Met by: "spare", up to 6 words, "house" or "door" "key"',
        '            exactly "skeleton" "key"',
        '    Lowered where the system messages say "locksmith course".',
        "    Then the call is stopped, or answered from retrieved documents only.",
        '    The user is told: "I may not tell."',
        "    Test cases: 2",
        "    Adds 0.3 to the risk (weight 0.5 x 0.6, as universal signals add up).",
        "    Then the answer is not shown.",
    ):
        assert line in result.stdout.splitlines()


def test_a_built_in_name_stands_where_a_path_does(tmp_path: Path) -> None:
    lines = brix("explain", "legal").stdout.splitlines()
    assert [rule.name for rule in load_spec("legal").rules() if f"  {rule.name}" not in lines] == []

    linted = json.loads(brix("lint", "legal", "--format", "json").stdout)
    assert linted["reports"][0]["spec"] == load_spec("legal").label

    suite = tmp_path / "suite.yaml"
    assert brix("generate", "legal", "-o", suite, "--per-rule", "1").exit_code == 0
    rules = [rule for rule in load_spec("legal").rules() if rule.patterns]
    assert len(load_suite(suite, load_spec("legal"))) >= 12 * len(rules)


def traced(house: Path, text: str) -> dict[str, Any]:
    """The trace entry of a call that the guard stops."""
    client = BRIX.wrap(MockLLMClient(), regulated_spec=str(house))
    with pytest.raises(BrixGuardBlockedError):
        client.complete_sync(text)
    return client.get_traces()[0]


def test_explain_finds_a_decision_in_a_log_and_marks_what_was_matched(tmp_path: Path, house: Path) -> None:
    said = f"Hello there. Where is the {WAYS['cyrillic']('spare')}\n\u200bdoor key?"
    entry = traced(house, said)
    (decision,) = [one for one in entry["decisions"] if one["guard"] == "regulated"]
    log = written(tmp_path / "log.jsonl", "\n".join(["{}", "no json", json.dumps(entry), "[1]"]))

    result = brix("explain", house, "--decision-id", decision["decision_id"], "--log", log)
    assert result.exit_code == 0, result.stderr
    assert f"decision {decision['decision_id']} ({log}:3)" in result.stdout
    assert "The call was stopped before anything was sent." in result.stdout
    assert "rule: keys" in result.stdout
    assert "spec: house 1.0" in result.stdout
    marked = f"Where is the >>{WAYS['cyrillic']('spare')}\\n\\u200bdoor key<<?"
    assert marked in result.stdout
    assert '    Met by: "spare", up to 6 words, "house" or "door" "key"' in result.stdout

    short = brix("explain", "--decision-id", decision["decision_id"][:8].upper(), "--log", tmp_path)
    assert marked in short.stdout


def test_explain_tells_when_the_rule_has_changed_since(tmp_path: Path, house: Path) -> None:
    entry = traced(house, "The spare door key!")
    log = written(tmp_path / "log.jsonl", json.dumps(entry))
    newer = written(tmp_path / "newer.yaml", HOUSE.replace('version: "1.0"', 'version: "2.0"'))
    decision_id = entry["decisions"][0]["decision_id"]
    result = brix("explain", newer, "--decision-id", decision_id, "--log", log)
    assert "the rule today, in house 2.0; the decision was made by house 1.0:" in result.stdout


def test_explain_says_what_it_cannot_find(tmp_path: Path, house: Path) -> None:
    log = written(tmp_path / "log.jsonl", json.dumps({"decisions": [{"decision_id": "abcdef12"}] * 2}) + "\nbroken\n")
    two = written(
        tmp_path / "two.jsonl",
        "\n".join(json.dumps({"decisions": [{"decision_id": f"abcdef{number}"}]}) for number in range(2)),
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ((), "give the name or path of a spec, or --decision-id with --log"),
        (("--decision-id", "abcdef12"), "--decision-id and --log belong together"),
        (("--log", log), "--decision-id and --log belong together"),
        (("--decision-id", "ab", "--log", log), "is too short"),
        (("--decision-id", "abcdef99", "--log", log), "no decision 'abcdef99' among its 2; 1 lines are no JSON"),
        (("--decision-id", "abcdef", "--log", two), "is the beginning of abcdef0, abcdef1"),
        (("--decision-id", "abcdef12", "--log", tmp_path / "none.jsonl"), "cannot be read: No such file"),
        (("--decision-id", "abcdef12", "--log", empty), "is a directory without any *.jsonl"),
        ((tmp_path / "none.yaml",), "there is no such file"),
    ):
        result = brix("explain", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_log_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    escape = "\x1b]0;owned\x07"
    match = {"rule": escape, "pattern": escape, "start": 0, "end": 3, "excerpt": f"abc{escape}", "excerpt_start": 0}
    decision = {"decision_id": "abcdef12", "decision": escape, "rule": escape, "spec": escape, "matches": [match, 5]}
    log = written(tmp_path / "log.jsonl", json.dumps({"decisions": [decision], "model": escape}))
    result = brix("explain", "--decision-id", "abcdef12", "--log", log)
    assert result.exit_code == 0
    assert ">>abc<<" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout


# --- generate


def test_generate_drafts_a_suite_that_test_takes(tmp_path: Path, house: Path) -> None:
    suite = tmp_path / "suite.yaml"
    result = brix("generate", house, "-o", suite)
    assert result.exit_code == 0, result.stderr
    assert "cases drafted" in result.stderr

    cases = load_suite(suite, load_spec(house))
    by_rule = {
        rule: sum(case.kind == "evasive" and case.expect == rule for case in cases)
        for rule in ("keys", "doors", "told")
    }
    assert by_rule == dict.fromkeys(("keys", "doors", "told"), len(WAYS)) == dict.fromkeys(by_rule, 12)
    assert {case.kind for case in cases} == {"positive", "evasive", "negative"}
    assert len({(case.text, case.where) for case in cases}) == len(cases)

    tested = brix("test", house, "--suite", suite)
    assert tested.exit_code == 0, tested.stdout


def test_generate_writes_to_stdout_too_and_replaces_no_file_unasked(tmp_path: Path, house: Path) -> None:
    printed = brix("generate", house, "--per-rule", "1")
    assert yaml.safe_load(printed.stdout)["spec"] == "house 1.0"

    kept = written(tmp_path / "mine.yaml", "mine")
    refused = brix("generate", house, "-o", kept)
    assert (refused.exit_code, kept.read_text(encoding="utf-8")) == (2, "mine")
    assert "exists; give another file, or --force" in refused.stderr
    assert brix("generate", house, "-o", kept, "--force").exit_code == 0
    assert load_suite(kept, load_spec(house))

    for arguments, message in (
        (("-o", tmp_path / "no" / "where.yaml"), "cannot be written: No such file"),
        (("--per-rule", "0"), "--per-rule must be at least 1, got 0"),
    ):
        result = brix("generate", house, *arguments)
        assert (result.exit_code, message in result.stderr) == (2, True)
    bare = brix("generate", written(tmp_path / "bare.yaml", "name: bare"))
    assert (bare.exit_code, "has no rules to draft cases from" in bare.stderr) == (2, True)


# --- all of them


@pytest.mark.parametrize("command", ["lint", "test", "explain", "generate"])
def test_every_command_refuses_a_bad_spec_with_file_and_line_and_no_traceback(command: str, tmp_path: Path) -> None:
    bad = written(tmp_path / "bad.yaml", HOUSE.replace("weight: 0.5", "weight: 5\x1b[31m"))
    bad.write_text(HOUSE.replace("weight: 0.5", "weight: 5"), encoding="utf-8")
    result = brix(command, bad)
    assert result.exit_code == 2
    assert f"{bad}:10: " in result.stdout + result.stderr
    assert "rule 'doors': risk_signals[0].weight must be at most 1, got 5" in result.stdout + result.stderr
    assert "Traceback" not in result.output


def test_the_installed_command_works_without_a_terminal_in_an_ascii_locale(house: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "80"}
    code = "from brix_core.cli import app; app()"
    for arguments in (["test", str(house)], ["generate", str(house)]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, env=environment, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
