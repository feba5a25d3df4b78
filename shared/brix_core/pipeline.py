"""A model behind its guards: what every surface (BRIX.wrap, LangChain, LlamaIndex) drives.

From a framework's call to the provider and back: the surface makes a request (`Pipeline.request`), a driver
runs it through the guards (`Pipeline.call`, `acall`, `stream`, `astream`), the innermost guard's request reaches
the `Endpoint`, and the response comes back the same way.
"""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brix_core.audit.recordings import RecordingFiles, session_file
from brix_core.caching.keys import digest
from brix_core.call import CallRequest, CallResponse, LogicalCall
from brix_core.clock import Clock, SystemClock
from brix_core.conversation import Conversation
from brix_core.drivers import arun, arun_stream, run, run_stream
from brix_core.endpoint import Endpoint
from brix_core.errors import BrixConfigurationError
from brix_core.flow import Flow, Guard, compose, in_order
from brix_core.guards.budget import BudgetGuard
from brix_core.guards.cache import CacheGuard
from brix_core.guards.circuit_breaker import CircuitBreakerGuard, CircuitGate
from brix_core.guards.context import ContextGuard
from brix_core.guards.failover import FailoverGuard
from brix_core.guards.loop import LoopGuard
from brix_core.guards.observability import ObservabilityConfig, ObservabilityGuard
from brix_core.guards.rate_limit import RateLimitGuard
from brix_core.guards.recording import RecordingGuard
from brix_core.guards.regulated import RegulatedGuard
from brix_core.guards.replay import ReplayGuard
from brix_core.guards.retry import RetryGuard
from brix_core.guards.schema import SchemaGuard
from brix_core.guards.timeout import SessionTimeout, TimeoutGuard
from brix_core.options import Parsed
from brix_core.session import Session, Sessions
from brix_core.store import Store, default_store

if TYPE_CHECKING:
    from brix_core.audit.log import AuditLog
    from brix_core.structured.response_schema import ResponseSchema


