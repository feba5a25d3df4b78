"""The output guard on a stream: nothing of what is blocked is let through, however it is cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from brix_core.regulated.text.patterns import PatternSet
from brix_core.regulated.text.rendering import MARKED, Rendering
from brix_core.regulated.text.scanning import Match

_EDGE: Final = 40
"""Characters kept before what may be the beginning of a phrase: they tell whether a word begins there."""


class OutputStream:
    """A chunk hook (`brix_core.call.ChunkHook`). Made by `OutputGuard.stream`; for one stream, and not shared.

    It looks at the text twice, as it is and as its reader sees it, the latter from the first sign of markup on.

    Args:
        blocking: The patterns of the rules that block.
        stop: Makes the error from the rule's name.
        excluded: Rules that do not count in this call.
        judge: Looks at the whole answer at its end, and tells the rule that blocks it; the answer is held back until
            then. None when patterns say it all.

    Example:
        >>> from brix_core.regulated.output.output_guard import OutputGuard
        >>> guard = OutputGuard({"name": "house", "output_signals": [
        ...     {"name": "code", "description": "Tells the door code.", "patterns": ["door code is"],
        ...      "weight": 1, "signal_type": "block"}]})
        >>> stream = guard.stream()
        >>> for chunk in ("Surely: ", "the do", "or code"):
        ...     stream(chunk)
        ...     print(stream.held_back())
        0
        2
        9
        >>> stream(" is 1234")
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixRegulatedError: the answer was stopped ...
    """

    __slots__ = (
        "_arrived",
        "_blocking",
        "_excluded",
        "_judge",
        "_raw",
        "_rendered",
        "_rule",
        "_stop",
        "_tail",
        "_texts",
    )

    def __init__(
        self,
        blocking: PatternSet,
        stop: Callable[[str], Exception],
        excluded: frozenset[str] = frozenset(),
        judge: Callable[[str], str | None] | None = None,
    ) -> None:
        self._blocking = blocking
        self._stop = stop
        self._excluded = excluded
        self._judge = judge
        self._raw = blocking.stream()
        self._rendered: _RenderedScan | None = None
        self._arrived = 0
        self._tail = ""
        self._texts: list[str] = []
        self._rule: str | None = None

    def anew(self) -> OutputStream:
        """One for another attempt, which has seen nothing."""
        return OutputStream(self._blocking, self._stop, self._excluded, self._judge)

    def __call__(self, text: str) -> None:
        """Look at the next text.

        Raises:
            BrixRegulatedError: It completes something that is blocked, or something earlier was.
        """
        self._refuse(())
        if self._judge is not None:
            self._texts.append(text)
        self._arrived += len(text)
        matches = self._fed_rendered(text)
        self._refuse(self._raw.feed(text))
        self._refuse(matches)
        self._tail = (self._tail + text)[-(self._arrived - self._raw.safe + _EDGE) :]

    def held_back(self) -> int:
        """How many characters at the end must not be shown yet: they may be the beginning of what is blocked."""
        if self._judge is not None or self._rule is not None:
            return self._arrived
        safe = self._raw.safe
        if self._rendered is not None:
            safe = min(safe, self._rendered.safe)
        return self._arrived - safe

    def finish(self) -> None:
        """Look at the end: what needed to know what follows.

        Raises:
            BrixRegulatedError: Something is blocked.
        """
        self._refuse(() if self._rendered is None else self._rendered.finish())
        self._refuse(self._raw.finish())
        if self._judge is not None:
            self._rule = self._judge("".join(self._texts))
            self._refuse(())

    def _fed_rendered(self, text: str) -> list[Match]:
        if self._rendered is None:
            if MARKED.search(text) is None:
                return []
            self._rendered = _RenderedScan(self._blocking, self._arrived - len(text) - len(self._tail))
            text = self._tail + text
        return self._rendered.feed(text)

    def _refuse(self, matches: Sequence[Match]) -> None:
        for match in matches:
            if match.rule not in self._excluded:
                self._rule = match.rule
                break
        if self._rule is not None:
            raise self._stop(self._rule)


class _RenderedScan:
    """Scans a text as its reader sees it.

    Args:
        patterns: What is looked for.
        start: Where in the text the scan begins.
    """

    __slots__ = ("_rendering", "_scan")

    def __init__(self, patterns: PatternSet, start: int) -> None:
        self._rendering = Rendering(start)
        self._scan = patterns.stream()

    def feed(self, text: str) -> list[Match]:
        return self._scan.feed(self._rendering.feed(text))

    def finish(self) -> list[Match]:
        return [*self._scan.feed(self._rendering.finish()), *self._scan.finish()]

    @property
    def safe(self) -> int:
        return self._rendering.original(self._scan.safe)


__all__ = ["OutputStream"]
