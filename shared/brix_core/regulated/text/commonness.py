"""How common words are, so that a text is searched for the rarest word of a phrase first."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

from brix_core.regulated.text.folding import fold

_SENTENCES = Path(__file__).parent.parent / "specs" / "ordinary.txt"


@lru_cache(maxsize=1)
def commonness() -> Counter[str]:
    """How often each word stands in the ordinary sentences that come with the toolkit, by its key."""
    return Counter(fold(_SENTENCES.read_text(encoding="utf-8")).view.split())
