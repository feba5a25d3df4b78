"""The enforcement engine and LlamaIndex: any LLM as an adapter, and an engine as a program.

Example:
    >>> from brix_core.enforcement import EnforcementEngine, PydanticValidator
    >>> from llama_index.core.llms import MockLLM
    >>> from pydantic import BaseModel
    >>> class City(BaseModel):
    ...     name: str
    >>> engine = EnforcementEngine(LlamaIndexAdapter(MockLLM()), PydanticValidator(), max_retries=0)
    >>> program = EnforcementProgram(engine, City, "Which city? {text}")
    >>> program(text='{"name": "Bergen"}')
    City(name='Bergen')
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any, Generic, TypeVar, cast

from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.types import BasePydanticProgram
from pydantic import BaseModel

from brix_core.enforcement import EnforcedOutput, EnforcementEngine
from brix_core.enforcement.adapters.base import BaseLLMAdapter, Prompt
from brix_core.enforcement.adapters.health import probe, probed
from brix_core.errors import BrixConfigurationError, BrixSchemaError, SchemaAttempt
from brix_core.structured.response_schema import ResponseSchema, SchemaMismatch
from brix_llamaindex.endpoint import LLMEndpoint
from brix_llamaindex.faces import private_copy
from brix_llamaindex.llm import GuardedLLM
from brix_llamaindex.messages import CODEC

M = TypeVar("M", bound=BaseModel)


class LlamaIndexAdapter(BaseLLMAdapter):
    """Any LlamaIndex LLM, for an `EnforcementEngine`.

    It works on a copy of the LLM whose own retries are off: retries are the engine's. Its connections stay its owner's.

    Args:
        llm: The LLM, not guarded: the engine has guards of its own.

    Raises:
        BrixConfigurationError: It is no LLM, or guarded already.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> LlamaIndexAdapter(MockLLM(max_tokens=2)).generate_sync("Hello").output
        'text text'
    """

    def __init__(self, llm: LLM) -> None:
        if isinstance(llm, GuardedLLM):
            raise BrixConfigurationError(
                "LlamaIndexAdapter got an LLM that is guarded already; give the LLM itself, and the options to the "
                "engine"
            )
        if not isinstance(llm, LLM):
            raise BrixConfigurationError(
                f"LlamaIndexAdapter takes a LlamaIndex LLM, got {type(llm).__name__}: {llm!r:.200}"
            )
        self._llm_endpoint = LLMEndpoint(private_copy(llm, advise=False))
        super().__init__(self._llm_endpoint.model({}))
        self.provider = self._llm_endpoint.provider or type(llm).__name__

    def messages(self, prompt: Prompt) -> list[Any]:
        """The prompt as LlamaIndex's messages; dicts with a role and a content are converted."""
        return [_message(message) for message in super().messages(prompt)]

    def text_of(self, chunk: Any) -> str:
        """The text that is new in a chunk, be it of another adapter of a chain."""
        delta = getattr(getattr(chunk, "response", None), "delta", None)
        return delta if isinstance(delta, str) else str(chunk.text)

    def _endpoint(self) -> LLMEndpoint:
        return self._llm_endpoint

    async def _aprobe(self, timeout: float) -> None:
        await probed(self._llm_endpoint.llm, timeout)

    def _probe(self, timeout: float) -> None:
        probe(self._llm_endpoint.llm, timeout)


