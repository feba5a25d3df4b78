"""G1: the spend of a session never exceeds `max_cost_usd`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brix_core import BrixBudgetError, BrixUnknownPriceError
from brix_core.call import CallRequest
from brix_core.guards import BrixBudgetWarning
from brix_core.usage import Usage
from tests.support.errors import connection_lost, never_reached, status_error
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.ledger import AuditedStore
from tests.support.modes import Mode, both_drivers, both_streams, every_mode
from tests.support.virtual import VirtualClock, run_virtual

silent = pytest.mark.filterwarnings("ignore::brix_core.guards.budget.BrixBudgetWarning")
"""For tests that use a budget up: what it warns of is tested further down."""

CENT = {"prices": {"fake": (0.0, 0.0001)}}
"""With at most 100 tokens of output, a call costs a cent."""


def cents(store: AuditedStore, account: str = "budget:s") -> float:
    return store.balance(account).spent / 1e7


@dataclass
class FirstTryFails(FakeEndpoint):
    """The first attempt of every prompt fails."""

    error: Exception = field(default_factory=lambda: status_error(500))
    seen: set[str] = field(default_factory=set)

    def _raise(self, number: int) -> str | None:
        prompt = self.sent[number].text
        if prompt not in self.seen:
            self.seen.add(prompt)
            raise self.error
        return super()._raise(number)


def a_hundred(mode: Mode, endpoint: FakeEndpoint, threads: int | None = None, **options: Any) -> AuditedStore:
    """100 calls of a cent at the same time, for at most five cents; returns the store, books checked."""
    store = AuditedStore()
    pipe = pipeline(endpoint.clock, store=store, session_id="s", max_cost_usd=0.05, **CENT, **options)
    results = mode.all(Driver(pipe, endpoint), [{"prompt": str(number)} for number in range(100)], threads=threads)
    answered = [result for result in results if isinstance(result, str)]
    refused = [result for result in results if isinstance(result, BrixBudgetError)]
    assert len(answered) + len(refused) == 100
    assert len(answered) <= 5
    assert cents(store) <= 5
    assert len(endpoint.sent) <= store.granted
    assert sum(entry["outcome"] == "ok" for entry in pipe.traces.get_traces()) == len(answered)
    store.assert_sound()
    return store


def cent_endpoint(clock: VirtualClock, **more: Any) -> FakeEndpoint:
    usage = Usage(input_tokens=8, output_tokens=100)
    return FakeEndpoint(clock, latency=1.0, chunk_delay=0.1, usage=usage, known_longest=100, **more)


@silent
@every_mode
def test_of_a_hundred_concurrent_calls_only_those_are_sent_that_can_be_paid(mode: Mode) -> None:
    endpoint = cent_endpoint(VirtualClock())
    store = a_hundred(mode, endpoint)
    assert len(endpoint.sent) == 5
    assert cents(store) == 5


@silent
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_twenty_threads_with_a_hundred_calls_stay_within_the_cap(streamed: bool) -> None:
    endpoint = cent_endpoint(VirtualClock())
    store = a_hundred(Mode("sync", streamed), endpoint, threads=20)
    assert len(endpoint.sent) == 5
    assert cents(store) == 5


@silent
@every_mode
@pytest.mark.parametrize(
    ("error", "attempts"), [(status_error(500), 10), (never_reached(), 10), (connection_lost(), 5)]
)
def test_retries_pay_from_the_same_cap(mode: Mode, error: Exception, attempts: int) -> None:
    # A refusal by the provider is free; an attempt whose connection broke may have been billed, and counts.
    clock = VirtualClock()
    endpoint = FirstTryFails(
        clock,
        latency=1.0,
        usage=Usage(input_tokens=8, output_tokens=100),
        known_longest=100,
        error=error,
    )
    store = a_hundred(mode, endpoint, max_retries=1)
    assert len(endpoint.sent) <= attempts
    assert cents(store) == 5


@silent
@both_drivers
def test_a_failover_pays_from_the_same_cap(mode: Mode) -> None:
    clock, store = VirtualClock(), AuditedStore()
    usage = Usage(input_tokens=8, output_tokens=100)
    primary = FakeEndpoint(clock, behave=lambda number: connection_lost(), known_longest=100)
    fallback = FakeEndpoint(clock, name="other", usage=usage, known_longest=100)
    pipe = pipeline(
        clock,
        [fallback],
        store=store,
        session_id="s",
        max_cost_usd=0.05,
        prices={"fake": (0.0, 0.0001), "other": (0.0, 0.0001)},
    )
    mode.all(Driver(pipe, primary), [{"prompt": str(number)} for number in range(20)])
    assert len(primary.sent) + len(fallback.sent) == 5
    assert cents(store) == 5
    store.assert_sound()


@silent
@both_drivers
def test_pipelines_that_share_store_and_session_share_the_cap(mode: Mode) -> None:
    clock, store = VirtualClock(), AuditedStore()
    endpoint = cent_endpoint(clock)
    drivers = [
        Driver(pipeline(clock, store=store, session_id="s", max_cost_usd=0.05, **CENT), endpoint) for _ in range(2)
    ]
    for driver in drivers:
        mode.all(driver, [{"prompt": str(number)} for number in range(4)])
    assert len(endpoint.sent) == 5
    store.assert_sound()


# Any prices, caps, fates: what the provider really bills


PIECE = " one"  # one token, wherever it stands


class _Piece(str):
    number: int


FATES = {
    "answered": lambda: None,
    "overloaded": lambda: status_error(503),
    "too fast": lambda: status_error(429),
    "bad request": lambda: status_error(400),
    "unreachable": never_reached,
    "lost": connection_lost,
    "unknown": lambda: ValueError("whatever"),
}
REFUSED = ("overloaded", "too fast", "bad request", "unreachable")


@dataclass(frozen=True)
class Rates:
    """Nano-dollars per token."""

    input: int
    output: int
    cache_read: int
    cache_write: int

    def cost(self, usage: Usage) -> int:
        plain = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
        return (
            plain * self.input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
        )

    def options(self) -> dict[str, float]:
        return {name: value / 1e9 for name, value in vars(self).items()}


@dataclass(frozen=True)
class Plan:
    """One call: what it asks for, how much of that it gets, and when its caller leaves."""

    max_tokens: int | None
    n: int
    used: float
    cached: float
    reports: bool
    starts: float
    leaves_at: float | None
    reads: int | None


class Billed(FakeEndpoint):
    """A provider that keeps its own books, to the caller's disadvantage wherever nobody can know."""

    def setup(self, rates: Rates, fates: Sequence[str]) -> None:
        self.rates, self.fates = rates, fates
        self.bills: list[int] = []
        self.numbers: dict[int, int] = {}
        self.kept: list[CallRequest] = []
        self.report = self.usage_of
        self.write = self.pieces
        self.behave = self.fate

    def read_chunk(self, chunk: str) -> str:
        if isinstance(chunk, _Piece):
            request = self.kept[chunk.number]
            if self.numbers[chunk.number] == 0:
                self.bills[chunk.number] = self.rates.cost(self._usage_for(request, 0))
            self.numbers[chunk.number] += 1
            self.bills[chunk.number] += self.rates.output
        return chunk

    def _arrive(self, request: CallRequest) -> int:
        number = super()._arrive(request)
        with self._lock:
            self.kept.append(request)
            self.numbers[number] = 0
            self.bills.append(self.rates.cost(self._usage_for(request, self._output(request))))
        return number

    def fate(self, number: int) -> BaseException | None:
        fate = self.fates[number % len(self.fates)]
        if fate in REFUSED:
            self.bills[number] = 0
        return FATES[fate]()

    def pieces(self, request: CallRequest) -> Sequence[str]:
        number = next(index for index, known in enumerate(self.kept) if known is request)
        pieces = [_Piece(PIECE) for _ in range(self._output(request))]
        for piece in pieces:
            piece.number = number
        return pieces

    def usage_of(self, request: CallRequest) -> Usage | None:
        return self._usage_for(request, self._output(request)) if request.params["plan"].reports else None

    def _output(self, request: CallRequest) -> int:
        cap = request.requested_cap or self.known_longest or 0
        return int(request.params["plan"].used * cap) * self.choices(request.params)

    def _usage_for(self, request: CallRequest, output: int) -> Usage:
        prompt = request.prompt_tokens()
        cached = int(prompt * request.params["plan"].cached)
        return Usage(
            input_tokens=prompt,
            output_tokens=output,
            cache_read_tokens=cached // 2,
            cache_write_tokens=cached - cached // 2,
        )


