"""The audit log's writer: a thread that takes what calls leave behind and writes it in batches.

A call only leaves word (`AuditLog.due`, which never waits). The thread then has the guards make their entries, and
writes all that has come together as one batch: the more calls, the larger the batches (group commit). In strict mode
a call waits for its batch (`AuditLog.commit`), and fails when that could not be written; else a batch that fails is
logged and tried again, up to `MAX_UNWRITTEN` entries.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from brix_core.audit.directory import Item, LogDirectory
from brix_core.audit.recordings import RecordingFiles
from brix_core.audit.sealing import seal_of
from brix_core.clock import Wakeup
from brix_core.errors import BrixGuardError

log = logging.getLogger(__name__)

Fsync = Literal["always", "interval", "never"]

LINGER: Final = 0.01
"""Seconds in which entries may gather, when nobody waits for them."""

SYNC_INTERVAL: Final = 1.0
"""Seconds between two syncs, with ``log_fsync="interval"``."""

RETRY_SECONDS: Final = 1.0
"""Seconds after which a failed batch is tried again."""

MAX_UNWRITTEN: Final = 100_000
"""Entries kept while they cannot be written; beyond them the oldest are lost, and counted."""

IDLE_SECONDS: Final = 10.0
"""Seconds without anything to do after which the thread ends; it is started again when needed."""

EXIT_SECONDS: Final = 10.0
"""Longest the end of a process waits for a log, seconds."""

MAX_BATCH: Final = 5_000
"""Lines written at once."""


class Source(Protocol):
    """Who has entries for the log: an observability guard."""

    def hand_over(self) -> None:
        """Put what is pending into the log, by `AuditLog.put`. Called in the writer's thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How a log is written; see `brix_core.guards.observability.ObservabilityConfig`."""

    path: Path
    fsync: Fsync = "interval"
    max_bytes: int = 64 * 2**20
    key: Any = None


class Wish:
    """Somebody waits until all that is due now has been written; `done` is set then, with an error or without."""

    __slots__ = ("done", "error", "source", "stop")

    def __init__(self, source: Source | None = None, stop: bool = False) -> None:
        self.source = source
        self.stop = stop
        self.done = Wakeup()
        self.error: Exception | None = None


class AuditLog:
    """Writes entries to the log in a folder. Made by `open_log`, one for all guards that write there.

    Args:
        settings: Where and how.

    Raises:
        BrixConfigurationError: The folder cannot be used.
    """

    def __init__(self, settings: LogSettings) -> None:
        self.settings = settings
        seal = None if settings.key is None else seal_of(settings.key)
        self._directory = LogDirectory(settings.path, seal, settings.max_bytes, time.time)
        self._begin()

    def _begin(self) -> None:
        self._inbox: queue.SimpleQueue[Source | Wish] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._unwritten: deque[Item] = deque()  # the thread's own
        self._recordings: queue.SimpleQueue[tuple[RecordingFiles, Path, bytes]] = queue.SimpleQueue()
        self._unrecorded: deque[tuple[RecordingFiles, Path, bytes]] = deque()
        self._lost = 0
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()  # reentrant: whatever holds it may be interrupted by the garbage collector
        self._synced_at = 0.0
        self._is_unsynced = False
        self._retry_at = 0.0
        self.is_used = False

    def due(self, source: Source) -> None:
        """Note that a guard has something to write. Does not wait for it: the garbage collector may call this."""
        self._inbox.put(source)
        if self._thread is None:
            self._start()

    def put(self, entry: dict[str, Any], chain: str) -> None:
        """Queue an entry; called by a `Source`, when asked to hand over."""
        self._made.put(Item("call", entry, chain))

    def recorder(self, max_records: int | None) -> QueuedRecordings:
        """Who takes records of calls, to be written by this log's thread before the entry of the same call."""
        return QueuedRecordings(self._recordings, RecordingFiles(max_records))

    def commit(self, source: Source) -> Wish:
        """Have everything of this guard written, as durably as the log is; `Wish.done` is set when it is."""
        wish = Wish(source)
        self._send(wish)
        return wish

    def flush(self) -> None:
        """Wait until everything has been written.

        Raises:
            Exception: It could not be written.
        """
        error = self._ask(Wish())
        if error is not None:
            raise error

    def close(self, timeout: float | None = None) -> None:
        """Write everything and seal the log's end. Later entries open it again.

        Args:
            timeout: Seconds to wait for the disk, at most.

        Raises:
            Exception: It could not be written.
        """
        error = self._ask(Wish(stop=True), timeout)
        if error is not None:
            raise error

    def forget(self) -> None:
        """Begin anew in a forked child: what is queued is the parent's to write."""
        self._directory.release()
        self._begin()

    def _ask(self, wish: Wish, timeout: float | None = None) -> Exception | None:
        done = threading.Event()
        wish.done.on_set(done.set)
        self._send(wish)
        done.wait(timeout)
        return wish.error

    def _send(self, wish: Wish) -> None:
        self._inbox.put(wish)
        try:
            if self._thread is None:
                self._start()
        except RuntimeError:  # the interpreter is shutting down and starts no more threads
            self._turn()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            _close_with_process()
            self.is_used = True
            thread = threading.Thread(target=self._run, name="brix-audit-log", daemon=True)
            self._thread = thread
            try:
                thread.start()
            except BaseException:
                self._thread = None
                raise

    def _run(self) -> None:
        while True:
            if self._turn():
                continue
            with self._starting:
                self._thread = None
                if self._inbox.empty():
                    return
                self._thread = threading.current_thread()

    def _turn(self) -> bool:
        """Wait for something to do, and do it. Returns whether there was, or will be."""
        wishes, busy = self._gather()
        error = self._write() if wishes or time.monotonic() >= self._retry_at else None
        if error is None and any(wish.stop for wish in wishes):
            error = self._seal()
        for wish in wishes:
            wish.error = error
            wish.done.set()
        return busy

    def _gather(self) -> tuple[list[Wish], bool]:
        """Wait for something to do, let more of it come together, and have entries made."""
        wishes: list[Wish] = []
        sources: dict[int, Source] = {}
        rests = bool(self._unwritten) or bool(self._unrecorded) or self._is_unsynced
        try:
            item = self._inbox.get(timeout=SYNC_INTERVAL if rests else IDLE_SECONDS)
            if not isinstance(item, Wish):
                time.sleep(LINGER)
            while True:
                source = item.source if isinstance(item, Wish) else item
                if isinstance(item, Wish):
                    wishes.append(item)
                if source is not None:
                    sources[id(source)] = source
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass
        for source in sources.values():
            try:
                source.hand_over()
            except BaseException:  # a hook of the application's may raise anything; the thread must live on
                log.exception("an entry of the audit log in %s could not be made", self.settings.path)
        while not self._made.empty():
            if len(self._unwritten) >= MAX_UNWRITTEN:
                self._unwritten.popleft()
                self._lost += 1
            self._unwritten.append(self._made.get_nowait())
        while not self._recordings.empty():
            if len(self._unrecorded) >= MAX_UNWRITTEN:
                self._unrecorded.popleft()
                log.warning("a recording beside the log in %s is lost: too many wait", self.settings.path)
            self._unrecorded.append(self._recordings.get_nowait())
        return wishes, rests or bool(wishes) or bool(sources)

    def _write(self) -> Exception | None:
        """Write what there is, batch by batch."""
        always = self.settings.fsync == "always"
        try:
            while self._unrecorded:
                files, path, line = self._unrecorded[0]
                files.record(path, line)
                self._unrecorded.popleft()
            while self._unwritten:
                batch = list(islice(self._unwritten, MAX_BATCH))
                lost = [Item("lost", {"entries": self._lost})] if self._lost else []
                self._directory.append([*lost, *batch], sync=always)
                self._lost = 0
                for _ in batch:
                    self._unwritten.popleft()
                self._is_unsynced = self.settings.fsync == "interval"
            now = time.monotonic()
            if self._is_unsynced and now - self._synced_at >= SYNC_INTERVAL:
                self._directory.sync()
                self._synced_at, self._is_unsynced = now, False
        except Exception as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            waiting, path = len(self._unwritten), self.settings.path
            log.warning("the audit log in %s could not be written, %d entries wait: %s", path, waiting, error)
            return error
        return None

    def _seal(self) -> Exception | None:
        try:
            self._directory.close()
            self._is_unsynced = False
        except Exception as error:
            log.warning("the audit log in %s could not be sealed: %s", self.settings.path, error)
            return error
        return None


