"""Guards for `AgentExecutor`, the agent of LangChain before 1.0.

Needs the extra ``langchain`` (``pip install "brix-guards[langchain]"``).
"""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import cache
from typing import Any, Final, Literal, cast

from langchain_classic.agents import AgentExecutor, AgentExecutorIterator
from langchain_core.agents import AgentAction, AgentFinish, AgentStep
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.runnables import (
    RunnableBinding,
    RunnableConfig,
    RunnableParallel,
    RunnableSequence,
    run_in_executor,
)
from langchain_core.runnables.config import merge_configs
from pydantic import PrivateAttr
from typing_extensions import override

from brix_core import checks
from brix_core.embedding import as_embedder
from brix_core.errors import BrixConfigurationError, BrixGuardBlockedError, BrixLoopError, BrixTimeoutError
from brix_core.guards.loop import LoopConfig, _diversity_text, _told
from brix_core.looping.likeness import Likeness, comparable, loop_by_meaning, of_step, recurs
from brix_core.looping.loops import Loop, tool_loop
from brix_core.looping.steps import Step
from brix_core.options import parse
from brix_core.session import session
from brix_core.turns import written
from brix_langchain.binding import rebind
from brix_langchain.callbacks import BrixCallbackHandler
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.guarding import guard
from brix_langchain.sessions import session_of

_LOOP_OPTIONS: Final = frozenset(field.name for field in dataclasses.fields(LoopConfig))


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
            `brix_langchain.guard` does, or where it cannot be reached, as `BrixCallbackHandler` does. Fallbacks get the
            agent's tools as they are bound, in the words of its own model's provider.

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
    loops = {"tool_loop_detection": True} | {name: options[name] for name in options.keys() & _LOOP_OPTIONS}
    calls = {name: value for name, value in options.items() if name not in _LOOP_OPTIONS and value is not None}
    if loops["tool_loop_detection"]:
        loops["on_loop"] = "raise" if on_loop == "raise" else "inject_diversity"
    config: LoopConfig | None = parse(loops).configs.get("loop")

    fields = {**executor.__dict__, "name": executor.get_name()}  # by which events are told apart
    model = _guarded_model(fields, calls) if calls else None
    kind = _guarded_class(type(executor))
    guarded = kind.model_construct(_fields_set=set(executor.model_fields_set), **fields)
    guarded._loops = None if config is None or not config.tool_loop_detection else _LoopWatch(config)
    guarded._model = model
    return guarded