plans = st.builds(
    Plan,
    max_tokens=st.one_of(st.none(), st.integers(1, 60)),
    n=st.integers(1, 3),
    used=st.sampled_from([0.0, 0.5, 1.0, 1.0]),
    cached=st.sampled_from([0.0, 0.5, 1.0]),
    reports=st.booleans(),
    starts=st.sampled_from([0.0, 0.0, 0.5, 1.5]),
    leaves_at=st.one_of(st.none(), st.sampled_from([0.0, 0.4, 1.0, 1.05, 1.2, 3.0])),
    reads=st.one_of(st.none(), st.integers(0, 5)),
)
rates = st.builds(
    Rates,
    input=st.integers(0, 20_000),
    output=st.integers(0, 200_000),
    cache_read=st.integers(0, 20_000),
    cache_write=st.integers(0, 40_000),
)


def _read(driver: Driver, plan: Plan, request: CallRequest) -> None:
    if not request.stream:
        driver.pipe.call(request)
        return
    chunks = driver.pipe.stream(request)
    for number, _ in enumerate(chunks, 1):
        if plan.reads is not None and number >= plan.reads:
            break
    chunks.close()  # type: ignore[attr-defined]


async def _aread(driver: Driver, plan: Plan, request: CallRequest) -> None:
    if not request.stream:
        await driver.pipe.acall(request)
        return
    number = 0
    async with contextlib.aclosing(driver.pipe.astream(request)) as chunks:  # type: ignore[type-var]
        async for _ in chunks:
            number += 1
            if plan.reads is not None and number >= plan.reads:
                break


