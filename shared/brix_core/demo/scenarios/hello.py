"""A guarded model is used like any other."""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.faults import Reply
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.stage import Application, Stage

ANSWER = "Paris is the capital of France."


async def play(stage: Stage) -> Sequence[Case]:
    """A blocking call, one on the event loop, and a stream."""

    async def work(app: Application) -> None:
        await app.ask("What is the capital of France?", blocking=True)
        await app.ask("What is the capital of France?")
        await app.stream("What is the capital of France?")

    model = stage.guarded(max_cost_usd=1.0, requests_per_minute=6_000, per_call_timeout=10.0, max_retries=3)
    guarded = await stage.run(model, work, default=Reply(ANSWER))
    bare = await stage.run(stage.bare(), work, default=Reply(ANSWER))
    tokens = [sum(trace[key] or 0 for trace in guarded.traces) for key in ("prompt_tokens", "completion_tokens")]
    seen = guarded.stats
    return [
        Case(
            guarded=guarded,
            bare=bare,
            did=f'{guarded.answered} answers: "{guarded.last.text}"; ${guarded.spent:.6f} of $1.00 spent, '
            f"{len(guarded.traces)} trace entries",
            without=f'{bare.answered} answers: "{bare.last.text}"; no cap, and no record of what they cost',
            checks=(
                Check("the same answers", [r.text for r in guarded.results] == [r.text for r in bare.results]),
                Check(
                    "the guards know every token",
                    seen is not None and tokens == [seen.prompt_tokens, seen.completion_tokens],
                ),
                Check("the price is exact", abs(guarded.spent - guarded.billed) < 1e-9),
            ),
        )
    ]


SCENARIOS = (
    Scenario(
        name="hello",
        title="Nothing goes wrong",
        options="max_cost_usd=1.00, requests_per_minute=6000, per_call_timeout=10, max_retries=3",
        story="Three calls: blocking, asynchronous, streamed. The guarded model is used like any other.",
        play=play,
        rank=0,
    ),
)
