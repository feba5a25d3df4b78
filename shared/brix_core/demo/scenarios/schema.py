"""What the application gets fits its schema, or it is told."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from brix_core.demo.faults import JsonReply, Reply
from brix_core.demo.scene import Case, Check, Result, Scenario
from brix_core.demo.stage import Application, Stage


class City(BaseModel):
    """What is asked for."""

    name: str
    people: int


MENDABLE = Reply("Here you are:\n```json\n{'name': 'Oslo', 'people': 717710,}  // as of 2024\n```")
WRONG = Reply('{"name": "Bergen", "people": "many"}')
RIGHT = JsonReply({"name": "Bergen", "people": 291940})


def _fits(result: Result) -> bool:
    try:
        City.model_validate_json(result.text)
    except ValueError:
        return False
    return result.answered


async def play(stage: Stage) -> Sequence[Case]:
    """Two questions; one answer can be mended, the other must be asked for again."""

    async def work(app: Application) -> None:
        await app.ask("Tell me about the city of Oslo, as JSON.")
        await app.ask("Tell me about the city of Bergen, as JSON.")

    guarded = await stage.run(stage.guarded(response_schema=City), work, script=(MENDABLE, WRONG, RIGHT))
    bare = await stage.run(stage.bare(), work, script=(MENDABLE, WRONG))
    fit, bare_fit = (sum(map(_fits, side.results)) for side in (guarded, bare))
    return [
        Case(
            guarded=guarded,
            bare=bare,
            did=f"{fit} of 2 answers fit the schema: one was mended here, the other asked for again",
            without=f"{bare_fit} of 2 answers fit the schema; the application has to notice",
            checks=(
                Check("every answer fits the schema", fit == 2),
                Check("no request was paid for what could be mended", guarded.sent == bare.sent + 1),
            ),
        )
    ]


SCENARIOS = (
    Scenario(
        name="schema",
        title="Answers that do not fit",
        options="response_schema=City",
        story="JSON in prose, with single quotes and a comment; then JSON in the right form with a wrong value.",
        play=play,
        rank=68,
    ),
)
