"""OpenAI's chat completions, and all servers that speak them, through the ``openai`` SDK.

The SDK is never imported before a client of it has been given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from brix_core.call import CallRequest, CallResponse
from brix_core.endpoints.openai_chunks import chunk_of, merge, read_delta, read_usage, tool_call
from brix_core.endpoints.sdk import SDKEndpoint, StreamPiece, is_cap, is_given, put, sent_body
from brix_core.endpoints.structured import AZURE_SINCE, has_json_schema, response_format
from brix_core.model_limits import hides_reasoning, max_output_tokens

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

_HOSTS: Final = (
    ("openai.azure.com", "azure"),
    ("cognitiveservices.azure.com", "azure"),
    ("services.ai.azure.com", "azure"),
    ("openai.com", "openai"),
    ("cerebras.ai", "cerebras"),
    ("cohere.com", "cohere"),
    ("deepseek.com", "deepseek"),
    ("fireworks.ai", "fireworks"),
    ("googleapis.com", "google"),
    ("groq.com", "groq"),
    ("mistral.ai", "mistral"),
    ("openrouter.ai", "openrouter"),
    ("perplexity.ai", "perplexity"),
    ("together.ai", "together"),
    ("together.xyz", "together"),
    ("x.ai", "x-ai"),
)
"""Hosts with OpenAI-compatible APIs, by the price table's names."""

_OPENAI_MODEL: Final = re.compile(r"(?:ft:)?(?:gpt-(?!oss)|chatgpt-|o\d(?![a-z0-9])|codex-|computer-use)")

_SCHEMAS: Final = ("tools", "functions", "response_format", "prediction")


