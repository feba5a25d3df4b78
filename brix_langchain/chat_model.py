"""GuardedChatModel: a chat model behind its guards, still a chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field
from typing_extensions import override

from brix_core.call import CallRequest, CallResponse
from brix_core.errors import BrixConfigurationError
from brix_core.pipeline import Pipeline
from brix_core.session import Session, session
from brix_langchain.binding import bound_arguments, rebind
from brix_langchain.endpoint import ChatModelEndpoint
from brix_langchain.sessions import session_of

_TAKEN_OVER = (
    "cache",
    "verbose",
    "callbacks",
    "tags",
    "metadata",
    "custom_get_token_ids",
    "disable_streaming",
    "output_version",
    "profile",
    "name",
)
"""Settings of the inner model that LangChain reads on the model it is given."""


class GuardedChatModel(BaseChatModel):
    """A chat model whose every call passes the guards. Made by `brix_langchain.guard`.

    It is used like the model it wraps: invoke, stream, batch and their async twins, ``bind_tools``,
    ``with_structured_output``, in chains, agents and graphs.

    Attributes:
        inner: The wrapped model (a copy whose own retries are off).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: BaseChatModel = Field(exclude=True)

    if TYPE_CHECKING:
        # Kept in the instance's __dict__ and hidden from pydantic: reading a PrivateAttr costs 4 us.
        _pipeline: Pipeline
        _endpoint: ChatModelEndpoint
        _fallbacks: tuple[ChatModelEndpoint, ...]

    def __init__(
        self, endpoint: ChatModelEndpoint, fallbacks: Sequence[ChatModelEndpoint], pipeline: Pipeline
    ) -> None:
        inner = endpoint.inner
        taken = {name: getattr(inner, name) for name in _TAKEN_OVER if getattr(inner, name, None) is not None}
        super().__init__(inner=inner, **taken)
        self.__dict__.update(_endpoint=endpoint, _fallbacks=tuple(fallbacks), _pipeline=pipeline)

    # What the guards know

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of this model's calls, newest first.

        Args:
            session_id: Only those of this session.
        """
        return self._pipeline.traces.get_traces(session_id)

    @property
    def context(self) -> Session:
        """The session that a call made here and now would belong to."""
        return self._pipeline.session(session_of(None))

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the active guards, outermost first."""
        return self._pipeline.names

    # One call. LangChain has opened the run, and looked into its cache

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(self._pipeline.call(self._request(messages, stop, run_manager, kwargs)))

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(await self._pipeline.acall(self._request(messages, stop, run_manager, kwargs)))

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        return self._pipeline.stream(self._request(messages, stop, run_manager, kwargs, stream=True))

    @override
    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        return self._pipeline.astream(self._request(messages, stop, run_manager, kwargs, stream=True))

    def _request(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: Any,
        kwargs: Mapping[str, Any],
        *,
        stream: bool = False,
    ) -> CallRequest:
        params: dict[str, Any] = {"stop": stop, **kwargs}
        if run_manager is not None:
            params["run_manager"] = run_manager
        return self._pipeline.request(
            self._endpoint, messages, params, stream=stream, session_id=session_of(None)
        )

    # Whose call it is: LangChain tells only the outer methods

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        name = session_of(config)
        if name is None:
            return super().invoke(input, config, **kwargs)
        with session(name):
            return super().invoke(input, config, **kwargs)

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        name = session_of(config)
        if name is None:
            return await super().ainvoke(input, config, **kwargs)
        with session(name):
            return await super().ainvoke(input, config, **kwargs)

    @override
    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        chunks = super().stream(input, config, **kwargs)
        name = session_of(config)
        return chunks if name is None else _begun_in(name, chunks)

    @override
    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        chunks = super().astream(input, config, **kwargs)
        name = session_of(config)
        return chunks if name is None else _abegun_in(name, chunks)

    # Tools and structured output: bound to the guard, never to the model behind it

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        bound = bound_arguments(self.inner, self.inner.bind_tools(tools, **kwargs))
        return self._with_fallbacks_bound(
            bound,
            lambda fallback: bound_arguments(fallback, fallback.bind_tools(tools, **kwargs)),
        ).bind(**bound)

    @override
    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        if any(type(fallback.inner) is not type(self.inner) for fallback in self._fallbacks):
            # Only tool calls look alike whichever provider answers.
            kwargs.setdefault("method", "function_calling")
        chain = self.inner.with_structured_output(schema, include_raw=include_raw, **kwargs)
        model = self._with_fallbacks_bound(
            bound_arguments(self.inner, chain),
            lambda fallback: bound_arguments(
                fallback, fallback.with_structured_output(schema, include_raw=include_raw, **kwargs)
            ),
        )
        return rebind(chain, self.inner, model)

    def _with_fallbacks_bound(
        self, bound: Mapping[str, Any], bind: Callable[[BaseChatModel], Mapping[str, Any]]
    ) -> GuardedChatModel:
        """This model, its fallbacks bound to the same tools in their own providers' words."""
        if not self._fallbacks:
            return self
        fallbacks = [endpoint.rebound(bind(endpoint.inner), tuple(bound)) for endpoint in self._fallbacks]
        twin = self.model_copy()
        twin.__dict__.update(_fallbacks=tuple(fallbacks), _pipeline=self._pipeline.with_fallbacks(fallbacks))
        return twin

    # What LangChain asks a model about itself

    @property
    def model_name(self) -> str:
        """The wrapped model's name."""
        return self._endpoint.model({})

    @property
    def model(self) -> str:
        """The wrapped model's name, by its other name."""
        return self._endpoint.model({})

    @property
    def _llm_type(self) -> str:
        return self.inner._llm_type

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        kind = type(self.inner)
        return {**self.inner._identifying_params, "guarded": f"{kind.__module__}.{kind.__qualname__}"}

    @cached_property
    def _serialized(self) -> dict[str, Any]:
        return cast(dict[str, Any], dumpd(self.inner))

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return self.inner._get_invocation_params(stop=stop, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.inner._get_ls_params(stop=stop, **kwargs)

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return self.inner._combine_llm_outputs(llm_outputs)

    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        return self.inner._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)

    def _should_use_protocol_streaming(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        return self._endpoint.streams and self.inner._should_use_protocol_streaming(
            async_api=async_api, run_manager=run_manager, **kwargs
        )

    @override
    def get_token_ids(self, text: str) -> list[int]:
        return self.inner.get_token_ids(text)

    @override
    def get_num_tokens(self, text: str) -> int:
        return self.inner.get_num_tokens(text)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> int:
        return self.inner.get_num_tokens_from_messages(messages, *args, **kwargs)

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        return False

    def __repr__(self) -> str:
        return f"GuardedChatModel({self.inner!r}, guards={list(self.guards)})"

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> GuardedChatModel:
        """A shallow copy: what the guards count is one, however many copies there are."""
        return self.model_copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BrixConfigurationError(
            "a guarded model cannot be pickled: its budget and limits are live state. Pickle the model it wraps and "
            "guard it again on the other side, with a shared store"
        )


def _result(response: CallResponse) -> ChatResult:
    result = cast(ChatResult, response.raw)
    if response.partial:
        for generation in result.generations:
            generation.message.response_metadata["finish_reason"] = "timeout"
    return result


def _begun_in(name: str, chunks: Iterator[AIMessageChunk]) -> Iterator[AIMessageChunk]:
    """Take the first step inside the session: that is when the call begins."""
    with session(name):
        first = next(chunks, None)
    if first is not None:
        yield first
        yield from chunks


async def _abegun_in(name: str, chunks: AsyncIterator[AIMessageChunk]) -> AsyncIterator[AIMessageChunk]:
    """Take the first step inside the session: that is when the call begins."""
    async with aclosing(cast(Any, chunks)) as source:
        with session(name):
            first = await anext(source, None)
        if first is not None:
            yield first
            async for chunk in source:
                yield chunk


__all__ = ["GuardedChatModel"]
