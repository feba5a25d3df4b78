"""The circuit breaker: closed, open, half-open; against a reference, and under load."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brix_core import BrixBudgetError, BrixCircuitOpenError, BrixTimeoutError
from brix_core.call import CallResponse
from brix_core.flow import StoreOp, send
from brix_core.guards import CircuitBreakerConfig, CircuitBreakerGuard
from brix_core.store import MemoryStore
from tests.support.errors import connection_lost, never_reached, status_error
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.modes import Mode, both_drivers, every_mode
from tests.support.virtual import VirtualClock, run_virtual

BREAKER = {
    "circuit_breaker": True,
    "circuit_failure_threshold": 3,
    "circuit_success_threshold": 2,
    "circuit_open_seconds": 10.0,
}


def breaker(**more: Any) -> tuple[VirtualClock, FakeEndpoint, Driver]:
    clock = VirtualClock()
    endpoint = FakeEndpoint(clock, behave=lambda number: status_error(503))
    return clock, endpoint, Driver(pipeline(clock, **{**BREAKER, **more}), endpoint)


def healthy(endpoint: FakeEndpoint) -> None:
    endpoint.behave = lambda number: None


@every_mode
def test_failures_in_a_row_open_the_circuit_and_calls_are_refused_without_being_sent(mode: Mode) -> None:
    _, endpoint, driver = breaker()
    results = mode.each(driver, [{}] * 5)
    assert [isinstance(result, BrixCircuitOpenError) for result in results] == [False] * 3 + [True] * 2
    assert len(endpoint.sent) == 3
    assert (results[3].endpoint, results[3].retry_after) == ("fake:fake", pytest.approx(10.0))
    opened = [entry["decisions"] for entry in driver.pipe.traces.get_traces()]
    decision = {"guard": "circuit_breaker", "decision": "opened", "endpoint": "fake:fake"}
    assert opened == [[], [], [decision], [], []]


@every_mode
def test_a_success_between_failures_keeps_the_circuit_closed(mode: Mode) -> None:
    _, endpoint, driver = breaker()
    endpoint.behave = lambda number: None if number % 3 == 2 else status_error(503)
    mode.each(driver, [{}] * 12)
    assert len(endpoint.sent) == 12


@every_mode
def test_scattered_failures_among_concurrent_calls_keep_the_circuit_closed(mode: Mode) -> None:
    # All of them began before the first one failed.
    _, endpoint, driver = breaker()
    endpoint.latency = 20.0
    endpoint.behave = lambda number: status_error(503) if number % 10 == 0 else None
    results = mode.all(driver, [{}] * 100, stagger=0.1)
    assert sum(isinstance(result, str) for result in results) == 90
    assert mode.each(driver, [{}] * 2).count("one two three") >= 1


@every_mode
def test_after_its_rest_the_circuit_is_probed_and_closed(mode: Mode) -> None:
    clock, endpoint, driver = breaker()
    mode.each(driver, [{}] * 3)
    healthy(endpoint)
    clock.advance(9.9)
    assert isinstance(mode.each(driver, [{}])[0], BrixCircuitOpenError)
    clock.advance(0.2)
    assert mode.each(driver, [{}] * 3) == ["one two three"] * 3
    endpoint.behave = lambda number: status_error(503)
    mode.each(driver, [{}] * 5)
    assert len(endpoint.sent) == 3 + 3 + 3  # closed again: three failures are needed to open it


@every_mode
def test_a_failed_probe_opens_the_circuit_again(mode: Mode) -> None:
    clock, endpoint, driver = breaker()
    mode.each(driver, [{}] * 3)
    clock.advance(10.0)
    mode.each(driver, [{}] * 3)
    assert len(endpoint.sent) == 4
    clock.advance(9.0)
    mode.each(driver, [{}])
    assert len(endpoint.sent) == 4


@every_mode
@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (status_error(500), True),
        (status_error(529), True),
        (connection_lost(), True),
        (never_reached(), True),
        (TimeoutError(), True),
        (status_error(429), False),
        (status_error(400), False),
        (status_error(401), False),
        (ValueError("not the provider's"), False),
    ],
    ids=repr,
)
def test_only_an_unwell_provider_counts(mode: Mode, error: Exception, counts: bool) -> None:
    _, endpoint, driver = breaker()
    endpoint.behave = lambda number: error
    mode.each(driver, [{}] * 6)
    assert len(endpoint.sent) == (3 if counts else 6)


@both_drivers
def test_what_other_guards_refuse_does_not_count(mode: Mode) -> None:
    _, _, driver = breaker(max_cost_usd=1e-6, prices={"fake": (0, 0.1)})
    results = mode.each(driver, [{}] * 6)
    assert {type(result) for result in results} == {BrixBudgetError}


def test_a_timeout_counts_partial_or_raised() -> None:
    for more in ({}, {"on_timeout": "return_partial"}):
        _, endpoint, driver = breaker(per_call_timeout=1.0, **more)
        endpoint.latency = 5.0
        results = Mode("async").each(driver, [{}] * 4)
        assert isinstance(results[3], BrixCircuitOpenError)
        assert len(endpoint.sent) == 3
        assert more or isinstance(results[0], BrixTimeoutError)


@every_mode
@pytest.mark.parametrize("probes", [1, 4])
def test_of_a_hundred_concurrent_calls_only_the_probes_pass(mode: Mode, probes: int) -> None:
    clock, endpoint, driver = breaker(circuit_half_open_probes=probes, circuit_success_threshold=1_000)
    mode.each(driver, [{}] * 3)
    healthy(endpoint)
    clock.advance(10.0)
    endpoint.latency = 1.0
    results = mode.all(driver, [{}] * 100)
    assert len(endpoint.sent) - 3 == probes
    refused = [result for result in results if isinstance(result, BrixCircuitOpenError)]
    assert len(refused) == 100 - probes
    assert {error.retry_after for error in refused} == {0.0}
    # The places are free again.
    assert mode.each(driver, [{}] * 2) == ["one two three"] * 2


@both_drivers
def test_the_state_is_the_endpoints_shared_by_sessions_and_pipelines(mode: Mode) -> None:
    clock, endpoint, driver = breaker()
    mode.each(driver, [{"session": name} for name in "abc"])
    twin = Driver(pipeline(clock, store=driver.pipe.store, **BREAKER), endpoint)
    assert isinstance(mode.each(twin, [{"session": "d"}])[0], BrixCircuitOpenError)
    other = Driver(driver.pipe, FakeEndpoint(clock, name="other"))
    assert mode.one(other) == "one two three"


@both_drivers
def test_results_from_before_the_circuit_opened_do_not_count_after_it_closed(mode: Mode) -> None:
    # Three slow calls begin while all is well, and fail when the circuit has opened, and closed again.
    clock, endpoint, driver = breaker(circuit_success_threshold=1)
    slow = FakeEndpoint(clock, latency=30.0, behave=lambda number: status_error(503))
    slow_driver = Driver(driver.pipe, slow)

    def blocking() -> list[Any]:
        def fails() -> None:
            with pytest.raises(Exception, match="failed"):
                slow_driver.call()

        def meanwhile() -> None:
            clock.sleep(1.0)
            for _ in range(3):
                with pytest.raises(Exception, match="failed"):
                    driver.call()
            clock.sleep(11.0)
            healthy(endpoint)
            driver.call()
            clock.sleep(30.0)
            driver.call()

        return clock.run_threads([fails, fails, fails, meanwhile])

    async def on_loop() -> None:
        pending = [asyncio.create_task(slow_driver.acall()) for _ in range(3)]
        await asyncio.sleep(1.0)
        await asyncio.gather(*(driver.acall() for _ in range(3)), return_exceptions=True)
        await asyncio.sleep(11.0)
        healthy(endpoint)
        await driver.acall()
        await asyncio.gather(*pending, return_exceptions=True)
        await driver.acall()

    if mode.driver == "sync":
        assert blocking() == [None] * 4
    else:
        run_virtual(on_loop, clock)
    assert len(slow.sent) == 3
    assert len(endpoint.sent) == 5


# Against a reference


class Reference:
    """The textbook's circuit breaker, as plainly as it can be written."""

    def __init__(self, config: CircuitBreakerConfig) -> None:
        self.config = config
        self.state, self.since, self.streak, self.generation = "closed", 0.0, 0, 0
        self.probes: dict[int, float] = {}

    def enter(self, call: int, now: float) -> bool:
        if self.state == "open" and now - self.since >= self.config.circuit_open_seconds:
            self.state, self.streak, self.probes = "half-open", 0, {}
        if self.state != "half-open":
            return self.state == "closed"
        rest = self.config.circuit_open_seconds
        self.probes = {probe: began for probe, began in self.probes.items() if now - began < rest}
        if len(self.probes) >= self.config.circuit_half_open_probes:
            return False
        self.probes[call] = now
        return True

    def leave(self, call: int, generation: int, verdict: bool | None, now: float) -> None:
        if generation != self.generation:
            return
        self.probes.pop(call, None)
        if verdict is None:
            return
        if self.state == "closed":
            self.streak = 0 if verdict else self.streak + 1
            if self.streak >= self.config.circuit_failure_threshold:
                self._change("open", now)
        elif verdict:
            self.streak += 1
            if self.streak >= self.config.circuit_success_threshold:
                self._change("closed", now)
        else:
            self._change("open", now)

    def _change(self, state: str, now: float) -> None:
        self.state, self.since, self.streak, self.probes = state, now, 0, {}
        self.generation += 1


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin, time passes, calls end, in any order; guard and reference must agree on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.config = CircuitBreakerConfig(
            circuit_failure_threshold=2,
            circuit_success_threshold=2,
            circuit_open_seconds=10.0,
            circuit_half_open_probes=2,
        )
        self.clock = VirtualClock()
        self.store = MemoryStore()
        self.guard = CircuitBreakerGuard(self.config, self.store, self.clock)
        self.reference = Reference(self.config)
        self.driver = Driver(pipeline(self.clock), FakeEndpoint(self.clock))
        self.flows: dict[int, tuple[Generator[Any, Any, CallResponse], int]] = {}
        self.number = 0

    @rule()
    def begin(self) -> None:
        self.number += 1
        expected = self.reference.enter(self.number, self.clock.now())
        flow = self.guard.flow(self.driver.request(), send)
        effect = next(flow)
        assert isinstance(effect, StoreOp)
        try:
            flow.send(effect.operation(*effect.arguments))
        except BrixCircuitOpenError:
            assert not expected
        else:
            assert expected
            self.flows[self.number] = (flow, self.reference.generation)

    @precondition(lambda self: self.flows)
    @rule(data=st.data(), ending=st.sampled_from(["ok", "ok", "partial", "down", "down", "bad", "cancel", "drop"]))
    def end(self, data: st.DataObject, ending: str) -> None:
        call = data.draw(st.sampled_from(sorted(self.flows)))
        flow, generation = self.flows.pop(call)
        verdict = {"ok": True, "partial": False, "down": False}.get(ending)
        errors = {"down": status_error(503), "bad": status_error(400), "cancel": asyncio.CancelledError()}
        if ending in errors:
            with pytest.raises(type(errors[ending])):
                flow.throw(errors[ending])
        elif ending == "drop":
            flow.close()
        else:
            with pytest.raises(StopIteration):
                flow.send(CallResponse(text="", partial=ending == "partial"))
        self.reference.leave(call, generation, verdict, self.clock.now())

    @rule(seconds=st.sampled_from([1.0, 5.0, 9.999, 10.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def probes_are_bounded(self) -> None:
        records = self.store._records
        state: Any = next((records[key] for key in records if key.startswith("breaker:fake:fake")), None)
        assert state is None or len(state.probes) <= 2
        assert state is None or (state.opened_at is None) == (self.reference.state == "closed")

    def teardown(self) -> None:
        for flow, _ in self.flows.values():
            flow.close()


TestAgainstTheReference = BreakerMachine.TestCase
TestAgainstTheReference.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