class Pipeline:
    """Guards in their order around endpoints.

    Args:
        options: Checked options.
        fallbacks: The endpoints of ``options.fallbacks``, made by the surface.
        summary: The endpoint of ``context_summary_model``, made by the surface.
        further: Guards made elsewhere, which others may share.
    """

    def __init__(
        self,
        options: Parsed,
        fallbacks: Sequence[Endpoint] = (),
        summary: Endpoint | None = None,
        *,
        further: Sequence[Guard] = (),
    ) -> None:
        self.clock: Clock = SystemClock() if options.clock is None else options.clock
        self.store: Store = default_store() if options.store is None else options.store
        self.sessions = Sessions(self.clock, options.session_id)
        guards = [
            *_conversation_ring(options, fallbacks, summary, self.clock),
            *_call_ring(options, fallbacks, self.store, self.clock),
            *further,
        ]
        observing = options.configs["observability"]
        sink = _audit_log(observing)
        guards += _recordings(options, sink, self.clock)
        guards += _gates(guards)
        self.schema = _compiled(options.configs["schema"].response_schema)
        active = (guard.name for guard in in_order(guards) if self._is_shown(guard))
        self.names: tuple[str, ...] = (ObservabilityGuard.name, *active)
        self.traces = ObservabilityGuard(observing, self.clock, self.names, sink)
        self.guards: tuple[Guard, ...] = tuple(in_order([self.traces, *guards]))
        self._compose()

    def request(
        self,
        endpoint: Endpoint,
        messages: Iterable[Any],
        params: Mapping[str, Any],
        *,
        stream: bool = False,
        session_id: str | None = None,
        check: Callable[[Sequence[Any], int], None] | None = None,
        schema: ResponseSchema | None = None,
    ) -> CallRequest:
        """Begin a logical call.

        Args:
            endpoint: Where it goes first.
            messages: The framework's own messages.
            params: The provider's parameters, passed on untouched.
            stream: Whether chunks are wanted.
            session_id: The session, when the framework's configuration names one.
            check: Raises for bad messages before the call begins; told how many of the first ones need no second
                look, since an earlier call had them.
            schema: What the answer must fit; the option ``response_schema`` when left out.
        """
        session = self.sessions.resolve(session_id)
        conversation = Conversation(messages, endpoint.codec, session.prefix)
        if check is not None:
            check(conversation.messages, conversation.known)
        call = LogicalCall(run_id=_uuid4(), session=session, started=self.clock.now(), started_at=self.clock.time())
        session.call_count += 1
        session.run_id = call.run_id
        return CallRequest(
            call=call,
            conversation=conversation,
            endpoint=endpoint,
            params=params,
            stream=stream,
            schema=self.schema if schema is None else schema,
        )

    def call(self, request: CallRequest) -> CallResponse:
        """Run a call in this thread."""
        request.call.blocking = True
        return run(self._flow(request), self.clock)

    async def acall(self, request: CallRequest) -> CallResponse:
        """Run a call on the event loop."""
        return await arun(self._flow(request), self.clock)

    def stream(self, request: CallRequest) -> Iterator[Any]:
        """Run a streamed call in this thread; gives the endpoint's own chunks."""
        request.call.blocking = True
        return run_stream(self._flow(request), request, self.clock)

    def astream(self, request: CallRequest) -> AsyncIterator[Any]:
        """Run a streamed call on the event loop; gives the endpoint's own chunks."""
        return arun_stream(self._flow(request), request, self.clock)

    def with_fallbacks(self, fallbacks: Sequence[Endpoint]) -> Pipeline:
        """The same pipeline, its state shared, with other endpoints in its failover chain."""
        twin = copy.copy(self)
        twin.guards = tuple(
            guard.with_endpoints(fallbacks) if isinstance(guard, FailoverGuard | SchemaGuard | ContextGuard) else guard
            for guard in self.guards
        )
        twin._compose()
        return twin

    def _compose(self) -> None:
        """Put the guards together, for calls with a schema and for calls without."""
        self._with_schema = compose(self.guards)
        self._without_schema = compose([guard for guard in self.guards if not isinstance(guard, SchemaGuard)])

    def _flow(self, request: CallRequest) -> Flow:
        return (self._without_schema if request.schema is None else self._with_schema)(request)

    def _is_shown(self, guard: Guard) -> bool:
        """Whether an option has activated it: not the layers that are there for schemas of single calls."""
        if isinstance(guard, SchemaGuard):
            return self.schema is not None
        return not isinstance(guard, SessionTimeout | RecordingGuard) and getattr(guard, "config", guard) is not None

    def session(self, session_id: str | None = None) -> Session:
        """The session a call would belong to now."""
        return self.sessions.resolve(session_id)


def _uuid4() -> str:
    """A random UUID, version 4 (RFC 9562), as text; five times as fast as going through `uuid.UUID`."""
    h = os.urandom(16).hex()
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"


def _audit_log(config: ObservabilityConfig) -> AuditLog | None:
    if config.log_path is None:
        return None
    from brix_core.audit.log import LogSettings, open_log  # only who writes a log needs its files and threads

    path = Path(config.log_path).expanduser().absolute()
    return open_log(LogSettings(path=path, fsync=config.log_fsync, max_bytes=config.log_max_bytes, key=config.log_key))


def _gates(guards: Sequence[Guard]) -> list[Guard]:
    """Where requests stand in line for their rate, the circuit breaker looks at them again when they leave."""
    waits = any(guard.name == "rate_limit" for guard in guards)
    return [CircuitGate(guard) for guard in guards if waits and isinstance(guard, CircuitBreakerGuard)]


