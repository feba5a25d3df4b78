"""Guarded query engines, chat engines and agents: copies whose LLMs are guarded, and whose runs are limited.

As with LLMs, the result is an object of a subclass of the object's own class. Its public methods hold the time limit
of the whole run around those of the class; the LLMs inside keep to it, and to everything else, by their guards.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self, cast

from llama_index.core.agent.workflow import AgentWorkflow, BaseWorkflowAgent
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import (
    AGENT_CHAT_RESPONSE_TYPE,
    BaseChatEngine,
    StreamingAgentChatResponse,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType
from llama_index.core.tools import ToolOutput
from llama_index.core.workflow.handler import WorkflowHandler  # type: ignore[attr-defined]

from brix_core import checks
from brix_core.errors import BrixConfigurationError
from brix_core.options import GuardOptions
from brix_llamaindex.copies import SharedCopies
from brix_llamaindex.guards import Guards
from brix_llamaindex.limits import RunLimit, RunScope, current_limit, run_limit, within
from brix_llamaindex.llm import GuardedLLM, guarded_llms, joined
from brix_llamaindex.wiring import Wiring, log

GRACE: Final = 1.0
"""Seconds after the time limit of an agent's run when its workflow is stopped, if nothing has stopped it before."""

# As in `brix_llamaindex.llm`: plain classes, whose methods open no second span.
if TYPE_CHECKING:
    _QueryEngine = BaseQueryEngine
    _ChatEngine = BaseChatEngine
    _Agent = BaseWorkflowAgent
else:
    _QueryEngine = _ChatEngine = _Agent = object


class GuardedRuns(SharedCopies):
    """What guarded engines and agents have in common."""

    _brix: Guards
    _brix_seconds: float | None
    _brix_unpickled = "Pickle what was given to guard(), and call guard() where it is loaded"

    if TYPE_CHECKING:  # it has all that the engine has

        def __getattr__(self, name: str) -> Any: ...

    @property
    def brix(self) -> Guards:
        """The guards that all LLMs inside share."""
        return self._brix

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of all calls of all LLMs inside, newest first.

        Args:
            session_id: Only those of this session.
        """
        return self._brix.get_traces(session_id)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it; LLMs in what is set come behind the guards.

        Raises:
            BrixConfigurationError: An LLM in it has guards of its own, or cannot be put behind these.
        """
        super().__setattr__(name, self._brix_joined(value, f"{name} of this {type(self).__name__}"))

    def _brix_joined(self, value: Any, what: str) -> Any:
        """The value, or a copy of it with its LLMs behind the guards."""
        wiring = Wiring([value])
        strange = [
            llm for llm in wiring.llms if isinstance(llm, GuardedLLM) and llm.brix.pipeline is not self._brix.pipeline
        ]
        if strange:
            raise BrixConfigurationError(
                f"{what}: {type(strange[0]).__name__} has guards of its own; give the LLM itself, so that one budget "
                "and one trace hold for all"
            )
        _warn_of(wiring, what)
        plain = [llm for llm in wiring.llms if not isinstance(llm, GuardedLLM)]
        if not plain:
            return value
        return wiring.replaced({id(llm): joined(llm, self._brix) for llm in plain})[0]

    @contextmanager
    def _brix_run(self) -> Iterator[RunLimit | None]:
        with run_limit(self._brix_seconds, self._brix.pipeline.clock) as limit:
            yield limit


