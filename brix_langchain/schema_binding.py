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
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.runnables import Runnable, RunnableSequence
from langchain_core.utils.function_calling import convert_to_openai_function
from pydantic import PydanticUserError
from pydantic.v1 import BaseModel as PydanticV1
from typing_extensions import is_typeddict

from brix_core.endpoints.structured import response_format
from brix_core.errors import BrixConfigurationError
from brix_core.guards.schema import SchemaGuard
from brix_core.structured.response_schema import ResponseSchema
from brix_langchain.binding import bound_arguments, rebind
from brix_langchain.instance_reader import InstanceReader
from brix_langchain.structured import ASKED, Asked, StructuredModel, StructuredModelWithRaw

if TYPE_CHECKING:
    from brix_langchain.chat_model import GuardedChatModel


_API_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FORMATS: Final = ("schema", "parameters", "input_schema")
"""Where the JSON Schema is in the formats of providers."""

_OF_ANY_KIND: Final = frozenset(
    ("$ref", "$dynamicRef", "allOf", "anyOf", "const", "enum", "if", "items", "not", "oneOf", "prefixItems")
)
"""Keywords by which a schema without a type may ask for something else than an object."""


class _Wanted(NamedTuple):
    """A schema: as it is validated, and as LangChain is told it."""

    schema: ResponseSchema
    told: Any

    @classmethod
    def by_json_schema(cls, schema: ResponseSchema) -> Self:
        """LangChain is told the JSON Schema, under a name that APIs take.

        Without properties it takes none for an object's. An empty schema has none, nor has a reference.
        """
        root = _root(schema)
        told = {"properties": {}, **schema.json_schema, **root, "type": root.get("type", "object")}
        if "$ref" not in root:
            told.pop("$ref", None)
        return cls(schema, {**told, "title": schema.name})


def answering(model: GuardedChatModel, schema: Any) -> StructuredModel[Any]:
    """What ``guard(model, response_schema=schema)`` gives.

    Args:
        model: The guarded model.
        schema: Checked already.
    """
    streams = next(guard.config.stream_mode for guard in model._pipeline.guards if isinstance(guard, SchemaGuard))
    wanted = _wanted(schema)
    return _chain(model, wanted or _Wanted.by_json_schema(ResponseSchema.of(schema)), {}, streams == "partial")


