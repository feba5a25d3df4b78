"""What is wrong with a spec, all of it at once, each with its file, line and rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from brix_core.errors import BrixConfigurationError


class SpecProblem(NamedTuple):
    """One thing that is wrong with a spec.

    Attributes:
        file: The file; ``"<text>"`` or ``"<dict>"`` where there is none.
        line: The line in it, from 1; None where there are no lines.
        rule: Name of the rule it is about; empty when it is about none.
        message: What is wrong, with the value and what is allowed.

    Example:
        >>> print(SpecProblem("my.yaml", 12, "lethal_dose", "weight must be in [0, 1], got 7"))
        my.yaml:12: rule 'lethal_dose': weight must be in [0, 1], got 7
    """

    file: str
    line: int | None
    rule: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {f'rule {self.rule!r}: ' if self.rule else ''}{self.message}"


class SpecValidationError(BrixConfigurationError):
    """A spec cannot be used as given.

    Args:
        message: See `BrixError`; made of the problems when left out.
        problems: Everything that is wrong with it, in the order of its lines.

    Example:
        >>> error = SpecValidationError(problems=[SpecProblem("a.yaml", 3, "", "version must be text")])
        >>> print(error)
        a.yaml:3: version must be text
        >>> error.problems[0].line
        3
    """

    def __init__(self, message: str = "", *, problems: Sequence[SpecProblem] = ()) -> None:
        super().__init__(message or _message(problems))
        self.problems = tuple(problems)


def _message(problems: Sequence[SpecProblem]) -> str:
    lines = [str(problem) for problem in problems]
    if len(lines) <= 1:
        return "".join(lines)
    return f"{len(lines)} problems in the spec:\n" + "\n".join(f"  {line}" for line in lines)


__all__ = ["SpecProblem", "SpecValidationError"]
