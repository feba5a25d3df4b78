"""G8: what is returned is a valid instance of the schema, or the call fails with every answer it got."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core import (
    BrixConfigurationError,
    BrixSchemaError,
    MemoryStore,
)
from brix_core.call import CallResponse
from brix_core.guards.schema import MAX_ECHO
from brix_core.structured.response_schema import ResponseSchema
from tests.support.errors import status_error
from tests.support.fake import pipeline
from tests.support.modes import MODES, Mode, both_drivers, both_streams, every_mode
from tests.support.schemas import (
    INVALID,
    KINDS,
    OSLO,
    VALID,
    City,
    Model,
    aask,
    ask,
    calls,
    decisions,
    new_request,
    setup,
    trace_of,
)
from tests.support.virtual import VirtualClock, run_virtual

BAD = INVALID[0]
SCHEMA = ResponseSchema.of(City)
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}


# -- the guarantee -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream_mode", ["partial", "validated"])
@every_mode
def test_an_answer_becomes_an_instance_of_whatever_the_schema_was_given_as(
    mode: Mode, stream_mode: str, kind: str
) -> None:
    schema, expected = KINDS[kind]
    pipe, model = setup(f"Here you are:\n```json\n{VALID}\n```", mode=stream_mode, response_schema=schema)
    got = ask(mode, pipe, model)
    assert got.instance == expected
    assert type(got.instance) is type(expected)
    assert VALID in got.text
    assert len(model.asked) == 1
    assert trace_of(pipe)["decisions"] == []


@settings(max_examples=300, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    texts=st.lists(st.sampled_from([*INVALID, VALID]), min_size=1, max_size=6),
    retries=st.integers(0, 4),
)
def test_a_valid_instance_or_an_error_with_every_answer(mode: Mode, texts: list[str], retries: int) -> None:
    pipe, model = setup(*texts, max_schema_retries=retries)
    seen = [*texts, *[texts[-1]] * retries][: retries + 1]
    if VALID in seen:
        got = ask(mode, pipe, model)
        assert (got.instance, got.text) == (OSLO, VALID)
        heals = seen.index(VALID)
    else:
        with pytest.raises(BrixSchemaError) as caught:
            ask(mode, pipe, model)
        assert [attempt.text for attempt in caught.value.attempts] == seen
        assert all(attempt.problems for attempt in caught.value.attempts)
        assert caught.value.schema_name == "City"
        heals = retries
    assert len(model.asked) == len(trace_of(pipe)["attempts"]) == heals + 1
    assert len(decisions(pipe, "healing")) == heals


@settings(max_examples=150, deadline=None)
@given(mode=st.sampled_from([Mode("sync", True), Mode("async", True)]), text=st.sampled_from([*INVALID, VALID]))
def test_a_stream_that_was_shown_is_valid_at_its_end_or_fails(mode: Mode, text: str) -> None:
    pipe, model = setup(text, VALID, mode="partial")
    if text == VALID:
        assert ask(mode, pipe, model).instance == OSLO
        return
    with pytest.raises(BrixSchemaError, match="stream_mode='validated'") as caught:
        ask(mode, pipe, model)
    assert caught.value.partial == text
    assert len(model.asked) == 1
    assert trace_of(pipe)["outcome"] == "failed"


# -- how it is asked -----------------------------------------------------------------------------------------


@every_mode
def test_the_schema_is_written_into_the_prompt_once_while_the_conversation_grows(mode: Mode) -> None:
    pipe, model = setup()
    talk: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    for turn in range(4):
        talk += [{"role": "user", "content": f"Where? {turn}"}]
        before = [dict(message) for message in talk]
        ask(mode, pipe, model, messages=talk)
        assert talk == before
        talk += [{"role": "assistant", "content": VALID}]
    for number, prompt in enumerate(model.prompts()):
        assert prompt[0] == ("system", f"Be brief.\n\n{SCHEMA.instructions}")
        assert len(prompt) == 2 + 2 * number
    own = [{"role": "system", "content": SCHEMA.instructions}, {"role": "user", "content": "Where?"}]
    ask(mode, pipe, model, messages=own)
    assert model.prompts()[-1] == [(message["role"], message["content"]) for message in own]


@every_mode
@pytest.mark.parametrize("natives", [(True, True), (True, False), (False, True), (False, False)])
def test_every_model_of_the_chain_gets_the_schema_in_a_way_it_understands(
    mode: Mode, natives: tuple[bool, bool]
) -> None:
    clock = VirtualClock()
    first = Model(clock, name="first", replies=[status_error(500)], native=natives[0])
    second = Model(clock, name="second", replies=[BAD, VALID], native=natives[1])
    pipe = pipeline(clock, [second], response_schema=City, stream_mode="validated")
    assert ask(mode, pipe, first).instance == OSLO
    assert (len(first.asked), len(second.asked)) == (2, 2)  # the heal begins with the first model again
    for request in (*first.asked, *second.asked):
        written = SCHEMA.instructions in request.conversation.messages[0]["content"]
        assert written is not all(natives)
        assert request.schema is not None


@every_mode
@pytest.mark.parametrize(
    "offer",
    [
        {"type": "function", "function": {"name": "City", "parameters": {}}},
        {"name": "City", "input_schema": {}},
        {"type": "json_schema", "json_schema": {"name": "mine", "schema": {}}},
        {"format": {"type": "json_schema", "schema": {}}},
    ],
)
def test_a_schema_that_is_bound_already_is_not_written_into_the_prompt(mode: Mode, offer: Any) -> None:
    pipe, model = setup()
    model.offers = [[offer]]
    assert ask(mode, pipe, model).instance == OSLO
    assert model.prompts() == [[("user", "Where?")]]


@every_mode
def test_the_prompt_can_be_left_alone(mode: Mode) -> None:
    pipe, model = setup(BAD, VALID, inject_schema_in_prompt=False)
    assert ask(mode, pipe, model).instance == OSLO
    assert all(SCHEMA.instructions not in text for prompt in model.prompts() for _, text in prompt)


@every_mode
def test_a_heal_shows_the_last_answer_and_what_is_wrong_and_the_prompt_does_not_grow(mode: Mode) -> None:
    pipe, model = setup(*(f'{{"name": "Oslo", "people": "n{number}"}}' for number in range(5)), max_schema_retries=4)
    with pytest.raises(BrixSchemaError, match=r"5 answer\(s\): max_schema_retries=4 .*\$\.people") as caught:
        ask(mode, pipe, model)
    first, *heals = model.prompts()
    for number, heal in enumerate(heals):
        assert heal[:-2] == first
        assert heal[-2] == ("assistant", caught.value.attempts[number].text)
        assert heal[-1][0] == "user"
        assert "$.people" in heal[-1][1]
        assert f'"n{number}"' in heal[-1][1]
    assert [request.conversation.added for request in model.asked] == [0, 2, 2, 2, 2]
    assert pickle.loads(pickle.dumps(caught.value)).attempts == caught.value.attempts


@both_drivers
def test_long_and_empty_answers_are_shown_within_bounds(mode: Mode) -> None:
    pipe, model = setup("x" * 100_000, " \n", VALID)
    assert ask(mode, pipe, model).instance == OSLO
    assert len(model.prompts()[1][-2][1]) < MAX_ECHO + 20
    assert model.prompts()[2][-2] == ("assistant", "(no answer)")


@both_drivers
def test_a_local_repair_costs_no_heal_and_is_noted(mode: Mode) -> None:
    pipe, model = setup("Sure: {name: 'Oslo', people: 700000,}")
    assert ask(mode, pipe, model).instance == OSLO
    assert len(model.asked) == 1
    assert [made["guard"] for made in decisions(pipe, "repaired")] == ["schema"]


# -- what kind of answer it is -------------------------------------------------------------------------------


@every_mode
def test_an_answer_that_asks_for_other_tools_is_handed_back_untouched(mode: Mode) -> None:
    pipe, model = setup(calls("get_weather", "{}"), VALID)
    model.offers = [TOOL]
    got = ask(mode, pipe, model)
    assert got.instance is None
    assert len(model.asked) == 1
    assert ask(mode, pipe, model).instance == OSLO


def test_an_instance_of_an_earlier_answer_is_not_taken_for_this_one() -> None:
    pipe, model = setup(VALID, calls("get_weather", "{}"))
    model.offers = [TOOL]
    request = new_request(Mode("sync"), pipe, model)
    pipe.call(request)
    assert request.call.metadata["parsed"] == OSLO
    assert pipe.call(request).parsed is None  # asked again by an outer guard
    assert "parsed" not in request.call.metadata


@every_mode
def test_the_arguments_of_the_schemas_own_tool_are_the_answer(mode: Mode) -> None:
    pipe, model = setup(calls("City", BAD), calls("City"))
    model.offers = [TOOL, {"name": "City", "input_schema": {}}]
    assert ask(mode, pipe, model).instance == OSLO
    assert model.prompts()[1][-2] == ("assistant", BAD)


@every_mode
def test_a_tool_call_nobody_offered_is_no_answer(mode: Mode) -> None:
    pipe, model = setup(calls("made_up"), max_schema_retries=0)
    model.offers = [{"type": "json_object"}]
    with pytest.raises(BrixSchemaError, match="no JSON"):
        ask(mode, pipe, model)


@every_mode
@pytest.mark.parametrize(
    ("reason", "how", "said"),
    [
        ("length", "cut_off", "shorter"),
        ("max_tokens", "cut_off", "shorter"),
        ("refusal", "refused", "refused"),
        ("content_filter", "refused", "refused"),
    ],
)
def test_an_answer_cut_off_or_refused_is_not_valid_whatever_it_says(
    mode: Mode, reason: str, how: str, said: str
) -> None:
    pipe, model = setup(CallResponse(text=VALID, finish_reason=reason), BAD, max_schema_retries=1)
    with pytest.raises(BrixSchemaError) as caught:
        ask(mode, pipe, model)
    assert [attempt.how for attempt in caught.value.attempts] == [how, "text"]
    assert said in model.prompts()[1][-1][1]


def test_a_partial_answer_is_not_handed_out_though_partial_answers_are_wanted() -> None:
    for streamed in (False, True):
        for stream_mode in ("partial", "validated"):
            pipe, model = setup(mode=stream_mode, per_call_timeout=2.0, on_timeout="return_partial")
            model.chunk_delay = 1.0
            with pytest.raises(BrixSchemaError) as caught:
                ask(Mode("async", streamed), pipe, model)
            assert [attempt.how for attempt in caught.value.attempts] == ["timed_out"]
            assert len(model.asked) == 1


@every_mode
def test_several_choices_are_refused_before_anything_is_sent(mode: Mode) -> None:
    pipe, model = setup()
    with pytest.raises(BrixConfigurationError, match="n=2"):
        ask(mode, pipe, model, n=2)
    assert model.asked == []


# -- streams -------------------------------------------------------------------------------------------------


@both_streams
def test_in_validated_mode_nothing_is_shown_before_it_is_valid(mode: Mode) -> None:
    pipe, model = setup(BAD, VALID)
    got = ask(mode, pipe, model)
    assert (got.instance, got.text) == (OSLO, VALID)
    assert [request.stream for request in model.asked] == [False, False]


@both_streams
def test_a_stream_that_showed_nothing_is_healed(mode: Mode) -> None:
    pipe, model = setup("", VALID, mode="partial")
    got = ask(mode, pipe, model)
    assert (got.instance, got.text) == (OSLO, VALID)
    assert [request.stream for request in model.asked] == [True, False]


# -- many calls, and calls without a schema ------------------------------------------------------------------


class Echoing(Model):
    """Answers with the last number in the conversation's first user message, wrongly at first."""

    def _reply(self, number: int) -> Any:
        request = self.asked[number]
        user = next(m["content"] for m in request.conversation.messages if m["role"] == "user")
        people = user if request.conversation.added else '"?"'
        return CallResponse(text=f'{{"name": "n", "people": {people}}}', finish_reason="stop")


