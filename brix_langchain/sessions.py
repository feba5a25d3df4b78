"""Whose call it is, as LangChain's configuration tells.

In this order: ``configurable.session_id``, the surrounding ``with brix_core.session(...)``,
``configurable.thread_id``, the default session of the guarded model.

A thread of LangGraph that is resumed from a checkpoint is the same session, and keeps what it has spent, as long as the
guards' store knows of it. The default store ends with the process.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    named = _named("session_id", config, surrounding)
    if named is not None:
        return checked_session_id(named)
    if current_session_id() is not None:
        return None
    thread = _named("thread_id", config, surrounding)
    return None if thread is None else checked_session_id(str(thread))


def session_told(metadata: Mapping[str, Any] | None) -> str | None:
    """The session, as far as callbacks are told of it: by the surrounding run, or else by the metadata.

    Example:
        >>> session_told({"session_id": "u-1", "thread_id": "t-1"})
        'u-1'
    """
    named = session_of(None)
    if named is None and current_session_id() is None and metadata:
        named = metadata.get("session_id") or metadata.get("thread_id")
    return None if named is None else str(named)


def is_told_by_nobody() -> bool:
    """Whether LangChain has lost the configuration here: in a model that a chain calls, that is.

    Batches of two and more inputs, and LangChain's older chains, call their steps outside of any run's context.
    """
    return var_child_runnable_config.get() is None and current_session_id() is None


def _named(key: str, *configs: Any) -> Any:
    """The first value given; an empty one is given, and refused: it would be somebody else's session."""
    for config in configs:
        configurable = config.get("configurable") if config else None
        if configurable and (value := configurable.get(key)) is not None:
            return value
    return None


__all__ = ["is_told_by_nobody", "session_of", "session_told"]
