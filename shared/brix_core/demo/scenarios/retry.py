"""What may pass is tried again, what will not is not; every attempt is counted."""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.faults import BadRequest, RateLimited, Reply, ServerError
from brix_core.demo.scene import Case, Check, Scenario, Side
from brix_core.demo.stage import Application, Stage

ASKED_WAIT = 0.3
ANSWER = "Third time lucky."


async def _ask(app: Application) -> None:
    await app.ask("Are you there?")


async def play(stage: Stage) -> Sequence[Case]:
    """A passing failure, a fatal one, and one that does not pass."""
    return [await _passing(stage), await _fatal(stage), await _lasting(stage)]


async def _passing(stage: Stage) -> Case:
    script = (ServerError(500), RateLimited(retry_after=str(ASKED_WAIT)), Reply(ANSWER))
    guarded = await stage.run(stage.guarded(max_retries=2, max_backoff=0.4), _ask, script=script)
    bare = await stage.run(stage.bare(), _ask, script=script)
    arrivals = [record.started_at for record in guarded.records]
    pause = arrivals[-1] - arrivals[-2] if len(arrivals) > 1 else 0.0
    return Case(
        label="500, then 429",
        guarded=guarded,
        bare=bare,
        did=f'{_outcome(guarded)}; waited {pause:.2f} s after "Retry-After: {ASKED_WAIT}"',
        without=_outcome(bare),
        checks=(
            Check("passing failures are survived", guarded.last.text == ANSWER and guarded.sent == 3),
            Check("Retry-After is honoured", pause >= ASKED_WAIT),
        ),
    )


async def _fatal(stage: Stage) -> Case:
    bad = BadRequest("The context is too long.", code="context_length_exceeded")
    guarded = await stage.run(stage.guarded(max_retries=2, max_backoff=0.4), _ask, default=bad)
    bare = await stage.run(stage.bare(), _ask, default=bad)
    return Case(
        label="400",
        guarded=guarded,
        bare=bare,
        did=f"{_outcome(guarded)}: asking again would not help",
        without=_outcome(bare),
        checks=(Check("fatal errors are not retried", guarded.sent == 1 and not guarded.last.answered),),
    )


async def _lasting(stage: Stage) -> Case:
    down = ServerError(500, retry_after="0.1")
    guarded = await stage.run(stage.guarded(max_retries=2, max_backoff=0.2), _ask, default=down)
    bare = await stage.run(stage.bare(own_retries=True), _ask, default=down)
    return Case(
        label="500 for good",
        guarded=guarded,
        bare=bare,
        did=f"{_outcome(guarded)}; all {guarded.counted} attempts are in the trace",
        without=f"{_outcome(bare)}, through the framework's own retries: checked by no budget, in no trace",
        checks=(Check("max_retries is the limit", guarded.sent == 3 and guarded.last.error_name == "BrixRetryError"),),
    )


def _outcome(side: Side) -> str:
    last, times = side.last, f"{side.sent} request{'s' if side.sent != 1 else ''}"
    return f'"{last.text}" after {times}' if last.answered else f"{last.error_name} after {times}"


SCENARIOS = (
    Scenario(
        name="retry",
        title="The provider fails",
        options="max_retries=2",
        story="Failures that pass, one that is the caller's fault, and one that lasts.",
        play=play,
        rank=40,
    ),
)
