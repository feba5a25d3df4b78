"""guard(): put guards around a LangChain object."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.runnables.utils import Input, Output
from typing_extensions import Unpack

from brix_core.errors import BrixConfigurationError
from brix_core.options import GuardOptions, OtherOptions, Parsed, parse
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.endpoint import ChatModelEndpoint
from brix_langchain.graph import GuardedGraph, guarded_graph, is_graph
from brix_langchain.own_retries import without_own_retries
from brix_langchain.pipelines import ModelPipeline
from brix_langchain.run_guards import RunGuards
from brix_langchain.runnable import GuardedRunnable
from brix_langchain.schema_binding import answering
from brix_langchain.signals import with_signals
from brix_langchain.string_endpoint import StringModelEndpoint
from brix_langchain.string_llm import GuardedLLM
from brix_langchain.structured import StructuredModel

if TYPE_CHECKING:
    from langgraph.pregel import Pregel

    _G = TypeVar("_G", bound=Pregel[Any, Any, Any, Any])

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_GUARDED = (GuardedChatModel, StructuredModel, GuardedLLM, GuardedRunnable, GuardedGraph)


# The first that fits counts: models and graphs are runnables, too.
@overload
def guard(  # type: ignore[overload-overlap]
    target: BaseChatModel, *, response_schema: None = None, **options: Unpack[OtherOptions]
) -> GuardedChatModel: ...
@overload
def guard(
    target: BaseChatModel, *, response_schema: type[_T], **options: Unpack[OtherOptions]
) -> StructuredModel[_T]: ...
@overload
def guard(
    target: BaseChatModel, *, response_schema: Mapping[str, Any], **options: Unpack[OtherOptions]
) -> StructuredModel[Any]: ...
@overload
def guard(target: BaseLLM, **options: Unpack[GuardOptions]) -> GuardedLLM: ...  # type: ignore[overload-overlap]
@overload
def guard(target: _G, **options: Unpack[GuardOptions]) -> _G: ...  # type: ignore[overload-overlap]
@overload
def guard(target: Runnable[Input, Output], **options: Unpack[GuardOptions]) -> GuardedRunnable[Input, Output]: ...
def guard(target: Any, **options: Any) -> Any:
    """Put guards around a chat model, a string LLM, a LangGraph graph, an agent, or any other runnable.

    What comes back is the same kind of thing, to be used wherever `target` was. Around a model, the guards see each
    request. Around a chain, a graph or an agent they see whole runs: time limits, retries, ``requests_per_minute``,
    circuit breaker, ``fallbacks`` and traces are about runs. Budget, tool loops and ``per_step_timeout`` hold inside,
    by callbacks, at each call of a model. What is about one prompt or answer (``tokens_per_minute``,
    ``max_context_tokens``, ``response_schema``, ``regulated_spec``) is refused there: guard the model inside. Guarded
    models inside a guarded run charge the session once, under the lower cap.

    What a guarded chat model answers says whose call it was, what it cost and what was decided about it, in
    ``response_metadata["brix"]`` (`brix_core.response_metadata.metadata_of`); of a stream the last chunk does.

    Args:
        target: It is left as it is. A guarded model works on a copy whose own retries are off, since a retry inside
            the model would pass by the budget and the rate limit. So does a guarded chain, with copies of the models
            in its steps, branches, bindings and fallbacks. Models in functions and in graphs' nodes are out of reach:
            make them with ``max_retries=0``. Under a budget that blocks, their calls are refused else.
        **options: See `brix_core.GuardOptions`. ``fallbacks`` takes objects of the same kind as `target`,
            ``retrieval_provider`` a `LangChainRetrievalProvider`, ``regulated_signals`` runnables, too
            (`brix_langchain.signals`).

    Returns:
        `GuardedChatModel`, or with ``response_schema`` a `StructuredModel`, whose answers are instances; `GuardedLLM`,
        `GuardedRunnable`, or an object of a subclass of the graph's own class. For an `AgentExecutor` see
        `guard_agent_executor`.

    Raises:
        BrixConfigurationError: `target` is no runnable or guarded already, or an option cannot be used.

    Example:
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> model = guard(FakeListChatModel(responses=["Paris"]), per_call_timeout=5, max_retries=2)
        >>> model.invoke("Capital of France?").content
        'Paris'
        >>> model.get_traces()[0]["outcome"]
        'ok'
        >>> from langchain_core.output_parsers import StrOutputParser
        >>> chain = guard(FakeListChatModel(responses=["Paris"]) | StrOutputParser(), per_call_timeout=5)
        >>> chain.invoke("Capital of France?"), len(chain.get_traces())
        ('Paris', 1)
    """
    if isinstance(target, _GUARDED):
        raise BrixConfigurationError(
            f"guard() got a {type(target).__name__}, which is guarded already; guard it once, with all options"
        )
    if isinstance(target, BaseChatModel):
        return _guarded_chat_model(target, parse(with_signals(options)))
    if isinstance(target, BaseLLM):
        return _guarded_llm(target, parse(with_signals(options)))
    if not isinstance(target, Runnable):
        raise _no_target(target)
    _refuse_bound_models(target)
    if _is_agent_executor(target):
        return importlib.import_module("brix_langchain.agent_executor").guard_agent_executor(target, **options)
    _check_fallbacks(options)
    if is_graph(target):
        return guarded_graph(cast(Any, target), options)
    return GuardedRunnable(target, RunGuards(target, options))


def _no_target(target: Any) -> BrixConfigurationError:
    """What is wrong with something that is no runnable, and what to pass instead."""
    package = type(target).__module__.partition(".")[0]
    if isinstance(target, type):
        advice = f"that is a class: make one, guard({target.__name__}(...), ...)"
    elif package == "langgraph" and callable(getattr(target, "compile", None)):
        advice = "compile the graph first: guard(builder.compile(), ...)"
    elif package == "llama_index":
        advice = "for LlamaIndex there is brix_llamaindex.guard"
    elif package in ("openai", "anthropic"):
        advice = "for an SDK's own client there is brix_core.BRIX.wrap"
    elif callable(target):
        advice = "make it a runnable: guard(RunnableLambda(function), ...)"
    else:
        advice = "pass the model, chain or graph itself"
    return BrixConfigurationError(
        "guard() takes a LangChain chat model such as ChatOpenAI(...), an LLM, a chain, a graph or another Runnable, "
        f"got {type(target).__name__}: {target!r:.200}; {advice}"
    )


def _guarded_chat_model(model: BaseChatModel, parsed: Parsed) -> GuardedChatModel | StructuredModel[Any]:
    endpoint = _endpoint(model, parsed, "guard()")
    fallbacks = [_endpoint(other, parsed, "fallbacks", fallback=True) for other in parsed.fallbacks]
    timeout = parsed.configs.get("timeout")
    guarded = GuardedChatModel(
        endpoint,
        fallbacks,
        ModelPipeline(parsed, fallbacks, _summary(endpoint, parsed)),
        keeps_partial=timeout is not None and timeout.on_timeout == "return_partial",
    )
    schema = parsed.configs["schema"].response_schema
    return guarded if schema is None else answering(guarded, schema)


def _guarded_llm(model: BaseLLM, parsed: Parsed) -> GuardedLLM:
    timeout, context, schema = (parsed.configs.get(name) for name in ("timeout", "context", "schema"))
    for option, given in (
        ("response_schema", schema is not None and schema.response_schema is not None),
        ("context_summary_model", context is not None and context.context_summary_model is not None),
        ("on_timeout='return_partial'", timeout is not None and timeout.on_timeout == "return_partial"),
    ):
        if given:
            raise BrixConfigurationError(f"{option} is not there for string LLMs; guard a chat model with it")
    endpoint = _string_endpoint(model, parsed, "guard()")
    fallbacks = [_string_endpoint(other, parsed, "fallbacks", fallback=True) for other in parsed.fallbacks]
    return GuardedLLM(endpoint, fallbacks, ModelPipeline(parsed, fallbacks))


def _is_agent_executor(target: Any) -> bool:
    """Whether this is LangChain's older kind of agent; told without importing it."""
    module = sys.modules.get("langchain_classic.agents.agent")
    return module is not None and isinstance(target, module.AgentExecutor)