@silent
@every_mode
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_neither_our_books_nor_the_providers_bill_ever_exceed_the_cap(mode: Mode, data: st.DataObject) -> None:
    clock, store = VirtualClock(), AuditedStore()
    endpoint = Billed(clock, latency=1.0, chunk_delay=0.1, known_longest=40)
    endpoint.setup(data.draw(rates), data.draw(st.lists(st.sampled_from(sorted(FATES)), min_size=1, max_size=6)))
    cap = data.draw(st.integers(1, 40_000_000))
    options = {
        "max_cost_usd": cap / 1e9,
        "budget_clamp_output": data.draw(st.booleans()),
        "max_retries": data.draw(st.integers(0, 2)),
        "prices": {"fake": endpoint.rates.options()},
    }
    if mode.driver == "async" and data.draw(st.booleans()):
        options["per_call_timeout"] = 1.25
        options["on_timeout"] = data.draw(st.sampled_from(["raise", "return_partial"]))
    driver = Driver(pipeline(clock, store=store, session_id="s", **options), endpoint)
    calls = data.draw(st.lists(plans, min_size=1, max_size=10))

    def request(number: int, plan: Plan) -> CallRequest:
        prompt = "word " * number
        return driver.request(prompt, stream=mode.streamed, plan=plan, max_tokens=plan.max_tokens, n=plan.n)

    def blocking(number: int, plan: Plan) -> None:
        clock.sleep(plan.starts)
        _read(driver, plan, request(number, plan))

    async def on_loop(number: int, plan: Plan) -> None:
        await asyncio.sleep(plan.starts)
        await _aread(driver, plan, request(number, plan))

    async def main() -> None:
        tasks = [asyncio.create_task(on_loop(number, plan)) for number, plan in enumerate(calls)]
        for task, plan in zip(tasks, calls, strict=True):
            if plan.leaves_at is not None:
                asyncio.get_running_loop().call_later(plan.leaves_at, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)

    if mode.driver == "async":
        run_virtual(main, clock)
    else:
        clock.run_threads([lambda pair=pair: blocking(*pair) for pair in enumerate(calls)])
    store.assert_sound()
    assert store.overcharged == []
    assert sum(endpoint.bills) <= store.balance("budget:s").spent <= cap
    assert endpoint.in_flight == 0


# What a call is charged


def guarded(endpoint: FakeEndpoint, **options: Any) -> tuple[Driver, AuditedStore]:
    store = AuditedStore()
    options = {"max_cost_usd": 1.0, "session_id": "s", "store": store, **options}
    return Driver(pipeline(endpoint.clock, **options), endpoint), store


