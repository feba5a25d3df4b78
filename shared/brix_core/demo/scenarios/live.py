"""The scenarios that make sense with a real provider: few calls, short answers, nothing scripted.

There is no run without guards: it would cost real money, and a real server tells nobody what it counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from brix_core.demo.scenarios.observability import broken_link, exhibit
from brix_core.demo.scene import Case, Check, Scenario, Side
from brix_core.demo.stage import Application, Stage

OUTPUT = 32


async def _ask(app: Application) -> None:
    await app.ask("Name one planet.")


async def hello(stage: Stage) -> Sequence[Case]:
    """A call and a stream."""

    async def work(app: Application) -> None:
        await _ask(app)
        await app.stream("Name another planet.")

    model = stage.guarded(max_tokens=OUTPUT, max_retries=2, per_call_timeout=30.0, unknown_price="free")
    side = await stage.run(model, work, give_up=90.0)
    return [
        Case(
            guarded=side,
            did=_outcome(side),
            checks=(Check("both calls are answered", side.answered == len(side.results)),),
        )
    ]


async def budget(stage: Stage) -> Sequence[Case]:
    """A cap too small for any call."""
    side = await stage.run(stage.guarded(max_cost_usd=1e-8, max_tokens=OUTPUT), _ask)
    refused = side.last.error_name == "BrixBudgetError"
    return [
        Case(
            guarded=side,
            did=_outcome(side),
            checks=(Check("the call is refused, nothing is sent", refused and side.counted == 0),),
        )
    ]


async def timeout(stage: Stage) -> Sequence[Case]:
    """A limit too short for any call."""
    side = await stage.run(stage.guarded(max_tokens=OUTPUT, per_call_timeout=0.001, unknown_price="free"), _ask)
    late = side.last.error_name == "BrixTimeoutError"
    return [
        Case(
            guarded=side,
            did=_outcome(side),
            checks=(Check("the wait ends at the limit", late and side.last.seconds < 0.5),),
        )
    ]


async def observability(stage: Stage) -> Sequence[Case]:
    """Two calls and their entries."""

    async def work(app: Application) -> None:
        await _ask(app)
        await _ask(app)

    side = await stage.run(
        stage.guarded(max_tokens=OUTPUT, per_call_timeout=30.0, unknown_price="free"), work, give_up=90.0
    )
    return [
        Case(
            guarded=side,
            did=f"{len(side.traces)} entries",
            checks=(
                Check("one entry for each call", len(side.traces) == len(side.results)),
                Check("the chain is whole", broken_link(side.traces) is None),
            ),
            exhibit=exhibit(side),
        )
    ]


def _outcome(side: Side) -> str:
    last = side.last
    if last.error is not None:
        return f"{last.error_name}: {last.error}"
    return f'"{last.text.strip()}"; ${side.spent:.6f} spent'


SCENARIOS = (
    Scenario(
        name="hello",
        title="A call and a stream",
        options="max_retries=2, per_call_timeout=30",
        story="Two short questions to the real model.",
        play=hello,
        rank=0,
        live=True,
    ),
    Scenario(
        name="budget",
        title="A budget too small for any call",
        options="max_cost_usd=0.00000001",
        story="The call is refused before anything is sent.",
        play=budget,
        rank=10,
        live=True,
        requires_price=True,
    ),
    Scenario(
        name="timeout",
        title="A limit too short for any call",
        options="per_call_timeout=0.001",
        story="No provider answers within a millisecond.",
        play=timeout,
        rank=20,
        live=True,
    ),
    Scenario(
        name="observability",
        title="What is known of two calls",
        options="max_cost_usd=1.00",
        story="Two short questions, and the trace they leave.",
        play=observability,
        rank=30,
        live=True,
    ),
)
