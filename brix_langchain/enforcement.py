"""The enforcement engine and LangChain: any chat model as an adapter, and an engine as a runnable.

Example:
    >>> from brix_core.enforcement import EnforcementEngine, JSONValidator
    >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
    >>> from langchain_core.prompts import ChatPromptTemplate
    >>> engine = EnforcementEngine(LangChainAdapter(FakeListChatModel(responses=['{"city": "Oslo"}'])), JSONValidator())
    >>> chain = ChatPromptTemplate.from_template("Which city? {text}") | as_runnable(engine, {"type": "object"})
    >>> chain.invoke({"text": "The capital of Norway."}).data
    {'city': 'Oslo'}
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager, nullcontext
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config

from brix_core.call import CallRequest
from brix_core.checks import flag
from brix_core.endpoints.structured import has_json_schema, response_format
from brix_core.enforcement import EnforcedOutput, EnforcementEngine
from brix_core.enforcement.adapters.base import BaseLLMAdapter, Prompt
from brix_core.enforcement.adapters.health import probe, probed
from brix_core.errors import BrixConfigurationError
from brix_core.session import session
from brix_core.turns import text_of
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.endpoint import ChatModelEndpoint
from brix_langchain.messages import CODEC
from brix_langchain.own_retries import without_own_retries
from brix_langchain.sessions import session_of

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema


class LangChainAdapter(BaseLLMAdapter):
    """Any LangChain chat model, for an `EnforcementEngine`.

    It works on a copy of the model whose own retries are off: retries are the engine's. Its connections stay its
    owner's. OpenAI's models are held to the schema by OpenAI, for all others it is written into the prompt.

    Args:
        chat_model: The model, not guarded: the engine has guards of its own.

    Raises:
        BrixConfigurationError: It is no chat model, or guarded already.

    Example:
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> adapter = LangChainAdapter(FakeListChatModel(responses=["Oslo"]))
        >>> adapter.generate_sync("Capital of Norway?").output
        'Oslo'
    """

    def __init__(self, chat_model: BaseChatModel) -> None:
        if isinstance(chat_model, GuardedChatModel):
            raise BrixConfigurationError(
                "LangChainAdapter got a model that is guarded already; give the model itself, and the options to the "
                "engine"
            )
        if not isinstance(chat_model, BaseChatModel):
            raise BrixConfigurationError(
                "LangChainAdapter takes a LangChain chat model such as ChatOpenAI(...), got "
                f"{type(chat_model).__name__}: {chat_model!r:.200}"
            )
        copy = without_own_retries(chat_model)
        if copy is not chat_model and getattr(copy, "stream_usage", True) is None:
            copy.stream_usage = True  # type: ignore[attr-defined]  # ChatOpenAI: else no usage with a base_url
        self._model_endpoint = _Endpoint(copy)
        super().__init__(self._model_endpoint.model({}))
        self.provider = self._model_endpoint.provider or type(chat_model).__name__

    def messages(self, prompt: Prompt) -> list[Any]:
        """The prompt as LangChain's messages; tuples and dicts are converted as LangChain does."""
        if isinstance(prompt, PromptValue):
            return prompt.to_messages()
        listed = super().messages(prompt)
        try:
            return convert_to_messages(listed)
        except (NotImplementedError, TypeError, ValueError, KeyError) as error:
            raise BrixConfigurationError(
                f"prompt is no list of messages: {error!s:.200}; got {prompt!r:.200}"
            ) from error

    def text_of(self, chunk: Any) -> str:
        """The visible text of a chunk, be it of another adapter of a chain."""
        message = getattr(chunk, "message", None)
        return super().text_of(chunk) if message is None else text_of(message.content)

    def _endpoint(self) -> ChatModelEndpoint:
        return self._model_endpoint

    async def _aprobe(self, timeout: float) -> None:
        await probed(self._model_endpoint.inner, timeout)

    def _probe(self, timeout: float) -> None:
        probe(self._model_endpoint.inner, timeout)


