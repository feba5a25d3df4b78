"""What a retrieval finds, and how good it is, whichever framework's index did the work.

Indexes disagree on what a score is: a cosine, an inner product, a distance. Here a score is a number in [0, 1], and 1
is the best. What the index's own numbers mean is said once, when a provider is made (`Relevance`), and is never
guessed: read the wrong way round, the worst document is the best. A document without a score is an error, not 0.

Example:
    >>> class Handbook:
    ...     async def retrieve(self, query, *, max_results=3):
    ...         return RetrievalResult(content="Closed on Sundays.", score=0.92, sources=["handbook.md"])
    >>> from brix_core.retrieval.calls import retrieve
    >>> retrieve(Handbook(), "When are you open?").sources
    ('handbook.md',)
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Final, Literal, Protocol, TypeAlias

from brix_core.errors import BrixConfigurationError

ScoreKind: TypeAlias = Literal["similarity", "distance"] | Callable[[Any], float]
"""What an index's own scores are. See `Relevance`."""

ROUNDING: Final = 1e-4
"""How far float32 arithmetic may carry a score beyond its range; beyond that, it is another kind of number."""

SOURCE_KEYS: Final = ("source", "url", "file_path", "file_name")
"""Where loaders note in a document's metadata what it was made from, the likeliest first."""