def _recordings(options: Parsed, log: AuditLog | None, clock: Clock) -> list[Guard]:
    """Who records calls, and who replays them."""
    if "replay" in options.configs:
        if options.configs["recording"].record not in (None, False):
            raise BrixConfigurationError("record and replay are given together; a replay asks no model: leave one out")
        return [ReplayGuard(options.configs["replay"], clock)]
    config = options.configs["recording"]
    record = config.record
    if record is False or (record is None and log is None):
        if config.max_session_records is not None:
            raise BrixConfigurationError("max_session_records has no effect: nothing is recorded. Give log_path too")
        return []
    if record is None or record is True:
        if log is None:
            raise BrixConfigurationError("record=True needs log_path, the folder to record in; or name a file")
        folder = log.settings.path
        return [RecordingGuard(log.recorder(config.max_session_records), partial(session_file, folder), clock)]
    path = Path(record).expanduser().absolute()
    return [RecordingGuard(RecordingFiles(config.max_session_records), lambda _: path, clock)]


def _compiled(schema: Any) -> ResponseSchema | None:
    if schema is None:
        return None
    from brix_core.structured.response_schema import ResponseSchema  # pydantic is slow to import, and not always needed

    return ResponseSchema.of(schema)


def _conversation_ring(
    options: Parsed, fallbacks: Sequence[Endpoint], summary: Endpoint | None, clock: Clock
) -> list[Guard]:
    configs = options.configs
    guards: list[Guard] = [SchemaGuard(configs["schema"], clock, fallbacks)]
    if "regulated" in configs:
        guards.append(RegulatedGuard(configs["regulated"], clock, _patience(options, clock)))
    if "loop" in configs:
        guards.append(LoopGuard(configs["loop"]))
    if "context" in configs:
        guards.append(ContextGuard(configs["context"], fallbacks, summary))
    if "cache" in configs:
        guards.append(_cache_guard(options, fallbacks, clock))
    return guards


def _cache_guard(options: Parsed, fallbacks: Sequence[Endpoint], clock: Clock) -> CacheGuard:
    """The cache, whose keys tell apart what the guards inside it do to prompts and answers."""
    configs = options.configs
    inside = {name: repr(configs[name]) for name in ("regulated", "context") if name in configs}
    if fallbacks:  # who may answer, too
        inside["fallbacks"] = repr([endpoint.identity for endpoint in fallbacks])
    total = configs["timeout"].total_timeout if "timeout" in configs else None
    return CacheGuard(configs["cache"], clock, digest(inside) if inside else "", total)


def _patience(options: Parsed, clock: Clock) -> Callable[[CallRequest], float | None]:
    """How long a call may wait for something else than a model: no longer than for a model."""
    config = options.configs.get("timeout")

    def seconds(request: CallRequest) -> float | None:
        limits = []
        if config is not None and config.per_call_timeout is not None:
            limits.append(config.per_call_timeout)
        if config is not None and config.total_timeout is not None:
            limits.append(request.session.started + config.total_timeout - clock.now())
        if request.deadline is not None:
            limits.append(request.deadline.at - clock.now())
        return min(limits, default=None)

    return seconds


def _call_ring(options: Parsed, fallbacks: Sequence[Endpoint], store: Store, clock: Clock) -> list[Guard]:
    configs = options.configs
    guards: list[Guard] = []
    if fallbacks:
        guards.append(FailoverGuard(fallbacks))
    if "timeout" in configs:
        guards += [SessionTimeout(configs["timeout"], clock), TimeoutGuard(configs["timeout"], clock)]
    elif configs["schema"].max_healing_seconds is not None:
        guards.append(TimeoutGuard(None, clock))
    if "retry" in configs:
        guards.append(RetryGuard(configs["retry"], clock))
    if "circuit_breaker" in configs:
        guards.append(CircuitBreakerGuard(configs["circuit_breaker"], store, clock))
    if "budget" in configs:
        guards.append(BudgetGuard(configs["budget"], store))
    if "rate_limit" in configs:
        guards.append(RateLimitGuard(configs["rate_limit"], store, clock))
    return guards


__all__ = ["Pipeline"]
