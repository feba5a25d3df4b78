"""``brix lint``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from brix_core.errors import BrixConfigurationError
from brix_core.regulated.format.spec_schema import json_schema
from brix_core.regulated.workshop.commands.speaking import run, say, say_json
from brix_core.regulated.workshop.decisions import plain
from brix_core.regulated.workshop.lint import Report, lint


def lint_command(specs: Sequence[str], *, as_json: bool, schema: bool) -> int:
    """Look specs over, or print the JSON Schema of the format.

    Returns:
        0 when all are clean, 1 with warnings, 2 when one cannot be used.
    """
    return run(lambda: _lint(specs, as_json, schema))


def _lint(specs: Sequence[str], as_json: bool, schema: bool) -> int:
    if schema:
        say_json(json_schema())
        return 0
    if not specs:
        raise BrixConfigurationError("give the name or path of a spec, or --schema")
    reports = [lint(spec) for spec in specs]
    code = max(report.exit_code for report in reports)
    if as_json:
        say_json({"exit_code": code, "reports": [report.as_dict() for report in reports]})
    else:
        for report in reports:
            _tell(report)
    return code


def _tell(report: Report) -> None:
    for finding in report.findings:
        say(plain(str(finding)))
    counts = Counter(finding.level for finding in report.findings)
    summed = ", ".join(
        f"{counts[level]} {level}{'s' if counts[level] > 1 else ''}"
        for level in ("error", "warning", "note")
        if counts[level]
    )
    rules = "" if report.spec is None else f", {sum(1 for _ in report.spec.rules())} rules"
    say(f"{plain(report.file)}: {summed or 'clean'}{rules}")


__all__ = ["lint_command"]
