"""BrixCallbackHandler: the guards by callbacks alone, for chains, agents and graphs whose models nobody can wrap."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Unpack, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk, GenerationChunk, LLMResult

from brix_core import checks
from brix_core.call import CallRequest, CallResponse
from brix_core.drivers.stepwise import Stepwise
from brix_core.errors import BrixConfigurationError, BrixError, BrixRunLimitError
from brix_core.flow import Flow, compose
from brix_core.looping.steps import Taken
from brix_core.options import GuardOptions
from brix_core.pipeline import Pipeline
from brix_langchain.callback_options import parse_for_callbacks
from brix_langchain.called_model import (
    CalledModel,
    answer_of,
    billed,
    billed_in,
    has_cleared_results,
    is_from_cache,
)
from brix_langchain.open_calls import OpenCall, OpenCalls, withdraw
from brix_langchain.outermost import OutermostRun, Runs, running_task, tool_use
from brix_langchain.reading import added, usage_of
from brix_langchain.refusals import final_in_graph
from brix_langchain.sessions import is_told_by_nobody, session_told
from brix_langchain.telling import TellsOfItsGuards

log = logging.getLogger(__name__)


class _FromCacheError(Exception):
    """The answer came from LangChain's cache: what the guards held is free again."""

    def __init__(self, response: CallResponse) -> None:
        super().__init__("answered from the cache")
        self.response = response


