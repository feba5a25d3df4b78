"""Whose call it is, as LangChain's configuration tells.

In this order: ``configurable.session_id``, the surrounding ``with brix_core.session(...)``,
``configurable.thread_id``, the default session of the guarded model.
"""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from brix_core.session import checked_session_id, current_session_id


def session_of(config: RunnableConfig | None) -> str | None:
    """The session named by this configuration or by the surrounding run; None leaves it to the core.

    Example:
        >>> session_of({"configurable": {"thread_id": "t-1"}})
        't-1'
        >>> session_of(None) is None
        True
    """
    surrounding = var_child_runnable_config.get()
    if not config and not surrounding:
        return None
    named = _named(config, "session_id") or _named(surrounding, "session_id")
    if named is not None:
        return checked_session_id(named)
    if current_session_id() is not None:
        return None
    thread = _named(config, "thread_id") or _named(surrounding, "thread_id")
    return None if thread is None else str(thread)


def _named(config: Any, key: str) -> Any:
    configurable = config.get("configurable") if config else None
    return configurable.get(key) if configurable else None


__all__ = ["session_of"]
