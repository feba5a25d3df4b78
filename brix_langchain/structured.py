"""The chains that ``with_structured_output`` and ``guard(model, response_schema=...)`` give.

A guarded model, to which the schema is bound, and a last step that reads the instance out of its message. By then the
schema guard has seen to it that there is one. It is read again rather than handed over, since LangChain hands on
messages only, and answers from its cache have passed no guard at this call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import AddableDict, Runnable, RunnableBinding, RunnableConfig, RunnableSequence
from langchain_core.runnables.base import RunnableSerializable
from langchain_core.runnables.config import patch_config
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, PrivateAttr
from typing_extensions import override

from brix_core.call import CallResponse, LogicalCall
from brix_core.errors import BrixSchemaError
from brix_core.guards.schema import REJECTED
from brix_core.session import Session
from brix_core.structured.response_schema import ResponseSchema
from brix_langchain.instance_reader import InstanceReader
from brix_langchain.refusals import RefusalsAreFinal

if TYPE_CHECKING:
    from brix_langchain.chat_model import GuardedChatModel

ASKED: Final = "_brix_schema"
"""How a binding tells the hooks what the answer must fit (`Asked`). Taken out wherever LangChain hands arguments on, so
that traces do not see it; caches see the schema's digest."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer must fit.

    Attributes:
        schema: The schema.
        calls: Where the calls made for it are put down, if anywhere.
    """

    schema: ResponseSchema
    calls: list[LogicalCall] | None = None

    @property
    def rejected(self) -> BaseMessage | None:
        """The last answer that did not fit."""
        response: CallResponse | None = self.calls[-1].metadata.get(REJECTED) if self.calls else None
        return None if response is None or response.raw is None else response.raw.generations[0].message


class _OfAModel(RefusalsAreFinal):
    """What a chain shows of its model's guards."""

    @property
    def _model(self) -> GuardedChatModel:
        raise NotImplementedError

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """See `GuardedChatModel.get_traces`."""
        return self._model.get_traces(session_id)

    @property
    def context(self) -> Session:
        """See `GuardedChatModel.context`."""
        return self._model.context

    @property
    def guards(self) -> tuple[str, ...]:
        """See `GuardedChatModel.guards`."""
        return self._model.guards

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Its budget and limits are live state."""
        return False


class StructuredModel(_OfAModel, RunnableSequence[LanguageModelInput, T]):
    """A guarded model whose answers are instances of a schema; made by `brix_langchain.guard`.

    A sequence of two: the model and the reading of its answer. `get_traces`, `context` and `guards` are the model's.

    An answer that never fits raises `BrixSchemaError`. One that asks for other tools, where such are bound, gives None;
    for an agent, which wants the messages themselves, there is `bind_tools`.

    Streamed, it gives the value as it grows (dicts or lists, not validated), and last the instance; the instance alone
    with ``stream_mode="validated"``.

    Example:
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> from pydantic import BaseModel
        >>> from brix_langchain import guard
        >>> class City(BaseModel):
        ...     name: str
        >>> model = guard(FakeListChatModel(responses=["Oslo!", "It is {'name': 'Oslo',}"]), response_schema=City)
        >>> model.invoke("Capital of Norway?"), len(model.get_traces()[0]["attempts"])
        (City(name='Oslo'), 2)
    """

    _unbound: GuardedChatModel = PrivateAttr()

    def __init__(
        self, bound: Runnable[LanguageModelInput, AIMessage], reader: InstanceReader, unbound: GuardedChatModel
    ) -> None:
        super().__init__(bound, reader)
        self._unbound = unbound

    @property
    def _model(self) -> GuardedChatModel:
        return _model_in(self.first)

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools beside the schema, for an agent; it gives messages, as after any ``bind_tools``.

        Calls of the tools are handed back. An answer without any holds a valid instance, or `BrixSchemaError` is
        raised. The schema is written into the prompt, since the tools may be what a provider's own way would take.

        Args:
            tools: See `BaseChatModel.bind_tools`.
            **kwargs: See `BaseChatModel.bind_tools`.
        """
        reader = cast(InstanceReader, self.last)
        return self._unbound.bind_tools(tools, **kwargs).bind(**{ASKED: Asked(reader.response_schema)})

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[LanguageModelInput, Any]:
        """Another schema in the place of this one; see `GuardedChatModel.with_structured_output`."""
        return self._unbound.with_structured_output(schema, **kwargs)


