"""Retrieval whose scores count: a provider for the guards, and a postprocessor that lets only what is relevant past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.indices.base import BaseIndex
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

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
from brix_llamaindex.copies import SharedCopies
from brix_llamaindex.events import announce_retrieval


class IndexRetrievalProvider:
    """An index or a retriever as a `brix_core.RetrievalProvider`.

    Args:
        index: An index, asked through the retriever it makes; or a retriever.
        score: What the scores of its nodes are: ``"similarity"``, ``"distance"``, or a function from a score to a
            number in [0, 1] where 1 is the best. `SimpleVectorStore` gives a similarity; FAISS a distance from an
            ``IndexFlatL2`` and a similarity from an ``IndexFlatIP``. See `brix_core.retrieval.results.Relevance`.
        top_k: Nodes to find, at most; the index's or the retriever's own number when left out.
        source_key: Where the metadata name a node's source; by default ``source``, ``url``, ``file_path`` or
            ``file_name``, else the id of the document it is part of.
        min_score: Relevance a node must have for an answer to rest on it, in [0, 1]. Where none has it, a rule of a
            spec that asks for documents refuses the call as if there were no provider.

    Raises:
        BrixConfigurationError: An argument cannot be used as given.

    Example:
        >>> from llama_index.core import Document, MockEmbedding, VectorStoreIndex
        >>> documents = [Document(text="Closed on Sundays.", metadata={"file_name": "handbook.md"})]
        >>> index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(8))
        >>> found = IndexRetrievalProvider(index, score="similarity").retrieve_sync("When are you open?")
        >>> found.content, round(found.score, 3), found.sources
        ('Closed on Sundays.', 1.0, ('handbook.md',))
    """

    def __init__(
        self,
        index: BaseIndex[Any] | BaseRetriever,
        *,
        score: ScoreKind,
        top_k: int | None = None,
        source_key: str | None = None,
        min_score: float = 0.0,
    ) -> None:
        if not isinstance(index, BaseIndex | BaseRetriever):
            raise BrixConfigurationError(
                f"retrieval needs a LlamaIndex index or retriever, got {type(index).__name__}: {index!r:.200}"
            )
        self._index = index
        self._relevance = Relevance(score)
        self._top_k = _count("top_k", top_k)
        self._source_key = source_key
        self._min_score = checks.fraction("min_score", min_score, zero=True)

    async def retrieve(self, query: str, *, max_results: int | None = None) -> RetrievalResult:
        """Find what fits the query best.

        Args:
            query: The user's words.
            max_results: Nodes to find, at most; `top_k` when left out.

        Raises:
            BrixConfigurationError: A node has no score, or none of the kind that was named.
        """
        limit = self._limit(max_results)
        return self._result(await self._retriever(limit).aretrieve(query), limit)

    def retrieve_sync(self, query: str, *, max_results: int | None = None) -> RetrievalResult:
        """As `retrieve`, for blocking callers."""
        limit = self._limit(max_results)
        return self._result(self._retriever(limit).retrieve(query), limit)

    def _limit(self, max_results: int | None) -> int | None:
        return self._top_k if max_results is None else _count("max_results", max_results)

    def _retriever(self, limit: int | None) -> BaseRetriever:
        if isinstance(self._index, BaseRetriever):
            return self._index
        return self._index.as_retriever(**({} if limit is None else {"similarity_top_k": limit}))

    def _result(self, nodes: Sequence[NodeWithScore], limit: int | None) -> RetrievalResult:
        documents = read_nodes(nodes[:limit], self._relevance, self._source_key)
        if isinstance(self._index, BaseIndex):
            self._relevance.check_order([document.score for document in documents])
        return RetrievalResult.of(document for document in documents if document.score >= self._min_score)


class RegulatedPostprocessor(SharedCopies, BaseNodePostprocessor):
    """Lets only nodes past that are relevant enough, or refuses before the LLM is asked.

    For ``index.as_query_engine(node_postprocessors=[...])`` and chat engines. Nodes keep the score they came with.
    Every retrieval leaves a trace entry in the session of the LLM calls around it. Put it before postprocessors that
    change scores, or tell it what their scores are. Copies share its traces.

    Args:
        score: What the scores of the nodes are. See `IndexRetrievalProvider`.
        min_score: Relevance a node must have, in [0, 1].
        on_low: When none has it, ``"refuse"`` raises `brix_core.BrixRetrievalError`; ``"drop"`` leaves no node, and
            the query engine answers "Empty Response" without asking the LLM.
        source_key: Where the metadata name a node's source.
        trace_buffer_size: Trace entries kept; the oldest go first.
        session_id: The session of retrievals made in none; a new UUID4 when left out.
        clock: The time, for tests.

    Raises:
        BrixConfigurationError: An argument cannot be used as given.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> nodes = [NodeWithScore(node=TextNode(text=text), score=score) for text, score in [("a", 0.9), ("b", 0.1)]]
        >>> postprocessor = RegulatedPostprocessor(score="similarity", min_score=0.5)
        >>> [node.text for node in postprocessor.postprocess_nodes(nodes, query_str="What is a?")]
        ['a']
        >>> postprocessor.postprocess_nodes(nodes[1:], query_str="What is a?")
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixRetrievalError: the best of 1 documents has a score of 0.100, and min_score=0.5 ...
    """

    _brix_unpickled: ClassVar[str] = "Make it where it is needed"

    min_score: float = Field(frozen=True)
    on_low: Literal["drop", "refuse"] = Field(frozen=True)
    _relevance: Relevance = PrivateAttr()
    _source_key: str | None = PrivateAttr()
    _gate: RetrievalGate = PrivateAttr()

    def __init__(
        self,
        *,
        score: ScoreKind,
        min_score: float,
        on_low: Literal["drop", "refuse"] = "refuse",
        source_key: str | None = None,
        trace_buffer_size: int = 1_000,
        session_id: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        relevance = Relevance(score)
        gate = RetrievalGate(
            min_score=min_score,
            on_low=on_low,
            trace_buffer_size=trace_buffer_size,
            session_id=session_id,
            clock=clock,
        )
        super().__init__(min_score=gate.min_score, on_low=on_low)  # type: ignore[call-arg]
        self._relevance = relevance
        self._source_key = source_key
        self._gate = gate

    @classmethod
    def class_name(cls) -> str:
        """Its name, as LlamaIndex serialises it."""
        return "RegulatedPostprocessor"

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of the retrievals, newest first.

        Args:
            session_id: Only those of this session.
        """
        return self._gate.get_traces(session_id)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        retrieval = self._gate.retrieval(None if query_bundle is None else query_bundle.query_str)
        admit = None
        try:
            with retrieval as admit:
                passing = admit(read_nodes(nodes, self._relevance, self._source_key))
                return [node for node, passes in zip(nodes, passing, strict=True) if passes]
        finally:
            if admit is not None and admit.entry is not None:
                announce_retrieval(admit.entry)

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._postprocess_nodes(nodes, query_bundle)  # there is nothing to wait for


def read_nodes(
    nodes: Sequence[NodeWithScore], relevance: Relevance, source_key: str | None = None
) -> list[RetrievedDocument]:
    """Nodes as the guards read them.

    Args:
        nodes: Nodes as retrieved.
        relevance: Reads their scores.
        source_key: Where the metadata name a node's source.

    Raises:
        BrixConfigurationError: A node has no score, or none of that kind.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> read_nodes([NodeWithScore(node=TextNode(text="a", id_="n-1"))], Relevance("similarity"))
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixConfigurationError: the score of node n-1 is None, and no number: ...
    """
    return [
        RetrievedDocument(
            text=node.node.get_content(metadata_mode=MetadataMode.NONE),
            score=relevance(node.score, f"node {node.node.node_id}"),
            source=source_of(node.node.metadata, source_key, node.node.ref_doc_id or node.node.node_id),
            metadata=dict(node.node.metadata),
        )
        for node in nodes
    ]


def _count(name: str, value: int | None) -> int | None:
    return None if value is None else checks.whole(name, value, 1)


__all__ = ["IndexRetrievalProvider", "RegulatedPostprocessor", "read_nodes"]
