"""Structured prediction behind the guards: the LLM's own way to an instance, healed by the schema guard.

`structured_predict` and its kin run the LLM's own program (a response format, a function call or instructions in the
prompt, whichever its ``pydantic_program_mode`` says) on a twin of the guarded LLM, whose guards know the schema. So
whatever the program asks is validated, repaired and healed before the program reads it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.output_parsers.pydantic import PydanticOutputParser
from llama_index.core.program.utils import FlexibleModel
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.types import Model

from brix_core.call import CallRequest
from brix_core.errors import BrixConfigurationError
from brix_core.structured.response_schema import ResponseSchema
from brix_llamaindex.answers import instance_of, is_parsed
from brix_llamaindex.caps import class_names
from brix_llamaindex.faces import face
from brix_llamaindex.guards import STATE, Guards
from brix_llamaindex.limits import RunLimit, RunScope
from brix_llamaindex.structured_llm import structured_llm

_PAST_HOOKS: Final = frozenset(
    {
        "llama_index.llms.google_genai.base.GoogleGenAI",
        "llama_index.llms.openai.responses.OpenAIResponses",
    }
)
"""Classes whose own structured prediction calls the SDK and none of the hooks; LlamaIndex's general one is used."""

# For type checkers a guarded LLM is an LLM. At run time the class made by `guard` adds the LLM's own class,
# and `DispatcherSpanMixin` would open a second span for each method if these were defined in an LLM class.
if TYPE_CHECKING:
    _LLM = LLM
else:
    _LLM = object


class StructuredPrediction(_LLM):
    """The four ways to an instance, for `GuardedLLM`; `as_structured_llm` and agents with an ``output_cls`` go them."""

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Ask for an instance, in the LLM's own way.

        Args:
            output_cls: A Pydantic model.
            prompt: What to ask.
            llm_kwargs: Parameters of the LLM.
            **prompt_args: What to fill into the prompt.

        Raises:
            BrixSchemaError: No answer held one, heals included.
        """
        guards, predict = self._for_program("structured_predict", output_cls, prompt)
        try:
            result = predict(llm_kwargs=dict(llm_kwargs or {}), **prompt_args)
        except (TypeError, ValueError):
            if not guards.is_parsed:
                raise
            result = None  # valid all the same
        return cast(Model, guards.outcome(result))

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """As `structured_predict`, on the event loop."""
        guards, predict = self._for_program("astructured_predict", output_cls, prompt)
        try:
            result = await predict(llm_kwargs=dict(llm_kwargs or {}), **prompt_args)
        except (TypeError, ValueError):
            if not guards.is_parsed:
                raise
            result = None
        return cast(Model, guards.outcome(result))

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | FlexibleModel, None, None]:
        """Objects as they grow, not validated, and last the valid instance. Otherwise as `structured_predict`."""
        guards, predict = self._for_program("stream_structured_predict", output_cls, prompt)
        return guards.objects(predict(llm_kwargs=dict(llm_kwargs or {}), **prompt_args))

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """As `stream_structured_predict`, on the event loop."""
        guards, predict = self._for_program("astream_structured_predict", output_cls, prompt)
        return guards.aobjects(await predict(llm_kwargs=dict(llm_kwargs or {}), **prompt_args))

    def as_structured_llm(self, output_cls: type[Any], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers are instances, JSON as texts; streamed, its calls belong to where they were asked for.

        Args:
            output_cls: A Pydantic model.
            **kwargs: Fields of LlamaIndex's `StructuredLLM`.
        """
        return structured_llm(cast(Any, self), output_cls, **kwargs)

    def _for_program(self, name: str, output_cls: type[Model], prompt: PromptTemplate) -> tuple[_ProgramGuards, Any]:
        """Guards that know the schema, and the LLM's own method on a twin behind them, asked for an instance.

        The prompt is copied, because LlamaIndex's program for texts leaves its parser in it.
        """
        twin: LLM = face(self, type(self))
        guards = _ProgramGuards(cast(Any, self).brix, output_cls)
        object.__setattr__(twin, "__pydantic_private__", {**(self.__pydantic_private__ or {}), STATE: guards})
        past = not _PAST_HOOKS.isdisjoint(class_names(self))
        method = partial(getattr(LLM, name), twin) if past else getattr(super(StructuredPrediction, twin), name)
        own = prompt.model_copy() if isinstance(prompt, BasePromptTemplate) else prompt
        return guards, partial(method, output_cls, own)


class _ProgramGuards(Guards):
    """The guards of an LLM, for the calls of one program.

    Args:
        guards: Those of the LLM.
        output_cls: What its answers must be.
    """

    def __init__(self, guards: Guards, output_cls: type[Any]) -> None:
        super().__init__(guards.pipeline, guards.endpoint)
        self._schema = _schema_of(output_cls)
        self._scope = RunScope.here(self.pipeline.sessions.default_id)
        self._latest: CallRequest | None = None
        self._stream: Any = None

    def astream(self, messages: Iterable[Any], params: Mapping[str, Any], schema: ResponseSchema | None = None) -> Any:
        """As `Guards.astream`; programs leave it open when they are closed."""
        self._stream = super().astream(messages, params, schema)
        return self._stream

    def _begun(self, request: CallRequest, limit: RunLimit | None) -> CallRequest:
        if not request.params.get("tools"):  # OpenAI's class sets it all the same, which the API refuses
            params = {name: value for name, value in request.params.items() if name != "tool_choice"}
            request = request.evolve(params=params)
        self._latest = super()._begun(request, limit)
        return self._latest

    @property
    def is_parsed(self) -> bool:
        """Whether the latest answer is a valid instance."""
        return self._latest is not None and is_parsed(self._latest)

    def outcome(self, result: Any = None) -> Any:
        """What the program gave, or the instance when it could not read that.

        Raises:
            BrixConfigurationError: The program has asked someone else.
        """
        if self._latest is None:
            raise BrixConfigurationError(
                f"structured prediction of {type(self.endpoint.llm).__name__} called none of its chat and complete "
                "methods, so it went past the guards; use guard(llm, response_schema=...).chat instead"
            )
        return instance_of(self._latest) if result is None else result

    def objects(self, source: Any) -> Generator[Any, None, None]:
        """The objects of a program's stream, and last the instance."""
        last = None
        with closing(self._scope.steps(source)) as given:  # the call begins with the first object
            for last in given:
                yield last
        instance = self.outcome() if self.is_parsed else self.outcome(last)
        if instance != last:
            yield instance

    async def aobjects(self, source: Any) -> AsyncGenerator[Any, None]:
        """As `objects`, on the event loop."""
        last = None
        try:
            async with aclosing(self._scope.asteps(source)) as given:
                async for last in given:
                    yield last
        finally:
            if self._stream is not None:
                await self._stream.aclose()
        instance = self.outcome() if self.is_parsed else self.outcome(last)
        if instance != last:
            yield instance


def _schema_of(output_cls: type[Any]) -> ResponseSchema:
    """The schema by the name of LlamaIndex's tool for it, in the words in which a program writes it into a prompt."""
    schema = ResponseSchema.of(output_cls)
    schema.name = schema.json_schema.get("title", output_cls.__name__)
    schema.instructions = PydanticOutputParser(output_cls).format("").strip()
    return schema


__all__ = ["StructuredPrediction"]
