"""Answers that fit a schema, as LlamaIndex's programs read them.

What the guards accept is wider than what a program can parse: JSON in a fence or in prose, a comma too many, text where
a tool call was asked for. So a valid answer is delivered as plain JSON, in the place where its program looks.
"""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.base.llms.types import CompletionResponse, TextBlock, ToolCallBlock

from brix_core.call import CallRequest
from brix_core.guards.schema import PARSED
from brix_llamaindex.chunks import Response, text_of
from brix_llamaindex.messages import tool_calls_of, tool_name


def is_parsed(request: CallRequest) -> bool:
    """Whether its answer is a valid instance: not where nothing must fit a schema, or other tools come first."""
    return PARSED in request.call.metadata


def instance_of(request: CallRequest) -> Any:
    """The valid instance of the answer; None when there is none."""
    return request.call.metadata.get(PARSED)


def fitted(response: Response, request: CallRequest) -> Response:
    """A response whose text, or tool call, is the JSON of its instance, and whose ``raw`` is the instance.

    Args:
        response: LlamaIndex's own, of an answer that was found valid.
        request: What was asked for.
    """
    written = {"raw": instance_of(request)}
    schema = request.schema
    if schema is None:
        return response
    if isinstance(response, CompletionResponse):
        return response.model_copy(update={**written, "text": _json(response.text, request)})
    message = response.message
    calls = tool_calls_of(message)
    call = next((call for call in calls if call.name == schema.name), None)
    found = text_of(response) if call is None else call.arguments
    text = _json(found, request)
    if text == found and (len(calls) == 1 if call is not None else not _is_tool(schema.name, request)):
        return response.model_copy(update=written)
    others = [block for block in message.blocks if not isinstance(block, TextBlock | ToolCallBlock)]
    blocks: list[Any] = [*others, TextBlock(text=text)]
    if call is not None or _is_tool(schema.name, request):
        name = call.id if call is not None else f"call_{request.call.run_id}"
        blocks.append(ToolCallBlock(tool_call_id=name, tool_name=schema.name, tool_kwargs=text))
    extra = {key: value for key, value in message.additional_kwargs.items() if key != "tool_calls"}
    message = message.model_copy(update={"blocks": blocks, "additional_kwargs": extra})
    return response.model_copy(update={**written, "message": message})


def last_chunk(response: Response, request: CallRequest) -> Response:
    """What a stream ends with when its answer was found valid: nothing new to show, and the whole of it as `fitted`."""
    return fitted(response, request).model_copy(update={"delta": ""})


def _json(text: str, request: CallRequest) -> str:
    """The JSON that was found valid in a text; the text itself, when it is nothing but that."""
    text = text or request.call.partial_text  # where the last chunk of a stream does not hold the whole text
    assert request.schema is not None
    found = request.schema.read_candidate(text)[1]
    return text if found.how == "strict" else json.dumps(found.value, ensure_ascii=False)


def _is_tool(name: str, request: CallRequest) -> bool:
    """Whether a tool of this name is among those the model was given."""
    return name in map(tool_name, request.endpoint.schemas(request.params))


__all__ = ["fitted", "instance_of", "is_parsed", "last_chunk"]
