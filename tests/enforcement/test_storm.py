"""Everything at once, over real HTTP: 500 calls, a server that fails three times of ten, one adapter down."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence

from brix_core import BrixError, MemoryStore
from brix_core.demo import CutStream, DemoServer, JsonReply, MalformedJson, RateLimited, Reply, ServerError
from brix_core.enforcement import (
    CircuitBreakerConfig,
    EnforcedOutput,
    EnforcementEngine,
    FailoverChain,
    OpenAIAdapter,
    PydanticValidator,
    RateLimiter,
    RetryPolicy,
)
from tests.support.hasty import HastyClock
from tests.support.schemas import OSLO, City

CALLS = 500
REQUESTS, TOKENS = 600, 90_000
FACTOR = 12.0
"""How much faster the guards' minutes pass than ours."""

ARRIVAL = 0.1
"""Seconds by which a request may arrive later at the server than it was let go, and so in another window."""


def most_in(times: Sequence[float], seconds: float, weights: Sequence[int] | None = None) -> int:
    """The most that came in any window of so many seconds."""
    most = held = first = 0
    counts = weights or [1] * len(times)
    for time, count in zip(times, counts, strict=True):
        held += count
        while times[first] < time - seconds:
            held -= counts[first]
            first += 1
        most = max(most, held)
    return most


async def test_a_storm(server: DemoServer) -> None:
    dice = random.Random(7)
    good = JsonReply(OSLO.model_dump())
    faults = (RateLimited(retry_after="2"), ServerError(), MalformedJson(), Reply("Sorry, no JSON today."), CutStream())
    for _ in range(4 * CALLS):
        server.script(dice.choice(faults) if dice.random() < 0.3 else good)
    clock, store = HastyClock(FACTOR), MemoryStore()
    with DemoServer() as down:
        down.default = ServerError()
        adapters = [
            OpenAIAdapter(api_key="test", model="gpt-4o", base_url=down.base_url),
            OpenAIAdapter(api_key="test", model="gpt-4o-mini", base_url=server.base_url),
        ]
        chain = FailoverChain(adapters, cooldown=10.0)
        engine = EnforcementEngine(
            chain,
            PydanticValidator(),
            rate_limiter=RateLimiter(requests_per_minute=REQUESTS, tokens_per_minute=TOKENS, adaptive=False),
            use_circuit_breaker=True,
            circuit_breaker_config=CircuitBreakerConfig(failure_threshold=5, success_threshold=2, timeout=10.0),
            retry_policy=RetryPolicy(max_attempts=4),
            max_cost_usd=50.0,
            session_id="storm",
            store=store,
            clock=clock,
            trace_buffer_size=2 * CALLS,
        )
        before = asyncio.all_tasks()
        states: list[str] = []

        async def watch() -> None:
            for number in itertools.count():
                states.append(chain.health()[0].breaker.state)
                if number == 30:
                    down.default = good
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        outputs: list[EnforcedOutput] = await asyncio.gather(
            *(engine.enforce(f"Population of city number {number}?", City, max_tokens=60) for number in range(CALLS))
        )
        for _ in range(3):  # whoever was open has cooled down by now
            await asyncio.sleep(12.0 / FACTOR)
            outputs.append(await engine.enforce("And of Oslo?", City, max_tokens=60))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert asyncio.all_tasks() == before
        assert server.wait_until_idle()
        assert down.wait_until_idle()
        requests = [*server.requests, *down.requests]
        recovered = [record for record in down.requests if record.outcome == "answered"]
        for adapter in adapters:
            await adapter.aclose()

    # Every call ended in success, or in a failure that says what it was.
    assert all(output.data == OSLO if output.success else isinstance(output.error, BrixError) for output in outputs)
    assert all(output.validation.errors for output in outputs if not output.success)
    assert sum(output.success for output in outputs) >= 0.97 * CALLS
    # The breaker opened, and closed again once the adapter was well.
    assert "open" in states
    assert states[-1] == "closed"
    assert recovered
    # What the guards counted is what the servers saw, and within the limits.
    assert sum(output.attempts for output in outputs) == len(requests) > 1.3 * CALLS
    assert len(engine.get_traces()) == len(outputs)
    arrivals = sorted((record.started_at, record.prompt_tokens + record.completion_tokens) for record in requests)
    times, tokens = zip(*arrivals, strict=True)
    for seconds in (1.0, 10.0, 60.0):
        window = seconds / FACTOR
        burst = REQUESTS / 60
        allowed = REQUESTS / 60 * (window + ARRIVAL) * FACTOR + burst
        assert most_in(times, window) <= allowed, (seconds, most_in(times, window), allowed)
    minute = 60.0 / FACTOR
    assert most_in(times, minute, tokens) <= TOKENS * (1 + (minute + ARRIVAL) / minute)  # a full bucket, and its refill
    assert store.balance("budget:storm").reserved == 0
    outcomes = Counter(record.outcome for record in requests)
    assert len(outcomes) > 1
