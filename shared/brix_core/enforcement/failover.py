"""FailoverChain: adapters in order; when one fails, the next one answers.

The engine drives it by `brix_core.guards.failover`: each adapter has its own retries, its own circuit breaker, its own
provider's rate and prices. An adapter whose circuit is open is passed over until its cooldown is over; then a probe
tells whether it is well again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from brix_core import checks
from brix_core.clock import Clock, SystemClock
from brix_core.enforcement.policies import CircuitBreakerConfig
from brix_core.errors import BrixConfigurationError
from brix_core.guards.circuit_breaker import BreakerState, CircuitBreakerGuard
from brix_core.store import Store, default_store

if TYPE_CHECKING:
    from brix_core.enforcement.adapters import BaseLLMAdapter


class AdapterHealth(NamedTuple):
    """How an adapter of a chain does.

    Attributes:
        adapter: Which one: provider and model.
        healthy: Whether a call would be sent to it now.
        breaker: Its circuit breaker.
    """

    adapter: str
    healthy: bool
    breaker: BreakerState


class FailoverChain:
    """Adapters, the preferred one first. Given to an `EnforcementEngine` in an adapter's place.

    Args:
        adapters: Two or more, of any providers; one is allowed, and fails over to nobody.
        circuit_breaker_config: When an adapter is left alone; five failures in a row by default. An engine's own
            ``circuit_breaker_config`` takes its place.
        cooldown: For how long, seconds; the config's ``timeout`` when left out.

    Raises:
        BrixConfigurationError: There is no adapter, something is none, or one is there twice.
    """

    def __init__(
        self,
        adapters: Sequence[BaseLLMAdapter],
        circuit_breaker_config: CircuitBreakerConfig | None = None,
        cooldown: float | None = None,
    ) -> None:
        if not isinstance(adapters, list | tuple) or not adapters:
            raise BrixConfigurationError(f"a failover chain takes a list of adapters, got {adapters!r:.200}")
        self.adapters = tuple(adapters)
        for number, adapter in enumerate(self.adapters):
            if not hasattr(adapter, "endpoint"):
                raise BrixConfigurationError(f"adapters[{number}] must be an adapter, got {adapter!r:.200}")
        if len(set(map(id, self.adapters))) < len(self.adapters):
            raise BrixConfigurationError(f"an adapter is in the chain twice: {self!r}; give each once")
        kinds = {type(adapter.endpoint.codec): adapter for adapter in self.adapters}
        if len(kinds) > 1:  # a prompt is made once, in the words of the first
            one, two, *_ = (type(adapter).__name__ for adapter in kinds.values())
            raise BrixConfigurationError(
                f"a failover chain takes adapters of one kind: {one} and {two} word their messages differently. Give "
                "the core's adapters alone, or those of one framework"
            )
        self.circuit_breaker_config = circuit_breaker_config
        self.cooldown = None if cooldown is None else checks.positive("cooldown", cooldown)
        self._store: Store = default_store()
        self._clock: Clock = SystemClock()
        self._in_use = self.breaker(None)

    def __repr__(self) -> str:
        return f"FailoverChain({' > '.join(map(_named, self.adapters))})"

    def __len__(self) -> int:
        return len(self.adapters)

    def __iter__(self) -> Iterator[BaseLLMAdapter]:
        return iter(self.adapters)

    def breaker(self, config: CircuitBreakerConfig | None) -> CircuitBreakerConfig:
        """The breaker of each adapter, where an engine has its own config or none.

        Raises:
            BrixConfigurationError: `cooldown` and the engine's config say different things.
        """
        own = config or self.circuit_breaker_config or CircuitBreakerConfig()
        if self.cooldown is None:
            return own
        if config is not None and config.timeout != self.cooldown:
            raise BrixConfigurationError(
                f"cooldown={self.cooldown:g} of the chain and timeout={config.timeout:g} of the engine's "
                "circuit_breaker_config are the same thing; give one"
            )
        return CircuitBreakerConfig(
            failure_threshold=own.failure_threshold,
            success_threshold=own.success_threshold,
            timeout=self.cooldown,
            half_open_probes=own.half_open_probes,
        )

    def used(self, config: CircuitBreakerConfig, store: Store, clock: Clock) -> None:
        """Note where the breakers of the engine are that uses this chain; `health` is about the latest one."""
        self._in_use, self._store, self._clock = config, store, clock

    def health(self) -> list[AdapterHealth]:
        """How the adapters do, in order, as far as calls have told. Sends nothing; see ``adapter.health_check``.

        Example:
            >>> from brix_core.enforcement import FailoverChain
            >>> class Adapter:
            ...     provider, model = "openai", "gpt-4o-mini"
            ...     class endpoint:
            ...         identity, codec = "openai:docs/gpt-4o-mini", None
            >>> FailoverChain([Adapter()]).health()[0].healthy
            True
        """
        guard = CircuitBreakerGuard(self._in_use.guarding(), self._store, self._clock)
        states = [guard.state_of(adapter.endpoint) for adapter in self.adapters]
        return [
            AdapterHealth(_named(adapter), state.state != "open", state)
            for adapter, state in zip(self.adapters, states, strict=True)
        ]


def _named(adapter: BaseLLMAdapter) -> str:
    return f"{adapter.provider}/{adapter.model}"


__all__ = ["AdapterHealth", "FailoverChain"]
