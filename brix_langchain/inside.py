"""What guards do *inside* a run they cannot look into: by callbacks, at each model and tool call below it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config

from brix_core.call import CallRequest, LogicalCall
from brix_core.errors import BrixBudgetError, BrixError
from brix_core.flow import Flow
from brix_core.pipeline import Pipeline
from brix_core.prices import to_nano, usd
from brix_core.session import Session
from brix_core.store import Store
from brix_langchain.bills import Bill
from brix_langchain.callbacks import BrixCallbackHandler
from brix_langchain.gate import refuse
from brix_langchain.refusals import final_in_graph
from brix_langchain.sessions import session_of

log = logging.getLogger(__name__)

_EVENTS: Final = (
    *(f"on_{what}_{event}" for what in ("llm", "chain", "tool", "retriever") for event in ("end", "error")),
    *(f"on_{what}_start" for what in ("chain", "tool", "retriever")),
    "on_llm_new_token",
    "on_stream_event",
)
"""What LangChain tells handlers of, and ours want to know, beside the beginnings of model calls."""

_telling: ContextVar[BrixGuards | None] = ContextVar("brix_telling", default=None)
"""Who tells its members of the beginning of a model call just now."""

_charged_by_model: ContextVar[bool] = ContextVar("brix_charged_by_model", default=False)
"""Whether the guards of that model charge it."""


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


def surrounding_cap(store: Store, handlers: Iterable[Any] = (), own: Inside | None = None) -> float | None:
    """The lowest cap of the guarded runs around a call, USD, that are kept in accounts of this store.

    Args:
        store: Where the call is charged.
        handlers: The callbacks of the call, as far as they are known; those of the surrounding run count as well.
        own: The callbacks whose own cap the call is under anyway.
    """
    keepers = [one for one in _keepers(runs_around(handlers)) if one is not own]
    return min((one.cap for one in keepers if one.cap is not None and one.store is store), default=None)


def runs_around(handlers: Iterable[Any] = ()) -> list[BrixGuards]:
    """The guards of the runs around a call.

    Args:
        handlers: The callbacks of the call, as far as they are known; those of the surrounding run count as well.
    """
    around: Any = (var_child_runnable_config.get() or {}).get("callbacks") or ()
    known = (_telling.get(), *handlers, *getattr(around, "handlers", around))
    return list(dict.fromkeys(one for one in known if isinstance(one, BrixGuards)))


@contextmanager
def on_their_bills(
    call: LogicalCall, around: Iterable[BrixGuards], store: Store | None, by: Inside | None = None
) -> Iterator[None]:
    """While a model call is under way, the runs around it know of it, and at its end what it came to.

    Args:
        call: The call.
        around: The guards of those runs.
        store: Where it is charged, if it is.
        by: The callbacks that charge it; None where the model's own guards do.
    """
    bills = list(dict.fromkeys(bill for one in around for bill in one.bills))
    meters = _meters(around)
    bills = [bill for bill in bills if _counts(bill, meters, store, by)]
    for bill in bills:
        bill.add(call)
    try:
        yield
    finally:
        for bill in bills:
            bill.call_ended()
        for keeper in _keepers(around):
            if keeper is not by and keeper.store is store:
                keeper.spent_elsewhere(call.session)


def _counts(bill: Bill, meters: Sequence[Inside], store: Store | None, by: Inside | None) -> bool:
    """Whether a charge is the one that counts for a run: where there are several accounts, a call has several.

    The charge of the run's own callbacks does. Where they leave the call to others, and where the run has none, that
    of the model's own guards does, or else that of the outermost run inside this one.
    """
    own = bill.own if bill.own in meters else None
    if by is None:
        return (store is not None or not meters) if own is None else own.store is store
    return by is own or (own is None and by is meters[0] and not _charged_by_model.get())


def _meters(around: Iterable[BrixGuards]) -> list[Inside]:
    """The callbacks that charge the calls they are told of, of the outermost run first."""
    inside = dict.fromkeys(member for one in around for member in one.members if isinstance(member, Inside))
    return [one for one in inside if "budget" in one.guards]


def _keepers(around: Iterable[BrixGuards]) -> set[Inside]:
    return {member.keeper for one in around for member in one.members if isinstance(member, Inside | Watch)}


class Inside(BrixCallbackHandler):
    """The callbacks of a guarded run. A model inside that is guarded itself is not charged twice.

    Such a model charges its calls to the same account, and keeps the lower of the two caps.

    Args:
        max_cost_usd: Cap of the session, USD.
        **options: See `BrixCallbackHandler`.

    Attributes:
        cap: `max_cost_usd` where it is enforced.
        told_of_models: Whether any call of a model was told of yet.
    """

    def __init__(self, *, max_cost_usd: float | None = None, **options: Any) -> None:
        super().__init__(max_cost_usd=max_cost_usd, **options)
        strict = max_cost_usd is not None and max_cost_usd < math.inf and options.get("budget_strategy") != "warn"
        self.cap = max_cost_usd if strict else None
        self.told_of_models = False
        self._said_so = "budget" not in self.guards

    @property
    def keeper(self) -> Inside:
        """Who keeps the cap: itself."""
        return self

    @property
    def store(self) -> Store:
        """Where calls are charged."""
        return self._pipeline.store

    def on_chat_model_start(self, serialized: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """See `BrixCallbackHandler`."""
        self.told_of_models = True
        if charges(serialized, self.store):
            self.refuse_when_spent(**kwargs)
        else:
            _final(super().on_chat_model_start, serialized, *args, **kwargs)

    def on_llm_start(self, serialized: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """See `BrixCallbackHandler`."""
        self.told_of_models = True
        if charges(serialized, self.store):
            self.refuse_when_spent(**kwargs)
        else:
            _final(super().on_llm_start, serialized, *args, **kwargs)

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        """See `BrixCallbackHandler`."""
        _final(super().on_llm_new_token, *args, **kwargs)

    def on_stream_event(self, *args: Any, **kwargs: Any) -> None:
        """See `BrixCallbackHandler`."""
        _final(super().on_stream_event, *args, **kwargs)

    def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
        """See `BrixCallbackHandler`."""
        _final(super().on_tool_start, *args, **kwargs)

    def _watched(self, request: CallRequest) -> Flow:
        """In a guarded run around this one, its cap holds, too."""
        request.call.cap_usd = surrounding_cap(self.store, own=self)
        if "budget" not in self.guards:
            return (yield from super()._watched(request))
        with on_their_bills(request.call, runs_around(), self.store, self):
            return (yield from super()._watched(request))

    def spent_elsewhere(self, session: Session) -> None:
        """Others have charged a call to an account of this store.

        Args:
            session: As they know it.
        """
        if "budget" in self.guards:
            self._pipeline.session(session.session_id).session_cost_usd = session.session_cost_usd

    def run_ended(self, name: str) -> None:
        """Say once that a budget is kept where no model was told of yet.

        Args:
            name: Of what was run.
        """
        if not (self.told_of_models or self._said_so):
            self._said_so = True
            log.warning(
                "max_cost_usd: no call of a model was told of while %s ran. What asks one by other means than "
                "LangChain's, an SDK's client for example, is not metered here: wrap that client with BRIX.wrap()",
                name,
            )

    def beneath(self, other: BaseCallbackHandler) -> BaseCallbackHandler:
        """What takes this handler's place in a run inside this one, whose guards may charge the same accounts."""
        if not isinstance(other, Inside) or other.store is not self.store:
            return self
        return Watch(self) if "budget" in self.guards and "budget" in other.guards else self

    def refuse_when_spent(self, **run: Any) -> None:
        """Refuse a call that others charge.

        Args:
            **run: What LangChain tells of it.

        Raises:
            BrixBudgetError: The run's cap is reached.
        """
        session = self._pipeline.session(session_of(None))
        if self.cap is None:
            return
        money = self.store.balance(f"budget:{session.session_id}")
        session.session_cost_usd = usd(money.spent)
        if money.spent + money.reserved < to_nano(self.cap):
            return
        refuse(
            BrixBudgetError(
                f"session {session.session_id} has used up max_cost_usd={self.cap:g} of the run it is in; raise it, "
                "or begin a new session",
                limit_usd=self.cap,
                spent_usd=usd(money.spent),
                reserved_usd=usd(money.reserved),
            ),
            **run,
        )


