"""What Gemini is sent: messages, tools, the configuration of the generation, a schema.

Sources: ai.google.dev/api/generate-content ("Content", "Part", "Tool", "ToolConfig", "GenerationConfig") and the same
in googleapis/python-genai, ``google/genai/types.py`` (August 2026), which lists the keywords of ``responseJsonSchema``.

Example:
    >>> contents([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    ([{'role': 'user', 'parts': [{'text': 'Hi'}]}], {'parts': [{'text': 'Be brief.'}]})
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from brix_core.endpoints.chat_format import (
    Image,
    calls_of,
    functions_in,
    named_choice,
    names_of_calls,
    parts_of,
    result_of,
    text_in,
    tool_name,
)
from brix_core.endpoints.sdk import is_given
from brix_core.endpoints.structured import is_recursive
from brix_core.errors import BrixConfigurationError

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

API: Final = "Gemini"
UNNAMED_CALL: Final = "unnamed_call_"
"""How the ids begin that tool calls are given where Gemini gave none. They are not sent back."""

CONFIG: Final = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "max_output_tokens": "maxOutputTokens",
    "stop": "stopSequences",
    "n": "candidateCount",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "thinking_config": "thinkingConfig",
}
"""Parameters, and what they are called in ``generationConfig``."""

BESIDE: Final = {"safety_settings": "safetySettings", "cached_content": "cachedContent"}
"""Parameters that stand beside it."""

KNOWN: Final = frozenset(
    {*CONFIG, *BESIDE, "model", "tools", "tool_choice", "response_format", "generation_config", "extra_body"}
)

_MODES: Final = {"auto": "AUTO", "none": "NONE", "required": "ANY", "any": "ANY"}
_NATIVE: Final = re.compile(r"(?:models/)?gemini-(?:[2-9]|\d\d)(?!\d)(?!.*(?:image|tts|audio|live|embedding))")
_WITH_TOOLS: Final = re.compile(r"(?:models/)?gemini-(?:[3-9]|\d\d)(?!\d)")
_KEPT: Final = frozenset(
    {"type", "format", "title", "description", "items", "minItems", "maxItems", "minimum", "maximum"}
)
_FORMATS: Final = frozenset({"date-time", "date", "time"})


def contents(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The conversation, and the system instruction; results of tools that stand together make one content.

    Raises:
        BrixConfigurationError: A message holds what cannot be sent, or there are system messages only.
    """
    names = names_of_calls(messages)
    found: list[dict[str, Any]] = []
    system: list[dict[str, Any]] = []
    results = False
    for number, message in enumerate(messages):
        role = message.get("role")
        if role in ("system", "developer"):
            system.append({"text": text_in(message, number, API)})
            continue
        if role == "tool":
            part = _function_response(message, number, names)
            if results:
                found[-1]["parts"].append(part)
            else:
                found.append({"role": "user", "parts": [part]})
        elif role == "assistant":
            found.append({"role": "model", "parts": _parts(message, number) + _function_calls(message, number)})
        else:
            found.append({"role": "user", "parts": _parts(message, number)})
        results = role == "tool"
    if not found:
        raise BrixConfigurationError("Gemini needs at least one message that is not a system message")
    for content in found:
        content["parts"] = content["parts"] or [{"text": ""}]
    return found, {"parts": system} if system else None


def generation_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """``generationConfig`` as it is sent; what is in ``extra_body`` wins.

    Example:
        >>> generation_config({"max_tokens": 9, "stop": "END", "extra_body": {"generationConfig": {"topK": 3}}})
        {'maxOutputTokens': 9, 'stopSequences': ['END'], 'topK': 3}
    """
    config: dict[str, Any] = {}
    for name, own in CONFIG.items():
        if is_given(params.get(name)):
            config[own] = params[name]
    if isinstance(config.get("stopSequences"), str):
        config["stopSequences"] = [config["stopSequences"]]
    wanted = params.get("response_format")
    if isinstance(wanted, Mapping) and wanted.get("type") in ("json_object", "json_schema"):
        config["responseMimeType"] = "application/json"
        if wanted["type"] == "json_schema":
            config["responseJsonSchema"] = (wanted.get("json_schema") or {}).get("schema")
    extra = params.get("extra_body") or {}
    for given in (params.get("generation_config"), extra.get("generationConfig")):
        if isinstance(given, Mapping):
            config |= given
    return config


