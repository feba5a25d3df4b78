"""What the documentation we re-implement shows, run as it stands there, but for the names that are imported.

Adapters get one more argument, the address of the local server; the "key" is whatever one likes.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

import brix_core.enforcement as package
from brix_core.demo import DemoServer, JsonReply, Reply
from brix_core.enforcement import EnforcementEngine
from brix_core.enforcement.cache import InMemoryCache
from brix_core.enforcement.models import adapters as documented_adapters
from brix_core.enforcement.resilience import (
    PROVIDER_LIMITS,
    CircuitBreakerConfig,
    FailoverChain,
    PerProviderRateLimiter,
    RateLimiter,
    RetryPolicy,
)
from brix_core.enforcement.training.collector import DatasetCollector
from brix_core.enforcement.validators import JSONValidator, PydanticValidator

logger = logging.getLogger(__name__)


class Person(BaseModel):
    name: str
    age: int
    email: str


class SentimentAnalysis(BaseModel):
    sentiment: str = Field(description="positive, negative, or neutral")
    confidence: float = Field(ge=0.0, le=1.0)
    summary: str


JOHN: dict[str, Any] = {"name": "John Doe", "age": 30, "email": "john@example.com"}
POSITIVE: dict[str, Any] = {"sentiment": "positive", "confidence": 0.92, "summary": "It exceeded all expectations."}


@pytest.fixture
def OpenAIAdapter(server: DemoServer) -> Any:
    return partial(documented_adapters.OpenAIAdapter, base_url=server.base_url)


@pytest.fixture
def AnthropicAdapter(server: DemoServer) -> Any:
    return partial(documented_adapters.AnthropicAdapter, base_url=server.anthropic_base_url)


async def test_quick_start(server: DemoServer, OpenAIAdapter: Any) -> None:
    server.default = JsonReply(JOHN)
    adapter = OpenAIAdapter(api_key="your-key", model="gpt-4o-mini")
    validator = PydanticValidator()
    engine = EnforcementEngine(adapter=adapter, validator=validator, max_retries=3)
    result = await engine.enforce("Extract: John Doe is 30, contact at john@example.com", Person)
    assert result.data == Person(**JOHN)
    await adapter.aclose()


async def test_simple_enforcement_with_parameters(server: DemoServer, OpenAIAdapter: Any) -> None:
    server.default = JsonReply({"sentiment": "positive", "confidence": 0.95})
    adapter = OpenAIAdapter(api_key="key", model="gpt-4o-mini")
    validator = JSONValidator()
    engine = EnforcementEngine(adapter, validator)
    schema = {
        "type": "object",
        "properties": {"sentiment": {"type": "string"}, "confidence": {"type": "number"}},
        "required": ["sentiment", "confidence"],
    }
    result = await engine.enforce("Analyze sentiment: This product is amazing!", schema)
    assert result.data == {"sentiment": "positive", "confidence": 0.95}
    assert result.retry_count == 0
    result = await engine.enforce("prompt", schema, temperature=0.2, max_tokens=500, top_p=0.9)
    assert result.success
    assert server.requests[-1].body["max_tokens"] == 500
    await adapter.aclose()


async def test_production_configuration(
    server: DemoServer, OpenAIAdapter: Any, AnthropicAdapter: Any, tmp_path: Path
) -> None:
    openai = OpenAIAdapter(api_key="key1", model="gpt-4o-mini")
    anthropic = AnthropicAdapter(api_key="key2", model="claude-3-5-haiku-20241022")
    failover = FailoverChain([openai, anthropic])
    rate_limiter = PerProviderRateLimiter()
    rate_limiter.set_provider_limits("openai", **PROVIDER_LIMITS["openai"]["tier_1"].__dict__)
    rate_limiter.set_provider_limits("anthropic", **PROVIDER_LIMITS["anthropic"]["tier_1"].__dict__)
    circuit_config = CircuitBreakerConfig(failure_threshold=5, success_threshold=2, timeout=60.0)
    retry_policy = RetryPolicy(max_attempts=3, base_delay=1.0, max_delay=30.0, timeout=120.0)
    cache = InMemoryCache(max_size=100, default_ttl=3600)
    collector = DatasetCollector(output_dir=tmp_path / "training_data")
    engine = EnforcementEngine(
        adapter=failover,
        validator=PydanticValidator(),
        max_retries=3,
        cache=cache,
        rate_limiter=rate_limiter,
        retry_policy=retry_policy,
        use_circuit_breaker=True,
        circuit_breaker_config=circuit_config,
        collector=collector,
    )
    server.default = JsonReply(POSITIVE)
    result = await engine.enforce("Analyze: This product exceeded all my expectations!", SentimentAnalysis)
    assert result.data == SentimentAnalysis(**POSITIVE)
    await engine.enforce("Analyze: This product exceeded all my expectations!", SentimentAnalysis)
    assert cache.get_stats() == {"hits": 1, "misses": 1, "hit_rate": "50.00%"}
    assert len(server.requests) == 1
    collector.export_to_jsonl(tmp_path / "dataset.jsonl")
    [line] = (tmp_path / "dataset.jsonl").read_text().splitlines()
    assert "exceeded all" in line
    await openai.aclose()
    await anthropic.aclose()


async def test_failures_are_handled_as_shown(
    server: DemoServer,
    OpenAIAdapter: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    custom_policy = RetryPolicy(
        max_attempts=5,
        base_delay=2.0,
        max_delay=60.0,
        timeout=180.0,
        retryable_exceptions=(TimeoutError, ConnectionError),
    )
    adapter = OpenAIAdapter(api_key="key", model="gpt-4o-mini")
    engine = EnforcementEngine(
        adapter,
        PydanticValidator(),
        max_retries=5,
        retry_policy=custom_policy,
        rate_limiter=RateLimiter(requests_per_minute=60_000, tokens_per_minute=90_000),
    )
    server.default = Reply("I cannot.")
    result = await engine.enforce("prompt", Person)
    if result.success:
        pytest.fail("it cannot have been")
    else:
        assert f"Failed after {result.retry_count} retries" == "Failed after 5 retries"
        assert f"Errors: {result.validation.errors}".startswith("Errors: [ValidationError(path='$'")
    with caplog.at_level(logging.WARNING):
        if result.retry_count > 2:
            logger.warning("High retry count: %s for prompt: %s", result.retry_count, "prompt"[:50])
    assert "High retry count: 5" in caplog.text
    await adapter.aclose()


def test_documented_fields_are_there() -> None:
    fields = {
        "EnforcedOutput": {"data", "generation", "validation", "retry_count", "success"},
        "GenerationResponse": {"output", "provider", "model", "tokens_used", "latency_ms", "timestamp"},
        "ValidationResult": {
            *("status", "parsed_output", "errors", "raw_output", "repair_attempted", "repair_successful")
        },
        "ValidationError": {"path", "message"},
    }
    for name, documented in fields.items():
        assert getattr(package, name).model_fields.keys() >= documented
    assert {"VALID", "INVALID"} <= package.ValidationStatus.__members__.keys()
