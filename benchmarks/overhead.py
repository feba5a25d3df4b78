"""What the guards cost: added microseconds for a call and for a chunk, beside LangChain's retry and beside a peer.

``make bench`` runs it and writes ``docs/benchmarks.md``. All subjects of a row are timed in turn, several rounds, in
one run; a figure is the median of its rounds, and what counts is the ratio. ``--check`` exits with 1 when a target is
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from benchmarks import auditing, regulated_recall, repairs, scanning
from benchmarks.fake import CHUNKS, BareModel, as_dicts, history
from brix_core import MemoryStore
from brix_core.client import BRIX
from brix_langchain import GuardedChatModel, guard

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "benchmarks.md"
PEER = ROOT / ".venv-peer" / "bin" / "python"
ROUNDS = 15

UNTIMED: dict[str, Any] = {
    "max_cost_usd": 1e6,
    "requests_per_minute": 1e9,
    "tokens_per_minute": 1e12,
    "max_retries": 2,
    "circuit_breaker": True,
    "per_step_timeout": 3_600.0,
    "exact_loop_detection": True,
    "max_context_tokens": 10_000_000,
}
"""Every guard but the schema's; of the time limits only the one that needs no second thread."""

ALL: dict[str, Any] = {**UNTIMED, "per_call_timeout": 60.0, "first_token_timeout": 60.0, "idle_timeout": 60.0}


@dataclass(frozen=True)
class Row:
    """One line of the report: a measured ratio and its target."""

    what: str
    ratio: float
    target: str
    met: bool | None
    detail: str

    def cells(self) -> str:
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        return f"| {self.what} | {self.ratio:.2f} | {self.target} | {verdict} | {self.detail} |"


def guarded(options: dict[str, Any]) -> GuardedChatModel:
    """A bare model behind guards, with one fallback, in a world of its own."""
    return guard(BareModel(), **options, fallbacks=[BareModel()], store=MemoryStore())


def in_turn(subjects: Sequence[Callable[[], Any]], calls: int) -> list[float]:
    """Median microseconds of each subject; one round of every subject, then the next round."""
    rounds: list[list[float]] = [[] for _ in subjects]
    for _ in range(ROUNDS):
        for figures, subject in zip(rounds, subjects, strict=True):
            gc.collect()
            started = time.perf_counter()
            for _ in range(calls):
                subject()
            figures.append((time.perf_counter() - started) / calls * 1e6)
    return [statistics.median(figures) for figures in rounds]


async def ain_turn(subjects: Sequence[Callable[[], Awaitable[Any]]], calls: int) -> list[float]:
    """The same on an event loop."""
    rounds: list[list[float]] = [[] for _ in subjects]
    for _ in range(ROUNDS):
        for figures, subject in zip(rounds, subjects, strict=True):
            gc.collect()
            started = time.perf_counter()
            for _ in range(calls):
                await subject()
            figures.append((time.perf_counter() - started) / calls * 1e6)
    return [statistics.median(figures) for figures in rounds]


def against_with_retry(turns: int) -> list[Row]:
    """invoke and ainvoke: what the guards add, beside what ``.with_retry()`` adds."""
    bare, messages, calls = BareModel(), history(turns), 200 if turns < 500 else 40
    retrying, timed, untimed = bare.with_retry(), guarded(ALL), guarded(UNTIMED)
    target = 0.5 if turns < 1_000 else 1.0
    rows = []
    models: Sequence[Any] = (bare, retrying, timed, untimed)
    sync = in_turn([lambda model=model: model.invoke(messages) for model in models], calls)
    rows.append(_row(f"invoke, {turns} turns", sync, 2, target))
    rows.append(_row(f"invoke without a call timeout, {turns} turns", sync, 3, target))
    loop = asyncio.run(ain_turn([lambda model=model: model.ainvoke(messages) for model in models], calls))
    rows.append(_row(f"ainvoke, {turns} turns", loop, 2, target))
    return rows


