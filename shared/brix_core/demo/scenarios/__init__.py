"""The scenarios, one module each: whatever module here has a ``SCENARIOS``, it is played.

To add one, add a module. It sees frameworks only through the `Stage` it plays on, so it runs on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter
from pkgutil import iter_modules

from brix_core.demo.scene import Scenario


def scenarios(*, live: bool = False, more: Iterable[Scenario] = ()) -> list[Scenario]:
    """All scenarios for the demo server, or for a real provider, in their order.

    Args:
        live: For a real provider.
        more: Those of the surfaces.

    Example:
        >>> [scenario.name for scenario in scenarios()][:3]
        ['hello', 'budget', 'rate-limit']
    """
    found = list(more)
    for module in iter_modules(__path__):
        found.extend(import_module(f"{__name__}.{module.name}").SCENARIOS)
    return sorted((scenario for scenario in found if scenario.live is live), key=attrgetter("rank"))


__all__ = ["scenarios"]