class GuardedAgentExecutor(AgentExecutor):
    """An agent executor behind guards. Made by `guard_agent_executor`."""

    _loops: _LoopWatch | None = PrivateAttr(default=None)
    _model: GuardedChatModel | BrixCallbackHandler | None = PrivateAttr(default=None)

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of the agent's model calls, newest first; none when no option is about its model.

        Args:
            session_id: Only those of this session.
        """
        return [] if self._model is None else self._model.get_traces(session_id)

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
        batch = _Batch()
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
        batch = _Batch()
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
        with _in_session(session_of(config)):
            try:
                return await super().ainvoke(input, self._told(config), **kwargs)
            except _OutOfTimeError as out_of_time:
                raise out_of_time.error from out_of_time.error.__cause__

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
                with _in_session(name):
                    try:
                        item = await anext(steps, None)
                    except _OutOfTimeError as out_of_time:
                        raise out_of_time.error from out_of_time.error.__cause__
                if item is None:
                    return
                yield item

    @override
    def iter(self, inputs: Any, callbacks: Any = None, **kwargs: Any) -> AgentExecutorIterator:
        told = self._told({"callbacks": callbacks}) or {}
        return super().iter(inputs, told.get("callbacks"), **kwargs)


class _OutOfTimeError(BrixGuardBlockedError):
    """A `BrixTimeoutError` on its way through `AgentExecutor`, which takes every `TimeoutError` for its own limit."""

    guard = "timeout"

    def __init__(self, error: BrixTimeoutError) -> None:
        super().__init__(error.message)
        self.error = error


class _Batch:
    """The tool calls that the agent asked for at once, and what came of them."""

    def __init__(self) -> None:
        self._asked = 0
        self.done: list[AgentStep] = []

    def is_complete_with(self, item: AgentFinish | AgentAction | AgentStep) -> bool:
        """Take note of what the executor gives; whether it was the result of the last call."""
        if isinstance(item, AgentAction):
            self._asked += 1
        elif isinstance(item, AgentStep):
            self.done.append(item)
            return len(self.done) >= self._asked  # an answer that could not be parsed was never announced
        return False

    def as_step(self) -> Step:
        """The whole batch, as it is compared."""
        parts = [(one.action.tool, _arguments(one.action.tool_input), written(one.observation)) for one in self.done]
        names = tuple(sorted(name for name, _, _ in parts))
        return Step(tuple(parts), names, tuple(sorted(result for _, _, result in parts)))


class _Run:
    """What is remembered of a run."""

    def __init__(self, reach: int) -> None:
        self.steps: deque[Step] = deque(maxlen=reach)
        self.nudges = 0


class _LoopWatch:
    """Finds loops in the steps of each run.

    Args:
        config: Options of the loop guard.
    """

    def __init__(self, config: LoopConfig) -> None:
        self._config = config
        self._find = {"threshold": config.exact_loop_threshold, "max_cycle": config.max_cycle_length}
        semantic = config.semantic_loop_detection
        self._likeness = Likeness(as_embedder(config.embedder), config.semantic_loop_threshold) if semantic else None
        self._runs: weakref.WeakKeyDictionary[Any, _Run] = weakref.WeakKeyDictionary()

    def judged(self, run_manager: Any, batch: _Batch) -> AgentStep:
        """The last result of a batch, with the nudge when it closes a loop.

        Raises:
            BrixLoopError: The agent is not to be asked again.
        """
        run = self._run(run_manager)
        run.steps.append(batch.as_step())
        return self._answered(run, batch, self._loop(list(run.steps)))

    async def ajudged(self, run_manager: Any, batch: _Batch) -> AgentStep:
        """As `judged`; texts are compared by meaning off the event loop."""
        if self._likeness is None:
            return self.judged(run_manager, batch)
        run = self._run(run_manager)
        run.steps.append(batch.as_step())
        return self._answered(run, batch, await run_in_executor(None, self._loop, list(run.steps)))

    def _run(self, run_manager: Any) -> _Run:
        fresh = _Run(self._config.reach)
        return fresh if run_manager is None else self._runs.setdefault(run_manager, fresh)

    def _loop(self, steps: Sequence[Step]) -> Loop | None:
        loop = tool_loop(steps, **self._find)
        if self._likeness is not None and (loop is None or not loop.closed):
            happened = [of_step(step) for step in steps]
            if recurs(happened):
                loop = loop_by_meaning(happened, self._likeness.among(comparable(happened)), **self._find) or loop
        return loop if loop is not None and loop.closed else None

    def _answered(self, run: _Run, batch: _Batch, loop: Loop | None) -> AgentStep:
        last = batch.done[-1]
        if loop is None:
            run.nudges = 0
            return last
        config = self._config
        if config.on_loop == "raise" or run.nudges >= config.diversity_attempts:
            vain = f"; asking for another way {run.nudges} times (diversity_attempts) was in vain" if run.nudges else ""
            raise BrixLoopError(
                f"{_told(loop)} (exact_loop_threshold={config.exact_loop_threshold}){vain}. Change the prompt or the "
                "tools, end the run, or raise the limit",
                kind=loop.kind,
                repeats=loop.repeats,
                cycle_length=loop.cycle_length,
                what=loop.what,
            )
        run.nudges += 1
        text = config.loop_diversity_prompt or _diversity_text(loop)
        return AgentStep(action=last.action, observation=f"{written(last.observation)}\n\n{text}")


@cache
def _guarded_class(kind: type[AgentExecutor]) -> type[GuardedAgentExecutor]:
    if kind is AgentExecutor:
        return GuardedAgentExecutor
    return type(f"Guarded{kind.__name__}", (GuardedAgentExecutor, kind), {"__module__": kind.__module__})


def _guarded_model(fields: dict[str, Any], options: Mapping[str, Any]) -> GuardedChatModel | BrixCallbackHandler:
    """Guard the agent's model, in the executor's fields; where it cannot be reached, by callbacks."""
    agent = fields["agent"]
    runnable: Any = getattr(agent, "runnable", None)
    models = list(_models_in(runnable))
    if len(models) != 1 or not isinstance(models[0], BaseChatModel):
        return BrixCallbackHandler(**options)
    guarded: Any = guard(models[0], **options)
    fields["agent"] = agent.model_copy(update={"runnable": rebind(runnable, models[0], guarded)})
    return cast(GuardedChatModel, guarded)


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


def _arguments(tool_input: str | dict[str, Any]) -> str:
    return tool_input if isinstance(tool_input, str) else json.dumps(tool_input, default=str)


def _in_session(name: str | None) -> AbstractContextManager[Any]:
    return nullcontext() if name is None else session(name)


__all__ = ["GuardedAgentExecutor", "guard_agent_executor"]
