"""GuardedLLM: a string LLM (text in, text out) behind its guards, still a string LLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.load import dumpd
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict, Field
from typing_extensions import override

from brix_core.call import CallRequest, CallResponse
from brix_core.pipeline import Pipeline
from brix_langchain.inside import described
from brix_langchain.live_state import OneForAllCopies
from brix_langchain.refusals import RefusalsAreFinal
from brix_langchain.run_guards import session_now
from brix_langchain.sessions import session_of
from brix_langchain.string_endpoint import StringModelEndpoint
from brix_langchain.telling import TellsOfItsGuards

_TAKEN_OVER = ("cache", "verbose", "callbacks", "tags", "metadata", "custom_get_token_ids", "name")
"""Settings of the inner model that LangChain reads on the model it is given."""


class GuardedLLM(TellsOfItsGuards, OneForAllCopies, RefusalsAreFinal, BaseLLM):
    """A string LLM whose every prompt passes the guards. Made by `brix_langchain.guard`.

    Each prompt is a call of its own: where the model would send several in one request, as OpenAI's does for
    `generate` and `batch`, the guarded one sends a request for each.

    Attributes:
        inner: The wrapped model (a copy whose own retries are off).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: BaseLLM = Field(exclude=True)

    if TYPE_CHECKING:
        _pipeline: Pipeline
        _endpoint: StringModelEndpoint
        _fallbacks: tuple[StringModelEndpoint, ...]
        _session: str | None

    def __init__(
        self, endpoint: StringModelEndpoint, fallbacks: Sequence[StringModelEndpoint], pipeline: Pipeline
    ) -> None:
        inner = endpoint.llm
        fields: dict[str, Any] = {"inner": inner}
        fields |= {name: getattr(inner, name) for name in _TAKEN_OVER if getattr(inner, name, None) is not None}
        super().__init__(**fields)
        self.__dict__.update(_endpoint=endpoint, _fallbacks=tuple(fallbacks), _pipeline=pipeline, _session=None)

    # The calls. LangChain has opened the runs, and looked into its cache

    @override
    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        calls = [self._pipeline.call(self._request(prompt, stop, run_manager, kwargs)) for prompt in prompts]
        return _together(calls)

    @override
    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        requests = [self._request(prompt, stop, run_manager, kwargs) for prompt in prompts]
        tasks = [asyncio.ensure_future(self._pipeline.acall(request)) for request in requests]
        try:
            return _together(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # those that are left when one has failed
                task.cancel()

    @override
    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        return self._pipeline.stream(self._request(prompt, stop, run_manager, kwargs, stream=True))

    @override
    def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        return self._pipeline.astream(self._request(prompt, stop, run_manager, kwargs, stream=True))

    def _request(
        self,
        prompt: str,
        stop: list[str] | None,
        run_manager: Any,
        kwargs: Mapping[str, Any],
        *,
        stream: bool = False,
    ) -> CallRequest:
        params: dict[str, Any] = {"stop": stop, **kwargs}
        if run_manager is not None:
            params["run_manager"] = run_manager
        name = self._session or session_of(None)
        return self._pipeline.request(self._endpoint, [prompt], params, stream=stream, session_id=name)

    # Whose call it is: LangChain tells only the outer methods

    def _of(self, config: RunnableConfig | None) -> Self:
        """The model for the session of this moment: a stream may be read elsewhere."""
        name = session_now(config)
        if name is None or name == self._session:
            return self
        twin = self.model_copy()
        twin.__dict__["_session"] = name
        return twin

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        return super(GuardedLLM, self._of(config)).invoke(input, config, **kwargs)

    @override
    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        return await super(GuardedLLM, self._of(config)).ainvoke(input, config, **kwargs)

    @override
    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[str]:
        return super(GuardedLLM, self._of(config)).stream(input, config, **kwargs)

    @override
    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[str]:
        return super(GuardedLLM, self._of(config)).astream(input, config, **kwargs)

    @override
    def batch(self, *args: Any, **kwargs: Any) -> list[str]:
        return Runnable.batch(self, *args, **kwargs)

    @override
    async def abatch(self, *args: Any, **kwargs: Any) -> list[str]:
        return await Runnable.abatch(self, *args, **kwargs)

    # What LangChain asks a model about itself

    @property
    def model_name(self) -> str:
        """The wrapped model's name."""
        return self._endpoint.model({})

    @property
    def _llm_type(self) -> str:
        return self.inner._llm_type

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """The wrapped model's own, for the cache; and whoever else may answer."""
        others = [fallback.identity for fallback in self._fallbacks]
        return {**self.inner._identifying_params, **({"fallbacks": others} if others else {})}

    @cached_property
    def _serialized(self) -> dict[str, Any]:
        return described(dumpd(self.inner), self._pipeline)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.inner._get_ls_params(stop=stop, **kwargs)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        return self.inner.get_token_ids(text)

    @override
    def get_num_tokens(self, text: str) -> int:
        return self.inner.get_num_tokens(text)

    def __repr__(self) -> str:
        return f"GuardedLLM({self.inner!r}, guards={list(self.guards)})"


def _together(responses: Sequence[CallResponse]) -> LLMResult:
    """One result for all prompts, their usage added up."""
    results = [cast(LLMResult, response.raw) for response in responses]
    output: dict[str, Any] = {}
    for result in results:
        for key, value in (result.llm_output or {}).items():
            known = output.get(key)
            if key == "token_usage" and isinstance(known, dict) and isinstance(value, dict):
                output[key] = {name: known.get(name, 0) + value.get(name, 0) for name in {**known, **value}}
            else:
                output[key] = value
    return LLMResult(generations=[result.generations[0] for result in results], llm_output=output or None)


__all__ = ["GuardedLLM"]
