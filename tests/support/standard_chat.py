"""LangChain's standard tests over the demo server: what a `ChatOpenAI`, bare or guarded, is tested with.

class TestGuardedIntegration(StandardChat, ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedChatOpenAI

class TestGuardedUnit(StandardChatUnit, ChatModelUnitTests): ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, Literal
from unittest.mock import ANY

import httpx
import pytest
import pytest_asyncio
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_openai import ChatOpenAI

from brix_core.demo import DemoServer, Reply

UsageDetail = Literal["audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"]


class _Capabilities:
    pytestmark: ClassVar = [
        # ChatOpenAI's own, about structured output through the SDK's parse() and with a Pydantic v1 schema.
        pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
        pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning"),
    ]

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "gpt-4o"


class StandardChat(_Capabilities):
    """For ``ChatModelIntegrationTests``: a model that talks to the demo server."""

    server: DemoServer
    http_client: httpx.Client
    http_async_client: httpx.AsyncClient

    @pytest_asyncio.fixture(autouse=True)
    async def _connect(self, server: DemoServer) -> AsyncIterator[None]:
        # Clients of our own, made and closed in the test's own loop: the framework caches those it makes and
        # never closes them, and the async one fails in the second loop ("Event loop is closed").
        self.server = server
        with httpx.Client(verify=False) as self.http_client:
            async with httpx.AsyncClient(verify=False) as self.http_async_client:
                yield

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "gpt-4o-mini",
            "base_url": self.server.base_url,
            "api_key": "test",
            "stream_usage": True,
            "http_client": self.http_client,
            "http_async_client": self.http_async_client,
        }

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[UsageDetail]]:
        kinds: list[UsageDetail] = ["reasoning_output", "cache_read_input"]
        return {"invoke": kinds, "stream": kinds}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._invoke_with_usage({"reasoning_tokens": 64}, stream=stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._invoke_with_usage({"cached_tokens": 4}, stream=stream)

    def _invoke_with_usage(self, usage: dict[str, int], *, stream: bool) -> AIMessage:
        self.server.script(Reply("Thought through.", usage=usage))
        model = self.chat_model_class(**self.chat_model_params)
        if not stream:
            return model.invoke("Think about it")
        whole: AIMessageChunk | None = None
        for chunk in model.stream("Think about it"):
            assert isinstance(chunk, AIMessageChunk)
            whole = chunk if whole is None else whole + chunk
        assert whole is not None
        return whole


class StandardChatUnit(_Capabilities):
    """For ``ChatModelUnitTests``, which call no model: the address is never connected to."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "gpt-4o-mini",
            "base_url": "http://127.0.0.1:9/v1",
            "api_key": "test",
            "stream_usage": True,
        }

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"OPENAI_API_KEY": "key-from-env", "OPENAI_ORG_ID": "org-from-env"}
        expected = {"openai_api_key": "key-from-env", "openai_organization": "org-from-env"}
        return environment, {"model": "gpt-4o-mini"}, expected

    @pytest.fixture
    def snapshot(self) -> Callable[..., Any]:
        # How ChatOpenAI serialises is its own affair and changes with its releases. That a model survives the
        # round trip is compared by the same test.
        return lambda name: ANY
