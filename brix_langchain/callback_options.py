"""Which options callbacks can keep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

from brix_core.errors import BrixConfigurationError
from brix_core.guards import BudgetConfig, CircuitBreakerConfig, LoopConfig, ObservabilityConfig
from brix_core.options import Parsed, option_names, parse
from brix_core.store import MemoryStore

_GUARDS: Final = (BudgetConfig, CircuitBreakerConfig, LoopConfig, ObservabilityConfig)
_KEPT: Final = frozenset(
    {field.name for config in _GUARDS for field in dataclasses.fields(config)}
    - {"budget_clamp_output", "diversity_attempts", "loop_diversity_prompt"}
    | {"circuit_breaker", "per_step_timeout", "total_timeout", "session_id", "store", "clock"}
)
_DETECTIONS: Final = ("exact_loop_detection", "semantic_loop_detection", "tool_loop_detection")


def parse_for_callbacks(options: Mapping[str, Any]) -> Parsed:
    """Check options, with the defaults that callbacks can keep.

    Raises:
        BrixConfigurationError: An option that callbacks cannot keep, or a bad value.
    """
    given = {name: value for name, value in options.items() if value is not None}
    refused = [name for name, value in given.items() if not _can_keep(name, value)]
    if refused:
        raise BrixConfigurationError(
            f"{', '.join(refused)} cannot be kept by callbacks, which can neither delay a call, nor change it, nor "
            f"make it again. Guard the model: guard(model, {refused[0]}=...), or use BrixMiddleware"
        )
    given.setdefault("store", MemoryStore())
    if "max_cost_usd" in given:
        given["budget_clamp_output"] = False
        if given["max_cost_usd"] == math.inf:
            given["budget_strategy"] = "warn"  # metered only: nothing to refuse a model or cut a stream for
    if any(given.get(name) for name in _DETECTIONS):
        given["on_loop"] = "raise"
    return parse(given)


def _can_keep(name: str, value: Any) -> bool:
    if name == "budget_clamp_output":
        return value is False
    if name == "on_loop":
        return bool(value != "inject_diversity")
    return name in _KEPT or name not in option_names()  # one that nobody knows is refused with a better hint


__all__ = ["parse_for_callbacks"]
