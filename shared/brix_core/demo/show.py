"""The demo itself: plays scenarios on every framework, and adds up what was spent and sent."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

from brix_core.demo.collection import collect
from brix_core.demo.render import Screen
from brix_core.demo.scene import Case, Check, Scenario, Side
from brix_core.demo.server import DemoServer
from brix_core.demo.stage import DEFAULT_OUTPUT, MODEL, Application, Stage
from brix_core.demo.surface import Connection, Surface, Target, load_surface, surface_names
from brix_core.errors import BrixConfigurationError
from brix_core.prices import PriceBook
from brix_core.store import MemoryStore

LIVE_MODEL: Final = "gpt-4o-mini"


class UnknownName(ValueError):
    """A scenario or a surface that does not exist; the message names those that do, and the closest."""


@dataclass(slots=True)
class Tally:
    """One session: what the guards counted and charged, what the server saw and would bill."""

    cap: float
    spent: float = 0.0
    billed: float = 0.0
    counted: int = 0
    seen: int = 0
    unguarded: float = 0.0

    @property
    def agrees(self) -> bool:
        """Server and guards counted alike, and the cap holds."""
        return self.counted == self.seen and self.spent <= self.cap

    def add(self, guarded: Side, bare: Side | None) -> None:
        """Add one case."""
        self.cap = min(self.cap, guarded.cap)
        self.spent += guarded.spent
        self.billed += guarded.billed
        self.counted += guarded.counted
        self.seen += guarded.sent
        if bare is not None:
            self.unguarded += bare.billed


@dataclass(slots=True)
class Outcome:
    """What a show came to.

    Attributes:
        sessions: Tallies by session and title of the surface.
        failures: Claims that the figures did not bear out.
        played: Scenarios played.
    """

    sessions: dict[str, dict[str, Tally]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    played: int = 0


def chosen(names: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """The known names that were asked for, in their own order; all when none was.

    Raises:
        UnknownName: Somebody asked for another one.

    Example:
        >>> chosen(["b", "a"], ["a", "b", "c"], "scenario")
        ['a', 'b']
    """
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UnknownName(f"there is no {what} {name!r}.{hint} Known are: {', '.join(known)}")
    return [name for name in known if not names or name in names]


def load_surfaces(names: Sequence[str]) -> dict[str, Surface]:
    """Surfaces by name; all that are installed, when none is named.

    Raises:
        UnknownName: There is no such surface.
        BrixConfigurationError: None is installed, or a package is missing.
    """
    known = surface_names()
    if not known:
        raise BrixConfigurationError(
            'no framework has announced itself to the demo: pip install "brix-guards[demo]", or in a checkout, '
            'pip install -e ".[demo]"'
        )
    with _quiet():
        return {name: load_surface(name) for name in chosen(names, known, "framework")}


def programme(surfaces: Mapping[str, Surface], *, live: bool) -> list[Scenario]:
    """Every scenario there is, in order."""
    return collect(live=live, more=[one for surface in surfaces.values() for one in surface.scenarios])


def live_target(environment: Mapping[str, str] = os.environ, model: str | None = None) -> Target:
    """The real provider that the environment names.

    Raises:
        BrixConfigurationError: It names none.
    """
    missing = [name for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL") if not environment.get(name, "").strip()]
    if missing:
        raise BrixConfigurationError(
            f"--live asks a real provider, and needs {' and '.join(missing)} in the environment, for example "
            "OPENAI_BASE_URL=https://api.openai.com/v1"
        )
    return Target(
        base_url=environment["OPENAI_BASE_URL"].strip(),
        api_key=environment["OPENAI_API_KEY"].strip(),
        model=model or LIVE_MODEL,
        live=True,
    )


async def show(
    screen: Screen, playing: Sequence[Scenario], surfaces: Sequence[Surface], live: Target | None = None
) -> Outcome:
    """Play scenarios.

    Args:
        screen: Where to show them.
        playing: Which ones.
        surfaces: Through which frameworks.
        live: The real provider to ask; the demo server, started here, when left out.

    Returns:
        What it came to; `Outcome.failures` is empty when all went as claimed.
    """
    outcome = Outcome()
    server = None if live else DemoServer()
    with _quiet(), server or nullcontext():
        target = live or Target(base_url=server.base_url if server else "", model=MODEL)
        screen.opening(target, surfaces)
        async with AsyncExitStack() as stack:
            connections = {
                surface.title: await stack.enter_async_context(surface.connected(target)) for surface in surfaces
            }
            for title, connection in connections.items() if server else ():
                with screen.waiting(f"warming up {title}"):
                    await _warm_up(connection)
            owners = {id(one): surface.title for surface in surfaces for one in surface.scenarios}
            for number, scenario in enumerate(playing, start=1):
                screen.begin(number, len(playing), scenario)
                if scenario.requires_price and PriceBook().find(target.model, "openai") is None:
                    screen.skip(f"skipped: no price is known for {target.model}, so no budget can be kept")
                    continue
                owner = owners.get(id(scenario))
                through = {owner: connections[owner]} if owner else connections
                await _play(screen, scenario, through, target, server, outcome)
                outcome.played += 1
    screen.summary(outcome.sessions, outcome.failures, live=live is not None)
    return outcome


async def _warm_up(connection: Connection) -> None:
    """A few calls that are not counted, so that no run is charged for the imports and tables of a first call."""
    guarded = connection.guarded({"max_cost_usd": 1.0, "store": MemoryStore()}, max_tokens=DEFAULT_OUTPUT)
    for chat in (connection.bare(own_retries=False, max_tokens=DEFAULT_OUTPUT), guarded):
        application = Application(chat, give_up=20.0)
        await application.ask("Hello", blocking=True)
        await application.ask("Hello")
        await application.stream("Hello")


async def _play(
    screen: Screen,
    scenario: Scenario,
    connections: Mapping[str, Connection],
    target: Target,
    server: DemoServer | None,
    outcome: Outcome,
) -> None:
    """One scenario, on each framework."""
    cases: dict[str, Sequence[Case]] = {}
    for title, connection in connections.items():
        stage = Stage(connection, target, server, session=scenario.name)
        with screen.waiting(f"{scenario.name}, through {title}"):
            cases[title] = [_counted_alike(case) for case in await scenario.play(stage)]
        for case in cases[title]:
            tallies = outcome.sessions.setdefault(case.guarded.session, {})
            tallies.setdefault(title, Tally(case.guarded.cap)).add(case.guarded, case.bare)
            outcome.failures += [f"{scenario.name}, {title}: {check.claim}" for check in case.checks if not check.holds]
    screen.cases(cases, live=target.live)


def _counted_alike(case: Case) -> Case:
    """The case, with what every one of them claims."""
    guarded = case.guarded
    claims = [Check("spent no more than max_cost_usd", guarded.spent <= guarded.cap)]
    if guarded.stats is not None:
        claims.append(Check("server and guards count alike", guarded.counted == guarded.stats.requests))
    return Case(
        label=case.label,
        guarded=guarded,
        bare=case.bare,
        did=case.did,
        without=case.without,
        checks=(*case.checks, *claims),
        exhibit=case.exhibit,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and log records of the libraries, which are about the scripted faults, off the screen."""
    root, silence = logging.getLogger(), logging.NullHandler()
    root.addHandler(silence)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(silence)


__all__ = [
    "LIVE_MODEL",
    "Outcome",
    "Tally",
    "UnknownName",
    "chosen",
    "live_target",
    "load_surfaces",
    "programme",
    "show",
]
