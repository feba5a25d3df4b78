"""No prompt has more tokens than it may."""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.faults import Reply
from brix_core.demo.scene import Case, Check, Scenario, Side
from brix_core.demo.stage import Application, Stage

LIMIT = 2_000
RESERVE = 500  # the default of context_reserve_tokens
DOCUMENT = "It was a dark and stormy night; the rain fell in torrents. " * 500


async def _ask(app: Application) -> None:
    await app.ask(f"What is this about?\n\n{DOCUMENT}\n\nAnswer in one word.")


async def play(stage: Stage) -> Sequence[Case]:
    """A prompt that is too long: cut where the user wants it so, refused otherwise."""
    bare = await stage.run(stage.bare(), _ask, default=Reply("Weather."))
    refusing = stage.guarded(max_context_tokens=LIMIT)
    cutting = stage.guarded(max_context_tokens=LIMIT, context_overflow="truncate")
    cut = await stage.run(cutting, _ask, default=Reply("Weather."), session="cut")
    refused = await stage.run(refusing, _ask, default=Reply("Weather."), session="refused")
    return [
        Case(
            label='context_overflow="truncate"',
            guarded=cut,
            bare=bare,
            did=f'"{cut.last.text}" to a prompt of {_tokens(cut):,} tokens, its middle cut out',
            without=f'"{bare.last.text}" to a prompt of {_tokens(bare):,} tokens, all of them paid for',
            checks=(Check("what was sent fits", 0 < _tokens(cut) <= LIMIT - RESERVE < _tokens(bare)),),
        ),
        Case(
            label='context_overflow="raise"',
            guarded=refused,
            bare=bare,
            did=f"{refused.last.error_name}, {refused.sent} requests",
            without=f"{bare.sent} request of {_tokens(bare):,} tokens",
            checks=(Check("what does not fit is not sent", refused.sent == 0 and refused.refused == 1),),
        ),
    ]


def _tokens(side: Side) -> int:
    return max((record.prompt_tokens for record in side.records), default=0)


SCENARIOS = (
    Scenario(
        name="context",
        title="The prompt is too long",
        options=f"max_context_tokens={LIMIT}",
        story="A document of thousands of tokens is put into the question.",
        play=play,
        rank=66,
    ),
)
