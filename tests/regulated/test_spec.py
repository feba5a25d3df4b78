"""Specs: read from names, files, texts and dicts, and refused with file, line and rule of everything that is wrong."""

from __future__ import annotations

import copy
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from pydantic import ValidationError

from brix_core.errors import BrixConfigurationError
from brix_core.regulated.format import yaml_tree
from brix_core.regulated.format.loading import BUILT_IN, SPECS, as_spec, load_spec, load_spec_from_dict
from brix_core.regulated.format.problems import SpecProblem, SpecValidationError
from brix_core.regulated.format.spec import SpecModel
from brix_core.regulated.format.spec_schema import json_schema

HOUSE = """
metadata: {name: house, version: "1.0", domain: home}
circuit_breakers:
  - name: keys
    description: Asks for keys.
    patterns: ["spare ... key"]
risk_signals:
  - {name: doors, description: About doors., patterns: [door], weight: 0.5}
output_signals:
  - {name: told, description: Tells where it is., patterns: [under the mat], weight: 0.6, signal_type: block}
test_cases:
  - {text: "Where is the spare key?", kind: positive, expect: keys}
"""


def house(**changes: Any) -> dict[str, Any]:
    """The spec as a dict, with other top-level fields."""
    return {**yaml.safe_load(HOUSE), **changes}


def problems(source: Any) -> list[SpecProblem]:
    with pytest.raises(SpecValidationError) as caught:
        load_spec_from_dict(source) if isinstance(source, dict) else load_spec(source)
    return list(caught.value.problems)


def the_problem(source: Any) -> SpecProblem:
    found = problems(source)
    assert len(found) == 1, found
    return found[0]


