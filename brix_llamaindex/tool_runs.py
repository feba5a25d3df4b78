"""What guarded tools have done in each run of an agent, and whether it goes round in circles.

A run is known by the id that LlamaIndex's workflows put into the instrumentation's tags. Calls outside of any run
belong to their session.

What a model is told of one call it reads when it is asked again: until then, further calls of the same batch are no
sign that it goes on. Guarded LLMs note when they are asked (`model_asked`); with others, every call is taken as one.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, Literal

from llama_index.core.instrumentation.dispatcher import active_instrument_tags  # type: ignore[attr-defined]

from brix_core import checks
from brix_core.errors import BrixLoopError, BrixRunLimitError
from brix_core.looping.loops import Loop, shortened, tool_loop
from brix_core.looping.steps import Step
from brix_core.session import current_session_id

MAX_RUNS: Final = 1_000
"""Runs that are remembered; beyond them, the longest unused is forgotten."""

_RUN_ID: Final = "llamaindex.run_id"
_LOOP: Final = "loop"


@dataclass(frozen=True, kw_only=True)
class ToolConfig:
    """Options of guarded tools.

    Attributes:
        max_calls: How often each tool may be called in a run.
        exact_loop_threshold: How often the same call with the same result makes a loop.
        on_loop: Tell the model, or raise at once.
        diversity_attempts: How often to tell the model before raising.
        loop_window: Calls of a run that are looked back on.
    """

    max_calls: int | None = None
    exact_loop_threshold: int = 3
    on_loop: Literal["inject_diversity", "raise"] = "inject_diversity"
    diversity_attempts: int = 1
    loop_window: int = 10

    def __post_init__(self) -> None:
        if self.max_calls is not None:
            checks.whole("max_calls", self.max_calls, 1)
        checks.whole("exact_loop_threshold", self.exact_loop_threshold, 2)
        checks.one_of("on_loop", self.on_loop, ("inject_diversity", "raise"))
        checks.whole("diversity_attempts", self.diversity_attempts, 0)
        checks.whole("loop_window", self.loop_window, 2)

    @property
    def reach(self) -> int:
        """How many calls must be looked at to see every loop."""
        return max(self.loop_window, self.exact_loop_threshold + 1)


@dataclass(slots=True)
class _Run:
    """What is kept of a run."""

    steps: deque[Step]
    calls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    told_in: dict[str, int | None] = field(default_factory=dict)
    ending: Exception | None = None


class _Turns:
    """How often the model of each run has been asked, as far as guarded LLMs know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, int] = OrderedDict()

    def add(self, run: str) -> None:
        with self._lock:
            self._asked[run] = self._asked.pop(run, 0) + 1
            if len(self._asked) > MAX_RUNS:
                self._asked.popitem(last=False)

    def get(self, run: str | None) -> int | None:
        with self._lock:
            return None if run is None else self._asked.get(run)


_turns: Final = _Turns()


def model_asked() -> None:
    """Note that the model of the run around this call is asked, and so reads what it was told before."""
    run = active_instrument_tags.get().get(_RUN_ID)
    if run is not None:
        _turns.add(run)


class ToolRuns:
    """The runs of some tools that belong together.

    Args:
        config: Their options.

    Example:
        >>> runs = ToolRuns(ToolConfig())
        >>> [runs.judge("search", "{}", "nothing") is None for _ in range(3)]
        [True, True, False]
    """

    def __init__(self, config: ToolConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._runs: OrderedDict[tuple[str | None, str | None], _Run] = OrderedDict()

    def admit(self, name: str) -> str | None:
        """Count a call; words for the model when it is not to be made.

        Args:
            name: The tool's name.

        Raises:
            BrixRunLimitError: The model has been told, and goes on.
        """
        limit = self.config.max_calls
        with self._lock:
            run = self._here()
            if limit is None or run.calls[name] < limit:
                run.calls[name] += 1
                return None
            run.refused[name] += 1
            if self._tells(run, f"max_calls of {name}"):
                return (
                    f"{name} was not called: it may be called {limit} times, and has been. Do not call it again. "
                    "Answer from what you know by now, and say what is missing."
                )
            error = BrixRunLimitError(
                f"{name} may be called max_calls={limit} times in a run, and was asked for "
                f"{limit + run.refused[name]} times; raise it, or change the prompt or the tools",
                limit=limit,
            )
            run.ending = error
            raise error

    def judge(self, name: str, arguments: str, result: str) -> str | None:
        """Add what a call gave; words for the model when it closes a loop.

        Args:
            name: The tool's name.
            arguments: Its arguments, JSON.
            result: What it gave.

        Raises:
            BrixLoopError: The model has been told, and goes on.
        """
        threshold = self.config.exact_loop_threshold
        with self._lock:
            run = self._here()
            run.steps.append(Step(((name, arguments, result),), (name,), (result,)))
            # Cycles are left to the guard of the LLM: only a prompt tells which calls were made side by side.
            loop = tool_loop(list(run.steps), threshold=threshold, max_cycle=1)
            if loop is None or not loop.closed:
                run.told.pop(_LOOP, None)
                return None
            if self._tells(run, _LOOP):
                return _told(loop, result)
            error = BrixLoopError(
                f"{loop.what} came up {loop.repeats} times without anything new (exact_loop_threshold={threshold}), "
                f"and telling the model so {self._chances} times was in vain. Change the prompt or the tools, or raise "
                "the limit",
                kind=loop.kind,
                repeats=loop.repeats,
                what=loop.what,
            )
            run.ending = error
            raise error

    def is_ending(self, error: BaseException | None) -> bool:
        """Whether it is the error that is to end this run."""
        if error is None:
            return False
        with self._lock:
            run = self._runs.get(run_key())
            return run is not None and run.ending is error

    @property
    def _chances(self) -> int:
        return self.config.diversity_attempts if self.config.on_loop == "inject_diversity" else 0

    def _tells(self, run: _Run, what: str) -> bool:
        """Whether the model is told once more; what it is told within one batch counts as once."""
        if self._chances == 0:
            return False
        turn = _turns.get(run_key()[1])
        if turn is None or run.told_in.get(what) != turn:
            run.told[what] += 1
            run.told_in[what] = turn
        return run.told[what] <= self._chances

    def _here(self) -> _Run:
        key = run_key()
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(deque(maxlen=self.config.reach))
            if len(self._runs) > MAX_RUNS:
                self._runs.popitem(last=False)
        self._runs.move_to_end(key)
        return run


def run_key() -> tuple[str | None, str | None]:
    """The session and the run that a call belongs to."""
    return current_session_id(), active_instrument_tags.get().get(_RUN_ID)


def _told(loop: Loop, result: str) -> str:
    return (
        f"You are going round in circles: {loop.what} came up {loop.repeats} times without anything new. The result "
        f"is still: {shortened(result)}\nDo not make this call again. Try other arguments or another tool; if there "
        "is none, answer from what you know by now, and say what is missing."
    )


__all__ = ["MAX_RUNS", "ToolConfig", "ToolRuns", "model_asked", "run_key"]
