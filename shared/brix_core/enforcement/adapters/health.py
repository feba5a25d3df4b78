"""Health checks of models that belong to a framework: by the SDK's client inside, where there is one.

Example:
    >>> probe(object(), 1.0)  # nothing to ask: nothing is known against it
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from brix_core.endpoints.sources import in_worker

_CLIENTS: Final = ("root_client", "_client")
"""Where the models of LangChain keep the clients of the openai and anthropic SDKs."""

_MAKERS: Final = ("_get_client",)
"""What the LLMs of LlamaIndex make theirs with."""


def probe(model: Any, timeout: float) -> None:
    """Ask for the list of models, which costs no tokens; raises when that fails. Nothing is asked without a client.

    Args:
        model: A framework's model.
        timeout: Longest time it may take, seconds.
    """
    client = next(_clients(model), None)
    if client is not None:
        client.with_options(max_retries=0).models.list(timeout=timeout)


async def probed(model: Any, timeout: float) -> None:
    """As `probe`, on the event loop."""
    await in_worker(partial(probe, model, timeout))


def _clients(model: Any) -> Iterator[Any]:
    for name in _CLIENTS:
        yield from _blocking(getattr(model, name, None))
    for name in _MAKERS:
        make = getattr(model, name, None)
        if callable(make):
            with contextlib.suppress(Exception):  # it may want arguments, or a key that is not there
                yield from _blocking(make())


def _blocking(client: Any) -> Iterator[Any]:
    bases = {base.__name__ for base in type(client).__mro__}
    if "SyncAPIClient" in bases and hasattr(client, "models"):
        yield client


__all__ = ["probe", "probed"]
