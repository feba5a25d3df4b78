"""What the medical spec catches of harmful requests, and what it stops of harmless ones, beside brix-protocol's.

Run ``.venv-semantic/bin/python -m benchmarks.regulated_recall`` (``make test-semantic`` makes that environment) with
the data sets beside the project; it writes its part of ``docs/benchmarks.md``. Thresholds were calibrated on one half
of the data; everything here is measured on the other.
"""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from brix_core.embedding import DEFAULT_MODEL, Embedder, as_embedder
from brix_core.regulated.format.loading import SPECS, load_spec
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.rules.hits import Inputs
from brix_core.regulated.text.evasion import WAYS
from brix_core.regulated.text.patterns import PatternSet

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
REPORT = ROOT / "docs" / "benchmarks.md"
PEER = ROOT / ".venv-peer" / "bin" / "python"
TITLE = "## What the medical spec catches"
PERTURBED = 150
"""Texts of each kind that are written in the twelve ways."""

Half = Literal["calibrating", "measuring"]
Detector = Callable[[Sequence[str]], list[bool]]


class Texts(NamedTuple):
    """One half of the data."""

    harmful: list[str]
    safe: list[str]
    unsafe: list[str]


def half(text: str) -> Half:
    """The half that a text is in: measuring when the first byte of its SHA-256 is odd."""
    return "measuring" if hashlib.sha256(text.encode()).digest()[0] % 2 else "calibrating"


@cache
def texts(which: Half) -> Texts:
    """MedSafetyBench's requests, XSTest's safe prompts and its unsafe ones, of one half."""
    with (DATA / "medsafety_train.csv").open(encoding="utf-8", newline="") as stream:
        harmful = [row["prompt"] for row in csv.DictReader(stream)]
    with (DATA / "xstest_half.csv").open(encoding="utf-8", newline="") as stream:
        prompts = [(row["label"], row["prompt"]) for row in csv.DictReader(stream)]
    safe, unsafe = ([text for label, text in prompts if label == wanted] for wanted in ("safe", "unsafe"))
    return Texts(*([text for text in kind if half(text) == which] for kind in (harmful, safe, unsafe)))


@cache
def ordinary() -> list[str]:
    """The bundled list of ordinary sentences."""
    lines = (line.strip() for line in (SPECS / "ordinary.txt").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def by_patterns(spec: str = "medical") -> Detector:
    """The circuit breakers of a spec by their patterns alone."""
    patterns = PatternSet({rule.name: rule.patterns for rule in load_spec(spec).circuit_breakers if rule.patterns})
    return lambda given: [bool(patterns.scan(text)) for text in given]


def by_meaning(embedder: Embedder, spec: str = "medical") -> Detector:
    """The circuit breakers of a spec by patterns, then by meaning."""
    compiled = CompiledSpec.of(spec, embedder=embedder)
    return lambda given: [any(hit.counts for hit in compiled.breakers(Inputs(text))) for text in given]


def by_peer(given: Sequence[str]) -> list[bool]:
    """brix-protocol 0.5.0's circuit breakers, its own medical spec."""
    done = subprocess.run(
        [str(PEER), str(ROOT / "benchmarks" / "regulated_peer.py")],
        input=json.dumps({"texts": list(given)}) + "\n",
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    stopped: list[bool] = json.loads(done.stdout.splitlines()[-1])["stopped"]
    return stopped


def share(caught: Sequence[bool]) -> str:
    """A share, and of how many."""
    return f"{sum(caught) / len(caught):.1%} ({sum(caught)} of {len(caught)})"


def sample(given: Sequence[str], count: int) -> list[str]:
    """Some of the texts, by the order of their hashes."""
    return sorted(given, key=lambda text: hashlib.sha256(text.encode()).hexdigest())[:count]


def section(detectors: dict[str, Detector]) -> str:
    """The part of the page."""
    measured, calibrated = texts("measuring"), texts("calibrating")
    harmful, safe = sample(measured.harmful, PERTURBED), sample(measured.safe, PERTURBED)
    lines = [
        TITLE,
        "",
        "Measured by `.venv-semantic/bin/python -m benchmarks.regulated_recall`. Harmful: MedSafetyBench's training",
        "requests. Safe and unsafe: half of XSTest, whose safe prompts use alarming words harmlessly; its unsafe ones",
        "are mostly not about medicine, and no target of this spec. A text is in the measuring half when the first",
        f"byte of its SHA-256 is odd: {len(measured.harmful)} harmful, {len(measured.safe)} safe and "
        f"{len(measured.unsafe)} unsafe texts. The other half",
        f"({len(calibrated.harmful)}, {len(calibrated.safe)}, {len(calibrated.unsafe)}) was read while the examples "
        "were written. The threshold is",
        "the least at which 0.5 % of that half's harmless texts are stopped. The totals of the measuring half were",
        "looked at six times, between which examples were added and the rule for the threshold chosen; the ordinary",
        "sentences were looked at, too. So these figures are not of a first look.",
        "",
        "Stopped means that a circuit breaker was hit.",
        "",
        "| detector | harmful stopped | XSTest safe stopped | XSTest unsafe stopped | ordinary sentences stopped |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, detect in detectors.items():
        cells = (share(detect(kind)) for kind in (measured.harmful, measured.safe, measured.unsafe, ordinary()))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The same in disguise ({len(harmful)} harmful and {len(safe)} safe texts of the measuring half,",
        "each written in twelve ways as a whole): harmful stopped / safe stopped.",
        "",
        f"| way | {' | '.join(detectors)} |",
        f"|---|{'---:|' * len(detectors)}",
    ]
    for way, write in WAYS.items():
        cells = (
            " / ".join(share(detect([write(text) for text in kind])).split(" ")[0] for kind in (harmful, safe))
            for detect in detectors.values()
        )
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def kept(page: str) -> str:
    """This part of a page that another benchmark is about to write anew; empty when it has none."""
    start = page.find(TITLE)
    return "\n" + page[start:] if start >= 0 else ""


def main() -> int:
    """Measure, print, write the part."""
    if not DATA.is_dir():
        print(
            f"the data sets are kept beside the project, in {DATA}; without them nothing is measured", file=sys.stderr
        )
        return 2
    detectors: dict[str, Detector] = {
        "ours, patterns only": by_patterns(),
        "ours, with MiniLM": by_meaning(as_embedder(DEFAULT_MODEL)),
        "ours, with the lexical embedder": by_meaning(as_embedder("lexical")),
    }
    if PEER.exists():
        detectors["brix-protocol 0.5.0, medical"] = by_peer
    part = section(detectors)
    print(part)
    page = REPORT.read_text(encoding="utf-8")
    REPORT.write_text(page.removesuffix(kept(page)).rstrip() + "\n\n" + part, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
