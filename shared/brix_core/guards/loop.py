"""LoopGuard: a conversation that goes round in circles is led out of them, or stopped (G10).

What a loop is stands in `brix_core.looping.loops`. The guard looks in three places:

- before a call, at the steps an agent has taken since the user last spoke. They are read from the prompt, so agents
  need not tell it anything; where prompts are shortened on their way, they may (`CallRequest.taken`). With
  ``on_loop="raise"`` nothing is sent; otherwise the prompt goes out with a turn that says what recurs and asks for
  another way;
- after a call, at the answers this very prompt has had in the session. Where one recurs, it is asked for again with
  such a turn; an answer that was streamed cannot be taken back, so the next call of the prompt carries the turn;
- within an answer, at text that degenerates into repetition. A stream is cut off.

Of several answers to one prompt that are asked for side by side (`LogicalCall.sample`) only the first is remembered and
judged: they are meant to be alike. What is looked at before a call, and within an answer, holds for each.

After `diversity_attempts` such turns in vain, `BrixLoopError`. An application does not see the turns and does not send
them again; once its conversation has got on, they are counted afresh.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from brix_core import checks
from brix_core.call import CallRequest, CallResponse
from brix_core.embedding import as_embedder
from brix_core.errors import BrixConfigurationError, BrixGuardError, BrixLoopError
from brix_core.flow import Effect, Flow, Proceed, Run
from brix_core.looping.likeness import Likeness, comparable, loop_by_meaning, of_response, of_step, recurs
from brix_core.looping.loops import Happened, Loop, diversity_text, response_loop, shortened, told, tool_loop
from brix_core.looping.repetition import Repetition, RepetitionWatch, repetition_in
from brix_core.looping.steps import steps
from brix_core.session import PerSession
from brix_core.turns import Turn

log = logging.getLogger(__name__)

MAX_CONVERSATIONS: Final = 64
"""Looping conversations of one session that are told apart; beyond them, the oldest is counted afresh."""

_Search = Generator[Effect, Any, Loop | None]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Options of the loop guard.

    Attributes:
        exact_loop_detection: Find answers that recur word for word. Activates the guard.
        exact_loop_threshold: How often the same makes a loop.
        semantic_loop_detection: Find answers and steps that recur in other words, too. Activates the guard.
        semantic_loop_threshold: The cosine from which two texts mean the same.
        tool_loop_detection: Find steps of agents that recur. Activates the guard.
        max_cycle_length: How many steps or answers may recur in turn, as in A-B-A-B.
        on_loop: Ask for another way, or raise at once.
        diversity_attempts: How often to ask for another way before raising.
        loop_window: Answers of a session, and steps of a conversation, that are looked back on.
        loop_diversity_prompt: What to say instead of the built-in text.
        embedder: For the semantic search; see `brix_core.embedding.as_embedder`.
    """

    exact_loop_detection: bool = False
    exact_loop_threshold: int = 3
    semantic_loop_detection: bool = False
    semantic_loop_threshold: float = 0.92
    tool_loop_detection: bool = True
    max_cycle_length: int = 4
    on_loop: Literal["inject_diversity", "raise"] = "inject_diversity"
    diversity_attempts: int = 2
    loop_window: int = 10
    loop_diversity_prompt: str | None = None
    embedder: Any = None

    def __post_init__(self) -> None:
        for name in ("exact_loop_detection", "semantic_loop_detection", "tool_loop_detection"):
            checks.flag(name, getattr(self, name))
        checks.whole("exact_loop_threshold", self.exact_loop_threshold, 2, 1_000)
        checks.fraction("semantic_loop_threshold", self.semantic_loop_threshold)
        checks.whole("max_cycle_length", self.max_cycle_length, 1, 100)
        checks.one_of("on_loop", self.on_loop, ("inject_diversity", "raise"))
        checks.whole("diversity_attempts", self.diversity_attempts, 0)
        checks.whole("loop_window", self.loop_window, 2, 10_000)
        prompt = self.loop_diversity_prompt
        if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
            raise BrixConfigurationError(f"loop_diversity_prompt must be a non-empty str, got {prompt!r}")
        if self.embedder is not None and not self.semantic_loop_detection:
            raise BrixConfigurationError("embedder has no effect without semantic_loop_detection=True")

    @property
    def reach(self) -> int:
        """How many steps or answers must be looked at to see every loop."""
        threshold = self.exact_loop_threshold
        return max(self.loop_window, threshold + 1, self.max_cycle_length * max(2, threshold - 1))


