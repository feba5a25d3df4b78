"""An agent's model behind its guards, and guard errors that LangChain's own middlewares let through.

`ModelRetryMiddleware`, `ModelFallbackMiddleware` and `ToolRetryMiddleware` take every exception for a failure, but for
LangGraph's control flow. A guard error is a decision and no failure, so on its way through an agent it is both: what it
was, and a `GraphBubbleUp`. ``except BrixBudgetError`` catches it as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp
from typing_extensions import override

from brix_core.errors import BrixError
from brix_core.pipeline import Pipeline
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.endpoint import ChatModelEndpoint


@cache
def _as_control_flow(kind: type[Any]) -> type[Any]:
    """The same class, LangGraph's control flow among its bases; where it is pickled, it is the plain one again."""

    def reduce(error: Any) -> tuple[Any, ...]:
        plain: Any = kind.__reduce__
        rebuild, (found, state) = plain(error)
        return rebuild, (kind if found is type(error) else found, state)

    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": reduce}
    return type(kind.__name__, (kind, GraphBubbleUp), names)


@contextmanager
def letting_through() -> Iterator[None]:
    """Guard errors raised inside pass by whoever handles failures.

    Example:
        >>> from brix_core import BrixBudgetError
        >>> try:
        ...     with letting_through():
        ...         raise BrixBudgetError("no money", limit_usd=1.0)
        ... except BrixBudgetError as error:
        ...     print(error.limit_usd, isinstance(error, GraphBubbleUp))
        1.0 True
    """
    try:
        yield
    except BrixError as error:
        if not isinstance(error, GraphBubbleUp):
            kind: Any = type(error)
            error.__class__ = _as_control_flow(kind)
        raise


class AgentModel(GuardedChatModel):
    """A guarded model that an agent calls; it remembers that it did answer."""

    if TYPE_CHECKING:
        _answers: list[AIMessage]

    def __init__(
        self,
        endpoint: ChatModelEndpoint,
        fallbacks: Sequence[ChatModelEndpoint],
        pipeline: Pipeline,
        *,
        keeps_partial: bool,
    ) -> None:
        super().__init__(endpoint, fallbacks, pipeline, keeps_partial=keeps_partial)

    def for_one_call(self) -> tuple[AgentModel, list[AIMessage]]:
        """The same model, and where its answers will be."""
        twin, answers = self.model_copy(), list[AIMessage]()
        twin.__dict__["_answers"] = answers  # shared with copies made to bind tools
        return twin, answers

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        with letting_through():
            answer = super().invoke(input, config, **kwargs)
        self._answers.append(answer)
        return answer

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        with letting_through():
            answer = await super().ainvoke(input, config, **kwargs)
        self._answers.append(answer)
        return answer


__all__ = ["AgentModel", "letting_through"]
