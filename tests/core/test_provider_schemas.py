"""Which models are sent a schema in their provider's own way, and which are not."""

from __future__ import annotations

import copy
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel

from brix_core.endpoints.anthropic import AnthropicEndpoint
from brix_core.endpoints.openai import OpenAIEndpoint
from brix_core.endpoints.structured import has_json_schema, has_output_format
from brix_core.structured.response_schema import ResponseSchema
from tests.support.schemas import CITY_JSON, City

SCHEMA = ResponseSchema.of(City)
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        ("gpt-4o", True),
        ("gpt-4o-2024-08-06", True),
        ("gpt-4o-mini-2024-07-18", True),
        ("ft:gpt-4o-mini-2024-07-18:acme::x", True),
        ("gpt-4.1-nano", True),
        ("gpt-5", True),
        ("gpt-5.4-mini", True),
        ("o1", True),
        ("o3-mini", True),
        ("o4-mini", True),
        ("gpt-4o-2024-05-13", False),
        ("gpt-4o-audio-preview", False),
        ("chatgpt-4o-latest", False),
        ("gpt-4-turbo", False),
        ("gpt-3.5-turbo", False),
        ("gpt-oss-20b", False),
        ("o1-mini", False),
        ("o1-preview", False),
        ("llama-3", False),
        ("", False),
    ],
)
def test_which_of_openais_models_take_a_schema(model: str, takes: bool) -> None:
    assert has_json_schema(model) is takes


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        ("claude-sonnet-4-5-20250929", True),
        ("claude-haiku-4-5", True),
        ("claude-opus-4-8", True),
        ("claude-sonnet-5", True),
        ("claude-sonnet-4-20250514", False),
        ("claude-opus-4-1", False),
        ("claude-3-7-sonnet-latest", False),
        ("gpt-4o", False),
    ],
)
def test_which_of_anthropics_models_take_a_schema(model: str, takes: bool) -> None:
    assert has_output_format(model) is takes


OPEN = {"type": "object", "properties": {"any": {"type": "object"}}, "required": ["any"]}


@pytest.mark.parametrize(
    ("params", "schema", "takes"),
    [
        ({}, CITY_JSON, True),
        ({"response_format": None}, CITY_JSON, True),
        ({"tools": [WEATHER]}, CITY_JSON, True),
        ({"response_format": {"type": "json_object"}}, CITY_JSON, False),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, CITY_JSON, False),
        ({"model": "gpt-4-turbo"}, CITY_JSON, False),
        ({}, OPEN, False),
        ({}, {"type": "array", "items": {"type": "string"}}, False),
    ],
)
def test_when_openai_is_sent_a_schema(params: dict[str, Any], schema: Any, takes: bool) -> None:
    with openai.OpenAI(api_key="test") as client:
        endpoint = OpenAIEndpoint(client, "gpt-4o")
        assert endpoint.structured(ResponseSchema.of(schema), params) is takes


@pytest.mark.parametrize(
    ("url", "model", "takes"),
    [
        ("https://api.openai.com/v1", "gpt-4o", True),
        ("https://gateway.example/v1", "gpt-4o", True),
        ("https://gateway.example/v1", "qwen3", False),
        ("https://openrouter.ai/api/v1", "openai/gpt-4o", False),
        ("https://api.groq.com/openai/v1", "gpt-4o", False),
    ],
)
def test_servers_that_only_speak_openais_api_are_sent_none(url: str, model: str, takes: bool) -> None:
    with openai.OpenAI(api_key="test", base_url=url) as client:
        assert OpenAIEndpoint(client, model).structured(SCHEMA, {}) is takes


@pytest.mark.parametrize(("version", "takes"), [("2024-06-01", False), ("2024-08-01-preview", True), ("2025-01", True)])
def test_azure_is_sent_a_schema_from_the_version_that_knows_it(version: str, takes: bool) -> None:
    with openai.AzureOpenAI(api_key="t", api_version=version, azure_endpoint="https://x.openai.azure.com") as client:
        assert OpenAIEndpoint(client, "gpt-4o").structured(SCHEMA, {}) is takes


class Tree(BaseModel):
    name: str
    below: list[Tree]


class Priced(BaseModel):
    kind: Literal["a", "b"]
    price: float | None
    city: City


@pytest.mark.parametrize(
    ("params", "schema", "takes"),
    [
        ({}, Priced, True),
        ({"output_config": {"effort": "low"}}, Priced, True),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, Priced, False),
        ({"extra_body": {"output_config": {"format": {}}}}, Priced, False),
        ({"model": "claude-3-5-haiku-latest"}, Priced, False),
        ({}, Tree, False),
        ({}, OPEN, False),
    ],
)
def test_when_anthropic_is_sent_a_schema(params: dict[str, Any], schema: Any, takes: bool) -> None:
    with anthropic.Anthropic(api_key="test") as client:
        endpoint = AnthropicEndpoint(client, "claude-haiku-4-5")
        before = copy.deepcopy(params)
        assert endpoint.structured(ResponseSchema.of(schema), params) is takes
        assert params == before
