"""What a response says of the guards it passed: whose call it was, what it cost, and what was decided about it.

The adapters of frameworks put it where their responses have a place for metadata, under the name ``brix``. So it is in
whatever records those responses: checkpoints, LangSmith, LlamaIndex's instrumentation. It is JSON, and never sent to a
provider.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from brix_core.audit.redaction import scrubbed
from brix_core.call import CACHED, LogicalCall

BRIX: Final = "brix"
"""The name under which it stands in a response's metadata."""

REGULATED_RESULT: Final = "regulated_result"
"""Where the `StructuredResult` of the regulated guard is in `LogicalCall.metadata`."""


def cost_of(call: LogicalCall) -> float | None:
    """What a call has cost so far, USD; None when nothing was metered. An answer from the guards' cache costs nothing.

    Example:
        >>> from brix_core.clock import SystemClock
        >>> from brix_core.session import Session
        >>> session = Session("user-42", SystemClock())
        >>> cost_of(LogicalCall(run_id="r-1", session=session, started=0.0, started_at=0.0)) is None
        True
    """
    costs = [attempt.cost_nano for attempt in call.attempts if attempt.cost_nano is not None]
    return sum(costs) / 1e9 if costs or call.metadata.get(CACHED) else None


def metadata_of(call: LogicalCall) -> dict[str, Any]:
    """What a response says of its call, once that has ended.

    Returns:
        ``run_id``, ``session_id`` and ``cost_usd``; ``decisions`` as in the trace, where there are any; ``regulated``,
        the fields of the `StructuredResult`, where the call was under a spec.

    Example:
        >>> from brix_core.clock import SystemClock
        >>> from brix_core.session import Session
        >>> session = Session("user-42", SystemClock())
        >>> call = LogicalCall(run_id="r-1", session=session, started=0.0, started_at=0.0)
        >>> metadata_of(call)
        {'run_id': 'r-1', 'session_id': 'user-42', 'cost_usd': None}
        >>> call.decide("retry", "retried", reason="status 503")
        >>> metadata_of(call)["decisions"]
        [{'guard': 'retry', 'decision': 'retried', 'reason': 'status 503'}]
    """
    told: dict[str, Any] = {
        "run_id": call.run_id,
        "session_id": call.session.session_id,
        "cost_usd": cost_of(call),
    }
    if call.decisions:
        told["decisions"] = scrubbed(copy.deepcopy(call.decisions))
    result = call.metadata.get(REGULATED_RESULT)
    if result is not None:
        told["regulated"] = result.model_dump(mode="json")
    return told


__all__ = ["BRIX", "REGULATED_RESULT", "cost_of", "metadata_of"]
