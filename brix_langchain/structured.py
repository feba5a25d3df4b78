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
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, Generation
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
from brix_core.structured.response_schema import ResponseSchema, SchemaMismatch
from brix_core.turns import text_of
from brix_langchain.output_parser import BrixOutputParser, _Growing
from brix_langchain.reading import tool_calls_of
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


class InstanceReader(BrixOutputParser[Any]):
    """Reads the instance out of a guarded model's message: None where the model asks for other tools.

    Args:
        schema: What the answer must fit.
        previews: Whether a stream gives the value as it grows, or the instance alone.
    """

    _previews: bool = PrivateAttr()

    def __init__(self, schema: ResponseSchema, *, previews: bool = True) -> None:
        super().__init__(cast(Any, schema))
        self._previews = previews

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        message = cast(ChatGeneration, result[0]).message
        if not partial and self._wants_tools(_names(message)):
            return self._beside_calls(text_of(message.content))
        return super().parse_result(result, partial=partial)

    @override
    async def aparse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        return self.parse_result(result, partial=partial)

    @override
    def transform(
        self, input: Iterator[str | BaseMessage], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        # LangChain's own reads a stream that is dropped to its end, for its traces: paid for, and waited for.
        source = _Endable(input)
        values = super().transform(source, config, **kwargs)
        try:
            for value in values:  # noqa: UP028 (`yield from` would close them before the source)
                yield value
        finally:
            source.close()

    @override
    async def atransform(
        self, input: AsyncIterator[str | BaseMessage], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        source = _AsyncEndable(input)
        values = super().atransform(source, config, **kwargs)
        try:
            async for value in values:
                yield value
        finally:
            await source.aclose()
            await cast(Any, values).aclose()

    @override
    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        answer, names, texts = _Growing(self._schema.name), set[str](), list[str]()
        for chunk in input:
            if self._take(chunk, answer, names, texts):
                yield answer.value
        yield self._last(answer, names, texts)

    @override
    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        answer, names, texts = _Growing(self._schema.name), set[str](), list[str]()
        async for chunk in input:
            if self._take(chunk, answer, names, texts):
                yield answer.value
        yield self._last(answer, names, texts)

    def _take(self, chunk: str | BaseMessage, answer: _Growing, names: set[str], texts: list[str]) -> bool:
        """Add a piece; whether there is a preview to show."""
        if isinstance(chunk, BaseMessage):
            names |= _names(chunk)
            texts.append(text_of(chunk.content))
        return answer.has_changed_by(chunk) and self._previews and not self._wants_tools(names)

    def _last(self, answer: _Growing, names: set[str], texts: Sequence[str]) -> Any:
        if self._wants_tools(names):
            return self._beside_calls("".join(texts))
        return self._read_or_heal(answer.text, [])

    def _wants_tools(self, names: set[str]) -> bool:
        return bool(names) and self._schema.name not in names

    def _beside_calls(self, text: str) -> Any:
        try:
            return self._schema.read(text)
        except SchemaMismatch:
            return None

    @override
    def _read_or_heal(self, text: str, prompt: Sequence[BaseMessage]) -> Any:
        try:
            return super()._read_or_heal(text, prompt)
        except OutputParserException as error:  # of a cache, or of a model that is not guarded
            raise cast(BrixSchemaError, error.__cause__) from None


class _Endable(Iterator[T]):
    """An iterator that ends for all who read it once it is closed."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source: Iterator[T] | None = source

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._source is None:
            raise StopIteration
        return next(self._source)

    def close(self) -> None:
        source, self._source = self._source, None
        if (close := getattr(source, "close", None)) is not None:
            close()


class _AsyncEndable(AsyncIterator[T]):
    """The same on an event loop."""

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._source: AsyncIterator[T] | None = source

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if self._source is None:
            raise StopAsyncIteration
        return await anext(self._source)

    async def aclose(self) -> None:
        source, self._source = self._source, None
        if (close := getattr(source, "aclose", None)) is not None:
            await close()


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


def _names(message: BaseMessage) -> set[str]:
    """The tools a message, or a piece of one, calls."""
    calls = [*tool_calls_of(message), *(message.tool_call_chunks if isinstance(message, AIMessageChunk) else ())]
    return {call["name"] for call in calls if call.get("name")}


def _model_in(runnable: Any) -> GuardedChatModel:
    while isinstance(runnable, RunnableBinding):
        runnable = runnable.bound
    return cast("GuardedChatModel", runnable)


async def _only(item: T) -> AsyncIterator[T]:
    yield item


__all__ = ["ASKED", "Asked", "InstanceReader", "StructuredModel", "StructuredModelWithRaw"]
