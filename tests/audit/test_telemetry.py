"""Spans and metrics, through OpenTelemetry's SDK and its in-memory exporters."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from brix_core import BRIX, BrixBudgetError, MemoryStore
from brix_core.client import BrixClient
from brix_core.demo import DemoServer, RateLimited, Reply, ServerError

PRICES = {"gpt-4o-mini": (1e-6, 2e-6)}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    found = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield found
    provider.shutdown()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    found = InMemoryMetricReader()
    provider = MeterProvider([found])
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", provider)
    assert metrics.get_meter_provider() is provider
    yield found
    provider.shutdown()


@pytest.fixture
def wrap(server: DemoServer) -> Iterator[Any]:
    with openai.OpenAI(api_key="test", base_url=server.base_url) as inner:

        def wrapped(**options: Any) -> BrixClient[Any]:
            options = {"max_cost_usd": 1.0, "prices": PRICES, "max_retries": 2, "backoff_base": 1.01, **options}
            return BRIX.wrap(inner, model="gpt-4o-mini", session_id="s", store=MemoryStore(), **options)

        yield wrapped


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    found: dict[str, list[Any]] = {}
    for resource in [] if data is None else data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found.setdefault(metric.name, []).extend(metric.data.data_points)
    return found


def test_a_call_is_a_span_and_each_attempt_one_inside_of_it(
    server: DemoServer, exporter: InMemorySpanExporter, wrap: Any
) -> None:
    server.script(ServerError(), Reply("Paris"))
    with trace.get_tracer("application").start_as_current_span("request"):
        client = wrap()
        client.complete_sync("Capital of France?")
    spans = {span.name: span for span in exporter.get_finished_spans() if span.name != "chat gpt-4o-mini"}
    attempts = [span for span in exporter.get_finished_spans() if span.name == "chat gpt-4o-mini"]
    call, around = spans["brix.call"], spans["request"]
    assert call.parent.span_id == around.context.span_id
    assert [attempt.parent.span_id for attempt in attempts] == [call.context.span_id] * 2
    (entry,) = client.get_traces()
    assert call.attributes["brix.run_id"] == entry["run_id"]
    assert call.attributes["brix.cost_usd"] == entry["cost_usd"] > 0
    assert call.attributes["gen_ai.conversation.id"] == "s"
    assert call.attributes["brix.attempts"] == len(server.requests) == 2
    failed, answered = attempts
    assert failed.attributes["error.type"] == "500"
    assert failed.status.status_code.name == "ERROR"
    assert answered.attributes["gen_ai.operation.name"] == "chat"
    assert answered.attributes["gen_ai.request.model"] == answered.attributes["gen_ai.response.model"] == "gpt-4o-mini"
    assert answered.attributes["gen_ai.usage.input_tokens"] == entry["prompt_tokens"]
    assert answered.attributes["gen_ai.usage.output_tokens"] == entry["completion_tokens"]
    assert answered.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert answered.kind.name == "CLIENT"
    assert around.start_time <= call.start_time <= failed.start_time < failed.end_time <= answered.start_time
    assert abs(call.end_time - answered.end_time) < 50e6
    assert "France" not in str([span.to_json() for span in exporter.get_finished_spans()])


def test_decisions_are_events(server: DemoServer, exporter: InMemorySpanExporter, wrap: Any) -> None:
    client = wrap(max_cost_usd=1e-4)
    client.complete_sync("Hello")
    with pytest.raises(BrixBudgetError):
        client.complete_sync("Hello " * 100)
    allowed, refused = [span for span in exporter.get_finished_spans() if span.name == "brix.call"]
    decisions = [(event.attributes["brix.guard"], event.attributes["brix.decision"]) for event in allowed.events]
    assert decisions == [(one["guard"], one["decision"]) for one in client.get_traces()[1]["decisions"]] != []
    assert refused.attributes["brix.outcome"] == "refused"
    assert refused.attributes["error.type"] == "BrixBudgetError"
    (event,) = refused.events
    assert (event.attributes["brix.guard"], event.attributes["brix.decision"]) == ("budget", "stopped")
    assert len(server.requests) == 1


def test_metrics(server: DemoServer, reader: InMemoryMetricReader, wrap: Any) -> None:
    server.script(RateLimited(retry_after="0"), Reply("one"), Reply("two"), Reply("three in a stream"))
    client = wrap()
    client.complete_sync("a")
    client.complete_sync("b")
    list(client.stream("c"))
    with pytest.raises(BrixBudgetError):
        wrap(max_cost_usd=1e-9).complete_sync("d")
    found, traces = points(reader), client.get_traces()
    tokens = {point.attributes["gen_ai.token.type"]: point.sum for point in found["gen_ai.client.token.usage"]}
    assert tokens["input"] == sum(entry["prompt_tokens"] for entry in traces)
    assert tokens["output"] == sum(entry["completion_tokens"] for entry in traces)
    assert sum(point.count for point in found["gen_ai.client.operation.duration"]) == len(server.requests) == 4
    assert [point.count for point in found["gen_ai.client.operation.time_to_first_chunk"]] == [1]
    assert sum(point.value for point in found["brix.cost"]) == pytest.approx(client.context.session_cost_usd)
    outcomes = {point.attributes["brix.outcome"]: point.value for point in found["brix.calls"]}
    assert outcomes == {"ok": 3, "refused": 1}
    assert {point.attributes["brix.guard"] for point in found["brix.decisions"]} >= {"budget"}


def test_abandoned_streams_are_told_of_later_and_not_by_the_garbage_collector(
    server: DemoServer, exporter: InMemorySpanExporter, wrap: Any
) -> None:
    server.script(Reply("a long answer in many pieces, left early"))
    client = wrap()
    with client.stream("Hello") as stream:
        next(stream)
    client.complete_sync("More")
    outcomes = [span.attributes["brix.outcome"] for span in exporter.get_finished_spans() if span.name == "brix.call"]
    assert outcomes == ["abandoned", "ok"]


def test_nothing_is_told_when_it_is_switched_off(exporter: InMemorySpanExporter, wrap: Any) -> None:
    wrap(telemetry=False).complete_sync("Hello")
    assert not exporter.get_finished_spans()


def test_what_is_redacted_is_in_no_span(exporter: InMemorySpanExporter, wrap: Any) -> None:
    wrap(max_cost_usd=1e-4, redact=lambda entry: {**entry, "decisions": []}).complete_sync("Hello", max_tokens=1)
    (call, *_) = [span for span in exporter.get_finished_spans() if span.name == "brix.call"]
    assert not call.events


def test_without_the_extra_nothing_is_loaded_and_asking_for_it_says_what_to_install() -> None:
    script = """
        import sys
        sys.modules["opentelemetry"] = None
        from brix_core import BRIX, BrixConfigurationError
        class Parrot:
            def complete(self, prompt, **options):
                return prompt
        assert BRIX.wrap(Parrot()).complete_sync("Hello") == "Hello"
        try:
            BRIX.wrap(Parrot(), telemetry=True)
        except BrixConfigurationError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert 'pip install "brix-guards[otel]"' in done.stdout, done.stderr
