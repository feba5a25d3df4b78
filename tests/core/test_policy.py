"""Policy files: YAML in, checked options out, and errors that name the file and the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brix_core import BrixConfigurationError, load_policy
from brix_core.options import parse

Write = Callable[[str], Path]


@pytest.fixture
def policy(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "policy.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_a_policy_is_read_and_ready_to_be_passed_on(policy: Write) -> None:
    options = load_policy(
        policy(
            """
            # limits of the support desk
            max_cost_usd: 1.50
            budget_strategy: warn
            prices:
              my-model: [1.5e-7, 6e-7]
              cached: {input: 1e-6, output: 2.0e-6, cache_read: .0000001}
            rate_limit_rpm: 60
            max_retries: 3
            retry_on: [418]
            circuit_breaker: true
            session_id: desk
            """
        )
    )
    assert options == {
        "max_cost_usd": 1.5,
        "budget_strategy": "warn",
        "prices": {
            "my-model": [1.5e-7, 6e-7],
            "cached": {"input": 1e-6, "output": 2e-6, "cache_read": 1e-7},
        },
        "rate_limit_rpm": 60,
        "max_retries": 3,
        "retry_on": [418],
        "circuit_breaker": True,
        "session_id": "desk",
    }
    given = {"budget", "rate_limit", "retry", "circuit_breaker"}
    assert set(parse(options).configs) == given | {"observability", "recording", "schema"}


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "{}", "null"])
def test_an_empty_policy_is_no_policy(policy: Write, text: str) -> None:
    assert load_policy(policy(text)) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E-6", 1e-6),
        ("+1e3", 1_000.0),
        ("1.e2", 100.0),
        ("1.5e-07", 1.5e-7),
        ("2", 2),
        (".inf", float("inf")),
    ],
)
def test_numbers_are_read_as_yaml_1_2_has_them(policy: Write, text: str, value: float) -> None:
    found: Any = load_policy(policy(f"max_cost_usd: {text}"))["max_cost_usd"]
    assert found == value
    assert type(found) is type(value)


def test_the_path_may_be_text_or_a_path(policy: Write) -> None:
    file = policy("max_retries: 1")
    assert load_policy(str(file)) == load_policy(file) == {"max_retries": 1}


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("max_cost_usd: 1\nmax_cost: 2\n", 2, "unknown option 'max_cost'; did you mean max_cost_usd"),
        ("\n\nmax_retries: many", 3, "max_retries must be an int >= 0, got 'many'"),
        ("max_retries: 1\nmax_cost_usd: .nan", 2, "max_cost_usd must be a number > 0, got nan"),
        ("max_cost_usd: yes", 1, "max_cost_usd must be a number > 0, got True"),
        ('max_retries: 1\n"per_call_timeout": -1', 2, "per_call_timeout must be"),
        ("# c\nretry_on: [429]", 2, "retry_on has no effect: the retry guard is not active"),
        ("max_cost_usd: 1\nprices:\n  m: [-1, 0]", 2, "input price of 'm'"),
        ("max_cost_usd: 1\nprices: cheap", 2, "prices must map"),
        ("per_call_timeout: 1\nmax_time_seconds: 1", 1, "per_call_timeout is given twice"),
        ("session_id: 7", 1, "session id"),
        ("max_retries: 1\nfallbacks: [gpt-4o]", 2, "fallbacks is an object"),
        ("store: memory", 1, "store is an object"),
        ("clock: null", 1, "clock is an object"),
        ("7: 1", 1, "unknown option 7"),
        ("max_retries: 1\nretry_on: 429", 2, "retry_on must be a list"),
    ],
)
def test_a_bad_option_is_named_with_file_and_line(policy: Write, text: str, line: int, complaint: str) -> None:
    file = policy(text)
    with pytest.raises(BrixConfigurationError) as caught:
        load_policy(file)
    assert f"policy file {file}, line {line}: " in str(caught.value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max_cost_usd: 1\nmax_cost_usd: 2", "line 2"),
        ("max_cost_usd: 1\nprices:\n  m: [0, 0]\n  m: [1, 1]", "line 4"),
        ("max_cost_usd: [1", "not valid YAML"),
        ("max_cost_usd: !!python/object:os.system {}", "not valid YAML"),
        ("a: &a [*a", "not valid YAML"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ("? {a: b}\n: 1", "not valid YAML"),
        ("session_id: 2024-13-45", "not valid YAML"),
        ("\t- x", "not valid YAML"),
        ("one: 1\n---\ntwo: 2", "not valid YAML"),
        ("max_cost_usd: " + "1" * 5_000, "not valid YAML"),
        ("[" * 1_000, "not valid YAML"),
    ],
)
def test_bad_yaml_is_an_error_of_ours_that_names_the_file(policy: Write, text: str, complaint: str) -> None:
    file = policy(text)
    with pytest.raises(BrixConfigurationError) as caught:
        load_policy(file)
    assert str(file) in str(caught.value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("text", ["[max_cost_usd]", "just words", "7", "- max_cost_usd: 1"])
def test_a_policy_must_be_a_mapping(policy: Write, text: str) -> None:
    with pytest.raises(BrixConfigurationError, match=r"must map option names to values, got a (list|str|int)"):
        load_policy(policy(text))


def test_a_file_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, binary):
        with pytest.raises(BrixConfigurationError, match="cannot be read"):
            load_policy(path)
