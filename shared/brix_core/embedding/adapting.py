"""Whatever an application has to embed texts with, as an `Embedder`."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

from brix_core.embedding.lexical import LexicalEmbedder
from brix_core.embedding.semantic import SentenceTransformerEmbedder, installed, is_sentence_transformer
from brix_core.embedding.vectors import Embedder, Vectors, async_refusal, embedded, shown
from brix_core.errors import BrixConfigurationError

log = logging.getLogger(__name__)

_TAKEN: Final = (
    'None, "lexical", the name of a sentence-transformers model, a SentenceTransformer, LangChain Embeddings, '
    "a LlamaIndex BaseEmbedding, an Embedder, or a function from a list of texts to a list of vectors"
)


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
        return SentenceTransformerEmbedder() if installed("sentence_transformers") else _lexical_instead()
    if isinstance(value, str) and value.strip().lower() == LexicalEmbedder.name:
        return LexicalEmbedder()
    if isinstance(value, str | os.PathLike) or is_sentence_transformer(value):
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
    raise BrixConfigurationError(f"embedder must be {_TAKEN}; got {shown(value)}")


@cache
def _lexical_instead() -> LexicalEmbedder:
    log.warning(
        "sentence-transformers is not installed, so texts are compared by their spelling, not by their meaning: "
        'pip install "brix-guards[semantic]", or give embedder="lexical" if that is what you want'
    )
    return LexicalEmbedder()


class _Adapted:
    """A function from texts to vectors as an `Embedder`."""

    def __init__(self, name: str, function: Callable[[list[str]], Any]) -> None:
        self.name = name
        self._function = function

    def __repr__(self) -> str:
        return f"<embedder {self.name!r}>"

    def embed(self, texts: Sequence[str]) -> Vectors:
        return embedded(self.name, self._function, texts)


def _refuse_async(value: object, function: Any) -> None:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise async_refusal(_name_of(value))


def _name_of(value: object) -> str:
    return str(getattr(value, "__qualname__", None) or type(value).__name__)


__all__ = ["as_embedder"]
