"""The demo through LangChain: ``prompt | guard(model, ...) | StrOutputParser()``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import httpx
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_openai import ChatOpenAI
from langsmith import tracing_context
from pydantic import BaseModel, SecretStr

from brix_core.demo.scene import Scenario
from brix_core.demo.surface import Connection, Surface, Target
from brix_core.options import GuardOptions
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.guarding import guard

_PROMPT: Final = ChatPromptTemplate.from_messages([("system", "You answer briefly."), ("user", "{question}")])


class Chain:
    """A chain of LCEL around a model; instances of a schema are shown as their JSON."""

    def __init__(self, model: Runnable[Any, Any], *, gives_instances: bool = False) -> None:
        self._model = model
        last: Runnable[Any, str] = RunnableLambda(_as_json) if gives_instances else StrOutputParser()
        self._chain: Runnable[dict[str, Any], str] = _PROMPT | model | last

    def ask(self, question: str) -> str:
        """Blocking."""
        return self._chain.invoke({"question": question})

    async def aask(self, question: str) -> str:
        """On the event loop."""
        return await self._chain.ainvoke({"question": question})

    def astream(self, question: str) -> AsyncIterator[str]:
        """Piece by piece."""
        return self._chain.astream({"question": question})

    def traces(self) -> list[dict[str, Any]]:
        """The guards' trace entries, newest first."""
        return [] if isinstance(self._model, ChatOpenAI) else cast(GuardedChatModel, self._model).get_traces()


def _as_json(instance: BaseModel) -> str:
    return instance.model_dump_json()


class LangChainConnection:
    """Chains around ChatOpenAI."""

    def __init__(self, target: Target, client: httpx.Client, async_client: httpx.AsyncClient) -> None:
        self._target = target
        self._clients: dict[str, Any] = {"http_client": client, "http_async_client": async_client}

    def bare(self, *, own_retries: bool, max_tokens: int) -> Chain:
        """A chain around the model as it is."""
        return Chain(self._model(self._target.model, max_tokens, **({} if own_retries else {"max_retries": 0})))

    def guarded(self, options: GuardOptions, *, max_tokens: int) -> Chain:
        """A chain around the guarded model."""
        options = options.copy()
        options["fallbacks"] = [self._model(name, max_tokens) for name in options.get("fallbacks") or ()]
        guarded = guard(self._model(self._target.model, max_tokens), **options)
        return Chain(guarded, gives_instances=options.get("response_schema") is not None)

    def _model(self, name: str, max_tokens: int, **more: Any) -> ChatOpenAI:
        target = self._target
        return ChatOpenAI(
            model=name,
            base_url=target.base_url,
            api_key=SecretStr(target.api_key),
            max_completion_tokens=max_tokens,
            stream_usage=True,
            openai_proxy="",  # or the environment's would be taken, though the clients are given
            **self._clients,
            **more,
        )


class LangChainSurface:
    """See `brix_core.demo.surface.Surface`."""

    title = "LangChain"
    recipe = "prompt | guard(ChatOpenAI(...), {options}) | StrOutputParser()"
    scenarios: Sequence[Scenario] = ()

    @asynccontextmanager
    async def connected(self, target: Target) -> AsyncIterator[Connection]:
        """Connections to an endpoint; LangSmith's tracing, which LangChain reads from the environment, is off."""
        # Proxies of the environment and certificates are for real providers: the demo server is plain HTTP on loopback.
        live = target.live
        with tracing_context(enabled=False), httpx.Client(trust_env=live, verify=live) as client:
            async with httpx.AsyncClient(trust_env=live, verify=live) as async_client:
                yield LangChainConnection(target, client, async_client)


SURFACE: Surface = LangChainSurface()

__all__ = ["SURFACE"]
