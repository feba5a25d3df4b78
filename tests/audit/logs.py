"""Logs to be tested, written through the public API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brix_core import BRIX
from brix_core.audit.log import close_logs, flush_logs

KEY = b"a secret for tests, of 32 bytes."


class Parrot:
    """A client of the application's own, which says what it is told; "fail" makes it fail."""

    def complete(self, prompt: str, **options: Any) -> str:
        if prompt == "fail":
            raise ConnectionError("no line; the key was sk-proj-abcdefghijklmnop123456")
        return prompt


def write_log(path: Path, calls: int, *, closed: bool = True, **options: Any) -> None:
    client = BRIX.wrap(Parrot(), log_path=path, session_id="tests", **options)
    for number in range(calls):
        client.complete_sync(f"question {number}")
    (close_logs if closed else flush_logs)()