class _Endpoint(ChatModelEndpoint):
    """The endpoint, which asks OpenAI to hold its models to a schema."""

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the schema is sent as the response format."""
        return (
            self.provider in ("openai", "azure")
            and not any(params.get(name) for name in ("response_format", "tools", "functions"))
            and has_json_schema(self.model(params))
            and response_format(schema) is not None
        )

    def _arguments(self, request: CallRequest) -> dict[str, Any]:
        arguments = super()._arguments(request)
        if request.schema is not None and self.structured(request.schema, request.params):
            arguments["response_format"] = response_format(request.schema)
        return arguments


class EnforcementRunnable(Runnable[Any, Any]):
    """An engine as a step of a chain. Made by `as_runnable`.

    Takes what a chat model takes: a text, messages, or what a prompt template gives. Each run is one call of the
    engine: its session is that of the configuration (``configurable.session_id`` or ``thread_id``), else the engine's.

    Args:
        engine: The engine.
        schema: What the answers must fit.
        unwrap: Give the data itself, and raise what went wrong.
        params: Parameters of the model.
    """

    def __init__(self, engine: EnforcementEngine, schema: Any, *, unwrap: bool, params: dict[str, Any]) -> None:
        self.engine = engine
        self.schema = schema
        self.unwrap = unwrap
        self.params = params
        self.name = "EnforcementEngine"

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Ask until the answer fits.

        Returns:
            An `EnforcedOutput`; with ``unwrap``, its data.

        Raises:
            BrixConfigurationError: The input is no prompt, or a parameter does not exist.
            Exception: With ``unwrap``, why there is no data.
        """
        return self._call_with_config(cast(Any, self._run), input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As `invoke`, on the event loop."""
        return await self._acall_with_config(cast(Any, self._arun), input, config, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """The value as it grows, not validated, and last what `invoke` gives."""
        return self.transform(iter([input]), config, **kwargs)

    def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """As `stream`, on the event loop."""

        async def once() -> AsyncIterator[Any]:
            yield input

        return self.atransform(once(), config, **kwargs)

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """As `stream`, for an input that comes in chunks."""
        return self._transform_stream_with_config(input, cast(Any, self._pieces), config, **kwargs)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """As `transform`, on the event loop."""
        source = self._atransform_stream_with_config(input, cast(Any, self._apieces), config, **kwargs)
        async with aclosing(cast(Any, source)):
            async for piece in source:
                yield piece

    def _run(self, input: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        with _session(config):
            return self._given(self.engine.enforce_sync(self._prompt(input), self.schema, **{**self.params, **kwargs}))

    async def _arun(self, input: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        with _session(config):
            asked = self.engine.enforce(self._prompt(input), self.schema, **{**self.params, **kwargs})
            return self._given(await asked)

    def _pieces(self, chunks: Iterator[Any], config: RunnableConfig, **kwargs: Any) -> Iterator[Any]:
        stream = self._begun(reduce(add, chunks), config, kwargs)
        with closing(stream):
            for piece in stream:
                yield self._given(piece) if isinstance(piece, EnforcedOutput) else piece

    async def _apieces(self, chunks: AsyncIterator[Any], config: RunnableConfig, **kwargs: Any) -> AsyncIterator[Any]:
        stream = self._begun(reduce(add, [chunk async for chunk in chunks]), config, kwargs)
        async with aclosing(stream):
            async for piece in stream:
                yield self._given(piece) if isinstance(piece, EnforcedOutput) else piece

    def _begun(self, input: Any, config: RunnableConfig, kwargs: dict[str, Any]) -> Any:
        with _session(config):  # a stream belongs to the session in which it was asked for
            return self.engine.enforce_stream(self._prompt(input), self.schema, **{**self.params, **kwargs})

    def _prompt(self, input: Any) -> Any:
        if isinstance(self.engine.adapter, LangChainAdapter):
            return input if isinstance(input, str) else _messages(input)
        return input if isinstance(input, str) else [_as_dict(message) for message in _messages(input)]

    def _given(self, output: EnforcedOutput) -> Any:
        if not self.unwrap:
            return output
        if not output.success:
            raise output.error or BrixConfigurationError(
                "the engine gave no data and no reason; read its output instead"
            )
        return output.data


def as_runnable(engine: EnforcementEngine, schema: Any, *, unwrap: bool = False, **params: Any) -> EnforcementRunnable:
    """An engine as a runnable, for LangChain's expression language.

    Args:
        engine: The engine, over whatever adapter.
        schema: What the answers must fit, as the engine's validator takes it.
        unwrap: Give the data itself to the next step, and raise what went wrong; by default steps get an
            `EnforcedOutput`, and nothing is raised.
        **params: Parameters of the model for each call, such as ``temperature``.

    Raises:
        BrixConfigurationError: `engine` is no engine, `schema` is none that its validator takes, or `unwrap` no bool.
    """
    if not isinstance(engine, EnforcementEngine):
        raise BrixConfigurationError(
            f"as_runnable takes an EnforcementEngine, got {type(engine).__name__}: {engine!r:.200}"
        )
    engine.validator.compile(schema)  # refused now, and not by the first run
    return EnforcementRunnable(engine, schema, unwrap=flag("unwrap", unwrap), params=params)


def _messages(input: Any) -> list[BaseMessage]:
    """What a chat model takes, as messages."""
    if isinstance(input, PromptValue):
        return input.to_messages()
    if isinstance(input, BaseMessage):
        return [input]
    if isinstance(input, Iterable) and not isinstance(input, dict | bytes):
        return convert_to_messages(list(input))
    raise BrixConfigurationError(
        f"an enforcement engine takes a text, messages or a prompt, got {type(input).__name__}: {input!r:.200}; put a "
        "prompt template before it"
    )


def _as_dict(message: BaseMessage) -> dict[str, Any]:
    """A message in OpenAI's chat format."""
    return CODEC.to_dict(message)


@contextmanager
def _session(config: RunnableConfig) -> Iterator[None]:
    named = session_of(ensure_config(config))
    with nullcontext() if named is None else session(named):
        yield


__all__ = ["EnforcementRunnable", "LangChainAdapter", "as_runnable"]