def test_a_hundred_heals_at_once_do_not_see_each_other() -> None:
    clock = VirtualClock()
    pipe, model = pipeline(clock, response_schema=City), Echoing(clock, latency=1.0)
    requests = [new_request(Mode("async"), pipe, model, str(number), session=f"s{number % 7}") for number in range(100)]

    async def main() -> list[Any]:
        return await asyncio.gather(*(aask(pipe, request) for request in requests))

    assert [got.instance.people for got in run_virtual(main, clock)] == list(range(100))
    assert len(model.asked) == 200


@every_mode
def test_a_single_call_may_have_a_schema_of_its_own(mode: Mode) -> None:
    pipe, model = setup(BAD, response_schema=None, max_schema_retries=1)
    assert ask(mode, pipe, model).instance is None  # no schema, no guard
    assert model.prompts() == [[("user", "Where?")]]
    with pytest.raises(BrixSchemaError, match=r"2 answer\(s\)"):
        ask(mode, pipe, model, schema=SCHEMA)
    assert pipe.names == ("observability",)
    pipe, model = setup('{"street": "Main"}', store=MemoryStore())
    assert pipe.names == ("observability", "schema")
    street = ResponseSchema.of({"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]})
    assert ask(mode, pipe, model, schema=street).instance == {"street": "Main"}
