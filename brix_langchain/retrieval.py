"""Retrieval whose scores count: a provider for the guards, and a retriever that lets only what is relevant past."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import override

from brix_core import checks
from brix_core.clock import Clock
from brix_core.errors import BrixConfigurationError
from brix_core.retrieval.gate import RetrievalGate
from brix_core.retrieval.results import (
    Relevance,
    RetrievalResult,
    RetrievedDocument,
    ScoreKind,
    source_of,
)
from brix_core.session import current_session_id
from brix_langchain.sessions import session_of

Index: TypeAlias = VectorStore | Runnable[str, list[Document]]
"""What finds documents: a vector store, or a retriever."""

SCORE: Final = "brix_score"
"""Where a document that was let past has its score, in its metadata."""

DEFAULT_K: Final = 4
"""Documents a vector store is asked for, when nobody says how many."""

_SESSION: Final = "_brix_session"
"""How `invoke`, which knows the configuration, tells the hook whose retrieval it is."""

_Found: TypeAlias = list[tuple[Document, RetrievedDocument]]


class LangChainRetrievalProvider:
    """A vector store or a retriever as a `brix_core.RetrievalProvider`.

    Args:
        index: A vector store, asked by ``similarity_search_with_score``; or a retriever (any Runnable from a text to
            documents) that notes the score in the documents' metadata. ``vector_store.as_retriever()`` does not:
            pass the vector store.
        score: What the scores are: ``"similarity"``, ``"distance"``, or a function from a score to a number in
            [0, 1] where 1 is the best. `InMemoryVectorStore` gives a similarity, `FAISS` a distance unless it was made
            for inner products. See `brix_core.retrieval.results.Relevance`.
        k: Documents to find, at most; 4 of a vector store and all of a retriever's when left out.
        score_key: Where a retriever notes the score in the metadata, or a function from a document to its score.
        source_key: Where the metadata name a document's source; by default ``source``, ``url``, ``file_path`` or
            ``file_name``, else the document's id.
        search_kwargs: What else a search is given, such as ``{"filter": ...}``.
        min_score: Relevance a document must have for an answer to rest on it, in [0, 1]. Where none has it, a rule of
            a spec that asks for documents refuses the call as if there were no provider.

    Raises:
        BrixConfigurationError: An argument cannot be used as given.

    Example:
        >>> from langchain_core.embeddings import DeterministicFakeEmbedding
        >>> from langchain_core.vectorstores import InMemoryVectorStore
        >>> store = InMemoryVectorStore(DeterministicFakeEmbedding(size=64))
        >>> _ = store.add_texts(["Closed on Sundays."], [{"source": "handbook.md"}])
        >>> found = LangChainRetrievalProvider(store, score="similarity").retrieve_sync("Closed on Sundays.")
        >>> found.content, round(found.score, 3), found.sources
        ('Closed on Sundays.', 1.0, ('handbook.md',))
    """

    def __init__(
        self,
        index: Index,
        *,
        score: ScoreKind,
        k: int | None = None,
        score_key: str | Callable[[Document], Any] = "score",
        source_key: str | None = None,
        search_kwargs: Mapping[str, Any] | None = None,
        min_score: float = 0.0,
    ) -> None:
        if not isinstance(index, VectorStore | Runnable):
            raise BrixConfigurationError(
                f"retrieval needs a LangChain vector store or retriever, got {type(index).__name__}: {index!r:.200}"
            )
        self._index = index
        self._relevance = Relevance(score)
        self._search_kwargs = dict(search_kwargs or {})
        self._k = _count(self._search_kwargs.pop("k", None) if k is None else k)
        self._score_key = score_key
        self._source_key = source_key
        self._min_score = checks.fraction("min_score", min_score, zero=True)

    async def retrieve(self, query: str, *, max_results: int | None = None) -> RetrievalResult:
        """Find what fits the query best.

        Args:
            query: The user's words.
            max_results: Documents to find, at most; `k` when left out.

        Raises:
            BrixConfigurationError: A document has no score, or none of the kind that was named.
        """
        return self._result(await self.asearch(query, max_results))

    def retrieve_sync(self, query: str, *, max_results: int | None = None) -> RetrievalResult:
        """As `retrieve`, for blocking callers."""
        return self._result(self.search(query, max_results))

    def search(
        self, query: str, k: int | None = None, config: RunnableConfig | None = None, **search: Any
    ) -> list[tuple[Document, RetrievedDocument]]:
        """The documents as the index gives them, each with its score.

        Args:
            query: The user's words.
            k: Documents to find, at most.
            config: For a retriever.
            **search: What else this search is given.
        """
        k, search = self._asked(k, search)
        index = self._index
        if isinstance(index, VectorStore):
            with self._needing_scores():
                return self._ranked(index.similarity_search_with_score(query, k=k or DEFAULT_K, **search))
        return self._scored(index.invoke(query, config, **search), k)

    async def asearch(
        self, query: str, k: int | None = None, config: RunnableConfig | None = None, **search: Any
    ) -> list[tuple[Document, RetrievedDocument]]:
        """As `search`, on the event loop."""
        k, search = self._asked(k, search)
        index = self._index
        if isinstance(index, VectorStore):
            with self._needing_scores():
                return self._ranked(await index.asimilarity_search_with_score(query, k=k or DEFAULT_K, **search))
        return self._scored(await index.ainvoke(query, config, **search), k)

    def _result(self, found: _Found) -> RetrievalResult:
        return RetrievalResult.of(read for _, read in found if read.score >= self._min_score)

    def _asked(self, k: int | None, search: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
        return self._k if k is None else _count(k), {**self._search_kwargs, **search}

    @contextmanager
    def _needing_scores(self) -> Iterator[None]:
        try:
            yield
        except NotImplementedError as error:
            raise BrixConfigurationError(
                f"{type(self._index).__name__} has no similarity_search_with_score, and without scores nobody can tell "
                "what fits; pass a retriever that notes them in the metadata, with score_key"
            ) from error

    def _ranked(self, pairs: Sequence[tuple[Document, Any]]) -> _Found:
        found = [(document, self._read(document, raw)) for document, raw in pairs]
        self._relevance.check_order([read.score for _, read in found])
        return found

    def _scored(self, documents: Any, k: int | None) -> _Found:
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise BrixConfigurationError(
                f"{type(self._index).__name__} must give a list of documents, got {documents!r:.200}"
            )
        return [(document, self._read(document, self._noted(document))) for document in documents[:k]]

    def _noted(self, document: Document) -> Any:
        if callable(self._score_key):
            return self._score_key(document)
        if document.metadata.get(self._score_key) is None:
            raise BrixConfigurationError(
                f"{self._source(document) or 'a document'} of {type(self._index).__name__} has no score: there is no "
                f"{self._score_key!r} in its metadata. as_retriever() drops scores: pass the vector store itself, or "
                "say with score_key where they are"
            )
        return document.metadata[self._score_key]

    def _read(self, document: Document, raw: Any) -> RetrievedDocument:
        source = self._source(document)
        return RetrievedDocument(
            text=document.page_content,
            score=self._relevance(raw, source or "a document"),
            source=source,
            metadata=dict(document.metadata),
        )

    def _source(self, document: Document) -> str:
        return source_of(document.metadata, self._source_key, document.id)


class GuardedRetriever(BaseRetriever):
    """A retriever that lets only documents past that are relevant enough.

    It is used like any retriever, in chains and with callbacks. What it lets past are copies, with the score in
    ``metadata["brix_score"]``. Every retrieval leaves a trace entry in the session of the model calls around it.

    Args:
        index: A vector store, or a retriever that notes scores. This and the next five: `LangChainRetrievalProvider`.
        score: What the scores are.
        k: Documents to find, at most; ``retriever.invoke(query, k=2)`` asks for another number once.
        score_key: Where a retriever notes the score.
        source_key: Where the metadata name a document's source.
        search_kwargs: What else a search is given.
        min_score: Relevance a document must have, in [0, 1].
        on_low: When none has it, ``"refuse"`` raises `brix_core.BrixRetrievalError`, before a model is asked;
            ``"drop"`` gives an empty list.
        trace_buffer_size: Trace entries kept; the oldest go first.
        session_id: The session of retrievals made in none; a new UUID4 when left out.
        clock: The time, for tests.
        name: Of the retriever, in graphs and callbacks.
        tags: For callbacks.
        metadata: For callbacks.

    Raises:
        BrixConfigurationError: An argument cannot be used as given.

    Example:
        >>> from langchain_core.embeddings import DeterministicFakeEmbedding
        >>> from langchain_core.vectorstores import InMemoryVectorStore
        >>> store = InMemoryVectorStore(DeterministicFakeEmbedding(size=64))
        >>> _ = store.add_texts(["Closed on Sundays.", "Our history."])
        >>> retriever = GuardedRetriever(store, score="similarity", min_score=0.8)
        >>> [(found.page_content, round(found.metadata["brix_score"], 3)) for found in retriever.invoke("Our history.")]
        [('Our history.', 1.0)]
        >>> [found["kept"] for found in retriever.get_traces()[0]["documents"]]
        [True, False]
        >>> retriever.invoke("Who are you?")
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixRetrievalError: the best of 2 documents has a score of ...
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: Any = Field(exclude=True, repr=False, frozen=True)
    min_score: float = Field(frozen=True)
    on_low: Literal["drop", "refuse"] = Field(frozen=True)
    _provider: LangChainRetrievalProvider = PrivateAttr()
    _gate: RetrievalGate = PrivateAttr()

    def __init__(
        self,
        index: Index,
        *,
        score: ScoreKind,
        min_score: float,
        on_low: Literal["drop", "refuse"] = "refuse",
        k: int | None = None,
        score_key: str | Callable[[Document], Any] = "score",
        source_key: str | None = None,
        search_kwargs: Mapping[str, Any] | None = None,
        trace_buffer_size: int = 1_000,
        session_id: str | None = None,
        clock: Clock | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        provider = LangChainRetrievalProvider(
            index, score=score, k=k, score_key=score_key, source_key=source_key, search_kwargs=search_kwargs
        )
        gate = RetrievalGate(
            min_score=min_score,
            on_low=on_low,
            trace_buffer_size=trace_buffer_size,
            session_id=session_id,
            clock=clock,
        )
        fields: dict[str, Any] = {"index": index, "min_score": gate.min_score, "on_low": on_low}
        super().__init__(name=name, tags=tags, metadata=metadata, **fields)
        self._provider = provider
        self._gate = gate

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of the retrievals, newest first.

        Args:
            session_id: Only those of this session.
        """
        return self._gate.get_traces(session_id)

    @override
    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        return super().invoke(input, config, **_named(config, kwargs))

    @override
    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        return await super().ainvoke(input, config, **_named(config, kwargs))

    @override
    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None, **kwargs: Any
    ) -> list[Document]:
        with self._gate.retrieval(query, kwargs.pop(_SESSION, None)) as admit:
            found = self._provider.search(query, k, {"callbacks": run_manager.get_child()}, **kwargs)
            return _marked(found, admit([read for _, read in found]))

    @override
    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None, **kwargs: Any
    ) -> list[Document]:
        with self._gate.retrieval(query, kwargs.pop(_SESSION, None)) as admit:
            found = await self._provider.asearch(query, k, {"callbacks": run_manager.get_child()}, **kwargs)
            return _marked(found, admit([read for _, read in found]))


def _count(k: Any) -> int | None:
    return None if k is None else checks.whole("k", k, 1)


def _named(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    name = session_of(config) or current_session_id()
    return kwargs if name is None else {**kwargs, _SESSION: name}


def _marked(found: _Found, passing: Sequence[bool]) -> list[Document]:
    """Copies of those that pass: a store may hand out its own documents."""
    return [
        document.model_copy(update={"metadata": {**document.metadata, SCORE: read.score}})
        for (document, read), passes in zip(found, passing, strict=True)
        if passes
    ]


__all__ = ["DEFAULT_K", "SCORE", "GuardedRetriever", "Index", "LangChainRetrievalProvider"]
