"""Nobody waits longer than agreed: for a call, for the first token, for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from brix_core.demo.faults import Behaviour, Reply, SlowFirstToken, StalledStream
from brix_core.demo.scene import Case, Check, Scenario, Side
from brix_core.demo.stage import Application, Stage, Work
from brix_core.errors import BrixTimeoutError, TimeoutKind
from brix_core.options import GuardOptions

LIMITS: Final[GuardOptions] = {"per_call_timeout": 0.2, "first_token_timeout": 0.15, "idle_timeout": 0.1}
SLACK: Final = 0.25
SLOW: Final = 0.4
PATIENCE: Final = 0.4
"""Seconds after which the demo stops waiting for what has no end."""
LONG_PATIENCE: Final = 20.0
QUESTION: Final = "Tell me a story."


async def _ask(app: Application) -> None:
    await app.ask(QUESTION)


async def _ask_blocking(app: Application) -> None:
    await app.ask(QUESTION, blocking=True)


async def _stream(app: Application) -> None:
    await app.stream(QUESTION)


async def play(stage: Stage) -> Sequence[Case]:
    """One case for each limit, and one in which the application wants what there is."""
    late, stalled = Reply("At last.", latency=SLOW), StalledStream(after=6)
    return [
        await _case(stage, "per_call_timeout", "call", 0.2, _ask_blocking, late),
        await _case(stage, "first_token_timeout", "first_token", 0.15, _stream, SlowFirstToken(SLOW)),
        await _case(stage, "idle_timeout", "idle", 0.1, _stream, stalled),
        await _partial(stage, stalled),
    ]


async def _case(stage: Stage, label: str, kind: TimeoutKind, limit: float, work: Work, behaviour: Behaviour) -> Case:
    guarded = await stage.run(stage.guarded(**LIMITS), work, default=behaviour)
    patience = PATIENCE if isinstance(behaviour, StalledStream) else LONG_PATIENCE
    bare = await stage.run(stage.bare(), work, default=behaviour, give_up=patience)
    error = guarded.last.error
    return Case(
        label=label,
        guarded=guarded,
        bare=bare,
        did=_outcome(guarded),
        without=_outcome(bare),
        checks=(
            Check("each limit applies", isinstance(error, BrixTimeoutError) and error.kind == kind),
            Check("no wait outlives its limit", limit <= guarded.last.seconds <= limit + SLACK),
        ),
    )


async def _partial(stage: Stage, behaviour: Behaviour) -> Case:
    options = LIMITS.copy()
    options["on_timeout"] = "return_partial"
    guarded = await stage.run(stage.guarded(**options), _ask, default=behaviour)
    bare = await stage.run(stage.bare(), _ask, default=behaviour, give_up=PATIENCE)
    return Case(
        label='"return_partial"',
        guarded=guarded,
        bare=bare,
        did=_outcome(guarded),
        without=_outcome(bare),
        checks=(Check("a partial answer is handed over", guarded.last.answered and bool(guarded.last.text)),),
    )


def _outcome(side: Side) -> str:
    last = side.last
    if last.gave_up:
        return f"no end to it: the demo gave up after {last.seconds:.1f} s"
    if last.error is not None:
        part = f', having shown "{last.text}"' if last.text else ""
        return f"{last.error_name} after {last.seconds:.2f} s{part}"
    return f'answered after {last.seconds:.2f} s: "{last.text}"'


SCENARIOS = (
    Scenario(
        name="timeout",
        title="The provider is slow, or falls silent",
        options=", ".join(f"{name}={value}" for name, value in LIMITS.items()),
        story=f"Answers that take {SLOW} s, and streams that stall with the connection open; at last, the same with "
        'on_timeout="return_partial".',
        play=play,
        rank=30,
    ),
)
