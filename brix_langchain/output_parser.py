"""BrixOutputParser: a LangChain output parser with the schema guard's extraction, repair and healing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Generic, NamedTuple, Self, TypeVar, overload

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseLanguageModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.output_parsers import BaseTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import override

from brix_core import checks
from brix_core.errors import BrixConfigurationError, BrixSchemaError, SchemaAttempt
from brix_core.guards.schema import MAX_ECHO, MAX_PROBLEMS
from brix_core.structured.partial_json import PartialJSON
from brix_core.structured.response_schema import ResponseSchema, SchemaMismatch
from brix_core.turns import text_of
from brix_langchain.reading import tool_call, tool_calls_of

T = TypeVar("T")


class _Failed(NamedTuple):
    """Answers that do not fit, the last of them with what to say about it."""

    attempts: tuple[SchemaAttempt, ...]
    mismatch: SchemaMismatch


class BrixOutputParser(BaseTransformOutputParser[T], Generic[T]):
    """Reads a valid instance of a schema out of what a model wrote, text or tool call.

    What stands around the JSON is passed over, and JSON with a certain meaning is mended
    (`brix_core.structured.extraction`). What does not fit raises `OutputParserException`: its
    ``llm_output`` is the answer, its ``observation`` says what is wrong, its ``__cause__`` is a `BrixSchemaError` with
    every answer there was. A parser made by `with_llm` asks again first.

    Streamed, it gives the value as it grows (dicts or lists, not validated), and last the valid instance.

    Args:
        schema: A Pydantic model, a dataclass, a TypedDict, or a JSON Schema.
        llm: See `with_llm`.
        max_schema_retries: How often `llm` is asked again.

    Raises:
        BrixConfigurationError: The schema cannot be used.

    Example:
        >>> from pydantic import BaseModel
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> class City(BaseModel):
        ...     name: str
        >>> (FakeListChatModel(responses=["It is {'name': 'Oslo',}."]) | BrixOutputParser(City)).invoke("Where?")
        City(name='Oslo')
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    response_schema: Any
    llm: Any = Field(default=None, repr=False)
    max_schema_retries: int = 2
    _schema: ResponseSchema = PrivateAttr()

    @overload
    def __init__(self, schema: type[T], *, llm: Any = None, max_schema_retries: int = 2) -> None: ...
    @overload
    def __init__(self, schema: dict[str, Any], *, llm: Any = None, max_schema_retries: int = 2) -> None: ...
    def __init__(self, schema: Any, *, llm: Any = None, max_schema_retries: int = 2) -> None:
        compiled = ResponseSchema.of(schema)
        checks.whole("max_schema_retries", max_schema_retries, 0)
        if llm is not None:
            _check_llm(llm)
        super().__init__(response_schema=schema, llm=llm, max_schema_retries=max_schema_retries)  # type: ignore[call-arg]
        self._schema = compiled

    @property
    @override
    def OutputType(self) -> Any:
        source = self._schema.source
        return source if isinstance(source, type) else Any

    @property
    def _type(self) -> str:
        return "brix"

    @override
    def get_format_instructions(self) -> str:
        """What to tell a model that knows no structured output."""
        return self._schema.instructions

    def with_llm(
        self, llm: BaseLanguageModel[Any] | Runnable[LanguageModelInput, Any], max_schema_retries: int | None = None
    ) -> Self:
        """The same parser, which heals: an answer that does not fit is asked for again, with what is wrong with it.

        The model is told the schema, the last answer and its problems; the question too, in `parse_with_prompt`.

        Args:
            llm: Who is asked. Pass a guarded model, and heals are paid for, paced and timed like all its calls.
            max_schema_retries: How often; that of this parser when left out.

        Raises:
            BrixConfigurationError: `llm` is no model, or a value is out of range.

        Example:
            >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
            >>> parser = BrixOutputParser({"title": "City", "type": "object", "required": ["name"],
            ...                            "properties": {"name": {"type": "string"}}})
            >>> parser.with_llm(FakeListChatModel(responses=['{"name": "Oslo"}'])).invoke('{"name": 7}')
            {'name': 'Oslo'}
        """
        retries = self.max_schema_retries if max_schema_retries is None else max_schema_retries
        checks.whole("max_schema_retries", retries, 0)
        _check_llm(llm)
        return self.model_copy(update={"llm": llm, "max_schema_retries": retries})

    # One answer

    @override
    def parse(self, text: str) -> Any:
        """Read a text.

        Raises:
            OutputParserException: It holds no valid instance, and none came of asking again.
        """
        return self._read_or_heal(text, [])

    @override
    async def aparse(self, text: str) -> Any:
        """As `parse`."""
        return await self._aread_or_heal(text, [])

    @override
    def parse_with_prompt(self, completion: str, prompt: PromptValue) -> Any:
        """As `parse`; a heal is told the question, too."""
        return self._read_or_heal(completion, prompt.to_messages())

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Read the first of a model's answers.

        Args:
            result: The answers.
            partial: Whether it is still being written: gives the value so far, or None.

        Raises:
            OutputParserException: As `parse`.
        """
        text = self._text_of(result[0]) if result else ""
        return self._schema.partial(text) if partial else self._read_or_heal(text, [])

    @override
    async def aparse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """As `parse_result`."""
        text = self._text_of(result[0]) if result else ""
        return self._schema.partial(text) if partial else await self._aread_or_heal(text, [])

    # A stream

    @override
    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        answer = _Growing(self._schema.name)
        for chunk in input:
            if answer.has_changed_by(chunk):
                yield answer.value
        yield self._read_or_heal(answer.text, [])

    @override
    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        answer = _Growing(self._schema.name)
        async for chunk in input:
            if answer.has_changed_by(chunk):
                yield answer.value
        yield await self._aread_or_heal(answer.text, [])

    def _read_or_heal(self, text: str, prompt: Sequence[BaseMessage]) -> Any:
        found, failed = self._read(text, ())
        while failed is not None:
            asked = self._healing(failed, prompt)
            found, failed = self._read(self._healed(self.llm.invoke(asked)), failed.attempts)
        return found

    async def _aread_or_heal(self, text: str, prompt: Sequence[BaseMessage]) -> Any:
        found, failed = self._read(text, ())
        while failed is not None:
            asked = self._healing(failed, prompt)
            found, failed = self._read(self._healed(await self.llm.ainvoke(asked)), failed.attempts)
        return found

    def _read(self, text: str, earlier: tuple[SchemaAttempt, ...]) -> tuple[Any, _Failed | None]:
        """The instance, or why there is none and how the answers went so far."""
        if not isinstance(text, str):
            raise TypeError(
                f"BrixOutputParser reads text, messages and generations, got {type(text).__name__}: {text!r:.200}"
            )
        try:
            return self._schema.read(text), None
        except SchemaMismatch as mismatch:
            problems = tuple((problem.path, problem.message) for problem in mismatch.problems)
            return None, _Failed((*earlier, SchemaAttempt(text, problems)), mismatch)

    def _healing(self, failed: _Failed, prompt: Sequence[BaseMessage]) -> list[BaseMessage]:
        """How the answer is asked for again.

        Raises:
            OutputParserException: It is not.
        """
        feedback, text = self._schema.feedback(failed.mismatch), failed.attempts[-1].text
        if self.llm is None or len(failed.attempts) > self.max_schema_retries:
            raise self._failure(failed, feedback)
        instructions = self._schema.instructions
        told = any(instructions in text_of(message.content) for message in prompt)
        shown = text.strip() or "(no answer)"  # an empty message is refused by some providers
        if len(shown) > MAX_ECHO:
            shown = f"{shown[: MAX_ECHO // 2]}\n[...]\n{shown[-MAX_ECHO // 2 :]}"
        opening = [*prompt] if told else [*prompt, HumanMessage(instructions)]
        return [*opening, AIMessage(shown), HumanMessage(feedback)]

    def _failure(self, failed: _Failed, feedback: str) -> OutputParserException:
        attempts, name = failed.attempts, self._schema.name
        problems = "; ".join(f"{path}: {message}" for path, message in attempts[-1].problems[:MAX_PROBLEMS])
        why = f" after {self.max_schema_retries} heals (max_schema_retries)" if self.llm is not None else ""
        message = f"no valid {name} in {len(attempts)} answer(s){why}. The last one: {problems}"
        error = OutputParserException(message, observation=feedback, llm_output=attempts[-1].text, send_to_llm=True)
        error.__cause__ = BrixSchemaError(message, attempts=attempts, schema_name=name)
        return error

    def _healed(self, answer: Any) -> str:
        if not isinstance(answer, BaseMessage | str):
            raise BrixConfigurationError(
                f"with_llm() takes a model that answers with messages or text; this gave a {type(answer).__name__}. "
                "Pass the model itself, without with_structured_output or response_schema"
            )
        return self._text_of(answer)

    def _text_of(self, answer: Generation | BaseMessage | str) -> str:
        """Where the instance should be: the arguments of a tool call, or the text."""
        if isinstance(answer, ChatGeneration):
            answer = answer.message
        if isinstance(answer, BaseMessage):
            return _answer_text(_calls_of(answer), text_of(answer.content), self._schema.name)
        return answer.text if isinstance(answer, Generation) else answer


class _Growing:
    """An answer that arrives in pieces.

    Args:
        name: The schema's name, by which the tool is called that takes the answer.
    """

    def __init__(self, name: str) -> None:
        self.value: Any = None
        self._name = name
        self._texts: list[str] = []
        self._has_text = False
        self._calls: dict[Any, list[tuple[str, str]]] = {}
        self._parsers: dict[Any, PartialJSON] = {}

    def has_changed_by(self, chunk: str | BaseMessage) -> bool:
        """Add a piece; whether there is a new value to show."""
        pieces: list[tuple[Any, str]] = []
        if isinstance(chunk, AIMessageChunk):
            for call in chunk.tool_call_chunks:
                index = f"call {len(self._calls)}" if call["index"] is None else call["index"]  # a whole call has none
                self._calls.setdefault(index, []).append((call["name"] or "", call["args"] or ""))
                pieces.append((index, call["args"] or ""))
        elif isinstance(chunk, BaseMessage):
            for index, call_and_arguments in enumerate(_calls_of(chunk)):
                self._calls[index] = [call_and_arguments]
                pieces.append((index, call_and_arguments[1]))
        text = chunk if isinstance(chunk, str) else text_of(chunk.content)
        self._texts.append(text)
        self._has_text = self._has_text or bool(text)
        value = None
        for index, piece in [*pieces, ("text", text)]:
            if piece and index == self._followed():
                value = self._parsers.setdefault(index, PartialJSON()).feed(piece)
        if value is None or value == self.value:
            return False
        self.value = value
        return True

    def _followed(self) -> Any:
        """Which call the answer is in, else the text."""
        named = (index for index, parts in self._calls.items() if parts[0][0] == self._name)
        only = next(iter(self._calls)) if len(self._calls) == 1 and not self._has_text else "text"
        return next(named, only)

    @property
    def text(self) -> str:
        """The answer's text so far."""
        calls = [
            ("".join(name for name, _ in parts), "".join(args for _, args in parts)) for parts in self._calls.values()
        ]
        return _answer_text(calls, "".join(self._texts), self._name)


def _check_llm(llm: Any) -> None:
    if not isinstance(llm, Runnable):
        raise BrixConfigurationError(
            f"llm must be a model, such as guard(ChatOpenAI(...)), or another Runnable of messages, got {llm!r:.200}"
        )


def _answer_text(calls: Sequence[tuple[str, str]], text: str, name: str) -> str:
    """The arguments of the call by the schema's name, or of the only call where there is no text; else the text."""
    by_name = [arguments for called, arguments in calls if called == name]
    if by_name:
        return by_name[0]
    return calls[0][1] if len(calls) == 1 and not text.strip() else text


def _calls_of(message: BaseMessage) -> list[tuple[str, str]]:
    """Name and arguments of each call, as the model wrote them where that is known."""
    if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
        return [(call["name"] or "", call["args"] or "") for call in message.tool_call_chunks]
    calls = map(tool_call, tool_calls_of(message))
    return [(call.name, call.arguments) for call in calls]


__all__ = ["BrixOutputParser"]
