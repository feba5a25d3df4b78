"""ContextGuard: no prompt has more tokens than it may, or the call is refused (G7).

A prompt may have ``max_context_tokens - context_reserve_tokens`` tokens, tools, schemas and images included, for the
model it goes to and for every model of the failover chain. One that fits goes on untouched. Of one that does not,
older parts are left out by a strategy (`brix_core.trimming.units`), in order, and tool calls together with their
results;
what is protected stays: system messages, the user's last words, a tool exchange under way, what guards have added.
When that alone does not fit, the call is refused before anything is sent, or (``context_overflow="truncate"``) the
middle of the longest protected texts is cut, with a visible marker.

* ``"sliding_window"`` keeps the latest messages.
* ``"importance"`` keeps the messages that matter most to the user's last words (`brix_core.trimming.importance`).
* ``"summarize"`` replaces older messages by a summary, which a model writes (`brix_core.trimming.summaries`).
  It is asked through the inner guards: metered, retried and timed. When it fails, the latest messages are kept instead.

``max_context_tokens="auto"`` takes the smallest context window of the models of the chain. A window holds the answer
too, so what is reserved is the output cap of the call where that is more than ``context_reserve_tokens``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from brix_core import checks
from brix_core.call import CallRequest
from brix_core.conversation import Conversation
from brix_core.endpoint import Endpoint
from brix_core.errors import BrixConfigurationError, BrixContextError, BrixInternalError
from brix_core.failures import is_control_flow
from brix_core.flow import Effect, Flow, Proceed, Run
from brix_core.model_limits import context_window
from brix_core.tokens import count_message, tokenizer_for
from brix_core.trimming.shortening import shorten
from brix_core.trimming.summaries import Summariser
from brix_core.trimming.units import Outline, importance, outline_of, sliding_window
from brix_core.trimming.yardstick import Yardstick

log = logging.getLogger(__name__)

_TRIES: Final = 4
"""How often texts are cut further when what was cut still has too many tokens."""


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Options of the context guard.

    Attributes:
        max_context_tokens: Tokens of prompt and reserve together; ``"auto"`` is the model's context window. Activates
            the guard.
        context_strategy: What to leave out; see the module's docstring.
        context_reserve_tokens: Tokens kept free for the answer.
        context_summary_model: Who writes summaries, if not the model itself: a name, or a model of the framework.
        context_overflow: What to do when the protected part alone does not fit.
    """

    max_context_tokens: int | Literal["auto"]
    context_strategy: Literal["sliding_window", "importance", "summarize"] = "sliding_window"
    context_reserve_tokens: int = 500
    context_summary_model: Any = None
    context_overflow: Literal["raise", "truncate"] = "raise"

    def __post_init__(self) -> None:
        checks.whole("context_reserve_tokens", self.context_reserve_tokens, 0)
        checks.one_of("context_strategy", self.context_strategy, ("sliding_window", "importance", "summarize"))
        checks.one_of("context_overflow", self.context_overflow, ("raise", "truncate"))
        if self.max_context_tokens != "auto":
            _check_most(self.max_context_tokens, self.context_reserve_tokens)
        if self.context_summary_model is not None and self.context_strategy != "summarize":
            raise BrixConfigurationError(
                "context_summary_model has no effect without context_strategy='summarize'; give it too"
            )
        if self.context_summary_model == "":
            raise BrixConfigurationError("context_summary_model must be the name of a model, got ''")


def _check_most(most: Any, reserve: int) -> None:
    if isinstance(most, str):
        raise BrixConfigurationError(f"max_context_tokens must be an int >= 1 or 'auto', got {most!r}")
    checks.whole("max_context_tokens", most, 1)
    if reserve >= most:
        raise BrixConfigurationError(
            f"context_reserve_tokens={reserve} leaves nothing of max_context_tokens={most} for the prompt; "
            "raise max_context_tokens, or reserve less"
        )


class _Task(NamedTuple):
    """A prompt that does not fit.

    Attributes:
        request: The call.
        tokens: Tokens it has.
        limit: Tokens it may have.
        room: What the limit leaves for messages.
        yardstick: Counts for the models it may be sent to.
        outline: The conversation.
    """

    request: CallRequest
    tokens: int
    limit: int
    room: int
    yardstick: Yardstick
    outline: Outline


