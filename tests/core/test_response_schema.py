"""A response schema: made from anything that describes an answer, it accepts instances and nothing like them."""

from __future__ import annotations

import dataclasses
import json
import pickle
import typing
from datetime import date
from typing import Annotated, Any, Literal, NotRequired, Required

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel
from typing_extensions import ReadOnly, TypedDict

from brix_core.errors import BrixConfigurationError
from brix_core.structured.response_schema import (
    INSTRUCTIONS_HEADING,
    MAX_FEEDBACK_CHARS,
    Problem,
    ResponseSchema,
    SchemaMismatch,
)


class City(BaseModel):
    name: str
    founded: date | None = None


class Options(BaseModel):
    """Nothing is required."""

    colour: str = "red"
    size: int = 1


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Renamed(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    total_price: float = Field(default=0.0, alias="totalPrice")


class Cities(RootModel[list[City]]):
    pass


class Document(BaseModel):
    """Its fields are named like the keywords of a schema."""

    title: str
    type: str


class StrictCity(BaseModel):
    model_config = ConfigDict(strict=True)
    founded: date


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@pydantic.dataclasses.dataclass
class Place:
    name: str


class Movie(TypedDict):
    title: str
    year: int


JSON_SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "Guest list!",
    "type": "object",
    "properties": {"guests": {"type": "array", "items": {"type": "string", "format": "email"}}},
    "required": ["guests"],
}


def problems_of(schema: Any, text: str) -> tuple[Problem, ...]:
    with pytest.raises(SchemaMismatch) as caught:
        ResponseSchema.of(schema).read(text)
    return caught.value.problems


@pytest.mark.parametrize(
    ("source", "text", "instance"),
    [
        (City, '{"name": "Oslo", "founded": "1040-01-01"}', City(name="Oslo", founded=date(1040, 1, 1))),
        (StrictCity, "{'founded': '1040-01-01'}", StrictCity(founded=date(1040, 1, 1))),
        (Point, 'Here: {"x": 1}', Point(1)),
        (Place, '{"name": "Rome",}', Place("Rome")),
        (Movie, '{"title": "M", "year": 1931}', {"title": "M", "year": 1931}),
        (JSON_SCHEMA, '{"guests": ["a@b.org"]}', {"guests": ["a@b.org"]}),
        (Node, '{"value": 1, "children": [{"value": 2}]}', Node(value=1, children=[Node(value=2)])),
        (Owner, '{"pet": {"kind": "cat", "lives": 9}}', Owner(pet=Cat(kind="cat", lives=9))),
        (Renamed, '{"totalPrice": 2}', Renamed(totalPrice=2)),
        (Renamed, '{"total_price": 2}', Renamed(totalPrice=2)),
        (Cities, 'Cities: [{"name": "Oslo"}]', Cities([City(name="Oslo")])),
        (Cities, "[]", Cities([])),
        (Options, "{}", Options()),
        (Options, '{"size": 2}', Options(size=2)),
        ({"type": "object"}, '{"anything": 1}', {"anything": 1}),
        ({"type": "integer"}, "42", 42),
    ],
)
def test_an_answer_becomes_an_instance(source: Any, text: str, instance: Any) -> None:
    schema = ResponseSchema.of(source)

    assert schema.read(text) == instance
    assert type(schema.read(text)) is type(instance)
    assert schema.is_instance(instance)
    assert schema.validate(instance) == instance


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Options, "I set nothing: {}."),
        (Options, '{"unrelated": 1}'),
        (Options, 'As in {"unrelated": 1}.'),
        (Options, '{"size": {"x": 1}'),
        (Options, '{"size": 2\n'),
        (Document, json.dumps(Document.model_json_schema())),
        (City, json.dumps(City.model_json_schema())),
        (Node, json.dumps(Node.model_json_schema())),
        (Options, "```json\n" + json.dumps(Options.model_json_schema(), indent=2) + "\n```"),
        ({"type": "object"}, '{"type": "object"}'),
        (Node, '{"value": oops, "children": [{"value": 2}]}'),
        (Options, '{"size": 1} Corrected: {"size": 2'),
        (Renamed, '{"totalPrice": 2, "more": 1}'),
        (City, '{"name": null}'),
        (JSON_SCHEMA, '{"guests": ["nobody"]}'),
        (City, "\ud800"),
    ],
)
def test_what_only_resembles_an_answer_is_refused(source: Any, text: str) -> None:
    assert problems_of(source, text)


def test_an_answer_behind_an_echo_of_the_schema_is_found() -> None:
    echo = json.dumps(City.model_json_schema())

    assert ResponseSchema.of(City).read(f'Schema: {echo}\nAnswer: {{"name": "Oslo"}}') == City(name="Oslo")
    assert ResponseSchema.of(City).read(f'Answer: {{"name": "Oslo"}} for {echo}') == City(name="Oslo")


