"""Every option: its name, its default, the values it takes and those it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel

from brix_core import BrixConfigurationError, GuardOptions, InMemoryCache, MemoryStore, load_spec_from_dict
from brix_core.clock import SystemClock
from brix_core.guards import (
    BudgetConfig,
    CacheConfig,
    CircuitBreakerConfig,
    ContextConfig,
    LoopConfig,
    ObservabilityConfig,
    RateLimitConfig,
    RecordingConfig,
    RegulatedConfig,
    ReplayConfig,
    RetryConfig,
    SchemaConfig,
    TimeoutConfig,
)
from brix_core.options import ALIASES, option_names, parse
from brix_core.pipeline import Pipeline

CACHE = InMemoryCache()
SPEC = load_spec_from_dict(
    {
        "name": "house",
        "version": "1.0",
        "output_signals": [{"name": "promise", "description": "Promises a cure.", "patterns": ["cure"], "weight": 0.5}],
    }
)
CONFIGS = {
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
ALWAYS = {"observability", "recording", "schema"}
WIRING = {"fallbacks", "circuit_breaker", "session_id", "store", "clock"}
ACTIVATE: dict[str, dict[str, Any]] = {
    "budget": {"max_cost_usd": 1.0},
    "rate_limit": {"requests_per_minute": 60},
    "timeout": {"per_call_timeout": 30.0},
    "retry": {"max_retries": 2},
    "circuit_breaker": {"circuit_breaker": True},
    "cache": {"cache": CACHE},
    "regulated": {"regulated_spec": SPEC},
    "loop": {"exact_loop_detection": True},
    "schema": {},
    "context": {"max_context_tokens": 8_000},
    "observability": {"log_path": "no-such-folder"},
    "recording": {},
    "replay": {"replay": __file__},
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "budget": {
        "budget_strategy": "block",
        "budget_warning_threshold": 0.8,
        "budget_clamp_output": True,
        "prices": None,
        "unknown_price": "raise",
    },
    "rate_limit": {
        "tokens_per_minute": None,
        "burst_capacity": None,
        "rate_limit_scope": "session",
        "adaptive_rate_limiting": True,
        "min_rate_floor": 0.1,
        "rate_reduction_factor": 0.5,
        "rate_recovery_factor": 1.05,
        "recovery_window_seconds": 60.0,
    },
    "timeout": {
        "per_step_timeout": None,
        "total_timeout": None,
        "first_token_timeout": None,
        "idle_timeout": None,
        "on_timeout": "raise",
    },
    "retry": {
        "backoff_base": 2.0,
        "backoff_initial": 1.0,
        "max_backoff": 60.0,
        "retry_budget_seconds": 120.0,
        "retry_on": None,
        "retry_exceptions": None,
    },
    "circuit_breaker": {
        "circuit_failure_threshold": 5,
        "circuit_success_threshold": 2,
        "circuit_open_seconds": 60.0,
        "circuit_half_open_probes": 1,
    },
    "cache": {"cache_ttl": None},
    "regulated": {
        "retrieval_provider": None,
        "regulated_embedder": None,
        "enable_output_guard": False,
        "regulated_signals": (),
    },
    "schema": {
        "response_schema": None,
        "max_schema_retries": 2,
        "inject_schema_in_prompt": True,
        "max_healing_seconds": None,
        "stream_mode": "partial",
    },
    "loop": {
        "exact_loop_threshold": 3,
        "semantic_loop_detection": False,
        "semantic_loop_threshold": 0.92,
        "tool_loop_detection": True,
        "max_cycle_length": 4,
        "on_loop": "inject_diversity",
        "diversity_attempts": 2,
        "loop_window": 10,
        "loop_diversity_prompt": None,
        "embedder": None,
    },
    "context": {
        "context_strategy": "sliding_window",
        "context_reserve_tokens": 500,
        "context_summary_model": None,
        "context_overflow": "raise",
    },
    "observability": {
        "trace_buffer_size": 1_000,
        "log_path": None,
        "strict_mode": False,
        "log_fsync": "interval",
        "log_max_bytes": 64 * 2**20,
        "log_key": None,
        "redact": None,
        "telemetry": None,
    },
    "recording": {"record": None, "max_session_records": None},
    "replay": {"replay_strict": True, "replay_timing": False},
}


def fields(config: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def guard_of(option: str) -> str:
    return next(guard for guard, config in CONFIGS.items() if option in fields(config))


def parsed(option: str, value: Any) -> Any:
    """The option as its guard sees it, the guard being active."""
    guard = guard_of(option)
    return getattr(parse({**ACTIVATE[guard], option: value}).configs[guard], option)


def test_the_options_are_those_of_the_guards_and_the_wiring() -> None:
    every: set[str] = set().union(*map(fields, CONFIGS.values()))
    assert set(GuardOptions.__annotations__) == every | set(ALIASES) | WIRING
    assert set(option_names()) == set(GuardOptions.__annotations__)
    assert GuardOptions.__total__ is False
    for one, first in CONFIGS.items():
        for other, second in CONFIGS.items():
            assert one == other or not fields(first) & fields(second)  # a name means one thing


@pytest.mark.parametrize("guard", CONFIGS)
def test_defaults_are_the_documented_ones(guard: str) -> None:
    config = parse(ACTIVATE[guard]).configs[guard]
    given = ACTIVATE[guard] if guard != "circuit_breaker" else {}
    assert {name: getattr(config, name) for name in fields(type(config))} == {**DEFAULTS[guard], **given}


def test_nothing_given_is_observability_alone() -> None:
    assert set(parse({}).configs) == ALWAYS
    every: dict[str, Any] = dict.fromkeys(option_names())
    assert set(parse(every).configs) == ALWAYS
    assert Pipeline(parse({})).names == ("observability",)


@pytest.mark.parametrize(
    ("guard", "options"),
    [
        ("budget", {"max_cost_usd": 1}),
        ("rate_limit", {"requests_per_minute": 1}),
        ("rate_limit", {"rate_limit_rpm": 1}),
        ("rate_limit", {"tokens_per_minute": 1}),
        ("timeout", {"per_call_timeout": 1}),
        ("timeout", {"max_time_seconds": 1}),
        ("timeout", {"per_step_timeout": 1}),
        ("timeout", {"total_timeout": 1}),
        ("timeout", {"first_token_timeout": 1}),
        ("timeout", {"idle_timeout": 1}),
        ("retry", {"max_retries": 0}),
        ("circuit_breaker", {"circuit_breaker": True}),
        ("cache", {"cache": CACHE}),
        ("regulated", {"regulated_spec": SPEC}),
        ("loop", {"exact_loop_detection": True}),
        ("loop", {"semantic_loop_detection": True}),
        ("loop", {"tool_loop_detection": True}),
        ("context", {"max_context_tokens": 8_000}),
        ("context", {"max_context_tokens": "auto"}),
        ("replay", {"replay": __file__}),
    ],
)
def test_each_guard_is_activated_by_its_own_options(guard: str, options: dict[str, Any]) -> None:
    assert set(parse(options).configs) == {guard, *ALWAYS}


@pytest.mark.parametrize("switch", ["exact_loop_detection", "semantic_loop_detection", "tool_loop_detection"])
def test_a_switch_that_is_off_activates_nothing(switch: str) -> None:
    assert set(parse({switch: False}).configs) == ALWAYS
    with pytest.raises(BrixConfigurationError, match="on_loop has no effect"):
        parse({switch: False, "on_loop": "raise"})


NUMBERS = {
    "max_cost_usd",
    "budget_warning_threshold",
    "requests_per_minute",
    "tokens_per_minute",
    "min_rate_floor",
    "rate_reduction_factor",
    "rate_recovery_factor",
    "recovery_window_seconds",
    "per_call_timeout",
    "per_step_timeout",
    "total_timeout",
    "first_token_timeout",
    "idle_timeout",
    "backoff_base",
    "backoff_initial",
    "cache_ttl",
    "max_backoff",
    "retry_budget_seconds",
    "circuit_open_seconds",
    "max_healing_seconds",
    "semantic_loop_threshold",
}
WHOLE = {
    "max_schema_retries",
    "burst_capacity",
    "max_retries",
    "circuit_failure_threshold",
    "circuit_success_threshold",
    "circuit_half_open_probes",
    "trace_buffer_size",
    "max_session_records",
    "max_cycle_length",
    "diversity_attempts",
}
BOUNDED = {"burst_capacity", "max_cycle_length"}
"""These have a most."""
WORDS = {
    "budget_strategy": ("block", "warn"),
    "unknown_price": ("raise", "warn", "free"),
    "rate_limit_scope": ("session", "provider"),
    "on_timeout": ("raise", "return_partial"),
    "stream_mode": ("partial", "validated"),
    "on_loop": ("inject_diversity", "raise"),
    "context_strategy": ("sliding_window", "importance", "summarize"),
    "context_overflow": ("raise", "truncate"),
    "log_fsync": ("always", "interval", "never"),
}
FLAGS = {
    "budget_clamp_output",
    "adaptive_rate_limiting",
    "inject_schema_in_prompt",
    "semantic_loop_detection",
    "enable_output_guard",
    "strict_mode",
    "telemetry",
    "replay_strict",
    "replay_timing",
}
LOOP_SWITCHES = {"exact_loop_detection", "semantic_loop_detection", "tool_loop_detection"}
ELSEWHERE = {
    *("prices", "retry_on", "retry_exceptions", "response_schema", "cache"),  # further down
    *("exact_loop_detection", "tool_loop_detection"),  # above; the others are in the tests of G10 and G7
    *("exact_loop_threshold", "loop_window", "loop_diversity_prompt", "embedder"),
    *("regulated_spec", "retrieval_provider", "regulated_embedder", "regulated_signals"),  # in tests/regulated
    *("max_context_tokens", "context_reserve_tokens", "context_summary_model"),
    *("log_path", "log_max_bytes", "log_key", "redact", "record", "replay"),  # further down, and in tests/audit
}
ZERO_ALLOWED = {
    "backoff_initial",
    "max_backoff",
    "retry_budget_seconds",
    "max_retries",
    "max_schema_retries",
    "diversity_attempts",
}
INFINITE_ALLOWED = {"max_cost_usd", "cache_ttl"}
FRACTIONS = {"budget_warning_threshold", "min_rate_floor", "rate_reduction_factor", "semantic_loop_threshold"}
AT_LEAST_ONE = {"rate_recovery_factor", "backoff_base"}


def test_every_option_has_a_kind_here() -> None:
    every: set[str] = set().union(*map(fields, CONFIGS.values()))
    assert NUMBERS | WHOLE | set(WORDS) | FLAGS | ELSEWHERE == every


@pytest.mark.parametrize("option", sorted(NUMBERS | WHOLE))
@pytest.mark.parametrize(
    "value", [float("nan"), True, False, "1", "", b"1", [1], {}, -1, -0.5, float("-inf"), 1j, ...], ids=repr
)
def test_what_is_no_number_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=f"{option} must be"):
        parsed(option, value)


@pytest.mark.parametrize("option", sorted(NUMBERS | WHOLE))
def test_zero_and_infinity_are_refused_where_they_make_no_sense(option: str) -> None:
    for value, allowed in ((0, option in ZERO_ALLOWED), (float("inf"), option in INFINITE_ALLOWED)):
        if allowed:
            assert parsed(option, value) == value
        else:
            with pytest.raises(BrixConfigurationError, match=f"{option} must be"):
                parsed(option, value)


@pytest.mark.parametrize("option", sorted(NUMBERS))
def test_numbers_may_be_whole_or_not(option: str) -> None:
    assert parsed(option, 1) == 1
    fractional = 0.5 if option in FRACTIONS else 1.5
    assert parsed(option, fractional) == fractional


@pytest.mark.parametrize("option", sorted(NUMBERS | WHOLE))
def test_numbers_beyond_any_float_are_refused_and_not_a_crash(option: str) -> None:
    if option in WHOLE - BOUNDED:
        assert parsed(option, 10**400) == 10**400
    else:
        with pytest.raises(BrixConfigurationError, match=f"{option} must be"):
            parsed(option, 10**400)


@pytest.mark.parametrize("option", sorted(WHOLE))
def test_whole_numbers_must_be_whole(option: str) -> None:
    assert parsed(option, 3) == 3
    with pytest.raises(BrixConfigurationError, match=f"{option} must be an int"):
        parsed(option, 3.0)


@pytest.mark.parametrize("option", sorted(FRACTIONS))
def test_fractions_end_at_one(option: str) -> None:
    assert parsed(option, 1.0) == 1.0
    with pytest.raises(BrixConfigurationError, match=f"{option} must be"):
        parsed(option, 1.01)


@pytest.mark.parametrize("option", sorted(AT_LEAST_ONE))
def test_factors_begin_at_one(option: str) -> None:
    assert parsed(option, 1.0) == 1.0
    with pytest.raises(BrixConfigurationError, match=f"{option} must be"):
        parsed(option, 0.99)


@pytest.mark.parametrize("option", sorted(WORDS))
def test_words_are_taken_and_others_are_refused_with_the_list(option: str) -> None:
    for word in WORDS[option]:
        assert parsed(option, word) == word
    for other in ("", "Block", 1, True, ["block"]):
        with pytest.raises(BrixConfigurationError, match=f"{option} must be one of '{WORDS[option][0]}'"):
            parsed(option, other)


@pytest.mark.parametrize("option", [*sorted(FLAGS), "circuit_breaker"])
@pytest.mark.parametrize("value", [0, 1, "true", "no", [], float("nan")], ids=repr)
def test_flags_are_true_or_false(option: str, value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=f"{option} must be True or False"):
        parse({"circuit_breaker": value}) if option == "circuit_breaker" else parsed(option, value)


@pytest.mark.parametrize("option", sorted(FLAGS))
def test_flags_are_taken(option: str) -> None:
    assert [parsed(option, flag) for flag in (True, False)] == [True, False]


@pytest.mark.parametrize("value", [[418, 599], (400,), {404, 418}, []])
def test_retry_on_takes_statuses(value: Any) -> None:
    assert parsed("retry_on", value) == value


@pytest.mark.parametrize("value", [[399], [600], [True], ["429"], "429", 429, [429.0], {"429": 1}, [None]], ids=repr)
def test_retry_on_refuses_what_is_no_list_of_statuses(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="retry_on"):
        parsed("retry_on", value)


@pytest.mark.parametrize("value", [[], [TimeoutError], (ConnectionError, OSError)], ids=repr)
def test_retry_exceptions_takes_classes(value: Any) -> None:
    assert parsed("retry_exceptions", value) == value


@pytest.mark.parametrize("value", ["TimeoutError", TimeoutError, [KeyboardInterrupt], [503], [None], {}], ids=repr)
def test_retry_exceptions_refuses_what_is_no_list_of_exceptions(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="retry_exceptions must be a list of exception classes"):
        parsed("retry_exceptions", value)


@pytest.mark.parametrize("value", [InMemoryCache, {}, "memory", 7, True], ids=repr)
def test_what_is_no_cache_is_refused(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="cache must be a cache such as"):
        parse({"cache": value})


@pytest.mark.parametrize("value", [{"m": (0, 0)}, {"m": [1e-6, 2e-6]}, {"m": {"input": 1, "output": 2}}, {}], ids=repr)
def test_prices_are_taken(value: Any) -> None:
    assert parsed("prices", value) == value


@pytest.mark.parametrize(
    "value",
    [7, "free", {"m": 1}, {"m": (1,)}, {"m": (-1, 0)}, {"m": (float("nan"), 0)}, {"m": {"input": 1}}, {1: (0, 0)}],
    ids=repr,
)
def test_bad_prices_are_refused_when_they_are_given(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="price"):
        parsed("prices", value)


class City(BaseModel):
    name: str


@pytest.mark.parametrize("value", [City, {"type": "object"}], ids=repr)
def test_a_schema_is_a_class_or_a_json_schema(value: Any) -> None:
    assert parsed("response_schema", value) is value


@pytest.mark.parametrize("value", [7, "City", int, City(name="Oslo"), {"type": "city"}, []], ids=repr)
def test_a_bad_schema_is_refused_when_it_is_given(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="response_schema"):
        parsed("response_schema", value)


# Names


@pytest.mark.parametrize(("alias", "name"), sorted(ALIASES.items()))
def test_older_names_are_taken_but_not_both(alias: str, name: str) -> None:
    guard = guard_of(name)
    assert getattr(parse({alias: 7}).configs[guard], name) == 7
    assert getattr(parse({alias: None, name: 8}).configs[guard], name) == 8
    with pytest.raises(BrixConfigurationError, match=f"{name} is given twice"):
        parse({alias: 7, name: 7})


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("max_cost", "max_cost_usd"),
        ("max_costs_usd", "max_cost_usd"),
        ("request_per_minute", "requests_per_minute"),
        ("max_retry", "max_retries"),
        ("Total_timeout", "total_timeout"),
    ],
)
def test_an_unknown_option_is_refused_with_a_suggestion(unknown: str, meant: str) -> None:
    with pytest.raises(BrixConfigurationError, match=f"unknown option '{unknown}'; did you mean {meant}?"):
        parse({unknown: 1})


@pytest.mark.parametrize("unknown", ["zzz", "", 7, ("a",)])
def test_an_option_like_no_other_is_refused_with_the_list(unknown: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"known are adaptive_rate_limiting, .*, unknown_price"):
        parse({unknown: None})


# Options without an active guard


@pytest.mark.parametrize(
    "option",
    sorted(set().union(*(fields(CONFIGS[guard]) for guard in CONFIGS if guard not in ALWAYS)) - LOOP_SWITCHES),
)
def test_an_option_of_a_guard_that_is_not_active_is_refused(option: str) -> None:
    guard = guard_of(option)
    activating = {
        "max_cost_usd",
        "requests_per_minute",
        "tokens_per_minute",
        "max_retries",
        "max_context_tokens",
        "cache",
        "regulated_spec",
        "replay",
        *(name for name in fields(TimeoutConfig) if name.endswith("timeout") and name != "on_timeout"),
    }
    value = DEFAULTS[guard].get(option)
    if option in activating:
        assert guard in parse({option: ACTIVATE[guard].get(option, 1_000)}).configs
    else:
        value = {"prices": {}, "retry_on": [418], "burst_capacity": 1, "cache_ttl": 1}.get(
            option, "x" if value is None else value
        )
        with pytest.raises(BrixConfigurationError, match=f"{option} has no effect: the {guard} guard is not active"):
            parse({option: value})


def test_a_breaker_switched_off_takes_no_options() -> None:
    assert "circuit_breaker" not in parse({"circuit_breaker": False}).configs
    with pytest.raises(BrixConfigurationError, match="circuit_open_seconds has no effect"):
        parse({"circuit_breaker": False, "circuit_open_seconds": 1.0})


# Wiring


def test_the_wiring_is_handed_on() -> None:
    store, clock, model = MemoryStore(), SystemClock(), object()
    found = parse({"store": store, "clock": clock, "fallbacks": [model], "session_id": "s"})
    assert found.store is store
    assert found.clock is clock
    assert found.fallbacks == (model,)
    assert found.session_id == "s"


@pytest.mark.parametrize("value", ["gpt-4o", 7, object(), {"a": 1}])
def test_fallbacks_must_be_a_list(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="fallbacks must be a list"):
        parse({"fallbacks": value})


@pytest.mark.parametrize(("option", "method"), [("store", "reserve"), ("clock", "asleep")])
def test_a_store_or_clock_must_be_one(option: str, method: str) -> None:
    with pytest.raises(BrixConfigurationError, match=rf"{option} must have the methods .*{method}"):
        parse({option: object()})


@pytest.mark.parametrize("value", ["", 7, b"s"])
def test_a_session_id_must_be_text(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="session id"):
        parse({"session_id": value})


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_configs_are_frozen_and_take_keywords_only(config: Any) -> None:
    guard = next(name for name, cls in CONFIGS.items() if cls is config)
    made = config(**{name: value for name, value in ACTIVATE[guard].items() if name in fields(config)})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, next(iter(fields(config))), 1)
    with pytest.raises(TypeError):
        config(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"log_path": 3}, "log_path must be a folder's path"),
        ({"log_path": ""}, "log_path must be a folder's path"),
        ({"log_path": __file__}, "is a file"),
        ({"log_path": "logs", "log_max_bytes": 10}, "log_max_bytes must be an int >= 4096"),
        ({"log_path": "logs", "log_max_bytes": 1e9}, "log_max_bytes must be an int"),
        ({"redact": "names"}, "redact must be a function"),
        ({"strict_mode": True}, "strict_mode has no effect"),
        ({"log_fsync": "always"}, "log_fsync has no effect"),
        ({"log_key": b"a secret of 16 bytes"}, "log_key has no effect"),
        ({"record": 3}, "record must be a file's path"),
        ({"replay": 3}, "replay must be the path"),
        ({"replay": "no-such-file"}, "there is no recording"),
    ],
    ids=repr,
)
def test_what_is_no_log_or_recording_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BrixConfigurationError, match=said):
        parse(options)
