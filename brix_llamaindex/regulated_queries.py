"""Queries of an engine under a spec: what the user asks and what was retrieved for it are told apart.

An LLM's own guards see one prompt, in which documents and question stand side by side. Here the spec looks at the query
as the user's words and at the nodes as what was retrieved, and their score is that of the risk formula. Where a circuit
breaker is met, the same nodes are the only ground of an answer: nothing is retrieved twice.

What a query sends to LLMs is metered, paced and retried by their own guards. So is the output guard there, where it
holds back streams.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.schema import NodeWithScore, QueryBundle

from brix_core.call import CallRequest, CallResponse
from brix_core.errors import BrixConfigurationError, BrixError, BrixRegulatedError
from brix_core.options import GuardOptions, parse
from brix_core.pipeline import Pipeline
from brix_core.response_metadata import BRIX, cost_of, metadata_of
from brix_core.retrieval.results import Relevance, ScoreKind
from brix_llamaindex.asking import no_calls, noted_calls
from brix_llamaindex.limits import within
from brix_llamaindex.messages import CODEC
from brix_llamaindex.queried_nodes import OwnNodes, Query, ScoreKeeper, current_query, text_of
from brix_llamaindex.signals import with_signals

if TYPE_CHECKING:
    from brix_core.regulated.format.spec import SpecModel

_OF_QUERIES: Final = ("regulated_spec", "regulated_embedder", "regulated_signals")
_SHARED: Final = (
    "clock",
    "log_fsync",
    "log_key",
    "log_max_bytes",
    "log_path",
    "redact",
    "session_id",
    "strict_mode",
    "telemetry",
    "trace_buffer_size",
)
_RUN: Final = "query"
"""Where the parameters of a request hold the `Query`."""


def divided(options: GuardOptions) -> tuple[GuardOptions, dict[str, Any]]:
    """Options of the LLMs inside, and those of the query around; the latter are empty where there is no spec.

    Raises:
        BrixConfigurationError: There is a retrieval provider beside the engine's own retriever, or a bad spec.
    """
    given: dict[str, Any] = {name: value for name, value in with_signals(options).items() if value is not None}
    if "regulated_spec" not in given:
        return options, {}
    if "retrieval_provider" in given:
        raise BrixConfigurationError(
            "retrieval_provider has no place in a GuardedQueryEngine, whose own nodes are what an answer rests on; "
            "leave it out, or use guard(llm, regulated_spec=..., retrieval_provider=...)"
        )
    around: dict[str, Any] = {name: given[name] for name in (*_OF_QUERIES, *_SHARED) if name in given}
    inner: dict[str, Any] = {name: value for name, value in given.items() if name not in _OF_QUERIES}
    if inner.pop("enable_output_guard", False):
        inner |= {"regulated_spec": _outputs_of(given["regulated_spec"]), "enable_output_guard": True}
        if "regulated_embedder" in given:
            inner["regulated_embedder"] = given["regulated_embedder"]
    return cast(GuardOptions, inner), around


class RegulatedQueries:
    """Asks a query engine under a spec.

    Args:
        engine: A guarded `RetrieverQueryEngine`.
        options: Of the query; see `divided`.
        score: What the scores of its nodes are.
        source_key: Where the metadata name a node's source.
    """

    def __init__(self, engine: Any, options: Mapping[str, Any], score: ScoreKind, source_key: str | None) -> None:
        from brix_core.regulated.rules.compiled import CompiledSpec  # pydantic and a text automaton: for who needs them

        self._engine = engine
        self._relevance = Relevance(score)
        self._source_key = source_key
        self._compiled = CompiledSpec.of(options["regulated_spec"])
        default = engine.brix.pipeline.sessions.default_id
        given = {**options, "session_id": default, "retrieval_provider": OwnNodes()}
        self._pipeline = Pipeline(parse(given))
        engine._node_postprocessors = [ScoreKeeper(), *engine._node_postprocessors]
        self._endpoint: Any = _QueryEndpoint(engine)  # of an endpoint, only what whole answers need

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of queries, newest first."""
        return self._pipeline.traces.get_traces(session_id)

    def query(
        self,
        bundle: QueryBundle,
        nodes: list[NodeWithScore] | None = None,
        beside: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer a query.

        Args:
            bundle: The query.
            nodes: What to answer from; retrieved when left out.
            beside: Further nodes that the response names as its sources.

        Raises:
            BrixRegulatedError: A rule of the spec stops it.
        """
        with self._engine._brix_run(), noted_calls() as calls:
            query = self._opened(bundle, nodes, beside)
            token = current_query.set(query)
            try:
                if query.stopped is None:
                    query.retrieve()
                request = self._request(query)
                response = self._pipeline.call(request).raw
            finally:
                current_query.reset(token)
        return self._told(response, request, calls)

    async def aquery(
        self,
        bundle: QueryBundle,
        nodes: list[NodeWithScore] | None = None,
        beside: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """As `query`, on the event loop."""
        with self._engine._brix_run() as limit, noted_calls() as calls:
            async with within(limit):
                query = self._opened(bundle, nodes, beside)
                token = current_query.set(query)
                try:
                    if query.stopped is None:
                        await query.aretrieve()
                    request = self._request(query)
                    response = (await self._pipeline.acall(request)).raw
                finally:
                    current_query.reset(token)
        return self._told(response, request, calls, on_loop=True)

    def _opened(
        self, bundle: QueryBundle, nodes: list[NodeWithScore] | None, beside: Sequence[NodeWithScore] | None
    ) -> Query:
        query = Query(self._engine, bundle, self._relevance, self._source_key, beside)
        query.stopped = self._stopped(bundle)
        if nodes is not None:
            query.give(nodes)
        return query

    def retrieve(self, bundle: QueryBundle) -> list[NodeWithScore]:
        """Nodes for a query; for one that a pattern stops, no LLM is asked on the way."""
        with no_calls(self._stopped(bundle)):
            nodes: list[NodeWithScore] = self._engine.retrieve(bundle)
        return nodes

    def _stopped(self, bundle: QueryBundle) -> Callable[[], BrixError] | None:
        """What is raised when an LLM would be asked to find nodes for a query that a pattern stops.

        It is found out before anything is retrieved, since retrievers and postprocessors may ask LLMs.
        """
        from brix_core.regulated.rules.hits import Inputs

        text, spec = bundle.query_str, self._compiled.spec
        hits = self._compiled.pattern_hits(spec.circuit_breakers, Inputs(text, user_texts=(text,)))
        name = next((hit.name for hit in hits if hit.counts), None)
        if name is None:
            return None
        return lambda: BrixRegulatedError(
            f"rule {name!r} of the spec {spec.label} stops the query, so no LLM is asked to find nodes for it; use a "
            "retriever and postprocessors that ask none",
            rule=name,
            spec=spec.label,
        )

    def _request(self, query: Query) -> CallRequest:
        from brix_core.regulated.judging.case import RETRIEVAL_SCORE

        request = self._pipeline.request(self._endpoint, query.messages(), {_RUN: query})
        if query.documents:
            request.call.metadata[RETRIEVAL_SCORE] = max(document.score for document in query.documents)
        return request

    def _told(
        self, response: Any, request: CallRequest, calls: Sequence[Any], *, on_loop: bool = False
    ) -> RESPONSE_TYPE:
        """The response, streamed where the engine streams, telling of the query."""
        if isinstance(response, Response) and _streams(self._engine):
            nodes, text = response.source_nodes, response.response or ""
            response = (
                AsyncStreamingResponse(response_gen=_apiece(text), source_nodes=nodes, metadata=response.metadata)
                if on_loop
                else StreamingResponse(response_gen=_piece(text), source_nodes=nodes, metadata=response.metadata)
            )
        costs = [cost for call in calls if (cost := cost_of(call)) is not None]
        told = {**metadata_of(request.call), "cost_usd": sum(costs) if costs else None}
        told["calls"] = [call.run_id for call in calls]
        response.metadata = {**(response.metadata or {}), BRIX: told}
        return cast(RESPONSE_TYPE, response)


class _QueryEndpoint:
    """The engine as it answers from nodes: by its synthesizer, or its LLM with documents as the only ground."""

    provider = None
    codec = CODEC
    streams = False

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._llm = engine.brix.endpoint
        self.identity = f"{type(engine).__name__} on {self._llm.identity}"

    def model(self, params: Mapping[str, Any]) -> str:
        return cast(str, self._llm.model({}))

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        return None

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        return None

    def choices(self, params: Mapping[str, Any]) -> int:
        return 1

    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        return ()

    def structured(self, schema: Any, params: Mapping[str, Any]) -> bool:
        return False

    def call(self, request: CallRequest) -> CallResponse:
        query, ground, bundle = _asked(request)
        if ground:
            return self._grounded(self._synthesizer._llm.chat(_prompt(request)), query, ground)
        response = self._engine.synthesize(bundle, query.nodes or [], query.beside)
        if _is_read_first(request) and isinstance(response, StreamingResponse):
            response = response.get_response()
        return self._response(response)

    async def acall(self, request: CallRequest) -> CallResponse:
        query, ground, bundle = _asked(request)
        if ground:
            return self._grounded(await self._synthesizer._llm.achat(_prompt(request)), query, ground)
        response = await self._engine.asynthesize(bundle, query.nodes or [], query.beside)
        if _is_read_first(request) and isinstance(response, AsyncStreamingResponse):
            response = await response.get_response()
        return self._response(response)

    @property
    def _synthesizer(self) -> Any:
        return self._engine._response_synthesizer

    def _grounded(self, answer: Any, query: Query, ground: str) -> CallResponse:
        """The answer, with those nodes that it was given."""
        nodes = [node for node in query.nodes or () if text_of(node) in ground]
        metadata = {node.node.node_id: node.node.metadata for node in nodes}
        return self._response(Response(answer.message.content or "", source_nodes=nodes, metadata=metadata))

    def _response(self, response: Any) -> CallResponse:
        streamed = isinstance(response, StreamingResponse | AsyncStreamingResponse)
        return CallResponse(text="" if streamed else str(response), model=self.model({}), raw=response)


def _asked(request: CallRequest) -> tuple[Query, str, QueryBundle]:
    """The query, the ground that the guard gave it, and what the synthesizer is asked."""
    query: Query = request.params[_RUN]
    turns = request.conversation.turns()
    ground = "\n\n".join(turn.text for turn in turns if turn.role == "system")
    said = [turn.text for turn in turns if turn.role == "user"]
    bundle = query.bundle if len(said) == 1 else QueryBundle(query_str="\n\n".join(said))
    return query, ground, bundle


def _prompt(request: CallRequest) -> list[ChatMessage]:
    return [message for message in request.conversation.messages if message.role != MessageRole.TOOL]


def _is_read_first(request: CallRequest) -> bool:
    """Whether the answer is one of several, which are compared."""
    return request.call.whole is not None


def _streams(engine: Any) -> bool:
    return bool(getattr(engine._response_synthesizer, "_streaming", False))


def _piece(text: str) -> Generator[str, None, None]:
    yield text


async def _apiece(text: str) -> AsyncGenerator[str, None]:
    yield text


def _outputs_of(given: Any) -> SpecModel:
    """The spec's rules about answers alone. Phrases of the user do not lower them: a prompt holds documents, too."""
    from brix_core.regulated.format.loading import as_spec

    spec = as_spec(given)
    outputs = tuple(
        rule.model_copy(update={"exclude_context": ()}) if rule.exclude_from == "query" else rule
        for rule in spec.output_signals
    )
    return spec.model_copy(update={"circuit_breakers": (), "risk_signals": (), "output_signals": outputs})


__all__ = ["RegulatedQueries", "divided"]
