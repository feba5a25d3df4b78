"""Guards for `AgentExecutor`, the agent of LangChain before 1.0.

Needs the extra ``langchain`` (``pip install "brix-guards[langchain]"``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from functools import cache
from typing import Any, Final, Literal, cast

from langchain_classic.agents import AgentExecutor, AgentExecutorIterator
from langchain_core.agents import AgentAction, AgentFinish, AgentStep
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, BaseLanguageModel, BaseLLM
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnableSequence,
)
from langchain_core.runnables.config import merge_configs
from pydantic import PrivateAttr
from typing_extensions import override

from brix_core import checks
from brix_core.clock import SystemClock
from brix_core.errors import BrixConfigurationError, BrixGuardBlockedError, BrixTimeoutError
from brix_core.guards.loop import LoopConfig
from brix_core.options import parse
from brix_core.session import Session, Sessions, session
from brix_langchain.binding import rebind
from brix_langchain.callbacks import BrixCallbackHandler
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.executor_loops import Batch, LoopWatch
from brix_langchain.guarding import guard
from brix_langchain.refusals import RefusalsAreFinal
from brix_langchain.sessions import session_of
from brix_langchain.string_llm import GuardedLLM

_LOOP_OPTIONS: Final = frozenset(field.name for field in dataclasses.fields(LoopConfig))
_OF_ANSWERS: Final = {
    "exact_loop_detection": "Steps of the agent are watched anyway (tool_loop_detection)",
    "response_schema": "Read the output with BrixOutputParser",
}
"""Options about single answers of a model, which mean nothing to an agent; and what to do instead."""

_PLACES: Final = (("runnable",), ("llm_chain", "llm"), ("llm",))
"""Where agents have their model: those made by functions, and the older classes."""

_Guarded = GuardedChatModel | GuardedLLM | BrixCallbackHandler


def guard_agent_executor(
    executor: AgentExecutor,
    *,
    on_loop: Literal["nudge", "inject_diversity", "raise"] = "nudge",
    **options: Any,
) -> GuardedAgentExecutor:
    """Put guards around an agent executor.

    A step is the whole batch of tool calls that the agent asked for at once. One that came to the same results
    `exact_loop_threshold` times in a run, with nothing new in between, is a loop, as are the others that
    `brix_core.looping.loops` describes.

    Args:
        executor: The executor. It is left as it is.
        on_loop: ``"nudge"`` (the same as ``"inject_diversity"``) adds to the last observation of the step what recurs,
            and asks for another way; after `diversity_attempts` times in vain `BrixLoopError` is raised. ``"raise"``
            raises it at once. Either way the agent's model is not asked again.
        **options: See `brix_core.GuardOptions`. Those of the loop guard are about the agent's steps
            (``tool_loop_detection`` is on unless False is given); all others guard the agent's model, as
            `brix_langchain.guard` does. Where it cannot be reached, or is not the only one in the agent's chain, they
            guard by callbacks, as `BrixCallbackHandler` does. Models that tools or a memory call are not the agent's.
            Fallbacks get the agent's tools as they are bound, in the words of its own model's provider.

    Returns:
        An executor of the same class.

    Raises:
        BrixConfigurationError: `executor` is no agent executor or guarded already, or an option cannot be used.

    Example:
        >>> from langchain_core.runnables import RunnableLambda
        >>> from langchain_core.tools import tool
        >>> @tool
        ... def search(query: str) -> str:
        ...     "Search."
        ...     return "nothing found here"
        >>> again = RunnableLambda(lambda _: AgentAction("search", {"query": "x"}, "I search."))
        >>> executor = guard_agent_executor(AgentExecutor(agent=again, tools=[search]), on_loop="raise")
        >>> executor.invoke({"input": "Who?"})
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixLoopError: search({"query":"x"}) came up 3 times without anything new ...
    """
    if isinstance(executor, GuardedAgentExecutor):
        raise BrixConfigurationError("guard_agent_executor() got an executor that is guarded already; guard it once")
    if not isinstance(executor, AgentExecutor):
        raise BrixConfigurationError(f"guard_agent_executor() takes an AgentExecutor, got {type(executor).__name__}")
    checks.one_of("on_loop", on_loop, ("nudge", "inject_diversity", "raise"))
    config = _loop_config(on_loop, options)
    calls = {name: value for name, value in options.items() if name not in _LOOP_OPTIONS and value is not None}
    fields = {**executor.__dict__, "name": executor.get_name()}  # by which events are told apart
    model = _guarded_model(fields, calls) if calls else None
    kind = _guarded_class(type(executor))
    guarded = kind.model_construct(_fields_set=set(executor.model_fields_set), **fields)
    guarded._loops = None if config is None or not config.tool_loop_detection else LoopWatch(config)
    guarded._model = model
    return guarded


def _loop_config(on_loop: str, options: Mapping[str, Any]) -> LoopConfig | None:
    """What is looked for in the agent's steps; None for nothing."""
    for name, instead in _OF_ANSWERS.items():
        if options.get(name):
            raise BrixConfigurationError(
                f"{name} is about single answers of a model, and has no meaning for an agent executor. {instead}"
            )
    loops = {"tool_loop_detection": True} | {name: options[name] for name in options.keys() & _LOOP_OPTIONS}
    if loops["tool_loop_detection"]:
        loops["on_loop"] = "raise" if on_loop == "raise" else "inject_diversity"
    elif on_loop != "nudge":
        raise BrixConfigurationError(f"on_loop={on_loop!r} has no effect with tool_loop_detection=False")
    return parse(loops).configs.get("loop")


