"""What ``brix report`` does."""

from __future__ import annotations

from pathlib import Path

from brix_core.audit.command import given_key
from brix_core.errors import BrixConfigurationError
from brix_core.report.making import Report, make_report


def run(path: Path, output: Path, key_file: Path | None, key_env: str | None) -> tuple[str, int]:
    """Make a page of a log.

    Args:
        path: Its folder.
        output: The page.
        key_file: Holds the log's key.
        key_env: Environment variable that holds the key.

    Returns:
        What to print, and the exit code: 0 when the page was made, whatever state the log is in; else 2.
    """
    try:
        report = make_report(path, output, given_key(key_file, key_env))
    except (BrixConfigurationError, OSError) as error:
        return f"error: {error}", 2
    return _text(report), 0


def _text(report: Report) -> str:
    lines = [f"{report.output}: {report.calls:,} calls, {report.output.stat().st_size / 1e6:.1f} MB"]
    if report.unreadable:
        lines.append(f"warning: {report.unreadable:,} lines could not be read and are left out")
    if not report.verification.ok:
        lines.append(f"warning: the chain is broken: {report.verification.problems[0]}")
    return "\n".join(lines)


__all__ = ["run"]
