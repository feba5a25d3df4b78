"""An application that asks the same again and again gets out of it, or an end."""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.faults import Reply
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.stage import Application, Stage

PATIENCE = 12
STUCK = "I am still looking into it."
WAY_OUT = "There is nothing to be found; this is what I know."


async def _until_told_otherwise(app: Application) -> None:
    for _ in range(PATIENCE):
        await app.ask("Who stole the tarts?")
        if not app.results[-1].answered or app.results[-1].text != STUCK:
            break


async def play(stage: Stage) -> Sequence[Case]:
    """A model that finds another way when told to, and one that does not."""
    helped = (Reply(STUCK), Reply(STUCK), Reply(STUCK), Reply(WAY_OUT))
    led_out = await stage.run(
        stage.guarded(exact_loop_detection=True),
        _until_told_otherwise,
        script=helped,
        default=Reply(STUCK),
        session="led out",
    )
    stopped = await stage.run(
        stage.guarded(exact_loop_detection=True), _until_told_otherwise, default=Reply(STUCK), session="stopped"
    )
    bare = await stage.run(stage.bare(), _until_told_otherwise, default=Reply(STUCK))
    return [
        Case(
            label="asked for another way",
            guarded=led_out,
            bare=bare,
            did=f'"{led_out.last.text}" at the {led_out.sent}th request',
            without=f"{bare.sent} requests, and the same answer {bare.answered} times",
            checks=(Check("the third repetition is asked for again, otherwise", led_out.sent == len(helped)),),
        ),
        Case(
            label="in vain",
            guarded=stopped,
            bare=bare,
            did=f"{stopped.last.error_name} after {stopped.sent} requests; {bare.sent - stopped.sent} saved",
            without=f"{bare.sent} requests, if nobody has more patience",
            checks=(Check("there is an end to it", stopped.last.error_name == "BrixLoopError" and stopped.sent == 5),),
        ),
    ]


SCENARIOS = (
    Scenario(
        name="loop",
        title="The conversation goes round in circles",
        options="exact_loop_detection=True",
        story=f"The application asks until it hears something new, {PATIENCE} times at most.",
        play=play,
        rank=64,
    ),
)
