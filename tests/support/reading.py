"""Documentation as its reader would try it: its Python blocks run in order, against the local server."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from llama_index.core import Settings
from llama_index.llms.openai import OpenAI

from brix_core.demo import DemoServer, JsonReply
from tests.support.words_langchain import WordEmbeddings
from tests.support.words_llamaindex import WordEmbedding


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


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
            "ANTHROPIC_API_KEY": "none-needed",
            "ANTHROPIC_BASE_URL": server.anthropic_base_url,
        }


async def requests_of(page: Path, server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run the blocks of a page; how many requests the server saw of each."""
    assert anthropic  # the SDK reads its variables when a client is made
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
            for block in blocks_of(page):
                before = server.stats.requests
                if "BrixOutputParser(City" in block:
                    server.script(JsonReply({"name": "Oslo", "country": "Norway"}))
                code = compile(block, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(code, names)
                if inspect.iscoroutine(result):
                    await result
                seen.append(server.stats.requests - before)
    return seen