class GuardedQueryRuns(GuardedRuns, _QueryEngine):
    """A guarded query engine; also an instance of the class of the one it was made of."""

    def query(self, str_or_query_bundle: QueryType) -> RESPONSE_TYPE:
        """Answer a query, within the time of a run; a streamed answer is part of it."""
        with self._brix_run():
            return self._brix_bound(super().query(str_or_query_bundle))

    async def aquery(self, str_or_query_bundle: QueryType) -> RESPONSE_TYPE:
        """Answer a query on the event loop, within the time of a run."""
        with self._brix_run() as limit:
            async with within(limit):
                return self._brix_bound(await super().aquery(str_or_query_bundle))

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Nodes to answer from, within the time of a run: what reranks them may ask an LLM."""
        with self._brix_run():
            return super().retrieve(query_bundle)

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer from nodes, within the time of a run."""
        with self._brix_run():
            return self._brix_bound(super().synthesize(query_bundle, nodes, additional_source_nodes))

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer from nodes on the event loop, within the time of a run."""
        with self._brix_run() as limit:
            async with within(limit):
                return self._brix_bound(await super().asynthesize(query_bundle, nodes, additional_source_nodes))

    def _brix_bound(self, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        """The response; what it streams is asked for in this session and run, though LlamaIndex asks when it is read.

        The generators of LlamaIndex begin with their first item, which may be long after the query.
        """
        scope = RunScope.here(self._brix.pipeline.sessions.default_id)
        if isinstance(response, StreamingResponse) and response.response_gen is not None:
            response.response_gen = scope.steps(response.response_gen)
        elif isinstance(response, AsyncStreamingResponse) and response.response_gen is not None:
            response.response_gen = scope.asteps(response.response_gen)
        return response


class GuardedChatRuns(GuardedRuns, _ChatEngine):
    """A guarded chat engine; also an instance of the class of the one it was made of."""

    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AGENT_CHAT_RESPONSE_TYPE:
        """Chat, within the time of a run."""
        with self._brix_run():
            return super().chat(message, chat_history)  # type: ignore[safe-super]

    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """Chat, streamed, within the time of a run."""
        with self._brix_run():
            return super().stream_chat(message, chat_history)  # type: ignore[safe-super]

    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AGENT_CHAT_RESPONSE_TYPE:
        """Chat on the event loop, within the time of a run."""
        with self._brix_run() as limit:
            async with within(limit):
                return await super().achat(message, chat_history)  # type: ignore[safe-super]

    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> StreamingAgentChatResponse:
        """Chat, streamed on the event loop, within the time of a run."""
        with self._brix_run() as limit:
            async with within(limit):
                return await super().astream_chat(message, chat_history)  # type: ignore[safe-super]


class GuardedAgentRuns(GuardedRuns, _Agent):
    """A guarded agent, or workflow of agents; also an instance of the class of the one it was made of.

    A memory given for a run is used through a copy whose LLMs are guarded, and which shares its store.
    """

    _brix_memories: dict[int, tuple[weakref.ref[Any], Any]]

    def run(self, *args: Any, **kwargs: Any) -> WorkflowHandler:
        """Run, within the time of a run."""
        with self._brix_run():
            return super().run(*args, **kwargs)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy behind the same guards, and so what is changed in it."""
        given = {name: self._brix_joined(value, name) for name, value in (update or {}).items()}
        return super().model_copy(update=given, deep=deep)

    async def _init_context(self, ctx: Any, ev: Any) -> None:
        # Here the memory is known, wherever it was given: to run(), in a start event or in the context of a run before.
        await super()._init_context(ctx, ev)
        memory = await ctx.store.get("memory", default=None)
        guarded = self._brix_memory(memory)
        if guarded is not memory:
            await ctx.store.set("memory", guarded)

    async def _call_tool(self, ctx: Any, tool: Any, tool_input: dict[str, Any]) -> ToolOutput:
        # Around the agent's own, which makes a result of whatever a tool raises.
        async with within(current_limit()):
            output: ToolOutput = await super()._call_tool(ctx, tool, tool_input)
        return output

    def _brix_memory(self, memory: Any) -> Any:
        """The memory, its LLMs behind the guards; the same for every run, since it may know more than its store."""
        if memory is None:
            return None
        known = self._brix_memories.get(id(memory))
        if known is not None and known[0]() is memory:
            return known[1]
        guarded = self._brix_joined(memory, f"the memory of this {type(self).__name__}")
        if guarded is not memory:
            key, memories = id(memory), self._brix_memories
            memories[key] = weakref.ref(memory, lambda _: memories.pop(key, None)), guarded
        return guarded


_KINDS: Final[tuple[tuple[type[Any], type[GuardedRuns]], ...]] = (
    (BaseQueryEngine, GuardedQueryRuns),
    (BaseChatEngine, GuardedChatRuns),
    (BaseWorkflowAgent, GuardedAgentRuns),
    (AgentWorkflow, GuardedAgentRuns),
)

