"""Reading a log as it is written: all files in order, then whatever is added, through rotations.

Nothing is checked here, that is `brix_core.audit.verify`'s: a line that cannot be read is handed out as such, and the
next one follows. What is being written, a last line without its end, is left for the next time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from brix_core.audit.canonical import parsed
from brix_core.audit.directory import HEAD_NAME, LOCK_NAME, LOG_NAME
from brix_core.errors import BrixConfigurationError


class LogLine(NamedTuple):
    """One line of a log.

    Attributes:
        file: Name of its file.
        number: Its number in the file, from 1.
        kind: See `brix_core.audit.lines`; empty for one that cannot be read.
        fields: What it says.
    """

    file: str
    number: int
    kind: str
    fields: Mapping[str, Any]


class LogTail:
    """Reads a log, from its beginning on.

    Args:
        path: The folder of the log, or its ``brix_audit.jsonl``.

    Attributes:
        torn_bytes: Of a last line without its end, when `poll` was last run through.

    Raises:
        BrixConfigurationError: There is no log.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder = Path(path)
        self._folder = folder.parent if folder.name == LOG_NAME else folder
        self.torn_bytes = 0
        self._key: tuple[int, int] | None = None
        self._offset = 0
        self._number = 0
        self._sequence = 0
        self._skip_to = 0
        if not any((self._folder / name).exists() for name in (LOG_NAME, HEAD_NAME)):
            raise BrixConfigurationError(
                f"there is no audit log in {str(self._folder)!r}: {LOG_NAME} is missing; "
                "name the folder that was given as log_path"
            )

    def poll(self) -> Iterator[LogLine]:
        """The lines written since the last time; at first, all. To be run through to its end."""
        with ExitStack() as stack:
            older, current = self._now(stack)
            for path in older:
                with path.open("rb") as file:
                    self._enter(file)
                    yield from self._read(path.name, file)
                    yield from self._unfinished(path.name)
            if current is not None:
                self._enter(current)
                yield from self._read(LOG_NAME, current)

    def _now(self, stack: ExitStack) -> tuple[list[Path], BinaryIO | None]:
        """The files written before, and the one that is written, as of one moment."""
        with ExitStack() as lock:
            with suppress(OSError, ImportError):
                _share_lock(lock, self._folder / LOCK_NAME)
            older = sorted(path for path in self._folder.glob("brix_audit.[0-9]*.jsonl") if _number_of(path))
            current = None
            with suppress(FileNotFoundError):
                current = stack.enter_context((self._folder / LOG_NAME).open("rb"))
        older.sort(key=_number_of)
        if self._key is None:
            return older, current
        if current is not None and _key_of(current) == self._key:
            return [], current
        for index, path in enumerate(older):
            status = path.stat()
            if (status.st_dev, status.st_ino) == self._key:
                return older[index:], current
        return [], current  # the file that was read last has been moved away

    def _enter(self, file: BinaryIO) -> None:
        """Go on in this file, at its beginning when it is another one, or when it has been cut."""
        key = _key_of(file)
        if key != self._key:
            self._key, self._offset, self._number = key, 0, 0
        elif os.fstat(file.fileno()).st_size < self._offset:  # lines were taken back: those that come are new
            self._offset, self._number, self._skip_to = 0, 0, self._sequence

    def _read(self, name: str, file: BinaryIO) -> Iterator[LogLine]:
        self.torn_bytes = 0
        left = os.fstat(file.fileno()).st_size - self._offset
        file.seek(self._offset)
        for line in file:
            left -= len(line)
            if left < 0 or not line.endswith(b"\n"):
                self.torn_bytes = len(line)
                return
            self._offset += len(line)
            self._number += 1
            found = self._line(name, line)
            if found is not None:
                yield found
            if left <= 0:
                return

    def _unfinished(self, name: str) -> Iterator[LogLine]:
        """A file that is written no more ends within a line."""
        if self.torn_bytes:
            self.torn_bytes = 0
            yield LogLine(name, self._number + 1, "", {})

    def _line(self, name: str, line: bytes) -> LogLine | None:
        try:
            fields = parsed(line)
            log = fields["log"]
            kind, sequence = str(log["kind"]), log.get("sequence")
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            return LogLine(name, self._number, "", {})
        if isinstance(sequence, int):
            if sequence <= self._skip_to:
                return None
            self._sequence = sequence
        return LogLine(name, self._number, kind, fields)


def _number_of(path: Path) -> int:
    digits = path.name.split(".")[1]
    return int(digits) if digits.isdecimal() and len(digits) < 19 else 0


def _key_of(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _share_lock(stack: ExitStack, path: Path) -> None:
    import fcntl

    file = stack.enter_context(path.open("rb"))
    fcntl.flock(file, fcntl.LOCK_SH)


__all__ = ["LogLine", "LogTail"]
