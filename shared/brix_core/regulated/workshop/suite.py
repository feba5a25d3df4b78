"""Test cases: read from a suite, judged by a spec, summed up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from brix_core.regulated.format.consistency import Location, case_problems
from brix_core.regulated.format.loading import read_text, tree_of
from brix_core.regulated.format.problems import SpecProblem, SpecValidationError
from brix_core.regulated.format.spec import RULE_GROUPS, SpecModel, TestCase
from brix_core.regulated.format.telling import shown, told
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.rules.hits import Inputs

SUITE_FIELDS: Final = ("spec", "test_cases")


class Verdict(NamedTuple):
    """What a spec made of a case.

    Attributes:
        case: The case.
        caught: Whether something stopped the text, or, where the case names a rule, whether that rule was met.
        passed: Whether that is what the case wants.
        rules: Names of the rules that were met.
        stopped: Whether one of them stops the text by itself.
        note: What else there is to know, for example how the model's answer fared.
    """

    case: TestCase
    caught: bool
    passed: bool
    rules: tuple[str, ...]
    stopped: bool = False
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As ``brix test --format json`` prints it."""
        case = self.case
        return {
            "text": case.text,
            "kind": case.kind,
            "where": case.where,
            "expect": case.expect,
            "caught": self.caught,
            "passed": self.passed,
            "rules": list(self.rules),
            "note": self.note,
        }


class Tally(NamedTuple):
    """Verdicts, summed up.

    Attributes:
        caught: Cases that had to be caught and were.
        missed: Cases that had to be caught and were not.
        stopped: Harmless cases that were caught.
        let_through: Harmless cases that were not.

    Example:
        >>> tally = Tally(caught=9, missed=1, stopped=0, let_through=10)
        >>> tally.reliability, tally.utility, round(tally.balance_index, 3)
        (0.9, 1.0, 0.947)
    """

    caught: int = 0
    missed: int = 0
    stopped: int = 0
    let_through: int = 0

    @property
    def reliability(self) -> float | None:
        """Share of what had to be caught that was; None without such cases."""
        return _share(self.caught, self.missed)

    @property
    def utility(self) -> float | None:
        """Share of what is harmless that was let through; None without such cases."""
        return _share(self.let_through, self.stopped)

    @property
    def balance_index(self) -> float | None:
        """Harmonic mean of reliability and utility; None when one of them is not known."""
        reliability, utility = self.reliability, self.utility
        if reliability is None or utility is None:
            return None
        return 2 * reliability * utility / (reliability + utility) if reliability + utility else 0.0

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Tally:
        """Verdicts, counted."""
        counts = dict.fromkeys(cls._fields, 0)
        for verdict in verdicts:
            if verdict.case.kind == "negative":
                counts["stopped" if verdict.caught else "let_through"] += 1
            else:
                counts["caught" if verdict.caught else "missed"] += 1
        return cls(**counts)

    def as_dict(self) -> dict[str, Any]:
        """As ``brix test --format json`` prints it."""
        return {
            **self._asdict(),
            "reliability": self.reliability,
            "utility": self.utility,
            "balance_index": self.balance_index,
        }


def judged(compiled: CompiledSpec, case: TestCase) -> Verdict:
    """What a spec makes of a case; no model is asked.

    A positive or evasive case is caught by the rule it expects, a breaker, a risk signal or an output signal; where it
    expects none, by any breaker, in an answer by any output signal. A negative case must meet no breaker, in an answer
    no output signal.

    Example:
        >>> compiled = CompiledSpec.of({"name": "house", "circuit_breakers": [
        ...     {"name": "keys", "description": "Asks for keys.", "patterns": ["spare key"]}]})
        >>> verdict = judged(compiled, TestCase(text="Any SPARE keys?", kind="positive", expect="keys"))
        >>> verdict.passed, verdict.rules
        (True, ('keys',))
    """
    if case.where == "output":
        stopping = [hit.name for hit in compiled.output_hits(case.text)]
        others: list[str] = []
    else:
        inputs = Inputs(case.text, user_texts=(case.text,))
        stopping = [hit.name for hit in compiled.breakers(inputs, every=True) if hit.counts]
        others = [hit.name for hit in compiled.signals(inputs) if hit.counts]
    rules = (*stopping, *others)
    caught = case.expect in rules if case.expect else bool(stopping)
    return Verdict(case, caught, caught != (case.kind == "negative"), rules, bool(stopping))


def load_suite(path: str | Path, spec: SpecModel) -> tuple[TestCase, ...]:
    """Read a suite file and check it against a spec.

    Args:
        path: A YAML file with ``test_cases`` as in a spec, or with a list of cases only.
        spec: The spec whose rules the cases name.

    Raises:
        SpecValidationError: It cannot be read, or a case is wrong; ``problems`` names file and line of each.
    """
    text, file = read_text(Path(path), str(path), kind="suite")
    tree = tree_of(text, file, kind="suite")
    root: Location = () if isinstance(tree.data, list) else ("test_cases",)
    items, found = _items(tree.data)
    found += [(at, message) for _, at, message in tree.problems]
    names = {group: {rule.name for rule in getattr(spec, group)} for group in RULE_GROUPS}
    cases = []
    for number, item in enumerate(items):
        case, wrong = _case(number, item, names)
        found += [((*root, number, *key), message) for key, message in wrong]
        cases += [case] if case else []
    if found:
        problems = [SpecProblem(file, tree.line(at), "", message) for at, message in found]
        raise SpecValidationError(problems=sorted(problems, key=lambda problem: problem.line or 0))
    return tuple(cases)


def _items(data: Any) -> tuple[list[Any], list[tuple[Location, str]]]:
    """The cases of a suite, unchecked, and what is wrong around them."""
    found: list[tuple[Location, str]] = []
    items: Any = data
    if isinstance(data, dict):
        items = data.get("test_cases")
        found = [
            ((key,), f"a suite has no field {key!r}; it has {', '.join(SUITE_FIELDS)}")
            for key in data
            if key not in SUITE_FIELDS
        ]
    elif not isinstance(data, list):
        return [], [((), f"a suite must be a list of test cases, or have the field 'test_cases', got {shown(data)}")]
    if not isinstance(items, list) or not items:
        return [], [*found, (("test_cases",), "test_cases must be a list with at least one case")]
    return items, found


def _case(number: int, item: Any, names: Mapping[str, set[str]]) -> tuple[TestCase | None, list[tuple[Location, str]]]:
    """One case, and what is wrong with it, each with its place in the case."""
    try:
        case = TestCase.model_validate(item)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        return None, [(tuple(one["loc"]), told({**one, "loc": ("test_cases", number, *one["loc"])})) for one in errors]
    return case, list(case_problems(case.model_dump(), names))


def _share(yes: int, no: int) -> float | None:
    return yes / (yes + no) if yes + no else None


__all__ = ["SUITE_FIELDS", "Tally", "Verdict", "judged", "load_suite"]
