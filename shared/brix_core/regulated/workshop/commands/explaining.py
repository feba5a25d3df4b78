"""``brix explain``."""

from __future__ import annotations

from pathlib import Path

from brix_core.errors import BrixConfigurationError
from brix_core.regulated.format.loading import BUILT_IN, load_spec, read_source, spec_from_text
from brix_core.regulated.format.spec import SpecModel
from brix_core.regulated.workshop.commands.speaking import run, say
from brix_core.regulated.workshop.decisions import Decision, explained_decision, find_decision, plain
from brix_core.regulated.workshop.explain import explained, explained_rule


def explain_command(spec: str | None, *, decision_id: str | None, log: Path | None) -> int:
    """Explain a spec, or one decision of a log.

    Returns:
        0, or 2 when there is nothing to explain.
    """
    return run(lambda: _explain(spec, decision_id, log))


def _explain(spec: str | None, decision_id: str | None, log: Path | None) -> int:
    if (decision_id is None) != (log is None):
        raise BrixConfigurationError("--decision-id and --log belong together: which decision, and in which log it is")
    if decision_id is not None and log is not None:
        found = find_decision(decision_id, log)
        for line in explained_decision(found):
            say(line)
        _explain_rule(found, spec)
        return 0
    if spec is None:
        raise BrixConfigurationError("give the name or path of a spec, or --decision-id with --log")
    for line in explained(spec_from_text(*read_source(spec))):
        say(plain(line))
    return 0


def _explain_rule(found: Decision, spec: str | None) -> None:
    """The rule behind a decision, where its spec is at hand in the very version that decided."""
    label, name = str(found.decision.get("spec") or ""), str(found.decision.get("rule") or "")
    known: SpecModel | None = None
    if spec is not None:
        known = spec_from_text(*read_source(spec))
    elif label.partition(" ")[0] in BUILT_IN:
        known = load_spec(label.partition(" ")[0])
    rule = known.rule(name) if known is not None else None
    if known is None or rule is None:
        return
    if label and known.label != label:
        say(f"\nthe rule today, in {plain(known.label)}; the decision was made by {plain(label)}:")
    else:
        say("\nthe rule:")
    for line in explained_rule(rule, known):
        say(f"  {plain(line)}")


__all__ = ["explain_command"]
