"""The last step of a chain that gives instances: reading one out of the model's message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import RunnableConfig
from pydantic import PrivateAttr
from typing_extensions import override

from brix_core.errors import BrixSchemaError
from brix_core.structured.response_schema import ResponseSchema, SchemaMismatch
from brix_core.turns import text_of
from brix_langchain.output_parser import BrixOutputParser, _Growing
from brix_langchain.reading import tool_calls_of

T = TypeVar("T")


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


def _names(message: BaseMessage) -> set[str]:
    """The tools a message, or a piece of one, calls."""
    calls = [*tool_calls_of(message), *(message.tool_call_chunks if isinstance(message, AIMessageChunk) else ())]
    return {call["name"] for call in calls if call.get("name")}


__all__ = ["InstanceReader"]
