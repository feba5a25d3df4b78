"""The peer's side of the measurement; runs in the peer's own environment, with nothing of ours imported.

Reads lines ``{"messages": [...], "calls": m, "log": false}`` and answers each with ``{"bare": us, "guarded": us}``:
microseconds for a call of a client that does nothing, alone and behind brix-protocol's guards; with ``log`` also
``"logged"``, behind the same guards with a log.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any


class BareClient:
    """What the peer takes for a client of the OpenAI SDK, doing nothing."""

    def __init__(self) -> None:
        self.chat = self.completions = self
        self._number = 0
        self._answer = SimpleNamespace(
            choices=[SimpleNamespace(message=SimpleNamespace(content="Paris"))],
            usage=SimpleNamespace(prompt_tokens=10, completion_tokens=5, total_tokens=15),
        )

    async def create(self, **kwargs: Any) -> SimpleNamespace:
        self._number += 1
        self._answer.choices[0].message.content = f"Paris {self._number}"  # never the same: no loop
        return self._answer


async def per_call(call: Callable[[], Awaitable[Any]], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        await call()
    return (time.perf_counter() - started) / calls * 1e6


async def main() -> None:
    from brix import BRIX  # only there in the peer's environment

    bare = BareClient()
    options: dict[str, Any] = {
        "max_cost_usd": 1e9,
        "requests_per_minute": 10**9,
        "per_call_timeout": 60.0,
        "exact_loop_detection": True,
        "max_context_tokens": 10**9,
        "max_retries": 2,
    }
    guarded = BRIX.wrap(bare, **options)
    logged = BRIX.wrap(bare, **options, log_path=tempfile.mkdtemp())
    for line in sys.stdin:
        task = json.loads(line)
        messages, calls = task["messages"], task["calls"]
        figures = {
            "bare": await per_call(partial(bare.create, messages=messages), calls),
            "guarded": await per_call(partial(guarded.complete, messages, model="gpt-4o-mini"), calls),
        }
        if task.get("log"):
            figures["logged"] = await per_call(partial(logged.complete, messages, model="gpt-4o-mini"), calls)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