class EnforcementProgram(BasePydanticProgram[M], Generic[M]):
    """An engine as a LlamaIndex program: a prompt's variables in, an instance out.

    Args:
        engine: The engine, over whatever adapter.
        output_cls: A Pydantic model.
        prompt_template_str: The prompt, or a prompt template.
        **llm_kwargs: Parameters of the model for each call, such as ``temperature``.

    Raises:
        BrixConfigurationError: `engine` is no engine, `output_cls` no Pydantic model, or the prompt no prompt.
    """

    def __init__(
        self,
        engine: EnforcementEngine,
        output_cls: type[M],
        prompt_template_str: str | BasePromptTemplate,
        **llm_kwargs: Any,
    ) -> None:
        if not isinstance(engine, EnforcementEngine):
            raise BrixConfigurationError(f"engine must be an EnforcementEngine, got {engine!r:.200}")
        if not isinstance(output_cls, type) or not issubclass(output_cls, BaseModel):
            raise BrixConfigurationError(f"output_cls must be a Pydantic model, got {output_cls!r:.200}")
        template = prompt_template_str
        if not isinstance(template, str | BasePromptTemplate):
            raise BrixConfigurationError(
                "prompt_template_str must be a str such as 'Which city? {text}', or a prompt template, got "
                f"{template!r:.200}"
            )
        self.engine = engine
        self._schema = ResponseSchema.of(output_cls)
        self.prompt = PromptTemplate(template) if isinstance(template, str) else template
        self._output_cls = output_cls
        self._llm_kwargs = llm_kwargs

    @property
    def output_cls(self) -> type[M]:
        """What its outputs are instances of."""
        return self._output_cls

    def __call__(self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> M:
        """Ask until the answer fits.

        Args:
            *args: None are taken.
            llm_kwargs: Parameters of the model for this call.
            **kwargs: What to fill into the prompt.

        Raises:
            Exception: Why there is no instance: `BrixSchemaError`, a guard's refusal, or what the provider raised.
        """
        return self._instance(
            self.engine.enforce_sync(self._asked(kwargs), self._output_cls, **self._params(llm_kwargs))
        )

    async def acall(self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> M:
        """As a call, on the event loop."""
        output = await self.engine.enforce(self._asked(kwargs), self._output_cls, **self._params(llm_kwargs))
        return self._instance(output)

    def stream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Generator[Any, None, None]:
        """The object as it grows, as dicts that are not validated, and last the instance."""
        stream = self.engine.enforce_stream(self._asked(kwargs), self._output_cls, **self._params(llm_kwargs))

        def pieces() -> Generator[Any, None, None]:
            with closing(stream):
                for piece in stream:
                    yield self._instance(piece) if isinstance(piece, EnforcedOutput) else piece

        return pieces()

    async def astream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """As `stream_call`, on the event loop."""
        stream = self.engine.enforce_stream(self._asked(kwargs), self._output_cls, **self._params(llm_kwargs))

        async def pieces() -> AsyncGenerator[Any, None]:
            async with aclosing(stream):
                async for piece in stream:
                    yield self._instance(piece) if isinstance(piece, EnforcedOutput) else piece

        return pieces()

    def _params(self, given: dict[str, Any] | None) -> dict[str, Any]:
        return {**self._llm_kwargs, **(given or {})}

    def _asked(self, values: dict[str, Any]) -> Any:
        messages = self.prompt.format_messages(**values)
        if isinstance(self.engine.adapter, LlamaIndexAdapter):
            return messages
        return [CODEC.to_dict(message) for message in messages]

    def _instance(self, output: EnforcedOutput) -> M:
        if output.success:
            return self._made_of(output)
        raise output.error or BrixConfigurationError(
            "the engine gave no instance and no reason; use its output instead"
        )

    def _made_of(self, output: EnforcedOutput) -> M:
        """The instance; of JSON, which is all that a `JSONValidator` gives, it is made."""
        try:
            return cast(M, self._schema.validate(output.data))
        except SchemaMismatch as mismatch:
            problems = tuple((problem.path, problem.message) for problem in mismatch.problems)
            raise BrixSchemaError(
                f"the engine's validator took the answer, but {self._schema.name} does not: {mismatch!s:.500}; give "
                "the engine a PydanticValidator(), and such answers are asked for again",
                attempts=(SchemaAttempt(output.generation.output, problems),),
                schema_name=self._schema.name,
            ) from mismatch


def _message(message: Any) -> Any:
    if isinstance(message, dict):
        try:
            return ChatMessage(**message)
        except (TypeError, ValueError) as error:
            raise BrixConfigurationError(f"{message!r:.80} is no message: {error}") from error
    if isinstance(message, str):
        raise BrixConfigurationError(f"a list holds messages, got the str {message!r:.80}; give the text itself")
    if not isinstance(message, ChatMessage):
        raise BrixConfigurationError(f"a list holds messages, got {message!r:.80}; give ChatMessage(...) or dicts")
    return message


__all__ = ["EnforcementProgram", "LlamaIndexAdapter"]