@pytest.mark.parametrize(
    ("source", "text", "paths"),
    [
        (Node, '{"value": 1, "children": [{"value": "x"}, {}]}', ["$.children[0].value", "$.children[1].value"]),
        (Owner, '{"pet": {"kind": "cat", "lives": "many"}}', ["$.pet.lives"]),
        (Cities, '[{"name": 3}]', ["$[0].name"]),
        (Renamed, '{"total_price": 1, "a b": 2}', ['$["a b"]']),
        (JSON_SCHEMA, '{"guests": ["a@b.org", 3]}', ["$.guests[1]"]),
        (City, "no", ["$"]),
    ],
)
def test_problems_say_where_they_are(source: Any, text: str, paths: list[str]) -> None:
    assert [problem.path for problem in problems_of(source, text)][: len(paths)] == paths


def test_feedback_names_each_problem_and_stays_short() -> None:
    schema = ResponseSchema.of({"title": "Numbers", "type": "array", "items": {"type": "integer"}})
    answer = json.dumps(["x" * 5000] * 300)
    with pytest.raises(SchemaMismatch) as caught:
        schema.read(answer)
    feedback = schema.feedback(caught.value)

    assert len(feedback) <= MAX_FEEDBACK_CHARS
    assert "$[0]: " in feedback
    assert " more\n" in feedback
    assert "x" * 300 not in feedback


@pytest.mark.parametrize(
    "source",
    [
        int,
        3,
        None,
        "City",
        list[City],
        City(name="Oslo"),
        {"type": "objekt"},
        {"$ref": "https://example.invalid/schema.json"},
        {"$ref": "file:///etc/hosts"},
        {"$ref": "#/$defs/absent"},
        {"type": "object", "properties": {"a": {"pattern": "("}}},
        {"type": object},
    ],
)
def test_what_is_no_schema_is_refused_when_it_is_compiled(source: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="response_schema"):
        ResponseSchema.of(source)


@pytest.mark.parametrize(
    ("source", "name"),
    [(City, "City"), (Movie, "Movie"), (JSON_SCHEMA, "Guest_list"), ({"type": "array"}, "response")],
)
def test_a_schema_has_a_name_that_apis_accept(source: Any, name: str) -> None:
    assert ResponseSchema.of(source).name == name
    assert ResponseSchema.of({"title": "x" * 99}).name == "x" * 64


def test_instructions_begin_with_a_fixed_heading_and_hold_the_schema() -> None:
    schema = ResponseSchema.of(City)

    assert schema.instructions.startswith(INSTRUCTIONS_HEADING + "\n")
    assert json.dumps(schema.json_schema) in schema.instructions


def test_a_compiled_schema_is_returned_as_it_is() -> None:
    schema = ResponseSchema.of(City)

    assert ResponseSchema.of(schema) is schema


@pytest.mark.parametrize("source", [City, Node, Owner, Renamed, Point, Movie, JSON_SCHEMA])
def test_the_strict_variant_closes_every_object(source: Any) -> None:
    def check(schema: Any) -> None:
        if isinstance(schema, list):
            for item in schema:
                check(item)
        if isinstance(schema, dict):
            if schema.get("type") == "object":
                assert schema["additionalProperties"] is False
                assert schema["required"] == list(schema["properties"])
            assert not schema.keys() & {"default", "oneOf", "discriminator"}
            for item in schema.values():
                check(item)

    variant = ResponseSchema.of(source).strict_json_schema()

    assert variant is not None
    assert variant["type"] == "object"
    check(variant)


@pytest.mark.parametrize(
    "source",
    [Cities, {"type": "object"}, {"type": "object", "properties": {"a": {}}}, {"type": "object", "allOf": [True]}],
)
def test_what_strict_mode_cannot_say_has_no_strict_variant(source: Any) -> None:
    assert ResponseSchema.of(source).strict_json_schema() is None


def test_changing_the_source_later_changes_nothing() -> None:
    source = {"type": "object", "required": ["a"]}
    schema = ResponseSchema.of(source)
    source["required"] = []

    assert schema.json_schema["required"] == ["a"]
    assert not schema.is_instance({})


def test_a_mismatch_survives_pickling() -> None:
    mismatch = SchemaMismatch((Problem("$.a", "Field required", {}),), "{}")
    again = pickle.loads(pickle.dumps(mismatch))

    assert (again.problems, again.text, str(again)) == (mismatch.problems, "{}", "$.a: Field required")


def test_a_growing_answer_is_shown_before_it_is_valid() -> None:
    assert ResponseSchema.of(City).partial('```json\n{"name": "Os') == {"name": "Os"}


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    note: str | None = None


