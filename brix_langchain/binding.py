"""Binding tools and schemas to the guard instead of to the model behind it.

``inner.bind_tools(...)`` and ``inner.with_structured_output(...)`` return runnables that hold the inner
model: using them as they are would bypass every guard, unnoticed. So it is replaced wherever it stands.
Where it cannot be found, that is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableParallel,
    RunnableSequence,
)

from brix_core.errors import BrixConfigurationError


def bound_arguments(model: BaseChatModel, runnable: Runnable[Any, Any]) -> dict[str, Any]:
    """The arguments that `runnable` binds to `model`.

    Raises:
        BrixConfigurationError: The model was not found in it, or is found more than once.
    """
    bindings = list(_bindings(runnable, model))
    if len(bindings) != 1:
        raise _not_found(model, runnable)
    return dict(bindings[0].kwargs)


def rebind(runnable: Runnable[Any, Any], model: BaseChatModel, guarded: BaseChatModel) -> Runnable[Any, Any]:
    """The same runnable with `guarded` in the place of `model`."""
    if runnable is model:
        return guarded
    if isinstance(runnable, RunnableBinding):
        return runnable.model_copy(update={"bound": rebind(runnable.bound, model, guarded)})
    if isinstance(runnable, RunnableSequence):
        return RunnableSequence(*(rebind(step, model, guarded) for step in runnable.steps), name=runnable.name)
    if isinstance(runnable, RunnableParallel):
        return RunnableParallel({key: rebind(step, model, guarded) for key, step in runnable.steps__.items()})
    return runnable


def _bindings(runnable: Runnable[Any, Any], model: BaseChatModel) -> Iterator[RunnableBinding[Any, Any]]:
    if isinstance(runnable, RunnableBinding):
        if runnable.bound is model:
            yield runnable
        else:
            yield from _bindings(runnable.bound, model)
    elif isinstance(runnable, RunnableSequence):
        for step in runnable.steps:
            yield from _bindings(step, model)
    elif isinstance(runnable, RunnableParallel):
        for step in runnable.steps__.values():
            yield from _bindings(step, model)


def _not_found(model: BaseChatModel, runnable: Runnable[Any, Any]) -> BrixConfigurationError:
    return BrixConfigurationError(
        f"{type(model).__name__} binds tools in a way that cannot be guarded ({type(runnable).__name__}); "
        "pass the tools with guarded.bind(tools=[...]) in the provider's own format"
    )


__all__ = ["bound_arguments", "rebind"]
