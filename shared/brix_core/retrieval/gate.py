"""Only what is relevant enough gets past, and every retrieval leaves a trace entry.

The entries look like those of the model calls that the retrieval was made for, and have their session. Neither the
query nor a document's text is kept, but their SHA-256.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from asyncio import CancelledError
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias
from uuid import uuid4

from brix_core import checks
from brix_core.call import Outcome
from brix_core.clock import Clock, SystemClock
from brix_core.errors import BrixRetrievalError
from brix_core.retrieval.results import RetrievedDocument, sources_of
from brix_core.session import checked_session_id, current_session_id

OnLow: TypeAlias = Literal["drop", "refuse"]
"""What to do when no document is relevant enough: go on without any, or raise."""

MAX_MESSAGE: Final = 1_000
"""Characters of an error message that are kept."""


class RetrievalGate:
    """Lets documents past whose score is high enough.

    Args:
        min_score: Relevance a document must have, in [0, 1].
        on_low: When none has it, ``"refuse"`` raises `BrixRetrievalError`, ``"drop"`` goes on with no document.
        trace_buffer_size: Entries kept in memory; the oldest go first.
        session_id: The session of retrievals made in none; a new UUID4 when left out.
        clock: The time.

    Raises:
        BrixConfigurationError: An option cannot be used as given.

    Example:
        >>> gate = RetrievalGate(min_score=0.5, on_low="drop")
        >>> with gate.retrieval("When are you open?") as admit:
        ...     admit([RetrievedDocument(text="Closed on Sundays.", score=0.9, source="handbook.md"),
        ...            RetrievedDocument(text="Our history.", score=0.2, source="history.md")])
        [True, False]
        >>> [(document["source"], document["kept"]) for document in gate.get_traces()[0]["documents"]]
        [('handbook.md', True), ('history.md', False)]
    """

    def __init__(
        self,
        *,
        min_score: float,
        on_low: OnLow = "refuse",
        trace_buffer_size: int = 1_000,
        session_id: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.min_score = checks.fraction("min_score", min_score, zero=True)
        checks.one_of("on_low", on_low, ("drop", "refuse"))
        self.on_low: OnLow = on_low
        self.default_id = str(uuid4()) if session_id is None else checked_session_id(session_id)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._entries: deque[dict[str, Any]] = deque(maxlen=checks.whole("trace_buffer_size", trace_buffer_size, 1))

    @contextmanager
    def retrieval(self, query: str | None, session_id: str | None = None) -> Iterator[_Admission]:
        """One retrieval: the block finds documents, asks which of them may pass, and ends in one entry.

        Args:
            query: The query, if known.
            session_id: The session, when the framework's configuration names one.
        """
        admit = _Admission(self.min_score, self.on_low)
        started, started_at = self._clock.now(), self._clock.time()
        session_id = session_id or current_session_id() or self.default_id
        error: BaseException | None = None
        try:
            yield admit
        except BaseException as raised:
            error = raised
            raise
        finally:
            entry = {
                "run_id": str(uuid4()),
                "session_id": session_id,
                "timestamp": datetime.fromtimestamp(started_at, UTC).isoformat(),
                "guard": "retrieval",
                "outcome": _outcome(error),
                "error": None if error is None else type(error).__name__,
                "error_message": None if error is None else str(error)[:MAX_MESSAGE],
                "latency_ms": (self._clock.now() - started) * 1_000.0,
                "query_hash": None if query is None else _sha256(query),
                "min_score": self.min_score,
                "score": max((document.score for document in admit.documents), default=None),
                "documents": [
                    {
                        "source": document.source,
                        "score": document.score,
                        "kept": document.score >= self.min_score,
                        "text_hash": _sha256(document.text),
                    }
                    for document in admit.documents
                ],
            }
            admit.entry = entry
            with self._lock:
                self._entries.append(entry)

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries, newest first.

        Args:
            session_id: Only those of this session.
        """
        with self._lock:
            entries = list(self._entries)
        return [copy.deepcopy(entry) for entry in reversed(entries) if session_id in (None, entry["session_id"])]


class _Admission:
    """Which of the documents found may pass."""

    def __init__(self, min_score: float, on_low: OnLow) -> None:
        self.documents: Sequence[RetrievedDocument] = ()
        self.entry: dict[str, Any] | None = None  # once it has ended
        self._min_score = min_score
        self._on_low = on_low

    def __call__(self, documents: Sequence[RetrievedDocument]) -> list[bool]:
        """Whether each may pass.

        Raises:
            BrixRetrievalError: None may, and that is to be refused.
        """
        self.documents = documents
        passing = [document.score >= self._min_score for document in documents]
        if self._on_low == "refuse" and not any(passing):
            best = max((document.score for document in documents), default=0.0)
            found = (
                f"the best of {len(documents)} documents has a score of {best:.3f}"
                if documents
                else "nothing was found"
            )
            raise BrixRetrievalError(
                f"{found}, and min_score={self._min_score:g} is asked for; add documents that answer such questions, "
                "lower min_score, or pass on_low='drop' to go on without any",
                score=best,
                threshold=self._min_score,
                sources=sources_of(documents),
            )
        return passing


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "ok"
    if isinstance(error, BrixRetrievalError):
        return "refused"
    return "cancelled" if isinstance(error, CancelledError | KeyboardInterrupt | SystemExit) else "failed"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


__all__ = ["MAX_MESSAGE", "OnLow", "RetrievalGate"]
