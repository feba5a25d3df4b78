"""How often a model is asked, by risk; and the asking, side by side."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final, Literal, NamedTuple

from brix_core.call import CallRequest, CallResponse
from brix_core.errors import (
    BrixConfigurationError,
    BrixContextError,
    BrixInternalError,
    BrixLoopError,
)
from brix_core.failures import is_control_flow
from brix_core.flow import Effect, Gather, Proceed
from brix_core.regulated.format.spec import SamplingConfig

RETRIES: Final = "retry_history"
"""Where retries are noted in `LogicalCall.metadata`; an answer that is given tells those of all that were asked for."""

Tier = Literal["low", "medium", "high"]


class Sample(NamedTuple):
    """One answer, and the branch of the call it came by."""

    request: CallRequest
    response: CallResponse


class Sampled(NamedTuple):
    """What asking several times came to.

    Attributes:
        answers: The answers, in the order they were asked for; at least one. Those that a time limit cut short only
            where there are no others.
        asked: How many were asked for.
        retries: The retry history of all of them.
    """

    answers: Sequence[Sample]
    asked: int
    retries: Sequence[Any] = ()

    @property
    def partly_failed(self) -> bool:
        """Whether some gave no answer."""
        return len(self.answers) < self.asked

    def give(self, number: int) -> CallResponse:
        """The answer that is chosen, its notes handed over to the call of the application."""
        request, response = self.answers[number]
        _hand_over(request, self.retries)
        return response


def tier_of(risk: float, config: SamplingConfig) -> Tier:
    """Which tier a risk score is in.

    Example:
        >>> [tier_of(risk, SamplingConfig()) for risk in (0.0, 0.39, 0.4, 0.7, 1.0)]
        ['low', 'low', 'medium', 'high', 'high']
    """
    if risk < config.low_threshold:
        return "low"
    return "medium" if risk < config.medium_threshold else "high"


def samples_of(tier: Tier, config: SamplingConfig) -> int:
    """How many answers are asked for in a tier.

    Example:
        >>> [samples_of(tier, SamplingConfig()) for tier in ("low", "medium", "high")]
        [1, 2, 3]
    """
    return {"low": config.low_samples, "medium": config.medium_samples, "high": config.high_samples}[tier]


def sample(request: CallRequest, proceed: Proceed, count: int) -> Generator[Effect, Any, Sampled]:
    """Ask `count` times, side by side.

    Each answer has a branch of the call for itself. Those that fail are left out while there are others, unless it is
    the prompt itself that was refused.

    Raises:
        Exception: The first failure, when all have failed; a refusal of the prompt; an interrupt of the application.
    """
    requests = [request.evolve(call=request.call.branch(number), stream=False) for number in range(count)]
    outcomes: list[CallResponse | Exception] = yield Gather([proceed(one) for one in requests])
    retries = [entry for one in requests for entry in one.call.metadata.get(RETRIES, ())]
    failures = [
        (one, outcome) for one, outcome in zip(requests, outcomes, strict=True) if isinstance(outcome, Exception)
    ]
    final = next(((one, error) for one, error in failures if _is_final(error)), None)
    if final is not None or len(failures) == count:
        branch, error = final or failures[0]
        _hand_over(branch, retries)
        raise error
    answers = [
        Sample(one, outcome)
        for one, outcome in zip(requests, outcomes, strict=True)
        if not isinstance(outcome, Exception)
    ]
    whole = [answer for answer in answers if not answer.response.partial]
    return Sampled(whole or answers, count, retries)


def _hand_over(request: CallRequest, retries: Sequence[Any]) -> None:
    """Give the notes of a branch to the call it is one of, with the retries of all branches."""
    call = request.call.whole
    if call is not None:
        call.adopt(request.call)
        if RETRIES in call.metadata:
            call.metadata[RETRIES] = list(retries)


def _is_final(error: Exception) -> bool:
    """Whether no other answer makes up for this failure: it is about the prompt, or not about the model at all."""
    if isinstance(error, BrixLoopError):
        return error.kind != "stream"  # a text that degenerates is one answer's own
    return isinstance(error, BrixContextError | BrixConfigurationError | BrixInternalError) or is_control_flow(error)


__all__ = ["Sample", "Sampled", "Tier", "sample", "samples_of", "tier_of"]
