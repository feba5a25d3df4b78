"""GuardedQueryEngine: retrieval that must be good enough, a guarded LLM, and what both of them did in one trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms import LLM
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle

from brix_core.errors import BrixConfigurationError
from brix_core.options import GuardOptions
from brix_core.retrieval.gate import OnLow
from brix_core.retrieval.results import ScoreKind
from brix_llamaindex.copies import SharedCopies
from brix_llamaindex.engines import GuardedQueryRuns
from brix_llamaindex.guarding import guard
from brix_llamaindex.guards import Guards
from brix_llamaindex.regulated_queries import RegulatedQueries, divided
from brix_llamaindex.retrieval import RegulatedPostprocessor


class GuardedQueryEngine(SharedCopies, BaseQueryEngine):
    """A query engine that answers from what is relevant, and else refuses before its LLM is asked.

    Args:
        source: An index, or a query engine with a retriever (`RetrieverQueryEngine`), not guarded yet. It is left as
            it is.
        llm: Who answers from an index; `Settings.llm` when left out.
        min_score: Relevance a node must have, in [0, 1]. None lets all past.
        score: What the scores of the nodes are; needed with `min_score` and ``regulated_spec``. See
            `IndexRetrievalProvider`.
        on_low: When no node is relevant enough, ``"refuse"`` raises `brix_core.BrixRetrievalError`; ``"drop"`` answers
            "Empty Response". The LLM is asked in neither case.
        source_key: Where the metadata name a node's source.
        engine_options: For ``index.as_query_engine``, such as ``similarity_top_k``, ``streaming``, ``response_mode``.
        **options: See `guard`. ``response_schema`` checks the answers, too. ``regulated_spec`` looks at the query as
            what the user says and at the nodes as what was retrieved (rules with ``applies_to: [retrieved]``); their
            score counts in the risk. A query that a circuit breaker stops is answered from its nodes and nothing else,
            or refused, before any LLM is asked; nor is one to find the nodes for what a pattern stops. The decision,
            what all calls cost and their ids are in ``response.metadata["brix"]``, costs and ids but for those of an
            answer that is still streamed. With ``enable_output_guard`` answers
            are looked at, streamed ones too.

    Raises:
        BrixConfigurationError: An argument cannot be used as given.

    Example:
        >>> from llama_index.core import Document, MockEmbedding, VectorStoreIndex
        >>> from llama_index.core.llms import MockLLM
        >>> documents = [Document(text="Closed on Sundays.", metadata={"file_name": "handbook.md"})]
        >>> index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(8))
        >>> engine = GuardedQueryEngine(index, llm=MockLLM(), score="similarity", min_score=0.5, max_retries=2)
        >>> response = engine.query("When are you open?")
        >>> [node.metadata["file_name"] for node in response.source_nodes]
        ['handbook.md']
        >>> [trace.get("guard", "llm") for trace in engine.get_traces()]
        ['llm', 'retrieval']
    """

    _brix_unpickled = "Make it where it is needed, of an index or a query engine"

    def __init__(
        self,
        source: BaseIndex[Any] | BaseQueryEngine,
        *,
        llm: LLM | None = None,
        min_score: float | None = None,
        score: ScoreKind | None = None,
        on_low: OnLow = "refuse",
        source_key: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
        **options: Unpack[GuardOptions],
    ) -> None:
        inner, around = divided(options)
        self._engine: GuardedQueryRuns = guard(_engine_of(source, llm, engine_options), **inner)
        super().__init__(callback_manager=self._engine.callback_manager)
        self._relevance: RegulatedPostprocessor | None = None
        self._regulated: RegulatedQueries | None = None
        if not around and min_score is None:
            if score is not None or source_key is not None or on_low != "refuse":
                raise BrixConfigurationError("score, source_key and on_low have no effect without min_score; give it")
            return
        needs = "regulated_spec" if around else "min_score"
        if score is None:
            raise BrixConfigurationError(
                f"{needs} needs score='similarity', 'distance' or a function: what the scores of the nodes are"
            )
        if not isinstance(self._engine, RetrieverQueryEngine):
            raise BrixConfigurationError(
                f"{needs} needs a query engine with a retriever of its own (RetrieverQueryEngine), got "
                f"{type(source).__name__}; put a RegulatedPostprocessor into the engines inside, or guard the LLM"
            )
        if around:
            self._regulated = RegulatedQueries(self._engine, around, score, source_key)
        if min_score is None:
            if on_low != "refuse":
                raise BrixConfigurationError("on_low has no effect without min_score; give it")
            return
        self._relevance = RegulatedPostprocessor(
            score=score,
            min_score=min_score,
            on_low=on_low,
            source_key=source_key,
            trace_buffer_size=options.get("trace_buffer_size", 1_000),
            session_id=self.brix.pipeline.sessions.default_id,
            clock=options.get("clock"),
        )
        # Before the engine's own: they may change scores, and ask an LLM.
        self._engine._node_postprocessors = [self._relevance, *self._engine._node_postprocessors]

    @property
    def brix(self) -> Guards:
        """The guards of its LLMs."""
        return self._engine.brix

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of retrievals (``guard`` is ``"retrieval"``), LLM calls and regulated queries, newest first.

        Args:
            session_id: Only those of this session.
        """
        retrievals = [] if self._relevance is None else self._relevance.get_traces(session_id)
        queries = [] if self._regulated is None else self._regulated.get_traces(session_id)
        entries = [*self._engine.get_traces(session_id), *retrievals, *queries]
        return sorted(entries, key=lambda entry: entry["timestamp"], reverse=True)

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Nodes to answer from.

        Raises:
            BrixRetrievalError: None is relevant enough.
        """
        return (self._regulated or self._engine).retrieve(query_bundle)

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer from nodes."""
        if self._regulated is not None:
            return self._regulated.query(query_bundle, nodes, additional_source_nodes)
        return self._engine.synthesize(query_bundle, nodes, additional_source_nodes)

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer from nodes, on the event loop."""
        if self._regulated is not None:
            return await self._regulated.aquery(query_bundle, nodes, additional_source_nodes)
        return await self._engine.asynthesize(query_bundle, nodes, additional_source_nodes)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return (self._regulated or self._engine).query(query_bundle)

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return await (self._regulated or self._engine).aquery(query_bundle)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"engine": self._engine}


def _engine_of(source: Any, llm: LLM | None, engine_options: Mapping[str, Any] | None) -> BaseQueryEngine:
    if isinstance(source, BaseIndex):
        return source.as_query_engine(llm=llm, **(engine_options or {}))
    if not isinstance(source, BaseQueryEngine):
        raise BrixConfigurationError(f"source must be a LlamaIndex index or query engine, got {source!r:.200}")
    if llm is not None or engine_options:
        raise BrixConfigurationError("llm and engine_options are for an index; a query engine has its own")
    return source


__all__ = ["GuardedQueryEngine"]
