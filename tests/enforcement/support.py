"""Engines over the local server, asked in all their ways; adapters whose provider is in memory, for virtual time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from brix_core import InMemoryCache, MemoryStore
from brix_core.cache import MISSING
from brix_core.endpoint import Endpoint
from brix_core.enforcement import BaseLLMAdapter, EnforcedOutput, EnforcementEngine, PydanticValidator, RetryPolicy
from tests.support.schemas import CITY_JSON, OSLO, VALID, City

Ask = Callable[..., Awaitable[EnforcedOutput]]

QUICK = RetryPolicy(max_attempts=3, base_delay=0.001, max_delay=0.01)
"""Retries without waiting."""


def engine_of(adapter: Any, validator: Any = None, **options: Any) -> EnforcementEngine:
    """An engine with a store of its own, whose retries do not wait."""
    options.setdefault("store", MemoryStore())
    options.setdefault("retry_policy", QUICK)
    return EnforcementEngine(adapter, validator or PydanticValidator(), **options)


async def by_enforce(engine: EnforcementEngine, prompt: Any, schema: Any = City, **kwargs: Any) -> EnforcedOutput:
    return await engine.enforce(prompt, schema, **kwargs)


async def by_enforce_sync(engine: EnforcementEngine, prompt: Any, schema: Any = City, **kwargs: Any) -> EnforcedOutput:
    return await asyncio.to_thread(engine.enforce_sync, prompt, schema, **kwargs)


async def by_batch(engine: EnforcementEngine, prompt: Any, schema: Any = City, **kwargs: Any) -> EnforcedOutput:
    [output] = await engine.enforce_batch([prompt], schema, **kwargs)
    return output


async def by_batch_sync(engine: EnforcementEngine, prompt: Any, schema: Any = City, **kwargs: Any) -> EnforcedOutput:
    [output] = await asyncio.to_thread(engine.enforce_batch_sync, [prompt], schema, **kwargs)
    return output


async def by_stream(engine: EnforcementEngine, prompt: Any, schema: Any = City, **kwargs: Any) -> EnforcedOutput:
    async with engine.enforce_stream(prompt, schema, **kwargs) as stream:
        items = [item async for item in stream]
    assert items[-1] is stream.result
    return stream.result


async def by_stream_sync(engine: EnforcementEngine, prompt: Any, schema: Any = City, **kwargs: Any) -> EnforcedOutput:
    def read() -> EnforcedOutput:
        with engine.enforce_stream(prompt, schema, **kwargs) as stream:
            items = list(stream)
        assert items[-1] is stream.result
        return stream.result

    return await asyncio.to_thread(read)


WHOLE: tuple[Any, ...] = (by_enforce, by_enforce_sync, by_batch, by_batch_sync)
STREAMS: tuple[Any, ...] = (by_stream, by_stream_sync)

every_whole = pytest.mark.parametrize("ask", list(WHOLE), ids=lambda ask: ask.__name__)
every_stream = pytest.mark.parametrize("ask", list(STREAMS), ids=lambda ask: ask.__name__)
every_way = pytest.mark.parametrize("ask", [*WHOLE, *STREAMS], ids=lambda ask: ask.__name__)
every_single = pytest.mark.parametrize("ask", [by_enforce, by_enforce_sync, *STREAMS], ids=lambda ask: ask.__name__)
both = pytest.mark.parametrize("ask", [by_enforce, by_enforce_sync], ids=lambda ask: ask.__name__)


class InMemoryAdapter(BaseLLMAdapter):
    """An adapter over an endpoint of the tests."""

    def __init__(self, endpoint: Any, provider: str = "openai") -> None:
        super().__init__(endpoint.name)
        self.provider = provider
        self._made = endpoint

    def text_of(self, chunk: Any) -> str:
        return str(chunk)

    def _endpoint(self) -> Endpoint:
        made: Endpoint = self._made
        return made

    async def _aprobe(self, timeout: float) -> None:
        return None

    def _probe(self, timeout: float) -> None:
        return None


@dataclass
class Collected:
    """A collector that keeps what it gets in a list."""

    examples: list[dict[str, Any]] = field(default_factory=list)

    def collect(self, **example: Any) -> None:
        self.examples.append(example)


class Durable(InMemoryCache):
    """Writes its values down, as far as JSON goes; its methods say where they ran."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.threads.add(threading.get_ident())
        kept = super().get(key, MISSING)
        return default if kept is MISSING else json.loads(kept)

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        self.threads.add(threading.get_ident())
        super().set(key, json.dumps(value), ttl)


__all__ = [
    "CITY_JSON",
    "OSLO",
    "QUICK",
    "STREAMS",
    "VALID",
    "WHOLE",
    "Ask",
    "City",
    "Collected",
    "Durable",
    "InMemoryAdapter",
    "both",
    "by_batch",
    "by_batch_sync",
    "by_enforce",
    "by_enforce_sync",
    "by_stream",
    "by_stream_sync",
    "engine_of",
    "every_single",
    "every_stream",
    "every_way",
    "every_whole",
]
