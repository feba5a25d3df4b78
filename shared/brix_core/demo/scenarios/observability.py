"""Every call leaves exactly one trace entry, and the entries form a chain of hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson

from brix_core.demo.faults import BadRequest, Reply, ServerError
from brix_core.demo.scene import Case, Check, Exhibit, Scenario, Side
from brix_core.demo.stage import Application, Stage


def broken_link(traces: Sequence[dict[str, Any]]) -> int | None:
    """The first entry, counted from 1, whose predecessor is not what it was; None when the chain is whole."""
    for number, (previous, entry) in enumerate(pairwise(traces), start=2):
        canonical = orjson.dumps(previous, option=orjson.OPT_SORT_KEYS)
        if entry["chain_hash"] != hashlib.sha256(canonical).hexdigest():
            return number
    return None


def exhibit(side: Side) -> Exhibit:
    """The trace, as a table."""
    rows = (
        (
            str(entry["sequence"]),
            entry["outcome"],
            entry["error"] or "",
            str(len(entry["attempts"])),
            f"${entry['cost_usd'] or 0:.6f}",
            f"{entry['latency_ms']:.0f} ms",
            entry["chain_hash"][:16],
        )
        for entry in side.traces
    )
    columns = ("no.", "outcome", "error", "attempts", "cost", "latency", "hash of the one before")
    return Exhibit("model.get_traces(), oldest first", columns, tuple(rows))


async def play(stage: Stage) -> Sequence[Case]:
    """A call that goes well, one that is retried, one that fails, and a stream nobody reads to its end."""

    async def work(app: Application) -> None:
        for question in ("One", "Two", "Three"):
            await app.ask(question)
        await app.stream("Four", leave_after=3)

    story = Reply("A long story. " * 10, chunk_delay=0.02)
    script = (Reply("Well."), ServerError(500), Reply("Well, too."), BadRequest("No."), story)
    guarded = await stage.run(stage.guarded(max_retries=2, max_backoff=0.1), work, script=script)
    bare = await stage.run(stage.bare(), work, script=(*script[:2], *script[3:]))
    outcomes = [trace["outcome"] for trace in guarded.traces]
    forged = [dict(trace) for trace in guarded.traces]
    forged[1]["cost_usd"] = 0.0
    found = broken_link(forged)
    return [
        Case(
            guarded=guarded,
            bare=bare,
            did=f"{len(outcomes)} entries: {', '.join(outcomes)}; setting the cost of entry 2 to $0 breaks "
            f"the chain at entry {found}",
            without=f"{len(bare.results)} calls, no record of any",
            checks=(
                Check("one entry for each call", outcomes == ["ok", "ok", "failed", "abandoned"]),
                Check("the chain is whole", broken_link(guarded.traces) is None),
                Check("a forgery shows", found == 3),
            ),
            exhibit=exhibit(guarded),
        )
    ]


SCENARIOS = (
    Scenario(
        name="observability",
        title="Who called what, when, for how much?",
        options="max_retries=2",
        story="Four calls: one goes well, one is retried, one fails, one stream is abandoned half-way.",
        play=play,
        rank=90,
    ),
)
