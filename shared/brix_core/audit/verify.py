"""Whether a log is as it was written (G6): every edit, insertion, deletion, swap and truncation shows.

Each line holds the hash of the line before it, over all files, and the head file holds that of the last: whatever is
changed in a line breaks the next, and whatever is cut off no longer reaches the head. What stands behind the head of a
log that is still open is what a killed process wrote last; it is counted, and no fault. Who can write all the files
can make them all anew: a key (`brix_core.audit.sealing`) prevents that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from brix_core.audit.canonical import canonical, digest, digest_of, parsed
from brix_core.audit.directory import HEAD_NAME, LOCK_NAME, LOG_NAME, rotated
from brix_core.audit.lines import FORMAT, KINDS, Head, end_of, entry_of
from brix_core.audit.sealing import Seal, seal_of
from brix_core.errors import BrixConfigurationError

MAX_PROBLEMS: Final = 100
"""Problems told, at most; the first is the one to look at."""

MAX_CHAINS: Final = 100_000
"""Sessions whose chains are followed at a time."""


class Problem(NamedTuple):
    """What does not hold.

    Attributes:
        file: Name of the file.
        line: Number of the line in it, from 1; None for the file as a whole.
        what: What is wrong.
        run_id: The call whose entry it is, where that can be told.
    """

    file: str
    line: int | None
    what: str
    run_id: str | None = None

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.what}"


@dataclass(slots=True)
class Verification:
    """What was found.

    Attributes:
        path: The folder.
        entries: Calls in the log.
        lines: Lines, those about the log itself included.
        files: Its files, oldest first.
        log_id: UUID4 of the log.
        closed: Whether it was closed in good order; else it is being written, or its process was killed.
        sealed_by: Fingerprint of the key whose seals were checked; None when none were.
        end: Number and hash of the last line that the head tells of, as ``"17:9f86d0..."``. Kept elsewhere, it shows
            later that the log still goes that way (`expect`).
        unsealed: Entries behind the head: the last of a killed process.
        problems: What does not hold; empty for a good log.
        notes: What is good to know.
    """

    path: Path
    entries: int = 0
    lines: int = 0
    files: list[str] = field(default_factory=list)
    log_id: str = ""
    closed: bool = False
    sealed_by: str | None = None
    end: str = ""
    unsealed: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path: str | os.PathLike[str], key: Any = None, expect: str | None = None) -> Verification:
    """Check the log in a folder.

    Args:
        path: The folder of the log, or its ``brix_audit.jsonl``.
        key: The secret it was sealed with, or the public half of its Ed25519 key; see `sealing.seal_of`. Without,
            seals are not checked.
        expect: An earlier `Verification.end`, which this log must go on from: nothing else shows that a log was set
            back, all of its files, to what they were once.

    Raises:
        BrixConfigurationError: There is no log, or the key or what is expected is none.
    """
    folder = Path(path)
    folder = folder.parent if folder.name == LOG_NAME else folder
    if not any((folder / name).exists() for name in (LOG_NAME, HEAD_NAME)):
        raise BrixConfigurationError(f"there is no audit log in {str(folder)!r}: {LOG_NAME} is missing")
    return _Check(folder, None if key is None else seal_of(key), _place_of(expect)).run()


def _place_of(expect: str | None) -> tuple[int, str] | None:
    if expect is None:
        return None
    number, _, line_hash = expect.partition(":")
    if not number.isdigit() or len(line_hash) != 64:
        raise BrixConfigurationError(
            f"what is expected must be an end that brix verify told, such as 17:9f86d0..., got {expect!r:.200}"
        )
    return int(number), line_hash


class _Check:
    """One verification under way."""

    def __init__(self, folder: Path, seal: Seal | None, expected: tuple[int, str] | None) -> None:
        self._folder = folder
        self._expected = expected
        self._seal = seal
        self._found = Verification(folder, sealed_by=None if seal is None else seal.key_id)
        self._chains: dict[tuple[str, str], tuple[int, str]] = {}
        self._place: Head | None = None
        self._before: tuple[str, int, str | None] | None = None
        self._meets_head = False
        self._may_skip = False  # whether a session's chain may lack entries: some were lost, or too many to follow

    def run(self) -> Verification:
        with ExitStack() as stack:
            files, head = self._opened(stack)
            if head is not None:
                self._found.log_id, self._found.closed = head.log_id, head.closed
                self._place = Head.new(head.log_id)
            for number, name, found, size in files:
                with found.open("rb") if isinstance(found, Path) else nullcontext(found) as file:
                    self._file(number, name, file, size, head)
        if head is not None:
            self._end(head)
            self._found.end = f"{head.sequence}:{head.hash}"
        if self._expected is not None:
            self._problem(
                LOG_NAME, None, f"it has no line {self._expected[0]} as expected: it was set back, or made anew"
            )
        return self._found

    def _opened(self, stack: ExitStack) -> tuple[list[tuple[int, str, BinaryIO | Path, int]], Head | None]:
        """All files and the head as of one moment; a writer may go on afterwards.

        Only the file that is written now is open: the others keep their names, and there may be very many of them.
        """
        with ExitStack() as lock:
            with suppress(OSError):
                _share_lock(lock, self._folder / LOCK_NAME)
            head = self._head()
            names = sorted(self._folder.glob("brix_audit.[0-9]*.jsonl"))
            paths = [(int(path.name.split(".")[1]), path) for path in names if path.name.split(".")[1].isdigit()]
            current = self._folder / LOG_NAME
            if current.exists():
                paths.append((head.file if head is not None else len(paths) + 1, current))
            files: list[tuple[int, str, BinaryIO | Path, int]] = []
            for number, path in paths:
                if path == current:
                    file = stack.enter_context(path.open("rb"))
                    files.append((number, path.name, file, os.fstat(file.fileno()).st_size))
                else:
                    files.append((number, path.name, path, path.stat().st_size))
        self._found.files = [name for _, name, _, _ in files]
        numbers = [number for number, *_ in files]
        expected = range(1, (head.file if head is not None else len(files)) + 1)
        for number in expected:
            if number not in numbers and not (head is not None and number == head.file and head.size == 0):
                name = LOG_NAME if head is not None and number == head.file else rotated(self._folder, number).name
                self._problem(name, None, "the file is missing")
        return files, head

    def _head(self) -> Head | None:
        try:
            head, seal = Head.read((self._folder / HEAD_NAME).read_bytes())
        except FileNotFoundError:
            self._problem(HEAD_NAME, None, "the head file is missing: nothing tells where the log ended")
            return None
        except (OSError, ValueError) as error:
            self._problem(HEAD_NAME, None, f"the head file is damaged: {error}")
            return None
        self._check_seal(HEAD_NAME, None, head._asdict(), seal)
        return head

    def _file(self, number: int, name: str, file: BinaryIO, size: int, head: Head | None) -> None:
        is_last, offset = name == LOG_NAME, 0
        last_kind = ""
        for count, line in enumerate(_lines(file, size), 1):
            sealed = not is_last or head is None or offset < head.size
            if not line.endswith(b"\n"):
                self._torn(name, count, line, behind=is_last and not sealed and head is not None and not head.closed)
                break
            last_kind = self._line(name, count, line, number)
            self._found.unsealed += not sealed and last_kind == "call"
            offset += len(line)
            place = self._place
            if head is not None and place is not None and place.sequence == head.sequence:
                self._meets_head = place.hash == head.hash
        if is_last and head is not None:
            if offset < head.size:
                self._problem(name, None, f"{head.size - offset} bytes are missing at its end")
            elif offset > head.size and head.closed:
                self._problem(name, None, f"{offset - head.size} bytes stand behind the end of a log that was closed")
        elif not is_last and last_kind != "ended":
            self._problem(name, None, "its last line is missing")

    def _torn(self, name: str, count: int, line: bytes, behind: bool) -> None:
        if behind:
            self._found.notes.append(f"{name}:{count}: {len(line)} bytes of a line that was being written")
        else:
            self._problem(name, count, "the line does not end")

    def _line(self, name: str, count: int, line: bytes, number: int) -> str:
        """Check one line against the one before it. Returns its kind."""
        self._found.lines += 1
        try:
            fields = parsed(line)
            log = fields["log"]
            kind, sequence, previous = log["kind"], log["sequence"], log["previous"]
        except (KeyError, TypeError, ValueError):
            self._problem(name, count, "this is no line of a log")
            self._place = None
            return ""
        run_id = fields.get("run_id") if kind == "call" else None
        place, before = self._place, self._before
        self._before = name, count, run_id
        if canonical(fields) + b"\n" != line:  # not a line of ours, whatever it parses to
            self._problem(name, count, "not as it was written", run_id)
        if place is not None and sequence == place.sequence + 1 and previous != place.hash and before is not None:
            self._problem(before[0], before[1], "changed after it was written", before[2])
        elif place is not None and (sequence, previous) != (place.sequence + 1, place.hash):
            self._problem(name, count, self._break(sequence, place), run_id)
        is_first = kind == "opened" or (kind == "recovered" and number == 1 and sequence == 1)
        if kind not in KINDS or (count == 1) != is_first:
            self._problem(name, count, f"a line of kind {kind!r} does not belong here", run_id)
        log_id = self._found.log_id
        known = place if place is not None else Head.new(log_id)
        self._said(name, count, kind, fields, known, number)
        self._place = Head(log_id, number, sequence if isinstance(sequence, int) else 0, digest_of(line[:-1]), 0, False)
        if self._expected == (self._place.sequence, self._place.hash):
            self._expected = None
        return str(kind)

    def _break(self, sequence: Any, place: Head) -> str:
        if isinstance(sequence, int) and sequence > place.sequence + 1:
            return f"{sequence - place.sequence - 1} line(s) before it are missing"
        if isinstance(sequence, int) and sequence <= place.sequence:
            return f"its number {sequence} was there already: lines were put in or swapped"
        return "it does not follow the line before it"

    def _said(self, name: str, count: int, kind: str, fields: Mapping[str, Any], place: Head, number: int) -> None:
        if kind == "call":
            self._found.entries += 1
            self._session_chain(name, count, fields)
        elif kind == "opened":
            if self._found.log_id and (fields.get("log_id"), fields.get("file")) != (self._found.log_id, number):
                self._problem(name, count, "the file belongs to another log, or elsewhere in this one")
            if fields.get("format") != FORMAT:
                self._problem(name, count, f"format {fields.get('format')!r}; this version reads {FORMAT}")
        elif kind in ("checkpoint", "ended"):
            self._check_seal(name, count, end_of(place), fields.get("seal"))
        elif kind == "recovered":
            if fields.get("note"):
                self._may_skip = True
                self._problem(name, count, f"found by the writer: {fields['note']}")
            else:
                self._found.notes.append(
                    f"{name}:{count}: {fields.get('torn_bytes')} bytes of a killed process set aside in "
                    f"{fields.get('set_aside')}"
                )
        elif kind == "lost":
            self._found.notes.append(f"{name}:{count}: {fields.get('entries')} entries could not be kept")
            self._may_skip = True

    def _session_chain(self, name: str, count: int, fields: Mapping[str, Any]) -> None:
        key = str(fields["log"].get("chain")), str(fields.get("session_id"))
        begins = digest({"genesis": fields.get("session_id")})
        expected = self._chains.get(key, (0, begins))
        given = fields.get("sequence"), fields.get("chain_hash")
        begun_anew = given == (1, begins)  # the session had been forgotten by its client
        unknown = self._may_skip and (key not in self._chains or expected[0] < fields.get("sequence", 0) - 1)
        if given != (expected[0] + 1, expected[1]) and not begun_anew and not unknown:
            self._problem(name, count, f"the chain of session {key[1]!r} is broken", fields.get("run_id"))
        if len(self._chains) >= MAX_CHAINS and key not in self._chains:
            self._chains.clear()
            self._may_skip = True
        sequence = given[0] if isinstance(given[0], int) else 0
        self._chains[key] = sequence, digest(entry_of(fields))

    def _check_seal(self, name: str, count: int | None, covered: Mapping[str, Any], seal: Any) -> None:
        if self._seal is None:
            if seal is not None and count is None:
                self._found.notes.append("the log is sealed; its seals were not checked, since no key was given")
            return
        if not isinstance(seal, Mapping):
            self._problem(name, count, "its seal is missing")
        elif seal.get("key_id") != self._seal.key_id or seal.get("algorithm") != self._seal.algorithm:
            self._problem(name, count, f"it is sealed with another key, {seal.get('key_id')}")
        elif not self._seal.verifies(canonical(covered), str(seal.get("signature"))):
            self._problem(name, count, "its seal does not fit: it was changed by somebody without the key")

    def _end(self, head: Head) -> None:
        if self._meets_head or not head.sequence or self._found.problems:
            return
        last = self._before
        if last is not None and self._place is not None and self._place.sequence == head.sequence:
            self._problem(last[0], last[1], "changed after it was written", last[2])
        else:
            self._problem(LOG_NAME, None, "the log does not end where its head says")

    def _problem(self, name: str, count: int | None, what: str, run_id: str | None = None) -> None:
        if len(self._found.problems) < MAX_PROBLEMS:
            self._found.problems.append(Problem(name, count, what, run_id if isinstance(run_id, str) else None))


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The lines of a file's first `size` bytes."""
    left = size
    for line in file:
        if left <= 0:
            return
        yield line[:left]
        left -= len(line)


def _share_lock(stack: ExitStack, path: Path) -> None:
    import fcntl

    file = stack.enter_context(path.open("rb"))
    fcntl.flock(file, fcntl.LOCK_SH)


__all__ = ["MAX_PROBLEMS", "Problem", "Verification", "verify"]
