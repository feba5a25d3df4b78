"""A LangChain chat model as an endpoint of the core.

Calls the model's *hooks* (`_generate`, `_stream` and their async twins), never `invoke`: that would start a
second run with its own callbacks and token counts. The model works on a private copy whose own retries are
off, so that every request that leaves passes the guards.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, message_to_dict, messages_from_dict
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter

from brix_core.caching.keys import answering
from brix_core.call import CallRequest, CallResponse
from brix_core.drivers.attempts import is_collected
from brix_core.drivers.hold_back import holds_back
from brix_core.endpoints.sdk import patience
from brix_core.model_limits import max_output_tokens
from brix_core.turns import text_of
from brix_core.usage import Usage
from brix_langchain.loops import ModelOnLoops
from brix_langchain.messages import CODEC, LangChainCodec
from brix_langchain.own_retries import has_sdk_client
from brix_langchain.reading import (
    added,
    auntil_cut_off,
    billed_beside,
    billed_text,
    cut_off,
    described,
    finish_reason_of,
    reported_usage,
    tool_call,
    tool_calls_of,
    until_cut_off,
    usage_of,
)

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

_CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict", "max_new_tokens")
"""Names of the output cap, LangChain's standard one first."""

_NOT_SENT: Final = ("ls_structured_output_format", "structured_output_format")
"""Bound beside a schema for LangChain's traces; LangChain takes them out before it calls a model's hooks."""

_NAMES: Final = ("model_name", "model", "model_id", "deployment_name", "azure_deployment")
_ADDRESSES: Final = ("openai_api_base", "anthropic_api_url", "azure_endpoint", "base_url", "endpoint_url")
_SCHEMAS: Final = ("tools", "functions", "response_format", "tool_choice", "output_config")