class QueuedRecordings:
    """Queues records of calls; see `AuditLog.recorder`.

    Args:
        queued: Where to.
        files: Who writes them.
    """

    blocking = False

    def __init__(self, queued: queue.SimpleQueue[tuple[RecordingFiles, Path, bytes]], files: RecordingFiles) -> None:
        self._queued = queued
        self._files = files

    def record(self, path: Path, line: bytes) -> None:
        """Queue a record."""
        self._queued.put((self._files, path, line))


_lock = threading.Lock()
_logs: dict[LogSettings, AuditLog] = {}
_closes_with: set[int] = set()


def open_log(settings: LogSettings) -> AuditLog:
    """The log with these settings, one for the whole process.

    Raises:
        BrixConfigurationError: The folder cannot be used.
    """
    try:
        hash(settings)
    except TypeError:  # a key object that has no hash
        return AuditLog(settings)
    with _lock:
        found = _logs.get(settings)
        if found is None:
            found = _logs[settings] = AuditLog(settings)
        return found


def flush_logs() -> None:
    """Wait until every log of this process has been written.

    Raises:
        BrixGuardError: One could not be; the others were.
    """
    with _lock:
        logs = [each for each in _logs.values() if each.is_used]
    failed: list[tuple[AuditLog, Exception]] = []
    for each in logs:
        try:
            each.flush()
        except Exception as error:
            failed.append((each, error))
    if failed:
        paths = ", ".join(f"{each.settings.path} ({error})" for each, error in failed)
        raise BrixGuardError(
            f"{len(failed)} audit log(s) could not be written: {paths}; their entries wait, and are tried again",
            guard="observability",
        ) from failed[0][1]


def close_logs() -> None:
    """Write and seal every log of this process. At its exit this is done by itself, the calls under way ended."""
    with _lock:
        logs = list(_logs.values())
    for each in logs:
        if not each.is_used:
            continue
        try:
            each.close(timeout=EXIT_SECONDS)
        except Exception as error:
            log.error("the audit log in %s ends without its last entries: %s", each.settings.path, error)


def _close_at_exit() -> None:
    from brix_core.guards.observability import abandon_open_calls

    abandon_open_calls()
    close_logs()


def _close_with_process() -> None:
    """See that `close_logs` is called at the end of this process, a child of `multiprocessing` included."""
    if os.getpid() in _closes_with:
        return
    _closes_with.add(os.getpid())
    atexit.register(_close_at_exit)
    from multiprocessing import parent_process, util

    if parent_process() is not None:  # such a child ends without the handlers of atexit
        util.Finalize(None, _close_at_exit, exitpriority=100)


def _forget_logs() -> None:
    global _lock
    _lock = threading.Lock()
    for each in _logs.values():
        each.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_logs)


__all__ = ["AuditLog", "Fsync", "LogSettings", "Source", "Wish", "close_logs", "flush_logs", "open_log"]
