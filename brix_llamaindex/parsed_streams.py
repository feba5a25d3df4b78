"""Streams of a guarded LLM that has an output parser, where LlamaIndex has none: the schema guard reads the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import LLM
from llama_index.core.llms.llm import (
    astream_chat_response_to_tokens,
    astream_completion_response_to_tokens,
    stream_chat_response_to_tokens,
    stream_completion_response_to_tokens,
)
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import TokenAsyncGen, TokenGen

from brix_core.structured.response_schema import ResponseSchema
from brix_llamaindex.guards import Guards
from brix_llamaindex.messages import Prompt
from brix_llamaindex.output_parser import BrixOutputParser

# As in `brix_llamaindex.structured`: a plain class, whose methods open no second span.
if TYPE_CHECKING:
    _LLM = LLM
else:
    _LLM = object


class ParsedStreams(_LLM):
    """`stream` and `astream` for `GuardedLLM`, with a `BrixOutputParser` of the LLM or the prompt, too."""

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """Stream the answer to a prompt.

        Raises:
            NotImplementedError: There is an output parser, and it is none of ours.
        """
        schema = self._brix_schema(prompt)
        if schema is None:
            return super().stream(prompt, **prompt_args)
        asked, params = self._brix_asked(prompt, prompt_args)
        chunks = self._brix_guards.stream(asked, params, schema)
        return (stream_completion_response_to_tokens if params else stream_chat_response_to_tokens)(chunks)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """Stream the answer to a prompt, on the event loop.

        Raises:
            NotImplementedError: There is an output parser, and it is none of ours.
        """
        schema = self._brix_schema(prompt)
        if schema is None:
            return await super().astream(prompt, **prompt_args)
        asked, params = self._brix_asked(prompt, prompt_args)
        chunks = self._brix_guards.astream(asked, params, schema)
        return await (astream_completion_response_to_tokens if params else astream_chat_response_to_tokens)(chunks)

    @property
    def _brix_guards(self) -> Guards:
        return cast(Guards, cast(Any, self).brix)

    def _brix_schema(self, prompt: BasePromptTemplate) -> ResponseSchema | None:
        """That of the parsers, when all there are are ours."""
        parsers = [parser for parser in (self.output_parser, prompt.output_parser) if parser is not None]
        ours = [parser.schema for parser in parsers if isinstance(parser, BrixOutputParser)]
        return ours[0] if ours and len(ours) == len(parsers) else None

    def _brix_asked(
        self, prompt: BasePromptTemplate, prompt_args: dict[str, Any]
    ) -> tuple[list[ChatMessage] | list[Prompt], dict[str, Any]]:
        """What to ask, and its parameters; the schema guard adds the instructions, where the model needs them."""
        self._log_template_data(prompt, **prompt_args)
        plain = prompt.model_copy(update={"output_parser": None})
        if self.metadata.is_chat_model:
            return self._extend_messages(plain.format_messages(llm=self, **prompt_args)), {}
        text = plain.format(
            llm=self,
            messages_to_prompt=self.messages_to_prompt,
            completion_to_prompt=self.completion_to_prompt,
            **prompt_args,
        )
        return [Prompt(self._extend_prompt(text))], {"formatted": True}


__all__ = ["ParsedStreams"]
