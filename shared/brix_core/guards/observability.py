"""ObservabilityGuard: every logical call ends in exactly one trace entry (G5).

Answered, refused, failed, timed out, cancelled or abandoned: one entry each, with every attempt that left for a
provider inside it. Entries are kept in a ring buffer, newest first when read. The entries of a session form a
chain: ``chain_hash`` is the SHA-256 of the previous entry's canonical JSON (keys sorted, no spaces), that of the
first entry covers ``{"genesis": session_id}``.

With ``log_path``, the same entries go to the audit log (`brix_core.audit`), which a thread of its own writes. In
``strict_mode`` a call ends only once its entry is there; one that was cancelled or abandoned cannot wait for that.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
import threading
import uuid
import weakref
from asyncio import CancelledError
from collections import OrderedDict, deque
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

from brix_core import checks
from brix_core.audit.canonical import digest
from brix_core.audit.redaction import Redact, masked, scrubbed
from brix_core.call import CACHED, Attempt, CallRequest, CallResponse, LogicalCall, Outcome
from brix_core.clock import Clock, Wakeup
from brix_core.errors import BrixConfigurationError, BrixError, BrixGuardError, BrixTimeoutError
from brix_core.failures import is_control_flow
from brix_core.flow import Effect, Flow, Proceed, Sleep
from brix_core.telemetry import Telemetry, current_context, is_configured

log = logging.getLogger(__name__)

MAX_CHAINS: Final = 10_000
"""Sessions whose chain and sequence are remembered."""

MAX_PENDING: Final = 64
"""Records written as entries in one go, at the latest."""

MAX_MESSAGE: Final = 1_000
"""Characters of an error message that are kept."""

MAX_WAITING: Final = 100_000
"""Records that wait for a log's writer; beyond them the oldest are lost."""

MIN_LOG_BYTES: Final = 4_096
"""Least length of a log's file."""


