"""Recordings: what models answered to which prompts, so that it can be had again without them.

One file for each session, one line of JSON for each call that ended with an answer or an error. A prompt mostly
begins with the one before it: a record names the call whose messages it goes on from (``base``), how many of them it
keeps, and holds those that are new, so that a file grows with what was said and not with its square.

Example:
    >>> session_file(Path("traces"), "user/42").as_posix()
    'traces/.brix_sessions/user%2F42.jsonl'
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from brix_core.appending import append_line
from brix_core.audit.canonical import canonical, digest, parsed
from brix_core.audit.redaction import masked, scrubbed_line
from brix_core.call import CallRequest, CallResponse, ToolCall
from brix_core.errors import BrixError, BrixReplayError
from brix_core.usage import Usage

log = logging.getLogger(__name__)

FORMAT: Final = 1
FOLDER: Final = ".brix_sessions"

MAX_NAME: Final = 180
"""Characters of a session's id in the name of its file; a longer one is cut, and its hash added."""


MAX_COUNTS: Final = 1_000
"""Files whose number of records is remembered."""


@dataclass(slots=True, kw_only=True, eq=False)
class Record:
    """One call as it was recorded.

    Attributes:
        run_id: UUID4 of the call.
        session_id: Whose it was.
        started_at: Seconds since the epoch.
        model: The model asked for.
        prompt_hash: SHA-256 of the prompt, as in its trace entry.
        key: The prompt's key, by which it is found: the chained digest of its messages.
        schemas: SHA-256 of the tools and formats sent beside the prompt.
        messages: The prompt, in OpenAI's chat format.
        stream: Whether it was asked for as a stream.
        text: Text of the answer.
        tool_calls: Tool calls the model asked for.
        usage: Tokens, as reported.
        answered_by: The model that answered.
        finish_reason: The provider's own word.
        partial: Whether a time limit cut the answer short.
        parsed: The valid instance as JSON, where there was a schema.
        has_parsed: Whether there was one.
        raw: The framework's own answer, as its endpoint packs it.
        chunks: The chunks of a stream likewise, each with the seconds after the first.
        error: What the call failed with: its class, message and fields.
    """

    run_id: str
    session_id: str
    started_at: float
    model: str
    prompt_hash: str
    key: str
    schemas: str
    messages: Sequence[Any] = ()
    stream: bool = False
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    answered_by: str = ""
    finish_reason: str | None = None
    partial: bool = False
    parsed: Any = None
    has_parsed: bool = False
    raw: Any = None
    chunks: list[tuple[float, Any]] | None = None
    error: dict[str, Any] | None = None

    def response(self, raw: Any) -> CallResponse:
        """The answer.

        Args:
            raw: The framework's own, unpacked.
        """
        return CallResponse(
            text=self.text,
            usage=self.usage,
            model=self.answered_by,
            tool_calls=self.tool_calls,
            finish_reason=self.finish_reason,
            partial=self.partial,
            raw=raw,
            parsed=self.parsed,
        )

    def line(self, base: str | None, keep: int) -> bytes:
        """The record as a line of a file.

        Args:
            base: The call whose first messages it goes on from.
            keep: How many of them; they are left out.
        """
        usage = self.usage
        fields = {
            "format": FORMAT,
            "run_id": self.run_id,
            "session_id": self.session_id,
            "started_at": self.started_at,
            "model": self.model,
            "prompt_hash": self.prompt_hash,
            "key": self.key,
            "schemas": self.schemas,
            "base": base,
            "keep": keep,
            "messages": self.messages[keep:],
            "stream": self.stream,
            "text": self.text,
            "tool_calls": [[call.id, call.name, call.arguments] for call in self.tool_calls],
            "usage": None if usage is None else {name: getattr(usage, name) for name in _USAGE},
            "answered_by": self.answered_by,
            "finish_reason": self.finish_reason,
            "partial": self.partial,
            "parsed": self.parsed,
            "has_parsed": self.has_parsed,
            "raw": self.raw,
            "chunks": self.chunks,
            "error": self.error,
        }
        return scrubbed_line(canonical(fields)) + b"\n"


_USAGE: Final = tuple(Usage.__dataclass_fields__)


def session_file(folder: Path, session_id: str) -> Path:
    """Where a session is recorded, in the folder of a log."""
    name = quote(masked(session_id), safe="")
    if len(name) > MAX_NAME or name in (".", ".."):
        name = f"{name[:MAX_NAME]}-{hashlib.sha256(session_id.encode(errors='surrogatepass')).hexdigest()[:16]}"
    return folder / FOLDER / f"{name}.jsonl"