class StructuredModelWithRaw(_OfAModel, RunnableSerializable[LanguageModelInput, dict[str, Any]]):
    """As `StructuredModel`, but gives ``{"raw": message, "parsed": instance, "parsing_error": error}``.

    When no answer fits, `raw` is the last one, `parsed` None and `parsing_error` the `BrixSchemaError`. Streamed, the
    raw message comes in chunks, and last what was made of it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    bound: Runnable[LanguageModelInput, AIMessage]
    reader: InstanceReader
    response_schema: Any

    @property
    def _model(self) -> GuardedChatModel:
        return _model_in(self.bound)

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        return self._call_with_config(self._ask, input, config, **kwargs)

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return await self._acall_with_config(self._aask, input, config, **kwargs)

    @override
    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        yield from self._transform_stream_with_config(iter([input]), self._parts, config, **kwargs)

    @override
    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[dict[str, Any]]:
        parts = self._atransform_stream_with_config(_only(input), self._aparts, config, **kwargs)
        async with aclosing(cast(Any, parts)):
            async for part in parts:
                yield part

    def _ask(
        self, input: LanguageModelInput, run_manager: CallbackManagerForChainRun, config: RunnableConfig, **kwargs: Any
    ) -> dict[str, Any]:
        asked, below = Asked(self.response_schema, []), patch_config(config, callbacks=run_manager.get_child())
        raw: BaseMessage | None = None
        try:
            raw = self.bound.invoke(input, below, **{**kwargs, ASKED: asked})
            return _outcome(raw, self.reader.invoke(raw, below))
        except BrixSchemaError as error:
            return _outcome(raw or asked.rejected, None, error)

    async def _aask(
        self,
        input: LanguageModelInput,
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> dict[str, Any]:
        asked, below = Asked(self.response_schema, []), patch_config(config, callbacks=run_manager.get_child())
        raw: BaseMessage | None = None
        try:
            raw = await self.bound.ainvoke(input, below, **{**kwargs, ASKED: asked})
            return _outcome(raw, await self.reader.ainvoke(raw, below))
        except BrixSchemaError as error:
            return _outcome(raw or asked.rejected, None, error)

    def _parts(
        self,
        inputs: Iterator[LanguageModelInput],
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> Iterator[dict[str, Any]]:
        asked, below = Asked(self.response_schema, []), patch_config(config, callbacks=run_manager.get_child())
        chunks: list[Any] = []
        parsed = failure = None
        try:
            for chunk in self.bound.stream(next(inputs), below, **{**kwargs, ASKED: asked}):
                chunks.append(chunk)
                yield AddableDict(raw=chunk)
            parsed = self.reader.invoke(_merged(chunks), below)
        except BrixSchemaError as error:
            failure = error
        yield from _rest(chunks, asked, parsed, failure)

    async def _aparts(
        self,
        inputs: AsyncIterator[LanguageModelInput],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        asked, below = Asked(self.response_schema, []), patch_config(config, callbacks=run_manager.get_child())
        chunks: list[Any] = []
        parsed = failure = None
        source = self.bound.astream(await anext(inputs), below, **{**kwargs, ASKED: asked})
        try:
            async with aclosing(cast(Any, source)):
                async for chunk in source:
                    chunks.append(chunk)
                    yield AddableDict(raw=chunk)
            parsed = await self.reader.ainvoke(_merged(chunks), below)
        except BrixSchemaError as error:
            failure = error
        for part in _rest(chunks, asked, parsed, failure):
            yield part


def _outcome(raw: BaseMessage | None, parsed: Any, error: BrixSchemaError | None = None) -> dict[str, Any]:
    return {"raw": raw, "parsed": parsed, "parsing_error": error}


def _rest(chunks: Sequence[Any], asked: Asked, parsed: Any, error: BrixSchemaError | None) -> Iterator[dict[str, Any]]:
    """What a stream ends with: the raw message too, when none of it has been shown."""
    if not chunks:
        yield AddableDict(raw=asked.rejected)
    yield AddableDict(parsed=parsed)
    yield AddableDict(parsing_error=error)


def _merged(chunks: Sequence[AIMessageChunk]) -> Any:
    """All chunks as one; added one by one, the arguments of a tool call would be parsed with each."""
    return chunks[0] + cast(Any, chunks[1:]) if len(chunks) > 1 else chunks[0]


def _model_in(runnable: Any) -> GuardedChatModel:
    while isinstance(runnable, RunnableBinding):
        runnable = runnable.bound
    return cast("GuardedChatModel", runnable)


async def _only(item: T) -> AsyncIterator[T]:
    yield item


__all__ = ["ASKED", "Asked", "StructuredModel", "StructuredModelWithRaw"]