@dataclass(frozen=True, kw_only=True)
class ObservabilityConfig:
    """Options of the observability guard, which is always active.

    Attributes:
        trace_buffer_size: Entries kept in memory; the oldest go first.
        log_path: Folder of the audit log; made when there is none. None keeps entries in memory only.
        strict_mode: A call fails whose entry could not be written; else that is logged, and tried again.
        log_fsync: When entries are made to reach the disk: ``"always"`` before they count as written, ``"interval"``
            once a second, ``"never"`` leaves it to the system. All of them survive a process that is killed.
        log_max_bytes: A file of the log this long is closed, and the next begun.
        log_key: Seals the log: a secret of at least 16 bytes, an Ed25519 key, or the path of a file that holds one.
        redact: Gets each entry, a dict, before it is kept or written, and returns what may be. What looks like an
            API key or a token is blotted out in any case.
        telemetry: Make OpenTelemetry spans and metrics of calls (`brix_core.telemetry`). None does so where the
            application has set up OpenTelemetry; True demands that it is installed; False never does.
    """

    trace_buffer_size: int = 1_000
    log_path: str | PathLike[str] | None = None
    strict_mode: bool = False
    log_fsync: Literal["always", "interval", "never"] = "interval"
    log_max_bytes: int = 64 * 2**20
    log_key: Any = None
    redact: Redact | None = None
    telemetry: bool | None = None

    def __post_init__(self) -> None:
        checks.whole("trace_buffer_size", self.trace_buffer_size, 1)
        checks.flag("strict_mode", self.strict_mode)
        if self.telemetry is not None:
            checks.flag("telemetry", self.telemetry)
        checks.one_of("log_fsync", self.log_fsync, ("always", "interval", "never"))
        checks.whole("log_max_bytes", self.log_max_bytes, MIN_LOG_BYTES)
        if self.redact is not None and not callable(self.redact):
            raise BrixConfigurationError(f"redact must be a function of an entry, got {self.redact!r:.200}")
        if self.log_path is None:
            self._demand_path()
        elif not isinstance(self.log_path, str | PathLike) or not str(self.log_path):
            raise BrixConfigurationError(f"log_path must be a folder's path, got {self.log_path!r:.200}")
        elif Path(self.log_path).exists() and not Path(self.log_path).is_dir():
            raise BrixConfigurationError(f"log_path must be a folder, and {str(self.log_path)!r} is a file")

    def _demand_path(self) -> None:
        """Options of the log mean nothing without one."""
        for name in ("strict_mode", "log_fsync", "log_max_bytes", "log_key"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise BrixConfigurationError(f"{name} has no effect: there is no log. Give log_path too")


class Wish(Protocol):
    """Something that will be written down: `done` is set when it was tried."""

    done: Wakeup
    error: Exception | None


class Sink(Protocol):
    """Where entries are written down: an audit log."""

    def due(self, source: Any) -> None:
        """Note that this guard has entries to hand over; never waits."""
        ...

    def put(self, entry: dict[str, Any], chain: str) -> None:
        """Take an entry."""
        ...

    def commit(self, source: Any) -> Wish:
        """Have what this guard has written down."""
        ...


_SPOKEN: Final = ("error_message", "partial_text", "decisions")
"""Fields with words of users, models or providers."""

_IDENTITY: Final = ("run_id", "session_id", "timestamp", "outcome")
"""Fields that no hook changes: by them an entry is found, and counted."""


class _Record(NamedTuple):
    """What is known of a call at its end, its prompt left out; made into a trace entry later."""

    call: LogicalCall
    model: str
    provider: str | None
    stream: bool
    response: CallResponse | None
    outcome: Outcome
    error: tuple[str, str, str | None] | None
    prompt_hash: str | None
    latency: float
    context: Any


class ObservabilityGuard:
    """Records every call. See the module's docstring.

    Args:
        config: Its options.
        clock: The time.
        guards: Names of the guards of the pipeline, for the entries.
        sink: Where entries are written down, beside the buffer.
    """

    name = "observability"

    def __init__(
        self, config: ObservabilityConfig, clock: Clock, guards: tuple[str, ...] = (), sink: Sink | None = None
    ) -> None:
        self.config = config
        self._clock = clock
        self._guards = list(guards)
        self._sink = sink
        self._open: dict[str, tuple[CallRequest, str | None, Any]] = {}
        if sink is not None:
            _logging.add(self)
        self._begin()
        self._telemetry = Telemetry() if config.telemetry else None
        self._entries: deque[dict[str, Any]] = deque(maxlen=config.trace_buffer_size)

    def _begin(self) -> None:
        """Begin the chains of this process; a forked child goes on with chains of its own."""
        self._chain = str(uuid.uuid4())
        self._chains: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._lock = threading.Lock()
        self._pending: deque[_Record] = deque()
        self._open.clear()

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Observe one call; nothing is changed on its way."""
        prompt_hash = _hash_of(request)  # before anybody edits the messages while the answer comes
        context = current_context() if self._is_telling() else None
        if self._sink is not None:
            self._open[request.call.run_id] = request, prompt_hash, context
        try:
            response = yield from proceed(request)
        except BaseException as error:
            if self._is_open(request):
                self._record(request, prompt_hash, context, None, error)
            yield from self._written(waits=isinstance(error, Exception))
            raise
        if self._is_open(request):
            self._record(request, prompt_hash, context, response, None)
        yield from self._written(waits=True)
        return response

    def _is_open(self, request: CallRequest) -> bool:
        """Whether its entry is still to be made; closed with the process, it has one."""
        return self._sink is None or self._open.pop(request.call.run_id, None) is not None

    def hand_over(self) -> None:
        """Put what is pending into the log; called by its writer."""
        with self._lock:
            self._write_pending()

    def abandon(self) -> None:
        """End the calls that are under way: their process does. For a log that is about to be closed."""
        while self._open:
            _, (request, prompt_hash, context) = self._open.popitem()
            self._record(request, prompt_hash, context, None, GeneratorExit())
        if self._sink is not None and self._pending:
            self._sink.due(self)

    def _written(self, waits: bool) -> Generator[Effect, Any, None]:
        """See that what has been recorded is written down, in strict mode before the call goes on."""
        if self._sink is None:
            return
        if not (waits and self.config.strict_mode):
            self._sink.due(self)
            return
        wish = self._sink.commit(self)
        while not wish.done.is_set:
            yield Sleep(math.inf, wish.done)
        if wish.error is not None:
            raise BrixGuardError(
                f"strict_mode: the audit log in {self.config.log_path} could not be written ({wish.error}); mend that, "
                "or set strict_mode=False to go on without it",
                guard=self.name,
            ) from wish.error

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries, newest first.

        Args:
            session_id: Only those of this session.
        """
        wanted = None if session_id is None else masked(session_id)
        with self._lock:
            self._write_pending()
            entries = list(self._entries)
        return [copy.deepcopy(entry) for entry in reversed(entries) if wanted in (None, entry["session_id"])]

    def _record(
        self,
        request: CallRequest,
        prompt_hash: str | None,
        context: Any,
        response: CallResponse | None,
        error: BaseException | None,
    ) -> None:
        call = request.call
        record = _Record(
            call=call,
            model=request.model,
            provider=request.endpoint.provider,
            stream=request.stream or call.streamed,
            response=None if response is None else response._replace(raw=None),
            outcome=_outcome(response, error, call.attempts),
            error=None if error is None else (type(error).__name__, _message_of(error), _guard_of(error)),
            prompt_hash=prompt_hash,
            latency=self._clock.now() - call.started,
            context=context,
        )
        call.session.metadata = call.metadata
        # Never wait here: the garbage collector may close an abandoned stream while this thread is writing.
        self._pending.append(record)
        if self._sink is not None:
            if len(self._pending) > MAX_WAITING:
                self._pending.popleft()
                log.warning("the audit log cannot keep up: an entry is lost")
            must_write = self._telemetry is not None
        else:
            must_write = self._telemetry is not None or len(self._pending) >= MAX_PENDING
        if must_write and not isinstance(error, GeneratorExit):
            self._write_now()

    def _is_telling(self) -> bool:
        """Whether spans and metrics are wanted, by the option or since the application has set them up."""
        if self._telemetry is None and self.config.telemetry is None and is_configured():
            self._telemetry = Telemetry()
        return self._telemetry is not None

    def _tell(self, record: _Record, entry: dict[str, Any]) -> None:
        try:
            assert self._telemetry is not None
            self._telemetry.record(record.call, entry, record.context)
        except Exception:
            log.exception("a call could not be told to OpenTelemetry")

    def _write_now(self) -> None:
        """Write what is pending, unless another thread is about to."""
        while self._pending and self._lock.acquire(blocking=False):
            try:
                self._write_pending()
            finally:
                self._lock.release()

    def _write_pending(self) -> None:
        """Turn records into entries, and chain them. Many at a time: that takes half the time of one by one."""
        while self._pending:
            record = self._pending.popleft()
            entry = self._redacted(self._entry(record))
            session_id = entry["session_id"]
            sequence, chain_hash = self._chains.get(session_id) or (0, digest({"genesis": session_id}))
            entry["sequence"] = sequence + 1
            entry["chain_hash"] = chain_hash
            self._entries.append(entry)
            if self._sink is not None:
                self._sink.put(entry, self._chain)
            if self._telemetry is not None:
                self._tell(record, entry)
            self._chains[session_id] = (sequence + 1, digest(entry))
            self._chains.move_to_end(session_id)
            if len(self._chains) > MAX_CHAINS:
                self._chains.popitem(last=False)

    def _redacted(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The entry as it may be kept: without what looks like a secret, and as the application's hook has it."""
        for name in (*_SPOKEN, "model", "attempts"):
            entry[name] = scrubbed(entry[name])
        entry["session_id"] = masked(entry["session_id"])
        if self.config.redact is None:
            return entry
        identity = {name: entry[name] for name in _IDENTITY}
        try:
            changed = self.config.redact(copy.deepcopy(entry))
            return {**dict(changed), **identity}
        except (Exception, SystemExit):
            log.exception("redact failed: the texts of an entry are left out")
            return {**entry, **dict.fromkeys(_SPOKEN), "attempts": [], "decisions": []}

    def _entry(self, record: _Record) -> dict[str, Any]:
        response, call = record.response, record.call
        usages = [attempt.usage for attempt in call.attempts if attempt.usage is not None]
        costs = [attempt.cost_nano for attempt in call.attempts if attempt.cost_nano is not None]
        text = response.text if response is not None else call.partial_text
        cut = response is None or response.partial
        name, message, stopped_by = record.error or (None, None, None)
        return {
            "run_id": call.run_id,
            "session_id": call.session.session_id,
            "timestamp": datetime.fromtimestamp(call.started_at, UTC).isoformat(),
            "model": response.model if response is not None and response.model else record.model,
            "provider": call.attempts[-1].provider if call.attempts else record.provider,
            "outcome": record.outcome,
            "error": name,
            "error_message": message,
            "stopped_by": stopped_by,
            "stream": record.stream,
            "prompt_tokens": sum(usage.input_tokens for usage in usages) if usages else None,
            "completion_tokens": sum(usage.output_tokens for usage in usages) if usages else None,
            "usage_estimated": any(usage.estimated for usage in usages) if usages else None,
            "cost_usd": sum(costs) / 1e9 if costs or call.metadata.get(CACHED) else None,
            "latency_ms": record.latency * 1_000.0,
            "first_chunk_ms": None if call.first_chunk is None else (call.first_chunk - call.started) * 1_000.0,
            "prompt_hash": record.prompt_hash,
            "response_hash": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(),
            "finish_reason": None if response is None else response.finish_reason,
            "partial_text": text if cut else None,
            "attempts": [_attempt(attempt, call.started) for attempt in call.attempts],
            "decisions": call.decisions,
            "guards_active": self._guards,
        }


_logging: weakref.WeakSet[ObservabilityGuard] = weakref.WeakSet()
"""Guards whose entries are written down."""


def abandon_open_calls() -> None:
    """Make the entries of the calls that end with this process."""
    for guard in list(_logging):
        guard.abandon()


def _forget_in_child() -> None:
    for guard in list(_logging):
        guard._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _hash_of(request: CallRequest) -> str | None:
    """The prompt's hash; None for a prompt that is none. What then fails is recorded, and not us."""
    try:
        return request.conversation.sha256()
    except Exception:
        return None


def _guard_of(error: BaseException) -> str | None:
    """The guard that refused the call, or gave it up."""
    return (error.guard or None) if isinstance(error, BrixGuardError) else None


def _message_of(error: BaseException) -> str:
    try:
        return str(error)[:MAX_MESSAGE]
    except Exception:  # somebody's broken __str__
        return ""


def _attempt(attempt: Attempt, started: float) -> dict[str, Any]:
    return {
        "endpoint": attempt.endpoint,
        "model": attempt.model,
        "after_ms": (attempt.started - started) * 1_000.0,
        "latency_ms": None if attempt.seconds is None else attempt.seconds * 1_000.0,
        "outcome": attempt.outcome,
        "error": attempt.error,
        "status": attempt.status,
        "prompt_tokens": None if attempt.usage is None else attempt.usage.input_tokens,
        "completion_tokens": None if attempt.usage is None else attempt.usage.output_tokens,
        "cost_usd": None if attempt.cost_nano is None else attempt.cost_nano / 1e9,
    }


def _outcome(response: CallResponse | None, error: BaseException | None, attempts: list[Attempt]) -> Outcome:
    if error is None:
        return "timed_out" if response is not None and response.partial else "ok"
    if isinstance(error, GeneratorExit):
        return "abandoned"
    if isinstance(error, CancelledError | KeyboardInterrupt | SystemExit) or is_control_flow(error):
        return "cancelled"
    if isinstance(error, BrixTimeoutError):
        return "timed_out"
    return "refused" if isinstance(error, BrixError) and not attempts else "failed"


__all__ = [
    "MAX_CHAINS",
    "MAX_MESSAGE",
    "MAX_PENDING",
    "MAX_WAITING",
    "ObservabilityConfig",
    "ObservabilityGuard",
    "abandon_open_calls",
    "Sink",
]
