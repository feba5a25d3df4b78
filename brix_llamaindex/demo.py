"""The demo through LlamaIndex: ``guard(OpenAILike(...), ...)``, and a query engine around it."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, cast

import httpx
from llama_index.core import SummaryIndex
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import TextNode

from brix_core.demo.faults import Reply
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.stage import Application, Model, Stage
from brix_core.demo.surface import Connection, Surface, Target
from brix_core.options import GuardOptions
from brix_llamaindex.guarding import guard
from brix_llamaindex.llm import GuardedLLM

with warnings.catch_warnings():
    # What the integration's own imports warn about concerns nobody who watches the demo.
    warnings.simplefilter("ignore")
    from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped, unused-ignore]

_SYSTEM: Final = ChatMessage(role="system", content="You answer briefly.")
_WINDOW: Final = 128_000
"""Context window of the demo's models, tokens; OpenAILike does not know it by itself."""


class LLMChat:
    """An LLM, asked with a short conversation."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def ask(self, question: str) -> str:
        """Blocking."""
        return self.llm.chat(_messages(question)).message.content or ""

    async def aask(self, question: str) -> str:
        """On the event loop."""
        return (await self.llm.achat(_messages(question))).message.content or ""

    async def astream(self, question: str) -> AsyncIterator[str]:
        """Piece by piece."""
        chunks = await self.llm.astream_chat(_messages(question))
        async with aclosing(cast(Any, chunks)):
            async for chunk in chunks:
                yield chunk.delta or ""

    def traces(self) -> list[dict[str, Any]]:
        """The guards' trace entries, newest first."""
        return self.llm.get_traces() if isinstance(self.llm, GuardedLLM) else []


class QueryEngine(LLMChat):
    """A query engine that puts every piece of text before the LLM, one after the other."""

    def __init__(self, llm: LLM, texts: Sequence[str]) -> None:
        super().__init__(llm)
        index = SummaryIndex([TextNode(text=text) for text in texts])
        self._engine = index.as_query_engine(llm=llm, response_mode=ResponseMode.REFINE)

    async def aask(self, question: str) -> str:
        """One question; as many model calls as there are texts."""
        return str(await self._engine.aquery(question))


def _messages(question: str) -> list[ChatMessage]:
    return [_SYSTEM, ChatMessage(role="user", content=question)]


class LlamaIndexConnection:
    """Chats with OpenAILike."""

    def __init__(self, target: Target, client: httpx.Client, async_client: httpx.AsyncClient) -> None:
        self._target = target
        self._clients: dict[str, Any] = {"http_client": client, "async_http_client": async_client}

    def bare(self, *, own_retries: bool, max_tokens: int) -> LLMChat:
        """The LLM as it is."""
        return LLMChat(self._llm(self._target.model, max_tokens, **({} if own_retries else {"max_retries": 0})))

    def guarded(self, options: GuardOptions, *, max_tokens: int) -> LLMChat:
        """The guarded LLM."""
        options = options.copy()
        options["fallbacks"] = [self._llm(name, max_tokens) for name in options.get("fallbacks") or ()]
        return LLMChat(guard(self._llm(self._target.model, max_tokens), **options))

    def _llm(self, name: str, max_tokens: int, **more: Any) -> OpenAILike:
        return OpenAILike(
            model=name,
            api_base=self._target.base_url,
            api_key=self._target.api_key,
            max_tokens=max_tokens,
            is_chat_model=True,
            context_window=_WINDOW,
            **self._clients,
            **more,
        )


async def _query_engine(stage: Stage) -> Sequence[Case]:
    chapters = [f"Chapter {number}: " + "Oslo is the capital of Norway. " * 100 for number in range(1, 9)]
    cap = 0.02

    def engine(model: Model) -> Model:
        return Model(QueryEngine(cast(LLMChat, model.chat).llm, chapters), model.cap)

    async def work(app: Application) -> None:
        await app.ask("What is the capital of Norway?")

    answer = Reply("Oslo is the capital of Norway. " * 40)
    options: GuardOptions = {"max_cost_usd": cap}
    guarded = await stage.run(engine(stage.guarded(max_tokens=300, **options)), work, default=answer)
    bare = await stage.run(engine(stage.bare(max_tokens=300)), work, default=answer)
    return [
        Case(
            guarded=guarded,
            bare=bare,
            did=f"stopped before request {guarded.sent + 1}: {guarded.last.error_name}; "
            f"${guarded.spent:.4f} of ${cap:.2f} spent",
            without=f"1 question became {bare.sent} requests, for ${bare.billed:.4f}",
            checks=(Check("calls the engine makes by itself are counted", 1 < guarded.sent < bare.sent),),
        )
    ]


class LlamaIndexSurface:
    """See `brix_core.demo.surface.Surface`."""

    title = "LlamaIndex"
    recipe = "guard(OpenAILike(...), {options}).chat(messages)"
    scenarios: Sequence[Scenario] = (
        Scenario(
            name="query-engine",
            title="A framework makes calls of its own",
            options="max_cost_usd=0.02",
            story="One question to a query engine over 8 chapters, in refine mode: a model call for each.",
            play=_query_engine,
            rank=100,
        ),
    )

    @asynccontextmanager
    async def connected(self, target: Target) -> AsyncIterator[Connection]:
        """Connections to an endpoint."""
        # Proxies of the environment and certificates are for real providers: the demo server is plain HTTP on loopback.
        live = target.live
        with httpx.Client(trust_env=live, verify=live) as client:
            async with httpx.AsyncClient(trust_env=live, verify=live) as async_client:
                yield LlamaIndexConnection(target, client, async_client)


SURFACE: Surface = LlamaIndexSurface()

__all__ = ["SURFACE"]
