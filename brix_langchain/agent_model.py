"""An agent's model behind its guards, and guard errors that LangChain's own middlewares let through.

`ModelRetryMiddleware`, `ModelFallbackMiddleware` and `ToolRetryMiddleware` take every exception for a failure, but for
LangGraph's control flow. A guard error is a decision and no failure, so on its way through an agent it is both: what it
was, and a `GraphBubbleUp`. ``except BrixBudgetError`` catches it as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from typing_extensions import override

from brix_core.call import CallRequest
from brix_core.errors import BrixError
from brix_core.looping.steps import Taken
from brix_core.pipeline import Pipeline
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.endpoint import ChatModelEndpoint
from brix_langchain.refusals import as_control_flow


@contextmanager
def letting_through() -> Iterator[None]:
    """Guard errors raised inside pass by whoever handles failures.

    Example:
        >>> from brix_core import BrixBudgetError
        >>> from langgraph.errors import GraphBubbleUp
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
        as_control_flow(error)
        raise


class AgentModel(GuardedChatModel):
    """A guarded model that an agent calls. It knows what the agent has done, and remembers that it did answer."""

    if TYPE_CHECKING:
        _answers: list[AIMessage]
        _taken: Taken | None

    def __init__(
        self,
        endpoint: ChatModelEndpoint,
        fallbacks: Sequence[ChatModelEndpoint],
        pipeline: Pipeline,
        *,
        keeps_partial: bool,
    ) -> None:
        super().__init__(endpoint, fallbacks, pipeline, keeps_partial=keeps_partial)

    def for_one_call(self, taken: Taken | None, answers: list[AIMessage]) -> AgentModel:
        """The same model, for one call of the agent.

        Args:
            taken: What the agent has done, where that is known.
            answers: Where its answers are put down.
        """
        twin = self.model_copy()
        twin.__dict__.update(_answers=answers, _taken=taken)  # shared with copies made to bind tools
        return twin

    @override
    def _request(self, *args: Any, **kwargs: Any) -> CallRequest:
        return super()._request(*args, **kwargs).evolve(taken=self._taken)

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