def _row(what: str, figures: Sequence[float], subject: int, target: float) -> Row:
    bare, retry, guards = figures[0], figures[1] - figures[0], figures[subject] - figures[0]
    ratio = guards / retry
    return Row(
        f"{what}: guards / with_retry",
        ratio,
        f"<= {target}",
        ratio <= target,
        f"bare {bare:.0f} us, with_retry +{retry:.0f}, guards +{guards:.0f}",
    )


def per_chunk() -> list[Row]:
    """What the guards add to each chunk of a stream."""
    bare, timed, untimed = BareModel(), guarded(ALL), guarded(UNTIMED)

    numbers = itertools.count()

    def read(model: Any) -> None:
        for _ in model.stream(f"Count, {next(numbers)}."):
            pass

    async def aread(model: Any) -> None:
        async for _ in model.astream(f"Count, {next(numbers)}."):
            pass

    models = (bare, timed, untimed)
    sync = [figure / CHUNKS for figure in in_turn([lambda model=model: read(model) for model in models], 1)]
    loop = [
        figure / CHUNKS for figure in asyncio.run(ain_turn([lambda model=model: aread(model) for model in models], 1))
    ]
    return [
        _chunk_row("stream", sync[0], sync[1]),
        _chunk_row("stream without time limits", sync[0], sync[2]),
        _chunk_row("astream", loop[0], loop[1]),
        _chunk_row("astream without time limits", loop[0], loop[2]),
    ]


def _chunk_row(what: str, bare: float, with_guards: float) -> Row:
    added = with_guards - bare
    return Row(f"{what}: guarded / bare chunk", with_guards / bare, "<= 3 us added", added <= 3.0, f"{added:+.2f} us")


class Peer:
    """brix-protocol in its own environment, one line in, one line out."""

    def __init__(self) -> None:
        core = find_spec("llama_index.core")
        assert core is not None
        assert core.submodule_search_locations is not None
        ranks = Path(core.submodule_search_locations[0]) / "_static" / "tiktoken_cache"
        self._process = subprocess.Popen(
            [str(PEER), str(ROOT / "benchmarks" / "peer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TIKTOKEN_CACHE_DIR": str(ranks)},
        )

    def measure(self, messages: list[dict[str, str]], calls: int, *, log: bool = False) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"messages": messages, "calls": calls, "log": log}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


class BareClient(openai.AsyncOpenAI):
    """A client of the OpenAI SDK that does nothing."""

    @cached_property
    def chat(self) -> Any:
        answer = ChatCompletion.model_validate(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "gpt-4o-mini",
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris"}}
                ],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }
        )

        numbers = itertools.count()

        async def create(**kwargs: Any) -> ChatCompletion:
            answer.choices[0].message.content = f"Paris {next(numbers)}"  # never the same: no loop
            return answer

        return SimpleNamespace(completions=SimpleNamespace(create=create))


