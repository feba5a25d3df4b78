"""A stream that ignores its output cap is cut off there."""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.faults import EndlessRepetition
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.stage import Application, Stage

OUTPUT = 200
REPETITIONS = 500


async def play(stage: Stage) -> Sequence[Case]:
    """A model caught in a loop."""

    async def work(app: Application) -> None:
        await app.stream("Repeat after me.")

    loop = EndlessRepetition(limit=REPETITIONS, chunk_delay=0.001)
    guarded = await stage.run(stage.guarded(max_tokens=OUTPUT), work, default=loop)
    bare = await stage.run(stage.bare(max_tokens=OUTPUT), work, default=loop)
    sent = [side.stats.completion_tokens if side.stats else 0 for side in (guarded, bare)]
    return [
        Case(
            guarded=guarded,
            bare=bare,
            did=f"cut off at the cap: {guarded.last.error_name}; the server had sent {sent[0]:,} tokens, "
            f"${guarded.spent:.4f} charged",
            without=f"{sent[1]:,} tokens, ${bare.billed:.4f}; it ended only because the demo server's loop does",
            checks=(
                Check("the stream stops at the cap", guarded.last.error_name == "BrixBudgetError"),
                Check("the connection is closed", guarded.stats is not None and guarded.stats.aborted == 1),
            ),
        )
    ]


SCENARIOS = (
    Scenario(
        name="endless",
        title="The model repeats itself without end",
        options="max_cost_usd=1.00",
        story=f"A stream that ignores max_tokens={OUTPUT} and goes on and on.",
        play=play,
        rank=70,
    ),
)
