"""What a hook holds back reaches the consumer late, whole and in order; or never, and nobody else either."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brix_core import BrixTimeoutError
from brix_core.call import CallRequest, CallResponse
from brix_core.drivers.stepwise import Stepwise
from brix_core.flow import compose
from tests.support.fake import Driver, FakeEndpoint, pipeline
from tests.support.ledger import AuditedStore
from tests.support.virtual import VirtualClock, run_virtual

PHRASE = "a1b2"


class PhraseError(Exception):
    """The phrase was there."""


@dataclass
class Censor:
    """Stops a stream at `PHRASE` where nothing follows it or a blank does, and holds back what may become it."""

    finished: list[str] = field(default_factory=list)
    text: str = ""

    def anew(self) -> Censor:
        return Censor(self.finished)

    def __call__(self, text: str) -> None:
        self.text += text
        if PHRASE + " " in self.text:
            raise PhraseError

    def held_back(self) -> int:
        return next(size for size in range(len(PHRASE), -1, -1) if self.text.endswith(PHRASE[:size]))

    def finish(self) -> None:
        self.finished.append(self.text)
        if self.text.endswith(PHRASE):
            raise PhraseError


@dataclass
class Provider(FakeEndpoint):
    """Chunks in brackets are without text; before chunk `stall_at` it blocks in earnest, where nothing is virtual."""

    stall_at: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)

    def read_chunk(self, chunk: str) -> str:
        return "" if chunk.startswith("[") else chunk

    def stream(self, request: CallRequest) -> Iterator[str]:
        for number, chunk in enumerate(super().stream(request)):
            if number == self.stall_at:
                self.gate.wait(1.0)
            yield chunk

    async def astream(self, request: CallRequest) -> AsyncIterator[str]:
        number = 0
        async for chunk in super().astream(request):
            if number == self.stall_at:
                await self.clock.asleep(1_000.0)
            yield chunk
            number += 1


class Consumer:
    """Reads streams of one pipeline, and remembers what it got, the chunks of an error too."""

    def __init__(self, is_async: bool, endpoint: dict[str, Any] | None = None, **options: Any) -> None:
        self.is_async = is_async
        self.clock = VirtualClock()
        self.store = AuditedStore()
        self.endpoint = Provider(self.clock, **(endpoint or {}))
        self.pipe = pipeline(self.clock, store=self.store, **options)
        self.driver = Driver(self.pipe, self.endpoint)
        self.censor = Censor()
        self.got: list[str] = []

    def request(self, *, stream: bool = True, **params: Any) -> CallRequest:
        return self.driver.request(stream=stream, **params).evolve(hooks=(self.censor,))

    def read(self, chunks: Sequence[str] | None = None, **params: Any) -> Exception | None:
        """The error the stream ended with."""
        if chunks is not None:
            self.endpoint.chunks = chunks
        self.got = []
        try:
            if self.is_async:
                run_virtual(lambda: self._aread(params), self.clock)
            else:
                self.got.extend(self.pipe.stream(self.request(**params)))
        except Exception as error:
            return error
        return None

    async def _aread(self, params: dict[str, Any]) -> None:
        async for chunk in self.pipe.astream(self.request(**params)):
            self.got.append(chunk)

    def collect(self, chunks: Sequence[str]) -> CallResponse:
        self.endpoint.chunks = chunks
        request = self.request(stream=False).evolve(collect=True)
        if self.is_async:
            return run_virtual(lambda: self.pipe.acall(request), self.clock)
        return self.pipe.call(request)

    @property
    def text(self) -> str:
        return "".join(map(self.endpoint.read_chunk, self.got))

    @property
    def trace(self) -> dict[str, Any]:
        return self.pipe.traces.get_traces()[0]


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def chunkings(text: str) -> Iterator[list[str]]:
    """All ways to cut a text."""
    for cuts in range(2 ** (len(text) - 1)):
        chunks, start = [], 0
        for place in range(1, len(text)):
            if cuts >> (place - 1) & 1:
                chunks.append(text[start:place])
                start = place
        yield [*chunks, text[start:]]


@both
@pytest.mark.parametrize("text", ["xa a1b2 y", "xxa1a1b2", "a1b2"])
def test_nothing_of_what_is_stopped_arrives_however_it_is_cut(is_async: bool, text: str) -> None:
    consumer = Consumer(is_async, trace_buffer_size=1)
    ways = 0
    for chunks in chunkings(text):
        assert isinstance(consumer.read(chunks), PhraseError)
        assert text[: text.index(PHRASE)].startswith(consumer.text)
        assert consumer.trace["partial_text"] == consumer.text
        ways += 1
    assert len(consumer.endpoint.sent) == ways == 2 ** (len(text) - 1)


@both
@pytest.mark.parametrize("text", ["a1b a1b2c", "xa1a1b2b2"])
def test_what_is_harmless_arrives_whole_and_in_order_however_it_is_cut(is_async: bool, text: str) -> None:
    consumer = Consumer(is_async, trace_buffer_size=1)
    for chunks in chunkings(text):
        assert consumer.read(chunks) is None
        assert consumer.got == chunks


@given(st.lists(st.text("a1b2 x", max_size=6).map(lambda text: text or "[meta]"), max_size=12), st.booleans())
def test_chunks_are_late_by_no_more_than_is_held_back(chunks: list[str], is_async: bool) -> None:
    consumer = Consumer(is_async)
    arrived: list[str] = []
    late: list[int] = []

    class Noting(Provider):
        def read_chunk(self, chunk: str) -> str:
            held = arrived[len(consumer.got) :]
            if any(not one.startswith("[") for one in consumer.got):
                late.append(len("".join(one for one in held if not one.startswith("["))))
            arrived.append(chunk)
            return super().read_chunk(chunk)

    consumer.endpoint.__class__ = Noting
    error = consumer.read(chunks)
    assert consumer.got == chunks[: len(consumer.got)]
    assert error is not None or consumer.got == chunks
    # A chunk waits whole, so the lag is less than the phrase and the chunk that straddles its beginning.
    assert max(late, default=0) < len(PHRASE) + 6


@both
def test_a_chunk_held_back_in_part_waits_whole_and_chunks_without_text_keep_their_place(is_async: bool) -> None:
    consumer = Consumer(is_async)
    chunks = ["[open]", "xa1", "[usage]", "b", "[more]", "c", "[end]", "d a", "[last]"]
    seen: list[tuple[str, int]] = []

    class Noting(Provider):
        def read_chunk(self, chunk: str) -> str:
            seen.append((chunk, len(consumer.got)))
            return super().read_chunk(chunk)

    consumer.endpoint.__class__ = Noting
    assert consumer.read(chunks) is None
    assert consumer.got == chunks
    # So many had been delivered when each chunk arrived.
    assert seen[:9] == list(zip(chunks, [0, 0, 0, 0, 0, 0, 6, 7, 7], strict=True))


@both
def test_a_stream_whose_whole_text_is_held_back_has_not_begun_and_can_be_tried_again(is_async: bool) -> None:
    cut: dict[str, Any] = {"chunks": ("[open]", "a1", "b", "[x]"), "cut_after": 3}
    consumer = Consumer(is_async, cut, max_retries=1, max_cost_usd=1.0, prices={"fake": (1e-6, 1e-6)})
    error = consumer.read()
    assert isinstance(error, Exception)
    assert consumer.got == []
    assert len(consumer.endpoint.sent) == len(consumer.trace["attempts"]) == 2
    assert [attempt["cost_usd"] > 0 for attempt in consumer.trace["attempts"]] == [True, True]

    consumer = Consumer(is_async, cut, max_retries=1)
    consumer.endpoint.behave = lambda number: "fine now" if number else None
    assert consumer.read() is None
    assert consumer.got == ["fine now"], "nothing of the first attempt, which the hook has not seen either"
    assert consumer.censor.finished == ["fine now"]
    assert len(consumer.endpoint.sent) == 2


@both
def test_what_waits_when_the_provider_fails_is_dropped_and_what_was_delivered_is_not_asked_for_again(
    is_async: bool,
) -> None:
    consumer = Consumer(is_async, {"chunks": ("x", "ya", "1", "never"), "cut_after": 3}, max_retries=2)
    assert isinstance(consumer.read(), ConnectionResetError)
    assert consumer.got == ["x"]
    assert consumer.trace["partial_text"] == "x"
    assert len(consumer.endpoint.sent) == 1
    assert consumer.endpoint.in_flight == 0


@both
def test_the_end_of_a_stream_may_be_what_stops_it(is_async: bool) -> None:
    consumer = Consumer(is_async)
    assert isinstance(consumer.read(["x ", "a1", "b2", "[end]"]), PhraseError)
    assert consumer.got == ["x "]
    assert consumer.trace["attempts"][0]["outcome"] == "failed"
    assert consumer.trace["partial_text"] == "x "


@both
def test_who_leaves_while_something_waits_leaves_it(is_async: bool) -> None:
    consumer = Consumer(is_async, {"chunks": ("x", "a1", "y")})

    async def leave() -> None:
        stream = consumer.pipe.astream(consumer.request())
        assert await anext(stream) == "x"
        await stream.aclose()  # type: ignore[attr-defined]

    if is_async:
        asyncio.run(leave())
    else:
        stream = consumer.pipe.stream(consumer.request())
        assert next(stream) == "x"
        stream.close()  # type: ignore[attr-defined]
    assert consumer.trace["outcome"] == "abandoned"
    assert consumer.trace["partial_text"] == "x"
    assert consumer.endpoint.in_flight == 0


@both
@pytest.mark.parametrize(
    ("held", "partial"), [(("ya1", "b"), True), (("ya1", "b2"), False)], ids=["harmless so far", "stopped at the end"]
)
def test_a_partial_answer_ends_like_a_stream_that_ended_by_itself(
    is_async: bool, held: tuple[str, str], partial: bool
) -> None:
    stalling = {"chunks": ("x", *held, "late"), "stall_at": 3}
    consumer = Consumer(is_async, stalling, idle_timeout=0.05, on_timeout="return_partial")
    error = consumer.read()
    consumer.endpoint.gate.set()
    if partial:
        assert error is None
        assert consumer.got == ["x", *held]
        assert consumer.trace["outcome"] == "timed_out"
    else:
        assert isinstance(error, PhraseError)
        assert consumer.got == ["x"]
    assert consumer.trace["partial_text"] == consumer.text


@both
@pytest.mark.parametrize("limit", ["idle_timeout", "per_call_timeout"])
def test_an_error_tells_of_no_more_text_than_was_delivered(is_async: bool, limit: str) -> None:
    consumer = Consumer(is_async, {"chunks": ("x", "ya1", "b2", "late"), "stall_at": 3}, **{limit: 0.05})
    error = consumer.read()
    consumer.endpoint.gate.set()
    assert isinstance(error, BrixTimeoutError)
    assert (error.partial, consumer.got, consumer.trace["partial_text"]) == ("x", ["x"], "x")
    assert "1 characters had arrived" in str(error)


@both
def test_an_answer_collected_from_chunks_is_held_to_the_same(is_async: bool) -> None:
    consumer = Consumer(is_async)
    assert consumer.collect(["x", "a1", "b", "[end]"]).text == "xa1b"
    assert consumer.censor.finished == ["xa1b"]
    for stopped in (["x", "a1", "b2 ", "y"], ["x", "a1", "b2"]):
        with pytest.raises(PhraseError):
            consumer.collect(stopped)
    assert consumer.trace["outcome"] == "failed"


@both
def test_the_error_of_a_collected_answer_tells_of_no_more_than_may_be_shown(is_async: bool) -> None:
    stalling: dict[str, Any] = {"stall_at": 3}
    consumer = Consumer(is_async, stalling, per_call_timeout=0.05)
    with pytest.raises(BrixTimeoutError) as caught:
        consumer.collect(["x", "ya1", "b2", "late"])
    consumer.endpoint.gate.set()
    assert caught.value.partial == "xy"

    consumer = Consumer(is_async, stalling, per_call_timeout=0.05, on_timeout="return_partial")
    with pytest.raises(PhraseError):
        consumer.collect(["x", "a1", "b2", "late"])
    assert consumer.collect(["x", "a1", "b", "late"]).text == "xa1b"
    consumer.endpoint.gate.set()


@both
def test_the_first_chunk_is_the_first_that_came_from_the_provider(is_async: bool) -> None:
    consumer = Consumer(is_async, {"latency": 2.0, "chunk_delay": 3.0, "chunks": ("[open]", "a1", "b", "x")})
    assert consumer.read() is None
    assert consumer.trace["first_chunk_ms"] == pytest.approx(5_000)


@both
def test_the_chunk_that_stops_a_stream_is_paid_for(is_async: bool) -> None:
    price: dict[str, Any] = {"max_cost_usd": 1.0, "prices": {"gpt-4o": (1e-6, 1e-6)}}
    whole = Consumer(is_async, **price)
    assert whole.read(["a1b2", "x" * 10], model="gpt-4o", max_tokens=50) is None
    cut = Consumer(is_async, **price)
    assert isinstance(cut.read(["a1b2 " + "many words to pay for " * 4], model="gpt-4o", max_tokens=50), PhraseError)
    assert cut.got == []
    costs = [one.trace["attempts"][0]["cost_usd"] for one in (whole, cut)]
    assert costs[1] > costs[0] + 10e-6


def test_who_is_only_told_of_chunks_is_told_at_the_end_too() -> None:
    consumer = Consumer(False)
    step = Stepwise(compose(consumer.pipe.guards)(consumer.request()), consumer.clock)
    step.begin()
    step.chunk("x a1")
    step.chunk("b2")
    with pytest.raises(PhraseError):
        step.finish(CallResponse(text="x a1b2"))
    assert consumer.trace["error"] == "PhraseError"


@both
def test_of_several_hooks_the_one_that_holds_back_most_is_heeded(is_async: bool) -> None:
    class Patient(Censor):
        def anew(self) -> Patient:
            return Patient()

        def held_back(self) -> int:
            return len(self.text)  # all of it

    consumer = Consumer(is_async)
    plain = consumer.request
    consumer.request = lambda **params: plain(**params).evolve(  # type: ignore[method-assign]
        hooks=(Censor(), Patient(), lambda text: None)
    )
    assert consumer.read(["x", "y", "z"]) is None
    assert consumer.got == ["x", "y", "z"]
    assert isinstance(consumer.read(["x", "y", "a1b2 "]), PhraseError)
    assert consumer.got == []
