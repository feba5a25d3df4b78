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

from brix_core.demo import DemoServer
from brix_core.options import ALIASES, option_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


async def test_every_example_runs_in_order(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    with httpx.Client() as sync_client:
        async with httpx.AsyncClient() as async_client:
            # Clients the test can close; everything else is as a reader would run it.
            sdk = openai.AsyncOpenAI

            class Model(ChatOpenAI):
                def __init__(self, **kwargs: Any) -> None:
                    super().__init__(**kwargs, http_client=sync_client, http_async_client=async_client)

            monkeypatch.setattr("langchain_openai.ChatOpenAI", Model)
            monkeypatch.setattr("openai.AsyncOpenAI", lambda **kwargs: sdk(**{"http_client": async_client, **kwargs}))
            names: dict[str, Any] = {}
            for block in BLOCKS:
                code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(code, names)
                if inspect.iscoroutine(result):
                    await result
    assert len(BLOCKS) == 3
    assert server.stats.requests == 3 + 2 + 2  # one chain, a batch of two; complete and stream; two sessions
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