class OpenAIEndpoint(SDKEndpoint):
    """A chat model behind ``openai.OpenAI``, ``AsyncOpenAI`` or their Azure variants.

    A Pydantic class given as ``response_format`` is sent as its strict JSON schema; the answer stays text.

    Args:
        client: The SDK's client.
        model: The model asked for when a call names none.
    """

    sdk = "openai"

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        """The caller's own cap for each choice, under either of its names."""
        body = sent_body(params)
        caps = [body[name] for name in ("max_completion_tokens", "max_tokens") if is_cap(body.get(name))]
        return max(caps, default=None)

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        """The model's own limit, when known."""
        return max_output_tokens(self.model(params))

    def choices(self, params: Mapping[str, Any]) -> int:
        """``n``, or 1."""
        n = sent_body(params).get("n")
        return n if is_cap(n) else 1

    def schemas(self, params: Mapping[str, Any]) -> list[Any]:
        """Tools, functions, the response format and a predicted output."""
        body = sent_body(params)
        found: list[Any] = []
        for name in _SCHEMAS:
            value = body.get(name)
            if is_given(value) and value:
                found += value if isinstance(value, list | tuple) else [_as_format(value)]
        return found

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the schema is sent as ``response_format``.

        It is where the model is one of OpenAI's that take one (at OpenAI, on Azure, or by its name behind a gateway
        nobody knows), unless the caller gives a format, or strict mode cannot express the schema.
        """
        return (
            not is_given(sent_body(params).get("response_format"))
            and self.provider in ("openai", "azure")
            and has_json_schema(self.model(params))
            and str(getattr(self._client, "_api_version", None) or AZURE_SINCE) >= AZURE_SINCE
            and response_format(schema) is not None
        )

    def piece(self, chunk: Any) -> StreamPiece:
        """Read a chunk."""
        billed, text = read_delta(chunk)
        return StreamPiece(billed, text, chunk, self)

    def finish(self, chunks: Sequence[StreamPiece], text: str, request: CallRequest) -> CallResponse:
        """Sum up a stream; `raw` stays None."""
        response, data = merge([piece.raw for piece in chunks], self.model(request.params))
        return _or_refusal(response, data["choices"][0]["message"]["refusal"], request)

    def assemble(self, chunks: Sequence[StreamPiece], text: str, request: CallRequest) -> CallResponse:
        """The response that the same request would have given unstreamed; `raw` is a ``ChatCompletion``."""
        from openai.types.chat import ChatCompletion

        response, data = merge([piece.raw for piece in chunks], self.model(request.params))
        response = _or_refusal(response, data["choices"][0]["message"]["refusal"], request)
        return response._replace(raw=ChatCompletion.construct(**data))

    def as_chunks(self, response: CallResponse) -> list[StreamPiece]:
        """One chunk that holds all of a response."""
        from openai.types.chat import ChatCompletionChunk

        return [self.piece(ChatCompletionChunk.construct(**chunk_of(response)))]

    def unpack(self, data: Any) -> Any:
        """See `Endpoint`."""
        from openai.types.chat import ChatCompletion

        return ChatCompletion.construct(**data)

    def _unpacked_chunk(self, data: Any) -> Any:
        from openai.types.chat import ChatCompletionChunk

        return ChatCompletionChunk.construct(**data)

    def _provider(self) -> str | None:
        name = type(self._client).__name__
        if "Azure" in name:
            return "azure"
        if "Bedrock" in name:
            return "bedrock"
        for host, provider in _HOSTS:
            if self.host == host or self.host.endswith(f".{host}"):
                return provider
        return "openai" if _OPENAI_MODEL.match((self._model or "").lower()) else None

    def _create(self, client: Any) -> Callable[..., Any]:
        create: Callable[..., Any] = client.chat.completions.create
        return create

    def _arguments(self, request: CallRequest, stream: bool) -> dict[str, Any]:
        params = request.params
        arguments = {**params, "model": self.model(params), "messages": request.conversation.messages}
        if isinstance(params.get("response_format"), type):
            arguments["response_format"] = _as_format(params["response_format"])
        if request.schema is not None and self.structured(request.schema, params):
            put(arguments, "response_format", response_format(request.schema))
        if request.output_cap is not None:
            for name in self._cap_names(params):
                put(arguments, name, request.output_cap)
        if stream:
            options = sent_body(params).get("stream_options", {})
            if isinstance(options, Mapping) and "include_usage" not in options:
                put(arguments, "stream_options", {**options, "include_usage": True})
        return arguments

    def _cap_names(self, params: Mapping[str, Any]) -> list[str]:
        """The key the caller used, else the one this server is sure to know."""
        body = sent_body(params)
        used = [name for name in ("max_completion_tokens", "max_tokens") if is_cap(body.get(name))]
        own = self.host == "openai.com" or self.host.endswith(".openai.com")
        newer = own or hides_reasoning(self.model(params))
        return used or ["max_completion_tokens" if newer else "max_tokens"]

    def _response(self, raw: Any, request: CallRequest) -> CallResponse:
        choices = raw.choices or ()
        response = CallResponse(
            text="".join(choice.message.content or "" for choice in choices),
            usage=read_usage(raw.usage),
            model=raw.model or self.model(request.params),
            tool_calls=tuple(tool_call(call) for choice in choices for call in choice.message.tool_calls or ()),
            finish_reason=choices[0].finish_reason if choices else None,
            raw=raw,
        )
        return _or_refusal(response, choices[0].message.refusal if choices else None, request)


def _or_refusal(response: CallResponse, refusal: str | None, request: CallRequest) -> CallResponse:
    """Where a schema was asked for, a refusal is the answer: the content is empty then."""
    if not refusal or request.schema is None:
        return response
    return response._replace(text=refusal, finish_reason="refusal")


def _as_format(value: Any) -> Any:
    """A Pydantic class as OpenAI's strict JSON schema; anything else as it is."""
    return _strict_format(value) if isinstance(value, type) and hasattr(value, "model_json_schema") else value


@lru_cache(maxsize=256)
def _strict_format(model: type[Any]) -> dict[str, Any]:
    from openai import pydantic_function_tool

    tool: Any = pydantic_function_tool(model)  # the SDK's public way to a strict schema
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", model.__name__)[:64]
    schema = {"name": name, "schema": tool["function"]["parameters"], "strict": True}
    return {"type": "json_schema", "json_schema": schema}


__all__ = ["OpenAIEndpoint"]
