"""Summaries of what does not fit: asked for rarely, through the inner guards, and never at the price of the call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langgraph.errors import GraphInterrupt

from brix_core.call import CallRequest
from brix_core.tokens import count_messages, tokenizer_for
from brix_core.trimming.summaries import HEADING, MAX_CALLS, MAX_KEPT
from brix_core.usage import Usage
from tests.support.context import ContextEndpoint, context_pipeline, converse
from tests.support.errors import status_error
from tests.support.modes import MODES, Mode, both_drivers, every_mode
from tests.support.virtual import VirtualClock, run_virtual

LIMIT = 1_000
PLAIN = MODES[0]


def turns(first: int, last: int) -> list[dict[str, Any]]:
    """Messages by number, some 43 tokens each."""
    filler = "and so on " * 12
    return [
        {"role": "assistant" if number % 2 else "user", "content": f"fact {number} {filler}"}
        for number in range(first, last)
    ]


def facts(text: str) -> set[int]:
    """The facts a text tells: "fact 3", or "fact 3-7"."""
    spans = [part.split()[0].split("-") for part in text.split("fact ")[1:]]
    return {number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)}


def numbered(request: CallRequest) -> str:
    """A summary that tells all it was told, so that what is lost is seen."""
    told = sorted(facts(request.conversation.messages[0]["content"]))
    starts = [number for number in told if number - 1 not in told]
    ends = [number for number in told if number + 1 not in told]
    return "They talked. " + " ".join(f"fact {first}-{last}" for first, last in zip(starts, ends, strict=True))


class Talk:
    """A pipeline that sums up, and what was sent."""

    def __init__(self, summary: Any = numbered, fallbacks: Any = (), writer: Any = None, **options: Any) -> None:
        self.clock = VirtualClock()
        self.endpoint = ContextEndpoint(self.clock, name="gpt-4o", summary=summary)
        options = {"max_context_tokens": LIMIT, "context_reserve_tokens": 0, **options}
        self.pipe = context_pipeline(self.clock, fallbacks, writer, context_strategy="summarize", **options)

    def request(
        self, messages: list[Any], mode: Mode = PLAIN, session: str | None = None, **params: Any
    ) -> CallRequest:
        return self.pipe.request(self.endpoint, messages, params, stream=mode.streamed, session_id=session)

    def say(self, messages: list[Any], mode: Mode = PLAIN, session: str | None = None, **params: Any) -> Any:
        return converse(mode, self.pipe, self.request(messages, mode, session, **params))

    @property
    def asked(self) -> int:
        return len(self.endpoint.summaries)

    @property
    def decisions(self) -> list[str]:
        """What was decided about the latest call."""
        return [decision["decision"] for decision in self.pipe.traces.get_traces()[0]["decisions"]]


@every_mode
def test_what_is_left_out_is_told_in_one_user_message(mode: Mode) -> None:
    talk = Talk()
    messages = [{"role": "system", "content": "Be brief."}, *turns(0, 27)]
    assert talk.say(messages, mode) == "answer"
    system, told, *rest = talk.endpoint.last
    assert system is messages[0]
    assert told["role"] == "user"
    assert told["content"].startswith(HEADING)
    assert rest == messages[-len(rest) :]
    assert rest[0]["role"] == "user"
    assert facts(told["content"]) == set(range(27 - len(rest)))
    assert talk.decisions == ["trimmed"]


@every_mode
def test_a_growing_conversation_is_summarised_rarely_and_nothing_is_lost(mode: Mode) -> None:
    talk = Talk()
    for length in range(1, 122, 2):
        assert talk.say(turns(0, length), mode) == "answer"
        sent = talk.endpoint.last
        assert count_messages(sent, tokenizer_for("gpt-4o")) <= LIMIT
        assert facts(" ".join(message["content"] for message in sent)) == set(range(length))
    assert 5 <= talk.asked <= 12, talk.asked  # of 61 calls, 50 did not fit
    assert "Summary of what came before" in talk.endpoint.summaries[-1]


def test_the_same_conversation_is_not_summarised_twice() -> None:
    talk = Talk()
    for _ in range(3):
        talk.say(turns(0, 27))
    assert talk.asked == 1
    talk.say(turns(0, 27), session="somebody else")
    assert talk.asked == 2


def test_an_edited_beginning_is_summarised_anew() -> None:
    talk = Talk()
    messages = turns(0, 27)
    talk.say(messages)
    messages[3] = {"role": "assistant", "content": "fact 777"}
    talk.say(messages)
    assert talk.asked == 2
    assert 777 in facts(talk.endpoint.last[0]["content"])
    talk.say(turns(0, 27))  # and the other branch is still known
    assert talk.asked == 2


def test_a_system_prompt_that_tells_the_time_makes_no_new_conversation() -> None:
    talk = Talk()
    for minute in range(3):
        talk.say([{"role": "system", "content": f"It is 12:0{minute}."}, *turns(0, 27)])
    assert talk.asked == 1


def test_a_session_remembers_so_many_summaries() -> None:
    talk = Talk()
    for number in range(MAX_KEPT + 1):
        talk.say([{"role": "user", "content": f"talk {number}"}, *turns(1, 27)])
    talk.say([{"role": "user", "content": f"talk {MAX_KEPT}"}, *turns(1, 27)])
    assert talk.asked == MAX_KEPT + 1
    talk.say([{"role": "user", "content": "talk 0"}, *turns(1, 27)])
    assert talk.asked == MAX_KEPT + 2


def test_a_message_that_was_protected_is_in_a_later_summary() -> None:
    talk = Talk()
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    exchange = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "on and on " * 12},
    ]
    messages = [{"role": "user", "content": "fact 1"}, *exchange * 20]
    talk.say(messages)
    question, told = talk.endpoint.last[:2]
    assert question is messages[0]
    assert told["content"].startswith(HEADING)
    messages += [{"role": "assistant", "content": "Done."}, *turns(2, 33)]
    talk.say(messages)
    assert facts(" ".join(str(message["content"]) for message in talk.endpoint.last)) == set(range(1, 33))


def test_a_long_history_is_rolled_up_in_a_bounded_number_of_requests() -> None:
    talk = Talk(summary="It went on.")
    assert talk.say(turns(0, 81)) == "answer"
    assert 1 < talk.asked < MAX_CALLS
    talk = Talk(summary="It went on.")
    assert talk.say(turns(0, 2_001)) == "answer"
    assert talk.asked == MAX_CALLS
    assert "messages left out" in talk.endpoint.summaries[-1]
    for request in talk.endpoint.requests:
        assert request.prompt_tokens() <= LIMIT


def test_what_a_failed_roll_up_had_is_kept() -> None:
    def fails_third(request: CallRequest) -> str:
        if len(talk.endpoint.summaries) == 3:
            raise ValueError
        return numbered(request)

    talk = Talk(fails_third, max_context_tokens=500)
    talk.say(turns(0, 61))
    assert talk.decisions == ["summary_failed", "trimmed"]
    assert talk.asked == 3
    talk.say(turns(0, 61))
    assert talk.decisions == ["trimmed"]
    assert "fact 0-" in talk.endpoint.summaries[3]
    assert "Summary of what came before" in talk.endpoint.summaries[3]


# How it is asked for


def test_a_summary_is_asked_for_without_tools_formats_hooks_or_streaming() -> None:
    talk = Talk()
    tools = [{"type": "function", "function": {"name": "look"}}]
    talk.say(turns(0, 27), MODES[1], tools=tools, stop=["x"], n=2, model="gpt-4o-mini", run_manager=object())
    asked, main = talk.endpoint.requests
    assert asked.params == {"model": "gpt-4o-mini"}
    assert (asked.stream, asked.hooks, asked.schema) == (False, (), None)
    assert asked.output_cap is not None
    assert asked.output_cap <= LIMIT // 4
    assert (main.stream, main.output_cap) == (True, None)
    assert main.params["tools"] is tools


@every_mode
def test_another_model_may_write_it(mode: Mode) -> None:
    clock = VirtualClock()
    writer = ContextEndpoint(clock, name="gpt-4o-mini", summary="Briefly.")
    talk = Talk(writer=writer)
    assert talk.say(turns(0, 27), mode, model="gpt-4o") == "answer"
    assert [request.params for request in writer.requests] == [{}]
    assert talk.endpoint.last[0]["content"] == HEADING + "Briefly."
    assert len(talk.endpoint.requests) == 1


@every_mode
def test_a_summary_is_paid_for_retried_and_traced(mode: Mode) -> None:
    def flaky(request: CallRequest) -> str:
        if len(talk.endpoint.summaries) == 1:
            raise status_error(500)
        return "Briefly."

    talk = Talk(flaky, max_cost_usd=1.0, max_retries=2, prices={"gpt-4o": (1e-6, 1e-6)})
    talk.endpoint.usage = Usage(input_tokens=100, output_tokens=10)
    assert talk.say(turns(0, 27), mode) == "answer"
    (entry,) = talk.pipe.traces.get_traces()
    assert [attempt["outcome"] for attempt in entry["attempts"]] == ["failed", "ok", "ok"]
    assert talk.pipe.session().session_cost_usd == pytest.approx(220e-6)


def test_a_summary_fails_over() -> None:
    clock = VirtualClock()
    other = ContextEndpoint(clock, name="gpt-4o-mini", summary="Briefly.")
    talk = Talk(ConnectionError("lost"), fallbacks=[other])
    assert talk.say(turns(0, 27)) == "answer"
    assert talk.endpoint.last[0]["content"] == HEADING + "Briefly."


# When there is none


@every_mode
@pytest.mark.parametrize("summary", ["", "  \n", ValueError("no"), status_error(500), TimeoutError()], ids=repr)
def test_a_summary_that_fails_costs_neither_the_call_nor_the_latest_messages(mode: Mode, summary: Any) -> None:
    talk = Talk(summary)
    messages = turns(0, 27)
    assert talk.say(messages, mode) == "answer"
    assert talk.decisions == ["summary_failed", "trimmed"]
    sent = talk.endpoint.last
    assert sent == messages[-len(sent) :]
    assert len(sent) > 15
    talk.endpoint.summary = "Back again."
    assert talk.say(messages, mode) == "answer"
    assert talk.endpoint.last[0]["content"] == HEADING + "Back again."


def test_a_summary_there_is_no_money_for_is_left_out() -> None:
    writer = ContextEndpoint(VirtualClock(), name="dear")
    talk = Talk(writer=writer, max_cost_usd=0.01, prices={"gpt-4o": (1e-6, 0.0), "dear": (1.0, 1.0)})
    assert talk.say(turns(0, 27)) == "answer"
    assert "summary_failed" in talk.decisions
    assert not writer.requests


def test_a_prompt_with_no_room_for_a_summary_keeps_the_latest_messages() -> None:
    talk = Talk(max_context_tokens=130)
    assert talk.say(turns(0, 27)) == "answer"
    assert talk.decisions == ["summary_failed", "trimmed"]
    assert talk.asked == 0


@every_mode
def test_control_flow_is_no_failure(mode: Mode) -> None:
    talk = Talk(GraphInterrupt())
    assert isinstance(talk.say(turns(0, 27), mode), GraphInterrupt)
    assert talk.asked == len(talk.endpoint.requests) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_cancelled_summary_cancels_the_call(streamed: bool) -> None:
    talk = Talk()
    talk.endpoint.latency = 10.0
    mode = Mode("async", streamed)

    async def main() -> None:
        request = talk.request(turns(0, 27), mode)
        source = talk.pipe.astream(request)
        task = asyncio.ensure_future(anext(source) if streamed else talk.pipe.acall(request))
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main, talk.clock)
    assert talk.asked == len(talk.endpoint.requests) == 1
    assert talk.endpoint.in_flight == 0
    assert talk.pipe.traces.get_traces()[0]["outcome"] == "cancelled"


@both_drivers
def test_concurrent_calls_of_a_session_do_not_spoil_each_other(mode: Mode) -> None:
    talk = Talk()
    talk.endpoint.latency = 1.0
    lengths = [31, 41, 51, 41, 61, 31, 51, 41]

    def blocking(length: int) -> Callable[[], Any]:
        return lambda: talk.pipe.call(talk.request(turns(0, length))).text

    async def main() -> list[Any]:
        return [
            response.text
            for response in await asyncio.gather(*(talk.pipe.acall(talk.request(turns(0, n))) for n in lengths))
        ]

    if mode.driver == "sync":
        assert talk.clock.run_threads([blocking(length) for length in lengths]) == ["answer"] * 8
    else:
        assert run_virtual(main, talk.clock) == ["answer"] * 8
    for request in talk.endpoint.requests:
        if not talk.endpoint.is_summary(request):
            told = facts(" ".join(message["content"] for message in request.conversation.messages))
            assert told in [set(range(length)) for length in lengths]
    asked = talk.asked
    assert talk.say(turns(0, 63)) == "answer"
    assert talk.asked <= asked + 1
    assert facts(" ".join(message["content"] for message in talk.endpoint.last)) == set(range(63))