class GuardedAgentExecutor(RefusalsAreFinal, AgentExecutor):
    """An agent executor behind guards. Made by `guard_agent_executor`."""

    _loops: LoopWatch | None = PrivateAttr(default=None)
    _model: _Guarded | None = PrivateAttr(default=None)
    _sessions: Sessions = PrivateAttr(default_factory=lambda: Sessions(SystemClock()))

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of the agent's model calls, newest first; none when no option is about its model.

        Args:
            session_id: Only those of this session.
        """
        return [] if self._model is None else self._model.get_traces(session_id)

    @property
    def context(self) -> Session:
        """The session that a run made here and now would belong to."""
        return self._sessions.resolve(session_of(None)) if self._model is None else self._model.context

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the active guards, outermost first: that of the agent's steps, and those of its model."""
        steps = () if self._loops is None else ("loop",)
        return steps if self._model is None else (*steps, *self._model.guards)

    def _told(self, config: RunnableConfig | None) -> RunnableConfig | None:
        """The configuration with our callbacks: what is in the field `callbacks` no model inside hears of."""
        return (
            merge_configs(config, {"callbacks": [self._model]})
            if isinstance(self._model, BaseCallbackHandler)
            else config
        )

    # One step: the model says what to do, and the tools do it

    @override
    def _iter_next_step(
        self,
        name_to_tool_map: dict[str, Any],
        color_mapping: dict[str, str],
        inputs: dict[str, str],
        intermediate_steps: list[tuple[AgentAction, str]],
        run_manager: Any = None,
    ) -> Iterator[AgentFinish | AgentAction | AgentStep]:
        batch = Batch()
        for item in super()._iter_next_step(
            name_to_tool_map, color_mapping, inputs, intermediate_steps, run_manager
        ):  # fmt: skip
            if self._loops is not None and batch.is_complete_with(item):
                item = self._loops.judged(run_manager, batch)
            yield item

    @override
    async def _aiter_next_step(
        self,
        name_to_tool_map: dict[str, Any],
        color_mapping: dict[str, str],
        inputs: dict[str, str],
        intermediate_steps: list[tuple[AgentAction, str]],
        run_manager: Any = None,
    ) -> AsyncIterator[AgentFinish | AgentAction | AgentStep]:
        batch = Batch()
        try:
            async for item in super()._aiter_next_step(
                name_to_tool_map, color_mapping, inputs, intermediate_steps, run_manager
            ):  # fmt: skip
                if self._loops is not None and batch.is_complete_with(item):
                    item = await self._loops.ajudged(run_manager, batch)
                yield item
        except BrixTimeoutError as error:
            raise _OutOfTimeError(error) from error

    # A whole run. LangChain's executor does not hand its configuration on to the agent's model

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        with _in_session(session_of(config)):
            return super().invoke(input, self._told(config), **kwargs)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        with _in_session(session_of(config)), _timeouts_as_they_were():
            return await super().ainvoke(input, self._told(config), **kwargs)

    @override
    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        name = session_of(config)
        steps = super().stream(input, self._told(config), **kwargs)
        while True:
            with _in_session(name):  # never across a yield
                item = next(steps, None)
            if item is None:
                return
            yield item

    @override
    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        name = session_of(config)
        async with aclosing(cast(Any, super().astream(input, self._told(config), **kwargs))) as steps:
            while True:
                with _in_session(name), _timeouts_as_they_were():
                    item = await anext(steps, None)
                if item is None:
                    return
                yield item

    @override
    def iter(self, inputs: Any, callbacks: Any = None, **kwargs: Any) -> AgentExecutorIterator:
        told = self._told({"callbacks": callbacks}) or {}
        kwargs.pop("async_", None)  # LangChain ignores it
        return _Steps(self, inputs, told.get("callbacks"), tags=self.tags, **kwargs)