class Relevance:
    """Reads an index's own scores as relevance: a number in [0, 1], where 1 is the best.

    Args:
        score: What the scores are.

            - ``"similarity"``: cosines, or whatever else lies in [-1, 1] and grows with likeness. Kept; what is below
              0 becomes 0.
            - ``"distance"``: numbers d >= 0 that shrink with likeness, read as 1 / (1 + d). FAISS's flat L2 index
              gives *squared* distances: for vectors of unit length those are 2 - 2 cos, and unrelated texts have 1/3.
            - a function from a score to a number in [0, 1].

    Raises:
        BrixConfigurationError: `score` is none of these.

    Example:
        >>> Relevance("similarity")(0.8), Relevance("distance")(0.25), Relevance(lambda points: points / 10)(7)
        (0.8, 0.8, 0.7)
        >>> Relevance("similarity")(None, of="report.pdf")
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixConfigurationError: the score of report.pdf is None, and no number: ...
    """

    def __init__(self, score: ScoreKind) -> None:
        if score not in ("similarity", "distance") and not callable(score):
            raise BrixConfigurationError(
                "score must be 'similarity', 'distance' or a function from the index's own score to a number in "
                f"[0, 1], got {score!r}"
            )
        self.score: ScoreKind = score

    def __call__(self, raw: Any, of: str = "a document") -> float:
        """The relevance behind one score.

        Args:
            raw: The index's own score.
            of: What it is the score of, for messages.

        Raises:
            BrixConfigurationError: It is no number, or cannot be a score of this kind.
        """
        if callable(self.score):
            return checked_score(self.score(raw), f"score({raw!r}) of {of}")
        value = _number(raw, f"the score of {of}")
        if self.score == "distance":
            if value < -ROUNDING:
                raise BrixConfigurationError(
                    f"the score of {of} is {raw!r}, and no distance is negative; pass score='similarity', or a "
                    "function to a number in [0, 1]"
                )
            return 1.0 / (1.0 + max(0.0, value))
        if not -1.0 - ROUNDING <= value <= 1.0 + ROUNDING:
            raise BrixConfigurationError(
                f"the score of {of} is {raw!r}, and no similarity lies beyond [-1, 1]; pass score='distance' if the "
                "best score is the smallest, or a function to a number in [0, 1]"
            )
        return min(1.0, max(0.0, value))

    def check_order(self, scores: Sequence[float]) -> None:
        """Find a kind of score given the wrong way round, in what an index that answers best first has found.

        Args:
            scores: Relevance of the documents found, in the index's order.

        Raises:
            BrixConfigurationError: The last is better than the first.
        """
        if not callable(self.score) and scores and scores[-1] > scores[0] + ROUNDING:
            other = "distance" if self.score == "similarity" else "similarity"
            raise BrixConfigurationError(
                f"score={self.score!r} makes the index's first answer ({scores[0]:.3f}) worse than its last "
                f"({scores[-1]:.3f}); pass score={other!r}, or a function to a number in [0, 1] if that is right"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievedDocument:
    """One document found.

    Attributes:
        text: Its text.
        score: Its relevance, in [0, 1].
        source: Where it comes from; empty when unknown.
        metadata: What else the index keeps with it.

    Example:
        >>> RetrievedDocument(text="Closed on Sundays.", score=0.92, source="handbook.md").source
        'handbook.md'
    """

    text: str
    score: float
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", checked_score(self.score, f"score of {self.source or 'a document'}"))


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """What a `RetrievalProvider` found for a query.

    Attributes:
        content: The text to answer from.
        score: How well it fits, in [0, 1]: that of the best document. 0 when nothing was found.
        sources: Where it comes from.
        documents: The documents one by one, where the provider tells them apart.

    Raises:
        BrixConfigurationError: The content is no text, or the score no number in [0, 1].

    Example:
        >>> RetrievalResult("Closed on Sundays.", score=0.92, sources=["handbook.md"]).score
        0.92
    """

    content: str
    score: float
    sources: Sequence[str] = ()
    documents: Sequence[RetrievedDocument] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.content, str):
            raise BrixConfigurationError(f"content of a RetrievalResult must be a str, got {self.content!r:.200}")
        if isinstance(self.sources, str):
            raise BrixConfigurationError(f"sources of a RetrievalResult must be a list, got the str {self.sources!r}")
        object.__setattr__(self, "score", checked_score(self.score, "score of a RetrievalResult"))
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "documents", tuple(self.documents))

    @classmethod
    def of(cls, documents: Iterable[RetrievedDocument]) -> RetrievalResult:
        """Put documents together: their texts a blank line apart, the best score, every source once.

        Example:
            >>> found = [RetrievedDocument(text=text, score=0.5, source="a.md") for text in ("Open.", "Closed.")]
            >>> RetrievalResult.of(found).sources, RetrievalResult.of(found).texts
            (('a.md',), ('Open.', 'Closed.'))
        """
        documents = tuple(documents)
        return cls(
            content="\n\n".join(document.text for document in documents),
            score=max((document.score for document in documents), default=0.0),
            sources=sources_of(documents),
            documents=documents,
        )

    @property
    def scores(self) -> tuple[float, ...]:
        """Scores of the documents, in their order."""
        return tuple(document.score for document in self.documents)

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts of the documents, in their order."""
        return tuple(document.text for document in self.documents)


class RetrievalProvider(Protocol):
    """Finds what an answer can be based on. Implement `retrieve`, asynchronous or blocking.

    A provider that can do both has an asynchronous `retrieve` and a blocking ``retrieve_sync`` with the same
    arguments; `brix_core.retrieval.calls` calls what fits. Calls may come from several threads at once.

    Example:
        >>> class Handbook(RetrievalProvider):
        ...     def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
        ...         return RetrievalResult(content="Closed on Sundays.", score=0.92, sources=["handbook.md"])
        >>> Handbook().retrieve("When are you open?").score
        0.92
    """

    def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult | Awaitable[RetrievalResult]:
        """Find what fits the query best.

        Args:
            query: The user's words.
            max_results: Documents to find, at most.
        """
        ...


def checked_score(value: Any, what: str) -> float:
    """A number in [0, 1], within `ROUNDING`.

    Raises:
        BrixConfigurationError: It is something else.
    """
    number = _number(value, what)
    if not -ROUNDING <= number <= 1.0 + ROUNDING:
        raise BrixConfigurationError(f"{what} is {value!r}, and must be in [0, 1], where 1 is the best")
    return min(1.0, max(0.0, number))


def _number(value: Any, what: str) -> float:
    # NumPy's numbers are Real, its arrays are not; a bool is, and no score.
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise BrixConfigurationError(f"{what} is {value!r}, and no number: without a score nobody can tell if it fits")
    return float(value)


def source_of(metadata: Mapping[str, Any], key: str | None, otherwise: str | None) -> str:
    """Where a document comes from.

    Args:
        metadata: Its metadata.
        key: Where to look; one of `SOURCE_KEYS` when left out.
        otherwise: What to say when nothing is noted there, such as its id.

    Example:
        >>> source_of({"source": "a.md"}, None, "id-1"), source_of({}, None, "id-1")
        ('a.md', 'id-1')
    """
    keys = SOURCE_KEYS if key is None else (key,)
    return next((str(metadata[key]) for key in keys if metadata.get(key)), otherwise or "")


def sources_of(documents: Iterable[RetrievedDocument]) -> tuple[str, ...]:
    """Their known sources in order, each once.

    Example:
        >>> sources_of([RetrievedDocument(text="x", score=1, source="a.md"), RetrievedDocument(text="y", score=1)])
        ('a.md',)
    """
    return tuple(dict.fromkeys(document.source for document in documents if document.source))


__all__ = [
    "ROUNDING",
    "SOURCE_KEYS",
    "Relevance",
    "RetrievalProvider",
    "RetrievalResult",
    "RetrievedDocument",
    "ScoreKind",
    "checked_score",
    "source_of",
    "sources_of",
]
