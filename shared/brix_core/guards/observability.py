"""ObservabilityGuard: every logical call ends in exactly one trace entry (G5).

Answered, refused, failed, timed out, cancelled or abandoned: one entry each, with every attempt that left for a
provider inside it. Entries are kept in a ring buffer, newest first when read. The entries of a session form a
chain: ``chain_hash`` is the SHA-256 of the previous entry's canonical JSON (keys sorted, no spaces), that of the
first entry covers ``{"genesis": session_id}``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from asyncio import CancelledError
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import orjson

from brix_core import checks
from brix_core.call import Attempt, CallRequest, CallResponse, LogicalCall, Outcome
from brix_core.clock import Clock
from brix_core.errors import BrixError, BrixTimeoutError
from brix_core.failures import is_control_flow
from brix_core.flow import Flow, Proceed

MAX_CHAINS: Final = 10_000
"""Sessions whose chain and sequence are remembered."""

MAX_PENDING: Final = 64
"""Records written as entries in one go, at the latest."""

MAX_MESSAGE: Final = 1_000
"""Characters of an error message that are kept."""


@dataclass(frozen=True, kw_only=True)
class ObservabilityConfig:
    """Options of the observability guard, which is always active.

    Attributes:
        trace_buffer_size: Entries kept in memory; the oldest go first.
    """

    trace_buffer_size: int = 1_000

    def __post_init__(self) -> None:
        checks.whole("trace_buffer_size", self.trace_buffer_size, 1)


class _Record(NamedTuple):
    """What is known of a call at its end, its prompt left out; made into a trace entry later."""

    call: LogicalCall
    model: str
    provider: str | None
    stream: bool
    response: CallResponse | None
    outcome: Outcome
    error: tuple[str, str] | None
    prompt_hash: str | None
    latency: float


class ObservabilityGuard:
    """Records every call. See the module's docstring.

    Args:
        config: Its options.
        clock: The time.
        guards: Names of the guards of the pipeline, for the entries.
    """

    name = "observability"

    def __init__(self, config: ObservabilityConfig, clock: Clock, guards: tuple[str, ...] = ()) -> None:
        self.config = config
        self._clock = clock
        self._guards = list(guards)
        self._lock = threading.Lock()
        self._pending: deque[_Record] = deque()
        self._entries: deque[dict[str, Any]] = deque(maxlen=config.trace_buffer_size)
        self._chains: OrderedDict[str, tuple[int, str]] = OrderedDict()

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Observe one call; nothing is changed on its way."""
        prompt_hash = _hash_of(request)  # before anybody edits the messages while the answer comes
        try:
            response = yield from proceed(request)
        except BaseException as error:
            self._record(request, prompt_hash, None, error)
            raise
        self._record(request, prompt_hash, response, None)
        return response

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries, newest first.

        Args:
            session_id: Only those of this session.
        """
        with self._lock:
            self._write_pending()
            entries = list(self._entries)
        return [copy.deepcopy(entry) for entry in reversed(entries) if session_id in (None, entry["session_id"])]

    def _record(
        self,
        request: CallRequest,
        prompt_hash: str | None,
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
            error=None if error is None else (type(error).__name__, _message_of(error)),
            prompt_hash=prompt_hash,
            latency=self._clock.now() - call.started,
        )
        call.session.metadata = call.metadata
        # Never wait here: the garbage collector may close an abandoned stream while this thread is writing.
        self._pending.append(record)
        if len(self._pending) >= MAX_PENDING and self._lock.acquire(blocking=False):
            try:
                self._write_pending()
            finally:
                self._lock.release()

    def _write_pending(self) -> None:
        """Turn records into entries, and chain them. Many at a time: that takes half the time of one by one."""
        while self._pending:
            entry = self._entry(self._pending.popleft())
            session_id = entry["session_id"]
            sequence, chain_hash = self._chains.get(session_id) or (0, _digest({"genesis": session_id}))
            entry["sequence"] = sequence + 1
            entry["chain_hash"] = chain_hash
            self._entries.append(entry)
            self._chains[session_id] = (sequence + 1, _digest(entry))
            self._chains.move_to_end(session_id)
            if len(self._chains) > MAX_CHAINS:
                self._chains.popitem(last=False)

    def _entry(self, record: _Record) -> dict[str, Any]:
        response, call = record.response, record.call
        usages = [attempt.usage for attempt in call.attempts if attempt.usage is not None]
        costs = [attempt.cost_nano for attempt in call.attempts if attempt.cost_nano is not None]
        text = response.text if response is not None else call.partial_text
        cut = response is None or response.partial
        name, message = record.error or (None, None)
        return {
            "run_id": call.run_id,
            "session_id": call.session.session_id,
            "timestamp": datetime.fromtimestamp(call.started_at, UTC).isoformat(),
            "model": response.model if response is not None and response.model else record.model,
            "provider": call.attempts[-1].provider if call.attempts else record.provider,
            "outcome": record.outcome,
            "error": name,
            "error_message": message,
            "stream": record.stream,
            "prompt_tokens": sum(usage.input_tokens for usage in usages) if usages else None,
            "completion_tokens": sum(usage.output_tokens for usage in usages) if usages else None,
            "usage_estimated": any(usage.estimated for usage in usages) if usages else None,
            "cost_usd": sum(costs) / 1e9 if costs else None,
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


def _hash_of(request: CallRequest) -> str | None:
    """The prompt's hash; None for a prompt that is none. What then fails is recorded, and not us."""
    try:
        return request.conversation.sha256()
    except Exception:
        return None


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


def _digest(entry: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON: keys sorted, no spaces, UTF-8."""
    try:
        canonical = orjson.dumps(entry, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
    except TypeError:  # lone surrogates, which UTF-8 cannot carry, or numbers beyond 64 bits
        canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), default=str).encode()
    return hashlib.sha256(canonical).hexdigest()


__all__ = ["MAX_CHAINS", "MAX_MESSAGE", "MAX_PENDING", "ObservabilityConfig", "ObservabilityGuard"]
