"""Following phrases through a text that still grows: which may stand at a place, and whether more may yet.

Phrases that begin alike are one branch of a tree (`tree`) as long as they are alike. An `Attempt` is a stage of the
tree at a place of the text, a `Thread` is a word of the tree that ended at a place. Both are shared by all the places
that lead to them, and take up only what is new since they were asked last. `matching` decides about what they reach.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

from brix_core.regulated.text.grammar import Phrase, Word
from brix_core.regulated.text.indexing import Entry
from brix_core.regulated.text.matching import OPEN, Readings, Search


class Stage:
    """The words that may come next.

    Attributes:
        nodes: Them, each once.
        by_key: Those with edges, by their keys.
        free: Those without.
    """

    def __init__(self) -> None:
        self.nodes: dict[Word, Node] = {}
        self.by_key: dict[str, list[Node]] = defaultdict(list)
        self.free: list[Node] = []

    def node(self, word: Word) -> Node:
        """The node of a word, made if need be."""
        node = self.nodes.get(word)
        if node is None:
            node = self.nodes[word] = Node(word)
            if word.free:
                self.free.append(node)
            for key in () if word.free else word.keys:
                self.by_key[key].append(node)
        return node

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.by_key)

    def may_begin(self, readings: Readings) -> bool:
        """Whether a word of this stage stands where the text reads like that, or may come to stand there."""
        keys, letters = readings
        by_key = self.by_key
        for key, _ in keys:
            if key in by_key:
                return True
        return bool(self.free) or (bool(letters) and self.may_go_on(letters))

    def may_go_on(self, letters: Iterable[str]) -> bool:
        """Whether some letters begin a key."""
        for some in letters:
            at = bisect_left(self._sorted, some)
            if at < len(self._sorted) and self._sorted[at].startswith(some):
                return True
        return False


class Node:
    """A word, after those that lead to it.

    Attributes:
        word: The word.
        entries: Phrases that end with it.
        next: What may come right after it.
        later: What may come after a gap.
    """

    def __init__(self, word: Word) -> None:
        self.word = word
        self.entries: list[Entry] = []
        self.next = Stage()
        self.later = Stage()


def tree(entries: Sequence[Entry]) -> Stage:
    """The first stage of the tree of some phrases."""
    root = Stage()
    for entry in entries:
        phrase: Phrase = entry.phrase
        node = root.node(phrase.words[0])
        for word, gap in zip(phrase.words[1:], phrase.gaps[1:], strict=True):
            node = (node.later if gap else node.next).node(word)
        node.entries.append(entry)
    return root


class Following:
    """What is known of a text that grows.

    Args:
        root: The first stage.
        search: Looks at the text.
    """

    def __init__(self, root: Stage, search: Search) -> None:
        self.search = search
        self.turn = 0
        self._root = root
        self._attempts: dict[tuple[Stage, int], Attempt] = {}
        self._threads: dict[tuple[Node, int], Thread] = {}

    def at(self, start: int) -> Attempt | None:
        """All that may begin at a place, up to date; ``None`` where nothing does."""
        if not self._root.may_begin(self.search.readings(start)):
            return None
        attempt = self.attempt(self._root, start)
        attempt.go_on()
        return attempt

    def attempt(self, stage: Stage, start: int) -> Attempt:
        """A stage at a place."""
        key = (stage, start)
        if key not in self._attempts:
            self._attempts[key] = Attempt(self, stage, start)
        return self._attempts[key]

    def thread(self, node: Node, end: int) -> Thread:
        """A word that ended at a place."""
        key = (node, end)
        if key not in self._threads:
            self._threads[key] = Thread(self, node, end)
        return self._threads[key]


class Attempt:
    """The words of a stage that begin at a place.

    Attributes:
        reached: Phrases that end on this way.
        alive: Whether more text may change that.
    """

    __slots__ = ("_following", "_known", "_settled", "_stage", "_start", "_threads", "_turn", "alive", "reached")

    def __init__(self, following: Following, stage: Stage, start: int) -> None:
        self._following = following
        self._stage = stage
        self._start = start
        self._known: set[Node] = set()
        self._settled = False
        self._threads: dict[Thread, None] = {}
        self._turn = -1
        self.alive = True
        self.reached: dict[Entry, None] = {}

    def go_on(self) -> None:
        """Take up what is new."""
        if not self.alive or self._turn == self._following.turn:
            return
        self._turn = self._following.turn
        if not self._settled:
            self._look()
        alive = not self._settled
        for thread in self._threads:
            thread.go_on()
            self.reached |= thread.reached
            alive = alive or thread.alive
        self.alive = alive

    def _look(self) -> None:
        """Which words of the stage end where."""
        search, stage = self._following.search, self._stage
        keys, letters = search.readings(self._start)
        nodes = stage.free.copy()
        for key, _ in keys:
            nodes += stage.by_key.get(key, ())
        self._settled = not (letters and stage.may_go_on(letters))
        for node in nodes:
            if node in self._known:
                continue
            ends, open_ = search.ends(node.word, self._start)
            if open_:
                self._settled = False
            else:
                self._known.add(node)
            for end in ends:
                self._threads[self._following.thread(node, end)] = None


class Thread:
    """A word that ended at a place, and what follows it.

    Attributes:
        reached: Phrases that end here or later.
        alive: Whether more text may change that.
    """

    __slots__ = ("_attempts", "_end", "_following", "_later", "_next", "_seen", "_turn", "alive", "reached")

    def __init__(self, following: Following, node: Node, end: int) -> None:
        self._following = following
        self._end = end
        self._turn = -1
        self._seen = 0
        self._attempts: dict[Attempt, None] = {}
        self._next: Stage | None = node.next if node.next.nodes else None
        self._later: Stage | None = node.later if node.later.nodes else None
        self.alive = True
        self.reached: dict[Entry, None] = dict.fromkeys(node.entries)

    def go_on(self) -> None:
        """Take up what is new."""
        following = self._following
        if not self.alive or self._turn == following.turn:
            return
        self._turn = following.turn
        alive = False
        if self._next is not None:
            starts = tuple(following.search.next(self._end))
            if OPEN in starts:
                alive = True
            for start in starts:
                self._try(self._next, start)
            if not alive:
                self._next = None
        if self._later is not None:
            gap = following.search.gap(self._end)
            for start in (*gap.starts[self._seen :], *gap.last):
                self._try(self._later, start)
            self._seen = len(gap.starts)
            alive = alive or gap.open
        dead = []
        for attempt in self._attempts:
            attempt.go_on()
            self.reached |= attempt.reached
            if attempt.alive:
                alive = True
            else:
                dead.append(attempt)
        for attempt in dead:
            del self._attempts[attempt]
        self.alive = alive

    def _try(self, stage: Stage, start: int) -> None:
        if start >= 0 and stage.may_begin(self._following.search.readings(start)):
            self._attempts[self._following.attempt(stage, start)] = None