class RecordingFiles:
    """Adds records to files. Safe to use from several threads; of several processes, each adds whole lines.

    Args:
        max_records: A file of so many records is set aside, as ``NAME.1.jsonl`` and so on, and the next begun.
    """

    blocking = True

    def __init__(self, max_records: int | None = None) -> None:
        self._max_records = max_records
        self._lock = threading.Lock()
        self._counts: OrderedDict[Path, int] = OrderedDict()

    def record(self, path: Path, line: bytes) -> None:
        """Add a record to a file, as one write.

        Raises:
            OSError: It could not be written.
        """
        with self._lock:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._max_records is not None:
                self._make_room(path, self._max_records)
            append_line(path, line)

    def _make_room(self, path: Path, most: int) -> None:
        count = self._counts.pop(path, None)
        count = _records(path) if count is None else count
        if count >= most:
            path.rename(_older(path, len(_parts(path))))
            count = 0
        self._counts[path] = count + 1
        if len(self._counts) > MAX_COUNTS:
            self._counts.popitem(last=False)


def read(path: Path) -> list[Record]:
    """The records of a file and of the older parts set aside before it, in the order in which they began.

    Raises:
        BrixReplayError: There is no such file, or it is no recording.
    """
    parts = _parts(path)
    if not parts:
        raise BrixReplayError(
            f"there is no recording {str(path)!r}; record one first, with log_path= or record=, and replay the same "
            "session_id"
        )
    known: dict[str, list[Any]] = {}
    records: list[Record] = []
    for part in parts:
        for number, line in enumerate(part.read_bytes().split(b"\n"), 1):
            if not line:
                continue
            try:
                fields = parsed(line)
            except ValueError:
                log.warning("%s:%d is no JSON, and left out: its writer was killed, or it was edited", part, number)
                continue
            try:
                record = _record(fields, known)
            except (KeyError, TypeError, ValueError) as error:
                raise BrixReplayError(
                    f"{part}:{number} is no record of a call ({type(error).__name__}: {error}); name a file written by "
                    "log_path= or record="
                ) from error
            known[record.run_id] = list(record.messages)
            records.append(record)
    return sorted(records, key=lambda record: record.started_at)


def purge(folder: Path, older_than_days: float) -> int:
    """Delete recordings of sessions that nothing was added to for some days. Returns how many files."""
    limit, deleted = time.time() - older_than_days * 86_400.0, 0
    for path in (folder / FOLDER).glob("*.jsonl"):
        if path.stat().st_mtime < limit:
            path.unlink(missing_ok=True)
            deleted += 1
    return deleted


def schemas_hash(schemas: Iterable[Any], wanted: Any = None) -> str:
    """SHA-256 of what is sent beside a prompt, and of what its answer must fit.

    Args:
        schemas: Tools and formats.
        wanted: The JSON Schema of a ``response_schema``.
    """
    return digest([*schemas, *([] if wanted is None else [{"response_schema": wanted}])])


def expected_schemas(request: CallRequest) -> str:
    """`schemas_hash` of a request."""
    wanted = None if request.schema is None else request.schema.json_schema
    return schemas_hash(request.endpoint.schemas(request.params), wanted)


def packed_error(error: Exception) -> dict[str, Any]:
    """An error as JSON: what is needed to raise one of ours again, and to tell of any other."""
    state: dict[str, Any] = {}
    if isinstance(error, BrixError):
        for name, value in error.__dict__.items():
            if _is_json(value):
                state[name] = value
    return {
        "class": type(error).__name__,
        "module": type(error).__module__,
        "message": str(error),
        "state": state,
    }


def unpacked_error(packed: dict[str, Any]) -> Exception:
    """The error again: one of ours as it was, any other as a `BrixReplayError` that names it."""
    cls = getattr(importlib.import_module("brix_core.errors"), str(packed["class"]), None)
    if packed["module"] == "brix_core.errors" and isinstance(cls, type) and issubclass(cls, BrixError):
        error: BrixError = cls.__new__(cls, packed["message"])
        error.args = (packed["message"],)
        error.__dict__.update({"message": packed["message"], **packed["state"]})
        return error
    return BrixReplayError(
        f"the recorded call failed with {packed['class']}: {packed['message']}; it fails again, as it was recorded"
    )


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float | bool)


def _record(fields: dict[str, Any], known: dict[str, list[Any]]) -> Record:
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']!r}, and this version reads {FORMAT}")
    keep = fields["keep"]
    messages = [*(known[fields["base"]][:keep] if keep else ()), *fields["messages"]]
    names = Record.__dataclass_fields__.keys() - {"messages", "tool_calls", "usage", "chunks"}
    usage, chunks = fields["usage"], fields["chunks"]
    return Record(
        messages=messages,
        tool_calls=tuple(ToolCall(id=i, name=name, arguments=arguments) for i, name, arguments in fields["tool_calls"]),
        usage=None if usage is None else Usage(**usage),
        chunks=None if chunks is None else [(float(after), chunk) for after, chunk in chunks],
        **{name: fields[name] for name in names},
    )


def _records(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.{number}.jsonl")


def _parts(path: Path) -> list[Path]:
    """The file and those set aside before it, oldest first."""

    def set_aside() -> Iterator[Path]:
        number = 1
        while (older := _older(path, number)).exists():
            yield older
            number += 1

    return [*set_aside(), *([path] if path.exists() else [])]


__all__ = [
    "FOLDER",
    "Record",
    "RecordingFiles",
    "expected_schemas",
    "packed_error",
    "purge",
    "read",
    "schemas_hash",
    "session_file",
    "unpacked_error",
]