@dataclass(slots=True)
class _Answer:
    """An answer the session has had, after so many injections; `loop` is the one it closed."""

    prompt: str
    happened: Happened
    injections: int
    loop: Loop | None = None


class _State:
    """What is kept of a session."""

    def __init__(self, window: int) -> None:
        self.lock = threading.Lock()
        self.answers: deque[_Answer] = deque(maxlen=window)
        self.injected: OrderedDict[int, int] = OrderedDict()

    def to(self, prompt: str) -> list[_Answer]:
        """The answers to this prompt, oldest first."""
        with self.lock:
            return [answer for answer in self.answers if answer.prompt == prompt]

    def open_loop(self, prompt: str) -> tuple[Loop | None, int]:
        """The loop that the latest answer to this prompt closed, and how many injections there were."""
        answers = self.to(prompt) if self.answers else ()
        return (answers[-1].loop, answers[-1].injections) if answers else (None, 0)

    def count_injection(self, conversation: int, injections: int) -> None:
        """Remember how often this conversation has been asked for another way."""
        with self.lock:
            self.injected[conversation] = injections
            self.injected.move_to_end(conversation)
            if len(self.injected) > MAX_CONVERSATIONS:
                self.injected.popitem(last=False)


class LoopGuard:
    """Finds loops. See the module's docstring.

    Args:
        config: Its options.
    """

    name = "loop"

    def __init__(self, config: LoopConfig) -> None:
        self.config = config
        semantic = config.semantic_loop_detection
        self._likeness = Likeness(as_embedder(config.embedder), config.semantic_loop_threshold) if semantic else None
        self._find = {"threshold": config.exact_loop_threshold, "max_cycle": config.max_cycle_length}
        self._answers = config.exact_loop_detection or semantic
        self._texts = config.exact_loop_detection or config.tool_loop_detection
        self._states = PerSession(partial(_State, config.reach))

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one call."""
        state = self._states.of(request.session)
        if request.stream and self._texts:
            watch = RepetitionWatch(partial(self._cut, request))
            request = request.evolve(hooks=(*request.hooks, watch))
        if self._likeness is not None and not self._likeness.is_ready:
            try:
                yield Run(self._likeness.prepare)
            except BrixGuardError as error:
                self._without_embedder(request, error)
        prompt = request.conversation.sha256() if self._answers else ""
        turns = request.conversation.turns()

        loop = yield from self._loop_of_steps(request, turns)
        conversation = _conversation(request, turns) if loop is not None or state.injected else 0
        if loop is not None:
            injections = state.injected.get(conversation, 0)
            response = yield from self._ask_otherwise(request, proceed, loop, injections)
            if not request.call.sample:
                state.count_injection(conversation, injections + 1)
            injections = 0
        else:
            state.injected.pop(conversation, None)
            loop, injections = state.open_loop(prompt) if self._may_inject(0) else (None, 0)
            if loop is not None:
                injections = min(injections, self.config.diversity_attempts - 1)
                response = yield from self._ask_otherwise(request, proceed, loop, injections)
                injections += 1
            else:
                response = yield from proceed(request)

        while (loop := (yield from self._loop_of_answer(request, state, prompt, response, injections))) is not None:
            if request.call.streamed and self._may_inject(injections):
                request.call.decide("loop", "found", kind=loop.kind, repeats=loop.repeats)
                break  # the next call of this prompt is asked otherwise
            response = yield from self._ask_otherwise(request, proceed, loop, injections, response.text)
            injections += 1
        return response

    def _may_inject(self, injections: int) -> bool:
        return self.config.on_loop == "inject_diversity" and injections < self.config.diversity_attempts

    def _ask_otherwise(
        self, request: CallRequest, proceed: Proceed, loop: Loop, injections: int, answer: str = ""
    ) -> Flow:
        """Ask with a turn that tells of the loop, which `answer` has closed.

        Raises:
            BrixLoopError: That has been done often enough, or is not wanted.
        """
        if not self._may_inject(injections):
            raise self._error(request, loop, injections, answer)
        request.call.decide(
            "loop", "injected", kind=loop.kind, repeats=loop.repeats, what=loop.what, injection=injections + 1
        )
        text = self.config.loop_diversity_prompt or diversity_text(loop)
        conversation = request.conversation.adding(("user", text))
        return (yield from proceed(request.evolve(conversation=conversation)))

    def _loop_of_steps(self, request: CallRequest, turns: Sequence[Turn]) -> _Search:
        """The loop the conversation shows."""
        if not self.config.tool_loop_detection:
            return None
        reach = self.config.reach
        taken = steps(turns, reach) if request.taken is None else request.taken.steps[-reach:]
        if len(taken) < 2:
            return None
        loop = tool_loop(taken, **self._find)
        if self._likeness is not None and (loop is None or not loop.closed):
            loop = (yield from self._loop_by_meaning(request, [of_step(step) for step in taken])) or loop
        return self._noted(request, loop)

    def _loop_of_answer(
        self, request: CallRequest, state: _State, prompt: str, response: CallResponse, injections: int
    ) -> _Search:
        """The loop this answer closes, after so many injections; the answer joins the window."""
        if response.partial:
            return None
        if self._texts and not request.call.streamed:
            repetition = repetition_in(response.text)
            if repetition is not None:
                return _loop_of_text(repetition)
        if not prompt or request.call.sample:
            return None
        answer = _Answer(prompt, of_response(response), injections)
        loop: Loop | None = None
        if self._likeness is not None:
            happened = [*(one.happened for one in state.to(prompt)), answer.happened]
            loop = yield from self._loop_by_meaning(request, happened)
        with state.lock:  # joined and judged at once: of several callers one closes the loop
            state.answers.append(answer)
            happened = [one.happened for one in state.answers if one.prompt == prompt]
            exact = response_loop(happened, **self._find) if self.config.exact_loop_detection else None
            loop = exact if exact is not None and (loop is None or exact.closed) else loop
            answer.loop = loop if loop is not None and loop.closed else None
        return self._noted(request, loop)

    def _loop_by_meaning(self, request: CallRequest, happened: Sequence[Happened]) -> _Search:
        likeness = self._likeness
        if likeness is None or not recurs(happened):
            return None
        texts = comparable(happened)
        compare = partial(likeness.among, texts)
        try:
            alike = compare() if likeness.knows(texts) else (yield Run(compare))
        except BrixGuardError as error:
            self._without_embedder(request, error)
            return None
        return loop_by_meaning(happened, alike, **self._find)

    def _without_embedder(self, request: CallRequest, error: BrixGuardError) -> None:
        """It failed: no reason to lose a call or its answer, since what is the same word for word is still found."""
        log.warning("the loop guard compares word for word only: %s", error)
        request.call.decide("loop", "embedder_failed", error=str(error)[:200])

    def _noted(self, request: CallRequest, loop: Loop | None) -> Loop | None:
        """The loop when it is closed; one that is about to be is noted only."""
        if loop is not None and not loop.closed:
            request.call.decide("loop", "repeating", kind=loop.kind, repeats=loop.repeats, what=loop.what)
            return None
        return loop

    def _cut(self, request: CallRequest, repetition: Repetition) -> BrixLoopError:
        return self._error(request, _loop_of_text(repetition), 0)

    def _error(self, request: CallRequest, loop: Loop, injections: int, answer: str = "") -> BrixLoopError:
        decision = "cut" if request.call.streamed and loop.kind == "stream" else "stopped"
        request.call.decide("loop", decision, kind=loop.kind, repeats=loop.repeats, what=loop.what)
        vain = f"; asking for another way {injections} times (diversity_attempts) was in vain" if injections else ""
        limit, advice = f" (exact_loop_threshold={self.config.exact_loop_threshold})", "tools, end the run, or raise it"
        if loop.kind == "stream":
            limit, advice = "", "sampling parameters, or end the run"
        return BrixLoopError(
            f"{told(loop)}{limit}{vain}. Change the prompt or the {advice}",
            kind=loop.kind,
            repeats=loop.repeats,
            cycle_length=loop.cycle_length,
            what=loop.what,
            partial=request.call.partial_text or answer,
        )


def _conversation(request: CallRequest, turns: Sequence[Turn]) -> int:
    """What tells conversations of a session apart, however long they grow."""
    return hash(tuple(turns[:2]) if request.taken is None else request.taken.run)


def _loop_of_text(repetition: Repetition) -> Loop:
    head, space, tail = repetition.unit.partition(" ")  # it may begin in the middle of a word
    return Loop("stream", repetition.repeats, 1, f"the text {shortened(f'{tail}{head}{space}')!r}")


__all__ = ["MAX_CONVERSATIONS", "LoopConfig", "LoopGuard"]