class ChatModelEndpoint:
    """One chat model.

    Args:
        model: The model; its own retries should be off (`without_own_retries`).
        fallback: Whether it stands in for another model. Then it does not take over what was said to that
            one alone: the name of a model, and its provider's own word for the output cap.
        bound: Parameters bound to this model alone, for a fallback whose provider words tools differently.
        replaces: Parameters of the first model that `bound` takes the place of.
    """

    def __init__(
        self,
        model: BaseChatModel,
        *,
        fallback: bool = False,
        bound: Mapping[str, Any] | None = None,
        replaces: Sequence[str] = (),
    ) -> None:
        self.inner = model
        self._fallback = fallback
        self._bound = {name: value for name, value in (bound or {}).items() if name not in _NOT_SENT}
        self._replaces = frozenset(replaces)
        own = next((name for name in map(self._attribute, _NAMES) if name), type(model).__name__)
        self._model: str = self._bound.get("model") or own
        self._takes_run_manager = "run_manager" in inspect.signature(model._generate).parameters
        fields = type(model).model_fields
        self._cap_fields = tuple(name for name in _CAPS if name in fields)
        self._cap_name = (*self._cap_fields, _CAPS[0])[0]
        self._streams_blocking = type(model)._stream is not BaseChatModel._stream
        self._choices_field = "n" in fields
        self._takes_timeout = has_sdk_client(model)
        self._loops = ModelOnLoops(model)

    def _attribute(self, name: str) -> str | None:
        value = getattr(self.inner, name, None)
        return value if isinstance(value, str) and value else None

    def rebound(self, bound: Mapping[str, Any], replaces: Sequence[str]) -> ChatModelEndpoint:
        """The same model, as a fallback with other bound parameters."""
        return ChatModelEndpoint(
            self.inner,
            fallback=True,
            bound={**self._bound, **bound},
            replaces=(*self._replaces, *replaces),
        )

    @cached_property
    def provider(self) -> str | None:
        """LangChain's name for the provider."""
        provider = self.inner._get_ls_params().get("ls_provider")
        return provider or None

    @cached_property
    def identity(self) -> str:
        """Provider, model and address."""
        address = next((value for value in map(self._attribute, _ADDRESSES) if value), "")
        return f"{self.provider}:{self._model}" + (f"@{_without_secrets(address)}" if address else "")

    @property
    def codec(self) -> LangChainCodec:
        """Reads LangChain's messages."""
        return CODEC

    @cached_property
    def streams(self) -> bool:
        """Whether the model implements streaming, and was not told to do without."""
        if self.inner.disable_streaming:
            return False
        return self._streams_blocking or type(self.inner)._astream is not BaseChatModel._astream

    def model(self, params: Mapping[str, Any]) -> str:
        """The model named in the call, or the model's own."""
        named = None if self._fallback else params.get("model")
        return named if isinstance(named, str) and named else self._model

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        """The cap of the call, else that of the model."""
        values = [params[name] for name in _CAPS if name in params]
        values += [getattr(self.inner, name) for name in self._cap_fields]
        return next((value for value in values if type(value) is int and value > 0), None)

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        """The model's own limit: from our table, or from LangChain's profile of the model."""
        model = self.model(params)
        return self._own_limit if model == self._model else max_output_tokens(model)

    @cached_property
    def _own_limit(self) -> int | None:
        known = max_output_tokens(self._model)
        if known is None:
            profile: Any = getattr(self.inner, "profile", None) or {}
            known = profile.get("max_output_tokens") if isinstance(profile, Mapping) else None
        return known if isinstance(known, int) and known > 0 else None

    def choices(self, params: Mapping[str, Any]) -> int:
        """``n``, of the call or of the model."""
        value = params.get("n") or (getattr(self.inner, "n", None) if self._choices_field else None)
        return value if type(value) is int and value > 0 else 1

    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        """Tools and response formats, as they are bound."""
        merged = self._merge(params)
        return [described(merged[name]) for name in _SCHEMAS if merged.get(name)]

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the schema is bound to the model."""
        return False

    def settings(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """What decides its answers beside the prompt: the call's parameters, and the model's own as LangChain tells."""
        return {"call": answering(self._merge(params)), "model": self._own_settings()}

    def _own_settings(self) -> str:
        own = sorted(self.inner._get_invocation_params().items(), key=repr)
        return f"{self.inner._get_llm_string()}{own}"

    def call(self, request: CallRequest) -> CallResponse:
        """One blocking request."""
        if self.inner.rate_limiter is not None:
            self.inner.rate_limiter.acquire(blocking=True)
        try:
            result = self.inner._generate(request.conversation.messages, **self._arguments(request))
        except Exception as error:
            result = self._cut_off(error, request)
        return self._response(result, request)

    async def acall(self, request: CallRequest) -> CallResponse:
        """One request on the event loop."""
        if self.inner.rate_limiter is not None:
            await self.inner.rate_limiter.aacquire(blocking=True)
        try:
            result = await self._loops.here()._agenerate(request.conversation.messages, **self._arguments(request))
        except Exception as error:
            result = self._cut_off(error, request)
        return self._response(result, request)

    def _cut_off(self, error: Exception, request: CallRequest) -> ChatResult:
        """The answer in an error, for the schema guard to heal."""
        if request.schema is None:
            raise error
        return cut_off(error, self.inner)

    def stream(self, request: CallRequest) -> Iterator[ChatGenerationChunk]:
        """The model's own chunks."""
        if not self._streams_blocking:
            return iter(self.as_chunks(self.call(request)))
        if self.inner.rate_limiter is not None:
            self.inner.rate_limiter.acquire(blocking=True)
        chunks = self.inner._stream(request.conversation.messages, **self._arguments(request))
        return chunks if request.schema is None else until_cut_off(chunks)

    def astream(self, request: CallRequest) -> AsyncIterator[ChatGenerationChunk]:
        """The model's own chunks, on the event loop."""
        if self.inner.rate_limiter is not None:
            return self._paced(request, self.inner.rate_limiter)
        return self._chunks(request)

    def _chunks(self, request: CallRequest) -> AsyncIterator[ChatGenerationChunk]:
        chunks = self._loops.here()._astream(request.conversation.messages, **self._arguments(request))
        return chunks if request.schema is None else auntil_cut_off(chunks)

    async def _paced(self, request: CallRequest, limiter: BaseRateLimiter) -> AsyncIterator[ChatGenerationChunk]:
        await limiter.aacquire(blocking=True)
        source = self._chunks(request)
        async with aclosing(cast(Any, source)):
            async for chunk in source:
                yield chunk

    def read_chunk(self, chunk: ChatGenerationChunk) -> str:
        """Content, reasoning, tool names and arguments of a chunk."""
        message = chunk.message
        content = message.content
        text = content if type(content) is str else billed_text(content)
        if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
            for call in message.tool_call_chunks:
                text += (call.get("name") or "") + (call.get("args") or "")
        if message.additional_kwargs:
            text += billed_beside(message.additional_kwargs)
        return text

    def finish(self, chunks: Sequence[ChatGenerationChunk], text: str, request: CallRequest) -> CallResponse:
        """Sum up a stream: its text, and the usage and finish reason of whichever chunks carry them."""
        usage: Usage | None = None
        for chunk in chunks:
            reported = getattr(chunk.message, "usage_metadata", None)
            if reported:
                usage = added(usage, usage_of(reported))
        reasons = map(finish_reason_of, reversed(chunks))  # it is among the last
        reason = next((reason for reason in reasons if reason), None)
        if request.schema is None or not chunks:
            return CallResponse(text=text, usage=usage, model=self.model(request.params), finish_reason=reason)
        # Where the instance is, and not merely what is billed.
        whole = self._response(generate_from_stream(iter(chunks)), request)
        return whole._replace(usage=usage, finish_reason=reason, raw=None)

    def assemble(self, chunks: Sequence[ChatGenerationChunk], text: str, request: CallRequest) -> CallResponse:
        """Merge chunks into the result that `_generate` would have given."""
        if not chunks:
            return self._response(ChatResult(generations=[ChatGeneration(message=AIMessage(""))]), request)
        usage = self.finish(chunks, text, request).usage
        return self._response(generate_from_stream(iter(chunks)), request)._replace(usage=usage)

    def as_chunks(self, response: CallResponse) -> Sequence[ChatGenerationChunk]:
        """One chunk that says it all."""
        result = response.raw
        if isinstance(result, ChatResult):
            message = result.generations[0].message
            if isinstance(message, AIMessage):
                names = type(message).model_fields.keys() - {"type", "chunk_position"}
                fields = {name: getattr(message, name) for name in names}
                whole = AIMessageChunk(**fields, chunk_position="last")
                return [ChatGenerationChunk(message=whole, generation_info=result.generations[0].generation_info)]
        info = {"finish_reason": response.finish_reason} if response.finish_reason else {}
        return [
            ChatGenerationChunk(
                message=AIMessageChunk(content=response.text, response_metadata=info), generation_info=info
            )
        ]

    def pack(self, raw: ChatResult) -> Any:
        """Its messages and what stands beside them."""
        generations = [[message_to_dict(one.message), one.generation_info] for one in raw.generations]
        return {"generations": generations, "llm_output": raw.llm_output}

    def unpack(self, data: Any) -> ChatResult:
        """See `Endpoint`."""
        generations = [ChatGeneration(message=_message(one), generation_info=info) for one, info in data["generations"]]
        return ChatResult(generations=generations, llm_output=data["llm_output"])

    def pack_chunks(self, chunks: Sequence[ChatGenerationChunk]) -> list[Any]:
        """Their messages and what stands beside them."""
        return [[message_to_dict(chunk.message), chunk.generation_info] for chunk in chunks]

    def unpack_chunks(self, data: Sequence[Any]) -> Iterator[ChatGenerationChunk]:
        """See `Endpoint`."""
        return (ChatGenerationChunk(message=_message(message), generation_info=info) for message, info in data)

    def _merge(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._fallback:
            return params
        merged = {name: value for name, value in params.items() if name not in self._replaces}
        merged.pop("model", None)
        for name in _CAPS:
            if name != self._cap_name and name in merged:
                cap = merged.pop(name)
                merged.setdefault(self._cap_name, cap)
        return merged | self._bound

    def _arguments(self, request: CallRequest) -> dict[str, Any]:
        """Keyword arguments of the model's hooks."""
        arguments = dict(self._merge(request.params))
        if not self._takes_run_manager or (is_collected(request) and not request.stream) or holds_back(request):
            # An answer that is streamed under the hood is no stream to whoever listens; and what a guard holds back,
            # the model must not tell.
            arguments.pop("run_manager", None)
        if request.output_cap is not None:
            named = next((name for name in _CAPS if arguments.get(name) is not None), self._cap_name)
            arguments[named] = request.output_cap
        if self._takes_timeout and arguments.get("timeout") is None and (wait := patience(request)) is not None:
            # A worker thread left behind ends soon. Never longer than the model's own timeout.
            own = getattr(self.inner, "request_timeout", None) or getattr(self.inner, "default_request_timeout", None)
            arguments["timeout"] = min(wait, own) if isinstance(own, int | float) else wait
        return arguments

    def _response(self, result: ChatResult, request: CallRequest) -> CallResponse:
        generation = result.generations[0]
        message = generation.message
        usage = getattr(message, "usage_metadata", None)
        more = result.generations[1:]
        calls = [*tool_calls_of(message), *(call for other in more for call in tool_calls_of(other.message))]
        return CallResponse(
            text=text_of(message.content) + "".join(text_of(other.message.content) for other in more),
            usage=usage_of(usage) if usage else reported_usage(result.llm_output),
            model=self.model(request.params),
            tool_calls=tuple(map(tool_call, calls)) if calls else (),
            finish_reason=finish_reason_of(generation, result.llm_output),
            raw=result,
        )


def _message(data: Any) -> Any:
    """A message that `message_to_dict` made; the type does not tell which."""
    return messages_from_dict([data])[0]


def _without_secrets(address: str) -> str:
    """The address without user, password and query: it is shown in traces and messages."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if host else address.partition("?")[0]


__all__ = ["ChatModelEndpoint"]
