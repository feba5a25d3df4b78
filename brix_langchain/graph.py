"""Guarded LangGraph graphs, agents of ``create_agent`` among them: still graphs, of a class made from their own.

A class of its own would lose what users of a graph look for: its state and its history, its subgraphs, its stream
modes. So a guarded graph is an object of a subclass of the graph's own class. Two objects share one ``__dict__``, for
`Pregel.invoke` calls `stream`: the guards' object takes the call, and the guards run the other.

LangGraph is never imported here.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from brix_core.call import CallRequest, CallResponse
from brix_core.errors import BrixConfigurationError
from brix_core.session import Session
from brix_langchain.callbacks import BrixCallbackHandler
from brix_langchain.refusals import RefusalsAreFinal
from brix_langchain.run_guards import RunGuards, session_now
from brix_langchain.runnable_endpoint import RUN, Run, RunnableEndpoint

if TYPE_CHECKING:
    from langgraph.pregel import Pregel

_G = TypeVar("_G", bound="Pregel[Any, Any, Any, Any]")

_GUARDS: Final = "_brix_guards"


class GuardedGraph(RefusalsAreFinal):
    """What guarded graphs have beside what the graph's own class gives them.

    The whole run passes the guards around it, each model call inside the guards inside. A run that goes on after an
    interrupt belongs to the same session as long as its ``thread_id`` names it, and what the thread has spent is
    remembered as long as the `store` lasts: in the default store, until the process ends. A checkpoint does not hold
    it. Where threads go on in another process, give `guard` a store that outlives it.
    """

    # What the guards know

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of runs, newest first. Those of the model calls inside are `inside.get_traces()`.

        Args:
            session_id: Only those of this session.
        """
        return self._guards.get_traces(session_id)

    @property
    def context(self) -> Session:
        """The session that a run made here and now would belong to."""
        return self._guards.session(_bound(self, None))

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the active guards, outermost first, those inside last."""
        return self._guards.names

    @property
    def inside(self) -> BrixCallbackHandler | None:
        """What guards the model calls inside, where an option asks for that."""
        return self._guards.inside

    # One run. Whatever else a graph has, batches and events and all, comes by these

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """See `Pregel.invoke`."""
        return self._guards.pipeline.call(self._begin(input, config, kwargs)).raw

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """See `Pregel.ainvoke`."""
        return (await self._guards.pipeline.acall(self._begin(input, config, kwargs))).raw

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """See `Pregel.stream`."""
        name = session_now(_bound(self, config))
        return self._streamed(input, config, kwargs, name)

    def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """See `Pregel.astream`."""
        name = session_now(_bound(self, config))
        return self._astreamed(input, config, kwargs, name)

    def _streamed(self, input: Any, config: Any, kwargs: dict[str, Any], name: str | None) -> Iterator[Any]:
        request = self._begin(input, config, kwargs, stream=True, session_id=name)
        yield from self._guards.pipeline.stream(request)

    async def _astreamed(self, input: Any, config: Any, kwargs: dict[str, Any], name: str | None) -> AsyncIterator[Any]:
        request = self._begin(input, config, kwargs, stream=True, session_id=name)
        async with aclosing(cast(Any, self._guards.pipeline.astream(request))) as chunks:
            async for chunk in chunks:
                yield chunk

    def copy(self, update: dict[str, Any] | None = None) -> Any:
        """See `Pregel.copy`: what `with_config` is made with."""
        return _of_class(type(self), {**self.__dict__, **(update or {})})

    @property
    def _guards(self) -> RunGuards:
        return cast(RunGuards, self.__dict__[_GUARDS])

    def _begin(
        self,
        input: Any,
        config: RunnableConfig | None,
        kwargs: dict[str, Any],
        *,
        stream: bool = False,
        session_id: str | None = None,
    ) -> CallRequest:
        original = _of_class(type(self).__bases__[1], self.__dict__)
        config = _bound(self, config)
        return self._guards.begin(input, config, kwargs, stream=stream, target=original, session_id=session_id)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        """A shallow copy: what the guards count is one, however many copies there are."""
        return self.copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BrixConfigurationError(
            "a guarded graph cannot be pickled: its limits are live state. Pickle the graph it was made from and guard "
            "it again on the other side, with a shared store"
        )


class GraphEndpoint(RunnableEndpoint):
    """One graph. An attempt that follows another goes on from the last checkpoint, if there is one."""

    def call(self, request: CallRequest) -> CallResponse:
        """One run, blocking."""
        with self._attempt(request) as (run, config):
            target: Any = self._target(run)
            state = target.get_state(config) if self._looks(request, target) else None
            input = self._next_input(request, run, state)
            output = target.invoke(input, config, **run.kwargs)
        return self._response(request, output)

    async def acall(self, request: CallRequest) -> CallResponse:
        """One run on the event loop."""
        with self._attempt(request) as (run, config):
            target: Any = self._target(run)
            state = await target.aget_state(config) if self._looks(request, target) else None
            input = self._next_input(request, run, state)
            output = await target.ainvoke(input, config, **run.kwargs)
        return self._response(request, output)

    def stream(self, request: CallRequest) -> Iterator[Any]:
        """The chunks of one run."""
        with self._attempt(request) as (run, config):
            target: Any = self._target(run)
            state = target.get_state(config) if self._looks(request, target) else None
            input = self._next_input(request, run, state)
            yield from target.stream(input, config, **run.kwargs)

    async def astream(self, request: CallRequest) -> AsyncIterator[Any]:
        """The chunks of one run, on the event loop."""
        with self._attempt(request) as (run, config):
            target: Any = self._target(run)
            state = await target.aget_state(config) if self._looks(request, target) else None
            input = self._next_input(request, run, state)
            async with aclosing(target.astream(input, config, **run.kwargs)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def read_chunk(self, chunk: Any) -> str:
        """Something for every chunk: whatever a graph streams is meant for the consumer."""
        while isinstance(chunk, tuple) and chunk:  # (namespace, mode, data), (message, metadata)
            chunk = chunk[0] if isinstance(chunk[0], BaseMessage) else chunk[-1]
        return super().read_chunk(chunk) or " "

    def _looks(self, request: CallRequest, target: Any) -> bool:
        """Whether to look at the checkpoint: where there is one, and the run may be tried again."""
        return request.params[RUN].repeats and not isinstance(target.checkpointer, bool | None)

    def _next_input(self, request: CallRequest, run: Run, state: Any) -> Any:
        """The input; None, to go on, where an attempt before has taken it in already."""
        if state is None:
            return run.input
        at = (state.config.get("configurable") or {}).get("checkpoint_id")
        begun_at = run.notes.setdefault("checkpoint", at)
        is_state = run.input is not None and type(run.input).__name__ != "Command"
        return None if is_state and at != begun_at and state.next else run.input


def is_graph(target: Any) -> bool:
    """Whether this is a compiled LangGraph graph; told without importing LangGraph."""
    module = sys.modules.get("langgraph.pregel")
    return module is not None and isinstance(target, module.Pregel)


def guarded_graph(graph: _G, options: dict[str, Any]) -> _G:
    """A graph behind its guards, of a subclass of its own class."""
    if options.get("fallbacks") and graph.checkpointer:
        raise BrixConfigurationError(
            "fallbacks of a graph with a checkpointer would take in the same input a second time; give the fallbacks "
            "to the models inside: guard(model, fallbacks=[...])"
        )
    guards = RunGuards(graph, options, GraphEndpoint, loops_inside=True)
    return cast(_G, _of_class(_guarded_class(type(graph)), {**graph.__dict__, _GUARDS: guards}))


@lru_cache(maxsize=64)
def _guarded_class(base: type[Any]) -> type[Any]:
    names = {"__module__": __name__, "__doc__": GuardedGraph.__doc__}
    return type(f"Guarded{base.__name__}", (GuardedGraph, base), names)


def _of_class(kind: type[Any], attributes: dict[str, Any]) -> Any:
    """An object of this class with these very attributes."""
    made = object.__new__(kind)
    made.__dict__ = attributes
    return made


def _bound(graph: Any, config: RunnableConfig | None) -> RunnableConfig | None:
    """What the configuration names, and the graph's own (`with_config`) beneath it."""
    own = (graph.config or {}).get("configurable")
    if not own:
        return config
    given: Any = config or {}
    return cast(RunnableConfig, {**given, "configurable": {**own, **(given.get("configurable") or {})}})


__all__ = ["GraphEndpoint", "GuardedGraph", "guarded_graph", "is_graph"]