class BrixCallbackHandler(TellsOfItsGuards, BaseCallbackHandler):
    """Guards every model and tool call of whatever it is attached to: ``config={"callbacks": [handler]}``.

    A refused call is blocked before its request leaves, in `invoke` as in `ainvoke`, in chains, agents and graphs; a
    stream is stopped at the cap. One handler serves any number of runs at a time.

    The session of a call is that of `brix_langchain.guard` (``configurable.session_id``, ``with session(...)``,
    ``configurable.thread_id``), as the run around the model tells it; to a model that is called by itself, LangChain
    passes on only ``metadata``, so ``metadata["session_id"]`` and ``["thread_id"]`` are read there. The same goes for
    chains in a ``batch`` or ``abatch`` of two inputs and more, and for LangChain's older chains and agents: they keep
    ``configurable`` to themselves. Name the session in the metadata, ``{"callbacks": [handler], "metadata":
    {"session_id": "user-42"}}``, or use ``guard(chain, ...)``, whose batches know. A call whose session could not be
    told is charged to the handler's own, which is logged, once.

    Weaker than ``guard(model)``, since callbacks can neither delay a call, nor change it, nor make it again:

    * The output cap is never lowered: a call whose worst case does not fit is refused. A model whose output nothing
      bounds (no ``max_tokens``, and no limit we know) is refused under a budget. Where several caps are named, the
      highest is reserved.
    * Retries inside a model are invisible: ``ChatOpenAI()`` and ``ChatAnthropic()`` send a request up to three times.
      Under a budget such a model is refused: make it with ``max_retries=0``. Of a class that does not describe its
      ``max_retries``, nothing can be known.
    * ``total_timeout`` and ``per_step_timeout`` are checked when a model call starts, the former also at each chunk of
      a stream. A call that hangs is not interrupted.
    * A store that blocks, and a semantic loop search, block the event loop for as long as they take.
    * Whatever LangChain never tells the end of (an `ainvoke` that was cancelled) is settled at its worst case when its
      task or its outermost run ends.

    A handler keeps books of its own unless it is given a `store`: a model made by `guard` may be called under it, each
    charges the call to its own account. (With one store and one session for both, such a call is charged twice.)

    Args:
        max_calls_per_run: Model calls of one outermost run. One call of a model that retries by itself is one, however
            many requests it sends.
        max_tool_calls_per_run: Tool calls of one outermost run.
        **options: Those of `brix_core.GuardOptions` for budget, loops (``on_loop="raise"``), circuit breaker, traces,
            ``per_step_timeout`` and ``total_timeout``. With ``tool_loop_detection=True``, tools are watched as well as
            conversations: one that came to the same result ``exact_loop_threshold`` times, with nothing new from any
            tool in between, is not run again in this run.

    Raises:
        BrixConfigurationError: An option that callbacks cannot keep, or a bad value.

    Example:
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> handler = BrixCallbackHandler(max_calls_per_run=20, total_timeout=60)
        >>> FakeListChatModel(responses=["Paris"]).invoke("Capital of France?", {"callbacks": [handler]}).content
        'Paris'
        >>> handler.get_traces()[0]["outcome"]
        'ok'
    """

    raise_error = True
    run_inline = True

    def __init__(
        self,
        *,
        max_calls_per_run: int | None = None,
        max_tool_calls_per_run: int | None = None,
        **options: Unpack[GuardOptions],
    ) -> None:
        self._max_calls = _limit("max_calls_per_run", max_calls_per_run)
        self._max_tool_calls = _limit("max_tool_calls_per_run", max_tool_calls_per_run)
        parsed = parse_for_callbacks(options)
        budget, loop = parsed.configs.get("budget"), parsed.configs.get("loop")
        self._strict = budget is not None and budget.budget_strategy == "block"
        self._tool_threshold = loop.exact_loop_threshold if loop is not None and loop.tool_loop_detection else None
        self._pipeline = Pipeline(parsed)
        self._guarded = compose([guard for guard in self._pipeline.guards if guard is not self._pipeline.traces])
        self._said_so = "session_id" in options or "budget" not in self._pipeline.names
        self._open = OpenCalls()
        self._runs = Runs()

    def __deepcopy__(self, memo: dict[int, Any]) -> BrixCallbackHandler:
        """Itself: what it counts is one, however often the model or the configuration it is attached to is copied."""
        return self

    # Model calls

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse the call, or let it go."""
        self._begin(serialized, messages[0], run_id, parent_run_id, chat=True, **kwargs)

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse the call, or let it go."""
        self._begin(serialized, [HumanMessage(prompts[0])], run_id, parent_run_id, chat=False, **kwargs)

    def on_llm_new_token(
        self,
        token: str | list[str | dict[str, Any]],
        *,
        chunk: GenerationChunk | ChatGenerationChunk | None = None,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """Meter a stream; stop it at the cap."""
        call = self._open.get(run_id)
        if call is None:
            return
        call.streams = True
        reported = getattr(getattr(chunk, "message", None), "usage_metadata", None)
        if reported:
            call.usage = added(call.usage, usage_of(reported))
        if text := billed(token, chunk):
            call.step.chunk(text)

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Meter a stream of ``stream_events(version="v3")`` whose chunks we are not told of."""
        call = self._open.get(run_id)
        if call is not None and not call.streams and (text := billed_in(event)):
            call.step.chunk(text)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Settle the call."""
        call = self._open.take(run_id)
        if call is None:
            return
        answer = answer_of(response, call.model, call.usage)
        if not call.streams and is_from_cache(response):
            call.step.withdraw(_FromCacheError(answer))
        else:
            call.step.finish(answer)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Settle the call; an early-closed stream ends here, too."""
        call = self._open.take(run_id)
        if call is not None:
            call.fail(error)
            self._open.batch_failed(call)

    # Tools

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse a tool call, or let it go."""
        use = tool_use(serialized, input_str, inputs, kwargs.get("name"))
        self._runs.begin_tool(run_id, parent_run_id, use, threshold=self._tool_threshold, limit=self._max_tool_calls)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Remember what the tool came to."""
        self._runs.end_tool(run_id, str(getattr(output, "content", output)))
        self._left(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Remember how the tool failed."""
        self._runs.end_tool(run_id, repr(error))
        self._left(run_id, error)

    # Whatever else runs, to know what belongs to which

    def on_chain_start(self, *args: Any, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        """A run has begun."""
        run = self._runs.enter(run_id, parent_run_id)
        if run.session_id is None:
            with suppress(BrixConfigurationError):  # no session's name: the first call of a model says so
                run.session_id = session_told(kwargs.get("metadata"))

    def on_chain_end(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        """A run has ended."""
        self._left(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A run has failed."""
        self._left(run_id, error)

    on_retriever_start = on_chain_start
    on_retriever_end = on_chain_end
    on_retriever_error = on_chain_error

    def _begin(
        self,
        serialized: dict[str, Any] | None,
        messages: list[BaseMessage],
        run_id: UUID,
        parent_run_id: UUID | None,
        *,
        chat: bool,
        metadata: dict[str, Any] | None = None,
        invocation_params: Mapping[str, Any] | None = None,
        batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        params = invocation_params or {}
        batch = invocation_params if batch_size > 1 else None
        model = CalledModel(serialized or {}, params, metadata or {}, strict=self._strict)
        run = self._runs.of(run_id, parent_run_id)
        try:
            named = self._session(run, parent_run_id, metadata)
            request = self._pipeline.request(model, messages, params, session_id=named)
            request.call.run_id = request.session.run_id = str(run_id)
            if self._tool_threshold is not None and has_cleared_results(messages):
                # They would look like equal ones. The tools of the run are watched themselves.
                request = request.evolve(taken=Taken(str(run.run_id), ()))
            step = Stepwise(self._pipeline.traces.flow(request, self._watched), self._pipeline.clock)
            step.begin()
            try:
                run.count("model", self._max_calls, "max_calls_per_run")
            except BrixRunLimitError as error:
                step.withdraw(error)
        except Exception as error:
            withdraw(run_id, batch, error)
            if isinstance(error, BrixError):
                final_in_graph(error)
            raise
        # A string model's `agenerate` tells of beginnings in tasks of their own, which do not make the call.
        task = running_task() if chat else None
        self._open.add(run_id, OpenCall(step=step, model=request.model, run=run, batch=batch, chat=chat, task=task))

    def _watched(self, request: CallRequest) -> Flow:
        """The guards below the trace. Whether it will be a stream nobody can tell: they are ready for one."""
        try:
            cast(CalledModel, request.endpoint).refuse_own_retries()
            return (yield from self._guarded(request.evolve(stream=True)))
        except _FromCacheError as cached:
            request.call.decide("observability", "from_cache")
            return cached.response

    def _session(self, run: OutermostRun, parent: UUID | None, metadata: dict[str, Any] | None) -> str | None:
        """Whose call it is, as the run around the model tells it, or else any other in the same outermost run."""
        named = session_told(metadata)
        if named is not None or parent is None or not is_told_by_nobody():
            return named
        if run.session_id is None and not self._said_so:
            self._said_so = True
            log.warning(
                "LangChain did not tell %s whose call this is: a batch keeps its `configurable` to itself, as older "
                "chains do. It is charged to the session %r. Name the session in the metadata, "
                'config={"metadata": {"session_id": ...}}, or use guard(chain, ...); where all calls are of one '
                "session, make the handler with session_id=...",
                type(self).__name__, self._pipeline.sessions.default_id,
            )  # fmt: skip
        return run.session_id

    def _left(self, run_id: UUID, error: BaseException | None = None) -> None:
        """A run has ended."""
        run = self._runs.leave(run_id)
        if run is not None and self._open:
            self._open.run_ended(run, error)


def _limit(name: str, value: int | None) -> int | None:
    return None if value is None else checks.whole(name, value, 1)


__all__ = ["BrixCallbackHandler"]
