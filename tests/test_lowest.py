"""`make test-lowest` is about the versions that pyproject.toml declares, and those are what runs there."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.runnables import Runnable
from llama_index.core.llms import MockLLM
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

import brix_langchain
from brix_core import BrixConfigurationError
from brix_llamaindex import guard

ROOT = Path(__file__).parents[1]
FRAMEWORKS = re.compile(r"(langchain|langgraph|llama-index)")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def declared() -> dict[str, str]:
    """Lower bounds of the frameworks, of what is needed and of what may be."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"]
    optional = [line for name in ("langchain", "demo") for line in project["optional-dependencies"][name]]
    bounds = [re.match(r"([\w-]+)>=([\d.]+)", line) for line in (*needed, *optional)]
    return {found[1]: found[2] for found in bounds if found and FRAMEWORKS.match(found[1])}


def release(text: str) -> tuple[int, ...]:
    """A version without its trailing zeros, to be compared."""
    return tuple(map(int, text.removesuffix(".0").removesuffix(".0").split(".")))


INSTALLED = release(version("llama-index-core"))
LOWEST = pins("constraints-lowest.txt")


def test_the_lowest_declared_versions_are_the_ones_that_are_tested() -> None:
    bounds = declared()
    assert {"langchain-core", "langchain", "langgraph", "llama-index-core", "llama-index-workflows"} <= bounds.keys()
    assert {name: release(LOWEST[name]) for name in bounds} == {name: release(low) for name, low in bounds.items()}


def test_constraints_are_names_and_versions_only() -> None:
    assert all(
        re.fullmatch(r"[\w.-]+==[\w.]+", f"{name}=={low}") for name, low in pins("constraints-lowest.txt").items()
    )


@pytest.mark.skipif(release(LOWEST["llama-index-core"]) != INSTALLED, reason="only `make test-lowest` has them")
def test_the_lowest_versions_are_installed() -> None:
    assert {name: version(name) for name in LOWEST} == LOWEST


class City(BaseModel):
    name: str


@pytest.mark.skipif(INSTALLED >= (0, 14, 22), reason="LlamaIndex streams them since 0.14.22")
def test_objects_that_llama_index_cannot_stream_yet_are_refused_before_anything_is_sent() -> None:
    llm = guard(MockLLM())
    with pytest.raises(NotImplementedError, match="stream_call is not supported"):
        next(iter(llm.stream_structured_predict(City, PromptTemplate("Describe Oslo."))))
    assert llm.get_traces() == []


@pytest.mark.skipif(hasattr(Runnable, "stream_events"), reason="LangChain streams them since langchain-core 1.4")
def test_events_that_langchain_cannot_stream_yet_are_refused_before_anything_is_sent() -> None:
    model = brix_langchain.guard(FakeListChatModel(responses=["Oslo"]))
    with pytest.raises(BrixConfigurationError, match=r"langchain-core 1\.4; .* is installed"):
        model.stream_events("Hi", version="v3")
    with pytest.raises(BrixConfigurationError, match=r'astream_events\(\.\.\., version="v2"\)'):
        model.astream_events("Hi", version="v3")
    assert model.get_traces() == []
