"""LlamaIndex's `StructuredLLM` around a guarded LLM.

Its streams ask the LLM when they are first read; here, the session and the run in which they were asked for count.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponseAsyncGen, ChatResponseGen
from llama_index.core.llms.structured_llm import StructuredLLM

from brix_core.errors import BrixConfigurationError
from brix_llamaindex.limits import RunScope

if TYPE_CHECKING:
    from brix_llamaindex.llm import GuardedLLM

# As in `brix_llamaindex.structured`: a plain class, whose methods open no second span.
if TYPE_CHECKING:
    _Structured = StructuredLLM
else:
    _Structured = object


class BoundStreams(_Structured):
    """The streams, and what cannot be pickled."""

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Chat, streamed: objects as they grow, and last the valid instance."""
        return self._brix_scope.steps(super().stream_chat(list(messages), **kwargs))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`, on the event loop."""
        return self._brix_scope.asteps(await super().astream_chat(list(messages), **kwargs))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Not to be pickled, as the guarded LLM in it.

        Raises:
            BrixConfigurationError: Always.
        """
        raise BrixConfigurationError(
            "a guarded LLM cannot be pickled, nor what as_structured_llm makes of it: its budget, limits and traces "
            "belong to this process. Pickle the LLM, and call guard(llm, ...).as_structured_llm(...) where it is loaded"
        )

    @property
    def _brix_scope(self) -> RunScope:
        return RunScope.here(cast("GuardedLLM", self.llm).brix.pipeline.sessions.default_id)


def structured_llm(llm: GuardedLLM, output_cls: type[Any], **kwargs: Any) -> StructuredLLM:
    """A `StructuredLLM` around a guarded LLM.

    Args:
        llm: The guarded LLM.
        output_cls: A Pydantic model.
        **kwargs: Further fields.
    """
    made: StructuredLLM = _bound_class()(llm=llm, output_cls=output_cls, **kwargs)
    return made


@cache
def _bound_class() -> Any:
    namespace = {"__module__": __name__, "__doc__": StructuredLLM.__doc__}
    bases = (BoundStreams, StructuredLLM)
    return types.new_class("GuardedStructuredLLM", bases, exec_body=lambda own: own.update(namespace))


__all__ = ["BoundStreams", "structured_llm"]
