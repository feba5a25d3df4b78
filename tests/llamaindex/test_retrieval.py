"""Retrieval over real indexes: scores and sources kept, and nothing asked of an LLM when nothing fits."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import faiss
import pytest
from llama_index.core import Document, StorageContext, SummaryIndex, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.memory import Memory
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.vector_stores.faiss import FaissVectorStore  # type: ignore[import-untyped]

import brix_core
from brix_core import BrixConfigurationError, BrixRetrievalError
from brix_core.demo import DemoServer, Reply
from brix_core.retrieval.calls import aretrieve, retrieve
from brix_llamaindex import IndexRetrievalProvider, RegulatedPostprocessor, guard
from tests.llamaindex.conftest import Make
from tests.support.words import DIMENSIONS, FITTING, FOREIGN, MUSEUM
from tests.support.words_llamaindex import WordEmbedding


def documents() -> list[Document]:
    return [
        Document(
            text=text, metadata={"file_name": source}, excluded_embed_metadata_keys=["file_name"], id_=f"id-{source}"
        )
        for source, text in MUSEUM.items()
    ]


def simple() -> VectorStoreIndex:
    return VectorStoreIndex.from_documents(documents(), embed_model=WordEmbedding())


def faiss_index(flat: Any) -> VectorStoreIndex:
    storage = StorageContext.from_defaults(vector_store=FaissVectorStore(faiss_index=flat))
    return VectorStoreIndex.from_documents(documents(), storage_context=storage, embed_model=WordEmbedding())


INDEXES: dict[str, tuple[Callable[[], VectorStoreIndex], Any, float]] = {
    "simple": (simple, "similarity", 0.0),
    "faiss, L2": (lambda: faiss_index(faiss.IndexFlatL2(DIMENSIONS)), "distance", 1 / 3),
    "faiss, inner product": (lambda: faiss_index(faiss.IndexFlatIP(DIMENSIONS)), "similarity", 0.0),
}
"""Indexes, what their scores are, and the relevance of a text that shares nothing with the query."""

every_index = pytest.mark.parametrize("kind", INDEXES)


def postprocessor(kind: str = "simple", **options: Any) -> RegulatedPostprocessor:
    return RegulatedPostprocessor(**{"score": INDEXES[kind][1], "min_score": 0.6, **options})


def node(score: Any, text: str = "text", source: str = "a.md") -> NodeWithScore:
    return NodeWithScore(node=TextNode(text=text, metadata={"source": source}, id_=f"node-{source}"), score=score)


class Fixed(BaseRetriever):
    def __init__(self, *nodes: NodeWithScore) -> None:
        super().__init__()
        self.nodes = list(nodes)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.nodes


# --- the provider --------------------------------------------------------------------------------------


@every_index
async def test_an_index_is_a_provider_with_scores_and_sources(kind: str) -> None:
    make, score, worst = INDEXES[kind]
    provider = IndexRetrievalProvider(make(), score=score, top_k=3)
    for found in (await aretrieve(provider, FITTING), retrieve(provider, FITTING), await provider.retrieve(FITTING)):
        assert found.score == found.scores[0] == pytest.approx(1.0, abs=1e-4)
        assert found.scores[-1] < 0.6
        assert found.texts[0] == MUSEUM["hours.md"]
        assert found.sources[0] == "hours.md"
        assert set(found.sources) == set(MUSEUM)
        assert list(found.scores) == sorted(found.scores, reverse=True)
    assert provider.retrieve_sync(FOREIGN).score == pytest.approx(worst, abs=1e-6)


@every_index
def test_scores_read_the_wrong_way_round_are_noticed(kind: str) -> None:
    make, score, _ = INDEXES[kind]
    wrong: Any = "distance" if score == "similarity" else "similarity"
    with pytest.raises(BrixConfigurationError, match=f"pass score='{score}'"):
        IndexRetrievalProvider(make(), score=wrong, top_k=3).retrieve_sync(FITTING)


async def test_the_number_of_nodes_can_be_chosen() -> None:
    index = simple()
    assert len(IndexRetrievalProvider(index, score="similarity").retrieve_sync(FITTING).documents) == 2  # LlamaIndex's
    provider = IndexRetrievalProvider(index, score="similarity", top_k=3)
    assert len(provider.retrieve_sync(FITTING).documents) == 3
    assert len((await provider.retrieve(FITTING, max_results=1)).documents) == 1
    wrapped = IndexRetrievalProvider(index.as_retriever(similarity_top_k=3), score="similarity")
    assert len((await wrapped.retrieve(FITTING)).documents) == 3
    assert wrapped.retrieve_sync(FITTING, max_results=1).sources == ("hours.md",)


def test_any_retriever_is_a_provider() -> None:
    found = IndexRetrievalProvider(Fixed(node(7)), score=lambda points: points / 10).retrieve_sync("query")
    assert (found.score, found.sources, found.content) == (0.7, ("a.md",), "text")


def test_a_source_is_named_by_the_metadata_or_else_by_the_document() -> None:
    bare = VectorStoreIndex.from_documents([Document(text="text", id_="doc-1")], embed_model=WordEmbedding())
    assert IndexRetrievalProvider(bare, score="similarity").retrieve_sync("text").sources == ("doc-1",)
    one = NodeWithScore(node=TextNode(text="text", id_="node-1", metadata={"page": 3}), score=1.0)
    assert IndexRetrievalProvider(Fixed(one), score="similarity").retrieve_sync("text").sources == ("node-1",)
    paged = IndexRetrievalProvider(Fixed(one), score="similarity", source_key="page")
    assert paged.retrieve_sync("text").sources == ("3",)


@pytest.mark.parametrize("score", [None, math.nan])
async def test_a_node_without_a_score_is_named(score: Any) -> None:
    provider = IndexRetrievalProvider(Fixed(node(0.9), node(score, source="b.md")), score="similarity")
    with pytest.raises(BrixConfigurationError, match=f"the score of node node-b.md is {score}"):
        provider.retrieve_sync("query")
    with pytest.raises(BrixConfigurationError, match="node node-b"):
        await provider.retrieve("query")


def test_an_index_that_gives_no_scores_is_an_error() -> None:
    index = SummaryIndex.from_documents(documents())
    with pytest.raises(BrixConfigurationError, match="is None, and no number"):
        IndexRetrievalProvider(index, score="similarity").retrieve_sync("query")


def test_what_is_no_index_is_refused() -> None:
    for index in (None, "index", WordEmbedding()):
        with pytest.raises(BrixConfigurationError, match="LlamaIndex index or retriever"):
            IndexRetrievalProvider(index, score="similarity")  # type: ignore[arg-type]
    with pytest.raises(BrixConfigurationError, match="top_k must be an int >= 1"):
        IndexRetrievalProvider(simple(), score="similarity", top_k=0)


# --- the postprocessor ---------------------------------------------------------------------------------


async def test_only_relevant_nodes_pass_as_they_came() -> None:
    guarded = postprocessor(score="distance")
    near, far = node(0.25), node(2.0)
    assert guarded.postprocess_nodes([far, near], query_str="query") == [near]
    (kept,) = await guarded.apostprocess_nodes([far, near], query_bundle=QueryBundle("query"))
    assert kept is near
    assert (near.score, near.metadata) == (0.25, {"source": "a.md"})


async def test_when_none_passes_it_refuses_with_the_numbers() -> None:
    guarded = postprocessor()
    with pytest.raises(BrixRetrievalError) as caught:
        guarded.postprocess_nodes([node(0.25), node(0.5, source="b.md")])
    assert (caught.value.score, caught.value.threshold, caught.value.sources) == (0.5, 0.6, ("a.md", "b.md"))
    with pytest.raises(BrixRetrievalError, match="nothing was found"):
        await guarded.apostprocess_nodes([])
    assert postprocessor(on_low="drop").postprocess_nodes([node(0.25)]) == []


@pytest.mark.parametrize("on_low", ["drop", "refuse"])
@pytest.mark.parametrize("score", [None, math.nan])
async def test_nodes_without_a_score_are_an_error_and_not_dropped(score: Any, on_low: str) -> None:
    guarded = postprocessor(on_low=on_low)
    with pytest.raises(BrixConfigurationError, match=f"node node-b.md is {score}"):
        guarded.postprocess_nodes([node(0.9), node(score, source="b.md")])
    with pytest.raises(BrixConfigurationError, match=f"node node-b.md is {score}"):
        await guarded.apostprocess_nodes([node(score, source="b.md")])
    assert [entry["outcome"] for entry in guarded.get_traces()] == ["failed", "failed"]


def test_the_trace_tells_what_was_left_out() -> None:
    guarded = postprocessor()
    guarded.postprocess_nodes([node(0.9), node(0.1, source="b.md")], query_str="query")
    guarded.postprocess_nodes([node(0.9)])
    without_query, entry = guarded.get_traces()
    assert [(found["source"], found["kept"]) for found in entry["documents"]] == [("a.md", True), ("b.md", False)]
    assert entry["query_hash"] is not None
    assert without_query["query_hash"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_score": 2}, "min_score"),
        ({"on_low": "warn"}, "on_low"),
        ({"score": "cosine"}, "score must be"),
        ({"trace_buffer_size": 0}, "trace_buffer_size"),
    ],
)
def test_options_are_checked(options: Any, message: str) -> None:
    with pytest.raises(BrixConfigurationError, match=message):
        postprocessor(**options)


def test_a_misspelt_option_is_no_option() -> None:
    with pytest.raises(TypeError, match="min_scor"):
        postprocessor(min_scor=0.9)
    with pytest.raises(ValueError, match="frozen"):
        postprocessor().min_score = 0.1


def test_it_has_a_name_and_fields_to_be_read() -> None:
    assert postprocessor().to_dict() == {"min_score": 0.6, "on_low": "refuse", "class_name": "RegulatedPostprocessor"}


# --- in a query engine, over the server ----------------------------------------------------------------


async def ask(engine: Any, way: str, question: str) -> tuple[str, Any]:
    """The whole text of the answer, and the response."""
    response = await engine.aquery(question) if way.startswith("a") else engine.query(question)
    if way == "stream":
        response = response.get_response()
    elif way == "astream":
        response = await response.get_response()
    return str(response), response


every_way = pytest.mark.parametrize("way", ["query", "aquery", "stream", "astream"])


def engine(index: VectorStoreIndex, llm: Any, guarded: RegulatedPostprocessor, way: str = "query") -> Any:
    return index.as_query_engine(
        llm=llm, node_postprocessors=[guarded], similarity_top_k=3, streaming=way.endswith("stream"), use_async=False
    )


@every_way
@every_index
async def test_nothing_is_asked_when_nothing_fits_and_answered_with_sources_when_something_does(
    kind: str, way: str, openai_like: Make, server: DemoServer
) -> None:
    server.default = Reply("On Mondays.")
    guarded = postprocessor(kind)
    museum = engine(INDEXES[kind][0](), guard(openai_like()), guarded, way)
    with pytest.raises(BrixRetrievalError, match="min_score"):
        await ask(museum, way, FOREIGN)
    assert server.wait_until_idle()
    assert server.stats.requests == 0

    text, response = await ask(museum, way, FITTING)
    assert text == "On Mondays."
    assert [found.metadata["file_name"] for found in response.source_nodes] == ["hours.md"]
    assert server.wait_until_idle()
    (request,) = server.requests
    prompt = str(request.body["messages"])
    assert MUSEUM["hours.md"] in prompt
    assert MUSEUM["rules.md"] not in prompt
    assert [entry["outcome"] for entry in guarded.get_traces()] == ["ok", "refused"]


async def test_without_nodes_the_engine_answers_by_itself(openai_like: Make, server: DemoServer) -> None:
    museum = engine(simple(), guard(openai_like()), postprocessor(on_low="drop"))
    for response in (museum.query(FOREIGN), await museum.aquery(FOREIGN)):
        assert (str(response), response.source_nodes) == ("Empty Response", [])
    assert server.stats.requests == 0


async def test_a_chat_engine_is_refused_as_well(openai_like: Make, server: DemoServer) -> None:
    server.default = Reply("On Mondays.")
    llm = guard(openai_like())
    chat = ContextChatEngine.from_defaults(
        retriever=simple().as_retriever(similarity_top_k=3),
        llm=llm,
        memory=Memory.from_defaults(token_limit=10_000),
        node_postprocessors=[postprocessor()],
    )
    with pytest.raises(BrixRetrievalError):
        await chat.achat(FOREIGN)
    assert server.stats.requests == 0
    assert str(await chat.achat(FITTING)) == "On Mondays."


async def test_retrievals_and_calls_of_a_session_are_traced_in_it(openai_like: Make, server: DemoServer) -> None:
    guarded = postprocessor(session_id="mine")
    llm = guard(openai_like(), session_id="mine")
    museum = engine(simple(), llm, guarded)
    with brix_core.session("user-42"):
        museum.query(FITTING)
        await museum.aquery(FITTING)
    museum.query(FITTING)
    for name, count in (("user-42", 2), ("mine", 1)):
        assert len(guarded.get_traces(name)) == len(llm.get_traces(name)) == count


async def test_many_users_at_once_each_have_their_own_trace(openai_like: Make, server: DemoServer) -> None:
    guarded = postprocessor()
    museum = engine(simple(), guard(openai_like()), guarded)

    async def one(number: int) -> Any:
        with brix_core.session(f"user-{number}"):
            return await museum.aquery(FITTING if number % 2 else FOREIGN)

    results = await asyncio.gather(*map(one, range(20)), return_exceptions=True)
    assert [isinstance(result, BrixRetrievalError) for result in results] == [number % 2 == 0 for number in range(20)]
    for number in range(20):
        (entry,) = guarded.get_traces(f"user-{number}")
        assert entry["outcome"] == ("ok" if number % 2 else "refused")
    assert server.wait_until_idle()
    assert server.stats.requests == 10


def test_importing_the_surface_loads_no_index() -> None:
    code = "import sys, brix_llamaindex; print('faiss' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
