"""How many malformed answers are read without asking the model again, beside parsec-llm on the same ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from brix_core.enforcement import JSONValidator
from tests.support.malformed import SCHEMA, malformed_answers

ROOT = Path(__file__).resolve().parent.parent
PARSEC = ROOT / ".venv-parsec" / "bin" / "python"

ANSWERS = 200
SEED = 7


class Score(NamedTuple):
    """What a reader made of the answers."""

    name: str
    right: int
    wrong: int
    microseconds: float


def scores() -> list[Score]:
    """Ours, and parsec-llm's where it is installed."""
    answers = malformed_answers(ANSWERS, seed=SEED)
    texts = [answer.text for answer in answers]
    started = time.perf_counter()
    results = [JSONValidator().validate_and_repair(text, SCHEMA) for text in texts]
    seconds = time.perf_counter() - started
    ours = [[result.parsed_output] if result.is_valid else None for result in results]
    truths = [answer.truth for answer in answers]
    found = [_score("brix-guards", ours, truths, seconds)]
    if not PARSEC.exists():
        print(f"no {PARSEC.parent.parent.name}: its row is left out (make bench installs it)", file=sys.stderr)
        return found
    done = subprocess.run(
        [str(PARSEC), str(ROOT / "benchmarks" / "parsec_side.py")],
        input=json.dumps({"schema": SCHEMA, "texts": texts}) + "\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    return [*found, _score("parsec-llm 0.2.1", theirs["values"], truths, theirs["seconds"])]


def section() -> list[str]:
    """The part of the page."""
    recoverable = sum(answer.recoverable for answer in malformed_answers(ANSWERS, seed=SEED))
    return [
        "## Malformed answers",
        "",
        f"{ANSWERS} answers made malformed in the ways of models (`tests/support/malformed.py`), read without asking",
        f"again. {recoverable} of them still have a certain meaning; a wrong value is one that fits the schema and",
        "is not what was meant.",
        "",
        "| reader | right | wrong | given up | mean |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {one.name} | {one.right} ({one.right / ANSWERS:.0%}) | {one.wrong} | {ANSWERS - one.right - one.wrong} "
            f"| {one.microseconds:,.0f} us |"
            for one in scores()
        ),
        "",
    ]


def _score(name: str, values: list[Any], truths: list[Any], seconds: float) -> Score:
    right = sum(value is not None and value[0] == truth for value, truth in zip(values, truths, strict=True))
    given = sum(value is not None for value in values)
    return Score(name, right, given - right, seconds / len(values) * 1e6)


__all__ = ["Score", "scores", "section"]
