"""What is wrong with a spec, and what is doubtful.

Three levels: an *error* makes a spec unusable; a *warning* is something that most likely is not meant; a *note* is
worth knowing and changes no exit code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from brix_core.regulated.format.consistency import Location
from brix_core.regulated.format.loading import read_source, spec_from_text, tree_of
from brix_core.regulated.format.problems import SpecValidationError
from brix_core.regulated.format.spec import RULE_GROUPS, InputRule, SpecModel
from brix_core.regulated.workshop.broadness import ordinary_sentences, over_broad
from brix_core.regulated.workshop.overlaps import overlaps

Level = Literal["error", "warning", "note"]

CLEAN: Final = 0
DOUBTFUL: Final = 1
UNUSABLE: Final = 2


class Finding(NamedTuple):
    """One thing that lint has to say.

    Attributes:
        level: How bad it is.
        code: What kind of thing it is, in words for machines, for example ``"over-broad"``.
        file: The file.
        line: The line in it, from 1; None where there is none.
        rule: The rule it is about; empty when it is about none.
        message: What it is, and what to do.
    """

    level: Level
    code: str
    file: str
    line: int | None
    rule: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        rule = f"rule {self.rule!r}: " if self.rule else ""
        return f"{place}: {self.level}: {rule}{self.message} [{self.code}]"


class Report(NamedTuple):
    """All that lint has to say of a spec.

    Attributes:
        file: What the spec is called.
        spec: The spec; None when it cannot be used.
        findings: In the order of the file's lines.
    """

    file: str
    spec: SpecModel | None
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 without errors and warnings, 1 with warnings, 2 with errors."""
        levels = {finding.level for finding in self.findings}
        return UNUSABLE if "error" in levels else DOUBTFUL if "warning" in levels else CLEAN

    def as_dict(self) -> dict[str, Any]:
        """As ``brix lint --format json`` prints it."""
        return {
            "file": self.file,
            "spec": self.spec and self.spec.label,
            "exit_code": self.exit_code,
            "findings": [finding._asdict() for finding in self.findings],
        }


def lint(source: str | Path) -> Report:
    """Look a spec over.

    Args:
        source: A built-in name or a path.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "house.yaml"
        >>> _ = file.write_text('''
        ... metadata: {name: house, version: "1.0"}
        ... circuit_breakers:
        ... - {name: keys, description: Asks for keys., patterns: [spare key, get spare key]}
        ... ''')
        >>> report = lint(file)
        >>> [finding.code for finding in report.findings if finding.level == "warning"], report.exit_code
        (['redundant-pattern'], 1)
    """
    name = str(source)
    try:
        text, name = read_source(source)
        spec = spec_from_text(text, name)
    except SpecValidationError as error:
        found = [Finding("error", "invalid", file, line, rule, why) for file, line, rule, why in error.problems]
        return Report(name, None, tuple(found))
    line_of = tree_of(text, name).line
    findings = [
        Finding(level, code, name, line_of(at), _rule_name(spec, at), message)
        for level, code, at, message in _all(spec)
    ]
    return Report(name, spec, tuple(sorted(findings, key=lambda finding: finding.line or 0)))


_Said = Iterator[tuple[Level, str, Location, str]]


def _all(spec: SpecModel) -> _Said:
    checks: tuple[Callable[[SpecModel], _Said], ...] = (
        _version,
        _weights,
        _excluding,
        _writing,
        overlaps,
        _broad,
        _cases,
    )
    for check in checks:
        yield from check(spec)


def _version(spec: SpecModel) -> _Said:
    if "version" not in spec.metadata.model_fields_set:
        yield (
            "warning",
            "no-version",
            ("metadata",),
            "the spec has no version, so results cannot say which one made them",
        )
    if not any(True for _ in spec.rules()):
        yield "warning", "no-rules", (), "the spec has no rules, so it lets everything through"


def _weights(spec: SpecModel) -> _Said:
    for group in ("risk_signals", "output_signals"):
        for number, rule in enumerate(getattr(spec, group)):
            if rule.weight == 0 and getattr(rule, "signal_type", "risk") == "risk":
                at = (group, number, "weight")
                yield "warning", "no-weight", at, "weight 0 raises no risk; give it one, or remove the rule"


def _excluding(spec: SpecModel) -> _Said:
    for group in ("circuit_breakers", "risk_signals"):
        for number, rule in enumerate(getattr(spec, group)):
            if isinstance(rule, InputRule) and rule.exclude_context and rule.exclude_from == "query":
                at = (group, number, "exclude_context")
                yield "note", "user-excludes", at, "users can lower this rule themselves, by using one of its phrases"


def _writing(spec: SpecModel) -> _Said:
    """Patterns that look like something else than what they are read as."""
    for group in RULE_GROUPS:
        for number, rule in enumerate(getattr(spec, group)):
            for position, pattern in enumerate(rule.patterns):
                at = (group, number, "patterns", position)
                if _EXPRESSION.search(pattern):
                    what = "looks like a regular expression; patterns are words, with ..., (a|b) and =word only"
                    yield "warning", "not-words", at, f"pattern {pattern!r} {what}"
                elif found := _GLUED.search(pattern):
                    what = f"is read as whole words at {found[0]!r}; write every word out, as in (license|licence)"
                    yield "warning", "inside-word", at, f"pattern {pattern!r} {what}"


_EXPRESSION: Final = re.compile(r"[\\\[\]{}*^]|\w\+(?!\+)|\)[?+]")
_GLUED: Final = re.compile(r"[^\W_]+\(\w+|\w+\)[^\W_]+")


def _broad(spec: SpecModel) -> _Said:
    sentences = ordinary_sentences()
    for at, pattern, count, example in over_broad(spec, sentences):
        yield (
            "warning",
            "over-broad",
            at,
            f"pattern {pattern!r} matches {count} of {len(sentences)} ordinary sentences, for example {example!r}; "
            "narrow it",
        )


def _cases(spec: SpecModel) -> _Said:
    seen: dict[tuple[str, str], int] = {}
    for number, case in enumerate(spec.test_cases):
        at = ("test_cases", number)
        if case.kind != "negative" and case.expect is None:
            yield "warning", "no-expect", at, "the case does not say which rule it expects; any rule would do"
        if (case.text, case.where) in seen:
            first = seen[case.text, case.where]
            yield "warning", "same-case", at, f"the text is that of test_cases[{first}], so the case tests nothing new"
        seen.setdefault((case.text, case.where), number)
    expected = {case.expect for case in spec.test_cases}
    for group in RULE_GROUPS:
        for number, rule in enumerate(getattr(spec, group)):
            if rule.name not in expected:
                yield "note", "no-case", (group, number), "no test case expects this rule; `brix generate` drafts some"


def _rule_name(spec: SpecModel, at: Location) -> str:
    if len(at) < 2 or at[0] not in RULE_GROUPS:
        return ""
    return str(getattr(spec, str(at[0]))[at[1]].name)


__all__ = ["CLEAN", "DOUBTFUL", "UNUSABLE", "Finding", "Level", "Report", "lint"]