def tools(params: Mapping[str, Any]) -> dict[str, Any]:
    """``tools`` and ``toolConfig``; tools in Gemini's own format are passed on as they are.

    Example:
        >>> tools({"tools": [{"type": "function", "function": {"name": "now"}}], "tool_choice": "required"})
        {'tools': [{'functionDeclarations': [{'name': 'now'}]}],
         'toolConfig': {'functionCallingConfig': {'mode': 'ANY'}}}
    """
    given = params.get("tools")
    if not is_given(given) or not given:
        return {}
    declared: list[dict[str, Any]] = []
    native: list[Any] = []
    for function in functions_in(given):
        if "name" in function:
            declared.append(_declaration(function))
        else:
            native.append(function)
    sent: dict[str, Any] = {"tools": [*([{"functionDeclarations": declared}] if declared else []), *native]}
    choice = params.get("tool_choice")
    if is_given(choice):
        sent["toolConfig"] = {"functionCallingConfig": _calling(choice)}
    return sent


def has_native_schema(model: str, params: Mapping[str, Any]) -> bool:
    """Whether the model takes a schema: from Gemini 2 on; beside tools, from Gemini 3 on.

    Example:
        >>> has_native_schema("gemini-2.5-flash", {}), has_native_schema("gemma-3-27b-it", {})
        (True, False)
    """
    if params.get("tools") and not _WITH_TOOLS.match(model):
        return False
    return bool(_NATIVE.match(model))


@lru_cache(maxsize=256)
def response_json_schema(schema: ResponseSchema) -> dict[str, Any] | None:
    """The schema in the keywords that Gemini knows; None when it cannot be said in them.

    Whatever is left out only forbids, and is checked when the answer is read. Recursive schemas cannot be said: there,
    references may only stand in properties that are not required.
    """
    strict = schema.strict_json_schema()
    if strict is None or is_recursive(strict):
        return None
    definitions = {**strict.get("definitions", {}), **strict.get("$defs", {})}
    try:
        root = _reduced(strict)
        if definitions:
            root["$defs"] = {name: _reduced(part) for name, part in definitions.items()}
    except ValueError:
        return None
    return root


def _reduced(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Only what Gemini knows of a strict schema."""
    if "$ref" in schema:
        return {"$ref": schema["$ref"].replace("#/definitions/", "#/$defs/")}
    kept = {key: value for key, value in schema.items() if key in _KEPT}
    if kept.get("format") not in _FORMATS:
        kept.pop("format", None)
    allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if allowed is not None and all(
        isinstance(value, str | int | float) and value is not True and value is not False for value in allowed
    ):
        kept["enum"] = list(allowed)
    if isinstance(kept.get("items"), Mapping):
        kept["items"] = _reduced(kept["items"])
    if "anyOf" in schema:
        kept["anyOf"] = [_reduced(part) for part in schema["anyOf"]]
    if "properties" in schema:
        kept["properties"] = {name: _reduced(part) for name, part in schema["properties"].items()}
        kept["additionalProperties"] = False
        kept["required"] = list(schema.get("required", ()))
    if not kept.keys() & {"type", "anyOf", "enum"}:
        raise ValueError("nothing is left that says what the value must be")
    return kept


def _declaration(function: Mapping[str, Any]) -> dict[str, Any]:
    declared = {key: function[key] for key in ("name", "description") if function.get(key)}
    if function.get("parameters"):
        declared["parametersJsonSchema"] = function["parameters"]
    return declared


def _calling(choice: Any) -> dict[str, Any]:
    name = named_choice(choice)
    if name is not None:
        return {"mode": "ANY", "allowedFunctionNames": [name]}
    if not isinstance(choice, str) or choice not in _MODES:
        raise BrixConfigurationError(
            f"tool_choice must be one of {', '.join(_MODES)}, or name a function, got {choice!r:.80}"
        )
    return {"mode": _MODES[choice]}


def _parts(message: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    return [
        {"inlineData": {"mimeType": part.media_type, "data": part.data}} if isinstance(part, Image) else {"text": part}
        for part in parts_of(message, number, API)
        if part
    ]


def _function_calls(message: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    made = []
    for call in calls_of(message, number):
        part: dict[str, Any] = {"functionCall": {**_id(call.id), "name": call.name, "args": call.arguments}}
        signature = (call.extra.get("google") or {}).get("thought_signature")
        if signature:
            part["thoughtSignature"] = signature
        made.append(part)
    return made


def _function_response(message: Mapping[str, Any], number: int, names: Mapping[str, str]) -> dict[str, Any]:
    name = tool_name(message, number, names)
    result = result_of(text_in(message, number, API))
    return {"functionResponse": {**_id(message.get("tool_call_id")), "name": name, "response": result}}


def _id(value: Any) -> dict[str, str]:
    return {} if not value or str(value).startswith(UNNAMED_CALL) else {"id": str(value)}


__all__ = [
    "API",
    "BESIDE",
    "CONFIG",
    "KNOWN",
    "UNNAMED_CALL",
    "contents",
    "generation_config",
    "has_native_schema",
    "response_json_schema",
    "tools",
]
