"""`BRIX.replay`: a recorded session again, without a model."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from brix_core import checks
from brix_core.audit.matching import Recording
from brix_core.audit.recordings import Record, session_file, unpacked_error
from brix_core.completion import Completion
from brix_core.errors import BrixConfigurationError, BrixReplayError
from brix_core.messages import Messages, checked_messages
from brix_core.session import checked_session_id
from brix_core.structured.response_schema import ResponseSchema, SchemaMismatch


class BrixReplayClient:
    """Gives the answers of a recorded session. Made by `BRIX.replay`.

    Args:
        session_id: Which session.
        log_path: The folder of its log.
        schema: What its answers are instances of, when it was recorded with a ``response_schema``.
        strict: Whether a prompt that is given decides which answer comes; else the order does.

    Raises:
        BrixReplayError: There is no recording of this session.
    """

    def __init__(
        self, session_id: str, log_path: str | PathLike[str], schema: Any = None, *, strict: bool = True
    ) -> None:
        checked_session_id(session_id)
        if not isinstance(log_path, str | PathLike) or not str(log_path):
            raise BrixConfigurationError(f"log_path must be a folder's path, got {log_path!r:.200}")
        checks.flag("strict", strict)
        self.session_id = session_id
        self._schema = None if schema is None else ResponseSchema.of(schema)
        self._strict = strict
        self._recording = Recording(session_file(Path(log_path).expanduser(), session_id))

    def __repr__(self) -> str:
        return f"<BrixReplayClient {self.session_id!r} {self.calls_remaining} of {self.total_calls} calls remaining>"

    @property
    def total_calls(self) -> int:
        """Recorded calls."""
        return len(self._recording.records)

    @property
    def calls_remaining(self) -> int:
        """Those not replayed yet."""
        return self._recording.left

    async def complete(self, messages: Messages | None = None, model: str | None = None, **kwargs: Any) -> Any:
        """The recorded answer.

        Args:
            messages: The prompt, whose answer it is. When left out, the next answer in the recorded order.
            model: Not used, nor are other parameters; they are taken so that the code of the recording runs.
            **kwargs: See `model`.

        Returns:
            What was returned then: a `Completion`, or an instance of the schema.

        Raises:
            BrixReplayError: The prompt was not recorded, all answers have been given, or one does not fit the schema.
            BrixError: What was raised then.
        """
        return self.complete_sync(messages, model, **kwargs)

    async def acomplete(self, messages: Messages | None = None, model: str | None = None, **kwargs: Any) -> Any:
        """The same as `complete`."""
        return self.complete_sync(messages, model, **kwargs)

    def complete_sync(self, messages: Messages | None = None, model: str | None = None, **kwargs: Any) -> Any:
        """As `complete`, blocking."""
        if messages is None or not self._strict:
            record = self._recording.next()
        else:
            record = self._recording.take(checked_messages(messages, kwargs))
        if record.error is not None:
            raise unpacked_error(record.error)
        return self._answer(record)

    def _answer(self, record: Record) -> Any:
        if self._schema is None:
            return Completion(
                record.text,
                tool_calls=record.tool_calls,
                usage=record.usage,
                finish_reason=record.finish_reason,
                model=record.answered_by,
                run_id=record.run_id,
                partial=record.partial,
                parsed=record.parsed,
            )
        try:
            if record.has_parsed:
                return self._schema.validate(record.parsed)
            return self._schema.read(record.text)
        except SchemaMismatch as mismatch:
            raise BrixReplayError(
                f"the recorded answer does not fit {self._schema.name}: {mismatch}; give the schema that it was "
                "recorded with, or record anew"
            ) from mismatch


__all__ = ["BrixReplayClient"]
