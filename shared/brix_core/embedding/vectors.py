"""What an embedder is, and what is made sure of its vectors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from brix_core.errors import BrixConfigurationError, BrixError, BrixGuardError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Vectors: TypeAlias = "NDArray[np.float32]"
"""A float32 matrix, one row of unit length for each text; or one such row."""


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors of unit length. Calls may come from several threads at once.

    An object with these two members is taken as it is, its vectors unchecked; a function is easier, because
    `as_embedder` scales and checks what it returns.

    Example:
        >>> from brix_core.embedding import LexicalEmbedder
        >>> isinstance(LexicalEmbedder(), Embedder), isinstance("lexical", Embedder)
        (True, False)
    """

    @property
    def name(self) -> str:
        """What messages and traces call it, for example ``"lexical"``."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row for each text.

        Args:
            texts: Any number of texts.

        Returns:
            A float32 matrix, ``len(texts)`` x d. Every row is finite and of unit length, so that a dot product is a
            cosine. Without texts, no rows.

        Raises:
            BrixGuardError: The embedder failed, or returned something else.
        """
        ...


def similarities(vectors: Vectors | Iterable[Vectors], vector: Vectors) -> Vectors:
    """Cosine of one vector with each of a window, by one matrix product.

    Args:
        vectors: Rows of unit length: a matrix, or any iterable of rows, for example a deque.
        vector: One row of unit length and of the same embedder.

    Returns:
        float32, one cosine in [-1, 1] for each row of the window; none for an empty one.

    Raises:
        BrixGuardError: The rows differ in length, or are not of unit length.

    Example:
        >>> from brix_core.embedding import LexicalEmbedder
        >>> a, b = LexicalEmbedder().embed(["ask Bob", "call Ann"])
        >>> similarities([a, b], a).round(1).tolist()
        [1.0, 0.0]
        >>> similarities([], a).tolist()
        []
    """
    import numpy as np

    try:
        window = np.asarray(vectors if isinstance(vectors, np.ndarray) else list(vectors), np.float32)
        cosines = window @ vector if window.size else np.zeros(0, np.float32)
        most = float(np.abs(cosines).max(initial=0.0))
    except ValueError as error:
        raise BrixGuardError("vectors of different lengths cannot be compared: embed all with one embedder") from error
    if not most <= 1.001:
        raise BrixGuardError(f"cosines must be in [-1, 1], got {most:g}: the rows of an Embedder must have unit length")
    return np.clip(cosines, -1.0, 1.0).astype(np.float32, copy=False)


def embedded(name: str, function: Callable[[list[str]], Any], texts: Sequence[str]) -> Vectors:
    """What `function` gives for the texts, checked and scaled to unit length."""
    import numpy as np

    given = listed(texts)
    if not given:
        return np.zeros((0, 0), np.float32)
    try:
        raw = function(given)
    except BrixError:
        raise
    except Exception as error:
        raise BrixGuardError(f"embedder {name!r} failed: {type(error).__name__}: {error}") from error
    if isinstance(raw, Awaitable):
        if isinstance(raw, Coroutine):
            raw.close()  # or Python warns that it was never awaited
        raise async_refusal(name)
    return _unit_rows(name, raw, len(given))


def _unit_rows(name: str, raw: Any, count: int) -> Vectors:
    """`raw` as a matrix of unit rows, or an error that says what is wrong with it."""
    import numpy as np

    def wrong(what: str) -> BrixGuardError:
        return BrixGuardError(f"embedder {name!r} returned {what}; wanted {count} vectors of one length")

    try:
        rows = raw if hasattr(raw, "__len__") else list(raw)
        found = len(rows)
    except TypeError as error:
        raise wrong(shown(raw)) from error
    if isinstance(rows, str | bytes):
        raise wrong(shown(raw))
    if found != count:
        raise wrong(f"{found} vectors for {count} texts")
    try:
        matrix = np.asarray(rows, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises RuntimeError for tensors with gradients
        raise wrong(f"vectors that are no matrix of numbers ({error})") from error
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise wrong(f"an array of shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise wrong(f"NaN or infinity in vector {int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])}")
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    if not largest.all():
        raise wrong(f"only zeros in vector {int(np.flatnonzero(largest == 0)[0])}, which has no direction")
    matrix = matrix / largest  # so that squares neither overflow nor vanish
    unit: Vectors = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)
    return unit


def listed(texts: Sequence[str]) -> list[str]:
    """The texts as a list; one text by itself is refused."""
    if isinstance(texts, str):
        raise TypeError("embed takes a sequence of texts, got one str: write embed([text])")
    return list(texts)


def async_refusal(name: str) -> BrixConfigurationError:
    """The error of an embedder that has to be awaited."""
    return BrixConfigurationError(
        f"embedder {name!r} is async; give a sync function: guards call it off the event loop already"
    )


def shown(value: object) -> str:
    """What a message quotes of a value."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


__all__ = ["Embedder", "Vectors", "async_refusal", "embedded", "listed", "shown", "similarities"]