class Watch(BaseCallbackHandler):
    """Keeps a run's cap in a run inside it, which charges its model calls by itself; what tools do is told on.

    Args:
        inside: The callbacks of the outer run.
    """

    raise_error = True
    run_inline = True

    def __init__(self, inside: Inside) -> None:
        self.keeper = inside
        for what in ("tool", "chain", "retriever"):
            for event in ("start", "end", "error"):
                setattr(self, f"on_{what}_{event}", getattr(inside, f"on_{what}_{event}"))

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Refuse it when the outer run's cap is reached."""
        self.keeper.told_of_models = True
        self.keeper.refuse_when_spent(**kwargs)

    on_llm_start = on_chat_model_start


class BrixGuards(BaseCallbackHandler):
    """The guards of runs, as LangChain's log lines name them when they refuse.

    They are one handler, for LangChain forgets to await the others when one of several refuses.

    Args:
        members: Told of everything, in this order.
        bills: What the runs come to.
    """

    raise_error = True
    run_inline = True

    def __init__(self, members: Iterable[BaseCallbackHandler], bills: Iterable[Bill] = ()) -> None:
        self.members = tuple(dict.fromkeys(members))
        self.bills = tuple(bills)
        for event in _EVENTS:
            told = [getattr(member, event) for member in self.members if hasattr(member, event)]
            setattr(self, event, partial(_tell, told))

    def on_chat_model_start(self, serialized: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Ask every member whether the call may be made."""
        self._begin("on_chat_model_start", serialized, *args, **kwargs)

    def on_llm_start(self, serialized: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Ask every member whether the call may be made."""
        self._begin("on_llm_start", serialized, *args, **kwargs)

    def _begin(self, event: str, serialized: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        is_guarded = isinstance(serialized, Description)
        telling = _telling.set(self)
        charged = _charged_by_model.set(isinstance(serialized, Description) and serialized.store is not None)
        try:
            for member in self.members:
                getattr(member, event)(serialized, *args, **kwargs)
        finally:
            _charged_by_model.reset(charged)
            _telling.reset(telling)
        if not is_guarded and not _meters([self]):
            for bill in self.bills:
                bill.sent_unmetered = True

    def __deepcopy__(self, memo: dict[int, Any]) -> BrixGuards:
        """Itself: what its members count is one."""
        return self

    def beneath(self, own: Iterable[BaseCallbackHandler]) -> list[BaseCallbackHandler]:
        """What takes its place in a run inside this one, which has handlers of its own."""
        inner = [one for one in own if isinstance(one, Inside)]
        return [
            one.beneath(inner[0]) if isinstance(one, Inside) and inner and one is not inner[0] else one
            for one in self.members
        ]


def _tell(handlers: Iterable[Callable[..., Any]], *args: Any, **kwargs: Any) -> None:
    for handler in handlers:
        handler(*args, **kwargs)


def _final(tell: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    try:
        tell(*args, **kwargs)
    except BrixError as error:
        final_in_graph(error)
        raise


__all__ = [
    "BrixGuards",
    "Description",
    "Inside",
    "Watch",
    "charges",
    "described",
    "on_their_bills",
    "runs_around",
    "surrounding_cap",
]