def _refuse_bound_models(target: Runnable[Any, Any]) -> None:
    """A model with arguments bound to it: guarded as a runnable, it would be guarded less well than a model."""
    bound = target
    while isinstance(bound, RunnableBinding):
        bound = bound.bound
    if bound is not target and isinstance(bound, (*_GUARDED, BaseChatModel, BaseLLM)):
        what = "that is guarded already" if isinstance(bound, _GUARDED) else "with arguments bound to it"
        raise BrixConfigurationError(
            f"guard() got a {type(target).__name__} of a {type(bound).__name__} {what}; guard the model itself, once, "
            "and bind afterwards: guard(model, ...).bind(...)"
        )


def _check_fallbacks(options: Mapping[str, Any]) -> None:
    for fallback in options.get("fallbacks") or ():
        if not isinstance(fallback, Runnable):
            raise BrixConfigurationError(f"fallbacks takes runnables, got {type(fallback).__name__}: {fallback!r:.200}")


def _endpoint(model: Any, options: Parsed, place: str, *, fallback: bool = False) -> ChatModelEndpoint:
    if isinstance(model, GuardedChatModel):
        raise BrixConfigurationError(f"{place} got a model that is guarded already; guard it once, with all options")
    if not isinstance(model, BaseChatModel):
        raise BrixConfigurationError(
            f"{place} takes a LangChain chat model such as ChatOpenAI(...), got {type(model).__name__}: {model!r:.200}"
        )
    _warn_of_retries(model, options)
    copy = without_own_retries(model)
    metered = "budget" in options.configs or "rate_limit" in options.configs
    if metered and copy is not model and getattr(copy, "stream_usage", True) is None:
        # ChatOpenAI asks for no usage on a custom base_url unless told to, and a budget needs it.
        copy.stream_usage = True  # type: ignore[attr-defined]
    return ChatModelEndpoint(copy, fallback=fallback)


