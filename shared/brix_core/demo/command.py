"""``brix demo``: from what was asked for to an exit code, with a readable message for whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from brix_core.demo.render import Screen, console
from brix_core.demo.show import UnknownName, chosen, live_target, load_surfaces, programme, show
from brix_core.errors import BrixConfigurationError, BrixError

log = logging.getLogger(__name__)

HELD: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asked for.

    Attributes:
        scenarios: Names of scenarios; all, when empty.
        through: Names of frameworks; all that are installed, when empty.
        listing: Only list the scenarios.
        live: Ask a real provider.
        model: Which model of it.
        color: Whether colours are welcome.
    """

    scenarios: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    listing: bool = False
    live: bool = False
    model: str | None = None
    color: bool = True


def run(wish: Wish, environment: Mapping[str, str] = os.environ) -> int:
    """Play the demo.

    Args:
        wish: What to play.
        environment: Where ``--live`` looks for its endpoint.

    Returns:
        The exit code: 0 when every claim holds, 1 when one does not or the demo cannot run, 2 for a name that
        does not exist, 130 after Ctrl-C.
    """
    # Also what a provider's own error message may quote, and log records never reach the screen.
    secret = environment.get("OPENAI_API_KEY", "").strip()
    screen = Screen(console(color=wish.color), secret)
    errors = Screen(console(color=wish.color, stderr=True), secret)
    try:
        return _run(wish, environment, screen)
    except UnknownName as error:
        errors.error(str(error))
        return USAGE
    except KeyboardInterrupt:
        errors.stopped()
        return INTERRUPTED
    except BrixError as error:
        errors.error(str(error))
    except Exception as error:
        log.debug("the demo failed", exc_info=True)
        errors.error(f"the demo could not go on: {type(error).__name__}: {error}")
    return FAILED


def _run(wish: Wish, environment: Mapping[str, str], screen: Screen) -> int:
    if wish.model and not wish.live:
        raise BrixConfigurationError("--model is for --live; the demo server plays one model only")
    live = live_target(environment, wish.model) if wish.live and not wish.listing else None
    with screen.starting():
        surfaces = load_surfaces(wish.through)
    known = programme(surfaces, live=wish.live)
    names = chosen(wish.scenarios, [scenario.name for scenario in known], "scenario")
    playing = [scenario for scenario in known if scenario.name in names]
    if wish.listing:
        screen.listing(playing)
        return HELD
    outcome = asyncio.run(show(screen, playing, list(surfaces.values()), live))
    return FAILED if outcome.failures else HELD


__all__ = ["FAILED", "HELD", "INTERRUPTED", "USAGE", "Wish", "run"]
