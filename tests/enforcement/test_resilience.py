"""Retries, breakers, failover and rates of the engine: the guards by other names, over HTTP and in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from datetime import datetime
from typing import Any

import pytest

from brix_core import BrixConfigurationError, BrixFailoverError, InMemoryCache, MemoryStore
from brix_core.demo import BadRequest, DemoServer, JsonReply, RateLimited, Reply, ServerError, StalledStream
from brix_core.enforcement import (
    PROVIDER_LIMITS,
    AnthropicAdapter,
    CircuitBreakerConfig,
    EnforcedOutput,
    EnforcementEngine,
    FailoverChain,
    OpenAIAdapter,
    PerProviderRateLimiter,
    RateLimiter,
    RetryPolicy,
)
from brix_core.usage import Usage
from tests.enforcement.support import (
    OSLO,
    VALID,
    Ask,
    City,
    InMemoryAdapter,
    both,
    engine_of,
    every_way,
)
from tests.support.errors import connection_lost, status_error
from tests.support.fake import FakeEndpoint
from tests.support.virtual import VirtualClock, run_virtual


def in_memory(
    clock: VirtualClock, name: str = "gpt-4o-mini", provider: str = "openai", **fields: Any
) -> InMemoryAdapter:
    endpoint = FakeEndpoint(clock, **{"name": name, "chunks": [VALID], **fields})
    return InMemoryAdapter(endpoint, provider)


def sent(adapter: InMemoryAdapter) -> list[float]:
    """When its requests were sent."""
    return [request.at for request in adapter._made.sent]


def enforce_all(engine: EnforcementEngine, clock: VirtualClock, count: int, **kwargs: Any) -> list[EnforcedOutput]:
    """Prompts all at once, in virtual time."""

    async def main() -> list[EnforcedOutput]:
        return await asyncio.gather(*(engine.enforce(f"{number}", City, **kwargs) for number in range(count)))

    return run_virtual(main, clock)


# -- retries ---------------------------------------------------------------------------------------------------


@every_way
async def test_transient_failures_are_tried_again(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter, retry_policy=RetryPolicy(max_attempts=3, base_delay=0.001))
    server.script(ServerError(500), RateLimited(retry_after="0"))
    server.default = Reply(VALID)
    output = await ask(engine, "Where?")
    assert output.success
    assert (output.attempts, output.retry_count) == (3, 0)
    assert len(server.requests) == 3


async def test_by_default_three_attempts_with_full_jitter() -> None:
    clock = VirtualClock()
    adapter = in_memory(clock, behave=lambda number: status_error(503) if number % 3 < 2 else None)
    engine = EnforcementEngine(adapter, engine_of(adapter).validator, store=MemoryStore(), clock=clock)
    first, second = [], []
    for _ in range(60):
        start = len(sent(adapter))
        output = await asyncio.to_thread(engine.enforce_sync, "x", City)
        assert output.attempts == 3
        times = sent(adapter)[start:]
        first.append(times[1] - times[0])
        second.append(times[2] - times[1])
    assert 0.6 < max(first) <= 1.0
    assert 1.2 < max(second) <= 2.0
    assert min(first + second) < 0.3


def test_a_policy_sets_the_delays_and_their_most() -> None:
    clock = VirtualClock()
    adapter = in_memory(clock, behave=lambda number: status_error(503))
    policy = RetryPolicy(max_attempts=8, base_delay=4.0, max_delay=10.0)
    engine = engine_of(adapter, retry_policy=policy, clock=clock)
    output = engine.enforce_sync("x", City)
    times = sent(adapter)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert (output.success, output.attempts, output.error_type) == (False, 8, "BrixRetryError")
    assert gaps[0] <= 4.0
    assert max(gaps) <= 10.0


@both
async def test_a_policys_timeout_is_that_of_each_attempt(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter, retry_policy=RetryPolicy(max_attempts=2, base_delay=0.001, timeout=0.25))
    server.script(StalledStream(after=0))
    server.default = Reply(VALID)
    output = await ask(engine, "Where?")
    assert (output.data, output.attempts) == (OSLO, 2)
    assert await asyncio.to_thread(server.wait_until_idle)


NAMED: list[tuple[Any, BaseException, bool]] = [
    ((TimeoutError, ConnectionError), connection_lost(), True),
    ((ConnectionError,), ConnectionResetError(), True),
    ((TimeoutError,), connection_lost(), False),
    ((OSError,), TimeoutError(), True),
    ((OSError,), PermissionError(), True),
    ((TimeoutError, ConnectionError), status_error(503), False),
    ((ValueError,), ValueError("odd"), True),
    ((LookupError,), KeyError("odd"), True),
    ((ValueError,), KeyError("odd"), False),
    ((Exception,), status_error(503), True),
    ((Exception,), status_error(401), False),
    ((Exception,), status_error(400), False),
    ((), status_error(503), False),
    (None, ValueError("odd"), False),
    (None, status_error(401), False),
    (None, connection_lost(), True),
]


@pytest.mark.parametrize(("classes", "error", "again"), NAMED, ids=str)
def test_the_named_exceptions_are_tried_again(classes: Any, error: BaseException, again: bool) -> None:
    clock = VirtualClock()
    adapter = in_memory(clock, behave=lambda number: None if number else error)
    engine = engine_of(adapter, retry_policy=RetryPolicy(retryable_exceptions=classes), clock=clock)
    output = engine.enforce_sync("x", City)
    assert (output.success, len(sent(adapter))) == (again, 2 if again else 1)
    assert again or output.error is error


def test_a_guards_refusal_is_never_tried_again() -> None:
    clock = VirtualClock()
    adapter = in_memory(clock)
    policy = RetryPolicy(retryable_exceptions=(Exception,))
    engine = engine_of(adapter, retry_policy=policy, clock=clock, max_cost_usd=1e-9, unknown_price="raise")
    output = engine.enforce_sync("x", City)
    assert output.error_type == "BrixBudgetError"
    assert clock.now() == 1_000.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_attempts": 0}, "max_attempts must be an int >= 1"),
        ({"base_delay": -1}, "base_delay must be"),
        ({"max_delay": float("inf")}, "max_delay must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"retryable_exceptions": "TimeoutError"}, "retryable_exceptions must be a list of exception classes"),
        ({"retryable_exceptions": [KeyboardInterrupt]}, "must be a list of exception classes"),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_is_refused(options: Any, said: str) -> None:
    with pytest.raises(BrixConfigurationError, match=said):
        RetryPolicy(**options)


# -- the circuit breaker ---------------------------------------------------------------------------------------


@every_way
async def test_a_failing_provider_is_left_alone(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    config = CircuitBreakerConfig(failure_threshold=3, success_threshold=1, timeout=60.0)
    engine = engine_of(
        adapter, retry_policy=RetryPolicy(max_attempts=1), use_circuit_breaker=True, circuit_breaker_config=config
    )
    server.default = ServerError(500)
    outputs = [await ask(engine, "Where?") for _ in range(5)]
    assert [output.error_type for output in outputs] == ["InternalServerError"] * 3 + ["BrixCircuitOpenError"] * 2
    assert [output.attempts for output in outputs] == [1, 1, 1, 0, 0]
    assert len(server.requests) == 3


def test_a_breaker_probes_and_closes_again() -> None:
    clock = VirtualClock()
    adapter = in_memory(clock, behave=lambda number: status_error(500) if number < 2 else None, latency=1.0)
    config = CircuitBreakerConfig(failure_threshold=2, success_threshold=2, timeout=30.0)
    engine = engine_of(
        adapter,
        retry_policy=RetryPolicy(max_attempts=1),
        use_circuit_breaker=True,
        circuit_breaker_config=config,
        clock=clock,
    )
    assert [output.success for output in enforce_all(engine, clock, 2)] == [False, False]
    assert [output.error_type for output in enforce_all(engine, clock, 3)] == ["BrixCircuitOpenError"] * 3
    clock.advance(30.0)
    half_open = enforce_all(engine, clock, 20)
    assert [output.success for output in half_open].count(True) == 1  # one probe at a time
    assert enforce_all(engine, clock, 1)[0].success
    assert all(output.success for output in enforce_all(engine, clock, 20))


def test_a_bad_answer_opens_no_circuit() -> None:
    clock = VirtualClock()
    adapter = in_memory(clock, chunks=["never"])
    engine = engine_of(adapter, max_retries=9, use_circuit_breaker=True, clock=clock)
    assert enforce_all(engine, clock, 1)[0].error_type == "BrixSchemaError"
    assert len(sent(adapter)) == 10


def test_a_config_without_a_breaker_is_refused(adapter: OpenAIAdapter) -> None:
    with pytest.raises(BrixConfigurationError, match="no effect without use_circuit_breaker=True"):
        engine_of(adapter, circuit_breaker_config=CircuitBreakerConfig())


# -- failover --------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(
    "failure", [ServerError(503), RateLimited(retry_after="999"), BadRequest(status=401)], ids=repr
)
async def test_the_next_adapter_answers(
    server: DemoServer, adapter: OpenAIAdapter, other: AnthropicAdapter, ask: Ask, failure: Any
) -> None:
    engine = engine_of(FailoverChain([adapter, other]), retry_policy=RetryPolicy(max_attempts=1))
    server.script(failure)
    server.default = Reply(VALID)
    output = await ask(engine, "Where?", max_tokens=100)
    assert (output.data, output.attempts) == (OSLO, 2)
    assert (output.generation.provider, output.generation.model) == ("anthropic", "claude-haiku-4-5")
    assert [record.path for record in server.requests] == ["/v1/chat/completions", "/v1/messages"]


@both
async def test_a_heal_goes_to_whoever_is_well(
    server: DemoServer, adapter: OpenAIAdapter, other: AnthropicAdapter, ask: Ask
) -> None:
    engine = engine_of(FailoverChain([adapter, other]), retry_policy=RetryPolicy(max_attempts=1))
    server.script(Reply("no"), ServerError(500), Reply(VALID))
    output = await ask(engine, "Where?")
    assert (output.data, output.retry_count, output.attempts) == (OSLO, 1, 3)
    assert output.generation.provider == "anthropic"
    assert "no" in str(server.requests[2].body["messages"])


@both
async def test_when_all_fail_the_failure_tells_of_each(
    server: DemoServer, adapter: OpenAIAdapter, other: AnthropicAdapter, ask: Ask
) -> None:
    engine = engine_of(FailoverChain([adapter, other]))
    server.default = ServerError(500)
    output = await ask(engine, "Where?")
    assert isinstance(output.error, BrixFailoverError)
    assert [name.partition(":")[0] for name, _ in output.error.errors] == ["openai", "anthropic"]
    assert output.attempts == len(server.requests) == 6


def test_an_adapter_that_fails_is_passed_over_until_it_has_cooled_down() -> None:
    clock, store = VirtualClock(), MemoryStore()
    first = in_memory(clock, "first", behave=lambda number: status_error(500) if number < 5 else None)
    second = in_memory(clock, "second", "anthropic")
    chain = FailoverChain([first, second], cooldown=30.0)
    engine = engine_of(chain, retry_policy=RetryPolicy(max_attempts=1), clock=clock, store=store)
    assert [health.healthy for health in chain.health()] == [True, True]
    outputs = [enforce_all(engine, clock, 1)[0] for _ in range(10)]
    assert all(output.success for output in outputs)
    assert (len(sent(first)), len(sent(second))) == (5, 10)  # five in a row, then it is left alone
    [ill, well] = chain.health()
    assert (ill.healthy, ill.breaker.state, well.healthy) == (False, "open", True)
    assert 0 < ill.breaker.retry_after <= 30.0
    assert ill.adapter == "openai/first"
    clock.advance(30.0)
    assert chain.health()[0].breaker.state == "half_open"
    assert enforce_all(engine, clock, 1)[0].generation.model == "first"
    assert enforce_all(engine, clock, 1)[0].generation.model == "first"
    assert chain.health()[0].breaker.state == "closed"


def test_an_engines_breaker_is_that_of_its_chain() -> None:
    clock = VirtualClock()
    first = in_memory(clock, "first", behave=lambda number: status_error(500))
    chain = FailoverChain([first, in_memory(clock, "second")])
    engine = engine_of(
        chain,
        retry_policy=RetryPolicy(max_attempts=1),
        use_circuit_breaker=True,
        circuit_breaker_config=CircuitBreakerConfig(failure_threshold=2),
        clock=clock,
    )
    assert all(output.success for output in [enforce_all(engine, clock, 1)[0] for _ in range(6)])
    assert len(sent(first)) == 2


@pytest.mark.parametrize(
    ("adapters", "options", "said"),
    [
        ([], {}, "takes a list of adapters"),
        ("openai", {}, "takes a list of adapters"),
        (None, {}, "takes a list of adapters"),
        (["openai"], {}, r"adapters\[0\] must be an adapter"),
        ("twice", {}, "twice"),
        ("one", {"cooldown": 0}, "cooldown must be"),
    ],
    ids=str,
)
def test_a_chain_that_cannot_be_is_refused(adapter: OpenAIAdapter, adapters: Any, options: Any, said: str) -> None:
    given = {"twice": [adapter, adapter], "one": [adapter]}.get(adapters if isinstance(adapters, str) else "", adapters)
    with pytest.raises(BrixConfigurationError, match=said):
        FailoverChain(given, **options)


def test_a_cooldown_is_said_once(adapter: OpenAIAdapter) -> None:
    chain = FailoverChain([adapter], cooldown=30.0)
    with pytest.raises(BrixConfigurationError, match="are the same thing; give one"):
        engine_of(chain, use_circuit_breaker=True, circuit_breaker_config=CircuitBreakerConfig(timeout=60.0))


# -- rates -----------------------------------------------------------------------------------------------------


def most_in(times: list[float], window: float) -> int:
    """The most requests in any window of so many seconds."""
    return max((sum(start <= time < start + window for time in times) for start in times), default=0)


def let_go(engine: EnforcementEngine) -> list[float]:
    """When requests were let go; a busy machine sends them later."""
    return sorted(
        datetime.fromisoformat(trace["timestamp"]).timestamp() + attempt["after_ms"] / 1_000
        for trace in engine.get_traces()
        for attempt in trace["attempts"]
    )


def test_a_rate_holds_in_any_window_with_retries_and_heals() -> None:
    clock = VirtualClock()
    adapter = in_memory(
        clock,
        behave=lambda number: status_error(503) if number % 5 == 0 else "no" if number % 5 == 1 else None,
        latency=0.3,
    )
    engine = engine_of(adapter, rate_limiter=RateLimiter(requests_per_minute=60), clock=clock)
    outputs = enforce_all(engine, clock, 60)
    assert all(output.success for output in outputs)
    times = sent(adapter)
    assert len(times) > 80
    assert most_in(times, 10.0) <= 11
    assert most_in(times, 60.0) <= 61
    assert times[-1] - times[0] >= len(times) - 2


def test_tokens_count_too() -> None:
    clock = VirtualClock()
    adapter = in_memory(clock, usage=Usage(input_tokens=700, output_tokens=300), latency=0.1)
    engine = engine_of(adapter, rate_limiter=RateLimiter(tokens_per_minute=6_000), clock=clock)
    assert all(output.success for output in enforce_all(engine, clock, 30, max_tokens=300))
    assert most_in(sent(adapter), 60.0) <= 20
    assert clock.now() - 1_000.0 >= 200.0


def test_engines_share_a_limiter() -> None:
    clock, limiter, store = VirtualClock(), RateLimiter(requests_per_minute=60), MemoryStore()
    first, second = in_memory(clock, "first"), in_memory(clock, "second")
    engines = [engine_of(each, rate_limiter=limiter, clock=clock, store=store) for each in (first, second)]

    async def main() -> None:
        await asyncio.gather(*(engines[number % 2].enforce(f"{number}", City) for number in range(40)))

    run_virtual(main, clock)
    assert most_in(sorted(sent(first) + sent(second)), 10.0) <= 11
    assert most_in(sent(first), 10.0) >= 5  # each had its turn


def test_limiters_are_told_apart() -> None:
    clock, store = VirtualClock(), MemoryStore()
    adapters = [in_memory(clock), in_memory(clock)]
    for each in adapters:
        engine = engine_of(each, rate_limiter=RateLimiter(requests_per_minute=60), clock=clock, store=store)
        assert enforce_all(engine, clock, 1)[0].success
    assert clock.now() == 1_000.0


def test_each_provider_has_its_own_rate_in_failover_too() -> None:
    clock = VirtualClock()
    first = in_memory(clock, "first", "openai", behave=lambda number: status_error(401) if number % 2 else None)
    second = in_memory(clock, "second", "anthropic")
    limits = PerProviderRateLimiter()
    limits.set_provider_limits("openai", requests_per_minute=60)
    limits.set_provider_limits("anthropic", requests_per_minute=6)
    engine = engine_of(FailoverChain([first, second]), rate_limiter=limits, clock=clock)
    assert all(output.success for output in enforce_all(engine, clock, 30))
    assert most_in(sent(first), 10.0) <= 11
    assert (most_in(sent(second), 10.0), len(sent(second))) == (1, 15)


def test_a_provider_without_limits_has_none_and_limits_may_change() -> None:
    clock = VirtualClock()
    adapter, limits = in_memory(clock), PerProviderRateLimiter()
    engine = engine_of(adapter, rate_limiter=limits, clock=clock)
    enforce_all(engine, clock, 30)
    assert clock.now() == 1_000.0
    limits.set_provider_limits("openai", requests_per_minute=60)
    enforce_all(engine, clock, 30)
    assert clock.now() == pytest.approx(1_029.0)


@both
async def test_over_http_a_rate_is_kept(server: DemoServer, adapter: OpenAIAdapter, ask: Ask) -> None:
    engine = engine_of(adapter, rate_limiter=RateLimiter(requests_per_minute=1_200, burst_capacity=1))
    server.default = Reply(VALID)
    outputs = await asyncio.gather(*(ask(engine, f"{number}") for number in range(8)))
    assert all(output.success for output in outputs)
    assert len(server.requests) == 8
    times = let_go(engine)
    assert times[-1] - times[0] >= 0.95 * 7 * 0.05


def test_published_limits_are_arguments_of_a_limiter() -> None:
    limits = PerProviderRateLimiter()
    for provider, tiers in PROVIDER_LIMITS.items():
        for tier in tiers.values():
            limits.set_provider_limits(provider, **tier.__dict__)
            assert limits.get_provider_limits(provider).requests_per_minute == tier.requests_per_minute  # type: ignore[union-attr]
    assert PROVIDER_LIMITS.keys() == {"openai", "anthropic", "gemini"}
    with pytest.raises(TypeError):
        PROVIDER_LIMITS["openai"] = {}  # type: ignore[index]


@pytest.mark.parametrize(
    "make",
    [
        lambda: RateLimiter(),
        lambda: RateLimiter(requests_per_minute=0),
        lambda: RateLimiter(tokens_per_minute=-1),
        lambda: PerProviderRateLimiter().set_provider_limits("openai"),
        lambda: PerProviderRateLimiter().set_provider_limits("", requests_per_minute=1),
    ],
)
def test_a_rate_that_cannot_be_is_refused(make: Any) -> None:
    with pytest.raises(BrixConfigurationError):
        make()


def test_a_rate_is_said_once(adapter: OpenAIAdapter) -> None:
    with pytest.raises(BrixConfigurationError, match="requests_per_minute is said by rate_limiter already"):
        engine_of(adapter, rate_limiter=RateLimiter(requests_per_minute=60), requests_per_minute=60)


# -- everything at once ----------------------------------------------------------------------------------------


def test_a_storm_ends_in_success_or_typed_failures_and_holds_nothing() -> None:
    clock, store = VirtualClock(), MemoryStore()
    faults = {0: status_error(429, headers={"retry-after": "2"}), 3: status_error(500), 6: connection_lost()}
    first = in_memory(
        clock,
        "gpt-4o",
        "first",
        latency=0.5,
        behave=lambda number: status_error(503) if clock.now() < 1_030.0 else None,
    )
    second = in_memory(
        clock,
        latency=0.5,
        usage=Usage(input_tokens=150, output_tokens=20),
        behave=lambda number: faults.get(number % 10, "garbage" if number % 10 == 8 else None),
    )
    limits = PerProviderRateLimiter()
    limits.set_provider_limits("openai", requests_per_minute=600, tokens_per_minute=90_000)
    limits.set_provider_limits("first", requests_per_minute=120)
    chain = FailoverChain([first, second], cooldown=20.0)
    engine = engine_of(
        chain,
        rate_limiter=limits,
        store=store,
        clock=clock,
        max_cost_usd=5.0,
        session_id="storm",
        retry_policy=RetryPolicy(max_attempts=5),
    )
    opened: list[bool] = []

    async def main() -> list[EnforcedOutput]:
        calls = asyncio.gather(*(engine.enforce(f"{number}", City, max_tokens=40) for number in range(500)))
        while not calls.done():
            opened.append(not chain.health()[0].healthy)
            await asyncio.sleep(1.0)
        outputs = await calls
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return list(outputs)

    outputs = run_virtual(main, clock)
    assert {output.error_type for output in outputs} <= {None, "BrixFailoverError", "BrixSchemaError"}
    assert sum(output.success for output in outputs) >= 490
    assert {output.generation.model for output in outputs} == {"gpt-4o", "gpt-4o-mini"}
    assert any(opened)
    assert [health.breaker.state for health in chain.health()] == ["closed", "closed"]
    assert most_in(sent(first), 60.0) <= 122
    assert most_in(sent(second), 60.0) <= 610
    assert 170 * most_in(sent(second), 60.0) <= 2 * 90_000  # a full bucket, and what a minute refills
    assert store.balance("budget:storm").reserved == 0
    assert sum(output.attempts for output in outputs) == len(sent(first)) + len(sent(second))
    assert len(engine.get_traces()) == 500
    assert first._made.in_flight == second._made.in_flight == 0


def test_a_blocking_call_in_a_coroutine_does_not_stand_behind_its_own_loop(
    server: DemoServer, adapter: OpenAIAdapter
) -> None:
    limiter = RateLimiter(requests_per_minute=600, burst_capacity=1)
    engine = engine_of(adapter, rate_limiter=limiter)
    server.default = Reply(VALID)
    outputs: list[EnforcedOutput] = []

    async def main() -> None:
        waiting = [asyncio.create_task(engine.enforce(f"{number}", City)) for number in range(4)]
        await asyncio.sleep(0.05)  # all but the first stand in line
        outputs.append(engine.enforce_sync("now", City))
        outputs.extend(await asyncio.gather(*waiting))

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    thread.join(20)
    assert [output.success for output in outputs] == [True] * 5
    assert len(server.requests) == 5
    times = let_go(engine)
    assert times[-1] - times[0] >= 0.95 * 4 * 0.1


# -- what users found ------------------------------------------------------------------------------------------


async def test_whoever_stands_in_line_for_a_rate_is_not_sent_to_a_provider_that_went_down(
    server: DemoServer, adapter: OpenAIAdapter
) -> None:
    server.default = ServerError(503)
    engine = engine_of(
        adapter,
        rate_limiter=RateLimiter(requests_per_minute=6_000, burst_capacity=1, adaptive=False),
        use_circuit_breaker=True,
        circuit_breaker_config=CircuitBreakerConfig(failure_threshold=5),
        retry_policy=RetryPolicy(max_attempts=1),
    )
    outputs = await asyncio.gather(*(engine.enforce(f"{number}", City) for number in range(50)))
    assert not any(output.success for output in outputs)
    assert server.stats.requests == sum(output.attempts for output in outputs) < 25
    assert Counter(output.error_type for output in outputs)["BrixCircuitOpenError"] > 25


async def test_accounts_at_one_address_have_breakers_of_their_own(server: DemoServer) -> None:
    server.script(ServerError(503))
    server.default = JsonReply(OSLO.model_dump())
    adapters = [OpenAIAdapter(api_key=key, model="gpt-4o-mini", base_url=server.base_url) for key in ("k1", "k2")]
    chain = FailoverChain(adapters, circuit_breaker_config=CircuitBreakerConfig(failure_threshold=1))
    output = await engine_of(chain, retry_policy=RetryPolicy(max_attempts=1)).enforce("Oslo?", City)
    assert (output.success, server.stats.requests) == (True, 2)
    assert [health.breaker.state for health in chain.health()] == ["open", "closed"]
    for each in adapters:
        await each.aclose()


async def test_breakers_with_other_thresholds_are_other_breakers(server: DemoServer, adapter: OpenAIAdapter) -> None:
    server.script(ServerError(503))
    server.default = JsonReply(OSLO.model_dump())
    store = MemoryStore()
    strict, lenient = (
        engine_of(
            adapter,
            use_circuit_breaker=True,
            circuit_breaker_config=CircuitBreakerConfig(failure_threshold=threshold),
            retry_policy=RetryPolicy(max_attempts=1),
            store=store,
        )
        for threshold in (1, 50)
    )
    assert not (await strict.enforce("Oslo?", City)).success
    assert (await strict.enforce("Oslo?", City)).error_type == "BrixCircuitOpenError"
    assert (await lenient.enforce("Oslo?", City)).success


async def test_what_a_fallback_answered_is_kept_for_the_chain_alone(server: DemoServer, adapter: OpenAIAdapter) -> None:
    server.script(ServerError(503))
    server.default = JsonReply(OSLO.model_dump())
    other = OpenAIAdapter(api_key="test", model="gpt-4o", base_url=server.base_url)
    cache, once = InMemoryCache(), RetryPolicy(max_attempts=1)
    chain = engine_of(FailoverChain([adapter, other]), cache=cache, retry_policy=once)
    assert (await chain.enforce("Oslo?", City)).generation.model == "gpt-4o"
    assert (await chain.enforce("Oslo?", City)).cached
    alone = await engine_of(adapter, cache=cache, retry_policy=once).enforce("Oslo?", City)
    assert (alone.cached, alone.generation.model) == (False, "gpt-4o-mini")
    await other.aclose()


async def test_engines_that_share_a_cache_share_calls_under_way(server: DemoServer, adapter: OpenAIAdapter) -> None:
    server.default = JsonReply(OSLO.model_dump())
    cache = InMemoryCache()
    engines = [engine_of(adapter, cache=cache) for _ in range(2)]
    outputs = await asyncio.gather(*(engines[number % 2].enforce("Oslo?", City) for number in range(60)))
    assert all(output.success for output in outputs)
    assert server.stats.requests == 1
