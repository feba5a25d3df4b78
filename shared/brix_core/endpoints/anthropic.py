"""Anthropic's messages through the ``anthropic`` SDK.

Messages come in OpenAI's list: those with the role ``system`` (or ``developer``) are moved to the ``system``
parameter, joined by blank lines, or kept as blocks where one of them is blocks; all others are passed on as
they are. ``max_tokens`` is required by the API: when the caller names none, `DEFAULT_MAX_TOKENS` is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from brix_core.call import CallRequest, CallResponse
from brix_core.endpoints.anthropic_events import events_of, merge, read_event, read_message
from brix_core.endpoints.sdk import SDKEndpoint, StreamPiece, is_cap, is_given, put, sent_body
from brix_core.endpoints.structured import has_output_format, output_format
from brix_core.errors import BrixConfigurationError
from brix_core.model_limits import max_output_tokens

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

DEFAULT_MAX_TOKENS: Final = 8_192
"""Output cap sent when the caller names none, or the model's own limit where that is lower. Beside a thinking
budget it comes on top of it: the API wants ``max_tokens`` above ``budget_tokens``."""

SAFE_MAX_TOKENS: Final = 4_096
"""The same for a model whose limit is not known: what the oldest models still served allow."""

_EVENTS: Final = {
    "content_block_delta": "RawContentBlockDeltaEvent",
    "content_block_start": "RawContentBlockStartEvent",
    "content_block_stop": "RawContentBlockStopEvent",
    "message_delta": "RawMessageDeltaEvent",
    "message_start": "RawMessageStartEvent",
    "message_stop": "RawMessageStopEvent",
}


class AnthropicEndpoint(SDKEndpoint):
    """A model behind ``anthropic.Anthropic``, ``AsyncAnthropic`` or their cloud variants.

    Args:
        client: The SDK's client.
        model: The model asked for when a call names none.
    """

    sdk = "anthropic"

    def requested_cap(self, params: Mapping[str, Any]) -> int:
        """The ``max_tokens`` that is sent, be it the caller's or the default."""
        body = sent_body(params)
        if is_cap(body.get("max_tokens")):
            return int(body["max_tokens"])
        longest = self.longest_output(params)
        thinking = body.get("thinking")
        budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
        cap = SAFE_MAX_TOKENS if longest is None else DEFAULT_MAX_TOKENS
        if is_cap(budget):
            cap += budget
        return cap if longest is None else min(cap, longest)

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        """The model's own limit, when known."""
        return max_output_tokens(self.model(params))

    def choices(self, params: Mapping[str, Any]) -> int:
        """Always 1."""
        return 1

    def schemas(self, params: Mapping[str, Any]) -> list[Any]:
        """Tools, how one must be chosen, the output format, and a system prompt given as a parameter."""
        body = sent_body(params)
        found: list[Any] = []
        for name in ("tools", "mcp_servers"):
            if isinstance(body.get(name), list | tuple):
                found += body[name]
        for name in ("tool_choice", "output_config", "system"):
            if is_given(body.get(name)) and body[name]:
                found.append(body[name])
        return found

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the schema is sent in ``output_config``.

        It is at Anthropic (or behind a gateway nobody knows) where SDK and model take one, unless the caller gives a
        format, or the schema cannot be expressed. The clouds each have conditions of their own.
        """
        body = sent_body(params)
        return (
            not is_given(_output_config(body).get("format"))
            and not is_given(body.get("output_format"))
            and self.provider == "anthropic"
            and has_output_format(self.model(params))
            and "output_config" in self._accepted
            and output_format(schema) is not None
        )

    def call(self, request: CallRequest) -> CallResponse:
        """One blocking request."""
        try:
            return super().call(request)
        except ValueError as error:
            raise _explained(error) from error.__cause__

    async def acall(self, request: CallRequest) -> CallResponse:
        """One request on the event loop."""
        try:
            return await super().acall(request)
        except ValueError as error:
            raise _explained(error) from error.__cause__

    def piece(self, chunk: Any) -> StreamPiece:
        """Read an event."""
        billed, text = read_event(chunk)
        return StreamPiece(billed, text, chunk, self)

    def finish(self, chunks: Sequence[StreamPiece], text: str, request: CallRequest) -> CallResponse:
        """Sum up a stream; `raw` stays None."""
        return merge([piece.raw for piece in chunks], self.model(request.params))[0]

    def assemble(self, chunks: Sequence[StreamPiece], text: str, request: CallRequest) -> CallResponse:
        """The response that the same request would have given unstreamed, with a ``Message`` as `raw`."""
        from anthropic.types import Message

        response, data = merge([piece.raw for piece in chunks], self.model(request.params))
        return response._replace(raw=Message.construct(**data))

    def as_chunks(self, response: CallResponse) -> list[StreamPiece]:
        """The events of a stream that gives a response at once."""
        from anthropic import types

        return [self.piece(getattr(types, _EVENTS[event["type"]]).construct(**event)) for event in events_of(response)]

    def unpack(self, data: Any) -> Any:
        """See `Endpoint`."""
        from anthropic.types import Message

        return Message.construct(**data)

    def _unpacked_chunk(self, data: Any) -> Any:
        from anthropic import types

        return getattr(types, _EVENTS[data["type"]]).construct(**data)

    def _provider(self) -> str | None:
        name = type(self._client).__name__
        if "Bedrock" in name or "AWS" in name:
            return "bedrock"
        if "Vertex" in name or "GoogleCloud" in name:
            return "google_anthropic_vertex"
        if "Foundry" in name:
            return "azure"
        if self.host == "anthropic.com" or self.host.endswith(".anthropic.com"):
            return "anthropic"
        return "anthropic" if (self._model or "").lower().startswith("claude") else None

    def _create(self, client: Any) -> Callable[..., Any]:
        create: Callable[..., Any] = client.messages.create
        return create

    def _arguments(self, request: CallRequest, stream: bool) -> dict[str, Any]:
        params = request.params
        system, messages = _split(request.conversation.messages, sent_body(params).get("system"))
        arguments = {**params, "model": self.model(params), "messages": messages}
        if system is not None:
            put(arguments, "system", system)
        if request.schema is not None and self.structured(request.schema, params):
            config = _output_config(sent_body(params))
            put(arguments, "output_config", {**config, "format": output_format(request.schema)})
        put(arguments, "max_tokens", request.requested_cap)
        arguments["max_tokens"] = request.requested_cap  # the SDK asks for it beside extra_body, too
        return arguments

    def _response(self, raw: Any, request: CallRequest) -> CallResponse:
        return read_message(raw, self.model(request.params))


def _output_config(body: Mapping[str, Any]) -> Mapping[str, Any]:
    config = body.get("output_config")
    return config if isinstance(config, Mapping) else {}


def _explained(error: ValueError) -> Exception:
    """The SDK sends no plain request that may run for long; what was never sent must not be charged."""
    if not str(error).startswith("Streaming is"):
        return error
    return BrixConfigurationError(
        "the anthropic SDK sends a request with so large a max_tokens only as a stream; use client.stream(...), "
        "lower max_tokens, or pass timeout="
    )


def _split(messages: Sequence[Any], given: Any) -> tuple[Any, list[Any]]:
    """The system prompt (None when the messages add nothing to what was given), and the other messages."""
    parts = [message.get("content") for message in messages if _is_system(message)]
    if not parts:
        return None, list(messages)
    if is_given(given) and given:
        parts.insert(0, given)
    rest = [message for message in messages if not _is_system(message)]
    if all(isinstance(part, str) for part in parts):
        return "\n\n".join(parts), rest
    blocks: list[Any] = []
    for part in parts:
        if isinstance(part, str):
            blocks.append({"type": "text", "text": part})
        else:
            blocks += part or ()
    return blocks, rest


def _is_system(message: Any) -> bool:
    return message.get("role") in ("system", "developer")


__all__ = ["DEFAULT_MAX_TOKENS", "SAFE_MAX_TOKENS", "AnthropicEndpoint"]
