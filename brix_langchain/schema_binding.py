"""Binding a schema to a guarded model, in the way the wrapped model binds it.

The wrapped model is asked for its own ``with_structured_output``; the arguments it binds are bound to the guarded one,
and the schema itself, by which the guard validates, mends and heals. Where a model cannot bind (fakes, older
integrations), the guard writes the schema into the prompt.

LangChain passes a Pydantic class on to OpenAI's SDK, which would raise at an answer that does not fit, before any guard
has seen it. So the class is bound as the JSON Schema that it stands for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.runnables import Runnable, RunnableSequence
from langchain_core.utils.function_calling import convert_to_openai_function
from pydantic import BaseModel
from typing_extensions import is_typeddict

from brix_core.endpoints.structured import response_format
from brix_core.structured.response_schema import ResponseSchema
from brix_langchain.binding import bound_arguments, rebind
from brix_langchain.structured import ASKED, Asked, InstanceReader, StructuredModel, StructuredModelWithRaw

if TYPE_CHECKING:
    from brix_langchain.chat_model import GuardedChatModel


class _Wanted(NamedTuple):
    """A schema: as it is validated, and as LangChain is told it."""

    schema: ResponseSchema
    told: Any


def structured_output(
    model: GuardedChatModel, schema: Any, options: Mapping[str, Any], *, include_raw: bool = False, previews: bool
) -> Runnable[LanguageModelInput, Any]:
    """The model, its answers instances of the schema.

    Args:
        model: The guarded model.
        schema: What LangChain takes for a schema, or a dataclass.
        options: Those of the wrapped model's ``with_structured_output``.
        include_raw: Whether the message comes with the instance.
        previews: Whether streams give the value as it grows.
    """
    wanted = _wanted(schema)
    if wanted is None:  # of a kind that only LangChain reads: guarded, but not healed
        chain = model.inner.with_structured_output(schema, include_raw=include_raw, **options)
        twin = model._with_fallbacks_bound(
            bound_arguments(model.inner, chain),
            lambda inner: bound_arguments(inner, inner.with_structured_output(schema, **options)),
        )
        return rebind(chain, model.inner, twin)
    reader = InstanceReader(wanted.schema)
    reader.previews = previews
    bound = _bound(model, wanted, options).bind(**{ASKED: Asked(wanted.schema)})
    if include_raw:
        return StructuredModelWithRaw(bound=bound, reader=reader, response_schema=wanted.schema)
    return StructuredModel(bound, reader)


def titled(schema: Any) -> Any:
    """A schema as `structured_output` takes it: LangChain wants a title."""
    if isinstance(schema, Mapping) and not {"title", "name"} & schema.keys():
        return {"title": ResponseSchema.of(schema).name, **schema}
    return schema


def digest(schema: ResponseSchema) -> str:
    """A schema's part in a cache key: the parameters of ``json_mode`` are the same for all."""
    return sha256(json.dumps([schema.name, schema.json_schema], sort_keys=True, default=str).encode()).hexdigest()


def _bound(model: GuardedChatModel, wanted: _Wanted, options: Mapping[str, Any]) -> Runnable[LanguageModelInput, Any]:
    """The model with the schema bound to it and to its fallbacks, or the model itself where one cannot bind."""

    def arguments(inner: BaseChatModel, step: Runnable[Any, Any]) -> dict[str, Any]:
        return {**bound_arguments(inner, step), **_formatted(bound_arguments(inner, step), wanted.schema)}

    try:
        step = _first(model.inner.with_structured_output(wanted.told, **options))
        own = arguments(model.inner, step)
        twin = model._with_fallbacks_bound(
            own, lambda inner: arguments(inner, _first(inner.with_structured_output(wanted.told, **options)))
        )
    except NotImplementedError:
        return model
    return rebind(step, model.inner, twin).bind(**_formatted(own, wanted.schema))


def _first(chain: Runnable[Any, Any]) -> Runnable[Any, Any]:
    return chain.first if isinstance(chain, RunnableSequence) else chain


def _formatted(bound: Mapping[str, Any], schema: ResponseSchema) -> dict[str, Any]:
    """OpenAI's format with a JSON Schema in the place of the class."""
    if not isinstance(bound.get("response_format"), type):
        return {}
    loose = {"type": "json_schema", "json_schema": {"name": schema.name, "schema": schema.json_schema, "strict": False}}
    return {"response_format": response_format(schema) or loose}


def _wanted(schema: Any) -> _Wanted | None:
    """How a schema is validated; None for what the core does not know (Pydantic 1, functions)."""
    if schema is None:  # any object will do, in json_mode
        return _Wanted(ResponseSchema.of({"type": "object"}), None)
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return _Wanted(_named(ResponseSchema.of(schema), schema), schema)
    if isinstance(schema, type) and dataclasses.is_dataclass(schema):
        compiled = ResponseSchema.of(schema)
        return _Wanted(compiled, {**compiled.json_schema, "title": compiled.name})
    if isinstance(schema, dict):
        return _Wanted(_named(ResponseSchema.of(_unwrapped(schema)), schema), schema)
    if is_typeddict(schema):  # read as LangChain reads it, to whom ``Annotated[str, None, "..."]`` is not required
        function = convert_to_openai_function(schema)
        return _Wanted(ResponseSchema.of({"title": function["name"], **function["parameters"]}), schema)
    return None


def _unwrapped(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema in the formats of providers, which LangChain takes too."""
    if schema.get("type") == "json_schema" and isinstance(schema.get("json_schema"), dict):
        schema = schema["json_schema"]
    elif schema.get("type") == "function" and isinstance(schema.get("function"), dict):
        schema = schema["function"]
    elif isinstance(schema.get("toolSpec"), dict):
        tool = schema["toolSpec"]
        schema = {"name": tool["name"], "parameters": tool["inputSchema"]["json"]}
    if "name" not in schema:
        return schema
    inner = next((schema[key] for key in ("schema", "parameters", "input_schema") if key in schema), None)
    return schema if inner is None else {**inner, "title": schema["name"]}


def _named(compiled: ResponseSchema, schema: Any) -> ResponseSchema:
    """The schema under the name that LangChain gives the tool."""
    try:
        compiled.name = convert_to_openai_function(schema)["name"]
    except (ValueError, KeyError):  # not to be bound as a tool; LangChain says so, should it have to
        pass
    return compiled


__all__ = ["digest", "structured_output", "titled"]
