"""RecordingGuard: what was answered to which prompt is written down, to be replayed without the model.

A call that ends with an answer or an error leaves one record (`brix_core.audit.recordings`): the prompt as the
application gave it, and the answer as the application got it, streams chunk by chunk. Calls that were cancelled or
abandoned, or whose prompt or answer cannot be written as JSON, leave none; the latter is logged.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast

from brix_core import checks
from brix_core.audit.recordings import Record, expected_schemas, packed_error
from brix_core.call import PARSED, CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.delivered import DeliveredChunks
from brix_core.endpoint import PackingEndpoint
from brix_core.errors import BrixConfigurationError
from brix_core.flow import Flow, Proceed, StoreOp

log = logging.getLogger(__name__)

MAX_FILES: Final = 256
"""Files whose last record is remembered, so that the next one need not be written whole."""


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """Options of recordings.

    Attributes:
        record: A file to record calls in, to be replayed without the model. True or None: with ``log_path``, each
            session is recorded in ``.brix_sessions`` there. False records nothing. Recordings hold prompts and
            answers.
        max_session_records: A recording of so many calls is set aside, and the next begun.
    """

    record: str | PathLike[str] | bool | None = None
    max_session_records: int | None = None

    def __post_init__(self) -> None:
        if self.max_session_records is not None:
            checks.whole("max_session_records", self.max_session_records, 1)
        if not isinstance(self.record, str | PathLike | bool | None) or self.record == "":
            raise BrixConfigurationError(f"record must be a file's path, True or False, got {self.record!r:.200}")
        if not isinstance(self.record, bool | None) and Path(self.record).is_dir():
            raise BrixConfigurationError(f"record must be a file, and {str(self.record)!r} is a folder")


class Recorder(Protocol):
    """Writes records down."""

    blocking: bool
    """Whether `record` does so itself, and may block, or only queues them."""

    def record(self, path: Path, line: bytes) -> None:
        """Add a record to a file."""
        ...


class _Written(NamedTuple):
    """The last record of a file."""

    run_id: str
    messages: Sequence[Any]


class RecordingGuard:
    """Records calls. See the module's docstring.

    Args:
        recorder: Writes records down.
        file_of: The file of a session, by its id.
        clock: The time.
    """

    name = "recording"

    def __init__(self, recorder: Recorder, file_of: Callable[[str], Path], clock: Clock) -> None:
        self._recorder = recorder
        self._file_of = file_of
        self._clock = clock
        self._lock = threading.Lock()
        self._written: OrderedDict[Path, _Written] = OrderedDict()

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Record one call; nothing is changed on its way."""
        call = request.call
        if not hasattr(request.endpoint, "pack"):  # whole runs: what they give may be anything
            return (yield from proceed(request))
        try:
            record = self._begun(request)
        except Exception as error:
            log.warning("a prompt cannot be recorded: %s: %s", type(error).__name__, error)
            return (yield from proceed(request))
        call.delivered = DeliveredChunks(self._clock)
        try:
            response = yield from proceed(request._replace(keep=True))
        except Exception as error:
            record.error = packed_error(error)
            record.text = call.partial_text
            yield from self._write(record, request, None)
            raise
        yield from self._write(record, request, response)
        return response

    def _begun(self, request: CallRequest) -> Record:
        call = request.call
        messages, key = request.conversation.as_json()
        return Record(
            run_id=call.run_id,
            session_id=call.session.session_id,
            started_at=call.started_at,
            model=request.model,
            prompt_hash=request.conversation.sha256(),
            schemas=expected_schemas(request),
            messages=messages,
            key=key,
            stream=request.stream,
        )

    def _write(self, record: Record, request: CallRequest, response: CallResponse | None) -> Flow:
        try:
            _fill(record, request, response)
            path = self._file_of(record.session_id)
            line = self._line(path, record)
        except Exception as error:
            log.warning(
                "the answer of %s cannot be recorded: %s: %s", request.endpoint.identity, type(error).__name__, error
            )
            return response  # type: ignore[return-value]
        yield StoreOp(self._recorder.record, (path, line), self._recorder.blocking)
        return response  # type: ignore[return-value]

    def _line(self, path: Path, record: Record) -> bytes:
        with self._lock:
            last = self._written.get(path)
            keep = 0 if last is None else _shared(last.messages, record.messages)
            line = record.line(None if last is None or not keep else last.run_id, keep)
            self._written[path] = _Written(record.run_id, record.messages)
            self._written.move_to_end(path)
            if len(self._written) > MAX_FILES:
                self._written.popitem(last=False)
        return line


def _fill(record: Record, request: CallRequest, response: CallResponse | None) -> None:
    """Put the answer into the record."""
    call, endpoint = request.call, cast(PackingEndpoint, request.endpoint)
    delivered = call.delivered
    if request.stream and call.streamed and delivered:
        record.chunks = _delivered(delivered, request, whole=response is not None)
    if response is None:
        return
    record.text = response.text
    record.tool_calls = response.tool_calls
    record.usage = response.usage
    record.answered_by = response.model
    record.finish_reason = response.finish_reason
    record.partial = response.partial
    record.raw = None if response.raw is None else endpoint.pack(response.raw)
    if PARSED in call.metadata and request.schema is not None:
        record.has_parsed, record.parsed = True, request.schema.to_json(call.metadata[PARSED])


def _delivered(chunks: DeliveredChunks, request: CallRequest, whole: bool) -> list[tuple[float, Any]]:
    """The chunks that the consumer got. Of a stream that broke off, the last to arrive may have been held back."""
    endpoint, begun = cast(PackingEndpoint, request.endpoint), chunks.times[0]
    left, given = len(request.call.partial_text), []
    for at, chunk in zip(chunks.times, chunks, strict=True):
        left -= len(endpoint.read_chunk(chunk))
        if left < 0 and not whole:
            break
        given.append((at - begun, chunk))
    packed = endpoint.pack_chunks([chunk for _, chunk in given])
    return [(after, chunk) for (after, _), chunk in zip(given, packed, strict=True)]


def _shared(before: Sequence[Any], now: Sequence[Any]) -> int:
    """How many messages a prompt has in common with an earlier one that it goes on from."""
    count = len(before)
    return count if 0 < count <= len(now) and now[count - 1] is before[count - 1] else 0


__all__ = ["MAX_FILES", "Recorder", "RecordingConfig", "RecordingGuard"]
