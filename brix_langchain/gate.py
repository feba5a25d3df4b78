"""Refusing by callbacks: what a run that is over may not begin any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler

from brix_core.call import Attempt
from brix_core.errors import BrixError, BrixGuardBlockedError
from brix_langchain.open_calls import withdraw
from brix_langchain.refusals import final_in_graph


class Gate(BaseCallbackHandler):
    """Lets nothing further begin in a run that was given up and goes on all the same, and no stream go on in it.

    After a time limit a worker thread goes on. A stream that its consumer has closed goes on as well: LangChain's
    parsers read the rest of it, for their callbacks.

    Args:
        attempt: The attempt at the run.
    """

    raise_error = True
    run_inline = True

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Refuse it when the run was given up."""
        if self._attempt.outcome not in (None, "ok"):
            refuse(
                BrixGuardBlockedError(
                    f"the run of {self._attempt.endpoint} is over ({self._attempt.outcome}); nothing further begins "
                    "in it",
                    guard="timeout",
                ),
                **kwargs,
            )

    on_llm_start = on_tool_start = on_retriever_start = on_chat_model_start

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        """Stop the stream when the run was given up, as closing it does: whoever reads on is not told of an error."""
        if self._attempt.outcome not in (None, "ok"):
            raise GeneratorExit

    on_stream_event = on_llm_new_token


def refuse(
    error: BrixError,
    *,
    run_id: UUID,
    invocation_params: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    **_: Any,
) -> NoReturn:
    """Raise it; what other callbacks have reserved for the call, and for the batch it is one of, is free again."""
    withdraw(run_id, invocation_params if batch_size > 1 else None, error)
    final_in_graph(error)
    raise error


__all__ = ["Gate", "refuse"]
