"""What every guarded object tells of its guards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brix_core.session import Session
from brix_langchain.sessions import session_of

if TYPE_CHECKING:
    from brix_core.pipeline import Pipeline


class TellsOfItsGuards:
    """For classes with a pipeline.

    Example:
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> from brix_langchain import guard
        >>> guard(FakeListChatModel(responses=["Paris"]), max_retries=2).guards
        ('observability', 'retry')
    """

    if TYPE_CHECKING:
        _pipeline: Pipeline

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of its calls, newest first; ``run_id`` is LangChain's where it tells.

        Args:
            session_id: Only those of this session.
        """
        return self._pipeline.traces.get_traces(session_id)

    @property
    def context(self) -> Session:
        """The session that a call made here and now would belong to."""
        return self._pipeline.session(session_of(None))

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the active guards, outermost first."""
        return self._pipeline.names


__all__ = ["TellsOfItsGuards"]
