"""Every option of the toolkit, once, typed.

`GuardOptions` is what ``BRIX.wrap``, ``brix_langchain.guard`` and ``brix_llamaindex.guard`` take as keyword
arguments; a guard is active when one of its activating options is given. None counts as not given.

Example:
    >>> options: GuardOptions = {"max_cost_usd": 1.0, "max_retries": 3}
    >>> parse(options).configs["retry"].max_retries
    3
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from brix_core import checks
from brix_core.audit.redaction import Redact
from brix_core.cache import Cache
from brix_core.clock import Clock
from brix_core.errors import BrixConfigurationError
from brix_core.guards.budget import BudgetConfig
from brix_core.guards.cache import CacheConfig
from brix_core.guards.circuit_breaker import CircuitBreakerConfig
from brix_core.guards.context import ContextConfig
from brix_core.guards.loop import LoopConfig
from brix_core.guards.observability import ObservabilityConfig
from brix_core.guards.rate_limit import RateLimitConfig
from brix_core.guards.recording import RecordingConfig
from brix_core.guards.regulated import RegulatedConfig
from brix_core.guards.replay import ReplayConfig
from brix_core.guards.retry import RetryConfig
from brix_core.guards.schema import SchemaConfig
from brix_core.guards.timeout import TimeoutConfig
from brix_core.session import checked_session_id
from brix_core.store.base import Store

if TYPE_CHECKING:
    from brix_core.regulated.format.spec import SpecModel
    from brix_core.retrieval.results import RetrievalProvider

Prices = Mapping[str, tuple[float, float] | Mapping[str, float]]
"""USD per token: ``{"my-model": (input, output)}``, or named: input, output, cache_read, cache_write."""


class OtherOptions(TypedDict, total=False):
    """All options but ``response_schema``, on which the type of an answer depends."""

    # BudgetGuard
    max_cost_usd: float | None
    budget_strategy: Literal["block", "warn"]
    budget_warning_threshold: float
    budget_clamp_output: bool
    prices: Prices | None
    unknown_price: Literal["raise", "warn", "free"]
    # RateLimitGuard
    requests_per_minute: float | None
    rate_limit_rpm: float | None
    tokens_per_minute: float | None
    burst_capacity: int | None
    rate_limit_scope: Literal["session", "provider"]
    adaptive_rate_limiting: bool
    min_rate_floor: float
    rate_reduction_factor: float
    rate_recovery_factor: float
    recovery_window_seconds: float
    # TimeoutGuard
    per_call_timeout: float | None
    max_time_seconds: float | None
    per_step_timeout: float | None
    total_timeout: float | None
    first_token_timeout: float | None
    idle_timeout: float | None
    on_timeout: Literal["raise", "return_partial"]
    # RetryGuard
    max_retries: int | None
    backoff_base: float
    backoff_initial: float
    max_backoff: float
    retry_budget_seconds: float
    retry_on: Sequence[int] | None
    retry_exceptions: Sequence[type[Exception]] | None
    # FailoverGuard: what the entry point itself takes, models or clients
    fallbacks: Sequence[Any] | None
    # CircuitBreakerGuard
    circuit_breaker: bool
    circuit_failure_threshold: int
    circuit_success_threshold: int
    circuit_open_seconds: float
    circuit_half_open_probes: int
    # CacheGuard
    cache: Cache | None
    cache_ttl: float | None
    # LoopGuard
    exact_loop_detection: bool
    exact_loop_threshold: int
    semantic_loop_detection: bool
    semantic_loop_threshold: float
    tool_loop_detection: bool
    max_cycle_length: int
    on_loop: Literal["inject_diversity", "raise"]
    diversity_attempts: int
    loop_window: int
    loop_diversity_prompt: str | None
    embedder: Any
    # SchemaGuard, beside response_schema
    max_schema_retries: int
    inject_schema_in_prompt: bool
    max_healing_seconds: float | None
    stream_mode: Literal["partial", "validated"]
    # ContextGuard; who writes summaries is named as the entry point names models
    max_context_tokens: int | Literal["auto"] | None
    context_strategy: Literal["sliding_window", "summarize", "importance"]
    context_reserve_tokens: int
    context_summary_model: Any
    context_overflow: Literal["raise", "truncate"]
    # RegulatedGuard
    regulated_spec: str | PathLike[str] | Mapping[str, Any] | SpecModel | None
    retrieval_provider: RetrievalProvider | None
    regulated_embedder: Any
    enable_output_guard: bool
    regulated_signals: Sequence[Any] | Mapping[str, Any] | None
    # ObservabilityGuard
    trace_buffer_size: int
    log_path: str | PathLike[str] | None
    strict_mode: bool
    log_fsync: Literal["always", "interval", "never"]
    log_max_bytes: int
    log_key: Any
    redact: Redact | None
    telemetry: bool | None
    # RecordingGuard and ReplayGuard
    record: str | PathLike[str] | bool | None
    max_session_records: int | None
    replay: str | PathLike[str] | None
    replay_strict: bool
    replay_timing: bool
    # whose state, and where it is kept
    session_id: str | None
    store: Store | None
    clock: Clock | None


class GuardOptions(OtherOptions, total=False):
    """The options of all guards."""

    response_schema: Any


ALIASES: Final = {"rate_limit_rpm": "requests_per_minute", "max_time_seconds": "per_call_timeout"}
"""Older names, still taken."""

_CONFIGS: Final[dict[str, type[Any]]] = {
    "budget": BudgetConfig,
    "rate_limit": RateLimitConfig,
    "timeout": TimeoutConfig,
    "retry": RetryConfig,
    "circuit_breaker": CircuitBreakerConfig,
    "cache": CacheConfig,
    "regulated": RegulatedConfig,
    "loop": LoopConfig,
    "schema": SchemaConfig,
    "context": ContextConfig,
    "observability": ObservabilityConfig,
    "recording": RecordingConfig,
    "replay": ReplayConfig,
}

_ACTIVATED_BY: Final[dict[str, tuple[str, ...]]] = {
    "budget": ("max_cost_usd",),
    "rate_limit": ("requests_per_minute", "tokens_per_minute"),
    "timeout": (
        "per_call_timeout",
        "per_step_timeout",
        "total_timeout",
        "first_token_timeout",
        "idle_timeout",
    ),
    "retry": ("max_retries",),
    "circuit_breaker": ("circuit_breaker",),
    "cache": ("cache",),
    "regulated": ("regulated_spec",),
    "loop": ("exact_loop_detection", "semantic_loop_detection", "tool_loop_detection"),
    "schema": (),
    "context": ("max_context_tokens",),
    "observability": (),
    "recording": (),
    "replay": ("replay",),
}

_WIRING: Final = ("fallbacks", "circuit_breaker", "session_id", "store", "clock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """Checked options: one config for each active guard, and the wiring."""

    configs: Mapping[str, Any]
    fallbacks: tuple[Any, ...] = ()
    session_id: str | None = None
    store: Store | None = None
    clock: Clock | None = None


def parse(options: Mapping[str, Any]) -> Parsed:
    """Check options and sort them by guard.

    Raises:
        BrixConfigurationError: An unknown option, a bad value, or an option of a guard that is not active.
    """
    given = _canonical(options)
    configs: dict[str, Any] = {}
    for guard, config in _CONFIGS.items():
        names = {field.name for field in dataclasses.fields(config)}
        values = {name: value for name, value in given.items() if name in names}
        if _is_active(guard, given):
            configs[guard] = config(**values)
        elif idle := values.keys() - set(_ACTIVATED_BY[guard]):
            raise BrixConfigurationError(
                f"{', '.join(sorted(idle))} has no effect: the {guard} guard is not active. "
                f"Give {' or '.join(_ACTIVATED_BY[guard])} too"
            )
    return Parsed(
        configs=configs,
        fallbacks=_fallbacks(given.get("fallbacks", ())),
        session_id=checked_session_id(given["session_id"]) if "session_id" in given else None,
        store=_conforming("store", given.get("store"), ("reserve", "settle", "balance", "take", "give", "update")),
        clock=_conforming("clock", given.get("clock"), ("now", "time", "sleep", "asleep")),
    )


def option_names() -> tuple[str, ...]:
    """All option names, older ones included."""
    return tuple(GuardOptions.__annotations__)


def _canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, by their own names."""
    known = option_names()
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
            raise BrixConfigurationError(f"unknown option {name!r}{hint}")
        if value is None:
            continue
        own = ALIASES.get(name, name)
        if own in given:
            older = next(alias for alias, target in ALIASES.items() if target == own)
            raise BrixConfigurationError(f"{own} is given twice ({older} is an older name for it); give it once")
        given[own] = value
    return given