def prompt_tokens(driver: Driver, model: str = "gpt-4o-mini") -> int:
    return driver.request("hello", model=model).prompt_tokens()


@both_streams
@pytest.mark.parametrize("model", ["gpt-4o-mini", "unknown-model"])
def test_a_stream_past_its_output_cap_is_cut_and_charged_for_what_arrived(mode: Mode, model: str) -> None:
    endpoint = FakeEndpoint(VirtualClock(), chunks=[PIECE] * 50)
    driver, store = guarded(endpoint, prices={model: (1e-6, 1e-5)})
    with pytest.raises(BrixBudgetError) as caught:
        mode.one(driver, model=model, max_tokens=10)
    assert caught.value.partial == PIECE * 10
    assert caught.value.limit_usd == 1.0
    assert store.balance("budget:s").spent == prompt_tokens(driver, model) * 1_000 + 11 * 10_000
    assert endpoint.in_flight == 0
    (entry,) = driver.pipe.traces.get_traces()
    assert entry["partial_text"] == PIECE * 10
    assert [decision["decision"] for decision in entry["decisions"]] == ["cut"]
    store.assert_sound()


@both_streams
def test_a_stream_that_keeps_its_cap_is_delivered_to_its_end(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock(), chunks=[PIECE] * 10)
    driver, _ = guarded(endpoint, prices={"unknown-model": (0, 1e-5)})
    assert mode.one(driver, model="unknown-model", max_tokens=10) == PIECE * 10


@both_streams
def test_under_warn_a_stream_past_its_cap_goes_on_and_is_charged_in_full(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock(), chunks=[PIECE] * 50)
    driver, store = guarded(endpoint, prices={"gpt-4o-mini": (0, 1e-5)}, budget_strategy="warn")
    assert mode.one(driver, model="gpt-4o-mini", max_tokens=10) == PIECE * 50
    assert store.balance("budget:s").spent == 50 * 10_000


@both_streams
def test_a_broken_stream_is_charged_for_the_prompt_and_what_arrived(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock(), chunks=[PIECE] * 50, cut_after=7)
    driver, store = guarded(endpoint, prices={"gpt-4o-mini": (1e-6, 1e-5)})
    with pytest.raises(ConnectionResetError):
        mode.one(driver, model="gpt-4o-mini", max_tokens=100)
    assert store.balance("budget:s").spent == prompt_tokens(driver) * 1_000 + 7 * 10_000


@both_streams
def test_a_broken_stream_of_a_model_that_reasons_unseen_is_charged_its_worst_case(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock(), chunks=[PIECE] * 50, cut_after=7)
    driver, store = guarded(endpoint, prices={"o3-mini": (1e-6, 1e-5)})
    with pytest.raises(ConnectionResetError):
        mode.one(driver, model="o3-mini", max_tokens=100)
    assert store.balance("budget:s").spent == prompt_tokens(driver, "o3-mini") * 1_000 + 100 * 10_000


@every_mode
@pytest.mark.parametrize(
    ("error", "charged"),
    [
        (status_error(400), False),
        (status_error(429), False),
        (status_error(500), False),
        (never_reached(), False),
        (ConnectionRefusedError(), False),
        (connection_lost(), True),
        (TimeoutError(), True),
        (ValueError("a parser's"), True),
    ],
    ids=repr,
)
def test_a_failed_call_is_charged_its_worst_case_if_it_may_have_been_billed(
    mode: Mode, error: Exception, charged: bool
) -> None:
    endpoint = FakeEndpoint(VirtualClock(), behave=lambda number: error)
    driver, store = guarded(endpoint, prices={"gpt-4o-mini": (0, 1e-5)})
    with pytest.raises(type(error)):
        mode.one(driver, model="gpt-4o-mini", max_tokens=100)
    assert store.balance("budget:s").spent == (100 * 10_000 if charged else 0)
    store.assert_sound()


@every_mode
def test_cached_and_reasoning_tokens_settle_at_the_providers_prices(mode: Mode) -> None:
    usage = Usage(input_tokens=1_000, output_tokens=100, cache_read_tokens=800, reasoning_tokens=60)
    endpoint = FakeEndpoint(VirtualClock(), usage=usage)
    driver, store = guarded(endpoint)
    mode.one(driver, model="gpt-4o-mini", max_tokens=100)
    # 0.15, 0.075 (cached) and 0.60 USD per million; reasoning is part of the output.
    assert store.balance("budget:s").spent == 200 * 150 + 800 * 75 + 100 * 600
    assert driver.pipe.session().session_cost_usd == 0.00015


