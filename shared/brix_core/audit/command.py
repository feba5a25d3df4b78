"""What ``brix verify`` prints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from brix_core.audit.verify import Verification, verify
from brix_core.errors import BrixConfigurationError


def run(
    path: Path, key_file: Path | None, key_env: str | None, as_json: bool, expect: str | None = None
) -> tuple[str, int]:
    """Verify a log.

    Args:
        path: Its folder.
        key_file: Holds the key.
        key_env: Environment variable that holds the key.
        as_json: Whether to print JSON.
        expect: An earlier end, which the log must go on from.

    Returns:
        What to print, and the exit code: 0 for a good log, 1 for one that was changed, 2 for none.
    """
    try:
        found = verify(path, given_key(key_file, key_env), expect)
    except (BrixConfigurationError, OSError) as error:
        return (json.dumps({"ok": False, "error": str(error)}) if as_json else f"error: {error}"), 2
    return (_json(found) if as_json else _text(found)), 0 if found.ok else 1


def given_key(key_file: Path | None, key_env: str | None) -> Any:
    """The key that is in a file or in an environment variable; None where none was named.

    Raises:
        BrixConfigurationError: Both were named, or there is no such variable.
    """
    if key_file is not None and key_env is not None:
        raise BrixConfigurationError("give --key-file or --key-env, not both")
    if key_env is None:
        return key_file
    if not os.environ.get(key_env):
        raise BrixConfigurationError(f"the environment variable {key_env} is not set")
    return os.environ[key_env]


def _json(found: Verification) -> str:
    first = found.problems[0] if found.problems else None
    return json.dumps(
        {
            "ok": found.ok,
            "path": str(found.path),
            "log_id": found.log_id,
            "entries": found.entries,
            "lines": found.lines,
            "files": found.files,
            "closed": found.closed,
            "sealed_by": found.sealed_by,
            "end": found.end,
            "unsealed": found.unsealed,
            "first_problem": None if first is None else first._asdict(),
            "problems": [problem._asdict() for problem in found.problems],
            "notes": found.notes,
        },
        indent=2,
    )


def _text(found: Verification) -> str:
    state = "closed in good order" if found.closed else f"open, {found.unsealed} entries behind its head"
    lines = [f"{found.path}: {found.entries:,} calls in {len(found.files)} file(s), {state}"]
    if found.sealed_by is not None and found.ok:
        lines.append(f"every seal is by the key {found.sealed_by}")
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"BROKEN {problem}" for problem in found.problems]
    if found.ok:
        lines.append(f"it ends with {found.end} (kept elsewhere, give it to --expect later)")
    lines.append("ok: the log is as it was written" if found.ok else f"NOT ok: {len(found.problems)} problem(s)")
    return "\n".join(lines)


__all__ = ["given_key", "run"]
