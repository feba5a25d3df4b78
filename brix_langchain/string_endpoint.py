"""A string LLM (text in, text out) as an endpoint of the core."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, cast

from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from brix_core.call import CallRequest, CallResponse
from brix_core.usage import Usage
from brix_langchain.endpoint import ChatModelEndpoint
from brix_langchain.opaque import TEXTS
from brix_langchain.reading import reported_usage, usage_of


class StringModelEndpoint(ChatModelEndpoint):
    """One string LLM. What it is called and what it is capped by is found as with chat models.

    Args:
        model: The model; its own retries should be off.
        fallback: Whether it stands in for another model.
    """

    codec: Any = TEXTS

    def __init__(self, model: BaseLLM, *, fallback: bool = False) -> None:
        super().__init__(cast(Any, model), fallback=fallback)
        self.llm = model
        self._streams_blocking = type(model)._stream is not BaseLLM._stream
        self.streams = self._streams_blocking or type(model)._astream is not BaseLLM._astream

    def choices(self, params: Mapping[str, Any]) -> int:
        """``n``, or ``best_of``, all of which are billed."""
        own = getattr(self.llm, "best_of", None) if "best_of" in type(self.llm).model_fields else None
        best = params.get("best_of") or own
        return max(super().choices(params), best if type(best) is int else 1)

    def _own_settings(self) -> str:
        return f"{self.llm._llm_type}{sorted(self.llm._identifying_params.items(), key=repr)}"

    def call(self, request: CallRequest) -> CallResponse:
        """One blocking request."""
        return self._answer(self.llm._generate(_prompts(request), **self._arguments(request)), request)

    async def acall(self, request: CallRequest) -> CallResponse:
        """One request on the event loop."""
        model: Any = self._loops.here()
        return self._answer(await model._agenerate(_prompts(request), **self._arguments(request)), request)

    def stream(self, request: CallRequest) -> Iterator[Any]:
        """The model's own chunks."""
        if not self._streams_blocking:
            return iter(self.as_chunks(self.call(request)))
        return self.llm._stream(_prompts(request)[0], **self._arguments(request))

    def astream(self, request: CallRequest) -> AsyncIterator[Any]:
        """The model's own chunks, on the event loop."""
        if not self.streams:
            return self._whole(request)
        model: Any = self._loops.here()
        return cast(AsyncIterator[Any], model._astream(_prompts(request)[0], **self._arguments(request)))

    async def _whole(self, request: CallRequest) -> AsyncIterator[Any]:
        for chunk in self.as_chunks(await self.acall(request)):
            yield chunk

    def read_chunk(self, chunk: Any) -> str:
        """Its text."""
        return cast(str, chunk.text)

    def finish(self, chunks: Sequence[Any], text: str, request: CallRequest) -> CallResponse:
        """Sum up a stream."""
        infos = [chunk.generation_info or {} for chunk in reversed(chunks)]
        reported = next((info["usage_metadata"] for info in infos if info.get("usage_metadata")), None)
        return CallResponse(
            text=text,
            usage=usage_of(reported) if isinstance(reported, Mapping) else None,
            model=self.model(request.params),
            finish_reason=next((info["finish_reason"] for info in infos if info.get("finish_reason")), None),
        )

    def assemble(self, chunks: Sequence[Any], text: str, request: CallRequest) -> CallResponse:
        """Merge chunks into the result that `_generate` would have given."""
        whole = reduce(add, chunks) if chunks else Generation(text="")
        generation = Generation(text=whole.text, generation_info=whole.generation_info)
        return self.finish(chunks, text, request)._replace(raw=LLMResult(generations=[[generation]]))

    def as_chunks(self, response: CallResponse) -> Sequence[Any]:
        """One chunk that says it all."""
        info = {"finish_reason": response.finish_reason} if response.finish_reason else None
        return [GenerationChunk(text=response.text, generation_info=info)]

    def pack(self, raw: Any) -> Any:
        """Its texts and what stands beside them."""
        return {
            "generations": [[[one.text, one.generation_info] for one in some] for some in raw.generations],
            "llm_output": raw.llm_output,
        }

    def unpack(self, data: Any) -> Any:
        """See `Endpoint`."""
        generations: Any = [
            [Generation(text=text, generation_info=info) for text, info in some] for some in data["generations"]
        ]
        return LLMResult(generations=generations, llm_output=data["llm_output"])

    def pack_chunks(self, chunks: Sequence[Any]) -> list[Any]:
        """Their texts and what stands beside them."""
        return [[chunk.text, chunk.generation_info] for chunk in chunks]

    def unpack_chunks(self, data: Sequence[Any]) -> Iterator[Any]:
        """See `Endpoint`."""
        return (GenerationChunk(text=text, generation_info=info) for text, info in data)

    def _answer(self, result: LLMResult, request: CallRequest) -> CallResponse:
        generations = result.generations[0]
        info = generations[0].generation_info or {}
        usage: Usage | None = reported_usage(result.llm_output)
        if usage is None and isinstance(info.get("usage_metadata"), Mapping):
            usage = usage_of(info["usage_metadata"])
        return CallResponse(
            text="".join(generation.text for generation in generations),
            usage=usage,
            model=self.model(request.params),
            finish_reason=info.get("finish_reason"),
            raw=result,
        )


def _prompts(request: CallRequest) -> list[str]:
    return ["\n\n".join(request.conversation.messages)]


__all__ = ["StringModelEndpoint"]
