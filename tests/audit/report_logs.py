"""Logs and reports for the tests of reports."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import openai
from typer.testing import CliRunner

from brix_core import BRIX, MemoryStore, session
from brix_core.audit.canonical import digest
from brix_core.audit.directory import Item, LogDirectory
from brix_core.audit.log import close_logs
from brix_core.cli import app
from brix_core.demo import DemoServer, RateLimited, Reply, ServerError
from tests.audit.logs import Parrot

PRICES = {"gpt-4o-mini": (1e-6, 2e-6), "other": (1e-6, 2e-6)}


def calls_of(server: DemoServer, folder: Path) -> list[dict[str, Any]]:
    """Real calls: a retry, a failover, a refusal, a loop, a failure, and some without a price."""
    server.reset()
    server.script(RateLimited(retry_after="0"), Reply("one"), Reply("two"), ServerError(), ServerError(), Reply("3"))
    with openai.OpenAI(api_key="test", base_url=server.base_url) as inner:
        priced = BRIX.wrap(
            inner, model="gpt-4o-mini", session_id="alice", store=MemoryStore(), max_cost_usd=0.002, prices=PRICES,
            max_retries=1, backoff_base=1.01, fallbacks=[(inner, "other")], log_path=folder,
        )  # fmt: skip
        priced.complete_sync("Capital of France?")
        with session("bob"):
            priced.complete_sync("b")
            priced.complete_sync("c")
        with contextlib.suppress(Exception):
            priced.complete_sync("Hello " * 3_000)
    unpriced = BRIX.wrap(
        Parrot(), session_id="carol", exact_loop_detection=True, exact_loop_threshold=2, on_loop="raise",
        log_path=folder,
    )  # fmt: skip
    for prompt in ("x", "x", "fail"):
        with contextlib.suppress(Exception):
            unpriced.complete_sync(prompt)
    close_logs()
    return priced.get_traces() + unpriced.get_traces()


def entry_of(number: int, **fields: Any) -> dict[str, Any]:
    moment = datetime.fromtimestamp(1_763_600_000 + number, UTC).isoformat()
    attempt = {"endpoint": "openai:api/gpt", "model": "gpt", "after_ms": 0.5, "latency_ms": 99.0, "outcome": "ok",
               "error": None, "status": None, "prompt_tokens": 7, "completion_tokens": 3, "cost_usd": 2e-6}  # fmt: skip
    return {
        "run_id": f"{number:08x}-0000-4000-8000-000000000000", "session_id": f"user-{number % 50}",
        "timestamp": moment, "model": "gpt", "provider": "openai", "outcome": "ok", "error": None,
        "error_message": None, "stopped_by": None, "stream": False, "prompt_tokens": 7, "completion_tokens": 3,
        "usage_estimated": False, "cost_usd": 2e-6, "latency_ms": 100.0 + number % 1_000, "first_chunk_ms": None,
        "prompt_hash": "a" * 64, "response_hash": f"{number:064x}", "finish_reason": "stop", "partial_text": None,
        "attempts": [attempt], "decisions": [], "guards_active": ["budget"], **fields,
    }  # fmt: skip


def write_entries(folder: Path, entries: Iterable[dict[str, Any]]) -> None:
    """As the log's thread does it, in batches; each entry is the first of a client of its own."""
    log = LogDirectory(folder, None, 64 * 2**20, time.time)
    batch: list[Item] = []
    for number, entry in enumerate(entries):
        batch.append(Item("call", {**entry, "sequence": 1, "chain_hash": _genesis(entry["session_id"])}, str(number)))
        if len(batch) == 5_000:
            log.append(batch, sync=False)
            batch = []
    log.append(batch, sync=False)
    log.close()


@cache
def _genesis(session_id: str) -> str:
    return digest({"genesis": session_id})


def report_of(folder: Path, output: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["report", str(folder), "-o", str(output), *options])
    assert done.exit_code == 0, done.output
    return done.output


def figures_in(path: Path) -> dict[str, Any]:
    """What the page was given."""
    found = json.loads(path.read_text().partition('id="figures">')[2].partition("</script>")[0])
    assert isinstance(found, dict)
    return found
