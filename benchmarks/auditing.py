"""What the audit log costs: added microseconds a call, beside the peer's, and entries a second.

The peer writes each entry in the caller's thread and flushes nothing; ours counts the whole work, that of the writer's
thread included: calls are timed until the last entry has been written.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from brix_core import BRIX, MemoryStore
from brix_core.audit.log import flush_logs

Figure = tuple[str, float, str, bool | None, str]

ROUNDS = 5
CALLERS = 100
ENTRIES = 5_000


class Parrot:
    """A client that does nothing."""

    async def complete(self, prompt: str, **options: Any) -> str:
        return "Paris"


def added_per_call(
    bare: Any,
    options: dict[str, Any],
    messages: list[dict[str, str]],
    measure: Callable[[], dict[str, float]],
    turns: int,
) -> Figure:
    """``log_path`` on both sides, in turn.

    Args:
        bare: A client of the OpenAI SDK that does nothing.
        options: The guards around it.
        messages: The prompt.
        measure: Measures the peer.
        turns: How many messages that are.
    """
    ours, theirs = [], []
    calls = 1_000 if turns < 500 else 100  # the wait for the writer at the end is shared by all
    with tempfile.TemporaryDirectory() as folder:
        plain = BRIX.wrap(bare, **options, store=MemoryStore())
        logged = BRIX.wrap(bare, **options, store=MemoryStore(), log_path=folder)

        async def run() -> None:
            for _ in range(ROUNDS):
                answer = measure()
                theirs.append(answer["logged"] - answer["guarded"])
                without = await _per_call(partial(plain.complete, messages, model="gpt-4o-mini"), calls)
                ours.append(await _per_call(partial(logged.complete, messages, model="gpt-4o-mini"), calls) - without)

        asyncio.run(run())
        flush_logs()
    us, them = statistics.median(ours), statistics.median(theirs)
    detail = f"ours +{us:,.0f} us, brix-protocol +{them:,.0f} us"
    return f"log_path, {turns} turns: added by ours / by brix-protocol 0.5.0", us / them, "<= 1", us <= them, detail


async def _per_call(call: Callable[[], Awaitable[Any]], calls: int) -> float:
    await call()
    flush_logs()
    started = time.perf_counter()
    for _ in range(calls):
        await call()
    flush_logs()
    return (time.perf_counter() - started) / calls * 1e6


def entries_a_second() -> list[Figure]:
    """`CALLERS` at once, each waiting for its entry to be on the disk, beside nobody waiting."""

    async def run(folder: Path, **options: Any) -> float:
        client = BRIX.wrap(Parrot(), log_path=folder, record=False, **options)

        async def caller() -> None:
            for _ in range(ENTRIES // CALLERS):
                await client.complete("Capital of France?")

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        await asyncio.to_thread(flush_logs)
        return ENTRIES / (time.perf_counter() - started)

    rates: dict[str, list[float]] = {"never": [], "interval": [], "always": [], "alone": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for fsync in ("never", "interval"):
                rates[fsync].append(asyncio.run(run(Path(folder, f"{fsync}{number}"), log_fsync=fsync)))
            always = run(Path(folder, f"always{number}"), log_fsync="always", strict_mode=True)
            rates["always"].append(asyncio.run(always))
            rates["alone"].append(_alone(Path(folder, f"alone{number}")))
    never, interval, always_, alone = (statistics.median(rates[name]) for name in rates)
    return [
        (
            f"entries a second: strict, fsync=always, {CALLERS} callers / without waiting",
            always_ / never,
            "",
            None,
            f"{always_:,.0f} a second; one caller alone {alone:,.0f}; not waiting {never:,.0f}, "
            f"fsync=interval {interval:,.0f}",
        )
    ]


def _alone(folder: Path) -> float:
    client = BRIX.wrap(Parrot(), log_path=folder, record=False, strict_mode=True, log_fsync="always")
    started, calls = time.perf_counter(), ENTRIES // 20
    for _ in range(calls):
        client.complete_sync("Capital of France?")
    return calls / (time.perf_counter() - started)


__all__ = ["added_per_call", "entries_a_second"]
