"""Texts as bags of words, so that an index finds what shares words with a query, and always the same."""

from __future__ import annotations

import math
import re
from collections import Counter
from zlib import crc32

DIMENSIONS = 512


def vector(text: str) -> list[float]:
    """A vector of unit length; all zeros for a text without words."""
    counts = Counter(crc32(word.encode()) % DIMENSIONS for word in re.findall(r"\w+", text.lower()))
    length = math.sqrt(sum(count * count for count in counts.values())) or 1.0
    return [counts[place] / length for place in range(DIMENSIONS)]


MUSEUM = {
    "hours.md": "The museum is closed on Mondays.",
    "prices.md": "Tickets cost ten euros at the counter.",
    "rules.md": "Dogs have to wait outside.",
}
"""A few texts and where they come from."""

FITTING = "Is the museum closed on Mondays?"
"""Shares its words with the first text: a cosine of 1."""

FOREIGN = "Why do ferns unroll?"
"""Shares no word with any text."""

__all__ = ["DIMENSIONS", "FITTING", "FOREIGN", "MUSEUM", "vector"]
