"""``brix calibrate``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from brix_core.embedding import DEFAULT_MODEL, as_embedder
from brix_core.errors import BrixConfigurationError
from brix_core.regulated.format.loading import BUILT_IN, read_source, read_text, spec_from_text
from brix_core.regulated.workshop.calibrate import Calibration, Point, calibrate
from brix_core.regulated.workshop.commands.speaking import run, say
from brix_core.regulated.workshop.decisions import plain
from brix_core.regulated.workshop.rewriting import with_thresholds

_SHORT_NAMES: Final = {"minilm": DEFAULT_MODEL}


def calibrate_command(
    spec: str,
    *,
    positive: Path,
    negative: Path,
    rate: float,
    embedder: str | None,
    rules: Sequence[str],
    each: bool,
    output: Path | None,
    write: bool,
) -> int:
    """Find thresholds, tell what they do, and write them where that is wanted.

    Returns:
        0, or 2 when something cannot be used.
    """
    return run(
        lambda: _calibrate(spec, (positive, negative), rate, embedder, rules, each, _target(spec, output, write))
    )


def _target(spec: str, output: Path | None, write: bool) -> Path | None:
    """The file to write."""
    if not write:
        return output
    if output is not None:
        raise BrixConfigurationError("--write changes the spec itself and -o another file: give one of them")
    if spec in BUILT_IN:
        raise BrixConfigurationError(f"{spec!r} comes with the toolkit and is not changed; write a copy with -o FILE")
    return Path(spec)


def _calibrate(
    source: str,
    texts: tuple[Path, Path],
    rate: float,
    embedder: str | None,
    rules: Sequence[str],
    each: bool,
    target: Path | None,
) -> int:
    text, file = read_source(source)
    spec = spec_from_text(text, file)
    positives, negatives = (_lines(path) for path in texts)
    chosen = as_embedder(_SHORT_NAMES.get(embedder or "", embedder))
    found = calibrate(spec, positives, negatives, embedder=chosen, rate=rate, rules=rules, each=each)
    _tell(found, spec.label)
    if target is not None:
        changed = with_thresholds(text, found.chosen.thresholds)
        spec_from_text(changed, str(target))
        _write(target, changed)
        say(f"\nwritten to {plain(str(target))}")
    return 0


def _lines(path: Path) -> list[str]:
    """The texts of a file, one a line; empty lines and those that begin with # are none."""
    lines = (line.strip() for line in read_text(path, str(path), kind="text")[0].splitlines())
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise BrixConfigurationError(f"{path} holds no text; put one on each line")
    return texts


def _tell(found: Calibration, label: str) -> None:
    texts = f"{found.positives} positive and {found.negatives} negative texts"
    say(f"{plain(label)}, embedder {plain(found.embedder)}: {texts}")
    say()
    Console(highlight=False).print(_curve(found))
    caught, stopped = found.by_patterns
    say()
    say(f"whatever the threshold, patterns catch {caught} positive and {stopped} negative texts")
    say(
        f"chosen: {_named(found.chosen)}; of other texts like the negative ones at most {found.bound:.1%} are caught "
        "by meaning (95 % confidence), if the texts were not used to write the examples"
    )


def _curve(found: Calibration) -> Table:
    table = Table("rate", "threshold", "caught", "", "wrongly caught", "")
    for point in (*found.curve, found.before, found.chosen):
        name = "now" if point is found.before else "chosen" if point is found.chosen else f"{point.rate:.1%}"
        table.add_row(
            name,
            _threshold(point),
            f"{point.caught} of {found.positives}",
            f"{point.caught / found.positives:.1%}",
            f"{point.stopped} of {found.negatives}",
            f"{point.stopped / found.negatives:.1%}",
        )
    return table


def _threshold(point: Point) -> str:
    values = set(point.thresholds.values())
    return f"{min(values):.3f}" if len(values) == 1 else f"{min(values):.3f} to {max(values):.3f}"


def _named(point: Point) -> str:
    if len(set(point.thresholds.values())) == 1:
        return f"threshold {_threshold(point)} for {len(point.thresholds)} rules"
    return ", ".join(f"{name} {value:.3f}" for name, value in point.thresholds.items())


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that nobody reads half of it."""
    try:
        folder = path.resolve().parent
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
                stream.write(text)
            if path.exists():
                os.chmod(name, path.stat().st_mode & 0o7777)
            else:
                os.chmod(name, 0o644)
            os.replace(name, path.resolve())
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise BrixConfigurationError(f"{path} cannot be written: {error.strerror or error}") from None


__all__ = ["calibrate_command"]
