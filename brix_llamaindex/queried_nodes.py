"""The nodes of one regulated query: found once, with the scores they were retrieved with.

Postprocessors may change scores, and LLMs may be asked on the way; what a rule has stopped they are not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from brix_core.errors import BrixConfigurationError, BrixError
from brix_core.retrieval.results import Relevance, RetrievalResult, RetrievedDocument
from brix_llamaindex.asking import no_calls
from brix_llamaindex.retrieval import read_nodes


class Query:
    """One query, and the nodes that were found for it, once.

    Args:
        engine: Finds them.
        bundle: What is asked.
        relevance: Reads their scores.
        source_key: Where their metadata name their source.
        beside: Further nodes that the response is to name as its sources.

    Attributes:
        stopped: Makes what is raised when an LLM would be asked to find nodes; None where one may be.
        nodes: What was found; None before.
        documents: Those of them whose score is known, as the guards read them.
        scores: Scores of what was retrieved, by the node's id.
    """

    def __init__(
        self,
        engine: Any,
        bundle: QueryBundle,
        relevance: Relevance,
        source_key: str | None,
        beside: Sequence[NodeWithScore] | None,
    ) -> None:
        self.engine = engine
        self.bundle = bundle
        self.beside = beside
        self.stopped: Callable[[], BrixError] | None = None
        self.nodes: list[NodeWithScore] | None = None
        self.documents: list[RetrievedDocument] = []
        self.scores: dict[str, float | None] = {}
        self._relevance = relevance
        self._source_key = source_key

    def retrieve(self) -> None:
        """Find nodes, unless they are there."""
        if self.nodes is None:
            with no_calls(self.stopped):
                self._found(self.engine.retrieve(self.bundle))

    async def aretrieve(self) -> None:
        """As `retrieve`, on the event loop."""
        if self.nodes is None:
            with no_calls(self.stopped):
                self._found(await self.engine.aretrieve(self.bundle))

    def give(self, nodes: list[NodeWithScore]) -> None:
        """Take nodes that the application has found. Without a score, they are no ground for what a rule stops."""
        for node in nodes:
            with suppress(BrixConfigurationError):  # a reranker's score, for one
                self.documents += read_nodes([node], self._relevance, self._source_key)
        self.nodes = nodes

    def messages(self) -> list[ChatMessage]:
        """What the spec looks at."""
        found = [
            ChatMessage(text_of(node), role=MessageRole.TOOL, additional_kwargs={"tool_call_id": node.node.node_id})
            for node in (*(self.nodes or ()), *(self.beside or ()))
        ]
        return [ChatMessage(self.bundle.query_str, role=MessageRole.USER), *found]

    def _found(self, nodes: list[NodeWithScore]) -> None:
        """Take nodes as postprocessors left them, with the scores they were retrieved with."""
        known = [node for node in nodes if node.node.node_id in self.scores]
        retrieved = [NodeWithScore(node=node.node, score=self.scores[node.node.node_id]) for node in known]
        self.documents = read_nodes(retrieved, self._relevance, self._source_key)
        self.nodes = nodes


class ScoreKeeper(BaseNodePostprocessor):
    """Notes the scores of nodes before postprocessors change them."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = current_query.get(None)
        if query is not None:
            query.scores.update((node.node.node_id, node.score) for node in nodes)
        return nodes

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._postprocess_nodes(nodes, query_bundle)


def text_of(node: NodeWithScore) -> str:
    """A node's own text."""
    return node.node.get_content(metadata_mode=MetadataMode.NONE)


current_query: Final[ContextVar[Query]] = ContextVar("brix_llamaindex_query")


class OwnNodes:
    """The nodes of the query under way, as what an answer can rest on."""

    def retrieve_sync(self, query: str, *, max_results: int | None = None) -> RetrievalResult:
        """See `brix_core.retrieval.results.RetrievalProvider`."""
        run = current_query.get()
        run.retrieve()
        return RetrievalResult.of(run.documents)

    async def retrieve(self, query: str, *, max_results: int | None = None) -> RetrievalResult:
        """See `brix_core.retrieval.results.RetrievalProvider`."""
        run = current_query.get()
        await run.aretrieve()
        return RetrievalResult.of(run.documents)


__all__ = ["OwnNodes", "Query", "ScoreKeeper", "current_query", "text_of"]
