"""CircuitBreakerGuard: an unwell provider is given a rest.

Closed: calls pass; `circuit_failure_threshold` failures in a row open the circuit. Open: calls are refused at
once, for `circuit_open_seconds`. Half-open: at most `circuit_half_open_probes` calls at a time are let through;
`circuit_success_threshold` successes close the circuit, one failure opens it again. (M. Nygard, "Release It!",
2nd ed., 2018, ch. 5.)

Only what says that the provider is down counts as a failure: 5xx, timeouts, connection errors. Rate limits, bad
requests, refusals by other guards and cancellations say nothing and only give their probe back. The state is the
endpoint's, shared by all sessions.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal, NamedTuple

from brix_core import checks
from brix_core.call import CallRequest
from brix_core.clock import Clock
from brix_core.endpoint import Endpoint
from brix_core.errors import BrixCircuitOpenError
from brix_core.failures import classify
from brix_core.flow import Flow, Proceed, StoreOp
from brix_core.store.base import Store


@dataclass(frozen=True, kw_only=True)
class CircuitBreakerConfig:
    """Options of the circuit breaker.

    Attributes:
        circuit_failure_threshold: Failures in a row that open the circuit.
        circuit_success_threshold: Successful probes that close it.
        circuit_open_seconds: How long it stays open before probing, seconds.
        circuit_half_open_probes: Most probes at a time.
    """

    circuit_failure_threshold: int = 5
    circuit_success_threshold: int = 2
    circuit_open_seconds: float = 60.0
    circuit_half_open_probes: int = 1

    def __post_init__(self) -> None:
        checks.whole("circuit_failure_threshold", self.circuit_failure_threshold, 1)
        checks.whole("circuit_success_threshold", self.circuit_success_threshold, 1)
        checks.positive("circuit_open_seconds", self.circuit_open_seconds)
        checks.whole("circuit_half_open_probes", self.circuit_half_open_probes, 1)


class _State(NamedTuple):
    """A breaker's record in the store. `era` grows with each change of state: a late result is not counted."""

    opened_at: float | None = None
    failures: int = 0
    successes: int = 0
    probes: tuple[float, ...] = ()
    era: int = 0


class BreakerState(NamedTuple):
    """What the breaker of one endpoint is doing.

    Attributes:
        state: ``"closed"`` lets calls pass, ``"open"`` refuses them, ``"half_open"`` lets probes through.
        failures: Failures in a row, while it is closed.
        retry_after: Seconds until a probe is admitted; 0 when one may be now.
    """

    state: Literal["closed", "open", "half_open"]
    failures: int = 0
    retry_after: float = 0.0


class _Permit(NamedTuple):
    """Leave to call, or not."""

    admitted: bool
    era: int
    probe: float | None = None
    retry_after: float = 0.0


class CircuitBreakerGuard:
    """Refuses calls to an endpoint that is down. See the module's docstring.

    Args:
        config: Its options.
        store: Where the state is.
        clock: The time.
    """

    name = "circuit_breaker"

    @property
    def blocking(self) -> bool:
        """Whether its store blocks."""
        return self._store.blocking

    def __init__(self, config: CircuitBreakerConfig, store: Store, clock: Clock) -> None:
        self.config = config
        self._store = store
        self._clock = clock
        self._thresholds = ":".join(f"{value:g}" for value in astuple(config))

    def state_of(self, endpoint: Endpoint) -> BreakerState:
        """The breaker of an endpoint, now. Asks the store, in place."""
        record: _State | None = self._store.update(self._key(endpoint), lambda state: (state, state))
        if record is None or record.opened_at is None:
            return BreakerState("closed", record.failures if record else 0)
        rest = record.opened_at + self.config.circuit_open_seconds - self._clock.now()
        return BreakerState("open", retry_after=rest) if rest > 0.0 else BreakerState("half_open")

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one attempt."""
        key = self._key(request.endpoint)
        permit: _Permit = yield StoreOp(self._store.update, (key, self._enter), self._store.blocking)
        if not permit.admitted:
            raise _refusal(request.endpoint, permit.retry_after)
        verdict: bool | None = None
        try:
            response = yield from proceed(request)
            verdict = not response.partial
            return response
        except Exception as error:
            verdict = False if classify(error).provider_down else None
            raise
        finally:
            if self._store.update(key, lambda state: self._leave(state, permit, verdict)):
                request.call.decide("circuit_breaker", "opened", endpoint=request.endpoint.identity)

    def _key(self, endpoint: Endpoint) -> str:
        """Whose breaker it is: an account's at an endpoint, of all guards with the same thresholds."""
        return f"breaker:{endpoint.identity}#{getattr(endpoint, 'account', '')}:{self._thresholds}"

    def _enter(self, record: _State | None) -> tuple[_State, _Permit]:
        state = record or _State()
        if state.opened_at is None:
            return state, _Permit(True, state.era)
        now = self._clock.now()
        rest = state.opened_at + self.config.circuit_open_seconds - now
        if rest > 0.0:
            return state, _Permit(False, state.era, retry_after=rest)
        # A probe whose process died never comes back: it is forgotten after another such rest.
        probes = tuple(began for began in state.probes if now - began < self.config.circuit_open_seconds)
        if len(probes) >= self.config.circuit_half_open_probes:
            return state._replace(probes=probes), _Permit(False, state.era)
        return state._replace(probes=(*probes, now)), _Permit(True, state.era, probe=now)

    def _leave(self, record: _State | None, permit: _Permit, verdict: bool | None) -> tuple[_State | None, bool]:
        """The state after a call, and whether it opened the circuit. `verdict` None says nothing."""
        state = record or _State()
        if permit.era != state.era:
            return state, False
        if permit.probe is not None:
            probes = list(state.probes)
            if permit.probe in probes:
                probes.remove(permit.probe)
            state = state._replace(probes=tuple(probes))
        if verdict is None:
            return state, False
        if verdict:
            return self._succeeded(state), False
        failures = state.failures + 1
        if state.opened_at is not None or failures >= self.config.circuit_failure_threshold:
            return _State(opened_at=self._clock.now(), era=state.era + 1), True
        return state._replace(failures=failures), False

    def _succeeded(self, state: _State) -> _State:
        if state.opened_at is None:
            return state._replace(failures=0)
        successes = state.successes + 1
        if successes >= self.config.circuit_success_threshold:
            return _State(era=state.era + 1)
        return state._replace(successes=successes)


class CircuitGate:
    """Looks again just before a request leaves: while it stood in line for its rate, the circuit may have opened.

    Args:
        breaker: The guard that admitted it.
    """

    name = "circuit_gate"
    config = None
    """No option activates it."""

    def __init__(self, breaker: CircuitBreakerGuard) -> None:
        self._breaker = breaker

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one attempt."""
        breaker = self._breaker
        state: BreakerState = yield StoreOp(breaker.state_of, (request.endpoint,), breaker.blocking)
        if state.state == "open":  # a probe leaves when it is half open
            raise _refusal(request.endpoint, state.retry_after)
        return (yield from proceed(request))


def _refusal(endpoint: Endpoint, retry_after: float) -> BrixCircuitOpenError:
    return BrixCircuitOpenError(
        f"the circuit of {endpoint.identity} is open after repeated failures; the next probe is admitted in "
        f"{retry_after:.3g} s. Wait, or name another model to go to",
        endpoint=endpoint.identity,
        retry_after=retry_after,
    )


__all__ = ["BreakerState", "CircuitBreakerConfig", "CircuitBreakerGuard"]
