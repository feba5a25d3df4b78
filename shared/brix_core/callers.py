"""Where in an application the toolkit was called from, for warnings to point there."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Final, NamedTuple

_FRAMEWORKS: Final = frozenset(
    {
        *("brix_core", "brix_langchain", "brix_llamaindex"),
        *("langchain", "langchain_anthropic", "langchain_classic", "langchain_community", "langchain_core"),
        *("langchain_openai", "langgraph", "langsmith", "llama_index", "llama_index_instrumentation", "workflows"),
        *("anthropic", "anyio", "httpx", "openai", "pydantic", "tenacity", "uvloop", "wrapt"),
    }
)
"""Packages through which an application's calls reach a guard, beside the standard library."""


class Caller(NamedTuple):
    """A place in the code.

    Attributes:
        filename: Its file.
        line: The line there.
        module: Name of the module.
    """

    filename: str
    line: int
    module: str


def caller() -> Caller:
    """The innermost place on the stack that is the application's; this function's caller, where there is none.

    There is none in a worker thread of a framework, for example.

    Example:
        >>> namespace = {"__name__": "my_app", "caller": caller}
        >>> exec(compile("where = caller()", "my_app.py", "exec"), namespace)
        >>> namespace["where"]
        Caller(filename='my_app.py', line=1, module='my_app')
    """
    here = sys._getframe(1)
    frame: FrameType | None = here
    while frame is not None and _is_framework(frame):
        frame = frame.f_back
    found = here if frame is None else frame
    return Caller(found.f_code.co_filename, found.f_lineno, _module(found))


def _is_framework(frame: FrameType) -> bool:
    package = _module(frame).partition(".")[0]
    return package in _FRAMEWORKS or package in sys.stdlib_module_names


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""


__all__ = ["Caller", "caller"]
