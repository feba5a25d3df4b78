"""BudgetGuard: the spend of a session never exceeds its cap (G1).

Before a call leaves, its worst case (prompt and output cap, at the model's prices) is *reserved* in the
session's account, atomically; afterwards the actual cost is *settled*. When money runs short the output
cap is lowered to what is affordable, or the call is refused before anything is sent.

What is charged: a complete answer at the usage reported (or counted, when none was); a stream that was
cut off, failed or abandoned at the prompt and the output that had arrived; a call that may have been done
though we saw no answer (timed out, cancelled, connection lost) at its worst case; a call that the provider
refused, or that never reached it, nothing. A cut stream of a model that reasons out of sight is charged at its
worst case too: what was thought before the first word is billed, and not seen.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from brix_core import checks
from brix_core.call import CallRequest, CallResponse
from brix_core.callers import caller
from brix_core.errors import BrixBudgetError, BrixConfigurationError, BrixUnknownPriceError
from brix_core.failures import classify
from brix_core.flow import Flow, Proceed, StoreOp
from brix_core.model_limits import hides_reasoning
from brix_core.prices import Price, PriceBook, to_nano, usd
from brix_core.store.base import Balance, Grant, Store
from brix_core.tokens import tokenizer_for
from brix_core.usage import Usage

log = logging.getLogger(__name__)

DEFAULT_OUTPUT_TOKENS: Final = 4_096
"""Output cap sent with a call that names none, to a model whose own limit is unknown."""


MAX_CAP_USD: Final = 1e9
"""Largest cap, USD: in nano-dollars it still fits a 64-bit integer."""

MIN_OUTPUT_TOKENS: Final = 16
"""A call is refused rather than clamped below this: a one-token answer is not worth its prompt. (Also the
least that OpenAI's Responses API accepts as ``max_output_tokens``.)"""


class BrixBudgetWarning(UserWarning):
    """A budget is nearly used up, exceeded under ``budget_strategy="warn"``, or cannot be metered."""


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Options of the budget guard.

    Attributes:
        max_cost_usd: Cap of the session, USD; ``inf`` meters without a cap. Activates the guard.
        budget_strategy: ``"block"`` refuses; ``"warn"`` warns and goes on.
        budget_warning_threshold: Fraction of the cap at which to warn, once a session.
        budget_clamp_output: Lower a call's output cap to what is affordable instead of refusing it.
        prices: USD per token, ``{"my-model": (input, output)}``; wins over the price table.
        unknown_price: What to do about a model without a price.
    """

    max_cost_usd: float
    budget_strategy: Literal["block", "warn"] = "block"
    budget_warning_threshold: float = 0.8
    budget_clamp_output: bool = True
    prices: Mapping[str, Any] | None = None
    unknown_price: Literal["raise", "warn", "free"] = "raise"

    def __post_init__(self) -> None:
        checks.positive("max_cost_usd", self.max_cost_usd, infinite=True)
        if MAX_CAP_USD < self.max_cost_usd < math.inf:
            raise BrixConfigurationError(
                f"max_cost_usd must be at most {MAX_CAP_USD:g}, or inf to meter only; got {self.max_cost_usd!r}"
            )
        checks.one_of("budget_strategy", self.budget_strategy, ("block", "warn"))
        checks.fraction("budget_warning_threshold", self.budget_warning_threshold)
        checks.flag("budget_clamp_output", self.budget_clamp_output)
        checks.one_of("unknown_price", self.unknown_price, ("raise", "warn", "free"))
        try:
            PriceBook(self.prices)  # a bad price is found where it is given, in a policy file too
        except BrixConfigurationError as error:
            raise BrixConfigurationError(f"bad prices: {error}") from error


@dataclass(slots=True)
class _Plan:
    """What one attempt may cost. `cap` is for each choice, in tokens; `imposed` when nobody had named one."""

    price: Price
    prompt: int
    cap: int
    choices: int
    imposed: bool

    def worst_case(self, cap: int) -> int:
        """Nano-dollars for the prompt and `cap` tokens of output in each choice."""
        return self.price.worst_case(self.prompt, cap * self.choices)

    def of_text(self, counted: int, seen: int) -> int:
        """Nano-dollars for the prompt and output we had to count ourselves.

        Args:
            counted: Tokens with the headroom of an inexact tokenizer.
            seen: Tokens without it. The headroom ends at the cap: a provider that keeps the cap cannot have
                given more, and from one that does not we charge what we saw.
        """
        return self.price.worst_case(self.prompt, min(counted, max(seen, self.cap * self.choices)))


class BudgetGuard:
    """Reserves, clamps, meters and settles. See the module's docstring.

    Args:
        config: Its options.
        store: Where the sessions' accounts are.
    """

    name = "budget"

    def __init__(self, config: BudgetConfig, store: Store) -> None:
        self.config = config
        self._store = store
        self._book = PriceBook(config.prices)
        self._limit = None if math.isinf(config.max_cost_usd) else to_nano(config.max_cost_usd)
        self._enforced = None if config.budget_strategy == "warn" else self._limit
        self._warned: dict[str, None] = {}

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one attempt."""
        price = self._price(request)
        if price is None:
            return (yield from proceed(request))
        if price.free:
            return (yield from self._unmetered(request, proceed))
        plan = self._plan(request, price)
        most = plan.worst_case(plan.cap)
        least = plan.worst_case(min(plan.cap, MIN_OUTPUT_TOKENS)) if self.config.budget_clamp_output else most
        grant: Grant = yield StoreOp(
            self._store.reserve, (_account(request), least, most, self._limit_of(request)), self._store.blocking
        )
        if not grant.granted:
            raise self._refusal(request, grant, least)
        sent = len(request.call.attempts)
        charge = grant.amount  # unless we learn better
        meter = _Meter(self, request, plan)
        try:
            response = yield from proceed(self._capped(request, plan, grant, most, meter))
            charge = self._charge(request, response, plan, grant, meter)
            return response
        except Exception as error:
            charge = self._charge_of_failure(error, grant, meter)
            raise
        except BaseException:  # cancelled or abandoned; settled below, and on its way up
            charge = meter.cost(grant)
            raise
        finally:
            left = len(request.call.attempts) > sent
            self._settle(request, grant, charge if left else 0, left)

    def _limit_of(self, request: CallRequest) -> int | None:
        """What is enforced, in nano-dollars: the lower cap, where there is another around this one."""
        around = request.call.cap_usd
        if around is None:
            return self._enforced
        return to_nano(around) if self._enforced is None else min(self._enforced, to_nano(around))

    def _unmetered(self, request: CallRequest, proceed: Proceed) -> Flow:
        """A call that costs nothing, whatever happens."""
        sent = len(request.call.attempts)
        try:
            return (yield from proceed(request))
        finally:
            for attempt in request.call.attempts[sent:]:
                attempt.cost_nano = 0

    def _price(self, request: CallRequest) -> Price | None:
        model = request.model
        price = self._book.find(model, request.endpoint.provider)
        if price is not None or self.config.unknown_price == "free":
            return price
        advice = f"pass prices={{{model!r}: (input, output)}} in USD per token, or unknown_price='free'"
        if self.config.unknown_price == "raise":
            raise BrixUnknownPriceError(f"no price is known for model {model!r}: {advice}", model=model)
        if model not in self._warned:
            self._remember(model)
            _warn_caller(f"model {model!r} has no known price and is not metered: {advice}")
        return None

    def _plan(self, request: CallRequest, price: Price) -> _Plan:
        endpoint, params = request.endpoint, request.params
        cap = request.requested_cap
        imposed = False
        if cap is None:
            cap = endpoint.longest_output(params)
            if cap is None:
                cap, imposed = DEFAULT_OUTPUT_TOKENS, True
        return _Plan(price, request.prompt_tokens(), max(1, cap), max(1, endpoint.choices(params)), imposed)

    def _capped(self, request: CallRequest, plan: _Plan, grant: Grant, most: int, meter: _Meter) -> CallRequest:
        """Lower the output cap to what was granted, name one where nothing else bounds it; meter the stream."""
        hooks = (*request.hooks, meter)
        if grant.amount < most:
            affordable = plan.price.affordable_output(plan.prompt, grant.amount) // plan.choices
            request.call.decide("budget", "clamped", output_cap=affordable, wanted=plan.cap)
            plan.cap = affordable
        elif plan.imposed:
            request.call.decide("budget", "capped", output_cap=plan.cap)
        else:
            return request.evolve(hooks=hooks)
        return request.evolve(output_cap=plan.cap, hooks=hooks)

    def _charge(self, request: CallRequest, response: CallResponse, plan: _Plan, grant: Grant, meter: _Meter) -> int:
        if response.partial:  # whatever was reported so far, the provider may have done more
            return meter.cost(grant)
        if response.usage is not None:
            return plan.price.cost(response.usage)
        texts = [response.text]
        for call in response.tool_calls:
            texts += (call.name, call.arguments)
        output = sum(map(tokenizer_for(request.model).count, texts))
        request.call.attempts[-1].usage = Usage(input_tokens=plan.prompt, output_tokens=output, estimated=True)
        if hides_reasoning(request.model):
            return grant.amount
        counted = plan.of_text(output, sum(_seen(request.model, text) for text in texts))
        return max(counted, meter.cost(grant)) if meter.started else counted  # the stream may have shown more

    def _charge_of_failure(self, error: Exception, grant: Grant, meter: _Meter) -> int:
        if meter.started:
            return meter.cost(grant)
        failure = classify(error)
        return grant.amount if failure.billable else 0

    def _settle(self, request: CallRequest, grant: Grant, charge: int, left: bool) -> None:
        balance = self._store.settle(grant, charge)
        request.session.session_cost_usd = usd(balance.spent)
        if left:
            request.call.attempts[-1].cost_nano = charge
        if charge > grant.amount:
            log.warning(
                "a call of session %s cost $%.6f, more than the $%.6f its worst case was reckoned at",
                request.session.session_id, usd(charge), usd(grant.amount),
            )  # fmt: skip
        self._warn(request, balance)

    def _warn(self, request: CallRequest, balance: Balance) -> None:
        if self._limit is None or balance.spent < self._limit * self.config.budget_warning_threshold:
            return
        over = balance.spent > self._limit
        key = f"{_account(request)} {'over' if over else 'near'}"
        if key in self._warned:
            return
        self._remember(key)
        request.call.decide("budget", "warned", spent_usd=usd(balance.spent))
        said = (
            f"session {request.session.session_id} has spent ${usd(balance.spent):.6f} of "
            f"max_cost_usd={self.config.max_cost_usd:g}"
        )
        try:
            _warn_caller(said)
        except BrixBudgetWarning:  # warnings are errors here, but an answer that is paid for is not thrown away
            log.warning("%s", said)

    def _remember(self, key: str) -> None:
        self._warned[key] = None
        if len(self._warned) > 10_000:
            self._warned.pop(next(iter(self._warned)), None)

    def _refusal(self, request: CallRequest, grant: Grant, needed: int) -> BrixBudgetError:
        money = grant.balance
        held = f" and ${usd(money.reserved):.6f} held by calls in flight" if money.reserved else ""
        own = math.inf if self._enforced is None else self.config.max_cost_usd
        around = math.inf if request.call.cap_usd is None else request.call.cap_usd
        limit, whose = (own, "") if own < around else (around, " of the run it is in")
        return BrixBudgetError(
            f"session {request.session.session_id} has ${usd(money.spent):.6f} spent{held} of "
            f"max_cost_usd={limit:g}{whose}; this call to {request.model} may cost "
            f"${usd(needed):.6f}. Raise max_cost_usd, shorten the prompt, lower max_tokens, or begin a new session",
            limit_usd=limit,
            spent_usd=usd(money.spent),
            reserved_usd=usd(money.reserved),
            needed_usd=usd(needed),
        )

    def cut(self, request: CallRequest, plan: _Plan) -> BrixBudgetError:
        """The error that stops a stream which ignores its output cap."""
        request.call.decide("budget", "cut", output_cap=plan.cap)
        balance = self._store.balance(_account(request))
        return BrixBudgetError(
            f"the stream from {request.model} went past its output cap of {plan.cap * plan.choices} tokens, "
            f"all that session {request.session.session_id} had reserved for it, and was cut off; "
            "raise max_cost_usd or max_tokens",
            limit_usd=self.config.max_cost_usd,
            spent_usd=usd(balance.spent),
            reserved_usd=usd(balance.reserved),
            partial=request.call.partial_text,
        )


class _Meter:
    """Counts a stream's output as it arrives, and stops it at the cap.

    A chunk of n UTF-8 bytes has at most n tokens; only when this bound reaches the cap is the text counted,
    from the last word boundary on (up to there the count is final). So most chunks cost an addition. The
    headroom of an inexact tokenizer is for reservations and not applied here: it would cut off honest streams.
    """

    __slots__ = ("_bound", "_final", "_guard", "_pending", "_plan", "_request", "_tail", "started")

    def __init__(self, guard: BudgetGuard, request: CallRequest, plan: _Plan) -> None:
        self._guard = guard
        self._request = request
        self._plan = plan
        self._final = 0
        self._tail = ""
        self._pending: list[str] = []
        self._bound = 0
        self.started = False

    def __call__(self, text: str) -> None:
        """Take note of a chunk's text.

        Raises:
            BrixBudgetError: The output has gone past the cap.
        """
        self.started = True
        self._pending.append(text)
        self._bound += len(text) if text.isascii() else len(text.encode(errors="replace"))
        cap = self._plan.cap * self._plan.choices
        if self._bound > cap:
            self._bound = self._count()
            if self._bound > cap and self._guard.config.budget_strategy == "block":
                raise self._guard.cut(self._request, self._plan)

    def cost(self, grant: Grant) -> int:
        """What to charge for a stream that did not end by itself, in nano-dollars."""
        model = self._request.model
        if not self.started or hides_reasoning(model):
            return grant.amount
        seen = self._count()
        return self._plan.of_text(math.ceil(seen * tokenizer_for(model).headroom), seen)

    def _count(self) -> int:
        self._tail += "".join(self._pending)
        self._pending.clear()
        boundary = self._tail.rfind(" ", 0, -1)
        if boundary > 0 and not self._tail[boundary - 1].isspace() and self._tail[boundary + 1].isalpha():
            self._final += _seen(self._request.model, self._tail[:boundary])
            self._tail = self._tail[boundary:]
        return self._final + _seen(self._request.model, self._tail)


def _seen(model: str, text: str) -> int:
    """Tokens by the tokenizer itself, without headroom."""
    tokenizer = tokenizer_for(model)
    return (tokenizer if tokenizer.headroom == 1.0 else tokenizer_for("gpt-4o")).count(text)


def _warn_caller(said: str) -> None:
    """Warn, at the place in the application that made the call."""
    place = caller()
    # Not `warn`: it would remember every text for good, and each names a session and an amount.
    warnings.warn_explicit(said, BrixBudgetWarning, place.filename, place.line, module=place.module)


def _account(request: CallRequest) -> str:
    return f"budget:{request.session.session_id}"


__all__ = [
    "BrixBudgetWarning",
    "BudgetConfig",
    "BudgetGuard",
    "DEFAULT_OUTPUT_TOKENS",
    "MAX_CAP_USD",
    "MIN_OUTPUT_TOKENS",
]