def against_peer(turns: int) -> list[Row]:
    """``complete()`` behind each one's guards, on the same messages; the two are timed in turn."""
    if not PEER.exists():
        print(f"no peer in {PEER.parent.parent.name}: its rows are left out (make bench installs it)", file=sys.stderr)
        return []
    messages, calls = as_dicts(history(turns)), 100 if turns < 500 else 15
    bare = BareClient(api_key="none")
    ours = BRIX.wrap(bare, **ALL, store=MemoryStore())
    peer, mine, theirs = Peer(), [], []

    async def per_call(call: Callable[[], Awaitable[Any]]) -> float:
        await call()  # the other one has just had the processor's caches
        started = time.perf_counter()
        for _ in range(100):
            await call()
        return (time.perf_counter() - started) / 100 * 1e6

    async def both() -> None:
        for _ in range(ROUNDS // 3):
            answer = peer.measure(messages, calls)
            theirs.append(answer["guarded"] - answer["bare"])
            guarded = await per_call(partial(ours.complete, messages, model="gpt-4o-mini"))
            mine.append(guarded - await per_call(partial(bare.chat.completions.create, messages=messages)))

    try:
        asyncio.run(both())
    finally:
        peer.close()
    us, them = statistics.median(mine), statistics.median(theirs)
    aimed = turns >= 1_000
    return [
        Row(
            f"complete(), {turns} turns: brix-protocol 0.5.0 / ours",
            them / us,
            ">= 50" if aimed else "",
            them / us >= 50 if aimed else None,
            f"brix-protocol +{them:,.0f} us, ours +{us:,.0f}",
        )
    ]


def of_the_log() -> list[Row]:
    """The audit log: what it adds beside the peer's, and how many entries it takes."""
    rows = []
    if PEER.exists():
        peer = Peer()
        try:
            for turns in (1, 1_000):
                messages = as_dicts(history(turns))
                measure = partial(peer.measure, messages, 100 if turns < 500 else 15, log=True)
                figure = auditing.added_per_call(BareClient(api_key="none"), ALL, messages, measure, turns)
                rows.append(Row(*figure))
        finally:
            peer.close()
    return [*rows, *(Row(*figure) for figure in auditing.entries_a_second())]


def memory() -> Row:
    """Growth of memory over 100,000 calls in one session, after the first 5,000."""
    client = BRIX.wrap(
        BareClient(api_key="none"), max_cost_usd=1e9, requests_per_minute=1e9, max_retries=2, store=MemoryStore()
    )

    async def run(calls: int) -> None:
        for number in range(calls):
            await client.complete(f"question number {number}", model="gpt-4o-mini")

    asyncio.run(run(5_000))
    tracemalloc.start()
    asyncio.run(run(5_000))
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    asyncio.run(run(90_000))
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    growth = (after - before) / 1e3
    return Row(
        "memory after 100,000 calls in a session / after 10,000",
        after / before,
        "flat",
        growth < 500,
        f"{growth:+.0f} kB of {before / 1e3:,.0f} kB traced",
    )


def report(rows: Sequence[Row], sections: Sequence[str] = ()) -> str:
    """The page."""
    lines = [
        "# Benchmarks",
        "",
        f"Measured by `make bench` on 2 cores, Python {platform.python_version()}. All subjects of a row are timed in",
        "turn in one run; figures are medians, and only ratios carry over to another machine. A turn is a message of",
        "history.",
        "",
        "Around the model are: budget, rate limit (requests and tokens), retry, circuit breaker, failover, timeouts",
        "(per step, per call, first token, idle), loop (answers, tools, streams), context and observability. A",
        "blocking call with a call timeout is handed to a worker thread, so that its caller is released in time",
        "whatever the client does; that hand-over is most of the difference between the `invoke` rows with and",
        "without one",
        "(see [decision 0009](decisions/0009-time-limits-without-threads-that-hang.md)).",
        "",
        "brix-protocol runs with its budget, rate limit, timeout, loop (exact), context, retry and observability",
        "guards; ours with all of the above. It has no streams.",
        "",
        "| what | ratio | target | | figures |",
        "|---|---:|---|---|---|",
        *(row.cells() for row in rows),
        "",
        *sections,
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--no-report", action="store_true", help="print only")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for turns in (1, 100, 1_000):
        rows += against_with_retry(turns)
    rows += per_chunk()
    for turns in (1, 1_000):
        rows += against_peer(turns)
    rows += of_the_log()
    rows.append(memory())
    rows += [Row(*figure) for figure in scanning.figures()]
    page = report(rows, repairs.section())
    print(page)
    if not arguments.no_report:
        before = REPORT.read_text(encoding="utf-8") if REPORT.exists() else ""
        REPORT.write_text(page + regulated_recall.kept(before), encoding="utf-8")
    return 1 if arguments.check and any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
