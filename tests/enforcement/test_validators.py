"""Validators: what fits, where it does not, and what a repair may do."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator

from brix_core import BrixConfigurationError
from brix_core.demo import DemoServer, Reply
from brix_core.enforcement import (
    BaseValidator,
    EnforcedOutput,
    JSONValidator,
    OpenAIAdapter,
    PydanticValidator,
    ValidationError,
    ValidationResult,
    ValidationStatus,
)
from brix_core.enforcement.validators import invalid
from tests.enforcement.support import engine_of
from tests.support.malformed import SCHEMA, malformed_answers
from tests.support.schemas import CITY_JSON, KINDS, OSLO, VALID, City


class Order(BaseModel):
    id: int = Field(ge=1)
    items: list[City]


NESTED = json.dumps({"id": 0, "items": [{"name": "Oslo", "people": 1}, {"name": 7, "people": "x"}]})


def both(schema: Any) -> list[tuple[BaseValidator, Any]]:
    """Validators that take a class."""
    return [(PydanticValidator(), schema), (JSONValidator(), schema)]


# -- validation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_schema_gives_its_kind_of_value(kind: str) -> None:
    schema, expected = KINDS[kind]
    validator = JSONValidator() if kind == "json" else PydanticValidator()
    for result in (validator.validate(VALID, schema), validator.validate_and_repair(VALID, schema)):
        assert result == ValidationResult(status=ValidationStatus.VALID, parsed_output=expected, raw_output=VALID)
        assert type(result.parsed_output) is type(expected)


def test_a_model_may_stand_for_its_json_schema() -> None:
    result = JSONValidator().validate(VALID, City)
    assert result.parsed_output == {"name": "Oslo", "people": 700_000}


@pytest.mark.parametrize(("validator", "schema"), both(Order), ids=lambda value: type(value).__name__)
def test_errors_name_the_place(validator: BaseValidator, schema: Any) -> None:
    result = validator.validate(NESTED, schema)
    assert result.status is ValidationStatus.INVALID
    assert sorted(error.path for error in result.errors) == ["$.id", "$.items[1].name", "$.items[1].people"]
    actual = {error.path: error.actual for error in result.errors}
    assert actual == {"$.id": 0, "$.items[1].name": 7, "$.items[1].people": "x"}
    assert result.parsed_output is None
    assert result.raw_output == NESTED


@pytest.mark.parametrize(("key", "path"), [("a b", '$["a b"]'), ("ä", "$.ä"), ('q"', '$["q\\""]')], ids=repr)
def test_odd_keys_are_quoted(key: str, path: str) -> None:
    schema = {"type": "object", "properties": {key: {"type": "integer"}}}
    [error] = JSONValidator().validate(json.dumps({key: "x"}), schema).errors
    assert error.path == path


@pytest.mark.parametrize(
    "text", ["", "no", "[", '{"name": "Oslo"', f"```json\n{VALID}\n```", f"So: {VALID}", "{'a': 1}"]
)
def test_without_repair_the_whole_text_must_be_json(text: str) -> None:
    for validator, schema in both(City):
        result = validator.validate(text, schema)
        assert (result.status, result.repair_attempted) == (ValidationStatus.INVALID, False)
        assert result.errors == [ValidationError(path="$", message="the text as a whole is not JSON")]


TUPLE = {"items": [{"type": "integer"}], "additionalItems": False}
"""A list of at most one integer, up to draft 2019-09; in 2020-12, where `items` is no list, no valid schema."""
DRAFTS: dict[str, tuple[dict[str, Any], str]] = {
    "http://json-schema.org/draft-04/schema#": ({"minimum": 1, "exclusiveMinimum": True}, "1"),
    "http://json-schema.org/draft-06/schema#": (TUPLE, "[1, 2]"),
    "http://json-schema.org/draft-07/schema#": (TUPLE, "[1, 2]"),
    "https://json-schema.org/draft/2019-09/schema": (TUPLE, "[1, 2]"),
    "https://json-schema.org/draft/2020-12/schema": ({"prefixItems": [{"type": "integer"}], "items": False}, "[1, 2]"),
}


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_schemas_own_draft_holds(draft: str) -> None:
    schema, wrong = DRAFTS[draft]
    assert not JSONValidator().validate(wrong, {"$schema": draft, **schema}).is_valid
    assert JSONValidator().validate("[1]" if "items" in schema else "2", {"$schema": draft, **schema}).is_valid


def test_2020_12_is_the_default() -> None:
    schema = {"prefixItems": [{"type": "integer"}], "items": False}
    assert [error.path for error in JSONValidator().validate("[1, 2]", schema).errors] == ["$[1]"]
    with pytest.raises(BrixConfigurationError, match="not a valid JSON Schema"):
        JSONValidator().validate("[1]", TUPLE)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "https://example.com/city.json"}, "not fetched"),
        ({"$ref": "file:///etc/passwd"}, "not fetched"),
        ({"type": "city"}, "not a valid JSON Schema"),
        ({"$schema": "https://example.com/my-draft"}, "not a valid JSON Schema"),
        ("City", "JSONValidator takes a JSON Schema dict"),
        (None, "JSONValidator takes a JSON Schema dict"),
        (int, "must be a Pydantic model"),
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_used_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(BrixConfigurationError, match=re.escape(said)):
        JSONValidator().validate(VALID, schema)


@pytest.mark.parametrize("schema", [CITY_JSON, City(name="a", people=1), "City", None, list[int]], ids=repr)
def test_pydantic_takes_classes(schema: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="PydanticValidator takes a Pydantic model"):
        PydanticValidator().validate(VALID, schema)


@pytest.mark.parametrize("output", [None, b"{}", 7, {}])
def test_an_output_is_text(output: Any) -> None:
    for method in (PydanticValidator().validate, PydanticValidator().validate_and_repair):
        with pytest.raises(BrixConfigurationError, match="output must be a str"):
            method(output, City)


# -- repair ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{VALID}\n```",
        f"Here you are: {VALID} Anything else?",
        "{'name': 'Oslo', 'people': 700000,}",
        '{name: "Oslo", people: 700000 /* about */}',
        '{"people": 700000, "name": "Oslo"',
        f"<think>Is it {{'name': 'Bergen', 'people': 1}}?</think>{VALID}",
    ],
)
def test_a_text_with_a_certain_meaning_is_repaired(text: str) -> None:
    for validator, expected in ((PydanticValidator(), OSLO), (JSONValidator(), OSLO.model_dump())):
        result = validator.validate_and_repair(text, City)
        assert result.parsed_output == expected
        assert (result.repair_attempted, result.repair_successful) == (True, True)
        assert result.raw_output == text
        assert result.errors == []


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("I would rather not.", ValidationStatus.UNREPAIRABLE),
        ('{"name": "Os', ValidationStatus.UNREPAIRABLE),
        ("", ValidationStatus.UNREPAIRABLE),
        ("So: {'name': 'Oslo'}", ValidationStatus.INVALID),
    ],
)
def test_a_repair_that_fails_says_so(text: str, status: ValidationStatus) -> None:
    result = PydanticValidator().validate_and_repair(text, City)
    assert (result.status, result.repair_attempted, result.repair_successful) == (status, True, False)
    assert result.errors
    assert result.parsed_output is None


def test_what_is_json_is_not_repaired() -> None:
    result = PydanticValidator().validate_and_repair('{"name": "Oslo"}', City)
    assert (result.status, result.repair_attempted) == (ValidationStatus.INVALID, False)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(deadline=None, max_examples=300)
@given(name=TEXTS, damage=st.sampled_from(["comma", "comment", "fence", "prose", "brace", "spaces"]))
def test_values_inside_strings_are_never_changed(name: str, damage: str) -> None:
    text = json.dumps({"name": name, "people": 1}, ensure_ascii=False)
    damaged = {
        "comma": text[:-1] + ",}",
        "comment": text[:-1] + " // the end\n}",
        "fence": f"```json\n{text}\n```",
        "prose": f"Here it is:\n{text}\nAnything else?",
        "brace": text[:-1],
        "spaces": f"  {text}\n\n",
    }[damage]
    for validator in (PydanticValidator(), JSONValidator()):
        result = validator.validate_and_repair(damaged, City)
        if result.is_valid:
            found = result.parsed_output
            assert (found["name"] if isinstance(found, dict) else found.name) == name
        else:
            assert damage != "spaces"


def test_no_malformed_answer_is_read_wrongly() -> None:
    read = 0
    for answer in malformed_answers(300):
        result = JSONValidator().validate_and_repair(answer.text, SCHEMA)
        if result.is_valid:
            read += 1
            assert result.parsed_output == answer.truth, answer.text
    assert read >= 234


# -- validators of one's own -----------------------------------------------------------------------------------


class NoVillages(PydanticValidator):
    def validate(self, output: str, schema: Any) -> ValidationResult:
        result = super().validate(output, schema)
        if result.is_valid and result.parsed_output.people < 1_000:
            return invalid(output, [ValidationError(path="$.people", message="must be a town", actual="village")])
        return result


def test_a_rule_of_ones_own_holds_for_repaired_texts_too() -> None:
    validator = NoVillages()
    assert validator.validate_and_repair("{'name': 'Oslo', 'people': 7000}", City).is_valid
    result = validator.validate_and_repair("{'name': 'Oslo', 'people': 7}", City)
    assert (result.status, result.repair_attempted, result.repair_successful) == (ValidationStatus.INVALID, True, False)
    assert result.errors[0].message == "must be a town"


def test_equal_schemas_are_compiled_once() -> None:
    validator = JSONValidator()
    assert validator.compile(CITY_JSON) is validator.compile(dict(CITY_JSON))
    assert PydanticValidator().compile(City) is PydanticValidator().compile(City)


@dataclass
class Odd:
    anything: Any


def test_outputs_hold_any_value() -> None:
    result = ValidationResult(status=ValidationStatus.VALID, parsed_output=Odd(object()))
    assert isinstance(result.parsed_output, Odd)
    assert EnforcedOutput.model_fields.keys() >= {"data", "generation", "validation", "retry_count", "success"}


# -- texts that are JSON as a whole ----------------------------------------------------------------------------

LAX: dict[str, Any] = {"type": "object", "properties": {"c": {"type": "string"}}}


@pytest.mark.parametrize("text", ['{"name":1}', '{"c": "x", "d": 1}', "{}", ' {"name": 1}\n'])
@pytest.mark.parametrize("draft", [None, *DRAFTS])
def test_what_every_draft_allows_is_valid(text: str, draft: str | None) -> None:
    schema = LAX if draft is None else {"$schema": draft, **LAX}
    for result in (JSONValidator().validate(text, schema), JSONValidator().validate_and_repair(text, schema)):
        assert (result.status, result.parsed_output) == (ValidationStatus.VALID, json.loads(text))


class Mapped(BaseModel):
    city: str = ""

    @model_validator(mode="before")
    @classmethod
    def of_old_keys(cls, value: Any) -> Any:
        return {"city": value["town"]} if isinstance(value, dict) and "town" in value else value


def test_a_models_own_mapping_of_keys_is_reached() -> None:
    assert PydanticValidator().validate('{"town": "Oslo"}', Mapped).parsed_output == Mapped(city="Oslo")


@pytest.mark.parametrize("text", ['It is {"name": 1}.', "{'name': 1}", '{"name": "x"'])
def test_in_prose_an_object_must_still_resemble_an_answer(text: str) -> None:
    result = JSONValidator().validate_and_repair(text, LAX)
    assert not result.is_valid
    assert "none of the fields" in result.errors[0].message


async def test_an_engine_takes_the_same_and_no_echo_of_the_schema(server: DemoServer, adapter: OpenAIAdapter) -> None:
    server.script(Reply('{"town": "Oslo"}'))
    assert (await engine_of(adapter).enforce("Where?", Mapped)).data == Mapped(city="Oslo")
    echo = json.dumps(Mapped.model_json_schema())
    assert PydanticValidator().validate(echo, Mapped).is_valid
    server.script(Reply(echo), Reply('{"city": "Oslo"}'), Reply(echo))
    output = await engine_of(adapter).enforce("Where?", Mapped)
    assert (output.data, output.retry_count) == (Mapped(city="Oslo"), 1)
    failed = await engine_of(adapter, max_retries=0).enforce("Where?", Mapped)
    assert not failed.success
    assert "this is the JSON Schema" in failed.validation.errors[0].message
    assert len(server.requests) == 4