def test_the_same_spec_from_text_file_dict_and_model(tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    file.write_text(HOUSE, encoding="utf-8")

    spec = load_spec(HOUSE)
    assert spec == load_spec(file) == load_spec(str(file)) == load_spec_from_dict(yaml.safe_load(HOUSE))
    assert as_spec(spec) is spec
    assert (spec.name, spec.version, spec.label) == ("house", "1.0", "house 1.0")
    assert [rule.name for rule in spec.rules()] == ["keys", "doors", "told"]
    assert spec.rule("doors") is spec.risk_signals[0]
    assert spec.rule("windows") is None


def test_what_a_rule_does_not_say_is_the_default_and_the_specs_own_defaults_go_before() -> None:
    plain = load_spec_from_dict(house()).circuit_breakers[0]
    assert (plain.scope, plain.exclude_from, plain.applies_to) == (
        "last_user",
        "system",
        ("messages", "tool_arguments"),
    )

    spec = load_spec_from_dict(house(defaults={"scope": "conversation", "applies_to": ["messages", "retrieved"]}))
    breaker = spec.circuit_breakers[0]
    assert (breaker.scope, breaker.exclude_from, breaker.applies_to) == (
        "conversation",
        "system",
        ("messages", "retrieved"),
    )
    own = house(defaults={"scope": "conversation"})
    own["circuit_breakers"][0]["scope"] = "last_user"
    assert load_spec_from_dict(own).circuit_breakers[0].scope == "last_user"


def test_the_short_form_is_the_long_form() -> None:
    short = house(name="house", version="1.0", domain="home")
    del short["metadata"]
    assert load_spec_from_dict(short) == load_spec(HOUSE)
    assert load_spec("name: tiny").version == "0.0.0"


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_specs_load_by_name_once(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name
    assert load_spec(name) is spec


def test_a_file_called_like_a_built_in_spec_is_given_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "medical").write_text(HOUSE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_spec("./medical").name == load_spec(Path("medical")).name == "house"


def test_a_spec_is_frozen_hashed_by_value_and_survives_copies() -> None:
    spec = load_spec(HOUSE)
    with pytest.raises(ValidationError, match="frozen"):
        spec.metadata.name = "other"
    assert hash(spec) == hash(load_spec(HOUSE))
    assert pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec) == spec


def test_a_spec_made_by_hand_is_checked_as_well() -> None:
    twice = house(risk_signals=[{"name": "keys", "description": "d", "patterns": ["x"], "weight": 0.5}])
    with pytest.raises(ValidationError, match="names are unique over all rules"):
        SpecModel.model_validate(twice)


EVERYTHING = """
name: x
version: 1.0
circuit_breakers:
- {name: a, description: d, patterns: x}
- name: a
  description: d
  patterns: [x, yes]
  exclude_context: [the]
  wieght: 3
- {name: a b, description: ''}
- 5
risk_signals:
- {name: q, description: d, patterns: ["... z"], weight: 7}
sampling_config:
  low_threshold: 0.9
  medium_samples: 4
  max_tokens: 1.5
test_cases:
- {text: t, kind: positive, expect: zz}
- {text: t, kind: negative, expect: q}
- {text: t, kind: positive, expect: q, where: output}
- {text: t, kind: foo}
defaults: {scope: all}
"""


NAMES = "must begin with a letter and hold only letters, digits, '_', '-' and '.'"


def test_all_problems_are_told_at_once_each_with_file_line_and_rule(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(EVERYTHING, encoding="utf-8")
    found = problems(file)

    assert {problem.file for problem in found} == {str(file)}
    assert [(problem.line, problem.rule, problem.message.split(", got")[0].split(";")[0]) for problem in found] == [
        (3, "", "metadata.version must be text"),
        (5, "a", "circuit_breakers[0].patterns must be a list"),
        (6, "a", "name 'a' is taken by circuit_breakers[0]"),
        (8, "a", "circuit_breakers[1].patterns[1] must be text"),
        (9, "a", "exclude_context 'the' is a bare common word, which would lower the rule almost everywhere"),
        (10, "a", "circuit_breakers[1] has no field 'wieght'"),
        (11, "a b", "has neither patterns nor examples, so it can never match"),
        (
            11,
            "a b",
            "circuit_breakers[2].name must begin with a letter and hold only letters, digits, '_', '-' and '.'",
        ),
        (11, "a b", "circuit_breakers[2].description must not be blank"),
        (12, "", "circuit_breakers[3] must be a mapping of fields to values"),
        (14, "q", "pattern '... z' cannot be used: a gap ('...') stands at its edge: write words on both sides of it"),
        (14, "q", "risk_signals[0].weight must be at most 1"),
        (16, "", "low_threshold 0.9 must not be above medium_threshold 0.7"),
        (17, "", "medium_samples 4 must not be above high_samples 3"),
        (18, "", "sampling_config.max_tokens must be a whole number"),
        (20, "zz", "expect 'zz' names no rule of circuit_breakers or risk_signals"),
        (21, "q", "a negative case must pass, so it cannot expect 'q'"),
        (22, "q", "expect 'q' names no rule of output_signals"),
        (23, "", "test_cases[3].kind must be 'positive', 'evasive' or 'negative'"),
        (24, "", "defaults.scope must be 'last_user' or 'conversation'"),
    ]
    with pytest.raises(SpecValidationError) as caught:
        load_spec(file)
    assert str(caught.value).startswith("20 problems in the spec:\n")
    assert f"{file}:10: rule 'a': circuit_breakers[1] has no field 'wieght'" in str(caught.value)


def test_problems_of_a_dict_have_no_line_but_the_rule() -> None:
    wrong = house()
    wrong["risk_signals"][0]["weight"] = "heavy"
    problem = the_problem(wrong)
    assert (problem.file, problem.line, problem.rule) == ("<dict>", None, "doors")
    assert problem.message == "risk_signals[0].weight must be a number, got 'heavy'"


def test_the_error_is_a_configuration_error_and_survives_pickling() -> None:
    with pytest.raises(BrixConfigurationError) as caught:
        load_spec("name: x\nnaem: y")
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, SpecValidationError)
    assert error.problems == caught.value.problems != ()  # type: ignore[attr-defined]
    assert str(error) == str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name: x\nsampling_config: {temprature: 1}", 2, "did you mean 'temperature'?"),
        ("metadata: {name: x}\nversion: '1'", 2, "put it into metadata"),
        ("circuit_breakers: []", 1, "metadata is missing"),
        ("metadata: {version: '1'}", 1, "metadata needs the field 'name'"),
        ("name: x\nversion: true", 2, "put it in quotes"),
        ("name: x\nname: y", 2, "key 'name' is given twice; its first line is 1"),
        ("name: x\nrisk_signals:\n- {name: a, name: b}", 3, "key 'name' is given twice"),
        ("name: x\n<<: {version: '1'}", 2, "merge keys (<<) are not read"),
        ("name: x\n? [a]\n: 1", 2, "keys must be words"),
        ("name: x\ndomain: !!python/object/apply:os.getcwd []", 2, "is not read"),
        ("name: x\ndomain: !!python/name:os.system x", 2, "cannot be read"),
        ("name: x\ndomain: 2024-13-45", 2, "cannot be read"),
        (f"name: x\ndomain: {'9' * 5_000}", 2, "cannot be read"),
        (f"name: x\nrisk_signals:\n- {{name: a, description: d, weight: 1, patterns: [{'a-' * 30}b]}}", 3, "in a row"),
        ("name: x\n---\nname: y", 2, "expected a single document"),
        ("a: b: c", 1, "not valid YAML"),
        ("name: [x\n", 2, "not valid YAML"),
        ("name: x\n\0", 2, "not valid YAML"),
        ("- a\n- b", 1, "must be a mapping"),
        ("\n# nothing\n", 1, "it is empty"),
        ("a: &a [*a]", 1, "an anchor holds an alias of itself"),
        ("a: " + "[" * 100_000, 1, "nested more than 40 levels deep"),
        ("a:\n" + "- " * 50_000, 2, "nested more than 40 levels deep"),
        ("{a: " * 50_000, 1, "nested more than 40 levels deep"),
    ],
)
def test_what_is_no_spec_is_refused_where_it_stands(text: str, line: int, message: str) -> None:
    told = [problem for problem in problems(text) if message in problem.message]
    assert [(problem.file, problem.line) for problem in told] == [("<text>", line)]


