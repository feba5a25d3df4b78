"""How drivers ask a retrieval provider: no longer than they are told to wait."""

from __future__ import annotations

from functools import partial

from brix_core.drivers.alarm import Alarm
from brix_core.drivers.attempts import LimitReachedError
from brix_core.drivers.workers import submit
from brix_core.flow import Retrieve
from brix_core.retrieval.results import RetrievalResult


def retrieved(effect: Retrieve) -> RetrievalResult:
    """Ask, and wait in this thread.

    Raises:
        TimeoutError: It took longer; the provider goes on by itself, and what it finds is dropped.
        Exception: What the provider raises.
    """
    from brix_core.retrieval.calls import retrieve  # the portal's event loop is not always needed

    ask = partial(retrieve, effect.provider, effect.query)
    if effect.seconds is None:
        return ask()
    job = submit(ask)
    if not job.wait(effect.seconds):
        raise _too_late(effect)
    if job.error is not None:
        raise job.error
    result: RetrievalResult = job.result
    return result


async def aretrieved(effect: Retrieve) -> RetrievalResult:
    """Ask, on the event loop; otherwise as `retrieved`."""
    from brix_core.retrieval.calls import aretrieve

    ask = partial(aretrieve, effect.provider, effect.query)
    if effect.seconds is None:
        return await ask()
    alarm = Alarm()
    try:
        result: RetrievalResult = await alarm.wait(ask, effect.seconds, "call")
        return result
    except LimitReachedError:
        raise _too_late(effect) from None
    finally:
        alarm.close()


def _too_late(effect: Retrieve) -> TimeoutError:
    return TimeoutError(f"{type(effect.provider).__name__}.retrieve() gave nothing within {effect.seconds:g} s")


__all__ = ["aretrieved", "retrieved"]
