"""Calls start no faster than the rate."""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.ledger import RequestRecord
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.stage import Application, Stage

CALLS = 20
PER_MINUTE = 1_200
BURST = 5
WINDOW = 0.25


def busiest(records: Sequence[RequestRecord], window: float) -> int:
    """Most requests that arrived within any `window` seconds."""
    times = sorted(record.started_at for record in records)
    return max((sum(start <= time < start + window for time in times) for start in times), default=0)


async def play(stage: Stage) -> Sequence[Case]:
    """Twenty calls at once."""

    async def work(app: Application) -> None:
        await app.ask_all([f"Question {number:02}" for number in range(CALLS)])

    guarded = await stage.run(stage.guarded(requests_per_minute=PER_MINUTE, burst_capacity=BURST), work)
    bare = await stage.run(stage.bare(), work)
    least = (CALLS - BURST) / (PER_MINUTE / 60)
    most = busiest(guarded.records, WINDOW), busiest(bare.records, WINDOW)
    return [
        Case(
            guarded=guarded,
            bare=bare,
            did=f"{guarded.answered} answered, spread over {guarded.seconds:.1f} s: "
            f"never more than {most[0]} within {WINDOW} s",
            without=f"{bare.answered} answered: {most[1]} requests within {WINDOW} s",
            checks=(
                Check(f"{CALLS} calls take {least:.2f} s or more", guarded.seconds >= least - 0.01),
                Check("every call is answered", guarded.answered == CALLS),
            ),
        )
    ]


SCENARIOS = (
    Scenario(
        name="rate-limit",
        title="Too many calls at once",
        options=f"requests_per_minute={PER_MINUTE}, burst_capacity={BURST}",
        story=f"{CALLS} calls at once; the provider allows {PER_MINUTE // 60} a second, and {BURST} at a time.",
        play=play,
        rank=20,
    ),
)
