"""From how a call ended to an `EnforcedOutput`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from brix_core.call import CACHED, PARSED, CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.enforcement.adapters.base import BaseLLMAdapter
from brix_core.enforcement.outputs import (
    EnforcedOutput,
    GenerationResponse,
    ValidationError,
    ValidationResult,
    ValidationStatus,
)
from brix_core.enforcement.validators import ValidatedSchema
from brix_core.errors import BrixSchemaError
from brix_core.guards.schema import REJECTED

_TOOLS: Final = "the model asks for tools to be run instead of answering; leave tools out, or run a model of your own"


class Asked:
    """One call of an engine, from its request to its output.

    Args:
        prompt: What was asked.
        schema: What for, as the caller gave it.
        request: The request.
        adapters: Whom it may go to.
        clock: The time.
    """

    def __init__(
        self, prompt: Any, schema: Any, request: CallRequest, adapters: Sequence[BaseLLMAdapter], clock: Clock
    ) -> None:
        self.prompt = prompt
        self.schema = schema
        self.request = request
        self._adapters = adapters
        self._clock = clock

    def answered(self, response: CallResponse) -> EnforcedOutput:
        """The output for an answer that the guards let through."""
        notes = self.request.call.metadata
        if PARSED not in notes:
            return self._failure(BrixSchemaError(_TOOLS), response, _unvalidated(_TOOLS, response.text))
        result = self._validated.result
        value = notes[PARSED]
        if result is None or result.parsed_output is not value:  # one of several that were validated side by side
            result = ValidationResult(status=ValidationStatus.VALID, parsed_output=value, raw_output=response.text)
        return self._output(data=value, success=True, validation=result, generation=self._generation(response))

    def failed(self, error: Exception) -> EnforcedOutput:
        """The output for a failure: of the answer, of the provider, or by the decision of a guard."""
        notes = self.request.call.metadata
        response = notes.get(REJECTED)
        said = f"{type(error).__name__}: {error}"
        attempts = error.attempts if isinstance(error, BrixSchemaError) else ()
        if not attempts:
            return self._failure(error, response, _unvalidated(said, response.text if response else ""))
        last, found = attempts[-1], self._validated.result
        if found is not None and found.raw_output == last.text and not found.is_valid:
            return self._failure(error, response, found)
        result = ValidationResult(
            status=ValidationStatus.INVALID,
            errors=[ValidationError(path=path, message=message) for path, message in last.problems],
            raw_output=last.text,
        )
        return self._failure(error, response, result)

    @property
    def _validated(self) -> ValidatedSchema:
        schema = self.request.schema
        assert isinstance(schema, ValidatedSchema)
        return schema

    def _failure(self, error: Exception, response: CallResponse | None, result: ValidationResult) -> EnforcedOutput:
        return self._output(
            success=False,
            error=error,
            error_type=type(error).__name__,
            validation=result,
            generation=self._generation(response or CallResponse(text="")),
        )

    def _output(self, **found: Any) -> EnforcedOutput:
        call = self.request.call
        costs = [attempt.cost_nano for attempt in call.attempts if attempt.cost_nano is not None]
        cached = CACHED in call.metadata
        return EnforcedOutput(
            **found,
            retry_count=sum(made["guard"] == "schema" and made["decision"] == "healing" for made in call.decisions),
            attempts=len(call.attempts),
            tokens_used=sum(attempt.usage.total_tokens for attempt in call.attempts if attempt.usage is not None),
            cost_usd=sum(costs) / 1e9 if costs or cached else None,
            cached=cached,
            run_id=call.run_id,
            session_id=call.session.session_id,
        )

    def _generation(self, response: CallResponse) -> GenerationResponse:
        """What is known about an answer; an empty one stands for none."""
        call = self.request.call
        attempt = call.attempts[-1] if call.attempts else None
        adapter = self._adapter(attempt.endpoint if attempt else call.metadata.get(CACHED, ""))
        seconds = self._clock.now() - call.started
        if attempt is not None and attempt.seconds is not None:
            seconds = attempt.seconds
        began = call.started_at if attempt is None else call.started_at + attempt.started - call.started
        known: dict[str, Any] = {"timestamp": datetime.fromtimestamp(began, UTC)}
        if not (response.text or response.tool_calls):
            empty = GenerationResponse(output="", provider=adapter.provider, model=adapter.model)
            return empty.model_copy(update={**known, "latency_ms": seconds * 1_000})
        known |= {"finish_reason": response.finish_reason, "raw": response.raw}
        usage = response.usage
        if usage is None:
            known["tokens_estimated"] = True
        else:
            known |= {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        return adapter.generation(response, self.request, seconds).model_copy(update=known)

    def _adapter(self, identity: str) -> BaseLLMAdapter:
        found = (adapter for adapter in self._adapters if adapter.endpoint.identity == identity)
        return next(found, self._adapters[0])


def unsent(error: Exception, adapter: BaseLLMAdapter, session_id: str) -> EnforcedOutput:
    """The output for a prompt of which no request could be made."""
    return EnforcedOutput(
        success=False,
        error=error,
        error_type=type(error).__name__,
        validation=_unvalidated(f"{type(error).__name__}: {error}", ""),
        generation=GenerationResponse(output="", provider=adapter.provider, model=adapter.model),
        session_id=session_id,
    )


def _unvalidated(message: str, text: str) -> ValidationResult:
    error = ValidationError(path="$", message=message)
    return ValidationResult(status=ValidationStatus.NOT_VALIDATED, errors=[error], raw_output=text)


__all__ = ["Asked", "unsent"]
