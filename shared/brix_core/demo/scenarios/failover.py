"""When one model fails, the next one answers; the budget is the same."""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.faults import Reply, ServerError
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.stage import Application, Stage

SECOND = "gpt-4o-mini"
ANSWER = "Here is your summary."


async def play(stage: Stage) -> Sequence[Case]:
    """The first model is overloaded."""

    async def work(app: Application) -> None:
        await app.ask("Summarise this.")

    script = (ServerError(503), Reply(ANSWER))
    guarded = await stage.run(stage.guarded(fallbacks=[SECOND]), work, script=script)
    bare = await stage.run(stage.bare(), work, script=script)
    models = [record.model for record in guarded.records]
    return [
        Case(
            guarded=guarded,
            bare=bare,
            did=f'{models[0]} failed, {models[-1]} answered: "{guarded.last.text}"',
            without=f"{bare.last.error_name}: no answer",
            checks=(
                Check("the next model answers", guarded.last.text == ANSWER and models[1:] == [SECOND]),
                Check("the second model's price applies", abs(guarded.spent - guarded.billed) < 1e-9),
            ),
        )
    ]


SCENARIOS = (
    Scenario(
        name="failover",
        title="One model is down, another is not",
        options=f"fallbacks=[{SECOND}]",
        story="gpt-4o answers 503.",
        play=play,
        rank=60,
    ),
)
