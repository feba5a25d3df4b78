"""Sets of patterns, compiled once.

A pattern is words with white space between them: ``lethal dose``. Each word matches at word edges, in its regular
inflections (plural, third person, past, -ing); ``=word`` takes the word as it is. ``...`` is a gap of up to six words
within 80 characters of the folded copy, not across a blank line. ``(a|b)`` are alternatives; each may be several words.
``self-harm`` also matches "self harm" and "selfharm".

The automaton is pyahocorasick, the extra ``regulated``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from functools import cached_property
from importlib import import_module

from brix_core.errors import BrixConfigurationError
from brix_core.regulated.text.evasion import variants
from brix_core.regulated.text.folding import Folded, fold
from brix_core.regulated.text.following import Stage, tree
from brix_core.regulated.text.grammar import GrammarError, Phrase, phrases
from brix_core.regulated.text.indexing import Automaton, Entry, Index, Owner
from brix_core.regulated.text.scanning import Match, StreamScan, scan

__all__ = ["Match", "PatternError", "PatternSet", "variants"]


class PatternError(BrixConfigurationError):
    """A pattern cannot be used.

    Args:
        rule: The rule it belongs to.
        pattern: The pattern as written.
        why: What is wrong with it, and what to do.
    """

    def __init__(self, rule: str, pattern: object, why: str) -> None:
        super().__init__(f"rule {rule!r}: pattern {pattern!r} cannot be used: {why}")
        self.rule = rule
        self.pattern = pattern
        self.why = why


class PatternSet:
    """Patterns of many rules, looked for in one pass.

    Args:
        rules: The patterns of each rule, by the rule's name.

    Attributes:
        entries: The phrases that the patterns stand for, and whose they are.
        longest: Characters of a folded copy that a match may take at most, letters apart and gaps filled.

    Raises:
        PatternError: A pattern is no text, empty, has a gap at an edge, or stands for too many phrases.
        BrixConfigurationError: pyahocorasick is absent.

    Example:
        >>> patterns = PatternSet({"dosage": ["(maximum|highest) ... dose"], "poison": ["lethal dose"]})
        >>> patterns.scan("What is the m@ximum safe daily d-o-s-e?")
        [Match(rule='dosage', pattern='(maximum|highest) ... dose', start=12, end=38)]
        >>> patterns.scan("The maximum length of a stethoscope")
        []
    """

    def __init__(self, rules: Mapping[str, Iterable[str]]) -> None:
        owners: dict[Hashable, dict[Owner, None]] = defaultdict(dict)
        made: dict[Hashable, Phrase] = {}
        for rule, written in rules.items():
            if isinstance(written, str) or not isinstance(written, Iterable):
                raise PatternError(rule, written, "the patterns of a rule are a list of texts")
            for pattern in written:
                try:
                    read = phrases(pattern)
                except GrammarError as error:
                    raise PatternError(rule, pattern, str(error)) from None
                for phrase in read:
                    made.setdefault(phrase.key, phrase)
                    owners[phrase.key][Owner(rule, pattern)] = None
        self.entries = tuple(Entry(phrase, tuple(owners[key])) for key, phrase in made.items())
        self._index = Index(self.entries, _automaton(self.entries))
        self.longest = self._index.reach

    @cached_property
    def _tree(self) -> Stage:
        return tree(self.entries)

    def scan(self, text: str | Folded) -> list[Match]:
        """Find every pattern in a text.

        Args:
            text: The text, or what `fold` made of it.

        Returns:
            Matches by their place in the original text: for every pattern and every place where it begins, its end.
        """
        folded = fold(text) if isinstance(text, str) else text
        return scan(self._index, folded) if folded.text else []

    def stream(self) -> StreamScan:
        """A scan of a text that comes in pieces."""
        return StreamScan(self._index, self._tree)


def _automaton(entries: Iterable[Entry]) -> Automaton | None:
    """What finds the words of scripts that write no spaces between words."""
    try:
        ahocorasick = import_module("ahocorasick")
    except ImportError as error:
        raise BrixConfigurationError('patterns need pyahocorasick: pip install "brix-guards[regulated]"') from error
    keys = {key for entry in entries for word in entry.phrase.words if word.free for key in word.keys}
    if not keys:
        return None
    made = ahocorasick.Automaton()
    for key in keys:
        made.add_word(key, key)
    made.make_automaton()
    automaton: Automaton = made
    return automaton
