"""`brix calibrate`: thresholds from texts, what is printed, what is written, and bad input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from brix_core.cli import app
from brix_core.embedding import LexicalEmbedder, Vectors
from brix_core.errors import BrixConfigurationError
from brix_core.regulated import load_spec
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.rules.hits import Inputs
from brix_core.regulated.workshop.calibrate import LEAST, calibrate, upper_bound
from brix_core.regulated.workshop.rewriting import with_thresholds

HOUSE = """
name: house   # ours
circuit_breakers:
  - name: keys
    description: Wants keys.
    patterns: [skeleton key]
    examples:
      positive: [Give me the door key., Hand over the spare key.]   # more to come
      negative: [Which key is this song in?]
  - name: safe
    description: Wants the safe open.
    examples: {positive: [Open the safe for me.], threshold: 0.9}
  - {name: plain, description: Has no examples., patterns: [crowbar]}
risk_signals:
  - {name: doors, description: Doors., weight: 0.2, examples: {positive: [Paint the front door.]}}
"""
POSITIVE = ["Give me the door key now.", "Please hand over the spare key.", "Open the safe for us.", "A skeleton key?"]
NEGATIVE = [
    "Which key is this tune in?",
    "What is for lunch?",
    "Give me the key of C.",
    "Is the beach safe for me?",
] * 5


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    spec, positive, negative = (tmp_path / name for name in ("house.yaml", "positive.txt", "negative.txt"))
    spec.write_text(HOUSE, encoding="utf-8")
    positive.write_text("# texts\n\n" + "\n".join(POSITIVE), encoding="utf-8")
    negative.write_text("\n".join(NEGATIVE), encoding="utf-8")
    return spec, positive, negative


def run(files: tuple[Path, Path, Path], *more: object) -> Result:
    spec, positive, negative = files
    arguments = ["calibrate", spec, "--positive", positive, "--negative", negative, "--embedder", "lexical", *more]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5])
def test_the_rate_is_kept_by_the_rules_themselves(rate: float, each: bool) -> None:
    spec = load_spec(HOUSE)
    found = calibrate(spec, POSITIVE, NEGATIVE, embedder=LexicalEmbedder(), rate=rate, each=each)
    changed = load_spec(with_thresholds(HOUSE, found.chosen.thresholds))
    compiled = CompiledSpec.of(changed, embedder=LexicalEmbedder())
    stopped = sum(bool(compiled.breakers(Inputs(text))) for text in NEGATIVE)

    assert set(found.chosen.thresholds) == {"keys", "safe"}
    assert stopped == found.chosen.stopped <= rate * len(NEGATIVE)


def test_the_threshold_is_the_lowest_that_keeps_the_rate() -> None:
    spec = load_spec(HOUSE)
    found = calibrate(spec, POSITIVE, NEGATIVE, embedder=LexicalEmbedder(), rate=0.0)
    threshold = found.chosen.thresholds["keys"]
    lower = load_spec(with_thresholds(HOUSE, dict.fromkeys(("keys", "safe"), threshold - 0.002)))
    compiled = CompiledSpec.of(lower, embedder=LexicalEmbedder())

    assert threshold > LEAST
    assert any(compiled.breakers(Inputs(text)) for text in NEGATIVE)


def test_a_higher_rate_catches_no_less_and_all_is_the_same_twice() -> None:
    first, second = (calibrate(load_spec(HOUSE), POSITIVE, NEGATIVE, embedder=LexicalEmbedder()) for _ in range(2))
    caught = [point.caught for point in first.curve]

    assert first == second
    assert caught == sorted(caught)
    assert first.by_patterns == (1, 0)
    assert first.before.thresholds == {"keys": 0.5, "safe": 0.9}


def test_the_table_is_printed_and_nothing_is_written(files: tuple[Path, Path, Path]) -> None:
    result = run(files)

    assert result.exit_code == 0, result.output
    assert "4 positive and 20 negative texts" in result.output
    assert "chosen" in result.output
    assert files[0].read_text(encoding="utf-8") == HOUSE


def test_write_changes_the_thresholds_and_no_other_character(files: tuple[Path, Path, Path]) -> None:
    assert run(files, "--write").exit_code == 0
    text = files[0].read_text(encoding="utf-8")
    threshold = load_spec(files[0]).rule("keys").examples.threshold  # type: ignore[union-attr]
    before = HOUSE.replace("threshold: 0.9", f"threshold: {threshold:g}")

    assert text == before.replace("      positive: [Give", f"      threshold: {threshold:g}\n      positive: [Give")


def test_output_goes_to_another_file_and_one_rule_can_be_named(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    result = run(files, "-o", tmp_path / "out.yaml", "--rule", "doors")
    written = load_spec(tmp_path / "out.yaml")

    assert result.exit_code == 0, result.output
    assert written.rule("safe").examples.threshold == 0.9  # type: ignore[union-attr]
    assert written.rule("doors").examples.threshold != 0.5  # type: ignore[union-attr]
    assert files[0].read_text(encoding="utf-8") == HOUSE


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--rate", "1.5"], "rate must be a share in [0, 1), for example 0.01, got 1.5"),
        (["--rule", "plain"], "rule 'plain' cannot be calibrated: it has no examples; take of keys, safe, doors"),
        (["--rule", "nothing"], "there is no such rule"),
        (["--write", "-o", "x.yaml"], "give one of them"),
    ],
)
def test_bad_input_is_told_with_the_next_step(files: tuple[Path, Path, Path], more: list[str], told: str) -> None:
    result = run(files, *more)

    assert result.exit_code == 2
    assert told in result.output.replace("\n", " ")


def test_a_built_in_spec_is_not_written_to(files: tuple[Path, Path, Path]) -> None:
    result = run((Path("medical"), *files[1:]), "--write")

    assert result.exit_code == 2
    assert "write a copy with -o FILE" in result.output


def test_a_file_without_texts_is_refused(files: tuple[Path, Path, Path]) -> None:
    files[2].write_text("# nothing\n", encoding="utf-8")
    result = run(files)

    assert result.exit_code == 2
    assert "holds no text; put one on each line" in result.output


class Between:
    """Places one text between two examples, where the fit goes beyond what each of them has."""

    name = "between"

    def embed(self, texts: Sequence[str]) -> Vectors:
        angles = np.array([{"left": 0.5, "right": -0.5}.get(text, 0.0) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_rate_that_cannot_be_kept_is_an_error() -> None:
    spec = load_spec("name: b\ncircuit_breakers:\n- {name: a, description: A., examples: {positive: [left, right]}}\n")

    with pytest.raises(BrixConfigurationError, match=r"(?s)a rate of 0 cannot be kept: more than 0 of 1 .* rule 'a'"):
        calibrate(spec, ["left"], ["middle"], embedder=Between(), rate=0.0)


def test_shared_examples_cannot_have_thresholds_of_their_own() -> None:
    text = (
        "name: a\ncircuit_breakers:\n- {name: x, description: X., examples: &e {positive: [one]}}\n"
        "- {name: y, description: Y., examples: *e}\n"
    )
    with pytest.raises(BrixConfigurationError, match="share their examples by an alias"):
        with_thresholds(text, {"x": 0.2, "y": 0.3})
    assert [load_spec(with_thresholds(text, {"x": 0.2, "y": 0.2})).rule(name) is None for name in "xy"] == [False] * 2


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    assert upper_bound(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert upper_bound(5, 5) == 1.0
