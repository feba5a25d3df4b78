"""`tests.support.words` as LangChain embeddings."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from tests.support.words import vector


class WordEmbeddings(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return vector(text)


__all__ = ["WordEmbeddings"]
