"""One model serves many users; none spends another's money."""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.faults import Reply
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.stage import Application, Stage

CAP = 0.02
OUTPUT = 600
LONG_ANSWER = Reply("one two three four five six seven eight nine ten " * 50)


async def play(stage: Stage) -> Sequence[Case]:
    """Alice asks too much; Bob asks once."""

    async def many(app: Application) -> None:
        for number in range(8):
            await app.ask(f"Alice's question {number}")

    async def once(app: Application) -> None:
        await app.ask("Bob's question")

    model, bare = stage.guarded(max_cost_usd=CAP, max_tokens=OUTPUT), stage.bare(max_tokens=OUTPUT)
    alice = await stage.run(model, many, default=LONG_ANSWER, session="alice")
    bob = await stage.run(model, once, default=LONG_ANSWER, session="bob")
    alice_bare = await stage.run(bare, many, default=LONG_ANSWER)
    bob_bare = await stage.run(bare, once, default=LONG_ANSWER)
    owners = {trace["session_id"] for trace in bob.traces}
    return [
        Case(
            label="alice",
            guarded=alice,
            bare=alice_bare,
            did=f"{alice.answered} answered, {alice.refused} refused: ${alice.spent:.4f} of ${CAP:.2f} spent",
            without=f"{alice_bare.answered} answered: ${alice_bare.billed:.4f} spent",
            checks=(Check("each session has its own cap", alice.refused > 0),),
        ),
        Case(
            label="bob",
            guarded=bob,
            bare=bob_bare,
            did=f"{bob.answered} answered: ${bob.spent:.4f} of ${CAP:.2f} spent",
            without=f"{bob_bare.answered} answered: ${bob_bare.billed:.4f} spent, on the same account",
            checks=(Check("nobody pays for another", bob.answered == 1 and owners == {bob.session}),),
        ),
    ]


SCENARIOS = (
    Scenario(
        name="sessions",
        title="One user spends everybody's money",
        options=f"max_cost_usd={CAP}",
        story='One model, two users: `with brix_core.session("alice")` asks 8 times, "bob" once.',
        play=play,
        rank=80,
    ),
)