class _Steps(AgentExecutorIterator):
    """The steps of a run, one by one."""

    @override
    async def __aiter__(self) -> AsyncIterator[Any]:
        async with aclosing(cast(Any, super().__aiter__())) as steps:
            while True:
                with _timeouts_as_they_were():
                    step = await anext(steps, None)
                if step is None:
                    return
                yield step


class _OutOfTimeError(BrixGuardBlockedError):
    """A `BrixTimeoutError` on its way through `AgentExecutor`, which takes every `TimeoutError` for its own limit."""

    guard = "timeout"

    def __init__(self, error: BrixTimeoutError) -> None:
        super().__init__(error.message)
        self.error = error


@contextmanager
def _timeouts_as_they_were() -> Iterator[None]:
    try:
        yield
    except _OutOfTimeError as out_of_time:
        raise out_of_time.error from out_of_time.error.__cause__


@cache
def _guarded_class(kind: type[AgentExecutor]) -> type[GuardedAgentExecutor]:
    if kind is AgentExecutor:
        return GuardedAgentExecutor
    return type(f"Guarded{kind.__name__}", (GuardedAgentExecutor, kind), {"__module__": kind.__module__})


def _guarded_model(fields: dict[str, Any], options: Mapping[str, Any]) -> _Guarded:
    """Guard the agent's model, in the executor's fields; where it cannot be reached, by callbacks."""
    agent = fields["agent"]
    place = next((place for place in _PLACES if _at(agent, place) is not None), ())
    chain = _at(agent, place) if place else None
    models = {id(model): model for model in _models_in(chain)}
    bare = (model for model in _models_anywhere(chain, set()) if not isinstance(model, GuardedChatModel | GuardedLLM))
    model: Any = next(iter(models.values()), None)
    if isinstance(model, BaseChatModel | BaseLLM) and len(models) == 1 and all(id(other) in models for other in bare):
        guarded: Any = guard(model, **options)
        fields["agent"] = _with(agent, place, rebind(cast(Any, chain), cast(Any, model), guarded))
        return cast(_Guarded, guarded)
    if fields.get("early_stopping_method") == "generate":
        raise BrixConfigurationError(
            "early_stopping_method='generate' asks the agent's model without callbacks, and the model cannot be "
            "reached to be guarded otherwise. Use early_stopping_method='force', or guard(model, ...) itself"
        )
    return BrixCallbackHandler(**options)


def _at(agent: Any, place: Sequence[str]) -> Any:
    for name in place:
        agent = getattr(agent, name, None)
    return agent


def _with(agent: Any, place: Sequence[str], chain: Any) -> Any:
    """A copy of the agent with another chain in that place."""
    name, *inner = place
    return agent.model_copy(update={name: _with(getattr(agent, name), inner, chain) if inner else chain})


def _models_in(runnable: Any) -> Iterator[BaseLanguageModel[Any]]:
    """The models of a chain, as far as `rebind` reaches."""
    if isinstance(runnable, BaseLanguageModel):
        yield runnable
    elif isinstance(runnable, RunnableBinding):
        yield from _models_in(runnable.bound)
    elif isinstance(runnable, RunnableSequence):
        for step in runnable.steps:
            yield from _models_in(step)
    elif isinstance(runnable, RunnableParallel):
        for step in runnable.steps__.values():
            yield from _models_in(step)


def _models_anywhere(value: Any, seen: set[int]) -> Iterator[BaseLanguageModel[Any]]:
    """The models of a chain, those too that `rebind` does not reach: in fallbacks, branches, functions, parsers."""
    if isinstance(value, BaseLanguageModel):
        yield value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    inside: Iterable[Any] = ()
    if isinstance(value, Runnable):
        inside = [*vars(value).values(), *(value.deps if isinstance(value, RunnableLambda) else ())]
    elif isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    for part in inside:
        yield from _models_anywhere(part, seen)


def _in_session(name: str | None) -> AbstractContextManager[Any]:
    return nullcontext() if name is None else session(name)


__all__ = ["GuardedAgentExecutor", "guard_agent_executor"]