@every_mode
def test_cache_writes_settle_at_their_own_price(mode: Mode) -> None:
    usage = Usage(input_tokens=1_000, output_tokens=10, cache_write_tokens=600)
    endpoint = FakeEndpoint(VirtualClock(), usage=usage)
    prices = {"m": {"input": 1e-6, "output": 1e-5, "cache_write": 1.25e-6}}
    driver, store = guarded(endpoint, prices=prices)
    mode.one(driver, model="m", max_tokens=10)
    assert store.balance("budget:s").spent == 400 * 1_000 + 600 * 1_250 + 10 * 10_000


@every_mode
def test_an_answer_without_usage_is_counted(mode: Mode) -> None:
    driver, store = guarded(FakeEndpoint(VirtualClock(), chunks=[PIECE] * 30), prices={"gpt-4o": (1e-6, 1e-5)})
    mode.one(driver, model="gpt-4o", max_tokens=100)
    assert store.balance("budget:s").spent == prompt_tokens(driver, "gpt-4o") * 1_000 + 30 * 10_000
    assert driver.pipe.traces.get_traces()[0]["usage_estimated"] is True


# What a call may ask for


@every_mode
def test_the_output_cap_is_lowered_to_what_is_affordable(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock(), usage=Usage(input_tokens=8, output_tokens=20))
    driver, store = guarded(endpoint, max_cost_usd=0.0006, prices={"m": (0, 1e-5)})
    mode.one(driver, model="m", max_tokens=100)
    assert endpoint.sent[0].cap == 60
    (entry,) = driver.pipe.traces.get_traces()
    assert {"guard": "budget", "decision": "clamped", "output_cap": 60, "wanted": 100} in entry["decisions"]
    store.assert_sound()


@every_mode
@pytest.mark.parametrize(
    ("budget", "n", "cap"), [(600, 1, 60), (600, 3, 20), (170, 1, 17), (150, 1, None), (470, 3, None)]
)
def test_several_answers_share_what_is_affordable_down_to_a_useful_minimum(
    mode: Mode, budget: int, n: int, cap: int | None
) -> None:
    endpoint = FakeEndpoint(VirtualClock(), usage=Usage(input_tokens=8, output_tokens=1))
    driver, _ = guarded(endpoint, max_cost_usd=budget / 1e6, prices={"m": (0, 1e-5)})
    if cap is None:
        with pytest.raises(BrixBudgetError):
            mode.one(driver, model="m", max_tokens=100, n=n)
    else:
        mode.one(driver, model="m", max_tokens=100, n=n)
    assert [sent.cap for sent in endpoint.sent] == ([] if cap is None else [cap])


@every_mode
def test_without_clamping_a_call_that_might_cost_too_much_is_refused(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock())
    driver, store = guarded(endpoint, max_cost_usd=0.0006, prices={"m": (0, 1e-5)}, budget_clamp_output=False)
    with pytest.raises(BrixBudgetError) as caught:
        mode.one(driver, model="m", max_tokens=100)
    assert (caught.value.limit_usd, caught.value.spent_usd, caught.value.needed_usd) == (0.0006, 0.0, 0.001)
    assert "max_cost_usd=0.0006" in str(caught.value)
    assert endpoint.sent == []
    store.assert_sound()


@every_mode
def test_a_call_that_nothing_bounds_is_given_an_output_cap(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock(), usage=Usage(input_tokens=8, output_tokens=1))
    driver, _ = guarded(endpoint, prices={"m": (0, 1e-6)})
    mode.one(driver, model="m")
    assert endpoint.sent[0].cap == 4_096


@every_mode
def test_a_cap_of_infinity_meters_and_never_blocks(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock(), usage=Usage(input_tokens=8, output_tokens=1_000))
    driver, store = guarded(endpoint, max_cost_usd=float("inf"), prices={"m": (0, 1.0)})
    mode.each(driver, [{"model": "m", "max_tokens": 1_000}] * 3)
    assert len(endpoint.sent) == 3
    assert store.balance("budget:s").spent == 3_000 * 10**9


