"""`guard`: put guards around an LLM, or around all LLMs of an engine or agent."""

from __future__ import annotations

from typing import Any, Final, Unpack, overload

from llama_index.core.agent.workflow import AgentWorkflow, BaseWorkflowAgent
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms import LLM
from llama_index.core.workflow import Workflow

from brix_core.errors import BrixConfigurationError
from brix_core.options import GuardOptions
from brix_llamaindex.engines import ENGINES, GuardedAgentRuns, GuardedChatRuns, GuardedQueryRuns, guard_engine
from brix_llamaindex.llm import GuardedLLM, guarded_llms

MAX_SHOWN: Final = 80
"""Characters of something that cannot be guarded, at most, in the error that says so."""


@overload
def guard(target: LLM, **options: Unpack[GuardOptions]) -> GuardedLLM: ...
@overload
def guard(target: BaseQueryEngine, **options: Unpack[GuardOptions]) -> GuardedQueryRuns: ...
@overload
def guard(target: BaseChatEngine, **options: Unpack[GuardOptions]) -> GuardedChatRuns: ...
@overload
def guard(target: BaseWorkflowAgent | AgentWorkflow, **options: Unpack[GuardOptions]) -> GuardedAgentRuns: ...
def guard(target: Any, **options: Unpack[GuardOptions]) -> Any:
    """Put guards around every call of an LLM, or of all LLMs of a query engine, a chat engine or an agent.

    What is given is left as it is. A guarded LLM works on a copy of it and shares its connections. Retries of the
    LLM's own are switched off in that copy: ``max_retries`` of the guards takes their place, and is counted and paid
    for.

    Of an engine or agent, whatever leads to an LLM is copied (synthesizers, retrievers, sub-engines, selectors,
    memories, tools), and all LLMs in the copy share one budget, one rate and one trace. Indexes and stores are shared,
    so a chat engine goes on with the same conversation. ``total_timeout`` is the time for one run (a query, a
    message, a run of an agent) and not for the session: no call begins after it, asynchronous runs are cut off.

    LlamaIndex takes `Settings.llm` when an engine is built and not when it is asked: guard it before, or the engine
    after. LLMs that a function uses, or an object of a class that is not LlamaIndex's, are not reached: a warning
    is logged. An LLM that is set on the guarded object later is put behind the guards, too, and so is one in a memory
    that is given to ``agent.run``.

    The session and the run in which a streamed answer was asked for count, wherever it is read. The exception is an
    engine that is not guarded around an LLM that is: LlamaIndex asks the LLM only when the answer is read, so guard the
    engine, or read the answer within the session. Agents stream, too: with ``response_schema``, ``stream_mode`` is
    ``"validated"`` for them when left out, since what has been streamed cannot be healed.

    A response says whose call it was, what it cost and what was decided about it, in ``additional_kwargs["brix"]``
    (`brix_core.response_metadata.metadata_of`); of a stream the last chunk does. An engine's prompts hold documents and
    question in one text, so ``regulated_spec`` takes all of it for the user's words there; `GuardedQueryEngine` tells
    them apart.

    Args:
        target: An LLM, a query engine, a chat engine, an agent or an `AgentWorkflow`, not guarded yet.
        **options: See `brix_core.GuardOptions`. ``fallbacks`` takes further LLMs, ``retrieval_provider`` an
            `IndexRetrievalProvider`, ``regulated_signals`` programs and selectors, too (`brix_llamaindex.signals`).

    Returns:
        An object of a subclass of its class, for whatever takes one.

    Raises:
        BrixConfigurationError: It is none of these, is guarded already, has no LLM, or an option cannot be used.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> llm = guard(MockLLM(max_tokens=3), max_cost_usd=0.01, prices={"MockLLM": (1e-6, 2e-6)})
        >>> llm.complete("Hello").text, isinstance(llm, MockLLM), llm.brix.context.call_count
        ('text text text', True, 1)
        >>> [trace["outcome"] for trace in llm.get_traces()]
        ['ok']

        >>> from llama_index.core.chat_engine import SimpleChatEngine
        >>> from llama_index.core.memory import ChatMemoryBuffer
        >>> engine = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=ChatMemoryBuffer.from_defaults())
        >>> chat = guard(engine, max_retries=2, total_timeout=30)
        >>> _ = chat.chat("Hello")
        >>> isinstance(chat, SimpleChatEngine), len(chat.get_traces())
        (True, 1)
    """
    if isinstance(target, ENGINES):
        return guard_engine(target, options)
    if not isinstance(target, LLM):
        raise BrixConfigurationError(_not_taken(target))
    return guarded_llms([target], options)[0]


def _not_taken(target: Any) -> str:
    kind = type(target).__name__
    taken = "guard takes a LlamaIndex LLM, a query engine, a chat engine, an agent or an AgentWorkflow"
    if isinstance(target, BaseIndex):
        return f"{taken}, and no index; give index.as_query_engine(), or make a GuardedQueryEngine(index, ...)"
    if isinstance(target, Workflow):
        return f"{taken}, and not the workflow {kind}; guard the LLMs that its steps use"
    if isinstance(target, type):
        return f"{taken}, got the class {target.__name__}; give an instance of it"
    shown = repr(target)
    return f"{taken}, got a {kind}" + (f": {shown}" if len(shown) <= MAX_SHOWN else "")


__all__ = ["guard"]
