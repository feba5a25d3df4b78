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

from brix_core.embedding.adapting import as_embedder
from brix_core.embedding.lexical import LexicalEmbedder
from brix_core.embedding.semantic import DEFAULT_MODEL, SentenceTransformerEmbedder
from brix_core.embedding.vectors import Embedder, Vectors, similarities

__all__ = [
    "DEFAULT_MODEL",
    "Embedder",
    "LexicalEmbedder",
    "SentenceTransformerEmbedder",
    "Vectors",
    "as_embedder",
    "similarities",
]
