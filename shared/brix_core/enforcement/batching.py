"""Many jobs, some at a time, their results in order."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from brix_core import checks
from brix_core.drivers.workers import submit
from brix_core.errors import BrixConfigurationError

log = logging.getLogger(__name__)

_T = TypeVar("_T")

Progress = Callable[[int, int], object]
"""Told how many jobs are done, and of how many, whenever one is."""


async def gathered(
    jobs: Sequence[Callable[[], Awaitable[_T]]], max_concurrency: int, progress: bool | Progress
) -> list[_T]:
    """Run jobs on this event loop. What one raises ends them all; so does a cancellation."""
    checks.whole("max_concurrency", max_concurrency, 1)
    results: list[Any] = [None] * len(jobs)
    places = iter(range(len(jobs)))

    with shown(progress, len(jobs)) as done:

        async def work() -> None:
            for place in places:
                results[place] = await jobs[place]()
                done()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(max_concurrency, len(jobs))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return results


def in_threads(jobs: Sequence[Callable[[], _T]], max_concurrency: int, progress: bool | Progress) -> list[_T]:
    """Run jobs in threads, in the caller's context. What one raises ends the batch: no further one is begun."""
    checks.whole("max_concurrency", max_concurrency, 1)
    results: list[Any] = [None] * len(jobs)
    lock, places = threading.Lock(), iter(range(len(jobs)))
    stopped = threading.Event()

    with shown(progress, len(jobs)) as done:

        def work() -> None:
            while not stopped.is_set():
                with lock:
                    place = next(places, None)
                if place is None:
                    return
                try:
                    results[place] = jobs[place]()
                    with lock:
                        done()
                except BaseException:
                    stopped.set()
                    raise

        workers = [submit(work) for _ in range(min(max_concurrency, len(jobs)))]
        try:
            for worker in workers:
                worker.wait(None)
        finally:  # KeyboardInterrupt comes to the waiting thread
            stopped.set()
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    return results


@contextmanager
def shown(progress: bool | Progress, total: int) -> Iterator[Callable[[], None]]:
    """A function to call whenever a job is done, which shows how far the batch is.

    A `progress` that raises is logged once and called on.

    Raises:
        BrixConfigurationError: `progress` is neither a bool nor a function.
    """
    count, failed = 0, False
    if progress is False or progress is None:
        yield lambda: None
    elif progress is True:
        from rich.console import Console  # takes its time to import, and is shown only on request
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda: bar.advance(task)
    elif callable(progress):
        tell = progress

        def done() -> None:
            nonlocal count, failed
            count += 1
            try:
                tell(count, total)
            except Exception:  # what is done is paid for, and must not be lost
                if not failed:
                    log.exception("progress could not be told; the batch goes on")
                failed = True

        yield done
    else:
        raise BrixConfigurationError(f"progress must be True, False or a function of two ints, got {progress!r:.200}")


__all__ = ["Progress", "gathered", "in_threads", "shown"]
