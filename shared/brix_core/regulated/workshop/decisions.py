"""Decisions of the regulated guard, found again in a trace log and explained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from brix_core.errors import BrixConfigurationError
from brix_core.regulated.rules.hits import CONTEXT

_DEPTH: Final = 8
"""How deep in an entry a decision is looked for."""
_SAID: Final = {
    "blocked": "The call was stopped before anything was sent.",
    "grounded": "The call was answered from retrieved documents only.",
    "sampled": "The model was asked as often as its risk demanded.",
    "passed": "The call went through.",
    "output_blocked": "The answer was withheld.",
}
_FACTS: Final = ("spec", "risk_score", "uncertainty_type", "action_taken", "samples", "retrieval_sources")


class Decision(NamedTuple):
    """A decision in a log.

    Attributes:
        file: The log it stands in.
        line: The line in it, from 1.
        decision: The decision itself.
        entry: The entry of the call it belongs to.
    """

    file: Path
    line: int
    decision: Mapping[str, Any]
    entry: Mapping[str, Any]


def find_decision(decision_id: str, log: Path) -> Decision:
    """The decision of that id.

    Args:
        decision_id: The whole id, or its beginning, at least 6 characters of it, where that is unambiguous.
        log: A log of traces, one JSON object a line; or a directory with such logs (``*.jsonl``).

    Raises:
        BrixConfigurationError: The log cannot be read, or there is no such decision, or several.
    """
    wanted = decision_id.strip().lower()
    if len(wanted) < 6:
        raise BrixConfigurationError(f"decision id {decision_id!r} is too short; give at least 6 characters of it")
    files = _logs(log)
    found: dict[str, Decision] = {}
    broken = known = 0
    for file in files:
        for line, entry in _entries(file):
            if entry is None:
                broken += 1
                continue
            for decision in _decisions(entry):
                known += 1
                name = str(decision["decision_id"]).lower()
                if name == wanted:
                    return Decision(file, line, decision, entry)
                if name.startswith(wanted):
                    found.setdefault(name, Decision(file, line, decision, entry))
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise BrixConfigurationError(f"decision id {decision_id!r} is the beginning of {', '.join(sorted(found)[:5])}")
    unread = f"; {broken} lines are no JSON objects" if broken else ""
    raise BrixConfigurationError(f"{log} holds no decision {decision_id!r} among its {known}{unread}")


def explained_decision(found: Decision) -> Iterator[str]:
    """A decision, line by line; what was matched stands between ``>>`` and ``<<``.

    Example:
        >>> match = {"rule": "keys", "pattern": "door key", "start": 10, "end": 18, "excerpt": "Where is a door key?"}
        >>> decision = {"decision_id": "0a1b2c3d", "decision": "blocked", "rule": "keys", "matches": [match]}
        >>> lines = list(explained_decision(Decision(Path("log.jsonl"), 7, decision, {})))
        >>> print(lines[-1].strip())
        Where is a>> door ke<<y?
        >>> match["start"], match["end"] = 11, 19
        >>> print(list(explained_decision(Decision(Path("log.jsonl"), 7, decision, {})))[-1].strip())
        Where is a >>door key<<?
    """
    decision, entry = found.decision, found.entry
    yield f"decision {plain(decision['decision_id'])} ({found.file}:{found.line})"
    kind = str(decision.get("decision", ""))
    yield f"  {_SAID.get(kind, plain(kind) or 'What was decided is not in the log.')}"
    if decision.get("rule"):
        yield f"  rule: {plain(decision['rule'])}"
    for fact in _FACTS:
        if decision.get(fact) not in (None, "", []):
            yield f"  {fact.replace('_', ' ')}: {plain(decision[fact])}"
    for fact in ("timestamp", "session_id", "run_id", "model"):
        if entry.get(fact):
            yield f"  {fact.replace('_', ' ')}: {plain(entry[fact])}"
    matches = [match for match in decision.get("matches") or () if isinstance(match, Mapping)]
    if not matches:
        yield "  no text was matched"
    for match in matches:
        where = f" in {plain(match['where'])}" if match.get("where") else ""
        yield (
            f"  rule {plain(match.get('rule'))}, pattern {plain(match.get('pattern'))!r}, "
            f"characters {plain(match.get('start'))} to {plain(match.get('end'))}{where}:"
        )
        yield f"    {marked(match)}"


def marked(match: Mapping[str, Any]) -> str:
    """The excerpt of a match, with what was matched between ``>>`` and ``<<``.

    Example:
        >>> marked({"start": 100, "end": 104, "excerpt": "a dose of", "excerpt_start": 98})
        'a >>dose<< of'
    """
    excerpt, start, end = str(match.get("excerpt") or ""), match.get("start"), match.get("end")
    if not isinstance(start, int) or not isinstance(end, int):
        return plain(excerpt)
    begin = match.get("excerpt_start")
    first = start - (begin if isinstance(begin, int) else max(0, start - CONTEXT))
    last = first + end - start
    if not 0 <= first <= last <= len(excerpt):
        return plain(excerpt)
    return f"{plain(excerpt[:first])}>>{plain(excerpt[first:last])}<<{plain(excerpt[last:])}"


def plain(value: Any) -> str:
    r"""A value as text that a terminal can be given: what does not print is written out.

    Example:
        >>> print(plain("kill\x1b[31m\u200bed\nnow"))
        kill\x1b[31m\u200bed\nnow
    """
    text = value if isinstance(value, str) else str(value)
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )


def _logs(log: Path) -> list[Path]:
    if not log.is_dir():
        return [log]
    files = sorted(log.glob("*.jsonl"))
    if not files:
        raise BrixConfigurationError(f"{log} is a directory without any *.jsonl; give the log itself")
    return files


def _entries(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Line and entry; None for a line that is no JSON object."""
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, _parsed(line)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BrixConfigurationError(f"log {file} cannot be read: {why}; give a JSONL file of traces") from None


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _decisions(value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Everything in an entry that has a decision id."""
    if isinstance(value, dict):
        if isinstance(value.get("decision_id"), str):
            yield value
        children = list(value.values())
    elif isinstance(value, list):
        children = value
    else:
        return
    if depth < _DEPTH:
        for child in children:
            yield from _decisions(child, depth + 1)


__all__ = ["Decision", "explained_decision", "find_decision", "marked", "plain"]
