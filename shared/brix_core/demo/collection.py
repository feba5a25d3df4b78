"""Finds the scenarios: whatever module of `brix_core.demo.scenarios` has ``SCENARIOS``, and those of the surfaces."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter
from pkgutil import iter_modules

from brix_core.demo import scenarios
from brix_core.demo.scene import Scenario


def collect(*, live: bool = False, more: Iterable[Scenario] = ()) -> list[Scenario]:
    """All scenarios for the demo server, or for a real provider, in their order.

    Args:
        live: For a real provider.
        more: Those of the surfaces.

    Example:
        >>> [scenario.name for scenario in collect()][:3]
        ['hello', 'budget', 'rate-limit']
    """
    found = list(more)
    for module in iter_modules(scenarios.__path__):
        found.extend(import_module(f"{scenarios.__name__}.{module.name}").SCENARIOS)
    return sorted((scenario for scenario in found if scenario.live is live), key=attrgetter("rank"))


__all__ = ["collect"]