@pytest.mark.parametrize("text", ["a: " + "[" * 20_000, "- " * 20_000, "{a: " * 20_000, "a: &a [*a]", "a: b: c", "x\0"])
def test_without_libyaml_the_same_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "_LOADER", yaml.SafeLoader)
    assert problems(text)
    assert load_spec(HOUSE).name == "house"


def test_aliases_that_grow_beyond_measure_are_refused_in_little_time() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 30)
    )
    started = time.perf_counter()
    assert "more than 200,000 values" in the_problem(bomb).message
    assert time.perf_counter() - started < 5.0


def test_an_alias_that_does_no_harm_is_read() -> None:
    text = "name: x\nrisk_signals:\n- {name: a, description: &d Doors., patterns: [door], weight: 0.1}\n"
    spec = load_spec(text + "- {name: b, description: *d, patterns: [gate], weight: 0.1}")
    assert spec.risk_signals[1].description == "Doors."


def test_files_that_cannot_be_read_are_told_by_name(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: x\ndescription: caf\xe9\n")
    empty = tmp_path / "empty.yaml"
    empty.touch()
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" + b"x" * 3_000_000)

    problem = the_problem(latin)
    assert (problem.line, problem.message) == (2, "byte 0xe9 is no UTF-8; save the file with that encoding")
    assert "it is empty" in the_problem(empty).message
    assert "3,000,001 characters" in the_problem(huge).message
    assert "is a directory" in the_problem(tmp_path).message
    missing = the_problem(tmp_path / "none.yaml")
    assert missing.file == str(tmp_path / "none.yaml")
    assert "there is no such file" in missing.message
    assert "did you mean the built-in 'medical'?" in the_problem("medcal").message
    assert "null byte" in the_problem("a\0b").message
    assert len(the_problem("x" * 100_000).file) == 200


@pytest.mark.parametrize("source", [5, None, b"name: x", ["name"], ""])
def test_what_stands_for_no_spec_at_all_is_told_what_does(source: Any) -> None:
    with pytest.raises(SpecValidationError, match="give a built-in name"):
        as_spec(source)
    with pytest.raises(SpecValidationError, match="takes a dict"):
        load_spec_from_dict(source)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + HOUSE.replace("\n", "\r\n").encode())
    assert load_spec(file) == load_spec(HOUSE)


def test_hostile_values_are_quoted_without_harm() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    message = the_problem(house(sampling_config={"temperature": Broken()})).message
    assert message == "sampling_config.temperature must be a number, got a Broken"
    assert len(the_problem(house(sampling_config="x" * 10_000)).message) < 200


def test_specs_can_be_loaded_by_many_threads_at_once() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len({hash(spec) for spec in pool.map(load_spec, [HOUSE] * 32)}) == 1


def test_the_json_schema_takes_what_the_loader_takes() -> None:
    schema = json_schema()
    validator = jsonschema_rs.validator_for(json.loads(json.dumps(schema)))
    for name in BUILT_IN:
        data = yaml.safe_load((SPECS / f"{name}.yaml").read_text(encoding="utf-8"))
        assert [error.message for error in validator.iter_errors(data)] == []
    assert validator.is_valid({"name": "tiny"})
    assert not validator.is_valid({"version": "1"})
    assert not validator.is_valid({"name": "tiny", "naem": 1})
    assert not validator.is_valid(house(sampling_config={"temperature": 7}))


def test_every_field_of_the_format_is_described() -> None:
    schema = json_schema()
    fields = [(name, field) for model in schema["$defs"].values() for name, field in model["properties"].items()]
    assert len(fields) > 40
    # A field of the same words as the model it holds has them there.
    silent = {name: field for name, field in (*fields, *schema["properties"].items()) if not field.get("description")}
    assert [name for name, field in silent.items() if "$ref" not in field] == []
    assert [name for name, model in schema["$defs"].items() if not model.get("description")] == []