class ContextGuard:
    """Makes prompts fit. See the module's docstring.

    Args:
        config: Its options.
        fallbacks: Further endpoints a call may be sent to: their models count too.
        summary: Who writes summaries; None for the model of the call.
    """

    name = "context"

    def __init__(
        self, config: ContextConfig, fallbacks: Sequence[Endpoint] = (), summary: Endpoint | None = None
    ) -> None:
        self.config = config
        self._fallbacks = tuple(fallbacks)
        self._summariser = Summariser(summary)

    def with_endpoints(self, fallbacks: Sequence[Endpoint], summary: Endpoint | None = None) -> ContextGuard:
        """The same guard, its summaries shared, for other endpoints."""
        twin = ContextGuard(self.config, fallbacks)
        twin._summariser = Summariser(summary or self._summariser.endpoint, self._summariser.memory)
        return twin

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one call."""
        limit, tokens = self._limit(request), self._measured(request)
        if tokens > limit:
            request = yield from self._fit(self._task(request, tokens, limit), proceed)
        return (yield from proceed(request))

    def _measured(self, request: CallRequest) -> int:
        """Tokens of the prompt, for the model that counts most."""
        tokens = request.prompt_tokens()
        for endpoint in self._fallbacks:
            tokens = max(tokens, request.prompt_tokens_for(endpoint))
        return tokens

    def _limit(self, request: CallRequest) -> int:
        most = self.config.max_context_tokens
        if most != "auto":
            return most - self.config.context_reserve_tokens
        return min(self._window(request, endpoint) for endpoint in (request.endpoint, *self._fallbacks))

    def _window(self, request: CallRequest, endpoint: Endpoint) -> int:
        """What a model's context window leaves for the prompt."""
        model = endpoint.model(request.params)
        window = context_window(model)
        if window is None:
            raise BrixConfigurationError(
                f"max_context_tokens='auto': the context window of {model!r} is not known; give max_context_tokens "
                "as a number"
            )
        cap = request.output_cap if request.output_cap is not None else endpoint.requested_cap(request.params)
        left = window - max(self.config.context_reserve_tokens, cap or 0)
        if left <= 0:
            raise BrixConfigurationError(
                f"the context window of {model!r} has {window} tokens, and none is left for the prompt beside an "
                f"answer of {cap or 0} (max_tokens) and context_reserve_tokens={self.config.context_reserve_tokens}; "
                "lower these"
            )
        return left

    def _task(self, request: CallRequest, tokens: int, limit: int) -> _Task:
        conversation, endpoints = request.conversation, (request.endpoint, *self._fallbacks)
        models = [endpoint.model(request.params) for endpoint in endpoints]
        beside = max(
            request.prompt_tokens_for(endpoint) - sum(conversation.message_tokens(model))
            for endpoint, model in zip(endpoints, models, strict=True)
        )
        yardstick = Yardstick(models)
        outline = outline_of(conversation.turns(), yardstick.messages(conversation), conversation.added)
        return _Task(request, tokens, limit, limit - beside, yardstick, outline)

    def _fit(self, task: _Task, proceed: Proceed) -> Generator[Effect, Any, CallRequest]:
        """The request with a conversation that fits."""
        outline, request = task.outline, task.request
        strategy, summary = self.config.context_strategy, ""
        if outline.least > task.room:
            kept = outline.protected
            fitted = self._truncated(task)
        else:
            if strategy == "summarize":
                strategy, kept, summary = yield from self._summarised(task, proceed)
            elif strategy == "importance":
                kept = yield Run(partial(importance, outline, task.room))  # reads all texts
            else:
                kept = sliding_window(outline, task.room)
            fitted = request.evolve(conversation=_keeping(request.conversation, outline.messages(kept), summary))
        after = self._measured(fitted)
        if after > task.limit:
            raise self._refusal(task, after)
        request.call.decide(
            "context",
            "trimmed" if outline.least <= task.room else "truncated",
            strategy=strategy,
            tokens_before=task.tokens,
            tokens_after=after,
            dropped=len(outline.turns) - len(outline.messages(kept)),
        )
        return fitted

    def _summarised(
        self, task: _Task, proceed: Proceed
    ) -> Generator[Effect, Any, tuple[Literal["summarize", "sliding_window"], frozenset[int], str]]:
        """The strategy that worked, the units it keeps, and a summary of the others."""
        request, outline = task.request, task.outline
        try:
            kept, summary = yield from self._summariser.fit(
                request, proceed, outline, task.room, task.yardstick, task.limit
            )
        except Exception as error:
            if isinstance(error, BrixInternalError) or is_control_flow(error):
                raise
            log.warning(
                "no summary for session %s, its latest messages are kept instead: %s: %s",
                request.session.session_id, type(error).__name__, error,
            )  # fmt: skip
            request.call.decide("context", "summary_failed", error=type(error).__name__, reason=str(error)[:200])
            return "sliding_window", sliding_window(outline, task.room), ""
        return "summarize", kept, summary

    def _truncated(self, task: _Task) -> CallRequest:
        """The request with nothing but what is protected, its longest texts cut."""
        outline, request = task.outline, task.request
        if self.config.context_overflow == "raise":
            raise self._refusal(task, task.limit - task.room + outline.least)
        conversation = request.conversation
        positions = outline.messages(outline.protected)
        messages = [conversation.messages[position] for position in positions]
        systems = {place for place, position in enumerate(positions) if outline.turns[position].role == "system"}
        excess = outline.least - task.room
        for _ in range(_TRIES):
            shorter = shorten(messages, conversation.codec, excess, task.yardstick.text, last=systems)
            if shorter is None:
                break
            fitted = request.evolve(conversation=conversation.keeping(shorter))
            over = self._measured(fitted) - task.limit
            if over <= 0:
                return fitted
            excess += over
        raise self._refusal(task, task.limit - task.room + outline.least)

    def _refusal(self, task: _Task, tokens: int) -> BrixContextError:
        config, request = self.config, task.request
        if config.max_context_tokens == "auto":
            models = {endpoint.model(request.params) for endpoint in (request.endpoint, *self._fallbacks)}
            source = f"what the context window leaves beside the answer (the smallest of {', '.join(sorted(models))})"
            remedy = "take a model with a larger window"
        else:
            remedy = "raise max_context_tokens"
            source = (
                f"max_context_tokens={config.max_context_tokens} - "
                f"context_reserve_tokens={config.context_reserve_tokens}"
            )
        beside = task.limit - task.room
        advice = "" if config.context_overflow == "truncate" else ", or give context_overflow='truncate'"
        request.call.decide("context", "refused", tokens=tokens, limit=task.limit)
        return BrixContextError(
            f"what must be sent to {request.model} has {tokens} tokens ({beside} of them for tools, schemas and "
            f"framing), more than the {task.limit} of {source}. Shorten the system prompt, the last message or the "
            f"tools, {remedy}{advice}",
            tokens=tokens,
            limit=task.limit,
        )


def _keeping(conversation: Conversation, positions: Sequence[int], summary: str) -> Conversation:
    """The messages at these positions, and a summary in the place of the first that is missing."""
    messages = [conversation.messages[position] for position in positions]
    codec = conversation.codec
    if not summary:
        return conversation.keeping(messages, _counted(conversation, positions))
    first = next((place for place, position in enumerate(positions) if place != position), len(positions))
    told = codec.message("user", summary)
    messages.insert(first, told)
    return conversation.keeping(messages, _counted(conversation, positions, codec.to_dict(told)))


def _counted(
    conversation: Conversation, positions: Sequence[int], new: dict[str, Any] | None = None
) -> Callable[[str], int]:
    """Counts messages by the figures of the conversation they stem from."""

    def tokens(model: str) -> int:
        each = conversation.message_tokens(model)
        fresh = count_message(new, tokenizer_for(model), model=model) if new is not None else 0
        return sum(map(each.__getitem__, positions)) + fresh

    return tokens


__all__ = ["ContextConfig", "ContextGuard"]
