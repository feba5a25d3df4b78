"""Calls as OpenTelemetry spans and metrics (extra ``otel``), by the names of the GenAI semantic conventions.

A call of the application is one span, ``brix.call``, with what guards decided as events. Each attempt that left for a
provider is a span inside of it, of the conventions' kind: ``chat MODEL``, with ``gen_ai.*`` attributes, so that a
backend that adds up tokens counts each once. Metrics: the conventions' ``gen_ai.client.token.usage``,
``gen_ai.client.operation.duration`` and ``gen_ai.client.operation.time_to_first_chunk``, and beside them ``brix.cost``
(USD), ``brix.calls`` by outcome and ``brix.decisions`` by guard.

Names: Semantic conventions for generative AI systems, opentelemetry.io/docs/specs/semconv/gen-ai, 2026. There is no
convention for guards yet, hence the namespace of our own. Prompts and answers are never put into spans.

Spans are made when a call has ended, with the times at which it began and ended; what other instrumentation sees
meanwhile, such as an HTTP client's requests, belongs to the span around the call.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from brix_core.errors import BrixConfigurationError

if TYPE_CHECKING:
    from brix_core.call import Attempt, LogicalCall

SCOPE: Final = "brix_core"
MAX_EVENTS: Final = 64
"""Decisions of a call that become events; loops of heals have few."""


_NO_ERROR: Final = frozenset({"cancelled", "abandoned"})
"""Outcomes that the application itself chose."""


def current_context() -> Any:
    """The span around the call that begins now, where telemetry is in use; else None."""
    context = sys.modules.get("opentelemetry.context")
    return None if context is None else context.get_current()


def is_configured() -> bool:
    """Whether the application has set up OpenTelemetry: whoever has not pays nothing."""
    trace, metrics = sys.modules.get("opentelemetry.trace"), sys.modules.get("opentelemetry.metrics")
    return (trace is not None and not type(trace.get_tracer_provider()).__name__.startswith("Proxy")) or (
        metrics is not None and not type(metrics.get_meter_provider()).__name__.startswith("_Proxy")
    )


class Telemetry:
    """Makes spans and metrics of calls. One for each pipeline.

    Raises:
        BrixConfigurationError: OpenTelemetry is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError:
            raise BrixConfigurationError('telemetry=True needs the extra: pip install "brix-guards[otel]"') from None
        self._trace = trace
        self._tracer = trace.get_tracer(SCOPE)
        meter = metrics.get_meter(SCOPE)
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}", "Tokens of a request")
        self._duration = meter.create_histogram("gen_ai.client.operation.duration", "s", "Duration of a request")
        self._first = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", "Time until a stream's first chunk with content"
        )
        self._cost = meter.create_counter("brix.cost", "USD", "What calls were charged")
        self._calls = meter.create_counter("brix.calls", "{call}", "Calls of the application, by outcome")
        self._decisions = meter.create_counter("brix.decisions", "{decision}", "Decisions of guards")

    def record(self, call: LogicalCall, entry: Mapping[str, Any], context: Any) -> None:
        """Make the spans of a call and count it.

        Args:
            call: The call.
            entry: Its trace entry.
            context: OpenTelemetry's context in which it began.
        """
        begun = int(call.started_at * 1e9)
        ended = begun + int(entry["latency_ms"] * 1e6)
        span = self._tracer.start_span(
            "brix.call", context, self._trace.SpanKind.INTERNAL, _of_call(entry), start_time=begun
        )
        if entry["error"] is not None and entry["outcome"] not in _NO_ERROR:
            span.set_status(self._trace.StatusCode.ERROR, entry["error"])
        self._events(span, entry, begun, ended)
        inside = self._trace.set_span_in_context(span, context)
        for number, attempt in enumerate(call.attempts):
            is_last = number == len(call.attempts) - 1
            self._attempt(call, attempt, entry if is_last else None, inside)
        span.end(ended)
        self._calls.add(1, {"brix.outcome": entry["outcome"]})
        if call.first_chunk is not None:
            self._first.record(call.first_chunk - call.started, _model(entry["provider"], entry["model"]))

    def _events(self, span: Any, entry: Mapping[str, Any], begun: int, ended: int) -> None:
        decisions = list(entry["decisions"] or ())
        if entry["stopped_by"] is not None:
            decisions.append({"guard": entry["stopped_by"], "decision": "stopped", "error": entry["error"]})
        for decision in decisions:
            guard = {"brix.guard": str(decision.get("guard")), "brix.decision": str(decision.get("decision"))}
            self._decisions.add(1, guard)
        for decision in decisions[-MAX_EVENTS:]:
            span.add_event("brix.decision", {f"brix.{name}": _plain(value) for name, value in decision.items()}, ended)

    def _attempt(self, call: LogicalCall, attempt: Attempt, last: Mapping[str, Any] | None, context: Any) -> None:
        begun = int((call.started_at + attempt.started - call.started) * 1e9)
        seconds = attempt.seconds or 0.0
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            **_model(attempt.provider, attempt.model),
            "gen_ai.conversation.id": call.session.session_id,
            "brix.endpoint": attempt.endpoint,
            "brix.outcome": str(attempt.outcome),
        }
        if attempt.usage is not None:
            attributes["gen_ai.usage.input_tokens"] = attempt.usage.input_tokens
            attributes["gen_ai.usage.output_tokens"] = attempt.usage.output_tokens
            attributes["gen_ai.usage.cache_read.input_tokens"] = attempt.usage.cache_read_tokens
        if attempt.cost_nano is not None:
            attributes["brix.cost_usd"] = attempt.cost_nano / 1e9
        if last is not None and last["error"] is None:
            attributes["gen_ai.response.model"] = str(last["model"])
            if last["finish_reason"]:
                attributes["gen_ai.response.finish_reasons"] = [str(last["finish_reason"])]
        if attempt.error is not None:
            attributes["error.type"] = str(attempt.status or attempt.error)
        span = self._tracer.start_span(
            f"chat {attempt.model}", context, self._trace.SpanKind.CLIENT, attributes, start_time=begun
        )
        if attempt.error is not None and attempt.outcome not in _NO_ERROR:
            span.set_status(self._trace.StatusCode.ERROR, attempt.error)
        span.end(begun + int(seconds * 1e9))
        self._measure(attempt, seconds)

    def _measure(self, attempt: Attempt, seconds: float) -> None:
        model = {"gen_ai.operation.name": "chat", **_model(attempt.provider, attempt.model)}
        error = {} if attempt.error is None else {"error.type": str(attempt.status or attempt.error)}
        self._duration.record(seconds, {**model, **error})
        if attempt.usage is not None:
            self._tokens.record(attempt.usage.input_tokens, {**model, "gen_ai.token.type": "input"})
            self._tokens.record(attempt.usage.output_tokens, {**model, "gen_ai.token.type": "output"})
        if attempt.cost_nano:
            self._cost.add(attempt.cost_nano / 1e9, model)


def _of_call(entry: Mapping[str, Any]) -> dict[str, Any]:
    attributes = {
        "brix.run_id": entry["run_id"],
        "brix.outcome": entry["outcome"],
        "brix.stream": entry["stream"],
        "brix.attempts": len(entry["attempts"]),
        "brix.guards": entry["guards_active"],
        "brix.cost_usd": entry["cost_usd"],
        "gen_ai.conversation.id": entry["session_id"],
        "gen_ai.request.model": entry["model"],
        "error.type": entry["error"],
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _model(provider: Any, model: Any) -> dict[str, str]:
    """Which model of which provider; the conventions have no word for an unknown one but ``_OTHER``."""
    return {"gen_ai.provider.name": str(provider or "_OTHER"), "gen_ai.request.model": str(model)}


def _plain(value: Any) -> Any:
    """A value as an attribute: numbers and texts as they are, anything else as its text."""
    return value if isinstance(value, str | bool | int | float) else str(value)


__all__ = ["MAX_EVENTS", "SCOPE", "Telemetry", "current_context", "is_configured"]