ENGINES: Final = tuple(kind for kind, _ in _KINDS)
"""What `guard_engine` takes."""


def guard_engine(engine: Any, options: GuardOptions) -> Any:
    """A copy of an engine or agent whose LLMs share one set of guards. See `brix_llamaindex.guard`.

    Raises:
        BrixConfigurationError: It is guarded already, has no LLM or a guarded one, or an option cannot be used.
    """
    name = type(engine).__name__
    if isinstance(engine, GuardedRuns):
        raise BrixConfigurationError(f"guard: {name} is guarded already; change its options where it was guarded")
    wiring = Wiring(engine)
    _check(wiring, name)
    options, seconds = _run_options(options)
    if isinstance(engine, BaseWorkflowAgent | AgentWorkflow) and options.get("response_schema") is not None:
        # Agents stream by default, and what has been streamed cannot be healed.
        options.setdefault("stream_mode", "validated")
    llms = guarded_llms(wiring.llms, options)
    own: Any = type(engine)
    runs: Any = next(runs for kind, runs in _KINDS if isinstance(engine, kind))
    cls = _guarded_class(own, runs)
    made = wiring.replaced({id(llm): guarded for llm, guarded in zip(wiring.llms, llms, strict=True)}, cls)
    _adopt(made, llms[0].brix, seconds)
    for agent in made.agents.values() if isinstance(made, AgentWorkflow) else ():
        # They are run by the workflow; an LLM that is set on one comes behind the guards, too.
        object.__setattr__(agent, "__class__", _guarded_class(type(agent), GuardedAgentRuns))
        _adopt(agent, llms[0].brix, None)
    if seconds is not None and isinstance(made, GuardedAgentRuns):
        limit = made._timeout
        object.__setattr__(made, "_timeout", seconds + GRACE if limit is None else min(limit, seconds + GRACE))
        object.__setattr__(made, "_broker_config", None)  # where workflows remember the timeout
    return made


def _adopt(made: Any, guards: Guards, seconds: float | None) -> None:
    object.__setattr__(made, "_brix", guards)
    object.__setattr__(made, "_brix_seconds", seconds)
    object.__setattr__(made, "_brix_memories", {})


def _check(wiring: Wiring, name: str) -> None:
    guarded = next((llm for llm in wiring.llms if isinstance(llm, GuardedLLM)), None)
    if guarded is not None:
        raise BrixConfigurationError(
            f"guard: an LLM of this {name} is guarded already ({type(guarded).__name__}); guard the {name} or its "
            "LLMs, not both, so that one budget and one trace hold for all of it"
        )
    if not wiring.llms:
        raise BrixConfigurationError(
            f"guard: no LLM was found in this {name}. What is looked into are attributes of objects of LlamaIndex's "
            "classes; guard the LLM itself, guard(llm, ...), and give it to where it is used"
        )
    _warn_of(wiring, f"this {name}")


def _warn_of(wiring: Wiring, what: str) -> None:
    for user in wiring.hidden:
        log.warning(
            "guard: %s in %s uses an LLM (or something that has one) which cannot be replaced: "
            "its calls are not guarded. Guard that LLM itself",
            user, what,
        )  # fmt: skip


def _run_options(options: GuardOptions) -> tuple[GuardOptions, float | None]:
    """The options of the LLMs, and the time for a run: no attempt may take longer than that."""
    inner = cast(GuardOptions, {name: value for name, value in options.items() if name != "total_timeout"})
    if options.get("total_timeout") is None:
        return inner, None
    seconds = checks.positive("total_timeout", options["total_timeout"])
    if inner.get("per_call_timeout") is None and inner.get("max_time_seconds") is None:
        inner["per_call_timeout"] = seconds
    return inner, seconds


@lru_cache(maxsize=256)
def _guarded_class(cls: Any, runs: Any) -> Any:
    namespace = {"__module__": __name__, "__doc__": cls.__doc__}
    return types.new_class(f"Guarded{cls.__name__}", (runs, cls), exec_body=lambda own: own.update(namespace))


__all__ = ["ENGINES", "GRACE", "GuardedAgentRuns", "GuardedChatRuns", "GuardedQueryRuns", "GuardedRuns", "guard_engine"]
