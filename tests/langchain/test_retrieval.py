"""Retrieval over real indexes: scores and sources kept, and nothing asked of a model when nothing fits."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import faiss
import pytest
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests

import brix_core
from brix_core import BrixConfigurationError, BrixRetrievalError
from brix_core.demo import DemoServer, Reply
from brix_core.retrieval.calls import aretrieve, retrieve
from brix_langchain import GuardedRetriever, LangChainRetrievalProvider, guard
from tests.langchain.conftest import Make
from tests.support.words import DIMENSIONS, FITTING, FOREIGN, MUSEUM
from tests.support.words_langchain import WordEmbeddings

DOCUMENTS = [Document(text, metadata={"source": source}) for source, text in MUSEUM.items()]


def in_memory() -> VectorStore:
    store = InMemoryVectorStore(WordEmbeddings())
    store.add_documents(DOCUMENTS)
    return store


def faiss_store(index: Any, strategy: DistanceStrategy) -> VectorStore:
    store = FAISS(WordEmbeddings(), index, InMemoryDocstore(), {}, distance_strategy=strategy)
    store.add_documents(DOCUMENTS)
    return store


def faiss_l2() -> VectorStore:
    return faiss_store(faiss.IndexFlatL2(DIMENSIONS), DistanceStrategy.EUCLIDEAN_DISTANCE)


def faiss_ip() -> VectorStore:
    return faiss_store(faiss.IndexFlatIP(DIMENSIONS), DistanceStrategy.MAX_INNER_PRODUCT)


STORES: dict[str, tuple[Callable[[], VectorStore], Any, float]] = {
    "in memory": (in_memory, "similarity", 0.0),
    "faiss, L2": (faiss_l2, "distance", 1 / 3),
    "faiss, inner product": (faiss_ip, "similarity", 0.0),
    "faiss, by a function": (faiss_l2, lambda squared: max(0.0, 1 - squared / 2), 0.0),
}
"""Stores, what their scores are, and the relevance of a text that shares nothing with the query."""

every_store = pytest.mark.parametrize("kind", STORES)


def retriever(kind: str = "in memory", **options: Any) -> GuardedRetriever:
    make, score, _ = STORES[kind]
    return GuardedRetriever(make(), **{"score": score, "min_score": 0.6, **options})


class Noting(BaseRetriever):
    """A retriever that notes scores in the metadata, as rerankers do."""

    scores: list[Any]
    key: str = "score"

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [Document(f"text {score}", metadata={self.key: score}, id=f"id-{score}") for score in self.scores]


# --- the provider --------------------------------------------------------------------------------------


@every_store
async def test_a_store_is_a_provider_with_scores_and_sources(kind: str) -> None:
    make, score, worst = STORES[kind]
    provider = LangChainRetrievalProvider(make(), score=score)
    for found in (await aretrieve(provider, FITTING), retrieve(provider, FITTING), await provider.retrieve(FITTING)):
        assert found.score == found.scores[0] == pytest.approx(1.0, abs=1e-4)
        assert found.scores[-1] < 0.6
        assert found.content.startswith(MUSEUM["hours.md"])
        assert found.sources[0] == "hours.md"
        assert set(found.sources) == set(MUSEUM)
        assert list(found.scores) == sorted(found.scores, reverse=True)
    assert provider.retrieve_sync(FOREIGN).score == pytest.approx(worst, abs=1e-6)


@pytest.mark.parametrize(("kind", "wrong"), [("in memory", "distance"), ("faiss, inner product", "distance")])
def test_scores_read_the_wrong_way_round_are_noticed(kind: str, wrong: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="pass score='similarity'"):
        LangChainRetrievalProvider(STORES[kind][0](), score=wrong).retrieve_sync(FITTING)


def test_distances_read_as_similarities_are_noticed() -> None:
    provider = LangChainRetrievalProvider(faiss_l2(), score="similarity")
    with pytest.raises(BrixConfigurationError, match="pass score='distance'"):
        provider.retrieve_sync(FITTING)
    with pytest.raises(BrixConfigurationError, match="no similarity lies beyond"):
        provider.retrieve_sync(FOREIGN)


async def test_the_number_of_documents_can_be_chosen() -> None:
    store = in_memory()
    provider = LangChainRetrievalProvider(store, score="similarity", k=2)
    assert len(provider.retrieve_sync(FITTING).documents) == 2
    assert len((await provider.retrieve(FITTING, max_results=1)).documents) == 1
    provider = LangChainRetrievalProvider(store, score="similarity", search_kwargs={"k": 1})
    assert len(provider.retrieve_sync(FITTING).documents) == 1
    noting = LangChainRetrievalProvider(Noting(scores=[0.9, 0.8, 0.7]), score="similarity")
    assert len(noting.retrieve_sync("query").documents) == 3
    assert (await noting.retrieve("query", max_results=2)).scores == (0.9, 0.8)


def test_a_search_can_be_narrowed() -> None:
    only_rules = {"filter": lambda document: document.metadata["source"] == "rules.md"}
    provider = LangChainRetrievalProvider(in_memory(), score="similarity", search_kwargs=only_rules)
    assert provider.retrieve_sync(FITTING).sources == ("rules.md",)
    assert len(retriever(min_score=0.0).invoke(FITTING, **only_rules)) == 1


async def test_a_retriever_gives_the_scores_it_noted() -> None:
    provider = LangChainRetrievalProvider(Noting(scores=[0.9, 0.2]), score="similarity")
    found = await provider.retrieve("query")
    assert (found.scores, found.sources) == ((0.9, 0.2), ("id-0.9", "id-0.2"))
    reranked = LangChainRetrievalProvider(
        Noting(scores=[0.2, 0.9], key="relevance_score"), score="similarity", score_key="relevance_score"
    )
    assert reranked.retrieve_sync("query").scores == (0.2, 0.9)
    counted = LangChainRetrievalProvider(
        Noting(scores=[7]), score=lambda points: points / 10, score_key=lambda document: document.metadata["score"]
    )
    assert counted.retrieve_sync("query").score == 0.7


async def test_any_chain_that_gives_documents_is_a_retriever() -> None:
    chain = RunnableLambda(str.upper) | Noting(scores=[0.9])
    assert (await LangChainRetrievalProvider(chain, score="similarity").retrieve("query")).score == 0.9


async def test_a_retriever_without_scores_is_told_how_to_have_them() -> None:
    provider = LangChainRetrievalProvider(in_memory().as_retriever(), score="similarity")
    with pytest.raises(BrixConfigurationError, match="pass the vector store itself") as caught:
        provider.retrieve_sync(FITTING)
    assert "hours.md" in str(caught.value)
    with pytest.raises(BrixConfigurationError, match="score_key"):
        await provider.retrieve(FITTING)


async def test_a_store_without_scores_is_told_what_else_to_pass() -> None:
    class Bare(InMemoryVectorStore):
        def similarity_search_with_score(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        asimilarity_search_with_score = VectorStore.asimilarity_search_with_score

    provider = LangChainRetrievalProvider(Bare(WordEmbeddings()), score="similarity")
    with pytest.raises(BrixConfigurationError, match="Bare has no similarity_search_with_score"):
        provider.retrieve_sync("query")
    with pytest.raises(BrixConfigurationError, match="Bare has no similarity_search_with_score"):
        await provider.retrieve("query")


@pytest.mark.parametrize("score", [math.nan, "high", True])
def test_a_score_that_is_none_names_its_document(score: Any) -> None:
    provider = LangChainRetrievalProvider(Noting(scores=[0.9, score]), score="similarity")
    with pytest.raises(BrixConfigurationError, match=f"the score of id-{score} is {score!r}"):
        provider.retrieve_sync("query")


def test_what_is_no_index_is_refused() -> None:
    for index in (None, "index", WordEmbeddings(), DOCUMENTS):
        with pytest.raises(BrixConfigurationError, match="vector store or retriever"):
            LangChainRetrievalProvider(index, score="similarity")  # type: ignore[arg-type]
    with pytest.raises(BrixConfigurationError, match="k must be an int >= 1"):
        LangChainRetrievalProvider(in_memory(), score="similarity", k=0)
    model = LangChainRetrievalProvider(FakeListChatModel(responses=["no document"]), score="similarity")  # type: ignore[arg-type]
    with pytest.raises(BrixConfigurationError, match="must give a list of documents"):
        model.retrieve_sync("query")


# --- the retriever -------------------------------------------------------------------------------------


@every_store
async def test_only_relevant_documents_pass_and_have_their_score(kind: str) -> None:
    guarded = retriever(kind)
    for found in (guarded.invoke(FITTING), await guarded.ainvoke(FITTING)):
        (document,) = found
        assert document.page_content == MUSEUM["hours.md"]
        assert document.metadata == {"source": "hours.md", "brix_score": pytest.approx(1.0, abs=1e-4)}
    with pytest.raises(BrixRetrievalError):
        guarded.invoke(FOREIGN)
    with pytest.raises(BrixRetrievalError):
        await guarded.ainvoke(FOREIGN)


async def test_it_can_give_an_empty_list_instead() -> None:
    guarded = retriever(on_low="drop")
    assert guarded.invoke(FOREIGN) == await guarded.ainvoke(FOREIGN) == []


@every_store
def test_the_documents_of_the_store_stay_as_they_are(kind: str) -> None:
    make, score, _ = STORES[kind]
    store = make()
    before = [document.model_copy(deep=True) for document in store.similarity_search(FITTING)]
    GuardedRetriever(store, score=score, min_score=0.0).invoke(FITTING)
    assert store.similarity_search(FITTING) == before
    assert all("brix_score" not in document.metadata for document in DOCUMENTS)


async def test_every_retrieval_is_in_the_trace_with_what_was_left_out() -> None:
    guarded = retriever()
    guarded.invoke(FITTING)
    with pytest.raises(BrixRetrievalError):
        await guarded.ainvoke(FOREIGN)
    refused, answered = guarded.get_traces()
    assert [(found["source"], found["kept"]) for found in answered["documents"]] == [
        ("hours.md", True),
        ("prices.md", False),
        ("rules.md", False),
    ]
    assert (answered["outcome"], refused["outcome"], refused["error"]) == ("ok", "refused", "BrixRetrievalError")


def test_a_failing_index_is_in_the_trace() -> None:
    def fail(document: Document) -> float:
        raise ConnectionError("the index is down")

    guarded = GuardedRetriever(Noting(scores=[1]), score="similarity", min_score=0.5, score_key=fail)
    with pytest.raises(ConnectionError):
        guarded.invoke("query")
    assert guarded.get_traces()[0]["outcome"] == "failed"


async def test_a_cancelled_retrieval_is_in_the_trace() -> None:
    started = asyncio.Event()

    async def wait(query: str) -> list[Document]:
        started.set()
        await asyncio.Event().wait()
        return []

    guarded = GuardedRetriever(RunnableLambda(wait), score="similarity", min_score=0.5)
    task = asyncio.create_task(guarded.ainvoke("query"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [entry["outcome"] for entry in guarded.get_traces()] == ["cancelled"]


async def test_it_is_a_retriever_in_every_way_to_call_one() -> None:
    guarded = retriever(k=3)
    expected = guarded.invoke(FITTING)
    assert guarded.batch([FITTING, FITTING]) == [expected, expected]
    assert await guarded.abatch([FITTING, FITTING]) == [expected, expected]
    assert list(guarded.stream(FITTING)) == [expected]
    assert [found async for found in guarded.astream(FITTING)] == [expected]
    assert len(guarded.get_traces()) == 7
    assert "GuardedRetriever" in guarded.get_graph().draw_mermaid()
    named = retriever(name="museum", tags=["a"], metadata={"b": 1})
    assert (named.get_name(), named.tags, named.metadata) == ("museum", ["a"], {"b": 1})


def test_callbacks_see_one_run_and_those_inside() -> None:
    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.events: list[Any] = []

        def on_retriever_start(self, serialized: Any, query: str, *, parent_run_id: Any = None, **kwargs: Any) -> None:
            self.events.append((kwargs["name"], parent_run_id is not None))

        def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
            self.events.append([document.metadata.get("brix_score") for document in documents])

        def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
            self.events.append(type(error))

    seen = Seen()
    guarded = GuardedRetriever(Noting(scores=[0.9, 0.1]), score="similarity", min_score=0.5)
    guarded.invoke("query", {"callbacks": [seen]})
    assert seen.events == [("GuardedRetriever", False), ("Noting", True), [None, None], [0.9]]
    seen.events.clear()
    with pytest.raises(BrixRetrievalError):
        retriever().invoke(FOREIGN, {"callbacks": [seen]})
    assert seen.events == [("GuardedRetriever", False), BrixRetrievalError]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_score": 2}, "min_score"),
        ({"on_low": "warn"}, "on_low"),
        ({"k": 0}, "k must be"),
        ({"score": "cosine"}, "score must be"),
        ({"trace_buffer_size": 0}, "trace_buffer_size"),
    ],
)
def test_options_are_checked(options: Any, message: str) -> None:
    with pytest.raises(BrixConfigurationError, match=message):
        retriever(**options)


def test_a_misspelt_option_is_no_option() -> None:
    with pytest.raises(TypeError, match="min_scor"):
        retriever(min_scor=0.9)
    with pytest.raises(ValueError, match="frozen"):
        retriever().min_score = 0.1


# --- in a chain, over the server -----------------------------------------------------------------------


def texts(documents: list[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


def rag(guarded: GuardedRetriever, model: Any) -> Any:
    prompt = ChatPromptTemplate.from_template("Answer from:\n{context}\n\nQuestion: {question}")
    return {"context": guarded | texts, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()


async def ask(chain: Any, way: str, question: str, config: Any = None) -> str:
    if way == "invoke":
        return str(chain.invoke(question, config))
    if way == "ainvoke":
        return str(await chain.ainvoke(question, config))
    if way == "batch":
        return str(chain.batch([question], config)[0])
    if way == "stream":
        return "".join(chain.stream(question, config))
    return "".join([chunk async for chunk in chain.astream(question, config)])


every_way = pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "stream", "astream"])


@every_way
@every_store
async def test_nothing_is_asked_when_nothing_fits_and_answered_with_sources_when_something_does(
    kind: str, way: str, chat: Make, server: DemoServer
) -> None:
    server.default = Reply("On Mondays.")
    guarded = retriever(kind)
    chain = rag(guarded, guard(chat()))
    with pytest.raises(BrixRetrievalError, match="min_score"):
        await ask(chain, way, FOREIGN)
    assert server.wait_until_idle()
    assert server.stats.requests == 0

    assert await ask(chain, way, FITTING) == "On Mondays."
    assert server.wait_until_idle()
    (request,) = server.requests
    prompt = request.body["messages"][0]["content"]
    assert MUSEUM["hours.md"] in prompt
    assert MUSEUM["rules.md"] not in prompt
    kept = [found["source"] for found in guarded.get_traces()[0]["documents"] if found["kept"]]
    assert kept == ["hours.md"]


@every_way
@pytest.mark.parametrize("how", ["session_id", "thread_id", "with", "default"])
async def test_retrievals_and_model_calls_of_a_session_are_traced_in_it(
    how: str, way: str, chat: Make, server: DemoServer
) -> None:
    guarded = retriever(session_id="mine")
    model = guard(chat(), session_id="mine")
    config = {"configurable": {how: "user-42"}} if how.endswith("_id") else None
    chain = rag(guarded, model)
    if how == "with":
        with brix_core.session("user-42"):
            await ask(chain, way, FITTING)
    else:
        await ask(chain, way, FITTING, config)
    name = "mine" if how == "default" else "user-42"
    assert len(guarded.get_traces(name)) == len(guarded.get_traces()) == 1
    assert len(model.get_traces(name)) == len(model.get_traces()) == 1


async def test_the_session_of_a_retriever_called_alone_is_the_configured_one() -> None:
    guarded = retriever()
    config: Any = {"configurable": {"session_id": "user-42"}}
    guarded.invoke(FITTING, config)
    await guarded.ainvoke(FITTING, config)
    assert len(guarded.get_traces("user-42")) == 2


async def test_many_users_at_once_each_have_their_own_trace() -> None:
    guarded = retriever(on_low="drop")
    users = [f"user-{number}" for number in range(40)]
    questions = [FITTING if number % 2 else FOREIGN for number in range(40)]
    configs: Any = [{"configurable": {"session_id": user}} for user in users]
    for found in (guarded.batch(questions, configs), await guarded.abatch(questions, configs)):
        assert [len(documents) for documents in found] == [number % 2 for number in range(40)]
    for number, user in enumerate(users):
        assert {entry["documents"][0]["kept"] for entry in guarded.get_traces(user)} == {bool(number % 2)}
        assert len(guarded.get_traces(user)) == 2


def test_importing_the_surface_loads_no_index() -> None:
    code = (
        "import sys, brix_langchain; print([name for name in ('faiss', 'langchain_community') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


# --- LangChain's standard tests: what a bare retriever passes, and a guarded one ------------------------


class StandardRetriever(RetrieversIntegrationTests):
    @property
    def retriever_query_example(self) -> str:
        return FITTING


class TestBareRetriever(StandardRetriever):
    @property
    def retriever_constructor(self) -> Any:
        return lambda k=4: in_memory().as_retriever(search_kwargs={"k": k})


class TestGuardedRetriever(StandardRetriever):
    @property
    def retriever_constructor(self) -> type[GuardedRetriever]:
        return GuardedRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": in_memory(), "score": "similarity", "min_score": 0.0}


class TestBareFaissRetriever(StandardRetriever):
    @property
    def retriever_constructor(self) -> Any:
        return lambda k=4: faiss_l2().as_retriever(search_kwargs={"k": k})


class TestGuardedFaissRetriever(TestGuardedRetriever):
    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": faiss_l2(), "score": "distance", "min_score": 0.0}
