"""What guards do *inside* a run they cannot look into: by callbacks, at each model and tool call below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler

from brix_core.call import Attempt
from brix_core.errors import BrixBudgetError, BrixGuardBlockedError
from brix_core.pipeline import Pipeline
from brix_core.prices import to_nano, usd
from brix_core.store import Store
from brix_langchain.callbacks import BrixCallbackHandler
from brix_langchain.sessions import session_of


class Description(dict[str, Any]):
    """What callbacks are told of a guarded model: the same as of the bare one, and where its calls are charged."""

    store: Store | None = None


def described(serialized: Mapping[str, Any], pipeline: Pipeline) -> Description:
    """The description of a model behind the guards of this pipeline."""
    description = Description(serialized)
    description.store = pipeline.store if "budget" in pipeline.names else None
    return description


def charges(serialized: Mapping[str, Any] | None, store: Store) -> bool:
    """Whether this is a model whose own guards charge its calls to an account of this store."""
    return isinstance(serialized, Description) and serialized.store is store


class Inside(BrixCallbackHandler):
    """The callbacks of a guarded run. A model inside that is guarded itself is not charged twice.

    Such a model charges its calls to the same account, under its own cap. Here it is refused once the run's cap is
    reached; what it reserves beyond that is its own guards' business.

    Args:
        max_cost_usd: Cap of the session, USD.
        **options: See `BrixCallbackHandler`.
    """

    def __init__(self, *, max_cost_usd: float | None = None, **options: Any) -> None:
        super().__init__(max_cost_usd=max_cost_usd, **options)
        strict = max_cost_usd is not None and max_cost_usd < math.inf and options.get("budget_strategy") != "warn"
        self._cap = max_cost_usd if strict else None

    def on_chat_model_start(self, serialized: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """See `BrixCallbackHandler`."""
        if charges(serialized, self._pipeline.store):
            self.refuse_when_spent()
        else:
            super().on_chat_model_start(serialized, *args, **kwargs)

    def on_llm_start(self, serialized: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """See `BrixCallbackHandler`."""
        if charges(serialized, self._pipeline.store):
            self.refuse_when_spent()
        else:
            super().on_llm_start(serialized, *args, **kwargs)

    def beneath(self, other: BaseCallbackHandler) -> BaseCallbackHandler:
        """What takes this handler's place in a run inside this one, whose guards may charge the same accounts."""
        if not isinstance(other, Inside) or other._pipeline.store is not self._pipeline.store:
            return self
        return Watch(self) if "budget" in self.guards and "budget" in other.guards else self

    def refuse_when_spent(self) -> None:
        """Refuse a call that others charge.

        Raises:
            BrixBudgetError: The run's cap is reached.
        """
        session = self._pipeline.session(session_of(None))
        if self._cap is None:
            return
        money = self._pipeline.store.balance(f"budget:{session.session_id}")
        session.session_cost_usd = usd(money.spent)
        if money.spent + money.reserved >= to_nano(self._cap):
            raise BrixBudgetError(
                f"session {session.session_id} has used up max_cost_usd={self._cap:g} of the run it is in; raise it, "
                "or begin a new session",
                limit_usd=self._cap,
                spent_usd=usd(money.spent),
                reserved_usd=usd(money.reserved),
            )


class Watch(BaseCallbackHandler):
    """Keeps a run's cap in a run inside it, which charges its model calls by itself; what tools do is told on.

    Args:
        inside: The callbacks of the outer run.
    """

    raise_error = True
    run_inline = True

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        for what in ("tool", "chain", "retriever"):
            for event in ("start", "end", "error"):
                setattr(self, f"on_{what}_{event}", getattr(inside, f"on_{what}_{event}"))

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Refuse it when the outer run's cap is reached."""
        self._inside.refuse_when_spent()

    on_llm_start = on_chat_model_start


class Gate(BaseCallbackHandler):
    """Lets nothing further begin in a run that was given up, and goes on in a worker thread.

    Args:
        attempt: The attempt at the run.
    """

    raise_error = True
    run_inline = True

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Refuse it when the run is over."""
        if self._attempt.outcome is not None:
            raise BrixGuardBlockedError(
                f"the run of {self._attempt.endpoint} was given up ({self._attempt.outcome}); nothing further begins "
                "in it",
                guard="timeout",
            )

    on_llm_start = on_tool_start = on_retriever_start = on_chat_model_start


__all__ = ["Description", "Gate", "Inside", "Watch", "charges", "described"]