def _string_endpoint(model: Any, options: Parsed, place: str, *, fallback: bool = False) -> StringModelEndpoint:
    if isinstance(model, GuardedLLM):
        raise BrixConfigurationError(f"{place} got a model that is guarded already; guard it once, with all options")
    if not isinstance(model, BaseLLM):
        raise BrixConfigurationError(f"{place} takes a LangChain LLM, got {type(model).__name__}: {model!r:.200}")
    _warn_of_retries(model, options)
    return StringModelEndpoint(cast(Any, without_own_retries(cast(Any, model))), fallback=fallback)


def _warn_of_retries(model: BaseChatModel | BaseLLM, options: Parsed) -> None:
    if "retry" not in options.configs and "max_retries" in model.model_fields_set and _retries(model):
        log.warning(
            "%s retries %s times by itself, which no guard would see: its retries are switched off. "
            "Pass max_retries=%s to guard() to have them back",
            type(model).__name__, _retries(model), _retries(model),
        )  # fmt: skip


def _summary(endpoint: ChatModelEndpoint, options: Parsed) -> ChatModelEndpoint | None:
    """Who writes summaries: another chat model, or this one's class by another model's name."""
    context = options.configs.get("context")
    given = None if context is None else context.context_summary_model
    if isinstance(given, str):
        return ChatModelEndpoint(endpoint.inner, fallback=True, bound={"model": given})
    return None if given is None else _endpoint(given, options, "context_summary_model", fallback=True)


def _retries(model: BaseChatModel | BaseLLM) -> int:
    value = getattr(model, "max_retries", None)
    return value if isinstance(value, int) else 0


__all__ = ["guard"]