_OTHERS: Final = """\
    fallbacks: Models (or clients) to go to, in order, when one fails.
    circuit_breaker: Leave a provider alone for a while that keeps failing; activates the guard.
    session_id: The session of calls made in none; a new UUID4 when left out.
    store: Where budgets, rates and breakers are kept; shared in the process by default.
    clock: The time, for tests."""


def _explanations() -> str:
    """What each option means, in the words of the guards' configs."""
    parts = ["The options of all guards."]
    for guard, config in _CONFIGS.items():
        explained = (inspect.getdoc(config) or "").partition("Attributes:\n")[2]
        parts.append(f"{guard}:\n{explained.rstrip()}")
    return "\n\n".join([*parts, f"wiring:\n{_OTHERS}"]) + "\n"


GuardOptions.__doc__ = _explanations()


_SWITCHED: Final = ("circuit_breaker", "loop")
"""Guards whose options are switches: False does not activate them."""


def _is_active(guard: str, given: Mapping[str, Any]) -> bool:
    if guard in _SWITCHED:
        return any(checks.flag(name, given.get(name, False)) for name in _ACTIVATED_BY[guard])
    return not _ACTIVATED_BY[guard] or any(name in given for name in _ACTIVATED_BY[guard])


def _fallbacks(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BrixConfigurationError(f"fallbacks must be a list of models or clients, got {value!r}")
    return tuple(value)


def _conforming(name: str, value: Any, methods: Sequence[str]) -> Any:
    missing = [method for method in methods if not callable(getattr(value, method, None))]
    if value is not None and missing:
        raise BrixConfigurationError(f"{name} must have the methods {', '.join(methods)}; {value!r} lacks {missing}")
    return value


__all__ = ["ALIASES", "GuardOptions", "OtherOptions", "Parsed", "Prices", "option_names", "parse"]
