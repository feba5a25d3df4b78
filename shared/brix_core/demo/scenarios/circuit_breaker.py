"""A provider that is down is given a rest, and probed when the rest is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from brix_core.demo.faults import ServerError, SlowFirstToken
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.stage import Application, Stage

CALLS = 6
THRESHOLD = 3
REST = 0.25
TOLL = 0.08


async def play(stage: Stage) -> Sequence[Case]:
    """Calls to a provider that is down; a rest; one more when it is back."""

    async def work(app: Application) -> None:
        for number in range(CALLS):
            await app.ask(f"Question {number}")
        await asyncio.sleep(REST)
        await app.ask("Are you back?")

    script = (SlowFirstToken(TOLL, then=ServerError(503)),)
    model = stage.guarded(
        circuit_breaker=True,
        circuit_failure_threshold=THRESHOLD,
        circuit_open_seconds=REST,
        circuit_success_threshold=1,
    )
    guarded = await stage.run(model, work, script=script * THRESHOLD)
    bare = await stage.run(stage.bare(), work, script=script * CALLS)
    refused = sum(result.error_name == "BrixCircuitOpenError" for result in guarded.results)
    lost = [sum(result.seconds for result in side.results[:CALLS]) for side in (guarded, bare)]
    return [
        Case(
            guarded=guarded,
            bare=bare,
            did=f"{THRESHOLD} failures opened the circuit, {refused} calls were refused at once "
            f"({lost[0]:.2f} s lost); the probe after {REST} s was answered and closed it",
            without=f"{CALLS} calls failed, one by one ({lost[1]:.2f} s lost); the next was answered",
            checks=(
                Check(
                    f"{THRESHOLD} failures, then silence",
                    guarded.sent == THRESHOLD + 1 and refused == CALLS - THRESHOLD,
                ),
                Check("a probe closes the circuit", guarded.last.answered),
            ),
        )
    ]


SCENARIOS = (
    Scenario(
        name="circuit-breaker",
        title="The provider is down",
        options=f"circuit_breaker=True, circuit_failure_threshold={THRESHOLD}, circuit_open_seconds={REST}",
        story=f"{CALLS} calls while it answers 503, each after {TOLL} s; then it is well again.",
        play=play,
        rank=50,
    ),
)
