"""Structured output behind the guards: bound in the provider's own way, healed by the schema guard, read by ours.

``guarded.with_structured_output(schema)`` asks the wrapped model how it binds the schema, and binds the same to the
guarded one. Where a model cannot bind (fakes, older integrations), the schema guard writes the schema into the prompt.
The schema travels with each call, so that the guard validates, mends and heals; the last step of the chain reads the
instance out of the message again, which also serves answers from LangChain's cache.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import (
    AddableDict,
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableSequence,
    RunnableSerializable,
)
from langchain_core.runnables.config import patch_config
from langchain_core.utils.function_calling import convert_to_openai_function
from pydantic import BaseModel
from typing_extensions import is_typeddict, override

from brix_core.call import LogicalCall
from brix_core.endpoints.structured import response_format
from brix_core.errors import BrixConfigurationError, BrixSchemaError
from brix_core.guards.schema import REJECTED
from brix_core.response_schema import ResponseSchema, SchemaMismatch
from brix_core.session import Session
from brix_core.turns import text_of
from brix_langchain.binding import bound_arguments, not_found, rebind
from brix_langchain.output_parser import BrixOutputParser, _Growing
from brix_langchain.reading import tool_calls_of
from brix_langchain.refusals import RefusalsAreFinal

if TYPE_CHECKING:
    from brix_langchain.chat_model import GuardedChatModel

SCHEMA: Final = "_brix_schema"
"""How a binding tells the hooks what the answer must fit: `Asked`. Taken out wherever LangChain hands arguments on."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer must fit, and the calls that were made for it."""

    schema: ResponseSchema
    calls: list[LogicalCall] | None = None

    @property
    def digest(self) -> str:
        """Tells schemas apart in a cache: prompt and parameters of ``json_mode`` do not."""
        return digest(self.schema)


def digest(schema: ResponseSchema) -> str:
    """A schema's part in a cache key."""
    return sha256(json.dumps([schema.name, schema.json_schema], sort_keys=True, default=str).encode()).hexdigest()
