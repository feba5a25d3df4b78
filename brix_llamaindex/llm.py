"""`guarded_llms`: a LlamaIndex LLM that is still what it was, with guards around every call.

The result is an object of a subclass of the LLM's own class, made for it, that shares its state (fields and
private attributes) with a private copy. Its eight hooks (chat and complete, plain and streamed, blocking and
asynchronous) run through the guards and end in the same hook of that copy; everything else, such as
structured output, tools, metadata, is the LLM's own code and reaches the model through those hooks.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import types
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM

from brix_core.errors import BrixConfigurationError
from brix_core.guards.budget import BudgetGuard
from brix_core.options import GuardOptions, Parsed, parse
from brix_core.pipeline import Pipeline
from brix_llamaindex.endpoint import LLMEndpoint
from brix_llamaindex.events import outspoken
from brix_llamaindex.faces import face, private_copy, without_retries
from brix_llamaindex.guards import STATE, Guards
from brix_llamaindex.messages import Prompt
from brix_llamaindex.parsed_streams import ParsedStreams
from brix_llamaindex.signals import with_signals
from brix_llamaindex.structured import StructuredPrediction

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse

log = logging.getLogger(__name__)


def guarded_llms(llms: Sequence[LLM], options: GuardOptions) -> list[GuardedLLM]:
    """Put the same guards around several LLMs: one budget, one rate, one trace. See `brix_llamaindex.guard`.

    Args:
        llms: At least one.
        options: ``fallbacks`` takes further LLMs, for all of them.

    Raises:
        BrixConfigurationError: One is no LLM or guarded already, or an option cannot be used as given.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> first, second = guarded_llms([MockLLM(), MockLLM()], {"max_retries": 2})
        >>> _ = first.complete("Hello"), second.complete("Hello")
        >>> len(first.get_traces()), first.brix.context is second.brix.context
        (2, True)
    """
    for llm in llms:
        _require_plain_llm(llm, "guard")
    options = with_signals(options)
    parsed = parse(options)
    for fallback in parsed.fallbacks:
        _require_plain_llm(fallback, "fallbacks")
    advise = "retry" not in parsed.configs
    budget = parsed.configs.get("budget")
    strict = budget is not None and budget.budget_strategy == "block"
    given = (*llms, *parsed.fallbacks)
    endpoints = [LLMEndpoint(private_copy(one, advise=advise), strict=strict) for one in given]
    own, others = endpoints[: len(llms)], endpoints[len(llms) :]
    parsed = _without_clamp(parsed, options, endpoints)
    pipeline = Pipeline(parsed, others, _summary(own[0], parsed))
    return [_guarded(endpoint, pipeline) for endpoint in own]


def joined(llm: LLM, guards: Guards) -> GuardedLLM:
    """Put guards that there are around one more LLM.

    Args:
        llm: Not guarded yet.
        guards: Whose budget, limits and traces hold for it too.

    Raises:
        BrixConfigurationError: It is no LLM or guarded already, or its output cannot be capped as these guards do.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from brix_llamaindex import guard
        >>> first = guard(MockLLM())
        >>> second = joined(MockLLM(), first.brix)
        >>> _ = second.complete("Hello")
        >>> len(first.get_traces())
        1
    """
    _require_plain_llm(llm, "guard")
    endpoint = LLMEndpoint(private_copy(llm, advise="retry" not in guards.guards), strict=guards.endpoint.strict)
    budget = next((one.config for one in guards.pipeline.guards if isinstance(one, BudgetGuard)), None)
    if budget is not None and budget.budget_clamp_output and not endpoint.caps_output:
        raise BrixConfigurationError(
            f"the output of {endpoint.identity} cannot be capped for a call, which the budget of these guards relies "
            "on; make the guards with budget_clamp_output=False, or guard this LLM by itself"
        )
    return _guarded(endpoint, guards.pipeline)


class GuardedLLM(ParsedStreams, StructuredPrediction):
    """What `guard` returns: also an instance of the class of the LLM it was given.

    Setting an attribute reaches the LLM behind the guards; copies share the guards, and so the budget. The
    hooks are not decorated: LlamaIndex's events and callbacks come from the LLM behind them, once for every
    request that leaves.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from brix_llamaindex import guard
        >>> llm = guard(MockLLM())
        >>> llm.max_tokens = 2
        >>> llm.complete("Hello").text
        'text text'
    """

    if TYPE_CHECKING:  # it has all that the LLM has

        def __getattr__(self, name: str) -> Any: ...

    @property
    def brix(self) -> Guards:
        """Its guards.

        Raises:
            BrixConfigurationError: It has none, because it was made by its class (`from_dict`, for example).
        """
        guards = (self.__pydantic_private__ or {}).get(STATE)
        if guards is None:
            cls = type(self).__name__
            raise BrixConfigurationError(
                f"this {cls} was not made by guard(), so it has no guards; load or make a "
                f"{cls.removeprefix('Guarded')} and give that to guard()"
            )
        return cast(Guards, guards)

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of all calls, newest first.

        Args:
            session_id: Only those of this session.
        """
        return self.brix.get_traces(session_id)

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Chat through the guards."""
        return cast(ChatResponse, self.brix.call(messages, kwargs))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Complete a text through the guards."""
        return cast(CompletionResponse, self.brix.call((Prompt(prompt),), _with(formatted, kwargs)))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Chat through the guards, streamed."""
        return cast(ChatResponseGen, self.brix.stream(messages, kwargs))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Complete a text through the guards, streamed."""
        return cast(CompletionResponseGen, self.brix.stream((Prompt(prompt),), _with(formatted, kwargs)))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Chat through the guards, on the event loop."""
        return cast(ChatResponse, await self.brix.acall(messages, kwargs))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Complete a text through the guards, on the event loop."""
        return cast(CompletionResponse, await self.brix.acall((Prompt(prompt),), _with(formatted, kwargs)))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Chat through the guards, streamed on the event loop."""
        return cast(ChatResponseAsyncGen, self.brix.astream(messages, kwargs))

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Complete a text through the guards, streamed on the event loop."""
        return cast(CompletionResponseAsyncGen, self.brix.astream((Prompt(prompt),), _with(formatted, kwargs)))

    def predict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """As the LLM's own; but what the guards raise is raised, which LlamaIndex makes a text of for some LLMs."""
        with outspoken():
            return super().predict_and_call(*args, **kwargs)

    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """As `predict_and_call`, on the event loop."""
        with outspoken():
            return await super().apredict_and_call(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it for the LLM behind the guards too, except retries of its own."""
        if name == "max_retries" and value:
            log.warning(
                "max_retries=%r is not set on a guarded LLM: its retries would be neither counted nor paid "
                "for. Give guard(..., max_retries=...) instead",
                value,
            )
            return
        super().__setattr__(name, without_retries(value))

    def __copy__(self) -> GuardedLLM:
        """A copy with fields of its own behind the same guards."""
        guards = self.brix
        llm = guards.endpoint.llm
        return self._renewed(face(llm, type(llm), **dict(llm.__dict__)))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> GuardedLLM:
        """A copy with deeply copied fields behind the same guards; connections are shared."""
        guards = self.brix
        llm = guards.endpoint.llm
        fields = {name: _deep(value, memo) for name, value in llm.__dict__.items()}
        return self._renewed(face(llm, type(llm), **fields))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Not to be pickled: a copy in another process would have a budget of its own.

        Raises:
            BrixConfigurationError: Always.
        """
        raise BrixConfigurationError(
            "a guarded LLM cannot be pickled: its budget, limits and traces belong to this process. Pickle "
            "the LLM and call guard() where it is loaded"
        )

    def _renewed(self, llm: LLM) -> GuardedLLM:
        guards = self.brix
        object.__setattr__(llm, "__pydantic_private__", dict(llm.__pydantic_private__ or {}))
        object.__setattr__(llm, "__pydantic_fields_set__", set(llm.__pydantic_fields_set__))
        return _guarded(LLMEndpoint(llm, strict=guards.endpoint.strict), guards.pipeline)


def _guarded(endpoint: LLMEndpoint, pipeline: Pipeline) -> GuardedLLM:
    llm = endpoint.llm
    cast(dict[str, Any], llm.__pydantic_private__)[STATE] = Guards(pipeline, endpoint)
    return cast(GuardedLLM, face(llm, _guarded_class(type(llm))))


@lru_cache(maxsize=256)
def _guarded_class(cls: type[LLM]) -> type[GuardedLLM]:
    namespace = {"__module__": __name__, "__doc__": cls.__doc__, STATE: PrivateAttr()}
    return types.new_class(f"Guarded{cls.__name__}", (GuardedLLM, cls), exec_body=lambda own: own.update(namespace))


def _without_clamp(parsed: Parsed, options: GuardOptions, endpoints: Sequence[LLMEndpoint]) -> Parsed:
    """Refuse what is not affordable, where an output cannot be made shorter."""
    fixed = [endpoint.identity for endpoint in endpoints if not endpoint.caps_output]
    if "budget" not in parsed.configs or not fixed:
        return parsed
    if options.get("budget_clamp_output"):
        raise BrixConfigurationError(
            f"budget_clamp_output=True has no effect: the output of {', '.join(fixed)} cannot be capped for "
            "a call. Leave the option out; calls that are not affordable in full are then refused"
        )
    budget = dataclasses.replace(parsed.configs["budget"], budget_clamp_output=False)
    return dataclasses.replace(parsed, configs={**parsed.configs, "budget": budget})


def _summary(endpoint: LLMEndpoint, options: Parsed) -> LLMEndpoint | None:
    """Who writes summaries: another LLM, or this one by another model's name."""
    context = options.configs.get("context")
    given = None if context is None else context.context_summary_model
    llm = endpoint.llm
    if isinstance(given, str):
        if "model" not in type(llm).model_fields:
            raise BrixConfigurationError(
                f"context_summary_model={given!r}: {type(llm).__name__} has no field `model`; give an LLM instead"
            )
        llm = face(llm, type(llm), model=given)
    elif given is not None:
        _require_plain_llm(given, "context_summary_model")
        llm = private_copy(given)
    else:
        return None
    return LLMEndpoint(llm, strict=endpoint.strict)


def _require_plain_llm(llm: Any, where: str) -> None:
    if isinstance(llm, GuardedLLM):
        advice = "change its options where it was guarded" if where == "guard" else "give the LLM itself"
        raise BrixConfigurationError(f"{where}: {type(llm).__name__} is guarded already; {advice}")
    if isinstance(llm, StructuredLLM):
        raise BrixConfigurationError(
            f"{where}: guard the LLM inside a StructuredLLM, "
            f"guard(llm, ...).as_structured_llm({llm.output_cls.__name__})"
        )
    if not isinstance(llm, LLM):
        raise BrixConfigurationError(
            f"{where} takes a LlamaIndex LLM (an instance of llama_index.core.llms.LLM, such as OpenAI(...), "
            f"OpenAILike(...), MockLLM()), got {llm!r:.200}"
        )


def _with(formatted: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "formatted": True} if formatted else kwargs


def _deep(value: Any, memo: dict[int, Any] | None) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a connection, a lock
        return value


__all__ = ["GuardedLLM", "guarded_llms", "joined"]
