"""The spend of a session never exceeds its cap, however many calls are in flight."""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.faults import Reply
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.stage import Application, Stage

CALLS = 40
CAP = 0.05
OUTPUT = 1_000
LONG_ANSWER = Reply("one two three four five six seven eight nine ten " * 99)


async def play(stage: Stage) -> Sequence[Case]:
    """Forty calls at once; the money is enough for four."""

    async def work(app: Application) -> None:
        await app.ask_all([f"Write report number {number}." for number in range(CALLS)])

    guarded = await stage.run(stage.guarded(max_cost_usd=CAP, max_tokens=OUTPUT), work, default=LONG_ANSWER)
    bare = await stage.run(stage.bare(max_tokens=OUTPUT), work, default=LONG_ANSWER)
    return [
        Case(
            guarded=guarded,
            bare=bare,
            did=f"{guarded.answered} answered, {guarded.refused} refused: ${guarded.spent:.4f} of ${CAP:.2f} spent",
            without=f"{bare.answered} answered: ${bare.billed:.4f} spent, {bare.billed / CAP:.1f} times the cap",
            checks=(
                Check("the server's bill is no higher", guarded.billed <= CAP < bare.billed),
                Check(
                    "a refused call sends nothing",
                    guarded.refused > 0 and guarded.sent == CALLS - guarded.refused,
                ),
            ),
        )
    ]


SCENARIOS = (
    Scenario(
        name="budget",
        title="Too many calls for the money",
        options=f"max_cost_usd={CAP}",
        story=f"{CALLS} calls at once to gpt-4o, about one cent each; the session may spend five cents.",
        play=play,
        rank=10,
    ),
)
