"""Guard errors in LangChain's eyes: decisions, not failures. Nothing retries them, nothing answers over them.

LangChain's own recovery catches every `Exception`. So the ``with_retry`` and ``with_fallbacks`` of whatever `guard`
returns leave guard errors out, unless they are named; the errors of guarded models are `ModelError`s that say
``is_retryable = False``; and a guard error raised in a task of a LangGraph graph, an agent of ``create_agent`` among
them, is also LangGraph's control flow (`GraphBubbleUp`): the retry policies of nodes, `ModelRetryMiddleware`,
`ModelFallbackMiddleware` and tools that turn errors into messages let it pass. ``except BrixBudgetError`` catches it
as ever.

Out of reach is LangChain's recovery around something that only *contains* a guarded model, such as a chain's own
``with_retry``. For that there are `but_guard_errors` and `with_fallbacks` here. Up to langchain 1.3.14, the middlewares
stop at no control flow either: they may ask a guard that has refused once more, and then nothing is sent either, or
answer in its stead. Have the guard retry and fail over itself, ``guard(model, max_retries=2, fallbacks=[...])``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, cast

import langchain_core.exceptions
from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.config import var_child_runnable_config

from brix_core.errors import BrixError, BrixGuardError

Kinds = tuple[type[BaseException], ...]

_MODEL_ERROR: type[Exception] | None = getattr(langchain_core.exceptions, "ModelError", None)
"""From langchain-core 1.7 on."""

_TASK: Final = "__pregel_task_id"
"""What LangGraph configures in a task of a graph, and nowhere else."""


def but_guard_errors(kinds: Kinds = (Exception,)) -> Kinds:
    """These kinds of exceptions, without guard errors that are not named among them; for `isinstance`.

    Example:
        >>> from langchain_core.runnables import RunnableLambda
        >>> chain = RunnableLambda(str.upper).with_retry(retry_if_exception_type=but_guard_errors())
        >>> chain.invoke("paris")
        'PARIS'
        >>> isinstance(BrixError("no"), but_guard_errors()), isinstance(ValueError("no"), but_guard_errors())
        (False, True)
    """
    return cast(Kinds, (_ButGuardErrors("ButGuardErrors", (Exception,), {"kinds": tuple(kinds)}),))


def with_fallbacks(
    runnable: Runnable[Any, Any],
    fallbacks: Sequence[Runnable[Any, Any]],
    *,
    exceptions_to_handle: Kinds = (Exception,),
    exception_key: str | None = None,
) -> RunnableWithFallbacks[Any, Any]:
    """Fallbacks as LangChain's, which are not asked when a guard has refused.

    Args:
        runnable: What is asked first.
        fallbacks: What is asked next, in order.
        exceptions_to_handle: When; guard errors only where they are named.
        exception_key: See `Runnable.with_fallbacks`.

    Example:
        >>> from langchain_core.runnables import RunnableLambda
        >>> chain = with_fallbacks(RunnableLambda(int), [RunnableLambda(len)])
        >>> chain.invoke("42"), chain.invoke("Paris")
        (42, 5)
    """
    return FallbacksButForRefusals(
        runnable=runnable,
        fallbacks=fallbacks,
        exceptions_to_handle=exceptions_to_handle,
        exception_key=exception_key,
    )


class RefusalsAreFinal:
    """What `guard` returns: ``with_retry`` and ``with_fallbacks`` leave guard errors alone."""

    def with_retry(self, *, retry_if_exception_type: Any = (Exception,), **kwargs: Any) -> Any:
        """See `Runnable.with_retry`. A guard error is retried only where its own kind is named."""
        wanted = retry_if_exception_type
        if not callable(wanted):
            wanted = but_guard_errors(wanted)
        return super().with_retry(retry_if_exception_type=wanted, **kwargs)  # type: ignore[misc]

    def with_fallbacks(self, fallbacks: Sequence[Runnable[Any, Any]], **kwargs: Any) -> Any:
        """See `Runnable.with_fallbacks`. A guard error is answered over only where its own kind is named."""
        return with_fallbacks(cast(Runnable[Any, Any], self), fallbacks, **kwargs)


class FallbacksButForRefusals(RunnableWithFallbacks[Any, Any]):
    """Asks no fallback when a guard has refused. Made by `with_fallbacks`."""

    def batch(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Each input by itself, as `invoke`."""
        return Runnable.batch(self, *args, **kwargs)

    async def abatch(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Each input by itself, as `ainvoke`."""
        return await Runnable.abatch(self, *args, **kwargs)


def _handled(fallbacks: FallbacksButForRefusals) -> Kinds:
    """What the ``except`` of `RunnableWithFallbacks` catches, asked at the moment something was raised.

    ``except`` goes by the classes themselves: there is no class of all exceptions but some.
    """
    kinds: Kinds = fallbacks.__dict__["exceptions_to_handle"]
    error = sys.exc_info()[1]
    return () if error is not None and not _is_among(error, kinds) else kinds


# A property wins over the value that pydantic keeps in the instance.
type.__setattr__(FallbacksButForRefusals, "exceptions_to_handle", property(_handled))


class _ButGuardErrors(type):
    """The class of a class whose instances are exceptions of some kinds, guard errors left out."""

    kinds: Kinds

    def __instancecheck__(cls, instance: Any) -> bool:
        return _is_among(instance, cls.kinds)


def _is_among(error: Any, kinds: Kinds) -> bool:
    if isinstance(error, BrixError):
        kinds = tuple(kind for kind in kinds if issubclass(kind, BrixError))
    return isinstance(error, kinds)


def final_in_graph(error: BrixError) -> None:
    """Where this is a task of a LangGraph graph: make an error LangGraph's control flow, and leave it what it is.

    Example:
        >>> error = BrixGuardError("no")
        >>> final_in_graph(error)  # this is no graph, and nothing happens
        >>> type(error).__mro__[1].__name__
        'BrixError'
    """
    surrounding: Any = var_child_runnable_config.get() or {}
    if _TASK in (surrounding.get("configurable") or {}):
        as_control_flow(error)


def as_model_error(error: BrixGuardError) -> None:
    """Make a guard error LangChain's `ModelError` as well, where there is such a thing; it says it is not retryable.

    Example:
        >>> error = BrixGuardError("no")
        >>> as_model_error(error)
        >>> isinstance(error, BrixGuardError), error.is_retryable
        (True, False)
    """
    if _MODEL_ERROR is not None and not isinstance(error, _MODEL_ERROR):
        _mix_in(error, _MODEL_ERROR)


def as_control_flow(error: BrixError) -> None:
    """Make an error LangGraph's control flow, and leave it what it is; nothing, where LangGraph is not in use.

    Example:
        >>> from langgraph.errors import GraphBubbleUp
        >>> error = BrixGuardError("no", guard="budget")
        >>> as_control_flow(error)
        >>> isinstance(error, GraphBubbleUp), isinstance(error, BrixGuardError), error.guard
        (True, True, 'budget')
    """
    langgraph = sys.modules.get("langgraph.errors")
    if langgraph is not None and not isinstance(error, langgraph.GraphBubbleUp):
        _mix_in(error, langgraph.GraphBubbleUp)


def _mix_in(error: Any, other: Any) -> None:
    kind: Any = type(error)
    error.__class__ = _mixed(kind, other)


@lru_cache(maxsize=256)
def _mixed(kind: Any, other: Any) -> Any:
    """The same class with `other` among its bases; where it is pickled, it is the plain one again."""

    def reduce(error: BrixError) -> tuple[Callable[..., BrixError], tuple[Any, ...]]:
        rebuild, (found, state) = kind.__reduce__(error)
        return rebuild, (kind if found is type(error) else found, state)

    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": reduce}
    return type(kind.__name__, (kind, other), names)


__all__ = [
    "FallbacksButForRefusals",
    "RefusalsAreFinal",
    "as_control_flow",
    "as_model_error",
    "but_guard_errors",
    "final_in_graph",
    "with_fallbacks",
]
