"""Guards around every call of a LlamaIndex model.

Example:
    >>> from llama_index.core.llms import MockLLM
    >>> from brix_llamaindex import guard
    >>> llm = guard(MockLLM(), per_call_timeout=30.0)
    >>> str(llm.complete("Hello")), len(llm.get_traces())
    ('Hello', 1)
"""

from brix_llamaindex.enforcement import EnforcementProgram, LlamaIndexAdapter
from brix_llamaindex.engines import GuardedAgentRuns, GuardedChatRuns, GuardedQueryRuns
from brix_llamaindex.event_handler import BrixEventHandler
from brix_llamaindex.events import BrixGuardEvent
from brix_llamaindex.guarding import guard
from brix_llamaindex.guards import Guards
from brix_llamaindex.llm import GuardedLLM
from brix_llamaindex.output_parser import BrixOutputParser
from brix_llamaindex.query_engine import GuardedQueryEngine
from brix_llamaindex.retrieval import IndexRetrievalProvider, RegulatedPostprocessor
from brix_llamaindex.signals import SelectorSignal
from brix_llamaindex.tools import GuardedTool, ToolOptions, guard_tool, guard_tools

__all__ = [
    "BrixEventHandler",
    "BrixGuardEvent",
    "BrixOutputParser",
    "EnforcementProgram",
    "GuardedAgentRuns",
    "GuardedChatRuns",
    "GuardedLLM",
    "GuardedQueryEngine",
    "GuardedQueryRuns",
    "GuardedTool",
    "Guards",
    "IndexRetrievalProvider",
    "LlamaIndexAdapter",
    "RegulatedPostprocessor",
    "SelectorSignal",
    "ToolOptions",
    "guard",
    "guard_tool",
    "guard_tools",
]