@pytest.mark.parametrize(
    "schema",
    [
        Open,
        {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {"a": {}}, "patternProperties": {"^c": {"type": "string"}}},
        {"type": "object", "properties": {"a": {}}, "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    ],
)
def test_an_object_that_may_have_other_fields_need_have_none_of_those_named(schema: Any) -> None:
    compiled = ResponseSchema.of(schema)
    for text in ('{"color": "red"}', '```json\n{"color": "red"}\n```'):
        found = compiled.read(text)
        assert (found if isinstance(found, dict) else found.model_dump(exclude_none=True)) == {"color": "red"}
    with pytest.raises(SchemaMismatch):  # in prose, it may be about anything
        compiled.read('Settings such as {"color": "red"} do not matter.')


def test_a_bound_of_draft_4_is_no_strict_schema() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "object",
        "properties": {"a": {"type": "number", "minimum": 0, "exclusiveMinimum": True}},
        "required": ["a"],
    }
    compiled = ResponseSchema.of(schema)
    assert compiled.strict_json_schema() is None
    assert compiled.read('{"a": 1}') == {"a": 1}
    with pytest.raises(SchemaMismatch):
        compiled.read('{"a": 0}')


def test_problems_that_are_not_named_are_counted() -> None:
    names = [f"f{number}" for number in range(499)]
    schema = {"type": "object", "properties": {name: {} for name in ["x", *names]}, "required": ["x", *names]}
    with pytest.raises(SchemaMismatch) as caught:
        ResponseSchema.of(schema).read('{"x": 1}')
    assert len(caught.value.problems) == 51
    assert caught.value.problems[-1].message == "and 449 more problems"


def test_two_values_side_by_side_are_not_called_cut_off_alone() -> None:
    with pytest.raises(SchemaMismatch, match="several stand side by side"):
        ResponseSchema.of(Open).read('{"note": "a"} {"note": "b"}')


class Geo(typing.TypedDict, total=False):
    """Where it is."""

    lat: Required[float]
    lon: float


class Station(typing.TypedDict):
    name: Annotated[str, Field(min_length=1)]
    kind: NotRequired[Literal["bus", "tram"]]
    at: Geo | None
    next: NotRequired[list[Station]]
    by_line: NotRequired[dict[str, tuple[Geo, ...]]]


class Terminus(Station, total=False):
    since: ReadOnly[int]


class Line(TypedDict):
    end: Terminus


class TestTypedDictsOfTheStandardLibrary:
    """Here, every annotation is a string, which is where the standard library's ``__required_keys__`` go wrong."""

    @pytest.mark.parametrize(
        ("source", "value"),
        [
            (Geo, {"lat": 1.5}),
            (Station, {"name": "A", "at": None}),
            (Station, {"name": "A", "at": {"lat": 1.0, "lon": 2.0}, "next": [{"name": "B", "at": None}]}),
            (Terminus, {"name": "A", "at": None, "by_line": {"1": [{"lat": 1.0}]}}),
            (Line, {"end": {"name": "A", "at": None, "since": 1900}}),
        ],
    )
    def test_an_answer_becomes_a_dict(self, source: Any, value: Any) -> None:
        schema = ResponseSchema.of(source)
        read = schema.read(json.dumps(value))
        assert json.loads(json.dumps(read)) == value
        assert schema.is_instance(value)

    @pytest.mark.parametrize(
        ("source", "value", "path"),
        [
            (Geo, {"lon": 1.0}, "$.lat"),
            (Station, {"at": None}, "$.name"),
            (Station, {"name": "", "at": None}, "$.name"),
            (Station, {"name": "A", "at": None, "kind": "boat"}, "$.kind"),
            (Station, {"name": "A", "at": {"lon": 1.0}}, "$.at.lat"),
            (Terminus, {"name": "A", "at": None, "next": [{"name": "B"}]}, "$.next[0].at"),
            (Line, {"end": {"name": "A", "at": None, "since": "then"}}, "$.end.since"),
        ],
    )
    def test_what_does_not_fit_is_refused_where_it_does_not(self, source: Any, value: Any, path: str) -> None:
        with pytest.raises(SchemaMismatch) as caught:
            ResponseSchema.of(source).read(json.dumps(value))
        assert [problem.path for problem in caught.value.problems] == [path]

    def test_its_name_and_description_are_kept(self) -> None:
        schema = ResponseSchema.of(Geo)
        assert (schema.name, schema.json_schema["description"]) == ("Geo", "Where it is.")
        assert schema.source is Geo

    def test_an_annotation_that_names_nothing_is_told(self) -> None:
        class Lost(typing.TypedDict):
            place: Nowhere  # type: ignore[name-defined] # noqa: F821

        with pytest.raises(BrixConfigurationError, match=r"Lost.*Nowhere"):
            ResponseSchema.of(Lost)


def test_what_is_no_schema_is_shown_shortly() -> None:
    with pytest.raises(BrixConfigurationError) as caught:
        ResponseSchema.of("x" * 5_000)
    assert len(str(caught.value)) < 400
