"""What the demo needs to know of a framework: how to build a model there, bare or guarded, and how to ask it.

The core imports no framework. Each surface package implements `Surface` in a module of its own and announces it
as an entry point of the group ``brix.demo``::

    [project.entry-points."brix.demo"]
    langchain = "brix_langchain.demo:SURFACE"
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from brix_core.errors import BrixConfigurationError
from brix_core.options import GuardOptions

if TYPE_CHECKING:
    from brix_core.demo.scene import Scenario

GROUP: Final = "brix.demo"
"""The group of entry points in which surfaces announce themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The endpoint that is asked.

    Attributes:
        base_url: What OpenAI's SDK takes as ``base_url``.
        model: The model to ask for.
        live: Whether this is a real provider.
        api_key: Its key; never part of a ``repr``.

    Example:
        >>> Target(base_url="http://127.0.0.1:1/v1", model="gpt-4o", api_key="secret")
        Target(base_url='http://127.0.0.1:1/v1', model='gpt-4o', live=False)
    """

    base_url: str
    model: str
    live: bool = False
    api_key: str = field(default="no-key-needed", repr=False)


class Chat(Protocol):
    """A model as an application of the framework uses it: a chain, a chat engine."""

    def ask(self, question: str) -> str:
        """Blocking."""
        ...

    async def aask(self, question: str) -> str:
        """On the event loop."""
        ...

    def astream(self, question: str) -> AsyncIterator[str]:
        """Piece by piece."""
        ...

    def traces(self) -> list[dict[str, Any]]:
        """The guards' trace entries, newest first; none without guards."""
        ...


class Connection(Protocol):
    """A framework's models of one endpoint."""

    def bare(self, *, own_retries: bool, max_tokens: int) -> Chat:
        """A model without guards; with the framework's own retries as they are by default, or switched off."""
        ...

    def guarded(self, options: GuardOptions, *, max_tokens: int) -> Chat:
        """The same model behind guards; ``fallbacks`` in its options are names of further models."""
        ...


class Surface(Protocol):
    """A framework's part of the demo.

    Attributes:
        title: The framework's name.
        recipe: One line of code that shows how a model is guarded.
        scenarios: Scenarios that only make sense in this framework.
    """

    title: str
    recipe: str
    scenarios: Sequence[Scenario]

    def connected(self, target: Target) -> AbstractAsyncContextManager[Connection]:
        """Connections to an endpoint; closed at the end of the block. Talks to nobody else."""
        ...


def surface_names() -> list[str]:
    """Names of the surfaces that are installed."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load_surface(name: str) -> Surface:
    """The surface of that name.

    Raises:
        BrixConfigurationError: It is not installed, or lacks a package; the message says what to install.
    """
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        known = ", ".join(surface_names()) or "none: install the package again, with pip"
        raise BrixConfigurationError(f"no surface {name!r} has announced itself; there is {known}")
    try:
        surface = found[0].load()
    except ImportError as error:
        raise BrixConfigurationError(
            f'the demo needs more packages to go through {name} ({error}): pip install "brix-guards[demo]"'
        ) from error
    return cast(Surface, surface)


__all__ = ["GROUP", "Chat", "Connection", "Surface", "Target", "load_surface", "surface_names"]
