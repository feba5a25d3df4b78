"""An embedder that compares how texts are spelled: it needs nothing, and takes microseconds."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final
from zlib import crc32

from brix_core.embedding.vectors import Vectors, listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LexicalEmbedder:
    """Compares spelling: hashed character trigrams, words and identifiers, each as a set.

    Case and white space do not count, nor does how often something is said. What tells two steps of one task apart
    gets a weight of its own, whatever the length of the text: a token that holds a digit or looks like a name in a
    program (``b.py``, ``user_7``, ``/tmp/x``). The same text has the same vector in every process.

    Meaning is out of reach: a paraphrase in other words is another text. Time is linear in the length of the text, a
    vector has 1,024 dimensions (4 KiB). Features share dimensions, so that unrelated texts score within about 0.1 of
    what they share, above or below zero.

    Example:
        >>> from brix_core.embedding import similarities
        >>> embedder = LexicalEmbedder()
        >>> first, *others = embedder.embed(["read file a.py", "Read  file a.py", "read file b.py"])
        >>> [float(cosine) > 0.9 for cosine in similarities(others, first)]
        [True, False]
    """

    name = "lexical"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`.

        Example:
            >>> LexicalEmbedder().embed(["one", "two", ""]).shape
            (3, 1024)
        """
        import numpy as np

        rows = np.zeros((len(texts), _DIMENSIONS), np.float32)
        for row, text in zip(rows, listed(texts), strict=True):
            _spell(text, row)
        return rows


# A feature is first one of 65,536 buckets, so that repeats fall together in constant memory; six bits of the bucket
# are then folded away, each bucket with its own sign, which makes collisions cancel instead of adding up.
_BUCKETS: Final = 1 << 16
_DIMENSIONS: Final = 1 << 10
_BLOCK: Final = 1 << 16
"""Characters hashed at a time."""

# Shares of a cosine. Words and trigrams tell texts apart about as well as each other; identifiers are few, and would
# drown among the trigrams of a long text.
_TRIGRAMS: Final = 0.6
_WORDS: Final = 0.2
_IDENTIFIERS: Final = 0.2

_PUNCTUATION: Final = ".,;:!?\"'`()[]{}<>*\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"
_IDENTIFIER: Final = re.compile(r"[0-9_/\\@=]|\w[.:]\w")
_ASCII_RUN: Final = re.compile(r"[!-~]+")


def _spell(text: str, row: Vectors) -> None:
    """Write the vector of `text` into `row`, which is zero."""
    import numpy as np

    words = text.casefold().split()
    tokens = {word.strip(_PUNCTUATION) for word in words}
    identifiers = {
        token
        for word in tokens
        if not word.isalpha()
        # Scripts without spaces hold their identifiers inside what looks like one long word.
        for token in ((word,) if word.isascii() else _ASCII_RUN.findall(word))
        if _IDENTIFIER.search(token)
    }
    # Three spaces when there is no word, so that the empty text has a vector too.
    trigrams = _trigrams(f"  {' '.join(words)} ")
    for share, buckets in ((_TRIGRAMS, trigrams), (_WORDS, _hashed(tokens)), (_IDENTIFIERS, _hashed(identifiers))):
        if len(buckets):
            row += (share / len(buckets)) ** 0.5 * _folded(buckets)
    length = np.sqrt(row @ row)
    if length < 1e-6:  # all features of a tiny text cancelled
        row[0] = length = 1.0
    row /= length


def _hashed(tokens: Collection[str]) -> NDArray[np.intp]:
    import numpy as np

    buckets = {crc32(token.encode("utf-8", "surrogatepass")) % _BUCKETS for token in tokens}
    return np.fromiter(buckets, np.intp, len(buckets))


def _trigrams(text: str) -> NDArray[np.intp]:
    import numpy as np

    seen = np.zeros(_BUCKETS, np.bool_)
    for start in range(0, len(text) - 2, _BLOCK):
        block = text[start : start + _BLOCK + 2]
        codes = np.frombuffer(block.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32, copy=False)
        # Three odd multipliers, then one round of mixing; arithmetic on uint32 wraps.
        mixed = (
            codes[:-2] * np.uint32(0x9E3779B1) + codes[1:-1] * np.uint32(0x85EBCA77) + codes[2:] * np.uint32(0xC2B2AE3D)
        )
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(0x2C1B3C6D)
        seen[mixed >> np.uint32(16)] = True
    return np.flatnonzero(seen)


def _folded(buckets: NDArray[np.intp]) -> NDArray[np.float64]:
    import numpy as np

    signs = 1.0 - 2.0 * ((buckets >> 10) & 1)
    return np.bincount(buckets & (_DIMENSIONS - 1), weights=signs, minlength=_DIMENSIONS).astype(np.float64, copy=False)


__all__ = ["LexicalEmbedder"]
