"""Loops of a classic agent: its steps as its executor takes them, and what it is told when they recur."""

from __future__ import annotations

import json
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from langchain_core.agents import AgentAction, AgentFinish, AgentStep
from langchain_core.runnables import run_in_executor

from brix_core.embedding import as_embedder
from brix_core.errors import BrixLoopError
from brix_core.guards.loop import LoopConfig
from brix_core.looping.likeness import Likeness, comparable, loop_by_meaning, of_step, recurs
from brix_core.looping.loops import Loop, diversity_text, told, tool_loop
from brix_core.looping.steps import Step
from brix_core.turns import written


class Batch:
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
        return Step.of(
            (one.action.tool, _arguments(one.action.tool_input), written(one.observation)) for one in self.done
        )


class _Run:
    """What is remembered of a run."""

    def __init__(self, reach: int) -> None:
        self.steps: deque[Step] = deque(maxlen=reach)
        self.nudges = 0


class LoopWatch:
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

    def judged(self, run_manager: Any, batch: Batch) -> AgentStep:
        """The last result of a batch, with the nudge when it closes a loop.

        Raises:
            BrixLoopError: The agent is not to be asked again.
        """
        run = self._run(run_manager)
        run.steps.append(batch.as_step())
        return self._answered(run, batch, self._loop(list(run.steps)))

    async def ajudged(self, run_manager: Any, batch: Batch) -> AgentStep:
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

    def _answered(self, run: _Run, batch: Batch, loop: Loop | None) -> AgentStep:
        last = batch.done[-1]
        if loop is None:
            run.nudges = 0
            return last
        config = self._config
        if config.on_loop == "raise" or run.nudges >= config.diversity_attempts:
            vain = f"; asking for another way {run.nudges} times (diversity_attempts) was in vain" if run.nudges else ""
            raise BrixLoopError(
                f"{told(loop)} (exact_loop_threshold={config.exact_loop_threshold}){vain}. Change the prompt or the "
                "tools, end the run, or raise the limit",
                kind=loop.kind,
                repeats=loop.repeats,
                cycle_length=loop.cycle_length,
                what=loop.what,
            )
        run.nudges += 1
        text = config.loop_diversity_prompt or diversity_text(loop)
        return AgentStep(action=last.action, observation=f"{written(last.observation)}\n\n{text}")


def _arguments(tool_input: str | dict[str, Any]) -> str:
    return tool_input if isinstance(tool_input, str) else json.dumps(tool_input, default=str)


__all__ = ["Batch", "LoopWatch"]
