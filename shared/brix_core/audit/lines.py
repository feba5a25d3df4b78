"""How a line of the log looks, and what its head file says.

Every line is canonical JSON and holds, in ``"log"``, its number and the hash of the line before it, over all files of
a log. A line is one call's trace entry (kind ``"call"``), or says something about the log itself: ``"opened"`` is
the first of each file and ``"ended"`` the last of one that another follows, ``"checkpoint"`` bears a seal,
``"recovered"`` follows what a killed process left behind, and ``"lost"`` counts entries that could not be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from brix_core.audit.canonical import canonical, digest, digest_of, parsed
from brix_core.audit.sealing import Seal

KINDS: Final = frozenset({"call", "opened", "ended", "checkpoint", "recovered", "lost"})

FORMAT: Final = 1
"""Version of this format."""


class Head(NamedTuple):
    """Where a log ends: what its head file holds, beside a seal.

    Attributes:
        log_id: UUID4 of the log.
        file: Number of the file that is written now, from 1.
        sequence: Number of the last line; 0 before the first.
        hash: SHA-256 of the last line; before the first, that of ``{"genesis": log_id}``.
        size: Bytes of the file that is written now.
        closed: Whether it was closed in good order: not one byte may follow.
    """

    log_id: str
    file: int
    sequence: int
    hash: str
    size: int
    closed: bool

    @classmethod
    def new(cls, log_id: str) -> Head:
        """The head of a log without a line."""
        return cls(log_id, 1, 0, digest({"genesis": log_id}), 0, False)

    def written(self, seal: Seal | None) -> bytes:
        """The content of the head file."""
        fields: dict[str, Any] = self._asdict()
        if seal is not None:
            fields["seal"] = sealed(fields, seal)
        return canonical(fields) + b"\n"

    @classmethod
    def read(cls, text: bytes) -> tuple[Head, Mapping[str, str] | None]:
        """The head in a file's content, and its seal.

        Raises:
            ValueError: It is none.
        """
        fields = parsed(text)
        if not isinstance(fields, dict):
            raise ValueError("no head")
        seal = fields.pop("seal", None)
        kinds = {"log_id": str, "file": int, "sequence": int, "hash": str, "size": int, "closed": bool}
        if fields.keys() != kinds.keys() or not all(type(fields[name]) is kind for name, kind in kinds.items()):
            raise ValueError("no head")
        head = cls(**fields)
        if text != canonical({**fields, **({} if seal is None else {"seal": seal})}) + b"\n":
            raise ValueError("not as it was written")
        return head, seal

    def after(self, line: bytes) -> Head:
        """The head once this line, its line break included, has been written."""
        return self._replace(
            sequence=self.sequence + 1, hash=digest_of(line[:-1]), size=self.size + len(line), closed=False
        )


def line_of(head: Head, kind: str, entry: Mapping[str, Any], chain: str | None = None) -> bytes:
    """The line that follows, its line break included.

    Args:
        head: Where the log ends now.
        kind: See the module.
        entry: What it says.
        chain: Which of the chains of its session an entry goes on.
    """
    log = {"kind": kind, "sequence": head.sequence + 1, "previous": head.hash}
    if chain is not None:
        log["chain"] = chain
    return canonical({**entry, "log": log}) + b"\n"


def checkpoint_of(head: Head, kind: str, seal: Seal | None, timestamp: str) -> bytes:
    """The line that puts a seal under all lines before it."""
    said: dict[str, Any] = {"timestamp": timestamp}
    if seal is not None:
        said["seal"] = sealed(end_of(head), seal)
    return line_of(head, kind, said)


def end_of(head: Head) -> dict[str, Any]:
    """What the seal of a checkpoint covers: all that came before it."""
    return {"log_id": head.log_id, "sequence": head.sequence, "hash": head.hash}


def sealed(fields: Mapping[str, Any], seal: Seal) -> dict[str, str]:
    """A seal of these fields."""
    return {"algorithm": seal.algorithm, "key_id": seal.key_id, "signature": seal.sign(canonical(fields))}


def entry_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """The trace entry in a line."""
    return {name: value for name, value in line.items() if name != "log"}


__all__ = ["FORMAT", "KINDS", "Head", "checkpoint_of", "end_of", "entry_of", "line_of", "sealed"]
