"""What the README shows runs as it stands, against the local server; what it links to exists."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from llama_index.core import Settings
from llama_index.llms.openai import OpenAI

from brix_core.demo import DemoServer, JsonReply
from brix_core.options import ALIASES, option_names
from tests.support.words_langchain import WordEmbeddings
from tests.support.words_llamaindex import WordEmbedding

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


class Guide:
    """Clients that the test can close, an embedding that needs no network; all else is as a reader would run it."""

    def __init__(self, server: DemoServer, sync_client: httpx.Client, async_client: httpx.AsyncClient) -> None:
        sdk = openai.AsyncOpenAI

        class Model(ChatOpenAI):
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(**kwargs, http_client=sync_client, http_async_client=async_client)

        class LLM(OpenAI):
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(**kwargs, http_client=sync_client, async_http_client=async_client)

        self.replaced: dict[str, Any] = {
            "langchain_openai.ChatOpenAI": Model,
            "langchain_openai.OpenAIEmbeddings": lambda model: WordEmbeddings(),
            "openai.AsyncOpenAI": lambda **kwargs: sdk(**{"http_client": async_client, **kwargs}),
            "llama_index.llms.openai.OpenAI": LLM,
        }
        self.environment = {
            "OPENAI_API_KEY": "none-needed",
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_BASE": server.base_url,
        }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of LlamaIndex, when it makes an agent
async def test_every_example_runs_in_order(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    seen: list[int] = []
    with httpx.Client() as sync_client:
        async with httpx.AsyncClient() as async_client:
            guide = Guide(server, sync_client, async_client)
            for name, value in guide.replaced.items():
                monkeypatch.setattr(name, value)
            for name, value in guide.environment.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setattr(Settings, "_embed_model", WordEmbedding())
            for block in BLOCKS:
                before = server.stats.requests
                if "BrixOutputParser(City" in block:
                    server.script(JsonReply({"name": "Oslo", "country": "Norway"}))
                code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(code, names)
                if inspect.iscoroutine(result):
                    await result
                seen.append(server.stats.requests - before)
    assert seen == [
        3,  # a chain, a batch of two
        1,  # a schema
        2,  # complete and stream
        2,  # two sessions
        2,  # an agent: a tool call, an answer
        2,  # an executor: likewise
        1,  # callbacks
        1,  # retrieval: one question answered, one refused
        1,  # parser, cache, limiter
        3,  # LlamaIndex: an answer, a schema, a query
        2,  # an agent
        1,  # a program
    ]
    assert server.stats.answered == server.stats.requests


def test_every_linked_file_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_options_table_names_every_option() -> None:
    table = README[README.index("## Options") : README.index("## Installing")]
    named = set(re.findall(r"`(\w+)`", table))
    assert set(option_names()) - named == set()
    assert set(ALIASES) <= named
