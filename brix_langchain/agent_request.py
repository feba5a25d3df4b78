"""A model request whose model is guarded, whichever a middleware puts in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Self

from langchain.agents.middleware import ModelRequest
from langchain.agents.structured_output import AutoStrategy, ToolStrategy
from langchain_core.language_models import BaseChatModel
from langgraph.typing import ContextT
from typing_extensions import override

Guarding = Callable[[Any], BaseChatModel]
"""Gives a model behind guards; one that is behind them already as it is."""


@dataclass(init=False)
class GuardedRequest(ModelRequest[ContextT]):
    """What a middleware behind `BrixMiddleware` gets.

    Those that change the model (for a fallback, for a cheaper one) do so by `override`, by `dataclasses.replace` or by
    setting the attribute. Each leads here.
    """

    guarding: Guarding = field(kw_only=True, repr=False)

    def __init__(self, *, guarding: Guarding, **given: Any) -> None:
        object.__setattr__(self, "guarding", guarding)
        super().__init__(**given)

    @classmethod
    def of(cls, request: ModelRequest[ContextT], guarding: Guarding) -> Self:
        """The same request."""
        return cls(guarding=guarding, **{part.name: getattr(request, part.name) for part in fields(ModelRequest)})

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self.guarding(value) if name == "model" else value)


def answer_tools(request: ModelRequest[Any]) -> frozenset[str]:
    """Names of the tools that stand for the agent's structured answer: calls of them are answers, and no steps."""
    wanted: Any = request.response_format
    if isinstance(wanted, AutoStrategy):
        wanted = ToolStrategy(schema=wanted.schema)
    return frozenset(spec.name for spec in wanted.schema_specs) if isinstance(wanted, ToolStrategy) else frozenset()


__all__ = ["GuardedRequest", "Guarding", "answer_tools"]
