"""The guards of one LLM, as its surface drives them and as an application asks them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import aclosing, closing
from typing import Any, cast

from brix_core.call import CallResponse
from brix_core.pipeline import Pipeline
from brix_core.session import Session, current_session_id
from brix_llamaindex.endpoint import LLMEndpoint


class Guards:
    """The guards of one LLM: what they saw and what they keep. See `GuardedLLM.brix`.

    Args:
        pipeline: The guards.
        endpoint: The LLM behind them.

    Example:
        >>> import brix_core
        >>> from llama_index.core.llms import MockLLM
        >>> from brix_llamaindex import guard
        >>> llm = guard(MockLLM(), max_retries=2)
        >>> with brix_core.session("user-42"):
        ...     _ = llm.complete("Hello")
        ...     llm.brix.context.session_id
        'user-42'
        >>> llm.brix.guards, len(llm.brix.get_traces("user-42"))
        (('observability', 'retry'), 1)
    """

    def __init__(self, pipeline: Pipeline, endpoint: LLMEndpoint) -> None:
        self.pipeline = pipeline
        self.endpoint = endpoint

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the active guards, the outermost first."""
        return tuple(guard.name for guard in self.pipeline.guards)

    @property
    def context(self) -> Session:
        """The session that a call would belong to now."""
        return self.pipeline.session()

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of all calls, newest first.

        Args:
            session_id: Only those of this session.
        """
        return self.pipeline.traces.get_traces(session_id)

    def call(self, messages: Iterable[Any], params: Mapping[str, Any]) -> Any:
        """A blocking call."""
        return _delivered(self.pipeline.call(self.pipeline.request(self.endpoint, messages, params)))

    async def acall(self, messages: Iterable[Any], params: Mapping[str, Any]) -> Any:
        """A call on the event loop."""
        return _delivered(await self.pipeline.acall(self.pipeline.request(self.endpoint, messages, params)))

    def stream(self, messages: Iterable[Any], params: Mapping[str, Any]) -> Any:
        """A streamed call; it begins with its first chunk, in the session in which it was asked for."""
        # Both are fixed now: before the first chunk, the caller may change its list or leave the session.
        messages, session_id = list(messages), self._session_id()

        def chunks() -> Any:
            request = self.pipeline.request(self.endpoint, messages, params, stream=True, session_id=session_id)
            with closing(cast(Any, self.pipeline.stream(request))) as source:
                for chunk in source:
                    yield chunk.response

        return chunks()

    def astream(self, messages: Iterable[Any], params: Mapping[str, Any]) -> Any:
        """A streamed call on the event loop; otherwise as `stream`."""
        messages, session_id = list(messages), self._session_id()

        async def chunks() -> Any:
            request = self.pipeline.request(self.endpoint, messages, params, stream=True, session_id=session_id)
            async with aclosing(cast(Any, self.pipeline.astream(request))) as source:
                async for chunk in source:
                    yield chunk.response

        return chunks()

    def _session_id(self) -> str:
        return current_session_id() or self.pipeline.sessions.default_id


def _delivered(response: CallResponse) -> Any:
    raw = response.raw
    if response.partial:
        raw.additional_kwargs = {**raw.additional_kwargs, "finish_reason": response.finish_reason}
    return raw


__all__ = ["Guards"]
