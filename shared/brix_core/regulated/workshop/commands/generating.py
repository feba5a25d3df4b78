"""``brix generate``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from brix_core.errors import BrixConfigurationError
from brix_core.regulated.format.loading import read_source, spec_from_text
from brix_core.regulated.workshop.commands.speaking import complain, run, say
from brix_core.regulated.workshop.generate import as_suite, drafted


def generate_command(spec: str, *, output: Path | None, per_rule: int, force: bool) -> int:
    """Draft test cases, to a file or to stdout.

    Returns:
        0, or 2 when the spec or the file cannot be used.
    """
    return run(lambda: _generate(spec, output, per_rule, force))


def _generate(source: str, output: Path | None, per_rule: int, force: bool) -> int:
    if per_rule < 1:
        raise BrixConfigurationError(f"--per-rule must be at least 1, got {per_rule}")
    spec = spec_from_text(*read_source(source))
    cases = list(drafted(spec, per_rule=per_rule))
    if not cases:
        raise BrixConfigurationError(f"{spec.label} has no rules to draft cases from")
    text = as_suite(spec, cases)
    if output is None:
        say(text.rstrip("\n"))
    else:
        _write(output, text, force)
    counts = Counter(case.kind for case in cases)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in ("positive", "evasive", "negative"))
    complain(f"{len(cases)} cases drafted ({told})" + (f" to {output}" if output else ""))
    return 0


def _write(output: Path, text: str, force: bool) -> None:
    try:
        with output.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise BrixConfigurationError(f"{output} exists; give another file, or --force to replace it") from None
    except (OSError, ValueError) as error:
        raise BrixConfigurationError(
            f"{output} cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from None


__all__ = ["generate_command"]
