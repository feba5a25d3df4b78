"""GuardedChatModel: a chat model behind its guards, still a chat model."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, cast

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

from brix_core.call import CallRequest
from brix_core.errors import BrixConfigurationError
from brix_core.pipeline import Pipeline
from brix_core.session import current_session_id
from brix_langchain.binding import bound_arguments, rebind
from brix_langchain.endpoint import ChatModelEndpoint
from brix_langchain.inside import described
from brix_langchain.kept_answers import keeping_answers
from brix_langchain.live_state import OneForAllCopies
from brix_langchain.refusals import RefusalsAreFinal
from brix_langchain.response_metadata import atold_chunks, told_chunks, told_result
from brix_langchain.schema_binding import digest, structured_output
from brix_langchain.sessions import session_of
from brix_langchain.structured import ASKED, Asked
from brix_langchain.telling import TellsOfItsGuards

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

_SESSION: Final = "_brix_session"
"""How the outer methods, which know the configuration, tell the hooks whose call it is. Taken out wherever
LangChain hands arguments on, so that neither caches nor traces see it."""


class GuardedChatModel(TellsOfItsGuards, OneForAllCopies, RefusalsAreFinal, BaseChatModel):
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
        _keeps_partial: bool

    def __init__(
        self,
        endpoint: ChatModelEndpoint,
        fallbacks: Sequence[ChatModelEndpoint],
        pipeline: Pipeline,
        *,
        keeps_partial: bool = False,
    ) -> None:
        inner = endpoint.inner
        fields: dict[str, Any] = {"inner": inner}
        fields |= {name: getattr(inner, name) for name in _TAKEN_OVER if getattr(inner, name, None) is not None}
        super().__init__(**fields)
        self.__dict__.update(
            _endpoint=endpoint,
            _fallbacks=tuple(fallbacks),
            _pipeline=pipeline,
            _keeps_partial=keeps_partial,
        )

    # One call. LangChain has opened the run, and looked into its cache

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, run_manager, kwargs)
        return told_result(self._pipeline.call(request), request)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, run_manager, kwargs)
        return told_result(await self._pipeline.acall(request), request)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, run_manager, kwargs, stream=True)
        return told_chunks(self._pipeline.stream(request), request, keeps_partial=self._keeps_partial)

    @override
    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = self._request(messages, stop, run_manager, kwargs, stream=True)
        return atold_chunks(self._pipeline.astream(request), request, keeps_partial=self._keeps_partial)

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
        name = params.pop(_SESSION, None) or session_of(None)
        asked: Asked | None = params.pop(ASKED, None)
        schema = None if asked is None else asked.schema
        request = self._pipeline.request(
            self._endpoint, messages, params, stream=stream, session_id=name, schema=schema
        )
        if asked is not None and asked.calls is not None:
            asked.calls.append(request.call)
        return request

    # Whose call it is: LangChain tells only the outer methods

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        return super().invoke(input, config, **_named(config, kwargs))

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        return await super().ainvoke(input, config, **_named(config, kwargs))

    @override
    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        return super().stream(input, config, **_named(config, kwargs))

    @override
    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        return super().astream(input, config, **_named(config, kwargs))

    @override
    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        _check_events_exist()
        # The older versions come by `stream`; the newest opens its run by itself.
        named = _named(config, kwargs) if kwargs.get("version") == "v3" else kwargs
        return super().stream_events(input, config, **named)

    @override
    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        if kwargs.get("version") == "v3":
            _check_events_exist()
        named = _named(config, kwargs) if kwargs.get("version") == "v3" else kwargs
        return super().astream_events(input, config, **named)

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
        binding = self.inner.bind_tools(tools, **kwargs)
        model = self._with_fallbacks_bound(
            bound_arguments(self.inner, binding),
            lambda fallback: bound_arguments(fallback, fallback.bind_tools(tools, **kwargs)),
        )
        return rebind(binding, self.inner, model)

    @override
    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """See `BaseChatModel.with_structured_output`. The options are those of the wrapped model.

        An answer that does not fit is mended or asked for again, as the option ``response_schema`` of `guard` has it;
        when none fits, `BrixSchemaError` is raised (with `include_raw`, it is the ``parsing_error``).

        Streams of a JSON Schema or TypedDict give the dict as it grows, and last the valid one; those of a class give
        the instance alone.

        Raises:
            BrixConfigurationError: `schema` is none, or a fallback is of another provider, which does not know the
                ``method``.
        """
        return structured_output(self, schema, kwargs, include_raw=include_raw)

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
        return described(dumpd(self.inner), self._pipeline)

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return self.inner._get_invocation_params(stop=stop, **_public(kwargs))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        kwargs = _public(kwargs)
        if stop is None and not kwargs:  # it only describes the model in traces: worked out once
            return cast(LangSmithParams, dict(self._plain_ls_params))
        return self.inner._get_ls_params(stop=stop, **kwargs)

    @cached_property
    def _plain_ls_params(self) -> LangSmithParams:
        return self.inner._get_ls_params()

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The cache key: the wrapped model's own, and whoever else may answer."""
        asked: Asked | None = kwargs.get(ASKED)
        schema = self._pipeline.schema if asked is None else asked.schema
        own = self.inner._get_llm_string(stop=stop, **_public(kwargs))
        others = [fallback.identity for fallback in self._fallbacks]
        return "|".join((own, *others, *([] if schema is None else [digest(schema)])))

    def _generate_with_cache(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        asked, messages = keeping_answers(self, messages)
        return super(GuardedChatModel, asked)._generate_with_cache(messages, *args, **kwargs)

    def _agenerate_with_cache(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, ChatResult]:
        asked, messages = keeping_answers(self, messages)
        return super(GuardedChatModel, asked)._agenerate_with_cache(messages, *args, **kwargs)

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return self.inner._combine_llm_outputs(llm_outputs)

    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        return self.inner._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)

    def _should_use_protocol_streaming(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        return self.inner._should_use_protocol_streaming(async_api=async_api, run_manager=run_manager, **kwargs)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        return self.inner.get_token_ids(text)

    @override
    def get_num_tokens(self, text: str) -> int:
        return self.inner.get_num_tokens(text)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> int:
        return self.inner.get_num_tokens_from_messages(messages, *args, **kwargs)

    def __repr__(self) -> str:
        return f"GuardedChatModel({self.inner!r}, guards={list(self.guards)})"


_hook: Any
for _hook in (GuardedChatModel._generate, GuardedChatModel._agenerate):
    # LangChain inspects the hook's signature at every call, 14 us; `inspect` takes it from here.
    _hook.__signature__ = inspect.signature(_hook)


def _public(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without our own."""
    return {name: value for name, value in kwargs.items() if name not in (_SESSION, ASKED)}


def _check_events_exist() -> None:
    if not hasattr(Runnable, "stream_events"):
        raise BrixConfigurationError(
            "`stream_events`, and version 3 of `astream_events`, come with langchain-core 1.4; "
            f'{version("langchain-core")} is installed. Upgrade it, or call astream_events(..., version="v2")'
        )


def _named(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments, and the session that the configuration names."""
    if _SESSION not in kwargs and (name := session_of(config) or current_session_id()) is not None:
        kwargs[_SESSION] = name  # of this moment: a stream may be read elsewhere
    return kwargs


__all__ = ["GuardedChatModel"]
