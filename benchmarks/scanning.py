"""What it costs to look for the patterns of a regulated domain, beside a bare automaton."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ahocorasick

from brix_core.regulated import PatternSet, fold
from brix_core.regulated.evasion import concrete

ROUNDS = 151
CALLS = 50

PATTERNS = [
    *["lethal dose", "overdose", "maximum ... dose", "kill myself", "self-harm", "sepsis", "10 mg", "chest pain"],
    *["how to make a bomb", "stop taking ... medication", "off-label use", "drug interaction", "heart attack"],
    *["without a prescription", "mix bleach and ammonia", "double ... dose", "pregnant ... safe", "diagnose me"],
    *["insider trading", "guaranteed return", "launder ... money", "tax evasion", "hide assets", "pump and dump"],
    *["wrongful termination", "statute of limitations", "forge a signature", "=who is liable", "sexual harassment"],
    *["fake (passport|visa|prescription)", "dosage for (a|my) (child|baby)", "severe bleeding", "expired medicine"],
]
PROSE = (
    "People often ask what the usual thing to do is when the weather changes in June. A walk in the morning, some "
    "water and a light lunch help most of us to feel well. It is important to keep a record of what you eat, and to "
    "sleep for seven or eight hours. My friend works in a bank and likes to talk about the history of trade in the "
    "region. Can you explain how compound interest works, and why a longer term makes a difference? The studies of "
    "2019 said that 3 of 10 pupils read every day. "
)


class Figure(NamedTuple):
    """A measured ratio, in the words of the report."""

    what: str
    ratio: float
    target: str
    met: bool
    detail: str


def in_turn(subjects: Sequence[Callable[[], Any]], calls: int) -> list[float]:
    """Median microseconds of each; one short round of every subject, then the next round."""
    rounds: list[list[float]] = [[] for _ in subjects]
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            for figures, subject in zip(rounds, subjects, strict=True):
                subject()
                started = time.perf_counter()
                for _ in range(calls):
                    subject()
                figures.append((time.perf_counter() - started) / calls * 1e6)
    finally:
        gc.enable()
    return [statistics.median(figures) for figures in rounds]


def figures() -> list[Figure]:
    """Scanning 1 KB beside a bare automaton, normalising beside scanning, and 100 KB beside 1 KB."""
    patterns = PatternSet({"rule": PATTERNS})
    bare = ahocorasick.Automaton()
    for pattern in PATTERNS:
        bare.add_word(fold(concrete(pattern)).text, pattern)
    bare.make_automaton()
    short = (PROSE * 3)[:1024]
    long = short * 100
    copy, copies = fold(short), fold(long)
    text = copy.text

    def automaton() -> None:
        for _ in bare.iter(text):
            pass

    alone, scan, normalise = in_turn([automaton, lambda: patterns.scan(copy), lambda: fold(short)], CALLS)
    long_scan, long_fold = in_turn([lambda: patterns.scan(copies), lambda: fold(long)], 1)
    whole = (long_scan + long_fold) / (scan + normalise) / 100
    return [
        Figure(
            "regulated: scan of 1 KB / bare automaton",
            scan / alone,
            "<= 2",
            scan / alone <= 2,
            f"automaton {alone:.1f} us, scan {scan:.1f}",
        ),
        Figure(
            "regulated: normalising 1 KB of ASCII / its scan",
            normalise / scan,
            "<= 1",
            normalise / scan <= 1,
            f"normalising {normalise:.1f} us, scan {scan:.1f}",
        ),
        Figure(
            "regulated: 100 KB / 100 x 1 KB",
            whole,
            "linear",
            whole <= 1.5,
            f"100 KB {(long_scan + long_fold) / 1e3:.2f} ms",
        ),
    ]


if __name__ == "__main__":
    for figure in figures():
        print(f"{figure.what}: {figure.ratio:.2f} ({figure.target}), {figure.detail}")
