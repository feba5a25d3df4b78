"""Any LlamaIndex LLM as the drivers call it: chat or completion, by what the conversation holds."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from llama_index.core.base.llms.generic_utils import messages_to_prompt as default_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, LLMMetadata
from llama_index.core.llms import LLM, CustomLLM
from llama_index.core.llms.llm import default_completion_to_prompt

from brix_core.caching.keys import answering
from brix_core.call import CallRequest, CallResponse
from brix_core.drivers.hold_back import holds_back
from brix_core.endpoints.sdk import sent_body
from brix_core.endpoints.structured import response_format
from brix_core.errors import BrixConfigurationError
from brix_core.model_limits import max_output_tokens
from brix_llamaindex.caps import OPENAI, class_names, inferred_cap, output_cap_of
from brix_llamaindex.chunks import Chunk, DeltaReader, Response, as_chunk, empty_response, settled, text_of
from brix_llamaindex.connections import Opened, leave_ended_loop
from brix_llamaindex.events import tagged
from brix_llamaindex.messages import CODEC, MessageCodec, Prompt, field, prompt_of, tool_calls_of, tool_name
from brix_llamaindex.offload import in_worker, iterate_in_worker
from brix_llamaindex.packing import packed, packed_chunks, unpacked, unpacked_chunks
from brix_llamaindex.response_metadata import without_metadata
from brix_llamaindex.usage import finish_reason_of, usage_of, usage_of_stream

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

_PROVIDERS: Final = {
    "Anthropic": "anthropic",
    "AzureOpenAI": "azure",
    "Bedrock": "bedrock",
    "BedrockConverse": "bedrock",
    "Cerebras": "cerebras",
    "Cohere": "cohere",
    "DeepSeek": "deepseek",
    "Fireworks": "fireworks",
    "Gemini": "google",
    "GoogleGenAI": "google",
    "Groq": "groq",
    "HuggingFaceLLM": "huggingface",
    "LlamaCPP": "llamacpp",
    "MistralAI": "mistral",
    "Ollama": "ollama",
    "OpenAI": "openai",
    "OpenAILike": None,  # anybody's server: the model's name alone tells its price
    "OpenAIResponses": "openai",
    "OpenRouter": "openrouter",
    "Perplexity": "perplexity",
    "TogetherLLM": "together",
    "Vertex": "google",
    "Vllm": "vllm",
    "XAI": "xai",
}
"""By class name, the most specific class first."""

_BESIDE_MESSAGES: Final = ("tools", "functions", "response_format", "text_format", "text", "system")
"""Parameters that are sent, and billed, beside the messages."""

_ADDRESSES: Final = ("api_base", "base_url", "azure_endpoint", "host")


class LLMEndpoint:
    """An LLM, which is called as it is: its own hooks, with its own events, on messages as they come.

    Args:
        llm: The LLM; a private copy, because its output cap is set for single calls (`brix_llamaindex.caps`).
        strict: An output that nothing bounds is an error, because a budget relies on it.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> LLMEndpoint(MockLLM()).identity
        'MockLLM'
    """

    def __init__(self, llm: LLM, *, strict: bool = False) -> None:
        self.llm = llm
        self.strict = strict
        self._cap = output_cap_of(llm)
        self._is_openai = OPENAI in class_names(llm)
        self._can_stream = True
        self._metadata: tuple[tuple[Any, ...], LLMMetadata] | None = None
        names = [cls.__name__ for cls in type(llm).__mro__]
        self._provider = next((_PROVIDERS[name] for name in names if name in _PROVIDERS), None)
        self._blocks = {
            name: inspect.getattr_static(type(llm), name) is inspect.getattr_static(CustomLLM, name)
            for name in ("achat", "acomplete", "astream_chat", "astream_complete")
        }

    @property
    def identity(self) -> str:
        """Class, model and address, as far as known."""
        address = next((found for name in _ADDRESSES if (found := getattr(self.llm, name, None))), "")
        host = urlsplit(str(address)).netloc.rpartition("@")[2]
        model, name = self.model({}), type(self.llm).__name__
        return (name if model == name else f"{name}/{model}") + (f"@{host}" if host else "")

    @property
    def provider(self) -> str | None:
        """The provider by the LLM's class; None when the class says nothing about who serves it."""
        return self._provider

    @property
    def codec(self) -> MessageCodec:
        """Reads `ChatMessage`."""
        return CODEC

    @property
    def streams(self) -> bool:
        """True, until its streaming hook has said that it is not implemented."""
        return self._can_stream

    @property
    def caps_output(self) -> bool:
        """Whether the guards can cap the output of a single call."""
        return self._cap.settable

    @property
    def metadata(self) -> LLMMetadata:
        """The LLM's metadata, made anew when any of its attributes has been set: it is asked for often."""
        state = (*self.llm.__dict__.values(), *(self.llm.__pydantic_private__ or {}).values())
        known = self._metadata
        if known is None or len(known[0]) != len(state) or not all(map(is_, known[0], state)):
            known = self._metadata = state, self.llm.metadata
        return known[1]

    def model(self, params: Mapping[str, Any]) -> str:
        """``metadata.model_name``, or the one given for the call; the class's name when there is none."""
        if self._is_openai:
            name = self._sent(params).get("model")
            if isinstance(name, str):
                return name
        name = self.metadata.model_name
        return name if name and name != "unknown" else type(self.llm).__name__

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        """The output cap that is in force without the guards."""
        return self._cap.asked(self.llm, params, self.metadata)

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        """The model's own limit, when known.

        Raises:
            BrixConfigurationError: A budget relies on it, the output cannot be capped, and nothing bounds it.
        """
        if self._is_openai and (window := inferred_cap(self.llm, params, self.metadata)):
            return window
        longest = max_output_tokens(self.model(params))
        if longest is None and self.strict and not self._cap.settable:
            raise BrixConfigurationError(
                f"max_cost_usd cannot be kept with {self.identity}: nothing bounds its output, and it cannot "
                "be capped for a call. Make the LLM with max_tokens, so that its metadata.num_output states "
                "a limit, or give budget_strategy='warn'"
            )
        return longest

    def choices(self, params: Mapping[str, Any]) -> int:
        """``n``, or ``best_of``, which is billed alike."""
        merged = self._sent(params)
        asked = [value for name in ("n", "best_of") if isinstance(value := merged.get(name), int)]
        return max([1, *asked])

    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        """Tools and schemas, and the text that prompt templates of the LLM add."""
        merged = self._sent(params)
        found: list[Any] = []
        for name in _BESIDE_MESSAGES:
            value = merged.get(name)
            if value:
                found.extend(map(_schema, value if isinstance(value, list | tuple) else [value]))
        return [*found, *self._template(params)]

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the schema is sent as the response format, as the LLM's own `structured_predict` would."""
        return self._format(schema, params) is not None

    def settings(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """What decides its answers beside the prompt: the call's parameters, and the LLM's own as LlamaIndex tells."""
        own = {name: repr(value) for name, value in self.llm.to_dict().items()}
        return {"call": answering(params), "llm": own, "beside": list(self._template(params))}

    def call(self, request: CallRequest) -> CallResponse:
        """One blocking request."""
        return self._respond(self._ask(request), request)

    async def acall(self, request: CallRequest) -> CallResponse:
        """One request on the event loop; in a worker thread where it would block the loop past a limit."""
        if self._blocks[_flavour(request, "achat", "acomplete")] and request.limits.call is not None:
            return self._respond(await in_worker(partial(self._ask, request)), request)
        leave_ended_loop(self.llm)
        hook, argument, kwargs = self._hook(request, "achat", "acomplete")
        with tagged(request):
            response = await hook(argument, **kwargs)
        return self._respond(response, request)

    def stream(self, request: CallRequest) -> Iterator[Chunk]:
        """The LLM's chunks, blocking."""
        hook, argument, kwargs = self._hook(request, "stream_chat", "stream_complete")
        reader, opened, source = DeltaReader(), Opened(self.llm, asynchronous=False), None
        began, held = False, holds_back(request) or request.call.delivered is not None
        try:
            with opened, tagged(request):
                source = iter(hook(argument, **kwargs))
                response = next(source, None)
            while response is not None:
                began = True
                yield Chunk(settled(response) if held else response, reader.read(response))
                response = next(source, None)
        except NotImplementedError:
            if request.stream or began:
                raise
            yield self._unstreamed(self.call(request))
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
            opened.close()

    async def astream(self, request: CallRequest) -> AsyncIterator[Chunk]:
        """The LLM's chunks, on the event loop; from a worker thread where they would block it."""
        limits = request.limits
        limited = limits.call is not None or limits.first_token is not None or limits.idle is not None
        if limited and self._blocks[_flavour(request, "astream_chat", "astream_complete")]:
            source = iterate_in_worker(partial(self.stream, request))
        else:
            source = self._astream(request)
        async with aclosing(source):
            async for chunk in source:
                yield chunk

    async def _astream(self, request: CallRequest) -> AsyncGenerator[Chunk, None]:
        hook, argument, kwargs = self._hook(request, "astream_chat", "astream_complete")
        reader, opened, source = DeltaReader(), Opened(self.llm, asynchronous=True), None
        began, held = False, holds_back(request) or request.call.delivered is not None
        try:
            with opened, tagged(request):
                source = aiter(await hook(argument, **kwargs))
                response = await anext(source, None)
            while response is not None:
                began = True
                yield Chunk(settled(response) if held else response, reader.read(response))
                response = await anext(source, None)
        except NotImplementedError:
            if request.stream or began:
                raise
            yield self._unstreamed(await self.acall(request))
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()
            await opened.aclose()

    def read_chunk(self, chunk: Chunk) -> str:
        """What the chunk adds."""
        return chunk.text

    def finish(self, chunks: Sequence[Chunk], text: str, request: CallRequest) -> CallResponse:
        """Sum up a stream; the last chunk of LlamaIndex holds the whole message."""
        responses = [chunk.response for chunk in chunks]
        last = responses[-1] if responses else empty_response(completion=_is_completion(request))
        return CallResponse(
            text=text_of(last) or ("" if _calls(last) else text),
            usage=usage_of_stream(responses),
            model=self.model(request.params),
            tool_calls=_calls(last),
            finish_reason=finish_reason_of(reversed(responses[-3:])),
        )

    def assemble(self, chunks: Sequence[Chunk], text: str, request: CallRequest) -> CallResponse:
        """The response that the plain hook would have given."""
        summed = self.finish(chunks, text, request)
        last = chunks[-1].response if chunks else empty_response(completion=_is_completion(request))
        raw = last.model_copy(update={"delta": None})
        return CallResponse(
            text=summed.text,
            usage=summed.usage,
            model=summed.model,
            tool_calls=summed.tool_calls,
            finish_reason=summed.finish_reason,
            raw=raw,
        )

    def as_chunks(self, response: CallResponse) -> Sequence[Chunk]:
        """The response as a single chunk; nothing for a stream that gave nothing."""
        return () if response.raw is None else (as_chunk(response.raw),)

    def pack(self, raw: Response) -> Any:
        """See `brix_llamaindex.packing`."""
        return packed(raw)

    def unpack(self, data: Any) -> Response:
        """See `brix_llamaindex.packing`."""
        return unpacked(data)

    def pack_chunks(self, chunks: Sequence[Chunk]) -> list[Any]:
        """See `brix_llamaindex.packing`."""
        return packed_chunks(chunks)

    def unpack_chunks(self, data: Sequence[Any]) -> Iterator[Chunk]:
        """See `brix_llamaindex.packing`."""
        return unpacked_chunks(data)

    def _ask(self, request: CallRequest) -> Response:
        hook, argument, kwargs = self._hook(request, "chat", "complete")
        with tagged(request):
            response: Response = hook(argument, **kwargs)
        return response

    def _hook(self, request: CallRequest, chat: str, complete: str) -> tuple[Any, Any, dict[str, Any]]:
        """The LLM's own method, with what it is to be given."""
        llm, kwargs = self.llm, dict(request.params)
        self._check(kwargs)
        prompt = prompt_of(request.conversation.messages)
        if prompt is None:
            kwargs.pop("formatted", None)
        if request.schema is not None and (wanted := self._format(request.schema, kwargs)) is not None:
            kwargs["response_format"] = wanted
        if self._is_openai and chat.endswith("stream_chat"):
            extra: Mapping[str, Any] = llm.additional_kwargs  # type: ignore[attr-defined]
            if "stream_options" not in extra:
                kwargs.setdefault("stream_options", {"include_usage": True})
        if request.output_cap is not None:
            llm, kwargs = self._cap.apply(llm, kwargs, request.output_cap)
        if prompt is None:
            return getattr(llm, chat), list(map(without_metadata, request.conversation.messages)), kwargs
        return getattr(llm, complete), prompt, kwargs

    def _sent(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters as they reach the provider."""
        extra = getattr(self.llm, "additional_kwargs", None)
        return sent_body({**params, **extra} if isinstance(extra, dict) else params)

    def _check(self, params: Mapping[str, Any]) -> None:
        """Refuse an ``extra_body`` that replaces what the guards have looked at."""
        extra = getattr(self.llm, "additional_kwargs", None) or {}
        for given in (params.get("extra_body"), extra.get("extra_body") if isinstance(extra, dict) else None):
            for name in ("messages", "prompt", "stream"):
                if isinstance(given, Mapping) and name in given:
                    raise BrixConfigurationError(
                        f"extra_body={{{name!r}: ...}} would replace the {name} that the guards have counted; leave it "
                        "out, and give the prompt to the method that sends it"
                    )

    def _format(self, schema: ResponseSchema, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """What OpenAI's classes are to send for the schema; None when they do not, or the caller has seen to it."""
        takes_it = getattr(self.llm, "_should_use_structure_outputs", None)
        if not self._is_openai or takes_it is None or not takes_it():
            return None
        chat = params.get("use_chat_completions", self.metadata.is_chat_model)
        own = {**params, **self.llm.additional_kwargs}  # type: ignore[attr-defined]
        if not chat or own.get("response_format") or schema.name in map(tool_name, self.schemas(params)):
            return None
        return response_format(schema)

    def _respond(self, response: Response, request: CallRequest) -> CallResponse:
        return CallResponse(
            text=text_of(response),
            usage=usage_of(response),
            model=self.model(request.params),
            tool_calls=_calls(response),
            finish_reason=finish_reason_of((response,)),
            raw=response,
        )

    def _unstreamed(self, response: CallResponse) -> Chunk:
        self._can_stream = False
        return as_chunk(response.raw)

    def _template(self, params: Mapping[str, Any]) -> Iterator[str]:
        """What the LLM's own prompt templates add to every prompt; the defaults add nothing to speak of."""
        to_prompt, from_messages = self.llm.completion_to_prompt, self.llm.messages_to_prompt
        if to_prompt not in (None, default_completion_to_prompt) and not params.get("formatted"):
            yield to_prompt("")
        if from_messages not in (None, default_messages_to_prompt) and not self.metadata.is_chat_model:
            yield from_messages([ChatMessage("")])


def _flavour(request: CallRequest, chat: str, complete: str) -> str:
    return complete if _is_completion(request) else chat


def _is_completion(request: CallRequest) -> bool:
    messages = request.conversation.messages
    return bool(messages) and isinstance(messages[0], Prompt)


def _calls(response: Response) -> tuple[Any, ...]:
    return () if isinstance(response, CompletionResponse) else tool_calls_of(response.message)


def _schema(value: Any) -> Any:
    """A tool or schema as it is sent; LlamaIndex's tools and Pydantic's classes by their schemas."""
    to_openai_tool = getattr(field(value, "metadata"), "to_openai_tool", None)
    if callable(to_openai_tool):
        return to_openai_tool(skip_length_check=True)
    to_schema = getattr(value, "model_json_schema", None) if isinstance(value, type) else None
    return to_schema() if callable(to_schema) else value


__all__ = ["LLMEndpoint"]
