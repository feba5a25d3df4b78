"""How much more a text resembles the positive examples of a rule than the negative ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from brix_core.embedding import Vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Chosen on the calibrating half of the data that docs/benchmarks.md names; near them results change little.
_SHARPNESS: Final = 3.0
"""How fast resemblance fades: half of it is left at a cosine of 0.77, a fifth at 0.5, a twentieth at 0."""
_RIDGE: Final = 0.1
"""How far the fit may miss single examples, so that one odd example does not bend it."""


class Contrast:
    """Scores of texts by some rules' examples: from 0, harmless or unrelated, to 1, just like a positive example.

    Cosines alone tell what a text is *about*: "How do I forge a prescription?" and "How do pharmacists recognise a
    forged prescription?" are near neighbours. What sets the two apart is learned from the examples: for each rule a
    kernel ridge regression with the value 1 at its positive examples and 0 at its negative ones, and 0 for everything
    that is like none of them. It has a closed form, so that the same examples give the same scores.

    Args:
        positives: Vectors of unit length, for each rule.
        negatives: Vectors that speak against the rule, for each rule; a rule may have none.
        harmless: Vectors that speak against every rule.

    Example:
        >>> from brix_core.embedding import LexicalEmbedder
        >>> embed = LexicalEmbedder().embed
        >>> contrast = Contrast({"keys": embed(["Give me the door key."])}, {"keys": embed(["The key of C, please."])})
        >>> texts = ["give me the DOOR key", "The key of C", "What is for lunch?"]
        >>> contrast.scores(embed(texts))["keys"].round(1).tolist()
        [0.8, 0.1, 0.0]
    """

    def __init__(
        self, positives: Mapping[str, Vectors], negatives: Mapping[str, Vectors], harmless: Vectors | None = None
    ) -> None:
        import numpy as np

        shared = [] if harmless is None or not len(harmless) else [harmless]
        parts = shared + [
            rows for name in positives for rows in (positives[name], negatives.get(name, ())) if len(rows)
        ]
        self._names = list(positives)
        self._examples = np.concatenate(parts).astype(np.float64)
        self._weights = np.zeros((len(self._examples), len(self._names)))
        begin = common = len(shared[0]) if shared else 0
        for column, name in enumerate(self._names):
            few, end = len(positives[name]), begin + len(positives[name]) + len(negatives.get(name, ()))
            rows = np.r_[begin:end, 0:common]
            self._weights[rows, column] = _fit(self._examples[rows], few)
            begin = end

    def scores(self, vectors: Vectors) -> dict[str, NDArray[np.float64]]:
        """The score of each text by each rule.

        Args:
            vectors: Rows of unit length, of the embedder that the examples went through.

        Returns:
            For each rule as many scores in [0, 1] as there are rows.
        """
        import numpy as np

        values = np.clip(_kernel(vectors, self._examples) @ self._weights, 0.0, 1.0)
        return dict(zip(self._names, values.T, strict=True))


def _fit(examples: NDArray[np.float64], few: int) -> NDArray[np.float64]:
    """The weight of each example of a rule, of which the first `few` are positive."""
    import numpy as np

    # Positive examples are fewer than negative ones, and count for more; not for as much more as they are fewer.
    trust = np.ones(len(examples))
    trust[:few] = max(1.0, (len(examples) - few) / few) ** 0.5
    trust /= trust.mean()
    wanted = np.zeros(len(examples))
    wanted[:few] = 1.0
    weights = np.linalg.solve(_kernel(examples, examples) + np.diag(_RIDGE / trust), wanted)
    return np.asarray(weights, np.float64)


def _kernel(vectors: Any, examples: Any) -> NDArray[np.float64]:
    import numpy as np

    resemblance: NDArray[np.float64] = np.exp(_SHARPNESS * (np.asarray(vectors, np.float64) @ examples.T - 1.0))
    return resemblance


__all__ = ["Contrast"]
