"""The page of a report: one file that needs no other, and may load none.

The sources are in the folder ``page``. A content security policy names the hashes of the page's own script and style:
no other runs, whatever a log holds, and no address can be reached.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

from brix_core.audit.canonical import canonical
from brix_core.audit.tail import LogTail
from brix_core.audit.verify import Verification, verify
from brix_core.errors import BrixConfigurationError
from brix_core.report.calls import Call, text
from brix_core.report.columns import Columns
from brix_core.report.figures import Figures

_SCRIPTS: Final = ("data.js", "charts.js", "sections.js", "details.js", "table.js", "page.js")

MAX_TOLD: Final = 20
"""Problems and notes that the page lists."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was made.

    Attributes:
        output: The page.
        calls: Calls in it.
        unreadable: Lines that are none of a log, and were left out.
        verification: What checking the log found.
    """

    output: Path
    calls: int
    unreadable: int
    verification: Verification


def make_report(path: str | os.PathLike[str], output: str | os.PathLike[str], key: Any = None) -> Report:
    """Make a page of the log in a folder. The log may be written meanwhile, torn or broken: the page says so.

    Args:
        path: The folder of the log, or its ``brix_audit.jsonl``.
        output: The page, replaced when it exists; its mode is 0600, as that of logs.
        key: Checks the log's seals; see `brix_core.audit.verify.verify`.

    Raises:
        BrixConfigurationError: There is no log, the key is none, or `output` is a file of a log.
        OSError: The page could not be written.

    Example:
        >>> import tempfile, time
        >>> from brix_core.audit.directory import Item, LogDirectory
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = LogDirectory(Path(folder), None, 2**20, time.time)
        ...     log.append([Item("call", {"session_id": "s", "outcome": "ok"}, "c")], sync=False)
        ...     log.close()
        ...     report = make_report(folder, f"{folder}/report.html")
        ...     report.calls, report.unreadable, report.output.stat().st_size > 10_000
        (1, 0, True)
    """
    target = Path(output)
    if target.is_dir():
        raise BrixConfigurationError(f"{str(target)!r} is a folder: name the page, such as {target / 'report.html'}")
    if target.name.startswith("brix_audit"):
        raise BrixConfigurationError(f"{str(target)!r} is the name of a log's file, which a page must not replace")
    figures, columns = Figures(), Columns()
    said: dict[str, Any] = {"unreadable": 0, "recovered": 0, "lost": 0}
    tail = LogTail(path)
    for line in tail.poll():
        if line.kind == "call":
            call = Call.of(line.fields)
            figures.add(call)
            columns.add(call, f"{line.file}:{line.number}")
        elif not line.kind:
            said["unreadable"] += 1
        elif line.kind in ("recovered", "lost"):
            said[line.kind] += 1
    said["torn_bytes"] = tail.torn_bytes
    found = verify(path, key)  # afterwards, so that all that is on the page has been checked
    facts = {**figures.made(), "reading": said, "chain": _chain(found), "path": text(str(path)), "made": _now()}
    _write(target, _page(facts, columns))
    return Report(target, columns.count, said["unreadable"], found)


def _chain(found: Verification) -> dict[str, Any]:
    return {
        "ok": found.ok,
        "entries": found.entries,
        "lines": found.lines,
        "files": len(found.files),
        "log_id": text(found.log_id),
        "closed": found.closed,
        "sealed_by": found.sealed_by,
        "unsealed": found.unsealed,
        "problems": [text(str(problem)) for problem in found.problems[:MAX_TOLD]],
        "problem_count": len(found.problems),
        "notes": [text(note) for note in found.notes[:MAX_TOLD]],
    }


def _now() -> int:
    return round(datetime.now(UTC).timestamp() * 1_000)


def _page(facts: dict[str, Any], columns: Columns) -> Iterator[bytes]:
    """The page, piece by piece."""
    source = files(__package__).joinpath("page")
    style = source.joinpath("page.css").read_text(encoding="utf-8")
    script = "".join(source.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    before, after = source.joinpath("page.html").read_text(encoding="utf-8").split("<!-- data -->")
    policy = f"default-src 'none'; img-src data:; script-src {_hash_of(script)}; style-src {_hash_of(style)}"
    before = before.replace("<!-- policy -->", html.escape(policy + "; base-uri 'none'; form-action 'none'"))
    yield before.replace("/* style */", style).encode()
    yield _data("figures", canonical(facts))
    yield _data("columns", columns.written())
    for number, part in enumerate(columns.parts()):
        yield _data(f"part-{number}", part)
    yield after.replace("/* script */", script).encode()


def _data(name: str, written: bytes) -> bytes:
    """JSON within a page: without ``<``, nothing in it ends the element."""
    return b'<script type="application/json" id="%s">%s</script>\n' % (name.encode(), written.replace(b"<", b"\\u003c"))


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _write(target: Path, pieces: Iterator[bytes]) -> None:
    """Write a file, or leave what was there."""
    new = target.with_name(f".{target.name}.{uuid4().hex[:8]}")
    try:
        with _opened(new) as file:
            file.writelines(pieces)
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def _opened(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


__all__ = ["Report", "make_report"]