# Prices nobody knows, and prices of nothing


@every_mode
def test_a_model_without_a_price_is_refused_by_default(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock())
    driver, _ = guarded(endpoint)
    with pytest.raises(BrixUnknownPriceError, match="prices=") as caught:
        mode.one(driver, model="nobody-knows-it")
    assert caught.value.model == "nobody-knows-it"
    assert endpoint.sent == []


@every_mode
def test_a_model_without_a_price_goes_through_with_one_warning_under_warn(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock())
    driver, _ = guarded(endpoint, unknown_price="warn")
    with pytest.warns(BrixBudgetWarning) as caught:
        mode.each(driver, [{"model": model} for model in ("nobody-knows-it", "nobody-knows-it", "nor-this")])
    assert len(endpoint.sent) == 3
    assert ["nobody-knows-it" in str(w.message) for w in caught] == [True, False]
    assert "nor-this" in str(caught[1].message)
    assert all(w.filename.startswith(str(Path(__file__).parents[1])) for w in caught)


@every_mode
def test_a_model_without_a_price_goes_through_in_silence_under_free(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock())
    driver, store = guarded(endpoint, unknown_price="free", max_cost_usd=1e-9)
    mode.each(driver, [{"model": "nobody-knows-it"}] * 3)
    assert len(endpoint.sent) == 3
    assert store.balance("budget:s") == (0, 0)


@every_mode
def test_a_free_model_is_never_blocked_not_even_on_a_spent_budget(mode: Mode) -> None:
    usage = Usage(input_tokens=8, output_tokens=100)
    endpoint = FakeEndpoint(VirtualClock(), usage=usage)
    driver, _ = guarded(
        endpoint,
        max_cost_usd=0.01,
        prices={"paid": (0, 0.0001), "local": (0, 0)},
        budget_warning_threshold=1.0,
    )
    with pytest.warns(BrixBudgetWarning):
        mode.one(driver, model="paid", max_tokens=100)
    results = mode.each(driver, [{"model": "paid", "max_tokens": 100}, {"model": "local"}, {"model": "local"}])
    assert [isinstance(result, str) for result in results] == [False, True, True]
    assert endpoint.sent[-1].cap is None


# Warnings


@every_mode
def test_a_session_is_warned_once_when_its_budget_is_nearly_used_up(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock(), usage=Usage(input_tokens=8, output_tokens=100))
    driver, _ = guarded(endpoint, max_cost_usd=0.1, prices={"m": (0, 0.0001)}, budget_warning_threshold=0.5)
    call = {"model": "m", "max_tokens": 100}
    assert all(isinstance(result, str) for result in mode.each(driver, [call] * 4))  # a warning is an error here
    with pytest.warns(BrixBudgetWarning) as caught:
        mode.each(driver, [call] * 4)
    assert len(caught) == 1
    assert "$0.050000 of max_cost_usd=0.1" in str(caught[0].message)
    assert caught[0].filename.startswith(str(Path(__file__).parents[1]))  # and not in the guard itself
    assert caught[0].lineno > 1
    with pytest.warns(BrixBudgetWarning) as caught:
        mode.each(driver, [{**call, "session": "another"}] * 8)
    assert ["another" in str(w.message) for w in caught] == [True]


@every_mode
def test_under_warn_calls_go_on_past_the_cap_and_the_excess_is_announced_once(mode: Mode) -> None:
    endpoint = FakeEndpoint(VirtualClock(), usage=Usage(input_tokens=8, output_tokens=100))
    driver, store = guarded(
        endpoint,
        max_cost_usd=0.025,
        prices={"m": (0, 0.0001)},
        budget_strategy="warn",
        budget_warning_threshold=1.0,
    )
    with pytest.warns(BrixBudgetWarning) as caught:
        results = mode.each(driver, [{"model": "m", "max_tokens": 100}] * 6)
    assert all(isinstance(result, str) for result in results)
    assert cents(store) == 6
    assert [sent.cap for sent in endpoint.sent] == [100] * 6
    assert len(caught) == 1
    assert "$0.030000 of max_cost_usd=0.025" in str(caught[0].message)
    assert store.balance("budget:s").reserved == 0
