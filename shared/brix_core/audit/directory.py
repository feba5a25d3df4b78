"""The folder of a log: one writer at a time, and nothing half-written survives.

``brix_audit.jsonl`` is written now, ``brix_audit.000001.jsonl`` and so on were written before it.
``brix_audit.head`` says where the log ends (`lines.Head`); ``brix_audit.lock`` is held, by all processes that write
here, for as long as one batch of lines takes. A batch is whole, or it is taken back.

The order is: lines, then the head. A process that is killed in between leaves lines behind the head; whoever writes
next takes up those that are whole, and sets aside what is torn, in ``brix_audit.torn-…``, with a line that says so. In
a sealed log all of them are set aside, since nobody can tell who wrote them; no call was told that they were written.
What stands behind the end of a log that was closed was put there by somebody else, and stays a problem for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

from brix_core.audit.canonical import digest_of, parsed
from brix_core.audit.lines import FORMAT, Head, checkpoint_of, line_of
from brix_core.audit.sealing import Seal
from brix_core.errors import BrixConfigurationError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOG_NAME: Final = "brix_audit.jsonl"
HEAD_NAME: Final = "brix_audit.head"
LOCK_NAME: Final = "brix_audit.lock"

CHECKPOINT_EVERY: Final = 1_000
"""Lines between two sealed checkpoints."""


class Item(NamedTuple):
    """A line to be written.

    Attributes:
        kind: See `lines`.
        entry: What it says.
        chain: Which chain of its session it goes on.
    """

    kind: str
    entry: dict[str, Any]
    chain: str | None = None


class LogDirectory:
    """Appends batches of lines to the log in a folder.

    Args:
        path: The folder; made when there is none.
        seal: Signs checkpoints and the head.
        max_bytes: A file this long is closed, and the next one begun.
        now: Seconds since the epoch.

    Raises:
        BrixConfigurationError: The folder cannot be used, or its log was sealed with another key.
    """

    def __init__(self, path: Path, seal: Seal | None, max_bytes: int, now: Callable[[], float]) -> None:
        if fcntl is None:
            raise BrixConfigurationError("log_path needs a POSIX system: processes take turns by its file locks")
        self.path = path
        self._seal = seal
        self._max_bytes = max_bytes
        self._now = now
        self._file: int | None = None
        self._known: tuple[bytes, Head, Any] | None = None
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                head = self._read_head()
        except OSError as error:
            raise BrixConfigurationError(
                f"log_path {str(path)!r} cannot be written: {error}; give a folder of your own"
            ) from error
        except ValueError as error:
            if "\0" in str(path):
                raise BrixConfigurationError(f"log_path {str(path)!r} is no path: it holds a null character") from error
            raise BrixConfigurationError(
                f"{path / HEAD_NAME} is damaged ({error}): run `brix verify {path}`, then log into another folder"
            ) from error
        if head is not None:
            self._demand_key(head[1])
        else:
            self._refuse_foreign()

    def append(self, items: Iterable[Item], *, sync: bool) -> None:
        """Write lines, all or none.

        Args:
            items: What to write.
            sync: Whether they must have reached the disk when this returns.

        Raises:
            OSError: They could not be written; the log is as it was.
            ValueError: The head file is damaged.
        """
        with self._locked():
            head = self._current()
            if head.size >= self._max_bytes:
                head = self._rotate(head)
            before, lines = head, list[bytes]()
            for item in items:
                if head.size == 0:
                    opened = {
                        "format": FORMAT,
                        "log_id": head.log_id,
                        "file": head.file,
                        "timestamp": self._timestamp(),
                    }
                    head = _add(lines, head, line_of(head, "opened", opened))
                head = _add(lines, head, line_of(head, item.kind, item.entry, item.chain))
                if head.sequence % CHECKPOINT_EVERY == 0 and self._seal is not None:
                    head = _add(lines, head, checkpoint_of(head, "checkpoint", self._seal, self._timestamp()))
            self._write(before, lines, sync)
            self._write_head(head, sync)

    def close(self) -> None:
        """Seal the log's end. The next line, of whichever process, opens it again.

        Raises:
            OSError: It could not be written.
        """
        if not self.path.is_dir():  # whoever has removed the folder wants no seal
            return
        with self._locked():
            found = self._read_head()
            if found is None or found[0].closed or found[0].sequence == 0:
                return
            head = self._current()
            line = checkpoint_of(head, "checkpoint", self._seal, self._timestamp())
            self._write(head, [line], True)
            self._write_head(head.after(line)._replace(closed=True), True)

    def sync(self) -> None:
        """Have what was written reach the disk."""
        if self._file is not None:
            os.fdatasync(self._file)

    def release(self) -> None:
        """Close the file; it is opened again when needed. For a forked child, whose parent writes on."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only writer. Opened anew each time: a lock belongs to the opened file, which forks share."""
        lock = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _opening(self, head: Head) -> bytes:
        """The first line of a file."""
        said = {"format": FORMAT, "log_id": head.log_id, "file": head.file, "timestamp": self._timestamp()}
        return line_of(head, "opened", said)

    def _timestamp(self) -> str:
        return datetime.fromtimestamp(self._now(), UTC).isoformat()

    def _current(self) -> Head:
        """Where the log ends, with all that a killed process left behind put in order."""
        found = self._read_head()
        if found is None:
            return self._begin()
        head, seal = found
        self._demand_key(seal)
        if head.size and not (self.path / LOG_NAME).exists() and rotated(self.path, head.file).exists():
            head = head._replace(file=head.file + 1, size=0)  # killed between two steps of a rotation
            self._write_head(head, True)
        self._open()
        assert self._file is not None
        size = os.fstat(self._file).st_size
        if size < head.size:
            return self._recover(head, f"{head.size - size} bytes were missing")
        if size > head.size:
            closed = f"{size - head.size} bytes stood behind the end of a log that was closed" if head.closed else ""
            return self._recover(head, closed)
        if head.closed:  # whoever is killed from here on leaves a log that is open
            head = head._replace(closed=False)
            self._write_head(head, False)
        return head

    def _begin(self) -> Head:
        """A new log. What is there without a head cannot be gone on with: nobody knows where it ended."""
        head, log = Head.new(str(uuid4())), self.path / LOG_NAME
        note, said = "", dict[str, Any]()
        if log.exists() and log.stat().st_size:
            aside = self.path / f"brix_audit.headless-{head.log_id[:8]}"
            os.rename(log, aside)
            note, said = "the head file was missing", {"set_aside": aside.name}
        elif self._known is not None and self._known[1].sequence:
            last = self._known[1]
            note = f"the log that was here is gone; it ended with line {last.sequence}, {last.hash}"
        self._write_head(head, True)
        self._open()
        if not note:
            return head
        line = line_of(head, "recovered", {"timestamp": self._timestamp(), "note": note, **said})
        self._write(head, [line], True)
        return head.after(line)

    def _open(self) -> None:
        """Have the file open that is written now: another process may have rotated it."""
        path = self.path / LOG_NAME
        if self._file is not None:
            mine = os.fstat(self._file)
            with suppress(FileNotFoundError):
                there = os.stat(path)
                if (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev):
                    return
            self.release()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _recover(self, head: Head, note: str) -> Head:
        """Take up whole lines behind the head where that is safe, and set aside what is not."""
        assert self._file is not None
        text = _read_from(self._file, head.size)
        taken, lines = 0, [] if note or self._seal is not None else text.splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n") or not _follows(line, head):
                break
            head, taken = head.after(line), taken + len(line)
        torn = text[taken:]
        said: dict[str, Any] = {"timestamp": self._timestamp(), "note": note or None, "torn_bytes": len(torn)}
        if torn:
            aside = self.path / f"brix_audit.torn-{head.sequence:09d}-{digest_of(torn)[:8]}"
            said["set_aside"] = aside.name
            _write_whole(aside, torn)
            os.ftruncate(self._file, head.size)
        if note or torn:
            size = os.fstat(self._file).st_size
            line = line_of(head, "recovered", said)
            cut = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"  # in the middle of a line, by somebody else
            self._write(head._replace(size=size), [b"\n" * cut, line], True)
            head = head.after(line)._replace(size=size + cut + len(line))
        self._write_head(head, True)
        return head

    def _rotate(self, head: Head) -> Head:
        line = checkpoint_of(head, "ended", self._seal, self._timestamp())
        self._write(head, [line], True)
        head = head.after(line)
        self._write_head(head, True)
        os.rename(self.path / LOG_NAME, rotated(self.path, head.file))
        self.release()
        head = head._replace(file=head.file + 1, size=0)
        self._write_head(head, True)
        self._open()
        return head

    def _write(self, head: Head, lines: list[bytes], sync: bool) -> None:
        """Append to the file, or leave it as it is."""
        assert self._file is not None
        text = b"".join(lines)
        try:
            done = 0
            while done < len(text):
                done += os.write(self._file, text[done:])
            if sync:
                os.fdatasync(self._file)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file, head.size)
            raise

    def _read_head(self) -> tuple[Head, Any] | None:
        try:
            text = (self.path / HEAD_NAME).read_bytes()
        except FileNotFoundError:
            return None
        if self._known is None or text != self._known[0]:
            self._known = text, *Head.read(text)
        return self._known[1:]

    def _write_head(self, head: Head, sync: bool) -> None:
        new = self.path / f"{HEAD_NAME}.new"
        text = head.written(self._seal)
        _write_whole(new, text, sync=sync)
        os.replace(new, self.path / HEAD_NAME)
        self._known = text, *Head.read(text)

    def _refuse_foreign(self) -> None:
        """A file of our name that is no log of ours is somebody's, and left alone."""
        try:
            with (self.path / LOG_NAME).open("rb") as file:
                first = file.readline()
        except FileNotFoundError:
            return
        if first and not _is_ours(first):
            raise BrixConfigurationError(
                f"{self.path / LOG_NAME} is a file of another program: its first line is none of an audit log; move "
                "it, or log into another folder"
            )

    def _demand_key(self, seal: Any) -> None:
        key_id = seal.get("key_id") if isinstance(seal, dict) else None
        own = None if self._seal is None else self._seal.key_id
        if key_id is not None and key_id != own:
            raise BrixConfigurationError(
                f"the log in {self.path} is sealed with the key {key_id}, and log_key is {own or 'not given'}; "
                "give that key, or log into another folder"
            )


def rotated(path: Path, number: int) -> Path:
    """The name of a file that is written no more."""
    return path / f"brix_audit.{number:06d}.jsonl"


def _add(lines: list[bytes], head: Head, line: bytes) -> Head:
    lines.append(line)
    return head.after(line)


def _is_ours(line: bytes) -> bool:
    try:
        return bool(parsed(line)["log"]["kind"])
    except (KeyError, TypeError, ValueError):
        return False


def _follows(line: bytes, head: Head) -> bool:
    """Whether this is the line after the head."""
    try:
        log = parsed(line)["log"]
        return bool(log["previous"] == head.hash and log["sequence"] == head.sequence + 1)
    except (KeyError, TypeError, ValueError):
        return False


def _read_from(file: int, offset: int) -> bytes:
    parts = []
    while part := os.pread(file, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _write_whole(path: Path, text: bytes, *, sync: bool = True) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        done = 0
        while done < len(text):
            done += os.write(file, text[done:])
        if sync:
            os.fdatasync(file)
    finally:
        os.close(file)


__all__ = ["CHECKPOINT_EVERY", "HEAD_NAME", "LOCK_NAME", "LOG_NAME", "Item", "LogDirectory", "rotated"]
