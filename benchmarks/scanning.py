"""What it costs to look for the patterns of the built-in specs, beside a bare automaton.

The bare automaton has the words that the engine looks up as its keywords, at word edges, and reads the same normalised
text; what it says is thrown away. It knows no gaps, no order of words, and no other way of writing them. Beside it
stands one whose keywords are whole phrases, one for each pattern. Texts are those that no pattern matches: a kilobyte
of ordinary questions of the spec's own domain, dense with its words, and a kilobyte of ordinary prose.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

import ahocorasick

from brix_core.regulated import PatternSet, fold
from brix_core.regulated.format.loading import BUILT_IN, SPECS, load_spec
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.text.evasion import concrete
from brix_core.regulated.text.folding import Folded

ROUNDS = 31
CALLS = 10
KILOBYTE = 1024
TEXTS = 6

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


class Cost(NamedTuple):
    """Median microseconds for a kilobyte, of one spec on one kind of text."""

    spec: str
    words: float
    phrases: float
    normalise: float
    scan: float


def sentences(domain: str) -> list[str]:
    """Ordinary questions of a domain."""
    whole = (SPECS / "ordinary.txt").read_text(encoding="utf-8")
    part = whole.split(f"# {domain}\n", 1)[1].split("\n# ", 1)[0]
    return [line for line in part.splitlines() if line.strip()]


def ordinary(domain: str, patterns: PatternSet) -> list[str]:
    """Texts of a kilobyte from the sentences that no pattern matches."""
    harmless = [sentence for sentence in sentences(domain) if not patterns.scan(sentence)]
    texts: list[str] = []
    random = Random(7)
    while len(texts) < TEXTS:
        text = " ".join(random.sample(harmless, min(30, len(harmless))))[:KILOBYTE]
        if not patterns.scan(text):
            texts.append(text)
    return texts


def bare(keywords: Iterable[str]) -> Any:
    """An automaton that finds keywords at word edges."""
    made = ahocorasick.Automaton()
    for keyword in keywords:
        made.add_word(f" {keyword} ", keyword)
    made.make_automaton()
    return made


def read(automaton: Any, copies: Iterable[Folded]) -> None:
    """Every hit of an automaton."""
    for copy in copies:
        for _ in automaton.iter(copy.view):
            pass


def cost(name: str, patterns: PatternSet, texts: Sequence[str]) -> Cost:
    """What a spec costs on some texts, for each."""
    copies = [fold(text) for text in texts]
    words = bare({key for entry in patterns.entries for word in entry.phrase.words for key in word.keys})
    rules = (*load_spec(name).circuit_breakers, *load_spec(name).risk_signals)
    phrases = bare({" ".join(fold(concrete(pattern)).view.split()) for rule in rules for pattern in rule.patterns})
    subjects: list[Callable[[], Any]] = [
        lambda: read(words, copies),
        lambda: read(phrases, copies),
        lambda: [fold(text) for text in texts],
        lambda: [patterns.scan(copy) for copy in copies],
    ]
    return Cost(name, *(figure / len(texts) for figure in in_turn(subjects, CALLS)))


def compared(kind: str, costs: Sequence[Cost]) -> list[Figure]:
    """The rows for one kind of text: the worst spec counts."""
    ratios = {one.spec: one.scan / one.words for one in costs}
    total = max((one.scan + one.normalise) / one.words for one in costs)
    detail = ", ".join(f"{one.spec} {one.words:.0f}/{one.phrases:.0f} {one.scan:.0f} us" for one in costs)
    normalise = max(one.normalise / one.scan for one in costs)
    return [
        Figure(
            f"regulated: scan of 1 KB of {kind} / bare automaton",
            max(ratios.values()),
            "<= 2",
            max(ratios.values()) <= 2,
            f"automaton of words/of phrases, scan: {detail}; with normalising {total:.1f} x",
        ),
        Figure(
            f"regulated: normalising 1 KB of {kind} / its scan",
            normalise,
            "<= 1",
            normalise <= 1,
            ", ".join(f"{one.spec} {one.normalise:.0f} us" for one in costs),
        ),
    ]


def figures() -> list[Figure]:
    """Scanning 1 KB beside a bare automaton, normalising beside scanning, 100 KB beside 1 KB, and streams."""
    sets = {name: CompiledSpec.of(name, embedder="lexical").patterns for name in BUILT_IN}
    texts = {name: ordinary(name, patterns) for name, patterns in sets.items()}
    prose = [(PROSE * 3)[:KILOBYTE]]
    rows = compared("its domain", [cost(name, sets[name], texts[name]) for name in sets])
    rows += compared("prose", [cost(name, sets[name], prose) for name in sets])
    return [*rows, length(sets, texts), *streams(sets, texts)]


def length(sets: Mapping[str, PatternSet], texts: Mapping[str, Sequence[str]]) -> Figure:
    """A long text beside short ones."""
    ratios, detail = [], []
    for name, patterns in sets.items():
        short = " ".join(texts[name])[: 4 * KILOBYTE]
        long = (short + " ") * 25
        once, whole = in_turn([partial(patterns.scan, short), partial(patterns.scan, long)], 1)
        ratios.append(whole / once / 25)
        detail.append(f"{name} {whole / 1e3:.1f} ms")
    return Figure("regulated: 100 KB / 25 x 4 KB", max(ratios), "linear", max(ratios) <= 1.5, ", ".join(detail))


def streams(sets: Mapping[str, PatternSet], texts: Mapping[str, Sequence[str]]) -> Iterator[Figure]:
    """A stream of words, for each of them."""
    costs = {}
    for name, patterns in sets.items():
        words = [f"{word} " for word in texts[name][0].split()]

        def run(patterns: PatternSet = patterns, words: Sequence[str] = words) -> None:
            stream = patterns.stream()
            for word in words:
                stream.feed(word)
            stream.finish()

        costs[name] = in_turn([run], 1)[0] / len(words)
    worst = max(costs.values())
    detail = ", ".join(f"{name} {figure:.0f} us" for name, figure in costs.items())
    yield Figure("regulated: a word of a stream, us", worst, "<= 15", worst <= 15, detail)


if __name__ == "__main__":
    for figure in figures():
        print(f"{figure.what}: {figure.ratio:.2f} ({figure.target}), {figure.detail}")