def structured_output(
    model: GuardedChatModel, schema: Any, options: Mapping[str, Any], *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """What ``model.with_structured_output(schema, ...)`` gives.

    Args:
        model: The guarded model.
        schema: What LangChain takes for a schema, or a dataclass.
        options: Those of the wrapped model's ``with_structured_output``.
        include_raw: Whether the message comes with the instance.

    Raises:
        BrixConfigurationError: It is no schema, or the method is one that not every model of the chain knows.
    """
    wanted = _wanted(schema)
    if wanted is None:  # Pydantic 1, which only LangChain reads: guarded, but not healed
        chain = model.inner.with_structured_output(schema, include_raw=include_raw, **options)
        twin = model._with_fallbacks_bound(
            bound_arguments(model.inner, chain),
            lambda inner: bound_arguments(inner, inner.with_structured_output(schema, **options)),
        )
        return rebind(chain, model.inner, twin)
    if include_raw:
        bound = _bound(model, wanted, options)
        return StructuredModelWithRaw(bound=bound, reader=InstanceReader(wanted.schema), response_schema=wanted.schema)
    previews = not isinstance(schema, type) or is_typeddict(schema)  # as LangChain's own
    return _chain(model, wanted, options, previews)


@lru_cache(maxsize=256)
def digest(schema: ResponseSchema) -> str:
    """A schema's part in a cache key: the parameters of ``json_mode`` are the same for all.

    Classes of the same shape count as different ones: what they check in code is not in their JSON Schema.
    """
    source = schema.source
    place = f"{source.__module__}.{source.__qualname__}" if isinstance(source, type) else ""
    return sha256(
        json.dumps([schema.name, schema.json_schema, place], sort_keys=True, default=str).encode()
    ).hexdigest()


def _chain(
    model: GuardedChatModel, wanted: _Wanted, options: Mapping[str, Any], previews: bool
) -> StructuredModel[Any]:
    bound = _bound(model, wanted, options).bind(**{ASKED: Asked(wanted.schema)})
    return StructuredModel(bound, InstanceReader(wanted.schema, previews=previews), model)


def _bound(model: GuardedChatModel, wanted: _Wanted, options: Mapping[str, Any]) -> Runnable[LanguageModelInput, Any]:
    """The model with the schema bound to it and to its fallbacks, or the model itself where one cannot bind."""
    if not _is_object(wanted.schema):  # providers take nothing else for a format, or for the arguments of a tool
        return model
    options = _method_for_all(model, options)

    def arguments(inner: BaseChatModel, step: Runnable[Any, Any]) -> dict[str, Any]:
        found = bound_arguments(inner, step)
        return {**found, **_formatted(found, wanted.schema)}

    try:
        step = _first(model.inner.with_structured_output(wanted.told, **options))
        own = arguments(model.inner, step)
        twin = model._with_fallbacks_bound(
            own, lambda inner: arguments(inner, _first(inner.with_structured_output(wanted.told, **options)))
        )
    except NotImplementedError:
        return model
    except KeyError as error:
        raise _no_schema(wanted.told, f"{error} is missing") from error
    return rebind(step, model.inner, twin).bind(**own)


def _method_for_all(model: GuardedChatModel, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, their method one that every model of the failover chain knows.

    Raises:
        BrixConfigurationError: The method is another one.
    """
    if all(type(fallback.inner) is type(model.inner) for fallback in model._fallbacks):
        return options
    # Only tool calls look alike whichever provider answers.
    if options.get("method", "function_calling") != "function_calling":
        raise BrixConfigurationError(
            f"method={options['method']!r} is read in each provider's own way, and the fallbacks are of "
            "another provider; leave method out, or pass method='function_calling'"
        )
    return {**options, "method": "function_calling"}


def _first(chain: Runnable[Any, Any]) -> Runnable[Any, Any]:
    return chain.first if isinstance(chain, RunnableSequence) else chain


def _formatted(bound: Mapping[str, Any], schema: ResponseSchema) -> dict[str, Any]:
    """OpenAI's format with a JSON Schema in the place of the class."""
    if not isinstance(bound.get("response_format"), type):
        return {}
    loose = {"type": "json_schema", "json_schema": {"name": schema.name, "schema": schema.json_schema, "strict": False}}
    return {"response_format": response_format(schema) or loose}


def _is_object(schema: ResponseSchema) -> bool:
    root = _root(schema)
    if "type" in root or "properties" in root:
        return bool(root.get("type", "object") == "object")
    return not root.keys() & _OF_ANY_KIND


def _root(schema: ResponseSchema) -> dict[str, Any]:
    """The JSON Schema; what it refers to, where it is but a reference, as that of a recursive model."""
    root: Any = schema.json_schema
    group, _, name = str(root.get("$ref", "")).removeprefix("#/").partition("/")
    referred = root[group].get(name) if isinstance(root.get(group), dict) else None
    return referred if isinstance(referred, dict) else root


def _wanted(schema: Any) -> _Wanted | None:
    """How a schema is validated; None for one of Pydantic 1, which the core does not know.

    Raises:
        BrixConfigurationError: It is no schema.
    """
    if schema is None:  # any object will do, in json_mode
        return _Wanted(ResponseSchema.of({"type": "object"}), None)
    if isinstance(schema, ResponseSchema):
        return _Wanted.by_json_schema(schema)
    if isinstance(schema, dict):
        return _of_dict(schema)
    if is_typeddict(schema):
        return _of_typed_dict(schema)
    if isinstance(schema, FunctionType):
        function = _as_function(schema)
        return _Wanted(ResponseSchema.of({"title": function["name"], **function["parameters"]}), schema)
    if isinstance(schema, type) and issubclass(schema, PydanticV1):
        return None
    compiled = ResponseSchema.of(schema)
    if dataclasses.is_dataclass(schema):
        return _Wanted.by_json_schema(compiled)
    name = _as_function(schema)["name"]  # LangChain calls the tool so
    if not _API_NAME.fullmatch(name):
        return _Wanted.by_json_schema(compiled)
    compiled.name = name
    return _Wanted(compiled, schema)


def _of_typed_dict(schema: Any) -> _Wanted:
    """Read as LangChain reads it, to whom ``Annotated[str, None, "..."]`` is not required."""
    try:
        function = _as_function(schema)
    except (BrixConfigurationError, RecursionError):  # it knows no NotRequired, and none that holds itself
        return _Wanted.by_json_schema(ResponseSchema.of(schema))
    parameters: dict[str, Any] = {**function["parameters"]}
    if "required" in parameters:  # LangChain overlooks ``total=False``
        parameters["required"] = [key for key in parameters["required"] if key in schema.__required_keys__]
    return _Wanted(ResponseSchema.of({"title": function["name"], **parameters}), schema)


def _of_dict(schema: dict[str, Any]) -> _Wanted:
    """A JSON Schema, by itself or in the formats of providers, which LangChain takes too."""
    given = schema
    if schema.get("type") == "json_schema" and isinstance(schema.get("json_schema"), dict):
        schema = schema["json_schema"]
    elif schema.get("type") == "function" and isinstance(schema.get("function"), dict):
        schema = schema["function"]
    elif isinstance(schema.get("toolSpec"), dict):
        tool = schema["toolSpec"]
        try:
            schema = {"name": tool["name"], "parameters": tool["inputSchema"]["json"]}
        except (KeyError, TypeError) as error:
            raise _no_schema(given, f"a toolSpec needs name and inputSchema.json ({error})") from error
    inner = next((schema[key] for key in _FORMATS if key in schema), None) if "name" in schema else None
    if inner is None:
        return _Wanted.by_json_schema(ResponseSchema.of(given))
    return _Wanted(ResponseSchema.of({**inner, "title": schema["name"]}), given)


def _as_function(schema: Any) -> dict[str, Any]:
    try:
        return convert_to_openai_function(schema)
    except (ValueError, TypeError, KeyError, PydanticUserError) as error:
        raise _no_schema(schema, str(error)) from error


def _no_schema(given: Any, why: str) -> BrixConfigurationError:
    return BrixConfigurationError(
        f"{given!r:.200} cannot be used as a schema: {why:.400}; pass a Pydantic model, a dataclass, a TypedDict or a "
        "JSON Schema dict"
    )


__all__ = ["answering", "digest", "structured_output"]
