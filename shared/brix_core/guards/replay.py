"""ReplayGuard: answers from a recording, and nothing is sent (G14).

The recorded answer is given only for the prompt that produced it, with the same tools; a prompt that was not recorded
raises `brix_core.BrixReplayError`, which names the first difference. With ``replay_strict=False``, answers are given
in the order in which they were recorded, whatever is asked.

A recorded refusal is raised again as what it was; any other error as a `BrixReplayError` that names it.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from brix_core import checks
from brix_core.audit.matching import Recording
from brix_core.audit.recordings import Record, expected_schemas, session_file, unpacked_error
from brix_core.call import PARSED, CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.errors import BrixConfigurationError, BrixReplayError
from brix_core.flow import Flow, ModelCall, Proceed, StoreOp


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Options of replays.

    Attributes:
        replay: A recording, or the folder of a log, of which the call's session is replayed. Activates the guard.
        replay_strict: The prompt decides which answer is given, and one that was not recorded is an error. False
            gives answers in the order in which they were recorded, whatever is asked.
        replay_timing: Chunks of a stream come at the pace at which they came then.
    """

    replay: str | PathLike[str]
    replay_strict: bool = True
    replay_timing: bool = False

    def __post_init__(self) -> None:
        checks.flag("replay_strict", self.replay_strict)
        checks.flag("replay_timing", self.replay_timing)
        if not isinstance(self.replay, str | PathLike) or not str(self.replay):
            raise BrixConfigurationError(f"replay must be the path of a recording, got {self.replay!r:.200}")
        if not Path(self.replay).expanduser().exists():
            raise BrixConfigurationError(
                f"replay: there is no recording {str(self.replay)!r}; record one first, with record= or log_path="
            )

    def file_of(self, session_id: str) -> Path:
        """The recording of a session."""
        path = Path(self.replay).expanduser()
        return session_file(path, session_id) if path.is_dir() else path


class ReplayGuard:
    """Answers from recordings. See the module's docstring.

    Args:
        config: Its options.
        clock: The time.
    """

    name = "replay"

    def __init__(self, config: ReplayConfig, clock: Clock) -> None:
        self.config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._recordings: dict[Path, Recording] = {}

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Answer one call; the guards inside are not asked, since they had their say when it was recorded."""
        record: Record = yield StoreOp(self._take, (request,), True)
        request.call.decide("replay", "replayed", recorded=record.run_id)
        endpoint = _Replayed(request.endpoint, record, self._clock, self.config.replay_timing)
        try:
            response: CallResponse = yield ModelCall(request.evolve(endpoint=endpoint))
        finally:
            for attempt in list(request.call.attempts):  # nothing has left for a provider
                request.call.withdraw(attempt)
        return _with_instance(response, record, request)

    def recording(self, session_id: str) -> Recording:
        """The recording of a session.

        Raises:
            BrixReplayError: There is none.
        """
        path = self.config.file_of(session_id)
        with self._lock:
            found = self._recordings.get(path)
            if found is None:
                found = self._recordings[path] = Recording(path)
            return found

    def _take(self, request: CallRequest) -> Record:
        recording = self.recording(request.session.session_id)
        if not self.config.replay_strict:
            return recording.next()
        conversation = request.conversation
        messages = [conversation.codec.to_dict(message) for message in conversation.messages]
        return recording.take(messages, expected_schemas(request))


class _Replayed:
    """An endpoint that answers from a record; whatever else it is asked, the real one knows."""

    def __init__(self, endpoint: Any, record: Record, clock: Clock, timing: bool) -> None:
        self._endpoint = endpoint
        self._record = record
        self._clock = clock
        self._timing = timing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._endpoint, name)

    @property
    def streams(self) -> bool:
        """Whether it was recorded as a stream."""
        return self._record.chunks is not None

    def call(self, request: CallRequest) -> CallResponse:
        """The recorded answer, or error."""
        if self._record.error is not None:
            raise unpacked_error(self._record.error)
        return self._record.response(self._raw())

    async def acall(self, request: CallRequest) -> CallResponse:
        """The recorded answer, or error."""
        return self.call(request)

    def stream(self, request: CallRequest) -> Iterator[Any]:
        """The recorded chunks, then the recorded error, if there was one."""
        if self._record.chunks is None:
            yield from self._endpoint.as_chunks(self.call(request))
            return
        for wait, chunk in self._chunks():
            if wait:
                self._clock.sleep(wait)
            yield chunk
        if self._record.error is not None:
            raise unpacked_error(self._record.error)

    async def astream(self, request: CallRequest) -> AsyncIterator[Any]:
        """The same, on the event loop."""
        for wait, chunk in self._chunks():
            if wait:
                await self._clock.asleep(wait)
            yield chunk
        if self._record.chunks is None:
            for whole in self._endpoint.as_chunks(self.call(request)):
                yield whole
        elif self._record.error is not None:
            raise unpacked_error(self._record.error)

    def finish(self, chunks: Any, text: str, request: CallRequest) -> CallResponse:
        """The recorded answer."""
        return self._record.response(None)

    def assemble(self, chunks: Any, text: str, request: CallRequest) -> CallResponse:
        """The recorded answer, whole."""
        return self._record.response(self._raw())

    def _chunks(self) -> Iterator[tuple[float, Any]]:
        """The recorded chunks, each with the seconds to wait before it."""
        recorded, before = self._record.chunks or [], 0.0
        packed = [chunk for _, chunk in recorded]
        chunks = self._unpacked(lambda given: list(self._endpoint.unpack_chunks(given)), packed)
        for (after, _), chunk in zip(recorded, chunks, strict=True):
            yield max(0.0, after - before) if self._timing else 0.0, chunk
            before = after

    def _raw(self) -> Any:
        raw = self._record.raw
        return None if raw is None else self._unpacked(self._endpoint.unpack, raw)

    def _unpacked(self, unpack: Callable[[Any], Any], packed: Any) -> Any:
        try:
            return unpack(packed)
        except Exception as error:
            raise BrixReplayError(
                f"the recorded answer of call {self._record.run_id} cannot be read ({type(error).__name__}: {error}): "
                "it is another model's, or was edited; record anew"
            ) from error


def _with_instance(response: CallResponse, record: Record, request: CallRequest) -> CallResponse:
    """The response with its instance made again, which must still fit the schema."""
    if not record.has_parsed or request.schema is None:
        return response._replace(parsed=None)
    from brix_core.structured.response_schema import SchemaMismatch  # loaded with the schema

    try:
        instance = request.schema.validate(record.parsed)
    except SchemaMismatch as mismatch:
        raise BrixReplayError(
            f"the recorded answer does not fit {request.schema.name} any more: {mismatch}; record anew"
        ) from mismatch
    request.call.metadata[PARSED] = instance
    return response._replace(parsed=instance)


__all__ = ["ReplayConfig", "ReplayGuard"]
