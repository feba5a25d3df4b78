"""The guards of one LLM, as its surface drives them and as an application asks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, Final, cast

from brix_core.call import CallRequest, CallResponse
from brix_core.pipeline import Pipeline
from brix_core.session import Session, current_session_id
from brix_llamaindex.answers import fitted, is_parsed
from brix_llamaindex.asking import note_call
from brix_llamaindex.endpoint import LLMEndpoint
from brix_llamaindex.events import announced
from brix_llamaindex.limits import RunLimit, current_limit, nearer
from brix_llamaindex.response_metadata import ToldStream, told
from brix_llamaindex.tool_runs import model_asked

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

STATE: Final = "_brix"
"""The private attribute of a guarded LLM that holds its `Guards`."""


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
        self._schema: ResponseSchema | None = None

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the active guards, the outermost first."""
        return self.pipeline.names

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
        request = self._request(messages, params)
        with announced(request):
            return _delivered(request, self.pipeline.call(request))

    async def acall(self, messages: Iterable[Any], params: Mapping[str, Any]) -> Any:
        """A call on the event loop."""
        request = self._request(messages, params)
        with announced(request):
            return _delivered(request, await self.pipeline.acall(request))

    def stream(self, messages: Iterable[Any], params: Mapping[str, Any], schema: ResponseSchema | None = None) -> Any:
        """A streamed call; it begins with its first chunk, in the session and run in which it was asked for.

        Args:
            messages: The prompt.
            params: The LLM's own.
            schema: What the answer must fit; the option ``response_schema`` when left out.
        """
        begin = self._later(messages, params, schema)

        def chunks() -> Any:
            request = begin()
            told_stream = ToldStream(request)
            with announced(request), closing(cast(Any, self.pipeline.stream(request))) as source:
                for chunk in source:
                    yield from told_stream.given(chunk)
            yield from told_stream.rest()

        return chunks()

    def astream(self, messages: Iterable[Any], params: Mapping[str, Any], schema: ResponseSchema | None = None) -> Any:
        """A streamed call on the event loop; otherwise as `stream`."""
        begin = self._later(messages, params, schema)

        async def chunks() -> Any:
            request = begin()
            told_stream = ToldStream(request)
            with announced(request):
                async with aclosing(cast(Any, self.pipeline.astream(request))) as source:
                    async for chunk in source:
                        for response in told_stream.given(chunk):
                            yield response
            for response in told_stream.rest():
                yield response

        return chunks()

    def _request(self, messages: Iterable[Any], params: Mapping[str, Any]) -> CallRequest:
        return self._begun(self.pipeline.request(self.endpoint, messages, params, schema=self._schema), current_limit())

    def _later(
        self, messages: Iterable[Any], params: Mapping[str, Any], schema: ResponseSchema | None
    ) -> Callable[[], CallRequest]:
        """Begin a stream of what is asked now: until then, the caller may change its list or leave the session."""
        messages, limit = list(messages), current_limit()
        session_id = current_session_id() or self.pipeline.sessions.default_id

        def begin() -> CallRequest:
            request = self.pipeline.request(
                self.endpoint, messages, params, stream=True, session_id=session_id, schema=schema or self._schema
            )
            return self._begun(request, nearer(limit, current_limit()))

        return begin

    def _begun(self, request: CallRequest, limit: RunLimit | None) -> CallRequest:
        """The request, to be over when the run around it must be."""
        model_asked()
        note_call(request.call)
        return request if limit is None else request.evolve(deadline=limit.deadline_by(self.pipeline.clock))


def _delivered(request: CallRequest, response: CallResponse) -> Any:
    raw = response.raw
    if is_parsed(request):
        return told(fitted(raw, request), request)
    if response.partial:
        raw.additional_kwargs = {**raw.additional_kwargs, "finish_reason": response.finish_reason}
    return told(raw, request)


__all__ = ["STATE", "Guards"]
